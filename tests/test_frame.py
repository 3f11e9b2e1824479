"""The frame that all three notebooks share: data, training, kept weights, scores, tables, figures."""

import json
import math
import struct
from datetime import date
from pathlib import Path

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli

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


class Coin(torch.nn.Module):
    """Every pixel 1 with one learned probability."""

    def __init__(self, logit):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(logit))

    def nats(self, x):
        return -Bernoulli(logits=self.logit).log_prob(x).sum(1).mean()


@pytest.fixture
def coin(vae):
    """`coin(...)` is a Training of a coin on 400 images of five pixels, each ink with a fifth."""

    def make(epochs=3, images=400, ink=51, start=0.0, rate=0.2, **options):
        model = Coin(start)
        data = [torch.full((images, 5), ink, dtype=torch.uint8), torch.arange(images)]
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        options = {"data": data, "batch_size": 20} | options
        return vae["Training"]("a coin: fair?", model, optimizer, epochs, **options)

    return make


@pytest.fixture
def fit(vae):
    """A loop as in the notebooks; its loss is multiplied by factor(training)."""

    def fit(training, factor=lambda training: 1.0):
        for images, _ in training:
            loss = training.model.nats(vae["binarise"](images)) * factor(training)
            vae["descend"](loss, training.optimizer)
            training.record(loss=loss)
        return training.history

    return fit


def test_training_finds_the_minimum_and_repeats(coin, fit):
    def measure(model):
        return {"p": model.logit.sigmoid().item()}

    training = coin(8, measure=measure)
    torch.manual_seed(1)
    history = fit(training)
    assert training.model.logit.sigmoid().item() == pytest.approx(0.2, abs=0.02)
    entropy = -5 * (0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert [list(row) for row in history] == [["loss", "p"]] * 8
    assert history[-1]["loss"] == pytest.approx(entropy, rel=0.05)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["p"] == training.model.logit.sigmoid().item()  # measured after the epoch
    torch.manual_seed(1)
    assert fit(coin(8, measure=measure)) == history


def seen(training):
    """The labels of all batches, whose images are as grey as the label says."""
    batches = []
    training.data[0] = training.data[1].byte()[:, None]
    for images, labels in training:
        assert torch.equal(images[:, 0], labels.byte()) and training.step == len(batches)
        batches.append(labels)
        training.optimizer.step()
        training.record(loss=0.0)
    assert training.step == training.steps == len(batches)
    return batches


def test_every_image_is_seen_once_an_epoch_with_its_label(coin):
    batches = seen(coin(2))
    for epoch in (batches[:20], batches[20:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(400))
    assert not torch.equal(batches[0], batches[20]) and batches[0].diff().min() < 0


@pytest.mark.parametrize(
    ("images", "asked", "size", "steps"),
    [(411, 20, 20, 20), (430, 20, 20, 21), (400, 390, 20, 20), (419, 390, 20, 20), (3, 390, 1, 3)],
)
def test_batches_are_equal_and_at_least_twenty_where_images_suffice(
    coin, images, asked, size, steps
):
    batches = seen(coin(2, images=images, batch_size=asked))
    assert [len(batch) for batch in batches] == [size] * 2 * steps
    epochs = [set(torch.cat(part).tolist()) for part in (batches[:steps], batches[steps:])]
    assert len(epochs[0]) == size * steps  # the remainder is left out, another one each epoch
    assert (epochs[0] == epochs[1]) == (size * steps == images)


@pytest.mark.parametrize("final", [0.0, 0.2, 1.0])
def test_the_learning_rate_rises_for_a_tenth_and_falls_in_straight_lines(vae, coin, final):
    """With a constant slope, steps of SGD are the learning rates."""
    training, places = coin(5, final=final), []
    weights = [torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": 0.2}, {"params": weights[1:], "lr": 3.0}]
    training.optimizer = torch.optim.SGD(groups)
    for _ in training:
        loss = -sum(weights)
        vae["descend"](loss, training.optimizer)
        training.record(loss=loss)
        places.append([weight.item() for weight in weights])
    shares = numpy.interp(range(100), (0, 9, 99), (0.04, 1, final))
    rates = numpy.diff(places, axis=0, prepend=0)
    assert rates == pytest.approx(numpy.outer(shares, (0.2, 3.0)), abs=1e-12)


def test_rows_of_the_history_are_means_of_what_was_recorded_and_what_is_measured(coin):
    training = coin(2, every=10, measure=lambda model: {"logit": model.logit.item()})
    for _ in training:
        step = training.step
        training.optimizer.step()
        training.record(loss=torch.tensor(float(step), requires_grad=True), even=step % 2 == 0)
    rows = [{"loss": mean, "even": 0.5, "logit": 0.0} for mean in (4.5, 14.5, 24.5, 34.5)]
    assert training.history == rows


def test_trainings_share_a_bar_or_have_their_own(vae, coin, fit, capsys):
    with vae["tqdm"](total=4) as bar:
        for _ in range(2):
            fit(coin(2, bar=bar))
        assert bar.n == 4
    assert capsys.readouterr().out == ""
    loss = fit(coin(2, every=10))[-1]["loss"]
    last = capsys.readouterr().out.split("\r")[-1]
    assert "100%" in last and "4/4" in last and f"loss={loss:.4g}" in last


def test_a_loss_that_is_not_finite_is_named_with_training_and_epoch(coin, fit):
    with pytest.raises(FloatingPointError, match=r"a coin: fair\?, epoch 2: not finite"):
        fit(coin(), lambda training: math.nan if training.step == 25 else 1.0)


def test_descend_takes_one_step_against_this_gradient_alone(vae):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], 0.1)
    weight.grad = torch.tensor([50.0, 50.0])
    vae["descend"](weight.square().sum(), optimizer)
    assert weight.tolist() == pytest.approx([0.8, 1.6])


@pytest.mark.parametrize("wanted", [True, False])
def test_one_parameter_decides_on_bfloat16(vae, monkeypatch, wanted):
    monkeypatch.setitem(vae, "BFLOAT16", wanted)
    with vae["autocast"]():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if wanted else torch.float32)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("able", [True, False])
