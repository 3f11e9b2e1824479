"""The mathematics of MADE.ipynb, on networks small enough to check everything."""

import itertools
import lzma
import math

import numpy
import pytest
import torch
from conftest import run_cell
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
def three(made, monkeypatch):
    """Tied networks of three random orderings of six pixels, with random weights."""
    monkeypatch.setitem(made, "mean", means(6))
    monkeypatch.setitem(made, "HIDDEN", 30)
    return randomise(made["tied"]([torch.randperm(6) for _ in range(3)]))


def every_image(pixels):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=torch.double)


def some_images(number, pixels):
    return (torch.rand(number, pixels) < 0.5).double()


@torch.no_grad()
def p(model, x, c=None):
    """p(x | c), by the definition of the logits, in double precision."""
    return Bernoulli(logits=model(x, c).double()).log_prob(x.double()).sum(1).exp()


def nats(model, x):
    return -p(model, x).log().mean().item()


def each_class(model):
    """None for a model without classes, else every class, one-hot."""
    return list(torch.eye(model.classes).double()) or [None]


def slopes_of(made, model, c=None):
    """The notebook's Jacobian, in the order of the visit."""
    return made["jacobian"](lambda x: model(x.double(), c), model.order)


def leaky_of(made, model):
    """The model with the fault that the notebook plants, and the options of its training."""
    options = {}
    names = dict(made) | {"order": model.order, "untrained": lambda order: model}
    names |= {"Training": lambda *rest: rest, "fit": lambda _, **all: options.update(all)}
    run_cell("MADE", "leaky.last.mask = ", names)
    return names["leaky"], options


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
def test_the_probabilities_of_all_images_sum_to_one_for_each_class(made, size, monkeypatch):
    """And they are what the notebook scores with, whatever the portions."""
    model, x = build(made, *size), every_image(size[0])
    monkeypatch.setitem(made, "PORTION", 3)
    for c in each_class(model):
        scored = made["log_p"](model, x, c).exp()
        torch.testing.assert_close(scored, p(model, x, c))
        assert scored.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("pixels", [4, 9])
def test_the_notebooks_check_sees_the_planted_fault(made, pixels):
    leaky, options = leaky_of(made, build(made, pixels, 30))
    slopes = slopes_of(made, leaky)
    assert (slopes.triu(1) == 0).all() and slopes.diagonal()[-1] == 0
    assert (slopes.diagonal()[:-1] > 0).float().mean() > 0.9
    assert abs(p(leaky, every_image(pixels)).sum() - 1) > 0.01
    assert options == {"grey": False}  # grey targets are not allowed with a leak


@pytest.mark.parametrize(("blocks", "classes"), [(1, 0), (2, 3)])
def test_the_network_is_its_formula(made, blocks, classes):
    model, x = build(made, 6, 20, blocks, classes), some_images(5, 6)
    masks = made["make_masks"](model.order.argsort() + 1, model.degrees, classes)
    first, hidden, last, direct = (mask.double() for mask in masks)
    c = torch.eye(5).double()[
        :, :classes
    ]  # the first of the classes for the first image, and so on
    inputs = torch.cat([c, x - means(6)], 1)
    h = inputs @ (model.first.weight * first).T + model.first.bias
    for block in model.blocks:
        inner = F.silu(h) @ (block.inner.weight * hidden).T + block.inner.bias
        h = h + F.silu(inner) @ (block.outer.weight * hidden).T + block.outer.bias
    logits = F.silu(h) @ (model.last.weight * last).T + model.last.bias
    logits = logits + inputs @ (model.direct.weight * direct).T
    torch.testing.assert_close(model(x, c if classes else None), logits)


def test_it_starts_from_independent_pixels_of_these_means(made, monkeypatch):
    """Also where a pixel is always white, or always black: its bias is finite."""
    monkeypatch.setitem(made, "mean", torch.tensor([0.0, 1.0, 0.5, 0.2]))
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


