"""The mathematics of Basic_VAE.ipynb, against torch.distributions, exact integrals and definitions."""

import math

import pytest
import torch
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


def test_pixels_are_the_librarys_bernoulli(vae):
    logits = torch.tensor([-100.0, -3.0, 0.0, 0.5, 20.0, 100.0]).repeat(2, 1).requires_grad_()
    x = torch.tensor([[0.0], [1.0]]).expand(2, 6)
    ours, library = (d(logits=logits).log_prob(x) for d in (vae["Pixels"], Bernoulli))
    torch.testing.assert_close(ours, library)
    slopes = [torch.autograd.grad(value.sum(), logits)[0] for value in (ours, library)]
    torch.testing.assert_close(*slopes)


def test_the_closed_form_is_the_librarys(vae, model, x):
    q = guess(model, x)
    torch.manual_seed(1)
    distortion = -Independent(Bernoulli(logits=model.decoder(q.rsample())), 1).log_prob(x)
    rate = kl_divergence(q.base_dist, Normal(0.0, 1.0)).sum(-1)
    torch.manual_seed(1)
    torch.testing.assert_close(vae["closed_form"](model, x), distortion + rate)


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
        closed = gradient(vae["closed_form"](model, many).mean(), model.encoder)
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
        elbo = -vae["closed_form"](model, x.repeat(20_000, 1)).view(-1, 5).mean(0)
    torch.testing.assert_close(vae["importance_bound"](log_w, 1), elbo, atol=0.25, rtol=0)
    assert (elbo < exact - 0.1).all()  # so that the bound has something to close


def test_importance_bound_averages_over_disjoint_groups(vae):
    log_w = torch.tensor([[0.0, 2.0, 1.0, 1.0, 9.0]])  # the fifth fits into no group of two
    expected = (math.log((1 + math.exp(2)) / 2) + 1) / 2
    assert vae["importance_bound"](log_w, 2).item() == pytest.approx(expected)
    assert vae["importance_bound"](log_w, 1).item() == pytest.approx(13 / 5)


def test_validation_numbers_are_those_of_the_validation_images(vae, model, x, monkeypatch):
    monkeypatch.setitem(vae, "validation_x", x.repeat(300, 1))
    row = vae["validate"](model)
    rate = kl_divergence(guess(model, x).base_dist, Normal(0.0, 1.0)).sum(-1).mean().item()
    assert row["rate"] == pytest.approx(rate, rel=1e-4)
    assert row["-ELBO"] == pytest.approx(row["distortion"] + row["rate"])
    loss = vae["closed_form"](model, x.repeat(300, 1)).mean().item()
    assert row["-ELBO"] == pytest.approx(loss, abs=0.5)