def test_where_no_one_decides_on_it_the_device_does(vae, monkeypatch, device, able):
    monkeypatch.setitem(vae, "BFLOAT16", None)
    monkeypatch.setitem(vae, "device", torch.device(device))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    asked = {"including_emulation": False}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: able or how != asked)
    assert vae["has_bfloat16"]() is (able and device != "mps")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # it is private, and may go
    assert vae["has_bfloat16"]() is (able and device == "cuda")


FILE = Path("weights", "MNIST-a-coin-fair-.pt")


@pytest.fixture
def keep(vae, coin, fit, tmp_path, monkeypatch, capsys):
    """`keep(train)` is a training, what `@kept` returned and printed, and a random number drawn after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vae, "In", ["slope = 3\ndef line(x):\n    return slope * x"])
    kept = vae["kept"](lambda training, factor: fit(training, lambda _: factor))

    def keep(train, factor=1.0, **options):
        monkeypatch.setitem(vae, "TRAIN", train)
        training = coin(**options)
        history = kept(training, factor)
        return training, history, capsys.readouterr().out, torch.rand(()).item()

    return keep


def test_what_is_kept_is_taken_and_the_same_follows(keep):
    trained, history, _, number = keep(True)
    kept = FILE.read_bytes(), FILE.stat().st_mtime_ns
    taken, found, said, same_number = keep(False)
    assert said == f"{FILE}, trained on {date.today()}\n"
    assert taken.step == 0 and found == taken.history == history and len(history) == 3
    assert taken.model.logit.item() == trained.model.logit.item() != 0
    assert same_number == number
    assert (FILE.read_bytes(), FILE.stat().st_mtime_ns) == kept
    assert keep(True)[0].step == 60


@pytest.mark.parametrize(
    ("name", "changes", "options"),
    [
        ("LEARNING_RATE", {"LEARNING_RATE": 1.0}, {}),
        ("ENCODER", {"ENCODER": (8, 8)}, {}),
        ("line", {"In": ["def line(x):\n    return x"]}, {}),
        ("training", {}, {"start": 0.1}),
        ("training", {}, {"ink": 52}),
        ("training", {}, {"factor": 2.0}),
        ("training", {}, {"epochs": 4}),
        ("training", {}, {"rate": 0.1}),
        ("training", {}, {"final": 0.1}),
        ("training", {}, {"every": 10}),
        ("training", {}, {"batch_size": 16}),
    ],
)
def test_what_is_of_another_training_is_named_and_trained_anew(
    vae, keep, monkeypatch, name, changes, options
):
    keep(True)
    for constant, value in changes.items():
        monkeypatch.setitem(vae, constant, value)
    training, history, said, _ = keep(False, **options)
    assert said.startswith(f"{FILE} is of another {name}: trained anew\n")
    assert training.step == training.steps and len(history) >= 3
    assert keep(False, **options)[0].step == 0  # the new one is kept in its turn


def test_comments_and_what_is_defined_later_change_nothing(vae, keep, monkeypatch):
    keep(True)
    line = "def line(x):  # straight\n    return slope * x"
    for cells in (["a slip", line, "def later():\n    pass"], [line]):
        monkeypatch.setitem(vae, "In", cells)
        assert keep(False)[0].step == 0
        keep(True)


@pytest.mark.parametrize("what", ["missing", "truncated", "foreign"])
def test_what_cannot_be_read_is_named_and_trained_anew(keep, what):
    _, history, _, number = keep(True)
    if what == "missing":
        FILE.unlink()
    elif what == "truncated":
        FILE.write_bytes(FILE.read_bytes()[:-100])
    else:
        torch.save({"logit": torch.zeros(())}, FILE)
    training, again, said, same_number = keep(False)
    assert said.startswith(f"{FILE} cannot be read (") and "): trained anew\n" in said
    assert training.step == 60 and len(again) == len(history) and same_number == number
    assert keep(False)[0].step == 0


@pytest.mark.parametrize(("step", "rows"), [(50, 3), (40, 2), (1, 1), (0, 0)])
def test_an_interrupt_ends_a_training_which_is_not_kept(vae, coin, fit, keep, capsys, step, rows):
    *_, number = keep(True)
    before = FILE.read_bytes()
    training = coin(5, measure=lambda model: {"logit": model.logit.item()})

    def interrupt(training):
        if training.step == step:
            raise KeyboardInterrupt
        return 1.0

    history = vae["kept"](fit)(training, interrupt)
    assert history is training.history and len(history) == rows
    assert all(math.isfinite(row["loss"]) for row in history)
    assert not history or history[-1]["logit"] == training.model.logit.item() or step == 40
    assert (training.model.logit.item() != 0) == (step > 0)
    assert f"\nInterrupted after {step} of 100 steps." in capsys.readouterr().out
    assert FILE.read_bytes() == before and torch.rand(()).item() == number


@pytest.mark.parametrize(("dataset", "folder"), [("MNIST", "."), ("digits", "digits")])
def test_results_are_printed_and_written(vae, tmp_path, monkeypatch, capsys, dataset, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vae, "DATASET", dataset)
    rows = [{"name": "a", "−L_K": 1.23456, "n": 10_000}, {"name": "bcd", "−L_K": 98, "n": ""}]
    vae["write_results"]("MADE", rows)
    lines = ["name   −L_K       n", "a      1.23   10000", "bcd      98        "]
    assert capsys.readouterr().out.splitlines() == lines
    text = Path("results", folder, "MADE.json").read_text(encoding="utf-8")
    assert json.loads(text) == rows and "−" in text


def test_mean_and_error(vae):
    mean, error = vae["mean_and_error"](torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0 and error == pytest.approx(math.sqrt(14 / 3) / 2)


def test_log_mean_exp(vae):
    values = torch.tensor([[0.0, math.log(3.0)], [-1000.0, -1000.0]])
    expected = torch.tensor([math.log(2.0), -1000.0])
    torch.testing.assert_close(vae["log_mean_exp"](values, 1), expected)
    assert vae["log_mean_exp"](values[:1].expand(5, 2), 0)[1].item() == pytest.approx(math.log(3))


def test_a_score_goes_from_few_codes_for_all_images_to_many_for_some(vae, monkeypatch):
    log_ws = torch.randn(50, 13).double() * 3  # of 50 images, each of which is its number
    x = torch.arange(50)[:, None]
    monkeypatch.setitem(vae, "log_weights", lambda model, x, K: log_ws[x[:, 0], :K])
    rows = vae["score_by_pairs"](None, x, iter([(2, 10_000), (6, 20), (12, 5)]))

    def bound(images, k, of):
        groups = log_ws[images, : of // k * k].exp().view(len(images), -1, k)
        return groups.mean(2).log().mean(1)

    some, few = (vae["subset"](x, n)[:, 0] for n in (20, 5))
    changes = [-bound(range(50), 2, 2), bound(some, 2, 6) - bound(some, 6, 6)]
    changes.append(bound(few, 6, 12) - bound(few, 12, 12))
    means = [change.mean().item() for change in changes]
    errors = [change.std().item() / math.sqrt(len(change)) for change in changes]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert columns["K"] == [2, 6, 12] and columns["images"] == [50, 20, 5]
    assert columns["change"] == pytest.approx(means)
    assert columns["± of it"] == pytest.approx(errors)
    assert columns["−L_K"] == pytest.approx(list(numpy.cumsum(means)))
    both = math.sqrt(errors[1] ** 2 + errors[2] ** 2)
    assert columns["± of the steps"] == pytest.approx([0, errors[1], both])


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
