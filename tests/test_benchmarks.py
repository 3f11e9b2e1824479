"""The experiments: rows that are kept, tables that are made from them, rules that move a price."""

import json
import math

import answers
import constraints
import harness
import masks
import pytest
import questions
import race
import tables
import torch


def test_the_tables_of_the_pages_are_those_of_the_rows():
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.with_tables(text) == text, "make tables"


def test_what_was_transcribed_stands_in_a_page_and_hides_behind_no_other_table():
    lines = (tables.ROWS / "transcribed.jsonl").read_text(encoding="utf-8").splitlines()
    names = {json.loads(line)["table"] for line in lines}
    pages = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert not names & set(tables.MADE)
    assert all(pages.count(f"<!-- {name} -->") == 1 for name in names)


@pytest.mark.parametrize(
    "question", [answers, constraints, masks, questions, race], ids=lambda m: m.__name__
)
def test_every_row_belongs_to_a_job_and_every_job_has_a_name_of_its_own(question):
    names = [job.name for job in question.jobs()]
    assert len(set(names)) == len(names)
    rows = harness.read(question.__name__)
    assert rows and set(rows) <= set(names)
    measured = {"seed", "commit", "machine", "seconds"}
    assert all(measured <= set(row) or row["transcribed"] for row in rows.values())


def made(seed, value):
    return {"value": value + seed}


def test_jobs_that_have_a_row_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "ROWS", tmp_path)
    jobs = [harness.Job(f"job {i}", made, 1, {"value": i}) for i in range(2)]
    (tmp_path / "question.jsonl").write_text(json.dumps({"job": "job 0", "value": 9}) + "\n")
    harness.run("question", jobs, threads=1)
    rows = harness.read("question")
    assert (rows["job 0"]["value"], rows["job 1"]["value"], rows["job 1"]["seed"]) == (9, 2, 1)
    assert rows["job 1"]["seconds"] >= 0 and "torch" in rows["job 1"]["machine"]
    harness.run("question", jobs, threads=1, again=True)
    assert harness.read("question")["job 0"]["value"] == 1


@pytest.mark.parametrize("rule", constraints.RULES.values())
def test_a_rule_raises_the_price_above_the_bound_and_lowers_it_below(rule):
    high, low = rule(10.0, 0.01), rule(10.0, 0.01)
    for _ in range(20):
        high.ascend(11.0)
        low.ascend(9.0)
    assert high.value > 1.05 and 0 <= low.value < 0.95
    for _ in range(20_000):
        high.ascend(1000.0)
    assert high.value == pytest.approx(constraints.CAP)
    for _ in range(200):
        high.ascend(0.0)
    assert high.value < 0.9999 * constraints.CAP  # it answers soon: nothing has wound up


FEW = {"EPOCHS": 1, "SHORT_EPOCHS": 1, "CLASS_EPOCHS": 1, "FRONT_EPOCHS": 3, "HIDDEN": 16}
FEW |= {"ENCODER": (8, 1), "DECODER": (8, 1), "SMALL": (8, 1), "LATENT_DIM": 4, "COMPONENTS": 2}
FEW |= {"SHORT_STEPS": 40, "BATCH_SIZE": 50, "MMD_IMAGES": 20, "ASCENT_IMAGES": 20}
FEW |= {"CODES": (2, 4, 8), "SCORED": (40, 20, 10), "JUDGE_EPOCHS": 1, "BFLOAT16": False}


@pytest.fixture
def few(monkeypatch):
    """A few images, all of a class alike, small networks, and no kept weights."""
    grey = (255 * torch.rand(10, 784, generator=torch.Generator().manual_seed(0)) ** 4).byte()

    def images():
        labels = [torch.arange(count) % 10 for count in (200, 40, 40)]
        return [(grey[part], part) for part in labels]

    def book(stem, **constants):
        return harness.book(stem, **(FEW | constants))

    monkeypatch.setattr(harness, "images", images)
    for module in (answers, constraints, masks, questions, race):
        monkeypatch.setattr(module, "book", book)
    for module in (answers, questions):
        monkeypatch.setattr(module, "trained", lambda model, stem: model)
    monkeypatch.setattr(answers, "keep", lambda name, images: None)
    for constant, value in {"EPOCHS": 1, "CODED": 3, "TRUTH": 20}.items():
        monkeypatch.setattr(answers, constant, value)
    for constant in ("EPOCHS", "FEW_EPOCHS", "TABLE_EPOCHS", "SECONDS"):
        monkeypatch.setattr(questions, constant, 1)


def first_of_each(jobs):
    """The first job of each function, by the function's name."""
    return {job.make.__name__: job for job in reversed(jobs)}


ANSWERED = [
    (module, job)
    for module in (answers, questions)
    for job in first_of_each(module.jobs()).values()
]


