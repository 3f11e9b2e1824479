"""A visit of JupyterLab, where Basic_VAE runs from the menu, and one of the book that `make book` makes.

Needs Playwright (in requirements-dev.txt) and a Chromium or Chrome of the system; what does is skipped without.
"""

import functools
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import unquote, urlsplit

import nbformat
import papermill
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, SCREEN, SMALL, each_notebook, is_folded, values
from run import select

STEMS = "Basic_VAE", "MADE", "Lagrangian_VAE"
BASIC = ROOT / "Basic_VAE.ipynb"
FINISHED = """() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputArea .jp-InputPrompt")];
    return prompts.every(p => /^\\[\\d+\\]:$/.test(p.textContent.trim()))
        || document.querySelector(".jp-OutputArea [data-mime-type='application/vnd.jupyter.error']");
}"""
STARTED = "() => [...document.querySelectorAll('.jp-InputPrompt')].some(p => /[\\d*]/.test(p.textContent))"
LEFT_OVER = """selector => [...document.querySelectorAll(selector)].flatMap(part => {
    const copy = part.cloneNode(true);
    copy.querySelectorAll("code, pre, script, mjx-container").forEach(e => e.remove());
    return copy.textContent.match(/.{0,30}[$\\\\].{0,30}/g) || [];
})"""
UNKNOWN = """() => [...document.querySelectorAll("mjx-container")]
    .map(e => e.textContent).filter(text => /\\\\[a-zA-Z]/.test(text))"""
BROKEN = """() => [...document.images].filter(e => !e.naturalWidth).map(e => e.src)"""
# The theme lets the column of text scroll, too, if something in it is too wide.
WIDTHS = """() => [document.scrollingElement, document.querySelector(".content")]
    .map(e => e.scrollWidth)"""
PHONE = {"width": 390, "height": 844}


def count_formulas(path):
    """How many formulas stand in the markdown of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    markdown = [re.sub(r"`.*?`", "", c.source) for c in cells if c.cell_type == "markdown"]
    return sum(len(re.findall(r"\$\$.+?\$\$|\$.+?\$", text, flags=re.S)) for text in markdown)


def assert_formulas_are_set(page, selector):
    """No formula is left as text, has an error, or holds a command that MathJax does not know."""
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert page.evaluate(LEFT_OVER, selector) == page.evaluate(UNKNOWN) == []


# JupyterLab.


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole):
    """A small copy of Basic_VAE without outputs, and the weights that its whole run left."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(ROOT / "images", folder / "images")
    shutil.copytree(whole("Basic_VAE").folder / "weights", folder / "weights")
    small = select(SMALL | {"TRAIN": False}, BASIC)
    notebook = papermill.execute_notebook(BASIC, None, small, prepare_only=True)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / BASIC.name)
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


def test_in_jupyterlab_basic_vae_reads_well_runs_from_the_menu_and_its_widget_redraws(
    whole, folder, lab, page
):
    """With the weights of its whole run, on the pretended GPU: the numbers are the same, and nothing trains."""
    playwright = pytest.importorskip("playwright.sync_api")
    # Whatever JupyterLab asks when it starts (which kernel, say), its own proposal is right.
    dialog = page.locator(".jp-Dialog")
    page.add_locator_handler(dialog, lambda it: it.locator(".jp-mod-accept").click())
    page.goto(f"{lab}/{BASIC.name}?reset&token=reader")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    formulas = page.locator(".jp-MarkdownOutput mjx-container")
    playwright.expect(formulas).to_have_count(count_formulas(BASIC), timeout=30_000)
    assert_formulas_are_set(page, ".jp-MarkdownOutput")

    page.wait_for_selector(".jp-InputPlaceholder", timeout=30_000)
    cells = nbformat.read(BASIC, as_version=4).cells
    folded = [i for i, c in enumerate(cells) if is_folded(c)]
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
    runs = whole("Basic_VAE").folder, folder
    trained, again = (values("Basic_VAE", it / "results" / "digits") for it in runs)
    assert again == pytest.approx(trained, abs=2e-3)

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


# The book.


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The folder of a book, made afresh; Sphinx's warnings are errors."""
    target = tmp_path_factory.mktemp("book")
    command = [sys.executable, ROOT / "tools" / "book.py", target]
    made = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert made.returncode == 0, made.stderr
    return target / "html"


