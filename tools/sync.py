"""Carry the shared cells of one notebook to the others: `make sync` or `make sync FROM=MADE.ipynb`.

    python tools/sync.py Basic_VAE.ipynb

Cells tagged `shared` have an id, which is the same in each notebook where they stand. Their source in the
others is replaced, outputs stay; run those notebooks again before they are committed.
"""

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def shared_cells(notebook):
    """The cells tagged `shared` by id."""
    return {c.id: c for c in notebook.cells if "shared" in c.metadata.get("tags", [])}


def sync(source, targets):
    """Copy shared cells from the notebook `source` to `targets`, paths; yields (target, id) of what was changed."""
    originals = shared_cells(nbformat.read(source, as_version=4))
    for target in targets:
        notebook = nbformat.read(target, as_version=4)
        copies = shared_cells(notebook)
        changed = [i for i in copies if i in originals and copies[i].source != originals[i].source]
        for i in changed:
            copies[i].source = originals[i].source
            yield target, i
        if changed:
            nbformat.write(notebook, target)


if __name__ == "__main__":
    source = ROOT / Path(sys.argv[1]).name
    for target, cell in sync(source, [path for path in ROOT.glob("*.ipynb") if path != source]):
        print(f"{target.name}: {cell}, as in {source.name}")
