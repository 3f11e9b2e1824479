"""Run the notebooks from a shell.

    python tools/run.py                        every notebook, in place, on MNIST
    python tools/run.py Basic_VAE.ipynb        one of them
    python tools/run.py --dataset KMNIST       copies in build/KMNIST/, figures in images/KMNIST/
    python tools/run.py --dataset my_images    the same, on the pictures in data/my_images/
    python tools/run.py --quick                everything, small, in build/quick/
    python tools/run.py --kept                 copies in build/kept/, with the trained models in weights/

A notebook runs in a folder under build/, so a run that fails changes neither the notebook nor images/.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
from pictures import side_by_side

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
PRODUCTS = ("images", "weights", "results")  # the folders that a notebook writes to
QUICK = {"EPOCHS": 2, "SHORT_EPOCHS": 1, "FRONT_EPOCHS": 1, "SHORT_STEPS": 100}
QUICK |= {"FIRST_EPOCHS": 1, "CODED": 50, "CLASS_EPOCHS": 1, "FORGED": 10}
QUICK["CODES"] = [10, 50, 100]
APART = {"quick": QUICK, "kept": {"TRAIN": False}}  # runs that change nothing outside of build/
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab, in JupyterLab


def select(parameters, path):
    """Those of `parameters` that the notebook has."""
    known = papermill.inspect_notebook(str(path))
    return {name: value for name, value in parameters.items() if name in known}


def cleaned(metadata):
    """What a cell's metadata keeps: its tags and, if they say that it is plumbing, that it is folded."""
    tags = metadata.get("tags", [])
    return ({"tags": tags} if tags else {}) | (FOLDED if "hide-input" in tags else {})


def run(source, target, folder, parameters):
    """Execute a notebook in `folder`; only if all of it has run, write it to `target`, without metadata or widgets."""
    bar = f"{source.stem}: {{n_fmt}} of {{total_fmt}} cells\n"
    unfinished = folder / f"unfinished-{source.name}"
    papermill.execute_notebook(
        source,
        unfinished,
        parameters,
        kernel_name="python3",
        cwd=folder,
        progress_bar={"bar_format": bar, "file": sys.stdout, "mininterval": 0},
        stdout_file=sys.stdout,
        coalesce_streams=True,  # finished progress bars only
    )
    notebook = nbformat.read(unfinished, as_version=4)
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec", "language_info")}
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(cleaned(cell.metadata))
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    nbformat.write(notebook, unfinished)
    unfinished.replace(target)


def check_writable(target, home):
    """OSError, which names the place, if what a run will make cannot be written: better before it than after."""
    existing = [target] if target.exists() else []
    for folder in map(home.joinpath, PRODUCTS):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        existing += [path for path in folder.iterdir() if path.is_file()]
    for path in existing:
        path.open("ab").close()


def run_and_keep(path, target, parameters, home):
    """Run a notebook in a folder of its own under build/, then copy what it made to `target` and `home`."""
    check_writable(target, home)
    start, folder = time.monotonic(), ROOT / "build" / f"{path.stem}.run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / "data").symlink_to(ROOT / "data", target_is_directory=True)
    if not parameters.get("TRAIN", True) and (ROOT / "weights").exists():
        shutil.copytree(ROOT / "weights", folder / "weights")
    run(path, folder / path.name, folder, parameters)
    for made in PRODUCTS:
        shutil.copytree(folder / made, home / made, dirs_exist_ok=True)
    if path == target:
        side_by_side(home / "images")
    shutil.copyfile(folder / path.name, target)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f"{path.name}: {minutes} min {seconds} s, in {target.relative_to(ROOT)}\n")
    shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", help="the notebooks to run (default: all)")
    parser.add_argument(
        "--dataset",
        default="MNIST",
        help="MNIST, FashionMNIST, KMNIST, digits, or a folder in data/",
    )
    apart = parser.add_mutually_exclusive_group()
    for name, told in (("quick", "everything, small"), ("kept", "with the models in weights/")):
        text = f"{told}, in build/{name}/"
        apart.add_argument(f"--{name}", dest="apart", action="store_const", const=name, help=text)
    options = parser.parse_args()
    paths = [ROOT / Path(name).name for name in options.notebooks] or sorted(ROOT.glob("*.ipynb"))
    if missing := [path.name for path in paths if not path.exists()]:
        sys.exit(f"no such notebook: {', '.join(missing)}")

    dataset = options.dataset
    # In a process of its own, whose memory is free again before a notebook starts.
    command = [sys.executable, ROOT / "tools" / "get_data.py", paths[0], dataset, ROOT / "data"]
    try:
        loaded = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: nothing was changed")
    if loaded.returncode:
        lines = loaded.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"{dataset} could not be read: out of memory?"
        if dataset != "MNIST":
            sys.exit(reason)
        print(
            f"{'#' * 88}\n{reason}\n\nNO MNIST: copies run on scikit-learn's digits, in build/digits."
        )
        print(f"Nothing that was made from MNIST is changed.\n{'#' * 88}")
        dataset = "digits"
    for path in paths:
        parameters = {"DATASET": dataset} if dataset != "MNIST" else {}
        parameters |= select(APART.get(options.apart, {}), path)
        copies = ROOT / "build" / (options.apart or dataset)
        target = copies / path.name if parameters or options.apart else path
        try:
            run_and_keep(path, target, parameters, copies if options.apart else ROOT)
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(
                f"\n{error or 'interrupted'}\n{path.name} stopped: neither it nor images/ were changed."
            )


if __name__ == "__main__":
    main()
