import contextlib
import io
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch

matplotlib.use("agg")
torch.distributions.Distribution.set_default_validate_args(False)  # as the notebooks do
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from definitions import definitions  # noqa: E402

NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SMALL = {"DATASET": "digits", "EPOCHS": 2, "SHORT_EPOCHS": 1, "CONSTRAINED_EPOCHS": 2}
SMALL |= {"COMPONENTS": 5, "K": 20, "HIDDEN": 32, "ENCODER": [32, 1], "DECODER": [32, 1]}
SMALL |= {"SHORT_STEPS": 20, "SMALL_EPOCHS": 1, "PRICE_EPOCHS": 1, "MMD_EPOCHS": 1}
SMALL |= {"TEXTBOOK_STEPS": 20, "CODED": 20, "CLASS_EPOCHS": 1, "FORGED": 3}


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def run_cell(stem, text, names):
    """Execute the one cell of a notebook that contains `text` among `names`; returns what it printed."""
    (cell,) = [c for c in code_cells(ROOT / f"{stem}.ipynb") if text in c.source]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(cell.source, names)
    return output.getvalue()


def book(stem):
    """The definitions of a notebook by name, on the CPU and in float32; nothing trains."""
    names = definitions(ROOT / f"{stem}.ipynb")
    names |= {"device": torch.device("cpu"), "BFLOAT16": False}
    return names


@pytest.fixture(scope="session")
def vae():
    return book("Basic_VAE")


@pytest.fixture(scope="session")
def made():
    return book("MADE")


@pytest.fixture(scope="session")
def lagrangian_vae():
    return book("Lagrangian_VAE")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
