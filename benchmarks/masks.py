"""The evidence behind MADE.ipynb: what each ingredient is worth, and two controls of what is said to be its cause.

Grey levels as targets have less variance than coin flips: are flips that are averaged as good as their variance says?
A convolution shares its weights among all places: is the same network without sharing as good?

    python benchmarks/masks.py "5 epochs" --processes 2 --threads 1

Nats are of all 10,000 validation images, exact.
"""

from itertools import pairwise

import torch
from harness import Job, book, device, main
from torch import nn
from torch.nn import functional as F

SEEDS = (0, 1, 2)
SHORT_EPOCHS, LONG_EPOCHS = 5, 40
FLIPS = (1, 4, 16)  # draws of the target that are averaged


def setting(seed=0, images=None, **constants):
    """MADE.ipynb's definitions, with what its cells compute before the first training."""
    names = book("MADE", SEED=seed, **constants)
    images = names["train_data"][0] if images is None else images
    labels = names["train_data"][1]
    names |= {"train_data": [images, labels], "mean": images.float().mean(0) / 255}
    return names


def untrained(names, order, degrees=None, kind="MADE"):
    """A network that visits pixels in this order; degrees by entropy unless they are given."""
    torch.manual_seed(names["SEED"])
    if degrees is None:
        degrees = names["draw_degrees"](order, names["mean"], names["HIDDEN"])
    kind = names[kind] if isinstance(kind, str) else kind
    return kind(order, degrees, names["mean"].cpu(), names["BLOCKS"]).to(device)


def train(names, model, epochs, **options):
    """Train with the notebook's loop."""
    names["fit"](names["Training"]("", model, names["adamw"](model), epochs), **options)
    return model


@torch.no_grad()
def nll(names, model, part="validation_x"):
    """−log p of each image in nats, exact: [N]."""
    return -names["log_p"](model, names[part])


# The variants


def average_of_flips(names, count):
    """The notebook's loss, whose target is the mean of so many coin flips of the grey levels."""

    def expected_nll(model, images, labels, grey=True):
        flips = [names["binarise"](images) for _ in range(1 + count)]
        target = torch.stack(flips[1:]).mean(0)
        return -torch.distributions.Bernoulli(logits=model(flips[0])).log_prob(target).sum(1)

    return expected_nll


def unshared(names):
    """The class SharedMADE with weights of its own for each place of its convolutions."""
    channels, size = names["CHANNELS"], names["KERNEL"]
    earlier = size * size // 2  # of a window's pixels, row by row

    class Unshared(names["MADE"]):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            pixels = len(self.mean)
            widths = (earlier, channels, channels, 1)
            shapes = [(pixels, *pair) for pair in pairwise(widths)]
            bounds = [width**-0.5 for width in widths[:-1]]  # as a library's layers begin
            self.weights = nn.ParameterList(
                torch.empty(shape).uniform_(-bound, bound)
                for shape, bound in zip(shapes, bounds, strict=True)
            )
            self.biases = nn.ParameterList(torch.zeros(pixels, 1, n) for n in widths[1:])
            nn.init.zeros_(self.weights[-1])  # it starts as a MADE

        def forward(self, x, c=None):
            image = (x - self.mean).unflatten(1, (28, 28))[:, None]
            windows = F.unfold(image, size, padding=size // 2)[:, :earlier]
            h = windows.permute(2, 0, 1)  # [pixels, N, earlier]
            for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                h = F.silu(h) if layer else h  # between layers
                h = h @ weight + bias
            return super().forward(x, c) + h[..., 0].T

    return Unshared


@torch.no_grad()
def without_direct(model):
    model.direct.mask.zero_()
    return model


def gradient_variance(names, model, batches=30):
    """The variance of the loss's gradient, summed over all weights, from random batches."""
    torch.manual_seed(0)
    images, labels = names["train_data"]
    gradients = []
    for rows in torch.randperm(len(images))[: batches * names["BATCH_SIZE"]].chunk(batches):
        loss = names["expected_nll"](model, images[rows], labels[rows]).mean()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(gradients).var(0).sum().item()


def variant(seed, what, epochs):
    """A network with one thing changed."""
    names = setting(seed)
    order, mean = torch.arange(784), names["mean"]
    degrees, kind, grey = None, "MADE", True
    if what == "random ordering":
        order = torch.randperm(784, generator=torch.Generator().manual_seed(seed))
    if what == "uniform degrees":
        degrees = names["draw_degrees"](order, torch.full_like(mean, 0.5), names["HIDDEN"])
    if what in ("shared weights", "the same, unshared"):
        kind = "SharedMADE" if what == "shared weights" else unshared(names)
    if what.endswith("flips averaged"):
        names["expected_nll"] = average_of_flips(names, int(what.split()[0]))
    if what == "coin flips":
        grey = False

    model = untrained(names, order, degrees, kind)
    if what == "no direct connections":
        model = without_direct(model)
    before = gradient_variance(names, model)
    is_long = epochs == LONG_EPOCHS
    distorted = names["DISTORTED"] if is_long and what != "never distorted" else 0.0
    train(names, model, epochs, grey=grey, distorted=distorted)
    row = {"what": what, "epochs": epochs, "NLL": nll(names, model).mean().item()}
    if is_long:
        row["test NLL"] = nll(names, model, "test_x").mean().item()
    return row | {"variance before": before, "variance after": gradient_variance(names, model)}


AVERAGED = tuple(f"{count} flips averaged" for count in FLIPS)
SHORT = ("as it is", *AVERAGED, "shared weights", "the same, unshared")
SHORT += ("uniform degrees", "no direct connections", "random ordering")
LONG = ("as it is", "coin flips", "uniform degrees", "no direct connections", "random ordering")
LONG += ("never distorted", "shared weights")


def jobs():
    return [
        Job(
            f"{epochs} epochs, {what}, seed {seed}", variant, seed, {"what": what, "epochs": epochs}
        )
        for epochs, variants in ((SHORT_EPOCHS, SHORT), (LONG_EPOCHS, LONG))
        for what in variants
        for seed in SEEDS
    ]


if __name__ == "__main__":
    main(jobs())
