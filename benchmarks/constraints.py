"""What is a bound worth? Codes of at most 1, 3 or 6 bytes, by a weight, a search, and four rules that move a price.

All train the small VAE of Lagrangian_VAE.ipynb for 800 steps and look at the same half of the validation images. All
aim at the same rate: what is asked, less the notebook's margin, which the other half and a seed of its own tell. Each
is tuned on MNIST with three bytes and that seed. The test images judge, once: is the rate at most what was asked, how
much is unused, and what is the distortion beside that of a sweep of weights at the same rate?

    python benchmarks/constraints.py margin        # first, then
    python benchmarks/constraints.py tuning
    python benchmarks/constraints.py               # the rest
"""

import math
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from harness import Job, book, main, read

CASES = ("MNIST", "14 × 14 pixels", "ones only", "5,000 images")
METHODS = ("multiplier", "secant search", "weight", "GECO", "ControlVAE", "Adam")
BYTES, SEEDS, PILOT = (1, 3, 6), (0, 1, 2), 100  # PILOT: the seed of margins and tuning
NATS_OF_A_BYTE = 8 * math.log(2)
LONGER = "multiplier, 3,200 steps"
CAP = 100.0  # no price gets higher, as in the notebook
MEMORY = 0.05  # GECO: the share of a new violation in the running average
KP = 0.01  # ControlVAE: the factor of the proportional part
SWEEP = (0.15, 0.3, 0.6, 1.0, 1.7, 3.0, 6.0, 12.0)
NEIGHBOURS = tuple(round(1.3**k, 3) for k in range(-4, 6))  # weights a factor of 1.3 apart


@dataclass
class Geco:
    """The update of Rezende & Viola (2018): λ ← λ exp(step × a running average of the violation)."""

    bound: float
    step: float
    value: float = 1.0
    average: float = None

    def ascend(self, constraint):
        v = constraint - self.bound
        before = v if self.average is None else self.average
        self.average = (1 - MEMORY) * before + MEMORY * v
        self.value = min(self.value * math.exp(self.step * self.average), CAP)


@dataclass
class ControlVAE:
    """The PI controller of Shao et al. (2020), with its Kp; its integral begins at 1 and does not wind up."""

    bound: float
    step: float  # Ki
    value: float = 1.0
    integral: float = 1.0

    def ascend(self, constraint):
        e = self.bound - constraint
        self.integral = min(max(self.integral - self.step * e, 0.0), CAP)
        proportional = KP / (
            1 + math.exp(min(e, 50.0))
        )  # e is cut off, so that exp does not overflow
        self.value = min(proportional + self.integral, CAP)


class AdamPrice:
    """Adam on log λ, whose step is nearly the same whatever the violation."""

    def __init__(self, bound, step):
        self.bound, self.log_value = bound, torch.zeros((), requires_grad=True)
        self.optimizer = torch.optim.Adam([self.log_value], step, maximize=True)

    @property
    def value(self):
        return self.log_value.exp().item()

    def ascend(self, constraint):
        self.log_value.grad = torch.tensor(float(constraint - self.bound))
        self.optimizer.step()
        self.log_value.data.clamp_(max=math.log(CAP))


RULES = {"GECO": Geco, "ControlVAE": ControlVAE, "Adam": AdamPrice}  # beside the multiplier
STEPS = {
    "multiplier": (0.02, 0.04, 0.08, 0.16),
    "GECO": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "ControlVAE": (1e-3, 3e-3, 1e-2, 3e-2),
    "Adam": (0.003, 0.01, 0.03, 0.1),
}  # that tuning tries


def images_of(names, case):
    """Training images, and binary ones that steer, that tell the margin, and that test."""
    few = lambda images: names["subset"](images, 5000) if len(images) > 10_000 else images  # noqa: E731
    make = {
        "MNIST": lambda images, labels: images,
        "14 × 14 pixels": names["coarse"],
        "ones only": lambda images, labels: images[labels == 1],
        "5,000 images": lambda images, labels: few(images),
    }
    return names["images_of"](make[case])


