"""The notebooks whole, small, on a pretended GPU: nothing mixes the devices."""

import contextlib
import re

import gpu
import pytest
import torch
from conftest import ROOT, SMALL, code_cells, figures, printed, results
from PIL import Image
from torch.utils._pytree import tree_flatten

# What is pretended is not of PyTorch's public interface: with older versions the notebooks run on the CPU.
PRETENDS = torch.__version__ >= "2.14"
FEW = {"DATASET": "my_images", "LATENT_DIM": 1, "BFLOAT16": False}


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(stem, folder, parameters)` runs a notebook in a folder on the GPU; returns what it printed."""

    def run(stem, folder, parameters):
        monkeypatch.chdir(folder)
        with gpu.pretended(monkeypatch) if PRETENDS else contextlib.nullcontext():
            names = gpu.run(code_cells(ROOT / f"{stem}.ipynb"), SMALL | parameters)
        if PRETENDS:
            modules = [m for m in tree_flatten(names)[0] if isinstance(m, torch.nn.Module)]
            assert isinstance(names["test_x"], gpu.Elsewhere)
            assert gpu.GPU in {weights.device for m in modules for weights in m.parameters()}
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("stem", ["MADE", "Lagrangian_VAE"])
def test_runs_whole_on_a_hundred_pictures_of_ones_own(stem, tmp_path, run):
    for label, name in enumerate(("boxes", "bars")):
        folder = tmp_path / "data" / "my_images" / name
        folder.mkdir(parents=True)
        for i in range(50):
            picture = Image.new("L", (40, 40), 255)
            picture.paste(0, (5, 5 + i % 20, 35 - 25 * label, 15 + i % 20))
            picture.putpixel((i % 40, 39), 0)
            picture.save(folder / f"{i}.png")
    assert run(stem, tmp_path, FEW).startswith("72 images train, 14 validate, 14 test\n")
    assert {p.stem for p in (tmp_path / "images" / "my_images").iterdir()} == figures(
        stem, "my_images"
    )
    rows = results(stem, tmp_path / "results" / "my_images")
    assert any(name.startswith("test NLL") for name in rows)


def numbers(text):
    """All numbers that a notebook printed, but for progress bars, widgets and notices of what is kept."""
    other = re.compile(r"%\||\x1b|interactive\(|\.pt")
    lines = [line for line in text.splitlines() if not other.search(line)]
    return [float(number) for number in re.findall(r"\d+\.?\d*", "\n".join(lines))]


@pytest.mark.xdist_group("kernels")
def test_what_a_run_kept_gives_the_same_numbers_and_nothing_trains(basic_run, run):
    """It was trained on the CPU, in bfloat16 where that is fast."""
    whole = "".join(map(printed, code_cells(basic_run / "Basic_VAE.ipynb")))
    rows = results("Basic_VAE", basic_run / "results" / "digits")
    kept = {path: path.read_bytes() for path in basic_run.glob("weights/*.pt")}
    said = run("Basic_VAE", basic_run, {"TRAIN": False})
    assert said.count("trained on 20") == len(kept) > 1 and "trained anew" not in said
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert numbers(said) == pytest.approx(numbers(whole), abs=0.011)
    for name, row in results("Basic_VAE", basic_run / "results" / "digits").items():
        assert row["value"] == pytest.approx(rows[name]["value"], abs=1e-3), name


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
