"""The mathematics of Lagrangian_VAE.ipynb: the learned prior, the multiplier, MMD², the verdicts, the distances."""

import itertools
import math

import pytest
import torch
from conftest import SMALL
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal


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


def library(prior):
    """The same mixture as an object of the library."""
    weights, means, covariances = prior.gaussians()
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


def test_the_learned_prior_is_the_librarys_mixture_in_value_and_gradient(lagrangian_vae, prior):
    z = torch.randn(5, 2, 3).requires_grad_()
    inputs = [z, *prior.parameters()]
    ours, theirs = prior.log_prob(z), library(prior).log_prob(z)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value.sum(), inputs) for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_its_covariances_invert_the_precisions(prior):
    roots = prior.roots()
    eye = torch.eye(3).expand(3, 3, 3)
    torch.testing.assert_close(prior.gaussians()[2] @ (roots.mT @ roots), eye, rtol=0, atol=1e-4)


def test_its_samples_have_the_moments_of_its_density(prior):
    z = prior.sample((200_000,))
    exact = library(prior)
    torch.testing.assert_close(z.mean(0), exact.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(0), exact.variance, rtol=0.03, atol=0)
    weights, means, covariances = prior.gaussians()
    second = (weights[:, None, None] * (covariances + means[:, :, None] * means[:, None])).sum(0)
    torch.testing.assert_close(z.T @ z / len(z), second, rtol=0.05, atol=0.05)


def test_mmd_is_the_mean_over_pairs_of_samples(lagrangian_vae, prior):
    """Against two samples, every pair in a loop, with the prior's part by many draws."""
    z, u = torch.randn(6, 3), prior.sample((3000,))

    def mean_kernel(a, b, leave_out=False):
        k = torch.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * 0.7))
        return (k.sum() - len(a)) / (len(a) * (len(a) - 1)) if leave_out else k.mean()

    pairs = [math.exp(-(a - b).square().sum() / 1.4) for a, b in itertools.permutations(z, 2)]
    assert mean_kernel(z, z, True).item() == pytest.approx(sum(pairs) / 30)
    expected = mean_kernel(z, z, True) - 2 * mean_kernel(z, u) + mean_kernel(u, u, True)
    result = lagrangian_vae["mmd"](z, prior.gaussians(), 0.7)
    assert result.item() == pytest.approx(expected.item(), abs=0.01)


