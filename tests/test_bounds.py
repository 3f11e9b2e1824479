"""Bounds: multipliers, what they measure, margins, prices, verdicts, MMD², and what samples and codes are worth."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close


@pytest.fixture
def book(lagrangian_vae):
    return lagrangian_vae


@pytest.fixture
def small(book):
    """A small VAE with a learned prior and codes of four numbers, and sixty images for all uses."""
    x = (torch.rand(60, 784) < 0.2).float()
    book |= {"validation_x": x, "test_x": x, "LATENT_DIM": 4}
    return book["VAE"](4, (32, 1), (32, 1), book["Mixture"](4, 3)), x


def a_run(book, distortion, rate, history=(), beta=None):
    """A run whose images have this distortion, and rates of one nat more or less, by turns."""
    terms = torch.tensor([[distortion] * 4, [rate - 1, rate + 1] * 2])
    return book["Run"](None, list(history), terms, beta)


# The toy, and the multiplier.


def test_the_dual_is_the_least_of_the_lagrangian_and_its_slope_the_violation_there(book):
    theta, dual = torch.linspace(-10, 10, 20_001), book["toy_dual"]
    for price, bound in itertools.product((0.0, 1.0, 4.0, 7.0), (1.0, 2.0)):
        values = book["toy_lagrangian"](theta, price, bound)
        assert values.min().item() == pytest.approx(dual(price, bound), abs=1e-3)
        slope = (dual(price + 0.1, bound) - dual(price - 0.1, bound)) / 0.2
        assert slope == pytest.approx(theta[values.argmin()].item() - bound, abs=2e-3)
    assert dual(4.0) == pytest.approx(4) and dual(4.0) > max(dual(3.9), dual(4.1))


def test_descent_and_ascent_end_in_the_saddle(book):
    furthest = []
    for kind in (book["Multiplier"], book["Controller"]):
        path = book["toy"](kind(1.0))
        assert path[0] == (0, 1) and path[-1] == pytest.approx((1, 4), abs=1e-4)
        furthest.append([max(values) for values in zip(*path, strict=True)])
        theta, price = book["toy"](kind(5.0))[-1]  # slack
        assert theta == pytest.approx(3) and price < 1e-9
    (theta, price), (less, lower) = furthest  # the change lessens the overshoot
    assert theta > less > 1 and price > lower + 1 > 5


@pytest.mark.parametrize(("kind", "change"), [("Multiplier", 0.0), ("Controller", 0.5)])
def test_a_multiplier_takes_the_step_of_the_formula_and_stays_below_its_cap(book, kind, change):
    multiplier = book[kind](10.0, 2.0, speed=0.1)
    seen = (11.0, 0.2, 0.2), (1000.0, 0.56, 0.76), (-1000.0, 0.048, 0.808)  # cut off at ± 2
    for constraint, average, total in seen:
        multiplier.ascend(constraint)
        assert multiplier.average == pytest.approx(average)
        steps = 0.1 * total + change * average  # all changes of the average add up to itself
        assert multiplier.value == pytest.approx(2 * math.exp(steps))
    low, high = book[kind](1.0), book[kind](1.0, 99.0)
    assert (low.value, low.speed, low.average) == (1.0, 0.04, 0.0)
    high.ascend(100.0)
    for _ in range(1000):
        low.ascend(-100.0)
    assert 0 < low.value < 1e-3 and high.value == book["CAP"] == 100


def test_a_constraint_is_measured_on_some_images_or_by_the_change_from_a_start(book):
    """Of the start itself the measure is its exact mean, whichever images are drawn."""
    x = torch.arange(60.0)[:, None]  # images, known by their pixel; "models" are shifts

    def terms(shift, some):
        distortion = 50 + some[:, 0] * 40 / 59
        return torch.stack([distortion + shift, torch.full_like(distortion, 33.0 + shift)])

    book["held_out_terms"] = terms
    for name, mean, shifts in (("distortion", 70, 1), ("rate", 33, 1), ("-ELBO", 103, 2)):
        book["ASCENT_IMAGES"] = 7
        measure = book["ChangeFrom"](name, x, 2.0)
        for shift in (0.0, 2.0, 3.0):
            assert measure(shift) == pytest.approx(mean + shifts * shift, abs=1e-4)
        alone = [book["OnSome"](name, x)(3.0) for _ in range(20)]
        assert (len(set(alone)) > 1) == (name != "rate")
        book["ASCENT_IMAGES"] = 60
        assert book["OnSome"](name, x)(3.0) == pytest.approx(mean + shifts * 3, abs=1e-4)


# Margins, prices and verdicts.


def test_one_aims_below_what_was_asked_by_what_a_pilot_had_too_much_and_two_errors(book):
    asked, rates = 15.0, torch.tensor([14.0, 16.0, 14.0, 16.0])
    errors = 2 * math.hypot(math.sqrt(1 / 3), book["SEED_ERROR"])
    assert book["margin"](rates + 2, asked) == pytest.approx(2 + errors)
    assert book["margin"](rates - 2, asked) == pytest.approx(errors)


def test_tables_say_whether_a_bound_was_kept_and_what_a_model_has(book):
    run = a_run(book, 60.0, 15.0, [{"price": 9.0}, {"price": 3.0}])
    error = pytest.approx(math.sqrt(1 / 3))
    values = {"distortion": [60] * 4, "rate": [14, 16] * 2, "-ELBO": [74, 76] * 2}
    assert {name: run.values(name).tolist() for name in values} == values
    case = book["Asked"](0.2, run, a_run(book, 0.0, 7.0))
    for asked, kept in ((16.0, "yes"), (15.0, "yes"), (14.9, "NO")):
        row = list(book["kept_row"]("a", case, asked).values())
        errors = pytest.approx((asked - 15) * math.sqrt(3))
        assert row == ["a", 15.0, error, kept, errors, 0.2, 3.0, 7.0, error]
    row = book["terms_row"]("b", run)
    assert list(row.values()) == ["b", 60.0, 15.0, 75.0, error]


def test_weights_and_prices_are_inverse_and_infinite_at_one(book):
    """f + λ (distortion + rate), divided by the weight of the distortion."""
    assert book["beta_of"](0.5, "distortion") == pytest.approx(0.5 / 1.5)
    assert book["beta_of"](0.5, "rate") == pytest.approx(1.5 / 0.5)
    for f, price in itertools.product(("distortion", "rate"), (0.1, 1.0, 7.0)):
        assert book["price_of"](book["beta_of"](price, f)) == pytest.approx(price)
    assert book["price_of"](1) == book["price_of"](1.0) == math.inf
    assert book["beta_of"](1e9, "distortion") < 1 < book["beta_of"](1e9, "rate") < 1.001


def test_a_price_is_of_the_weight_or_a_mean_with_the_weights_of_the_learning_rate(book):
    """The learning rate falls to zero in a straight line: in six epochs like 11, 9, ... and 1."""
    logs, rates = (1, 2, -3, 1, 0, 4), (11, 9, 7, 5, 3, 1)
    run = book["Run"](None, [{"price": math.exp(log), "loss": 0.0} for log in logs])
    mean = sum(rate * log for rate, log in zip(rates, logs, strict=True)) / 36
    assert book["price"](run) == pytest.approx(math.exp(mean))
    book["runs"] = {"a": run}  # all, the middle two, the last two, the last
    means = [pytest.approx(math.exp(log)) for log in (mean, -1, 2, 4)]
    assert list(book["readings"]("a").values()) == ["a", *means]
    book["runs"] = {"one epoch": book["Run"](None, run.history[:1])}
    assert list(book["readings"]("one epoch").values())[1:] == [pytest.approx(math.e)] * 4
    run.beta = 0.75
    assert book["price"](run) == pytest.approx(3)
    run.beta = 1.0
    assert book["price"](run) == math.inf


def test_a_slope_has_the_error_of_images_drawn_again(book):
    """Distortions of an image differ by little between two models, whichever the image is."""
    hard, n = 25 * torch.randn(400), torch.randn(4, 400)
    first = book["Run"](None, [], torch.stack([60 + hard + n[0], 20 + n[1]]))
    second = book["Run"](None, [], torch.stack([55 + hard + n[2], 29 + n[3]]))
    slope, error = book["slope_and_error"](first, second, "distortion")
    (d1, r1), (d2, r2) = first.terms, second.terms
    gained, paid = d1 - d2, d2 + r2 - d1 - r1
    assert slope == pytest.approx((gained.mean() / paid.mean()).item())
    again = torch.randint(400, (4000, 400))
    slopes = gained[again].mean(1) / paid[again].mean(1)
    assert error == pytest.approx(slopes.std().item(), rel=0.1)
    assert book["slope_and_error"](second, first, "distortion") == pytest.approx((slope, error))
    slope, _ = book["slope_and_error"](first, second, "rate")
    assert slope == pytest.approx(((r1 - r2).mean() / paid.mean()).item())


def test_a_slope_lies_between_two_prices_or_not(book):
    """From a −ELBO of 90 to one of 92, and 3 nats less of distortion: a slope of 1.5."""
    first, second = (a_run(book, *terms) for terms in ((70.0, 20.0), (67.0, 25.0)))
    book["runs"] = {"a": first, "b": second}
    inner, outer = [(2, 1, "yes"), (1.4, 1, "NO"), (2, 1.6, "NO")], [(0, 1, "yes"), (0, 1.6, "NO")]
    for high, low, said in inner + outer:
        first.beta, first.history = (None, [{"price": high}]) if high else (1.0, [])
        second.history = [{"price": low}]
        row = book["bracket_row"](("a", "b"), "distortion")
        numbers = map(pytest.approx, (low, 1.5, 0, high or math.inf))
        assert list(row.values()) == ["distortion", "a", "b", *numbers, said]


VERDICTS = [  # by how much a bound is exceeded, prices, −ELBO above the control and its error
    (-0.1, [0.9, 0.8, 0.75], (0.0, 0.0), "kept, active"),
    (0.0, [9.0] * 3 + [0.8, 0.8, 0.5], (0.0, 0.0), "kept, not settled"),  # the last third
    (-5.9, [1e-2, 1e-3, 1e-4, 9e-6, 8e-6, 1e-6], (0.0, 0.0), "kept, with slack"),
    (1.2, [1.0, 2.0, 3.0], (-0.3, 0.1), "not kept: train longer"),
    (1.0, [20.0, 90.0, 94.0], (-0.3, 0.1), "not kept: train longer"),
    (2.2, [20.0, 100.0, 100.0], (0.5, 0.1), "not kept: train longer"),  # the control is lower
    (1.0, [20.0, 100.0, 99.0], (-0.3, 0.1), "not reached by this training"),
    (1.0, [20.0, 100.0, 100.0], (0.5, 0.26), "not reached by this training"),
]


@pytest.mark.parametrize(("excess", "prices", "above", "said"), VERDICTS)
def test_a_verdict_needs_the_bound_the_price_and_the_control(book, excess, prices, above, said):
    assert book["verdict"](excess, prices, above) == said


def test_a_row_with_a_verdict_compares_with_the_control_image_by_image(book):
    run = a_run(book, 60.0, 30.0, [{"price": 100.0}] * 3)
    control = book["Run"](None, [], torch.tensor([[59.0, 60.0, 60.0, 60.0], [29.0, 31.0] * 2]))
    for bound, said in ((90.5, "kept, active"), (89.0, "not reached by this training")):
        row = book["verdict_row"]("a", run, bound, control)
        assert list(row.values()) == ["a", bound, 90.0, 0.25, pytest.approx(0.25), 100.0, said]


# How far codes are from N(0, I).


def test_mmd_is_the_mean_over_pairs_of_different_samples(book):
    """The codes in two parts, and the prior's side by many draws, in place of the closed form."""
    z, u = torch.randn(600, 3) + 0.5, torch.randn(4000, 3)
    k = book["kernel"](z, u, 0.7)
    assert_close(k[3, 8], torch.exp(-(z[3] - u[8]).square().sum() / 1.4))
    within = [
        book["kernel"](a, a, 0.7).fill_diagonal_(0).sum() / len(a) / (len(a) - 1) for a in (z, u)
    ]
    expected = within[0] - 2 * k.mean() + within[1]
    assert book["mmd"](z, 0.7).item() == pytest.approx(expected.item(), abs=0.005)


