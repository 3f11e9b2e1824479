"""The notebooks as their readers meet them: run from the menu of a real JupyterLab, and as static HTML pages.

Needs Playwright (in requirements-dev.txt) and a Chromium or Chrome of the system; skipped without. With
SCREENSHOTS=folder the pages are kept there as PNGs, to be looked at.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import notebooks as tool
import pytest
from conftest import ROOT, SMALL, code_cells, each_notebook, figures

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without windowing, JupyterLab keeps cells in the page that are out of sight.
TRACKER = '{"windowingMode": "none"}'
FINISHED = """() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
    return prompts.every(p => /^\\[\\d+\\]:$/.test(p.textContent.trim()))
        || document.querySelector(".jp-OutputArea [data-mime-type='application/vnd.jupyter.error']");
}"""
LEFT_OVER = """selector => [...document.querySelectorAll(selector)].map(cell => {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll("code, script, mjx-container, .MathJax, .MathJax_CHTML, .mjx-chtml")
        .forEach(e => e.remove());
    return copy.textContent;
}).filter(text => /[$\\\\]/.test(text))"""
UNKNOWN_COMMANDS = """() => [...document.querySelectorAll("mjx-container, .MathJax")]
    .map(e => e.textContent).filter(text => /\\\\[a-zA-Z]/.test(text))"""
# The fonts that jupyter-server-mathjax brings along.
STIX = (
    """window.MathJax = {"HTML-CSS": {availableFonts: [], webFont: "STIX-Web", imageFont: null}}"""
)
BROKEN_IMAGES = (
    """() => [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 99))"""
)


def formulas(path):
    """How many formulas the markdown of a notebook has."""
    cells = nbformat.read(path, as_version=4).cells
    markdown = [re.sub(r"`.*?`", "", c.source) for c in cells if c.cell_type == "markdown"]
    return sum(len(re.findall(r"\$\$.+?\$\$|\$.+?\$", text, flags=re.S)) for text in markdown)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    yield page
    page.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab without anyone's settings, in a folder with small copies of the notebooks: (URL, folder)."""
    home = tmp_path_factory.mktemp("lab")
    folder, settings = home / "notebooks", home / "settings"
    shutil.copytree(ROOT / "images", folder / "images")
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(TRACKER)
    for path in ROOT.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        _, known = tool.parameter_cell(notebook)
        tool.override(notebook, {name: SMALL[name] for name in SMALL.keys() & known})
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / path.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(home / "w")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=reader"]
    with open(home / "log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        server.terminate()
        server.wait()


def keep_screenshots(page, name, elements=None):
    """Keep the page as a picture, if asked to, or what the window shows with each element in sight."""
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        if elements is None:
            page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)
        for i, element in enumerate(elements.all() if elements else []):
            element.scroll_into_view_if_needed()
            page.screenshot(path=Path(folder, f"{name}-{i}.png"))


@each_notebook
def test_runs_in_jupyterlab_from_the_menu(path, lab, page):
    url, folder = lab
    page.goto(f"{url}/lab/tree/{path.name}?reset&token=reader")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    # Whatever JupyterLab asks when it starts (which kernel, say), its own proposal is right.
    page.add_locator_handler(
        page.locator(".jp-Dialog"), lambda dialog: dialog.locator(".jp-mod-accept").click()
    )
    run_all_cells(page)
    page.wait_for_function(FINISHED, timeout=180_000)
    keep_screenshots(page, f"{path.stem}-lab", page.locator(".jp-RenderedImage img"))

    for unwanted in ("error", "stderr"):
        outputs = page.locator(f"[data-mime-type='application/vnd.jupyter.{unwanted}']")
        assert outputs.all_inner_texts() == []
    assert page.locator(".jp-MarkdownOutput mjx-container").count() == formulas(path)
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert page.evaluate(LEFT_OVER, ".jp-MarkdownOutput") == []
    assert page.evaluate(UNKNOWN_COMMANDS) == []
    assert page.evaluate(BROKEN_IMAGES) == []
    assert page.locator(".jp-RenderedImage img").count() >= len(figures(path)) + 1  # and the data
    saved = {p.stem for p in (folder / "images" / "digits").iterdir()}
    assert {name.format(DATASET="digits") for name in figures(path)} <= saved

    if any("ipywidgets" in cell.source for cell in code_cells(path)):
        check_widget(page)
    page.keyboard.press("Control+s")  # or the page asks whether to leave


def run_all_cells(page):
    """Choose Run → Run All Cells; JupyterLab ignores it while the kernel is not connected, so until it shows."""
    started = (
        "[...document.querySelectorAll('.jp-InputPrompt')].some(p => /[\\d*]/.test(p.textContent))"
    )
    for _ in range(30):
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        page.wait_for_timeout(2000)
        if page.evaluate(started):
            return
    pytest.fail("the kernel did not start")


def check_widget(page):
    """The slider and both pickers change the picture."""
    picture = page.locator("img.widget-image")
    picture.scroll_into_view_if_needed()
    slider = page.locator(".widget-hslider .noUi-handle")
    pickers = page.locator(".widget-dropdown select")
    assert pickers.count() == 2
    seen = [picture.get_attribute("src")]

    def redrawn():
        page.wait_for_function(
            "old => document.querySelector('img.widget-image').src !== old", arg=seen[-1]
        )
        seen.append(picture.get_attribute("src"))

    before = slider.get_attribute("aria-valuenow")
    for _ in range(20):  # a hundredth each
        slider.press("ArrowRight")
    redrawn()
    assert slider.get_attribute("aria-valuenow") != before
    for i in (0, 1):
        pickers.nth(i).select_option(index=10 + i)
        redrawn()
    keep_screenshots(page, "widget", picture)


@each_notebook
def test_every_formula_renders_in_the_static_page(path, page, tmp_path):
    mathjax = pytest.importorskip(
        "jupyter_server_mathjax", reason="no MathJax at hand: pip install jupyter-server-mathjax"
    )
    from nbconvert import HTMLExporter

    # Its own copy, so that no network is needed; hosting sites load the same from theirs.
    script = Path(mathjax.__file__).parent / "static" / "MathJax.js"
    url = f"{script.as_uri()}?config=TeX-AMS-MML_HTMLorMML-full,Safe"
    body, _ = HTMLExporter(mathjax_url=url).from_filename(str(path))
    shutil.copytree(ROOT / "images", tmp_path / "images")
    (tmp_path / "page.html").write_text(body, encoding="utf-8")
    page.add_init_script(STIX)
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("!!window.MathJax && !!MathJax.isReady", timeout=60_000)
    page.evaluate("() => new Promise(done => MathJax.Hub.Queue(() => done()))")
    keep_screenshots(page, f"{path.stem}-html")

    assert page.evaluate("MathJax.Hub.getAllJax().length") == formulas(path)
    assert page.locator(".MathJax_Error, .merror, .mjx-merror, .mjx-error").count() == 0
    assert page.evaluate(LEFT_OVER, ".jp-RenderedMarkdown") == []
    assert page.evaluate(UNKNOWN_COMMANDS) == []
    assert page.evaluate(BROKEN_IMAGES) == []
