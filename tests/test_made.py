"""The mathematics of MADE.ipynb, on networks small enough to check everything."""

import contextlib
import io
import itertools
import math
import re

import numpy
import pytest
import torch
from conftest import ROOT, run_cell
from PIL import Image, ImageSequence
from torch.nn import functional as F

SIZES = [  # pixels, hidden, blocks, classes, masks
    (2, 1, 0, 0, 1),
    (4, 3, 1, 3, 3),
    (5, 40, 0, 2, 2),
    (9, 64, 1, 0, 4),
    (9, 100, 2, 2, 2),
]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}-{s[1]}x{s[2]}-{s[3]}")


def build(made, pixels, hidden, blocks, classes, masks, kind="MADE", scale=2.0):
    """An untrained MADE in double precision, with random orderings, none of whose weights is zero."""
    orders = torch.stack([torch.randperm(pixels) for _ in range(masks)])
    mean = torch.linspace(0.05, 0.9, pixels)
    degrees = [made["draw_degrees"](order, mean, hidden, k) for k, order in enumerate(orders)]
    model = made[kind](orders, torch.stack(degrees), mean, blocks, classes).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[-1]))
    return model


def every_image(pixels):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=torch.double)


def p(made, model, x, k=0, c=None):
    """p_k(x | c)."""
    return made["log_conditionals"](model, x, k, c).sum(1).exp()


def each_class(model):
    """None for a model without classes, else every class, one-hot."""
    return list(torch.eye(model.classes).double()) or [None]


def slopes_of(made, model, k=0):
    """The notebook's Jacobian, in the order of the visit under mask k."""
    order = model.places[k].argsort()
    return made["jacobian"](lambda x: model.logits(x.double(), k), order)


@each_size
def test_the_jacobian_is_strictly_triangular_in_the_order_of_the_visit(made, size):
    model = build(made, *size)
    for k, c in itertools.product(range(size[4]), each_class(model)):
        order = model.places[k].argsort()
        if c is None:
            assert (slopes_of(made, model, k).triu() == 0).all()
        # Not only by its slope: another value of a later pixel changes nothing, to the last bit.
        x = (torch.rand(3, size[0]) < 0.5).double()
        for d in range(size[0]):
            y = x.clone()
            y[:, order[d:]] = 1 - y[:, order[d:]]
            one, other = (model.logits(image, k, c)[:, order[: d + 1]] for image in (x, y))
            assert torch.equal(one, other)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_wide_network_has_every_dependency_that_is_allowed(made, blocks):
    model = build(made, 9, 400, blocks, 0, 2)
    allowed = torch.ones(9, 9).tril(-1).bool()
    assert all((slopes_of(made, model, k)[allowed] > 0).all() for k in (0, 1))


@each_size
def test_the_probabilities_of_all_images_sum_to_one(made, size):
    """For each mask and each class, and so for every mixture of them."""
    model, x = build(made, *size), every_image(size[0])
    for k, c in itertools.product(range(size[4]), each_class(model)):
        assert p(made, model, x, k, c).sum().item() == pytest.approx(1)
    if size[4] == 4:  # averaging conditionals of different orderings is no likelihood
        each = torch.stack([made["log_conditionals"](model, x, k) for k in range(4)])
        assert abs((each.logsumexp(0) - math.log(4)).sum(1).exp().sum() - 1) > 1e-3


@pytest.mark.parametrize("pixels", [4, 9])
def test_the_notebooks_check_sees_the_planted_fault(made, pixels):
    model = build(made, pixels, 20, 1, 0, 1, kind="Leaky")
    slopes = slopes_of(made, model)
    assert (slopes.triu(1) == 0).all() and (slopes.diagonal()[:-1] > 0).all()
    assert abs(p(made, model, every_image(pixels)).sum() - 1) > 0.01


def test_the_class_reaches_every_unit_and_every_logit(made):
    model = build(made, 9, 30, 1, 3, 2)
    first, _, last, direct = model.masks(1)
    assert first[:, :3].all() and direct[:, :3].all() and last.shape == (9, 30)
    x = (torch.rand(5, 9) < 0.5).double()
    one, other, _ = (model.logits(x, 1, c) for c in each_class(model))
    assert (one != other).all()


def test_the_classifier_is_bayes_rule(made):
    """Against p(c | part of x) from the table of all p(x, c)."""
    model, x = build(made, 6, 20, 1, 3, 1, scale=1.5), every_image(6)
    joint = [p(made, model, x, 0, c) / 3 for c in each_class(model)]  # p(x, c)
    order = model.places[0].argsort()
    for count in (6, 2):
        known = order[:count]
        same = (x[:, None, known] == x[None, :, known]).all(2).double()  # equal where known
        summed = same @ torch.stack(joint, 1)
        posterior = made["log_p_given_class"](model.double(), x, known).softmax(1)
        torch.testing.assert_close(posterior, summed / summed.sum(1, keepdim=True))