def test_mmd_is_unbiased_and_sees_a_shift_and_codes_that_are_all_zero(book):
    mmd, width = book["mmd"], book["squared_width"](8)
    assert width == 2
    values = torch.tensor([mmd(torch.randn(50, 8), width) for _ in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert mmd(torch.randn(50, 8) + 0.5, width) > 5 * values.std()
    assert mmd(torch.zeros(50, 8), width) > 20 * values.std()


def test_codes_that_are_all_zero_keep_the_published_bound_by_the_published_estimate(book):
    """In it, pairs of a code with itself count."""
    z, u, published = torch.randn(5, 3) + 0.5, torch.randn(5, 3), book["mmd_with_itself"]

    def mean(a, b):
        return sum(math.exp(-(s - t).square().sum() / 1.4) for s in a for t in b) / 25

    expected = mean(z, z) - 2 * mean(z, u) + mean(u, u)
    assert published(z, u, 0.7).item() == pytest.approx(expected, rel=1e-4)
    zeros, narrow = torch.zeros(250, 64), book["squared_width"](64)
    wide, less = (published(zeros, torch.randn(250, 64), v) for v in (64**2 / 2, narrow))
    assert 3e-4 < wide < book["PUBLISHED_BOUND"] == 5e-4
    assert less > 0.5 and book["mmd"](zeros, narrow) > 0.5


def test_mmd_of_a_models_codes_is_of_some_images_in_units_of_its_bound(book, small):
    model, x = small[0], (torch.rand(400, 784) < 0.2).float()
    book |= {"validation_x": x, "MMD_IMAGES": 100, "MMD_BOUND": 0.01}
    last, some = model.encoder[-1], book["mismatch_of_some"]
    last.weight.data[:], last.bias.data[:] = 0.0, 0.0  # q(z|x) is N(0, I) for all images
    values = torch.tensor([[some(model), book["mismatch"](model, x)] for _ in range(30)])
    assert (values.mean(0).abs() < 4 * values.std(0) / math.sqrt(30)).all()
    assert values[:, 0].std() > 2 * values[:, 1].std() > 0.01
    last.bias.data[:4], last.bias.data[4:] = 1.0, -9.0  # now all codes are 1
    expected = book["mmd"](torch.ones(100, 4), 1.0).item() / 0.01
    assert some(model) == pytest.approx(expected, rel=0.01)


def test_a_fitted_prior_goes_to_the_codes(book, small, monkeypatch, tmp_path):
    """Here all codes are from N(1, 1 / 9), whatever the image, which is known without a fit."""
    monkeypatch.chdir(tmp_path)
    x, judge = small[1], book["lenet"](7)
    model = book["VAE"](4, (9, 1), (9, 1))
    last = model.encoder[-1]
    last.weight.data[:], last.bias.data[:4], last.bias.data[4:] = 0.0, 1.0, -math.log(3)
    model.decoder[0].weight.data *= 99  # so that an image depends on its code
    run, data = book["Run"](model, []), [torch.zeros(2000, 784).byte()] * 2
    book |= {"train_data": data, "COMPONENTS": 1, "SHORT_STEPS": 1000, "small": {"a": run}}
    book |= {"judge": judge, "reference": book["features"](judge, x), "test_x": x.repeat(9, 1)}
    prior = book["fitted_prior"]("a")
    assert_close(prior.means[0], torch.ones(4), rtol=0, atol=0.05)
    assert_close(prior.precisions()[0], 9 * torch.eye(4), rtol=0.1, atol=0.9)

    row = book["spread_row"]("a", run, prior)
    terms = book["averaged_terms"](model, book["test_x"])
    assert run.terms is None  # what other cells have measured of it stays
    assert row["-ELBO"] == pytest.approx(terms.sum(0).mean().item())
    assert row["KL, at least"] == pytest.approx(4 * (math.log(3) + 1 / 18), rel=0.05)
    codes = 1 + torch.randn(540, 4) / 3
    expected = book["mmd"](codes, 1.0).item() / book["MMD_BOUND"]
    assert row["MMD² / ε₂"] == pytest.approx(expected, rel=0.1)
    for column, source in (("samples", model.prior()), ("fitted", prior)):
        distances = book["sample_distances"](model, source, judge, book["reference"])
        assert row[column] == pytest.approx(distances.mean().item(), rel=0.1)


# What information buys: samples, neighbours, NLL.


def test_frechet_distance_of_covariances_that_do_not_commute(book):
    a, b = (torch.randn(500, 4).double() @ torch.randn(4, 4).double() + i for i in (0, 1))
    s_a, s_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(s_a)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s_b @ root).sqrt().sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + s_a.trace() + s_b.trace() - 2 * cross
    assert book["frechet"](a, b) == pytest.approx(expected.item())
    assert book["frechet"](a, a) == pytest.approx(0, abs=1e-6)


def test_features_are_what_the_judge_decides_by(book, small):
    judge, many = book["lenet"](7), small[1].repeat(10, 1)[:550]
    cloud = book["features"](judge, many)
    assert cloud.shape == (550, book["FEATURES"]) and not cloud.requires_grad
    assert_close(judge[-1](cloud), judge(many))


def test_images_are_drawn_from_the_likelihood_of_codes(book, small):
    model, x = small
    z = model.prior.sample((1,))
    pictures = book["drawn"](model, z.repeat(2000, 1))
    assert set(pictures.unique().tolist()) == {0, 1}
    assert_close(pictures.mean(0), book["decode"](model, z[0]), rtol=0, atol=0.06)
    assert_close(book["returned"](model, x), model.p(model.q(x).mean).mean.detach())


def test_samples_are_compared_with_real_images_anew_each_time(book, small):
    (model, x), judge, labels = small, book["lenet"](7), torch.arange(60) % 2
    reference = book["features"](judge, x)
    book |= {"judge": judge, "reference": reference, "some_test": x[:20], "CODES": (4, 8)}
    book |= {"validation_labels": labels, "test_labels": torch.cat([labels[:59], labels[:1]])}
    for prior in (model.prior, Normal(torch.full((4,), 99.0), 1.0)):  # near, and far out
        distances = book["sample_distances"](model, prior, judge, reference)
        assert distances.shape == (book["REPEATS"],) and len(set(distances.tolist())) > 1
        sample = book["features"](judge, book["drawn"](model, prior.sample((60,))))
        again = book["frechet"](sample, reference)
        assert distances.mean().item() == pytest.approx(again, rel=0.3)
    nll, others, hits = book["measured"](book["Run"](model, []))
    assert_close(nll, book["averaged_terms"](model, x[:20]).sum(0), rtol=0.1, atol=5)
    assert len(others) == len(distances)
    assert hits.tolist() == [100.0] * 59 + [0.0]  # the nearest is the image itself


def test_neighbours_are_found_by_codes(book, small):
    book |= {"validation_labels": torch.tensor([0, 1, 2]), "test_labels": torch.ones(1200)}
    known, new = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.2], [4.0]])
    hits = book["neighbours_hit"](known, new.repeat(600, 1))
    assert hits.tolist() == [1.0, 0.0] * 600 and hits.dtype == torch.float32
    book["test_x"] = small[1][:20]
    validation, test = book["means_of"](small[0])
    assert_close(test, validation[:20], rtol=1e-4, atol=1e-5)
    assert_close(validation, small[0].q(small[1]).mean.detach())


def test_a_row_along_the_front_has_paired_differences(book):
    plain = torch.tensor([80.0, 120.0]), None, torch.tensor([100.0, 100.0, 0.0, 0.0])
    distances, hits = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([100.0, 100.0, 100.0, 0.0])
    measures = torch.tensor([80.5, 121.5]), distances, hits
    row = book["along_row"]("a", a_run(book, 60.0, 20.0), measures, plain)
    expected = 1, 0.5, 4, math.sqrt(1 / 3), 25, 25
    assert list(row.values()) == ["a", 20, *map(pytest.approx, expected)]


def test_a_path_goes_there_and_back(book):
    expected = [(1 - math.cos(math.pi * i / 30)) / 2 for i in range(60)]
    assert book["there_and_back"](60).tolist() == pytest.approx(expected, abs=1e-6)


def test_results_are_numbers_with_their_errors_to_four_decimals(book):
    assert list(book["result"]("a", "nats", 1.23456).values()) == ["a", 1.2346, "", "nats"]
    row = book["result"]("a", "nats", 2.0, 0.000449)
    assert row == {"result": "a", "value": 2.0, "±": 0.0004, "unit": "nats"}
