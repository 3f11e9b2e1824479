"""Bounds and estimates of log p(x), against torch.distributions, exact integrals and definitions."""

import math

import numpy
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.testing import assert_close

PIXELS = 28
STANDARD = Normal(0.0, 1.0)


@pytest.fixture
def model(vae):
    """A small model with two numbers in a code, whose encoder and decoder both say something."""
    network = vae["VAE"](2, (16, 1), (16, 2), pixels=PIXELS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        network.encoder[-1].weight.mul_(0.1)  # a guess as wide as the prior covers the posterior
        network.encoder[-1].bias.mul_(0.5)
    return network


@pytest.fixture
def x():
    return (torch.rand(5, PIXELS) < 0.5).float()


def guess(model, x):
    """q(z|x) by the library, from the encoder's output."""
    mu, log_sigma = model.encoder(x).chunk(2, dim=-1)
    return Independent(Normal(mu, log_sigma.exp()), 1)


def likelihood(model, z):
    """p(x|z) by the library, from the decoder's output."""
    return Independent(Bernoulli(logits=model.decoder(z)), 1)


def gradient(loss, module):
    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in gradients])


# The two terms, and their gradients.


def test_the_autoencoder_has_a_distortion_and_no_rate(vae, x):
    network = vae["Autoencoder"](2, 16, 1, pixels=PIXELS)
    distortion, rate = vae["autoencoder_terms"](network, x)
    assert_close(distortion, -likelihood(network, network.encoder(x)).log_prob(x))
    assert rate.tolist() == [0.0] * 5


def test_random_codes_have_the_moments_of_real_ones(vae):
    real = torch.randn(500, 3) * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([3.0, 0.0, -7.0])
    codes = vae["codes_like"](real, 20_000)
    assert_close(codes.mean(0), real.mean(0), atol=0.2, rtol=0)
    assert_close(codes.std(0), real.std(0), atol=0, rtol=0.05)


def test_a_decoder_begins_with_white_pixels(vae):
    network = vae["VAE"](2, (16, 1), (16, 1), pixels=PIXELS)
    assert vae["decode"](network, torch.zeros(1, 2)).mean().item() == pytest.approx(0.12, abs=0.03)
    assert torch.equal(network.decoder[-1].bias, torch.full((PIXELS,), -2.0))


def test_pixels_are_the_librarys_in_value_and_gradient(vae):
    logits = torch.tensor([-90.0, -3.0, 0.0, 0.5, 25.0, 90.0], requires_grad=True)
    for x in (torch.zeros(6), torch.ones(6)):
        ours, library = vae["Pixels"](logits=logits), Bernoulli(logits=logits)
        assert_close(ours.log_prob(x), library.log_prob(x), atol=1e-6, rtol=1e-5)
        slopes = [torch.autograd.grad(p.log_prob(x).sum(), logits)[0] for p in (ours, library)]
        assert_close(*slopes, atol=1e-6, rtol=1e-5)


def test_the_terms_are_the_librarys_and_the_mean_rate_is_the_divergence(vae, model, x):
    q = guess(model, x)
    torch.manual_seed(1)
    z = q.rsample()
    distortion = -likelihood(model, z).log_prob(x)
    rate = q.log_prob(z) - STANDARD.log_prob(z).sum(-1)
    torch.manual_seed(1)
    assert_close(vae["vae_terms"](model, x), (distortion, rate))
    with torch.no_grad():
        many = vae["vae_terms"](model, x.repeat(20_000, 1))[1].view(-1, 5).mean(0)
    assert_close(many, kl_divergence(q.base_dist, STANDARD).sum(-1), atol=0.05, rtol=0)


def test_the_gradient_of_the_terms_is_that_of_the_bound_with_one_code(vae, model, x):
    torch.manual_seed(1)
    landed = gradient(sum(vae["vae_terms"](model, x)).mean(), model.encoder)
    torch.manual_seed(1)
    same = gradient(vae["importance_weighted"](model, x).mean(), model.encoder)
    assert_close(landed, same, atol=1e-6, rtol=1e-4)