def judged(names, model, others):
    """Rates and distortions of images that did not steer."""
    row = {}
    for part, x in others.items():
        distortion, rate = names["held_out_terms"](model, x)
        mean, error = names["mean_and_error"](rate)
        row |= {
            f"{part} rate": mean,
            f"{part} ±": error,
            f"{part} distortion": distortion.mean().item(),
        }
    return row


def by_rule(names, rule, step, aim, train, steering, seed):
    """One training with a price that is moved."""
    if rule == "multiplier":
        price = names["Multiplier"](aim, speed=step)
    else:
        price = RULES[rule](aim, step)
    going = names["small_training"](rule, train, seed)
    measure = names["OnSome"]("rate", steering)
    names["fit_bounded"](going, "distortion", "rate", price, measure)
    return going.model, price.value


def by_weight(names, beta, train, seed):
    going = names["small_training"]("weight", train, seed)
    names["fit_weighted"](going, beta)
    return going.model


def by_secant(names, aim, train, steering, seed, near=0.97, most=8):
    """Trainings with weights, from β = 1, until the rate is within 3 % below the aim: model, β, how many."""
    tried, log_beta, slope, best = [], 0.0, -0.65, None
    while len(tried) < most:
        model = by_weight(names, math.exp(log_beta), train, seed)
        rate = names["held_out_terms"](model, steering)[1].mean().item()
        tried.append((log_beta, math.log(max(rate, 1e-3))))
        if rate <= aim and (best is None or rate > best[0]):
            best = rate, model, math.exp(log_beta)
        if near * aim <= rate <= aim:
            break
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            (a, u), (b, v) = tried[-2:]
            slope = min(max((v - u) / (b - a), -3.0), -0.2)
        step = (math.log(aim * (1 + near) / 2) - tried[-1][1]) / slope
        log_beta += min(max(step, -1.5), 1.5)
    _, model, beta = best or (rate, model, math.exp(tried[-1][0]))
    return model, beta, len(tried)


def aim_of(case, size):
    """What is aimed at: asked, less the margin."""
    return size * NATS_OF_A_BYTE - read("constraints")[f"margin, {case}, {size} bytes"]["margin"]


def margin(seed, case, size):
    names, asked = book("Lagrangian_VAE"), size * NATS_OF_A_BYTE
    train, steering, telling, _ = images_of(names, case)
    model, price = by_rule(names, "multiplier", 0.04, asked, train, steering, seed)
    rates = names["held_out_terms"](model, telling)[1]
    mean, error = names["mean_and_error"](rates)
    return {
        "margin": names["margin"](rates, asked),
        "telling rate": mean,
        "telling ±": error,
        "price": price,
    }


def tuning(seed, rule, step=None):
    """MNIST, three bytes: a step of a rule, or the weight by a secant search."""
    names, aim = book("Lagrangian_VAE"), aim_of("MNIST", 3)
    train, steering, telling, _ = images_of(names, "MNIST")
    if rule == "weight":
        model, price, number = by_secant(names, aim, train, steering, seed)
    else:
        (model, price), number = by_rule(names, rule, step, aim, train, steering, seed), 1
    row = judged(names, model, {"telling": telling})
    return {"rule": rule, "step": step, "price": price, "trainings": number, "aim": aim} | row


def tuned(rule):
    """The step with which a rule comes nearest to its aim among those that keep three bytes, or nearest at all."""
    rows = [
        row for row in read("constraints").values() if row["job"].startswith(f"tuning, {rule},")
    ]
    over = lambda row: row["telling rate"] > 3 * NATS_OF_A_BYTE  # noqa: E731
    return min(rows, key=lambda row: (over(row), abs(row["telling rate"] - row["aim"])))["step"]


