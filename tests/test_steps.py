"""What a training loop runs over, what its steps descend, and what is kept of it."""

import copy
import math
from datetime import date
from pathlib import Path

import numpy
import pytest
import torch
from torch.distributions import Bernoulli
from torch.testing import assert_close


class Coin(torch.nn.Module):
    """Every pixel 1 with one learned probability."""

    def __init__(self, logit):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(logit))

    def nats(self, x):
        return -Bernoulli(logits=self.logit).log_prob(x).sum(1).mean()


@pytest.fixture
def coin(vae):
    """`coin(...)` is a Training of a coin on 400 images of five pixels, each ink with a fifth."""

    def make(epochs=3, images=400, ink=51, start=0.0, rate=0.2, **options):
        model = Coin(start)
        data = [torch.full((images, 5), ink, dtype=torch.uint8), torch.arange(images)]
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        options = {"data": data, "batch_size": 20} | options
        return vae["Training"]("a coin: fair?", model, optimizer, epochs, **options)

    return make


@pytest.fixture
def fit(vae):
    """A loop as in the notebooks; its loss is multiplied by factor(training)."""

    def fit(training, factor=lambda training: 1.0):
        for images, _ in training:
            loss = training.model.nats(vae["binarise"](images)) * factor(training)
            vae["descend"](loss, training.optimizer)
            training.record(loss=loss)
        return training.history

    return fit


def test_training_finds_the_minimum_and_repeats(coin, fit):
    def measure(model):
        return {"p": model.logit.sigmoid().item()}

    training = coin(8, measure=measure)
    torch.manual_seed(1)
    history = fit(training)
    assert training.model.logit.sigmoid().item() == pytest.approx(0.2, abs=0.02)
    entropy = -5 * (0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert [list(row) for row in history] == [["loss", "p"]] * 8
    assert history[-1]["loss"] == pytest.approx(entropy, rel=0.05)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["p"] == training.model.logit.sigmoid().item()  # measured after the epoch
    torch.manual_seed(1)
    assert fit(coin(8, measure=measure)) == history


def seen(training):
    """The labels of all batches, whose images are as grey as the label says."""
    batches = []
    training.data[0] = training.data[1].byte()[:, None]
    for images, labels in training:
        assert torch.equal(images[:, 0], labels.byte()) and training.step == len(batches)
        batches.append(labels)
        training.optimizer.step()
        training.record(loss=0.0)
    assert training.step == training.steps == len(batches)
    return batches


def test_every_image_is_seen_once_an_epoch_with_its_label(coin):
    batches = seen(coin(2))
    for epoch in (batches[:20], batches[20:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(400))
    assert not torch.equal(batches[0], batches[20]) and batches[0].diff().min() < 0


@pytest.mark.parametrize(
    ("images", "asked", "size", "steps"),
    [(411, 20, 20, 20), (430, 20, 20, 21), (400, 390, 20, 20), (419, 390, 20, 20), (3, 390, 1, 3)],
)
def test_batches_are_equal_and_at_least_twenty_where_images_suffice(
    coin, images, asked, size, steps
):
    batches = seen(coin(2, images=images, batch_size=asked))
    assert [len(batch) for batch in batches] == [size] * 2 * steps
    epochs = [set(torch.cat(part).tolist()) for part in (batches[:steps], batches[steps:])]
    assert len(epochs[0]) == size * steps  # the remainder is left out, another one each epoch
    assert (epochs[0] == epochs[1]) == (size * steps == images)


@pytest.mark.parametrize("final", [0.0, 0.2, 1.0])
def test_the_learning_rate_rises_for_a_tenth_and_falls_in_straight_lines(vae, coin, final):
    """With a constant slope, steps of SGD are the learning rates."""
    training, places = coin(5, final=final), []
    weights = [torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": 0.2}, {"params": weights[1:], "lr": 3.0}]
    training.optimizer = torch.optim.SGD(groups)
    for _ in training:
        loss = -sum(weights)
        vae["descend"](loss, training.optimizer)
        training.record(loss=loss)
        places.append([weight.item() for weight in weights])
    shares = numpy.interp(range(100), (0, 9, 99), (0.04, 1, final))
    rates = numpy.diff(places, axis=0, prepend=0)
    assert rates == pytest.approx(numpy.outer(shares, (0.2, 3.0)), abs=1e-12)


def test_rows_of_the_history_are_means_of_what_was_recorded_and_what_is_measured(coin):
    training = coin(2, every=10, measure=lambda model: {"logit": model.logit.item()})
    for _ in training:
        step = training.step
        training.optimizer.step()
        training.record(loss=torch.tensor(float(step), requires_grad=True), even=step % 2 == 0)
    rows = [{"loss": mean, "even": 0.5, "logit": 0.0} for mean in (4.5, 14.5, 24.5, 34.5)]
    assert training.history == rows


def test_trainings_share_a_bar_or_have_their_own(vae, coin, fit, capsys):
    with vae["tqdm"](total=4) as bar:
        for _ in range(2):
            fit(coin(2, bar=bar))
        assert bar.n == 4
    assert capsys.readouterr().out == ""
    loss = fit(coin(2, every=10))[-1]["loss"]
    last = capsys.readouterr().out.split("\r")[-1]
    assert "100%" in last and "4/4" in last and f"loss={loss:.4g}" in last


def test_a_loss_that_is_not_finite_is_named_with_training_and_epoch(coin, fit):
    with pytest.raises(FloatingPointError, match=r"a coin: fair\?, epoch 2: not finite"):
        fit(coin(), lambda training: math.nan if training.step == 25 else 1.0)


def test_descend_takes_one_step_against_this_gradient_alone(vae):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], 0.1)
    weight.grad = torch.tensor([50.0, 50.0])
    vae["descend"](weight.square().sum(), optimizer)
    assert weight.tolist() == pytest.approx([0.8, 1.6])


@pytest.mark.parametrize("wanted", [True, False])
def test_one_parameter_decides_on_bfloat16(vae, wanted):
    vae["BFLOAT16"] = wanted
    with vae["autocast"]():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if wanted else torch.float32)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("able", [True, False])
