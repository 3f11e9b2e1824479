"""The mathematics of MADE.ipynb, on networks small enough to check everything."""

import contextlib
import io
import itertools
import math

import numpy
import pytest
import torch
from conftest import ROOT, code_cells, run_cell
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


@each_size
def test_the_jacobian_is_strictly_triangular_in_the_order_of_the_visit(made, size):
    model = build(made, *size)
    for k, c in itertools.product(range(size[4]), each_class(model)):
        order = model.places[k].argsort()
        if c is None:
            assert (made["jacobian"](model, k).triu() == 0).all()
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
    assert all((made["jacobian"](model, k)[allowed] > 0).all() for k in (0, 1))


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
    slopes = made["jacobian"](model)
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
    mixture = made["log_mean_exp"](made["log_p_given_class"](model, x), 1)
    assert mixture.exp().sum().item() == pytest.approx(1)
    model = build(made, 4, 30, 1, 0, 3)
    each = torch.stack([made["log_p"](model, x, k) for k in range(3)])
    assert made["log_mean_exp"](each, 0).exp().sum().item() == pytest.approx(1)
    wrong = made["no_log_likelihood"](model, x, 3)
    conditionals = torch.stack([made["log_conditionals"](model, x, k) for k in range(3)])
    torch.testing.assert_close(wrong, conditionals.exp().mean(0).log().sum(1))
    assert abs(wrong.exp().sum().item() - 1) > 1e-4


def test_scores_are_in_nats(made):
    half = torch.full((4,), 0.25)
    assert made["cross_entropy"](half, half.log()) == pytest.approx(math.log(4))
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


def test_four_pixels_have_sixteen_images_and_the_leak_shows(made):
    """The cell of the example, with networks that are drawn and not trained."""
    images = (255 * torch.rand(300, 784)).to(torch.uint8)

    def train(model, loss, data, epochs, optimizer):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)

    names = dict(made) | {"train_data": (images, torch.zeros(300)), "train": train}
    said = run_cell("MADE", "centre = train_images", names)
    assert names["everything"].tolist() == every_image(4).tolist()
    assert names["truth"].sum().item() == pytest.approx(1, abs=1e-4)
    assert "entropy of the 16 images: 2.7" in said  # nearly 16 equal ones: log 16 = 2.77
    assert "correct" in said and "over all 16 images is 1.0000" in said.split("leaky")[0]
    assert "is 1.0000" not in said.split("leaky")[1]


def test_what_is_no_likelihood_is_crossed_out_with_its_sign(made):
    names = dict(made) | {"model": None, "validation_x": None, "orders": [0, 1]}
    names["no_log_likelihood"] = lambda model, x, masks: torch.tensor([-88.0, -90.0])
    cell = "crossed_out = -no_log_likelihood(many"
    source = next(c.source for c in code_cells(ROOT / "MADE.ipynb") if cell in c.source)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(source[source.index("many = model") :], names)
    assert (
        output.getvalue()
        .replace("\u0336", "")
        .startswith("8 orderings, conditionals averaged: 89.0")
    )


def test_the_scratch_runs_from_corner_to_corner(made):
    names = dict(made) | {"raster": torch.arange(784).view(28, 28), "mean": torch.rand(784)}
    names["short"] = lambda orders, degrees: (orders, degrees)
    run_cell("MADE", "unscratched = ", names)
    hole = ~names["unscratched"].view(28, 28)
    assert hole[0, 27] and hole[27, 0] and hole[14, 13] and not hole[0, 0] and not hole[0, 22]
    assert hole.sum() < 250
    order = names["scratch_last"]
    assert sorted(order.tolist()) == list(range(784))
    assert names["unscratched"][order[: -hole.sum()]].all()


def test_the_results_are_computed_from_what_was_measured(made):
    given = torch.log(torch.tensor([[0.2, 0.4], [0.1, 0.3]]))
    names = dict(made) | {"given": given, "test_labels": torch.tensor([1, 0]), "wrong": 0.5}
    names |= {"nll": torch.tensor([80.0, 82.0]), "mixture_nll": torch.tensor([79.0, 81.0])}
    names |= {"flips": 45.0, "speed_up": 24.0, "history": [1], "single": None, "validation_x": None}
    names |= {"log_p": lambda model, x: torch.tensor([-83.0, -85.0])}
    said = run_cell("MADE", "results = [", names)
    class_given = -(math.log(0.4) + math.log(0.1)) / 2
    assert "test NLL, one ordering             81.00 ± 1.00" in said
    assert "test NLL, mixture over classes     80.00 ± 1.00" in said
    assert f" {class_given:.2f} ±" in said and "50.00   %" in said and " 84.00   nats" in said
    assert f"{81 / 784 / math.log(2):.4f}" in said


def test_the_long_trainings_model_starts_from_the_means(made):
    images = torch.zeros(50, 784, dtype=torch.uint8)
    images[:, :392] = 51
    names = dict(made) | {"train_images": images}
    said = run_cell("MADE", "single = MADE(order", names)
    torch.testing.assert_close(names["mean"], torch.tensor([0.2] * 392 + [0.0] * 392))
    assert "4,321,296 parameters" in said and names["single"].degrees.shape == (1, 1024)
