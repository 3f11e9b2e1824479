"""Speed of each notebook's training step, against the textbook loop and against the machine, in one run: `make bench`.

The textbook loop is the one of most tutorials: a DataLoader over torchvision's data set with ToTensor, float32, a plain
Adam, `loss.item()` at every step. Network, batch size, objective and images are the notebook's. The two take turns, so
that a machine whose speed drifts favours neither.
"""

import platform
import statistics
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


def textbook_epoch(model, objective, loader, device):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    total = 0.0
    for images, _ in loader:
        images = images.flatten(1).to(device)
        x = torch.bernoulli(images)
        distortion, rate = objective(model, x)
        loss = (distortion + rate).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def bench_basic_vae(device):
    """One epoch of Basic_VAE as in the notebook and in the textbook loop."""
    book = definitions(ROOT / "Basic_VAE.ipynb")
    (images, _), (validation, _), _ = book["load_images"]("MNIST", ROOT / "data")
    images, few = images.to(device), book["binarise"](validation[:100]).to(device)
    batch_size = book["BATCH_SIZE"]
    files = datasets.MNIST(ROOT / "data", train=True, transform=transforms.ToTensor())
    loader = DataLoader(Subset(files, range(len(images))), batch_size=batch_size, shuffle=True)

    def network():
        return book["VAE"](book["LATENT_DIM"], book["HIDDEN"]).to(device)

    def ours():
        book["train"](
            network(), book["monte_carlo"], images, few, 1, batch_size, book["LEARNING_RATE"]
        )

    def textbook():
        textbook_epoch(network(), book["monte_carlo"], loader, device)

    with FlopCounterMode(display=False) as counter:
        sum(book["monte_carlo"](network(), book["binarise"](images[:batch_size]))).mean().backward()
    dtype = torch.bfloat16 if book["has_bfloat16"](device) else torch.float32
    rows = [
        [seconds(ours, device), seconds(textbook, device), product_rate(device, dtype)]
        for _ in range(ROUNDS)
    ]
    epoch, textbook_seconds, rate = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    steps = len(images) // batch_size
    flops = counter.get_total_flops()
    ratios = [row[1] / row[0] for row in rows]
    print(
        f"\nBasic_VAE, batch size {batch_size}, {steps} steps an epoch; median of {ROUNDS} rounds"
    )
    print(f"notebook           {epoch:8.2f} s an epoch   {1000 * epoch / steps:6.2f} ms a step")
    print(
        f"textbook loop      {textbook_seconds:8.2f} s an epoch   {1000 * textbook_seconds / steps:6.2f} ms a step"
    )
    print(
        f"textbook / notebook{statistics.median(ratios):8.2f}   (from {min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(
        f"matrix products    {rate / 1e9:8.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}, size 2048"
    )
    print(
        f"a step             {flops / 1e9:8.2f} GFLOP, {flops * steps / epoch / 1e9:.0f} GFLOP/s in the notebook"
    )
    print(f"share              {flops * steps / epoch / rate:8.0%} of the matrix-product rate")


if __name__ == "__main__":
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {device}; Python {platform.python_version()}, ",
        end="",
    )
    print(f"torch {torch.__version__}")
    bench_basic_vae(device)
