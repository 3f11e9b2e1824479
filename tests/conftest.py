import re
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from notebooks import definitions  # noqa: E402

NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SMALL = {
    "DATASET": "digits",
    "EPOCHS": 2,
    "MANY_EPOCHS": 2,
    "COMMON_EPOCHS": 2,
    "COMPONENTS": 5,
    "K": 20,
    "HIDDEN": 32,
}  # of these, those that a notebook has


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def figures(path):
    """The names of the figures that a notebook saves, with {DATASET} where the data set's name goes."""
    source = "".join(c.source for c in code_cells(path))
    return re.findall(r'save_figure\(\w+, f?"(.*?)"\)', source)


@pytest.fixture(scope="session")
def vae():
    """The definitions of Basic_VAE.ipynb by name; nothing trains."""
    return definitions(ROOT / "Basic_VAE.ipynb")


@pytest.fixture(scope="session")
def made():
    """The definitions of MADE.ipynb by name; nothing trains."""
    return definitions(ROOT / "MADE.ipynb")


@pytest.fixture(scope="session")
def lagrangian_vae():
    """The definitions of Lagrangian_VAE.ipynb by name, and the two constants that they need."""
    book = definitions(ROOT / "Lagrangian_VAE.ipynb")
    book["KERNEL_VARIANCE"], book["device"] = book["LATENT_DIM"] / 4, torch.device("cpu")
    return book


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
