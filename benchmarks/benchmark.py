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
torch.distributions.Distribution.set_default_validate_args(False)  # as the notebooks do


def seconds(run, device):
    """Wall time of run(), work queued on an accelerator included."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def product_rate(device, dtype, size=2048):
    """The machine's matrix-product rate in FLOP/s: the best of ten products of two size × size matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def textbook_epoch(model, loss, loader, device):
    """One epoch of the textbook loop with `loss(model, x)`, nats [B]."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    total = 0.0
    for images, _ in loader:
        nats = loss(model, torch.bernoulli(images.flatten(1).to(device))).mean()
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


def bench_step(name, book, network, loss, device, only=None):
    """One epoch of the notebook's loop and one of the textbook's, in turns.

    With only="notebook" or "textbook" one epoch of that loop, and its peak memory on stdout.
    """
    images = book["load_images"]("MNIST", ROOT / "data")[0][0].to(device)
    batch_size = book["BATCH_SIZE"]
    files = datasets.MNIST(ROOT / "data", train=True, transform=transforms.ToTensor())
    loader = DataLoader(Subset(files, range(len(images))), batch_size=batch_size, shuffle=True)

    def notebook_epoch():
        model = network(images)
        optimizer = torch.optim.AdamW(model.parameters(), book["LEARNING_RATE"], fused=True)
        with contextlib.redirect_stdout(open(os.devnull, "w")):  # without the progress bar
            book["train"](model, loss, images, 1, batch_size, optimizer, lambda model: {}, [])

    loops = {
        "notebook": notebook_epoch,
        "textbook": lambda: textbook_epoch(network(images), loss, loader, device),
    }
    if only:
        loops[only]()
        return print(own_peak())
    with FlopCounterMode(display=False) as counter:
        loss(network(images), book["binarise"](images[:batch_size])).mean().backward()
    dtype = torch.bfloat16 if book["has_bfloat16"]() else torch.float32
    rows = [
        [*(seconds(loop, device) for loop in loops.values()), product_rate(device, dtype)]
        for _ in range(ROUNDS)
    ]
    ours, textbook, rate = (statistics.median(column) for column in zip(*rows, strict=True))
    steps, flops = len(images) // batch_size, counter.get_total_flops()
    ratios = [row[1] / row[0] for row in rows]
    memory = [peak_memory(name, loop) / 1e9 for loop in loops]
    print(f"\n{name}, batch size {batch_size}, {steps} steps an epoch; median of {ROUNDS} rounds")
    print(
        f"notebook           {1000 * ours / steps:8.2f} ms a step, peak memory {memory[0]:.2f} GB"
    )
    print(f"textbook loop      {1000 * textbook / steps:8.2f} ms a step, {memory[1]:.2f} GB")
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"textbook / notebook{middle:8.2f}   (from {low:.2f} to {high:.2f})")
    print(
        f"share              {flops * steps / ours / rate:8.0%} of the matrix-product rate,",
        end=" ",
    )
    print(f"{rate / 1e9:.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}")


def bench_basic_vae(device, only=None):
    book = definitions(ROOT / "Basic_VAE.ipynb")
    book["device"] = device

    def network(images):
        return book["VAE"](book["LATENT_DIM"], book["ENCODER"], book["DECODER"]).to(device)

    bench_step("Basic_VAE", book, network, book["importance_weighted"], device, only)


def bench_made(device, only=None):
    book = definitions(ROOT / "MADE.ipynb")
    book["device"] = device
    order = torch.arange(784)

    def network(images):
        mean = images.float().mean(0) / 255
        degrees = book["draw_degrees"](order, mean, book["HIDDEN"])
        return book["MADE"](order[None], degrees[None], mean, book["BLOCKS"]).to(device)

    def loss(model, x):
        return -model.log_conditionals(x).sum(1)

    bench_step("MADE", book, network, loss, device, only)
    if only:
        return

    images = book["load_images"]("MNIST", ROOT / "data")[0][0][:5000].to(device)
    model = network(images)
    with contextlib.redirect_stdout(open(os.devnull, "w")):  # trained a little, for strokes
        book["train"](model, loss, images, 2, 100, book["adamw"](model), lambda model: {}, [])
    u = torch.rand(100, 784, device=device)
    naive, sample = book["sample_naive"], book["sample"]
    assert torch.equal(naive(model, u), sample(model, u))
    ratios = [
        seconds(lambda: naive(model, u), device) / seconds(lambda: sample(model, u), device)
        for _ in range(ROUNDS)
    ]
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"\nMADE, 100 samples, identical images; median of {ROUNDS} rounds")
    print(f"784 passes / guess and correct {middle:.1f}   (from {low:.1f} to {high:.1f})")


def bench_lagrangian_vae(device, only=None):
    book = definitions(ROOT / "Lagrangian_VAE.ipynb")
    book["device"] = device

    def network(images):
        prior = book["Mixture"](book["LATENT_DIM"], book["COMPONENTS"])
        return book["VAE"](book["LATENT_DIM"], book["ENCODER"], book["DECODER"], prior).to(device)

    bench_step("Lagrangian_VAE", book, network, book["lagrangian"]("-ELBO"), device, only)


BENCHMARKS = {
    "Basic_VAE": bench_basic_vae,
    "MADE": bench_made,
    "Lagrangian_VAE": bench_lagrangian_vae,
}

if __name__ == "__main__":
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if len(sys.argv) > 1:
        BENCHMARKS[sys.argv[1]](device, only=sys.argv[2])
    else:
        print(f"{platform.machine()}, {torch.get_num_threads()} threads, {device};", end=" ")
        print(f"Python {platform.python_version()}, torch {torch.__version__}", flush=True)
        for bench in BENCHMARKS.values():
            bench(device)
