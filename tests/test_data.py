"""The data sets: what is refused, with which message, before anything trains."""

import os
import re
import struct

import pytest
import torch

KNOWN = ("MNIST", "FashionMNIST", "KMNIST", "digits")


@pytest.fixture
def four_files(tmp_path, vae):
    """Write the four files of a data set, made up but of the right size, and return their folder."""

    def write(name):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for file, size in vae["IDX_BYTES"].items():
            number = 60_000 if file.startswith("train") else 10_000
            shape = (number, 28, 28) if "images" in file else (number,)
            header = struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape)
            body = torch.arange(size - len(header)).remainder(10).to(torch.uint8).numpy().tobytes()
            (raw / file).write_bytes(header + body)
        return raw

    return write


def no_network(*args, **kwargs):
    raise RuntimeError("Error downloading:\n<urlopen error no network>")


def test_an_unknown_data_set_lists_the_known_ones(vae, tmp_path):
    with pytest.raises(ValueError) as error:
        vae["load_images"]("CIFAR10", tmp_path)
    assert all(name in str(error.value) for name in KNOWN)


def test_the_digits_need_no_files(vae, tmp_path):
    parts = vae["load_images"]("digits", tmp_path)
    assert [tuple(images.shape) for images, _ in parts] == [(1283, 784), (257, 784), (257, 784)]
    for images, labels in parts:
        assert images.min() >= 0 and images.max() <= 1 and len(labels) == len(images)
        assert set(labels.tolist()) == set(range(10))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST"])
def test_files_that_are_there_are_read_without_a_network(
    vae, tmp_path, four_files, name, monkeypatch
):
    four_files(name)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    (train, labels), (validation, _), (test, test_labels) = vae["load_images"](name, tmp_path)
    assert [len(part) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    assert train.dtype == torch.float32 and train.max() == pytest.approx(9 / 255)
    assert train[0, :3].tolist() == pytest.approx([0, 1 / 255, 2 / 255])
    assert labels.shape == (50_000,) and test_labels.shape == (10_000,)


@pytest.mark.parametrize("damage", ["truncate", "empty", "header"])
@pytest.mark.parametrize("index", range(4))
def test_a_damaged_file_is_named_with_the_remedy(vae, tmp_path, four_files, damage, index):
    raw = four_files("KMNIST")
    path = raw / list(vae["IDX_BYTES"])[index]
    content = path.read_bytes()
    content = {"truncate": content[:-1], "empty": b"", "header": b"<htm" + content[4:]}[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        vae["load_images"]("KMNIST", tmp_path)
    assert str(path) in str(error.value) and "Delete it and run again" in str(error.value)
    assert path.read_bytes() == content  # nothing is deleted for the reader


def test_mnist_is_known_by_its_digests(vae, tmp_path, four_files):
    raw = four_files("MNIST")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is damaged: its MD5"):
        vae["check_files"]("MNIST", raw)


@pytest.mark.parametrize(
    "reason", ["[Errno 13] Permission denied", "[Errno 28] No space", "EOFError"]
)
def test_a_folder_that_takes_no_files_is_reported_with_the_reason(
    vae, tmp_path, monkeypatch, reason
):
    def fails(*args, **kwargs):
        raise EOFError if reason == "EOFError" else OSError(reason)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fails)
    with pytest.raises(FileNotFoundError, match=f"({re.escape(reason)})"):
        vae["load_images"]("MNIST", tmp_path)


@pytest.mark.parametrize("failure", [no_network, lambda *a, **k: open("/nonexistent/file")])
def test_without_a_network_the_message_says_what_to_do(vae, tmp_path, monkeypatch, failure):
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", failure)
    with pytest.raises(FileNotFoundError) as error:
        vae["load_images"]("MNIST", tmp_path)
    message = str(error.value)
    assert str(tmp_path / "MNIST" / "raw") in message and 'DATASET = "digits"' in message
    assert all(file in message for file in vae["IDX_BYTES"])


def test_a_failed_write_leaves_the_old_file(vae, tmp_path, capsys):
    path = tmp_path / "images" / "figure.png"
    vae["write_safely"](path, lambda file: file.write(b"old"))

    def full_disk(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    vae["write_safely"](path, full_disk)
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["figure.png"]
    assert "No space left on device" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_leaves_the_old_figure(vae, tmp_path, capsys):
    (tmp_path / "figure.png").write_bytes(b"old")
    (tmp_path / "figure.png.part").symlink_to("/dev/full")
    vae["write_safely"](tmp_path / "figure.png", lambda file: file.write(b"new"))
    assert (tmp_path / "figure.png").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    assert "No space left on device" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_one_message(vae, tmp_path, capsys):
    (tmp_path / "images").write_bytes(b"a file")
    vae["write_safely"](tmp_path / "images" / "figure.png", lambda file: file.write(b"new"))
    assert (tmp_path / "images").read_bytes() == b"a file"
    message = capsys.readouterr().out
    assert message.count("\n") == 1 and "figure.png could not be written" in message
