"""The notebooks as documents, the notebooks run small, the tool that runs them, and the README against all of it."""

import ast
import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import answers
import matplotlib.image
import nbformat
import pictures
import pytest
import run as tool
import sync
import torch
from conftest import NOTEBOOKS, ROOT, SMALL, book, code_cells, each_notebook
from PIL import Image, ImageSequence

pytestmark = pytest.mark.xdist_group("kernels")  # which, started at once, may choose one port
document = pytest.mark.document  # reads files, and runs nothing
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
ANSWERED = [ROOT / f"{name}.ipynb" for name in ("Basic_VAE", "MADE", "Lagrangian_VAE")]


def tagged(path, tag):
    return [c for c in code_cells(path) if tag in c.metadata.get("tags", [])]


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def results(path):
    """The table that a notebook printed at its end: name to value."""
    text = printed(tagged(path, "results")[0])
    return dict(re.findall(r"^(.+?)  +(\S.*?)(?:   .*)?$", text, flags=re.M))


def figures(path):
    """The names of the figures that a notebook saves, with {DATASET} where the data set's name goes."""
    code = "\n".join(c.source for c in code_cells(path))
    return re.findall(r'^ *save(?:_loop)?\(f?"(.*?)"[,)]', code, flags=re.M)


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


PLUMBING = {"setup", "own_pictures", "read_pictures", "load_images", "three_parts", "split", "show"}
PLUMBING |= {"training_parts", "batches", "train"}  # folded, in all three notebooks


@document
@each_notebook
def test_plumbing_is_folded_and_says_what_it_is(path):
    """In JupyterLab by `source_hidden`, in Colab by its form view; a sentence stands above each."""
    cells = nbformat.read(path, as_version=4).cells
    folded = [i for i, c in enumerate(cells) if "hide-input" in c.metadata.get("tags", [])]
    assert {cells[i].id for i in folded} >= PLUMBING
    for i in folded:
        assert cells[i].metadata.jupyter.source_hidden and cells[i].metadata.cellView == "form"
        assert cells[i].source.startswith("# @title ")
        above = next(j for j in range(i - 1, -1, -1) if j not in folded)
        assert cells[above].cell_type == "markdown", cells[i].source.splitlines()[0]
    others = [c for c in code_cells(path) if "hide-input" not in c.metadata.get("tags", [])]
    assert all("jupyter" not in c.metadata and "@title" not in c.source for c in others)


@document
@each_notebook
def test_no_cell_is_long(path):
    assert max(len(c.source.splitlines()) for c in code_cells(path)) <= 40


@document
@each_notebook
def test_parameters_are_literals_and_results_are_last_and_short(path):
    (parameters,) = tagged(path, "parameters")
    names = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(parameters.source).body}
    assert {"DATASET", "SEED", "EPOCHS", "BATCH_SIZE"} <= set(names)
    assert names["DATASET"] == "MNIST" and names["BFLOAT16"] is None
    assert tagged(path, "results") == code_cells(path)[-1:]
    assert any(name.startswith("test NLL") for name in results(path)) and len(results(path)) <= 10


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
    for name in ("VAE", "train", "encode", "decode", "log_weights", "load_images", "show"):
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


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """`small_run(path)` is the folder in which a copy of the notebook ran alone, small; it runs once."""
    folders = {}

    def get(path):
        if path not in folders:
            folders[path] = folder = tmp_path_factory.mktemp(path.stem)
            alone = Path(shutil.copy(path, folder))
            tool.run(alone, alone, folder, tool.select(SMALL, path))
        return folders[path]

    return get


@each_notebook
def test_runs_whole_copied_alone_into_an_empty_folder(path, small_run):
    folder = small_run(path)
    cells = code_cells(folder / path.name)
    assert all(c.execution_count for c in cells)
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]
    assert any(name.startswith("test NLL") for name in results(folder / path.name))
    made = folder / "images" / "digits"
    assert {p.stem for p in made.iterdir()} == {n.format(DATASET="digits") for n in figures(path)}
    assert all(matplotlib.image.imread(p).std() > 0.01 for p in made.iterdir())
    assert not (folder / "data").exists()


def test_weights_of_a_run_load_again_and_score_the_same(small_run):
    path, names = ROOT / "Basic_VAE.ipynb", book("Basic_VAE")
    folder = small_run(path)
    *_, (images, _) = names["load_images"]("digits")
    x = names["binarise"](images, torch.Generator().manual_seed(2026))
    model = names["VAE"](names["LATENT_DIM"], SMALL["ENCODER"], SMALL["DECODER"])
    model.load_state_dict(torch.load(folder / "weights" / "digits-VAE.pt", weights_only=True))
    torch.manual_seed(names["SEED"])
    nll = -names["importance_bound"](names["log_weights"](model, x, 20), 20).mean().item()
    value = results(folder / path.name)["test NLL, K = 20"].split(" ±")[0]
    assert float(value) == pytest.approx(nll, abs=0.0051)


@pytest.fixture
def house(tmp_path):
    """`house(last)` runs the tool over a small notebook with `last` in its last cell: (folder, finished process)."""

    def run(last, *arguments, ready=lambda: None):
        shutil.copytree(ROOT / "tools", tmp_path / "tools", dirs_exist_ok=True)
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in ("MADE-samples.png", "MADE-drawing.gif"):
            shutil.copy(ROOT / "images" / name, tmp_path / "images")
        loader = "def load_images(name, folder):\n    assert name != 'KMNIST', 'no KMNIST'"
        figure = "from pathlib import Path\nfor made in ('images', 'weights'):"
        figure += "\n    Path(made, DATASET).mkdir(parents=True)"
        cells = [nbformat.v4.new_code_cell(c) for c in ("DATASET = 'MNIST'", loader, figure, last)]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, tmp_path / "small.ipynb")
        ready()
        command = [sys.executable, tmp_path / "tools" / "run.py", *arguments]
        return tmp_path, subprocess.run(command, capture_output=True, text=True)

    return run


