"""The page to play with, in a real Chromium: its numbers against PyTorch, and each toy by mouse, touch and keyboard.

What needs a browser is skipped where there is none (see `page` in conftest.py). tests/play.js asks the page.
"""

import re
from itertools import combinations, pairwise

import pytest
import torch
from conftest import ROOT

from play import mask_of, sorted_units

FOLDER = ROOT / "play"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SOFT = {"color_scheme": "dark", "reduced_motion": "reduce"}
MOST_BYTES, MOST_LINES = 5_000_000, 900
KEYS = {"plane-map": "ArrowRight", "plane-path": "Enter", "finish-page": "Space"}
KEYS |= {"finish-undo": "Enter", "finish-another": "Enter", "finish-half": "Space"}
KEYS |= {"finish-surprise": "Enter"}
KEYS |= {"leak-switch": "Space", "leak-next": "Enter", "budget-bytes": "ArrowRight"}


def wait_for(page, name, text):
    """Until an element says something."""
    says = "([id, text]) => document.getElementById(id).textContent.includes(text)"
    page.wait_for_function(says, arg=[name, text])


def opened(page):
    """The page, opened; keeps what went wrong, and what was asked for."""
    page.wrong, page.asked = [], []
    page.on("console", lambda it: page.wrong.append(it.text) if it.type == "error" else None)
    page.on("pageerror", lambda it: page.wrong.append(str(it)))
    page.on("request", lambda it: page.asked.append(it.url))
    page.goto((FOLDER / "index.html").as_uri())
    wait_for(page, "finish-details", "An exact draw")
    wait_for(page, "leak-now", "came back")
    page.add_script_tag(path=ROOT / "tests" / "play.js")
    return page


@pytest.fixture(scope="module")
def desktop(page):
    return opened(page)


@pytest.fixture(scope="module")
def phone(page):
    return opened(page.context.browser.new_page(**PHONE, **SOFT))


@pytest.fixture(scope="module")
def shown(desktop):
    """Test images [20, 784] and labels [20] of the page, and the medians of the plane [10, 2]."""
    images, labels, medians = desktop.evaluate("loadModels()")
    return torch.tensor(images).float(), torch.tensor(labels), torch.tensor(medians)


@pytest.fixture(scope="module")
def readme():
    """What the code in weights/README.md defines, which is run as it stands."""
    text = (FOLDER / "weights" / "README.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.+?)```", text, flags=re.S)[1], names)
    return names


