"""What goes in and what comes out: images, coin flips, subsets; sheets, animations, tables, results."""

import json
import math
import struct
from pathlib import Path

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from PIL import Image

FILES = {
    "train-images-idx3-ubyte": (90, 28, 28),
    "train-labels-idx1-ubyte": (90,),
    "t10k-images-idx3-ubyte": (15, 28, 28),
    "t10k-labels-idx1-ubyte": (15,),
}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder with the four files of a made-up, small KMNIST, and no network."""

    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading:\n<urlopen error no network>")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    folder = tmp_path / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    for file, shape in FILES.items():
        header = struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape)
        body = torch.arange(math.prod(shape)).remainder(10).to(torch.uint8).numpy().tobytes()
        (folder / file).write_bytes(header + body)
    return folder


def failure(vae, name, folder):
    """The one line that `load_images` ends with; what is in the folder stays as it is."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(RuntimeError) as error:
        vae["load_images"](name, folder)
    assert sorted(folder.rglob("*")) == before
    message = str(error.value)
    assert str(folder / name) in message and 'set DATASET = "digits"' in message
    assert "\n" not in message and error.value.__cause__ is None
    return message


def test_the_digits_need_no_files(vae, tmp_path):
    parts = vae["load_images"]("digits", tmp_path)
    assert [tuple(images.shape) for images, _ in parts] == [(1285, 784), (256, 784), (256, 784)]
    for images, labels in parts:
        assert images.dtype == torch.uint8 and images.min() == 0 and images.max() == 240
        assert len(labels) == len(images) and set(labels.tolist()) == set(range(10))
    assert not any(tmp_path.iterdir())
    again = vae["load_images"]("digits", tmp_path)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(parts, again, strict=True))


def test_files_that_are_there_are_read_and_split(vae, raw):
    parts = vae["load_images"]("KMNIST", raw.parent.parent)
    assert [len(images) for images, _ in parts] == [75, 15, 15]
    for (images, labels), start in zip(parts, (0, 75, 0), strict=True):
        assert images[0, :3].tolist() == [(start * 784 + i) % 10 for i in range(3)]
        assert labels.dtype == torch.int64
        assert labels[:3].tolist() == [(start + i) % 10 for i in range(3)]


@pytest.mark.parametrize("file", FILES)
def test_whatever_is_wrong_one_message_names_folder_and_remedies(vae, raw, file):
    content = (raw / file).read_bytes()[:-1]
    (raw / file).write_bytes(content)
    assert "Delete that folder and run again" in failure(vae, "KMNIST", raw.parent.parent)
    assert (raw / file).read_bytes() == content  # nothing is mended behind the reader's back
    (raw / file).unlink()
    assert "no network" in failure(vae, "KMNIST", raw.parent.parent)


@pytest.fixture
def pictures(tmp_path):
    """`pictures(*folders)` draws 60 pictures into each of these subfolders of my_images; returns its path."""

    def draw(*folders):
        for label, name in enumerate(folders):
            folder = tmp_path / "my_images" / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(60):  # a black square that grows, on white; its left half is clear
                picture = Image.new("RGBA", (112, 112), "white")
                picture.paste("black", (40, 40, 44 + i, 80 + 4 * label))
                picture.paste((0, 0, 0, 0), (0, 0, 28, 112))
                picture.save(folder / f"{i}.png")
        return tmp_path / "my_images"

    return draw


def test_own_pictures_are_split_at_random_with_their_classes(vae, pictures):
    folder = pictures("cats", "dogs")
    for hidden in (folder, folder / "cats"):
        (hidden / ".DS_Store").write_text("what systems put there")
    (folder / ".thumbnails").mkdir()
    parts = vae["load_images"]("my_images", folder.parent)
    assert [tuple(images.shape) for images, _ in parts] == [(86, 784), (17, 784), (17, 784)]
    for images, labels in parts:
        assert images.dtype == torch.uint8 and set(labels.tolist()) == {0, 1}
        sheet = images.view(-1, 28, 28)
        assert sheet[:, :, :7].max() == 0  # clear is white
        assert sheet[:, 12, 10].min() == 255 and sheet[:, 0].max() == 0  # dark is ink
        assert ((sheet[:, 20, 10] > 0).long() == labels).all()  # one row more for the second class
    everything = torch.cat([images for images, _ in parts])
    assert len(everything.unique(dim=0)) == 120


