"""The mathematics of Lagrangian_VAE.ipynb, against double loops, closed forms, grids and known saddle points."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

PIXELS = 28


@pytest.fixture
def model(lagrangian_vae):
    """A small model with two latent dimensions whose encoder and decoder both say something."""
    network = lagrangian_vae["VAE"](latent_dim=2, hidden=16, pixels=PIXELS)
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


def test_mmd_does_not_depend_on_the_size_of_its_pieces(lagrangian_vae):
    z = torch.randn(50, 8)
    whole, pieces = (lagrangian_vae["mmd"](z, 2.0, rows=rows) for rows in (1000, 7))
    torch.testing.assert_close(whole, pieces, atol=1e-6, rtol=0)


def test_mmd_is_zero_in_expectation_for_the_prior_itself(lagrangian_vae):
    values = torch.stack([lagrangian_vae["mmd"](torch.randn(20, 8), 2.0) for _ in range(2000)])
    error = values.std() / math.sqrt(2000)
    assert values.mean().abs() < 4 * error
    assert 4 * error < 0.2 / 20  # small enough to see the bias, about 1/n, of counting i = j
    assert values.min() < 0


def test_mmd_sees_half_the_scale_and_a_shift_and_the_published_width_does_not(lagrangian_vae):
    d, mmd = 32, lagrangian_vae["mmd"]
    noise = torch.stack([mmd(torch.randn(250, d), d / 4) for _ in range(50)]).std()
    for codes in (0.5 * torch.randn(250, d), torch.randn(250, d) + 0.3, 1.1 * torch.randn(250, d)):
        assert mmd(codes, d / 4) > 8 * noise
    wide = torch.stack([mmd(torch.randn(250, d), d**2 / 2) for _ in range(50)]).std()
    assert mmd(1.1 * torch.randn(250, d), d**2 / 2) < 4 * wide


def test_mmd_of_one_code_is_refused(lagrangian_vae):
    with pytest.raises(ValueError, match="enlarge the batch"):
        lagrangian_vae["mmd"](torch.zeros(1, 3), 1.0)


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


def test_the_gradients_have_the_right_signs(lagrangian_vae):
    theta = torch.tensor(2.0, requires_grad=True)
    multipliers = torch.tensor([0.5, 3.0], requires_grad=True)
    constraints, bounds = torch.stack([theta**2, -theta]), torch.tensor([1.0, -1.0])
    loss = lagrangian_vae["lagrangian"](5 * theta, constraints, bounds, multipliers)
    by_theta, by_multipliers = torch.autograd.grad(loss, [theta, multipliers])
    assert by_theta.item() == pytest.approx(5 + 0.5 * 4 - 3)
    assert by_multipliers.tolist() == [
        3.0,
        -1.0,
    ]  # C − epsilon: up where violated, down where slack
    ascent = lagrangian_vae["DualAscent"](bounds, [1.0, 1.0], [1.0, 1.0], [10.0, 10.0])
    ascent.step(constraints.detach())
    assert ascent.multipliers[0] > 1 > ascent.multipliers[1]


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


def test_multipliers_stay_positive_and_below_their_caps(lagrangian_vae):
    ascent = lagrangian_vae["DualAscent"](
        [0.0, 0.0], [0.1, 10.0], [1.0, 5.0], [20.0, 8.0], rate=0.5
    )
    for _ in range(300):
        ascent.step(100 * torch.randn(2))
        assert (ascent.multipliers > 0).all() and (ascent.multipliers <= ascent.caps).all()
    for _ in range(300):
        ascent.step(torch.tensor([-1e9, -1e9]))
        assert (ascent.multipliers >= 0).all()


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


@pytest.mark.parametrize(("scales", "start"), [([0.0], [1.0]), ([1.0], [0.0]), ([1.0], [-1.0])])
def test_scales_and_first_multipliers_must_be_positive(lagrangian_vae, scales, start):
    with pytest.raises(ValueError, match="must be positive"):
        lagrangian_vae["DualAscent"]([1.0], scales, start, [10.0])


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
    torch.testing.assert_close(
        loss("maximal information", 0.0, 5.0), d + 5 * discrepancy, **exact
    )  # the Wasserstein autoencoder


def test_terms_are_those_of_basic_vae(lagrangian_vae, vae, model, x):
    torch.manual_seed(1)
    distortion, rate, z = lagrangian_vae["terms"](model, x)
    torch.manual_seed(1)
    expected = vae["monte_carlo"](model, x)
    torch.testing.assert_close((distortion, rate), expected)
    assert z.shape == (5, 2)
    with torch.no_grad():
        many = lagrangian_vae["terms"](model, x[:1].expand(100_000, -1))[1]
    q = model.q(x[:1])
    library = kl_divergence(q, model.prior(q.mean)).item()
    assert many.mean().item() == pytest.approx(library, abs=5 * many.std().item() / 100_000**0.5)


# Training


@pytest.fixture
def small(lagrangian_vae):
    """Sixteen-step epochs on noise: `run(epochs, ascent, validation)` to (model, history)."""

    def run(epochs, ascent=None, validation=None, seed=0, learning_rate=3e-3, images=None):
        torch.manual_seed(seed)
        model = lagrangian_vae["VAE"](32, 8, PIXELS)
        images = torch.rand(160, PIXELS) if images is None else images
        validation = (torch.rand(60, PIXELS) < 0.5).float() if validation is None else validation
        history = lagrangian_vae["train"](
            model, "maximal information", images, validation, epochs, 10, learning_rate, ascent
        )
        return model, history

    return run


def ascent_for(book, bound):
    return book["DualAscent"]([bound, 1.0], [0.5, 1.0], [5.0, 1.0], [20.0, 100.0])


def test_training_reports_what_was_held_out_and_is_reproducible(lagrangian_vae, small):
    (first, rows), (second, again) = (small(2, ascent_for(lagrangian_vae, 15.0)) for _ in range(2))
    assert rows == again and [len(row) for row in rows] == [5, 5]
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert small(1)[1][0][:3] and len(small(1)[1][0]) == 3  # without constraints no multipliers


def test_multipliers_follow_validation_images_not_training_images(lagrangian_vae, small):
    """Training images are all zeros and soon easy; validation images are noise and stay hard."""
    black = torch.zeros(160, PIXELS)
    hard, easy = ascent_for(lagrangian_vae, 15.0), ascent_for(lagrangian_vae, 15.0)
    small(30, hard, images=black)
    small(30, easy, images=black, validation=torch.zeros(60, PIXELS))
    assert hard.multipliers[0] > 5 > easy.multipliers[0]


def test_a_bound_out_of_reach_drives_its_multiplier_to_the_cap(lagrangian_vae, small):
    ascent = ascent_for(lagrangian_vae, 1.0)  # noise of 28 pixels costs 19.4 nats
    _, history = small(30, ascent)
    assert ascent.multipliers[0] == 20
    d, r, discrepancy, *_ = history[-1]
    assert "INFEASIBLE" in ascent.verdicts([d + r, discrepancy], [0.5, 0.1])[0]


def test_a_loss_that_is_not_finite_stops_with_the_epoch(small):
    with pytest.raises(FloatingPointError, match="epoch 1: lower LEARNING_RATE"):
        small(2, images=torch.full((160, PIXELS), 0.5), learning_rate=math.inf)


def test_an_interrupted_training_keeps_what_it_has(lagrangian_vae, small, monkeypatch, capsys):
    evaluate, calls = lagrangian_vae["evaluate"], []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setitem(lagrangian_vae, "evaluate", interrupt)
    _, history = small(5)
    assert len(history) == 2 and "interrupted in epoch 3 of 5" in capsys.readouterr().out


def test_settled_is_the_first_epoch_of_an_unbroken_run(lagrangian_vae):
    ascent = lagrangian_vae["DualAscent"]([95.0, 1e-3], [1.0, 1.0], [1.0, 1.0], [9.0, 9.0])
    good, elbo, spread = (70.0, 25.2, 1e-3), (70.0, 26.0, 1e-3), (70.0, 25.0, 2e-3)
    settled = lagrangian_vae["settled"]
    assert settled([elbo, good, spread, good, good], ascent, [0.5, 1e-4]) == 4
    assert settled([good, good], ascent, [0.5, 1e-4]) == 1
    assert settled([good, elbo], ascent, [0.5, 1e-4]) is None
    assert settled([], ascent, [0.5, 1e-4]) is None


# Information, likelihood, sample quality


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_information_of_a_gaussian_channel(lagrangian_vae, noise):
    """z = x + noise, both Gaussian, two dimensions: I = log(1 + 1 / noise²) nats."""
    x = torch.randn(6000, 2)
    sigma = torch.full_like(x, noise)
    z = x + sigma * torch.randn_like(x)
    expected = math.log(1 + 1 / noise**2)
    assert lagrangian_vae["information"](z, x, sigma) == pytest.approx(expected, abs=0.06)
    assert lagrangian_vae["information"](z, x, sigma, rows=77) == pytest.approx(
        lagrangian_vae["information"](z, x, sigma), abs=1e-4
    )


def test_information_cannot_exceed_its_ceiling(lagrangian_vae):
    x = torch.randn(300, 2)
    sigma = torch.full_like(x, 1e-4)  # a channel that says far more than log 300 nats
    value = lagrangian_vae["information"](x + sigma * torch.randn_like(x), x, sigma)
    assert math.log(300) - 0.05 < value <= math.log(300) + 1e-5


def test_pairwise_log_q_agrees_with_the_library(lagrangian_vae):
    z, mu, sigma = torch.randn(4, 3), torch.randn(6, 3), torch.rand(6, 3) + 0.5
    expected = Independent(Normal(mu, sigma), 1).log_prob(z[:, None])
    torch.testing.assert_close(lagrangian_vae["pairwise_log_q"](z, mu, sigma), expected)


@pytest.fixture
def mixture(lagrangian_vae, model):
    images = torch.rand(600, PIXELS)
    return lagrangian_vae["fit_mixture"](model, images, 3)


def test_the_density_of_the_mixture_agrees_with_the_library(lagrangian_vae, mixture):
    z = torch.randn(4, 5, 2)
    parts = MultivariateNormal(
        torch.tensor(mixture.means_), covariance_matrix=torch.tensor(mixture.covariances_)
    )
    log_parts = parts.log_prob(z.double()[:, :, None]) + torch.tensor(mixture.weights_).log()
    log_r = lagrangian_vae["log_density"](mixture)(z)
    torch.testing.assert_close(log_r, log_parts.logsumexp(-1).float(), atol=1e-4, rtol=1e-4)
    assert log_r.dtype == torch.float32


def test_importance_sampling_converges_to_the_likelihood_under_prior_and_mixture(
    lagrangian_vae, model, mixture, x
):
    densities = [lagrangian_vae["log_prior"], lagrangian_vae["log_density"](mixture)]
    log_w = lagrangian_vae["log_weights"](model, x, 5000, densities, rows=9000)
    assert log_w.shape == (2, 5, 5000)
    z, _ = grid(points=301)
    cell = (16.0 / 300) ** 2
    with torch.no_grad():
        conditional = torch.stack([model.p(z.float()).log_prob(image) for image in x])
    for weights, density in zip(log_w, densities, strict=True):
        exact = (conditional + density(z.float())).logsumexp(1) + math.log(cell)
        bound = lagrangian_vae["importance_bound"](weights, 5000)
        torch.testing.assert_close(bound, exact, atol=0.08, rtol=0)


def test_frechet_distance_of_gaussians(lagrangian_vae):
    frechet = lagrangian_vae["frechet_distance"]
    a = torch.randn(100_000, 3)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    shift = torch.tensor([1.0, -2.0, 0.5])
    assert frechet(a, a + shift) == pytest.approx((shift**2).sum().item(), abs=1e-3)
    scales = torch.tensor([0.5, 2.0, 1.0])
    assert frechet(a, a * scales) == pytest.approx(((1 - scales) ** 2).sum().item(), abs=0.05)


def test_neighbours_know_their_labels(lagrangian_vae):
    known, labels = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([3, 7])
    new = torch.tensor([[0.1, 0.0], [0.8, 1.0], [0.2, 0.1], [0.9, 0.9]])
    accuracy = lagrangian_vae["neighbour_accuracy"](known, labels, new, torch.tensor([3, 7, 7, 7]))
    assert accuracy == 0.75