def test_where_no_one_decides_on_it_the_device_does(vae, monkeypatch, device, able):
    vae |= {"BFLOAT16": None, "device": torch.device(device)}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    asked = {"including_emulation": False}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: able or how != asked)
    assert vae["has_bfloat16"]() is (able and device != "mps")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # it is private, and may go
    assert vae["has_bfloat16"]() is (able and device == "cuda")


FILE = Path("weights", "MNIST-a-coin-fair-.pt")


@pytest.fixture
def keep(vae, coin, fit, tmp_path, monkeypatch, capsys):
    """`keep(train)` is a training, what `@kept` returned and printed, and a random number drawn after it."""
    monkeypatch.chdir(tmp_path)
    vae["In"] = ["slope = 3\ndef line(x):\n    return slope * x"]
    kept = vae["kept"](lambda training, factor: fit(training, lambda _: factor))

    def keep(train, factor=1.0, **options):
        vae["TRAIN"] = train
        training = coin(**options)
        history = kept(training, factor)
        return training, history, capsys.readouterr().out, torch.rand(()).item()

    return keep


def test_what_is_kept_is_taken_and_the_same_follows(keep):
    trained, history, _, number = keep(True)
    kept = FILE.read_bytes(), FILE.stat().st_mtime_ns
    taken, found, said, same_number = keep(False)
    assert said == f"{FILE}, trained on {date.today()}\n"
    assert taken.step == 0 and found == taken.history == history and len(history) == 3
    assert taken.model.logit.item() == trained.model.logit.item() != 0
    assert same_number == number
    assert (FILE.read_bytes(), FILE.stat().st_mtime_ns) == kept
    assert keep(True)[0].step == 60


@pytest.mark.parametrize(
    ("name", "changes", "options"),
    [
        ("LEARNING_RATE", {"LEARNING_RATE": 1.0}, {}),
        ("ENCODER", {"ENCODER": (8, 8)}, {}),
        ("line", {"In": ["def line(x):\n    return x"]}, {}),
        ("training", {}, {"start": 0.1}),
        ("training", {}, {"ink": 52}),
        ("training", {}, {"factor": 2.0}),
        ("training", {}, {"epochs": 4}),
        ("training", {}, {"rate": 0.1}),
        ("training", {}, {"final": 0.1}),
        ("training", {}, {"every": 10}),
        ("training", {}, {"batch_size": 16}),
    ],
)
def test_what_is_of_another_training_is_named_and_trained_anew(vae, keep, name, changes, options):
    keep(True)
    vae |= changes
    training, history, said, _ = keep(False, **options)
    assert said.startswith(f"{FILE} is of another {name}: trained anew\n")
    assert training.step == training.steps and len(history) >= 3
    assert keep(False, **options)[0].step == 0  # the new one is kept in its turn


