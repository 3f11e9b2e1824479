"""The notebooks whole, small, on a pretended GPU: nothing mixes the devices."""

import gpu
import pytest
import torch
from conftest import SMALL, code_cells, each_notebook

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.14", reason="what is pretended here is not of PyTorch's public interface"
)


@each_notebook
def test_runs_whole_on_a_gpu(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = gpu.run(code_cells(path), SMALL | {"BFLOAT16": False}, monkeypatch)
    assert isinstance(names["test_x"], gpu.Elsewhere) and not torch.is_tensor(names["DATASET"])
    assert all(weights.device == gpu.GPU for weights in trained(names).parameters())


def trained(names):
    """The model that a notebook is about."""
    if "models" in names:
        return names["models"]["learned prior"]
    return names["single" if "single" in names else "model"]


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
