"""The answers to the exercises of the notebooks, measured: rows of the tables in docs/answers.md.

    python benchmarks/answers.py --list           # a job for each row
    python benchmarks/answers.py beta_by_hand     # trains what has this in its name

An exercise is a function that returns a row, run once for each of its arguments. Nats are of validation images. Where
it starts from a trained model, it is the one that the last run of the notebook left in weights/. Images that are
drawn are kept in build/answers/, from which `make tables` makes the pictures.
"""

import math
from statistics import NormalDist

import masks
import torch
from harness import ROOT, Job, book, device, jobs_for, main, trained
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

KEPT = ROOT / "build" / "answers"  # images for pictures
EPOCHS = 15  # of a VAE that is trained from the start
FIT_RATE, FIT_CODES = 0.01, 16  # learning rate, and codes a step, where q is fitted to each image
CODED = 200  # images that are compressed
TRUTH = 10_000  # codes, where −L_K stands for the NLL
HOLE = 10  # pixels a side


def keep(name, images):
    """Keep images [N, 784] for a picture."""
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.save(images.cpu(), KEPT / f"{name}.pt")


def with_error(values, digits=2):
    """The mean of values [N] and its standard error, to be printed."""
    return f"{values.mean():.{digits}f} ± {values.std() / len(values) ** 0.5:.{digits}f}"


# Basic_VAE


def vae(names):
    """Its model, untrained."""
    return names["VAE"](names["LATENT_DIM"], names["ENCODER"], names["DECODER"]).to(device)


def train_vae(names, model, terms, epochs=EPOCHS):
    """Train with the notebook's loop, on the sum of two terms."""
    names["fit"](names["Training"]("", model, names["adamw"](model), epochs), terms)
    return model


def weighted(names, beta):
    """The notebook's terms with β in front of the rate."""

    def terms(model, x):
        distortion, rate = names["vae_terms"](model, x)
        return distortion, beta * rate

    return terms


@torch.no_grad()
def vae_row(names, model, name):
    """Distortion, rate, −ELBO and active dimensions; and ten images from the prior are kept."""
    x = names["validation_x"]
    distortion, rate = (term.mean().item() for term in names["vae_terms"](model, x))
    active = (names["encode"](model, x)[0].var(0) > names["ACTIVE"]).sum().item()
    torch.manual_seed(1)
    keep(name, names["decode"](model, torch.randn(10, names["LATENT_DIM"], device=device)))
    return {
        "distortion": f"{distortion:.1f}",
        "rate": f"{rate:.1f}",
        "−ELBO": f"{distortion + rate:.1f}",
        "active dimensions": f"{active}",
    }


def beta_by_hand(seed, beta):
    names = book("Basic_VAE")
    model = train_vae(names, vae(names), weighted(names, beta))
    return {"β": f"{beta:g}"} | vae_row(names, model, f"beta {beta:g}")


def average_in_place_of_sum(seed, case):
    names = book("Basic_VAE")
    # A factor in front of both terms is something that Adam hardly sees: only β is changed.
    beta = {
        "sum, sum": 1,
        "mean over pixels, sum over dimensions": 784,
        "mean over pixels, mean over dimensions": 784 / names["LATENT_DIM"],
    }[case]
    model = train_vae(names, vae(names), weighted(names, beta))
    row = {"distortion, rate": case, "which β": f"{beta:.4g}"}
    return row | vae_row(names, model, f"average {case}")


