import sys
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from notebooks import definitions  # noqa: E402


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
