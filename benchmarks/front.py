"""The evidence behind Lagrangian_VAE.ipynb: seeds, sweeps, several bounds, other models and data, a long training.

python benchmarks/front.py "seed 0"        # trains what has this in its name, and what it needs, and prints rows
python benchmarks/front.py --list          # what there is
Each model is kept in build/front/ and not trained again; its row, with its history, is a line of rows.jsonl there.
`--jobs 8` runs so many side by side, which pays on a GPU. Nats are of the 10,000 validation images, unless a row says
test. `--report` prints the tables of choices.md, `--score "long, wide"` the test NLL of a long training.
"""

import argparse
import contextlib
import json
import math
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context

import matplotlib.pyplot as plt
import torch
from benchmark import ROOT, device, prepare

KEPT = ROOT / "build" / "front"
EPSILON, MARGIN = 90.8, 0.2
ONWARD = 18  # epochs of the models that go on from a plain one
WANTED = {"maximal": "distortion", "minimal": "rate"}


def setting(seed):
    """Lagrangian_VAE.ipynb's definitions and data, and the names that its functions look for."""
    book = prepare("Lagrangian_VAE")
    book |= {"SEED": seed, "train_data": book["data"]}  # in place: these are its functions' globals
    return book


def load(book, name, kind=None):
    """A kept model. `kind` is its prior: "N(0, I)" or "learned prior", by its name unless it is given."""
    model = network(book, kind or ("N(0, I)" if "N(0, I)" in name else "learned prior"))
    model.load_state_dict(torch.load(KEPT / f"{name}.pt", map_location=device, weights_only=True))
    return model


def network(book, prior, encoder=None, decoder=None):
    mixture = None
    if prior == "learned prior":
        mixture = book["Mixture"](book["LATENT_DIM"], book["COMPONENTS"])
    sizes = encoder or book["ENCODER"], decoder or book["DECODER"]
    return book["VAE"](book["LATENT_DIM"], *sizes, mixture).to(device)


def train(book, model, loss, epochs, rate, final=0.0, multipliers=(), data=None, x=None):
    """Train in place as the notebook does; returns the history."""
    torch.manual_seed(book["SEED"])
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.99), fused=True)
    x = book["validation_x"] if x is None else x

    def measure(model):
        prices = {f"lambda {i}": multiplier.value for i, multiplier in enumerate(multipliers)}
        return book["evaluate"](model, x) | prices

    options = {"final": final, "measure": measure}
    return book["train"](model, loss, data or book["data"], epochs, optimizer, **options)


def plain(seed, prior):
    """A model that minimises −ELBO, from the start."""
    book = setting(seed)
    torch.manual_seed(seed)
    model = network(book, prior)
    loss, rate = book["negative_elbo"], book["LEARNING_RATE"]
    return book, model, train(book, model, loss, book["EPOCHS"], rate)


def onward(seed, loss_of, multipliers=(), epochs=None, prior="learned prior", **constants):
    """A model that goes on from the plain one with a loss, loss_of(book, start)."""
    book = setting(seed)
    book |= constants
    start = load(book, f"plain, {prior}, seed {seed}", prior)
    model = load(book, f"plain, {prior}, seed {seed}", prior)
    epochs = epochs or ONWARD
    rate, final = book["GOING_RATE"], book["GOING_FINAL"]
    multipliers = [make(book) for make in multipliers]
    loss = loss_of(book, start, *multipliers)
    return book, model, train(book, model, loss, epochs, rate, final, multipliers)


def constrained(seed, f, bound=EPSILON, value=1.0, noisy=False, pi=None, **options):
    """Least f with −ELBO <= bound, by a multiplier that starts at a value."""

    def make(book):
        return book["Multiplier"](bound - MARGIN, value, **(pi or {}))

    def loss_of(book, start, multiplier):
        measure = book["held_out"]("-ELBO", book["validation_x"], None if noisy else start)
        return book["lagrangian"](f, "-ELBO", multiplier, measure)

    return onward(seed, loss_of, [make], **options)


def held(seed, beta, **options):
    """A model with a fixed weight of the rate."""
    return onward(seed, lambda book, start: book["weighted"](beta), **options)


