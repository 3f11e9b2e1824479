"""The mathematics of Lagrangian_VAE.ipynb, against double loops, closed forms, grids and known saddle points."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

PIXELS = 28


@pytest.fixture
def model(lagrangian_vae):
    """A small model with two latent dimensions whose encoder and decoder both say something."""
    network = lagrangian_vae["VAE"](2, (16, 1), (32, 1), pixels=PIXELS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        network.encoder[-1].weight.mul_(0.1)
        network.encoder[-1].bias.mul_(0.5)
    return network


@pytest.fixture
def x():
    return (torch.rand(5, PIXELS) < 0.5).float()


# The discrepancy


def grid(points=401, reach=8.0):
    """Points of the plane [P, 2] and the probability of N(0, I) around each [P]."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    return z, Normal(0.0, 1.0).log_prob(z).sum(1).exp() * (2 * reach / (points - 1)) ** 2


@pytest.mark.parametrize("variance", [0.5, 2.0])
def test_mmd_agrees_with_a_double_loop_and_a_grid_over_the_prior(lagrangian_vae, variance):
    z = torch.randn(7, 2, dtype=torch.float64) * 0.7 + 0.4
    u, weight = grid()

    def k(a, b):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * variance))

    codes = z.tolist()
    within = [k(a, b) for i, a in enumerate(codes) for j, b in enumerate(codes) if i != j]
    across = [(weight * torch.exp(-((u - a) ** 2).sum(1) / (2 * variance))).sum().item() for a in z]
    sum_of_two = Normal(0.0, math.sqrt(2.0)).log_prob(u).sum(1).exp() * (16 / 400) ** 2  # of u − u'
    prior = (sum_of_two * torch.exp(-(u**2).sum(1) / (2 * variance))).sum().item()
    expected = sum(within) / 42 - 2 * sum(across) / 7 + prior
    assert lagrangian_vae["mmd"](z, variance).item() == pytest.approx(expected, abs=1e-6)


# The Lagrangian and dual ascent


def descend(book, f, constraints, ascent, theta, steps=6000, rate=0.02):
    """Descent in theta, ascent in the multipliers."""
    theta = torch.tensor(theta, requires_grad=True)
    for _ in range(steps):
        values = constraints(theta)
        loss = book["lagrangian"](f(theta), values, ascent.bounds, ascent.multipliers)
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            theta -= rate * gradient
        ascent.step(values.detach())
    return theta.detach()


def test_dual_ascent_finds_a_saddle_point_known_in_closed_form(lagrangian_vae):
    """min |theta − a|² subject to w·theta <= b: theta = a − lambda w / 2, lambda = 2 (w·a − b) / |w|²."""
    a, w, b = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0]), 2.0
    multiplier = 2 * (w @ a - b) / (w @ w)
    ascent = lagrangian_vae["DualAscent"]([b, 10.0], [1.0, 1.0], [1.0, 1.0], [100.0, 100.0])
    theta = descend(
        lagrangian_vae,
        lambda t: ((t - a) ** 2).sum(),
        lambda t: torch.stack([w @ t, t[0]]),  # the second is slack: t[0] is far below 10
        ascent,
        [0.0, 0.0],
    )
    torch.testing.assert_close(theta, a - multiplier * w / 2, atol=1e-2, rtol=0)
    assert ascent.multipliers[0].item() == pytest.approx(multiplier.item(), abs=2e-2)
    assert 0 <= ascent.multipliers[1] < 2e-3  # its floor
    assert ascent.verdicts([(w @ theta).item(), 0.0], [0.01, 0.01])[1] == "met"
    assert "met" in ascent.verdicts([(w @ theta).item(), 0.0], [0.01, 0.01])[0]


def test_an_infeasible_bound_is_reported(lagrangian_vae):
    """theta² + 1 <= 1/2 has no solution."""
    ascent = lagrangian_vae["DualAscent"]([0.5], [0.1], [1.0], [50.0])
    theta = descend(
        lagrangian_vae, lambda t: (t - 3) ** 2, lambda t: (t**2 + 1)[None], ascent, 2.0, rate=0.002
    )
    assert ascent.multipliers.item() == 50
    assert "INFEASIBLE" in ascent.verdicts([theta.item() ** 2 + 1], [0.1])[0]
    fresh = lagrangian_vae["DualAscent"]([0.5], [0.1], [1.0], [50.0])
    assert "Train longer" in fresh.verdicts([0.7], [0.1])[0]
    assert fresh.verdicts([0.55], [0.1]) == ["met within the tolerance"]


