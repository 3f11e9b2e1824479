"""The evidence behind MADE.ipynb: seeds, full lengths, controls, ensembles given time, and the best model.

python benchmarks/masks.py seeds       # trains, and prints a row for each model
python benchmarks/masks.py --list      # what there is
python benchmarks/masks.py --classify  # how often plain classifiers err on the same binary images
Each model is kept in build/masks/ and not trained again. Nats are of all 10,000 validation images unless a row
says test. Set OMP_NUM_THREADS=1 to run two side by side; nats are those of any number of threads, but for rounding.
"""

import argparse
import math
import time

import torch
from benchmark import ROOT, device, prepare
from torch import nn

KEPT = ROOT / "build" / "masks"


def setting(seed=0, **constants):
    """MADE.ipynb's definitions and data, with other constants, and the names its functions look for."""
    book = prepare("MADE")
    book |= {"SEED": seed} | constants
    images, labels = book["data"]
    order = torch.arange(784)
    mean = images.float().mean(0) / 255
    names = {"train_images": images, "train_labels": labels, "train_data": book["data"]}
    names |= {"order": order, "mean": mean, "classes": 10}
    book |= names | {"degrees": book["draw_degrees"](order, mean, book["HIDDEN"])}
    book |= {"Deep": deep(book), "NoDirect": no_direct(book)}
    return book


def no_direct(book):
    """A MADE whose direct connections are all cut."""

    class NoDirect(book["MADE"]):
        def masks(self, k):
            first, hidden, last, direct = super().masks(k)
            return first, hidden, last, torch.zeros_like(direct)

    return NoDirect


def deep(book):
    """A MADE whose logits get those of a deeper masked convolution, residual blocks in the manner of PixelCNN."""

    class Visible(book["MaskedConv2d"]):
        """The same, but a place also hears of itself: what it has is of earlier pixels already."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.mask[self.mask.shape[0] // 2, self.mask.shape[1] // 2] = 1

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            half = channels // 2
            self.branch = nn.Sequential(
                nn.ReLU(), nn.Conv2d(channels, half, 1),
                nn.ReLU(), Visible(half, half, 5),
                nn.ReLU(), nn.Conv2d(half, channels, 1),
            )  # fmt: skip

        def forward(self, h):
            return h + self.branch(h)

    class Deep(book["MADE"]):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            channels = book["WIDE"]
            self.shared = nn.Sequential(
                book["MaskedConv2d"](1, channels, 9),
                *(Block(channels) for _ in range(book["DEEP"])),
                nn.ReLU(), nn.Conv2d(channels, 1, 1),
            ).to(memory_format=torch.channels_last)  # fmt: skip
            nn.init.zeros_(self.shared[-1].weight)

        def logits(self, x, k=0, c=None, weights=None):
            image = (x - self.mean).unflatten(1, (28, 28))[:, None]
            # A hundred images at a time, with their channels side by side: they stay in a CPU's cache.
            image = image.contiguous(memory_format=torch.channels_last)
            shared = torch.cat([self.shared(part) for part in image.split(100)])
            return super().logits(x, k, c, weights) + shared.flatten(1)

    return Deep


def network(
    kind="MADE", epochs=5, seed=0, masks="one", grey=True, entropy=True, distorted=0.0, **constants
):
    """Train a network from the start; returns it and the book."""
    book = setting(seed, **constants)
    order, mean, hidden = book["order"], book["mean"], book["HIDDEN"]
    orders = book["from_each_corner"]() if masks == "orderings" else [order]
    if masks == "random":
        orders = [torch.randperm(784, generator=torch.Generator().manual_seed(seed))]
    orders = orders * (book["CONNECTIVITIES"] if masks == "connectivities" else 1)
    undecided = mean if entropy else torch.full_like(mean, 0.5)
    seeds = range(len(orders)) if masks == "connectivities" else [0] * len(orders)
    degrees = [
        book["draw_degrees"](o, undecided, hidden, s) for o, s in zip(orders, seeds, strict=True)
    ]
    torch.manual_seed(seed)
    model = book[kind](torch.stack(orders), torch.stack(degrees), mean, book["BLOCKS"]).to(device)
    loss = book["expected_nll"](len(orders), grey, distorted)
    book["train"](model, loss, book["data"], epochs, book["adamw"](model, book["LEARNING_RATE"]))
    return book, model


LONG = {"epochs": 40, "distorted": 0.6}
DEEP = {
    "kind": "Deep",
    "epochs": 36,
    "distorted": 0.8,
    "HIDDEN": 512,
    "LEARNING_RATE": 4e-3,
    "WIDE": 32,
    "DEEP": 3,
}
GIVEN_TIME = {"epochs": 25, "HIDDEN": 2048, "LEARNING_RATE": 5e-3}
JOBS = {
    **{f"short, seed {s}": {"seed": s} for s in range(3)},
    **{f"short, flips, seed {s}": {"seed": s, "grey": False} for s in range(3)},
    **{f"short, uniform degrees, seed {s}": {"seed": s, "entropy": False} for s in range(3)},
    **{f"short, random ordering, seed {s}": {"seed": s, "masks": "random"} for s in range(3)},
    **{f"short, shared, seed {s}": {"seed": s, "kind": "SharedMADE"} for s in range(3)},
    **{f"short, no direct, seed {s}": {"seed": s, "kind": "NoDirect"} for s in range(3)},
    **{f"long, seed {s}": {"seed": s} | LONG for s in range(3)},
    **{f"long, random ordering, seed {s}": {"seed": s, "masks": "random"} | LONG for s in range(3)},
    **{f"long, flips, seed {s}": {"seed": s, "grey": False} | LONG for s in range(3)},
    **{f"long, uniform degrees, seed {s}": {"seed": s, "entropy": False} | LONG for s in range(3)},
    **{f"long, no direct, seed {s}": {"seed": s, "kind": "NoDirect"} | LONG for s in range(3)},
    **{f"long, not distorted, seed {s}": {"seed": s, "epochs": 40} for s in range(3)},
    "long, shared": {"kind": "SharedMADE"} | LONG,
    "deep": DEEP,
    "deep, seed 1": DEEP | {"seed": 1, "epochs": 26},
    "wide, one mask": GIVEN_TIME,
    "wide, 8 orderings": {"masks": "orderings"} | GIVEN_TIME,
    "wide, 16 connectivities": {"masks": "connectivities"} | GIVEN_TIME,
}


def load(name):
    """A model that was trained, as it was kept: the module, and its row."""
    if not (KEPT / f"{name}.pt").exists():
        row(name)
    kept = torch.load(KEPT / f"{name}.pt", weights_only=False, map_location=device)
    book = setting(**kept["constants"])
    weights = kept["state"]
    orders = weights["places"].argsort(1)
    blocks = sum(n.startswith("hidden") and n.endswith("weight") for n in weights) // 2
    arguments = (orders, weights["degrees"], weights["mean"], blocks)
    model = book[kept["kind"]](*arguments)
    model.load_state_dict(weights)
    return model.to(device), kept


def row(name):
    """Train, unless it is kept; print minutes and nats."""
    path = KEPT / f"{name}.pt"
    options = JOBS[name]
    if not path.exists():
        start = time.perf_counter()
        book, model = network(**options)
        minutes = (time.perf_counter() - start) / 60
        constants = {n: v for n, v in options.items() if n.isupper()}
        kept = {
            "kind": options.get("kind", "MADE"),
            "state": model.state_dict(),
            "minutes": minutes,
            "constants": constants,
            "threads": torch.get_num_threads(),
        }
        # Test images are for what is reported; all else is for choosing.
        tested = name.startswith(("long, seed", "long, random", "deep"))
        for part in ("validation_x", "test_x") if tested else ("validation_x",):
            kept[part] = scores(book, model, book[part])
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(kept, path)
    kept = torch.load(path, weights_only=False, map_location="cpu")
    nats = {}
    for part in ("validation_x", "test_x"):
        scored = kept.get(part, {}).items()
        nats[part] = ", ".join(f"{kind} {-v.mean():.2f}" for kind, v in scored)
    minutes, threads = kept["minutes"], kept["threads"]
    print(
        f"{name} | {minutes:.1f} min, {threads} threads | {nats['validation_x']} | {nats['test_x']}",
        flush=True,
    )
    return kept


@torch.no_grad()
def scores(book, model, x):
    """log p of images [N, D], by the mask or masks that there are: a dictionary of [N]."""
    each = torch.stack([book["log_p"](model, x, k) for k in range(len(model.places))])
    if len(each) == 1:
        return {"NLL": each[0]}
    result = {"first alone": each[0], "mixture": each.logsumexp(0) - math.log(len(each))}
    if (model.places == model.places[0]).all():
        result["conditionals averaged"] = book["averaged"](model, x, len(each))
    return result


@torch.no_grad()
def together(names, part="validation_x"):
    """The NLL of the mean of several models' conditionals: one ordering, so the mean is a model, too."""
    book = setting()
    models = [load(name)[0] for name in names]
    values = []
    for x in book[part].split(500):
        each = torch.stack([book["log_conditionals"](model, x) for model in models])
        values.append((each.logsumexp(0) - math.log(len(each))).sum(1))
    return -torch.cat(values)