def spread(seed, bound, second, price=1.0, pi=None, epochs=None, **constants):
    """N(0, I): least distortion with −ELBO <= bound and, unless it is None, MMD² <= second."""

    def first(book):
        return book["Multiplier"](bound - MARGIN)

    def other(book):
        return book["Multiplier"](second, price, unit=second, **(pi or {}))

    def loss_of(book, start, *multipliers):
        x = book["validation_x"]
        measures = [book["held_out"]("-ELBO", x, start)]
        if second is None:
            return book["lagrangian"]("distortion", "-ELBO", *multipliers, *measures)
        measures.append(book["held_out_spread"](x, book["MMD_IMAGES"]))
        return book["lagrangian_of_two"](*multipliers, *measures)

    makers = [first] + ([other] if second is not None else [])
    return onward(seed, loss_of, makers, epochs, "N(0, I)", **constants)


# What was asked for, and what came out: small models, other networks, priors and data.
CASES = {
    "the first": {},
    "narrow decoder": {"decoder": (96, 1)},
    "the notebook's network": {"big": True},
    "learned prior": {"prior": "learned prior"},
    "5,000 images": {"count": 5000},
    "ones only": {"label": 1},
    "eights only": {"label": 8},
    "learning rate halved": {"rate": 0.5},
}


def transferred(seed, case, nats, beta=None, steps=1000, pi=None):
    """A small model with least distortion at so many nats of rate, or with a fixed weight of the rate."""
    book = setting(seed)
    case = CASES[case]
    images, labels = book["data"]
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(device)
    x = book["validation_x"]
    if "label" in case:
        rows = rows[labels[rows] == case["label"]]
        x = x[book["validation_labels"].to(device) == case["label"]]
    rows = rows[: case.get("count")]
    data = images[rows], labels[rows]
    epochs = steps // book["steps_per_epoch"](len(rows), book["BATCH_SIZE"])

    torch.manual_seed(seed)
    sizes = (None, None) if "big" in case else ((256, 1), case.get("decoder", (256, 1)))
    model = network(book, case.get("prior"), *sizes)
    multiplier = book["Multiplier"](nats, **(pi or {}))
    loss = book["lagrangian"]("distortion", "rate", multiplier, book["held_out"]("rate", x))
    if beta is not None:
        loss = book["weighted"](beta)
    rate = case.get("rate", 1) * book["LEARNING_RATE"]
    return book, model, train(book, model, loss, epochs, rate, 0.0, [multiplier], data, x)


def importance_weighted(book, model, x, k):
    """−L_k(x) in nats (Burda et al. 2016), with the gradient of Tucker et al. 2019: x [B, D] to [B]."""
    q = model.q(x)
    z = q.rsample((k,))
    constant = torch.distributions.Independent(
        torch.distributions.Normal(q.mean.detach(), q.stddev.detach()), 1
    )
    log_p = model.p(z).log_prob(x)
    with torch.autocast(device.type, enabled=False):
        log_ws = log_p + model.prior().log_prob(z) - constant.log_prob(z)
    shares = log_ws.detach().softmax(0)
    z.register_hook(lambda gradient: gradient * shares[..., None])
    return -book["log_mean_exp"](log_ws, 0)


def long(
    seed, epochs, k=5, encoder=None, decoder=None, decay=0.1, rate=5e-3, batch=500, **constants
):
    """A plain model with the learned prior, importance weighted; on a GPU the step is recorded once and replayed."""
    book = setting(seed)
    book |= constants
    images = book["data"][0]
    torch.manual_seed(seed)
    model = network(book, "learned prior", encoder, decoder)
    prior = set(model.prior.parameters())
    groups = [
        {"params": [p for p in model.parameters() if p not in prior], "weight_decay": decay},
        {"params": list(prior), "weight_decay": 0.0},
    ]
    graph = device.type == "cuda"
    lr = torch.tensor(rate, device=device) if graph else rate
    optimizer = torch.optim.AdamW(groups, lr, betas=(0.9, 0.99), fused=True, capturable=graph)
    rows = torch.randint(len(images), (batch,), device=device)

    def step():
        with torch.autocast(
            device.type, torch.bfloat16, enabled=book["has_bfloat16"](), cache_enabled=False
        ):
            loss = importance_weighted(book, model, book["binarise"](images[rows]), k).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def set_rate(value):
        for group in optimizer.param_groups:
            if graph:
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    replay = step
    if graph:
        set_rate(0.0)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            loss = step()

        def replay():
            recorded.replay()
            return loss

    per_epoch, history = len(images) // batch, []
    for epoch in range(epochs):
        order = torch.randperm(len(images), device=device)[: per_epoch * batch].split(batch)
        for i, part in enumerate(order):
            share = book["learning_rate"](epoch * per_epoch + i, epochs * per_epoch, 0)
            set_rate(rate * share)
            rows.copy_(part)
            value = replay()
        if epoch % 50 == 49 or epoch + 1 == epochs:
            history.append(
                {"epoch": epoch + 1, "loss": value.item()}
                | book["evaluate"](model, book["validation_x"])
            )
            print(history[-1], flush=True)
    return book, model, history