def test_fixed_multipliers_reproduce_the_losses_of_known_models(lagrangian_vae, model, x):
    lagrangian, objective = lagrangian_vae["lagrangian"], lagrangian_vae["objective"]
    with torch.no_grad():
        distortion, rate, z = (term.double() for term in lagrangian_vae["terms"](model, x))
    d, r, discrepancy = distortion.mean(), rate.mean(), lagrangian_vae["mmd"](z, 0.5)
    constraints, zero = torch.stack([d + r, discrepancy]), torch.zeros(2)

    def loss(name, *multipliers):
        values = torch.tensor(multipliers, dtype=torch.float64)
        return lagrangian(objective(name, d, r), constraints, zero, values)

    exact = {"atol": 1e-10, "rtol": 0}
    torch.testing.assert_close(loss("plain VAE", 0.0, 0.0), d + r, **exact)
    for price in (0.25, 1.0, 4.0):
        more = loss("minimal information", price, 0.0) / price
        torch.testing.assert_close(more, d + (1 + 1 / price) * r, **exact)
        less = loss("maximal information", price, 0.0) / (1 + price)
        torch.testing.assert_close(less, d + price / (1 + price) * r, **exact)
    info = loss("maximal information", 3.0, 8.0) / 4
    torch.testing.assert_close(info, d + 0.75 * r + 2 * discrepancy, **exact)


def test_terms_leave_the_score_out_of_the_gradient(lagrangian_vae, vae, model, x):
    """Values and encoder gradients are those of sticking the landing in Basic_VAE."""
    gradients, values = [], []
    for loss in (
        lambda: sum(lagrangian_vae["terms"](model, x)[:2]),
        lambda: vae["importance_weighted"](model, x),
    ):
        torch.manual_seed(1)
        values.append(loss())
        gradients.append(torch.autograd.grad(values[-1].sum(), list(model.encoder.parameters())))
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    _, rate, z = lagrangian_vae["terms"](model, x[:1].expand(100_000, -1))
    library = kl_divergence(model.q(x[:1]), model.prior()).item()
    assert z.shape == (100_000, 2)
    assert rate.mean().item() == pytest.approx(library, abs=5 * rate.std().item() / 100_000**0.5)


# Training


@pytest.fixture
def small(lagrangian_vae, monkeypatch):
    """Epochs of twenty steps on noise: `run(epochs, ascent, validation)` to (model, history)."""

    def run(epochs, ascent=None, validation=None, images=None):
        torch.manual_seed(0)
        model, history = lagrangian_vae["VAE"](32, (8, 1), (16, 1), pixels=PIXELS), []
        images = torch.full((160, PIXELS), 128, dtype=torch.uint8) if images is None else images
        validation = (torch.rand(60, PIXELS) < 0.5).float() if validation is None else validation
        monkeypatch.setitem(lagrangian_vae, "validation_x", validation)
        loss, validate = lagrangian_vae["dual"]("maximal information", ascent, every=1)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        lagrangian_vae["train"](model, loss, images, epochs, 10, optimizer, validate, history)
        return model, history

    return run


def ascent_for(book, bound):
    return book["DualAscent"]([bound, 1.0], [0.5, 1.0], [5.0, 1.0], [20.0, 100.0])


def test_training_reports_validation_images_and_multipliers_and_repeats(lagrangian_vae, small):
    images, blank = torch.full((160, PIXELS), 255, dtype=torch.uint8), torch.zeros(60, PIXELS)
    ascent = ascent_for(lagrangian_vae, 15.0)
    model, rows = small(2, ascent, blank, images)
    seen, held_out = (
        lagrangian_vae["evaluate"](model, x)["distortion"] for x in (images / 255, blank)
    )
    assert rows[-1]["distortion"] == pytest.approx(held_out, abs=0.5) and abs(seen - held_out) > 5
    assert [rows[-1]["lambda_1"], rows[-1]["lambda_2"]] == ascent.multipliers.tolist()
    assert small(2, ascent_for(lagrangian_vae, 15.0), blank, images)[1] == rows
    assert list(small(1)[1][0]) == ["loss", "distortion", "rate", "MMD^2"]  # nothing to constrain


