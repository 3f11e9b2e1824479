"""The mathematics of MADE.ipynb, on networks small enough to check everything."""

import itertools
import math

import pytest
import torch
from torch.distributions import Bernoulli
from torch.nn import functional as F

# Pixels, hidden units, blocks, classes.
SIZES = [(2, 1, 0, 0), (4, 3, 1, 3), (5, 40, 0, 2), (9, 64, 1, 0), (9, 100, 2, 2)]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}-{s[1]}x{s[2]}-{s[3]}")


def means(pixels):
    return torch.linspace(0.05, 0.9, pixels)


def randomise(network, scale=2.0):
    """The network in double precision, with weights of which none is zero."""
    for parameter in network.double().parameters():
        torch.nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[-1]))
    return network


def build(made, pixels, hidden, blocks=1, classes=0, scale=2.0, order=None):
    """An untrained MADE with random weights and, if none is given, a random ordering."""
    order = torch.randperm(pixels) if order is None else order
    degrees = made["draw_degrees"](order, means(pixels), hidden)
    return randomise(made["MADE"](order, degrees, means(pixels), blocks, classes), scale)


@pytest.fixture
def three(made):
    """Tied networks of three random orderings of six pixels, with random weights."""
    made |= {"mean": means(6), "HIDDEN": 30}
    return randomise(made["tied"]([torch.randperm(6) for _ in range(3)]))


def every_image(pixels):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=torch.double)


def some_images(number, pixels):
    return (torch.rand(number, pixels) < 0.5).double()


@torch.no_grad()
def p(model, x, c=None):
    """p(x | c), by the definition of the logits, in double precision."""
    return Bernoulli(logits=model(x, c).double()).log_prob(x.double()).sum(1).exp()


def each_class(model):
    """None for a model without classes, else every class, one-hot."""
    return list(torch.eye(model.classes).double()) or [None]


def slopes_of(made, model, c=None):
    """The notebook's Jacobian, in the order of the visit."""
    return made["jacobian"](lambda x: model(x.double(), c), model.order)


# Masks, and what they allow.


def test_masks_follow_the_rules_one_connection_at_a_time(made):
    d, m = torch.tensor([3, 1, 4, 2]), torch.tensor([1, 1, 2, 2, 3])
    first, hidden, last, direct = made["make_masks"](d, m, classes=1)
    inputs = [0, *d.tolist()]  # the class has degree 0
    for h, unit in enumerate(m.tolist()):
        assert first[h].tolist() == [unit >= i for i in inputs]
        assert hidden[h].tolist() == [unit >= other for other in m.tolist()]
        assert last[:, h].tolist() == [pixel > unit for pixel in d.tolist()]
    for i, pixel in enumerate(d.tolist()):
        assert direct[i].tolist() == [pixel > other for other in inputs]


@each_size
def test_the_jacobian_is_strictly_triangular_in_the_order_of_the_visit(made, size):
    model = build(made, *size)
    for c in each_class(model):
        assert (slopes_of(made, model, c).triu() == 0).all()
        # Not only by its slope: another value of a later pixel changes nothing, to the last bit.
        x = some_images(3, size[0])
        for d in range(size[0]):
            y = x.clone()
            y[:, model.order[d:]] = 1 - y[:, model.order[d:]]
            one, other = (model(image, c)[:, model.order[: d + 1]] for image in (x, y))
            assert torch.equal(one, other)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_wide_network_has_every_dependency_that_is_allowed(made, blocks):
    model, allowed = build(made, 9, 400, blocks), torch.ones(9, 9).tril(-1).bool()
    torch.nn.init.zeros_(model.direct.weight)  # so that hidden units must bring them
    assert (slopes_of(made, model)[allowed] > 0).all()


@each_size
def test_the_probabilities_of_all_images_sum_to_one_for_each_class(made, size):
    """And they are what the notebook scores with, whatever the portions."""
    model, x = build(made, *size), every_image(size[0])
    made["PORTION"] = 3
    for c in each_class(model):
        scored = made["log_p"](model, x, c).exp()
        torch.testing.assert_close(scored, p(model, x, c))
        assert scored.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("pixels", [4, 9])
def test_a_mask_that_is_not_strict_lets_each_pixel_see_itself(made, pixels):
    """The notebook's Jacobian shows it, and the sum over all images."""
    leaky = build(made, pixels, 30)
    places = leaky.order.argsort() + 1
    leaky.last.mask = (places[:, None] >= leaky.degrees).double()
    slopes = slopes_of(made, leaky)
    assert (slopes.triu(1) == 0).all() and slopes.diagonal()[-1] == 0
    assert (slopes.diagonal()[:-1] > 0).float().mean() > 0.9
    assert abs(p(leaky, every_image(pixels)).sum() - 1) > 0.01


