"""The frame that all three notebooks share: data, binarisation, training, sheets of images, figures."""

import itertools
import math
import struct

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from PIL import Image

FILES = {
    "train-images-idx3-ubyte": (60, 28, 28),
    "train-labels-idx1-ubyte": (60,),
    "t10k-images-idx3-ubyte": (10, 28, 28),
    "t10k-labels-idx1-ubyte": (10,),
}


@pytest.fixture
def raw(vae, tmp_path, monkeypatch):
    """A folder with the four files of a made-up, small KMNIST, and no network."""

    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading:\n<urlopen error no network>")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    monkeypatch.setitem(vae, "BATCH_SIZE", 50)
    folder = tmp_path / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    for file, shape in FILES.items():
        header = struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape)
        body = torch.arange(math.prod(shape)).remainder(10).to(torch.uint8).numpy().tobytes()
        (folder / file).write_bytes(header + body)
    return folder


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
    assert [len(images) for images, _ in parts] == [50, 10, 10]
    for (images, labels), start in zip(parts, (0, 50 * 784, 0), strict=True):
        assert images[0, :3].tolist() == [(start + i) % 10 for i in range(3)]
        assert labels.dtype == torch.int64 and labels[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_whatever_is_wrong_one_message_names_folder_and_remedies(vae, raw, damage, file):
    content = (raw / file).read_bytes()[:-1]
    (raw / file).unlink() if damage == "missing" else (raw / file).write_bytes(content)
    with pytest.raises(RuntimeError) as error:
        vae["load_images"]("KMNIST", raw.parent.parent)
    message = str(error.value)
    assert str(raw.parent) in message and "Delete that folder and run again" in message
    assert 'DATASET = "digits"' in message and error.value.__cause__ is None
    if damage == "truncated":
        assert (raw / file).read_bytes() == content  # nothing is deleted for the reader


@pytest.fixture
def pictures(vae, tmp_path, monkeypatch):
    """`pictures(*folders)` draws 35 pictures into each of these subfolders of my_images; returns its path."""
    monkeypatch.setitem(vae, "BATCH_SIZE", 20)

    def draw(*folders):
        for label, name in enumerate(folders):
            folder = tmp_path / "my_images" / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(35):  # a black square that grows, on white; its left half is clear
                picture = Image.new("RGBA", (56, 56), "white")
                picture.paste("black", (20, 20, 22 + i, 40 + label))
                picture.paste((0, 0, 0, 0), (0, 0, 14, 56))
                picture.save(folder / f"{i}.png")
        return tmp_path / "my_images"

    return draw


def test_own_pictures_are_split_at_random_with_their_classes(vae, pictures):
    folder = pictures("cats", "dogs")
    (folder / ".DS_Store").write_text("what systems put there")
    parts = vae["load_images"]("my_images", folder.parent)
    assert [tuple(images.shape) for images, _ in parts] == [(50, 784), (10, 784), (10, 784)]
    for images, labels in parts:
        assert images.dtype == torch.uint8 and set(labels.tolist()) == {0, 1}
        sheet = images.view(-1, 28, 28)
        assert sheet[:, :, :7].max() == 0  # clear is white
        assert sheet[:, 12, 10].min() == 255 and sheet[:, 0].max() == 0  # dark is ink
        assert ((sheet[:, 20, 10] > 0).long() == labels).all()  # one row more for the second class
    everything = torch.cat([images for images, _ in parts])
    assert len(everything.unique(dim=0)) == 70


def test_own_pictures_may_lie_flat_in_any_format(vae, pictures):
    folder = pictures(".")
    Image.new("L", (300, 100), 55).save(folder / "grey.jpg")
    parts = vae["load_images"]("my_images", folder.parent)
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    assert len(images) == 36 and labels.unique().tolist() == [0]
    assert (images == 200).all(1).sum() == 1


@pytest.mark.parametrize("bad", ["empty", "none", "no picture", "too few", "nonsense"])
def test_own_pictures_that_cannot_be_used_end_in_one_message(vae, pictures, tmp_path, bad):
    name, said = "my_images", {"empty": "is empty", "none": "unknown", "nonsense": "MNIST"}
    if bad == "empty":
        (tmp_path / name).mkdir()
    elif bad == "no picture":
        (pictures(".") / "5.png").write_bytes(b"not at all")
    elif bad == "too few":
        pictures("a", "b")
        vae["BATCH_SIZE"] = 1000  # put back by the fixture
    elif bad == "nonsense":
        name = "nonsense"
    said |= {"no picture": str(tmp_path / name / "5.png"), "too few": "BATCH_SIZE to 50 or less"}
    with pytest.raises(RuntimeError) as error:
        vae["load_images"](name, tmp_path)
    assert said[bad] in str(error.value) and error.value.__cause__ is None


def test_binarise(vae):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(40_000, 3)
    binary = vae["binarise"](images, torch.Generator().manual_seed(3))
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert binary.mean(0).tolist() == pytest.approx([0, 0.2, 1], abs=0.01)
    assert binary[:, 0].max() == 0 and binary[:, 2].min() == 1
    again = vae["binarise"](images, torch.Generator().manual_seed(3))
    assert torch.equal(binary, again) and not torch.equal(binary, vae["binarise"](images))


class Coin(torch.nn.Module):
    """Every pixel 1 with one learned probability."""

    def __init__(self):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(0.0))


