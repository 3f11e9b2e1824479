"""The notebooks as documents, the notebooks run, and the README against both."""

import ast
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import nbformat
import notebooks as tool
import pytest
from conftest import NOTEBOOKS, ROOT, SMALL, code_cells, each_notebook, figures
from nbclient.exceptions import CellExecutionError

document = pytest.mark.document  # reads files, and runs nothing
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tagged(path, tag):
    return [c for c in code_cells(path) if tag in c.metadata.get("tags", [])]


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def results(path, cell=-1):
    """The table that a notebook printed at its end, or in one of several such cells: name to value."""
    lines = printed(tagged(path, "results")[cell]).splitlines()
    return dict(re.match(r"(.+?)  +(\S.*?)(?:   |$)", line).groups() for line in lines)


@document
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
    assert path.stat().st_size < 1.5e6
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.outputs)


@document
@each_notebook
def test_progress_bars_are_finished(path):
    bars = re.findall(r"\d+%\|.*", "\n".join(printed(c) for c in code_cells(path)))
    assert bars and all(bar.startswith("100%") for bar in bars)


@document
@each_notebook
def test_is_a_plain_python_program_without_long_cells(path):
    for cell in code_cells(path):
        ast.parse(cell.source)
        assert len(cell.source.splitlines()) <= 60


@document
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


@document
def test_shared_cells_are_equal_in_all_notebooks():
    """Copies, so that each notebook is complete in itself; they must not drift apart."""
    first, *others = [[c.source for c in tagged(path, "shared")] for path in NOTEBOOKS]
    assert first and others and all(other == first for other in others)


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


def tracked_state():
    """What git says of the working tree, and the bytes of every file under images/."""
    if not (ROOT / ".git").exists():
        status = ""
    else:
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True
        ).stdout
    return status, {p: p.read_bytes() for p in (ROOT / "images").rglob("*") if p.is_file()}


def small_parameters(path, **others):
    _, known = tool.parameter_cell(nbformat.read(path, as_version=4))
    parameters = SMALL | others
    return {name: parameters[name] for name in parameters.keys() & known}


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """`small_run(path)` is the folder in which a copy of the notebook ran alone, small; it runs once."""
    folders = {}

    def get(path):
        if path not in folders:
            folders[path] = folder = tmp_path_factory.mktemp(path.stem)
            alone = shutil.copy(path, folder)
            tool.run(Path(alone), Path(alone), folder, small_parameters(path))
        return folders[path]

    return get


@each_notebook
def test_runs_whole_copied_alone_into_an_empty_folder(path, small_run):
    before = tracked_state()
    folder = small_run(path)
    cells = code_cells(folder / path.name)
    assert all(c.execution_count for c in cells)
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]
    assert re.search(r"^test NLL, .*? +\d+\.\d+ +nats", printed(cells[-1]), flags=re.M)
    saved = sorted(p.name for p in (folder / "images" / "digits").iterdir())
    assert saved and saved == sorted(
        f"{name}.png".format(DATASET="digits") for name in figures(path)
    )
    for name in saved:
        assert matplotlib.image.imread(folder / "images" / "digits" / name).std() > 0.01
    assert not (folder / "data").exists()
    assert tracked_state() == before


@each_notebook
def test_every_cell_run_twice_gives_the_numbers_of_a_single_run(path, small_run, tmp_path):
    """So the seed decides the numbers, and running a cell again changes none that a later one prints."""
    notebook = nbformat.read(path, as_version=4)
    tool.override(notebook, small_parameters(path))
    cells, notebook.cells = notebook.cells, []
    for cell in cells:
        for i in range(1 + (cell.cell_type == "code")):
            notebook.cells.append(nbformat.from_dict(cell | {"id": f"{i}-{cell.id}"}))
    twice = tmp_path / path.name
    nbformat.write(notebook, twice)
    tool.run(twice, twice, tmp_path)
    expected, *runs = results(small_run(path) / path.name), results(twice, 0), results(twice, 1)
    for values in (expected, *runs):
        values.pop("100 samples, naive / each unit once", None)  # a running time
    assert runs == [expected, expected]


