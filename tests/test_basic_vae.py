"""The mathematics of Basic_VAE.ipynb, against torch.distributions, exact integrals and known cases."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

PIXELS = 28


@pytest.fixture
def model(vae):
    """A small model whose encoder and decoder both say something."""
    network = vae["VAE"](latent_dim=2, hidden=16, pixels=PIXELS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        network.encoder[-1].weight.mul_(
            0.1
        )  # a guess about as wide as the prior, so that it covers the posterior
        network.encoder[-1].bias.mul_(0.5)
    return network


@pytest.fixture
def x():
    return (torch.rand(5, PIXELS) < 0.5).float()


def library_terms(model, x, seed):
    """Distortion of one sample, rate in closed form, and the one-sample rate, all by torch.distributions."""
    mu, log_sigma = model.encoder(x).chunk(2, dim=-1)
    q = Independent(Normal(mu, log_sigma.exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    torch.manual_seed(seed)
    z = q.rsample()
    distortion = -Independent(Bernoulli(logits=model.decoder(z)), 1).log_prob(x)
    return distortion, kl_divergence(q, prior), q.log_prob(z) - prior.log_prob(z)


def test_closed_form_agrees_with_the_library(vae, model, x):
    distortion, rate, _ = library_terms(model, x, seed=1)
    torch.manual_seed(1)
    ours = vae["closed_form"](model, x)
    torch.testing.assert_close(ours[0], distortion)
    torch.testing.assert_close(ours[1], rate)
    assert ours[0].shape == ours[1].shape == (5,)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_monte_carlo_agrees_with_the_library(vae, model, x, stop_gradient):
    distortion, _, rate = library_terms(model, x, seed=1)
    torch.manual_seed(1)
    ours = vae["monte_carlo"](model, x, stop_gradient)
    torch.testing.assert_close(ours[0], distortion)
    torch.testing.assert_close(ours[1], rate)


def test_the_one_sample_rate_is_unbiased(vae, model, x):
    many = x[:1].expand(200_000, -1)
    with torch.no_grad():
        closed, sampled = vae["closed_form"](model, many)[1], vae["monte_carlo"](model, many)[1]
    assert sampled.mean().item() == pytest.approx(
        closed.mean().item(), abs=5 * sampled.std().item() / 200_000**0.5
    )


def encoder_gradient(model, loss):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(model.encoder.parameters()))]
    )


def test_all_three_gradients_have_the_same_expectation(vae, model, x):
    many = x[:1].expand(100_000, -1)
    reference = encoder_gradient(model, sum(vae["closed_form"](model, many)).mean())
    for stop_gradient in (True, False):
        gradient = encoder_gradient(
            model, sum(vae["monte_carlo"](model, many, stop_gradient)).mean()
        )
        assert (gradient - reference).norm() < 0.03 * reference.norm()


def test_sticking_the_landing_is_free_of_noise_where_the_guess_is_right(vae, model, x):
    """A decoder that ignores z has the prior as its posterior; an encoder that says so has nothing left to learn."""
    with torch.no_grad():
        model.decoder[0].weight.zero_()
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.zero_()  # mean 0, log scale 0
    landed = encoder_gradient(model, sum(vae["monte_carlo"](model, x)).mean())
    with_score = encoder_gradient(
        model, sum(vae["monte_carlo"](model, x, stop_gradient=False)).mean()
    )
    assert landed.abs().max() < 1e-6
    assert with_score.abs().max() > 1e-2


def exact_log_likelihood(model, x, points=801, reach=9.0):
    """log p(x) of a model with two latent dimensions, by the trapezoidal rule on a grid; x [N, D] to nats [N]."""
    line = torch.linspace(-reach, reach, points)
    z = torch.cartesian_prod(line, line)
    prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob(z)
    with torch.no_grad():
        likelihood = torch.stack([model.p(z).log_prob(image) for image in x])
    return (likelihood + prior).logsumexp(1) + 2 * math.log(2 * reach / (points - 1))


def test_importance_sampling_converges_to_the_exact_likelihood(vae, model, x):
    exact = exact_log_likelihood(model, x)
    log_w = vae["log_weights"](model, x, 20_000, rows=7_000)
    assert log_w.shape == (5, 20_000)
    torch.testing.assert_close(vae["importance_bound"](log_w, 20_000), exact, atol=0.05, rtol=0)
    bounds = [vae["importance_bound"](log_w, k).mean().item() for k in (1, 10, 100, 1000)]
    assert bounds == sorted(bounds) and bounds[-1] < exact.mean().item() + 0.05
    elbo = -sum(term.mean() for term in vae["closed_form"](model, x.repeat(20_000, 1)))
    assert bounds[0] == pytest.approx(elbo.item(), abs=0.1)


def test_importance_bound_averages_over_disjoint_groups(vae):
    log_w = torch.tensor([[0.0, 2.0, 1.0, 1.0, 9.0]])
    expected = (
        (math.log((1 + math.exp(2)) / 2)) + 1
    ) / 2  # the fifth weight fits into no group of two
    assert vae["importance_bound"](log_w, 2).item() == pytest.approx(expected)
    assert vae["importance_bound"](log_w, 1).item() == pytest.approx(13 / 5)


def test_noise_tells_a_noisy_loss_from_one_that_is_not(vae, model, x):
    still = vae["noise"](model, lambda m, x: (m.q(x).mean.sum(-1), torch.zeros(len(x))), x, draws=5)
    assert still[0] == 0 and still[1] < 1e-3 < still[2]
    noisy = vae["noise"](model, vae["closed_form"], x, draws=20)
    assert noisy[0] > 0.01 and noisy[1] > 0.01


def test_binarise(vae):
    images = torch.tensor([0.0, 0.25, 1.0]).expand(40_000, 3)
    binary = vae["binarise"](images, torch.Generator().manual_seed(3))
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert binary.mean(0).tolist() == pytest.approx([0, 0.25, 1], abs=0.01)
    assert binary[:, 0].max() == 0 and binary[:, 2].min() == 1
    again = vae["binarise"](images, torch.Generator().manual_seed(3))
    assert torch.equal(binary, again) and not torch.equal(binary, vae["binarise"](images))


def small_training(vae, objective, epochs=3):
    torch.manual_seed(0)
    model = vae["VAE"](latent_dim=4, hidden=32)
    images, _ = vae["load_images"]("digits")[0]
    validation = (images[:50] > 0.5).float()
    history = vae["train"](
        model, objective, images[:400], validation, epochs, batch_size=20, learning_rate=3e-3
    )
    return model, history


@pytest.mark.parametrize("name", ["closed_form", "monte_carlo"])
def test_training_lowers_the_loss_and_repeats(vae, name):
    model, history = small_training(vae, vae[name])
    again, same_history = small_training(vae, vae[name])
    assert len(history) == 3 and sum(history[-1][2:]) < sum(history[0][2:]) - 10
    assert history == same_history
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_a_loss_that_is_not_finite_is_named_with_its_epoch(vae):
    calls = []

    def breaks_in_epoch_two(model, x):
        calls.append(1)
        distortion, rate = vae["closed_form"](model, x)
        return distortion * (math.nan if len(calls) > 25 else 1), rate

    with pytest.raises(FloatingPointError, match="epoch 2"):
        small_training(vae, breaks_in_epoch_two)


def test_an_interrupted_training_leaves_a_usable_model(vae, capsys):
    calls = []

    def interrupted(model, x):
        calls.append(1)
        if len(calls) > 25:
            raise KeyboardInterrupt
        return vae["closed_form"](model, x)

    model, history = small_training(vae, interrupted)
    assert len(history) == 1 and "interrupted in epoch 2" in capsys.readouterr().out
    assert all(math.isfinite(v) for v in vae["evaluate"](model, torch.zeros(3, 784)))


def test_the_explorer_redraws(vae):
    model = vae["VAE"](latent_dim=2, hidden=16)
    with torch.no_grad():
        model.decoder[0].weight.mul_(50)  # codes far apart decode to different pictures
    x = torch.stack([torch.zeros(784), torch.ones(784)] * 5)
    view = vae["explorer"](model, x, torch.arange(10))
    picture, controls = view.children
    left, slider, right = controls.children
    seen = [bytes(picture.value)]
    for control, value in ((slider, 1.0), (left, 4), (right, 7)):
        control.value = value
        seen.append(bytes(picture.value))
    assert all(value.startswith(b"\x89PNG") for value in seen)
    assert all(a != b for a, b in pairwise(seen))