RATE = 0.2  # the highest learning rate


def train_coin(names, epochs=3, look=lambda model, batch: 1.0, **options):
    """A coin trained on a fifth of 255, its loss multiplied by look(model, batch), and its history."""
    torch.manual_seed(1)
    model = Coin()
    data = torch.full((400, 5), 51, dtype=torch.uint8), torch.arange(400)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)

    def loss(model, batch):
        x = names["binarise"](batch.images)
        nats = -torch.distributions.Bernoulli(logits=model.logit).log_prob(x).sum(-1)
        return nats * look(model, batch)

    options = {"batch_size": 20} | options
    return model, names["train"](model, loss, data, epochs, optimizer, **options)


def test_training_finds_the_minimum_and_repeats(vae):
    def measure(model):
        return {"p": model.logit.sigmoid().item()}

    model, history = train_coin(vae, 8, measure=measure)
    assert model.logit.sigmoid().item() == pytest.approx(0.2, abs=0.02)
    entropy = -5 * (0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert [list(row) for row in history] == [["loss", "p"]] * 8
    assert history[-1]["loss"] == pytest.approx(entropy, rel=0.05)
    assert history[0]["loss"] > history[-1]["loss"]
    assert history[-1]["p"] == model.logit.sigmoid().item()  # measured after the epoch
    assert train_coin(vae, 8, measure=measure)[1] == history


def test_a_loss_is_given_every_image_with_its_label_and_the_step(vae):
    batches = []
    train_coin(vae, 2, lambda model, batch: batches.append(batch) or 1.0)
    assert [b.step for b in batches] == list(range(40)) and {b.steps for b in batches} == {40}
    for epoch in (batches[:20], batches[20:]):
        assert torch.cat([b.labels for b in epoch]).sort().values.tolist() == list(range(400))
        assert all(b.images.shape == (20, 5) and b.images.dtype == torch.uint8 for b in epoch)
    assert batches[0].labels.tolist() != batches[20].labels.tolist()


def test_a_small_data_set_takes_enough_steps_and_no_empty_ones(vae):
    sizes = []
    train_coin(vae, 1, lambda model, batch: sizes.append(len(batch.labels)) or 1.0, batch_size=390)
    assert len(sizes) == 20 and set(sizes) == {20}
    data = torch.zeros(3, 5, dtype=torch.uint8), torch.arange(3)
    model, sizes = Coin(), []

    def loss(model, batch):
        sizes.append(len(batch.labels))
        return model.logit.expand(1)

    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    assert len(vae["train"](model, loss, data, 2, optimizer)) == 2 and sizes == [1] * 6


@pytest.mark.parametrize("final", [0.0, 0.2, 1.0])
def test_the_learning_rate_rises_and_falls_in_straight_lines(vae, final):
    shares = [vae["learning_rate"](step, 100, final) for step in range(101)]
    assert shares[0] == pytest.approx(0.1) and shares[9] == pytest.approx(1)
    assert max(shares) <= 1 + 1e-9 and shares[10] == pytest.approx(1)
    assert shares[100] == pytest.approx(final)
    assert shares[55] == pytest.approx((1 + final) / 2)
    assert shares[4] == pytest.approx(0.5)


def test_the_optimiser_follows_that_rate(vae):
    """With a constant slope, Adam's steps are the learning rates."""
    model, places = Coin(), []

    def loss(model, batch):
        places.append(model.logit.item())
        return model.logit.expand(1)

    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0)
    data = torch.zeros(20, 5, dtype=torch.uint8), torch.arange(20)
    vae["train"](model, loss, data, 5, optimizer, final=0.5)
    steps = [a - b for a, b in itertools.pairwise(places)]
    expected = [RATE * vae["learning_rate"](step, 100, 0.5) for step in range(99)]
    assert steps == pytest.approx(expected, rel=1e-3)


