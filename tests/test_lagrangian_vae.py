"""The mathematics of Lagrangian_VAE.ipynb: multipliers and their game, the learned prior, MMD², verdicts, distances."""

import contextlib
import copy
import itertools
import math

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import SMALL, run_cell
from torch.distributions import Normal


@pytest.fixture
def prior(lagrangian_vae):
    """A mixture of three Gaussians in three dimensions, nothing of it special."""
    mixture = lagrangian_vae["Mixture"](3, 3)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixture


@pytest.fixture
def small(lagrangian_vae, monkeypatch):
    """A small VAE with a learned prior, and sixty binary images that also serve for validation."""
    x = (torch.rand(60, 784) < 0.2).float()
    monkeypatch.setitem(lagrangian_vae, "validation_x", x)
    mixture = lagrangian_vae["Mixture"](4, 3)
    return lagrangian_vae["VAE"](4, SMALL["ENCODER"], SMALL["DECODER"], mixture), x


@pytest.fixture
def black_and_white(lagrangian_vae, small):
    """`black_and_white(step)` is a batch of the sixty images, which have no coins to flip."""
    images = (255 * small[1]).to(torch.uint8)
    return lambda step: lagrangian_vae["Batch"](images, torch.zeros(60), step, 100)


def same_codes(book, model, x):
    """Distortion, rate and codes with the random numbers that a loss draws from seed 3, after its coin flips."""
    torch.manual_seed(3)
    book["binarise"](255 * x)
    return book["terms"](model, x)


def library(book, prior):
    """The same mixture as an object of the library."""
    return book["mixture"](prior.logits, prior.means, prior.precisions())


def test_the_learned_prior_is_the_librarys_mixture_in_value_and_gradient(lagrangian_vae, prior):
    z = torch.randn(5, 2, 3).requires_grad_()
    inputs = [z, *prior.parameters()]
    ours, theirs = prior.log_prob(z), library(lagrangian_vae, prior).log_prob(z)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value.sum(), inputs) for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_its_components_are_gaussians_with_those_roots(lagrangian_vae, prior):
    roots = prior.below.tril(-1) + torch.diag_embed(prior.log_diagonals.exp())
    torch.testing.assert_close(prior.precisions(), roots.mT @ roots)
    weights, z = prior.logits.softmax(0), torch.randn(4, 3)
    white = torch.einsum("mij,nmj->nmi", roots, z[:, None] - prior.means)
    parts = torch.linalg.det(roots) * torch.exp(-(white**2).sum(-1) / 2) / (2 * math.pi) ** 1.5
    torch.testing.assert_close(prior.log_prob(z).exp(), parts @ weights)


def test_far_components_count_as_negligible(lagrangian_vae):
    prior = lagrangian_vae["Mixture"](1, 2)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[0.0], [100.0]]))
    z = torch.zeros(1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), prior.means)
    assert prior.log_prob(z).item() == pytest.approx(math.log(0.5) - 0.5 * math.log(2 * math.pi))
    assert gradient[1].item() == 0


def test_its_samples_have_the_moments_of_its_density(lagrangian_vae, prior):
    z = prior.sample((100_000,)).detach()
    exact = library(lagrangian_vae, prior)
    torch.testing.assert_close(z.mean(0), exact.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(0), exact.variance, rtol=0.03, atol=0)
    weights, covariances = prior.logits.softmax(0), torch.linalg.inv(prior.precisions())
    second = (
        weights[:, None, None] * (covariances + prior.means[:, :, None] * prior.means[:, None])
    ).sum(0)
    torch.testing.assert_close(z.T @ z / len(z), second, rtol=0.05, atol=0.05)


def test_mmd_is_the_mean_over_pairs_of_samples(lagrangian_vae):
    """Against two samples, every pair in a loop, with the prior's part by many draws."""
    z, u = torch.randn(6, 3) + 0.5, torch.randn(4000, 3)
    pairs = [math.exp(-(a - b).square().sum() / 1.4) for a, b in itertools.permutations(z, 2)]
    between = torch.exp(-(torch.cdist(u, u) ** 2) / 1.4)
    expected = sum(pairs) / 30 - 2 * torch.exp(-(torch.cdist(z, u) ** 2) / 1.4).mean()
    expected += (between.sum() - len(u)) / (len(u) * (len(u) - 1))
    assert lagrangian_vae["mmd"](z, 0.7).item() == pytest.approx(expected.item(), abs=0.01)