@each_size
def test_guess_and_correct_returns_the_images_of_the_naive_sampler(made, size):
    model = build(made, *size[:3], 0, size[4])
    u = torch.rand(40, size[0]).double()
    for k in range(size[4]):
        naive = made["sample_naive"](model, u, k)
        assert set(naive.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(naive, made["sample"](model, u, k).double())


@pytest.mark.parametrize("classes", [0, 2])
def test_samples_are_as_frequent_as_they_are_probable(made, classes):
    model, number = build(made, 4, 16, 2, classes, 2, scale=1.5), 40_000
    c = each_class(model)[-1]
    u = torch.rand(number, 4).double()
    samples = made["sample"](model, u, 1, None if c is None else c.expand(number, -1))
    counts = (samples @ torch.tensor([8.0, 4, 2, 1]).to(samples)).long().bincount(minlength=16)
    with torch.no_grad():
        expected = number * p(made, model, every_image(4), 1, c)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # the 99.9 % quantile for 15 degrees of freedom


@pytest.mark.parametrize("classes", [0, 2])
def test_inpainting_keeps_what_is_known_and_draws_the_exact_conditional(made, classes):
    model, number = build(made, 9, 64, 2, classes, 2, scale=1.5), 40_000
    order, c = model.places[1].argsort(), each_class(model)[-1]
    known = torch.zeros(9, dtype=torch.bool)
    known[order[:3]] = True
    image = (torch.rand(9) < 0.5).double()
    given = None if c is None else c.expand(number, -1)
    u = torch.rand(number, 9).double()
    completed = made["sample"](model, u, 1, given, known, image.repeat(number, 1))
    assert torch.equal(completed[:, known], image[known].repeat(number, 1).to(completed))
    candidates = image.repeat(64, 1)
    candidates[:, order[3:]] = every_image(6)
    with torch.no_grad():
        conditional = made["log_conditionals"](model, candidates, 1, c).sum(1).softmax(0)
    powers = 2.0 ** torch.arange(5, -1, -1).to(completed)
    counts = (completed[:, order[3:]] @ powers).long().bincount(minlength=64)
    often = number * conditional > 5
    expected = number * conditional[often]
    chi_square = ((counts[often] - expected) ** 2 / expected).sum()
    assert chi_square < 106  # above the 99.9 % quantile for 63 degrees of freedom, 103.4


def test_degrees_are_as_frequent_as_pixels_are_undecided(made):
    mean, order = torch.tensor([0.0, 0.5, 0.1, 1.0, 0.5, 0.5]), torch.randperm(6)
    for means in (mean, torch.full((6,), 0.5)):  # the second: uniform degrees
        degrees = made["draw_degrees"](order, means, 100_000)
        assert degrees.min() >= 1 and degrees.max() <= 5
        weight = torch.distributions.Bernoulli(means).entropy()[order][:5] + 1e-3
        frequency = degrees.bincount(minlength=6)[1:] / len(degrees)
        torch.testing.assert_close(frequency, weight / weight.sum(), rtol=0, atol=0.001)
    assert not degrees.equal(made["draw_degrees"](order, means, 100_000, seed=1))


def batch_of(made, images, step=0, steps=100, labels=None):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    return made["Batch"](images, labels, step, steps)


def test_the_loss_is_the_nll_of_the_next_mask_and_the_given_class(made):
    model = build(made, 9, 64, 1, 2, 3).float()
    images = 255 * (torch.rand(8, 9) < 0.5).to(torch.uint8)  # black and white: no coin to flip
    labels = torch.arange(8) % 2
    c = F.one_hot(labels)
    for grey in (True, False):
        loss = made["expected_nll"](3, grey)
        for step, k in ((0, 0), (1, 1), (2, 2), (3, 0)):
            expected = -made["log_conditionals"](model, images / 255, k, c).sum(1)
            ours = loss(model, batch_of(made, images, step, labels=labels))
            torch.testing.assert_close(ours, expected)


def test_grey_levels_as_targets_have_the_same_mean_and_less_variance(made):
    model = build(made, 4, 16, 1, 0, 1).float()
    grey = torch.tensor([[30, 100, 128, 240]], dtype=torch.uint8)
    x = every_image(4).float()
    weight = torch.distributions.Bernoulli(grey / 255).log_prob(x).sum(1).exp()
    exact = -(weight * made["log_conditionals"](model, x).sum(1)).sum()
    many = batch_of(made, grey.repeat(20_000, 1))
    draws = [made["expected_nll"](grey=g)(model, many) for g in (True, False)]
    for draw in draws:
        assert abs(draw.mean() - exact) < 4 * draw.std() / 20_000**0.5
    assert draws[0].std() < 0.8 * draws[1].std()


def test_images_are_distorted_one_by_one_at_first_and_never_at_the_end(made):
    images = torch.zeros(6, 784, dtype=torch.uint8)
    images.view(6, 28, 28)[:, 8:20, 8:20] = 255
    distorted = made["distort"](images)
    assert distorted.shape == (6, 784) and len(distorted.unique(dim=0)) == 6
    assert 0.5 < distorted.sum() / images.sum() < 2 and distorted.max() <= 255.01
    still = distorted.view(6, 28, 28)
    assert (still[:, 12:16, 12:16] > 250).all() and still[:, :2].max() == 0  # a little
    model = build(made, 784, 10, 0, 0, 1).float()
    loss = made["expected_nll"](distorted=0.5)
    exact = -made["log_conditionals"](model, images / 255).sum(1)
    different = [
        not torch.allclose(loss(model, batch_of(made, images, step, 40)), exact)
        for step in range(40)
    ]
    assert any(different[:10]) and not any(different[20:])


def test_the_mixture_is_a_mean_of_probabilities(made):
    """Of the classes and of the masks: a distribution, where averaged conditionals are none."""
    model, x = build(made, 4, 30, 1, 3, 2), every_image(4)
    given, labels = made["log_p_given_class"](model, x), torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    mixture = made["log_mixture"](given, labels)
    assert mixture.exp().sum().item() == pytest.approx(1)
    shares = torch.tensor([1.0, 2.0, 5.0]).double() / 8
    torch.testing.assert_close(mixture.exp(), given.exp() @ shares)
    torch.testing.assert_close(made["log_shares"](labels).exp().double(), shares)
    model = build(made, 4, 30, 1, 0, 3)
    each = torch.stack([made["log_p"](model, x, k) for k in range(3)])
    assert made["log_mean_exp"](each, 0).exp().sum().item() == pytest.approx(1)
    wrong = made["averaged"](model, x, 3)
    conditionals = torch.stack([made["log_conditionals"](model, x, k) for k in range(3)])
    torch.testing.assert_close(wrong, conditionals.exp().mean(0).log().sum(1))
    assert abs(wrong.exp().sum().item() - 1) > 1e-4
    model.places[:] = model.places[0].clone()  # one ordering, three connectivities: a distribution
    model.degrees[:] = torch.stack([torch.randint(1, 4, (30,)) for _ in range(3)])
    model.kept = None
    each = torch.stack([made["log_p"](model, x, k) for k in range(3)])
    right = made["averaged"](model, x, 3)
    assert right.exp().sum().item() == pytest.approx(1) and not torch.allclose(right, each[0])


def test_scores_are_in_nats(made):
    half = torch.full((4,), 0.25)
    assert made["cross_entropy"](half, half.log()).item() == pytest.approx(math.log(4))
    model, x = build(made, 4, 30, 1, 0, 1), every_image(4)
    torch.testing.assert_close(made["log_p"](model, x).exp(), p(made, model, x))
    assert made["with_error"](torch.tensor([1.0, 2.0, 3.0])) == "2.00 ± 0.58"


def test_the_classifiers_errors_are_counted(made):
    log_p = torch.tensor([[0.0, -1.0], [-2.0, -1.0], [-3.0, -9.0]])
    assert made["error_rate"](log_p, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)


def test_weights_decay_and_biases_do_not(made):
    model = build(made, *SIZES[1]).float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    made["adamw"](model).step()
    shrunk = 1 - made["LEARNING_RATE"] * made["WEIGHT_DECAY"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name] * (shrunk if p.ndim > 1 else 1))


