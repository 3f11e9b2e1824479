"""The book that `make book` makes: links, formulas, folded plumbing, pictures, a phone, search, and no network.

What needs a browser is skipped where there is none (see `page` in conftest.py).
"""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, count_formulas, each_notebook

pytestmark = pytest.mark.xdist_group("book")
LEFT_OVER = """() => {
    const copy = document.querySelector("article").cloneNode(true);
    copy.querySelectorAll("code, pre, script, mjx-container").forEach(e => e.remove());
    return copy.textContent.match(/.{0,30}[$\\\\].{0,30}/g);
}"""
UNKNOWN = """() => [...document.querySelectorAll("mjx-container")]
    .map(e => e.textContent).filter(text => /\\\\[a-zA-Z]/.test(text))"""
BROKEN = """() => [...document.images].filter(e => !e.naturalWidth).map(e => e.src)"""
# The theme lets the column of text scroll, too, if something in it is too wide.
WIDTHS = """() => [document.scrollingElement, document.querySelector(".content")]
    .map(e => e.scrollWidth)"""


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
def site(html):
    handler = functools.partial(Quiet, directory=html)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def visit(site, page):
    """Opens a page of the book, and returns when its formulas are set; keeps what was asked for, what missing."""

    def visit(name):
        page.goto(f"{site}/{name}")
        page.evaluate(
            "async () => { await window.MathJax?.startup.promise; await document.fonts.ready }"
        )

    visit.asked, visit.missing = [], []
    page.on("request", lambda it: visit.asked.append(it.url))
    page.on("response", lambda it: it.status < 400 or visit.missing.append(it.url))
    return visit


def targets(page):
    """What the elements of a page point to: (name of the element, target)."""
    for element in page.select("[href], [src]"):
        yield element.name, element.get("href") or element.get("src")


def test_the_chapters_are_in_order(soup):
    links = soup["index.html"].select(".sidebar-tree a")
    docs = [f"docs/{name}.html" for name in ("answers", "questions")]
    chapters = ["Basic_VAE.html", "MADE.html", "Lagrangian_VAE.html", *docs]
    chapters += [f"benchmarks/{name}.html" for name in ("README", "choices", "constraints")]
    others = ("play/weights/README", "data/README", "CONTRIBUTING", "CHANGES")
    chapters += [f"{name}.html" for name in others]
    found = [link["href"] for link in links]
    assert [name for name in found if name in chapters] == [n for n in chapters if n in soup]
    own = {
        path.relative_to(ROOT).with_suffix(".html").as_posix() for path in ROOT.glob("docs/*.md")
    }
    assert set(found) == set(chapters) - set(docs) | own
    assert {"index.html", *found} <= set(soup)


def test_every_link_and_anchor_leads_somewhere(html, soup):
    inside = 0
    for name, page in soup.items():
        for _, target in targets(page):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = os.path.normpath(os.path.join(os.path.dirname(name), unquote(parts.path)))
            path = path if parts.path else name
            assert (html / path).is_file(), f"{name}: {target}"
            assert not path.endswith((".ipynb", ".md")), f"{name}: {target} is not a page"
            if parts.fragment:
                assert soup[path].find(id=unquote(parts.fragment)), f"{name}: {target}"
            inside += 1
    assert inside > 500
    (race,) = (a for a in soup["index.html"].select("article a") if a.text == "the race")
    assert race["href"] == "benchmarks/README.html#the-race"


def test_no_page_names_a_script_a_style_or_a_picture_elsewhere(html, soup):
    for name, page in soup.items():
        elsewhere = [it for it in targets(page) if it[0] != "a" and urlsplit(it[1]).netloc]
        assert elsewhere == [], name
        assert "require.js" not in str(page) and "cdn" not in str(page.head), name
    for style in html.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text("utf-8")), (
            style
        )


@each_notebook
def test_no_formula_is_lost(path, visit, page):
    visit(f"{path.stem}.html")
    assert page.locator("article mjx-container").count() == count_formulas(path)


@each_notebook
def test_plumbing_is_folded_until_it_is_opened(path, visit, page):
    cells = nbformat.read(path, as_version=4).cells
    folded = [c for c in cells if "hide-input" in c.metadata.get("tags", [])]
    titles = [c.source.splitlines()[0].removeprefix("# @title ").replace("`", "") for c in folded]
    visit(f"{path.stem}.html")
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


def test_every_page_is_complete_and_asks_nothing_elsewhere(soup, site, visit, page):
    visit.asked.clear()
    visit.missing.clear()
    for name in soup:
        visit(name)
        assert page.evaluate(BROKEN) == [], name
        assert page.evaluate(LEFT_OVER) is None, name
        assert page.evaluate(UNKNOWN) == [], name
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0, name
    assert any(url.endswith(".woff") for url in visit.asked)  # the formulas' own fonts
    assert [url for url in visit.asked if not url.startswith((site, "data:"))] == []
    assert [url for url in visit.missing if not url.endswith("/favicon.ico")] == []


def test_nothing_makes_a_phone_scroll_sideways(soup, visit, page):
    page.set_viewport_size({"width": 390, "height": 844})
    for name in soup:
        visit(name)
        page.evaluate("() => document.querySelectorAll('details').forEach(e => { e.open = true })")
        assert page.evaluate(WIDTHS) == [390, 390], name
    page.set_viewport_size({"width": 1280, "height": 1000})


def test_search_finds_a_word(visit, page):
    visit("search.html?q=multiplier")
    results = page.locator("#search-results .search a")
    results.first.wait_for(timeout=10_000)
    assert any("Lagrangian_VAE.html" in link.get_attribute("href") for link in results.all())
