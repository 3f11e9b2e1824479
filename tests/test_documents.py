"""The notebooks, the README and the pages as documents, beside what was measured; parts to take away."""

import ast
import importlib
import itertools
import math
import re
import shutil
import subprocess
import symtable
import sys

import answers
import nbformat
import parts
import pictures
import pytest
import questions
import run as tool
import sync
import torch
from conftest import NOTEBOOKS, ROOT, SMALL, code_cells, each_notebook, is_folded, results
from PIL import Image, ImageSequence
from torch.distributions import Distribution

document = pytest.mark.document  # reads files, and runs nothing
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
ANSWERED = [ROOT / f"{name}.ipynb" for name in ("Basic_VAE", "MADE", "Lagrangian_VAE")]


def tagged(path, tag):
    return [c for c in code_cells(path) if tag in c.metadata.get("tags", [])]


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def parameters(path):
    """The parameters of a notebook by name."""
    (cell,) = tagged(path, "parameters")
    return {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(cell.source).body}


# The notebooks.


@document
@each_notebook
def test_is_valid_and_executed_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(cell.metadata == tool.cleaned(cell.metadata) for cell in notebook.cells)
    cells = code_cells(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert all(o.output_type != "error" and o.get("name") != "stderr" for o in outputs)
    assert not any(tool.WIDGET in o.get("data", {}) for o in outputs)
    assert any("image/png" in o.get("data", {}) for o in outputs)
    bars = re.findall(r"\d+%\|.*", "\n".join(printed(c) for c in cells))
    assert bars and all(bar.startswith("100%") for bar in bars)
    assert path.stat().st_size < 1.5e6


# Folded, in all three notebooks.
PLUMBING = {"setup", "load_images", "split", "show", "table", "training", "kept"}
PLUMBING_LINES = 236  # at most, without titles and blank lines: GitHub folds nothing
LESSON_LINES = 40  # at most, of a cell that is not folded


@document
@each_notebook
def test_plumbing_is_folded_and_says_what_it_is(path):
    """In JupyterLab by `source_hidden`, in Colab by its form view; a sentence stands above each."""
    cells = nbformat.read(path, as_version=4).cells
    plumbing = [i for i, c in enumerate(cells) if is_folded(c)]
    assert {cells[i].id for i in plumbing} >= PLUMBING
    for i in plumbing:
        assert cells[i].metadata.jupyter.source_hidden and cells[i].metadata.cellView == "form"
        assert cells[i].source.startswith("# @title ")
        above = next(j for j in range(i - 1, -1, -1) if j not in plumbing)
        assert cells[above].cell_type == "markdown", cells[i].source.splitlines()[0]
    others = [c for c in code_cells(path) if not is_folded(c)]
    assert all("jupyter" not in c.metadata and "@title" not in c.source for c in others)


@document
@each_notebook
def test_plumbing_is_light_and_no_cell_of_the_lesson_is_long(path):
    folded = [c.source.splitlines()[1:] for c in code_cells(path) if c.id in PLUMBING]
    assert sum(bool(line.strip()) for lines in folded for line in lines) <= PLUMBING_LINES
    lesson = [c.source.splitlines() for c in code_cells(path) if not is_folded(c)]
    assert max(map(len, lesson)) <= LESSON_LINES


@document
@each_notebook
def test_parameters_are_literals(path):
    found = parameters(path)
    assert {"SEED", "EPOCHS", "BATCH_SIZE"} <= set(found) and found["TRAIN"] is True
    assert found["DATASET"] == "MNIST" and found["BFLOAT16"] is None


@document
def test_small_runs_set_parameters_that_a_notebook_has():
    assert set(SMALL) | set(tool.QUICK) <= set().union(*map(parameters, NOTEBOOKS))


@document
@each_notebook
def test_results_are_few_and_those_that_the_output_shows(path, vae, capsys):
    (cell,) = tagged(path, "results")
    rows = results(path.stem)
    assert any(name.startswith("test NLL") for name in rows) and len(rows) <= 10
    vae["table"](list(rows.values()))
    assert capsys.readouterr().out == printed(cell)


@document
def test_shared_cells_are_equal_wherever_they_stand():
    """Copies, so that each notebook is complete in itself; `make sync` carries a change to the others."""
    shared = [sync.shared_cells(nbformat.read(path, as_version=4)) for path in NOTEBOOKS]
    for one, other in itertools.combinations(shared, 2):
        assert all(one[i].source == other[i].source for i in one.keys() & other), "make sync"
    assert len(shared[0].keys() & shared[1].keys() & shared[2].keys()) >= 6


@document
def test_what_two_notebooks_define_alike_is_shared():
    cells = {}
    for path in NOTEBOOKS:
        for cell in code_cells(path):
            copy = cell.source, "shared" in cell.metadata.get("tags", [])
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    cells.setdefault(node.name, []).append(copy)
    for name, copies in cells.items():
        if any(shared for _, shared in copies):
            assert len(copies) > 1 and len(set(copies)) == 1, name
    for name in ("VAE", "Training", "kept", "descend", "log_weights", "load_images"):
        assert len(cells[name]) >= 2 and all(shared for _, shared in cells[name]), name


@document
@each_notebook
def test_the_markdown_renders_on_a_hosting_site(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for unwanted in (r"\newcommand", r"\begin{align", "<details", ".svg", "TODO"):
                assert unwanted not in cell.source
            assert cell.source.count("$$") % 2 == 0
            for image in re.findall(r"!\[.*?\]\((.*?)\)", cell.source):
                assert (ROOT / image).is_file()


# README, records and answers.


YARDSTICK = {
    "Basic VAE": ("test NLL", "test -ELBO"),
    "MADE, reading order": ("test NLL, one ordering",),
    "VAE, learned prior": ("test NLL, learned prior", "test -ELBO, learned prior"),
}  # the README's bold rows, and which results they show
NLLS = [names[0] for names in YARDSTICK.values()]


def shown(notebook, name):
    """A result as the README shows it: its second column, nats."""
    _, value, *_ = results(notebook.removesuffix(".ipynb"))[name].values()
    return f"{value:.2f}"


@document
def test_the_table_of_models_shows_the_notebooks_and_the_seeds_numbers_best_first():
    (models,) = re.findall(r"^## Beside the published\n(.*?)^## ", RECORDS, flags=re.M | re.S)
    row = r"^\| \*\*(.+?)\*\* \(\[notebook\]\(\.\./(.+?)\)\) (.*)$"
    rows = re.findall(row, models, flags=re.M)
    assert sorted(label for label, *_ in rows) == sorted(YARDSTICK)
    for label, notebook, rest in rows:
        nll, *bound = [shown(notebook, name) for name in YARDSTICK[label]]
        said, *said_bound = re.findall(r"\*\*(.+?)\*\*", rest)
        assert said_bound == bound, label
        if "one seed" in rest:
            assert said == nll, label
            continue
        (seeds,) = re.findall(rf"^\| {label}(?:, K = \d+)? \| (.+) \|.*\|$", RECORDS, flags=re.M)
        *values, spread = seeds.split(" | ")
        values = torch.tensor([float(value) for value in values])
        assert len(values) == 3
        assert said == spread == f"{values.mean():.2f} ± {values.std():.2f}", label
        assert abs(float(nll) - values[0]) < 0.1  # the same seed, on this machine or on another
        assert re.search(rf"\*\*[^|*]*{said}\*\*", README), label
    apart = shown("MADE.ipynb", "test NLL, mixture over classes")
    assert re.findall(r"mixture over the ten classes has \*\*(\S+?)\*\*", models) == [apart]
    row = r"^\| ([^|]+) \| \**(\d+\.\d+)[^|]* \| (\S*) ?\| \**([\d.]*)[^|]* \| (\w+)"
    found = re.findall(row, models, flags=re.M)
    nlls = [float(nll) for _, nll, *_ in found]
    assert len(nlls) == 14 and nlls == sorted(nlls)
    for name, nll, size, bound, kind in found:
        paid = nll if kind == "exact" else bound  # a VAE's file pays -ELBO
        assert size == (paid and f"{float(paid) / math.log(2) / 8:.2f}"), name


@document
def test_the_readmes_cards_and_longer_run_show_what_was_measured():
    names = re.findall(
        r"\((\w+\.ipynb)\)", re.search(r"^\| \[.*\.ipynb\) \|$", README, flags=re.M)[0]
    )
    cards = re.search(r"^\| (test NLL .*) \|$", README, flags=re.M)[1].split(" | ")
    bounds = [shown(names[2], f"test -ELBO, {end} information") for end in ("maximal", "minimal")]
    claims = [f"test NLL {shown(*pair)}" for pair in zip(names[:2], NLLS[:2], strict=True)]
    claims.append(f"−ELBO at most 90.8 asked: {max(bounds)} on test images")
    for name, card, claim in zip(names, cards, claims, strict=True):
        time = re.search(rf"^\| `{name}` \| (.*?) \|", RECORDS, flags=re.M)[1]
        assert card == f"{claim}, {time}"
    recorded = re.findall(r"^\| .*#long-runs.* \| (\S+) \| \S+ \| (\S*) ?\|", RECORDS, flags=re.M)
    assert len(recorded) == 3
    for nll, bound in recorded:
        assert re.search(rf"^\| .* \| \*\*{nll}.*{bound} \|", RECORDS, flags=re.M), nll


@document
def test_every_exercise_has_an_answer_with_the_rows_that_were_measured():
    page = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    for module in (answers, questions):
        pages = (ROOT / "docs" / f"{module.__name__}.md").read_text(encoding="utf-8")
        tables = re.findall(r"^<!-- (\w+) -->$", pages, flags=re.M)
        assert set(tables) == {job.make.__name__ for job in module.jobs()} | {"end"}
    total = 0
    for path, chapter in zip(ANSWERED, re.split(r"^## ", page, flags=re.M)[1:], strict=True):
        (text,) = [
            c.source
            for c in nbformat.read(path, as_version=4).cells
            if "## What to try next" in c.source
        ]
        exercises = re.search(r"## What to try next\n(.*?)(\n## |\Z)", text, flags=re.S)[1]
        asked = re.findall(r"^- \*\*(.+?)\.?\*\* .*\*Hint: ", exercises, flags=re.M)
        assert len(asked) == exercises.count("\n- ") >= 5
        total += len(asked)
        found = re.findall(r"^### (.+)$", chapter, flags=re.M)
        for question in asked:
            assert any(question.lower().rstrip("?") in title.lower() for title in found), question
    assert total >= 18


@document
def test_the_readmes_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!https?:)(.*?)(?:#.*?)?\)", README)
    assert targets and all((ROOT / target).exists() for target in targets)


def frames(path):
    with Image.open(path) as picture:
        return ImageSequence.all_frames(picture, lambda frame: frame.convert("L").tobytes())


@document
def test_the_pictures_of_all_three_show_what_the_notebooks_saved(tmp_path):
    for name in itertools.chain(*pictures.TOGETHER.values()):
        shutil.copy(ROOT / "images" / name, tmp_path)
    pictures.side_by_side(tmp_path)
    for target, length in zip(pictures.TOGETHER, (1, 60), strict=True):
        made, committed = frames(tmp_path / target), frames(ROOT / "images" / target)
        assert made == committed and len(made) == length
    assert (ROOT / "images" / "collection.gif").stat().st_size < 1.5e6


# Parts to take away.


PAGE = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, flags=re.S | re.M))
each_part = pytest.mark.parametrize("name", parts.PARTS)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder with every part as a module, from which they are imported, with nothing of the project in reach."""
    for name in parts.PARTS:
        (tmp_path / f"{name}.py").write_text(parts.module(name), encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    installed = [p for p in sys.path if "site-packages" in p or not p.startswith(str(ROOT))]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *filter(None, installed)])
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    Distribution.set_default_validate_args(True)  # as it is where no notebook has run
    yield tmp_path
    Distribution.set_default_validate_args(False)
    for name in parts.PARTS:
        sys.modules.pop(name, None)


def test_the_page_has_every_part_and_is_short():
    assert list(SECTIONS) == list(parts.PARTS)
    assert len(PAGE.split()) <= 1000


@each_part
def test_the_example_runs_with_the_part_alone(name, alone):
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], flags=re.S)
    line = PAGE[: PAGE.index(code)].count("\n")
    exec(compile("\n" * line + code, ROOT / "docs" / "parts.md", "exec"), {"__name__": "example"})
    assert sys.modules[name].__file__ == str(alone / f"{name}.py")


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


def test_no_import_is_superfluous_and_no_name_missing(alone):
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", alone]
    checked = subprocess.run(ruff, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_variable_of_a_function_brings_no_definition_of_that_name_along():
    # `means` and `prior` are variables in Mixture, and functions or cells' variables elsewhere
    assert "def means(" not in parts.module("prior")
    source = "def f(means):\n    return means + [outer for means in inner]\n"
    assert parts.outside(symtable.symtable(source, "", "exec")) == {"outer", "inner"}


def test_the_tool_writes_a_part_lists_them_and_names_those_known():
    def call(*arguments):
        command = [sys.executable, ROOT / "tools" / "parts.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")

    assert call("coder").stdout == parts.module("coder") + "\n"
    assert [line.split()[0] for line in call().stdout.splitlines()] == list(parts.PARTS)
    known = ", ".join(parts.PARTS)
    assert call("nonsense").stderr == f"There is no part nonsense: known are {known}.\n"


PURPOSES = re.findall(
    r"^\| (.+?) \| (.*`.+) \|$",
    next(c.source for c in nbformat.read(ANSWERED[0], 4).cells if "**To take away.**" in c.source),
    flags=re.M,
)


@document
@pytest.mark.parametrize(("purpose", "listed"), PURPOSES, ids=[name for name, _ in PURPOSES])
def test_the_cells_that_basic_vae_names_for_a_purpose_need_no_others(purpose, listed):
    """After imports and parameters; those named in the rows above, too, where a row says so."""
    if "rows above" in listed:
        listed += "".join(names for _, names in PURPOSES[1:3])
    wanted, known = set(re.findall(r"`(\w+)`", listed)), {"__file__"}
    for cell in code_cells(ANSWERED[0]):
        table = symtable.symtable(cell.source, cell.id, "exec")
        defined = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        first = cell.id == "setup" or "parameters" in cell.metadata.get("tags", [])
        if first or defined & wanted:
            known |= defined
            assert parts.outside(table) <= known, cell.source
    assert wanted <= known and len(PURPOSES) == 4
