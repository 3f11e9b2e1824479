"""What is often asked, measured: rows of the tables in docs/questions.md.

    python benchmarks/questions.py --list           # a job for each row
    python benchmarks/questions.py told_the_class   # trains what has this in its name

A question is a function that returns a row, run once for each of its arguments. Nats are of validation images or, of
other data, of validation rows. Where it starts from a trained model, it is the one in weights/.
"""

import math
import time

import answers
import masks
import torch
from answers import train_vae, vae, vae_row, with_error
from harness import book, device, jobs_for, main, trained
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
)
from torch.nn import functional as F

EPOCHS = 30  # of a VAE that is trained from the start
FEW_EPOCHS = EPOCHS // 2  # where less is enough
SECONDS = 40  # of training, where sizes of a batch are compared
CODES, SCORED = 100, 2000  # for an NLL, and images
NLL = f"NLL (K = {CODES})"


def estimated_nll(names, model, x, codes=CODES):
    """−log p of images or of rows of numbers in nats, estimated from above: x [N, D] to [N]."""
    return -names["importance_bound"](names["log_weights"](model, x, codes), codes)


def some_nll(names, model):
    """The estimated NLL of some validation images, with its error, to be printed."""
    return with_error(estimated_nll(names, model, names["subset"](names["validation_x"], SCORED)))


# The VAE, and a likelihood


def warm_up(seed, epochs):
    """β rises from 0 to 1 in so many of the epochs."""
    names = book("Basic_VAE")
    share = epochs / EPOCHS
    model = vae(names)
    training = names["Training"]("", model, names["adamw"](model), EPOCHS)

    def terms(model, x):
        distortion, rate = names["vae_terms"](model, x)
        beta = min(1.0, training.step / (share * training.steps)) if share else 1.0
        return distortion, beta * rate

    names["fit"](training, terms)
    row = {"β reaches 1 after": f"{epochs} of {EPOCHS} epochs", "seed": f"{seed}"}
    return row | vae_row(names, model, f"warm-up {epochs}") | {NLL: some_nll(names, model)}


def told_the_class(seed, told):
    """A VAE whose encoder and decoder see the class, one-hot, and the same without it."""
    names = book("Basic_VAE")

    class Told(names["VAE"]):
        """p(x | z, c) and q(z | x, c): ten numbers more in front of both networks."""

        def __init__(self, d, encoder, decoder):
            super().__init__(d, encoder, decoder)
            self.encoder = names["mlp"](784 + 10, *encoder, 2 * d)
            self.decoder[0] = nn.Linear(d + 10, decoder[0])

        def q(self, x):
            return super().q(torch.cat([x, self.c.expand(*x.shape[:-1], 10)], -1))

        def p(self, z):
            return super().p(torch.cat([z, self.c.expand(*z.shape[:-1], 10)], -1))

    sizes = names["LATENT_DIM"], names["ENCODER"], names["DECODER"]
    model = Told(*sizes).to(device) if told else vae(names)
    training = names["Training"]("", model, names["adamw"](model), EPOCHS)
    for images, labels in training:
        x, model.c = names["binarise"](images), F.one_hot(labels, 10).float()
        with names["autocast"]():
            distortion, rate = names["vae_terms"](model, x)
            loss = (distortion + rate).mean()
        names["descend"](loss, training.optimizer)
        training.record(loss=loss)
    model.c = F.one_hot(names["validation_labels"], 10).float().to(device)
    with torch.no_grad():
        distortion, rate = (t.mean() for t in names["vae_terms"](model, names["validation_x"]))
    return {
        "the networks see": "image and class" if told else "the image",
        "seed": f"{seed}",
        "distortion": f"{distortion:.2f}",
        "rate": f"{rate:.2f}",
        "−ELBO": f"{distortion + rate:.2f}",
    }


