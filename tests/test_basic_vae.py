"""The mathematics of Basic_VAE.ipynb, against torch.distributions, exact integrals and definitions."""

import bz2
import lzma
import math
import random
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import run_cell
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
    distortion = -Independent(Bernoulli(logits=model.decoder(q.rsample())), 1).log_prob(x)
    rate = kl_divergence(q.base_dist, Normal(0.0, 1.0)).sum(-1)
    torch.manual_seed(1)
    ours = vae["vae_terms"](model, x)
    torch.testing.assert_close(ours, (distortion, rate))
    by_hand = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).sum(-1)
    torch.testing.assert_close(ours[1], by_hand)


def test_the_textbook_loop_learns_and_keeps_both_terms_of_each_step(vae, monkeypatch):
    images = torch.zeros(100, PIXELS, dtype=torch.uint8)
    images[:, ::2] = 255
    monkeypatch.setitem(vae, "train_data", (images, torch.zeros(100)))
    monkeypatch.setitem(vae, "BATCH_SIZE", 40)
    network = vae["VAE"](2, (16, 1), (16, 1), pixels=PIXELS)
    rows = []

    def terms(model, x):
        rows.append(len(x))
        return vae["vae_terms"](model, x)

    history = vae["fit"](network, terms, 90)
    assert rows == [40] * 90 and history.shape == (90, 2)
    assert history[-1].sum() < 0.7 * history[0].sum()
    assert history[0, 0] > 0.5 * PIXELS * math.log(2) and (history >= 0).all()


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
    if k == 1:
        closed = gradient(sum(vae["vae_terms"](model, many)).mean(), model.encoder)
        assert (ours - closed).norm() < 0.04 * closed.norm()


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


def test_validation_numbers_are_those_of_the_validation_images(vae, model, x, monkeypatch):
    many = x.repeat(300, 1)
    monkeypatch.setitem(vae, "some_validation", many)
    row = vae["validate"](model)
    rate = kl_divergence(guess(model, x).base_dist, Normal(0.0, 1.0)).sum(-1).mean().item()
    assert row["rate"] == pytest.approx(rate, rel=1e-4)
    distortion = vae["vae_terms"](model, many)[0].mean().item()
    assert row["distortion"] == pytest.approx(distortion, abs=0.5)
    assert row["-ELBO"] == pytest.approx(distortion + rate, abs=0.5)


@pytest.mark.parametrize("name", ["closed_form", "sticking_the_landing", "weighted"])
def test_the_losses_of_the_trial_are_their_objectives(vae, model, name):
    images = 255 * (torch.rand(6, PIXELS) < 0.5).to(torch.uint8)  # black and white: no coin to flip
    batch, k = vae["Batch"](images, torch.zeros(6), 0, 10), vae["SAMPLES"]
    expected = {
        "closed_form": lambda x: sum(vae["vae_terms"](model, x)),
        "sticking_the_landing": lambda x: vae["importance_weighted"](model, x),
        "weighted": lambda x: vae["importance_weighted"](model, x, k),
    }
    torch.manual_seed(1)
    vae["binarise"](images)  # as many random numbers
    nats = expected[name](images / 255)
    torch.manual_seed(1)
    torch.testing.assert_close(vae[name](model, batch), nats)


def test_weights_come_in_at_the_end(vae, monkeypatch):
    monkeypatch.setitem(vae, "weighted", lambda model, batch: "weighted")
    monkeypatch.setitem(vae, "sticking_the_landing", lambda model, batch: "sticking")
    monkeypatch.setitem(vae, "WEIGHTED", 0.25)
    steps = [vae["Batch"](None, None, step, 8) for step in range(8)]
    said = [vae["weighted_at_the_end"](None, batch) for batch in steps]
    assert said == ["sticking"] * 6 + ["weighted"] * 2


def test_a_trial_has_a_row_of_seconds_and_nats_for_each_seed(vae, monkeypatch):
    images = (200 * torch.rand(40, 784)).to(torch.uint8)
    for name, value in {
        "train_data": (images, torch.zeros(40)),
        "some_validation": (torch.rand(30, 784) < 0.4).float(),
        "BATCH_SIZE": 20,
        "SMALL": (8, 0),
    }.items():
        monkeypatch.setitem(vae, name, value)
    with vae["tqdm"](total=3, disable=True) as bar:
        outcomes = vae["trial"](vae["closed_form"], 1, bar)
    assert vae["SEEDS"] == range(0, 3) and outcomes.shape == (3, 3)
    assert (outcomes[:, 0] > 0).all() and outcomes[:, 0].max() < 60
    assert ((outcomes[:, 1:] > 450) & (outcomes[:, 1:] < 800)).all()
    assert (outcomes[:, 2] < outcomes[:, 1]).all()  # the NLL is below −ELBO
    assert outcomes[:, 2].unique().numel() == 3  # seeds differ