def test_with_a_learned_prior_the_rates_gradient_leaves_out_the_score(lagrangian_vae):
    x = (torch.rand(60, PIXELS) < 0.2).float()
    prior = lagrangian_vae["Mixture"](4, 3)
    model = lagrangian_vae["VAE"](4, (32, 1), (32, 1), prior, pixels=PIXELS)

    def slope(rate_of):
        torch.manual_seed(3)
        return gradient(rate_of(model, x).sum(), model.encoder)

    def rate(model, x, scored):
        q = guess(model, x)
        z = q.rsample()
        mean, scale = (v if scored else v.detach() for v in (q.mean, q.stddev))
        return Normal(mean, scale).log_prob(z).sum(-1) - prior.log_prob(z)

    ours = slope(lambda *given: lagrangian_vae["terms"](*given)[1])
    assert_close(ours, slope(lambda *given: rate(*given, False)))
    assert (ours - slope(lambda *given: rate(*given, True))).norm() > 0.01 * ours.norm()


def test_terms_are_averaged_over_several_codes(lagrangian_vae):
    x = (torch.rand(60, 784) < 0.2).float()
    model = lagrangian_vae["VAE"](4, (32, 1), (32, 1))
    values = lagrangian_vae["averaged_terms"](model, x, 50)
    single = lagrangian_vae["held_out_terms"](model, x.repeat(20, 1))
    assert values.shape == (2, 60) and single.shape == (2, 1200) and not single.requires_grad
    assert_close(values.mean(1), single.mean(1), rtol=0, atol=0.5)
    assert_close(values, lagrangian_vae["averaged_terms"](model, x, 50))


# The importance-weighted bound.


def test_the_weight_is_joint_over_guess_with_whatever_prior(vae, model, x):
    class Shifted(torch.nn.Module):
        def forward(self):
            return Independent(Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])), 1)

    q = guess(model, x)
    z = q.sample((3,))
    rest = likelihood(model, z).log_prob(x) - q.log_prob(z)
    assert_close(vae["log_w"](model, x, z, q), rest + STANDARD.log_prob(z).sum(-1))
    model.prior = Shifted()
    assert_close(vae["log_w"](model, x, z, q), rest + Shifted()().log_prob(z))


@pytest.mark.parametrize("k", [1, 3])
def test_the_importance_weighted_objective_and_its_gradient_are_in_expectation_the_plain_ones(
    vae, model, x, k
):
    many = x[:1].expand(100_000, -1)
    q = guess(model, many)
    plain = math.log(k) - vae["log_w"](model, many, q.rsample((k,)), q).logsumexp(0).mean()
    ours = vae["importance_weighted"](model, many, k).mean()
    assert ours.item() == pytest.approx(plain.item(), abs=0.02)
    for part in (model.encoder, model.decoder):
        expected = gradient(plain, part)
        assert (gradient(ours, part) - expected).norm() < 0.04 * expected.norm()


def test_sticking_the_landing_is_free_of_noise_where_the_guess_is_right(vae, model, x):
    """A decoder that ignores z has the prior as its posterior; an encoder that says so has nothing left to learn."""
    with torch.no_grad():
        model.decoder[0].weight.zero_()
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.zero_()  # mean 0, log scale 0
    landed = gradient(vae["importance_weighted"](model, x).mean(), model.encoder)
    q = guess(model, x)
    with_score = gradient(-vae["log_w"](model, x, q.rsample(), q).mean(), model.encoder)
    assert landed.abs().max() < 1e-6 and with_score.abs().max() > 1e-2


def test_importance_bound_averages_over_disjoint_groups(vae):
    log_w = torch.tensor([[0.0, 2.0, 1.0, 1.0, 9.0]])  # the fifth fits into no group of two
    expected = (math.log((1 + math.exp(2)) / 2) + 1) / 2
    assert vae["importance_bound"](log_w, 2).item() == pytest.approx(expected)
    assert vae["importance_bound"](log_w, 1).item() == pytest.approx(13 / 5)