BETAS = (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0)  # seven weights of the rate
TUNED = 1.7  # the weight with which the first small model has three bytes
NATS = 3 * 8 * math.log(2)  # three bytes
PATIENT = {"slow": 0.005, "fast": 0.05}
SPREAD = 1.5e-4  # the bound on MMD²


LONG = {
    "small": {"epochs": 750},  # the notebook's networks
    "wide": {"epochs": 750, "encoder": (768, 1), "decoder": (640, 3)},
}


def tasks():
    """Name: function, arguments, options, and the names of what it needs first."""
    todo = {}

    def add(name, function, *arguments, needs=(), **options):
        todo[name] = function, arguments, options, needs

    for seed in range(3):
        for prior in ("N(0, I)", "learned prior"):
            add(f"plain, {prior}, seed {seed}", plain, seed, prior)
    for name, options in LONG.items():
        add(f"long, {name}", long, 0, **options)

    for seed in range(3):
        end = f"seed {seed}"
        start = {"needs": (f"plain, learned prior, {end}",)}
        for which, f in WANTED.items():
            for bound in (89.8, EPSILON, 91.8):
                add(f"{which}, bound {bound}, {end}", constrained, seed, f, bound, **start)
            for value in (0.01, 20.0):
                add(f"{which}, from {value}, {end}", constrained, seed, f, EPSILON, value, **start)
        for beta in BETAS:
            add(f"weight {beta}, {end}", held, seed, beta, **start)

        name = f"maximal, no change, {end}"
        add(name, constrained, seed, "distortion", pi={"fast": 0.0}, **start)
        add(f"maximal, no baseline, {end}", constrained, seed, "distortion", noisy=True, **start)
        add(f"maximal, bound 94, {end}", constrained, seed, "distortion", 94.0, **start)

        start = {"needs": (f"plain, N(0, I), {end}",)}
        add(f"N(0, I), bound 94, {end}", spread, seed, 94.0, None, **start)
        add(f"N(0, I), two bounds, {end}", spread, seed, 94.0, SPREAD, pi=PATIENT, **start)

        for case in CASES:
            add(f"bound, {case}, {end}", transferred, seed, case, NATS)
            add(f"weight for, {case}, {end}", transferred, seed, case, NATS, TUNED)
    return todo


def score(name):
    """Print the NLL of the test images under a long training that was kept, for several K."""
    book = setting(0)
    options = LONG[name.removeprefix("long, ")]
    model = network(book, "learned prior", options.get("encoder"), options.get("decoder"))
    model.load_state_dict(torch.load(KEPT / f"{name}.pt", map_location=device, weights_only=True))
    torch.manual_seed(0)
    log_ws = book["log_weights"](model, book["test_x"], 1000)
    for k in (1, 10, 100, 1000):
        nll, error = book["mean_and_error"](-book["importance_bound"](log_ws, k))
        print(f"{name}, test images, K = {k}: {nll:.2f} ± {error:.2f}")


def judge(book):
    """The notebook's judge, trained as there."""
    torch.manual_seed(book["SEED"])
    network = book["lenet"](10).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, fused=True)
    book["train"](network, book["cross_entropy"], book["data"], 3, optimizer, batch_size=250)
    return network