@pytest.mark.parametrize(("blocks", "classes"), [(1, 0), (2, 3)])
def test_the_network_is_its_formula(made, blocks, classes):
    model, x = build(made, 6, 20, blocks, classes), some_images(5, 6)
    masks = made["make_masks"](model.order.argsort() + 1, model.degrees, classes)
    first, hidden, last, direct = (mask.double() for mask in masks)
    c = torch.eye(5)[:, :classes].double()  # the first class for the first image, and so on
    inputs = torch.cat([c, x - means(6)], 1)
    h = inputs @ (model.first.weight * first).T + model.first.bias
    for block in model.blocks:
        inner = F.silu(h) @ (block.inner.weight * hidden).T + block.inner.bias
        h = h + F.silu(inner) @ (block.outer.weight * hidden).T + block.outer.bias
    logits = F.silu(h) @ (model.last.weight * last).T + model.last.bias
    logits = logits + inputs @ (model.direct.weight * direct).T
    torch.testing.assert_close(model(x, c if classes else None), logits)


def test_it_starts_from_independent_pixels_of_these_means(made):
    """Also where a pixel is always white, or always black: its bias is finite."""
    made["mean"] = torch.tensor([0.0, 1.0, 0.5, 0.2])
    model = made["untrained"](torch.tensor([3, 1, 0, 2]))
    q = model(some_images(5, 4).float()).sigmoid()
    torch.testing.assert_close(q, torch.tensor([[0.001, 0.999, 0.5, 0.2]]).expand(5, -1))
    assert len(model.degrees) == made["HIDDEN"] and len(model.blocks) == made["BLOCKS"]


def test_degrees_are_as_frequent_as_pixels_are_undecided(made):
    mean, order = torch.tensor([0.0, 0.5, 0.1, 1.0, 0.5, 0.5]), torch.randperm(6)
    for values in (mean, torch.full((6,), 0.5)):  # the second: uniform degrees
        degrees = made["draw_degrees"](order, values, 100_000)
        weight = Bernoulli(values).entropy()[order][:5] + 1e-3
        assert degrees.min() == 1 and degrees.max() == 5  # each pixel, however sure, has a place
        frequency = degrees.bincount()[1:] / len(degrees)
        torch.testing.assert_close(frequency, weight / weight.sum(), rtol=0, atol=0.001)
    assert not degrees.equal(made["draw_degrees"](order, values, 100_000, seed=1))
    assert sorted(made["draw_degrees"](order, values, 5).tolist()) == [1, 2, 3, 4, 5]  # slices


@pytest.mark.parametrize("pixels", [4, 7])
def test_one_masked_pass_gives_what_hiding_pixels_one_by_one_gives(made, pixels):
    """And for a network without masks, hiding is right and one pass is not."""
    x, order = every_image(pixels), torch.randperm(pixels)
    d, m = order.argsort() + 1, torch.randint(1, pixels, (20,))
    masks = m[:, None] >= d, d[:, None] > m
    for first, last in (masks, tuple(torch.ones_like(mask) for mask in masks)):
        network = made["small_network"](first, last).double()
        hidden = made["one_by_one"](network, x, order)
        for place, pixel in enumerate(order):
            alone = x.clone()
            alone[:, order[place:]] = 0
            torch.testing.assert_close(hidden[:, pixel], network(alone)[:, pixel])
        assert torch.allclose(hidden, network(x)) == (first is masks[0])


def test_grey_levels_as_targets_have_the_same_mean_and_less_variance(made):
    """The mean is the NLL of the given class, in nats."""
    model, x = build(made, 4, 16, classes=2).float(), every_image(4).float()
    grey, labels = torch.tensor([[30, 100, 128, 240]], dtype=torch.uint8), torch.arange(40_000) % 2
    weight, many = Bernoulli(grey / 255).log_prob(x).sum(1).exp(), grey.repeat(40_000, 1)
    losses = [made["expected_nll"](model, many, labels, choice) for choice in (True, False)]
    for label, c in enumerate(torch.eye(2)):
        levels, flips = (loss[labels == label] for loss in losses)
        for draws in (levels, flips):
            exact = -(weight * p(model, x, c).log()).sum()
            assert abs(draws.mean() - exact) < 4 * draws.std() / 20_000**0.5
        assert levels.std() < 0.8 * flips.std()


