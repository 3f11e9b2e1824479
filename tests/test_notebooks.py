"""The notebooks as documents, Basic_VAE run small, the tool that runs them, and the README against all of it."""

import ast
import itertools
import math
import re
import shutil
import sys

import answers
import matplotlib.image
import nbformat
import pictures
import pytest
import run as tool
import sync
import torch
from conftest import NOTEBOOKS, ROOT, SMALL, code_cells, each_notebook, figures, printed, results
from PIL import Image, ImageSequence

pytestmark = pytest.mark.xdist_group("kernels")  # which, started at once, may choose one port
document = pytest.mark.document  # reads files, and runs nothing
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
ANSWERED = [ROOT / f"{name}.ipynb" for name in ("Basic_VAE", "MADE", "Lagrangian_VAE")]


def tagged(path, tag):
    return [c for c in code_cells(path) if tag in c.metadata.get("tags", [])]


def parameters(path):
    """The parameters of a notebook by name."""
    (cell,) = tagged(path, "parameters")
    return {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(cell.source).body}


def is_folded(cell):
    return "hide-input" in cell.metadata.get("tags", [])


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
def test_plumbing_is_light(path):
    cells = [c.source.splitlines()[1:] for c in code_cells(path) if c.id in PLUMBING]
    assert sum(bool(line.strip()) for lines in cells for line in lines) <= PLUMBING_LINES


@document
@each_notebook
def test_no_cell_of_the_lesson_is_long(path):
    cells = [c for c in code_cells(path) if not is_folded(c)]
    assert max(len(c.source.splitlines()) for c in cells) <= 40


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
    for source in NOTEBOOKS:
        originals = sync.shared_cells(nbformat.read(source, as_version=4))
        for target in NOTEBOOKS:
            copies = sync.shared_cells(nbformat.read(target, as_version=4))
            for i in originals.keys() & copies.keys():
                assert copies[i].source == originals[i].source, f"make sync, for {i}"
    cells, frame = {}, []
    for path in NOTEBOOKS:
        frame.append({c.source for c in tagged(path, "shared")})
        for cell in code_cells(path):
            copy = (cell.source, "shared" in cell.metadata.get("tags", []))
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    cells.setdefault(node.name, []).append(copy)
    for name, copies in cells.items():
        if any(shared for _, shared in copies):
            assert len(copies) > 1 and len(set(copies)) == 1, name
    assert len(frame[0] & frame[1] & frame[2]) >= 6
    for name in ("VAE", "Training", "kept", "descend", "log_weights", "load_images"):
        assert len(cells[name]) >= 2 and all(shared for _, shared in cells[name]), name


def test_sync_carries_a_changed_cell_and_nothing_else(tmp_path):
    first, second = tmp_path / "first.ipynb", tmp_path / "second.ipynb"
    for path in (first, second):
        cells = [nbformat.v4.new_code_cell(f"x = '{path.stem}'", id=i) for i in ("both", "own")]
        cells[0].metadata["tags"] = ["shared"]
        cells[0].outputs = [nbformat.v4.new_output("stream", text=path.stem)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert list(sync.sync(first, [second])) == [(second, "both")]
    sources = [c.source for c in code_cells(second)]
    assert sources == ["x = 'first'", "x = 'second'"]
    assert code_cells(second)[0].outputs[0].text == "second"
    assert list(sync.sync(first, [second])) == []


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


def test_basic_vae_runs_whole_copied_alone_into_an_empty_folder(basic_run):
    """The other two run whole in test_gpu.py, and this one from the menu in test_browser.py."""
    cells = code_cells(basic_run / "Basic_VAE.ipynb")
    assert all(c.execution_count for c in cells)
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]
    assert {"test NLL", "test -ELBO"} <= set(results("Basic_VAE", basic_run / "results" / "digits"))
    made = basic_run / "images" / "digits"
    assert {p.stem for p in made.iterdir()} == figures("Basic_VAE", "digits")
    assert all(matplotlib.image.imread(p).std() > 0.01 for p in made.iterdir())
    assert not (basic_run / "data").exists()


