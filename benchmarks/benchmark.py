"""Nats after the same seconds, ours and other people's recipes, and how cost grows: `make bench`.

    python benchmarks/benchmark.py                     the race
    python benchmarks/benchmark.py --growth            ours, with other epochs, widths and numbers of images
    python benchmarks/benchmark.py --only NAME --seconds 3600    one recipe for so long

Each training is a process of its own, one at a time, with seed 0, on the same 50,000 images; its watch stops while the
model is scored. Ours are the notebooks' own functions. The recipes are written anew, with their authors' networks,
optimisers and batch sizes, on images binarised afresh at each step; each runs in float32, as it was written, and under
autocast, as ours do. NLL of a VAE: K = 100, 2,000 random images; all else is of all 10,000. GFLOP/s count the matrix
products of our training steps.
"""

import argparse
import copy
import math
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import linear, relu
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms
from torchvision.ops import MLP

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from definitions import definitions  # noqa: E402

device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
EDITION = "d2c17af"  # the commit whose notebooks these programs measure: the third edition
COUNTED = 10  # steps whose operations are counted: each tenth of a training has one


class Watch:
    """Seconds of training and, at times in a constant ratio and in the end, the nats of the model."""

    def __init__(self, score, limit, ratio):
        self.score, self.limit, self.ratio, self.due = score, limit, ratio, 2.0
        self.spent, self.epochs, self.operations, self.points = 0.0, 0, 0, []

    def go(self):
        torch.accelerator.synchronize() if device.type != "cpu" else None  # queued work counts
        self.start = time.perf_counter()

    def __call__(self, model, last=False):
        """Look at the watch after a step or an epoch: is the time over?"""
        before = self.start
        self.go()
        self.spent += self.start - before
        if last or self.spent >= self.due:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.points.append((self.spent, self.score(model)))
            self.due = self.ratio * self.spent
            self.go()
        return self.spent >= self.limit


def train(book, watch, model, loss, epochs, optimizer, **options):
    """The notebook's own loop."""
    data, size = book["data"], book["BATCH_SIZE"]
    book["train"](
        model,
        loss,
        data,
        epochs,
        optimizer,
        measure=lambda model: {"over": watch(model)},
        **options,
    )
    watch(model)
    with FlopCounterMode(display=False) as counter:
        for step in range(COUNTED):
            loss(
                model, book["Batch"](*(part[:size] for part in data), step, COUNTED)
            ).mean().backward()
    steps = epochs * len(data[0]) // size
    watch.operations += counter.get_total_flops() * steps // COUNTED
    watch.epochs += epochs
    watch.go()
    return model


def basic_vae(book, watch):
    model = book["VAE"](book["LATENT_DIM"], book["ENCODER"], book["DECODER"]).to(device)
    loss, optimizer = book["weighted_at_the_end"], book["adamw"](model)
    return train(book, watch, model, loss, book["EPOCHS"], optimizer)


def made(book, watch):
    order, mean = torch.arange(784), book["data"][0].float().mean(0) / 255
    degrees = book["draw_degrees"](order, mean, book["HIDDEN"])
    model = book["MADE"](order[None], degrees[None], mean, book["BLOCKS"]).to(device)
    loss = book["expected_nll"](distorted=book["DISTORTED"])
    return train(book, watch, model, loss, book["EPOCHS"], book["adamw"](model))


def lagrangian_vae(book, watch):
    """The plain model, then the one with maximal information."""
    prior = book["Mixture"](book["LATENT_DIM"], book["COMPONENTS"])
    model = book["VAE"](book["LATENT_DIM"], book["ENCODER"], book["DECODER"], prior).to(device)
    train(
        book,
        watch,
        model,
        book["negative_elbo"],
        book["EPOCHS"],
        book["adamw"](model, book["LEARNING_RATE"]),
    )
    multiplier = book["Multiplier"](book["EPSILON"] - book["MARGIN"])
    loss = book["constrained"]("distortion", multiplier, copy.deepcopy(model))
    optimizer, final = book["adamw"](model, book["GOING_RATE"]), book["GOING_FINAL"]
    return train(book, watch, model, loss, book["CONSTRAINED_EPOCHS"], optimizer, final=final)