def test_shared_weights_keep_the_order_of_the_visit(made):
    order, x = torch.arange(784), some_images(2, 784)
    degrees = made["draw_degrees"](order, means(784), 20)
    model = randomise(made["SharedMADE"](order, degrees, means(784), 1))
    slopes = slopes_of(made, model)
    assert (slopes.triu() == 0).all() and (slopes.diagonal(-1) > 0).float().mean() > 0.9
    added = model.shared((x - model.mean).view(2, 1, 28, 28)).view(2, 784)
    torch.testing.assert_close(model(x), made["MADE"].forward(model, x) + added)


def test_a_masked_convolution_hears_earlier_pixels_near_it_and_no_others(made):
    image = torch.rand(1, 1, 9, 9, requires_grad=True)
    made["MaskedConv2d"](1, 2, 5)(image)[0, 1, 4, 4].backward()
    above = [[row, column] for row in (2, 3) for column in range(2, 7)]
    assert image.grad[0, 0].nonzero().tolist() == [*above, [4, 2], [4, 3]]


# Several networks.


def test_tied_networks_are_one_set_of_weights_under_masks_of_their_own(made, three):
    x, shared = some_images(5, 6).float(), list(three[0].parameters())
    for network in three:
        assert [*map(id, network.parameters())] == [*map(id, shared)]
        degrees = made["draw_degrees"](network.order, means(6), 30)
        masks = made["make_masks"](network.order.argsort() + 1, degrees)
        layers = network.first, network.blocks[0].inner, network.last, network.direct
        for layer, mask in zip(layers, masks, strict=True):
            assert torch.equal(layer.mask, mask.double())
        assert (slopes_of(made, network).triu() == 0).all()

    before = [network(x) for network in three.float()]  # a step of one is a step of all
    loss = made["expected_nll"](three[0], (255 * x).byte(), None).mean()
    made["descend"](loss, made["adamw"](three))
    assert not any(map(torch.allclose, before, [network(x) for network in three]))


def test_four_orderings_begin_and_go_on_as_they_say(made):
    orderings = made["four_orderings"]()
    begin = [order[[0, 1, 28]].tolist() for order in orderings.values()]
    assert begin == [[0, 1, 28], [0, 28, 1], [783, 782, 755], [783, 755, 782]]
    assert list(orderings) == ["rows", "columns", "rows, backwards", "columns, backwards"]
    assert all(sorted(order.tolist()) == list(range(784)) for order in orderings.values())


def test_averaged_conditionals_are_a_likelihood_for_one_ordering_only(made, three):
    x, order = every_image(6), torch.randperm(6)
    alike = [build(made, 6, hidden, order=order) for hidden in (20, 30, 40)]
    for networks in (three, alike):
        each = torch.stack([made["log_conditionals"](network, x) for network in networks]).exp()
        average = made["averaged"](networks, x).exp()
        torch.testing.assert_close(average, each.mean(0).prod(1))
        mixture = made["mixture"](networks, x).exp()
        torch.testing.assert_close(mixture, each.prod(2).mean(0))
        assert mixture.sum().item() == pytest.approx(1) and not torch.allclose(mixture, average)
        assert (abs(average.sum().item() - 1) < 1e-6) == (networks is alike)


def test_of_two_copies_that_follow_each_other_the_average_is_no_likelihood(made):
    """One copies the left of two pixels to the right, the other the right to the left."""
    x, sides = every_image(2), torch.eye(2)
    copies = [lambda x, c, side=side: (100 * x.flip(1) - 50) * side for side in sides]
    assert made["log_p"](copies[0], x).exp().tolist() == pytest.approx([0.5, 0, 0, 0.5])
    assert (16 * made["averaged"](copies, x).exp()).tolist() == pytest.approx([9, 1, 1, 9])


# Drawing.


@each_size
def test_guess_and_correct_settles_pixel_by_pixel_to_the_naive_samples(made, size):
    model, u = build(made, *size[:3]), torch.rand(20, size[0])
    images, naive = made["passes"](model, u), made["sample_naive"](model, u)
    assert set(naive.unique().tolist()) <= {0.0, 1.0} and (images[0] == 0).all()
    assert torch.equal(images[-1], naive) and torch.equal(images[-2], naive)
    assert torch.equal(made["sample"](model, u), naive)
    after, places = made["settled"](images), model.order.argsort() + 1
    for n, pixel in itertools.product(range(20), range(size[0])):
        right, last = images[:, n, pixel] == images[-1, n, pixel], after[n, pixel]
        assert right[last:].all() and (last == 0 or not right[last - 1])
        assert last <= places[pixel]  # right after d passes at the latest


def chi_squared(drawn, table):
    """Of drawn images against the probabilities of all images, where more than five are expected."""
    powers = 2.0 ** torch.arange(drawn.shape[1] - 1, -1, -1)
    counts = (drawn.float() @ powers).long().bincount(minlength=len(table))
    expected = len(drawn) * table
    return ((counts - expected) ** 2 / expected)[expected > 5].sum()