def test_mmd_is_unbiased_and_sees_a_shift_and_codes_that_are_all_zero(lagrangian_vae):
    mmd, width = lagrangian_vae["mmd"], lagrangian_vae["squared_width"](8)
    assert width == 2
    values = torch.tensor([mmd(torch.randn(50, 8), width) for _ in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert mmd(torch.randn(50, 8) + 0.5, width) > 5 * values.std()
    assert mmd(torch.zeros(50, 8), width) > 20 * values.std()
    wide = mmd(torch.zeros(50, 64), 64**2 / 2)
    assert 0 < wide < lagrangian_vae["PUBLISHED_BOUND"]


def test_mmd_in_parts_is_that_of_all_pairs(lagrangian_vae):
    z = torch.randn(1100, 4)
    k = lagrangian_vae["kernel"](z, z, 1.0)
    torch.testing.assert_close(k[3, 8], torch.exp(-(z[3] - z[8]).square().sum() / 2))
    codes = (k.sum() - 1100) / (1100 * 1099)
    others = lagrangian_vae["mmd"](z, 1.0) - codes
    exact = -2 * (0.5**2 * torch.exp(-(z**2).sum(1) / 4)).mean() + (1 / 3) ** 2
    torch.testing.assert_close(others, exact, rtol=1e-3, atol=1e-5)


def test_the_dual_is_the_least_of_the_lagrangian(lagrangian_vae):
    theta = torch.linspace(-10, 10, 20_001)
    for price, bound in itertools.product((0.0, 1.0, 4.0, 7.0), (1.0, 2.0)):
        values = lagrangian_vae["toy_lagrangian"](theta, price, bound)
        assert values.min().item() == pytest.approx(
            lagrangian_vae["toy_dual"](price, bound), abs=1e-3
        )
    duals = {price: lagrangian_vae["toy_dual"](price) for price in (3.9, 4.0, 4.1)}
    assert max(duals, key=duals.get) == 4 and duals[4] == pytest.approx(4)


@pytest.mark.parametrize("fast", [0.0, 0.3])
def test_descent_and_ascent_find_the_known_saddle(lagrangian_vae, fast):
    theta, price = lagrangian_vae["toy"](0.02, fast)[-1]
    assert (theta, price) == pytest.approx((1, 4), abs=0.01)


def test_the_price_of_slack_goes_to_zero_and_the_change_lessens_the_overshoot(lagrangian_vae):
    theta, price = lagrangian_vae["toy"](0.04, 0.5, 5.0)[-1]
    assert theta == pytest.approx(3) and price < 1e-9
    highest = [max(price for _, price in lagrangian_vae["toy"](0.04, fast)) for fast in (0.0, 0.5)]
    assert highest[0] > highest[1] + 1


def test_a_multiplier_takes_the_step_of_the_formula(lagrangian_vae):
    multiplier = lagrangian_vae["Multiplier"](10.0, 2.0, unit=5.0, slow=0.1, fast=0.3)
    assert multiplier.violation(20.0) == 2 and multiplier.cost(5.0) == -2
    multiplier.ascend(15.0)  # v = 1, so the average and its change are 0.2
    assert multiplier.value == pytest.approx(2 * math.exp(0.1 * 0.2 + 0.3 * 0.2))
    multiplier.ascend(1000.0)  # v is cut off at 2: the average moves from 0.2 to 0.56
    assert multiplier.average == pytest.approx(0.56)
    assert multiplier.value == pytest.approx(2 * math.exp(0.1 * 0.76 + 0.3 * 0.56))
    patient = lagrangian_vae["Multiplier"](0.0)
    assert (patient.value, patient.slow, patient.fast, patient.unit) == (1.0, 0.04, 0.5, 1.0)


def test_a_multiplier_stays_positive_and_below_its_cap(lagrangian_vae):
    free = [lagrangian_vae["Multiplier"](1.0) for _ in range(2)]
    for _ in range(1000):
        free[0].ascend(100.0)
        free[1].ascend(-100.0)
    assert free[0].value == lagrangian_vae["CAP"] and 0 < free[1].value < 1e-3


def test_the_rates_gradient_leaves_out_the_score(lagrangian_vae, small):
    model, x = small
    parameters = list(model.encoder.parameters())

    def gradients(path_only):
        torch.manual_seed(3)
        q = model.q(x)
        z = q.rsample()
        mean, scale = (v.detach() if path_only else v for v in (q.mean, q.stddev))
        rate = Normal(mean, scale).log_prob(z).sum(-1) - model.prior().log_prob(z)
        return torch.cat([g.flatten() for g in torch.autograd.grad(rate.sum(), parameters)])

    torch.manual_seed(3)
    rate = lagrangian_vae["terms"](model, x)[1]
    ours = torch.cat([g.flatten() for g in torch.autograd.grad(rate.sum(), parameters)])
    torch.testing.assert_close(ours, gradients(True))
    assert (ours - gradients(False)).norm() > 0.01 * ours.norm()


def test_the_plain_loss_and_the_weighted_ones_are_sums_of_distortion_and_rate(
    lagrangian_vae, small, black_and_white
):
    model, x = small
    distortion, rate, _ = same_codes(lagrangian_vae, model, x)
    losses = {1.0: lagrangian_vae["negative_elbo"]} | {
        beta: lagrangian_vae["weighted"](beta) for beta in (0.3, 2.5)
    }
    for beta, loss in losses.items():
        torch.manual_seed(3)
        torch.testing.assert_close(loss(model, black_and_white(0)), distortion + beta * rate)


PAIRS = [
    ("distortion", "-ELBO"),
    ("rate", "-ELBO"),
    ("distortion", "rate"),
    ("-ELBO", "distortion"),
]


@pytest.mark.parametrize(("f", "constraint"), PAIRS)
def test_the_loss_is_the_lagrangian(lagrangian_vae, small, black_and_white, f, constraint):
    model, x = small
    multiplier = lagrangian_vae["Multiplier"](10.0, 0.5, unit=2.0)
    loss = lagrangian_vae["lagrangian"](f, constraint, multiplier, lambda model: 0.0)
    distortion, rate, _ = same_codes(lagrangian_vae, model, x)
    values = {"distortion": distortion, "rate": rate, "-ELBO": distortion + rate}
    torch.manual_seed(3)
    expected = values[f] + 0.5 * (values[constraint] - 10.0) / 2
    torch.testing.assert_close(loss(model, black_and_white(1)), expected)


def test_the_loss_of_two_constraints(lagrangian_vae, small, black_and_white):
    model, x = small
    elbo = lagrangian_vae["Multiplier"](10.0, 0.5)
    spread = lagrangian_vae["Multiplier"](2e-4, 3.0, unit=2e-4)
    measured = []
    measures = [
        lambda model, name=name: measured.append(name) or 20.0 for name in ("elbo", "spread")
    ]
    loss = lagrangian_vae["lagrangian_of_two"](elbo, spread, *measures)
    distortion, rate, z = same_codes(lagrangian_vae, model, x)
    torch.manual_seed(3)
    mismatch = lagrangian_vae["mmd"](z, 1.0)  # four dimensions
    expected = distortion + 0.5 * (distortion + rate - 10) + 3 * (mismatch / 2e-4 - 1)
    torch.testing.assert_close(loss(model, black_and_white(1)), expected)
    assert not measured
    loss(model, black_and_white(5))
    assert measured == ["elbo", "spread"] and elbo.value > 0.5 and spread.value > 3


def test_the_multiplier_takes_a_step_with_every_fifth(lagrangian_vae, small, black_and_white):
    multiplier = lagrangian_vae["Multiplier"](10.0, 0.5)
    loss = lagrangian_vae["lagrangian"]("rate", "-ELBO", multiplier, lambda model: 11.0)
    for step in range(11):
        before = multiplier.value
        loss(small[0], black_and_white(step))
        assert (multiplier.value > before) == (step in (0, 5, 10))


@pytest.mark.parametrize(("name", "mean"), [("distortion", 70.0), ("rate", 33.0), ("-ELBO", 103.0)])
def test_the_constraint_is_measured_by_the_change_from_a_start(
    lagrangian_vae, small, monkeypatch, name, mean
):
    """Where the start is the model itself, what is measured is its exact mean, whichever images are drawn."""
    _, x = small
    monkeypatch.setitem(lagrangian_vae, "ASCENT_IMAGES", 7)
    rows = dict(
        zip((tuple(row.tolist()) for row in x), torch.linspace(50.0, 90.0, 60), strict=True)
    )

    def terms(shift, some):
        values = torch.stack([rows[tuple(row.tolist())] for row in some])
        return torch.stack([values + shift, torch.full_like(values, 33.0 + shift)])

    monkeypatch.setitem(lagrangian_vae, "held_out_terms", terms)
    measure = lagrangian_vae["held_out"](name, x, 2.0)  # "models" are shifts here
    shifts = 2 if name == "-ELBO" else 1
    for shift in (0.0, 2.0, 3.0):
        assert measure(shift) == pytest.approx(mean + shifts * shift, abs=1e-4)
    alone = [lagrangian_vae["held_out"](name, x)(0.0) for _ in range(20)]
    assert (len(set(alone)) > 1) == (name != "rate")
    assert sum(alone) / 20 == pytest.approx(mean, abs=5)


def test_cases_have_the_images_that_they_say(lagrangian_vae, monkeypatch):
    labels = torch.arange(40) % 4
    images = labels[:, None].repeat(1, 784).byte() * 50
    part, Case = (images, labels), lagrangian_vae["Case"]
    for name in ("training", "validation", "test"):
        pair = (
            {"training": part}
            if name == "training"
            else {f"{name}_images": images, f"{name}_labels": labels}
        )
        for key, value in pair.items():
            monkeypatch.setitem(lagrangian_vae, key, value)
    (some, some_labels), validation, test = lagrangian_vae["images_of"](Case(label=2))
    assert (
        some_labels.tolist() == [2] * 10 and (some == 100).all() and validation.shape == (10, 784)
    )
    assert 0.3 < test.mean() < 0.48 and set(test.unique().tolist()) == {0, 1}
    (some, some_labels), validation, _ = lagrangian_vae["images_of"](Case(count=9))
    assert len(some) == 9 and len(some_labels.unique()) > 2 and len(validation) == 40
    (some, _), validation, test = lagrangian_vae["images_of"](Case(shrunk=True))
    assert some.shape == (40, 196) and validation.shape == test.shape == (40, 196)
    first, again = (lagrangian_vae["images_of"](Case(count=9))[0][1].tolist() for _ in range(2))
    assert first == again


def test_a_coarse_image_is_the_mean_of_its_neighbours(lagrangian_vae):
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 2:4, 6] = 200
    small = lagrangian_vae["coarse"](image.flatten(1)).view(14, 14)
    assert small[1, 3] == 100 and small.sum() == 100 and small.dtype == torch.uint8


@pytest.mark.parametrize("bounded", [False, True])
def test_small_models_are_trained_by_weight_or_by_bound(lagrangian_vae, monkeypatch, bounded):
    images = (torch.rand(60, 784) < 0.3).byte() * 255
    labels, seen = torch.zeros(60, dtype=torch.long), []
    for name in ("validation", "test"):
        monkeypatch.setitem(lagrangian_vae, f"{name}_images", images)
        monkeypatch.setitem(lagrangian_vae, f"{name}_labels", labels)
    monkeypatch.setitem(lagrangian_vae, "training", (images, labels))
    monkeypatch.setitem(lagrangian_vae, "SHORT_STEPS", 60)

    def train(model, loss, data, epochs, optimizer, *, batch_size):
        seen.append((epochs, batch_size, optimizer.param_groups[0]["lr"]))
        batch = lagrangian_vae["Batch"](*data, 0, 9)
        torch.manual_seed(1)
        value = loss(model, batch)
        torch.manual_seed(1)
        seen.append(
            (model, value, lagrangian_vae["terms"](model, lagrangian_vae["binarise"](data[0])))
        )

    monkeypatch.setitem(lagrangian_vae, "train", train)
    multiplier = lagrangian_vae["Multiplier"](10.0) if bounded else None
    model, *rates = lagrangian_vae["train_small"](
        lagrangian_vae["Case"](decoder=(9, 1)), multiplier
    )
    assert seen[0] == (3, lagrangian_vae["SHORT_BATCH"], lagrangian_vae["LEARNING_RATE"])
    assert model.decoder[0].out_features == 9
    torch.manual_seed(0)
    for rate in rates:  # on images that are white or black alike
        assert rate == pytest.approx(
            lagrangian_vae["evaluate"](model, images / 255)["rate"], abs=0.5
        )
    if not bounded:
        _, value, (distortion, rate, _) = seen[1]
        torch.testing.assert_close(value, distortion + lagrangian_vae["WEIGHT"] * rate)
    else:
        assert multiplier.value != 1


def test_what_is_near_is_counted(lagrangian_vae):
    assert lagrangian_vae["near"]([16.0, 16.2, 16.4, 15.8, 15.6], 16.0) == 3
    assert lagrangian_vae["near"]([0.3, -0.3, 0.31], 0.0) == 2


def test_beta_is_the_weight_of_the_rate(lagrangian_vae):
    """f + λ (distortion + rate), divided by the weight of the distortion."""
    assert lagrangian_vae["beta_of"](0.5, "distortion") == pytest.approx(0.5 / 1.5)
    assert lagrangian_vae["beta_of"](0.5, "rate") == pytest.approx(1.5 / 0.5)
    assert lagrangian_vae["geometric_mean"]([1.0, 4.0]) == pytest.approx(2)


def test_the_last_third_of_a_history(lagrangian_vae):
    history = [{"lambda": i, "other": -i} for i in range(9)]
    assert lagrangian_vae["last_third"](history) == [6, 7, 8]
    assert lagrangian_vae["last_third"](history, "other") == [-6, -7, -8]
    assert lagrangian_vae["last_third"](history[:4]) == [2, 3]


def test_a_bisection_counts_its_trainings(lagrangian_vae):
    """Values 3, 2, 1 at 1, 10, 100: on the logarithm a straight line, whose middles are known."""
    for target, tolerance, trainings in (
        (2.0, 0.01, 1),
        (1.5, 0.01, 2),
        (2.75, 0.01, 3),
        (2.6, 0.2, 2),
    ):
        assert lagrangian_vae["bisections"]([1, 10, 100], [3, 2, 1], target, tolerance) == trainings
    assert (
        5 < lagrangian_vae["bisections"]([1, 10], [3, 2], 9.0, 0.1) < 100
    )  # out of reach: it ends


def test_a_slope_is_nats_of_f_for_a_nat(lagrangian_vae):
    lower, higher = {"rate": 20.0, "-ELBO": 90.0}, {"rate": 17.0, "-ELBO": 92.0}
    assert lagrangian_vae["slope"](lower, higher, "rate") == -1.5


def test_mcnemar(lagrangian_vae):
    hits = torch.tensor([True] * 9 + [False] * 4 + [True] * 7)
    others = torch.tensor([False] * 9 + [True] * 4 + [True] * 7)
    assert lagrangian_vae["mcnemar"](hits, others) == pytest.approx(5 / math.sqrt(13))
    assert lagrangian_vae["mcnemar"](hits, hits) == 0


def test_constraint_and_verdict_use_the_same_arithmetic(lagrangian_vae, small):
    model, x = small
    results = []
    for low in (False, True):
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            results.append(lagrangian_vae["evaluate"](model, x))
    assert results[0] == results[1]
    assert results[0]["-ELBO"] == pytest.approx(results[0]["distortion"] + results[0]["rate"])
    assert set(results[0]) == {"distortion", "rate", "-ELBO"}


VERDICTS = [
    (-0.1, [0.9, 0.8, 0.75], (0.0, 0.0), "met, active"),
    (-5.9, [1e-2, 1e-3, 1e-4, 9e-6, 8e-6, 1e-6], (0.0, 0.0), "met, slack"),
    (-0.2, [9.0, 9.0, 9.0, 0.8, 0.8, 0.5], (0.0, 0.0), "met, active"),  # looks at the last third
    (1.2, [1.0, 2.0, 3.0], (2.0, 0.1), "violated, λ below its cap"),
    (2.2, [20.0, 100.0, 100.0], (0.5, 0.1), "violated, but the control is lower"),
    (1.0, [20.0, 100.0, 100.0], (0.05, 0.1), "INFEASIBLE"),
    (1.0, [20.0, 100.0, 100.0], (-0.3, 0.1), "INFEASIBLE"),
    (1.0, [20.0, 100.0, 100.0], (0.5, 0.25), "INFEASIBLE"),
]


@pytest.mark.parametrize(("excess", "prices", "above", "said"), VERDICTS)
def test_verdicts_of_each_kind(lagrangian_vae, excess, prices, above, said):
    assert lagrangian_vae["verdict"](excess, prices, above).startswith(said)


def test_frechet_distance_of_covariances_that_do_not_commute(lagrangian_vae):
    a, b = (torch.randn(500, 4).double() @ torch.randn(4, 4).double() + i for i in (0, 1))
    s_a, s_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(s_a)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s_b @ root).sqrt().sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + s_a.trace() + s_b.trace() - 2 * cross
    assert lagrangian_vae["frechet"](a, b) == pytest.approx(expected.item())
    assert lagrangian_vae["frechet"](a, a) == pytest.approx(0, abs=1e-6)


