import contextlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # several side by side: one thread each, kernels included
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
matplotlib.use("agg")
torch.distributions.Distribution.set_default_validate_args(False)  # as the notebooks do
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "benchmarks")]

import run as tool  # noqa: E402
from definitions import definitions  # noqa: E402

NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SMALL = {"DATASET": "digits", "EPOCHS": 2, "SHORT_EPOCHS": 1, "FRONT_EPOCHS": 2}
SMALL |= {"COMPONENTS": 5, "HIDDEN": 32, "ENCODER": [32, 1], "DECODER": [32, 1]}
SMALL |= {"SMALL": [32, 1], "SHORT_STEPS": 20}
SMALL |= {"FIRST_EPOCHS": 1, "CODED": 20, "CLASS_EPOCHS": 1, "FORGED": 3}
SMALL["CODES"] = [2, 3, 4]  # so few that all images are scored at once on any device


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def count_formulas(path):
    """How many formulas stand in the markdown of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    markdown = [re.sub(r"`.*?`", "", c.source) for c in cells if c.cell_type == "markdown"]
    return sum(len(re.findall(r"\$\$.+?\$\$|\$.+?\$", text, flags=re.S)) for text in markdown)


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def results(stem, folder=ROOT / "results"):
    """What a notebook wrote at its end: the rows, each by the name that it begins with."""
    rows = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    return {next(iter(row.values())): row for row in rows}


def figures(stem, dataset="MNIST"):
    """The names of the figures that a notebook saves."""
    code = "\n".join(c.source for c in code_cells(ROOT / f"{stem}.ipynb"))
    found = re.findall(r'^ *save(?:_loop)?\(f?"(.*?)"[,)]', code, flags=re.M)
    return {name.format(DATASET=dataset) for name in found}


def run_cell(stem, text, names):
    """Execute the one cell of a notebook that contains `text` among `names`; returns what it printed."""
    (cell,) = [c for c in code_cells(ROOT / f"{stem}.ipynb") if text in c.source]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(cell.source, names)
    return output.getvalue()


def book(stem):
    """The definitions of a notebook by name, on the CPU and in float32; what is called trains anew."""
    names = definitions(ROOT / f"{stem}.ipynb")
    names |= {"device": torch.device("cpu"), "BFLOAT16": False, "TRAIN": True, "In": [""]}
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


@pytest.fixture(scope="session")
def basic_run(tmp_path_factory):
    """The folder in which a copy of Basic_VAE ran alone, small."""
    folder = tmp_path_factory.mktemp("Basic_VAE")
    alone = Path(shutil.copy(ROOT / "Basic_VAE.ipynb", folder))
    tool.run(alone, alone, folder, tool.select(SMALL, alone))
    return folder


@pytest.fixture(scope="module")
def page():
    """A page of a Chromium or Chrome of the system, empty."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium.new_page(viewport={"width": 1280, "height": 1000})
        chromium.close()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
