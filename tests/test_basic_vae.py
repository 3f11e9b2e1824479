"""The mathematics of Basic_VAE.ipynb, against torch.distributions, exact integrals and definitions."""

import ast
import bz2
import lzma
import math
import random
import re

import nbformat
import pytest
import torch
from conftest import ROOT, code_cells, results, run_cell
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

PIXELS = 28


@pytest.fixture
def model(vae):
    """A small model whose encoder and decoder both say something."""
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


def gradient(loss, module):
    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in gradients])


def test_the_autoencoder_has_a_distortion_and_no_rate(vae, x):
    network = vae["Autoencoder"](2, 16, 1, pixels=PIXELS)
    distortion, rate = vae["autoencoder_terms"](network, x)
    logits = network.decoder(network.encoder(x))
    expected = -(x * logits.sigmoid().log() + (1 - x) * (1 - logits.sigmoid()).log()).sum(1)
    torch.testing.assert_close(distortion, expected)
    assert rate.tolist() == [0.0] * 5


def test_a_decoder_begins_with_white_pixels(vae):
    network = vae["VAE"](2, (16, 1), (16, 1), pixels=PIXELS)
    assert vae["decode"](network, torch.zeros(1, 2)).mean().item() == pytest.approx(0.12, abs=0.03)
    assert torch.equal(network.decoder[-1].bias, torch.full((PIXELS,), -2.0))


def test_the_terms_are_the_librarys(vae, model, x):
    q = guess(model, x)
    torch.manual_seed(1)
    z = q.rsample()
    distortion = -Independent(Bernoulli(logits=model.decoder(z)), 1).log_prob(x)
    rate = q.log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.manual_seed(1)
    torch.testing.assert_close(vae["vae_terms"](model, x), (distortion, rate))
    with torch.no_grad():
        many = vae["vae_terms"](model, x.repeat(20_000, 1))[1].view(-1, 5).mean(0)
    exact = kl_divergence(q.base_dist, Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(many, exact, atol=0.05, rtol=0)


def test_pixels_are_the_librarys(vae):
    logits = torch.tensor([-90.0, -3.0, 0.0, 0.5, 25.0, 90.0], requires_grad=True)
    for x in (torch.zeros(6), torch.ones(6)):
        ours, library = vae["Pixels"](logits=logits), Bernoulli(logits=logits)
        torch.testing.assert_close(ours.log_prob(x), library.log_prob(x), atol=1e-6, rtol=1e-5)
        slopes = [torch.autograd.grad(p.log_prob(x).sum(), logits)[0] for p in (ours, library)]
        torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_the_terms_leaves_out_the_score_and_keeps_its_mean(vae, model, x):
    many = x[:1].expand(100_000, -1)
    q = guess(model, many)
    distortion = -model.p(q.rsample()).log_prob(many)
    closed = (distortion + kl_divergence(q.base_dist, Normal(0.0, 1.0)).sum(-1)).mean()
    expected = gradient(closed, model.encoder)
    ours = gradient(sum(vae["vae_terms"](model, many)).mean(), model.encoder)
    assert (ours - expected).norm() < 0.04 * expected.norm()
    torch.manual_seed(1)
    landed = gradient(sum(vae["vae_terms"](model, x)).mean(), model.encoder)
    torch.manual_seed(1)
    same = gradient(vae["importance_weighted"](model, x).mean(), model.encoder)
    torch.testing.assert_close(landed, same, atol=1e-6, rtol=1e-4)


def test_the_weight_is_joint_over_guess_with_whatever_prior(vae, model, x):
    class Shifted(torch.nn.Module):
        def forward(self):
            return Independent(Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])), 1)

    q = guess(model, x)
    z = q.sample((3,))
    shared = Independent(Bernoulli(logits=model.decoder(z)), 1).log_prob(x) - q.log_prob(z)
    standard = Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(vae["log_w"](model, x, z, q), shared + standard)
    model.prior = Shifted()
    torch.testing.assert_close(vae["log_w"](model, x, z, q), shared + Shifted()().log_prob(z))