def follow(book, watch, model, loss, batch_size, workers, *optimizers):
    """The recipes' loop, over images in memory or, if there is a number of workers, files behind a DataLoader."""
    images = book["data"][0].float() / 255
    mnist = datasets.MNIST(ROOT / "data", transform=transforms.ToTensor())
    rows = Subset(mnist, range(len(images)))
    loader = DataLoader(rows, batch_size, shuffle=True, num_workers=workers or 0)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=book["has_bfloat16"]())
    watch.go()
    while True:
        rows = torch.randperm(len(images), device=device).split(batch_size)
        for batch in rows if workers is None else loader:
            x = images[batch] if workers is None else batch[0].flatten(1).to(device)
            with cast:
                nats = loss(model, (torch.rand_like(x) < x).float()).mean()
            model.zero_grad()
            nats.backward()
            for optimizer in optimizers:
                optimizer.step()
            watch.epochs += len(x) / len(images)
            if watch(model):
                return model


def examples(book, watch):
    """github.com/pytorch/examples, vae/main.py, but for log σ in the place of log σ²."""
    model = book["VAE"](20, (1, 0), (1, 0))
    model.encoder, model.decoder = MLP(784, [400, 40]), MLP(20, [400, 784])
    optimizer = torch.optim.Adam(model.to(device).parameters(), 1e-3)
    loss = lambda model, x: sum(book["vae_terms"](model, x))  # noqa: E731
    return follow(book, watch, model, loss, 128, 0, optimizer)


def one_hidden_layer(book, watch, hidden, batch_size, workers, decay):
    """A MADE with ReLU, uniform degrees, a random ordering; masks are computed once.

    github.com/karpathy/pytorch-made, run.py, whose learning rate would fall after 45 epochs, and
    github.com/EugenHotaj/pytorch-generative, made.py.
    """
    d, m = torch.randperm(784, device=device), torch.randint(783, (hidden,), device=device)
    first, last = (m[:, None] >= d).float(), (d[:, None] > m).float()
    model = MLP(784, [hidden, 784])
    optimizer = torch.optim.Adam(model.to(device).parameters(), 1e-3, weight_decay=decay)

    def logits(x, k=0, c=None):
        h = relu(linear(x, model[0].weight * first, model[0].bias))
        return linear(h, model[3].weight * last, model[3].bias).float()

    model.logits = logits
    loss = lambda model, x: -book["log_conditionals"](model, x).sum(1)  # noqa: E731
    return follow(book, watch, model, loss, batch_size, workers, optimizer)


def lagvae(book, watch):
    """github.com/ermongroup/lagvae: least distortion, −ELBO <= 90.8 (our bound) and 1e4 MMD² <= 5."""
    model = book["VAE"](64, (1, 0), (1, 0))
    model.encoder = MLP(784, [1024, 1024, 128], activation_layer=nn.Softplus)
    model.decoder = MLP(64, [1024, 1024, 784], activation_layer=nn.Softplus)
    for name, parameter in model.named_parameters():  # as TensorFlow's dense layers begin
        (nn.init.xavier_uniform_ if "weight" in name else nn.init.zeros_)(parameter)
    descent = torch.optim.Adam(model.to(device).parameters(), 1e-4, betas=(0.5, 0.999))
    model.prices = nn.Parameter(torch.ones(2, device=device))
    ascent = torch.optim.RMSprop([model.prices], 1e-4, alpha=0.9, maximize=True)

    def kernel(a, b):
        with torch.autocast(device.type, enabled=False):
            return torch.exp(-(torch.cdist(a, b) ** 2) / 64**2).mean()

    def loss(model, x):
        q = model.q(x)
        z = q.rsample()
        distortion = -model.p(z).log_prob(x)
        excess = distortion + q.log_prob(z) - model.prior().log_prob(z) - book["EPSILON"]
        u = torch.randn_like(z)
        mmd = 1e4 * (kernel(z, z) + kernel(u, u) - 2 * kernel(z, u)) - 5
        model.prices.data.clamp_(1e-3, 100)
        return distortion + model.prices[0] * excess + model.prices[1] * mmd

    return follow(book, watch, model, loss, 250, None, descent, ascent)


