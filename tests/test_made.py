"""The mathematics of MADE.ipynb, on networks small enough to check everything."""

import itertools
import math

import pytest
import torch

SIZES = [  # pixels, hidden, blocks, direct, masks
    (2, 1, 0, True, [("natural", 0)]),
    (4, 3, 1, False, [("natural", 0), ("random 1", 1), ("columns 2", 2)]),
    (5, 40, 0, False, [("random 3", 0), ("random 3", 1), ("natural", 2)]),
    (
        9,
        64,
        1,
        True,
        [("rows 0", 0), ("rows 0 reversed", 0), ("columns 2", 2), ("natural reversed", 3)],
    ),
    (9, 64, 2, False, [("random 0", 0), ("natural", 1)]),
    (9, 100, 2, True, [("random 7", 5), ("random 7", 6), ("random 8", 7)]),
]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}-{s[1]}x{s[2]}-{s[3]}")


def build(made, pixels, hidden, blocks, direct, masks, scale=2.0):
    """An untrained MADE in double precision, none of whose weights is zero."""
    model = made["MADE"](masks, torch.linspace(0.05, 0.9, pixels), hidden, blocks, direct).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[-1]))
    return model


def every_image(pixels):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=torch.double)


@each_size
def test_the_jacobian_is_strictly_triangular_in_the_order_of_the_visit(made, size):
    model = build(made, *size)
    for k, order in enumerate(model.orders):
        model.use(k)
        slopes = torch.autograd.functional.jacobian(model.logits, torch.rand(size[0]).double())
        slopes = slopes[order][:, order]
        assert (slopes.triu() == 0).all()
        # Not only by its slope: another value of a later pixel changes nothing, to the last bit.
        x = (torch.rand(3, size[0]) < 0.5).double()
        for d in range(size[0]):
            y = x.clone()
            y[:, order[d:]] = 1 - y[:, order[d:]]
            assert torch.equal(
                model.logits(x)[:, order[: d + 1]], model.logits(y)[:, order[: d + 1]]
            )


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("ordering", ["natural", "random 4", "columns 5 reversed"])
def test_a_wide_network_has_every_dependency_that_is_allowed(made, ordering, blocks, direct):
    model = build(made, 9, 400, blocks, direct, [(ordering, 1)])
    slopes = torch.autograd.functional.jacobian(model.logits, torch.rand(9).double())
    slopes = slopes[model.orders[0]][:, model.orders[0]]
    assert (slopes[torch.ones(9, 9).tril(-1).bool()] != 0).all()


@each_size
def test_the_probabilities_of_all_images_sum_to_one(made, size):
    """For each mask, for the mixtures, and for averaged conditionals where orderings agree."""
    model = build(made, *size)
    log_p = made["all_conditionals"](model, every_image(size[0]))  # [K, 2^D, D]
    one = torch.ones(len(size[4])).double()
    torch.testing.assert_close(log_p.sum(-1).exp().sum(-1), one)
    torch.testing.assert_close(made["log_mixture"](log_p).exp().sum(-1), one)
    if len({ordering for ordering, _ in size[4]}) == 1:
        torch.testing.assert_close(made["log_averaged"](log_p).exp().sum(-1), one)


def test_averaged_conditionals_of_different_orderings_are_no_likelihood(made):
    model = build(made, 9, 64, 2, True, [(f"random {seed}", 0) for seed in range(4)])
    log_p = made["all_conditionals"](model, every_image(9))
    total = made["log_averaged"](log_p)[-1].exp().sum()
    assert abs(total - 1) > 0.01


def test_score_is_each_mask_the_mixture_and_the_average(made):
    model = build(made, *SIZES[5]).float()
    x = (torch.rand(10, 9) < 0.5).float()
    each, mixture, averaged = made["score"](model, x, 3)
    with torch.no_grad():
        expected = torch.stack([model.use(k).log_prob(x) for k in range(3)])
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(mixture[-1], expected.logsumexp(0) - math.log(3))
    torch.testing.assert_close(averaged[0], expected[0])


