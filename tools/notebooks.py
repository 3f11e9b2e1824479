"""Run the notebooks from a shell, and reach the code inside them without running it.

    python tools/notebooks.py                        every notebook, in place, on MNIST
    python tools/notebooks.py Basic_VAE.ipynb        one of them
    python tools/notebooks.py --dataset KMNIST       copies in build/KMNIST/, figures in images/KMNIST/
    python tools/notebooks.py --quick                small copies in build/quick/, everything in a few minutes

A notebook runs in a scratch folder under build/, so a run that fails changes neither the notebook nor images/. Runs on
MNIST in place also renew images/samples.png, the three models' samples side by side.
"""

import argparse
import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
QUICK = {
    "EPOCHS": 2,
    "MANY_EPOCHS": 2,
    "COMMON_EPOCHS": 2,
    "K": 50,
}  # of these, those that a notebook has
NOT_TO_BE_HAD = 3  # exit status of --only-data
SHEETS = {
    "Basic VAE": "MNIST-VAE-latent_samples.png",
    "MADE": "MADE-samples.png",
    "Lagrangian VAE": "MNIST-lagVAE-latent_samples.png",
}  # the figures that samples.png is made of


def is_definition(node):
    """Whether a statement is an import (guarded by `try` or not), a function, a class, or a name bound to a literal."""
    if isinstance(node, ast.Try):
        return all(is_definition(child) for child in node.body)
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
        return True
    try:
        return isinstance(node, ast.Assign) and ast.literal_eval(node.value) is not ...
    except ValueError:
        return False


def definitions(path):
    """The imports, literal assignments, functions and classes of a notebook as a dictionary; nothing else runs."""
    cells = nbformat.read(path, as_version=4).cells
    nodes = [
        n
        for c in cells
        if c.cell_type == "code"
        for n in ast.parse(c.source).body
        if is_definition(n)
    ]
    namespace = {"__name__": Path(path).stem}
    exec(compile(ast.Module(nodes, []), str(path), "exec"), namespace)
    return namespace


def parameter_cell(notebook):
    """The index of the cell tagged `parameters`, and the names that it sets."""
    index = next(
        i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])
    )
    return index, {t.id for n in ast.parse(notebook.cells[index].source).body for t in n.targets}


