"""The mathematics of Lagrangian_VAE.ipynb: multipliers and their game, the learned prior, MMD², verdicts, distances."""

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
    """A small VAE with a learned prior and four numbers in a code, and sixty binary images for everything."""
    x = (torch.rand(60, 784) < 0.2).float()
    data = [(255 * x).byte(), torch.arange(60) % 7]
    put(validation_x=x, test_x=x, train_data=data, LATENT_DIM=4)
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


def test_it_is_a_mixture_of_gaussians_with_those_roots_and_its_samples_have_its_moments(prior):
    roots = prior.below.tril(-1) + torch.diag_embed(prior.log_diagonals.exp())
    assert_close(prior.precisions(), roots.mT @ roots)
    weights, z = prior.logits.softmax(0), torch.randn(4, 3)
    white = torch.einsum("mij,nmj->nmi", roots, z[:, None] - prior.means)
    parts = torch.linalg.det(roots) * torch.exp(-(white**2).sum(-1) / 2) / (2 * math.pi) ** 1.5
    assert_close(prior.log_prob(z).exp(), parts @ weights)
    z, covariances = prior.sample((100_000,)).detach(), torch.linalg.inv(prior.precisions())
    assert_close(z.mean(0), weights @ prior.means, rtol=0, atol=0.03)
    squares = covariances + prior.means[:, :, None] * prior.means[:, None]
    second = torch.einsum("m,mij->ij", weights, squares)
    assert_close(z.T @ z / len(z), second, rtol=0.05, atol=0.05)


def test_mmd_is_the_mean_over_pairs_of_samples_in_parts_or_not(book):
    """Against two samples, every pair in a loop, with the prior's part by many draws."""
    z, u = torch.randn(6, 3) + 0.5, torch.randn(4000, 3)
    pairs = [math.exp(-(a - b).square().sum() / 1.4) for a, b in itertools.permutations(z, 2)]
    between = torch.exp(-(torch.cdist(u, u) ** 2) / 1.4)
    expected = sum(pairs) / 30 - 2 * torch.exp(-(torch.cdist(z, u) ** 2) / 1.4).mean()
    expected += (between.sum() - len(u)) / (len(u) * (len(u) - 1))
    assert book["mmd"](z, 0.7).item() == pytest.approx(expected.item(), abs=0.01)
    z = torch.randn(1100, 4)
    k = book["kernel"](z, z, 1.0)
    assert_close(k[3, 8], torch.exp(-(z[3] - z[8]).square().sum() / 2))
    others = book["mmd"](z, 1.0) - (k.sum() - 1100) / (1100 * 1099)
    exact = -2 * (0.5**2 * torch.exp(-(z**2).sum(1) / 4)).mean() + (1 / 3) ** 2
    assert_close(others, exact, rtol=1e-3, atol=1e-5)