def where_the_gap_comes_from(seed, steps):
    """μ and σ of 100 images, fitted by so many steps on −ELBO."""
    names = book("Basic_VAE")
    model, x = trained(vae(names), "VAE"), names["subset"](names["validation_x"], 100)
    mu, sigma = (part.clone() for part in names["encode"](model, x))
    log_sigma = sigma.log().requires_grad_()
    mu.requires_grad_()
    optimizer = torch.optim.Adam([mu, log_sigma])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = FIT_RATE * (1 - step / steps)
        q = Independent(Normal(mu, log_sigma.exp()), 1)
        z = q.rsample((FIT_CODES,))
        names["descend"](-names["log_w"](model, x, z, q).mean(0).sum(), optimizer)
    with torch.no_grad():
        q = Independent(Normal(mu, log_sigma.exp()), 1)
        draws = [names["log_w"](model, x, q.sample((100,)), q) for _ in range(10)]
        elbo = -torch.cat(draws).mean(0)
        nll = -names["importance_bound"](names["log_weights"](model, x, TRUTH), TRUTH)
    return {
        "q": f"fitted to each image, {steps} steps" if steps else "as the encoder guesses",
        "−ELBO": f"{elbo.mean():.2f}",
        "above the NLL (K = 10,000)": with_error(elbo - nll),
    }


def full_vae(names):
    """A VAE whose q(z|x) = N(μ, L Lᵀ), L lower triangular, its diagonal exp of a number."""
    d = names["LATENT_DIM"]
    below = torch.tril_indices(d, d, -1)

    class Full(names["VAE"]):
        def q(self, x):
            mu, log_diagonal, others = self.encoder(x).float().split([d, d, below.shape[1]], -1)
            scale = torch.diag_embed(log_diagonal.exp())
            scale[..., below[0], below[1]] = others
            return MultivariateNormal(mu, scale_tril=scale)

    class Prior(nn.Module):
        """The same prior, as a distribution of the same kind."""

        def forward(self):
            return MultivariateNormal(torch.zeros(d), scale_tril=torch.eye(d))

    model = Full(d, names["ENCODER"], names["DECODER"], Prior())
    model.encoder = names["mlp"](784, *names["ENCODER"], 2 * d + below.shape[1])
    with torch.no_grad():  # at first as without it
        model.encoder[-1].weight[2 * d :] *= 0.01
    return model


def full_covariance(seed, kind):
    """−ELBO and NLL with a diagonal or a full covariance of q, by the closed form of the rate."""
    names = book("Basic_VAE")
    model = full_vae(names) if kind == "full" else vae(names)

    def terms(model, x):
        q = model.q(x)
        if kind == "full":
            rate = kl_divergence(q, model.prior())
        else:
            rate = kl_divergence(q.base_dist, model.prior().base_dist).sum(-1)
        return -model.p(q.rsample()).log_prob(x), rate

    train_vae(names, model, terms, 2 * EPOCHS)
    x = names["subset"](names["validation_x"], 2000)
    log_ws = names["log_weights"](model, x, 500)
    elbo, nll = (-names["importance_bound"](log_ws, k).mean() for k in (1, 500))
    with torch.no_grad():
        rate = terms(model, x)[1].mean()
    row = {"covariance of q": kind, "seed": f"{seed}", "−ELBO": f"{elbo:.2f}"}
    return row | {
        "NLL (K = 500)": f"{nll:.2f}",
        "gap": f"{elbo - nll:.2f}",
        "rate": f"{rate:.2f}",
    }


def fewer_bits(seed, power):
    """Bits-back with 2^power buckets for each dimension: the size of 200 images, and whether all come back."""
    edges = [-math.inf, *NormalDist().quantiles(2**power), math.inf]
    middles = NormalDist().quantiles(2 * 2**power)[::2]
    names = book("Basic_VAE", BUCKETS=2**power, EDGES=edges, MIDDLES=middles)
    model = trained(vae(names), "VAE")
    messages = names["subset"](names["validation_x"], CODED).int().tolist()
    initial = names["random_bits"](names["LATENT_DIM"] * names["BITS"], seed)
    state, steps, _ = names["write"](initial, model, messages)
    price = names["prices"](steps)
    state, received = names["read"](state, model, names["LATENT_DIM"], len(messages))
    equal = sum(map(list.__eq__, messages, received))
    return {
        "buckets": f"2^{power}",
        "bytes an image": f"{sum(price.values()):.2f}",
        "distortion": f"{price['distortion']:.2f}",
        "rate": f"{price['rate']:.2f}",
        "came back equal": f"{equal} of {len(messages)}",
    }