@pytest.fixture(scope="module")
def soup(html):
    """The pages, parsed, by their path in the book."""
    paths = [path.relative_to(html) for path in html.rglob("*.html")]
    return {
        path.as_posix(): BeautifulSoup((html / path).read_text("utf-8"), "html.parser")
        for path in paths
    }


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def visit(html, page):
    """Opens a page of the book, and returns when its formulas are set; keeps what was asked for, what missing."""

    def visit(name):
        page.goto(f"{visit.site}/{name}")
        page.evaluate(
            "async () => { await window.MathJax?.startup.promise; await document.fonts.ready }"
        )

    visit.asked, visit.missing = [], []
    page.on("request", lambda it: visit.asked.append(it.url))
    page.on("response", lambda it: it.status < 400 or visit.missing.append(it.url))
    handler = functools.partial(Quiet, directory=html)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visit.site = f"http://127.0.0.1:{server.server_port}"
        yield visit
        server.shutdown()


def test_the_chapters_are_in_order(soup):
    found = [link["href"] for link in soup["index.html"].select(".sidebar-tree a")]
    assert found[:4] == [f"{stem}.html" for stem in STEMS] + ["docs/answers.html"]
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), ROOT / "CONTRIBUTING.md"]
    names = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in pages}
    assert names <= set(found) <= set(soup)


def test_every_link_and_anchor_leads_somewhere(html, soup):
    anchors = {name: {it["id"] for it in page.select("[id]")} for name, page in soup.items()}
    inside = 0
    for name, page in soup.items():
        for element in page.select("[href], [src]"):
            target = element.get("href") or element.get("src")
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = os.path.normpath(os.path.join(os.path.dirname(name), unquote(parts.path)))
            path = path if parts.path else name
            assert (html / path).is_file(), f"{name}: {target}"
            assert not path.endswith((".ipynb", ".md")), f"{name}: {target} is not a page"
            assert not parts.fragment or unquote(parts.fragment) in anchors[path], (name, target)
            inside += 1
    assert inside > 500
    (race,) = (a for a in soup["index.html"].select("article a") if a.text == "a race")
    assert race["href"] == "benchmarks/README.html#the-race"


@each_notebook
def test_in_the_book_no_formula_is_lost_and_plumbing_is_folded_until_it_is_opened(
    path, visit, page
):
    folded = [c for c in nbformat.read(path, as_version=4).cells if is_folded(c)]
    titles = [c.source.splitlines()[0].removeprefix("# @title ").replace("`", "") for c in folded]
    visit(f"{path.stem}.html")
    assert page.locator("article mjx-container").count() == count_formulas(path)
    details = page.locator("article details")
    assert page.locator("article details[open]").count() == 0
    assert [text.strip() for text in details.locator("summary").all_inner_texts()] == titles

    (plumbing,) = (i for i, c in enumerate(folded) if "def load_images" in c.source)
    code = details.nth(plumbing).locator("pre")
    assert not code.is_visible()
    details.nth(plumbing).locator("summary").click()
    assert code.is_visible() and code.inner_text().strip() == folded[plumbing].source.strip()

    shown = page.locator(".cell:has(details) > .cell_output")
    assert shown.count() == sum(bool(c.outputs) for c in folded) > 0
    assert all(output.is_visible() for output in shown.all())


def test_every_page_is_complete_asks_nothing_elsewhere_and_fits_a_phone(soup, visit, page):
    visit.asked.clear()
    visit.missing.clear()
    for name in soup:
        visit(name)
        assert page.evaluate(BROKEN) == [], name
        assert_formulas_are_set(page, "article")
        page.set_viewport_size(PHONE)
        page.evaluate("() => document.querySelectorAll('details').forEach(e => { e.open = true })")
        assert page.evaluate(WIDTHS) == [390, 390], name
        page.set_viewport_size(SCREEN)
    assert any(url.endswith(".woff") for url in visit.asked)  # the formulas' own fonts
    assert [url for url in visit.asked if not url.startswith((visit.site, "data:"))] == []
    assert [url for url in visit.missing if not url.endswith("/favicon.ico")] == []


def test_search_finds_a_word(visit, page):
    visit("search.html?q=multiplier")
    found = page.locator("#search-results .search a")
    found.first.wait_for(timeout=10_000)
    assert any("Lagrangian_VAE.html" in link.get_attribute("href") for link in found.all())