def override(notebook, parameters):
    """Insert a cell that sets `parameters` behind the one tagged `parameters`; an unknown name is an error."""
    index, known = parameter_cell(notebook)
    if unknown := set(parameters) - known:
        raise ValueError(
            f"no such parameter: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    if parameters:
        cell = nbformat.v4.new_code_cell(
            "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        )
        cell.metadata["tags"] = ["injected-parameters"]
        notebook.cells.insert(index + 1, cell)


class Runner(NotebookClient):
    """A notebook client that shows in the terminal which cell runs and what it prints, progress bars included."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            # A log file keeps what a terminal would overwrite, so it gets the finished progress bars only.
            if sys.stdout.isatty() or not text.lstrip("\n").startswith("\r") or "100%" in text:
                print(text, end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def run(source, target, folder, parameters=None):
    """Execute the notebook `source` in `folder` and write it to `target` once all of it has run.

    Returns the kernel's peak memory in bytes, or None where there is no /proc to ask. The outputs carry no timings and
    no widget state. Raises CellExecutionError or DeadKernelError, and then `target` is as it was, and what had run is
    in `folder`.
    """
    notebook = nbformat.read(source, as_version=4)
    override(notebook, parameters or {})
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]

    def announce(cell, cell_index):
        if cell.cell_type == "code":
            above = "\n".join(
                c.source for c in notebook.cells[: cell_index + 1] if c.cell_type == "markdown"
            )
            heading = re.findall(r"^#+ (.+)$", above, flags=re.M)[-1:]
            print(
                f"[{source.stem}] cell {code.index(cell_index) + 1} of {len(code)}: {''.join(heading)}",
                flush=True,
            )

    peak = None

    def ask_peak(cell, cell_index, execute_reply):
        nonlocal peak
        with contextlib.suppress(OSError, AttributeError):
            status = Path(f"/proc/{client.km.provisioner.pid}/status").read_text()
            peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))

    client = Runner(
        notebook,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # errors only
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        on_cell_start=announce,
        on_cell_executed=ask_peak,
    )
    try:
        client.execute()
    except BaseException:
        nbformat.write(notebook, folder / source.name)
        raise
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)  # a saved page has no kernel to drive a widget
    partial = target.with_suffix(".part")
    nbformat.write(notebook, partial)
    os.replace(partial, target)
    return peak


def get_data(notebook, dataset):
    """Ask the notebook's own loader for `dataset`, which downloads what is missing; its complaint ends the program."""
    try:
        definitions(notebook)["load_images"](dataset, ROOT / "data")
    except FileNotFoundError as error:
        print(f"\n{error}\n", flush=True)
        sys.exit(NOT_TO_BE_HAD)
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error}")


def side_by_side(images):
    """Write samples.png into the folder `images`: the sheets of samples in it, side by side, those that are there."""
    from matplotlib.figure import (
        Figure,
    )  # not pyplot: the kernels to come have a backend of their own
    from matplotlib.image import imread

    sheets = {name: images / file for name, file in SHEETS.items() if (images / file).exists()}
    figure = Figure(figsize=(4 * len(sheets), 4.5), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    axes = figure.subplots(1, len(sheets), squeeze=False)
    for axis, (name, file) in zip(axes[0], sheets.items(), strict=True):
        axis.imshow(imread(file))
        axis.set_title(name, fontsize=14)
        axis.set_axis_off()
    figure.savefig(images / "samples.png", dpi=140, metadata={"Software": None})


def run_in_scratch(notebook, target, scratch, home, parameters):
    """Run `notebook` in a folder under `scratch`; once all of it has run, copy what it made to `target` and `home`."""
    folder = scratch / f"{notebook.stem}.run"
    start = time.perf_counter()
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (ROOT / "data").mkdir(exist_ok=True)
        (folder / "data").symlink_to(ROOT / "data", target_is_directory=True)
        executed = folder / notebook.name
        peak = run(notebook, executed, folder, parameters)
        minutes, seconds = divmod(time.perf_counter() - start, 60)
        for made in ("images", "weights"):
            shutil.copytree(folder / made, home / made, dirs_exist_ok=True)
        if home == target.parent == ROOT:
            side_by_side(home / "images")
        partial = target.with_suffix(".part")
        shutil.copyfile(executed, partial)
        os.replace(partial, target)
    except CellExecutionError as error:
        sys.exit(
            f"\n{notebook.name} stopped: {error.ename}: {error.evalue}\nIts outputs so far are in {folder}"
        )
    except DeadKernelError:
        sys.exit(
            f"\n{notebook.name} stopped: its kernel died, most likely because the memory ran out"
        )
    except KeyboardInterrupt:
        sys.exit(f"\n{notebook.name} was interrupted; nothing was changed")
    except OSError as error:  # shutil.Error, which names every file, is one of them
        sys.exit(
            f"\n{notebook.name} could not be run, or what it made not be copied: {error}\n"
            f"Mend that and run again. What there is so far is in {folder}"
        )
    shutil.rmtree(folder)
    memory = f", peak memory {peak / 1e9:.2f} GB" if peak else ""
    line = f"{notebook.name}: {minutes:.0f} min {seconds:.0f} s{memory}"
    with open(scratch / "runs.txt", "a") as runs:
        print(line, file=runs)
    print(f"{line}, in {os.path.relpath(target)}\n")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="the notebooks to run (default: all)"
    )
    parser.add_argument(
        "--dataset", default="MNIST", help="MNIST, FashionMNIST, KMNIST or digits (default: MNIST)"
    )
    parser.add_argument("--quick", action="store_true", help="everything, small, in build/quick/")
    parser.add_argument(
        "--only-data", action="store_true", help="get the data set and check it, then stop"
    )
    options = parser.parse_args(arguments)
    notebooks = [ROOT / n.name for n in options.notebooks] or sorted(ROOT.glob("*.ipynb"))
    if missing := [n.name for n in notebooks if not n.exists()]:
        sys.exit(f"no such notebook: {', '.join(missing)}")

    dataset = options.dataset
    if options.only_data:
        return get_data(notebooks[0], dataset)

    # In a process of its own, whose memory is free again before a notebook starts.
    command = [sys.executable, __file__, "--only-data", "--dataset", dataset, notebooks[0].name]
    status = subprocess.run(command).returncode
    if status not in (0, NOT_TO_BE_HAD):
        sys.exit(status)
    if status == NOT_TO_BE_HAD:
        banner = (
            f"{dataset} COULD NOT BE HAD: running copies on scikit-learn's bundled digits instead"
        )
        rule = "#" * len(banner)
        print(f"{rule}\n{banner}\nNothing that was made from MNIST is changed.\n{rule}")
        dataset = "digits"

    scratch = ROOT / "build" / ("quick" if options.quick else dataset)
    for notebook in notebooks:
        parameters = {"DATASET": dataset} if dataset != "MNIST" else {}
        if options.quick:
            _, known = parameter_cell(nbformat.read(notebook, as_version=4))
            parameters |= {name: QUICK[name] for name in QUICK.keys() & known}
        target = scratch / notebook.name if parameters else notebook  # in place only as it stands
        run_in_scratch(
            notebook, target, scratch, ROOT if not options.quick else scratch, parameters
        )


if __name__ == "__main__":
    main()