@pytest.fixture
def house(tmp_path, monkeypatch, capsys):
    """`house(last)` runs the tool over a small notebook that ends with `last`: what it printed, why it ended."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "images").mkdir()
    for name in ("MADE-samples.png", "MADE-drawing.gif"):
        shutil.copy(ROOT / "images" / name, tmp_path / "images")
    monkeypatch.setattr(tool, "ROOT", tmp_path)

    def run(last, *arguments, missing="KMNIST"):
        loader = f"def load_images(name, folder):\n    assert name != '{missing}', 'no {missing}'"
        made = "from pathlib import Path\nfor made in ('images', 'weights', 'results'):"
        made += "\n    Path(made, DATASET).mkdir(parents=True)"
        sources = ("DATASET = 'MNIST'\nTRAIN = True", loader, made, last)
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, tmp_path / "small.ipynb")
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        reason = ""
        try:
            tool.main()
        except SystemExit as end:
            reason = end.code
        return capsys.readouterr().out, reason

    return run


def is_as_it_was(folder):
    untouched = not any(c.execution_count for c in code_cells(folder / "small.ipynb"))
    return untouched and not any((folder / made / "MNIST").exists() for made in tool.PRODUCTS)


def test_a_run_replaces_the_notebook_and_shows_where_it_is(house, tmp_path):
    said, reason = house("print('epoch 7', TRAIN)")
    assert reason == "" and "small: 2 of 4 cells" in said and "epoch 7 True" in said
    assert [c.execution_count for c in code_cells(tmp_path / "small.ipynb")] == [1, 2, 3, 4]
    assert all((tmp_path / made / "MNIST").exists() for made in tool.PRODUCTS)
    assert {p.name for p in (tmp_path / "images").iterdir()} >= set(pictures.TOGETHER)


def test_a_run_with_what_is_kept_takes_weights_along_and_changes_build_alone(house, tmp_path):
    weights = tmp_path / "weights" / "MNIST-small.pt"
    weights.parent.mkdir()
    weights.write_text("trained")
    last = f"kept = Path('{weights.relative_to(tmp_path)}')\nprint(TRAIN, kept.read_text())"
    said, reason = house(f"{last}\nkept.write_text('anew')", "--kept")
    assert reason == "" and "False trained" in said
    assert is_as_it_was(tmp_path) and weights.read_text() == "trained"
    made = tmp_path / "build" / "kept"
    assert code_cells(made / "small.ipynb")[-1].execution_count == 5  # and the injected parameters
    assert {path.name for path in made.iterdir()} == {"small.ipynb", *tool.PRODUCTS}


def test_a_failed_run_changes_nothing_and_says_so(house, tmp_path):
    _, reason = house("raise ValueError('no luck')")
    assert "no luck" in reason and "neither it nor images/ were changed" in reason
    assert is_as_it_was(tmp_path)


def test_a_folder_that_cannot_be_written_is_named_and_nothing_changed(house, tmp_path):
    (tmp_path / "results").touch()  # a file in its place: no one may write into it, not even root
    said, reason = house("pass")
    assert str(tmp_path / "results") in reason
    assert "cells" not in said  # before the run, not after it
    assert is_as_it_was(tmp_path)


def test_without_mnist_copies_run_on_the_digits_loudly(house, tmp_path):
    said, reason = house("print('on', DATASET)", missing="MNIST")
    assert reason == "" and "NO MNIST" in said and "on digits" in said
    assert is_as_it_was(tmp_path) and (tmp_path / "build" / "digits" / "small.ipynb").exists()


def test_another_data_set_that_cannot_be_had_ends_with_the_reason(house, tmp_path):
    _, reason = house("pass", "--dataset", "KMNIST")
    assert "no KMNIST" in reason and is_as_it_was(tmp_path)


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
    page, rows = answers.PAGE.read_text(encoding="utf-8"), answers.read()
    assert answers.with_tables(page, rows) == page
    names = [exercise.__name__ for exercise in answers.EXERCISES]
    assert re.findall(r"^<!-- (\w+) -->$", page, flags=re.M) == [
        part for name in names for part in (name, "end")
    ]
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