@pytest.fixture(scope="module")
def four(made):
    """The names that the cells of the four pixels leave, with shorter trainings."""
    torch.manual_seed(0)
    names = dict(made) | {"train_images": (255 * torch.rand(300, 784)).byte()}
    before = ["order_of_4 = ", "first = (m[", "paths = last", "def largest_", "likelihood = "]
    for text in (*before, "def fit_small"):
        run_cell("MADE", text, names)
    names["fit_small"].__defaults__ = (300, 0.02)
    for text in ("small[name] = ", "entropy = torch.special.entr", "targets = {"):
        run_cell("MADE", text, names)
    return names


def test_of_four_pixels_everything_is_known(four):
    x, images = every_image(4), four["train_images"].view(-1, 28, 28)
    grey = images[:, 13:15, 13:15].reshape(-1, 4).double() / 255
    each = torch.stack([torch.where(image == 1, grey, 1 - grey).prod(1) for image in x])  # p(x | g)
    truth, known = each.mean(1), each @ grey / each.sum(1, keepdim=True)  # p(x) and E[g | x]
    torch.testing.assert_close(four["truth"].double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(four["targets"]["grey levels"].double(), known, rtol=1e-5, atol=0)
    assert four["entropy"].item() == pytest.approx(-(truth * truth.log()).sum().item(), abs=1e-4)


def test_the_planted_fault_scores_too_well_and_sums_to_more_than_one(four):
    small, total, entropy = four["small_network"], four["total"], four["entropy"].item()
    assert four["largest_difference"](small(four["first"], four["last"])) < 1e-6
    assert four["largest_difference"](small(torch.ones(5, 4), torch.ones(4, 5))) > 1e-2
    networks = [*four["small"].values(), four["fitted_to_grey"]]
    assert total(networks[0]) == pytest.approx(1, abs=1e-4) and total(networks[1]) > 1.5
    losses = [[four["mean_loss"](n, t) for t in four["targets"].values()] for n in networks]
    (right, right_levels), (wrong, wrong_levels), (score, trained_with) = losses
    assert entropy - 1e-3 <= right < entropy + 0.1 and wrong < entropy - 0.5
    assert right_levels == pytest.approx(right, abs=2e-4)  # grey is allowed, without a leak
    assert wrong_levels > wrong + 0.2 and score + 0.2 < trained_with < wrong_levels


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


def test_images_are_distorted_one_by_one_and_a_little(made):
    images = torch.zeros(6, 784, dtype=torch.uint8)
    images.view(6, 28, 28)[:, 8:20, 8:20] = 255
    distorted = made["distort"](images)
    assert distorted.shape == (6, 784) and len(distorted.unique(dim=0)) == 6
    assert 0.5 < distorted.sum() / images.sum() < 2 and distorted.max() <= 255.01
    assert distorted[:, 14 * 28 + 14].min() > 250 and distorted[:, : 2 * 28].max() == 0


def lesson(made, model, epochs=10):
    """A training on 100 equal images of six pixels, two of them grey, in batches of five."""
    image = torch.tensor([[51, 204, 0, 255, 0, 255]], dtype=torch.uint8)
    data, optimizer = [image.repeat(100, 1), torch.arange(100)], made["adamw"](model, 0.05)
    return made["Training"]("MADE test", model, optimizer, epochs, data)


@pytest.mark.parametrize(("fit", "epochs"), [("fit", 10), ("fit_in_turn", 30)])
def test_training_descends_to_the_entropy(made, three, monkeypatch, fit, epochs):
    monkeypatch.setitem(made, "distort", None)  # not called, if nothing is said
    model = three.float()[0]
    training = lesson(made, three if fit == "fit_in_turn" else model, epochs)
    made[fit].__wrapped__(training)
    losses = [row["loss"] for row in training.history]
    entropy = 2 * -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert len(losses) == epochs and losses[0] > 1.5 * entropy
    assert losses[-1] == pytest.approx(entropy, rel=0.05)
    x = some_images(9, 6).float()
    monkeypatch.setitem(made, "some_validation", x)
    assert made["validate"](model) == {"NLL": pytest.approx(nats(model, x), rel=1e-4)}


def test_images_are_distorted_ever_less_often_and_networks_take_turns(made, three, monkeypatch):
    seen = []

    def loss(model, images, labels, grey=True):
        seen.append((model, grey, images.sum().item() == 0))
        return model.last.bias

    monkeypatch.setitem(made, "expected_nll", loss)
    monkeypatch.setitem(made, "distort", lambda images: 0 * images)
    made["fit"].__wrapped__(lesson(made, three[0].float()), grey=False, distorted=0.5)
    models, greys, distorted = zip(*seen, strict=True)
    assert models == (three[0],) * 200 and not any(greys)
    assert sum(distorted[:50]) > 28 > 20 > sum(distorted[50:100]) > 0 and not any(distorted[100:])

    seen.clear()
    made["fit_in_turn"].__wrapped__(lesson(made, three.float()))
    assert seen == [(three[step % 3], True, False) for step in range(200)]


def test_weights_decay_and_biases_do_not(made):
    model = build(made, 4, 20)
    for parameter, group in zip(model.parameters(), made["adamw"](model).param_groups, strict=True):
        assert group["params"] == [parameter] and group["lr"] == made["LEARNING_RATE"]
        assert group["weight_decay"] == (made["WEIGHT_DECAY"] if parameter.ndim == 2 else 0)


def test_what_was_kept_is_loaded(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model, x = build(made, 6, 20, made["BLOCKS"]).float(), some_images(5, 6).float()
    made["fit"](lesson(made, model, epochs=1))
    assert torch.equal(made["load"](f"weights/{made['DATASET']}-MADE-test.pt")(x), model(x))


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
    # The paradox of two pixels: one copies the left one to the right, the other the right to the left.
    x, sides = every_image(2), torch.eye(2)
    copies = [lambda x, c, side=side: (100 * x.flip(1) - 50) * side for side in sides]
    assert made["log_p"](copies[0], x).exp().tolist() == pytest.approx([0.5, 0, 0, 0.5])
    assert (16 * made["averaged"](copies, x).exp()).tolist() == pytest.approx([9, 1, 1, 9])


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


def test_independent_pixels_are_a_distribution(made):
    """Also where a mean is 0 or 1."""
    x, mean = every_image(3), torch.tensor([0.0, 1.0, 0.3]).double()
    q = torch.tensor([0.001, 0.999, 0.3]).double()
    expected = (x * q + (1 - x) * (1 - q)).prod(1)
    torch.testing.assert_close(made["independent_log_p"](x, mean).exp(), expected)


def test_nats_are_shared_out_among_white_grey_and_black_pixels(made):
    images = torch.tensor([[0, 128, 255, 255], [5, 0, 64, 250]])
    surprise = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    flips = torch.tensor([[0.0, 0.7, 0, 0], [0, 0, 0.5, 0]])
    white, grey, black = (row.values() for row in made["spent_by_grey"](surprise, flips, images))
    assert [*white, *black] == ["white", "38%", 6, 0, "black", "38%", 7.5, 0]
    assert list(grey) == ["grey", "25%", 4.5, pytest.approx(0.6)]


def test_a_primed_compressor_knows_what_it_has_seen(made):
    images, others = some_images(40, 784), some_images(40, 784)
    alone = len(lzma.compress(numpy.packbits(images.numpy().astype(numpy.uint8)).tobytes()))
    assert 0 < made["primed"](images, images) < alone / 5
    assert 0.9 * alone < made["primed"](images, others) < 1.1 * alone


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
    shares, labels = torch.tensor([1.0, 2.0, 5.0]).double() / 8, torch.arange(64) % 3
    mixture = table @ shares
    wrong = ((table * shares / mixture[:, None]).argmax(1) != labels).double().mean().item()

    names = dict(made) | {"told": model.float(), "test_x": x.float(), "test_labels": labels}
    names |= {"train_labels": torch.tensor([0, 1, 1, 2, 2, 2, 2, 2]), "nll": torch.ones(64)}
    run_cell("MADE", "mixture_nll = ", names)
    torch.testing.assert_close(names["given"].exp().double(), table, rtol=1e-3, atol=1e-7)
    scored = (-names["mixture_nll"]).exp().double()
    torch.testing.assert_close(scored, mixture, rtol=1e-3, atol=1e-7)
    assert scored.sum().item() == pytest.approx(1, abs=1e-4)
    assert names["wrong"] == pytest.approx(wrong) and 0 < wrong < 1
    assert names["gain"] == pytest.approx(1 + mixture.log().mean().item(), abs=1e-4)

    names |= dict.fromkeys(("flips", "flips_error", "promised", "speed_up"), 1.0)
    names |= {"sizes": {"MADE": 1.0}, "mean": means(6), "history": [0] * 7, "validation_x": x}
    names |= {"single": build(made, 6, 20), "write_results": lambda *rest: None}
    run_cell("MADE", "class_given = ", names)
    rows = {name: (value, error) for name, value, error, _ in map(dict.values, names["rows"])}
    class_given = -table.gather(1, labels[:, None]).log().mean().item()
    assert rows["test NLL, class given"][0] == pytest.approx(class_given, abs=1e-3)
    assert rows["test error as a classifier"] == (round(100 * wrong, 4), "")
    assert rows["test NLL, one ordering"] == (1, 0)
    assert rows["validation NLL, one ordering"][0] == pytest.approx(
        nats(names["single"], x), abs=1e-3
    )


def test_the_class_is_one_of_those_that_training_images_have(made):
    names = dict(made) | {"single": build(made, 6, 20), "train_labels": torch.tensor([2, 0, 3])}
    names |= {"fit": lambda *rest, **options: None, "Training": lambda *rest: rest}
    run_cell("MADE", "again = Training", names)
    _, model, optimizer, epochs = names["again"]
    assert model.classes == 4 and epochs == made["CLASS_EPOCHS"]
    assert optimizer.param_groups[0]["lr"] == made["CLASS_RATE"]


@pytest.mark.parametrize("pixels", [2, 4, 9])
@pytest.mark.parametrize(("scale", "count"), [(0.1, 1), (2.0, 1), (2.0, 3), (60.0, 1)])
def test_what_is_written_is_read_and_as_long_as_the_nll(made, pixels, scale, count):
    """All images, with one network or an average; with the last scale probabilities are nearly 0 and 1."""
    x, order = every_image(pixels)[torch.randperm(2**pixels)], torch.randperm(pixels)
    networks = [build(made, pixels, 16, scale=scale, order=order) for _ in range(count)]
    state = made["write"](networks, x, order)
    received, left = made["read"](networks, state, len(x), order)
    assert torch.equal(received.double(), x) and left == made["FIRST_STATE"]
    q = (sum(network(x).sigmoid() for network in networks) / count).detach()
    q = q.clamp(2**-28, 1 - 2**-28)  # an impossible pixel still gets one slot
    exact = -(x * q.log2() + (1 - x) * (1 - q).log2()).sum().item()
    grown = math.log2(state) - math.log2(made["FIRST_STATE"])
    assert grown == pytest.approx(exact, abs=1 + 0.01 * (scale > 10) * exact)


def test_a_file_of_what_is_no_model_does_not_open(made, three, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    x, single = every_image(6).float(), build(made, 6, 30)
    leaky, _ = leaky_of(made, build(made, 6, 30, order=single.order))
    names = dict(made) | {"single": single, "leaky": leaky, "four": three, "order": single.order}
    names |= {"test_x": x, "CODED": 64, "FORGED": 60, "table": id}
    for text in ("written = file.write_bytes", "int.from_bytes(file", "forged = coded[:FORGED]"):
        run_cell("MADE", text, names)
    assert torch.equal(names["received"], names["coded"]) and names["coded"].unique(dim=0).equal(x)
    printed, x = run_cell("MADE", "promises = {", names), names["coded"][:60]
    models = zip(([single], [leaky], three), names["opened"].values(), names["rows"], strict=True)
    for networks, received, row in models:
        _, promised, promised_bytes, size, wrong = row.values()
        assert wrong == pytest.approx((received != x).sum().item() / 60)
        assert wrong == 0 if networks == [single] else wrong > 0.1
        q = sum(network(x).sigmoid() for network in networks) / len(networks)
        assert promised == pytest.approx(-Bernoulli(q).log_prob(x.double()).sum(1).mean().item())
        assert promised_bytes == pytest.approx(promised / math.log(2) / 8)
        assert 60 * (size - promised_bytes) == pytest.approx(4, abs=1)  # the first state: 28 bits
    honest = -sum(p(network, x) / 3 for network in three).log().mean().item()
    assert f"{honest:.2f} nats" in printed


@pytest.fixture
def world(made):
    """Names for cells of images of 28 × 28 pixels; what is shown or printed stays in `labels` and `tabled`."""
    images = (510 * torch.rand(20, 784) - 127).clamp(0, 255).to(torch.uint8)
    names = dict(made) | {"order": torch.arange(784), "mean": means(784), "save": id}
    names["untrained"] = lambda order: build(made, 784, 20, scale=0.5, order=order).float()
    names |= {"single": names["untrained"](names["order"]), "test_images": images}
    names |= {"test_x": made["binarise"](images), "test_labels": torch.arange(20) % 10}
    names["table"] = lambda rows: names.update(tabled=rows)
    names["show"] = lambda *sheet, labels=(): names.update(labels=labels)
    return names


def test_nats_are_a_sum_of_surprise_beside_what_needs_no_network(world):
    run_cell("MADE", "nlls = {", world)
    x, grey = world["test_x"], world["test_images"].double() / 255
    each = -Bernoulli(logits=world["single"](x)).log_prob(x).detach()
    torch.testing.assert_close(world["surprise"], each)
    torch.testing.assert_close(world["nll"], each.sum(1))
    independent, (fair, *others) = -Bernoulli(means(784)).log_prob(x), world["tabled"]
    coins = -torch.special.xlogy(grey, grey) - torch.special.xlogy(1 - grey, 1 - grey)
    expected = [values.sum().item() / 20 for values in (independent, each, coins)]
    assert [row["nats per image"] for row in others] == pytest.approx(expected, rel=1e-4)
    assert fair["bits per pixel"] == "1.000" and fair["±"] < 1e-3 < others[1]["±"]
    run_cell("MADE", "flips_of_pixels = ", world)  # where they are spent: three parts of the same
    parts = [[row[name] for row in world["tabled"]] for name in list(world["tabled"][0])[2:]]
    assert [sum(part) for part in parts] == pytest.approx(expected[1:], rel=1e-4)


def test_surprise_of_upright_turned_and_negative_digits(made, world):
    run_cell("MADE", 'views = {"upright"', world)
    x = world["test_x"][made["one_of_each"](world["test_labels"])]
    turned = x.view(10, 28, 28).rot90(2, (1, 2)).flatten(1)
    views, rows = (x, turned, 1 - x), iter(world["rows"].values())
    for images, costs in zip(views, world["tabled"], strict=True):
        q = world["single"](images).sigmoid().detach()
        surprise = -Bernoulli(q).log_prob(images)
        for expected in (images, q, (surprise / world["MOST"]).clamp(max=1)):
            torch.testing.assert_close(next(rows), expected)
        assert list(costs.values())[1:] == [f"{v:,.0f}" for v in surprise.sum(1).tolist()]
    assert [name.split(":")[0] for name in world["rows"]][::3] == list(world["views"])


def test_frames_show_what_is_drawn_so_far(world):
    samples = world["samples"] = some_images(20, 784).float()
    world["save_loop"] = lambda name, frames: world.update(frames=frames)
    run_cell("MADE", "counts = range(len(mean) % STRIDE", world)
    frames, counts = world["frames"], range(17, 785, 13)  # the last: 784
    for n, frame in zip(counts, frames, strict=True):
        assert torch.equal(frame[:, :n], samples[:16, :n]) and (frame[:, n:] == 0.4).all()


def test_holes_are_the_last_pixels_of_a_visit_and_what_is_known_stays(world):
    world |= {"fit": id, "digits": world["test_x"][:10], "Training": lambda *rest: rest}
    for text in ("middle_last = ", "holes = {"):
        run_cell("MADE", text, world)
    bottom, middle = torch.arange(784) >= 392, torch.zeros(28, 28, dtype=torch.bool)
    middle[8:20, 8:20] = True
    filled = zip(world["holes"].values(), world["filled"].values(), strict=True)
    for hole, ((model, known), images) in zip((bottom, middle.flatten()), filled, strict=True):
        assert torch.equal(known, ~hole)
        assert torch.equal(model.order, hole.int().argsort(stable=True))
        assert images.shape == (8, 6, 784) and (images[:, 0, hole] == 0.4).all()
        assert (images[:, :, known] == images[:, -1:, known]).all()
        assert ((images[:, 1:] == 0) | (images[:, 1:] == 1)).all()
        assert len(images[0, 1:].unique(dim=0)) == 5  # four completions, and the original


def test_a_file_is_compared_with_others_and_with_what_independent_pixels_promise(world):
    coded = world["coded"] = world["test_x"][:10]
    world |= {"train_images": world["test_images"], "written": 1230}
    printed = run_cell("MADE", "sizes = compressed(", world)
    rows = {row["written as"]: row["bytes an image"] for row in world["tabled"]}
    assert rows["packed bits"] == 98 and rows["MADE"] == 123
    promised = nats(world["single"], coded) / math.log(2) / 8
    assert f"promises {promised:.2f} bytes" in printed
    independent = -Bernoulli(means(784)).log_prob(coded.double()).sum(1).mean().item()
    assert rows["independent pixels, promised"] == pytest.approx(independent / math.log(2) / 8)
    assert world["best"] == min(
        size for name, size in rows.items() if name not in ("MADE", "independent pixels, promised")
    )
    assert rows["xz, after the training images"] != rows["xz"]


def test_the_slowest_pixel_of_ten_draws_is_black(world):
    world |= {"after": torch.randint(1, 30, (12, 784)), "drawn": {world["sample"]: world["test_x"]}}
    world["show"] = lambda sheet, *rest, labels: world.update(sheet=sheet)
    run_cell("MADE", "late = ", world)
    late = world["after"][:10] / world["after"][:10].max()
    torch.testing.assert_close(world["sheet"], torch.cat([world["test_x"][:10], late]))


def test_the_model_reads_row_by_row_and_starts_from_the_means(world):
    grey = world["test_images"] / 255
    world |= {"train_images": world["test_images"], "HIDDEN": 30, "BLOCKS": 2}
    run_cell("MADE", "mean = train_images", world)
    single, shade = world["single"], grey.mean(0)
    torch.testing.assert_close(world["mean"], shade)
    assert single.order.tolist() == list(range(784)) and len(single.blocks) == 2
    p = single(world["test_x"][:1]).sigmoid()[0]
    torch.testing.assert_close(p, shade.clamp(1e-3, 1 - 1e-3))


def test_images_are_ranked_by_their_likelihood(world):
    nll = world["nll"] = torch.randperm(20).float()
    run_cell("MADE", "ranks = nll.argsort()", world)
    best, worst, noise, blank = world["groups"].values()
    assert torch.equal(torch.cat([best, worst]), world["test_x"][nll.argsort()])
    assert noise.mean().item() == pytest.approx(world["test_x"].mean().item(), abs=0.03)
    assert blank.shape == (10, 784) and not blank.any()
    scores = {name: nats(world["single"], x) for name, x in world["groups"].items()}
    assert world["labels"] == [f"{name}: {score:,.0f} nats" for name, score in scores.items()]


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
