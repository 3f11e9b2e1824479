"""Make an HTML book of the notebooks as they are: nothing is executed, and no network is asked.

    python tools/book.py                 in build/book/html
    python tools/book.py some/folder     in some/folder/html

The pages, and the files that they link to, are copied to a source tree that mirrors the repository, and Sphinx
reads that. README.md is the first page. Needs requirements-book.txt, and neither PyTorch nor Jupyter.
"""

import argparse
import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
PARTS = {  # of the sidebar, in its order
    "Notebooks": ["Basic_VAE.ipynb", "MADE.ipynb", "Lagrangian_VAE.ipynb"],
    "Questions and answers": ["docs/answers.md", "docs/questions.md", "docs/*.md"],
    "Records": ["benchmarks/*.md"],
    "The repository": ["play/weights/README.md", "data/README.md", "CONTRIBUTING.md", "CHANGES.md"],
}
PLAY = Path("play", "index.html")  # no page of Sphinx's
PLAY_LINK = re.compile(r"\[([^\]]+)\]\((\S*play/index\.html)\)")
LINK = re.compile(r"""(?:(?<=\]\()|(?<=src="))[^\s#)"]+""")
MATHJAX = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions", "a11y", "sre")
TITLE = "VAEs and MADE, in three notebooks"
SETTINGS = {
    "project": TITLE,
    "html_title": TITLE,
    "extensions": ["myst_nb"],
    "nb_execution_mode": "off",
    "myst_enable_extensions": ["dollarmath", "html_image"],
    "myst_dmath_double_inline": True,  # $$ within a list item, as JupyterLab reads it
    "myst_heading_anchors": 4,  # the ids that GitHub gives to headings
    "highlight_language": "none",
    "smartquotes": False,
    "mathjax_path": "mathjax/tex-chtml.js",
    "mathjax3_config": {"chtml": {"scale": 0.95}},
    "html_theme": "furo",
    "html_static_path": ["_static"],
    "html_extra_path": ["_extra"],
    "html_css_files": ["book.css"],
    "html_copy_source": False,
    "html_show_copyright": False,
}


def show_title(cell):
    """Put the title of a folded cell where a reader opens it."""
    title = re.match(r"# @title (.+)", "".join(cell["source"]))
    if title and "hide-input" in cell["metadata"].get("tags", []):
        prompts = dict.fromkeys(("code_prompt_show", "code_prompt_hide"), title[1].replace("`", ""))
        cell["metadata"]["mystnb"] = prompts


def copy_page(page, source, pages):
    """Copy a page to the source tree, and whatever else it links to; the README is called index there."""

    def follow(link):
        path = Path(os.path.normpath(page.parent / link[0]))
        if path == Path("README.md"):
            return os.path.relpath("index.md", page.parent)
        if path not in pages and (ROOT / path).is_file():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, source / path)
        return link[0]

    text = (ROOT / page).read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = LINK.sub(follow, "".join(cell["source"]))
            else:
                show_title(cell)
        text = json.dumps(notebook)
    else:
        text = PLAY_LINK.sub(r'<a href="\2">\1</a>', text)
        text = LINK.sub(follow, text)
    copy = source / ("index.md" if page == Path("README.md") else page)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text, encoding="utf-8")


def copy_play(target):
    """Copy the page to play with; its links lead to the pages of the book."""
    page = shutil.copytree(ROOT / "play", target, ignore=shutil.ignore_patterns("*.md")) / PLAY.name
    text = page.read_text(encoding="utf-8").replace("../README.md", "../index.html")
    text = text.replace(".ipynb", ".html").replace(".md", ".html")
    page.write_text(text, encoding="utf-8")


def assemble(source):
    """Write the source tree."""
    parts, pages = "", [Path("README.md")]
    for caption, patterns in PARTS.items():
        found = [path.relative_to(ROOT) for name in patterns for path in sorted(ROOT.glob(name))]
        found = [path for path in dict.fromkeys(found) if path not in pages]
        pages += found
        names = "\n".join(path.with_suffix("").as_posix() for path in found)
        if found:
            parts += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"
    for page in pages:
        copy_page(page, source, pages)
    with open(source / "index.md", "a", encoding="utf-8") as index:
        index.write(parts)

    copy_play(source / "_extra" / "play")
    static = source / "_static"
    static.mkdir()
    shutil.copyfile(Path(__file__).with_suffix(".css"), static / "book.css")
    mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    for part in MATHJAX:
        copy = shutil.copytree if (mathjax / part).is_dir() else shutil.copyfile
        (static / "mathjax" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(mathjax / part, static / "mathjax" / part)


def mend(app, name, template, context, tree):
    """A link to a picture shows it, in place of a download; who listens to a page hears what is folded."""
    for attribute in (' download=""', ' aria-label="Toggle hidden content"'):
        context["body"] = context.get("body", "").replace(attribute, "")


def build(target):
    """Make the book in the folder `target`; returns 0 if Sphinx had nothing to complain about."""
    source, html, trees = (target / name for name in ("source", "html", "doctrees"))
    for folder in (source, html, trees, target / "jupyter_execute"):
        shutil.rmtree(folder, ignore_errors=True)
    assemble(source)
    quiet = {"status": None, "warningiserror": True, "parallel": 2}
    app = Sphinx(source, None, html, trees, "html", confoverrides=SETTINGS, **quiet)
    app.connect("html-page-context", mend)
    app.build()
    return app.statuscode


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", type=Path, default=ROOT / "build" / "book")
    target = parser.parse_args().target.resolve()
    failed = build(target)
    print(f"the book: {target / 'html' / 'index.html'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