@pytest.mark.parametrize("classes", [0, 2])
def test_samples_are_as_frequent_as_they_are_probable(made, classes):
    """By χ², below its 99.9 % quantile for 63 degrees of freedom."""
    model = build(made, 6, 64, 2, classes, scale=1.5)
    *others, c = each_class(model)
    c = None if c is None else c.expand(20_000, -1)
    drawn = made["sample"](model, torch.rand(20_000, 6), c)
    assert chi_squared(drawn, p(model, every_image(6), each_class(model)[-1])) < 103.4
    assert all(chi_squared(drawn, p(model, every_image(6), other)) > 1000 for other in others)


@pytest.mark.parametrize("known_first", [True, False])
def test_completions_are_exact_if_the_known_pixels_come_first(made, known_first):
    """By χ² against p(rest | known) from the table of all images: 99.9 % for 15 degrees of freedom."""
    model, image, x = build(made, 6, 64, 2, scale=1.5), some_images(1, 6), every_image(6)
    known = torch.zeros(6, dtype=torch.bool)
    known[model.order[:2] if known_first else model.order[-2:]] = True
    drawn = made["complete"](model, torch.rand(20_000, 6), image.expand(20_000, -1), known)
    assert (drawn[:, known] == image[:, known]).all()
    table = p(model, x) * (x == image)[:, known].all(1)
    assert (chi_squared(drawn, table / table.sum()) < 37.7) == known_first


def test_a_frame_shows_the_first_pixels_and_the_others_grey(made):
    images = some_images(3, 6)
    shown = made["partly"](images, 4)
    assert torch.equal(shown[:, :4], images[:, :4]) and (shown[:, 4:] == made["UNKNOWN"]).all()


# Nats, shared out; classes.


def test_independent_pixels_are_a_distribution(made):
    """Also where a mean is 0 or 1."""
    x, mean = every_image(3), torch.tensor([0.0, 1.0, 0.3]).double()
    q = torch.tensor([0.001, 0.999, 0.3]).double()
    expected = (x * q + (1 - x) * (1 - q)).prod(1)
    torch.testing.assert_close(made["independent_log_p"](x, mean).exp(), expected)


def test_nats_become_bits_per_pixel(made):
    (row,) = made["in_nats_and_bits"]({"a": math.log(2) * torch.tensor([784.0, 2352.0])})
    nats, error = 1568 * math.log(2), 784 * math.log(2)
    assert list(row.values()) == ["a", pytest.approx(nats), pytest.approx(error), "2.000"]


def test_nats_are_shared_out_among_white_grey_and_black_pixels(made):
    images = torch.tensor([[0, 128, 255, 255], [5, 0, 64, 250]])
    surprise = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    flips = torch.tensor([[0.0, 0.7, 0, 0], [0, 0, 0.5, 0]])
    white, grey, black = (row.values() for row in made["spent_by_grey"](surprise, flips, images))
    assert [*white, *black] == ["white", "38%", 6, 0, "black", "38%", 7.5, 0]
    assert list(grey) == ["grey", "25%", 4.5, pytest.approx(0.6)]


def test_a_copy_with_classes_starts_as_what_it_was(made):
    model, x = build(made, 6, 20), some_images(5, 6)
    for layer, label in itertools.product(("first", "direct"), range(3)):
        copy = made["with_classes"](model, 3).double()
        for c in each_class(copy):
            torch.testing.assert_close(copy(x, c), model(x))
        getattr(copy, layer).weight.data[:, label] += 1
        changed = [not torch.allclose(copy(x, c), model(x)) for c in each_class(copy)]
        assert changed == [other == label for other in range(3)]


def test_the_classifier_is_bayes_rule_and_the_mixture_sums_to_one(made):
    model, x = build(made, 6, 20, classes=3, scale=1.5), every_image(6)
    table = torch.stack([p(model, x, c) for c in each_class(model)], 1)  # p(x | c)
    shares = torch.tensor([1.0, 2.0, 5.0]) / 8
    log_shares = made["log_shares"](torch.tensor([0, 1, 1, 2, 2, 2, 2, 2]))
    torch.testing.assert_close(log_shares.exp(), shares)

    log_joint = made["log_p_given_class"](model, x) + log_shares
    torch.testing.assert_close(log_joint.exp(), table * shares)
    assert log_joint.exp().sum().item() == pytest.approx(1)
    labels = torch.arange(64) % 3
    wrong = sum((table * shares)[i].argmax() != labels[i] for i in range(64)).item() / 64
    assert made["error_rate"](log_joint, labels) == pytest.approx(wrong) and 0 < wrong < 1
