"""The answers to the exercises of the notebooks, measured: tables and pictures of docs/answers.md.

    python benchmarks/answers.py --list              # what there is
    python benchmarks/answers.py "beta"              # trains what has this in its name, and keeps rows
    python benchmarks/answers.py --report            # puts the rows into docs/answers.md, and draws the pictures

An exercise is a function that gives one row of a table, run once for each of its arguments. Everything is of the
third edition's notebooks: what they define, their parameters, and, where an exercise starts from a trained model,
the weights that their runs left in weights/. Nats are of validation images. Rows are kept in docs/answers.json,
images in build/answers/. `--jobs 8` runs so many side by side, which pays on a GPU.
"""

import argparse
import contextlib
import json
import math
import random
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from statistics import NormalDist

import front
import masks
import matplotlib.pyplot as plt
import nbformat
import torch
from benchmark import ROOT, device, edition, prepare
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

PAGE, ROWS = ROOT / "docs" / "answers.md", ROOT / "docs" / "answers.json"
KEPT = ROOT / "build" / "answers"
EPOCHS = 15  # of a VAE that is trained from the start
FIT_RATE, FIT_CODES = 0.01, 16  # learning rate, and codes a step, where q is fitted to each image


def cell(book, notebook, text):
    """Execute the cell of a notebook that contains a text, among the names of `book`."""
    cells = nbformat.read(edition(notebook), as_version=4).cells
    (found,) = [c.source for c in cells if c.cell_type == "code" and text in c.source]
    exec(found, book)


def keep(name, images):
    """Keep images [N, 784] for a picture."""
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.save(images.cpu(), KEPT / f"{name}.pt")


def with_error(values, digits=2):
    """The mean of values [N] and its standard error, to be printed."""
    return f"{values.mean():.{digits}f} ± {values.std() / len(values) ** 0.5:.{digits}f}"


# Basic_VAE


def basic(seed=0):
    """Basic_VAE.ipynb's definitions and data, and the names that its functions look for."""
    book = prepare("Basic_VAE", seed=seed)
    fixed = torch.Generator().manual_seed(0)
    some = book["validation_x"][torch.randperm(10_000, generator=fixed)[:2000].to(device)]
    book |= {"train_data": book["data"], "some_validation": some}
    return book


def trained_vae(book):
    """The model of the committed run."""
    model = book["VAE"](book["LATENT_DIM"], book["ENCODER"], book["DECODER"]).to(device)
    path = ROOT / "weights" / "MNIST-VAE.pt"
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return model


def train_vae(book, loss, epochs=EPOCHS, model=None):
    """A VAE that is trained from the start."""
    torch.manual_seed(book["SEED"])
    sizes = book["LATENT_DIM"], book["ENCODER"], book["DECODER"]
    model = (model or book["VAE"](*sizes)).to(device)
    book["train"](model, loss, book["data"], epochs, book["adamw"](model))
    return model


def weighted_terms(book, of_distortion, of_rate):
    def loss(model, batch):
        distortion, rate = book["vae_terms"](model, book["binarise"](batch.images))
        return of_distortion * distortion + of_rate * rate

    return loss


@torch.no_grad()
def vae_row(book, model):
    """Distortion, rate, −ELBO and active dimensions on validation images."""
    x = book["validation_x"]
    distortion, rate = (term.mean().item() for term in book["vae_terms"](model, x))
    active = (book["encode"](model, x)[0].var(0) > book["ACTIVE"]).sum().item()
    return {
        "distortion": f"{distortion:.1f}",
        "rate": f"{rate:.1f}",
        "−ELBO": f"{distortion + rate:.1f}",
        "active dimensions": f"{active}",
    }


def drawn(book, model):
    """Ten images from the prior, as pixel probabilities: the same codes each time."""
    torch.manual_seed(1)
    return book["decode"](model, torch.randn(10, book["LATENT_DIM"], device=device))


def beta_by_hand(beta):
    book = basic()
    model = train_vae(book, weighted_terms(book, 1, beta))
    keep(f"beta {beta:g}", drawn(book, model))
    return {"β": f"{beta:g}"} | vae_row(book, model)