RACES = {  # what trains, and its further arguments
    "Basic_VAE": {"ours": (basic_vae,), "pytorch/examples": (examples,)},
    "MADE": {
        "ours": (made,),
        "karpathy/pytorch-made": (one_hidden_layer, 500, 100, None, 1e-4),
        "EugenHotaj/pytorch-generative": (one_hidden_layer, 8000, 64, 0, 0),
    },
    "Lagrangian_VAE": {"ours": (lagrangian_vae,), "ermongroup/lagvae": (lagvae,)},
}
WHOLE = {"share": 1.0, "width": 1.0, "count": None}
SHARES = [WHOLE | {"share": share} for share in (1.0, 0.2, 0.1)]  # of the epochs
GROWTH = [WHOLE | {"share": share} for share in (0.25, 0.5, 1.0, 2.0)]
GROWTH += [WHOLE | {"width": width} for width in (0.25, 0.5, 2.0)]
GROWTH += [WHOLE | {"count": count} for count in (10_000, 25_000)]  # images, at equal steps


def score(book, model, x):
    """Of binary images x [N, D], what the notebook has a function for."""
    if "log_p" in book:
        return {"NLL": -book["log_p"](model, x).mean().item()}
    if "evaluate" in book:
        return book["evaluate"](model, x)
    log_ws = book["log_weights"](model, x[torch.randperm(len(x))[:2000]], 100)
    bound = book["importance_bound"]
    return {"NLL": -bound(log_ws, 100).mean().item(), "-ELBO": -bound(log_ws, 1).mean().item()}


def edition(notebook):
    """The notebook as it was in the third edition, on which all records of this folder were made: its path."""
    path = ROOT / "build" / "edition" / f"{notebook}.ipynb"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        show = ["git", "show", f"{EDITION}:{notebook}.ipynb"]
        path.write_bytes(subprocess.run(show, cwd=ROOT, check=True, capture_output=True).stdout)
    return path


def prepare(notebook, share=1.0, width=1.0, count=None, seed=0):
    """The notebook's definitions with its data, and with other epochs, widths or numbers of training images."""
    torch.distributions.Distribution.set_default_validate_args(False)  # as the notebooks do
    book = definitions(edition(notebook))
    training, *held_out = book["load_images"]("MNIST", ROOT / "data")
    fixed = torch.Generator().manual_seed(2026)
    for name, (images, labels) in zip(("test", "validation"), held_out[::-1], strict=True):
        book[f"{name}_x"] = book["binarise"](images, fixed).to(device)
        book[f"{name}_images"], book[f"{name}_labels"] = images, labels
    some = torch.randperm(len(training[0]), generator=torch.Generator().manual_seed(0))[:count]
    if count is None:
        some = slice(None)
    longer = len(training[0]) / len(training[0][some])  # as many steps with fewer images
    book |= {"device": device, "data": [part[some].to(device) for part in training]}
    book |= {"training": training, "SEED": seed}
    for name, factor in (
        ("EPOCHS", share * longer),
        ("CONSTRAINED_EPOCHS", share * longer),
        ("HIDDEN", width),
    ):
        book[name] = max(1, round(factor * book.get(name, 0)))
    for name in ("ENCODER", "DECODER"):
        book[name] = [round(width * book[name][0]), book[name][1]] if name in book else None
    torch.manual_seed(seed)
    return book