def a_threshold(seed, kind):
    """How many images are above the NLL that one in a hundred validation images exceeds."""
    names = masks.setting(seed)
    model, x = trained(masks.untrained(names, torch.arange(784)), "MADE"), names["test_x"]
    images = {
        "test images": x,
        "test images, upside down": x.flip(1),
        "test images, two pixels to the left": x.view(-1, 28, 28).roll(-2, 2).flatten(1),
        "their negatives": 1 - x,
        "noise, as many pixels black": torch.bernoulli(x.mean().expand_as(x)),
        "a blank page": torch.zeros_like(x[:1]),
    }[kind]
    threshold = masks.nll(names, model).quantile(0.99)
    nll = -names["log_p"](model, images)
    return {
        "images": kind,
        "NLL, mean": f"{nll.mean():,.0f}",
        "above the threshold": f"{(nll > threshold).float().mean():.1%}",
        "threshold": f"{threshold:.1f}",
    }


def larger_images(seed, side):
    """The VAE of Basic_VAE on images that are enlarged to side × side pixels."""
    names = book("Basic_VAE")

    def enlarged(images):
        grey = images.view(-1, 1, 28, 28).float()
        return F.interpolate(grey, size=side, mode="bilinear").flatten(1).round().byte()

    images, labels = names["train_data"]
    names["train_data"] = [enlarged(images), labels]
    sizes = names["LATENT_DIM"], names["ENCODER"], names["DECODER"]
    model = names["VAE"](*sizes, pixels=side * side).to(device)
    begin = time.perf_counter()
    train_vae(names, model, names["vae_terms"], FEW_EPOCHS)
    seconds = (time.perf_counter() - begin) / FEW_EPOCHS
    x = names["binarise"](enlarged(names["validation_images"]), torch.Generator().manual_seed(0))
    with torch.no_grad():
        distortion, rate = (t.mean().item() for t in names["vae_terms"](model, x.to(device)))
    return {
        "images": f"{side} × {side}",
        "weights": f"{sum(p.numel() for p in model.parameters()):,}",
        "seconds an epoch": f"{seconds:.1f}",
        "distortion": f"{distortion:.1f}",
        "rate": f"{rate:.1f}",
    }


def latent_dimensions(seed, d):
    """The VAE of Basic_VAE with codes of d numbers."""
    names = book("Basic_VAE", LATENT_DIM=d)
    model = train_vae(names, vae(names), names["vae_terms"], EPOCHS)
    return {"d": f"{d}"} | vae_row(names, model, f"d {d}")


@torch.no_grad()
def the_mean_at_test_time(seed, code):
    """What is called −ELBO if a test decodes the mean of q(z|x) in place of a sample of it."""
    names = book("Basic_VAE")
    model, x = trained(vae(names), "VAE"), names["validation_x"]
    _, rate = names["vae_terms"](model, x)
    q = model.q(x)
    z = q.mean if code == "the mean" else q.sample()
    distortion = -model.p(z).log_prob(x)
    return {
        "decoded": code,
        "distortion": f"{distortion.mean():.2f}",
        "distortion + rate": f"{(distortion + rate).mean():.2f}",
    }


# Colour


LEVEL = 1 / 255  # from a level to the next
LIGHTEST = 200  # of 255 levels: no ink is lighter


class Levels(Distribution):
    """Levels 0, 1 / 255, …, 1: a logistic distribution, cut into 256 parts (Salimans et al. 2017)."""

    def __init__(self, loc, log_scale):
        super().__init__(loc.shape)
        self.loc, self.scale = loc, log_scale.exp()

    @property
    def mean(self):
        return self.loc  # nearly

    def log_prob(self, x):
        """log of the mass from half a level below x to half a level above; the ends have the tails."""
        above, below = ((x + half - self.loc) / self.scale for half in (LEVEL / 2, -LEVEL / 2))
        width = (-torch.expm1(-LEVEL / self.scale)).log() * ((x > 0) & (x < 1))
        return width + F.logsigmoid(above) * (x < 1) + F.logsigmoid(-below) * (x > 0)


def coloured(images, seed):
    """Ink of a random dark colour on white paper: uint8 [N, 784] to [N, 3 · 784]."""
    coins = torch.Generator().manual_seed(seed)
    ink = torch.randint(LIGHTEST, (len(images), 3, 1), generator=coins).to(images.device)
    return (255 - (255 - ink) * (images[:, None] / 255)).round().byte().flatten(1)