def test_own_pictures_may_lie_flat_in_any_format(vae, pictures):
    folder = pictures(".", "more")
    Image.new("L", (300, 100), 55).save(folder / "grey.jpg")
    parts = vae["load_images"]("my_images", folder.parent)
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    assert len(images) == 121 and labels.unique().tolist() == [0]
    assert (images == 200).all(1).sum() == 1


def test_own_pictures_that_are_missing_end_in_one_message(vae, pictures, tmp_path):
    assert "Known are MNIST, FashionMNIST, KMNIST" in failure(vae, "my_images", tmp_path)
    (tmp_path / "my_images").mkdir()
    assert "Put pictures there" in failure(vae, "my_images", tmp_path)
    *more, last = sorted(pictures("cats", "dogs").glob("cats/*"))[:21]
    for path in more:
        path.unlink()
    assert sum(len(labels) for _, labels in vae["load_images"]("my_images", tmp_path)) == 100
    last.unlink()
    assert "99 images are too few: it takes 100" in failure(vae, "my_images", tmp_path)


@pytest.mark.parametrize("content", [b"not at all", None], ids=["none", "truncated"])
def test_a_picture_that_cannot_be_read_is_named(vae, pictures, content):
    broken = pictures("cats", "dogs") / "dogs" / "5.png"
    broken.write_bytes(content or broken.read_bytes()[:100])
    assert str(broken) in failure(vae, "my_images", broken.parent.parent.parent)


def test_binarise(vae):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(40_000, 3)
    binary = vae["binarise"](images, torch.Generator().manual_seed(3))
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert binary.mean(0).tolist() == pytest.approx([0, 0.2, 1], abs=0.01)
    assert binary[:, 0].max() == 0 and binary[:, 2].min() == 1
    again = vae["binarise"](images, torch.Generator().manual_seed(3))
    assert torch.equal(binary, again) and not torch.equal(binary, vae["binarise"](images))


def test_a_subset_is_random_and_the_same_each_time(vae):
    x = torch.arange(100)
    state = torch.get_rng_state()
    rows = vae["subset"](x, 40)
    assert len(rows.unique()) == 40 and torch.equal(vae["subset"](x, 40), rows)
    assert torch.equal(vae["subset"](x, 20), rows[:20])
    assert not torch.equal(vae["subset"](x, 40, seed=1), rows)
    assert rows.diff().unique().numel() > 10 and rows.max() > 80  # no slice, no stride
    assert torch.equal(vae["subset"](x, 1000).sort().values, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_examples_are_one_of_each_class_drawn_at_random(vae):
    labels = torch.arange(500) % 10
    indices = vae["one_of_each"](labels)
    assert labels[indices].tolist() == list(range(10)) and indices.max() > 20
    few = vae["one_of_each"](torch.tensor([3, 3, 7]))
    assert len(few) == 10 and few[1] == 2 and set(few.tolist()) == {0, 1, 2}


def test_images_are_distorted_one_by_one_and_a_little(made):
    images = torch.zeros(6, 784, dtype=torch.uint8)
    images.view(6, 28, 28)[:, 8:20, 8:20] = 255
    distorted = made["distort"](images)
    assert distorted.shape == (6, 784) and len(distorted.unique(dim=0)) == 6
    assert 0.5 < distorted.sum() / images.sum() < 2 and distorted.max() <= 255.01
    assert distorted[:, 14 * 28 + 14].min() > 250 and distorted[:, : 2 * 28].max() == 0


def test_coarse_images_are_means_of_four_pixels(lagrangian_vae):
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 2:4, 6] = 200
    coarse = lagrangian_vae["coarse"](image.flatten(1), None).view(14, 14)
    assert coarse[1, 3] == 100 and coarse.sum() == 100 and coarse.dtype == torch.uint8