def is_as_it_was(folder):
    untouched = not any(c.execution_count for c in code_cells(folder / "small.ipynb"))
    return untouched and not (folder / "images" / "MNIST").exists()


def test_a_run_replaces_the_notebook_and_shows_where_it_is(house):
    folder, finished = house("print('epoch 7')")
    assert finished.returncode == 0, finished.stderr
    assert "small: 2 of 4 cells" in finished.stdout and "epoch 7" in finished.stdout
    assert [c.execution_count for c in code_cells(folder / "small.ipynb")] == [1, 2, 3, 4]
    assert {p.name for p in (folder / "images").iterdir()} >= {"MNIST", *pictures.TOGETHER}


def test_a_failed_run_changes_nothing_and_says_so(house):
    folder, finished = house("raise ValueError('no luck')")
    assert finished.returncode == 1 and "no luck" in finished.stderr and is_as_it_was(folder)


@pytest.mark.parametrize("name", ("images", "weights"))
def test_a_folder_that_cannot_be_written_is_named_and_nothing_changed(house, tmp_path, name):
    def block():  # a file in the place of the folder: no one may write into it, not even root
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        (tmp_path / name).touch()

    folder, finished = house("pass", ready=block)
    assert finished.returncode == 1 and str(tmp_path / name) in finished.stderr
    assert "cells" not in finished.stdout  # before the run, not after it
    assert is_as_it_was(folder)


def test_without_mnist_copies_run_on_the_digits_loudly(house, tmp_path):
    def no_mnist():
        path = tmp_path / "small.ipynb"
        path.write_text(path.read_text().replace("'KMNIST'", "'MNIST'"))

    folder, finished = house("print('on', DATASET)", ready=no_mnist)
    assert finished.returncode == 0 and "NO MNIST" in finished.stdout
    assert "on digits" in finished.stdout and is_as_it_was(folder)
    assert (folder / "build" / "digits" / "small.ipynb").exists()


def test_another_data_set_that_cannot_be_had_ends_with_the_reason(house):
    folder, finished = house("pass", "--dataset", "KMNIST")
    assert finished.returncode == 1 and "no KMNIST" in finished.stderr and is_as_it_was(folder)


YARDSTICK = {
    "Basic VAE": ("test NLL, K = 1000", "test -ELBO"),
    "MADE, one ordering": ("test NLL, one ordering",),
    "VAE, learned prior": ("test NLL, learned prior, K = 100", "test -ELBO, learned prior"),
}  # the README's bold rows, and which results they show
NLLS = [names[0] for names in YARDSTICK.values()]


@document
def test_the_readmes_table_shows_the_notebooks_and_the_seeds_numbers_best_first():
    row = r"^\| \*\*(.+?)\*\* \(\[notebook\]\((.+?)\)\) (.*)$"
    rows = re.findall(row, README, flags=re.M)
    assert sorted(label for label, *_ in rows) == sorted(YARDSTICK)
    for label, notebook, rest in rows:
        nll, *bound = [results(ROOT / notebook)[name].split(" ±")[0] for name in YARDSTICK[label]]
        shown, *shown_bound = re.findall(r"\*\*(.+?)\*\*", rest)
        assert shown_bound == bound, label
        (seeds,) = re.findall(rf"^\| {label}(?:, K = \d+)? \| (.+) \|.*\|$", RECORDS, flags=re.M)
        *values, spread = seeds.split(" | ")
        values = torch.tensor([float(value) for value in values])
        assert len(values) == 3
        assert shown == spread == f"{values.mean():.2f} ± {values.std():.2f}", label
        assert abs(float(nll) - values[0]) < 0.1  # the same seed, on this machine or on another
    apart = results(ROOT / "MADE.ipynb")["test NLL, mixture over classes"].split(" ±")[0]
    assert re.findall(r"mixture over the ten classes has \*\*(\S+?)\*\*", README) == [apart]
    pairs = re.findall(r"^\| [^|]+ \| \**(\d+\.\d+)[^|]* \| (\S+) \|", README, flags=re.M)
    nlls = [float(nll) for nll, _ in pairs]
    assert len(nlls) == 13 and nlls == sorted(nlls)
    assert all(
        size == f"{nats / math.log(2) / 8:.2f}" for nats, (_, size) in zip(nlls, pairs, strict=True)
    )


@document
def test_the_readmes_cards_and_longer_run_show_what_was_measured():
    names = re.findall(
        r"\((\w+\.ipynb)\)", re.search(r"^\| \[.*\.ipynb\) \|$", README, flags=re.M)[0]
    )
    cards = re.search(r"^\| (test NLL .*) \|$", README, flags=re.M)[1].split(" | ")
    for name, card in zip(names, cards, strict=True):
        nll = next(v for k, v in results(ROOT / name).items() if k in NLLS).split(" ±")[0]
        time = re.search(rf"^\| `{name}` \| (.*?) \|", RECORDS, flags=re.M)[1]
        assert card == f"test NLL {nll}, {time}"
    recorded = re.findall(r"^\| .*#long-runs.* \| (\S+) \| \S+ \| (\S*) ?\|", README, flags=re.M)
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
