"""The mathematics of Lagrangian_VAE.ipynb: multipliers, bounds and prices, priors, distances."""

import contextlib
import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, run_cell
from torch.distributions import Normal
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close


@pytest.fixture
def book(lagrangian_vae):
    return lagrangian_vae


@pytest.fixture
def put(book, monkeypatch):
    """`put(NAME=value)` lets a name of the notebook have another value for one test."""
    return lambda **values: [monkeypatch.setitem(book, *pair) for pair in values.items()]


@pytest.fixture
def prior(book):
    """A mixture of three Gaussians in three dimensions, nothing of it special."""
    mixture = book["Mixture"](3, 3)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixture


@pytest.fixture
def small(book, put):
    """A small VAE with a learned prior and codes of four numbers, and sixty images for all uses."""
    x = (torch.rand(60, 784) < 0.2).float()
    data = [(255 * x).byte(), torch.arange(60) % 7]
    put(validation_x=x, test_x=x, train_data=data, LATENT_DIM=4, SMALL=(9, 1))
    return book["VAE"](4, SMALL["ENCODER"], SMALL["DECODER"], book["Mixture"](4, 3)), x


def test_the_learned_prior_is_the_librarys_mixture_in_value_and_gradient(book, prior):
    z = torch.randn(5, 2, 3).requires_grad_()
    inputs = [z, *prior.parameters()]
    library = book["mixture"](prior.logits, prior.means, prior.precisions())
    ours, theirs = prior.log_prob(z), library.log_prob(z)
    assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value.sum(), inputs) for value in (ours, theirs)]
    assert_close(*gradients, rtol=1e-4, atol=1e-5)
    pair, z = book["Mixture"](1, 2), torch.zeros(1, 1)
    pair.means.data[:] = torch.tensor([[0.0], [100.0]])  # the second is negligible
    assert pair.log_prob(z).item() == pytest.approx(math.log(0.5 / math.sqrt(2 * math.pi)))
    assert torch.autograd.grad(pair.log_prob(z).sum(), pair.means)[0][1] == 0


def test_its_precisions_are_those_of_the_roots_and_its_samples_have_its_moments(prior):
    roots = prior.below.tril(-1) + torch.diag_embed(prior.log_diagonals.exp())
    assert_close(prior.precisions(), roots.mT @ roots)
    z, covariances = prior.sample((100_000,)), torch.linalg.inv(prior.precisions())
    assert prior.sample((2, 5)).shape == (2, 5, 3) and not z.requires_grad
    weights, means = prior.logits.softmax(0), prior.means
    assert_close(z.mean(0), weights @ means, rtol=0, atol=0.03)
    squares = covariances + means[:, :, None] * means[:, None]
    second = torch.einsum("m,mij->ij", weights, squares)
    assert_close(z.T @ z / len(z), second, rtol=0.05, atol=0.05)


def test_mmd_is_the_mean_over_pairs_of_different_samples(book):
    """The codes in two parts, and the prior's side by many draws, in place of the closed form."""
    z, u = torch.randn(600, 3) + 0.5, torch.randn(4000, 3)
    k = book["kernel"](z, u, 0.7)
    assert_close(k[3, 8], torch.exp(-(z[3] - u[8]).square().sum() / 1.4))
    within = [
        book["kernel"](a, a, 0.7).fill_diagonal_(0).sum() / len(a) / (len(a) - 1) for a in (z, u)
    ]
    expected = within[0] - 2 * k.mean() + within[1]
    assert book["mmd"](z, 0.7).item() == pytest.approx(expected.item(), abs=0.005)