def by_definition(model, x, k, seed):
    """L_k and its doubly reparameterised gradient for each sample's part, Tucker et al. 2019, equation 9."""
    torch.manual_seed(seed)
    q = guess(model, x)
    z = q.rsample((k,))
    fixed = Independent(Normal(q.mean.detach(), q.stddev.detach()), 1)
    leaf = z.detach().requires_grad_()
    log_p = Independent(Bernoulli(logits=model.decoder(leaf)), 1).log_prob(x)
    log_w = log_p + Normal(0.0, 1.0).log_prob(leaf).sum(-1) - fixed.log_prob(leaf)
    weight = (log_w.exp() / log_w.exp().sum(0)).detach()
    (by_z,) = torch.autograd.grad(log_w.sum(), leaf, retain_graph=True)  # d log w_j / d z_j
    encoder = gradient((weight[..., None] ** 2 * by_z * z).sum(), model.encoder)
    decoder = gradient((weight * log_w).sum(), model.decoder)
    return log_w.exp().mean(0).log(), encoder, decoder


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_importance_weighted_objective_is_its_definition(vae, model, x, k):
    bound, encoder, decoder = by_definition(model, x, k, seed=1)
    torch.manual_seed(1)
    loss = vae["importance_weighted"](model, x, k)
    torch.testing.assert_close(loss, -bound)
    torch.testing.assert_close(gradient(loss.sum(), model.encoder), -encoder, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient(loss.sum(), model.decoder), -decoder, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 3])
def test_its_gradient_has_the_expectation_of_the_plain_one(vae, model, x, k):
    many = x[:1].expand(100_000, -1)
    q = guess(model, many)
    plain = math.log(k) - vae["log_w"](model, many, q.rsample((k,)), q).logsumexp(0).mean()
    expected = gradient(plain, model.encoder)
    ours = gradient(vae["importance_weighted"](model, many, k).mean(), model.encoder)
    assert (ours - expected).norm() < 0.04 * expected.norm()


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


def exact_log_likelihood(model, x, points=801, reach=9.0):
    """log p(x) with two latent dimensions, by the trapezoidal rule on a grid; x [N, D] to nats [N]."""
    line = torch.linspace(-reach, reach, points)
    z = torch.cartesian_prod(line, line)
    prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    with torch.no_grad():
        conditional = Independent(Bernoulli(logits=model.decoder(z)[:, None]), 1).log_prob(x).T
    return (conditional + prior).logsumexp(1) + 2 * math.log(2 * reach / (points - 1))


def test_importance_sampling_converges_to_the_exact_likelihood_from_below(vae, model, x):
    exact = exact_log_likelihood(model, x)
    log_w = vae["log_weights"](model, x, 20_000)
    assert log_w.shape == (5, 20_000)
    torch.testing.assert_close(vae["importance_bound"](log_w, 20_000), exact, atol=0.1, rtol=0)
    with torch.no_grad():
        elbo = -sum(vae["vae_terms"](model, x.repeat(20_000, 1))).view(-1, 5).mean(0)
    torch.testing.assert_close(vae["importance_bound"](log_w, 1), elbo, atol=0.25, rtol=0)
    assert (elbo < exact - 0.1).all()  # so that the bound has something to close


def test_importance_bound_averages_over_disjoint_groups(vae):
    log_w = torch.tensor([[0.0, 2.0, 1.0, 1.0, 9.0]])  # the fifth fits into no group of two
    expected = (math.log((1 + math.exp(2)) / 2) + 1) / 2
    assert vae["importance_bound"](log_w, 2).item() == pytest.approx(expected)
    assert vae["importance_bound"](log_w, 1).item() == pytest.approx(13 / 5)


def test_effective_sample_size(vae):
    log_ws = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, -200.0, -200.0, -200.0]])
    assert vae["effective_sample_size"](log_ws).tolist() == pytest.approx([4, 1])
    half = torch.tensor([[math.log(3.0), 0.0]])  # shares 3/4 and 1/4
    assert vae["effective_sample_size"](half).item() == pytest.approx(1.6)


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


def test_a_grid_covers_the_square(vae):
    z, area = vae["grid"](5)
    assert z.shape == (25, 2) and z[0].tolist() == [-5, -5] and z[-1].tolist() == [5, 5]
    assert z[1].tolist() == [-5, -2.5] and area == pytest.approx(2.5**2)


def test_the_joint_of_all_pairs_is_the_librarys(vae, plane, x):
    z = torch.randn(7, 2)
    with torch.no_grad():
        likelihood = plane.p(z[:, None]).log_prob(x).T
    expected = likelihood + Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(vae["log_joint"](plane, x, z), expected)


def test_the_exact_nll_is_the_integral(vae, plane, x):
    expected = -exact_log_likelihood(plane, x)
    torch.testing.assert_close(vae["exact_nll"](plane, x, 201), expected, atol=1e-3, rtol=0)


def test_the_divergence_from_the_posterior_is_the_gap(vae, plane, x):
    exact = vae["exact_nll"](plane, x, 201)
    kl = vae["divergence"](plane, x, exact, 201)
    with torch.no_grad():
        terms = vae["vae_terms"](plane, x.repeat(20_000, 1))
    gap = sum(terms).view(-1, 5).mean(0) - exact
    torch.testing.assert_close(kl, gap, atol=0.05, rtol=0)
    assert (kl > 0.1).all()