COLOUR_RATE = 2e-3  # lower than the notebook's
BITS = "bits for each level"
LIMITS = (-7.0, 2.0)  # of the logarithm of a scale, whose unit is from black to white
LIKELIHOODS = {  # p(x | z) of the decoder's two numbers for each level
    "256 levels, a logistic cut into them": lambda a, b: Levels(a, b.clamp(*LIMITS)),
    "Normal, σ learned, at least a level": lambda a, b: Normal(a, b.exp().clamp(min=LEVEL)),
    "Normal, σ² = ½ (squared error)": lambda a, b: Normal(a, 0.5**0.5),
}


def colour(seed, likelihood):
    """The VAE of Basic_VAE on coloured digits. Densities are taken per level, so that all have one unit."""
    names = book("Basic_VAE", binarise=lambda images: images / 255)
    images, labels = names["train_data"]
    names["train_data"] = [coloured(images, 0), labels]
    x = coloured(names["validation_images"], 1).to(device) / 255
    pixels, width = x.shape[1], names["DECODER"][0]

    class Coloured(names["VAE"]):
        def p(self, z):
            return Independent(LIKELIHOODS[likelihood](*self.decoder(z).float().chunk(2, -1)), 1)

    model = Coloured(names["LATENT_DIM"], names["ENCODER"], names["DECODER"], pixels=pixels)
    model.decoder[-1] = nn.Linear(width, 2 * pixels)
    optimizer = names["adamw"](model.to(device), COLOUR_RATE)
    training = names["Training"]("", model, optimizer, EPOCHS)
    try:
        names["fit"](training, names["vae_terms"])
    except FloatingPointError:
        stopped = f"not finite in epoch {len(training.history) + 1}"
        return {"likelihood": likelihood, "distortion": stopped, "rate": "", BITS: ""}
    with torch.no_grad():
        parts = [names["vae_terms"](model, part) for part in x.split(1000)]
    distortion, rate = (torch.cat(values).mean().item() for values in zip(*parts, strict=True))
    if isinstance(LIKELIHOODS[likelihood](x[:1], x[:1]), Normal):
        distortion -= pixels * math.log(LEVEL)  # a density times the width of a level
    torch.manual_seed(1)
    z = torch.randn(10, names["LATENT_DIM"], device=device)
    answers.keep(f"colour {likelihood}", names["decode"](model, z))
    return {
        "likelihood": likelihood,
        "distortion": f"{distortion:,.0f}",
        "rate": f"{rate:.0f}",
        BITS: f"{(distortion + rate) / pixels / math.log(2):.2f}",
    }


# A loss that is not finite


UNSTABLE = {
    "as it is": {},
    "4 times the learning rate": {"times": 4},
    "16 times": {"times": 16},
    "64 times": {"times": 64},
    "64 times, gradients clipped to a norm of 1": {"times": 64, "norm": 1.0},
    "64 times, log σ clamped to −7 … 2": {"times": 64, "clamp": (-7.0, 2.0)},
    "σ without exp": {"scale": lambda s: s},
    "softplus in place of exp": {"scale": F.softplus},
    "log σ² in place of log σ": {"scale": lambda s: (s / 2).exp()},
}


def not_finite(seed, change):
    """A short training with another σ, learning rate, or guard: what becomes of log σ, and of the loss."""
    names = book("Basic_VAE")
    given = UNSTABLE[change]
    low, high = given.get("clamp", (-math.inf, math.inf))
    scale = given.get("scale", torch.exp)

    class Changed(names["VAE"]):
        def q(self, x):
            mu, raw = self.encoder(x).float().chunk(2, dim=-1)
            return Independent(Normal(mu, scale(raw.clamp(low, high))), 1)

    model = Changed(names["LATENT_DIM"], names["ENCODER"], names["DECODER"]).to(device)
    rate = given.get("times", 1) * names["LEARNING_RATE"]
    training = names["Training"]("", model, names["adamw"](model, rate), FEW_EPOCHS)
    if "norm" in given:

        def clip(*_):
            nn.utils.clip_grad_norm_(model.parameters(), given["norm"])

        training.optimizer.register_step_pre_hook(clip)
    try:
        names["fit"](training, names["vae_terms"])
        stopped = ""
    except FloatingPointError:
        stopped = f"in epoch {len(training.history) + 1}"
    with torch.no_grad():
        x = names["validation_x"]
        logs = model.q(x).stddev.log()
        elbo = sum(term.mean().item() for term in names["vae_terms"](model, x))
    return {
        "changed": change,
        "highest learning rate": f"{rate:g}",
        "stopped": stopped,
        "log σ, lowest and highest": f"{logs.min():.1f}, {logs.max():.1f}",
        "−ELBO": f"{elbo:,.1f}",
    }


