"""The notebooks whole, small, on pictures of one's own and on a pretended GPU: nothing mixes the devices."""

import contextlib

import gpu
import pytest
import torch
from conftest import SMALL, code_cells, each_notebook
from PIL import Image

# What is pretended is not of PyTorch's public interface: with older versions the notebooks run on the CPU.
PRETENDS = torch.__version__ >= "2.14"


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder to run in, with two classes of drawn pictures in data/my_images."""
    for label, name in enumerate(("boxes", "bars")):
        folder = tmp_path / "data" / "my_images" / name
        folder.mkdir(parents=True)
        for i in range(60):
            picture = Image.new("L", (40, 40), 255)
            picture.paste(0, (5, 5 + i % 20, 35 - 25 * label, 15 + i % 20))
            picture.putpixel((i % 40, 39), 0)
            picture.save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@each_notebook
def test_runs_whole_on_pictures_of_ones_own_and_on_a_gpu(path, pictures, monkeypatch, capsys):
    """Codes have one dimension."""
    settings = SMALL | {
        "DATASET": "my_images",
        "BATCH_SIZE": 40,
        "LATENT_DIM": 1,
        "BFLOAT16": False,
    }
    with gpu.pretended(monkeypatch) if PRETENDS else contextlib.nullcontext():
        names = gpu.run(code_cells(path), settings)
    assert "\ntest NLL" in capsys.readouterr().out
    assert any((pictures / "images" / "my_images").iterdir())
    if PRETENDS:
        assert isinstance(names["test_x"], gpu.Elsewhere)
        assert all(weights.device == gpu.GPU for weights in trained(names).parameters())


def trained(names):
    """The model that a notebook is about."""
    if "models" in names:
        return names["models"]["learned prior"]
    return names["single" if "single" in names else "model"]


@pytest.mark.skipif(not PRETENDS, reason="needs PyTorch 2.14 or newer")
def test_the_pretended_gpu_refuses_tensors_of_the_cpu(monkeypatch):
    with gpu.pretended(monkeypatch):
        there, here = torch.ones(3, 2, device=gpu.GPU), torch.ones(3, 2)
        for mix in (
            lambda: there + here,
            lambda: torch.cat([here, there]),
            lambda: here[torch.tensor([0, 2], device=gpu.GPU)],
            lambda: there.index_put((torch.tensor([0]),), torch.ones(1, 2)),
        ):
            with pytest.raises((RuntimeError, IndexError)):
                mix()
        assert (there[torch.tensor([0, 2])] * 2 + 1).sum().item() == 12  # as on a real one
        assert (there.cpu() + here).device.type == "cpu"