def run(notebook, racer, size, limit, part, bfloat16=None, seed=0):
    """One training: its points (seconds, nats), the rate of operations, and peak memory (of Linux)."""
    sys.stdout = open(os.devnull, "w")  # no progress bars
    book = prepare(notebook, **size, seed=seed)
    book["BFLOAT16"] = bfloat16
    ratio = 1.1 if "evaluate" in book else 1.6  # scores that are cheap are taken more often
    watch = Watch(lambda model: score(book, model, book[part]), limit, ratio)
    watch.go()
    racer, *arguments = RACES[notebook][racer]
    watch(racer(book, watch, *arguments), last=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return watch.points, watch.epochs, watch.operations / watch.spent, memory * 1024 / 1e9


def alone(*job):
    """The same, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run, *job).result()


def line(notebook, name, size, result):
    """A row of a table."""
    points, epochs, operations, memory = result
    seconds, values = points[-1]
    nats = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
    speed = f"{operations / 1e9:.0f}" if operations else "–"
    images = size["count"] or "all"
    return (
        f"{notebook} | {name} | {epochs:.0f} | {size['width']:g} | {images} | {seconds:.1f} | {nats} "
        f"| {speed} | {memory:.2f}"
    )


BOUND = 90.8  # on −ELBO, of both Lagrangian recipes


def reached(points, bound=BOUND):
    """The seconds after which −ELBO was first seen at its bound, or None."""
    return next((round(time) for time, values in points if values["-ELBO"] <= bound), None)


def race(share, part="test_x"):
    """All recipes, one after the other, for the seconds of ours; and a picture."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 5.4), layout="constrained")
    axes[0].set_ylabel("nats per test image")
    for axis, (notebook, racers) in zip(axes, RACES.items(), strict=True):
        limit = math.inf
        jobs = [("ours", size, None) for size in SHARES]
        jobs += [(name, WHOLE, cast) for name in racers if name != "ours" for cast in (False, True)]
        for name, size, cast in jobs:
            size = size | {"share": share * size["share"]}
            result = alone(notebook, name, size, limit, part, cast)
            points, epochs, *_ = result
            if name == "ours":
                limit = min(limit, points[-1][0]) if size["share"] == share else limit
            label = name if name == "ours" else f"{name}, {'bfloat16' if cast else 'float32'}"
            print(line(notebook, label, size, result), flush=True)

            key = "NLL" if "NLL" in points[-1][1] else "-ELBO"
            if key == "-ELBO":
                print(f"  the bound of {BOUND} is reached after: {reached(points)} s", flush=True)
            path = [[time for time, _ in points], [values[key] for _, values in points]]
            style = {"ours": "o-"}.get(name, "s--" if cast else "x:")
            axis.plot(*path, style, label=f"{label}, {epochs:.0f} epochs")
        if key == "-ELBO":
            axis.axhline(
                BOUND, color="black", linestyle=":", label="the bound that both shall keep"
            )
        axis.set(title=f"{notebook}: {key}", xscale="log", xlabel="seconds", ylim=(80, 140))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)
    if share == 1:
        figure.savefig(ROOT / "benchmarks" / "race.png", metadata={"Software": None})


def growth(share, seeds, jobs):
    """Ours with other epochs, widths and numbers of images, scored on validation images."""
    tasks = [(book, size, seed) for seed in seeds for book in RACES for size in GROWTH]
    with ThreadPool(jobs) as pool:

        def do(task):
            notebook, size, seed = task
            size = size | {"share": share * size["share"]}
            result = alone(notebook, "ours", size, math.inf, "validation_x", None, seed)
            print(line(notebook, f"ours, seed {seed}", size, result), flush=True)

        pool.map(do, tasks, chunksize=1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--growth", action="store_true", help="ours, of other sizes")
    parser.add_argument("--share", type=float, default=1.0, help="of the notebooks' epochs, to try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of --growth")
    parser.add_argument("--jobs", type=int, default=1, help="of --growth, side by side")
    parser.add_argument("--only", help="one recipe, in float32 as it was written")
    parser.add_argument("--autocast", action="store_true", help="of --only: in bfloat16, as ours")
    parser.add_argument("--seconds", type=float, default=3600, help="how long --only trains")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {device}, torch {torch.__version__}")
    print(
        "notebook | recipe | epochs | width | images | seconds | nats | GFLOP/s | peak memory, GB"
    )
    if options.growth:
        return growth(options.share, options.seeds, options.jobs)
    if options.only:
        (notebook,) = [book for book, racers in RACES.items() if options.only in racers]
        job = notebook, options.only, WHOLE, options.seconds, "test_x", options.autocast
        result = alone(*job)
        print(line(notebook, options.only, WHOLE, result))
        for seconds, values in result[0]:
            print(f"  {seconds:.0f} s: {values}")
        return
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048, device=device, dtype=dtype)
        timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
        print(f"{dtype}: {2 * 2048**3 / timer.blocked_autorange().median / 1e9:.0f} GFLOP/s")
    race(options.share)


if __name__ == "__main__":
    main()