def classify(name, layers, seed, epochs=20, rate=2e-3):
    """Train a classifier on images binarised afresh at each step; print its error on the binary test images."""
    book = setting(seed)
    images, labels = book["data"]
    torch.manual_seed(seed)
    model = layers().to(device)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epochs * len(images) // 500
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), device=device).split(500):
            loss = nn.functional.cross_entropy(model(book["binarise"](images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        wrong = model(book["test_x"]).argmax(1).cpu() != book["test_labels"]
    print(f"{name}, seed {seed} | {wrong.float().mean():.2%} of the test images wrong", flush=True)


CLASSIFIERS = {
    "linear": lambda: nn.Linear(784, 10),
    "a hidden layer of 1,024": lambda: nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10)
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="jobs, or the beginning of their names")
    parser.add_argument("--list", action="store_true", help="print the names of all jobs")
    parser.add_argument(
        "--together", action="store_true", help="average the conditionals of the models named"
    )
    parser.add_argument("--classify", action="store_true", help="train plain classifiers")
    parser.add_argument("--test", action="store_true", help="of the test images, once")
    options = parser.parse_args()
    if options.classify:
        for name, layers in CLASSIFIERS.items():
            for seed in range(3):
                classify(name, layers, seed)
        return
    if options.together:
        values = together(options.names, "test_x" if options.test else "validation_x")
        error = values.std() / len(values) ** 0.5
        part = "test" if options.test else "validation"
        print(
            f"{' + '.join(options.names)}, conditionals averaged: {part} {values.mean():.2f} ± {error:.2f}"
        )
        return
    for name in JOBS:
        if options.list:
            print(name)
        elif any(name.startswith(part) for part in options.names):
            row(name)


if __name__ == "__main__":
    main()