def test_what_the_estimate_leaves_is_its_distance_from_the_truth(vae):
    log_ws = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    left = vae["what_is_left"](log_ws, torch.tensor([-2.0, -2.0]), [1, 2])
    assert left.shape == (2, 2)
    assert left[0].tolist() == pytest.approx([2 - math.log(3.0) / 2, 1])
    assert left[1].tolist() == pytest.approx([2 - math.log(2.0), 1])


def test_the_largest_make_up_their_share(vae):
    values = torch.tensor([1.0, 6.0, 1.0, 2.0])
    assert vae["share_of_the_largest"](values, 0.25) == pytest.approx(0.6)
    assert vae["share_of_the_largest"](values, 0.5) == pytest.approx(0.8)


def test_a_summary_has_mean_error_median_and_largest(vae):
    found = vae["summary"](torch.tensor([1.0, 2.0, 9.0]))
    assert found["mean"] == 4.0 and found["median"] == 2.0 and found["largest"] == 9.0
    assert found["±"] == pytest.approx(math.sqrt(19.0 / 3))


def test_the_window_holds_guess_and_posterior(vae, plane, x):
    centre, half = vae["window"](plane, x[0])
    mu, sigma = vae["encode"](plane, x[:1])
    for edge in (mu[0] - 3 * sigma[0], mu[0] + 3 * sigma[0]):
        assert ((edge - centre).abs() <= half).all()
    z, _ = vae["grid"](201)
    inside = ((z - centre).abs() <= half).all(1)
    mass = vae["log_joint"](plane, x[:1], z)[0].softmax(0)
    assert mass[inside].sum() > 0.98 and half < 5.2


def train(vae, monkeypatch, fit, *arguments, epochs=4, width=16):
    """A small model, trained on images with black stripes by a loop of the notebook: the model, its history."""
    images = torch.zeros(200, PIXELS, dtype=torch.uint8)
    images[:, ::2] = 255
    monkeypatch.setitem(vae, "train_data", [images, torch.zeros(200)])
    monkeypatch.setitem(vae, "BATCH_SIZE", 10)
    torch.manual_seed(1)
    network = vae["VAE"](2, (width, 1), (width, 1), pixels=PIXELS)
    training = vae["Training"]("VAE, test", network, vae["adamw"](network), epochs)
    return network, vae[fit](training, *arguments)


