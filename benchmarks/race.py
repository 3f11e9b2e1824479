"""Nats after the same seconds: the notebooks' trainings and other people's recipes; and seconds to so many nats.

    python benchmarks/race.py ours --threads 1    # first: the others get their seconds
    python benchmarks/race.py / --threads 1       # others, which have their authors' names
    python benchmarks/race.py nats --threads 2    # alone on the machine

Ours are the notebooks' own functions. The recipes are written anew, with their authors' networks, optimisers, schedules
and batch sizes, on the same 50,000 images, binarised afresh at each step, in the precision that ours have. A watch
counts seconds of training; it stops while the model is scored. With one thread it counts the process's own time, which
other work on the machine does not lengthen. Nats are of the test images (NLL of a VAE: K = 100, 2,000 random ones).
"""

import math
import time

import torch
from harness import Job, book, device, main, read
from masks import setting, untrained
from torch import nn
from torch.distributions import Bernoulli
from torch.nn.functional import linear, relu
from torchvision.ops import MLP

TENTH = 0.1  # of the epochs
FIRST_LOOK = 4.0  # seconds; then at times in a constant ratio
RATIO = 1.6


def now():
    """Seconds: of this process if it has one thread, else of the clock."""
    if device.type != "cpu":
        torch.accelerator.synchronize()  # queued work counts
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Watch:
    """Seconds of training and, now and then and at the end, the nats of the model."""

    def __init__(self, score, limit=math.inf):
        self.score, self.limit, self.due = score, limit, FIRST_LOOK
        self.spent, self.points, self.start = 0.0, [], now()

    def __call__(self, model, last=False):
        """Look at the watch: is the time over?"""
        self.spent += now() - self.start
        over = last or self.spent >= self.limit
        if over or self.spent >= self.due:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.points.append((round(self.spent, 1), self.score(model)))
            self.due = RATIO * self.spent
        self.start = now()
        return over


def score(names, model, part="test_x"):
    """What the notebook has a function for, in nats."""
    x = names[part]
    if "log_p" in names:
        return {"NLL": -names["log_p"](model, x).mean().item()}
    if "held_out_terms" in names:
        distortion, rate = names["held_out_terms"](model, x).mean(1).tolist()
        return {"−ELBO": distortion + rate, "distortion": distortion, "rate": rate}
    log_ws = names["log_weights"](model, names["subset"](x, 2000), 100)
    bound = names["importance_bound"]
    return {"−ELBO": -bound(log_ws, 1).mean().item(), "NLL": -bound(log_ws, 100).mean().item()}


# Ours


def basic_vae(names, watch, share):
    model = names["VAE"](names["LATENT_DIM"], names["ENCODER"], names["DECODER"]).to(device)
    epochs = round(share * names["EPOCHS"])
    training = names["Training"]("", model, names["adamw"](model), epochs, measure=watch_row(watch))
    names["fit"](training, names["vae_terms"])
    return model, epochs


def made(names, watch, share, order=None):
    order = torch.arange(784) if order is None else order
    model, epochs = untrained(names, order), max(1, round(share * names["EPOCHS"]))
    training = names["Training"]("", model, names["adamw"](model), epochs, measure=watch_row(watch))
    names["fit"](training, distorted=names["DISTORTED"] * (share == 1))
    return model, epochs


def made_in_random_order(names, watch, share):
    order = torch.randperm(784, generator=torch.Generator().manual_seed(names["SEED"]))
    return made(names, watch, share, order)


def start_of(names, prior, epochs, **options):
    """The start of Lagrangian_VAE's large models, trained, where `onward` looks for it."""
    sizes = names["LATENT_DIM"], names["ENCODER"], names["DECODER"]
    model = names["VAE"](*sizes, prior).to(device)
    optimizer, final = names["adamw"](model, names["LEARNING_RATE"]), names["STILL"]
    training = names["Training"]("", model, optimizer, epochs, final=final, **options)
    names["fit_weighted"](training, 1.0)
    names["start"] = model
    return model


def mixture(names):
    """The learned prior, untrained."""
    return names["Mixture"](names["LATENT_DIM"], names["COMPONENTS"])


