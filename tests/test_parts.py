"""The parts that tools/parts.py takes out: each stands alone, and does what docs/parts.md shows."""

import ast
import importlib
import json
import re
import subprocess
import symtable
import sys

import parts
import pytest
import torch
from conftest import ROOT
from torch.distributions import Distribution

PAGE = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, flags=re.S | re.M))
each_part = pytest.mark.parametrize("name", parts.PARTS)


def call(*arguments):
    """Call the tool as a reader does."""
    command = [sys.executable, ROOT / "tools" / "parts.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def example(name):
    """The lines that the page has for a part; they stand where they stand in the page."""
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], flags=re.S)
    line = PAGE[: PAGE.index(code)].count("\n")
    return compile("\n" * line + code, ROOT / "docs" / "parts.md", "exec")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder from which modules are imported, with nothing of the project in reach."""
    installed = [p for p in sys.path if "site-packages" in p or not p.startswith(str(ROOT))]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *filter(None, installed)])
    monkeypatch.chdir(tmp_path)
    Distribution.set_default_validate_args(True)  # as it is where no notebook has run
    yield tmp_path
    Distribution.set_default_validate_args(False)
    for name in parts.PARTS:
        sys.modules.pop(name, None)


@pytest.fixture
def take(alone):
    """Writes a part to the folder, and imports it."""

    def take(name):
        (alone / f"{name}.py").write_text(parts.module(name), encoding="utf-8")
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return take


def test_the_page_has_every_part_and_is_short():
    assert list(SECTIONS) == list(parts.PARTS)
    assert len(PAGE.split()) <= 1000


@each_part
def test_the_example_runs_with_the_part_alone(name, take, alone):
    assert take(name).__file__ == str(alone / f"{name}.py")
    exec(example(name), {"__name__": "example"})
    assert sorted(p.name for p in alone.iterdir() if p.suffix) == [f"{name}.py"]


@each_part
def test_a_part_has_what_it_offers_and_imports_what_the_page_says(name):
    nodes = ast.parse(parts.module(name)).body
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = [getattr(n, "module", None) or n.names[0].name for n in imports]
    said = re.search(r"^\*\*Imports\*\* (.+)\.\\$", SECTIONS[name], flags=re.M)[1]
    assert list(dict.fromkeys(m.split(".")[0] for m in modules)) == (
        [] if said == "nothing" else said.split(", ")
    )

    defined = {node.name for node in nodes if hasattr(node, "name")}
    assert set(parts.PARTS[name][1]) <= defined
    # A docstring, imports, definitions; nothing draws or trains.
    kinds = ast.FunctionDef | ast.ClassDef | ast.Assign
    assert all(isinstance(n, kinds) for n in nodes[1:] if n not in imports)


@each_part
def test_the_lines_are_those_of_the_notebook(name):
    stem = parts.PARTS[name][0]
    cells = json.loads((ROOT / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    source = parts.module(name)
    places = []
    for node in ast.parse(source).body[1:]:
        part = ast.get_source_segment(source, node)
        if not isinstance(node, ast.Import | ast.ImportFrom) and part not in parts.COMPUTED:
            places.append(text.index("\n" + part))
    assert places == sorted(places)


def test_no_import_is_superfluous_and_no_name_missing(alone):
    for name in parts.PARTS:
        (alone / f"{name}.py").write_text(parts.module(name), encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", alone]
    checked = subprocess.run(ruff, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_cells_compute_is_set_only_where_it_is_used():
    having = [name for name in parts.PARTS if "\ndevice = " in parts.module(name)]
    assert having == ["training"]
    assert "BATCH_SIZE = 500  # images in one training step\n" in parts.module("training")


def test_a_variable_of_a_function_brings_no_definition_of_that_name_along():
    # `means` and `prior` are variables in Mixture, and functions or cells' variables elsewhere
    assert "def means(" not in parts.module("prior")
    source = "def f(means):\n    return means + [outer for means in inner]\n"
    assert parts.outside(symtable.symtable(source, "", "exec")) == {"outer", "inner"}


def test_the_probabilities_of_all_images_sum_to_one(take):
    made = take("made")
    order, mean = torch.tensor([3, 0, 7, 2, 1, 6, 4, 5]), torch.linspace(0.1, 0.9, 8)
    model = made.MADE(order, made.draw_degrees(order, mean, 20), mean, blocks=1)
    for weights in model.parameters():
        torch.nn.init.normal_(weights)
    everything = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    assert made.log_p(model, everything).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_the_learned_prior_is_a_density(take):
    prior = take("prior").Mixture(2, 4)
    line = torch.linspace(-8, 8, 161)
    heights = prior.log_prob(torch.cartesian_prod(line, line)).exp()
    assert heights.sum().item() * 0.1**2 == pytest.approx(1, abs=1e-3)


def test_the_tool_writes_a_part_lists_them_and_names_those_known():
    assert call("coder").stdout == parts.module("coder") + "\n"
    listed = call().stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(parts.PARTS)
    unknown = call("nonsense")
    known = ", ".join(parts.PARTS)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == f"There is no part nonsense: known are {known}.\n"
