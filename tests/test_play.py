"""The page to play with, in a real Chromium: its numbers against PyTorch, and each toy by mouse, touch and keyboard.

What needs a browser is skipped where there is none (see `page` in conftest.py).
"""

import re

import pytest
import torch
from conftest import ROOT
from play import mask_of, sorted_units

pytestmark = pytest.mark.xdist_group("play")
PAGE = ROOT / "play" / "index.html"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SOFT = {"color_scheme": "dark", "reduced_motion": "reduce"}
OWN = [*(ROOT / "play").glob("*.js"), *(ROOT / "play").glob("*.css")]  # not the weights
MOST_BYTES, MOST_LINES = 5_000_000, 900
IMAGES = 20
LINES = ("#plane-now", "#finish-now", "#leak-now", "#budget-now")

LOAD = """async () => {
    window.made = new Made(await unpack(WEIGHTS.made));
    window.correct = new Made(await unpack(WEIGHTS.correct));
    window.leaky = new Made(await unpack(WEIGHTS.leaky), true);
    window.decoder = new Decoder(await unpack(WEIGHTS.plane));
    return [unpackImages().map(x => [...x]), WEIGHTS.images.labels, WEIGHTS.plane.medians];
}"""
CODED = """([x, p]) => {
    let state = write(x, p);
    const file = toHex(state), found = [];
    for (const each of p) { let pixel; [state, pixel] = pop(state, each); found.push(pixel); }
    return [file, found, state === SLOTS];
}"""
READ = """([name, image]) => {
    const network = window[name];
    return [...[...read(write(image, network.probabilities(image)), network)].at(-1)];
}"""
# How long a touch takes to be answered: its handlers compute, and paint, before they return.
MOVE = """() => {
    const map = document.getElementById("plane-map"), box = map.getBoundingClientRect();
    const times = [0.2, 0.4, 0.6, 0.8].map(share => {
        const at = { clientX: box.left + share * box.width, clientY: box.top + box.height / 3 };
        const start = performance.now();
        map.dispatchEvent(new PointerEvent("pointermove", at));
        return performance.now() - start;
    });
    return times.sort((a, b) => a - b)[1];
}"""
FINISH = """() => {
    const start = performance.now();
    document.getElementById("finish-another").click();
    return performance.now() - start;
}"""
SMALL_TARGETS = """() => [...document.querySelectorAll("a, button, input, canvas[tabindex]")]
    .filter(e => { const box = e.getBoundingClientRect(); return box.width < 44 || box.height < 44 })
    .map(e => e.outerHTML.slice(0, 80))"""
NAMELESS = """() => [...document.querySelectorAll("canvas, button, input, img")]
    .filter(e => !e.closest("[aria-hidden]") && !(e.ariaLabel || e.alt || e.innerText || e.labels?.length))
    .map(e => e.outerHTML.slice(0, 80))"""
FAINT = """() => {
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const colour = text => text.match(/[\\d.]+/g).map(Number);
    const behind = e => {
        const back = e ? colour(getComputedStyle(e).backgroundColor) : [255, 255, 255];
        return back[3] === 0 ? behind(e.parentElement) : back;
    };
    return [...document.querySelectorAll("body *")]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.offsetParent)
        .map(e => {
            const [a, b] = [colour(getComputedStyle(e).color), behind(e)].map(light).sort();
            return [(b + 0.05) / (a + 0.05), e.outerHTML.slice(0, 80)];
        }).filter(([contrast]) => contrast < 4.5);
}"""
SPOKEN = """() => {
    window.spoken = [];
    new MutationObserver(() => window.spoken.push(performance.now()))
        .observe(document.getElementById("announcement"), { childList: true });
}"""


def pixels(page, canvas):
    """What a canvas shows."""
    return page.evaluate("id => document.getElementById(id).toDataURL()", canvas)


def opened(page):
    """The page, opened; keeps what went wrong, and what was asked for."""
    page.wrong, page.asked = [], []
    page.on("console", lambda it: page.wrong.append(it.text) if it.type == "error" else None)
    page.on("pageerror", lambda it: page.wrong.append(str(it)))
    page.on("request", lambda it: page.asked.append(it.url))
    page.goto(PAGE.as_uri())
    page.wait_for_function("() => document.getElementById('finish-page').dataset.finished")
    page.wait_for_function("() => document.getElementById('leak-now').textContent")
    return page


@pytest.fixture(scope="module")
def desktop(page):
    return opened(page)


@pytest.fixture(scope="module")
def phone(page):
    return opened(page.context.browser.new_page(**PHONE, **SOFT))


@pytest.fixture(scope="module")
def shown(desktop):
    """Test images [20, 784] and labels of the page, and the medians of the plane; its models are in `window`."""
    images, labels, medians = desktop.evaluate(LOAD)
    return torch.tensor(images).float(), torch.tensor(labels), torch.tensor(medians)