@pytest.mark.document
def test_the_animation_draws_what_is_grey_and_keeps_what_is_drawn():
    with Image.open(ROOT / "images" / "MADE-drawing.gif") as animation:
        frames = ImageSequence.all_frames(animation, lambda frame: numpy.array(frame.convert("L")))
    drawn = [frame != 153 for frame in frames]  # 255 − 0.4 · 255
    for frame, before, after in zip(frames, drawn, drawn[1:] + drawn[-1:], strict=True):
        assert (frame == frames[-1])[before].all() and (after | ~before).all()
    assert drawn[-1].all() and not drawn[0].all()


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


def test_each_equal_slice_of_the_entropy_has_one_degree(made):
    degrees = made["draw_degrees"](torch.arange(6), torch.full((6,), 0.5), 5)
    assert sorted(degrees.tolist()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_network_is_its_formula(made, blocks):
    model = build(made, 6, 20, blocks, 0, 1)
    x = (torch.rand(5, 6) < 0.5).double()
    first, hidden, last, direct = model.cut(0)
    shifted = x - model.mean
    h = shifted @ first.T + model.first.bias
    for i in range(blocks):
        inner = F.silu(h) @ hidden[2 * i].T + model.hidden[2 * i].bias
        h = h + F.silu(inner) @ hidden[2 * i + 1].T + model.hidden[2 * i + 1].bias
    logits = F.silu(h) @ last.T + model.last.bias + shifted @ direct.T
    torch.testing.assert_close(model.logits(x), logits)


@pytest.mark.parametrize("pixels", [4, 7])
def test_one_masked_pass_gives_what_hiding_pixels_one_by_one_gives(made, pixels):
    """And for a network without masks, hiding is right and one pass is not."""
    x, order = every_image(pixels), torch.randperm(pixels)
    d, m = order.argsort() + 1, torch.randint(1, pixels, (20,))
    masks = (m[:, None] >= d).double(), (d[:, None] > m).double()
    for first, last in (masks, tuple(torch.ones_like(mask) for mask in masks)):
        network = made["Small"](first, last).double()
        hidden = made["one_by_one"](network, x, order)
        q = torch.distributions.Bernoulli(logits=hidden).log_prob(x).sum(1).exp()
        assert q.sum().item() == pytest.approx(1)
        for place, pixel in enumerate(order):
            alone = x.clone()
            alone[:, order[place:]] = 0
            torch.testing.assert_close(hidden[:, pixel], network(alone)[:, pixel])
        equal = torch.allclose(hidden, network(x))
        assert equal == (first is masks[0])


def four_pixels(made, steps=300):
    """The cells of the example, run with fewer steps."""
    images = (255 * torch.rand(300, 784)).to(torch.uint8)
    names = dict(made) | {"train_images": images}
    said = [
        run_cell("MADE", text, names) for text in ("order_of_4 = ", "first = (m[", "paths = last")
    ]
    said.append(run_cell("MADE", "def largest_difference", names))
    run_cell("MADE", "likelihood = Bernoulli(grey", names)
    run_cell("MADE", "def cross_entropy", names)
    fit = names["fit"]
    names["fit"] = lambda network, target: fit(network, target, steps)
    said.append(run_cell("MADE", "small[name] = fit", names))
    said.append(run_cell("MADE", "targets = {", names))
    return names, said


def test_four_pixels_tell_what_the_text_says(made):
    names, (places, masks, paths, difference, scores, losses) = four_pixels(made)
    assert "[2, 4, 1, 3]" in places
    rows = [row.replace(" ", "") for row in re.findall(r"[01](?:, [01])+", masks)]
    assert rows[:5] == ["0,0,1,0", "0,0,1,0", "1,0,1,0", "1,0,1,0", "1,0,1,1"]
    assert rows[5:] == ["1,1,0,0,0", "1,1,1,1,1", "0,0,0,0,0", "1,1,1,1,0"]
    matrix = torch.tensor(eval(paths[paths.index("[") : paths.rindex("]") + 1]))
    assert (matrix.triu() == 0).all() and (matrix.tril(-1).sum() > 0)
    one, other = (float(line.split()[-1]) for line in difference.splitlines())
    assert one < 1e-6 < 1e-2 < other
    assert names["everything"].tolist() == every_image(4).tolist()
    grey = names["grey"].double()
    p = torch.stack([torch.where(x == 1, grey, 1 - grey).prod(1).mean() for x in every_image(4)])
    torch.testing.assert_close(names["truth"].double(), p)
    entropy = float(scores.splitlines()[0].split()[-2])
    assert entropy == pytest.approx(-(p * p.log()).sum().item(), abs=1e-3)
    correct, leaky = (
        (float(line.split("score ")[1].split()[0]), float(line.split()[-1]))
        for line in scores.splitlines()[1:]
    )
    assert correct[1] == pytest.approx(1, abs=1e-4) and correct[0] >= entropy - 1e-3
    assert leaky[1] > 1.5 and leaky[0] < entropy - 0.5
    (flips, levels), (leaky_flips, leaky_levels), (score, trained_with) = (
        map(float, line.split()[-2:]) for line in losses.splitlines()[1:]
    )
    assert score + 0.2 < trained_with < leaky_levels
    assert flips == pytest.approx(correct[0], abs=1e-3) and leaky_flips == pytest.approx(
        leaky[0], abs=1e-3
    )
    assert levels == pytest.approx(flips, abs=2e-4) and leaky_levels > leaky_flips + 0.2


def test_training_on_the_four_pixels_descends_the_cross_entropy(made):
    names, _ = four_pixels(made, steps=1)
    network = names["Small"](names["first"], names["last"])
    p = torch.rand(16)
    names["truth"] = p / p.sum()
    x = names["everything"]
    before = names["cross_entropy"](names["truth"], names["log_q"](network, x)).item()
    after = names["cross_entropy"](
        names["truth"], names["log_q"](names["fit"](network, x), x)
    ).item()
    assert after < before
    q = names["log_q"](network, x)
    direct = torch.distributions.Bernoulli(logits=network(names["everything"]))
    torch.testing.assert_close(q, direct.log_prob(names["everything"]).sum(1))


def test_the_variance_of_the_gradient_is_that_of_the_flips(made):
    model = build(made, 4, 8, 1, 0, 1).float()
    labels = torch.zeros(6, dtype=torch.long)
    names = made["gradient_variance"].__globals__
    for levels, random in (([0, 255, 255, 0], False), ([100, 128, 30, 220], True)):
        grey = torch.tensor([levels] * 6, dtype=torch.uint8)
        names["train_data"] = (grey, labels)
        variances = [made["gradient_variance"](model, g, 400) for g in (False, True)]
        assert all((v > 1e-9) == random for v in variances)

    def gradient(x, target):
        model.zero_grad()
        logits = model.logits(x)
        (-torch.distributions.Bernoulli(logits=logits).log_prob(target).sum(1).mean()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    for grey_targets, measured in zip((False, True), variances, strict=True):
        draws = []
        for _ in range(400):
            x = made["binarise"](grey)
            draws.append(gradient(x, grey / 255 if grey_targets else x))
        assert measured == pytest.approx(torch.stack(draws).var(0).sum().item(), rel=0.3)
    state = torch.random.get_rng_state()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        made["print_variances"](model, "here")
    assert torch.equal(state, torch.random.get_rng_state())
    printed = [
        float(n) for n in re.findall(r"variance (\S+) with flips, (\S+) with", said.getvalue())[0]
    ]
    assert printed[1] < printed[0] and f"{printed[1] / printed[0]:.0%}" in said.getvalue()
    assert all(p.grad is None for p in model.parameters())


@each_size
def test_guess_and_correct_settles_pixel_by_pixel(made, size):
    model = build(made, *size[:3], 0, 1)
    u = torch.rand(20, size[0]).double()
    images = made["passes"](model, u)
    assert torch.equal(images[-1], images[-2]) and (images[0] == 0).all()
    assert torch.equal(images[-1], made["sample_naive"](model, u))
    after = made["settled"](images)
    order = model.places[0].argsort()
    for n, pixel in itertools.product(range(20), range(size[0])):
        way = images[:, n, pixel] == images[-1, n, pixel]
        assert way[after[n, pixel] :].all() and (
            after[n, pixel] == 0 or not way[after[n, pixel] - 1]
        )
        assert after[n, pixel] <= model.places[0][pixel]  # right after d passes at the latest
    assert (after[:, order[0]] <= 1).all()


def test_independent_pixels_are_a_distribution(made):
    means = torch.tensor([[0.2, 0.5, 0.9], [0.4, 0.1, 0.6]], dtype=torch.double)
    x = every_image(3)
    expected = torch.distributions.Bernoulli(means[:, None]).log_prob(x).sum(-1).T
    torch.testing.assert_close(made["independent_log_p"](x, means), expected)
    assert torch.isfinite(
        made["independent_log_p"](x, torch.tensor([[0.0, 1.0, 0.5]]).double())
    ).all()


def test_what_anyone_can_make_is_scored_beside_it(made):
    """A coin, independent pixels, a mean image for each class with its share."""
    images = torch.zeros(4, 784, dtype=torch.uint8)
    images[:, :10], images[3, :10] = 204, 51
    labels = torch.tensor([0, 0, 0, 1])
    x = torch.zeros(2, 784)
    x[0, :10] = 1
    names = dict(made) | {
        "train_images": images,
        "train_labels": labels,
        "test_x": x,
        "single": None,
    }
    names |= {"mean": images.float().mean(0) / 255, "test_images": images[:2]}
    names["log_p"] = lambda model, x: torch.tensor([-70.0, -90.0])
    run_cell("MADE", "of_each_class = [", names)
    coin, alone, mixture, ours, flips = names["nlls"].values()
    assert coin.tolist() == pytest.approx([784 * math.log(2)] * 2) and ours.tolist() == [70, 90]
    margin = 774 * math.log(0.999)
    p = [0.75 * 0.8**10 + 0.25 * 0.2**10, 0.75 * 0.2**10 + 0.25 * 0.8**10]
    for value, probability in zip(mixture, p, strict=True):
        assert value.item() == pytest.approx(-math.log(probability) - margin, abs=0.01)
    assert alone[0].item() == pytest.approx(-10 * math.log(0.65) - margin, abs=0.01)
    assert flips[0].item() == pytest.approx(
        10 * -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)), abs=1e-3
    )
    said = run_cell("MADE", "for name, values in nlls.items()", names)
    assert (
        "MADE, one ordering                 80.00 ± 10.00" in said
        and "1.000 bits per pixel" in said
    )