@torch.no_grad()
def an_inactive_dimension(seed, case):
    """Distortion when dimensions of each code are replaced by what has nothing to do with the image."""
    names = book("Basic_VAE")
    model, x = trained(vae(names), "VAE"), names["validation_x"]
    means, scales = names["encode"](model, x)
    rates = names["dimension_rates"](model, x)
    active = means.var(0) > names["ACTIVE"]
    z = Normal(means, scales).sample()
    weakest = torch.where(active, rates, math.inf).argmin()
    places = torch.arange(len(rates), device=z.device)
    replaced = {
        "all inactive ones, drawn anew": ~active,
        "all inactive ones, set to 0": ~active,
        "the active one of the lowest rate, drawn anew": places == weakest,
        "the active one of the highest rate, drawn anew": places == rates.argmax(),
    }[case]
    other = torch.zeros_like(z) if "set to 0" in case else torch.randn_like(z)
    before, after = -model.p(z).log_prob(x), -model.p(torch.where(replaced, other, z)).log_prob(x)
    norms = model.decoder[0].weight.norm(dim=0)[replaced]  # of the decoder's first layer
    return {
        "replaced": case,
        "dimensions": f"{int(replaced.sum())}",
        "their rate": f"{rates[replaced].sum():.3f}",
        "norm of their weights, up to": f"{norms.max():.2f}",
        "more distortion": with_error(after - before, 3),
    }


# MADE


def short(names, order, **options):
    """A network that visits pixels in this order, after the notebook's short training."""
    model = masks.untrained(names, order, options.pop("degrees", None), options.pop("kind", "MADE"))
    epochs = options.pop("epochs", names["SHORT_EPOCHS"])
    return masks.train(names, model, epochs, **options)


def passes_of(names, model, count=100):
    """Mean passes of guess and correct for so many images."""
    torch.manual_seed(0)
    u = torch.rand(count, len(names["mean"]), device=device)
    return names["settled"](names["passes"](model, u)).amax(1).float().mean().item()


def snail(size=28):
    """A spiral that ends in the middle."""
    left, visit = torch.arange(size * size).view(size, size), []
    while left.numel():
        visit += left[0].tolist()
        left = left[1:].T.flip(0)
    return torch.tensor(visit)


def a_random_ordering(seed, kind):
    names, rows = masks.setting(seed), torch.arange(784)
    order = {
        "reading": rows,
        "by columns": rows.view(28, 28).T.flatten(),
        "a spiral inwards": snail(),
        "a spiral outwards": snail().flip(0),
        "random": torch.randperm(784, generator=torch.Generator().manual_seed(seed)),
    }[kind]
    model = short(names, order)
    return {
        "ordering": kind,
        "seed": f"{seed}",
        "NLL": f"{masks.nll(names, model).mean():.2f}",
        "passes to draw an image": f"{passes_of(names, model):.0f}",
    }


def flips_for_longer(seed, epochs):
    names, order = masks.setting(seed), torch.arange(784)
    grey, flips = (
        masks.nll(names, short(names, order, epochs=epochs, grey=grey)) for grey in (True, False)
    )
    return {
        "epochs": f"{epochs}",
        "grey levels": f"{grey.mean():.2f}",
        "coin flips": f"{flips.mean():.2f}",
        "flips are worse by": with_error(flips - grey),
    }