def test_mmd_is_unbiased_and_sees_a_shift_and_codes_that_are_all_zero(book):
    mmd, width = book["mmd"], book["squared_width"](8)
    assert width == 2
    values = torch.tensor([mmd(torch.randn(50, 8), width) for _ in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert mmd(torch.randn(50, 8) + 0.5, width) > 5 * values.std()
    assert mmd(torch.zeros(50, 8), width) > 20 * values.std()
    assert 0 < mmd(torch.zeros(50, 64), 64**2 / 2) < book["PUBLISHED_BOUND"]


def test_mmd_of_a_models_codes_with_its_error(book, small, put):
    model, x = small[0], (torch.rand(400, 784) < 0.2).float()
    put(validation_x=x, MMD_IMAGES=100)
    last, some = model.encoder[-1], book["mismatch_of_some"]
    last.weight.data[:], last.bias.data[:] = 0.0, 0.0  # q(z|x) is N(0, I) for all images
    value, error = book["mismatch_and_error"](model, x)
    assert abs(value) < 4 * error < 0.05
    measured = torch.tensor([some(model) for _ in range(30)])
    assert abs(measured.mean()) < 4 * measured.std() / math.sqrt(30) and measured.std() > 1e-4
    last.bias.data[:4] = 1.0
    assert book["mismatch_and_error"](model, x)[0] > 0.05 and some(model) > 0.05


def test_descent_and_ascent_find_the_highest_of_the_dual(book):
    theta, dual = torch.linspace(-10, 10, 20_001), book["toy_dual"]
    for price, bound in itertools.product((0.0, 1.0, 4.0, 7.0), (1.0, 2.0)):
        least = book["toy_lagrangian"](theta, price, bound).min().item()
        assert least == pytest.approx(dual(price, bound), abs=1e-3)
    assert dual(4.0) == pytest.approx(4) and dual(4.0) > max(dual(3.9), dual(4.1))
    for fast in (0.0, 0.3):
        assert book["toy"](0.02, fast)[-1] == pytest.approx((1, 4), abs=0.01)
    theta, price = book["toy"](0.04, 0.5, 5.0)[-1]  # slack
    assert theta == pytest.approx(3) and price < 1e-9
    highest = [max(price for _, price in book["toy"](0.04, fast)) for fast in (0.0, 0.5)]
    assert highest[0] > highest[1] + 1  # the change lessens the overshoot


def test_a_multiplier_takes_the_step_of_the_formula_and_stays_below_its_cap(book):
    multiplier = book["Multiplier"](10.0, 2.0, unit=5.0, slow=0.1, fast=0.3)
    assert multiplier.violation(20.0) == 2 and multiplier.cost(5.0) == -2
    multiplier.ascend(15.0)  # v = 1, so the average and its change are 0.2
    assert multiplier.value == pytest.approx(2 * math.exp(0.1 * 0.2 + 0.3 * 0.2))
    multiplier.ascend(1000.0)  # v is cut off at 2: the average moves from 0.2 to 0.56
    assert multiplier.average == pytest.approx(0.56)
    assert multiplier.value == pytest.approx(2 * math.exp(0.1 * 0.76 + 0.3 * 0.56))
    high, low = book["Multiplier"](1.0), book["Multiplier"](1.0)
    assert (low.value, low.slow, low.fast, low.unit) == (1.0, 0.04, 0.5, 1.0)
    for _ in range(1000):
        high.ascend(100.0)
        low.ascend(-100.0)
    assert high.value == book["CAP"] and 0 < low.value < 1e-3


class Steps:
    """Runs over the same images in so many steps, with plain gradient descent, and keeps what is recorded."""

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
    """The first step of a loop goes against the gradient of the objective of a model, which is recorded."""
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


CHANGES = [{}, {"bound": 9.0}, {"price": 2.0}, {"quantity": "rate"}, {"images": 1.0}]
LOOPS = [  # with λ = 0.5 of a constraint C <= 10 in units of 2: the weights of distortion and rate, and a number
    ("fit_weighted", [0.3], (1, 0.3, 0)),
    ("fit_constrained", ["distortion", "-ELBO"], (1.25, 0.25, -2.5)),
    ("fit_constrained", ["rate", "-ELBO"], (0.25, 1.25, -2.5)),
    ("fit_constrained", ["-ELBO", "rate"], (1, 1.25, -2.5)),
    ("fit_constrained", ["rate", "distortion"], (0.25, 1, -2.5)),
]


@pytest.mark.parametrize(("fit", "told", "sizes"), LOOPS)
def test_a_loop_descends_its_weighted_sum_or_its_lagrangian(book, small, fit, told, sizes):
    def objective(model):
        distortion, rate, _ = book["terms"](model, small[1])
        return (sizes[0] * distortion + sizes[1] * rate + sizes[2]).mean()

    price, recorded = [book["Multiplier"](10.0, 0.5, unit=2.0), lambda model: 10.0], {"price": 0.5}
    if fit == "fit_weighted":
        price, recorded = [], {}
    assert_descends(book, fit, *small, told + price, objective, recorded)


def test_two_constraints_descend_the_sum_with_both_prices(book, small):
    def objective(model):
        distortion, rate, z = book["terms"](model, small[1])
        bounded = distortion + 0.5 * (distortion + rate - 10)
        return bounded.mean() + 3 * (book["mmd"](z, 1.0) / 2e-4 - 1)  # h² of four dimensions

    multipliers = book["Multiplier"](10.0, 0.5), book["Multiplier"](2e-4, 3.0, unit=2e-4)
    arguments = *multipliers, lambda model: 10.0, lambda model: 2e-4
    prices = {"price": 0.5, "price_of_spread": 3.0}
    assert_descends(book, "fit_two_constraints", *small, arguments, objective, prices)


@pytest.mark.parametrize("two", [False, True])
def test_prices_ascend_before_every_fifth_step_and_what_they_see_is_float32(book, small, put, two):
    """What is measured is of the model as it is; the terms of a batch are in bfloat16, but for the prior."""
    terms, measured, steps = book["terms"], [], Steps(*small, count=11)

    def watched(model, x):
        assert torch.is_autocast_enabled("cpu")
        q, (distortion, rate, z) = model.q(x), terms(model, x)
        with torch.autocast("cpu", enabled=False):
            assert_close(rate, q.log_prob(z) - model.prior().log_prob(z))
        return distortion, rate, z

    def measure(model):
        measured.append(steps.step)
        assert model is steps.model and not torch.is_autocast_enabled("cpu")
        return 11.0

    put(BFLOAT16=True, terms=watched)
    prices = [book["Multiplier"](10.0, 0.5) for _ in range(1 + two)]
    told = [*prices, measure, measure] if two else ["rate", "-ELBO", *prices, measure]
    book["fit_two_constraints" if two else "fit_constrained"].__wrapped__(steps, *told)
    assert measured == sorted([0, 5, 10] * (1 + two))
    for price, column in zip(prices, ("price", "price_of_spread"), strict=False):
        path = [0.5, *(row[column] for row in steps.seen)]
        assert [i for i in range(11) if path[i + 1] > path[i]] == [0, 5, 10]
        assert path[-1] == pytest.approx(price.value)


def test_a_constraint_is_measured_on_some_images_or_by_the_change_from_a_start(book, put):
    """Where the start is the model itself, what is measured is its exact mean, whichever images are drawn."""
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


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_another_constraint_trains_anew(book, small, put, monkeypatch, tmp_path, capsys, changes):
    monkeypatch.chdir(tmp_path)

    def run(bound=10.0, price=1.0, quantity="-ELBO", images=0.0):
        going = book["going_on"]("a run", small[0], 2, batch_size=30)
        measure = book["OnSome"](quantity, abs(small[1] - images))
        multiplier = book["Multiplier"](bound, price)
        history = book["fit_constrained"](going, "rate", "-ELBO", multiplier, measure)
        return torch.rand(()), history, [part.tolist() for part in going.model.parameters()]

    first, *trained = run()
    put(TRAIN=False)
    again, *taken = run(**changes)
    assert again == first  # what follows draws the same
    assert ("trained anew" in capsys.readouterr().out) == bool(changes)
    assert changes or taken == trained


def test_runs_are_copies_that_load_elsewhere(book, small, put, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    put(ENCODER=SMALL["ENCODER"], DECODER=SMALL["DECODER"], COMPONENTS=3)
    (start, x), multiplier = small, book["Multiplier"](10.0)
    before = copy.deepcopy(start)
    bounded = book["run_bounded"]("bounded", start, "rate", multiplier, 2, batch_size=30)
    weighted = book["run_weighted"]("weighted", start, 0.5, 3, learning_rate=1e-5)
    columns = {"loss", "distortion", "rate", "-ELBO"}
    assert [set(row) for row in bounded.history] == [columns | {"price"}] * 2
    assert [set(row) for row in weighted.history] == [columns] * 3
    assert 1 < bounded.history[0]["price"] < bounded.history[1]["price"] < multiplier.value
    now = book["evaluate"](bounded.model, x)["distortion"]
    assert bounded.history[-1]["distortion"] == pytest.approx(now, rel=0.02)
    kept = book["load"]("weights/MNIST-lagVAE-bounded.pt")
    models = before, start, bounded.model, kept, weighted.model
    old, same, far, again, near = (parameters_to_vector(m.parameters()) for m in models)
    assert torch.equal(same, old) and torch.equal(again, far)
    assert (far - old).abs().max() > 0.005  # AdamW's steps are as long as its rate
    assert 0 < (near - old).abs().max() < 0.001


def same_parts(images, labels):
    """The same images to train, to validate and to test."""
    parts = {"validation_images": images, "test_images": images, "training": (images, labels)}
    return parts | {"validation_labels": labels, "test_labels": labels}


def test_cases_have_the_images_that_they_say(book, put):
    labels = torch.arange(40) % 4
    put(**same_parts(labels[:, None].repeat(1, 784).byte() * 50, labels))
    Case, images_of = book["Case"], book["images_of"]
    (some, some_labels), validation, test = images_of(Case(label=2))
    assert some_labels.tolist() == [2] * 10 and (some == 100).all() and len(validation) == 10
    assert 0.3 < test.mean() < 0.48 and set(test.unique().tolist()) == {0, 1}
    (some, some_labels), validation, _ = images_of(Case(count=9))
    assert len(some) == 9 and len(some_labels.unique()) > 2 and len(validation) == 40
    assert (some[:, 0] == 50 * some_labels).all()  # each with its label
    assert images_of(Case(count=9))[0][1].tolist() == some_labels.tolist()
    (some, _), validation, test = images_of(Case(shrunk=True))
    assert some.shape == validation.shape == test.shape == (40, 196)
    assert book["in_all"](labels, labels[:3], torch.tensor([2, 1, 7])) == [1, 2]
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 2:4, 6] = 200
    coarse = book["coarse"](image.flatten(1)).view(14, 14)
    assert coarse[1, 3] == 100 and coarse.sum() == 100 and coarse.dtype == torch.uint8


@pytest.mark.parametrize("bounded", [False, True])
def test_small_models_are_trained_by_weight_or_by_bound(book, put, bounded):
    images, told = (torch.rand(60, 784) < 0.3).byte() * 255, []  # white or black alike
    put(SHORT_STEPS=70, **same_parts(images, torch.zeros(60, dtype=torch.long)))
    fit = "fit_constrained" if bounded else "fit_weighted"
    put(**{fit: lambda *given: told.extend(given) or ["row"]})
    multiplier = book["Multiplier"](10.0) if bounded else None
    run = book["train_small"]("a small one", book["Case"](decoder=(9, 1)), multiplier)
    training, *rest = told
    assert run.history == ["row"] and run.model is training.model
    assert (training.name, training.steps) == ("lagVAE a small one", 60)  # 3 whole epochs of 20
    assert training.optimizer.param_groups[0]["lr"] == book["LEARNING_RATE"]
    assert run.model.decoder[0].out_features == 9
    if bounded:
        assert rest[:3] == ["distortion", "rate", multiplier] and type(rest[3]) is book["OnSome"]
        assert rest[3].name == "rate" and torch.equal(rest[3].x, images / 255)
    else:
        assert rest == [book["WEIGHT"]]
    expected = book["evaluate"](run.model, images / 255)
    for part in ("validation", "test"):
        assert run.means(part) == pytest.approx(expected, rel=0.01, abs=0.5)


def with_rates(book, validation, test, price):
    """A run whose images have these rates, and no distortion."""
    pairs = {"validation": validation, "test": test}.items()
    terms = {part: torch.tensor([[0.0, 0.0], [rate - 1, rate + 1]]) for part, rate in pairs}
    return book["Run"](None, [{"price": 9.0}, {"price": price}], terms)


def test_what_is_near_is_counted_column_by_column(book):
    assert book["near"]([16.0, 16.2, 16.4, 15.8, 15.6], 16.0) == 3
    assert book["near"]([0.3, -0.3, 0.31], 0.0) == 2
    by_weight = {"a": with_rates(book, 1, 16, 0.0), "b": with_rates(book, 1, 7, 0.0)}
    by_bound = {"a": with_rates(book, 16, 17, 2.0), "b": with_rates(book, 16, 15, 3.0)}
    first, second, near = book["transfer_rows"](by_weight, by_bound, 16.0)
    assert list(first.values()) == ["a", 16, 16, 17, 2.0]
    assert list(second.values()) == ["b", 7, 16, 15, 3.0]
    assert list(near.values()) == ["near, of 2", 1, 2, 0, ""] and list(near) == list(first)


def test_what_multipliers_come_to(book):
    """f + λ (distortion + rate), divided by the weight of the distortion."""
    assert book["beta_of"](0.5, "distortion") == pytest.approx(0.5 / 1.5)
    assert book["beta_of"](0.5, "rate") == pytest.approx(1.5 / 0.5)
    assert book["geometric_mean"]([1.0, 4.0]) == pytest.approx(2)
    history = [{"price": float(i), "other": -i} for i in range(9)]
    assert book["last_third"](history) == [6, 7, 8] and book["last_third"](history[:4]) == [2, 3]
    assert book["last_third"](history, "other") == [-6, -7, -8]
    history[6:] = [{"price": price} for price in (4.0, 2.0, 1.0)]
    row = book["found_row"]("a", book["Run"](None, history), "distortion")
    assert list(row.values()) == ["a", 4.0, 1.0, pytest.approx(2 / 3)]
    last = {"loss": 1.0, "distortion": 60.0, "rate": 30.0, "-ELBO": 90.0}
    for extra, price in (({"price": 0.5}, 0.5), ({}, "")):
        row = book["last_row"]("b", book["Run"](None, [{}, last | extra]))
        assert list(row.values()) == ["b", 60.0, 30.0, 90.0, price]


def test_a_bisection_counts_its_trainings_on_the_falling_side(book):
    """Values 3, 2, 1 at 1, 10, 100: on the logarithm a straight line, whose middles are known."""
    for target, near, trainings in ((2, 0.01, 1), (1.5, 0.01, 2), (2.75, 0.01, 3), (2.6, 0.2, 2)):
        assert book["bisections"]({1: 3, 10: 2, 100: 1}, target, near) == trainings
    assert 5 < book["bisections"]({1: 3, 10: 2}, 9.0, 0.1) < 100  # out of reach: it ends
    runs = {f"β = {beta}": book["Run"](None, [{"-ELBO": 100 - beta}]) for beta in book["BETAS"]}
    assert book["falling_side"](runs) == {beta: 100 - beta for beta in (0.25, 0.4, 0.63, 1.0)}


def test_verdicts_and_slopes_are_of_differences(book):
    kinds = [
        (-0.1, [0.9, 0.8, 0.75], (0.0, 0.0), "met, active"),
        (-5.9, [1e-2, 1e-3, 1e-4, 9e-6, 8e-6, 1e-6], (0.0, 0.0), "met, slack"),
        (-0.2, [9.0] * 3 + [0.8, 0.8, 0.5], (0.0, 0.0), "met, active"),  # only the last third
        (1.2, [1.0, 2.0, 3.0], (2.0, 0.1), "violated, λ below its cap"),
        (1.0, [20.0, 100.0, 90.0], (-0.3, 0.1), "violated, λ below its cap"),
        (2.2, [20.0, 100.0, 100.0], (0.5, 0.1), "violated, but the control is lower"),
        (1.0, [20.0, 100.0, 99.0], (-0.3, 0.1), "INFEASIBLE"),
        (1.0, [20.0, 100.0, 100.0], (0.5, 0.25), "INFEASIBLE"),
    ]
    for excess, prices, above, said in kinds:
        assert book["verdict"](excess, prices, above).startswith(said)
    run = book["Run"](None, [{"price": 100.0}] * 3)
    elbo, control = torch.tensor([80.0, 101.0]), torch.tensor([79.0, 101.0])
    for bound, said in ((91.0, "met, active"), (90.0, "INFEASIBLE")):
        *numbers, verdict = book["verdict_row"]("a", run, bound, elbo, control).values()
        assert numbers == ["a", bound, 90.5, 0.5, pytest.approx(0.5)] and verdict.startswith(said)
    ends = {"rate": 20.0, "-ELBO": 90.0}, {"rate": 17.0, "-ELBO": 92.0}
    assert book["slope"](*ends, "rate") == -1.5
    assert math.isnan(book["slope"](ends[0], ends[0], "rate"))
    assert list(book["price_row"]("a", "rate", ends, 2.0).values()) == ["a", -1.5, -2.0, 0.75]


def asked(book, text, runs, **others):
    """What a cell asks for: f and the multiplier, or β, of each run, and its epochs, which a progress bar adds up."""
    seen, totals = [], []

    def run(name, start, *what, bar=None, **options):
        seen.append((start, *what, options))

    bar = lambda total, **options: contextlib.nullcontext(totals.append(total))  # noqa: E731
    names = dict(book) | {"runs": dict(runs), "small": "start", "short": {}, "tqdm": bar} | others
    run_cell("Lagrangian_VAE", text, names | {"run_weighted": run, "run_bounded": run})
    assert totals in ([], [sum(epochs for *_, epochs, _ in seen)])
    return seen


def test_every_run_has_the_weight_or_the_bound_that_the_text_says(book):
    run = SimpleNamespace(model="start", history=[{"-ELBO": 96.0, "price": 2.0}])
    short, going = book["SHORT_EPOCHS"], {"final": book["GOING_FINAL"]}

    def bounded(bound, price, f="distortion", epochs=short, **options):
        return "start", f, book["Multiplier"](pytest.approx(bound), price), epochs, options

    sweep, options = asked(book, "BETAS = (", {}), going | {"batch_size": book["SHORT_BATCH"]}
    assert sweep == [("start", beta, short, options) for beta in (0.25, 0.4, 0.63, 1.0, 1.6, 2.5)]
    first = asked(book, "ROOM = ", {"small": run})
    assert first == [bounded(100, price) for price in (1, 0.01, 20)] + [bounded(100, 1, "rate")]
    elbos = {"held_out_terms": lambda *_: torch.tensor([[60.0, 62.0], [30.0, 32.0]])}
    around = asked(book, "bounds = {", {"β = 1.0": run}, validation_x=None, **elbos)
    assert around == [bounded(91, 1), bounded(92.3, 1)]
    wanted = {"maximal information": "distortion", "minimal information": "rate"}
    aim, epochs = book["EPSILON"] - book["MARGIN"], book["CONSTRAINED_EPOCHS"]
    large = asked(book, "CONSTRAINED_EPOCHS, final", {"learned prior": run})
    assert large == [bounded(aim, 1, f, epochs, **going) for f in wanted.values()]
    options = {"learning_rate": book["GOING_FINAL"] * book["GOING_RATE"], "final": 1.0}
    sides = asked(book, "STEP = 1.0", dict.fromkeys(wanted, run), wanted=wanted)
    moved = itertools.product(wanted.values(), (-1, 1))
    assert sides == [bounded(aim + s, 2, f, book["PRICE_EPOCHS"], **options) for f, s in moved]
    told, aim, epsilon = [], book["NORMAL_EPSILON"] - book["MARGIN"], book["MMD_EPSILON"]
    names = ("going_on", "ChangeFrom", "Run", "validation_x")
    fakes = {name: lambda *given, **options: SimpleNamespace(model=given) for name in names}
    fakes["fit_two_constraints"] = lambda *given: told.extend(given)
    one = asked(book, 'name, elbo = "one', {"N(0, I)": run}, **fakes)
    assert one == [bounded(aim, 1, epochs=book["MMD_EPOCHS"], **going)]
    spread = book["Multiplier"](epsilon, unit=epsilon, slow=0.005, fast=0.05)
    assert told[1:3] == [book["Multiplier"](aim), spread] and told[4] is book["mismatch_of_some"]


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


def test_images_are_drawn_from_the_likelihood_and_codes_from_the_prior(book, small):
    model, x = small
    z = book["prior_codes"](model, 620)
    assert z.shape == (620, 4) and not z.requires_grad
    assert_close(z.mean(0), model.prior.means.mean(0).detach(), rtol=0, atol=0.25)
    pictures = book["drawn"](model, z[:1].repeat(2000, 1))
    assert set(pictures.unique().tolist()) == {0, 1}
    assert_close(pictures.mean(0), book["decode"](model, z[0]), rtol=0, atol=0.06)
    assert_close(book["returned"](model, x), model.p(model.q(x).mean).mean.detach())


def test_neighbours_are_found_by_codes_and_compared_on_the_same_images(book, small, put):
    put(validation_labels=torch.tensor([0, 1, 2]), test_labels=torch.tensor([1, 1]))
    known, new = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.2], [4.0]])
    assert book["neighbours_hit"](known, new).tolist() == [True, False]
    put(test_x=small[1][:20])
    validation, test = book["means_of"](small[0])
    assert_close(test, validation[:20], rtol=1e-4, atol=1e-5)
    assert_close(validation, small[0].q(small[1]).mean.detach())
    hits, others = torch.tensor([[True] * 9 + [False] * 4, [False] * 9 + [True] * 4])
    z = book["mcnemar"](hits, others)
    assert z == pytest.approx(5 / math.sqrt(13)) and book["mcnemar"](hits, hits) == 0
    assert list(book["hits_row"]("a", hits, others).values()) == ["a", "69.23%", z]