def test_a_copy_with_classes_starts_as_what_it_was(made):
    model = build(made, 6, 20, 1, 0, 1).float()
    copy = made["with_classes"](model, 3)
    x = (torch.rand(5, 6) < 0.5).float()
    for c in torch.eye(3):
        torch.testing.assert_close(copy.logits(x, 0, c), model.logits(x))
    assert copy.classes == 3 and model.first.weight.shape == (20, 6)
    with torch.no_grad():
        copy.first.weight[:, 1] += 1
    one, other, _ = (copy.logits(x, 0, c) for c in torch.eye(3))
    assert (one != other).any()


def test_it_is_told_the_labels_that_are_given(made):
    names, seen = made["told"].__globals__, []
    kept = {name: names.get(name) for name in ("single", "train", "train_images")}
    names |= {"single": build(made, 6, 20, 1, 0, 1).float(), "train_images": "images"}
    names["train"] = lambda model, loss, data, epochs, optimizer: seen.append(
        (model.classes, data, epochs, optimizer.param_groups[0]["lr"])
    )
    labels = torch.tensor([0, 4, 2])
    model = made["told"](labels)
    names |= kept
    classes, data, epochs, rate = seen[0]
    assert classes == model.classes == 5 and data == ("images", labels)
    assert (epochs, rate) == (made["CLASS_EPOCHS"], made["CLASS_RATE"])