def test_effective_sample_size(vae):
    log_ws = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, -200.0, -200.0, -200.0]])
    assert vae["effective_sample_size"](log_ws).tolist() == pytest.approx([4, 1])
    shares = torch.tensor([[3 / 4, 1 / 4]])
    assert vae["effective_sample_size"](shares.log()).item() == pytest.approx(1.6)


def test_a_score_goes_from_few_codes_for_all_images_to_many_for_some(vae):
    log_ws = torch.randn(50, 13).double() * 3  # of 50 images, each of which is its number
    x = torch.arange(50)[:, None]
    vae["log_weights"] = lambda model, x, K: log_ws[x[:, 0], :K]
    rows = vae["score_by_pairs"](None, x, iter([(2, 10_000), (6, 20), (12, 5)]))

    def bound(images, k, of):
        groups = log_ws[images, : of // k * k].exp().view(len(images), -1, k)
        return groups.mean(2).log().mean(1)

    some, few = (vae["subset"](x, n)[:, 0] for n in (20, 5))
    changes = [-bound(range(50), 2, 2), bound(some, 2, 6) - bound(some, 6, 6)]
    changes.append(bound(few, 6, 12) - bound(few, 12, 12))
    means = [change.mean().item() for change in changes]
    errors = [change.std().item() / math.sqrt(len(change)) for change in changes]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert columns["K"] == [2, 6, 12] and columns["images"] == [50, 20, 5]
    assert columns["change"] == pytest.approx(means)
    assert columns["± of it"] == pytest.approx(errors)
    assert columns["−L_K"] == pytest.approx(list(numpy.cumsum(means)))
    both = math.hypot(errors[1], errors[2])
    assert columns["± of the steps"] == pytest.approx([0, errors[1], both])


# Two numbers in a code: the integral is known.


@torch.no_grad()
def exact_log_likelihood(model, x, points=401, reach=8.0):
    """log p(x) with two latent dimensions, by the trapezoidal rule on a grid; x [N, D] to nats [N]."""
    line = torch.linspace(-reach, reach, points)
    z = torch.cartesian_prod(line, line)
    conditional = likelihood(model, z[:, None]).log_prob(x).T
    joint = conditional + STANDARD.log_prob(z).sum(-1)
    return joint.logsumexp(1) + 2 * math.log(2 * reach / (points - 1))


def test_importance_sampling_converges_to_the_exact_likelihood_from_below(vae, model, x):
    exact = exact_log_likelihood(model, x)
    log_w = vae["log_weights"](model, x, 20_000)
    assert log_w.shape == (5, 20_000)
    assert_close(vae["importance_bound"](log_w, 20_000), exact, atol=0.1, rtol=0)
    with torch.no_grad():
        elbo = -sum(vae["vae_terms"](model, x.repeat(20_000, 1))).view(-1, 5).mean(0)
    assert_close(vae["importance_bound"](log_w, 1), elbo, atol=0.25, rtol=0)
    assert (elbo < exact - 0.1).all()  # so that the bound has something to close


def test_a_grid_covers_the_square(vae):
    z, area = vae["grid"](5)
    assert z.shape == (25, 2) and z[0].tolist() == [-5, -5] and z[-1].tolist() == [5, 5]
    assert z[1].tolist() == [-5, -2.5] and area == pytest.approx(2.5**2)


@pytest.fixture
def plane(vae):
    """A small model with two numbers in a code, whose guesses are off."""
    network = vae["VAE"](2, (16, 1), (16, 1), pixels=PIXELS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        network.encoder[-1].weight.mul_(0.1)
        network.encoder[-1].bias.copy_(torch.tensor([0.4, -0.3, -0.5, -0.7]))
    return network


def test_the_exact_nll_is_the_integral(vae, plane, x):
    expected = -exact_log_likelihood(plane, x)
    assert_close(vae["exact_nll"](plane, x, 201), expected, atol=1e-3, rtol=0)


def test_the_divergence_from_the_posterior_is_the_gap(vae, plane, x):
    exact = vae["exact_nll"](plane, x, 201)
    kl = vae["divergence"](plane, x, exact, 201)
    with torch.no_grad():
        terms = vae["vae_terms"](plane, x.repeat(20_000, 1))
    assert_close(kl, sum(terms).view(-1, 5).mean(0) - exact, atol=0.05, rtol=0)
    assert (kl > 0.1).all()


def test_the_window_holds_guess_and_posterior(vae, plane, x):
    centre, half = vae["window"](plane, x[0])
    q = guess(plane, x[:1])
    for edge in (q.mean[0] - 3 * q.stddev[0], q.mean[0] + 3 * q.stddev[0]):
        assert ((edge - centre).abs() <= half).all()
    z, _ = vae["grid"](201)
    inside = ((z - centre).abs() <= half).all(1)
    mass = vae["log_joint"](plane, x[:1], z)[0].softmax(0)
    assert mass[inside].sum() > 0.98 and half < 5.2


# A mixture as the prior.


@pytest.fixture
def prior(lagrangian_vae):
    """A mixture of three Gaussians in three dimensions, nothing of it special."""
    mixture = lagrangian_vae["Mixture"](3, 3)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixture


def test_the_learned_prior_is_the_librarys_mixture_in_value_and_gradient(lagrangian_vae, prior):
    z = torch.randn(5, 2, 3).requires_grad_()
    inputs = [z, *prior.parameters()]
    library = lagrangian_vae["mixture"](prior.logits, prior.means, prior.precisions())
    ours, theirs = prior.log_prob(z), library.log_prob(z)
    assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value.sum(), inputs) for value in (ours, theirs)]
    assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_negligible_component_changes_nothing_and_learns_nothing(lagrangian_vae):
    pair, z = lagrangian_vae["Mixture"](1, 2), torch.zeros(1, 1)
    pair.means.data[:] = torch.tensor([[0.0], [100.0]])
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


