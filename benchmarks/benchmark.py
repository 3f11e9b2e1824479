"""Speed and memory of each notebook's training, against the textbook loop and against the machine: `make bench`.

The textbook loop is the one of most tutorials: a DataLoader over torchvision's data set with ToTensor, float32, a plain
Adam, `loss.item()` at every step. Network, batch size, objective and images are the notebook's. The two take turns, so
that a machine whose speed drifts favours neither.
"""

import contextlib
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from notebooks import definitions  # noqa: E402

ROUNDS = 5


def synchronise(device):
    if device.type != "cpu":
        torch.accelerator.synchronize()


def quiet():
    """Without the progress bars on stdout."""
    return contextlib.redirect_stdout(open(os.devnull, "w"))


def seconds(run, device):
    """Wall time of run(), work queued on an accelerator included."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def product_rate(device, dtype, size=2048):
    """The machine's matrix-product rate in FLOP/s: the best of ten products of two size × size matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def textbook_epoch(model, loss, loader, device):
    """One epoch of the textbook loop with `loss(model, x) -> scalar`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    total = 0.0
    for images, _ in loader:
        images = images.flatten(1).to(device)
        x = torch.bernoulli(images)
        nats = loss(model, x)
        optimizer.zero_grad()
        nats.backward()
        optimizer.step()
        total += nats.item()
    return total


def own_peak():
    """This process's peak memory in bytes."""
    with contextlib.suppress(OSError):  # on Linux, where ru_maxrss would begin at the parent's
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_memory(name, loop):
    """Peak memory in bytes of one epoch in a process of its own; loop is "notebook" or "textbook"."""
    command = [sys.executable, __file__, name, loop]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def bench_step(name, book, network, loss, epoch, device, only=None):
    """One epoch as in the notebook, `epoch(model, images, few, batch_size)`, and one in the textbook loop, in turns.

    With only="notebook" or "textbook" one epoch of that loop, and its peak memory on stdout.
    """
    (images, _), (validation, _), _ = book["load_images"]("MNIST", ROOT / "data")
    images, few = images.to(device), book["binarise"](validation[:100]).to(device)
    batch_size = book["BATCH_SIZE"]
    files = datasets.MNIST(ROOT / "data", train=True, transform=transforms.ToTensor())
    loader = DataLoader(Subset(files, range(len(images))), batch_size=batch_size, shuffle=True)
    ours_once = lambda: epoch(network(images), images, few, batch_size)  # noqa: E731
    textbook_once = lambda: textbook_epoch(network(images), loss, loader, device)  # noqa: E731
    if only:
        {"notebook": ours_once, "textbook": textbook_once}[only]()
        return print(own_peak(), file=sys.__stdout__)
    with FlopCounterMode(display=False) as counter:
        loss(network(images), book["binarise"](images[:batch_size])).backward()
    dtype = torch.bfloat16 if book["has_bfloat16"](device) else torch.float32
    rows = [
        [
            seconds(ours_once, device),
            seconds(textbook_once, device),
            product_rate(device, dtype),
        ]
        for _ in range(ROUNDS)
    ]
    ours, textbook, rate = (statistics.median(column) for column in zip(*rows, strict=True))
    steps = len(images) // batch_size
    flops = counter.get_total_flops()
    ratios = [row[1] / row[0] for row in rows]
    memory = [peak_memory(name, loop) / 1e9 for loop in ("notebook", "textbook")]
    print(f"\n{name}, batch size {batch_size}, {steps} steps an epoch; median of {ROUNDS} rounds")
    print(f"notebook           {ours:8.2f} s an epoch   {1000 * ours / steps:6.2f} ms a step")
    print(
        f"textbook loop      {textbook:8.2f} s an epoch   {1000 * textbook / steps:6.2f} ms a step"
    )
    print(
        f"textbook / notebook{statistics.median(ratios):8.2f}   (from {min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(
        f"matrix products    {rate / 1e9:8.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}, size 2048"
    )
    print(
        f"a step             {flops / 1e9:8.2f} GFLOP, {flops * steps / ours / 1e9:.0f} GFLOP/s in the notebook"
    )
    print(f"share              {flops * steps / ours / rate:8.0%} of the matrix-product rate")
    print(
        f"limit              {textbook / steps * rate / flops:8.2f} textbook / notebook, were a step its products"
    )
    print(f"peak memory        {memory[0]:8.2f} GB, textbook loop {memory[1]:.2f} GB")


def bench_basic_vae(device, only=None):
    book = definitions(ROOT / "Basic_VAE.ipynb")

    def network(images):
        return book["VAE"](book["LATENT_DIM"], book["HIDDEN"]).to(device)

    def loss(model, x):
        return sum(book["monte_carlo"](model, x)).mean()

    def epoch(model, images, few, batch_size):
        with quiet():
            rate = book["LEARNING_RATE"]
            book["train"](model, book["monte_carlo"], images, few, 1, batch_size, rate)

    bench_step("Basic_VAE", book, network, loss, epoch, device, only)