def test_mmd_is_unbiased_and_sees_a_shift(lagrangian_vae):
    mmd, prior = lagrangian_vae["mmd"], lagrangian_vae["standard"](8)
    values = torch.tensor([mmd(torch.randn(50, 8), prior, 2.0) for _ in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert mmd(torch.randn(50, 8) + 0.5, prior, 2.0) > 5 * values.std()


@pytest.mark.parametrize("fast", [0.0, 0.3])
def test_descent_and_ascent_find_the_known_saddle(lagrangian_vae, fast):
    theta, multiplier = lagrangian_vae["toy"](0.02, fast)[-1]
    assert (theta, multiplier) == pytest.approx((1, 4), abs=0.01)


def test_a_multiplier_stays_positive_and_below_its_cap_and_one_that_is_held_stays(lagrangian_vae):
    free = [lagrangian_vae["Multiplier"](1.0, cap=9.0) for _ in range(2)]
    held = lagrangian_vae["Multiplier"](1.0, 0.7, slow=0, fast=0)
    for _ in range(1000):
        free[0].ascend(100.0)
        free[1].ascend(-100.0)
        held.ascend(100.0)
    assert free[0].value == 9.0 and 0 < free[1].value < 1e-3 and held.value == 0.7


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


@pytest.fixture
def black_and_white(lagrangian_vae, small):
    """`black_and_white(step)` is a batch of the sixty images, which have no coins to flip."""
    images = (255 * small[1]).to(torch.uint8)
    return lambda step: lagrangian_vae["Batch"](images, torch.zeros(60), step, 100)


def test_the_plain_loss_is_distortion_and_rate(lagrangian_vae, small, black_and_white):
    model, x = small
    torch.manual_seed(3)
    loss = lagrangian_vae["negative_elbo"](model, black_and_white(0))
    torch.manual_seed(3)
    lagrangian_vae["binarise"](255 * x)  # as many random numbers
    distortion, rate, _ = lagrangian_vae["terms"](model, x)
    torch.testing.assert_close(loss, distortion + rate)


@pytest.mark.parametrize("f", ["distortion", "rate"])
def test_the_loss_is_the_lagrangian(lagrangian_vae, small, black_and_white, f):
    model, x = small
    multiplier = lagrangian_vae["Multiplier"](10.0, 0.5)
    loss = lagrangian_vae["lagrangian"](f, multiplier, torch.zeros(60))
    torch.manual_seed(3)
    value = loss(model, black_and_white(1))
    torch.manual_seed(3)
    lagrangian_vae["binarise"](255 * x)
    distortion, rate, _ = lagrangian_vae["terms"](model, x)
    wanted = {"distortion": distortion, "rate": rate}[f]
    torch.testing.assert_close(value, wanted + 0.5 * (distortion + rate - 10.0))


def test_the_multiplier_takes_a_step_with_every_fifth(lagrangian_vae, small, black_and_white):
    model, _ = small
    multiplier = lagrangian_vae["Multiplier"](10.0, 0.5)
    loss = lagrangian_vae["lagrangian"]("rate", multiplier, torch.zeros(60))
    for step in range(11):
        before = multiplier.value
        loss(model, black_and_white(step))
        assert (multiplier.value > before) == (step in (0, 5, 10))


def test_the_constraint_is_measured_by_the_change_from_a_baseline(
    lagrangian_vae, small, monkeypatch
):
    """Where the baseline is the model's own, what is measured is the baseline's mean, whichever images are drawn."""
    model, x = small
    exact = torch.linspace(80.0, 120.0, 60)
    monkeypatch.setitem(lagrangian_vae, "ASCENT_IMAGES", 7)
    rows = dict(zip((tuple(row.tolist()) for row in x), exact, strict=True))

    def terms(model, some):
        values = torch.stack([rows[tuple(row.tolist())] for row in some])
        return torch.stack([values - 30.0, torch.full_like(values, 33.0)])

    monkeypatch.setitem(lagrangian_vae, "held_out_terms", terms)
    for shift in (0.0, 3.0):
        measured = lagrangian_vae["held_out_elbo"](model, exact + shift)
        assert measured == pytest.approx(103.0, abs=1e-4)


def test_beta_is_the_weight_of_the_rate(lagrangian_vae):
    """f + λ (distortion + rate), divided by the weight of the distortion."""
    assert lagrangian_vae["beta"](0.5, "distortion") == pytest.approx(0.5 / 1.5)
    assert lagrangian_vae["beta"](0.5, "rate") == pytest.approx(1.5 / 0.5)
    assert lagrangian_vae["geometric_mean"](torch.tensor([1.0, 4.0])) == pytest.approx(2)


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


VERDICTS = [
    ([90.9, 90.7], 0.8, -0.1, "met, active"),
    ([85.0, 84.9], 0.001, -5.9, "met, slack"),
    ([95.0, 92.0], 3.0, 1.2, "violated, λ below its cap"),
    ([99.0, 93.0], 20.0, 2.2, "violated, λ at its cap"),
    ([88.0, 87.9], 20.0, 10.0, "INFEASIBLE"),
]


@pytest.mark.parametrize(("elbos", "price", "excess", "said"), VERDICTS)
def test_verdicts_on_histories_of_each_kind(lagrangian_vae, elbos, price, excess, said):
    history = [{"-ELBO": elbo, "lambda": price} for elbo in elbos]
    assert lagrangian_vae["verdict"](history, excess, 20.0).startswith(said)


def test_frechet_distance_of_covariances_that_do_not_commute(lagrangian_vae):
    a, b = (torch.randn(500, 4).double() @ torch.randn(4, 4).double() + i for i in (0, 1))
    s_a, s_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(s_a)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s_b @ root).sqrt().sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + s_a.trace() + s_b.trace() - 2 * cross
    assert lagrangian_vae["frechet"](a, b) == pytest.approx(expected.item())
    assert lagrangian_vae["frechet"](a, a) == pytest.approx(0, abs=1e-6)


def test_the_judges_loss_is_of_labels_given_binary_images(lagrangian_vae, black_and_white):
    batch = black_and_white(0)._replace(labels=torch.arange(60) % 10)
    judge = torch.nn.Linear(784, 10)
    scores = judge((batch.images / 255).round())
    expected = torch.nn.functional.cross_entropy(scores, batch.labels, reduction="none")
    torch.testing.assert_close(lagrangian_vae["cross_entropy"](judge, batch), expected)


def test_a_constrained_mmd_is_paid_for(lagrangian_vae, small, black_and_white, monkeypatch):
    model, x = small
    torch.manual_seed(3)
    value = lagrangian_vae["consistent"](model, black_and_white(0))
    torch.manual_seed(3)
    lagrangian_vae["binarise"](255 * x)
    distortion, rate, z = lagrangian_vae["terms"](model, x)
    mmd = lagrangian_vae["mmd"](z, lagrangian_vae["standard"](4), 1.0)
    torch.testing.assert_close(value, distortion + rate + 3e4 * mmd)