def test_the_loop_descends_the_sum_of_both_terms(vae, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, history = train(vae, monkeypatch, "fit", vae["vae_terms"])
    assert len(history) == 4 and history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert 1 < history[0]["loss"] < PIXELS  # a mean over images
    for row in history:
        assert row["loss"] == pytest.approx(row["distortion"] + row["rate"], rel=1e-4)


def test_each_step_of_the_loop_is_one_of_the_optimiser(vae, monkeypatch, tmp_path):
    """Against the same steps written out: random numbers, loss, gradient, AdamW."""
    monkeypatch.chdir(tmp_path)
    ours, _ = train(vae, monkeypatch, "fit", vae["vae_terms"], epochs=2)
    torch.manual_seed(1)
    network = vae["VAE"](2, (16, 1), (16, 1), pixels=PIXELS)
    training = vae["Training"]("again", network, vae["adamw"](network), 2)
    for images, _ in training:
        loss = sum(vae["vae_terms"](network, vae["binarise"](images))).mean()
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        training.record(loss=loss)
    for a, b in zip(ours.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_tighter_loop_descends_the_bound_with_so_many_codes(vae, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked, bound = [], vae["importance_weighted"]

    def importance_weighted(model, x, k):
        asked.append((len(x), k))
        return bound(model, x, k)

    monkeypatch.setitem(vae, "importance_weighted", importance_weighted)
    _, history = train(vae, monkeypatch, "fit_tighter", 3)
    assert set(asked) == {(10, 3)} and history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert 1 < history[0]["loss"] < PIXELS  # a mean over images


def test_the_optimiser_decays_weights_and_forgets(vae):
    options = vae["adamw"](torch.nn.Linear(2, 2), 0.3).defaults
    assert (options["lr"], options["weight_decay"], options["betas"]) == (0.3, 0.01, (0.9, 0.99))
    assert vae["adamw"](torch.nn.Linear(2, 2)).defaults["lr"] == vae["LEARNING_RATE"]


def test_an_evaluation_has_the_means_of_both_terms_and_their_sum(vae, model, x, monkeypatch):
    many = x.repeat(300, 1)
    row = vae["evaluate"](model, many)
    rate = kl_divergence(guess(model, x).base_dist, Normal(0.0, 1.0)).sum(-1).mean().item()
    assert row["rate"] == pytest.approx(rate, abs=0.15)
    with torch.no_grad():
        distortion = vae["vae_terms"](model, many)[0].mean().item()
    assert row["distortion"] == pytest.approx(distortion, abs=0.5)
    assert row["-ELBO"] == pytest.approx(row["distortion"] + row["rate"])
    monkeypatch.setitem(vae, "validation_x", many)
    assert vae["validate"](model)["rate"] == pytest.approx(rate, abs=0.2)


def test_some_rows_of_a_history_are_counted_from_one(vae):
    history = [{"loss": float(i)} for i in range(1, 31)]
    rows = vae["some_rows"](history, (1, 10, 30, 100))
    assert rows == [{"step": n, "loss": float(n)} for n in (1, 10, 30)]


def test_random_codes_have_the_moments_of_real_ones(vae):
    real = torch.randn(500, 3) * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([3.0, 0.0, -7.0])
    codes = vae["codes_like"](real, 20_000)
    torch.testing.assert_close(codes.mean(0), real.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(codes.std(0), real.std(0), atol=0, rtol=0.05)


def test_examples_are_one_of_each_class_drawn_at_random(vae):
    labels = torch.arange(500) % 10
    indices = vae["one_of_each"](labels)
    assert labels[indices].tolist() == list(range(10)) and indices.max() > 20
    few = vae["one_of_each"](torch.tensor([3, 3, 7]))
    assert len(few) == 10 and few[:2].tolist()[1] == 2 and set(few.tolist()) == {0, 1, 2}


def test_the_plane_has_z1_to_the_right_and_z2_upwards(vae, monkeypatch):
    monkeypatch.setitem(vae, "decode", lambda model, z: z)
    z = vae["decode_grid"](None, torch.tensor([-1.0, 0.0, 1.0]))
    assert z.tolist()[:3] == [[-1, 1], [0, 1], [1, 1]] and z.tolist()[-1] == [1, -1]


def test_circles_keep_the_variance_and_close(vae):
    a, b = torch.randn(2, 100_000, 1)
    codes = vae["circle"](a, b, 8)
    assert codes.shape == (8, 100_000, 1)
    torch.testing.assert_close(codes.var(1), torch.ones(8, 1), atol=0.02, rtol=0)
    torch.testing.assert_close(codes[0], a)
    torch.testing.assert_close(codes[2], b, atol=1e-5, rtol=0)  # a quarter of the way
    torch.testing.assert_close(codes[4], -a, atol=1e-5, rtol=0)


def test_filling_in_draws_from_the_posterior_given_what_is_known(vae, model):
    """Frequencies of the first unknown pixel, against the exact conditional by a grid of codes."""
    x = torch.ones(1, PIXELS)
    known = torch.arange(PIXELS) < 20
    line = torch.linspace(-6, 6, 201)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_p = model.p(z).base_dist.log_prob(x)[:, :20].sum(1) + Normal(0.0, 1.0).log_prob(z).sum(
            1
        )
        expected = log_p.softmax(0) @ model.p(z).mean
    drawn = vae["fill_in"](model, x.expand(800, -1), known, rounds=3, codes=1000)
    torch.testing.assert_close(drawn[:, 20:].mean(0), expected[20:], atol=0.05, rtol=0)


def test_filling_in_keeps_what_is_known_and_uses_it(vae, model, x):
    known = torch.arange(PIXELS) < 14
    filled = vae["fill_in"](model, x, known, 5)
    assert torch.equal(filled[:, known], x[:, known])
    rest = filled[:, ~known]
    assert ((rest > 0) & (rest < 1)).all()
    other = torch.cat([x[:, :14], 1 - x[:, 14:]], 1)  # what is unknown does not matter
    torch.manual_seed(4)
    first = vae["fill_in"](model, x, known, 5)
    torch.manual_seed(4)
    assert torch.equal(first, vae["fill_in"](model, other, known, 5))


def test_the_rates_of_the_dimensions_add_up_to_the_rate(vae, model, x):
    rates = vae["dimension_rates"](model, x)
    assert rates.shape == (2,)
    expected = kl_divergence(guess(model, x).base_dist, Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(rates.sum(), expected)


def test_the_dimensions_that_are_moved_are_the_highest_and_the_lowest(vae):
    assert vae["highest_and_lowest"](torch.tensor([0.0, 3.0, 2.0, 4.0, 1.0, 0.5])) == [
        3,
        1,
        2,
        4,
        0,
    ]
    assert vae["highest_and_lowest"](torch.tensor([1.0])) == [0]


def test_a_move_changes_one_dimension_a_row(vae):
    z = torch.tensor([0.3, 0.4, 0.5])
    codes = vae["move"](z, [2, 0], 5, 2.0)
    assert codes.shape == (2, 5, 3)
    assert codes[0, :, 2].tolist() == codes[1, :, 0].tolist() == [-2, -1, 0, 1, 2]
    assert (codes[0, :, :2] == z[:2]).all() and (codes[1, :, 1:] == z[1:]).all()


# Nats become bytes: the coder.

BITS = 28


def ideal(probability):
    """Bits that a symbol should take."""
    return -math.log2(probability)


def test_a_popped_symbol_leaves_the_state_before_it_was_pushed(vae):
    state = 12345678901234567890
    for start, count in ((0, 1), (2**BITS - 1, 1), (5, 2**BITS - 5), (1000, 77)):
        pushed = vae["push"](state, start, count)
        assert start <= pushed % 2**BITS < start + count
        assert vae["pop"](pushed, start, count) == state
        grown = math.log2(pushed) - math.log2(state)
        assert grown == pytest.approx(ideal(count / 2**BITS), abs=1e-9)


@pytest.mark.parametrize("p", [0.0, 1e-12, 0.3, 0.5, 1 - 1e-12, 1.0])
def test_pixels_of_any_probability_come_back_in_order(vae, p):
    pixels, probabilities = [1, 0, 0, 1, 1, 0, 1], [p, 0.1, p, 0.9, 0.0, 1.0, p]
    assert 1 <= vae["ones"](p) <= 2**BITS - 1
    state = vae["push_pixels"](2**200, pixels, probabilities)
    assert vae["pop_pixels"](state, probabilities) == (2**200, pixels)
    assert vae["pop_pixels"](2**200, []) == (2**200, [])


def test_a_one_owns_its_probability(vae):
    assert vae["ones"](0.25) == 2**26
    grown = math.log2(vae["push_pixels"](2**200, [1, 0], [0.25, 0.25])) - 200
    assert grown == pytest.approx(ideal(0.25) + ideal(0.75), abs=1e-6)


def test_buckets_are_equally_probable_and_middles_lie_inside(vae):
    edges, middles = vae["EDGES"], vae["MIDDLES"]
    assert len(edges) == 2**14 + 1 and len(middles) == 2**14
    assert all(a < m < b for a, m, b in zip(edges, middles, edges[1:], strict=False))
    standard = vae["NormalDist"]()
    assert standard.cdf(edges[5]) == pytest.approx(5 / 2**14)
    assert standard.cdf(middles[5]) == pytest.approx(5.5 / 2**14)


@pytest.mark.parametrize("mu", [-40.0, -1.0, 0.0, 0.7, 8.0])
@pytest.mark.parametrize("sigma", [1e-9, 0.01, 1.0, 300.0])
def test_buckets_come_back_under_any_guess(vae, mu, sigma):
    guess = vae["NormalDist"](mu, sigma)
    assert vae["first_slot"](guess, 0) == 0 and vae["first_slot"](guess, 2**14) == 2**BITS
    for i in (0, 1, 8191, 8192, 2**14 - 1):
        assert vae["first_slot"](guess, i) < vae["first_slot"](guess, i + 1)
        state = vae["push_bucket"](2**100 + i, i, guess)
        assert vae["pop_bucket"](state, guess) == (2**100 + i, i)
    for state in (2**100, 2**100 + 2**27, 2**101 - 1):  # pop first, as bits-back coding does
        popped, i = vae["pop_bucket"](state, guess)
        assert vae["push_bucket"](popped, i, guess) == state


def test_buckets_cost_fourteen_bits_under_the_prior(vae):
    for i in (0, 5, 2**14 - 1):
        state = vae["push_bucket"](2**100, i)
        assert math.log2(state) - 100 == pytest.approx(14, abs=1e-9)
        assert vae["pop_bucket"](state) == (2**100, i)


def test_popped_buckets_are_draws_from_the_guess(vae):
    guess, generator = vae["NormalDist"](0.5, 0.2), random.Random(0)
    drawn = [vae["pop_bucket"](generator.getrandbits(100), guess)[1] for _ in range(4000)]
    z = torch.tensor([vae["MIDDLES"][i] for i in drawn])
    assert z.mean().item() == pytest.approx(0.5, abs=0.015)
    assert z.std().item() == pytest.approx(0.2, abs=0.01)


def coder(vae, sigma):
    """A tiny model in double precision whose guesses have this scale; its decoder is nearly certain."""
    network = vae["VAE"](3, (8, 0), (8, 0), pixels=9)
    with torch.no_grad():
        network.encoder[-1].bias[3:] = math.log(sigma)
        network.decoder[-1].weight.mul_(30)
    return network


@pytest.mark.parametrize("sigma", [1e-6, 0.3, 50.0])
@pytest.mark.parametrize("number", [0, 1, 12])
def test_images_come_back_with_the_initial_bits(vae, sigma, number):
    network = coder(vae, sigma)
    images = (torch.rand(number, 9) < 0.5).int().tolist()
    initial = vae["random_bits"](300, 1)
    state, steps, slots = vae["write"](initial, network, images)
    assert len(steps) == number and len(slots) == 3 * number
    assert all(0 <= slot < 2**BITS for slot in slots)
    assert vae["read"](state, network, 3, number) == (initial, images)


def test_initial_bits_are_all_kept(vae):
    for seed in range(20):
        assert vae["random_bits"](28, seed).bit_length() == 29
    assert vae["random_bits"](28, 1) != vae["random_bits"](28, 2)


def test_popped_slots_are_counted_in_equal_parts(vae):
    eighth = 2**BITS // 8
    slots = [0, eighth - 1, eighth, 3 * eighth, 2**BITS - 1]
    assert vae["shares"](slots) == pytest.approx([0.4, 0.2, 0, 0.2, 0, 0, 0, 0.2])
    assert vae["shares"](slots, 2) == pytest.approx([0.8, 0.2])


def test_the_length_is_that_of_the_drawn_codes_to_a_bit(vae, monkeypatch):
    """Against −log2 w(x, z) from densities, with the codes that were popped."""
    network = coder(vae, 0.2)
    state, bits, codes = random.Random(2).getrandbits(400), 0.0, []
    keep = vae["probabilities"]
    monkeypatch.setitem(vae, "probabilities", lambda m, b: codes.append(b) or keep(m, b))
    images = (torch.rand(10, 9) < 0.5).int().tolist()
    before = math.log2(state)
    for pixels in images:
        state, (back, pixel_bits, code_bits), _ = vae["send"](state, network, pixels)
        assert back < 0 < pixel_bits and code_bits == pytest.approx(3 * 14, abs=1)
        x = torch.tensor([pixels], dtype=torch.float32)
        z = torch.tensor([[vae["MIDDLES"][i] for i in codes[-1]]])
        bits -= vae["log_w"](network, x, z, network.q(x)).item() / math.log(2)
    assert math.log2(state) - before == pytest.approx(bits, abs=0.5)


def test_a_file_has_all_bits_of_the_state(vae):
    for state in (1, 255, 256, 2**77 + 3):
        content = vae["to_bytes"](state)
        assert int.from_bytes(content, "big") == state and content[0] > 0
    assert vae["bytes_of"](8 * math.log(2)) == pytest.approx(1)


def test_prices_are_bytes_and_the_rate_has_its_bits_back(vae):
    price = vae["prices"]([[-40, 88, 56], [-24, 72, 56]])
    assert price == {"distortion": 10.0, "rate": 3.0}
    assert vae["pays_from"](1000, 5.0, 7.0) == 500 and vae["pays_from"](1001, 5.0, 7.0) == 501
    assert vae["pays_from"](1000, 7.0, 7.0) == math.inf


def test_independent_pixels_are_coins_with_their_mean(vae):
    images = torch.tensor([[0, 51], [0, 51]], dtype=torch.uint8)
    nll = vae["independent_nll"](images, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert nll[0].item() == pytest.approx(-math.log(0.2), abs=2e-3)
    assert nll[1].item() == pytest.approx(-math.log(1e-3) - math.log(0.8), abs=1e-3)


def test_other_peoples_compressors_are_given_the_same_bits(vae):
    images = (torch.rand(20, 784) < 0.2).int().tolist()
    sizes = vae["compressed"](images)
    assert sizes["packed bits"] == 20 * 98
    assert set(sizes) == {"packed bits", "PNG, each", "xz", "CCITT group 4", "bz2"}
    blank = vae["compressed"]([[0] * 784] * 20)
    assert all(0 < blank[name] < sizes[name] for name in sizes if name != "packed bits")
    raw = bytes(pixel for image in images for pixel in image)
    assert sizes["xz"] <= len(lzma.compress(raw, preset=9)) and sizes["bz2"] <= len(
        bz2.compress(raw)
    )


def test_results_are_rounded_and_the_nll_has_both_errors(vae, monkeypatch):
    assert vae["row"]("a", 1.23456, "nats", 0.00007) == {
        "result": "a",
        "value": 1.2346,
        "±": 0.0001,
        "unit": "nats",
    }
    assert vae["row"]("a", 3, "images")["±"] == ""
    monkeypatch.setitem(vae, "CODES", (100, 5000))
    scored = [{"± of it": 0.3, "± of the steps": 0.0, "−L_K": 86.0}]
    scored += [{"± of it": 0.4, "± of the steps": 0.4, "−L_K": 85.0}]
    found = vae["nll_row"]("test NLL", scored)
    assert found["value"] == 85.0 and found["±"] == 0.5 and "K = 5000" in found["unit"]


# What stands in cells, between definitions: each cell with values that are known.


def test_letters_cost_what_they_should(vae):
    lines = run_cell("Basic_VAE", 'letters = {"a"', dict(vae)).splitlines()
    assert [line.split()[2] for line in lines] == ["1.00", "3.00", "4.00", "6.00", "4.00"]


def test_the_gap_is_what_the_elbo_leaves(vae):
    names = dict(vae) | {"plane": None, "some_x": None, "exact": torch.tensor([88.0, 70.0])}
    names["log_weights"] = lambda model, x, K: torch.tensor([[-90.0, -92.0], [-70.0, -72.0]])
    names["divergence"] = lambda model, x, nll, points: nll - 80
    said = run_cell("Basic_VAE", "gap = -log_ws.mean(1) - exact", names)
    assert names["gap"].tolist() == [3, 1] and names["kl"].tolist() == [8, -10]
    assert [line.split()[-4] for line in said.splitlines()[1:]] == ["79.00", "2.00", "-1.00"]
    names["CODES"] = (20, 40, 80)
    names["what_is_left"] = lambda log_ws, exact, ks: torch.ones(len(ks), 10)
    said = run_cell("Basic_VAE", "left = what_is_left(", names)
    assert names["ks"] == (1, 2, 20, 40) and "K = 40: 10% of the images have 10%" in said


def test_five_posteriors_are_drawn_where_they_are(vae, monkeypatch):
    names = dict(vae) | {"DATASET": "MNIST", "some_x": torch.arange(11.0)[:, None]}
    names |= {"plane": None, "kl": torch.arange(11.0).flip(0), "save": lambda name: None}
    names |= {"encode": lambda model, x: (torch.tensor([[0.5, -1.0]]), torch.tensor([[0.1, 0.2]]))}
    names["log_joint"] = lambda model, x, z: (
        -((z - torch.tensor([0.6, -1.2])) ** 2).sum(1)[None] / 0.01
    )
    shown = []
    names["show"] = lambda images, columns, axis: shown.append(images.item())
    run_cell("Basic_VAE", "# @title Five posteriors", names)
    assert shown == [9, 5, 2, 0, 0]  # by rank of the divergence
    axis = names["axis"]
    left, right, bottom, top = axis.images[0].get_extent()
    height = torch.as_tensor(axis.images[0].get_array())
    row, column = divmod(height.argmax().item(), height.shape[1])
    assert left + (right - left) * (column + 0.5) / 150 == pytest.approx(0.6, abs=0.02)
    assert bottom + (top - bottom) * (row + 0.5) / 150 == pytest.approx(-1.2, abs=0.02)
    assert height.max() == 1 and right - left == pytest.approx(top - bottom)
    names["plt"].close("all")


def test_the_bytes_are_compared_image_by_image(vae):
    names = dict(vae) | {"bits_of_steps": [[-40, 88, 56], [-24, 72, 56]], "model": None}
    names |= {"messages": [[0] * 784, [1] * 784], "coded": None, "written": 50, "initial_bits": 8}
    names["log_weights"] = lambda model, x, K: torch.tensor([[-90.0, -70.0], [-60.0, -80.0]])
    run_cell("Basic_VAE", "price = prices(bits_of_steps)", names)
    sizes = names["sizes"]
    assert sizes["packed bits"] == 98 and sizes["bits-back"] == 25 and names["paid"] == 13
    assert list(sizes.values())[:-1] == sorted(list(sizes.values())[:-1], reverse=True)
    assert names["promised"] == pytest.approx(75 / math.log(2) / 8)
    names |= {"coded": torch.ones(2, 4), "train_data": [torch.zeros(3, 4), None]}
    said = run_cell("Basic_VAE", "knowing = bytes_of(", names)
    assert "would need 5.0" in said and "13.00; −ELBO promises 13.53" in said
    names |= {
        "model": torch.nn.Linear(9, 10),
        "sizes": {"bz2": 30.0, "xz": 25.0, "bits-back": 15.0},
    }
    assert "pays after 40 images" in run_cell("Basic_VAE", "model_bytes = sum(", names)


def test_the_file_is_written_and_read_back(vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(vae) | {"model": coder(vae, 0.3), "LATENT_DIM": 3, "CODED": 7}
    names["test_x"] = (torch.rand(30, 9) < 0.5).float()
    run_cell("Basic_VAE", "coded = subset(test_x, CODED)", names)
    assert names["initial"].bit_length() == 3 * 28 + 1 and len(names["messages"]) == 7
    said = run_cell("Basic_VAE", "state, received = read(", names)
    assert "came back equal: 7" in said and "came back: True" in said
    names["slots"] = [0, 2**BITS - 1] * 24
    said = run_cell("Basic_VAE", "for name, some in {", names).splitlines()
    assert said[0].endswith(f"12.5% ± {math.sqrt(7 / 64 / 48):.1%}") and "50.0%" in said[0]
    assert said[1].endswith(f"12.5% ± {math.sqrt(7 / 64 / 16):.1%}")


def test_the_results_are_computed_from_what_was_measured(vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(vae) | {"scored": [{"± of it": 0.2, "± of the steps": 0.0, "−L_K": 86.0}]}
    names |= {"bound": {"-ELBO": 90.0, "distortion": 65.0, "rate": 25.0}, "history": [{}] * 3}
    names |= {"paid": 16.0, "promised": 16.1, "exact": torch.tensor([140.0, 142.0])}
    names |= {"active": torch.tensor([True, False, True])}
    run_cell("Basic_VAE", 'write_results(\n    "Basic_VAE",', names)
    found = results("Basic_VAE", tmp_path / "results")
    assert found["gap, -ELBO less NLL"]["value"] == 4 and found["active units"]["value"] == 2
    assert found["test NLL, d = 2"]["value"] == 141 and found["trained"]["value"] == 3
    assert found["test bits per dimension"]["value"] == round(86 / 784 / math.log(2), 4)


# What the page says that one can take away.


def taken_away(purpose):
    """The source of the cells that the page names for a purpose, after imports and parameters."""
    path = ROOT / "Basic_VAE.ipynb"
    markdown = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    (names,) = re.findall(rf"^\| {purpose} \| (.+) \|$", markdown, flags=re.M)
    wanted = set(re.findall(r"`(\w+)`", names))
    if "rows above" in names:
        wanted |= {"mlp", "StandardNormal", "VAE", "encode", "load", "push", "push_pixels"}

    def defined(cell):
        nodes = ast.parse(cell.source).body
        targets = [t for n in nodes if isinstance(n, ast.Assign) for t in n.targets]
        return {n.name for n in nodes if hasattr(n, "name")} | {ast.unparse(t) for t in targets}

    cells = [c for c in code_cells(path) if wanted & defined(c)]
    assert wanted <= set().union(*map(defined, cells))
    first = [
        c for c in code_cells(path) if c.id == "setup" or "parameters" in c.metadata.get("tags", [])
    ]
    return [c.source for c in (*first, *cells)]


def run_taken_away(purpose, **parameters):
    """The names that those cells define in an empty module, with a few small parameters."""
    names = {"__name__": "project", "In": [""]}
    first, *cells = taken_away(purpose)
    exec(first, names)
    names["device"] = torch.device("cpu")
    exec(cells[0], names)
    names |= parameters
    for source in cells[1:]:
        exec(source, names)
    return names


SMALL = {"LATENT_DIM": 2, "ENCODER": (8, 1), "DECODER": (8, 1)}


def test_the_model_and_its_training_can_be_taken_away(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_taken_away("the model and its training", DATASET="digits")
    network = names["VAE"](2, (8, 1), (8, 1))
    training = names["Training"]("mine", network, names["adamw"](network), 2)
    history = names["fit"](training, names["vae_terms"])
    assert len(history) == 2 and history[1]["loss"] < history[0]["loss"]


def test_the_model_with_its_weights_can_be_taken_away(tmp_path):
    names = run_taken_away("the model with its weights", **SMALL)
    network = names["VAE"](2, (8, 1), (8, 1))
    torch.save({"weights": network.state_dict()}, tmp_path / "kept.pt")
    again = names["load"](tmp_path / "kept.pt")
    x = torch.rand(3, 784).round()
    assert torch.equal(names["encode"](again, x)[0], names["encode"](network, x)[0])


def test_the_coder_can_be_taken_away():
    names = run_taken_away("the coder, for any probabilities")
    state = names["push_pixels"](2**99, [1, 0, 1], [0.9, 0.5, 0.2])
    assert names["pop_pixels"](state, [0.9, 0.5, 0.2]) == (2**99, [1, 0, 1])


def test_the_coder_of_a_vae_can_be_taken_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_taken_away("the coder of a VAE", **SMALL)
    network, images = names["VAE"](2, (8, 1), (8, 1)), [[1, 0] * 392] * 2
    initial = names["random_bits"](56, 1)
    state, _, _ = names["write"](initial, network, images)
    assert names["read"](state, network, 2, 2) == (initial, images)