def test_a_loss_that_is_not_finite_is_named_with_its_epoch(vae):
    with pytest.raises(FloatingPointError, match="epoch 2"):
        train_coin(vae, look=lambda model, batch: math.nan if batch.step > 25 else 1)


@pytest.mark.parametrize(("step", "rows"), [(50, 3), (1, 1)])
def test_an_interrupt_keeps_the_model_and_the_history_and_says_so(vae, capsys, step, rows):
    places = []

    def interrupted(model, batch):
        places.append(model.logit.item())
        if batch.step == step:
            raise KeyboardInterrupt
        return 1.0

    model, history = train_coin(vae, 5, interrupted, measure=lambda model: {"p": 1.0})
    assert len(history) == rows and all(math.isfinite(row["loss"]) for row in history)
    assert history[-1]["p"] == 1.0 and model.logit.item() == places[-1] != 0
    assert f"Interrupted in epoch {rows} of 5" in capsys.readouterr().out


def test_trainings_share_a_bar(vae, capsys):
    with vae["tqdm"](total=4) as bar:
        for _ in range(2):
            train_coin(vae, 2, bar=bar)
        assert bar.n == 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("wanted", "used"), [(True, True), (False, False), (None, None)])
def test_one_parameter_decides_on_bfloat16(vae, monkeypatch, wanted, used):
    monkeypatch.setitem(vae, "BFLOAT16", wanted)
    dtypes = []

    def look(model, batch):
        dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return 1.0

    train_coin(vae, 1, look)
    expected = torch.cpu._is_avx512_bf16_supported() if used is None else used
    assert set(dtypes) == {torch.bfloat16 if expected else torch.float32}


def test_without_the_private_question_for_bfloat16_it_is_float32(vae, monkeypatch):
    monkeypatch.setitem(vae, "BFLOAT16", None)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert vae["has_bfloat16"]() is False


def test_mean_and_error(vae):
    mean, error = vae["mean_and_error"](torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0 and error == pytest.approx(math.sqrt(14 / 3) / 2)


def test_log_mean_exp(vae):
    values = torch.tensor([[0.0, math.log(3.0)], [-1000.0, -1000.0]])
    expected = torch.tensor([math.log(2.0), -1000.0])
    torch.testing.assert_close(vae["log_mean_exp"](values, 1), expected)
    assert vae["log_mean_exp"](values[:1].expand(5, 2), 0)[1].item() == pytest.approx(math.log(3))


def test_bits_per_dimension(vae):
    assert vae["bits_per_dimension"](784 * math.log(2)) == pytest.approx(1)
    assert vae["bits_per_dimension"](10 * math.log(4), 5) == pytest.approx(4)


def test_the_floor_is_the_entropy_of_the_flips(vae):
    images = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert vae["flip_entropy"](images).item() == pytest.approx(entropy, rel=1e-4)


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


def test_figures_and_animations_are_the_same_bytes_each_time(vae, tmp_path, monkeypatch):
    monkeypatch.setitem(vae, "FIGURES", tmp_path)
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