def shared_network(made, size=28):
    """An untrained SharedMADE in double precision, none of whose weights is zero."""
    order, mean = torch.arange(784), torch.full((784,), 0.3)
    degrees = made["draw_degrees"](order, mean, 20)
    model = made["SharedMADE"](order[None], degrees[None], mean, 1).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_a_masked_convolution_hears_earlier_pixels_near_it_and_no_others(made):
    layer = made["MaskedConv2d"](1, 2, 5)
    torch.nn.init.ones_(layer.weight)
    image = torch.rand(1, 1, 9, 9, requires_grad=True)
    layer(image)[0, 0, 4, 4].backward()
    heard = image.grad[0, 0].nonzero().tolist()
    above = [[row, column] for row in (2, 3) for column in range(2, 7)]
    assert heard == [*above, [4, 2], [4, 3]]


def test_shared_weights_keep_the_order_of_the_visit(made):
    model = shared_network(made)
    slopes = made["jacobian"](lambda x: model.logits(x.double()), torch.arange(784))
    assert (slopes.triu() == 0).all() and (slopes.diagonal(-1) > 0).float().mean() > 0.9
    plain = super(made["SharedMADE"], model).logits
    x = (torch.rand(2, 784) < 0.3).double()
    image = (x - model.mean).view(2, 1, 28, 28)
    torch.testing.assert_close(model.logits(x), plain(x) + model.shared(image).view(2, 784))
    fresh = made["SharedMADE"](torch.arange(784)[None], model.degrees, model.mean.float(), 1)
    torch.testing.assert_close(
        fresh.logits(x.float()),
        super(made["SharedMADE"], fresh).logits(x.float()) + fresh.shared[-1].bias,
    )