def average_in_place_of_sum(case):
    book = basic()
    weights = {
        "sum, sum": (1, 1),
        "mean over pixels, sum over dimensions": (1 / 784, 1),
        "mean over pixels, mean over dimensions": (1 / 784, 1 / book["LATENT_DIM"]),
    }
    of_distortion, of_rate = weights[case]
    scale = 1 / of_distortion  # a factor in front of both terms: Adam hardly sees it
    model = train_vae(book, weighted_terms(book, 1, of_rate * scale))
    keep(f"average {case}", drawn(book, model))
    beta = of_rate / of_distortion
    return {"distortion, rate": case, "which β": f"{beta:.4g}"} | vae_row(book, model)


def where_the_gap_comes_from(steps):
    """μ and σ of 100 images, fitted by so many steps on −ELBO."""
    book = basic()
    model, x = trained_vae(book), book["some_validation"][:100]
    torch.manual_seed(0)
    mu, sigma = (part.clone() for part in book["encode"](model, x))
    log_sigma = sigma.log().requires_grad_()
    mu.requires_grad_()
    optimizer = torch.optim.Adam([mu, log_sigma])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = FIT_RATE * (1 - step / steps)
        q = Independent(Normal(mu, log_sigma.exp()), 1)
        z = q.rsample((FIT_CODES,))
        loss = -book["log_w"](model, x, z, q).mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        q = Independent(Normal(mu, log_sigma.exp()), 1)
        elbo = -torch.stack([book["log_w"](model, x, q.sample((100,)), q) for _ in range(10)])
        elbo = elbo.flatten(0, 1).mean(0)
        nll = -book["importance_bound"](book["log_weights"](model, x, 10_000), 10_000)
    return {
        "q": f"fitted to each image, {steps} steps" if steps else "as the encoder guesses",
        "−ELBO": f"{elbo.mean():.2f}",
        "above the NLL (K = 10,000)": with_error(elbo - nll),
    }


