"""The notebooks as documents, the notebooks run, and the README against both."""

import ast
import re
import shutil
import subprocess
import sys

import matplotlib.image
import nbformat
import notebooks as tool
import pytest
from conftest import ROOT
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    "DATASET": "digits",
    "EPOCHS": 2,
    "MANY_EPOCHS": 2,
    "COMMON_EPOCHS": 2,
    "COMPONENTS": 5,
    "K": 20,
    "HIDDEN": 32,
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def tagged(path, tag):
    return [c for c in code_cells(path) if tag in c.metadata.get("tags", [])]


def figures(path):
    """The names of the figures that a notebook saves, with {DATASET} where the data set's name goes."""
    source = "".join(c.source for c in code_cells(path))
    return re.findall(r'save_figure\(\w+, f?"(.*?)"\)', source)


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


@each_notebook
def test_is_valid_and_executed_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert "widgets" not in notebook.metadata
    for cell in cells:
        assert "execution" not in cell.metadata, "timing metadata"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"on stderr: {output.text[:200]}"
            assert tool.WIDGET not in output.get("data", {})
    assert path.stat().st_size < 2e6
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.outputs)


@each_notebook
def test_progress_bars_are_finished(path):
    bars = re.findall(r"\d+%\|.*", "\n".join(printed(c) for c in code_cells(path)))
    assert bars and all(bar.startswith("100%") for bar in bars)


@each_notebook
def test_is_a_plain_python_program_without_long_cells(path):
    for cell in code_cells(path):
        ast.parse(cell.source)
        assert len(cell.source.splitlines()) <= 60


@each_notebook
def test_parameters_are_literals_and_results_are_last(path):
    (parameters,) = tagged(path, "parameters")
    names = {}
    for node in ast.parse(parameters.source).body:
        names[node.targets[0].id] = ast.literal_eval(node.value)
    assert {"DATASET", "SEED", "EPOCHS", "BATCH_SIZE"} <= set(names) and names["DATASET"] == "MNIST"
    (results,) = tagged(path, "results")
    assert results == code_cells(path)[-1]
    assert re.search(r"^test NLL", printed(results), flags=re.M)


def test_shared_cells_are_equal_in_all_notebooks():
    """Copies, so that each notebook is complete in itself; they must not drift apart."""
    first, *others = [[c.source for c in tagged(path, "shared")] for path in NOTEBOOKS]
    assert first and others and all(other == first for other in others)


@each_notebook
def test_the_markdown_renders_on_a_hosting_site(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for unwanted in (r"\newcommand", r"\begin{align", "<details", ".svg", "TODO"):
                assert unwanted not in cell.source
            assert cell.source.count("$$") % 2 == 0
            for image in re.findall(r"!\[.*?\]\((.*?)\)", cell.source):
                assert (ROOT / image).is_file()


def tracked_state():
    """What git says of the working tree, and the bytes of every file under images/."""
    if not (ROOT / ".git").exists():
        status = ""
    else:
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True
        ).stdout
    return status, {p: p.read_bytes() for p in (ROOT / "images").rglob("*") if p.is_file()}


@each_notebook
def test_runs_whole_copied_alone_into_an_empty_folder(path, tmp_path):
    before = tracked_state()
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    _, known = tool.parameter_cell(nbformat.read(path, as_version=4))
    tool.run(copy, copy, tmp_path, {name: SMALL[name] for name in SMALL.keys() & known})
    cells = code_cells(copy)
    assert all(c.execution_count for c in cells)
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]
    assert re.search(r"^test NLL, .*? +\d+\.\d+ +nats", printed(cells[-1]), flags=re.M)
    saved = sorted(p.name for p in (tmp_path / "images" / "digits").iterdir())
    assert saved and saved == sorted(
        f"{name}.png".format(DATASET="digits") for name in figures(path)
    )
    for name in saved:
        assert matplotlib.image.imread(tmp_path / "images" / "digits" / name).std() > 0.01
    assert not (tmp_path / "data").exists()
    assert tracked_state() == before


def test_weights_of_a_run_load_again_and_score_the_same(vae, tmp_path):
    torch = vae["torch"]
    model = vae["VAE"](4, 16)
    vae["write_safely"](tmp_path / "w.pt", lambda file: torch.save(model.state_dict(), file))
    again = vae["VAE"](4, 16)
    again.load_state_dict(torch.load(tmp_path / "w.pt", map_location="cpu", weights_only=True))
    x = (torch.rand(20, 784) < 0.3).float()
    scores = []
    for network in (model, again):
        torch.manual_seed(1)
        scores.append(vae["log_weights"](network, x, 10, rows=100))
    assert torch.equal(*scores)