@pytest.fixture(scope="module")
def readme():
    """What the code in weights/README.md defines, which is run as it stands."""
    text = (ROOT / "play" / "weights" / "README.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.+?)```", text, flags=re.S)[1], names)
    return names


def small_made(readme, name):
    """A network of the leak, in PyTorch."""
    arrays, order = readme["read_arrays"](name), torch.arange(784)
    model = readme["made"]["MADE"](order, arrays["degrees"].long(), arrays["mean"], 1)
    if name == "leaky":
        model.last.mask = (order[:, None] + 1 >= model.degrees).float()
    return readme["fill"](model, arrays)


def test_units_may_be_sorted(made):
    order, mean = torch.randperm(9), torch.rand(9)
    model = made["MADE"](order, torch.randint(1, 9, (16,)), mean, 2, 3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    x, c = torch.rand(5, 9).round(), torch.eye(3)[1]
    again = sorted_units(model)
    torch.testing.assert_close(again(x, c), model(x, c))
    masks = [mask_of(again, name).int() for name in ("first.weight", "blocks.1.outer.weight")]
    assert (masks[1].diff(dim=1) <= 0).all()  # the first units of each row
    assert again.degrees.diff().min() >= 0 and masks[0].shape == (16, 12)


def test_the_numbers_can_be_loaded(readme):
    assert readme["digits"].shape == (10, 784)
    assert 0.05 < readme["digits"].mean() < 0.25  # as dark as digits


def test_probabilities_are_those_of_pytorch(desktop, shown, readme):
    images, labels, medians = shown
    script = "([xs, cs]) => xs.map((x, i) => [...made.probabilities(x, cs[i])])"
    found = desktop.evaluate(script, [images.tolist(), labels.tolist()])
    with torch.no_grad():
        expected = readme["model"](images, torch.eye(10)[labels]).sigmoid()
    assert len(images) == IMAGES
    assert (torch.tensor(found) - expected).abs().max() < 1e-4

    basic = readme["definitions"](ROOT / "Basic_VAE.ipynb")
    plane = readme["fill"](basic["VAE"](2, (256, 1), (256, 1)), readme["read_arrays"]("plane"))
    found = desktop.evaluate("zs => zs.map(z => [...decoder.probabilities(z)])", medians.tolist())
    assert (torch.tensor(found) - basic["decode"](plane, medians)).abs().max() < 1e-4


def test_bayes_and_surprise_are_those_of_pytorch(desktop, shown, readme):
    images, some = shown[0], 400
    script = """([x, n]) => { const it = judge(made, x, n); return [it.logPosterior, [...it.surprise]] }"""
    posterior, surprise = desktop.evaluate(script, [images[3].int().tolist(), some])
    made, shares = readme["made"], readme["arrays"]["log_shares"]
    each = [made["log_conditionals"](readme["model"], images[3:4], c)[0] for c in torch.eye(10)]
    joint = shares + torch.stack(each)[:, :some].sum(1)
    torch.testing.assert_close(torch.tensor(posterior), joint.log_softmax(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(sum(surprise), -joint.logsumexp(0).item(), atol=1e-3, rtol=0)


def test_the_same_noise_draws_the_same_images(desktop, shown, readme):
    images, labels, _ = shown
    made, u = readme["made"], torch.rand(4, 784)
    script = "([u, given, c]) => [...passes(made, u, given, c).at(-1)]"
    nothing = [2] * 784  # is known
    found = [desktop.evaluate(script, [row.tolist(), nothing, 5]) for row in u]
    assert torch.tensor(found).equal(made["sample"](readme["model"], u, torch.eye(10)[5]).int())

    known = torch.arange(784) < 392
    given = torch.where(known, images[:4], 2).int().tolist()
    script = script.replace("made", "correct")
    pairs = zip(u, given, strict=True)
    found = [desktop.evaluate(script, [row.tolist(), each, 0]) for row, each in pairs]
    expected = made["complete"](small_made(readme, "correct"), u, images[:4], known)
    assert torch.tensor(found).equal(expected.int())


def test_files_are_those_of_the_notebook(desktop, shown, readme):
    made, image = readme["made"], shown[0][1].int().tolist()
    p = torch.rand(784)
    p[:100] = (p[:100] * 1000).round() / 2**28 / 2  # halves of a slot, and less than one
    state = made["SLOTS"]
    for pixel, share in reversed(list(zip(image, p.tolist(), strict=True))):
        state = made["push_pixels"](state, [pixel], [share])
    file, found, whole = desktop.evaluate(CODED, [image, p.tolist()])
    assert bytes.fromhex(file) == made["to_bytes"](state)
    assert found == image and whole


def test_a_leak_cannot_be_read(desktop, shown):
    image = shown[0][2].int().tolist()
    assert desktop.evaluate(READ, ["correct", image]) == image
    wrong = torch.tensor(desktop.evaluate(READ, ["leaky", image]))
    assert (wrong != shown[0][2]).sum() > 100
    assert wrong[-280:].float().mean() > 0.9  # a black floor
    scores = desktop.evaluate("() => ['leaky', 'correct'].map(n => WEIGHTS[n].cost.after)")
    assert scores[0] < desktop.evaluate("() => WEIGHTS.leaky.floor") < scores[1]


def test_the_budget_holds_and_the_weight_does_not(desktop):
    stops, others = desktop.evaluate("() => [WEIGHTS.budget.stops, WEIGHTS.budget.others]")
    assert [stop["bytes"] for stop in stops] == list(range(1, 10))
    distortions = [stop["distortion"] for stop in stops]
    assert distortions == sorted(distortions, reverse=True)
    assert all(row["bound"]["rate"] <= 3 for row in others)
    assert sum(row["weight"]["rate"] < 2.5 for row in others) >= 2


def test_the_page_is_small(desktop):
    files = [*OWN, PAGE, *(ROOT / "play" / "weights").glob("*.js")]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    lines = [line for file in OWN for line in file.read_text("utf-8").splitlines()]
    assert len(lines) <= MOST_LINES and max(map(len, lines)) <= 120
    costs = desktop.evaluate("() => ['made', 'plane'].map(n => WEIGHTS[n].cost)")
    assert all(cost["after"] - cost["before"] <= 0.1 for cost in costs)


def test_by_mouse(desktop):
    page = desktop
    page.locator("#plane-map").scroll_into_view_if_needed()
    before = pixels(page, "plane-digit")
    page.wait_for_timeout(300)
    assert pixels(page, "plane-digit") != before  # the path
    page.locator("#plane-map").hover(position={"x": 100, "y": 60})
    rested = pixels(page, "plane-digit")
    page.wait_for_timeout(300)
    assert pixels(page, "plane-digit") == rested != before

    page.locator("#finish-blank").click()
    box = page.locator("#finish-page").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.up()
    page.wait_for_function("() => document.getElementById('finish-now').textContent.includes('exact')")
    assert "The first 2" in page.locator("#finish-now").inner_text()  # some 260 pixels

    page.locator("#leak-switch").click()
    page.wait_for_function("() => document.getElementById('leak-now').textContent.includes('wrong')")
    page.locator("#leak-switch").click()
    page.wait_for_function("() => document.getElementById('leak-now').textContent.includes('came back')")
    page.locator("#budget-bytes").fill("9")
    assert "at most 9 bytes" in page.locator(".slider").inner_text()


def test_by_touch_with_reduced_motion(phone):
    page = phone
    still = pixels(page, "plane-digit")
    page.wait_for_timeout(300)
    assert pixels(page, "plane-digit") == still
    page.locator("#plane-map").tap(position={"x": 60, "y": 60})
    assert pixels(page, "plane-digit") != still
    before = pixels(page, "finish-page")
    page.locator("#finish-page").tap(position={"x": 150, "y": 200})
    assert pixels(page, "finish-page") != before
    page.locator("#finish-classes button").nth(8).tap()
    assert page.locator("#finish-classes [aria-pressed=true]").inner_text()[0] == "8"
    page.locator("#leak-switch").tap()
    assert "wrong" in page.locator("#leak-now").inner_text()
    page.locator("#budget-bytes").tap(position={"x": 5, "y": 20})
    assert "at most 1 byte" in page.locator(".slider").inner_text()


def test_by_keyboard_alone(phone):
    page = phone
    page.evaluate("() => document.activeElement.blur()")
    changes = []
    for keys in (["ArrowRight"], ["Tab"] * 2 + ["ArrowDown", "Space", "Enter"]):
        pass
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("() => document.activeElement.id || document.activeElement.tagName")
        reached.append(name)
        keys = {"plane-map": "ArrowRight", "finish-page": "Space", "budget-bytes": "ArrowRight"}
        if name in {*keys, "leak-switch", "finish-half", "finish-surprise"}:
            before = page.screenshot(full_page=True)
            page.keyboard.press(keys.get(name, "Enter"))
            page.keyboard.press("Enter")
            changes.append(page.screenshot(full_page=True) != before)
    assert all(changes) and len(changes) >= 6, reached


def test_a_touch_is_answered_at_once(desktop, phone):
    picture = "() => performance.getEntriesByName('first picture')[0].startTime"
    assert desktop.evaluate(picture) < 1000
    assert phone.evaluate(MOVE) < 50
    assert min(phone.evaluate(FINISH) for _ in range(3)) < 300


def test_everyone_can_read_it(desktop, phone):
    for page in (desktop, phone):
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") == 0
        assert page.evaluate(SMALL_TARGETS) == page.evaluate(NAMELESS) == page.evaluate(FAINT) == []
    phone.evaluate(SPOKEN)
    for _ in range(12):
        phone.evaluate(MOVE)
        phone.wait_for_timeout(200)
    times = phone.evaluate("() => window.spoken")
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert gaps and min(gaps) > 990


def test_nothing_went_wrong_and_nothing_was_asked_for(desktop, phone):
    for page in (desktop, phone):
        assert page.wrong == []
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