def test_effective_sample_size(vae):
    log_ws = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, -200.0, -200.0, -200.0]])
    assert vae["effective_sample_size"](log_ws).tolist() == pytest.approx([4, 1])
    half = torch.tensor([[math.log(3.0), 0.0]])  # shares 3/4 and 1/4
    assert vae["effective_sample_size"](half).item() == pytest.approx(1.6)


def test_more_codes_tighten_the_bound(vae):
    log_ws = torch.tensor([[0.0, math.log(3.0)]])
    expected = math.log(2.0) - math.log(3.0) / 2
    assert vae["tightening"](log_ws, 1).item() == pytest.approx(expected)


def test_examples_are_one_of_each_class_drawn_at_random(vae):
    labels = torch.arange(500) % 10
    indices = vae["one_of_each"](labels)
    assert labels[indices].tolist() == list(range(10)) and indices.max() > 20
    few = vae["one_of_each"](torch.tensor([3, 3, 7]))
    assert len(few) == 10 and few[:2].tolist()[1] == 2 and set(few.tolist()) == {0, 1, 2}


def test_labels_are_spread_until_none_touch(vae):
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]])
    moved = vae["spread"](points, 0.5)
    assert torch.cdist(moved, moved).fill_diagonal_(9).min() > 0.49
    assert torch.equal(moved[2], points[2]) and moved[:2].mean(0).tolist() == pytest.approx(
        [0.05, 0]
    )
    assert points[1, 0].item() == pytest.approx(0.1)  # the given points stay


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


def test_paths_are_straight_and_even(vae):
    start, end = torch.randn(2, 3, 5)
    codes = vae["paths"](start, end, 5)
    torch.testing.assert_close(codes[[0, -1]], torch.stack([start, end]))
    torch.testing.assert_close(codes[1], 0.75 * start + 0.25 * end)


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
    torch.testing.assert_close(rates.sum(), vae["vae_terms"](model, x)[1].mean())


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


def coder(vae, monkeypatch, sigma):
    """A tiny model in double precision whose guesses have this scale; its decoder is nearly certain."""
    network = vae["VAE"](3, (8, 0), (8, 0), pixels=9)
    with torch.no_grad():
        network.encoder[-1].bias[3:] = math.log(sigma)
        network.decoder[-1].weight.mul_(30)
    return network


@pytest.mark.parametrize("sigma", [1e-6, 0.3, 50.0])
@pytest.mark.parametrize("number", [0, 1, 12])
def test_images_come_back_with_the_initial_bits(vae, monkeypatch, sigma, number):
    network = coder(vae, monkeypatch, sigma)
    images = (torch.rand(number, 9) < 0.5).int().tolist()
    initial = random.Random(1).getrandbits(300) | 2**300
    state = initial
    for pixels in images:
        state, lengths = vae["send"](state, network, pixels)
        assert len(lengths) == 3
    received = []
    for _ in range(number):
        state, pixels = vae["receive"](state, network, 3)
        received.append(pixels)
    assert received[::-1] == images and state == initial


def test_the_length_is_that_of_the_drawn_codes_to_a_bit(vae, monkeypatch):
    """Against −log2 w(x, z) from densities, with the codes that were popped."""
    network = coder(vae, monkeypatch, 0.2)
    state, bits, codes = random.Random(2).getrandbits(400), 0.0, []
    keep = vae["probabilities"]
    monkeypatch.setitem(vae, "probabilities", lambda m, b: codes.append(b) or keep(m, b))
    images = (torch.rand(10, 9) < 0.5).int().tolist()
    before = math.log2(state)
    for pixels in images:
        state, (back, pixel_bits, code_bits) = vae["send"](state, network, pixels)
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


def test_the_results_are_computed_from_what_was_measured(vae):
    names = dict(vae) | {
        "rates": torch.tensor([2.0, 3.0]),
        "curve": [90.0, 86.0],
        "nll": 86.0,
        "nll_error": 0.2,
        "paid": 16.0,
        "promised": 16.1,
        "messages": [[0], [1]],
        "plane_nll": 140.0,
        "active": torch.tensor([True, False]),
        "history": [{}, {}],
    }
    rows = run_cell("Basic_VAE", "results = [", names)
    found = dict(re.findall(r"^(.+?)  +(\S+(?: ± \S+)?)  ", rows, flags=re.M))
    assert found["test distortion"] == "85.00" and found["test rate"] == "5.00"
    assert found["gap, -ELBO less NLL"] == "4.00" and found["test -ELBO"] == "90.00"
    assert found["test bits per dimension"] == f"{86 / 784 / math.log(2):.4f}"
    assert found["active units"] == "1" and found["bits-back, 2 images"] == "16.00"


