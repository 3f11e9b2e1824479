"""Write a part of a notebook as a module: `python tools/parts.py made > made.py`; docs/parts.md uses each."""

import builtins
import json
import re
import symtable
import sys
from ast import Import, ImportFrom, Name, parse, unparse, walk

from definitions import DEFINES, ROOT, is_constant, is_literal

PARTS = {
    "vae": ("Basic_VAE", ["VAE", "StandardNormal", "vae_terms", "encode", "decode"]),
    "training": ("Basic_VAE", ["Training", "adamw", "descend"]),
    "score": ("Basic_VAE", ["log_weights", "importance_bound", "score_by_pairs"]),
    "made": ("MADE", ["MADE", "draw_degrees", "log_p"]),
    "sampler": ("MADE", ["sample", "complete"]),
    "multiplier": ("Lagrangian_VAE", ["Multiplier"]),
    "prior": ("Lagrangian_VAE", ["Mixture"]),
    "coder": ("MADE", ["push", "pop", "push_pixels", "pop_pixels", "to_bytes"]),
}
COMPUTED = 'device = torch.device("cpu")  # or yours\ntrain_data = None  # or yours'  # by cells


def bindings(cell):
    """The definitions at the top level of a cell: pairs of a name and the lines that define it."""
    for node in parse(cell).body:
        first = min(n.lineno for n in [node, *getattr(node, "decorator_list", [])])
        source = "\n".join(cell.splitlines()[first - 1 : node.end_lineno])
        if isinstance(node, Import | ImportFrom):  # each name by itself
            start = f"from {node.module} " if isinstance(node, ImportFrom) else ""
            for a in node.names:
                yield a.asname or a.name.split(".")[0], f"{start}import {unparse(a)}"
        elif isinstance(node, DEFINES):
            yield node.name, f"\n\n{source}\n\n"
        elif is_literal(node) or is_constant(node) or cell == COMPUTED:
            yield from ((n.id, source) for t in node.targets for n in walk(t) if type(n) is Name)


def outside(table):
    """The names that code takes from outside, those of its functions' own variables left out."""
    names = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return names.union(*map(outside, table.get_children())) - set(dir(builtins))


def module(part):
    """A part as the text of a module: its imports, then its definitions in the notebook's order."""
    stem, offered = PARTS[part]
    cells = json.loads((ROOT / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = dict(pair for cell in [COMPUTED, *code] for pair in bindings(cell))
    needed = todo = set(offered)
    while todo:  # what neither a definition nor COMPUTED gives is a KeyError
        tables = [symtable.symtable(found[name], name, "exec") for name in todo]
        todo = set().union(*map(outside, tables)) - needed
        needed = needed | todo
    sources = dict.fromkeys(source for name, source in found.items() if name in needed)
    imports = [s for s in sources if s.startswith(("import ", "from "))]
    text = [f'"""{stem}.ipynb: {", ".join(offered)}."""\n', *imports, ""]
    text += [source for source in sources if source not in imports]
    return re.sub("\n{4,}", "\n\n\n", "\n".join(text)).strip()


if __name__ == "__main__":
    name = "".join(sys.argv[1:2])
    if name and name not in PARTS:
        sys.exit(f"There is no part {name}: known are {', '.join(PARTS)}.")
    rows = [f"{part:<11} {stem:<15} {', '.join(names)}" for part, (stem, names) in PARTS.items()]
    print(module(name) if name else "\n".join(rows))