def test_mmd_is_unbiased_and_sees_a_shift_and_codes_that_are_all_zero(book):
    mmd, width = book["mmd"], book["squared_width"](8)
    assert width == 2
    values = torch.tensor([mmd(torch.randn(50, 8), width) for _ in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert mmd(torch.randn(50, 8) + 0.5, width) > 5 * values.std()
    assert mmd(torch.zeros(50, 8), width) > 20 * values.std()


def test_codes_that_are_all_zero_keep_the_published_bound_by_the_published_estimate(book):
    """In it, pairs of a code with itself count."""
    z, u, published = torch.randn(5, 3) + 0.5, torch.randn(5, 3), book["mmd_with_itself"]

    def mean(a, b):
        return sum(math.exp(-(s - t).square().sum() / 1.4) for s in a for t in b) / 25

    expected = mean(z, z) - 2 * mean(z, u) + mean(u, u)
    assert published(z, u, 0.7).item() == pytest.approx(expected, rel=1e-4)
    zeros, narrow = torch.zeros(250, 64), book["squared_width"](64)
    wide, less = (published(zeros, torch.randn(250, 64), v) for v in (64**2 / 2, narrow))
    assert 3e-4 < wide < book["PUBLISHED_BOUND"] == 5e-4
    assert less > 0.5 and book["mmd"](zeros, narrow) > 0.5


def test_mmd_of_a_models_codes_is_of_some_images_in_units_of_its_bound(book, small, put):
    model, x = small[0], (torch.rand(400, 784) < 0.2).float()
    put(validation_x=x, MMD_IMAGES=100, MMD_BOUND=0.01)
    last, some = model.encoder[-1], book["mismatch_of_some"]
    last.weight.data[:], last.bias.data[:] = 0.0, 0.0  # q(z|x) is N(0, I) for all images
    values = torch.tensor([[some(model), book["mismatch"](model, x)] for _ in range(30)])
    assert (values.mean(0).abs() < 4 * values.std(0) / math.sqrt(30)).all()
    assert values[:, 0].std() > 2 * values[:, 1].std() > 0.01
    last.bias.data[:4], last.bias.data[4:] = 1.0, -9.0  # now all codes are 1
    expected = book["mmd"](torch.ones(100, 4), 1.0).item() / 0.01
    assert some(model) == pytest.approx(expected, rel=0.01)


def test_the_dual_is_the_least_of_the_lagrangian_and_its_slope_the_violation_there(book):
    theta, dual = torch.linspace(-10, 10, 20_001), book["toy_dual"]
    for price, bound in itertools.product((0.0, 1.0, 4.0, 7.0), (1.0, 2.0)):
        values = book["toy_lagrangian"](theta, price, bound)
        assert values.min().item() == pytest.approx(dual(price, bound), abs=1e-3)
        slope = (dual(price + 0.1, bound) - dual(price - 0.1, bound)) / 0.2
        assert slope == pytest.approx(theta[values.argmin()].item() - bound, abs=2e-3)
    assert dual(4.0) == pytest.approx(4) and dual(4.0) > max(dual(3.9), dual(4.1))


def test_descent_and_ascent_end_in_the_saddle(book):
    furthest = []
    for kind in (book["Multiplier"], book["Controller"]):
        path = book["toy"](kind(1.0))
        assert path[0] == (0, 1) and path[-1] == pytest.approx((1, 4), abs=1e-4)
        furthest.append([max(values) for values in zip(*path, strict=True)])
        theta, price = book["toy"](kind(5.0))[-1]  # slack
        assert theta == pytest.approx(3) and price < 1e-9
    (theta, price), (less, lower) = furthest  # the change lessens the overshoot
    assert theta > less > 1 and price > lower + 1 > 5


@pytest.mark.parametrize(("kind", "change"), [("Multiplier", 0.0), ("Controller", 0.5)])
def test_a_multiplier_takes_the_step_of_the_formula_and_stays_below_its_cap(book, kind, change):
    multiplier = book[kind](10.0, 2.0, speed=0.1)
    seen = (11.0, 0.2, 0.2), (1000.0, 0.56, 0.76), (-1000.0, 0.048, 0.808)  # cut off at ± 2
    for constraint, average, total in seen:
        multiplier.ascend(constraint)
        assert multiplier.average == pytest.approx(average)
        steps = 0.1 * total + change * average  # all changes of the average add up to itself
        assert multiplier.value == pytest.approx(2 * math.exp(steps))
    low, high = book[kind](1.0), book[kind](1.0, 99.0)
    assert (low.value, low.speed, low.average) == (1.0, 0.04, 0.0)
    high.ascend(100.0)
    for _ in range(1000):
        low.ascend(-100.0)
    assert 0 < low.value < 1e-3 and high.value == book["CAP"] == 100


class Steps:
    """Runs over the same images, by plain gradient descent, and keeps what is recorded."""

    RATE = 1e-4

    def __init__(self, model, x, count=1):
        self.model, self.count, self.step, self.seen = model, count, 0, []
        self.batch = (255 * x).byte(), torch.arange(len(x)) % 7
        self.optimizer = torch.optim.SGD(model.parameters(), self.RATE)

    def __iter__(self):
        while self.step < self.count:
            yield self.batch
            self.step += 1

    def record(self, **values):
        self.seen.append({n: torch.as_tensor(value).item() for n, value in values.items()})


def assert_descends(book, fit, model, x, arguments, objective, recorded):
    """The first step of a loop goes against the gradient of the objective, which is recorded."""
    start, steps = copy.deepcopy(model), Steps(model, x)
    torch.manual_seed(3)
    book[fit].__wrapped__(steps, *arguments)
    torch.manual_seed(3)
    book["binarise"](255 * x)  # as many random numbers as the loop's coin flips
    loss = objective(start)
    assert steps.seen == [{"loss": pytest.approx(loss.item(), rel=1e-4)} | recorded]
    gradients = torch.autograd.grad(loss, start.parameters())
    for old, new, slope in zip(start.parameters(), model.parameters(), gradients, strict=True):
        near = 0.01 * slope.abs().max() + 2e-3
        assert_close((old - new) / Steps.RATE, slope, rtol=0.01, atol=near)


def test_the_rates_gradient_leaves_out_the_score(book, small):
    model, x = small

    def gradient(rate_of):
        torch.manual_seed(3)
        parts = torch.autograd.grad(rate_of(model, x).sum(), list(model.encoder.parameters()))
        return torch.cat([part.flatten() for part in parts])

    def rate(model, x, scored):
        q = model.q(x)
        z = q.rsample()
        mean, scale = (v if scored else v.detach() for v in (q.mean, q.stddev))
        return Normal(mean, scale).log_prob(z).sum(-1) - model.prior().log_prob(z)

    ours = gradient(lambda *given: book["terms"](*given)[1])
    assert_close(ours, gradient(lambda *given: rate(*given, False)))
    assert (ours - gradient(lambda *given: rate(*given, True))).norm() > 0.01 * ours.norm()


LOOPS = [  # with λ = 0.5 of a constraint C <= 10: the weights of distortion and rate, and a number
    ("fit_weighted", [0.3], (1, 0.3, 0)),
    ("fit_bounded", ["distortion", "rate"], (1, 0.5, -5)),
    ("fit_bounded", ["distortion", "-ELBO"], (1.5, 0.5, -5)),
    ("fit_bounded", ["rate", "-ELBO"], (0.5, 1.5, -5)),
    ("fit_bounded", ["-ELBO", "rate"], (1, 1.5, -5)),
    ("fit_bounded", ["rate", "distortion"], (0.5, 1, -5)),
]


@pytest.mark.parametrize(("fit", "told", "sizes"), LOOPS)
def test_a_loop_descends_its_weighted_sum_or_its_lagrangian(book, small, fit, told, sizes):
    def objective(model):
        distortion, rate, _ = book["terms"](model, small[1])
        return (sizes[0] * distortion + sizes[1] * rate + sizes[2]).mean()

    price = [book["Multiplier"](10.0, 0.5), lambda model: 10.0]
    recorded = {"measured": 10.0, "price": 0.5}
    if fit == "fit_weighted":
        price, recorded = [], {}
    assert_descends(book, fit, *small, told + price, objective, recorded)


def test_two_bounds_descend_the_sum_with_both_prices(book, small):
    def objective(model):
        distortion, rate, z = book["terms"](model, small[1])
        mismatch = book["mmd"](z, 1.0) / book["MMD_BOUND"]  # h² of four dimensions
        return (distortion + 0.5 * (distortion + rate - 10)).mean() + 3 * (mismatch - 2)

    multipliers = book["Multiplier"](10.0, 0.5), book["Multiplier"](2.0, 3.0)
    arguments = *multipliers, lambda model: 10.0, lambda model: 2.0
    prices = {"price": 0.5, "price_of_spread": 3.0}
    assert_descends(book, "fit_two_bounds", *small, arguments, objective, prices)


@pytest.mark.parametrize("two", [False, True])
def test_prices_ascend_before_every_fifth_step_and_what_they_see_is_float32(book, small, put, two):
    """Measures are of the model as it is; terms of a batch are in bfloat16, but for the prior."""
    terms, measured, steps = book["terms"], [], Steps(*small, count=11)

    def watched(model, x):
        assert torch.is_autocast_enabled("cpu")
        q, (distortion, rate, z) = model.q(x), terms(model, x)
        with torch.autocast("cpu", enabled=False):
            assert_close(rate, q.log_prob(z) - model.prior().log_prob(z))
        return distortion, rate, z

    def measure(model, value=11.0):
        measured.append(steps.step)
        assert model is steps.model and not torch.is_autocast_enabled("cpu")
        return value

    put(BFLOAT16=True, terms=watched)
    prices = [book["Multiplier"](10.0, 0.5) for _ in range(1 + two)]
    both = [*prices, measure, lambda model: measure(model, 9.0)]
    told = both if two else ["rate", "-ELBO", *prices, measure]
    book["fit_two_bounds" if two else "fit_bounded"].__wrapped__(steps, *told)
    assert measured == sorted([0, 5, 10] * (1 + two))
    for price, column, sign in zip(prices, ("price", "price_of_spread"), (1, -1), strict=False):
        path = [0.5, *(row[column] for row in steps.seen)]
        assert [i for i in range(11) if sign * (path[i + 1] - path[i]) > 0] == [0, 5, 10]
        assert path[-1] == pytest.approx(price.value)


def test_a_constraint_is_measured_on_some_images_or_by_the_change_from_a_start(book, put):
    """Of the start itself the measure is its exact mean, whichever images are drawn."""
    x = torch.arange(60.0)[:, None]  # images, known by their pixel; "models" are shifts

    def terms(shift, some):
        distortion = 50 + some[:, 0] * 40 / 59
        return torch.stack([distortion + shift, torch.full_like(distortion, 33.0 + shift)])

    for name, mean, shifts in (("distortion", 70, 1), ("rate", 33, 1), ("-ELBO", 103, 2)):
        put(held_out_terms=terms, ASCENT_IMAGES=7)
        measure = book["ChangeFrom"](name, x, 2.0)
        for shift in (0.0, 2.0, 3.0):
            assert measure(shift) == pytest.approx(mean + shifts * shift, abs=1e-4)
        alone = [book["OnSome"](name, x)(3.0) for _ in range(20)]
        assert (len(set(alone)) > 1) == (name != "rate")
        put(ASCENT_IMAGES=60)
        assert book["OnSome"](name, x)(3.0) == pytest.approx(mean + shifts * 3, abs=1e-4)


CHANGES = [{}, {"bound": 9.0}, {"value": 2.0}, {"speed": 0.1}, {"kind": "Controller"}]
CHANGES += [{"quantity": "rate"}, {"f": "distortion"}, {"images": 1.0}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_another_bound_trains_anew(book, small, put, monkeypatch, tmp_path, capsys, changes):
    monkeypatch.chdir(tmp_path)
    put(start=small[0], FRONT_EPOCHS=1)

    def run(kind="Multiplier", f="rate", quantity="-ELBO", images=0.0, bound=10.0, **options):
        going, multiplier = book["onward"]("a run"), book[kind](bound, **options)
        measure = book["OnSome"](quantity, abs(small[1] - images))
        history = book["fit_bounded"](going, f, "-ELBO", multiplier, measure)
        return torch.rand(()), history, [part.tolist() for part in going.model.parameters()]

    first, *trained = run()
    put(TRAIN=False)
    again, *taken = run(**changes)
    assert again == first  # what follows draws the same
    assert ("trained anew" in capsys.readouterr().out) == bool(changes)
    assert changes or taken == trained


def test_models_that_go_on_are_copies_that_load_elsewhere(book, small, put, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    start, before = small[0], copy.deepcopy(small[0])
    put(ENCODER=SMALL["ENCODER"], DECODER=SMALL["DECODER"], COMPONENTS=3)
    put(start=start, FRONT_EPOCHS=2, BATCH_SIZE=30)
    torch.manual_seed(9)
    going, rate = book["onward"]("β = 1.0"), book["STILL"] * book["LEARNING_RATE"]
    assert torch.initial_seed() == book["SEED"] and going.final == 0
    networks, prior = going.optimizer.param_groups  # the prior moves faster
    assert (networks["lr"], prior["lr"]) == pytest.approx((rate, book["PRIOR_RATE"] * rate))
    assert list(map(id, prior["params"])) == list(map(id, going.model.prior.parameters()))
    assert len(networks["params"] + prior["params"]) == len(list(start.parameters()))
    assert len(book["fit_weighted"](going, 1.0)) == 2
    now = book["averaged_terms"](going.model, small[1]).sum(0).mean().item()
    assert book["validation_elbo"](going.model) == pytest.approx(now, rel=0.02)
    models = before, start, going.model, book["load"]("weights/MNIST-lagVAE-β-1-0.pt")
    old, same, far, again = (parameters_to_vector(model.parameters()) for model in models)
    assert torch.equal(same, old) and torch.equal(again, far)
    assert (far - old).abs().max() > 0.005  # AdamW's steps are as long as its rate


def test_steering_and_telling_are_random_halves_of_the_validation_images(book, put):
    """A black pixel, which no coin changes, tells the image; test images are half as dark."""
    images, labels = 255 * torch.eye(41, 784, dtype=torch.uint8), torch.arange(41) % 4
    images[:, 50] = 128  # a coin, the same whenever
    put(validation_images=images, validation_labels=labels, training=(images[:9], labels[:9]))
    put(test_images=images.repeat(9, 1) // 2, test_labels=labels.repeat(9))

    for case, there in (
        (lambda images, labels: images, range(41)),
        (lambda images, labels: images[labels == 2], range(2, 41, 4)),
    ):
        train, *halves, test = book["images_of"](case)
        steering, telling = (half.argmax(1).tolist() for half in halves)
        assert 0 <= len(steering) - len(telling) <= 1 and steering != sorted(steering)
        assert sorted(steering + telling) == list(there) and min(telling) < 10
        assert torch.equal(train, case(*book["training"])) and len(test) == 9 * len(there)
        assert set(test.unique().tolist()) == {0, 1} and 0.6 < test.sum() / len(test) < 0.9
        assert all(map(torch.equal, book["images_of"](case), (train, *halves, test)))


def test_coarse_images_are_means_of_four_pixels_and_pairs_are_random_and_side_by_side(book):
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 2:4, 6] = 200
    coarse = book["coarse"](image.flatten(1), None).view(14, 14)
    assert coarse[1, 3] == 100 and coarse.sum() == 100 and coarse.dtype == torch.uint8
    images = torch.randint(256, (41, 784), dtype=torch.uint8)
    pairs = book["paired"](images, None)
    assert pairs.shape == (20, 1568) and pairs.dtype == torch.uint8
    sides = torch.cat(pairs.view(20, 28, 56).split(28, dim=2)).flatten(1)
    side, drawn = (images == sides[:, None]).all(2).nonzero().T.tolist()
    assert side == list(range(40)) and len(set(drawn)) == 40  # each at most once
    assert drawn[:20] != sorted(drawn[:20])


def test_a_small_training_has_whole_epochs_within_its_steps(book, small, put):
    images, make = torch.randint(256, (60, 196), dtype=torch.uint8), book["small_training"]
    for steps, taken in ((70, 60), (60, 60), (39, 20), (5, 20)):  # epochs of 20
        put(SHORT_STEPS=steps)
        training = make("a small one", images)
        assert (training.name, training.steps) == ("lagVAE a small one", taken)
    (batch,), model = next(iter(training)), training.model
    assert model.p(model.q(batch / 255).mean).mean.shape == (3, 196)
    assert training.optimizer.defaults["lr"] == book["LEARNING_RATE"]
    same, other = make("a", images).model, make("a", images, 1).model
    first, again, another = (m.encoder[0].weight for m in (model, same, other))
    assert torch.equal(first, again) and not torch.equal(first, another)


@pytest.mark.parametrize("bounded", [False, True])
def test_small_models_are_trained_by_weight_or_by_bound(book, small, put, bounded):
    images, x, told = (255 * small[1]).byte(), small[1], []
    fit = "fit_bounded" if bounded else "fit_weighted"
    put(**{fit: lambda *given: told.extend(given) or ["row"]})
    multiplier, beta = book["Multiplier"](10.0), None if bounded else 0.7
    how = {"multiplier": multiplier, "steering": x[:20]} if bounded else {"beta": beta}
    run = book["run_small"]("a small one", images, x[20:], seed=5, **how)
    training, *rest = told
    assert run.history == ["row"] and run.model is training.model and training.data == [images]
    expected = book["small_training"]("the same", images, 5).model
    assert torch.equal(run.model.encoder[0].weight, expected.encoder[0].weight)
    if bounded:
        measure = rest.pop()
        assert type(measure) is book["OnSome"] and measure.name == "rate"
        assert torch.equal(measure.x, x[:20])
    assert rest == (["distortion", "rate", multiplier] if bounded else [beta]) and run.beta == beta
    terms = book["averaged_terms"](run.model, x[20:])
    assert run.terms.shape == terms.shape
    assert_close(run.terms.mean(1), terms.mean(1), rtol=0.02, atol=0.3)


def a_run(book, distortion, rate, history=(), beta=None):
    """A run whose images have this distortion, and rates of one nat more or less, by turns."""
    terms = torch.tensor([[distortion] * 4, [rate - 1, rate + 1] * 2])
    return book["Run"](None, list(history), terms, beta)


def test_tables_say_whether_a_bound_was_kept_and_what_a_model_has(book):
    run = a_run(book, 60.0, 15.0, [{"price": 9.0}, {"price": 3.0}])
    error = pytest.approx(math.sqrt(1 / 3))
    values = {"distortion": [60] * 4, "rate": [14, 16] * 2, "-ELBO": [74, 76] * 2}
    assert {name: run.values(name).tolist() for name in values} == values
    case = book["Asked"](0.2, run, a_run(book, 0.0, 7.0))
    for asked, kept in ((16.0, "yes"), (15.0, "yes"), (14.9, "NO")):
        row = list(book["kept_row"]("a", case, asked).values())
        errors = pytest.approx((asked - 15) * math.sqrt(3))
        assert row == ["a", 15.0, error, kept, errors, 0.2, 3.0, 7.0, error]
    row = book["terms_row"]("b", run)
    assert list(row.values()) == ["b", 60.0, 15.0, 75.0, error]


def test_weights_and_prices_are_inverse_and_infinite_at_one(book):
    """f + λ (distortion + rate), divided by the weight of the distortion."""
    assert book["beta_of"](0.5, "distortion") == pytest.approx(0.5 / 1.5)
    assert book["beta_of"](0.5, "rate") == pytest.approx(1.5 / 0.5)
    for f, price in itertools.product(("distortion", "rate"), (0.1, 1.0, 7.0)):
        assert book["price_of"](book["beta_of"](price, f)) == pytest.approx(price)
    assert book["price_of"](1) == book["price_of"](1.0) == math.inf
    assert book["beta_of"](1e9, "distortion") < 1 < book["beta_of"](1e9, "rate") < 1.001


def test_a_price_is_of_the_weight_or_a_mean_with_the_weights_of_the_learning_rate(book, put):
    """The learning rate falls to zero in a straight line: in six epochs like 11, 9, ... and 1."""
    logs, rates = (1, 2, -3, 1, 0, 4), (11, 9, 7, 5, 3, 1)
    run = book["Run"](None, [{"price": math.exp(log), "loss": 0.0} for log in logs])
    mean = sum(rate * log for rate, log in zip(rates, logs, strict=True)) / 36
    assert book["price"](run) == pytest.approx(math.exp(mean))
    put(runs={"a": run})  # all, the middle two, the last two, the last
    means = [pytest.approx(math.exp(log)) for log in (mean, -1, 2, 4)]
    assert list(book["readings"]("a").values()) == ["a", *means]
    run.beta = 0.75
    assert book["price"](run) == pytest.approx(3)
    run.beta = 1.0
    assert book["price"](run) == math.inf


def test_a_slope_has_the_error_of_images_drawn_again(book):
    """Distortions of an image differ by little between two models, whichever the image is."""
    hard, n = 25 * torch.randn(400), torch.randn(4, 400)
    first = book["Run"](None, [], torch.stack([60 + hard + n[0], 20 + n[1]]))
    second = book["Run"](None, [], torch.stack([55 + hard + n[2], 29 + n[3]]))
    slope, error = book["slope_and_error"](first, second, "distortion")
    (d1, r1), (d2, r2) = first.terms, second.terms
    gained, paid = d1 - d2, d2 + r2 - d1 - r1
    assert slope == pytest.approx((gained.mean() / paid.mean()).item())
    again = torch.randint(400, (4000, 400))
    slopes = gained[again].mean(1) / paid[again].mean(1)
    assert error == pytest.approx(slopes.std().item(), rel=0.1)
    residual = (gained - slope * paid).std().item()
    assert error == pytest.approx(residual / 20 / paid.mean().item(), rel=1e-4)
    assert book["slope_and_error"](second, first, "distortion") == pytest.approx((slope, error))
    slope, _ = book["slope_and_error"](first, second, "rate")
    assert slope == pytest.approx(((r1 - r2).mean() / paid.mean()).item())


def test_a_slope_lies_between_two_prices_or_not(book, put):
    """From a −ELBO of 90 to one of 92, and 3 nats less of distortion: a slope of 1.5."""
    first, second = (a_run(book, *terms) for terms in ((70.0, 20.0), (67.0, 25.0)))
    put(runs={"a": first, "b": second})
    inner, outer = [(2, 1, "yes"), (1.4, 1, "NO"), (2, 1.6, "NO")], [(0, 1, "yes"), (0, 1.6, "NO")]
    for high, low, said in inner + outer:
        first.beta, first.history = (None, [{"price": high}]) if high else (1.0, [])
        second.history = [{"price": low}]
        row = book["bracket_row"](("a", "b"), "distortion")
        numbers = map(pytest.approx, (low, 1.5, 0, high or math.inf))
        assert list(row.values()) == ["distortion", "a", "b", *numbers, said]


def test_a_verdict_needs_the_bound_the_price_and_the_control(book):
    kinds = [
        (-0.1, [0.9, 0.8, 0.75], (0.0, 0.0), "kept, active"),
        (0.0, [9.0] * 3 + [0.8, 0.8, 0.5], (0.0, 0.0), "kept, not settled"),  # the last third
        (-5.9, [1e-2, 1e-3, 1e-4, 9e-6, 8e-6, 1e-6], (0.0, 0.0), "kept, with slack"),
        (1.2, [1.0, 2.0, 3.0], (-0.3, 0.1), "not kept: train longer"),
        (1.0, [20.0, 90.0, 94.0], (-0.3, 0.1), "not kept: train longer"),
        (2.2, [20.0, 100.0, 100.0], (0.5, 0.1), "not kept: train longer"),  # the control is lower
        (1.0, [20.0, 100.0, 99.0], (-0.3, 0.1), "not reached by this training"),
        (1.0, [20.0, 100.0, 100.0], (0.5, 0.26), "not reached by this training"),
    ]
    for excess, prices, above, said in kinds:
        assert book["verdict"](excess, prices, above) == said
    run = a_run(book, 60.0, 30.0, [{"price": 100.0}] * 3)
    control = book["Run"](None, [], torch.tensor([[59.0, 60.0, 60.0, 60.0], [29.0, 31.0] * 2]))
    for bound, said in ((90.5, "kept, active"), (89.0, "not reached by this training")):
        row = book["verdict_row"]("a", run, bound, control)
        assert list(row.values()) == ["a", bound, 90.0, 0.25, pytest.approx(0.25), 100.0, said]


def test_small_models_go_on_from_their_start_with_one_bound_or_two(book, small, put):
    start = book["small_training"]("a", small[1], 1).model
    put(small_start=start, small_bound=97.0, SHORT_STEPS=70)
    going = book["small_onward"]("one")
    assert going.model is not start and going.data is book["train_data"]
    assert torch.initial_seed() == book["SEED"]
    assert torch.equal(going.model.encoder[0].weight, start.encoder[0].weight)
    rates = going.optimizer.defaults["lr"], going.final
    assert (going.steps, going.every, *rates) == (60, 10, book["SMALL_RATE"], book["SMALL_FINAL"])
    told, Multiplier = [], book["Multiplier"]
    fits = dict.fromkeys(("fit_bounded", "fit_two_bounds"), lambda *given: told.append(given))
    put(ChangeFrom=lambda *given: given, **fits)
    runs = [book["small_bounded"]("one", 95.0)]
    runs += [book["small_two_bounds"](*speed) for speed in ((), (0.3,))]
    assert [run.model for run in runs] == [going.model for going, *_ in told]
    measure = "-ELBO", small[1], start
    assert told[0][1:] == ("distortion", "-ELBO", Multiplier(95.0), measure)
    for (_, *prices, elbo, spread), speed in zip(told[1:], (book["MMD_SPEED"], 0.3), strict=True):
        assert prices == [Multiplier(97.0), Multiplier(1.0, speed=speed)]
        assert elbo == measure and spread is book["mismatch_of_some"]


def test_every_model_of_the_front_has_the_weight_or_the_bound_that_the_text_says(book):
    seen, totals, weights = [], [], [0.32, 0.5, 1.0, 1.8, 2.7]

    def onward(name, bar=None):
        return SimpleNamespace(model=name)

    def fit(going, *told):
        seen.append((going.model, *told))

    bar = lambda total, **options: contextlib.nullcontext(totals.append(total))  # noqa: E731
    names = dict(book) | {"onward": onward, "fit_weighted": fit, "fit_bounded": fit, "tqdm": bar}
    run_cell("Lagrangian_VAE", "BETAS = (", names)
    assert seen == [(f"β = {beta}", beta) for beta in weights]
    runs = names["runs"]
    assert totals == [5 * book["FRONT_EPOCHS"]] and [r.beta for r in runs.values()] == weights
    names |= {"start": "start", "plain": "plain", "validation_x": "x"}
    names |= {"held_out_terms": lambda model, x: torch.full((2, 9), {"plain": 100.0}[model])}
    names |= {"ChangeFrom": lambda *given: given}
    for dataset, bound in (("MNIST", book["EPSILON"]), ("KMNIST", 200.0 + book["ROOM"])):
        seen.clear()
        names["DATASET"] = dataset
        for text in ("plain_elbo = ", "AIM_BELOW = "):
            run_cell("Lagrangian_VAE", text, names)
        aim = book["Multiplier"](pytest.approx(bound - book["AIM_BELOW"]))
        told = "-ELBO", aim, ("-ELBO", "x", "start")
        wanted = {"maximal information": "distortion", "minimal information": "rate"}
        assert seen == [(name, f, *told) for name, f in wanted.items()]
    assert all(runs.keys() >= set(models) for models in book["fronts"].values())
    assert all(runs[name].beta is None for name in wanted)


def test_a_pilot_with_another_seed_tells_the_margin_below_what_was_asked(book):
    seen, images = [], ("train", "steering", "telling", "test")

    def run_small(name, images, test, beta=None, multiplier=None, steering=None, seed=0):
        seen.append((name, images, test, beta, multiplier, steering, seed))
        return a_run(book, 0.0, 17.0)

    cases = {"cases": {"a": "case"}, "images_of": lambda case: images, "run_small": run_small}
    run_cell("Lagrangian_VAE", "NATS_OF_A_BYTE = ", names := dict(book) | cases)
    asked, margin = 3 * 8 * math.log(2), names["found"]["a"].margin
    errors = 2 * math.hypot(math.sqrt(1 / 3), book["SEED_ERROR"])
    assert margin == pytest.approx(17 - asked + errors)
    kept = torch.tensor([14.0, 16.0, 14.0, 16.0])
    assert book["margin"](kept, asked) == pytest.approx(errors)
    first, second = book["Multiplier"](asked), book["Multiplier"](asked - margin)
    assert seen == [
        ("a, pilot", "train", "telling", None, first, "steering", 1),
        ("a, by bound", "train", "test", None, second, "steering", 0),
        ("a, by weight", "train", "test", book["WEIGHT"], None, None, 0),
    ]


def test_frechet_distance_of_covariances_that_do_not_commute(book):
    a, b = (torch.randn(500, 4).double() @ torch.randn(4, 4).double() + i for i in (0, 1))
    s_a, s_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(s_a)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s_b @ root).sqrt().sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + s_a.trace() + s_b.trace() - 2 * cross
    assert book["frechet"](a, b) == pytest.approx(expected.item())
    assert book["frechet"](a, a) == pytest.approx(0, abs=1e-6)


def test_the_judge_learns_labels_and_sees_what_it_is_shown(book, small):
    judge, x = book["lenet"](7), small[1]
    many = x.repeat(10, 1)[:550]
    cloud = book["features"](judge, many)
    assert cloud.shape == (550, book["FEATURES"]) and not cloud.requires_grad
    assert_close(judge[-1](cloud), judge(many))

    def objective(judge):
        return -judge(x).log_softmax(1)[range(60), torch.arange(60) % 7].mean()

    assert_descends(book, "fit_judge", judge, x, [], objective, {})


def test_images_are_drawn_from_the_likelihood_of_codes(book, small):
    model, x = small
    z = model.prior.sample((1,))
    pictures = book["drawn"](model, z.repeat(2000, 1))
    assert set(pictures.unique().tolist()) == {0, 1}
    assert_close(pictures.mean(0), book["decode"](model, z[0]), rtol=0, atol=0.06)
    assert_close(book["returned"](model, x), model.p(model.q(x).mean).mean.detach())


def test_samples_are_compared_with_real_images_anew_each_time(book, small, put):
    (model, x), judge, labels = small, book["lenet"](7), torch.arange(60) % 2
    reference = book["features"](judge, x)
    put(judge=judge, reference=reference, some_test=x[:20], CODES=(4, 8))
    put(validation_labels=labels, test_labels=labels)
    for prior in (model.prior, Normal(torch.full((4,), 99.0), 1.0)):  # near, and far out
        distances = book["sample_distances"](model, prior, judge, reference)
        assert distances.shape == (book["REPEATS"],) and len(set(distances.tolist())) > 1
        sample = book["features"](judge, book["drawn"](model, prior.sample((60,))))
        again = book["frechet"](sample, reference)
        assert distances.mean().item() == pytest.approx(again, rel=0.3)
    nll, others, hits = book["measured"](book["Run"](model, []))
    assert_close(nll, book["averaged_terms"](model, x[:20]).sum(0), rtol=0.1, atol=5)
    assert len(others) == len(distances) and hits.tolist() == [100.0] * 60  # of the image itself


def test_a_fitted_prior_goes_to_the_codes(book, small, put, monkeypatch, tmp_path):
    """Here all codes are from N(1, 1 / 9), whatever the image, which is known without a fit."""
    monkeypatch.chdir(tmp_path)
    x, judge = small[1], book["lenet"](7)
    model = book["small_training"]("a", x).model
    last = model.encoder[-1]
    last.weight.data[:], last.bias.data[:4], last.bias.data[4:] = 0.0, 1.0, -math.log(3)
    model.decoder[0].weight.data *= 99  # so that an image depends on its code
    put(train_data=[torch.zeros(2000, 784).byte()] * 2, COMPONENTS=1, SHORT_STEPS=1000)
    run = book["Run"](model, [])
    put(small={"a": run}, judge=judge, reference=book["features"](judge, x), test_x=x.repeat(9, 1))
    prior = book["fitted_prior"]("a")
    assert_close(prior.means[0], torch.ones(4), rtol=0, atol=0.05)
    assert_close(prior.precisions()[0], 9 * torch.eye(4), rtol=0.1, atol=0.9)
    row = book["spread_row"]("a", run, prior)
    terms = book["averaged_terms"](model, book["test_x"])
    assert_close(run.terms, terms)
    assert row["-ELBO"] == pytest.approx(terms.sum(0).mean().item())
    assert row["KL, at least"] == pytest.approx(4 * (math.log(3) + 1 / 18), rel=0.05)
    codes = 1 + torch.randn(540, 4) / 3
    expected = book["mmd"](codes, 1.0).item() / book["MMD_BOUND"]
    assert row["MMD² / ε₂"] == pytest.approx(expected, rel=0.1)
    for column, source in (("samples", model.prior()), ("fitted", prior)):
        distances = book["sample_distances"](model, source, judge, book["reference"])
        assert row[column] == pytest.approx(distances.mean().item(), rel=0.1)


def test_neighbours_are_found_by_codes(book, small, put):
    put(validation_labels=torch.tensor([0, 1, 2]), test_labels=torch.ones(1200))
    known, new = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.2], [4.0]])
    hits = book["neighbours_hit"](known, new.repeat(600, 1))
    assert hits.tolist() == [1.0, 0.0] * 600 and hits.dtype == torch.float32
    put(test_x=small[1][:20])
    validation, test = book["means_of"](small[0])
    assert_close(test, validation[:20], rtol=1e-4, atol=1e-5)
    assert_close(validation, small[0].q(small[1]).mean.detach())


