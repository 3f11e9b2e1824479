"""The frame that all three notebooks share: data, binarisation, training, sheets of images, figures."""

import math
import struct

import matplotlib.pyplot as plt
import numpy
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder with the four files of a made-up KMNIST, and no network."""

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


def test_the_digits_need_no_files(vae, tmp_path):
    parts = vae["load_images"]("digits", tmp_path)
    assert [tuple(images.shape) for images, _ in parts] == [(1285, 784), (256, 784), (256, 784)]
    for images, labels in parts:
        assert images.dtype == torch.uint8 and images.min() == 0 and images.max() == 240
        assert len(labels) == len(images) and set(labels.tolist()) == set(range(10))
    assert not any(tmp_path.iterdir())


def test_files_that_are_there_are_read_and_split(vae, raw):
    parts = vae["load_images"]("KMNIST", raw.parent.parent)
    assert [len(images) for images, _ in parts] == [50_000, 10_000, 10_000]
    for (images, labels), start in zip(parts, (0, 50_000 * 784, 0), strict=True):
        assert images[0, :3].tolist() == [(start + i) % 10 for i in range(3)]
        assert labels.dtype == torch.int64 and labels[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "not an image"])
@pytest.mark.parametrize("file", FILES)
def test_whatever_is_wrong_one_message_names_folder_and_remedies(vae, raw, damage, file):
    whole = (raw / file).read_bytes()
    damaged = {"truncated": whole[:-1], "empty": b"", "not an image": b"<htm" + whole[4:]}
    content = damaged.get(damage)  # None: missing
    (raw / file).unlink() if content is None else (raw / file).write_bytes(content)
    with pytest.raises(RuntimeError) as error:
        vae["load_images"]("KMNIST", raw.parent.parent)
    message = str(error.value)
    with pytest.raises(RuntimeError, match="NMIST can be neither read"):
        vae["load_images"]("NMIST", raw.parent.parent)
    assert str(raw.parent) in message and "Delete that folder and run again" in message
    assert 'DATASET = "digits"' in message and error.value.__cause__ is None
    if content is not None:
        assert (raw / file).read_bytes() == content  # nothing is deleted for the reader


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

    def loss(self, x):
        return -torch.distributions.Bernoulli(logits=self.logit).log_prob(x).sum(-1)


def train_coin(names, epochs=3, loss=Coin.loss, measure=lambda model: {}, history=None, **rate):
    torch.manual_seed(1)
    model, history = Coin(), [] if history is None else history
    optimizer = torch.optim.AdamW(model.parameters(), 0.2)
    images = torch.full((400, 5), 51, dtype=torch.uint8)  # a fifth of 255
    names["train"](model, loss, images, epochs, 20, optimizer, measure, history, **rate)
    return model, history


def test_training_finds_the_minimum_and_repeats(vae):
    model, history = train_coin(vae, 8, measure=lambda model: {"p": model.logit.sigmoid().item()})
    assert model.logit.sigmoid().item() == pytest.approx(0.2, abs=0.02)
    entropy = -5 * (0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert [list(row) for row in history] == [["loss", "p"]] * 8
    assert history[-1]["loss"] == pytest.approx(entropy, rel=0.05)
    assert history[0]["loss"] > history[-1]["loss"]
    assert history[-1]["p"] == model.logit.sigmoid().item()  # measured after the epoch
    assert train_coin(vae, 8, measure=lambda m: {"p": m.logit.sigmoid().item()})[1] == history


@pytest.mark.parametrize("final", [1e-6, 0.2, 1.0])
def test_the_learning_rate_ends_where_it_should(vae, final):
    rates = []

    def loss(model, x):
        rates.append(optimizer.param_groups[0]["lr"])
        return model.loss(x)

    model = Coin()
    optimizer = torch.optim.AdamW(model.parameters(), 0.2)
    images = torch.full((400, 5), 51, dtype=torch.uint8)  # a fifth of 255
    vae["train"](model, loss, images, 5, 20, optimizer, lambda model: {}, [], final=final)
    assert len(rates) == 100 and max(rates) == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.2 / 25)
    assert rates[-1] == pytest.approx(0.2 * final, rel=0.05, abs=1e-6)


def test_a_loss_that_is_not_finite_is_named_with_its_epoch(vae):
    calls = []

    def breaks_in_epoch_two(model, x):
        calls.append(1)
        return model.loss(x) * (math.nan if len(calls) > 25 else 1)

    with pytest.raises(FloatingPointError, match="epoch 2"):
        train_coin(vae, loss=breaks_in_epoch_two)


def test_an_interrupt_keeps_the_model_and_the_history(vae):
    calls, history, models = [], [], []

    def interrupted(model, x):
        calls.append(1)
        models.append(model)
        if len(calls) > 50:
            raise KeyboardInterrupt
        return model.loss(x)

    with pytest.raises(KeyboardInterrupt):
        train_coin(vae, 5, interrupted, history=history)
    assert len(history) == 2 and models[0].logit.item() < -0.1


@pytest.mark.parametrize(("wanted", "used"), [(True, True), (False, False), (None, None)])
def test_one_parameter_decides_on_bfloat16(vae, monkeypatch, wanted, used):
    monkeypatch.setitem(vae, "BFLOAT16", wanted)
    dtypes = []

    def loss(model, x):
        dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return model.loss(x)

    train_coin(vae, 1, loss)
    expected = torch.cpu._is_avx512_bf16_supported() if used is None else used
    assert set(dtypes) == {torch.bfloat16 if expected else torch.float32}


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
    monkeypatch.setitem(vae, "folder", tmp_path)
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


@pytest.mark.skipif(torch.__version__ < "2.14", reason="with PyTorch 2.7 this asks a real GPU")
def test_no_function_mixes_devices(vae, made, lagrangian_vae, monkeypatch):
    """On a pretended GPU: tensors without values, which know their device and refuse another's."""
    monkeypatch.setitem(lagrangian_vae, "device", torch.device("cuda"))
    with FakeTensorMode():
        with torch.device("cuda"):
            x, z, u = torch.rand(6, 784), torch.rand(6, 3), torch.rand(6, 784)
            plain = vae["VAE"](3, (8, 1), (8, 1))
            prior = lagrangian_vae["Mixture"](3, 2)
            learned = lagrangian_vae["VAE"](3, (8, 1), (8, 1), prior)
            masks = torch.arange(784).expand(2, 784), torch.arange(1, 9).expand(2, 8), x[0]
            masked, c = made["MADE"](*masks, 1, 2), torch.rand(6, 2)
        results = [vae["closed_form"](plain, x), vae["importance_weighted"](plain, x, 2)]
        results += [*vae["encode"](plain, x), vae["decode"](plain, z), vae["binarise"](x)]
        for model in (plain, learned):
            log_ws = vae["log_weights"](model, x, 4)
            results += [log_ws, vae["importance_bound"](log_ws, 2), model.prior().sample((5,))]
            results += [
                *lagrangian_vae["terms"](model, x),
                lagrangian_vae["held_out_terms"](model, x),
            ]
        for gaussians in (prior.gaussians(), lagrangian_vae["standard"](3)):
            results.append(lagrangian_vae["mmd"](z, gaussians, 1.0))
        results += [made["log_p"](masked, x, 1, c), made["log_p_given_class"](masked, x)]
        results.append(made["distort"](x))
        with pytest.raises(DynamicOutputShapeException):  # finished images leave, after a pass
            made["sample"](masked, u, 1, c, x[0] > 0, x)
        assert {result.device.type for result in results} == {"cuda"}
        with pytest.raises(RuntimeError, match="device"):
            plain.p(torch.zeros(6, 3))