def trial(seed, case, size, method):
    """One case by one method, judged on test images."""
    longer = {"SHORT_STEPS": 3200} if method == LONGER else {}
    names, aim = book("Lagrangian_VAE", **longer), aim_of(case, size)
    train, steering, telling, test = images_of(names, case)
    number = 1
    if method == "secant search":
        model, price, number = by_secant(names, aim, train, steering, seed)
    elif method == "weight":
        price = read("constraints")["tuning, weight"]["price"]
        model = by_weight(names, price, train, seed)
    else:
        rule = method.split(",")[0]
        model, price = by_rule(names, rule, tuned(rule), aim, train, steering, seed)
    row = {
        "case": case,
        "bytes": size,
        "method": method,
        "price": price,
        "trainings": number,
        "aim": aim,
    }
    return row | judged(names, model, {"steering": steering, "telling": telling, "test": test})


def sweep(seed, case, beta):
    names = book("Lagrangian_VAE")
    train, _, _, test = images_of(names, case)
    model = by_weight(names, beta, train, seed)
    return {"case": case, "β": beta} | judged(names, model, {"test": test})


def slopes(seed, steps, one_start=False):
    """Distortion saved for a nat of rate between models with neighbouring weights, and its error, paired."""
    names = book("Lagrangian_VAE", SHORT_STEPS=steps, SEED=seed)
    train, *parts, _ = images_of(names, "MNIST")
    sets = {"validation": torch.cat(parts), "training": names["binarise"](train)}
    models = []
    names["small_start"] = by_weight(names, 1.0, train, seed) if one_start else None
    for beta in NEIGHBOURS:
        going = names["small_onward"]("") if one_start else names["small_training"]("", train, seed)
        names["fit_weighted"](going, beta)
        models.append(going.model)
    row = {"steps": steps, "one start": one_start}
    for part, x in sets.items():
        torch.manual_seed(seed)
        terms = [names["held_out_terms"](model, x) for model in models]
        row[part] = [slope(names, *pair) for pair in pairwise(terms)]
    return row


def slope(names, first, second):
    """(D₂ − D₁) / (R₁ − R₂) of terms [2, N] of the same images, and its error."""
    lost, saved = second[0] - first[0], first[1] - second[1]
    ratio = lost.mean() / saved.mean()
    error = names["mean_and_error"](lost - ratio * saved)[1] / abs(saved.mean())
    return ratio.item(), error.item()


def jobs():
    """In the order in which they need each other: margins, tuning, trials."""
    cells = [{"case": case, "size": size} for case, size in product(CASES, BYTES)]
    label = "{case}, {size} bytes".format_map

    found = [Job(f"margin, {label(cell)}", margin, PILOT, cell) for cell in cells]
    found.append(Job("tuning, weight", tuning, PILOT, {"rule": "weight"}))
    for rule, steps in STEPS.items():
        for step in steps:
            given = {"rule": rule, "step": step}
            found.append(Job(f"tuning, {rule}, {step:g}", tuning, PILOT, given))

    for seed, method, cell in product(SEEDS, METHODS, cells):
        name = f"{method}, {label(cell)}, seed {seed}"
        found.append(Job(name, trial, seed, cell | {"method": method}))
    for case, beta in product(CASES, SWEEP):
        found.append(Job(f"sweep, {case}, β = {beta}", sweep, 0, {"case": case, "beta": beta}))
    for cell in cells:
        found.append(Job(f"{LONGER}, {label(cell)}", trial, 0, cell | {"method": LONGER}))
    for steps, seeds in ((800, SEEDS), (3200, SEEDS[:1])):
        for seed in seeds:
            found.append(Job(f"slopes, {steps} steps, seed {seed}", slopes, seed, {"steps": steps}))
    for seed in SEEDS:
        given = {"steps": 800, "one_start": True}
        found.append(Job(f"slopes from one start, seed {seed}", slopes, seed, given))
    return found


if __name__ == "__main__":
    main(jobs())