def small_notebook(tmp_path, *sources):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, tmp_path / "small.ipynb")
    return tmp_path / "small.ipynb"


def test_a_failed_run_leaves_the_notebook_as_it_was(tmp_path):
    source = small_notebook(tmp_path, "A = 1", "print(A)", "raise ValueError('no luck')")
    before = source.read_bytes()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(CellExecutionError, match="no luck"):
        tool.run(source, source, scratch, {"A": 2})
    assert source.read_bytes() == before
    assert "2" in (scratch / "small.ipynb").read_text()  # what had run is kept


def test_parameters_are_overridden_by_name_and_only_by_name(tmp_path):
    source = small_notebook(tmp_path, "A = 1\nB = 2", "print(A + B)")
    tool.run(source, tmp_path / "out.ipynb", tmp_path, {"A": 40})
    assert printed(code_cells(tmp_path / "out.ipynb")[-1]) == "42\n"
    with pytest.raises(ValueError, match="C; known: A, B"):
        tool.run(source, source, tmp_path, {"C": 0})


def test_definitions_run_nothing_else(tmp_path):
    source = small_notebook(
        tmp_path,
        "A = 1",
        "try:\n    import math\nexcept ImportError:\n    math = None\ndef f():\n    return A\nA += 1\n1 / 0",
    )
    namespace = tool.definitions(source)
    assert namespace["f"]() == 1 and "math" in namespace


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError("not there"), tool.NOT_TO_BE_HAD),
        (ValueError("truncated"), "\ntruncated"),
    ],
)
def test_missing_data_and_damaged_data_end_differently(error, status, monkeypatch):
    def load_images(name, folder):
        raise error

    monkeypatch.setattr(tool, "definitions", lambda path: {"load_images": load_images})
    with pytest.raises(SystemExit) as stop:
        tool.main(["--only-data"])
    assert stop.value.code == status


def test_without_the_data_everything_runs_on_copies_with_the_digits(tmp_path, monkeypatch, capfd):
    """No network and no MNIST: the notebook and images/ stay as they were, and build/ has the copy."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "kept.png").write_bytes(b"made from MNIST")
    loader = """def load_images(name, folder=""):
    if name != "digits":
        raise FileNotFoundError("no " + name)"""
    figure = """from pathlib import Path
for made in ("images", "weights"):
    Path(made, DATASET).mkdir(parents=True)"""
    source = small_notebook(
        tmp_path, "DATASET = 'MNIST'", loader, figure, "print(load_images(DATASET))"
    )
    before = source.read_bytes()
    subprocess.run([sys.executable, tmp_path / "tools" / "notebooks.py"], check=True)
    out = capfd.readouterr().out
    assert "no MNIST" in out and "MNIST COULD NOT BE HAD" in out
    assert (
        source.read_bytes() == before
        and (tmp_path / "images" / "kept.png").read_bytes() == b"made from MNIST"
    )
    assert (tmp_path / "images" / "digits").is_dir() and (
        tmp_path / "build" / "digits" / "small.ipynb"
    ).exists()


@pytest.mark.parametrize("arguments", [["--dataset", "CIFAR10"], ["Nothing.ipynb"]])
def test_bad_arguments_get_one_message(arguments):
    command = [sys.executable, ROOT / "tools" / "notebooks.py", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode != 0 and "Traceback" not in finished.stderr
    assert "CIFAR10" in finished.stderr or "Nothing.ipynb" in finished.stderr


def test_readme_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!https?:|#)(.*?)\)", README) + re.findall(r'src="(.*?)"', README)
    assert targets and all((ROOT / target).exists() for target in targets)


@each_notebook
def test_readme_shows_every_figure_and_the_notebooks_own_numbers(path):
    """In the README, a line of the section named after a notebook that looks like `name | value` is one it printed."""
    section = re.search(
        rf"^## {path.stem.replace('_', ' ')}$(.*?)(?=^## )", README, flags=re.M | re.S
    ).group(1)
    results = {}
    for line in printed(tagged(path, "results")[0]).splitlines():
        name, value = re.match(r"(.+?)  +(.+?)(?:   .*)?$", line).groups()
        results[name] = value
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", section, flags=re.M))
    rows = {name: value for name, value in rows.items() if name in results}
    assert len(rows) >= 6 and rows == {name: results[name] for name in rows}
    for figure in figures(path):
        assert f"images/{figure}.png".format(DATASET="MNIST") in README


def test_readme_names_the_lower_bounds_that_are_required():
    for package, bound in re.findall(
        r"^(\S+)>=(\S+)$", (ROOT / "requirements.txt").read_text(), flags=re.M
    ):
        assert re.search(rf"^\| {package} \| {re.escape(bound)}[.\d]* \|", README, flags=re.M), (
            package
        )
