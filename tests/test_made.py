"""The mathematics of MADE.ipynb, on networks small enough to check everything."""

import itertools
import math

import pytest
import torch
from conftest import run_cell
from torch.distributions import Bernoulli
from torch.nn import functional as F

# Pixels, hidden units, blocks, classes, masks.
SIZES = [(2, 1, 0, 0, 1), (4, 3, 1, 3, 3), (5, 40, 0, 2, 2), (9, 64, 1, 0, 4), (9, 100, 2, 2, 2)]
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


def some_images(number, pixels):
    return (torch.rand(number, pixels) < 0.5).double()


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
    for k, c in itertools.product(range(size[4]), each_class(model)):
        order = model.places[k].argsort()
        if c is None:
            assert (slopes_of(made, model, k).triu() == 0).all()
        # Not only by its slope: another value of a later pixel changes nothing, to the last bit.
        x = some_images(3, size[0])
        for d in range(size[0]):
            y = x.clone()
            y[:, order[d:]] = 1 - y[:, order[d:]]
            one, other = (model.logits(image, k, c)[:, order[: d + 1]] for image in (x, y))
            assert torch.equal(one, other)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_wide_network_has_every_dependency_that_is_allowed(made, blocks):
    model, allowed = build(made, 9, 400, blocks, 0, 2), torch.ones(9, 9).tril(-1).bool()
    assert all((slopes_of(made, model, k)[allowed] > 0).all() for k in (0, 1))


@each_size
def test_the_probabilities_of_all_images_sum_to_one(made, size):
    """For each mask and each class, and so for every mixture of them."""
    model, x = build(made, *size), every_image(size[0])
    for k, c in itertools.product(range(size[4]), each_class(model)):
        assert p(made, model, x, k, c).sum().item() == pytest.approx(1)


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
    x = some_images(5, 9)
    one, other, _ = (model.logits(x, 1, c) for c in each_class(model))
    assert (one != other).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_network_is_its_formula(made, blocks):
    model, x = build(made, 6, 20, blocks, 0, 1), some_images(5, 6)
    first, hidden, last, direct = model.cut(0)
    shifted = x - model.mean
    h = shifted @ first.T + model.first.bias
    for i in range(blocks):
        inner = F.silu(h) @ hidden[2 * i].T + model.hidden[2 * i].bias
        h = h + F.silu(inner) @ hidden[2 * i + 1].T + model.hidden[2 * i + 1].bias
    logits = F.silu(h) @ last.T + model.last.bias + shifted @ direct.T
    torch.testing.assert_close(model.logits(x), logits)


def test_it_starts_from_independent_pixels_of_these_means(made):
    """Also where a pixel is always white, or always black: its bias is finite."""
    mean = torch.tensor([0.0, 1.0, 0.5, 0.2])
    model = made["MADE"](torch.arange(4)[None], torch.tensor([[1, 2]]), mean, 0)
    p = model.logits(torch.ones(1, 4)).sigmoid()[0]
    torch.testing.assert_close(p, torch.tensor([0.001, 0.999, 0.5, 0.2]))