def test_a_row_along_the_front_has_paired_differences(book):
    plain = torch.tensor([80.0, 120.0]), None, torch.tensor([100.0, 100.0, 0.0, 0.0])
    distances, hits = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([100.0, 100.0, 100.0, 0.0])
    measures = torch.tensor([80.5, 121.5]), distances, hits
    row = book["along_row"]("a", a_run(book, 60.0, 20.0), measures, plain)
    expected = 1, 0.5, 4, math.sqrt(1 / 3), 25, 25
    assert list(row.values()) == ["a", 20, *map(pytest.approx, expected)]


def test_terms_are_averaged_over_several_codes(book, small):
    values = book["averaged_terms"](*small, 50)
    single = book["held_out_terms"](small[0], small[1].repeat(20, 1))
    assert values.shape == (2, 60) and single.shape == (2, 1200) and not single.requires_grad
    assert_close(values.mean(1), single.mean(1), rtol=0, atol=0.5)
    assert_close(values, book["averaged_terms"](*small, 50))


def test_a_path_goes_there_and_back(book):
    expected = [(1 - math.cos(math.pi * i / 30)) / 2 for i in range(60)]
    assert book["there_and_back"](60).tolist() == pytest.approx(expected, abs=1e-6)


def test_results_are_numbers_with_their_errors_to_four_decimals(book):
    assert list(book["result"]("a", "nats", 1.23456).values()) == ["a", 1.2346, "", "nats"]
    row = book["result"]("a", "nats", 2.0, 0.000449)
    assert row == {"result": "a", "value": 2.0, "±": 0.0004, "unit": "nats"}


def test_the_cases_and_the_kernels_are_those_of_the_text(book):
    labels = torch.arange(40) % 4
    images = labels[:, None].repeat(1, 784).byte()
    names = dict(book) | {"training": (images, labels)}
    names |= {"validation_labels": labels, "test_labels": labels}
    run_cell("Lagrangian_VAE", "cases = {", names)
    sizes = {name: case(images, labels).shape for name, case in names["cases"].items()}
    assert list(sizes.values()) == [(40, 784), (40, 196), (10, 784), (20, 1568)]
    assert (names["cases"]["ones only"](images, labels) == 1).all()
    said = run_cell("Lagrangian_VAE", "PUBLISHED_DIM**2 / 2", dict(book))
    wide, here, bound = (float(line.split()[-1]) for line in said.splitlines()[1:])
    assert 3e-4 < wide < bound == 5e-4 and here > 0.5