def test_the_judge_sees_what_it_is_shown(lagrangian_vae, black_and_white):
    judge = lagrangian_vae["lenet"](7)
    batch = black_and_white(0)._replace(labels=torch.arange(60) % 7)
    x = (batch.images / 255).round()
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(judge(x), batch.labels, reduction="none")
        torch.testing.assert_close(lagrangian_vae["cross_entropy"](judge, batch), expected)
        many = x.repeat(10, 1)[:550]
        cloud = lagrangian_vae["features"](judge, many)
        assert cloud.shape == (550, lagrangian_vae["FEATURES"])
        torch.testing.assert_close(judge[-1](cloud), judge(many))


def test_images_are_drawn_from_the_likelihood_and_codes_from_the_prior(lagrangian_vae, small):
    model, x = small
    torch.manual_seed(0)
    z = lagrangian_vae["prior_codes"](model, 620)
    assert z.shape == (620, 4) and not z.requires_grad
    torch.testing.assert_close(z.mean(0), model.prior.means.mean(0).detach(), rtol=0, atol=0.25)
    pictures = lagrangian_vae["drawn"](model, z[:1].repeat(2000, 1))
    assert set(pictures.unique().tolist()) == {0, 1}
    torch.testing.assert_close(
        pictures.mean(0), lagrangian_vae["decode"](model, z[0]), rtol=0, atol=0.06
    )
    q = model.q(x)
    torch.testing.assert_close(lagrangian_vae["returned"](model, x), model.p(q.mean).mean.detach())