def test_the_test_images_are_scored_by_the_bound(vae):
    """The cell of the scores, with log weights that are known."""
    log_ws = torch.tensor([[-90.0, -92.0, -94.0, -96.0], [-80.0, -80.0, -80.0, -80.0]])
    names = dict(vae) | {"K": 4, "model": 0, "plane": 1, "test_x": None}
    names["log_weights"] = lambda model, x, K: log_ws.repeat(1, K // 4) - 50 * model
    said = run_cell("Basic_VAE", "log_ws = log_weights(model, test_x, K)", names)
    last = 0.5 * (80 + math.log(4) - torch.tensor([-90.0, -92, -94, -96]).logsumexp(0).item())
    assert names["ks"] == [1, 2, 4] and names["curve"][0] == pytest.approx(86.5)
    assert names["nll"] == names["curve"][-1] == pytest.approx(last)
    assert names["plane_nll"] == pytest.approx(last + 50, abs=1e-3) and names["nll_error"] > 0
    assert f"K =    4   −L_K = {last:.2f} nats" in said


def test_the_bytes_are_compared_image_by_image(vae, tmp_path):
    """The cell of the sizes, with bits that are known."""
    file = tmp_path / "state"
    file.write_bytes(bytes(50))
    names = dict(vae) | {"steps": [[-40, 88, 56], [-24, 72, 56]], "file": file}
    names |= {"messages": [[0] * 784, [1] * 784], "coded": torch.tensor([1, 0]), "initial_bits": 8}
    names |= {"log_ws": torch.tensor([[-60.0, -80.0], [-90.0, -70.0], [0.0, 0.0]])}
    said = run_cell("Basic_VAE", "price = prices(steps)", names)
    assert names["sizes"]["packed bits"] == 98 and names["sizes"]["bits-back"] == 25
    assert f"that come back: 13.00; −ELBO promises {75 / math.log(2) / 8:.2f}" in said
    assert "distortion 10.00, rate 3.00" in said


def test_the_trial_prints_means_over_seeds(vae):
    names = dict(vae) | {"trials": [(vae["weighted"], 2)]}
    names["outcomes"] = [torch.tensor([[1.0, 95.0, 90.0], [3.0, 97.0, 92.0], [2.0, 99.0, 94.0]])]
    said = run_cell("Basic_VAE", 'print("objective', names).splitlines()[1]
    assert said.split() == ["weighted", "2", "2.0", "97.00", "92.00", "±", "2.00"]


def test_the_trial_gives_the_rival_about_the_time_of_five_codes(vae):
    names = dict(vae) | {
        "SHORT_EPOCHS": 4,
        "trial": lambda loss, epochs, bar: bar.update(3 * epochs),
    }
    run_cell("Basic_VAE", "outcomes = [trial(", names)
    assert [epochs for _, epochs in names["trials"]] == [4, 4, 4, 10]
    assert names["bar"].n == names["bar"].total == 66


def test_the_dimensions_that_are_moved_are_the_highest_and_the_lowest(vae):
    shown = []
    names = dict(vae) | {"test_x": torch.zeros(3, 2), "mu": torch.zeros(10, 5), "model": None}
    names |= {"dimension_rates": lambda m, x: torch.tensor([0.0, 3.0, 2.0, 4.0, 1.0])}
    names |= {"decode": lambda m, z: z, "save": lambda name: None}
    names["encode"] = lambda m, x: (
        torch.tensor([[0.0, 1, 0, 2, 0.01], [0.0] * 5]),
        torch.ones(2, 5),
    )
    names["show"] = lambda images, columns, labels: shown.append((images, labels))
    said = run_cell("Basic_VAE", "moved = list(dict", names)
    assert names["moved"] == [3, 1, 2, 4, 0]
    assert shown[0][1][0] == "4.00 nats, active" and shown[0][1][-1] == "0.00 nats, inactive"
    assert names["active"].tolist() == [False, True, False, True, False]
    assert "active dimensions have 7.00 of 10.00 nats" in said
    names["dimension_rates"] = lambda m, x: torch.tensor([1.0])  # codes of one dimension
    names |= {"encode": lambda m, x: (torch.ones(2, 1), torch.ones(2, 1)), "mu": torch.zeros(10, 1)}
    run_cell("Basic_VAE", "moved = list(dict", names)
    assert names["moved"] == [0]


def test_letters_cost_what_they_should(vae):
    lines = run_cell("Basic_VAE", 'letters = {"a"', dict(vae)).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "push a",
        "push b",
        "push a",
        "push c",
        "pop  c",
    ]
    assert [line.split()[2] for line in lines] == ["1.00", "3.00", "4.00", "6.00", "4.00"]


