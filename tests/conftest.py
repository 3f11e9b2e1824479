import contextlib
import functools
import io
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import gpu
import matplotlib
import nbformat
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_map_only

if "PYTEST_XDIST_WORKER" in os.environ:  # several side by side: one thread each, kernels included
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
matplotlib.use("agg")
torch.distributions.Distribution.set_default_validate_args(False)  # as the notebooks do
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "benchmarks")]

from definitions import definitions  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCREEN = {"width": 1280, "height": 1000}
LONGEST = "test_browser.py", "test_runs.py"  # they take longest, and begin first
NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SMALL = {"DATASET": "digits", "EPOCHS": 2, "SHORT_EPOCHS": 1, "FRONT_EPOCHS": 2}
SMALL |= {"COMPONENTS": 5, "HIDDEN": 32, "ENCODER": [32, 1], "DECODER": [32, 1]}
SMALL |= {"SMALL": [32, 1], "SHORT_STEPS": 20}
SMALL |= {"FIRST_EPOCHS": 1, "CODED": 20, "CLASS_EPOCHS": 1, "FORGED": 3}
SMALL["CODES"] = [2, 3, 4]  # so few that all images are scored at once on any device
OWN_PICTURES = {"DATASET": "my_images", "LATENT_DIM": 1, "BFLOAT16": False}
# What is pretended is not of PyTorch's public interface: with older versions the notebooks run on the CPU.
PRETENDS = torch.__version__ >= "2.14"


def pytest_addoption(parser):
    parser.addoption("--shuffle", type=int, help="run the tests in a random order, from this seed")


def pytest_configure(config):
    config.option.loadscopereorder = False  # side by side, files begin in the order below


def pytest_collection_modifyitems(config, items):
    if config.option.shuffle is not None:
        random.Random(config.option.shuffle).shuffle(items)
    else:
        items.sort(key=lambda item: item.path.name not in LONGEST)


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def is_folded(cell):
    return "hide-input" in cell.metadata.get("tags", [])


def results(stem, folder=ROOT / "results"):
    """What a notebook wrote at its end: the rows, each by the name that it begins with."""
    rows = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    return {next(iter(row.values())): row for row in rows}


def values(stem, folder):
    """The values of these rows, by name."""
    return {name: row["value"] for name, row in results(stem, folder).items()}


def restored(stem):
    """The definitions of a notebook by name, on the CPU, in float32; what a test sets in them is undone."""
    names = book(stem)
    before = dict(names)
    yield names
    names.clear()
    names |= before


@functools.cache
def book(stem):
    names = definitions(ROOT / f"{stem}.ipynb")
    names |= {"device": torch.device("cpu"), "BFLOAT16": False, "TRAIN": True, "In": [""]}
    return names


@pytest.fixture
def vae():
    yield from restored("Basic_VAE")


@pytest.fixture
def made():
    yield from restored("MADE")


@pytest.fixture
def lagrangian_vae():
    yield from restored("Lagrangian_VAE")


class Whole(NamedTuple):
    """What a notebook left that ran whole, small."""

    folder: Path
    names: dict  # of its variables, all tensors among them on the CPU
    said: str


def draw_pictures(folder):
    """A hundred pictures of one's own: boxes, and bars."""
    for label, name in enumerate(("boxes", "bars")):
        (folder / name).mkdir(parents=True)
        for i in range(50):
            picture = Image.new("L", (40, 40), 255)
            picture.paste(0, (5, 5 + i % 20, 35 - 25 * label, 15 + i % 20))
            picture.putpixel((i % 40, 39), 0)
            picture.save(folder / name / f"{i}.png")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """`whole(stem)` runs a notebook, once, in a folder of its own, on the pretended GPU."""

    @functools.cache
    def run(stem):
        folder, parameters = tmp_path_factory.mktemp(stem), SMALL
        if stem == "Lagrangian_VAE":
            draw_pictures(folder / "data" / "my_images")
            parameters = SMALL | OWN_PICTURES
        said = io.StringIO()
        quiet = contextlib.redirect_stdout(said)
        with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(), quiet:
            patch.chdir(folder)
            with gpu.pretended(patch) if PRETENDS else contextlib.nullcontext():
                names = gpu.run(code_cells(ROOT / f"{stem}.ipynb"), parameters)
        here = tree_map_only(gpu.Elsewhere, lambda tensor: tensor.held, names)
        return Whole(folder, here, said.getvalue())

    return run


@pytest.fixture(scope="module")
def page():
    """A page of a Chromium or Chrome of the system, empty."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium.new_page(viewport=SCREEN)
        chromium.close()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