def test_comments_and_what_is_defined_later_change_nothing(vae, keep):
    keep(True)
    line = "def line(x):  # straight\n    return slope * x"
    for cells in (["a slip", line, "def later():\n    pass"], [line]):
        vae["In"] = cells
        assert keep(False)[0].step == 0
        keep(True)


@pytest.mark.parametrize("what", ["missing", "truncated", "foreign"])
def test_what_cannot_be_read_is_named_and_trained_anew(keep, what):
    _, history, _, number = keep(True)
    if what == "missing":
        FILE.unlink()
    elif what == "truncated":
        FILE.write_bytes(FILE.read_bytes()[:-100])
    else:
        torch.save({"logit": torch.zeros(())}, FILE)
    training, again, said, same_number = keep(False)
    assert said.startswith(f"{FILE} cannot be read (") and "): trained anew\n" in said
    assert training.step == 60 and len(again) == len(history) and same_number == number
    assert keep(False)[0].step == 0


@pytest.mark.parametrize(("step", "rows"), [(50, 3), (40, 2), (1, 1), (0, 0)])
def test_an_interrupt_ends_a_training_which_is_not_kept(vae, coin, fit, keep, capsys, step, rows):
    *_, number = keep(True)
    before = FILE.read_bytes()
    training = coin(5, measure=lambda model: {"logit": model.logit.item()})

    def interrupt(training):
        if training.step == step:
            raise KeyboardInterrupt
        return 1.0

    history = vae["kept"](fit)(training, interrupt)
    assert history is training.history and len(history) == rows
    assert all(math.isfinite(row["loss"]) for row in history)
    assert not history or history[-1]["logit"] == training.model.logit.item() or step == 40
    assert (training.model.logit.item() != 0) == (step > 0)
    assert f"\nInterrupted after {step} of 100 steps." in capsys.readouterr().out
    assert FILE.read_bytes() == before and torch.rand(()).item() == number


class Steps:
    """Runs over the same images, by plain gradient descent, and keeps what is recorded."""

    def __init__(self, model, x, count=1, rate=1e-4):
        self.model, self.rate, self.step, self.steps, self.seen = model, rate, 0, count, []
        self.batch = (255 * x).byte(), torch.arange(len(x)) % 7
        self.optimizer = torch.optim.SGD(model.parameters(), rate)

    def __iter__(self):
        while self.step < self.steps:
            yield self.batch
            self.step += 1

    def record(self, **values):
        self.seen.append({n: torch.as_tensor(value).item() for n, value in values.items()})


def assert_descends(book, fit, model, x, arguments, expected):
    """The first step of a loop records what is expected of its model, and goes against the gradient of the loss."""
    start, steps = copy.deepcopy(model), Steps(model, x)
    torch.manual_seed(3)
    book[fit].__wrapped__(steps, *arguments)
    torch.manual_seed(3)
    book["binarise"](255 * x)  # as many random numbers as the loop's coin flips
    values = expected(start)
    assert steps.seen == [
        {n: pytest.approx(torch.as_tensor(v).item(), rel=1e-4) for n, v in values.items()}
    ]
    gradients = torch.autograd.grad(values["loss"], start.parameters())
    for old, new, slope in zip(start.parameters(), model.parameters(), gradients, strict=True):
        near = 0.01 * slope.abs().max() + 2e-3
        assert_close((old - new) / steps.rate, slope, rtol=0.01, atol=near)


@pytest.fixture
def x():
    return (torch.rand(60, 784) < 0.2).float()


@pytest.fixture
def small(vae):
    return vae["VAE"](4, (32, 1), (32, 1))


def test_the_loop_of_basic_vae_descends_the_sum_of_both_terms(vae, small, x):
    def expected(model):
        distortion, rate = (term.mean() for term in vae["vae_terms"](model, x))
        return {"loss": distortion + rate, "distortion": distortion, "rate": rate}

    assert_descends(vae, "fit", small, x, [vae["vae_terms"]], expected)


def test_the_tighter_loop_descends_the_bound_with_so_many_codes(vae, small, x):
    def expected(model):
        return {"loss": vae["importance_weighted"](model, x, 3).mean()}

    assert_descends(vae, "fit_tighter", small, x, [3], expected)