def test_multipliers_follow_validation_images_not_training_images(lagrangian_vae, small):
    """Training images are all zeros and soon easy; validation images are noise and stay hard."""
    black = torch.zeros(160, PIXELS, dtype=torch.uint8)
    hard, easy = ascent_for(lagrangian_vae, 15.0), ascent_for(lagrangian_vae, 15.0)
    small(30, hard, images=black)
    small(30, easy, images=black, validation=torch.zeros(60, PIXELS))
    assert hard.multipliers[0] > 5 > easy.multipliers[0]


# Information, likelihood, sample quality


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_information_of_a_gaussian_channel(lagrangian_vae, noise):
    """z = x + noise, both Gaussian, two dimensions: I = log(1 + 1 / noise²) nats."""
    x = torch.randn(6000, 2)
    sigma = torch.full_like(x, noise)
    z = x + sigma * torch.randn_like(x)
    expected = math.log(1 + 1 / noise**2)
    assert lagrangian_vae["information"](z, x, sigma, rows=77) == pytest.approx(expected, abs=0.06)


@pytest.fixture
def mixture(lagrangian_vae, model):
    images = torch.randint(256, (600, PIXELS), dtype=torch.uint8)
    return lagrangian_vae["fit_mixture"](model, images, 3)


def test_the_density_of_the_mixture_agrees_with_the_library(lagrangian_vae, mixture):
    z = torch.randn(4, 5, 2)
    parts = MultivariateNormal(
        torch.tensor(mixture.means_), covariance_matrix=torch.tensor(mixture.covariances_)
    )
    log_parts = parts.log_prob(z.double()[:, :, None]) + torch.tensor(mixture.weights_).log()
    log_r = lagrangian_vae["Mixture"](mixture)().log_prob(z)
    torch.testing.assert_close(log_r, log_parts.logsumexp(-1).float(), atol=1e-4, rtol=1e-4)
    assert log_r.dtype == torch.float32


def test_importance_sampling_under_prior_and_mixture(lagrangian_vae, model, mixture, x):
    z, _ = grid(points=301)
    z, cell = z.float(), (16.0 / 300) ** 2
    with torch.no_grad():
        conditional = torch.stack([model.p(z).log_prob(image) for image in x])
    for prior in (model.prior, lagrangian_vae["Mixture"](mixture)):
        model.prior = prior
        log_w = lagrangian_vae["log_weights"](model, x, 5000)
        exact = (conditional + prior().log_prob(z)).logsumexp(1) + math.log(cell)
        bound = lagrangian_vae["importance_bound"](log_w, 5000)
        torch.testing.assert_close(bound, exact, atol=0.08, rtol=0)


def test_frechet_distance_of_gaussians(lagrangian_vae):
    frechet = lagrangian_vae["frechet_distance"]
    a = torch.randn(100_000, 3)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    shift = torch.tensor([1.0, -2.0, 0.5])
    assert frechet(a, a + shift) == pytest.approx((shift**2).sum().item(), abs=1e-3)
    # Covariances that do not commute: the trace of the root by its definition, through symmetric roots.
    roots = torch.randn(2, 3, 3)
    b, c = (a @ root for root in roots)

    def root(s):
        values, vectors = torch.linalg.eigh(s)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T

    s_b, s_c = b.T.cov().double(), c.T.cov().double()
    expected = ((b.mean(0) - c.mean(0)) ** 2).sum() + s_b.trace() + s_c.trace()
    expected = expected - 2 * root(root(s_b) @ s_c @ root(s_b)).trace()
    assert (s_b @ s_c - s_c @ s_b).abs().max() > 0.1
    assert frechet(b, c) == pytest.approx(expected.item(), rel=1e-4)