def judged(book, model):
    """What a model is good for: NLL (K = 100), its samples' distance from images, nearest neighbours."""
    from sklearn.neighbors import KNeighborsClassifier

    x, labels = book["validation_x"], book["validation_labels"]
    network = judge(book)
    log_ws = book["log_weights"](model, x, 100)
    nll = -book["importance_bound"](log_ws, 100).mean().item()
    with torch.no_grad():
        codes = model.prior().sample((len(x),))
    cloud = book["features"](network, book["drawn"](model, codes))
    means = book["encode"](model, x)[0].cpu()
    known, new = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).chunk(2)
    nearest = KNeighborsClassifier(1, algorithm="brute").fit(means[known], labels[known])
    hits = torch.as_tensor(nearest.predict(means[new])) == labels[new]
    return {
        "NLL": nll,
        "samples": book["frechet"](cloud, book["features"](network, x)),
        "neighbours": hits.float().mean().item(),
    }


def spreads(book, model):
    """MMD² of the codes of 5,000 random images: training, validation and test."""
    result = {}
    images = book["data"][0]
    some = images[torch.randperm(len(images), device=device)[:5000]]
    for name, x in {
        "training": book["binarise"](some),
        "validation": book["validation_x"],
        "test": book["test_x"],
    }.items():
        values = torch.tensor([book["held_out_spread"](x, 5000)(model) for _ in range(5)])
        result[name] = [values.mean().item(), values.std().item()]
    return result


def do(name, task, folder):
    """Run one task in a process of its own, keep its model, and return its row."""
    function, arguments, options, _ = task
    begin = time.perf_counter()
    with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log):
        book, model, history = function(*arguments, **options)
        seconds = time.perf_counter() - begin
        torch.save(model.state_dict(), folder / f"{name}.pt")
        row = {"name": name, "seconds": seconds, "history": history}
        if function in (plain, onward, constrained, held, spread):
            torch.manual_seed(0)
            some = torch.randperm(len(book["data"][0]), device=device)[:10_000]
            row["training"] = book["evaluate"](model, book["binarise"](book["data"][0][some]))
            row["test"] = book["evaluate"](model, book["test_x"])
            if function in (plain, held) or "bound 90.8" in name:
                row |= judged(book, model)
            if "N(0, I)" in name:
                row["MMD"] = spreads(book, model)
        if function is long:
            log_ws = book["log_weights"](model, book["validation_x"], 500)
            row["NLL"] = -book["importance_bound"](log_ws, 500).mean().item()
    return row


def read():
    """The rows that were kept, by name."""
    path = KEPT / "rows.jsonl"
    lines = path.read_text().splitlines() if path.exists() else ()
    return {row["name"]: row for row in map(json.loads, lines)}