@each_notebook
def test_an_interrupted_kernel_leaves_usable_models(path, tmp_path, monkeypatch):
    """Kernel → Interrupt in the third epoch of each training; all cells below run."""

    class Interrupter(tool.Runner):
        in_training = False

        def process_message(self, msg, cell, cell_index):
            text = msg["content"].get("text", "") if msg["msg_type"] == "stream" else ""
            if re.search(r"\| 0/\d+ \[", text) and "step" in text:
                self.in_training = True
            elif self.in_training and "epoch 2, validation" in text:
                self.in_training = False
                self.km.provisioner.process.send_signal(signal.SIGINT)
            return super().process_message(msg, cell, cell_index)

    monkeypatch.setattr(tool, "Runner", Interrupter)
    forever = {name: 100_000 for name in ("EPOCHS", "MANY_EPOCHS", "COMMON_EPOCHS")}
    tool.run(path, tmp_path / path.name, tmp_path, small_parameters(path, **forever))
    text = "".join(printed(c) for c in code_cells(tmp_path / path.name))
    trainings = {"Basic_VAE": 1, "MADE": 2, "Lagrangian_VAE": 4}[path.stem]
    assert len(re.findall(r"interrupted in epoch \d+ of 100000: the model", text)) == trainings
    assert re.search(r"^test NLL, .*? +\d+\.\d+ +nats", text, flags=re.M)


def score_again(path, folder):
    """(name of a result, its value from the weights that a small run saved in `folder`)."""
    book = tool.definitions(path)
    torch = book["torch"]
    *_, (images, _) = book["load_images"]("digits")
    x = book["binarise"](images, torch.Generator().manual_seed(2026))

    def load(name):
        return torch.load(folder / "weights" / name, map_location="cpu", weights_only=True)

    if path.stem == "MADE":
        saved = load("digits-MADE.pt")["single"]
        model = book["MADE"](**saved["arguments"])
        model.load_state_dict(saved["weights"])
        return "test NLL, 16 connectivities", -book["score"](model, x)[2][-1].mean().item()
    model = book["VAE"](book["LATENT_DIM"], SMALL["HIDDEN"])
    K = SMALL["K"]
    if path.stem == "Basic_VAE":
        name, weights, densities = f"test NLL, K = {K}", "digits-VAE.pt", []
    else:
        name, weights = f"test NLL, plain VAE, K = {K}", "digits-lagVAE-plain-VAE.pt"
        densities = [[book["log_prior"]]]
    model.load_state_dict(load(weights))
    torch.manual_seed(book["SEED"])
    log_w = book["log_weights"](model, x, K, *densities, rows=2000)
    return name, -book["importance_bound"](log_w.view(len(x), K), K).mean().item()


@each_notebook
def test_weights_of_a_run_load_again_and_score_the_same(path, small_run):
    folder = small_run(path)
    name, value = score_again(path, folder)
    assert float(results(folder / path.name)[name]) == pytest.approx(value, abs=0.0051)


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


