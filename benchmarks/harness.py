"""Experiments in one way: jobs that make rows, rows that are kept, tables that are made from rows.

A file of this folder lists jobs for one question and ends with `main(jobs())`. Each job is a function call that gives
one row. `python benchmarks/FILE.py TEXT` runs the jobs that have TEXT in their name and no row yet; without TEXT, all.
Rows are lines of benchmarks/rows/FILE.jsonl, with seed, commit, machine and seconds, so that a run can be interrupted
and goes on. Of two rows of a job the later counts; one that is marked `transcribed` was measured earlier or elsewhere
and written down, and its job may be run again; `--again` runs the others again, too. `--list` names jobs, and
`--processes 2 --threads 1` runs two side by side.
With DATASET=KMNIST or FashionMNIST in front, a command measures that data, in a file of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.distributions import Distribution

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "rows"
DATASET = os.environ.get("DATASET", "MNIST")
sys.path.insert(0, str(ROOT / "tools"))

from definitions import definitions  # noqa: E402

Distribution.set_default_validate_args(False)  # as the notebooks do
device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@dataclass
class Job:
    """A row to be made: make(seed=seed, **given) returns what was measured, a dictionary."""

    name: str
    make: Callable
    seed: int = 0
    given: dict = field(default_factory=dict)


def jobs_for(makers):
    """A job for each value of an argument, and each seed: {make: (argument, values, seeds or nothing)}."""
    found = []
    for make, (argument, values, *seeds) in makers.items():
        for value in values:
            for seed in seeds[0] if seeds else (0,):
                name = f"{make.__name__}, {value}" + (f", seed {seed}" if seeds else "")
                found.append(Job(name, make, seed, {argument: value}))
    return found


@cache
def images():
    """The data's three parts as the notebooks have them: pairs of images and labels."""
    return definitions(ROOT / "Basic_VAE.ipynb")["load_images"](DATASET, ROOT / "data")


def unkept(fit):
    """A notebook's fit(training, ...) as it is without `kept`: it trains, and returns the history."""

    def run(training, *arguments, **options):
        fit.__wrapped__(training, *arguments, **options)
        return training.history

    return run


def book(stem, **constants):
    """A notebook's definitions by name, with its data; nothing is kept, and constants may be others."""
    names = definitions(ROOT / f"{stem}.ipynb")
    training, (validation_images, validation_labels), (test_images, test_labels) = images()
    coins = torch.Generator().manual_seed(2026)  # as in the notebooks
    test_x, validation_x = (names["binarise"](x, coins) for x in (test_images, validation_images))
    names |= {"training": training, "train_data": [part.to(device) for part in training]}
    names |= {"validation_images": validation_images, "validation_labels": validation_labels}
    names |= {"test_images": test_images, "test_labels": test_labels, "device": device}
    names |= {"test_x": test_x.to(device), "validation_x": validation_x.to(device)}
    kept = [n for n, f in names.items() if n.startswith("fit") and hasattr(f, "__wrapped__")]
    names |= {name: unkept(names[name]) for name in kept}
    names |= constants  # in place: the functions look for these names here
    return names


def trained(model, stem):
    """The model with the weights that the last run of a notebook has kept, as weights/MNIST-….pt."""
    file = ROOT / "weights" / f"MNIST-{stem}.pt"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: run the notebook first (make)")
    model.load_state_dict(torch.load(file, map_location=device, weights_only=True)["weights"])
    return model.to(device)


def machine():
    """The processor or GPU, and how many threads it has."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    bfloat16 = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "no bfloat16"
    threads = f"{torch.get_num_threads()} threads".replace("1 threads", "1 thread")
    return f"{name}, {threads}, {bfloat16}, torch {torch.__version__}"


def commit():
    """The commit that is checked out, with a + if files were changed since."""
    said = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(said, capture_output=True, text=True).stdout.strip()


def rows_of(question):
    """The file of a question's rows."""
    return ROWS / (f"{question}.jsonl" if DATASET == "MNIST" else f"{question}-{DATASET}.jsonl")


def read(question):
    """The rows of a question by the name of their job."""
    path = rows_of(question)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["job"]: row for row in map(json.loads, lines)}


def do(job, threads, folder):
    """Run a job in a process of its own."""
    torch.set_num_threads(threads)
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)  # what notebooks write goes there
    torch.manual_seed(job.seed)
    begin = time.perf_counter()
    row = job.make(seed=job.seed, **job.given)
    seconds = round(time.perf_counter() - begin, 1)
    return row | {"seconds": row.get("seconds", seconds), "machine": machine()}


def run(question, jobs, processes=1, threads=2, again=False):
    """Run jobs that have no row yet or, if asked, all of them again, and append their rows."""
    measured = [name for name, row in read(question).items() if "transcribed" not in row]
    done = [] if again else measured
    jobs, sha = [job for job in jobs if job.name not in done], commit()
    ROWS.mkdir(exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}  # of the processes to come
    folder = ROOT / "build" / "benchmarks" / question
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = {pool.submit(do, job, threads, folder): job for job in jobs}
        for number, future in enumerate(as_completed(running), 1):
            job = running[future]
            row = {"job": job.name, "seed": job.seed, "commit": sha} | future.result()
            with rows_of(question).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"{number} of {len(jobs)}: {job.name}, {row['seconds']} s", flush=True)


def main(jobs):
    """The command line of a file of jobs."""
    question = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument(
        "text", nargs="?", default="", help="run the jobs that have this in their name"
    )
    parser.add_argument("--list", action="store_true", help="name the jobs")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()

    chosen = [job for job in jobs if asked.text in job.name]
    if asked.list:
        print("\n".join(job.name for job in chosen))
    else:
        run(question, chosen, asked.processes, asked.threads, asked.again)
