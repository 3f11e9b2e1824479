"""Nats after the same seconds, ours and other people's recipes, and how cost grows: `make bench`.

Each training is a process of its own, one at a time, with seed 0, on the same 50,000 images; its watch stops while the
model is scored. Ours are the notebooks' own functions. The recipes are written anew in float32, with their authors'
networks, optimisers and batch sizes, on images binarised afresh at each step, without worker processes. NLL of a VAE:
K = 100, 2,000 random images; all else is of all 10,000. GFLOP/s count the matrix products of our training steps.
"""

import argparse
import copy
import math
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
COUNTED = 10  # steps whose operations are counted: each tenth of a training has one


class Watch:
    """Seconds of training and, at times in a ratio of 1.6 and in the end, the nats of the model."""

    def __init__(self, score, limit):
        self.score, self.limit, self.due = score, limit, 2.0
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
            self.due = 1.6 * self.spent
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


def follow(book, watch, model, loss, batch_size, files, *optimizers):
    """The recipes' loop, over torchvision's files behind a DataLoader or over images in memory."""
    images = book["data"][0].float() / 255
    mnist = datasets.MNIST(ROOT / "data", transform=transforms.ToTensor())
    loader = DataLoader(Subset(mnist, range(len(images))), batch_size, shuffle=True)
    watch.go()
    while True:
        rows = torch.randperm(len(images), device=device).split(batch_size)
        for batch in loader if files else rows:
            x = batch[0].flatten(1).to(device) if files else images[batch]
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
    return follow(book, watch, model, loss, 128, True, optimizer)


def one_hidden_layer(book, watch, hidden, batch_size, files, decay):
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
        return linear(h, model[3].weight * last, model[3].bias)

    model.logits = logits
    loss = lambda model, x: -book["log_conditionals"](model, x).sum(1)  # noqa: E731
    return follow(book, watch, model, loss, batch_size, files, optimizer)


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

    return follow(book, watch, model, loss, 250, False, descent, ascent)


RACES = {  # what trains, and its further arguments
    "Basic_VAE": {"ours": (basic_vae,), "pytorch/examples": (examples,)},
    "MADE": {
        "ours": (made,),
        "karpathy/pytorch-made": (one_hidden_layer, 500, 100, False, 1e-4),
        "EugenHotaj/pytorch-generative": (one_hidden_layer, 8000, 64, True, 0),
    },
    "Lagrangian_VAE": {"ours": (lagrangian_vae,), "ermongroup/lagvae": (lagvae,)},
}
SHARES = (1, 1), (0.2, 1), (0.1, 1)  # of the epochs, of the width
GROWTH = (0.25, 1), (0.5, 1), (1, 1), (2, 1), (1, 0.25), (1, 0.5), (1, 2)


def score(book, model, x):
    """Of binary images x [N, D], what the notebook has a function for."""
    if "log_p" in book:
        return {"NLL": -book["log_p"](model, x).mean().item()}
    if "evaluate" in book:
        return book["evaluate"](model, x)
    log_ws = book["log_weights"](model, x[torch.randperm(len(x))[:2000]], 100)
    bound = book["importance_bound"]
    return {"NLL": -bound(log_ws, 100).mean().item(), "-ELBO": -bound(log_ws, 1).mean().item()}


def prepare(notebook, share=1.0, width=1.0):
    """The notebook's definitions with its data, and with other epochs and widths."""
    torch.distributions.Distribution.set_default_validate_args(False)  # as the notebooks do
    book = definitions(ROOT / f"{notebook}.ipynb")
    training, *held_out = book["load_images"]("MNIST", ROOT / "data")
    fixed = torch.Generator().manual_seed(2026)
    for name, (images, labels) in zip(("test", "validation"), held_out[::-1], strict=True):
        book[f"{name}_x"] = book["binarise"](images, fixed).to(device)
        book[f"{name}_labels"] = labels
    book |= {"device": device, "data": [part.to(device) for part in training]}
    for name, factor in (("EPOCHS", share), ("CONSTRAINED_EPOCHS", share), ("HIDDEN", width)):
        book[name] = max(1, round(factor * book.get(name, 0)))
    for name in ("ENCODER", "DECODER"):
        book[name] = [round(width * book[name][0]), book[name][1]] if name in book else None
    torch.manual_seed(0)
    return book


def run(notebook, racer, share, width, limit, part):
    """One training: its points (seconds, nats), the rate of operations, and peak memory (of Linux)."""
    sys.stdout = open(os.devnull, "w")  # no progress bars
    book = prepare(notebook, share, width)
    watch = Watch(lambda model: score(book, model, book[part]), limit)
    watch.go()
    racer, *arguments = RACES[notebook][racer]
    watch(racer(book, watch, *arguments), last=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return watch.points, watch.epochs, watch.operations / watch.spent, memory * 1024 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--growth", action="store_true", help="ours, with other epochs and widths")
    parser.add_argument("--share", type=float, default=1.0, help="of the notebooks' epochs, to try")
    options = parser.parse_args()
    part = "validation_x" if options.growth else "test_x"
    print(f"{part}; {torch.get_num_threads()} threads, {device}, torch {torch.__version__}")
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048, device=device, dtype=dtype)
        timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
        print(f"{dtype}: {2 * 2048**3 / timer.blocked_autorange().median / 1e9:.0f} GFLOP/s")
    print("notebook | recipe | epochs | width | seconds | nats | GFLOP/s | peak memory, GB")
    figure, axes = plt.subplots(1, 3, figsize=(11, 5), layout="constrained")
    axes[0].set_ylabel("nats per test image")
    for axis, (notebook, racers) in zip(axes, RACES.items(), strict=True):
        jobs, limit = [("ours", *job) for job in (GROWTH if options.growth else SHARES)], math.inf
        jobs += [(name, 1, 1) for name in racers if name != "ours" and not options.growth]
        for name, share, width in jobs:
            job = (notebook, name, options.share * share, width, limit, part)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                points, epochs, operations, memory = pool.submit(run, *job).result()
            limit = min(limit, points[-1][0]) if share == 1 else limit  # the whole of ours
            seconds, values = points[-1]
            nats = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
            row = f"{notebook} | {name} | {epochs:.0f} | {width:g} | {seconds:.1f} | {nats}"
            speed = f"{operations / 1e9:.0f}" if operations else "–"
            print(f"{row} | {speed} | {memory:.2f}", flush=True)
            key = "NLL" if "NLL" in values else "-ELBO"
            path = [[time for time, _ in points], [values[key] for _, values in points]]
            label = f"{name}, {epochs:.0f} epochs"
            axis.plot(*path, "o-" if name == "ours" else "s--", label=label)
        if key == "-ELBO":
            axis.axhline(90.8, color="black", linestyle=":", label="the bound that both shall keep")
        axis.set(title=f"{notebook}: {key}", xscale="log", xlabel="seconds", ylim=(80, 140))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
    if not options.growth and options.share == 1:
        figure.savefig(ROOT / "benchmarks" / "race.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