# Numbers in place of pixels


class Columns:
    """Distributions of several columns each, side by side; log_prob is the sum over all columns."""

    def __init__(self, *parts):
        self.parts = parts

    def log_prob(self, x):
        pieces = x.split([part.batch_shape[-1] for part in self.parts], -1)
        return sum(p.log_prob(piece).sum(-1) for p, piece in zip(self.parts, pieces, strict=True))


def table_vae(names, latent_dim, width, measured, yes_no=0, floor=0.05):
    """A VAE of measured columns, each with a σ that is learned and not below a floor, and of 0 or 1."""

    class Table(names["VAE"]):
        def __init__(self):
            sizes = (width, 1), (width, 1)
            super().__init__(latent_dim, *sizes, pixels=measured + yes_no)
            nn.init.zeros_(self.decoder[-1].bias)
            self.log_sigma = nn.Parameter(torch.zeros(measured))

        def p(self, z):
            mean, logits = self.decoder(z).float().split([measured, yes_no], -1)
            sigma = self.log_sigma.exp().clamp(min=floor)
            return Columns(Normal(mean, sigma.expand_as(mean)), Bernoulli(logits=logits))

    return Table().to(device)


ROW_CODES = 1000  # for the NLL of a row
POINTS, NOISE = 64, 0.1  # of a wave; the standard deviation of the noise
TABLE_RATE, TABLE_EPOCHS = 2e-3, 100


def by_itself_nll(train, x):
    """−log p of rows x, each column a Gaussian with the mean and the deviation of others: [N]."""
    return -Normal(train.mean(0), train.std(0)).log_prob(x).sum(1)


def gaussian_nll(train, x):
    """−log p of rows x under the Gaussian with the mean and the covariance of others: [N]."""
    return -MultivariateNormal(train.mean(0), train.T.cov()).log_prob(x)


def trained_nll(names, model, rate, epochs, train, x):
    """−log p of rows x, estimated, after a training on others: [N]."""
    optimizer = names["adamw"](model, rate)
    data = [train.to(device)] * 2  # the loop expects pairs
    names["fit"](names["Training"]("", model, optimizer, epochs, data), names["vae_terms"])
    return estimated_nll(names, model, x.to(device), ROW_CODES)


def waves(count, seed):
    """Sine waves of a random frequency, phase and height, with noise: [count, POINTS]."""
    coins = torch.Generator().manual_seed(seed)
    frequency, phase, height = torch.rand(3, count, 1, generator=coins)
    angle = 2 * math.pi * ((1 + 3 * frequency) * torch.linspace(0, 1, POINTS) + phase)
    clean = (0.5 + height) * angle.sin()
    return clean + NOISE * torch.randn(clean.shape, generator=coins)


def waves_vae_nll(train, x):
    """−log p of waves x by a VAE: [N]."""
    names = book("Basic_VAE", binarise=lambda x: x)
    made = table_vae(names, 8, 256, POINTS, floor=0.01)
    return trained_nll(names, made, names["LEARNING_RATE"], 2 * EPOCHS, train, x)


def noise_entropy(train, x):
    """Entropy of the noise of each wave: a floor of their NLL, [N]."""
    return Normal(0.0, NOISE).entropy().mul(POINTS).expand(len(x))


WAVES = {
    "each number by itself": by_itself_nll,
    "one Gaussian": gaussian_nll,
    "a VAE, d = 8": waves_vae_nll,
    "the noise alone: the floor": noise_entropy,
}


def one_dimension(seed, model):
    """Nats of a noisy sine wave. The noise is known, so a floor is, too."""
    nll = WAVES[model](waves(20_000, 1), waves(SCORED, 2))
    return {"model": model, "NLL, nats": with_error(nll)}


