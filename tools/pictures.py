"""Put the pictures that the three notebooks made side by side, for the README."""

import numpy
from PIL import Image, ImageSequence

SAMPLES = ("MNIST-VAE-latent_samples.png", "MADE-samples.png", "MNIST-lagVAE-latent_samples.png")
LOOPS = ("MNIST-VAE-walk.gif", "MADE-drawing.gif", "MNIST-lagVAE-path.gif")
TOGETHER = {"samples.png": SAMPLES, "collection.gif": LOOPS}  # in images/
MARGIN = 15  # white dots left and right of each
FRAME = 80  # milliseconds


def widen(frame):
    """A frame in grey levels, with its margins."""
    return numpy.pad(frame.convert("L"), ((0, 0), (MARGIN, MARGIN)), constant_values=255)


def side_by_side(images):
    """Join the models' pictures, those that are in the folder `images`, into those of TOGETHER."""
    for target, names in TOGETHER.items():
        pictures = [Image.open(images / name) for name in names if (images / name).exists()]
        height = min(picture.height for picture in pictures)

        parts = [ImageSequence.all_frames(picture, widen) for picture in pictures]
        rows = [numpy.hstack([f[:height] for f in row]) for row in zip(*parts, strict=False)]

        first, *rest = map(Image.fromarray, rows)
        animated = {"save_all": bool(rest), "append_images": rest, "duration": FRAME, "loop": 0}
        first.save(images / target, **animated)