def test_masks_are_made_anew_for_another_mask_and_another_precision(made):
    model = build(made, 5, 20, 0, 0, 2).float()
    masks = model.masks(0)
    assert model.masks(0) is masks and masks[0].dtype == torch.float32
    assert not torch.equal(model.masks(1)[0], masks[0])
    assert torch.equal(model.masks(0)[0], masks[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert model.masks(0)[0].dtype == model.cut(0)[0].dtype == torch.bfloat16
        assert model.logits(torch.zeros(1, 5)).dtype == torch.float32


def test_degrees_are_as_frequent_as_pixels_are_undecided(made):
    mean, order = torch.tensor([0.0, 0.5, 0.1, 1.0, 0.5, 0.5]), torch.randperm(6)
    for means in (mean, torch.full((6,), 0.5)):  # the second: uniform degrees
        degrees = made["draw_degrees"](order, means, 100_000)
        weight = Bernoulli(means).entropy()[order][:5] + 1e-3
        assert degrees.min() == 1 and degrees.max() == 5
        frequency = degrees.bincount()[1:] / len(degrees)
        assert frequency.min() > 0  # each pixel, however sure, has a place
        torch.testing.assert_close(frequency, weight / weight.sum(), rtol=0, atol=0.001)
    assert not degrees.equal(made["draw_degrees"](order, means, 100_000, seed=1))
    assert sorted(made["draw_degrees"](order, means, 5).tolist()) == [1, 2, 3, 4, 5]  # slices


@pytest.mark.parametrize("pixels", [4, 7])
def test_one_masked_pass_gives_what_hiding_pixels_one_by_one_gives(made, pixels):
    """And for a network without masks, hiding is right and one pass is not."""
    x, order = every_image(pixels), torch.randperm(pixels)
    d, m = order.argsort() + 1, torch.randint(1, pixels, (20,))
    masks = (m[:, None] >= d).double(), (d[:, None] > m).double()
    for first, last in (masks, tuple(torch.ones_like(mask) for mask in masks)):
        network = made["Small"](first, last).double()
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
    names = dict(made) | {"train_images": (255 * torch.rand(300, 784)).to(torch.uint8)}
    for text in ("order_of_4 = ", "first = (m[", "paths = last", "def largest_", "likelihood = "):
        run_cell("MADE", text, names)
    run_cell("MADE", "def fit_small", names)
    names["fit_small"].__defaults__ = (300, 0.02)
    run_cell("MADE", "small[name] = ", names)
    run_cell("MADE", "targets = {", names)
    return names


def test_of_four_pixels_everything_is_known(four):
    x, order, grey = every_image(4), four["order_of_4"], four["grey"].double()
    assert four["d"].tolist() == [2, 4, 1, 3] and four["everything"].tolist() == x.tolist()
    paths = four["paths"][order][:, order]
    assert (paths.triu() == 0).all() and paths.tril(-1).sum() > 0
    each = torch.stack([torch.where(image == 1, grey, 1 - grey).prod(1) for image in x])  # p(x | g)
    truth, known = each.mean(1), each @ grey / each.sum(1, keepdim=True)  # p(x) and E[g | x]
    torch.testing.assert_close(four["truth"].double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(four["targets"]["grey levels"].double(), known, rtol=1e-5, atol=0)
    assert four["entropy"].item() == pytest.approx(-(truth * truth.log()).sum().item(), abs=1e-4)


def test_the_planted_fault_scores_too_well_and_sums_to_more_than_one(four):
    Small, x, total = four["Small"], four["everything"], four["total"]
    assert four["largest_difference"](Small(four["first"], four["last"])) < 1e-6
    assert four["largest_difference"](Small(torch.ones(5, 4), torch.ones(4, 5))) > 1e-2
    networks = [*four["small"].values(), four["fitted_to_grey"]]
    losses = [[four["mean_loss"](n, t) for t in four["targets"].values()] for n in networks]
    (right, right_levels), (wrong, wrong_levels), (score, trained_with) = losses
    log_q, entropy = Bernoulli(logits=networks[0](x)).log_prob(x).sum(1), four["entropy"].item()
    assert right == pytest.approx(-(four["truth"] * log_q).sum().item())
    assert total(networks[0]) == pytest.approx(1, abs=1e-4) and total(networks[1]) > 1.5
    assert entropy - 1e-3 <= right < entropy + 0.1 and wrong < entropy - 0.5
    assert right_levels == pytest.approx(
        right, abs=2e-4
    )  # grey targets are allowed, without a leak
    assert wrong_levels > wrong + 0.2 and score + 0.2 < trained_with < wrong_levels


def test_the_loss_is_the_nll_of_its_mask_and_the_given_class(made):
    model, labels = build(made, 9, 64, 1, 2, 3).float(), torch.arange(8) % 2
    images = (255 * some_images(8, 9)).to(torch.uint8)  # black and white: no coin to flip
    for k, grey in itertools.product(range(3), (True, False)):
        expected = -made["log_conditionals"](model, images / 255, k, F.one_hot(labels)).sum(1)
        loss = made["expected_nll"](model, images, labels, k, grey)
        torch.testing.assert_close(loss, expected)


def test_grey_levels_as_targets_have_the_same_mean_and_less_variance(made):
    model = build(made, 4, 16, 1, 0, 1).float()
    grey = torch.tensor([[30, 100, 128, 240]], dtype=torch.uint8)
    x = every_image(4).float()
    weight = Bernoulli(grey / 255).log_prob(x).sum(1).exp()
    exact = -(weight * made["log_conditionals"](model, x).sum(1)).sum()
    many = grey.repeat(20_000, 1)
    draws = [made["expected_nll"](model, many, None, grey=choice) for choice in (True, False)]
    for draw in draws:
        assert abs(draw.mean() - exact) < 4 * draw.std() / 20_000**0.5
    assert draws[0].std() < 0.8 * draws[1].std()


def test_the_variance_of_the_gradient_is_that_of_the_flips(made, monkeypatch, capsys):
    model, grey = build(made, 4, 8, 1, 0, 1).float(), torch.tensor([100, 128, 30, 220])
    images = grey.to(torch.uint8).repeat(6, 1)
    monkeypatch.setitem(made, "train_data", (images, torch.zeros(6, dtype=torch.long)))
    for is_grey in (False, True):
        gradients = []
        for _ in range(200):
            x = made["binarise"](images)
            log_p = Bernoulli(logits=model.logits(x)).log_prob(images / 255 if is_grey else x)
            slopes = torch.autograd.grad(-log_p.sum(1).mean(), list(model.parameters()))
            gradients.append(torch.cat([slope.flatten() for slope in slopes]))
        expected = torch.stack(gradients).var(0).sum().item()
        assert made["gradient_variance"](model, is_grey, 200) == pytest.approx(expected, rel=0.3)
    state = torch.random.get_rng_state()
    made["print_variances"](model, "here")
    assert torch.equal(state, torch.random.get_rng_state())
    _, _, flips, _, _, levels, *_, ratio = capsys.readouterr().out.split()
    assert float(levels) / float(flips) == pytest.approx(float(ratio[:-1]) / 100, abs=0.01)
    assert all(weights.grad is None for weights in model.parameters())


def test_images_are_distorted_one_by_one_and_a_little(made):
    images = torch.zeros(6, 784, dtype=torch.uint8)
    images.view(6, 28, 28)[:, 8:20, 8:20] = 255
    distorted = made["distort"](images)
    assert distorted.shape == (6, 784) and len(distorted.unique(dim=0)) == 6
    assert 0.5 < distorted.sum() / images.sum() < 2 and distorted.max() <= 255.01
    assert distorted[:, 14 * 28 + 14].min() > 250 and distorted[:, : 2 * 28].max() == 0


@pytest.fixture
def training(made):
    """Of a small model on 100 equal images of four pixels, in batches of five, for 10 epochs."""
    model = build(made, 4, 20, 1, 0, 1).float()
    data = [torch.tensor([[51, 204, 0, 255]], dtype=torch.uint8).repeat(100, 1), torch.arange(100)]
    return made["Training"]("MADE test", model, made["adamw"](model, 0.05), 10, data)


def test_training_descends_to_the_entropy(made, training, monkeypatch):
    monkeypatch.setitem(made, "distort", None)  # not called, if nothing is said
    made["fit"].__wrapped__(training)
    losses = [row["loss"] for row in training.history]
    entropy = 2 * -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert len(losses) == 10 and losses[0] > 1.5 * entropy
    assert losses[-1] == pytest.approx(entropy, rel=0.05)


def test_masks_take_turns_and_images_are_distorted_ever_less_often(made, training, monkeypatch):
    seen = []

    def loss(model, images, labels, k, grey):
        seen.append((k, grey, images.sum().item() == 0))
        return model.last.bias

    monkeypatch.setitem(made, "expected_nll", loss)
    monkeypatch.setitem(made, "distort", lambda images: 0 * images)
    made["fit"].__wrapped__(training, 3, grey=False, distorted=0.5)
    masks, greys, distorted = zip(*seen, strict=True)
    assert masks == tuple(step % 3 for step in range(200)) and not any(greys)
    assert sum(distorted[:50]) > 28 > 20 > sum(distorted[50:100]) and not any(distorted[100:])


def test_weights_decay_and_biases_do_not(made):
    model = build(made, *SIZES[1]).float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    made["adamw"](model).step()
    shrunk = 1 - made["LEARNING_RATE"] * made["WEIGHT_DECAY"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name] * (shrunk if p.ndim > 1 else 1))


@pytest.fixture
def fits(made, monkeypatch):
    """The arguments with which `fit` is called, which trains nothing; there are images of six pixels."""
    calls, images = [], torch.zeros(40, 6, dtype=torch.uint8)
    data = {"train_data": [images, torch.arange(40)], "train_images": images}
    data |= {"mean": torch.linspace(0.1, 0.9, 6), "single": build(made, 6, 20, 1, 0, 1).float()}
    for name, value in data.items():
        monkeypatch.setitem(made, name, value)
    monkeypatch.setitem(made, "fit", lambda *all, **named: calls.append((*all, named)))
    return calls


def test_a_short_training_has_its_masks_its_targets_and_its_name(made, fits):
    orders = [torch.arange(6), torch.arange(6).flip(0)]
    degrees = [torch.tensor([1, 2, 5]), torch.tensor([3, 4, 1])]
    model = made["short"]("here", orders, degrees, False, made["Leaky"])
    again = made["short"]("here", orders, degrees)
    assert torch.equal(model.first.weight, again.first.weight)  # from the same start
    assert type(model) is made["Leaky"] and type(again) is made["MADE"] and len(model.hidden) == 2
    assert torch.equal(model.places, torch.stack(orders).argsort(1) + 1)
    assert torch.equal(model.degrees, torch.stack(degrees))
    (training, *rest), (_, *others) = fits
    assert rest == [2, False, {}] and others == [2, True, {}] and training.model is model
    assert training.name == "MADE short, here" and training.epochs == made["SHORT_EPOCHS"]
    assert training.data is made["train_data"]


def test_it_is_told_the_labels_that_are_given(made, fits):
    labels = torch.arange(40) % 5
    model = made["told"]("fives", labels)
    ((training, named),) = fits
    assert training.model is model and model.classes == 5 and training.name == "MADE told fives"
    assert training.data[0] is made["train_images"] and training.data[1] is labels
    assert training.epochs == made["CLASS_EPOCHS"] and named == {"distorted": made["DISTORTED"]}
    assert {group["lr"] for group in training.optimizer.param_groups} == {made["CLASS_RATE"]}


def test_a_copy_with_classes_starts_as_what_it_was(made):
    model = build(made, 6, 20, 1, 0, 1).float()
    copy, x = made["with_classes"](model, 3), some_images(5, 6).float()
    for c in torch.eye(3):
        torch.testing.assert_close(copy.logits(x, 0, c), model.logits(x))
    assert copy.classes == 3 and model.first.weight.shape == (20, 6)
    with torch.no_grad():
        copy.first.weight[:, 1] += 1
    one, other, _ = (copy.logits(x, 0, c) for c in torch.eye(3))
    assert (one != other).any()


def test_scores_are_in_nats_whatever_the_portions(made, monkeypatch):
    model, x = build(made, 5, 30, 1, 0, 2), some_images(10, 5)
    known, each = model.places[1] <= 3, made["log_conditionals"](model, x, 1)
    torch.testing.assert_close(each, Bernoulli(logits=model.logits(x, 1)).log_prob(x))
    for name, value in {"PORTION": 4, "validation_x": x, "some_validation": x}.items():
        monkeypatch.setitem(made, name, value)
    torch.testing.assert_close(made["log_p"](model, x, 1), each.sum(1))
    torch.testing.assert_close(made["log_p"](model, x, 1, known=known), each[:, known].sum(1))
    torch.testing.assert_close(made["each_mask"](model)[1], each.sum(1))
    nll = -p(made, model, x).log().mean().item()
    assert made["validate"](model) == {"NLL": pytest.approx(nll)}


def test_rows_of_tables_are_means_with_errors(made):
    nlls = {"one": torch.tensor([88.0, 90.0]), "other": torch.tensor([89.0, 91.5])}
    log_ps = {name: -values for name, values in nlls.items()}
    one, other = (list(row.values()) for row in made["compared"](log_ps))  # on the same images
    assert one == ["one", 89, 0, 0] and other == ["other", 90.25, 1.25, pytest.approx(0.25)]
    _, row = made["in_nats_and_bits"](nlls)
    assert list(row.values()) == ["other", 90.25, pytest.approx(1.25), "0.166"]  # / 784 / log 2
    assert made["with_error"](nlls["other"]) == "90.25 ± 1.25"
    assert list(made["result"]("a", "nats", 1.23456, 4e-5).values()) == ["a", 1.2346, 0.0, "nats"]
    assert list(made["result"]("b", "epochs", 40).values()) == ["b", 40, "", "epochs"]


def test_independent_pixels_are_a_distribution(made):
    means = torch.tensor([[0.2, 0.5, 0.9], [0.4, 0.1, 0.6]], dtype=torch.double)
    x, extreme = every_image(3), torch.tensor([[0.0, 1.0, 0.5]]).double()
    expected = Bernoulli(means[:, None]).log_prob(x).sum(-1).T
    torch.testing.assert_close(made["independent_log_p"](x, means), expected)
    assert torch.isfinite(made["independent_log_p"](x, extreme)).all()
    images = torch.tensor([[0, 255], [255, 255], [51, 0]], dtype=torch.uint8)
    of_classes = made["mean_images"](images, torch.tensor([1, 1, 0]), 2)
    torch.testing.assert_close(of_classes, torch.tensor([[0.2, 0.0], [0.5, 1.0]]))


def test_the_classifier_is_bayes_rule(made):
    """Against p(c | part of x) from the table of all p(x, c)."""
    model, x = build(made, 6, 20, 1, 3, 1, scale=1.5), every_image(6)
    joint = [p(made, model, x, 0, c) / 3 for c in each_class(model)]  # p(x, c)
    order = model.places[0].argsort()
    for count in (6, 2):
        known = order[:count]
        same = (x[:, None, known] == x[None, :, known]).all(2).double()  # equal where known
        summed = same @ torch.stack(joint, 1)
        posterior = made["log_p_given_class"](model, x, known).softmax(1)
        torch.testing.assert_close(posterior, summed / summed.sum(1, keepdim=True))
    log_joint = torch.tensor([[0.0, -1.0], [-2.0, -1.0], [-3.0, -9.0]])
    assert made["error_rate"](log_joint, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)


def test_a_mixture_of_classes_is_a_mean_of_probabilities(made):
    model, x = build(made, 4, 30, 1, 3, 2), every_image(4)
    given, labels = made["log_p_given_class"](model, x), torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    shares = torch.tensor([1.0, 2.0, 5.0]).double() / 8
    mixture = made["log_mixture"](given, labels).exp()
    torch.testing.assert_close(mixture, given.exp() @ shares)
    assert mixture.sum().item() == pytest.approx(1)
    torch.testing.assert_close(made["log_shares"](labels).exp().double(), shares)


def test_averaged_conditionals_are_a_likelihood_for_one_ordering_only(made):
    model, x = build(made, 4, 30, 1, 0, 3), every_image(4)
    conditionals = torch.stack([made["log_conditionals"](model, x, k) for k in range(3)])
    wrong = made["averaged"](model, x, 3)
    torch.testing.assert_close(wrong, conditionals.exp().mean(0).log().sum(1))
    assert abs(wrong.exp().sum().item() - 1) > 1e-4
    mixture = made["log_mean_exp"](conditionals.sum(2), 0).exp()
    assert mixture.sum().item() == pytest.approx(1)
    model.places[:] = model.places[0].clone()  # one ordering, three connectivities
    model.degrees[:] = torch.stack([torch.randint(1, 4, (30,)) for _ in range(3)])
    model.used = None
    right = made["averaged"](model, x, 3).exp()
    assert right.sum().item() == pytest.approx(1) and not torch.allclose(right, p(made, model, x))


@each_size
def test_guess_and_correct_settles_pixel_by_pixel_to_the_naive_samples(made, size):
    model, u = build(made, *size[:3], 0, size[4]), torch.rand(20, size[0]).double()
    for k in range(size[4]):
        naive = made["sample_naive"](model, u, k)
        assert set(naive.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(naive, made["sample"](model, u, k).double())
    images, order = made["passes"](model, u), model.places[0].argsort()
    assert torch.equal(images[-1], images[-2]) and (images[0] == 0).all()
    assert torch.equal(images[-1], made["sample_naive"](model, u))
    after = made["settled"](images)
    for n, pixel in itertools.product(range(20), range(size[0])):
        right, last = images[:, n, pixel] == images[-1, n, pixel], after[n, pixel]
        assert right[last:].all() and (last == 0 or not right[last - 1])
        assert last <= model.places[0][pixel]  # right after d passes at the latest
    assert (after[:, order[0]] <= 1).all()


@pytest.mark.parametrize(("count", "quantile"), [(0, 103.4), (2, 37.7)])
@pytest.mark.parametrize("classes", [0, 2])
def test_samples_are_as_frequent_as_they_are_probable(made, classes, count, quantile):
    """All, or those that complete what is known: by χ², below its 99.9 % quantile."""
    model, number = build(made, 6, 64, 2, classes, 2, scale=1.5), 20_000
    order, c, image = model.places[1].argsort(), each_class(model)[-1], some_images(1, 6)
    known = torch.zeros(6, dtype=torch.bool)
    known[order[:count]] = True
    given = None if c is None else c.expand(number, -1)
    u = torch.rand(number, 6).double()
    drawn = made["sample"](model, u, 1, given, *((known, image.repeat(number, 1)) if count else ()))
    assert (drawn[:, known] == image[:, known]).all()
    candidates = image.repeat(2 ** (6 - count), 1)
    candidates[:, order[count:]] = every_image(6 - count)
    powers = 2.0 ** torch.arange(5 - count, -1, -1).to(drawn)
    counts = (drawn[:, order[count:]] @ powers).long().bincount(minlength=len(candidates))
    with torch.no_grad():
        expected = number * made["log_conditionals"](model, candidates, 1, c).sum(1).softmax(0)
    often = expected > 5
    assert ((counts - expected) ** 2 / expected)[often].sum() < quantile


def test_each_side_is_filled_by_the_ordering_that_ends_there(made):
    orderings = made["from_each_corner"]()
    corners = {"top left": 0, "top right": 27, "bottom left": 756, "bottom right": 783}
    assert len(orderings) == 8
    for name, order in orderings.items():
        way, _, corner = name.partition(" from ")
        first, second = order[:2].tolist()
        assert first == corners[corner] and abs(second - first) == {"rows": 1, "columns": 28}[way]
        assert sorted(order.tolist()) == list(range(784))
    orders = torch.stack(list(orderings.values()))
    model = made["MADE"](orders, torch.ones(8, 1, dtype=torch.long), torch.zeros(784), 0)
    names = dict(made) | {"orderings": orderings, "eight_orderings": model, "x": torch.ones(8, 784)}
    names["sample"] = lambda model, u, k, c, known, image: known.view(28, 28)
    run_cell("MADE", "hidden_half, filled = ", names)
    filled = dict(zip(names["sides"], names["filled"], strict=True))
    assert all(known.sum() == 392 for known in filled.values())
    assert not filled["bottom"][14:].any() and not filled["top"][:14].any()
    assert not filled["right"][:, 14:].any() and not filled["left"][:, :14].any()


def test_a_masked_convolution_hears_earlier_pixels_near_it_and_no_others(made):
    layer = made["MaskedConv2d"](1, 2, 5)
    torch.nn.init.ones_(layer.weight)
    image = torch.rand(1, 1, 9, 9, requires_grad=True)
    layer(image)[0, 0, 4, 4].backward()
    heard = image.grad[0, 0].nonzero().tolist()
    above = [[row, column] for row in (2, 3) for column in range(2, 7)]
    assert heard == [*above, [4, 2], [4, 3]]


@pytest.mark.parametrize("kind", ["SharedMADE", "Deep"])
def test_shared_weights_keep_the_order_of_the_visit(made, kind):
    """Also those of the benchmarks' deeper convolution."""
    import masks

    names = made | {"WIDE": 4, "DEEP": 2}
    names["Deep"] = masks.deep(names)
    order, mean = torch.arange(784), torch.full((784,), 0.3)
    degrees = made["draw_degrees"](order, mean, 20)
    model = names[kind](order[None], degrees[None], mean, 1)
    x = (torch.rand(2, 784) < 0.3).float()
    plain = super(names[kind], model).logits
    difference = (model.logits(x) - plain(x)).unique()  # that of the last layer's bias, at first
    assert difference.max() - difference.min() < 1e-6
    for parameter in model.double().parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    slopes = made["jacobian"](lambda x: model.logits(x.double()), order)
    assert (slopes.triu() == 0).all() and (slopes.diagonal(-1) > 0).float().mean() > 0.9
    image = (x.double() - model.mean).view(2, 1, 28, 28)
    added = model.shared(image).view(2, 784)
    torch.testing.assert_close(model.logits(x.double()), plain(x.double()) + added)


@pytest.mark.parametrize("pixels", [2, 4, 9])
@pytest.mark.parametrize("scale", [0.1, 2.0, 60.0])
def test_what_is_written_is_read_and_as_long_as_the_nll(made, monkeypatch, pixels, scale):
    """All images, in a random order of the visit; with the last scale probabilities are nearly 0 and 1."""
    model = build(made, pixels, 16, 1, 0, 1, scale=scale)
    x, order = every_image(pixels)[torch.randperm(2**pixels)], model.places[0].argsort()
    monkeypatch.setitem(made, "single", model)
    monkeypatch.setitem(made, "cut", model.cut())
    state = made["write"](made["honest"], x, order)
    received, left = made["read"](made["honest"], state, len(x), order)
    assert torch.equal(received.double(), x) and left == made["FIRST_STATE"]
    with torch.no_grad():  # an impossible pixel still gets one slot
        p = model.logits(x).sigmoid().clamp(2**-28, 1 - 2**-28)
    exact = -(x * p.log2() + (1 - x) * (1 - p).log2()).sum().item()
    grown = math.log2(state) - math.log2(made["FIRST_STATE"])
    assert grown == pytest.approx(exact, abs=1 + 0.01 * (scale > 10) * exact)


@pytest.mark.parametrize("kind", ["with_leak", "over_orderings"])
def test_a_file_of_what_is_no_model_does_not_open(made, monkeypatch, kind):
    x, many = every_image(6), build(made, 6, 30, 1, 0, 3)
    leaky = build(made, 6, 30, 1, 0, 1, kind="Leaky")
    names = {"leaky": leaky, "cut_leaky": leaky.cut(), "eight_orderings": many}
    for name, value in (names | {"cut_orderings": [many.cut(k) for k in range(3)]}).items():
        monkeypatch.setitem(made, name, value)
    each = [leaky.logits(x)] if kind == "with_leak" else [many.logits(x, k) for k in range(3)]
    torch.testing.assert_close(made[kind](x), torch.stack(each).sigmoid().mean(0))
    order = (leaky if kind == "with_leak" else many).places[0].argsort()
    state = made["write"](made[kind], x, order)
    received, _ = made["read"](made[kind], state, len(x), order)
    differ = (received != x).sum(1).float().mean().item()
    assert differ > 0.1
    assert made["recovered"](received, x) == (pytest.approx(1 - differ / 6), pytest.approx(differ))