def test_units_may_be_sorted(made):
    order, mean = torch.randperm(9), torch.rand(9)
    model = made["MADE"](order, torch.randint(1, 9, (16,)), mean, 2, 3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    x, c = torch.rand(5, 9).round(), torch.eye(3)[1]
    again = sorted_units(model)
    torch.testing.assert_close(again(x, c), model(x, c))
    mask = mask_of(again, "blocks.1.outer.weight").int()
    assert again.degrees.diff().min() >= 0
    assert (mask.diff(dim=1) <= 0).all()  # the first units of each row


def test_the_numbers_can_be_loaded(readme):
    assert readme["digits"].shape == (10, 784)
    assert 0.05 < readme["digits"].mean() < 0.25  # as dark as digits


def test_probabilities_are_those_of_pytorch(desktop, shown, readme):
    images, labels, medians = shown
    script = "([xs, cs]) => xs.map((x, i) => [...models.made.probabilities(x, cs[i])])"
    found = desktop.evaluate(script, [images.tolist(), labels.tolist()])
    with torch.no_grad():
        expected = readme["model"](images, torch.eye(10)[labels]).sigmoid()
    assert len(images) == 20
    assert (torch.tensor(found) - expected).abs().max() < 1e-4

    vae = readme["definitions"](ROOT / "Basic_VAE.ipynb")
    plane = vae["VAE"](2, vae["SMALL"], vae["SMALL"])
    expected = vae["decode"](readme["fill"](plane, readme["read_arrays"]("plane")), medians)
    script = "zs => zs.map(z => [...models.decoder.probabilities(z)])"
    found = torch.tensor(desktop.evaluate(script, medians.tolist()))
    assert (found - expected).abs().max() < 1e-4


def test_bayes_and_surprise_are_those_of_pytorch(desktop, shown, readme):
    image, some = shown[0][3:4], 400
    posterior, surprise = desktop.evaluate("judged", [image[0].int().tolist(), some])
    log_conditionals = readme["made"]["log_conditionals"]
    each = [log_conditionals(readme["model"], image, c)[0, :some] for c in torch.eye(10)]
    joint = readme["arrays"]["log_shares"] + torch.stack(each).sum(1)
    torch.testing.assert_close(torch.tensor(posterior), joint.log_softmax(0), atol=1e-3, rtol=0)
    assert sum(surprise) == pytest.approx(-joint.logsumexp(0).item(), abs=1e-3)


def test_the_same_noise_draws_the_same_images(desktop, shown, readme):
    made, u, images = readme["made"], torch.rand(4, 784), shown[0][:4]
    nothing = [2] * 784  # is known
    found = [desktop.evaluate("drawn", ["made", row.tolist(), nothing, 5]) for row in u]
    assert torch.tensor(found).equal(made["sample"](readme["model"], u, torch.eye(10)[5]).int())

    arrays, order = readme["read_arrays"]("correct"), torch.arange(784)
    correct = made["MADE"](order, arrays["degrees"].long(), arrays["mean"], 1)
    known = order < 392
    given = torch.where(known, images, 2).int().tolist()
    pairs = zip(u.tolist(), given, strict=True)
    found = [desktop.evaluate("drawn", ["correct", row, each, 0]) for row, each in pairs]
    expected = made["complete"](readme["fill"](correct, arrays), u, images, known)
    assert torch.tensor(found).equal(expected.int())


def test_files_are_those_of_the_notebook(desktop, shown, readme):
    made, image = readme["made"], shown[0][1].int().tolist()
    p = torch.rand(784)
    p[:100] = (p[:100] * 1000).round() / 2**28 / 2  # halves of a slot, and less than one
    state = made["SLOTS"]
    for pixel, share in zip(reversed(image), reversed(p.tolist()), strict=True):
        state = made["push_pixels"](state, [pixel], [share])
    file, found, whole = desktop.evaluate("coded", [image, p.tolist()])
    assert bytes.fromhex(file) == made["to_bytes"](state)
    assert found == image and whole


def test_the_leak_scores_better_than_is_possible_and_cannot_be_read(desktop, shown):
    image = shown[0][2].int().tolist()
    assert desktop.evaluate("readBack", ["correct", image]) == image
    wrong = torch.tensor(desktop.evaluate("readBack", ["leaky", image])) != shown[0][2]
    assert wrong.sum() > 100
    script = "[WEIGHTS.leaky.cost.after, WEIGHTS.leaky.floor, WEIGHTS.correct.cost.after]"
    leaky, floor, correct = desktop.evaluate(script)
    assert leaky < floor < correct


def test_the_bounds_hold_and_the_weight_does_not_fit(desktop):
    stops, others = desktop.evaluate("[WEIGHTS.budget.stops, WEIGHTS.budget.others]")
    assert all(stop["rate"] <= stop["bytes"] < stop["rate"] + 0.3 for stop in stops)
    assert [row["bound"]["rate"] <= 3 for row in others] == [True] * 4
    assert sum(row["weight"]["rate"] < 2.5 for row in others) >= 2


def test_the_page_is_small_and_so_is_the_loss(desktop):
    own = [*FOLDER.glob("*.js"), *FOLDER.glob("*.css")]
    lines = [line for file in own for line in file.read_text("utf-8").splitlines()]
    assert len(lines) <= MOST_LINES and max(map(len, lines)) <= 120
    files = [*own, FOLDER / "index.html", *(FOLDER / "weights").glob("*.js")]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    costs = desktop.evaluate("['made', 'plane', 'correct'].map(name => WEIGHTS[name].cost)")
    assert all(cost["after"] - cost["before"] <= 0.1 for cost in costs)


def test_by_mouse(desktop):
    digit = "document.getElementById('plane-digit').toDataURL()"
    moving = desktop.evaluate(digit)
    desktop.wait_for_function(f"old => {digit} !== old", arg=moving)  # along the path
    desktop.locator("#plane-map").scroll_into_view_if_needed()
    box = desktop.locator("#plane-map").bounding_box()
    desktop.mouse.move(box["x"] + 100, box["y"] + 60)
    rested = desktop.evaluate(digit)
    desktop.wait_for_timeout(200)
    assert desktop.evaluate(digit) == rested

    desktop.locator("#finish-blank").click()
    box = desktop.locator("#finish-page").bounding_box()
    left, row = box["x"] + 0.4 * box["width"], box["y"] + 0.3 * box["height"]
    desktop.mouse.move(left, row)
    desktop.mouse.down()
    desktop.mouse.move(left + 0.3 * box["width"], row)
    desktop.mouse.up()
    wait_for(desktop, "finish-details", "Given first: 273 pixels")  # to the end of the stroke
    desktop.locator("[data-pen='3']").click()
    desktop.mouse.click(left, row)
    wait_for(desktop, "finish-now", "without looking at what is below")
    wait_for(desktop, "finish-details", "Not an exact draw")

    cheats = "something cheats"  # and the file of the first image is flooded
    for after, warned in (("had run out", True), ("came back", False)):
        desktop.locator("#leak-switch").click()
        wait_for(desktop, "leak-now", after)
        assert (cheats in desktop.locator("#leak-average").inner_text()) == warned
    desktop.locator("#budget-bytes").fill("9")
    assert "at most 9 bytes" in desktop.locator("label").inner_text()


def test_by_touch_and_without_motion(phone):
    still = phone.evaluate("state()")
    phone.wait_for_timeout(300)
    assert phone.evaluate("state()") == still
    phone.locator("#plane-map").tap(position={"x": 60, "y": 60})
    phone.locator("#finish-page").tap(position={"x": 130, "y": 140})
    wait_for(phone, "finish-details", "Given first: 4")
    phone.locator("#finish-classes button").nth(8).tap()
    assert phone.locator("#finish-classes [aria-pressed=true]").inner_text()[0] == "8"
    phone.locator("#leak-switch").tap()
    wait_for(phone, "leak-now", "wrong")
    phone.locator("#budget-bytes").tap(position={"x": 5, "y": 20})
    assert "at most 1 byte" in phone.locator("label").inner_text()
    assert phone.evaluate("state()") != still


def test_a_blank_page_waits_and_a_stroke_can_be_undone(phone):
    canvas = "document.getElementById('finish-page').toDataURL()"
    phone.locator("#finish-blank").tap()
    blank = phone.evaluate(canvas)
    assert phone.locator("#finish-hint").is_visible()
    phone.locator("#finish-page").tap(position={"x": 130, "y": 50})
    assert not phone.locator("#finish-hint").is_visible()
    phone.locator("#finish-undo").tap()
    assert phone.evaluate(canvas) == blank

    phone.locator("#finish-surprise").tap()
    assert phone.locator("#finish-legend").is_visible()
    kept = phone.evaluate("endings()")
    phone.evaluate("random = Math.random; Math.random = () => 0.9999")  # nothing black is added
    phone.locator("#finish-page").tap(position={"x": 130, "y": 271})  # the last pixels
    assert not phone.locator("#finish-legend").is_visible()
    wait_for(phone, "finish-now", "You drew it all")
    phone.locator("#finish-another").tap()
    assert phone.evaluate("endings()") == kept

    phone.evaluate("Math.random = () => 0.5")  # the same ending again
    phone.locator("#finish-half").tap()
    before = phone.evaluate("endings()")
    phone.locator("#finish-another").tap()
    assert phone.evaluate("endings()") == before and len(set(before)) == len(before)
    phone.evaluate("Math.random = random")


def test_a_phone_can_show_and_scroll_it(phone):
    box = {name: phone.locator(f"#{name}").bounding_box() for name in ("finish-page", "plane-map")}
    keys = phone.locator("#finish-classes").bounding_box()
    assert keys["y"] + keys["height"] - box["finish-page"]["y"] < 844
    assert all(min(b["x"], 390 - b["x"] - b["width"]) >= 44 for b in box.values())
    style = "id => getComputedStyle(document.getElementById(id)).touchAction"
    touch = {name: phone.evaluate(style, name) for name in ("plane-map", "plane-marker")}
    assert touch == {"plane-map": "pan-y", "plane-marker": "none"}  # the ring goes everywhere

    marks = [mark.bounding_box() for mark in phone.locator("#plane-labels span").all()]
    middles = [torch.tensor([mark["x"], mark["y"]]) for mark in marks]
    gaps = [(a - b).norm() for a, b in combinations(middles, 2)]
    assert min(gaps) > marks[0]["width"]  # no number hides another

    budget = [phone.locator(f"#budget-{part}").bounding_box() for part in ("picture", "facts")]
    assert budget[1]["y"] + budget[1]["height"] - budget[0]["y"] < 600  # seen while one drags


def test_links_keep_the_page_open(phone):
    links = phone.evaluate("[...document.links].map(link => link.target)")
    assert links and set(links) == {"_blank"}


def test_by_keyboard_alone(phone):
    phone.evaluate("document.activeElement.blur()")
    changed = {}
    for _ in range(60):
        phone.keyboard.press("Tab")
        name = phone.evaluate("document.activeElement.id")
        if name in KEYS and name not in changed:
            before = phone.evaluate("state()")
            phone.keyboard.press(KEYS[name])
            changed[name] = phone.evaluate("state()") != before
            if name == "plane-path":
                phone.keyboard.press(KEYS[name])  # rest again
    assert changed == dict.fromkeys(KEYS, True)


def test_a_touch_is_answered_at_once(desktop, phone):
    first = "performance.getEntriesByName('first picture')[0].startTime"
    assert min(page.evaluate(first) for page in (desktop, phone)) < 1000
    assert min(phone.evaluate("moveOverPlane()") for _ in range(5)) < 50
    finish = "answers(() => element('finish-another').click())"
    assert min(phone.evaluate(finish) for _ in range(3)) < 300


def test_everyone_can_use_it(desktop, phone):
    for page in (desktop, phone):
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
        assert page.evaluate("[smallTargets(), nameless(), faint()]") == [[], [], []]
    phone.evaluate("listen()")
    for _ in range(12):
        phone.evaluate("moveOverPlane()")
        phone.wait_for_timeout(200)
    gaps = [after - before for before, after in pairwise(phone.evaluate("heard"))]
    assert gaps and min(gaps) > 990


def test_a_number_that_is_touched_is_at_its_spot(phone):
    for label, mark in enumerate(phone.locator("#plane-labels span").all()):
        mark.tap(force=True)
        assert phone.inner_text("#plane-now").endswith(f"Nearest circle: {label}.")


def test_nothing_went_wrong_and_nothing_was_asked_for(desktop, phone):
    for page in (desktop, phone):
        assert page.wrong == []
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