def two_networks_averaged(seed, pair):
    """Conditionals of two networks with the same ordering, averaged."""
    names, order = masks.setting(seed), torch.arange(784)
    first = short(names, order)
    if pair == "other degrees":
        uniform = torch.full_like(names["mean"], 0.5)
        degrees = names["draw_degrees"](order, uniform, names["HIDDEN"])
        second = short(names, order, degrees=degrees)
    else:
        names["SEED"] = seed + 1
        second = short(names, order)
    alone = [masks.nll(names, model) for model in (first, second)]
    parts = names["validation_x"].split(1000)
    both = [names[how] for how in ("mixture", "averaged")]
    mixture, together = (-torch.cat([f([first, second], x) for x in parts]).detach() for f in both)
    best = min(alone, key=torch.mean)
    return {
        "second network": pair,
        "first alone": f"{alone[0].mean():.2f}",
        "second alone": f"{alone[1].mean():.2f}",
        "mixture": f"{mixture.mean():.2f}",
        "conditionals averaged": f"{together.mean():.2f}",
        "better than the better one": with_error(best - together),
    }


def a_hole_in_the_middle(seed, kind):
    """A square in the middle, filled in by an ordering that visits it last."""
    names, order = masks.setting(seed), torch.arange(784)
    inside = torch.zeros(28, 28, dtype=torch.bool)
    begin = (28 - HOLE) // 2
    inside[begin : begin + HOLE, begin : begin + HOLE] = True
    inside = inside.flatten().to(device)
    if kind == "the hole last":
        order = torch.cat([order[~inside.cpu()], order[inside.cpu()]])
    model, x = short(names, order), names["validation_x"]
    each = -names["log_conditionals"](model, x)
    if kind == "the hole last":
        some = x[names["one_of_each"](names["validation_labels"]).to(device)]
        noise = [torch.rand_like(some) for _ in range(3)]
        draws = [names["complete"](model, u, some, ~inside) for u in noise]
        hidden = torch.where(inside, names["UNKNOWN"], some)
        keep("hole", torch.cat([hidden, *draws, some]))
    return {
        "ordering": kind,
        "NLL of the image": f"{each.sum(1).mean():.2f}",
        "of the hole, in this visit": f"{each[:, inside].sum(1).mean():.2f}",
    }


def dropout(seed, case):
    """Dropout, or layer normalisation, in the hidden layers."""
    names, order = masks.setting(seed), torch.arange(784)
    share = float(case.split()[-1]) if "dropout" in case else 0.0

    def act(h):
        h = F.layer_norm(h, h.shape[-1:]) if "normalisation" in case else h
        return F.dropout(F.silu(h), share, torch.is_grad_enabled())

    class Block(names["Block"]):
        def forward(self, h):
            return h + self.outer(act(self.inner(act(h))))

    class Other(names["MADE"]):
        def forward(self, x, c=None):
            x = x - self.mean
            return self.last(act(self.blocks(self.first(x)))) + self.direct(x)

    names["Block"] = Block
    model, x = short(names, order, kind=Other, epochs=20), names["validation_x"]
    some, share = x[:20], 0.0  # the score, the slopes, and what follows are without dropout
    slopes = names["jacobian"](model, order.to(device), x[:1])
    # The target of a leak may be seen: does one pass say what hiding the pixels says?
    hidden = names["one_by_one"](model, some, order)
    hidden_nll = F.binary_cross_entropy_with_logits(hidden, some, reduction="none").sum(1)
    more = (hidden_nll - masks.nll(names, model)[:20]).mean()
    return {
        "hidden layers with": case,
        "score, nats": f"{masks.nll(names, model).mean():.2f}",
        "slopes on or above the diagonal": f"{int((slopes.triu() != 0).sum()):,}",
        "more when pixels are really hidden": f"{more:.2f}",
    }