def test_pairs_are_random_and_side_by_side(lagrangian_vae):
    images = torch.randint(256, (41, 784), dtype=torch.uint8)
    pairs = lagrangian_vae["paired"](images, None)
    assert pairs.shape == (20, 1568) and pairs.dtype == torch.uint8
    sides = torch.cat(pairs.view(20, 28, 56).split(28, dim=2)).flatten(1)
    side, drawn = (images == sides[:, None]).all(2).nonzero().T.tolist()
    assert side == list(range(40)) and len(set(drawn)) == 40  # each at most once
    assert drawn[:20] != sorted(drawn[:20])


CASES = [
    (lambda images, labels: images, range(41)),
    (lambda images, labels: images[labels == 2], range(2, 41, 4)),
]


@pytest.mark.parametrize(("case", "there"), CASES, ids=["all", "some"])
def test_steering_and_telling_are_random_halves_of_the_validation_images(
    lagrangian_vae, case, there
):
    """A black pixel, which no coin changes, tells the image; test images are half as dark."""
    images, labels = 255 * torch.eye(41, 784, dtype=torch.uint8), torch.arange(41) % 4
    images[:, 50] = 128  # a coin, the same whenever
    data = {"validation_images": images, "validation_labels": labels}
    data |= {"training": (images[:9], labels[:9])}
    data |= {"test_images": images.repeat(9, 1) // 2, "test_labels": labels.repeat(9)}
    lagrangian_vae |= data
    train, *halves, test = lagrangian_vae["images_of"](case)

    steering, telling = (half.argmax(1).tolist() for half in halves)
    assert 0 <= len(steering) - len(telling) <= 1 and steering != sorted(steering)
    assert sorted(steering + telling) == list(there) and min(telling) < 10
    assert torch.equal(train, case(*data["training"])) and len(test) == 9 * len(there)
    assert set(test.unique().tolist()) == {0, 1} and 0.6 < test.sum() / len(test) < 0.9
    again = lagrangian_vae["images_of"](case)
    assert all(map(torch.equal, again, (train, *halves, test)))


@pytest.mark.parametrize(("dataset", "folder"), [("MNIST", "."), ("digits", "digits")])
def test_results_are_printed_and_written(vae, tmp_path, monkeypatch, capsys, dataset, folder):
    monkeypatch.chdir(tmp_path)
    vae["DATASET"] = dataset
    rows = [{"name": "a", "−L_K": 1.23456, "n": 10_000}, {"name": "bcd", "−L_K": 98, "n": ""}]
    vae["write_results"]("MADE", rows)
    lines = ["name   −L_K       n", "a      1.23   10000", "bcd      98        "]
    assert capsys.readouterr().out.splitlines() == lines
    text = Path("results", folder, "MADE.json").read_text(encoding="utf-8")
    assert json.loads(text) == rows and "−" in text


def test_a_sheet_has_every_image_in_its_place_enlarged_by_whole_dots(vae):
    images = torch.rand(6, 784)
    vae["show"](images, 3, labels=("first", "second"))
    axis = plt.gca()
    sheet = torch.as_tensor(axis.images[0].get_array())
    for i, image in enumerate(images):
        y, x = 2 + 30 * (i // 3), 2 + 30 * (i % 3)
        assert torch.equal(sheet[y : y + 28, x : x + 28], image.view(28, 28))
    plt.gcf().canvas.draw()
    box, scale = axis.get_window_extent(), 2 * axis.figure.dpi / 110
    assert (box.height, box.width) == pytest.approx([scale * size for size in sheet.shape])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]
    plt.close()


def test_figures_and_animations_are_the_same_bytes_each_time(vae, tmp_path):
    vae["FIGURES"] = tmp_path
    sheets, contents = torch.rand(5, 16, 784), []
    for _ in range(2):
        plt.plot([0, 1])
        vae["save"]("line")
        plt.close()
        vae["save_loop"]("loop", sheets)
        contents.append([(tmp_path / name).read_bytes() for name in ("line.png", "loop.gif")])
    assert contents[0] == contents[1] and b"matplotlib" not in contents[0][0].lower()
    with Image.open(tmp_path / "loop.gif") as loop:
        assert loop.n_frames == 5 and loop.info["loop"] == 0 and loop.info["duration"] == 80
        loop.seek(3)
        corner = numpy.array(loop.convert("L"))[2:58, 2:58]
    large = sheets[3, 0].view(28, 28).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert (corner == 17 * (15 - 15 * large).round().numpy()).all()