@pytest.fixture
def four_orderings(made, x):
    """Networks with the same weights, none of which is zero."""
    made |= {"mean": x.mean(0), "HIDDEN": 30}
    networks = made["tied"](made["four_orderings"]().values())
    for parameter in networks.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return networks


def test_the_loop_of_made_descends_the_nll(made, four_orderings, x):
    def expected(model):
        return {"loss": -made["log_conditionals"].__wrapped__(model, x).sum(1).mean()}

    assert_descends(made, "fit", four_orderings[0], x, [], expected)


def test_images_are_distorted_ever_less_often(made, four_orderings, x):
    made["distort"] = lambda images: 0 * images
    steps = Steps(four_orderings[0], x, count=200, rate=0.0)
    made["fit"].__wrapped__(steps, distorted=0.5)
    losses = [row["loss"] for row in steps.seen]
    distorted = [loss != losses[-1] for loss in losses]
    assert sum(distorted[:50]) > 28 > 20 > sum(distorted[50:100]) > 0 == sum(distorted[100:])


def test_networks_take_turns(made, four_orderings, x):
    steps = Steps(four_orderings, x, count=6, rate=0.0)
    made["fit_in_turn"].__wrapped__(steps)
    each = [-made["log_p"](network, x).mean().item() for network in four_orderings]
    assert [row["loss"] for row in steps.seen] == pytest.approx([*each, *each[:2]], rel=1e-5)
    assert len(set(each)) == 4


@pytest.fixture
def learned(lagrangian_vae):
    """A small VAE with a learned prior and codes of four numbers."""
    lagrangian_vae["LATENT_DIM"] = 4
    return lagrangian_vae["VAE"](4, (32, 1), (32, 1), lagrangian_vae["Mixture"](4, 3))


LOOPS = [  # with λ = 0.5 of a constraint C <= 10: the weights of distortion and rate, and a number
    ("fit_weighted", [0.3], (1, 0.3, 0)),
    ("fit_bounded", ["distortion", "rate"], (1, 0.5, -5)),
    ("fit_bounded", ["distortion", "-ELBO"], (1.5, 0.5, -5)),
    ("fit_bounded", ["rate", "-ELBO"], (0.5, 1.5, -5)),
    ("fit_bounded", ["-ELBO", "rate"], (1, 1.5, -5)),
    ("fit_bounded", ["rate", "distortion"], (0.5, 1, -5)),
]


@pytest.mark.parametrize(("fit", "told", "sizes"), LOOPS)
def test_a_loop_descends_its_weighted_sum_or_its_lagrangian(
    lagrangian_vae, learned, x, fit, told, sizes
):
    bounded = fit == "fit_bounded"

    def expected(model):
        distortion, rate, _ = lagrangian_vae["terms"](model, x)
        loss = (sizes[0] * distortion + sizes[1] * rate + sizes[2]).mean()
        return {"loss": loss} | ({"measured": 10.0, "price": 0.5} if bounded else {})

    price = [lagrangian_vae["Multiplier"](10.0, 0.5), lambda model: 10.0] if bounded else []
    assert_descends(lagrangian_vae, fit, learned, x, told + price, expected)


def test_two_bounds_descend_the_sum_with_both_prices(lagrangian_vae, learned, x):
    def expected(model):
        distortion, rate, z = lagrangian_vae["terms"](model, x)
        mismatch = lagrangian_vae["mmd"](z, 1.0) / lagrangian_vae["MMD_BOUND"]  # h² of four numbers
        loss = (distortion + 0.5 * (distortion + rate - 10)).mean() + 3 * (mismatch - 2)
        return {"loss": loss, "price": 0.5, "price_of_spread": 3.0}

    prices = (lagrangian_vae["Multiplier"](*told) for told in ((10.0, 0.5), (2.0, 3.0)))
    arguments = *prices, lambda model: 10.0, lambda model: 2.0
    assert_descends(lagrangian_vae, "fit_two_bounds", learned, x, arguments, expected)