def test_the_number_of_codes_is_checked_with_five_times_as_many(vae):
    asked = []

    def log_weights(model, x, K):
        asked.append((len(x), K))
        return (
            torch.tensor([[0.0, math.log(3.0)] * (K // 2)]).repeat(len(x), 1)
            + torch.arange(len(x))[:, None]
        )

    names = dict(vae) | {
        "log_weights": log_weights,
        "K": 2,
        "model": None,
        "log_ws": torch.zeros(5, 8),
    }
    names |= {"test_x": torch.zeros(300, 4), "fixed": torch.Generator()}
    said = run_cell("Basic_VAE", "gain, gain_error = ", names)
    assert asked == [(100, 10)] and "0.00 ± 0.00 nats lower" in said
    assert "effective sample size of 2 codes: 8" in said


def test_the_file_is_written_and_read_back(vae, tmp_path, monkeypatch):
    """The two cells that send and receive, with a tiny model."""
    monkeypatch.chdir(tmp_path)
    names = dict(vae) | {"model": coder(vae, monkeypatch, 0.3), "LATENT_DIM": 3, "CODED": 7}
    names |= {"test_x": (torch.rand(30, 9) < 0.5).float(), "fixed": torch.Generator()}
    said = run_cell("Basic_VAE", "coded = torch.randperm", names)
    assert names["initial"].bit_length() == 3 * 28 + 1 and len(names["steps"]) == 7
    size = names["file"].stat().st_size
    assert 8 * size - 8 < names["state"].bit_length() <= 8 * size and f"{size} bytes for 7" in said
    state = names["state"]
    said = run_cell("Basic_VAE", "received.append(pixels)\n\nprint", names)
    assert "came back equal: 7" in said and "came back: True" in said and names["state"] != state


def test_a_scored_curve_ends_once_with_all_codes(vae):
    names = dict(vae) | {"K": 5, "model": 0, "plane": 1, "test_x": None}
    names["log_weights"] = lambda model, x, K: torch.randn(3, K)
    run_cell("Basic_VAE", "log_ws = log_weights(model, test_x, K)", names)
    assert names["ks"] == [1, 2, 5]


def test_random_codes_have_the_moments_of_real_ones(vae):
    real = torch.randn(500, 3) * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([3.0, 0.0, -7.0])
    plain = SimpleNamespace(encoder=lambda x: x, decoder=lambda z: z)
    names = dict(vae) | {"test_x": real, "test_labels": torch.arange(500) % 10, "plain": plain}
    names |= {"LATENT_DIM": 3, "show": lambda *a, **k: None, "save": lambda name: None}
    run_cell("Basic_VAE", "random_codes = ", names)
    standard = (names["random_codes"] - real.mean(0)) / real.std(0)
    assert standard.shape == (20, 3) and standard.abs().max() < 5
    assert ((standard.std(0) > 0.5) & (standard.std(0) < 1.6)).all()


def test_the_plane_is_decoded_and_classes_have_their_medians(vae):
    means = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [9.0, 9.0]])
    names = dict(vae) | {"plane": None, "test_x": None, "test_labels": torch.tensor([1, 1, 1, 0])}
    names |= {"encode": lambda model, x: (means, None), "decode_grid": lambda model, side: side}
    run_cell("Basic_VAE", "side = torch.linspace", names)
    assert names["side"][[0, 8, 16]].tolist() == pytest.approx([-2.4, 0, 2.4], abs=1e-6)
    assert names["medians"].tolist() == [[9, 9], [2, 3]]


def test_the_model_is_paid_by_what_the_best_other_compressor_wastes(vae):
    names = dict(vae) | {
        "model": torch.nn.Linear(9, 10),
        "sizes": {"bz2": 30.0, "xz": 25.0, "bits-back": 15.0},
    }
    said = run_cell("Basic_VAE", "model_bytes = sum(", names)
    assert names["model_bytes"] == 400 and "pays from 40 images on" in said