def with_bounds(names, watch, share, prior, spread=False):
    """The start, and from it least distortion with a bound on −ELBO and, if asked, one on MMD²."""
    epochs = round(share * names["EPOCHS"])
    names["FRONT_EPOCHS"] = round(share * names["FRONT_EPOCHS"])
    start = start_of(names, prior, epochs, measure=watch_row(watch))

    going = names["onward"]("", measure=watch_row(watch))
    bound = names["Multiplier"](names["EPSILON"] - names["AIM_BELOW"])
    measure = names["ChangeFrom"]("-ELBO", names["validation_x"], start)
    if spread:
        second = names["Multiplier"](1.0, speed=names["MMD_SPEED"])
        names["fit_two_bounds"](going, bound, second, measure, names["mismatch_of_some"])
    else:
        names["fit_bounded"](going, "distortion", "-ELBO", bound, measure)
    return going.model, epochs + names["FRONT_EPOCHS"]


def lagrangian_vae(names, watch, share):
    """Maximal information."""
    return with_bounds(names, watch, share, mixture(names))


def problem_of_lagvae(names, watch, share):
    """Ours on lagvae's problem: 64 numbers a code, N(0, I), and its bound on its estimate of MMD²."""
    names |= {"LATENT_DIM": 64, "MMD_BOUND": names["PUBLISHED_BOUND"]}
    names["squared_width"] = lambda d: d**2 / 2
    names["mmd"] = lambda z, variance: names["mmd_with_itself"](z, torch.randn_like(z), variance)
    names["MMD_IMAGES"] = names["PUBLISHED_BATCH"]
    return with_bounds(names, watch, share, None, spread=True)


def learned_prior(names):
    """The start, and from it β = 1: the model that the notebook scores."""
    start_of(names, mixture(names), names["EPOCHS"])
    going = names["onward"]("")
    names["fit_weighted"](going, 1.0)
    return going.model


def watch_row(watch):
    """The watch as a measure for the history."""
    return lambda model: {"over": watch(model)}


# Theirs


def follow(names, watch, model, loss, batch_size, optimizers, schedule=None):
    """The recipes' loop, until the time is up: the model and how many epochs it had."""
    images, epochs = names["train_data"][0], 0.0
    while True:
        for rows in torch.randperm(len(images), device=device).split(batch_size):
            with names["autocast"]():
                nats = loss(model, names["binarise"](images[rows])).mean()
            model.zero_grad()
            nats.backward()
            for optimizer in optimizers:
                optimizer.step()
            epochs += len(rows) / len(images)
            if watch(model):
                return model, epochs
        if schedule:
            schedule.step()


def examples(names, watch, share):
    """github.com/pytorch/examples, vae/main.py, but for log σ in the place of log σ²."""
    model = names["VAE"](20, (1, 0), (1, 0))
    model.encoder, model.decoder = MLP(784, [400, 40]), MLP(20, [400, 784])
    optimizer = torch.optim.Adam(model.to(device).parameters(), 1e-3)

    def loss(model, x):
        return sum(names["vae_terms"](model, x))

    return follow(names, watch, model, loss, 128, [optimizer])


def one_hidden_layer(names, watch, hidden, batch_size, decay, falls=None):
    """A MADE with ReLU, uniform degrees, one random ordering; the learning rate may fall after some epochs."""
    d, m = torch.randperm(784, device=device), torch.randint(783, (hidden,), device=device)
    first, last = (m[:, None] >= d).float(), (d[:, None] > m).float()
    model = MLP(784, [hidden, 784]).to(device)

    def logits(x, c=None):
        h = relu(linear(x, model[0].weight * first, model[0].bias))
        return linear(h, model[3].weight * last, model[3].bias).float()

    model.forward = logits
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, falls, 0.1) if falls else None

    def loss(model, x):
        return -Bernoulli(logits=model(x)).log_prob(x).sum(1)

    return follow(names, watch, model, loss, batch_size, [optimizer], schedule)


def karpathy(names, watch, share):
    """github.com/karpathy/pytorch-made, run.py: 500 units, one mask, a learning rate that falls after 45 epochs."""
    return one_hidden_layer(names, watch, 500, 100, 1e-4, falls=45)


def generative(names, watch, share):
    """github.com/EugenHotaj/pytorch-generative, made.py: 8,000 units."""
    return one_hidden_layer(names, watch, 8000, 64, 0.0)