def fifty_clusters(seed, case):
    """Labels of other kinds, taught as the notebook teaches classes."""
    from sklearn.cluster import MiniBatchKMeans

    names = masks.setting(seed)
    single = trained(masks.untrained(names, torch.arange(784)), "MADE")
    images, labels = names["train_data"]
    count, kind = int(case.split()[0]), case.split(maxsplit=1)[1]
    if kind == "clusters":
        grouping = MiniBatchKMeans(count, batch_size=5000, n_init=3, random_state=0)
        labels = torch.tensor(grouping.fit_predict(images.cpu().float() / 255)).long()
    elif kind != "classes":
        labels = torch.randint(count, labels.shape, generator=torch.Generator().manual_seed(0))

    def told(labels):
        """NLL of each image: the mixture over labels, after the training with them."""
        names["train_data"] = [images, labels.to(device)]
        model = names["with_classes"](single, count)
        again = names["adamw"](model, names["CLASS_RATE"])
        again = names["Training"]("", model, again, names["CLASS_EPOCHS"])
        torch.manual_seed(seed)
        names["fit"](again, distorted=names["DISTORTED"])
        given = names["log_p_given_class"](model, names["validation_x"])
        shares = (labels.bincount(minlength=count) / len(labels)).clamp(min=1e-9).log()
        return -(given + shares.to(device)).logsumexp(1)

    before, after = masks.nll(names, single), told(labels)
    control = "" if count == 1 else with_error(told(torch.zeros_like(labels)) - after)
    return {
        "told": case,
        "mixture": f"{after.mean():.2f}",
        "better than before": with_error(before - after),
        "better than one label for all": control,
    }