@pytest.mark.parametrize("two", [False, True])
def test_prices_ascend_before_every_fifth_step_by_the_model_as_it_is(
    lagrangian_vae, learned, x, two
):
    measured, steps = [], Steps(learned, x, count=11)

    def measure(model, value=11.0):
        measured.append(steps.step)
        assert model is learned and not torch.is_autocast_enabled("cpu")
        return value

    lagrangian_vae["BFLOAT16"] = True
    prices = [lagrangian_vae["Multiplier"](10.0, 0.5) for _ in range(1 + two)]
    both = [*prices, measure, lambda model: measure(model, 9.0)]
    told = both if two else ["rate", "-ELBO", *prices, measure]
    lagrangian_vae["fit_two_bounds" if two else "fit_bounded"].__wrapped__(steps, *told)
    assert measured == sorted([0, 5, 10] * (1 + two))
    for price, column, sign in zip(prices, ("price", "price_of_spread"), (1, -1), strict=False):
        path = [0.5, *(row[column] for row in steps.seen)]
        assert [i for i in range(11) if sign * (path[i + 1] - path[i]) > 0] == [0, 5, 10]
        assert path[-1] == pytest.approx(price.value)


def test_in_bfloat16_the_prior_is_still_in_float32(lagrangian_vae, learned, x):
    lagrangian_vae["BFLOAT16"] = True
    with lagrangian_vae["autocast"]():
        q, (_, rate, z) = learned.q(x), lagrangian_vae["terms"](learned, x)
    assert_close(rate, q.log_prob(z) - learned.prior().log_prob(z))


def test_the_judge_descends_the_cross_entropy_of_the_labels(lagrangian_vae, x):
    def expected(judge):
        return {"loss": -judge(x).log_softmax(1)[range(60), torch.arange(60) % 7].mean()}

    assert_descends(lagrangian_vae, "fit_judge", lagrangian_vae["lenet"](7), x, [], expected)


def test_the_optimiser_of_basic_vae_decays_weights_and_forgets(vae):
    options = vae["adamw"](torch.nn.Linear(2, 2), 0.3).defaults
    assert (options["lr"], options["weight_decay"], options["betas"]) == (0.3, 0.01, (0.9, 0.99))
    assert vae["adamw"](torch.nn.Linear(2, 2)).defaults["lr"] == vae["LEARNING_RATE"]


def test_in_made_weights_decay_and_biases_do_not(made, four_orderings):
    model = four_orderings[0]
    for parameter, group in zip(model.parameters(), made["adamw"](model).param_groups, strict=True):
        assert group["params"] == [parameter] and group["lr"] == made["LEARNING_RATE"]
        assert group["weight_decay"] == (made["WEIGHT_DECAY"] if parameter.ndim == 2 else 0)


def test_the_learned_prior_moves_faster(lagrangian_vae, learned):
    networks, prior = lagrangian_vae["adamw"](learned, 0.3).param_groups
    assert (networks["lr"], prior["lr"]) == (0.3, lagrangian_vae["PRIOR_RATE"] * 0.3)
    assert list(map(id, prior["params"])) == list(map(id, learned.prior.parameters()))
    assert len(networks["params"] + prior["params"]) == len(list(learned.parameters()))


def test_what_goes_on_is_a_copy_of_the_start(lagrangian_vae, learned, x):
    lagrangian_vae |= {"start": learned, "train_data": [(255 * x).byte(), torch.arange(60)]}
    torch.manual_seed(9)
    going = lagrangian_vae["onward"]("β = 1.0")
    assert torch.initial_seed() == lagrangian_vae["SEED"] and going.final == 0
    rate = lagrangian_vae["STILL"] * lagrangian_vae["LEARNING_RATE"]
    assert going.optimizer.defaults["lr"] == pytest.approx(rate)
    for old, new in zip(learned.parameters(), going.model.parameters(), strict=True):
        assert torch.equal(old, new) and old is not new


def test_a_small_training_has_whole_epochs_within_its_steps_and_a_seed(lagrangian_vae):
    images = torch.randint(256, (60, 196), dtype=torch.uint8)
    for steps, taken in ((70, 60), (60, 60), (39, 20), (5, 20)):  # epochs of 20
        lagrangian_vae["SHORT_STEPS"] = steps
        assert lagrangian_vae["small_training"]("a small one", images).steps == taken
    seeds = 0, 0, 1
    runs = [lagrangian_vae["small_training"]("a small one", images, seed) for seed in seeds]
    first, again, another = (training.model.encoder[0].weight for training in runs)
    assert torch.equal(first, again) and not torch.equal(first, another)