def cancer(seed):
    """scikit-learn's breast cancer table: 30 standardised columns and the diagnosis, to train and to score."""
    numbers, diagnosis = map(torch.tensor, load_breast_cancer(return_X_y=True))
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    numbers, diagnosis = numbers[order].float(), diagnosis[order, None].float()
    part = len(numbers) // 4  # is scored
    numbers = (numbers - numbers[part:].mean(0)) / numbers[part:].std(0)
    rows = torch.cat([numbers, diagnosis], 1)
    return rows[part:], rows[:part]


def diagnosis_nll(train, x):
    """−log p of the last column, 0 or 1, by its share in other rows: [N]."""
    return -Bernoulli(train[:, -1].mean()).log_prob(x[:, -1])


def each_diagnosis_nll(train, x):
    """−log p of rows x without the last column, with a Gaussian for each of its values: [N]."""
    parts = [train[train[:, -1] == value, :-1] for value in (0, 1)]
    healthy, ill = (gaussian_nll(part, x[:, :-1]) for part in parts)
    return torch.where(x[:, -1] == 0, healthy, ill)


def table_vae_nll(train, x):
    """−log p of rows x by a VAE: [N]."""
    names = book("Basic_VAE", binarise=lambda x: x)
    made = table_vae(names, 8, 64, measured=30, yes_no=1)
    return trained_nll(names, made, TABLE_RATE, TABLE_EPOCHS, train, x)


TABLES = {
    "each column by itself": lambda train, x: (
        by_itself_nll(train[:, :-1], x[:, :-1]) + diagnosis_nll(train, x)
    ),
    "one Gaussian, and the diagnosis by itself": lambda train, x: (
        gaussian_nll(train[:, :-1], x[:, :-1]) + diagnosis_nll(train, x)
    ),
    "a Gaussian for each diagnosis": lambda train, x: (
        each_diagnosis_nll(train, x) + diagnosis_nll(train, x)
    ),
    "a VAE, d = 8": table_vae_nll,
}


def a_table(seed, model):
    """Nats of a row with columns of two kinds."""
    return {"model": model, "NLL, nats": with_error(TABLES[model](*cancer(seed)))}


# The size of a batch


def batch_size(seed, size):
    """Batches of another size, for the same seconds; the rate grows with the square root of the size."""
    names = book("Basic_VAE")
    times = math.sqrt(size / names["BATCH_SIZE"])

    def trained_for(epochs):
        torch.manual_seed(seed)
        model = vae(names)
        optimizer = names["adamw"](model, times * names["LEARNING_RATE"])
        begin = time.perf_counter()
        training = names["Training"]("", model, optimizer, epochs, batch_size=size)
        names["fit"](training, names["vae_terms"])
        return model, time.perf_counter() - begin

    trained_for(1)  # warm
    epochs = max(1, round(SECONDS / trained_for(1)[1]))
    model, seconds = trained_for(epochs)
    row = vae_row(names, model, f"batch {size}")
    return {
        "images in a batch": f"{size:,}",
        "highest learning rate": f"{times * names['LEARNING_RATE']:.1e}",
        "epochs": f"{epochs}",
        "seconds of training": f"{seconds:.0f}",
        "−ELBO": row["−ELBO"],
        NLL: some_nll(names, model),
    }


STRANGE = ("test images", "test images, upside down", "test images, two pixels to the left")
STRANGE += ("their negatives", "noise, as many pixels black", "a blank page")
SEEDS = (0, 1, 2)
QUESTIONS = {  # the name of the argument, its values, and more seeds than 0 where there are
    warm_up: ("epochs", (0, 5, 15), SEEDS),
    a_threshold: ("kind", STRANGE),
    larger_images: ("side", (28, 64)),
    told_the_class: ("told", (False, True), SEEDS),
    latent_dimensions: ("d", (2, 4, 8, 16, 32, 64)),
    the_mean_at_test_time: ("code", ("a sample", "the mean")),
    colour: ("likelihood", tuple(LIKELIHOODS)),
    not_finite: ("change", tuple(UNSTABLE)),
    one_dimension: ("model", tuple(WAVES)),
    a_table: ("model", tuple(TABLES), SEEDS),
    batch_size: ("size", (100, 250, 500, 1000, 2000)),
}


def jobs():
    return jobs_for(QUESTIONS)


if __name__ == "__main__":
    main(jobs())
