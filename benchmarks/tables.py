"""Put the tables that are made from rows into their pages: `make tables`.

A table stands between `<!-- name -->` and `<!-- end -->`, and is made by the function of that name.
"""

import json
import math
import re
from functools import partial
from itertools import pairwise
from statistics import mean, stdev

import answers
import matplotlib.pyplot as plt
import questions
import torch
from constraints import BYTES, CASES, LONGER, METHODS, NATS_OF_A_BYTE, NEIGHBOURS, tuned
from harness import ROOT, ROWS, book, read
from masks import SHORT, SHORT_EPOCHS
from race import RACES
from scipy.interpolate import PchipInterpolator
from torchvision.utils import save_image

PAGES = [
    *(ROOT / "benchmarks" / f"{name}.md" for name in ("README", "constraints", "choices")),
    *(ROOT / "docs" / f"{name}.md" for name in ("answers", "questions")),
]


def table(rows):
    """Dictionaries with the same keys as a table in Markdown."""
    lines = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *([str(v) for v in row.values()] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NATS = ("NLL", "−ELBO", "distortion", "rate")  # columns of the race
BOOKKEEPING = ("job", "commit", "machine", "seconds", "transcribed", "seed")


def sources(rows):
    """Where rows were measured, as a line below their table; their commits stand in the rows."""
    places = dict.fromkeys(
        row.get("transcribed") or f"fourth edition, {row['machine']}" for row in rows
    )
    return f"\n\n*Measured: {'; '.join(places)}.*"


def answer(module, exercise):
    """The rows of an exercise, or of a question, in the order of its jobs."""
    jobs = [job for job in module.jobs() if job.make.__name__ == exercise]
    found = [read(module.__name__)[job.name] for job in jobs]
    several = len({job.seed for job in jobs}) > 1
    rows = []
    for row in found:
        columns = {k: v for k, v in row.items() if k not in BOOKKEEPING}
        first = next(iter(columns))
        with_seed = {first: columns[first], "seed": row["seed"]} if several else {}
        rows.append(with_seed | columns)
    return table(rows) + sources(found)


def race():
    """All recipes at the end of their time."""
    found = [row for row in read("race").values() if row["job"].startswith("race")]
    found.sort(key=lambda row: list(RACES).index(row["notebook"]))
    rows = []
    for row in found:
        seconds, nats = row["points"][-1]
        shown = {
            "notebook": row["notebook"],
            "recipe": f"{row['recipe']}, a tenth" if row["share"] < 1 else row["recipe"],
            "seconds": f"{seconds:.0f}",
            "epochs": f"{row['epochs']:.0f}",
        }
        rows.append(shown | {n: f"{nats[n]:.2f}" if n in nats else "" for n in NATS})
    return table(rows) + sources(found)


def minutes():
    """Seconds of training to so many nats."""
    found = [row for row in read("race").values() if row["job"].startswith("nats")]
    rows = [
        {
            "below": f"{math.ceil(row['NLL'])}",
            "model": row["what"],
            "seconds of training": f"{row['training']:.0f}",
            "test NLL": f"{row['NLL']:.2f}",
            "command": f'`python benchmarks/race.py "{row["job"]}"`',
            "seed": row["seed"],
        }
        for row in found
    ]
    return table(rows) + sources(found)


def controls():
    """What each change of MADE costs after five epochs, with the same seed."""
    found = [row for row in read("masks").values() if row["epochs"] == SHORT_EPOCHS]
    at = {(row["what"], row["seed"]): row for row in found}
    rows = []
    for what in sorted({row["what"] for row in found}, key=SHORT.index):
        mine = sorted((r for r in found if r["what"] == what), key=lambda row: row["seed"])
        change = [row["NLL"] - at["as it is", row["seed"]]["NLL"] for row in mine]
        before, after = (
            mean(r[f"variance {w}"] / at["as it is", r["seed"]][f"variance {w}"] for r in mine)
            for w in ("before", "after")
        )
        rows.append(
            {
                "one mask, five epochs": what.replace("1 flips", "1 flip"),
                "NLL, a seed each": ", ".join(f"{row['NLL']:.2f}" for row in mine),
                "worse by": f"{mean(change):.2f} ± {stdev(change):.2f}",
                "variance of the gradient, before": f"{before:.2f}",
                "and after": f"{after:.2f}",
            }
        )
    return table(rows) + sources(found)


def slopes():
    """Slopes between neighbouring weights, over their geometric mean, and how many lie between them."""
    found = [row for row in read("constraints").values() if row["job"].startswith("slopes")]
    rows = []
    for start, steps in sorted({(row.get("one start", False), row["steps"]) for row in found}):
        mine = [r for r in found if (r.get("one start", False), r["steps"]) == (start, steps)]
        trained = f"{steps:,} steps more, from one start" if start else f"{steps:,} steps"
        shown = {"trained for": trained, "seeds": len(mine)}
        for part in ("validation", "training"):
            pairs = [
                (low, high, slope)
                for row in mine
                for (low, high), (slope, _) in zip(pairwise(NEIGHBOURS), row[part], strict=True)
            ]
            inside = sum(low <= slope <= high for low, high, slope in pairs)
            ratios = [slope / math.sqrt(low * high) for low, high, slope in pairs]
            shown |= {
                f"between the weights, {part} images": f"{inside} of {len(pairs)}",
                f"slope / mean weight, {part}": (
                    f"{mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                ),
            }
        rows.append(shown)
    return table(rows)


def trials(method):
    """The rows of a method that were judged on test images."""
    return [row for row in read("constraints").values() if row.get("method") == method]


def excess(row):
    """By how many nats the rate of the test images exceeds what was asked."""
    return row["test rate"] - row["bytes"] * NATS_OF_A_BYTE


def above_sweep(row):
    """Nats of distortion above the sweep of weights at the same rate (between its points, a monotone curve)."""
    swept = [r for r in read("constraints").values() if "β" in r and r["case"] == row["case"]]
    points = sorted((math.log(r["test rate"]), r["test distortion"]) for r in swept)
    curve = PchipInterpolator(*zip(*points, strict=True))
    return row["test distortion"] - float(curve(math.log(row["test rate"])))


def methods():
    """All cases, bounds and seeds of a method in a row."""
    rows = []
    for method in [*METHODS, LONGER]:
        found = trials(method)
        if not found:
            continue
        over = [excess(row) for row in found]
        by_much = sum(e > 2 * row["test ±"] for e, row in zip(over, found, strict=True))
        unused = [
            -100 * e / (row["bytes"] * NATS_OF_A_BYTE) for e, row in zip(over, found, strict=True)
        ]
        rows.append(
            {
                "method": method,
                "kept": f"{sum(e <= 0 for e in over)} of {len(over)}",
                "exceeded by more than two errors": by_much,
                "worst, nats": f"{max(over):+.2f}",
                "unused where kept, %": f"{mean(u for u in unused if u >= 0):.1f}",
                "most unused, %": f"{max(unused):.0f}",
                "distortion above the sweep": f"{mean(map(above_sweep, found)):.2f}",
                "trainings": f"{mean(row['trainings'] for row in found):.1f}",
            }
        )
    return table(rows)


def multiplier():
    """The rates that the multiplier reached, and its last prices."""
    rows = []
    for case in CASES:
        for size in BYTES:
            found = [r for r in trials("multiplier") if r["case"] == case and r["bytes"] == size]
            rows.append(
                {
                    "images": case,
                    "asked: at most": f"{size * NATS_OF_A_BYTE:.2f}",
                    "margin": f"{size * NATS_OF_A_BYTE - found[0]['aim']:.2f}",
                    "rate, a seed each": ", ".join(f"{r['test rate']:.2f}" for r in found),
                    "± (images)": f"{found[0]['test ±']:.2f}",
                    "λ": ", ".join(f"{r['price']:.2f}" for r in found),
                }
            )
    return table(rows)


def tuning():
    """What was tried on MNIST with three bytes."""
    rows = [row for row in read("constraints").values() if row["job"].startswith("tuning")]
    shown = []
    for row in rows:
        chosen = row["step"] == tuned(row["rule"]) if row["step"] else True
        step = f"{row['step']:g}" if row["step"] else f"β = {row['price']:.2f}"
        shown.append(
            {
                "rule": row["rule"],
                "step": f"**{step}**" if chosen else step,
                "rate − aim": f"{row['telling rate'] - row['aim']:+.2f}",
                "trainings": row["trainings"],
            }
        )
    return table(shown)


def picture():
    """Nats that were left unused, or were too many, of every trial."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, size in zip(axes, BYTES, strict=True):
        for i, method in enumerate(METHODS):
            for case, marker in zip(CASES, "osv^", strict=True):
                over = [
                    excess(r) for r in trials(method) if (r["case"], r["bytes"]) == (case, size)
                ]
                axis.plot(
                    over,
                    [i] * len(over),
                    marker,
                    color="C0",
                    mfc="none",
                    label=case if not i else None,
                )
        axis.axvline(0, color="0.3")
        axis.set(
            title=f"{size} byte{'s' * (size > 1)}",
            xlabel="nats above what was asked",
            yticks=range(len(METHODS)),
        )
        axis.set_yticklabels(METHODS)
        axis.set_xscale("symlog", linthresh=1)
    axes[0].legend(fontsize=7)
    figure.savefig(ROOT / "benchmarks" / "constraints.png", dpi=110, metadata={"Software": None})


def transcribed(name):
    """A table of what was measured elsewhere or earlier: its rows as they were written down."""
    lines = (ROWS / "transcribed.jsonl").read_text(encoding="utf-8").splitlines()
    return table([row["row"] for row in map(json.loads, lines) if row["table"] == name])


SHEETS = {  # pictures of docs/, and the images of their rows
    "beta": {f"β = {beta:g}": f"beta {beta:g}" for beta in (0.1, 0.5, 1, 4, 16)},
    "average": {
        "sums": "average sum, sum",
        "mean, sum": "average mean over pixels, sum over dimensions",
        "means": "average mean over pixels, mean over dimensions",
    },
    "hole": {("hidden", "draw 1", "draw 2", "draw 3", "original"): "hole"},
}


def sheets():
    """Draw the images that exercises have kept, where all rows of a picture are there."""
    names = book("Basic_VAE")
    for name, rows in SHEETS.items():
        files = [answers.KEPT / f"{file}.pt" for file in rows.values()]
        if all(file.exists() for file in files):
            images = torch.cat([torch.load(file) for file in files])
            labels = [x for row in rows for x in (row if isinstance(row, tuple) else (row,))]
            names["show"](images, 10, labels=labels)
            plt.savefig(ROOT / "docs" / f"{name}.png", metadata={"Software": None})
            plt.close()


def colours():
    """Draw the samples of coloured digits that were kept, a row for each likelihood."""
    files = [answers.KEPT / f"colour {name}.pt" for name in questions.LIKELIHOODS]
    if files := [file for file in files if file.exists()]:
        images = torch.cat([torch.load(file) for file in files]).unflatten(1, (3, 28, 28))
        large = torch.nn.functional.interpolate(images, scale_factor=2)
        save_image(large, ROOT / "docs" / "colour.png", nrow=10, pad_value=0.9)


def with_tables(text):
    """A page with its tables made anew."""

    def made(found):
        rows = MADE[found[1]]() if found[1] in MADE else transcribed(found[1])
        return f"<!-- {found[1]} -->\n{rows}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", made, text, flags=re.S)


MADE = {f.__name__: f for f in (methods, multiplier, tuning, slopes, race, minutes, controls)}
for module in (answers, questions):
    MADE |= {job.make.__name__: partial(answer, module, job.make.__name__) for job in module.jobs()}

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    picture()
    sheets()
    colours()