# What a model knows of an image in parts.


def test_filling_in_draws_from_the_posterior_given_what_is_known(vae, model):
    """The means of unknown pixels, against the exact conditional by a grid of codes."""
    x, known = torch.ones(1, PIXELS), torch.arange(PIXELS) < 20
    line = torch.linspace(-6, 6, 201)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_p = likelihood(model, z).base_dist.log_prob(x)[:, known].sum(1)
        shares = (log_p + STANDARD.log_prob(z).sum(1)).softmax(0)
        expected = shares @ model.decoder(z).sigmoid()
    drawn = vae["fill_in"](model, x.expand(800, -1), known, rounds=3, codes=1000)
    assert_close(drawn[:, 20:].mean(0), expected[20:], atol=0.05, rtol=0)


def test_the_rates_of_the_dimensions_add_up_to_the_rate(vae, model, x):
    rates = vae["dimension_rates"](model, x)
    assert rates.shape == (2,)
    expected = kl_divergence(guess(model, x).base_dist, STANDARD).sum(-1).mean()
    assert_close(rates.sum(), expected)


def test_the_dimensions_that_are_moved_are_the_highest_and_the_lowest(vae):
    rates = torch.tensor([0.0, 3.0, 2.0, 4.0, 1.0, 0.5])
    assert vae["highest_and_lowest"](rates) == [3, 1, 2, 4, 0]
    assert vae["highest_and_lowest"](torch.tensor([1.0])) == [0]


def test_a_move_changes_one_dimension_a_row(vae):
    z = torch.tensor([0.3, 0.4, 0.5])
    codes = vae["move"](z, [2, 0], 5, 2.0)
    assert codes.shape == (2, 5, 3)
    assert codes[0, :, 2].tolist() == codes[1, :, 0].tolist() == [-2, -1, 0, 1, 2]
    assert (codes[0, :, :2] == z[:2]).all() and (codes[1, :, 1:] == z[1:]).all()