def bench_made(device, only=None):
    book = definitions(ROOT / "MADE.ipynb")
    masks = [(book["ORDERING"], seed) for seed in range(book["CONNECTIVITIES"])]

    def network(images):
        return book["MADE"](masks, images.mean(0), book["HIDDEN"], book["BLOCKS"]).to(device)

    def loss(model, x):
        return -model.log_prob(x).mean()

    def epoch(model, images, few, batch_size):
        with quiet():
            book["train"](model, images, few, 1, batch_size, lr=book["LEARNING_RATE"])

    bench_step("MADE", book, network, loss, epoch, device, only)  # one ordering
    if only:
        return

    (images, _), _, _ = book["load_images"]("MNIST", ROOT / "data")
    images = images[:5000].to(device)
    model = network(images)
    with quiet():  # so that samples have strokes
        book["train"](model, images, images[:100].round(), 2, 100, lr=1e-3)
    u = torch.rand(100, 784, device=device)
    fast, naive = book["sample"](model, 0, u), book["sample_naive"](model, 0, u)
    assert torch.equal(fast, naive) and torch.equal(
        book["sample_fixed_point"](model, 0, u)[0], naive
    )
    samplers = [book[name] for name in ("sample_naive", "sample_fixed_point", "sample")]
    rows = [
        [seconds(lambda s=sampler: s(model, 0, u), device) for sampler in samplers]
        for _ in range(ROUNDS)
    ]
    print(f"\nMADE, 100 samples, identical images; median of {ROUNDS} rounds")
    for column, name in enumerate(("784 passes", "fixed point", "each unit once")):
        ratios = [row[0] / row[column] for row in rows]
        print(
            f"{name:19s}{statistics.median(row[column] for row in rows):8.3f} s   "
            f"{statistics.median(ratios):6.1f} times as fast   (from {min(ratios):.1f} to {max(ratios):.1f})"
        )


def bench_lagrangian_vae(device, only=None):
    book = definitions(ROOT / "Lagrangian_VAE.ipynb")
    book["KERNEL_VARIANCE"] = variance = book["LATENT_DIM"] / 4
    name = "maximal information"

    def network(images):
        return book["VAE"](book["LATENT_DIM"], book["HIDDEN"]).to(device)

    def dual_ascent():
        bounds = [book["EPSILON_1"], book["EPSILON_2"]]
        return book["DualAscent"](
            bounds, [0.5, bounds[1]], [5.0, 100.0], [20.0, 1e4], device=device
        )

    ascent = dual_ascent()

    def loss(model, x):
        distortion, rate, constraints = book["measure"](model, x)
        f = book["objective"](name, distortion, rate)
        return book["lagrangian"](f, constraints, ascent.bounds, ascent.multipliers)

    def epoch(model, images, few, batch_size):
        with quiet():
            rate = book["LEARNING_RATE"]
            book["train"](model, name, images, few, 1, batch_size, rate, dual_ascent())

    bench_step("Lagrangian_VAE", book, network, loss, epoch, device, only)
    if only:
        return

    def expanded(z):
        """The same estimate with all differences in one array [n, n, d]."""
        n, d = z.shape
        squared = ((z[:, None] - z[None]) ** 2).sum(-1)
        within = (torch.exp(-squared / (2 * variance)).sum() - n) / (n * (n - 1))
        across = torch.exp(-(z**2).sum(1) / (2 * (variance + 1))).mean()
        across = across * (variance / (variance + 1)) ** (d / 2)
        return within - 2 * across + (variance / (variance + 2)) ** (d / 2)

    def gradient(estimate, z):
        z.grad = None
        estimate(z).backward()

    rows = 250  # as in the notebook
    print(f"\nMMD² and its gradient, d = {book['LATENT_DIM']}; median of {ROUNDS} rounds")
    for n in (book["BATCH_SIZE"], 1000, 2500):
        z = torch.randn(n, book["LATENT_DIM"], device=device, requires_grad=True)
        ours = lambda z: book["mmd"](z, variance, rows)  # noqa: E731
        torch.testing.assert_close(ours(z), expanded(z), atol=1e-5, rtol=0)
        times = [
            [seconds(lambda e=e, z=z: gradient(e, z), device) for e in (ours, expanded)]
            for _ in range(ROUNDS)
        ]
        ratio = statistics.median(row[1] / row[0] for row in times)
        largest, array = 4 * n * min(n, rows), 4 * n * n * z.shape[1]
        print(
            f"n = {n:5d}   {1000 * statistics.median(row[0] for row in times):7.2f} ms   "
            f"{ratio:5.1f} times as fast as with the expanded array; "
            f"largest array {largest / 1e6:.1f} MB instead of {array / 1e6:.0f} MB"
        )


BENCHMARKS = {
    "Basic_VAE": bench_basic_vae,
    "MADE": bench_made,
    "Lagrangian_VAE": bench_lagrangian_vae,
}


def whole_runs():
    """What `make` wrote down of each notebook's last whole run on MNIST."""
    runs = ROOT / "build" / "MNIST" / "runs.txt"
    lines = runs.read_text().splitlines() if runs.exists() else []
    last = {line.split(":")[0]: line for line in lines}
    print("\nwhole runs, by `make`:" if last else "\nno whole runs yet: `make` measures them")
    print(*last.values(), sep="\n")


if __name__ == "__main__":
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if len(sys.argv) > 1:
        BENCHMARKS[sys.argv[1]](device, only=sys.argv[2])
    else:
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {device}"
        print(
            f"{machine}; Python {platform.python_version()}, torch {torch.__version__}", flush=True
        )
        for bench in BENCHMARKS.values():
            bench(device)
        whole_runs()