@each_size
def test_the_fast_samplers_return_the_images_of_the_naive_one(made, size):
    model = build(made, *size)
    u = torch.rand(40, size[0]).double()
    for k in range(len(size[4])):
        naive = made["sample_naive"](model, k, u)
        fixed_point, passes = made["sample_fixed_point"](model, k, u)
        assert set(naive.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(naive, fixed_point) and passes <= size[0] + 1
        assert torch.equal(naive, made["sample"](model, k, u))


@pytest.mark.parametrize("k", [0, 1])
def test_samples_are_as_frequent_as_they_are_probable(made, k):
    model = build(made, 4, 16, 2, True, [("natural", 0), ("random 1", 1)], scale=1.5)
    number = 40_000
    samples = made["sample"](model, k, torch.rand(number, 4).double())
    counts = (samples @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long().bincount(minlength=16)
    with torch.no_grad():
        expected = number * model.use(k).log_prob(every_image(4)).double().exp()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # the 99.9 % quantile for 15 degrees of freedom


@pytest.mark.parametrize("ordering", ["rows 0", "columns 2 reversed", "natural"])
def test_inpainting_keeps_what_is_known_and_draws_the_exact_conditional(made, ordering):
    model = build(made, 9, 64, 2, True, [("random 9", 0), (ordering, 1)], scale=1.5)
    n, number = 3, 40_000  # half of 3 × 3 is one row or one column
    order = model.orders[1]
    known = torch.zeros(9, dtype=torch.bool)
    known[order[:n]] = True
    image = (torch.rand(9) < 0.5).double()
    completed = made["complete"](
        model, image.repeat(number, 1), known, torch.rand(number, 9).double()
    )
    assert torch.equal(completed[:, known], image[known].repeat(number, 1))
    rest = order[n:]
    candidates = image.repeat(64, 1)
    candidates[:, rest] = every_image(6)
    with torch.no_grad():
        conditional = model.use(1).log_prob(candidates).double().softmax(0)
    powers = 2.0 ** torch.arange(5, -1, -1).double()
    counts = (completed[:, rest] @ powers).long().bincount(minlength=64)
    often = number * conditional > 5
    expected = number * conditional[often]
    chi_square = ((counts[often] - expected) ** 2 / expected).sum()
    assert chi_square < 106  # above the 99.9 % quantile for 63 degrees of freedom, 103.4


def test_degrees_are_as_frequent_as_pixels_are_undecided(made):
    mean = torch.tensor([0.0, 0.5, 0.1, 1.0, 0.5, 0.5])
    order = made["make_ordering"]("random 3", 6)
    degrees = made["draw_degrees"]("random 3", mean, 100_000, 0)
    assert degrees.min() >= 1 and degrees.max() <= 5 and (degrees.diff() >= 0).all()
    weight = made["entropy"](mean)[order][:5] + 1e-3
    frequency = degrees.bincount(minlength=6)[1:] / len(degrees)
    torch.testing.assert_close(frequency, weight / weight.sum(), rtol=0, atol=0.001)


@pytest.mark.parametrize("name", ["natural", "random 1", "rows 2", "columns 3"])
def test_an_ordering_and_its_reverse_share_no_weight(made, name):
    """What one keeps the other cuts, but for units of equal degree and a pixel and itself."""
    model = build(made, 16, 30, 1, True, [(name, 4), (f"{name} reversed", 4)])
    assert model.orders[0].flip(0).equal(model.orders[1])
    ones = torch.ones(16, 30).double()
    torch.testing.assert_close(model.first.masks.sum(0), ones.T)
    torch.testing.assert_close(model.last.masks.sum(0), ones)
    torch.testing.assert_close(model.direct.masks.sum(0), 1 - torch.eye(16).double())
    degrees = model.degrees[0]
    equal = (degrees[:, None] == degrees).double()
    for layer in (model.blocks[0].inner, model.blocks[0].outer):
        torch.testing.assert_close(layer.masks.sum(0), 1 + equal)


def test_masks_take_turns_within_and_between_batches(made):
    model = build(made, *SIZES[3]).float()
    x = (torch.rand(8, 9) < 0.5).float()
    loss = made["take_turns"](4, 2)
    for k in (0, 2, 0):
        expected = [-model.use(k + i).log_prob(part) for i, part in enumerate(x.chunk(2))]
        torch.testing.assert_close(loss(model, x), torch.cat(expected))


def test_weights_decay_and_biases_do_not(made):
    model = build(made, *SIZES[1]).float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    made["adamw"](model).step()
    shrunk = 1 - made["LEARNING_RATE"] * made["WEIGHT_DECAY"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name] * (shrunk if p.ndim > 1 else 1))