def test_the_plane_has_z1_to_the_right_and_z2_upwards(vae):
    vae["decode"] = lambda model, z: z
    z = vae["decode_grid"](None, torch.tensor([-1.0, 0.0, 1.0]))
    assert z.tolist()[:3] == [[-1, 1], [0, 1], [1, 1]] and z.tolist()[-1] == [1, -1]


def test_circles_keep_the_variance_and_close(vae):
    a, b = torch.randn(2, 100_000, 1)
    codes = vae["circle"](a, b, 8)
    assert codes.shape == (8, 100_000, 1)
    assert_close(codes.var(1), torch.ones(8, 1), atol=0.02, rtol=0)
    assert_close(codes[[0, 2, 4]], torch.stack([a, b, -a]), atol=1e-5, rtol=0)  # by quarters


# Means, errors and units.


def test_mean_and_error(vae):
    mean, error = vae["mean_and_error"](torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0 and error == pytest.approx(math.sqrt(14 / 3) / 2)


def test_a_summary_has_mean_error_median_and_largest(vae):
    found = vae["summary"](torch.tensor([1.0, 2.0, 9.0]))
    assert found["mean"] == 4.0 and found["median"] == 2.0 and found["largest"] == 9.0
    assert found["±"] == pytest.approx(math.sqrt(19.0 / 3))


def test_the_largest_make_up_their_share(vae):
    values = torch.tensor([1.0, 6.0, 1.0, 2.0])
    assert vae["share_of_the_largest"](values, 0.25) == pytest.approx(0.6)
    assert vae["share_of_the_largest"](values, 0.5) == pytest.approx(0.8)


def test_some_rows_of_a_history_are_counted_from_one(vae):
    history = [{"loss": float(i)} for i in range(1, 31)]
    rows = vae["some_rows"](history, (1, 10, 30, 100))
    assert rows == [{"step": n, "loss": float(n)} for n in (1, 10, 30)]


def test_log_mean_exp(vae):
    values = torch.tensor([[0.0, math.log(3.0)], [-1000.0, -1000.0]])
    assert_close(vae["log_mean_exp"](values, 1), torch.tensor([math.log(2.0), -1000.0]))
    assert vae["log_mean_exp"](values[:1].expand(5, 2), 0)[1].item() == pytest.approx(math.log(3))


def test_bits_per_dimension(vae):
    assert vae["bits_per_dimension"](784 * math.log(2)) == pytest.approx(1)
    assert vae["bits_per_dimension"](10 * math.log(4), 5) == pytest.approx(4)


def test_the_floor_is_the_entropy_of_the_flips(vae):
    images = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert vae["flip_entropy"](images).item() == pytest.approx(entropy, rel=1e-4)


def test_independent_pixels_are_coins_with_their_mean(vae):
    images = torch.tensor([[0, 51], [0, 51]], dtype=torch.uint8)
    nll = vae["independent_nll"](images, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert nll[0].item() == pytest.approx(-math.log(0.2), abs=2e-3)
    assert nll[1].item() == pytest.approx(-math.log(1e-3) - math.log(0.8), abs=1e-3)


def test_the_row_of_an_nll_has_both_errors_and_numbers_are_rounded(vae):
    vae["CODES"] = (100, 5000)
    scored = [{"± of it": 0.3, "± of the steps": 0.0, "−L_K": 86.0}]
    scored += [{"± of it": 0.4, "± of the steps": 0.4, "−L_K": 85.12345}]
    unit = "nats, estimate from above, K = 5000"
    row = {"result": "test NLL", "value": 85.1235, "±": 0.5, "unit": unit}
    assert vae["nll_row"]("test NLL", scored) == row
    assert vae["row"]("a", 3, "images")["±"] == ""