def test_the_table_along_the_front_has_nats(book, put):
    """With CODES[0] = 4 codes, one of which has nearly all the weight, the NLL is log 4 more than its −log w."""
    log_ws = torch.tensor([-80.0, -160.0, -160.0, -160.0])
    put(CODES=(4, 8), log_weights=lambda model, x, k: log_ws[:k].expand(len(x), k))
    run = with_rates(book, 1.0, 20.0, 0.5)
    run.distances, run.hits = {"samples": 4.5}, torch.tensor([True, True, True, False])
    row = book["along_row"]("a", run, torch.zeros(30, 2))
    assert list(row.values()) == ["a", 20.0, 0.0, pytest.approx(80 + math.log(4)), 4.5, "75.00%"]


def test_terms_are_averaged_over_several_codes(book, small):
    values = book["averaged_terms"](*small, 50)
    single = book["held_out_terms"](small[0], small[1].repeat(20, 1))
    assert values.shape == (2, 60) and single.shape == (2, 1200) and not single.requires_grad
    assert_close(values.mean(1), single.mean(1), rtol=0, atol=0.5)
    assert_close(values, book["averaged_terms"](*small, 50))


def test_a_path_goes_there_and_back(book):
    expected = [(1 - math.cos(math.pi * i / 30)) / 2 for i in range(60)]
    assert book["there_and_back"](60).tolist() == pytest.approx(expected, abs=1e-6)


def test_results_are_numbers_with_their_errors(book):
    assert list(book["result"]("a", 1.23456, "nats").values()) == ["a", 1.2346, "", "nats"]
    scored = [{"± of it": 0.3, "± of the steps": 0.0, "−L_K": 85.0}]
    scored.append({"± of it": 0.1, "± of the steps": 0.4, "−L_K": 84.5})
    *numbers, unit = book["nll_result"]("test NLL", scored).values()
    assert numbers == ["test NLL", 84.5, pytest.approx(0.5)] and unit.endswith("K = 5000")
    run = book["Run"](None, [], {"test": torch.tensor([[50.0, 60.0], [30.0, 40.0]])})
    assert list(book["elbo_result"]("a", run).values())[:3] == ["a", 90.0, pytest.approx(10)]
    assert run.means("test") == {"distortion": 55, "rate": 35, "-ELBO": 90}