def run(todo, names, jobs):
    """Run tasks side by side, each after what it needs; write and print a row for each."""
    KEPT.mkdir(parents=True, exist_ok=True)
    rows = KEPT / "rows.jsonl"
    kept = set(read())
    waiting = {n for name in names for n in (*todo[name][3], name)} - kept
    running = {}
    order = {name: i for i, name in enumerate(todo)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while waiting or running:
            for name in sorted(waiting, key=order.get):
                if set(todo[name][3]) <= kept and len(running) < jobs:
                    waiting.remove(name)
                    running[pool.submit(do, name, todo[name], KEPT)] = name
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                name = running.pop(future)
                try:
                    row = future.result()
                except Exception as error:
                    print(f"{name}: {error!r}", flush=True)
                    waiting -= {n for n in waiting if name in todo[n][3]}
                    continue
                kept.add(name)
                with rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                means = {key: float(f"{value:.5g}") for key, value in last(row).items()}
                print(f"{name:45s} {row['seconds']:6.1f} s {means}", flush=True)


def over_seeds(rows, name, value):
    """Mean and standard deviation over seeds of value(row), for the rows of this name."""
    values = torch.tensor([value(rows[f"{name}, seed {seed}"]) for seed in range(3)])
    return f"{values.mean():.2f} ± {values.std():.2f}"


def last(row):
    return row["history"][-1]


def price(row):
    """The geometric mean of λ over the last third of the epochs."""
    late = [epoch["lambda 0"] for epoch in row["history"][-len(row["history"]) // 3 :]]
    return math.exp(sum(map(math.log, late)) / len(late))


def report(rows):
    """Print the tables of choices.md, and draw the front."""
    print("| | distortion | rate | −ELBO | test −ELBO | λ | NLL, K = 100 | samples | neighbours |")
    names = [f"weight {beta}" for beta in BETAS]
    names += [
        f"{which}, {what}" for which in WANTED for what in ("bound 90.8", "from 0.01", "from 20.0")
    ]
    names += [
        "maximal, no change",
        "maximal, no baseline",
        "maximal, bound 94",
        "N(0, I), bound 94",
        "N(0, I), two bounds",
    ]
    names = ["plain, N(0, I)", "plain, learned prior", *names]
    for name in names:
        cells = [
            over_seeds(rows, name, lambda row, key=key: last(row)[key])
            for key in ("distortion", "rate", "-ELBO")
        ]
        cells.append(over_seeds(rows, name, lambda row: row["test"]["-ELBO"]))
        first = rows[f"{name}, seed 0"]
        cells.append(over_seeds(rows, name, price) if "lambda 0" in last(first) else "")
        for key, factor in (("NLL", 1), ("samples", 1), ("neighbours", 100)):
            cells.append(
                over_seeds(rows, name, lambda row, key=key, factor=factor: factor * row[key])
                if key in first
                else ""
            )
        print(f"| {name} | {' | '.join(cells)} |")

    print("\n| rate asked for: 16.64 nats | by weight 1.7 | by bound | λ |")
    for case in CASES:
        cells = [
            over_seeds(rows, f"{how}, {case}", lambda row: last(row)["rate"])
            for how in ("weight for", "bound")
        ]
        print(f"| {case} | {' | '.join(cells)} | {over_seeds(rows, f'bound, {case}', price)} |")

    print("\n| slope from 89.8 to 91.8 | validation | training | λ at 90.8 |")
    for which, f in WANTED.items():
        slopes = []
        for means in (last, lambda row: row["training"]):
            values = []
            for seed in range(3):
                low, high = (
                    means(rows[f"{which}, bound {bound}, seed {seed}"]) for bound in (89.8, 91.8)
                )
                values.append((high[f] - low[f]) / (high["-ELBO"] - low["-ELBO"]))
            slopes.append(f"{torch.tensor(values).mean():.2f} ± {torch.tensor(values).std():.2f}")
        print(
            f"| {which} | {' | '.join(slopes)} | {over_seeds(rows, f'{which}, bound 90.8', price)} |"
        )

    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for seed in range(3):
        swept = [last(rows[f"weight {beta}, seed {seed}"]) for beta in BETAS]
        label = "sweep of β" if seed == 0 else None
        axis.plot(
            [r["rate"] for r in swept],
            [r["-ELBO"] for r in swept],
            "k--x",
            linewidth=0.8,
            label=label,
        )
        for which, style in zip(WANTED, ("C0o", "C1s"), strict=True):
            found = [
                last(rows[f"{which}, bound {bound}, seed {seed}"]) for bound in (89.8, 90.8, 91.8)
            ]
            label = f"{which} information, three bounds" if seed == 0 else None
            axis.plot(
                [r["rate"] for r in found],
                [r["-ELBO"] for r in found],
                style,
                fillstyle="none",
                label=label,
            )
    for beta, row in zip(BETAS, swept, strict=True):
        axis.annotate(f"{beta}", (row["rate"], row["-ELBO"]), (5, 3), textcoords="offset points")
    axis.set(xlabel="rate, nats, validation images", ylabel="−ELBO, nats, validation images")
    axis.legend()
    figure.savefig(ROOT / "benchmarks" / "front.png", metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="what the names of the trainings contain")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--report", action="store_true", help="tables and a picture")
    parser.add_argument("--score", help="the test images under this long training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    options = parser.parse_args()
    if options.report:
        return report(read())
    if options.score:
        return score(options.score)
    todo = tasks()
    names = [name for name in todo if any(part in name for part in options.names)]
    if options.list or not names:
        print("\n".join(todo))
        return
    run(todo, names, options.jobs)


if __name__ == "__main__":
    main()