def test_the_benchmarks_deeper_convolution_keeps_the_order_of_the_visit(made, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import masks

    deep = masks.deep(made | {"WIDE": 4, "DEEP": 2})
    degrees = made["draw_degrees"](torch.arange(784), torch.full((784,), 0.3), 20)
    model = deep(torch.arange(784)[None], degrees[None], torch.full((784,), 0.3), 1).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = (torch.rand(2, 784) < 0.3).double()
    for d in (0, 28, 300, 783):  # other pixels from place d on change nothing before and at it
        y = x.clone()
        y[:, d:] = 1 - y[:, d:]
        assert torch.equal(model.logits(x)[:, : d + 1], model.logits(y)[:, : d + 1])
        assert d > 700 or not torch.equal(model.logits(x)[:, d + 1], model.logits(y)[:, d + 1])


@pytest.mark.parametrize("pixels", [1, 4, 9])
@pytest.mark.parametrize("scale", [0.1, 2.0, 60.0])
def test_what_is_written_is_read_and_as_long_as_the_nll(made, pixels, scale):
    """All images, in a random order of the visit; with the last scale probabilities are nearly 0 and 1."""
    sizes = (max(pixels, 2), 16, 1, 0, 1)
    model = build(made, *sizes, scale=scale)
    x, order = every_image(sizes[0])[torch.randperm(2 ** sizes[0])], model.places[0].argsort()

    def probabilities(x):
        return model.logits(x.double()).sigmoid()

    state = made["write"](probabilities, x, order)
    received, left = made["read"](probabilities, state, len(x), order)
    assert torch.equal(received.double(), x) and left == made["FIRST_STATE"]
    slots = 2.0 ** made["BITS"]
    with torch.no_grad():  # an impossible pixel still gets one slot
        p = probabilities(x).clamp(1 / slots, 1 - 1 / slots)
    exact = -(x * p.log2() + (1 - x) * (1 - p).log2()).sum().item()
    grown = math.log2(state) - math.log2(made["FIRST_STATE"])
    assert grown == pytest.approx(exact, abs=1 + 0.01 * (scale > 10) * exact)


def test_the_writer_pushes_the_last_pixel_of_the_visit_first(made):
    x = torch.tensor([[1.0, 0.0, 0.0]])
    p = torch.tensor([[0.5, 0.25, 0.125]])
    state = made["write"](lambda x: p, x, torch.tensor([1, 2, 0]))
    expected = made["FIRST_STATE"]
    for pixel, probability in ((1, 0.5), (0, 0.125), (0, 0.25)):
        expected = made["push_pixels"](expected, [pixel], [probability])
    assert state == expected


@pytest.mark.parametrize("kind", ["leaky", "averaged"])
def test_a_file_of_what_is_no_model_does_not_open(made, kind):
    x = every_image(6)
    order = torch.arange(6)
    leaky = build(made, 6, 30, 1, 0, 1, kind="Leaky")
    many = build(made, 6, 30, 1, 0, 3)
    names = {"leaky": leaky, "cut_leaky": leaky.cut(), "eight_orderings": many}
    names["cut_orderings"] = [many.cut(k) for k in range(3)]
    function = {"leaky": "with_leak", "averaged": "over_orderings"}[kind]
    made[function].__globals__.update(names)
    probabilities = made[function]
    p = probabilities(x)
    if kind == "averaged":
        each = [many.logits(x, k).sigmoid() for k in range(3)]
        torch.testing.assert_close(p, torch.stack(each).mean(0))
        order = many.places[0].argsort()
    else:
        torch.testing.assert_close(p, leaky.logits(x).sigmoid())
        order = leaky.places[0].argsort()
    state = made["write"](probabilities, x, order)
    received, _ = made["read"](probabilities, state, len(x), order)
    assert (received.double() != x).any()


def test_the_honest_file_is_written_and_read_by_the_cells_themselves(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build(made, 784, 10, 0, 0, 1).float()
    model.places[0] = torch.arange(784) + 1
    names = dict(made) | {"single": model, "order": torch.arange(784), "CODED": 5}
    names |= {
        "test_x": (torch.rand(9, 784) < 0.2).float(),
        "fixed": torch.Generator().manual_seed(0),
    }
    run_cell("MADE", "def honest", names)
    said = run_cell("MADE", "written = file.write_bytes", names)
    (written,) = re.findall("(.*) bytes for 5 images", said)
    assert (
        int(written.replace(",", "")) == (tmp_path / "weights" / "MNIST-MADE.bits").stat().st_size
    )
    said = run_cell("MADE", "received, state = read(honest", names)
    assert "differ: 0" in said and "began: True" in said
    said = run_cell("MADE", "promised = bytes_of", names)
    nll = -made["log_p"](model, names["coded"]).mean().item()
    assert f"promises {nll / math.log(2) / 8:.2f}" in said
    assert float(re.findall(r"MADE +(\S+) bytes", said)[0]) == pytest.approx(
        names["written"] / 5, abs=0.005
    )
    (surplus,) = re.findall(r"larger by (\S+)%", said)
    assert 0 <= float(surplus) < 1
    said = run_cell("MADE", "model_bytes = ", names)
    assert f"{sum(p.numel() for p in model.parameters()) * 4 / 1e6:.1f} MB" in said


def test_each_file_has_its_promise_beside_it(made):
    names = dict(made) | {"single": -1.0, "leaky": -2.0, "eight_orderings": -3.0, "forged": None}
    names |= {"orders": [0, 1], "averaged": lambda model, x, masks: torch.tensor([-4.0, -4.0])}
    names["log_p"] = lambda model, x, k=0: torch.tensor([model - k, model - k]) * 8 * math.log(2)
    said = run_cell("MADE", "scored = {", names)
    promises = [float(value) for value in re.findall(r"promises +(\S+) bytes", said)]
    mixture = 3 - math.log2(0.5 + 0.5 * 2**-8) / 8
    assert promises == pytest.approx([1, 2, 4 / 8 / math.log(2), mixture], abs=0.006)


def test_wrong_pixels_of_opened_files_are_counted(made):
    forged = torch.zeros(2, 784)
    forged[:, :100] = 1
    opened = {"correct": forged.clone(), "leaky": forged.clone()}
    opened["leaky"][0, :50] = 0
    names = dict(made) | {
        "forged": forged,
        "opened": opened,
        "files": {"correct": 15.0, "leaky": 12.0},
    }
    said = run_cell("MADE", "right = {name", names)
    assert "100 pixels of an image are black" in said
    assert (
        "correct    15.00 bytes an image,   0.0" in said
        and "leaky      12.00 bytes an image,  25.0" in said
    )
    assert names["right"]["leaky"] == pytest.approx(1 - 25 / 784)


def test_each_side_is_filled_by_the_ordering_that_ends_there(made):
    names = dict(made) | {"mean": torch.full((784,), 0.5), "HIDDEN": 20, "order": torch.arange(784)}
    names["orders"] = made["from_each_corner"]()
    assert all(sorted(o.tolist()) == list(range(784)) for o in names["orders"])
    assert len({tuple(o.tolist()) for o in names["orders"]}) == 8
    orders = torch.stack(names["orders"])

    class Model:
        places = orders.argsort(1) + 1

    names |= {"eight_orderings": Model, "x": torch.ones(8, 784), "filled": []}
    names["sample"] = lambda model, u, k, c, known, image: known.expand(len(u), -1).float()
    run_cell("MADE", "hidden_half, filled = ", names)
    for side, known in zip(names["sides"], names["filled"], strict=True):
        picture = known[0].view(28, 28)
        hole = {
            "bottom": picture[14:],
            "top": picture[:14],
            "right": picture[:, 14:],
            "left": picture[:, :14],
        }
        assert (hole[side] == 0).all() and picture.sum() == 392


def test_tables_of_masks_say_what_was_scored(made):
    each = {"one": [-88.0, -90.0], "flips": [-89.0, -91.5]}
    table = {"one mask": torch.tensor(each["one"]), "coin flips": torch.tensor(each["flips"])}
    names = dict(made) | {
        "table": table,
        "eight_orderings": None,
        "validation_x": None,
        "orders": [0, 1],
    }
    names["averaged"] = lambda model, x, masks: torch.tensor([-88.0, -90.0])
    said = run_cell("MADE", 'print(f"{name:43s}', names)
    said += run_cell("MADE", "crossed_out = -averaged", names).replace("\u0336", "")
    assert "coin flips                                  90.25    1.25 ± 0.25" in said
    assert "8 orderings, conditionals averaged: 89.0 is no likelihood" in said


def test_mixtures_over_labels_are_compared_with_the_model_without(made):
    given = torch.log(torch.tensor([[0.2, 0.4], [0.1, 0.3]]))
    labels = torch.tensor([0, 1])
    mixtures = {"classes": (None, labels)}
    names = dict(made) | {"single": None, "validation_x": None, "mixtures": mixtures}
    names |= {"log_p": lambda model, x: torch.tensor([-2.0, -3.0])}
    names["log_p_given_class"] = lambda model, x: given
    said = run_cell("MADE", "before = -log_p(single", names)
    mixture = [-math.log(0.3), -math.log(0.2)]
    assert f"{sum(mixture) / 2:6.2f}, better by {2.5 - sum(mixture) / 2:.2f} ±" in said
    names |= {"conditional": None, "test_x": None, "nll": torch.tensor([2.0, 3.0])}
    names["train_labels"] = labels
    names["test_labels"] = torch.tensor([1, 0])
    said = run_cell("MADE", "mixture_nll = -log_mixture(given", names)
    assert f"classes: {sum(mixture) / 2:.2f} ±" in said and "50.00% wrong" in said
    assert f"by {2.5 - sum(mixture) / 2:.2f} ±" in said


def test_the_results_are_computed_from_what_was_measured(made):
    given = torch.log(torch.tensor([[0.2, 0.4], [0.1, 0.3]]))
    names = dict(made) | {"given": given, "test_labels": torch.tensor([1, 0]), "wrong": 0.5}
    names |= {"nll": torch.tensor([80.0, 82.0]), "mixture_nll": torch.tensor([79.0, 81.0])}
    names |= {"flips": 45.0, "speed_up": 24.0, "history": [1], "before": torch.tensor([83.0, 85.0])}
    names |= {"sizes": {"MADE": 15.04}, "promised": 15.01}
    said = run_cell("MADE", "results = [", names)
    class_given = -(math.log(0.4) + math.log(0.1)) / 2
    assert "test NLL, one ordering             81.00 ± 1.00" in said
    assert "test NLL, mixture over classes     80.00 ± 1.00" in said
    assert f" {class_given:.2f} ±" in said and "50.00   %" in said and " 84.00   nats" in said
    assert f"{81 / 784 / math.log(2):.4f}" in said
    assert "15.04   bytes an image; NLL promises 15.01" in said


def test_the_long_trainings_model_starts_from_the_means(made):
    images = torch.zeros(50, 784, dtype=torch.uint8)
    images[:, :392] = 51
    names = dict(made) | {"train_data": (images, torch.zeros(50))}
    run_cell("MADE", "train_images, train_labels = train_data", names)
    torch.testing.assert_close(names["mean"], torch.tensor([0.2] * 392 + [0.0] * 392))
    names["order"] = torch.arange(784)
    names["degrees"] = names["draw_degrees"](names["order"], names["mean"], names["HIDDEN"])
    names["print_variances"] = lambda model, name: None
    said = run_cell("MADE", "single = MADE(order", names)
    assert "4,321,296 parameters" in said and names["single"].degrees.shape == (1, 1024)
    torch.testing.assert_close(
        names["single"].logits(torch.ones(1, 784))[0, 0].sigmoid().item(), 0.2
    )


@pytest.fixture
def drawn(monkeypatch):
    """Names for a cell that draws: `show` keeps what it was given, `save` keeps the figure."""
    import matplotlib.pyplot as plt

    kept = {}
    yield {
        "plt": plt,
        "show": lambda images, columns, axis=None, labels=(): kept.update(
            images=images, columns=columns, labels=list(labels)
        ),
        "save": lambda name: kept.update(axes=plt.gcf().axes),
        "save_loop": lambda name, sheets: kept.update(sheets=sheets),
        "kept": kept,
    }
    plt.close("all")


def test_the_picture_of_four_pixels_shows_what_the_fault_adds(made, drawn):
    names, _ = four_pixels(made, steps=5)
    run_cell("MADE", "def draw_network", names | drawn)
    network, correct, leaky = drawn["kept"]["axes"]
    dashed = [line for line in network.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 5 and len(network.lines) == 5 + 20
    assert len(network.collections) == 3
    assert [text.get_text() for text in correct.texts].count("0") == 10
    assert [text.get_text() for text in leaky.texts].count("0") <= 7


def test_the_picture_of_degrees_counts_units_at_their_places(made, drawn):
    names = dict(made) | drawn | {"mean": torch.linspace(0.01, 0.9, 784), "HIDDEN": 900}
    run_cell("MADE", "counts = degrees.bincount", names)
    bars, line = drawn["kept"]["axes"]
    for bar, place in zip(bars.patches, range(1, 785), strict=True):
        assert bar.get_x() + bar.get_width() / 2 == pytest.approx(place)
        assert bar.get_height() == (names["degrees"] == place).sum()
    x, y = line.lines[0].get_data()
    assert x[0] == 1 and x[-1] == 784
    entropy = torch.distributions.Bernoulli(names["mean"]).entropy()
    torch.testing.assert_close(torch.tensor(y, dtype=entropy.dtype), entropy)


def test_the_picture_of_the_jacobian_shows_all_and_four_rows(made, drawn):
    names = dict(made) | drawn | {"slopes": torch.rand(784, 784).tril(-1)}
    run_cell("MADE", "relative = (slopes", names)
    whole, part = drawn["kept"]["axes"]
    assert whole.get_xticks().tolist() == [0, 196, 392, 588]
    assert part.get_xticks().tolist() == [392, 420, 448, 476]
    shown = torch.tensor(part.images[0].get_array())
    torch.testing.assert_close(shown, names["relative"][392:504, 392:504])
    assert names["relative"].max().item() == pytest.approx(1)
    relative = (names["slopes"][500] / names["slopes"][500].max()).sqrt()
    torch.testing.assert_close(names["relative"][500], relative)


def test_pictures_of_drawing_show_what_is_drawn_when(made, drawn):
    after = torch.randint(0, 9, (100, 784))
    samples = (torch.rand(100, 784) < 0.3).float()
    names = dict(made) | drawn | {"after": after, "mean": torch.zeros(784)}
    names["all_passes"] = samples[None]
    run_cell("MADE", "late = after[:10]", names)
    assert torch.equal(drawn["kept"]["images"][:10], samples[:10])
    torch.testing.assert_close(drawn["kept"]["images"][10:], after[:10] / after[:10].max())

    class Model:
        places = 1 + torch.arange(784)[None]

    names |= {"single": Model, "samples": samples, "probabilities": samples}
    run_cell("MADE", "def partly", names)
    assert drawn["kept"]["labels"][:4] == ["29% drawn", "50% drawn", "71% drawn", "100% drawn"]
    run_cell("MADE", "STRIDE = ", names)
    partly = names["partly"](samples, 300)
    assert torch.equal(partly[:, :300], samples[:, :300]) and (partly[:, 300:] == 0.4).all()
    sheets = drawn["kept"]["sheets"]
    assert len(sheets) == 60
    assert torch.equal(sheets[-1], samples[:16]) and (sheets[0][:, 17:] == 0.4).all()


def test_the_ensembles_reconstructions_are_means_of_probabilities(made, drawn):
    class Model:
        def logits(self, x, k):
            return torch.full_like(x, float(k)).logit() if k < 2 else torch.full_like(x, 0.0)

    names = dict(made) | drawn | {"eight_orderings": Model(), "orders": range(4)}
    names |= {"test_x": torch.ones(40, 784), "test_labels": torch.arange(40) % 10}
    run_cell("MADE", 'rows = {"original": x, "one ordering"', names)
    shown = drawn["kept"]["images"].view(4, 10, 784)
    assert [rows.mean().item() for rows in shown] == pytest.approx([1, 0, 0.5, 0.5])


def test_three_files_are_written_and_opened(made, drawn):
    names = dict(made) | {
        "coded": (torch.rand(9, 6) < 0.5).float(),
        "FORGED": 5,
        "visit": torch.arange(6),
    }
    half = lambda x: torch.full_like(x, 0.5)  # noqa: E731
    cheat = lambda x: 0.98 * x + 0.01  # noqa: E731
    names |= {"honest": half, "with_leak": cheat, "over_orderings": half}
    run_cell("MADE", "files, opened = {}, {}", names)
    assert names["files"]["correct"] == pytest.approx((28 + 30 + 7) // 8 / 5, abs=0.21)
    assert names["files"]["leaky"] < names["files"]["correct"]
    assert torch.equal(names["opened"]["correct"], names["coded"][:5])
    assert not torch.equal(names["opened"]["leaky"], names["coded"][:5])
    names |= drawn | {"right": {"correct": 1.0, "leaky": 0.8, "averaged": 0.7}}
    names["opened"] = {name: torch.zeros(5, 784) for name in names["opened"]}
    names["forged"] = torch.zeros(5, 784)
    run_cell("MADE", "largest = 1.4", names)
    sizes = drawn["kept"]["axes"][0]
    assert sizes.get_xlim()[1] == pytest.approx(1.4 * max(names["files"].values()))
    assert [line.get_ydata()[0] for line in sizes.lines] == [1.0, 0.8, 0.7]


def test_the_top_half_is_known_and_the_class_is_drawn_from_it(made):
    class Model:
        places = 1 + torch.arange(784)[None]

    names = dict(made) | {"conditional": Model, "mean": torch.zeros(784), "classes": 3}
    names |= {"test_x": torch.ones(40, 784), "test_labels": torch.arange(40) % 10}

    def given(model, x, known):
        assert known.sum() == 392 and known[:392].all()
        return torch.tensor([[-1e9, 0.0, -1e9]]).expand(len(x), -1)

    names["train_labels"] = torch.tensor([0, 1, 2])
    names["log_p_given_class"] = given
    names["sample"] = lambda model, u, k, c, known, image: (c, known)
    run_cell("MADE", "top = conditional.places", names)
    c, known = names["completed"]
    assert (c == torch.tensor([0, 1, 0])).all() and known.sum() == 392


def test_a_pixel_that_is_always_black_has_a_finite_bias(made):
    mean = torch.tensor([0.0, 1.0, 0.5])
    order = torch.arange(3)
    model = made["MADE"](order[None], torch.tensor([[1, 2]]), mean, 0)
    expected = torch.tensor([0.001, 0.999, 0.5])
    torch.testing.assert_close(model.logits(torch.ones(1, 3)).sigmoid()[0], expected)


def test_the_best_common_program_is_compared_with(made):
    names = dict(made) | {
        "single": torch.nn.Linear(9, 1),
        "sizes": {"bz2": 30.0, "PNG": 100.0, "MADE": 10.0},
    }
    said = run_cell(
        "MADE", "model_bytes = ", names
    )  # 10 weights of 4 bytes, 20 bytes saved an image
    assert "pays from 2 images on" in said


def test_the_picture_of_what_masks_cost_shows_paired_differences(made, drawn):
    table = {"one mask": torch.tensor([-88.0, -90.0]), "other": torch.tensor([-89.0, -91.5])}
    run_cell("MADE", 'axis.set(xscale="symlog"', dict(made) | drawn | {"table": table})
    (axis,) = drawn["kept"]["axes"]
    assert [float(bar.lines[0].get_xdata()[0]) for bar in axis.containers] == [0.0, 1.25]


def test_the_training_curve_has_a_point_for_each_epoch(made, drawn):
    history = [
        {"loss": 90.0, "NLL": 91.0},
        {"loss": 88.0, "NLL": 89.0},
        {"loss": 86.0, "NLL": 87.0},
    ]
    run_cell("MADE", "lowest = min(row", dict(made) | drawn | {"history": history})
    (axis,) = drawn["kept"]["axes"]
    assert [line.get_xdata().tolist() for line in axis.lines] == [[1, 2, 3]] * 2
    assert axis.get_ylim() == pytest.approx((84, 106))


def test_variants_differ_in_what_their_names_say(made):
    import time

    names = dict(made) | {"mean": torch.linspace(0.01, 0.9, 784), "HIDDEN": 20, "CONNECTIVITIES": 3}
    names |= {"order": torch.arange(784), "degrees": "these", "seconds": {}, "time": time}
    names["short"] = lambda orders, degrees, grey=True: (orders, degrees, grey)
    run_cell("MADE", "def from_each_corner", names)
    run_cell("MADE", "eight_orderings = short", names)
    assert names["one_mask"][1:] == (["these"], True) and names["from_flips"][2] is False
    orders, degrees, _ = names["connectivities"]
    assert len(orders) == len(degrees) == 3 and all(o is names["order"] for o in orders)
    assert not degrees[0].equal(degrees[1])
    assert len(names["eight_orderings"][0]) == len(names["eight_orderings"][1]) == 8