def full_covariance(kind, seed):
    """−ELBO and NLL with a diagonal or a full covariance of q."""
    book = basic(seed)
    d = book["LATENT_DIM"]

    class Full(book["VAE"]):
        """q(z|x) = N(μ, L Lᵀ), L lower triangular, its diagonal exp of a number."""

        def __init__(self):
            super().__init__(d, book["ENCODER"], book["DECODER"])
            self.encoder = book["mlp"](784, *book["ENCODER"], 2 * d + d * (d - 1) // 2)
            self.register_buffer("place", torch.tril_indices(d, d, -1))
            with torch.no_grad():  # at first as without it
                self.encoder[-1].weight[2 * d :] *= 0.01

        def q(self, x):
            mu, log_diagonal, below = self.encoder(x).float().split([d, d, d * (d - 1) // 2], -1)
            scale = torch.diag_embed(log_diagonal.exp())
            scale[..., self.place[0], self.place[1]] = below
            return MultivariateNormal(mu, scale_tril=scale)

    class Prior(nn.Module):
        """The same prior, as a distribution of the same kind."""

        def __init__(self):
            super().__init__()
            self.register_buffer("eye", torch.eye(d))

        def forward(self):
            return MultivariateNormal(self.eye[0] * 0, scale_tril=self.eye)

    model = None
    torch.manual_seed(seed)
    if kind == "full":
        model = Full()
        model.prior = Prior()

    def loss(model, batch):
        return sum(book["vae_terms"](model, book["binarise"](batch.images)))

    begin = time.perf_counter()
    model = train_vae(book, loss, 2 * EPOCHS, model)
    seconds = time.perf_counter() - begin
    log_ws = book["log_weights"](model, book["some_validation"], 500)
    elbo, nll = (-book["importance_bound"](log_ws, k).mean() for k in (1, 500))
    with torch.no_grad():
        rate = kl_divergence(model.q(book["some_validation"]), model.prior()).mean()
    return {
        "covariance of q": kind,
        "seed": f"{seed}",
        "−ELBO": f"{elbo:.2f}",
        "NLL (K = 500)": f"{nll:.2f}",
        "gap": f"{elbo - nll:.2f}",
        "rate": f"{rate:.2f}",
        "seconds": f"{seconds:.0f}",
    }


def fewer_bits(power):
    """Bits-back with 2^power buckets for each dimension: the size of 200 images, and whether all come back."""
    book = basic()
    model = trained_vae(book).cpu()
    count = 2**power
    book["device"] = torch.device("cpu")
    book["BUCKETS"] = count
    book["EDGES"] = [-math.inf, *NormalDist().quantiles(count), math.inf]
    book["MIDDLES"] = NormalDist().quantiles(2 * count)[::2]
    messages = book["some_validation"][:200].int().tolist()
    bits = book["LATENT_DIM"] * book["BITS"]
    initial = random.Random(0).getrandbits(bits) | 2**bits
    state, steps = initial, []
    for pixels in messages:
        state, lengths = book["send"](state, model, pixels)
        steps.append(lengths)
    price = book["prices"](steps)
    received = []
    for _ in messages:
        state, pixels = book["receive"](state, model, book["LATENT_DIM"])
        received.append(pixels)
    equal = sum(a == b for a, b in zip(messages, received[::-1], strict=True))
    return {
        "buckets": f"2^{power}",
        "bytes an image": f"{sum(price.values()):.2f}",
        "distortion": f"{price['distortion']:.2f}",
        "rate": f"{price['rate']:.2f}",
        "came back equal": f"{equal} of {len(messages)}",
    }


@torch.no_grad()
def an_inactive_dimension(case):
    """Distortion when dimensions of each code are replaced by what has nothing to do with the image."""
    book = basic()
    model, x = trained_vae(book), book["validation_x"]
    torch.manual_seed(0)
    means, scales = book["encode"](model, x)
    rates = book["dimension_rates"](model, x)
    active = means.var(0) > book["ACTIVE"]
    z = Normal(means, scales).sample()
    before = -model.p(z).log_prob(x)
    weakest = torch.where(active, rates, math.inf).argmin()
    places = torch.arange(len(rates), device=z.device)
    replaced = {
        "all inactive ones, drawn anew": ~active,
        "all inactive ones, set to 0": ~active,
        "the active one of the lowest rate, drawn anew": places == weakest,
        "the active one of the highest rate, drawn anew": places == rates.argmax(),
    }[case]
    other = torch.zeros_like(z) if "set to 0" in case else torch.randn_like(z)
    after = -model.p(torch.where(replaced, other, z)).log_prob(x)
    norms = model.decoder[0].weight.norm(dim=0)[replaced]  # of the decoder's first layer
    return {
        "replaced": case,
        "dimensions": f"{int(replaced.sum())}",
        "their rate": f"{rates[replaced].sum():.3f}",
        "norm of their weights, up to": f"{norms.max():.2f}",
        "more distortion": with_error(after - before, 3),
    }


# MADE


def made(book, orders, degrees, kind="MADE", **options):
    """A network after so many epochs; what `short` in the notebook does."""
    torch.manual_seed(book["SEED"])
    model = book[kind] if isinstance(kind, str) else kind
    model = model(torch.stack(orders), torch.stack(degrees), book["mean"], book["BLOCKS"]).to(
        device
    )
    epochs = options.pop("epochs", book["SHORT_EPOCHS"])
    loss = book["expected_nll"](len(orders), **options)
    data = book["train_data"]
    book["train"](model, loss, data, epochs, book["adamw"](model, book["LEARNING_RATE"]))
    return model


def pass_count(book, model, number=100):
    torch.manual_seed(0)
    u = torch.rand(number, len(book["mean"]), device=device)
    return book["settled"](book["passes"](model, u)).amax(1).float().mean().item()


def snail(size=28):
    """A spiral that ends in the middle."""
    left = torch.arange(size * size).view(size, size)
    visit = []
    while left.numel():
        visit += left[0].tolist()
        left = left[1:].T.flip(0)
    return torch.tensor(visit)


def a_random_ordering(kind, seed):
    book = masks.setting(seed)
    rows = torch.arange(784)
    order = {
        "reading": rows,
        "by columns": rows.view(28, 28).T.flatten(),
        "a spiral inwards": snail(),
        "a spiral outwards": snail().flip(0),
        "random": torch.randperm(784, generator=torch.Generator().manual_seed(seed)),
    }[kind]
    degrees = book["draw_degrees"](order, book["mean"], book["HIDDEN"])
    model = made(book, [order], [degrees])
    nll = -book["log_p"](model, book["validation_x"]).mean()
    return {
        "ordering": kind,
        "seed": f"{seed}",
        "NLL": f"{nll:.2f}",
        "passes to draw an image": f"{pass_count(book, model):.0f}",
    }


def flips_for_longer(epochs):
    book = masks.setting()
    log_p = [
        book["log_p"](
            made(book, [book["order"]], [book["degrees"]], epochs=epochs, grey=grey),
            book["validation_x"],
        )
        for grey in (True, False)
    ]
    return {
        "epochs": f"{epochs}",
        "grey levels": f"{-log_p[0].mean():.2f}",
        "coin flips": f"{-log_p[1].mean():.2f}",
        "flips are worse by": with_error(log_p[0] - log_p[1]),
    }


def two_networks_averaged(pair):
    """Conditionals of two networks with the same ordering, averaged."""
    book = masks.setting()
    order, x = book["order"], book["validation_x"]
    uniform = book["draw_degrees"](order, torch.full_like(book["mean"], 0.5), book["HIDDEN"])
    first = made(book, [order], [book["degrees"]])
    if pair == "other degrees":
        second = made(book, [order], [uniform])
    else:
        book["SEED"] = 1
        second = made(book, [order], [book["degrees"]])
    with torch.no_grad():
        alone, together = [], []
        for part in x.split(1000):
            each = torch.stack([book["log_conditionals"](m, part) for m in (first, second)])
            alone.append(each.sum(2))
            together.append(book["log_mean_exp"](each, 0).sum(1))
        alone, together = torch.cat(alone, 1), torch.cat(together)
    mixture = book["log_mean_exp"](alone, 0)
    best = alone[alone.mean(1).argmax()]
    return {
        "second network": pair,
        "first alone": f"{-alone[0].mean():.2f}",
        "second alone": f"{-alone[1].mean():.2f}",
        "mixture": f"{-mixture.mean():.2f}",
        "conditionals averaged": f"{-together.mean():.2f}",
        "better than the better one": with_error(together - best),
    }


HOLE = 10  # pixels a side


def a_hole_in_the_middle(kind):
    """A square in the middle, filled in by an ordering that visits it last."""
    book = masks.setting()
    inside = torch.zeros(28, 28, dtype=torch.bool)
    begin = (28 - HOLE) // 2
    inside[begin : begin + HOLE, begin : begin + HOLE] = True
    inside = inside.flatten()
    rows = torch.arange(784)
    last = torch.cat([rows[~inside], rows[inside]])
    order = last if kind == "the hole last" else rows
    degrees = book["draw_degrees"](order, book["mean"], book["HIDDEN"])
    model = made(book, [order], [degrees])
    x = book["validation_x"]
    inside = inside.to(device)
    with torch.no_grad():
        each = torch.cat([book["log_conditionals"](model, part) for part in x.split(1000)])
    row = {
        "ordering": kind,
        "NLL of the image": f"{-each.sum(1).mean():.2f}",
        "of the hole, in this visit": f"{-each[:, inside].sum(1).mean():.2f}",
    }
    if kind == "the hole last":
        some = x[book["one_of_each"](book["validation_labels"]).to(device)]
        torch.manual_seed(0)
        rounds = [
            book["sample"](model, torch.rand_like(some), known=~inside, image=some)
            for _ in range(3)
        ]
        hidden = torch.where(inside, 0.4, some)
        keep("hole", torch.cat([hidden, *rounds, some]))
    return row


def dropout(case):
    """Dropout, or layer normalisation, in the hidden layers."""
    book = masks.setting()
    share = float(case.split()[-1]) if "dropout" in case else 0.0
    normalised = "normalisation" in case

    class Other(book["MADE"]):
        def logits(self, x, k=0, c=None, weights=None):
            first, hidden, last, direct = self.cut(k) if weights is None else weights
            x = x - self.mean

            def act(h):
                h = F.layer_norm(h, h.shape[-1:]) if normalised else h
                return F.dropout(F.silu(h), share, torch.is_grad_enabled())

            h = F.linear(x, first, self.first.bias)
            for i in range(0, len(hidden), 2):
                inner = F.linear(act(h), hidden[i], self.hidden[i].bias)
                h = h + F.linear(act(inner), hidden[i + 1], self.hidden[i + 1].bias)
            return (F.linear(act(h), last, self.last.bias) + F.linear(x, direct)).float()

    model = made(book, [book["order"]], [book["degrees"]], Other, epochs=20)
    nll = -book["log_p"](model, book["validation_x"]).mean()
    share, place = 0.0, book["order"].to(device)  # slopes without dropout
    slopes = book["jacobian"](model.logits, place, book["validation_x"][:1])
    # The target of a leak is allowed to be seen: does one pass say what hiding the pixels says?
    some = book["validation_x"][:20]
    with torch.no_grad():
        hidden = book["one_by_one"](model.logits, some, book["order"])
        hidden_nll = F.binary_cross_entropy_with_logits(hidden, some, reduction="none").sum(1)
        honest = (hidden_nll + book["log_p"](model, some)).mean()
    return {
        "hidden layers with": case,
        "score, nats": f"{nll:.2f}",
        "slopes on or above the diagonal": f"{int((slopes.triu() != 0).sum()):,}",
        "more when pixels are really hidden": f"{honest:.2f}",
    }


def ten_clusters(case):
    """Labels of other kinds, taught as the notebook teaches classes."""
    from sklearn.cluster import MiniBatchKMeans

    book = masks.setting()
    single = book["MADE"](book["order"][None], book["degrees"][None], book["mean"], book["BLOCKS"])
    path = ROOT / "weights" / "MNIST-MADE.pt"
    single.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    book |= {"single": single.to(device)}
    images, labels = book["train_data"]
    count = int(case.split()[0])
    if "clusters" in case:
        grouping = MiniBatchKMeans(count, batch_size=5000, n_init=3, random_state=0)
        labels = torch.tensor(grouping.fit_predict(images.cpu().float() / 255)).long().to(device)
    elif "random" in case or count == 1:
        labels = torch.randint(count, labels.shape, generator=torch.Generator().manual_seed(0))
        labels = labels.to(device)
    x = book["validation_x"]

    def mixture(labels):
        model = book["told"](labels)
        return -book["log_mixture"](book["log_p_given_class"](model, x), labels)

    before, after = -book["log_p"](book["single"], x), mixture(labels)
    row = {
        "told": case,
        "mixture": f"{after.mean():.2f}",
        "better than before": with_error(before - after),
        "better than one label for all": "",
    }
    if count > 1:  # the control: as much training, and nothing to be told
        control = mixture(torch.zeros_like(labels))
        row["better than one label for all"] = with_error(control - after)
    return row


def smaller_images(side):
    """Passes of guess and correct, on images of other sizes."""
    book = masks.setting()
    grey = book["train_data"][0].view(-1, 1, 28, 28).float()
    if side > 28:
        grey = F.interpolate(grey, size=side, mode="bilinear")
    else:
        grey = F.avg_pool2d(grey, 28 // side)
    images = grey.flatten(1).round().byte()
    mean = images.float().mean(0) / 255
    order = torch.arange(side * side)
    degrees = book["draw_degrees"](order, mean, book["HIDDEN"])
    book |= {"mean": mean, "train_data": (images, book["train_data"][1])}
    model = made(book, [order], [degrees])
    passes = pass_count(book, model)
    return {
        "side": f"{side}",
        "pixels": f"{side * side}",
        "passes, guess and correct": f"{passes:.1f}",
        "passes, one by one": f"{side * side}",
        "ratio": f"{side * side / passes:.0f}",
    }


# Lagrangian_VAE


def lagrangian_start():
    """The plain models of the committed run, where `front` looks for models."""
    front.KEPT = KEPT
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, file in (("N(0, I)", "N(0,-I)"), ("learned prior", "learned-prior")):
        target = KEPT / f"plain, {name}, seed 0.pt"
        if not target.exists():
            target.write_bytes((ROOT / "weights" / f"MNIST-lagVAE-{file}.pt").read_bytes())


def late(history, column="lambda 0"):
    values = [row[column] for row in history][-len(history) // 3 :]
    return math.exp(sum(map(math.log, values)) / len(values))


def own_bound(which, bound):
    lagrangian_start()
    _, _, history = front.constrained(0, front.WANTED[which], bound)
    last = history[-1]
    return {
        "information": which,
        "bound": f"{bound:g}",
        "−ELBO": f"{last['-ELBO']:.2f}",
        "rate": f"{last['rate']:.2f}",
        "distortion": f"{last['distortion']:.2f}",
        "λ": f"{late(history):.2f}",
    }


def own_budget(budget):
    """λ of the six small models of the notebook for so many bytes."""
    book = front.setting(0)
    fixed = {
        f"{n}_{part}": book[f"{n}_{part}"]
        for n in ("validation", "test")
        for part in ("images", "labels")
    }
    book |= fixed
    cell(book, "Lagrangian_VAE", "cases = {")
    asked = budget * 8 * math.log(2)
    row = {"bytes": f"{budget}", "nats": f"{asked:.1f}"}
    worst = 0.0
    for name, case in book["cases"].items():
        multiplier = book["Multiplier"](asked)
        _, rate, _ = book["train_small"](case, multiplier)
        row[name] = f"{multiplier.value:.2f}"
        worst = max(worst, abs(rate - asked))
    return row | {"farthest from what was asked": f"{worst:.2f} nats"}


def impatient_multiplier(times):
    lagrangian_start()
    pi = {name: times * value for name, value in front.PATIENT.items()}
    _, _, history = front.spread(0, 94.0, front.SPREAD, pi=pi)
    prices = [row["lambda 1"] for row in history][-6:]
    last = history[-1]
    return {
        "slow, fast": f"{pi['slow']:g}, {pi['fast']:g}",
        "λ₂ in the last third": f"{min(prices):.1f} to {max(prices):.1f}",
        "−ELBO": f"{last['-ELBO']:.2f}",
        "distortion": f"{last['distortion']:.2f}",
        "rate": f"{last['rate']:.2f}",
    }


def without_the_start(case):
    """The step of λ from −ELBO itself in place of its change, or from the wrong images."""
    lagrangian_start()

    def make(book):
        return book["Multiplier"](front.EPSILON - front.MARGIN)

    def loss_of(book, start, multiplier):
        x = book["validation_x"]
        if case == "training images":
            x = book["binarise"](book["data"][0])
        near = None if case == "validation images, without the start" else start
        measure = book["held_out"]("-ELBO", x, near)
        return book["lagrangian"]("distortion", "-ELBO", multiplier, measure)

    book, model, history = front.onward(0, loss_of, [make])
    elbos = torch.tensor([row["-ELBO"] for row in history[-12:]])
    prices = [row["lambda 0"] for row in history[-12:]]
    training = book["evaluate"](model, book["binarise"](book["data"][0]))["-ELBO"]
    return {
        "λ is moved by": case,
        "−ELBO, validation": f"{elbos[-1]:.2f}",
        "−ELBO, training": f"{training:.2f}",
        "its standard deviation, 12 epochs": f"{elbos.std():.2f}",
        "λ, 12 epochs": f"{min(prices):.2f} to {max(prices):.2f}",
        "rate": f"{history[-1]['rate']:.2f}",
    }


def fewer_gaussians(components):
    book = front.setting(0)
    book["COMPONENTS"] = components or 1
    torch.manual_seed(0)
    model = front.network(book, "learned prior" if components else "N(0, I)")
    front.train(book, model, book["negative_elbo"], book["EPOCHS"], book["LEARNING_RATE"])
    values = book["evaluate"](model, book["validation_x"])
    judged = front.judged(book, model)
    return {
        "Gaussians": f"{components}" if components else "N(0, I)",
        "−ELBO": f"{values['-ELBO']:.2f}",
        "NLL (K = 100)": f"{judged['NLL']:.2f}",
        "rate": f"{values['rate']:.2f}",
        "Fréchet distance of samples": f"{judged['samples']:.1f}",
    }


BETAS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
AVERAGES = (
    "sum, sum",
    "mean over pixels, sum over dimensions",
    "mean over pixels, mean over dimensions",
)
REPLACED = (
    "all inactive ones, drawn anew",
    "all inactive ones, set to 0",
    "the active one of the lowest rate, drawn anew",
    "the active one of the highest rate, drawn anew",
)
MOVED_BY = ("validation images", "validation images, without the start", "training images")
SEEDS = range(3)
EXERCISES = {
    beta_by_hand: [(beta,) for beta in BETAS],
    average_in_place_of_sum: [(case,) for case in AVERAGES],
    where_the_gap_comes_from: [(0,), (2000,)],
    full_covariance: [(kind, seed) for kind in ("diagonal", "full") for seed in SEEDS],
    fewer_bits: [(power,) for power in (1, 2, 3, 4, 6, 8, 10, 14)],
    an_inactive_dimension: [(case,) for case in REPLACED],
    a_random_ordering: [
        *((kind, 0) for kind in ("reading", "by columns", "a spiral inwards", "a spiral outwards")),
        *(("random", seed) for seed in SEEDS),
    ],
    flips_for_longer: [(epochs,) for epochs in (5, 10, 20)],
    two_networks_averaged: [("other degrees",), ("another seed",)],
    a_hole_in_the_middle: [("reading order",), ("the hole last",)],
    dropout: [
        (case,) for case in ("nothing", "dropout 0.05", "dropout 0.2", "layer normalisation")
    ],
    ten_clusters: [
        (f"{number} {kind}",)
        for number, kind in (
            (1, "label for all"),
            (2, "clusters"),
            (10, "clusters"),
            (50, "clusters"),
            (10, "random labels"),
            (10, "classes"),
        )
    ],
    smaller_images: [(side,) for side in (7, 14, 28, 56)],
    own_bound: [(which, bound) for which in front.WANTED for bound in (88.0, 90.8, 95.0, 100.0)],
    own_budget: [(budget,) for budget in (1, 3, 6, 9)],
    impatient_multiplier: [(times,) for times in (1, 2, 4)],
    without_the_start: [(case,) for case in MOVED_BY],
    fewer_gaussians: [(components,) for components in (0, 1, 10, 30, 100)],
}


def do(name, arguments):
    """One row, in a process of its own."""
    KEPT.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    (exercise,) = [each for each in EXERCISES if each.__name__ == name]
    with open(KEPT / "log.txt", "a") as log, contextlib.redirect_stdout(log):
        row = exercise(*arguments)
    return row, time.perf_counter() - begin


def read():
    return json.loads(ROWS.read_text()) if ROWS.exists() else {}


def measure(names, jobs):
    """Rows of what has one of the names in its own; those that are there are made again."""
    todo = [
        (exercise.__name__, arguments)
        for exercise, all_arguments in EXERCISES.items()
        for arguments in all_arguments
        if any(part in exercise.__name__ for part in names)
    ]
    failed = 0
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(do, *job): job for job in todo}
        for future in as_completed(running):
            name, arguments = running[future]
            try:
                row, seconds = future.result()
            except Exception as error:
                failed += 1
                print(f"{name} {arguments}: {error!r}", flush=True)
                continue
            rows = read()
            rows.setdefault(name, {})[str(arguments)] = row
            ROWS.parent.mkdir(exist_ok=True)
            ROWS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
            print(f"{name} {arguments}, {seconds:.0f} s: {row}", flush=True)
    return failed


def table(name, rows):
    """The rows of an exercise in Markdown, in the order of its arguments."""
    (exercise,) = [each for each in EXERCISES if each.__name__ == name]
    found = [rows[name][str(arguments)] for arguments in EXERCISES[exercise]]
    columns = list(found[0])
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in found)]
    return "\n".join(f"| {' | '.join(parts)} |" for parts in lines)


def with_tables(text, rows):
    """The page with each table, between a comment with its name and one that ends it, as measured."""

    def replace(match):
        return f"<!-- {match[1]} -->\n{table(match[1], rows)}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.S)


SHEETS = {  # name of a picture: rows of images with their labels
    "beta": {f"β = {beta:g}": f"beta {beta:g}" for beta in (0.1, 0.5, 1, 4, 16)},
    "average": {
        "sums": "average sum, sum",
        "mean, sum": "average mean over pixels, sum over dimensions",
        "means": "average mean over pixels, mean over dimensions",
    },
    "hole": {("hidden", "draw 1", "draw 2", "draw 3", "original"): "hole"},
}


def report():
    """Put the rows into the page, and draw the pictures of images that are kept."""
    PAGE.write_text(with_tables(PAGE.read_text(), read()))
    book = basic()
    for name, sheets in SHEETS.items():
        parts = {label: KEPT / f"{file}.pt" for label, file in sheets.items()}
        if not all(path.exists() for path in parts.values()):
            continue
        images = torch.cat([torch.load(path) for path in parts.values()])
        labels = [x for label in parts for x in (label if isinstance(label, tuple) else (label,))]
        plt.style.use("default")
        plt.rc("figure", dpi=110)
        book["show"](images, 10, labels=labels)
        plt.savefig(PAGE.parent / f"{name}.png", metadata={"Software": None})
        plt.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="what the names of the exercises contain")
    parser.add_argument("--list", action="store_true", help="print the exercises' names")
    parser.add_argument("--report", action="store_true", help="write docs/answers.md")
    parser.add_argument("--jobs", type=int, default=1, help="rows measured side by side")
    options = parser.parse_args()
    if options.report:
        return report()
    if options.list or not options.names:
        return print("\n".join(exercise.__name__ for exercise in EXERCISES))
    sys.exit(measure(options.names, options.jobs) > 0)


if __name__ == "__main__":
    main()