@pytest.mark.parametrize("blocked", ["build", "images"])
def test_a_folder_that_cannot_be_written_gets_one_message(blocked, tmp_path):
    """A file in the place of the folder: no one may write into it, not even root."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    loader = "def load_images(name, folder):\n    pass"
    figure = "from pathlib import Path\nPath('images').mkdir()\nPath('weights').mkdir()"
    source = small_notebook(tmp_path, "DATASET = 'MNIST'", loader, figure)
    before = source.read_bytes()
    (tmp_path / blocked).touch()
    command = [sys.executable, tmp_path / "tools" / "notebooks.py"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode != 0 and "Traceback" not in finished.stderr
    assert f"{tmp_path / blocked}" in finished.stderr and "Mend that" in finished.stderr
    assert source.read_bytes() == before


@pytest.mark.parametrize("arguments", [["--dataset", "CIFAR10"], ["Nothing.ipynb"]])
def test_bad_arguments_get_one_message(arguments):
    command = [sys.executable, ROOT / "tools" / "notebooks.py", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode != 0 and "Traceback" not in finished.stderr
    assert "CIFAR10" in finished.stderr or "Nothing.ipynb" in finished.stderr


@document
def test_readme_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!https?:|#)(.*?)\)", README) + re.findall(r'src="(.*?)"', README)
    assert targets and all((ROOT / target).exists() for target in targets)


@document
@each_notebook
def test_readme_shows_every_figure_and_the_notebooks_own_numbers(path):
    """In the README, a line of the section named after a notebook that looks like `name | value` is one it printed."""
    section = re.search(
        rf"^## {path.stem.replace('_', ' ')}$(.*?)(?=^## )", README, flags=re.M | re.S
    ).group(1)
    printed_results = results(path)
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", section, flags=re.M))
    rows = {name: value for name, value in rows.items() if name in printed_results}
    assert len(rows) >= 6 and rows == {name: printed_results[name] for name in rows}
    for figure in figures(path):
        assert f"images/{figure}.png".format(DATASET="MNIST") in README


@document
def test_readme_names_the_lower_bounds_that_are_required():
    for package, bound in re.findall(
        r"^(\S+)>=(\S+)$", (ROOT / "requirements.txt").read_text(), flags=re.M
    ):
        assert re.search(rf"^\| {package} \| {re.escape(bound)}[.\d]* \|", README, flags=re.M), (
            package
        )


YARDSTICK = {
    "MADE, one ordering, 16 connectivities": ("MADE", ["test NLL, 16 connectivities"]),
    "MADE, mixture of eight orderings": ("MADE", ["test NLL, mixture of 8 orderings"]),
    "Basic VAE": ("Basic_VAE", ["test NLL, K = 1000", "test -ELBO"]),
    "Lagrangian VAE, no constraints": (
        "Lagrangian_VAE",
        ["test NLL, plain VAE, K = 100", "test -ELBO, plain VAE"],
    ),
    "Lagrangian VAE, most information, fitted density": (
        "Lagrangian_VAE",
        ["test NLL, mixture, K = 100"],
    ),
    "Lagrangian VAE, most information": (
        "Lagrangian_VAE",
        ["test NLL, prior, K = 100", "test -ELBO, most information"],
    ),
}  # the README's bold rows, and which results they show


@document
def test_readme_compares_the_notebooks_own_numbers():
    section = re.search(r"^## One yardstick$(.*?)(?=^## )", README, flags=re.M | re.S).group(1)
    rows = re.findall(r"^\| \*\*(.+?)\*\* \(\[notebook\]\((.+?)\)\) (.*)$", section, flags=re.M)
    assert sorted(label for label, *_ in rows) == sorted(YARDSTICK)
    for label, link, rest in rows:
        stem, names = YARDSTICK[label]
        values = results(ROOT / f"{stem}.ipynb")
        assert link == f"{stem}.ipynb"
        assert re.findall(r"\*\*(\S+?)\*\*", rest) == [values[name] for name in names], label
    nlls = [float(n) for n in re.findall(r"^\| [^|]+ \| \**(\d+\.\d+)\** \|", section, flags=re.M)]
    assert len(nlls) >= 10 and nlls == sorted(nlls), "best first"


PUBLISHED = {
    *("81.45", "83.8", "84.78", "84.87", "86.35", "86.64", "86.76", "88.04"),
    *("88.0", "90.8", "35.6", "25.7"),  # read off a figure of Zhao et al. 2018
}  # nats per image, see the references beside each


@document
def test_every_number_in_the_readme_has_a_source():
    """A number with a decimal point, and a running time, is published or printed by a notebook or a benchmark."""
    text = README.split("## Tested versions")[0]
    text = re.sub(r"\]\(.*?\)|`.*?`|Python \S+", "", text)
    sources = "".join(printed(cell) for path in NOTEBOOKS for cell in code_cells(path))
    sources += "".join(tagged(path, "parameters")[0].source for path in NOTEBOOKS)
    benchmarks = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    known = PUBLISHED | set(re.findall(r"\d+\.\d+(?:e-\d+)?", sources + benchmarks))
    assert set(re.findall(r"\d+\.\d+(?:e-\d+)?", text)) <= known
    times = r"\d+ min \d+ s"
    assert set(re.findall(times, text)) <= set(re.findall(times, benchmarks))


@document
def test_the_picture_of_all_samples_shows_what_the_notebooks_saved(tmp_path):
    for file in tool.SHEETS.values():
        shutil.copy(ROOT / "images" / file, tmp_path)
    tool.side_by_side(tmp_path)
    committed, made = (
        matplotlib.image.imread(folder / "samples.png") for folder in (ROOT / "images", tmp_path)
    )
    assert committed.shape == made.shape == (630, 1680, 4)
    # Versions of matplotlib resample differently, pixel by pixel; in blocks of 10 × 10 that averages out.
    a, b = (picture.reshape(63, 10, 168, 10, 4).mean((1, 3)) for picture in (committed, made))
    assert abs(a - b).mean() < 0.015  # another sheet in place of one of the three: 0.022