@pytest.mark.parametrize(("module", "job"), ANSWERED, ids=lambda value: getattr(value, "name", ""))
def test_an_exercise_gives_the_columns_of_its_table(few, module, job):
    kept = set(harness.read(module.__name__)[job.name]) - set(tables.BOOKKEEPING)
    row = job.make(seed=0, **job.given)
    assert set(row) - {"seed"} == kept
    assert all(isinstance(value, str) for value in row.values())


RACERS = [(notebook, recipe) for notebook, recipes in race.RACES.items() for recipe in recipes]


@pytest.mark.parametrize(("notebook", "recipe"), RACERS)
def test_a_racer_trains_and_its_watch_shows_falling_nats(few, monkeypatch, notebook, recipe):
    monkeypatch.setitem(FEW, "EPOCHS", 8)
    ours = {f"race, {notebook}, ours": {"points": [(1.0, {})]}}  # seconds that others get
    monkeypatch.setattr(race, "read", lambda question: ours)
    monkeypatch.setattr(race, "FIRST_LOOK", 0.0)
    row = race.run(0, notebook, recipe)
    seconds, nats = zip(*row["points"], strict=True)
    assert list(seconds) == sorted(seconds) and row["epochs"] > 0
    key = next(iter(nats[0]))
    assert nats[-1][key] < nats[0][key]


@pytest.mark.parametrize("what", race.TO_NATS)
def test_seconds_to_so_many_nats_come_with_the_nats(few, what):
    row = race.to_nats(0, what, 1.0)
    assert row["training"] > 0 and 0 < row["NLL"] < 784 * math.log(2)


def test_flips_that_are_averaged_have_the_loss_of_grey_levels_and_less_noise(few):
    names = masks.setting()
    model = masks.untrained(names, torch.arange(784))  # its logits do not depend on the image yet
    images, labels = (part[:50] for part in names["train_data"])
    grey = names["expected_nll"](model, images, labels).mean().item()
    spread = {}
    for count in (1, 16):
        loss = masks.average_of_flips(names, count)
        draws = torch.stack([loss(model, images, labels).mean() for _ in range(40)])
        assert draws.mean().item() == pytest.approx(grey, rel=0.005)
        spread[count] = draws.std().item()
    assert 2 < spread[1] / spread[16] < 8  # about √16


def test_the_unshared_convolution_sees_earlier_pixels_only(few):
    names = masks.setting()
    model = masks.untrained(names, torch.arange(784), kind=masks.unshared(names))
    torch.nn.init.normal_(model.weights[-1])  # not as it starts, where nothing is added
    slopes = names["jacobian"](model, torch.arange(784))
    assert (slopes.triu() == 0).all() and (slopes.tril(-1) != 0).any()


def test_the_slope_between_two_models_is_the_distortion_lost_for_a_nat_of_rate(few):
    names = harness.book("Lagrangian_VAE")
    noise = torch.randn(200)
    first = torch.stack([10 + noise, 5 + noise])
    second = torch.stack([16 + noise, 2 + noise])
    assert constraints.slope(names, first, second) == pytest.approx((2.0, 0.0), abs=1e-5)


def test_the_masses_of_256_levels_sum_to_one_and_peak_at_their_centre():
    x = torch.arange(256.0)[:, None] / 255
    loc, log_scale = torch.tensor([0.0, 0.2, 0.502, 1.0]), torch.tensor([-1.0, -6.0, -7.0, 2.0])
    p = questions.Levels(loc.expand(256, 4), log_scale.expand(256, 4)).log_prob(x.expand(256, 4))
    torch.testing.assert_close(p.exp().sum(0), torch.ones(4))
    assert p.argmax(0).tolist() == [0, 51, 128, 255]


def test_columns_of_two_kinds_add_their_logarithms_and_the_floor_holds(few):
    names = harness.book("Basic_VAE")
    model = questions.table_vae(names, 2, 8, measured=3, yes_no=1, floor=0.5)
    torch.nn.init.constant_(model.log_sigma, -9.0)
    z, x = torch.randn(5, 2), torch.cat([torch.randn(5, 3), torch.ones(5, 1)], 1)
    mean, logit = model.decoder(z).split([3, 1], 1)
    expected = torch.distributions.Normal(mean, 0.5).log_prob(x[:, :3]).sum(1)
    expected += torch.nn.functional.logsigmoid(logit[:, 0])
    torch.testing.assert_close(model.p(z).log_prob(x), expected)


def test_coloured_digits_have_white_paper_and_ink_of_one_dark_colour():
    images = torch.tensor([[0, 255, 128]] * 50, dtype=torch.uint8)
    paper, ink, half = questions.coloured(images, 0).view(50, 3, 3).float().unbind(2)
    assert (paper == 255).all() and (ink < questions.LIGHTEST).all()
    assert ((half - (paper + ink) / 2).abs() <= 1).all()
    assert len(ink.unique(dim=0)) > 40
