"""The code inside a notebook, by name, without running the notebook."""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFINES = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef


def is_literal(node):
    """Whether a statement gives a name a value that is written out."""
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def is_constant(node):
    """Whether a statement computes a constant, whose name is in capitals, from what is defined."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return any(name.isupper() and len(name) > 1 for name in names)


def definitions(path):
    """Imports, constants, functions and classes of a notebook by name; nothing trains."""
    names = {"__name__": Path(path).stem}
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
        for node in ast.parse(source).body:
            if isinstance(node, DEFINES) or is_literal(node) or is_constant(node):
                exec(compile(ast.Module([node], []), str(path), "exec"), names)
    return names