def test_neighbours_and_the_codes_that_they_are_found_by(lagrangian_vae, small, monkeypatch):
    monkeypatch.setitem(lagrangian_vae, "validation_labels", torch.tensor([0, 1, 2]))
    monkeypatch.setitem(lagrangian_vae, "test_labels", torch.tensor([1, 1]))
    monkeypatch.setitem(lagrangian_vae, "test_x", small[1][:20])
    known, new = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.2], [4.0]])
    assert lagrangian_vae["neighbours_hit"](known, new).tolist() == [True, False]
    validation, test = lagrangian_vae["means_of"](small[0])
    torch.testing.assert_close(test, validation[:20], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(validation, small[0].q(small[1]).mean.detach())


def test_mmd_of_a_models_codes_with_its_error(lagrangian_vae, small, monkeypatch):
    model, _ = small
    monkeypatch.setitem(lagrangian_vae, "LATENT_DIM", 4)
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.zero_()  # q(z|x) is N(0, I) for all images
    x = (torch.rand(400, 784) < 0.2).float()
    value, error = lagrangian_vae["mmd_and_error"](model, x)
    assert abs(value) < 4 * error < 0.05
    measured = torch.tensor([lagrangian_vae["held_out_spread"](x, 100)(model) for _ in range(30)])
    assert abs(measured.mean()) < 4 * measured.std() / math.sqrt(30) and measured.std() > 1e-4
    with torch.no_grad():
        model.encoder[-1].bias[:4] = 1.0
    assert lagrangian_vae["mmd_and_error"](model, x)[0] > 0.05
    assert lagrangian_vae["held_out_spread"](x, 100)(model) > 0.05


def test_terms_are_averaged_over_several_codes(lagrangian_vae, small):
    model, x = small
    values = lagrangian_vae["averaged_terms"](model, x, 50)
    single = lagrangian_vae["held_out_terms"](model, x)
    assert values.shape == (2, 60)
    torch.testing.assert_close(values.mean(1), single.mean(1), rtol=0, atol=1.5)
    torch.testing.assert_close(values, lagrangian_vae["averaged_terms"](model, x, 50))


def test_fit_trains_a_copy_and_keeps_its_history(lagrangian_vae, small, monkeypatch):
    start = small[0]
    before = copy.deepcopy(start.state_dict())
    monkeypatch.setitem(lagrangian_vae, "models", {})
    monkeypatch.setitem(lagrangian_vae, "histories", {})
    data = [(255 * small[1]).byte(), torch.zeros(60)]
    monkeypatch.setitem(lagrangian_vae, "train_data", data)
    multiplier = lagrangian_vae["Multiplier"](10.0)
    loss = lagrangian_vae["constrained"]("rate", multiplier, start)
    lagrangian_vae["fit"]("some", start, loss, 2, 1e-3, [multiplier], batch_size=30)
    history = lagrangian_vae["histories"]["some"]
    assert [set(row) for row in history] == [{"loss", "distortion", "rate", "-ELBO", "lambda"}] * 2
    assert history[-1]["lambda"] == multiplier.value > 1
    for key, value in start.state_dict().items():
        assert torch.equal(value, before[key])
    moved = [
        not torch.equal(a, b)
        for a, b in zip(
            start.parameters(), lagrangian_vae["models"]["some"].parameters(), strict=True
        )
    ]
    assert any(moved)


# The cells that compute what is printed, on values that are known.


def test_the_same_bytes_are_asked_of_all_small_models(lagrangian_vae):
    asked = []

    def train_small(case, multiplier=None):
        asked.append((case, multiplier))

    names = dict(lagrangian_vae) | {"train_small": train_small, "cases": {"a": "A", "b": "B"}}
    run_cell("Lagrangian_VAE", "by_weight, by_bound = {}, {}", names)
    assert names["asked"] == pytest.approx(3 * math.log(256))  # bytes of eight bits
    assert [(case, multiplier is None) for case, multiplier in asked] == [
        ("A", True),
        ("A", False),
        ("B", True),
        ("B", False),
    ]
    assert [names["bounds_on_rate"][name] for name in "ab"] == [asked[1][1], asked[3][1]]
    assert all(m.bound == names["asked"] and m.value == 1 for m in names["bounds_on_rate"].values())


def test_what_is_near_is_of_the_rates_on_test_images(lagrangian_vae):
    by_weight, by_bound = (
        {k: (None, 9.9, rate) for k, rate in zip("abc", rates, strict=True)}
        for rates in ((10.0, 10.2, 7.0), (10.0, 9.8, 10.2))
    )
    prices = {name: lagrangian_vae["Multiplier"](10.0, 2.0) for name in "abc"}
    names = dict(lagrangian_vae) | {
        "by_weight": by_weight,
        "by_bound": by_bound,
        "bounds_on_rate": prices,
    }
    names |= {"cases": dict.fromkeys("abc"), "asked": 10.0}
    lines = run_cell("Lagrangian_VAE", "counts = [", names).splitlines()
    assert lines[2].split() == ["b", "10.20", "9.90", "9.80", "2.00"]
    assert lines[-1].split() == ["near,", "of", "3", "2", "3", "3"]


def test_small_models_get_their_weights_and_bounds(lagrangian_vae):
    seen, losses = [], []
    names = dict(lagrangian_vae)
    names |= {"small": "small", "histories": {"small": [{"-ELBO": 96.0}]}}
    names["fit"] = lambda name, start, loss, epochs, rate, multipliers=(), **options: seen.append(
        (name, start, epochs, multipliers, options["batch_size"])
    )
    names["weighted"] = lambda beta: losses.append(beta)
    names["constrained"] = lambda f, multiplier, start: losses.append(
        (f, multiplier.bound, multiplier.value, start)
    )
    names["tqdm"] = lambda total, **options: contextlib.nullcontext(seen.append(total))
    run_cell("Lagrangian_VAE", "BETAS = (", names)
    total = seen.pop(0)
    assert total == sum(epochs for _, _, epochs, *_ in seen)
    assert losses == list(names["BETAS"]) and 1.0 in losses
    assert {start for _, start, *_ in seen} == {"small"}
    for record in (losses, seen):
        record.clear()
    run_cell("Lagrangian_VAE", "ROOM = ", names)
    assert seen[0] == sum(epochs for _, _, epochs, *_ in seen[1:])
    assert losses == [
        ("distortion", 100.0, 1.0, "small"),
        ("distortion", 100.0, 0.01, "small"),
        ("distortion", 100.0, 20.0, "small"),
        ("rate", 100.0, 1.0, "small"),
    ]


def test_bisections_are_counted_on_the_falling_side_of_the_sweep(lagrangian_vae):
    histories = {
        f"β = {beta}": [{"-ELBO": elbo}]
        for beta, elbo in ((0.25, 103.0), (0.5, 100.0), (1.0, 97.0), (2.0, 99.0))
    }
    histories["least distortion"] = [{"-ELBO": 99.9}]
    names = dict(lagrangian_vae) | {
        "BETAS": (0.25, 0.5, 1.0, 2.0),
        "histories": histories,
        "small_bound": 98.5,
    }
    said = run_cell("Lagrangian_VAE", "rising = ", names)
    assert "2 trainings by bisection; by the multiplier 1, off by +1.40" in said


def test_bounds_are_set_and_judged_by_the_control(lagrangian_vae, monkeypatch):
    """−ELBO of each image is the "model" here, and the bounds are a nat below and 0.3 above the control's."""
    elbos = {
        name: torch.tensor([95.0, 97.0]) + shift
        for name, shift in (
            ("β = 1.0", 0.0),
            ("too low", 0.01),
            ("tight", 0.2),
            ("least distortion", 4.0),
        )
    }
    names = dict(lagrangian_vae) | {
        "models": elbos,
        "validation_x": None,
        "small": None,
        "going_on": {},
    }
    names["held_out_terms"] = lambda model, x: torch.stack([model - 30, torch.full((2,), 30.0)])
    made = []
    names["constrained"] = lambda f, multiplier, start: made.append((f, multiplier.bound))
    seen = []
    names["fit"] = lambda name, start, loss, epochs, *rest, **options: seen.append(epochs)
    names["tqdm"] = lambda total, **options: contextlib.nullcontext(seen.append(total))
    run_cell("Lagrangian_VAE", 'bounds = {"too low"', names)
    assert made == [("distortion", pytest.approx(95.0)), ("distortion", pytest.approx(96.3))]
    assert seen[0] == sum(seen[1:])
    names |= {"small_bound": 100.0, "TOLERANCE": 0.2}
    names["histories"] = {
        "too low": [{"lambda": 100.0}],
        "tight": [{"lambda": 9.0}],
        "least distortion": [{"lambda": 0.5}],
    }
    elbos["too low"] = torch.tensor([95.1, 96.92])  # as low, but for its error
    lines = run_cell("Lagrangian_VAE", "print(f\"{'control'", names).splitlines()
    assert lines[0].split() == ["control", "96.00"]
    assert "bound 95.00, −ELBO 96.01" in lines[1] and lines[1].endswith("the control's")
    assert "met, active" in lines[2] and "bound 100.00, −ELBO 100.00" in lines[3]


def test_verdicts_of_the_notebook_are_of_paired_differences(lagrangian_vae):
    x = {"validation": torch.tensor([91.0, 89.4]), "test": torch.tensor([90.0, 89.0])}
    plain = {"validation": torch.tensor([87.0, 85.0]), "test": torch.tensor([86.0, 84.0])}
    history = [{"lambda": price} for price in (0.1, 0.2, 0.4, 0.8, 0.6, 0.5)]
    names = dict(lagrangian_vae)
    names |= {
        "scores": {"learned prior": plain, "maximal information": x},
        "found": {"maximal information": 0.5},
    }
    rows = {"distortion": 50.0, "rate": 39.0}
    names |= {
        "table": {name: rows for name in names["scores"]},
        "histories": {"maximal information": history},
    }
    names["wanted"] = {"maximal information": "distortion"}
    said = run_cell("Lagrangian_VAE", "spent, error = mean_and_error", names)
    assert "λ from 0.600 to 0.500 in the last third, so β = 0.33" in said
    assert "−ELBO 90.20, spent 4.20 ± 0.20; bound of 90.8: met, active" in said
    assert "−ELBO 89.50, spent 4.50 ± 0.50; bound of 90.8: met, active" in said


def test_the_price_is_measured_around_each_solution(lagrangian_vae):
    made, fitted = [], []
    names = dict(lagrangian_vae)
    names["wanted"] = {"maximal information": "distortion", "minimal information": "rate"}
    names["multipliers"] = {
        name: lagrangian_vae["Multiplier"](90.7, price)
        for name, price in zip(names["wanted"], (0.5, 2.0), strict=True)
    }
    names["models"] = {name: name for name in names["wanted"]}
    names["constrained"] = lambda f, multiplier, start: made.append(
        (f, multiplier.bound, multiplier.value, start)
    )
    names["fit"] = lambda label, start, loss, epochs, rate, multipliers, final: fitted.append(
        (label, epochs, rate, final)
    )
    run_cell("Lagrangian_VAE", "STEP = 1.0", names)
    bounds = [names["EPSILON"] - names["MARGIN"] + step for step in (-1, 1)]
    assert [(f, bound, price) for f, bound, price, _ in made] == [
        *(("distortion", bound, 0.5) for bound in bounds),
        *(("rate", bound, 2.0) for bound in bounds),
    ]
    rate = names["GOING_FINAL"] * names["GOING_RATE"]
    assert fitted[1] == ("maximal information, +1", names["PRICE_EPOCHS"], rate, 1.0)
    ends = {"maximal information": ((54.0, 36.0), (53.0, 39.0))}  # distortion, rate
    ends["minimal information"] = ((74.0, 16.0), (79.0, 13.0))
    names["models"] = {
        f"{name}, {step}": pair[i]
        for name, pair in ends.items()
        for i, step in enumerate(("-1", "+1"))
    }
    names["averaged_terms"] = lambda model, x: torch.tensor(model).repeat(2, 1).T
    names["validation_x"] = None
    said = run_cell("Lagrangian_VAE", "ends = [", names)
    assert "−ELBO 90.00 and 92.00, distortion 54.00 and 53.00" in said
    assert (
        "slope -0.500, −λ = -0.500, ratio 1.00" in said
        and "slope -1.500, −λ = -2.000, ratio 0.75" in said
    )


def test_scores_are_of_all_four_models_and_prices_of_the_last_third(lagrangian_vae):
    names = dict(lagrangian_vae) | {
        "models": {n: n for n in ("N(0, I)", "learned prior", "maximal information")}
    }
    names |= {"wanted": {"maximal information": "distortion"}, "validation_x": "v", "test_x": "t"}
    terms = {"v": torch.tensor([[50.0, 60.0], [30.0, 40.0]])}
    terms["t"] = terms["v"] + 1
    names["averaged_terms"] = lambda model, x: terms[x]
    names["histories"] = {
        "maximal information": [{"lambda": price} for price in (9.0, 9.0, 9.0, 9.0, 1.0, 4.0)]
    }
    run_cell("Lagrangian_VAE", "scores, table, found = ", names)
    scores = names["scores"]["N(0, I)"]
    assert scores["validation"].tolist() == [80, 100] and scores["test"].tolist() == [82, 102]
    assert names["table"]["learned prior"] == {"distortion": 56, "rate": 36, "-ELBO": 92}
    assert names["found"] == {"maximal information": pytest.approx(2.0)}


def test_the_table_of_the_front_has_likelihoods_in_nats(lagrangian_vae):
    wanted = ("maximal information", "learned prior", "minimal information")
    names = dict(lagrangian_vae) | {
        "fixed": torch.Generator(),
        "test_x": torch.zeros(30, 2),
        "device": "cpu",
        "K": 4,
    }
    names |= {
        "models": dict.fromkeys(wanted),
        "table": {name: {"rate": 20.0, "distortion": 60.0} for name in wanted},
    }
    names |= {"distances": {f"{name}: samples": 4.0 for name in wanted}}
    names |= {"hits": {name: torch.tensor([True, True, True, False]) for name in wanted}}
    names["log_weights"] = lambda model, x, k: (
        torch.tensor([0.0, -80.0, -80.0, -80.0]).log_softmax(0).repeat(len(x), 1) - 80
    )
    rows = run_cell("Lagrangian_VAE", "some_test = ", names).splitlines()
    assert rows[1].split()[-5:] == ["20.00", "60.00", f"{80 + math.log(4):.2f}", "4.00", "75.00%"]


def test_the_results_are_computed_from_what_was_measured(lagrangian_vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = {"maximal information": "distortion", "minimal information": "rate"}
    both = ("N(0, I)", "learned prior")
    names = dict(lagrangian_vae) | {
        "wanted": wanted,
        "curves": {name: {100: 84.0, 1: 88.0} for name in both},
    }
    names |= {
        "scores": {
            name: {"test": torch.tensor([86.0, 88.0]), "validation": torch.zeros(2)}
            for name in (*both, *wanted)
        }
    }
    names |= {
        "table": {name: {"rate": 30.0} for name in wanted},
        "models": {name: torch.nn.Linear(1, 1) for name in (*both, *wanted)},
    }
    names["multipliers"] = {name: lagrangian_vae["Multiplier"](0.0, 0.7) for name in wanted}
    lines = run_cell("Lagrangian_VAE", "results += [", names).splitlines()
    assert len(lines) == 10 and lines[0].split()[-4:] == ["84.00", "nats,", "from", "above"]
    assert (
        lines[2].split()[-3] == "87.00" and lines[6].split()[-2] == "30.00" and " 0.70 " in lines[8]
    )
    assert (tmp_path / "weights" / "MNIST-lagVAE-minimal-information.pt").exists()


def test_the_test_images_are_scored_by_the_bound(lagrangian_vae):
    names = dict(lagrangian_vae) | {
        "models": dict.fromkeys(("N(0, I)", "learned prior")),
        "K": 20,
        "test_x": None,
    }
    log_ws = torch.randn(5, 20) - 85
    names["log_weights"] = lambda model, x, k: log_ws
    run_cell("Lagrangian_VAE", "curves = {}", names)
    nll = -(log_ws.exp().mean(1).log()).mean().item()
    assert names["curves"]["N(0, I)"][20] == pytest.approx(nll, abs=1e-3)
    assert names["curves"]["learned prior"][1] == pytest.approx(-log_ws.mean().item(), abs=1e-3)


def test_the_constrained_models_aim_below_the_bound(lagrangian_vae):
    made, fitted = [], []
    names = dict(lagrangian_vae) | {"models": {"learned prior": "start"}}
    names["constrained"] = lambda f, multiplier, start: made.append(
        (f, multiplier.bound, multiplier.value, start)
    )
    names["fit"] = lambda name, start, loss, epochs, rate, multipliers, final: fitted.append(
        (epochs, rate, final)
    )
    run_cell("Lagrangian_VAE", "multipliers = {name:", names)
    aim = names["EPSILON"] - names["MARGIN"]
    assert aim < names["EPSILON"]
    assert made == [("distortion", aim, 1.0, "start"), ("rate", aim, 1.0, "start")]
    assert fitted == [(names["CONSTRAINED_EPOCHS"], names["GOING_RATE"], names["GOING_FINAL"])] * 2


def test_the_models_with_one_and_with_two_constraints(lagrangian_vae):
    fitted = {}
    names = dict(lagrangian_vae) | {
        "models": {"N(0, I)": "normal"},
        "validation_x": torch.zeros(3, 784),
    }
    names["held_out"] = lambda name, x, start: (name, start)
    names["held_out_spread"] = lambda x, count: count
    names["lagrangian"] = lambda f, c, multiplier, measure: (f, c, multiplier, measure)
    names["lagrangian_of_two"] = lambda *arguments: arguments
    names["fit"] = lambda name, start, loss, epochs, rate, prices, final: fitted.update(
        {name: (start, loss, prices)}
    )
    run_cell("Lagrangian_VAE", "attempts_of_two = {", names)
    start, loss, (alone,) = fitted["one constraint"]
    assert start == "normal" and loss == ("distortion", "-ELBO", alone, ("-ELBO", "normal"))
    _, loss, (elbo, spread) = fitted["two constraints"]
    assert loss == (elbo, spread, ("-ELBO", "normal"), names["MMD_IMAGES"])
    assert alone.bound == elbo.bound == names["NORMAL_EPSILON"] - names["MARGIN"]
    assert spread.bound == spread.unit == names["MMD_EPSILON"]
    assert (spread.slow, spread.fast, spread.value) == (0.005, 0.05, 1.0)


def test_the_wide_kernel_is_the_published_one(lagrangian_vae):
    lines = run_cell(
        "Lagrangian_VAE",
        "PUBLISHED_DIM, PUBLISHED_BOUND =",
        dict(lagrangian_vae) | {"device": "cpu"},
    ).splitlines()
    wide, here, bound = (float(line.split()[-1]) for line in lines)
    # E κ is (1 + 2 s)^(−d/2), with s = 1 / h², for two prior samples, and (1 + s)^(−d/2) with a code at zero
    exact = [1 - 2 * (1 + 1 / h) ** -32 + (1 + 2 / h) ** -32 for h in (2048, 16)]
    assert [wide, here] == pytest.approx(exact, rel=0.05) and wide < bound < here


def test_the_judge_is_scored_on_test_images(lagrangian_vae):
    names = dict(lagrangian_vae) | {"classes": 3, "train_data": None, "train": lambda *a, **k: None}
    names |= {"lenet": lambda classes: torch.nn.Identity(), "adamw": lambda model, rate: None}
    names |= {"test_x": torch.eye(3), "test_labels": torch.tensor([0, 1, 1])}
    assert "66.67%" in run_cell("Lagrangian_VAE", "judge = lenet(classes)", names)


def test_hits_are_compared_with_the_pixels(lagrangian_vae):
    models = {"minimal information": "less", "maximal information": "more"}
    names = dict(lagrangian_vae) | {"validation_x": "v", "test_x": "t", "scores": list(models)}
    names |= {"models": models, "means_of": lambda model: (model, None)}
    hits = {"v": torch.tensor([True] * 5 + [False] * 5), "less": torch.tensor([True] * 9 + [False])}
    hits["more"] = torch.tensor([False] * 9 + [True])
    names["neighbours_hit"] = lambda known, new: hits[known]
    lines = run_cell("Lagrangian_VAE", 'hits = {"pixels"', names).splitlines()
    assert "50.00% right" in lines[0] and "90.00% right, against pixels z = +2.0" in lines[1]
    assert lines[3].endswith(f"z = +{8 / math.sqrt(10):.1f}")


def drawn_cell(text, names):
    """Execute a cell that draws; returns the axes of its figure."""
    plt.close("all")
    run_cell("Lagrangian_VAE", text, names | {"save": lambda name: None, "plt": plt})
    axes = plt.gcf().axes
    plt.close("all")
    return axes


def test_pictures_show_what_they_say(lagrangian_vae):
    names = dict(lagrangian_vae)
    nats = 8 * math.log(2)
    names |= {"NATS_OF_A_BYTE": nats, "cases": dict.fromkeys("ab")}
    names |= {
        how: {name: (None, 0.0, 2 * nats) for name in "ab"} for how in ("by_weight", "by_bound")
    }
    (axis,) = drawn_cell("sizes = [rate", names)
    for line in axis.lines[:2]:
        assert line.get_xdata().tolist() == pytest.approx([2, 2])
    wanted = {"maximal information": "distortion", "minimal information": "rate"}
    row = {"rate": 30.0, "distortion": 60.0, "-ELBO": 90.0, "lambda": 2.0}
    names |= {
        "wanted": wanted,
        "histories": {key: [row, row | {"rate": 31.0}] for key in ("learned prior", *wanted)},
    }
    elbo, price = drawn_cell("epochs = range(1,", names)
    assert elbo.lines[0].get_xdata().tolist() == [1, 2] and price.lines[1].get_ydata().tolist() == [
        2,
        2,
    ]
    names |= {"table": dict.fromkeys(wanted, row), "found": dict.fromkeys(wanted, 1.0)}
    (axis,) = drawn_cell('begin = histories["learned prior"]', names)
    assert axis.lines[0].get_xdata().tolist() == [31, 30, 31] and any(
        "Zhao" in t.get_text() for t in axis.get_legend().get_texts()
    )


def test_the_plane_of_means_shows_each_class_as_itself(lagrangian_vae):
    labels = torch.arange(60) % 3
    points = torch.randn(60, 5) + 6 * torch.eye(5)[labels]
    names = dict(lagrangian_vae) | {
        "classes": 3,
        "validation_labels": labels,
        "test_labels": labels,
        "most": None,
    }
    names["means_of"] = lambda model: (points, points)
    (axis,) = drawn_cell("projection = Linear", names)
    places = {
        digit: torch.tensor([t.get_position() for t in axis.texts if t.get_text() == str(digit)])
        for digit in range(3)
    }
    assert all(len(place) == 20 for place in places.values())
    assert all(place.std(0).max() < 2 for place in places.values())  # a class lies together
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    every = torch.cat(list(places.values()))
    assert left <= every[:, 0].min() and every[:, 0].max() <= right + 1e-6 and low < high


def test_a_path_goes_from_one_prior_to_the_other_and_back(lagrangian_vae):
    sheets = {}
    names = dict(lagrangian_vae) | {"device": "cpu", "start": None}
    names["prior_codes"] = lambda model, count: torch.full((count, 2), 1000.0)
    names |= {
        "decode": lambda model, path: path,
        "save_loop": lambda name, path: sheets.update(path=path),
    }
    run_cell("Lagrangian_VAE", "share = 0.5 - 0.5", names)
    path = sheets["path"].mean((1, 2))
    assert len(path) == 60 and abs(path[0]) < 5 and path[30] == pytest.approx(1000)
    torch.testing.assert_close(path[1:30], path[31:].flip(0), rtol=1e-3, atol=2)