def smaller_images(seed, side):
    """Passes of guess and correct, on images of other sizes."""
    grey = masks.setting()["train_data"][0].view(-1, 1, 28, 28).float()
    if side > 28:
        grey = F.interpolate(grey, size=side, mode="bilinear")
    else:
        grey = F.avg_pool2d(grey, 28 // side)
    names = masks.setting(seed, grey.flatten(1).round().byte())
    passes = passes_of(names, short(names, torch.arange(side * side)))
    return {
        "side": f"{side}",
        "pixels": f"{side * side}",
        "passes, guess and correct": f"{passes:.1f}",
        "passes, one by one": f"{side * side}",
        "ratio": f"{side * side / passes:.0f}",
    }


# Lagrangian_VAE


def lagrangian(names, components=None):
    """Its large model, untrained."""
    count = names["COMPONENTS"] if components is None else components
    prior = names["Mixture"](names["LATENT_DIM"], count) if count else None
    torch.manual_seed(names["SEED"])
    sizes = names["LATENT_DIM"], names["ENCODER"], names["DECODER"]
    return names["VAE"](*sizes, prior).to(device)


def along_a_bound(names, f, bound, measure=None):
    """The notebook's training from its start, with −ELBO at most a bound: the model and its history."""
    names["start"] = start = trained(lagrangian(names), "lagVAE-start")
    going = names["onward"]("")
    multiplier = names["Multiplier"](bound - names["AIM_BELOW"])
    measure = measure or names["ChangeFrom"]("-ELBO", names["validation_x"], start)
    names["fit_bounded"](going, f, "-ELBO", multiplier, measure)
    return going.model, going.history


def late_price(history):
    """The geometric mean of λ over the last third of the rows."""
    prices = [row["price"] for row in history][-len(history) // 3 :]
    return math.exp(sum(map(math.log, prices)) / len(prices))


def terms_of(names, model, part="validation_x"):
    """Distortion and rate in nats, means over images."""
    return names["held_out_terms"](model, names[part]).mean(1).tolist()


def own_bound(seed, which, bound):
    names = book("Lagrangian_VAE")
    f = {"maximal": "distortion", "minimal": "rate"}[which]
    model, history = along_a_bound(names, f, bound)
    distortion, rate = terms_of(names, model)
    return {
        "information": which,
        "bound": f"{bound:g}",
        "−ELBO": f"{distortion + rate:.2f}",
        "rate": f"{rate:.2f}",
        "distortion": f"{distortion:.2f}",
        "λ": f"{late_price(history):.2f}",
    }


def own_budget(seed, budget):
    """λ of the four small models of the notebook for so many bytes, and how far they are from what was asked."""
    names = book("Lagrangian_VAE")
    asked = budget * names["NATS_OF_A_BYTE"]
    cases = {
        "as they are": lambda images, labels: images,
        "14 × 14 pixels": names["coarse"],
        "ones only": lambda images, labels: images[labels == 1],
        "two digits": names["paired"],
    }
    row, farthest = {"bytes": f"{budget}", "nats": f"{asked:.1f}"}, 0.0
    for name, case in cases.items():
        train, steering, telling, _ = names["images_of"](case)
        going, price = names["small_training"](name, train), names["Multiplier"](asked)
        measure = names["OnSome"]("rate", steering)
        names["fit_bounded"](going, "distortion", "rate", price, measure)
        rate = names["held_out_terms"](going.model, telling)[1].mean().item()
        row[name] = f"{price.value:.2f}"
        farthest = max(farthest, rate - asked, key=abs)
    return row | {"farthest from what was asked": f"{farthest:+.2f} nats"}


def impatient_multiplier(seed, times):
    """Two bounds, the second's price at a multiple of its speed."""
    names = book("Lagrangian_VAE")
    going = names["small_training"]("", names["train_data"][0])
    names["fit_weighted"](going, 1.0)
    names["small_start"] = going.model
    names["small_bound"] = names["validation_elbo"](going.model) + names["ROOM"]
    run = names["small_two_bounds"](times * names["MMD_SPEED"])
    prices = [row["price_of_spread"] for row in run.history]
    late = prices[-max(2, len(prices) // 3) :]
    distortion, rate = terms_of(names, run.model)
    with torch.no_grad():
        mismatch = names["mismatch"](run.model, names["subset"](names["validation_x"], 5000))
    return {
        "speed": f"{times * names['MMD_SPEED']:g}",
        "λ₂ in the last third": f"{min(late):.1f} to {max(late):.1f}",
        "MMD² / ε₂": f"{mismatch:.2f}",
        "−ELBO less its bound": f"{distortion + rate - names['small_bound']:+.2f}",
        "distortion": f"{distortion:.2f}",
        "rate": f"{rate:.2f}",
    }


def without_the_start(seed, case):
    """λ is moved by −ELBO itself in place of its change, or by the wrong images."""
    names = book("Lagrangian_VAE")
    start = trained(lagrangian(names), "lagVAE-start")
    train_x = names["binarise"](names["train_data"][0])
    elbos = []

    class Watched:
        """A measure that also looks at all validation images, ten times an epoch."""

        def __init__(self, measure):
            self.measure, self.count = measure, 0

        def __call__(self, model):
            self.count += 1
            if self.count % 2 == 0:
                elbos.append(names["validation_elbo"](model))
            return self.measure(model)

    measure = {
        "validation images": lambda: names["ChangeFrom"]("-ELBO", names["validation_x"], start),
        "validation images, without the start": lambda: names["OnSome"](
            "-ELBO", names["validation_x"]
        ),
        "training images": lambda: names["ChangeFrom"]("-ELBO", train_x, start),
    }[case]()
    model, history = along_a_bound(names, "distortion", names["EPSILON"], Watched(measure))
    late = torch.tensor(elbos[-len(elbos) // 3 :])
    prices = [row["price"] for row in history][-len(history) // 3 :]
    names["train_x"] = train_x
    _, rate = terms_of(names, model)
    return {
        "λ is moved by": case,
        "−ELBO, validation": f"{sum(terms_of(names, model)):.2f}",
        "−ELBO, training": f"{sum(terms_of(names, model, 'train_x')):.2f}",
        "its standard deviation, last third": f"{late.std():.2f}",
        "λ, last third": f"{min(prices):.2f} to {max(prices):.2f}",
        "rate": f"{rate:.2f}",
    }


def fewer_gaussians(seed, components):
    """The start and a branch with β = 1, with priors of so many Gaussians."""
    names = book("Lagrangian_VAE")
    names["start"] = start = lagrangian(names, components)
    rate, final = names["LEARNING_RATE"], names["STILL"]
    first = names["Training"]("", start, names["adamw"](start, rate), names["EPOCHS"], final=final)
    names["fit_weighted"](first, 1.0)
    going = names["onward"]("")
    names["fit_weighted"](going, 1.0)
    model = going.model
    torch.manual_seed(0)
    log_ws = names["log_weights"](model, names["subset"](names["validation_x"], 2000), 100)
    distortion, rate = terms_of(names, model)

    judge = names["lenet"](10).to(device)
    names["fit_judge"](names["Training"](
        "", judge, torch.optim.Adam(judge.parameters(), names["JUDGE_RATE"]),
        names["JUDGE_EPOCHS"], batch_size=names["JUDGE_BATCH"],
    ))  # fmt: skip
    with torch.no_grad():
        samples = names["drawn"](model, model.prior().sample((10_000,)))
    features = [names["features"](judge, x) for x in (names["validation_x"], samples)]
    return {
        "Gaussians": f"{components}" if components else "N(0, I)",
        "−ELBO": f"{distortion + rate:.2f}",
        "NLL (K = 100)": f"{-names['importance_bound'](log_ws, 100).mean():.2f}",
        "rate": f"{rate:.2f}",
        "Fréchet distance of samples": f"{names['frechet'](*features):.1f}",
    }


BETAS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
AVERAGES = ("sum, sum", "mean over pixels, sum over dimensions")
AVERAGES += ("mean over pixels, mean over dimensions",)
REPLACED = ("all inactive ones, drawn anew", "all inactive ones, set to 0")
REPLACED += tuple(
    f"the active one of the {which} rate, drawn anew" for which in ("lowest", "highest")
)
MOVED_BY = ("validation images", "validation images, without the start", "training images")
ORDERINGS = ("reading", "by columns", "a spiral inwards", "a spiral outwards", "random")
LAYERS = ("nothing", "dropout 0.05", "dropout 0.2", "layer normalisation")
LABELS = ("1 label for all", "2 clusters", "10 clusters", "50 clusters", "10 random labels")
LABELS += ("10 classes",)
SEEDS = (0, 1, 2)
EXERCISES = {  # the name of the argument, its values, and more seeds than 0 where there are
    beta_by_hand: ("beta", BETAS),
    average_in_place_of_sum: ("case", AVERAGES),
    where_the_gap_comes_from: ("steps", (0, 2000)),
    full_covariance: ("kind", ("diagonal", "full"), SEEDS),
    fewer_bits: ("power", (1, 2, 3, 4, 6, 8, 10, 14)),
    an_inactive_dimension: ("case", REPLACED),
    a_random_ordering: ("kind", ORDERINGS),
    flips_for_longer: ("epochs", (5, 10, 20)),
    two_networks_averaged: ("pair", ("other degrees", "another seed")),
    a_hole_in_the_middle: ("kind", ("reading order", "the hole last")),
    dropout: ("case", LAYERS),
    fifty_clusters: ("case", LABELS),
    smaller_images: ("side", (7, 14, 28, 56)),
    own_budget: ("budget", (1, 3, 6, 9)),
    impatient_multiplier: ("times", (1, 2, 4)),
    without_the_start: ("case", MOVED_BY),
    fewer_gaussians: ("components", (0, 1, 10, 30, 100)),
}
BOUNDS = (88.0, 90.8, 95.0, 100.0)


def jobs():
    found = jobs_for(EXERCISES)
    for seed in SEEDS[1:]:
        name = f"a_random_ordering, random, seed {seed}"
        found.append(Job(name, a_random_ordering, seed, {"kind": "random"}))
    for which in ("maximal", "minimal"):
        for bound in BOUNDS:
            given = {"which": which, "bound": bound}
            found.append(Job(f"own_bound, {which}, {bound:g}", own_bound, 0, given))
    return found


if __name__ == "__main__":
    main(jobs())
