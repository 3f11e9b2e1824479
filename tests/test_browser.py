"""The notebooks in a real JupyterLab: formulas, folded plumbing, and Basic_VAE run from the menu.

Needs Playwright (in requirements-dev.txt) and a Chromium or Chrome of the system; skipped without.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from conftest import NOTEBOOKS, ROOT, SMALL, count_formulas, each_notebook, results
from run import select

pytestmark = pytest.mark.xdist_group("kernels")
FINISHED = """() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputArea .jp-InputPrompt")];
    return prompts.every(p => /^\\[\\d+\\]:$/.test(p.textContent.trim()))
        || document.querySelector(".jp-OutputArea [data-mime-type='application/vnd.jupyter.error']");
}"""
LEFT_OVER = """() => [...document.querySelectorAll(".jp-MarkdownOutput")].map(cell => {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll("code, script, mjx-container").forEach(e => e.remove());
    return copy.textContent;
}).filter(text => /[$\\\\]/.test(text))"""
UNKNOWN = """() => [...document.querySelectorAll("mjx-container")]
    .map(e => e.textContent).filter(text => /\\\\[a-zA-Z]/.test(text))"""
STARTED = "() => [...document.querySelectorAll('.jp-InputPrompt')].some(p => /[\\d*]/.test(p.textContent))"


@pytest.fixture(scope="module")
def page(page):
    # Whatever JupyterLab asks when it starts (which kernel, say), its own proposal is right.
    dialog = page.locator(".jp-Dialog")
    page.add_locator_handler(dialog, lambda it: it.locator(".jp-mod-accept").click())
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory, basic_run):
    """Small copies of the notebooks without outputs, and the weights that a run of Basic_VAE left."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(ROOT / "images", folder / "images")
    shutil.copytree(basic_run / "weights", folder / "weights")
    for path in NOTEBOOKS:
        copy, small = folder / path.name, select(SMALL | {"TRAIN": False}, path)
        papermill.execute_notebook(path, copy, small, prepare_only=True)
        notebook = nbformat.read(copy, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, copy)
    return folder


@pytest.fixture(scope="module")
def lab(page, tmp_path_factory, folder):
    """The URL of a JupyterLab without anyone's settings."""
    home = tmp_path_factory.mktemp("lab")
    settings = home / "settings"
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')  # keeps cells in the page that are out of sight
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(home / "w")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=reader"]
    with open(home / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree"
    finally:
        server.terminate()
        server.wait()


@each_notebook
def test_every_formula_renders_and_plumbing_is_folded_until_it_is_opened(path, lab, page):
    playwright = pytest.importorskip("playwright.sync_api")
    formulas = count_formulas(path)
    page.goto(f"{lab}/{path.name}?reset&token=reader")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    rendered = ".jp-MarkdownOutput mjx-container"
    all_of_them = f"() => document.querySelectorAll('{rendered}').length >= {formulas}"
    page.wait_for_function(all_of_them, timeout=30_000)
    assert page.locator(rendered).count() == formulas
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert page.evaluate(LEFT_OVER) == page.evaluate(UNKNOWN) == []

    page.wait_for_selector(".jp-InputPlaceholder", timeout=30_000)
    cells = nbformat.read(path, as_version=4).cells
    folded = [i for i, c in enumerate(cells) if "hide-input" in c.metadata.get("tags", [])]
    placeholders = page.locator(".jp-InputPlaceholder")
    assert placeholders.count() == len(folded)
    text = page.locator(".jp-Notebook").inner_text()
    assert "def load_images" not in text and "def binarise" in text

    (plumbing,) = [i for i in folded if "def load_images" in cells[i].source]
    cell = page.locator(".jp-Notebook .jp-Cell").nth(plumbing + 1)  # one more: the small parameters
    cell.locator(".jp-InputPlaceholder").click()
    cell.scroll_into_view_if_needed()
    playwright.expect(cell).to_contain_text("def load_images")
    assert placeholders.count() == len(folded) - 1


def test_runs_from_the_menu_with_what_is_kept_and_the_widget_redraws(basic_run, folder, lab, page):
    page.goto(f"{lab}/Basic_VAE.ipynb?reset&token=reader")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    for _ in range(30):  # JupyterLab ignores the menu while the kernel is not connected
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        page.wait_for_timeout(2000)
        if page.evaluate(STARTED):
            break
    page.wait_for_function(FINISHED, timeout=180_000)
    for unwanted in ("error", "stderr"):
        outputs = page.locator(f"[data-mime-type='application/vnd.jupyter.{unwanted}']")
        assert outputs.all_inner_texts() == []
    kept = page.locator(".jp-OutputArea", has_text=re.compile(r"weights/.*trained on"))
    assert kept.count() > 0 and page.locator("text=trained anew").count() == 0
    whole, again = (results("Basic_VAE", it / "results" / "digits") for it in (basic_run, folder))
    assert again == whole

    redrawn = """old => {
        const picture = document.querySelector(".widget-interact .jp-RenderedImage img");
        return picture && picture.src !== old && picture.src;
    }"""
    slider, pickers = (page.locator(f".widget-interact {x}") for x in (".noUi-handle", "select"))
    src = page.wait_for_function(redrawn, arg="").json_value()
    for act in (
        lambda: slider.press("ArrowRight"),
        lambda: pickers.nth(0).select_option(index=1),
        lambda: pickers.nth(1).select_option(index=2),
    ):
        act()
        src = page.wait_for_function(redrawn, arg=src).json_value()
    page.keyboard.press("Control+s")  # or the page asks whether to leave