def lagvae(names, watch, share):
    """github.com/ermongroup/lagvae: least distortion, −ELBO <= 90.8 (our bound) and 1e4 MMD² <= 5."""
    model = names["VAE"](64, (1, 0), (1, 0))
    model.encoder = MLP(784, [1024, 1024, 128], activation_layer=nn.Softplus)
    model.decoder = MLP(64, [1024, 1024, 784], activation_layer=nn.Softplus)
    for name, parameter in model.named_parameters():  # as TensorFlow's dense layers begin
        (nn.init.xavier_uniform_ if "weight" in name else nn.init.zeros_)(parameter)
    descent = torch.optim.Adam(model.to(device).parameters(), 1e-4, betas=(0.5, 0.999))
    model.prices = nn.Parameter(torch.ones(2, device=device))
    ascent = torch.optim.RMSprop([model.prices], 1e-4, alpha=0.9, maximize=True)

    def loss(model, x):
        distortion, rate, z = names["terms"](model, x)
        mmd = names["mmd_with_itself"](z.float(), torch.randn_like(z), 64**2 / 2)
        model.prices.data.clamp_(1e-3, 100)
        excess = distortion + rate - names["EPSILON"]
        return distortion + model.prices[0] * excess + model.prices[1] * (1e4 * mmd - 5)

    return follow(names, watch, model, loss, 250, [descent, ascent])


RACES = {  # by notebook and recipe
    "Basic_VAE": {"ours": basic_vae, "pytorch/examples": examples},
    "MADE": {
        "ours": made,
        "ours, random ordering": made_in_random_order,
        "karpathy/pytorch-made": karpathy,
        "EugenHotaj/pytorch-generative": generative,
    },
    "Lagrangian_VAE": {
        "ours": lagrangian_vae,
        "ours, lagvae's problem": problem_of_lagvae,
        "ermongroup/lagvae": lagvae,
    },
}
TO_NATS = {"MADE, 12 epochs": 12 / 40, "MADE, 20 epochs": 20 / 40, "learned prior, 59 epochs": 1.0}


def run(seed, notebook, recipe, share=1.0):
    """One training: its points (seconds, nats), and epochs. Others get the seconds that ours took."""
    names = setting(seed) if notebook == "MADE" else book(notebook, SEED=seed)
    ours = recipe.startswith("ours")
    limit = math.inf if ours else read("race")[f"race, {notebook}, ours"]["points"][-1][0]
    watch = Watch(lambda model: score(names, model), limit)
    torch.manual_seed(seed)
    model, epochs = RACES[notebook][recipe](names, watch, share)
    watch(model, last=True)
    row = {"notebook": notebook, "recipe": recipe, "share": share, "epochs": round(epochs, 1)}
    return row | {"points": watch.points}


def to_nats(seed, what, share):
    """Seconds on the clock to the NLL of the test images: exact for MADE, an estimate with K = 5000 for the VAE."""
    notebook = "MADE" if what.startswith("MADE") else "Lagrangian_VAE"
    names = setting(seed) if notebook == "MADE" else book(notebook, SEED=seed)
    torch.manual_seed(seed)
    begin = time.perf_counter()
    if notebook == "MADE":
        model, _ = made(names, lambda model: 0, share)
    else:
        model = learned_prior(names)
    took = time.perf_counter() - begin
    if notebook == "MADE":
        return {"what": what, "NLL": score(names, model)["NLL"], "training": took}
    plan = zip(names["CODES"], names["SCORED"], strict=True)
    nll = names["score_by_pairs"](model, names["test_x"], plan)[-1]["−L_K"]
    return {"what": what, "NLL": nll, "training": took}


def jobs():
    found = [
        Job(f"race, {notebook}, {recipe}", run, 0, {"notebook": notebook, "recipe": recipe})
        for notebook, recipes in RACES.items()
        for recipe in recipes
    ]
    for notebook in RACES:
        given = {"notebook": notebook, "recipe": "ours", "share": TENTH}
        found.append(Job(f"race, {notebook}, ours, a tenth", run, 0, given))
    for what, share in TO_NATS.items():
        found.append(Job(f"nats, {what}", to_nats, 0, {"what": what, "share": share}))
    return found


if __name__ == "__main__":
    main(jobs())
