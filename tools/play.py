"""Make what play/index.html shows: trained models in eight bits a number, and pictures of what was measured.

Takes MADE that is told the class, and the VAE with two dimensions, from weights/, where a run of the notebooks
leaves them. Trains the small networks of the last two toys, with the notebooks' own functions, and keeps them in
build/play/weights/. Writes play/weights/*.js and, if there is a browser, images/play.png.
"""

import base64
import copy
import io
import json
import os
import shutil
import zlib
from importlib.util import find_spec

import torch
from definitions import ROOT, definitions
from PIL import Image
from torch import nn

PAGE = ROOT / "play"
BUILD = ROOT / "build" / "play"
LARGEST = 127  # of a number of eight bits, with a sign
KINDS = {torch.int8: "i1", torch.int16: "i2", torch.float32: "f4"}  # as numpy calls them

LEAK_UNITS, LEAK_EPOCHS = 384, 10  # of the networks with and without the fault
BUDGETS = range(1, 10)  # bytes
IMAGES = 20  # test images on the page
SHOWN = 5  # images in a row of a picture
GREYS = 15  # levels of a picture, but for white
WINDOW = {"width": 900, "height": 900}  # of which the front page shows a part
ENDINGS = 5  # that are asked for before
MARGIN = 16  # pixels around it
# The same endings each time; this seed was chosen for having a 2 and a 7 among them.
FIXED_RANDOM = (
    "let seed = 87109; Math.random = () => (seed = (seed * 16807) % 2147483647) / 2147483647"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def notebook(name):
    """The definitions of a notebook, with MNIST's parts; nothing trains, on the CPU and in float32."""
    names = definitions(ROOT / f"{name}.ipynb")
    names |= {"device": torch.device("cpu"), "BFLOAT16": False, "TRAIN": False, "In": [""]}
    names["training"], validation, test = names["load_images"]("MNIST", ROOT / "data")
    names["train_data"] = list(names["training"])
    names["validation_images"], names["validation_labels"] = validation
    names["test_images"], names["test_labels"] = test
    coins = torch.Generator().manual_seed(2026)
    names["test_x"] = names["binarise"](test[0], coins)
    return names


# Eight bits a number.


def mask_of(model, name):
    """Which numbers of a parameter no mask cuts, bool; all of them in a layer without a mask."""
    layer = model.get_submodule(name.rpartition(".")[0])
    whole = torch.ones_like(layer.weight)
    return getattr(layer, "mask", whole).bool()


def eight_bits(weight, mask):
    """A matrix as whole numbers from −127 to 127, row after row without what is cut, and a scale for each row."""
    scale = (weight * mask).abs().amax(1) / LARGEST
    scale[scale == 0] = 1
    return (weight / scale[:, None]).round()[mask].to(torch.int8), scale


def packed(model, **others):
    """The arrays of a model by name, as the page reads them, and the model that computes with them."""
    arrays, rounded = dict(others), copy.deepcopy(model)
    for name, parameter in rounded.named_parameters():
        values = parameter.data
        if values.ndim == 2:
            mask = mask_of(model, name)
            numbers, scale = eight_bits(values, mask)
            arrays |= {name: numbers, f"{name}.scale": scale}
            values.zero_()
            values[mask] = numbers * scale[mask.nonzero()[:, 0]]
        else:
            arrays[name] = values
    return arrays, rounded


def sorted_units(model):
    """The same MADE with its hidden units in the order of their degrees, so that a mask keeps the first of a row."""
    model = copy.deepcopy(model)
    order = model.degrees.argsort(stable=True)
    model.degrees = model.degrees[order]
    hidden = [layer for block in model.blocks for layer in (block.inner, block.outer)]

    for layer in (model.first, *hidden):  # of which the units are outputs
        for part in (layer.weight, layer.bias, layer.mask):
            part.data = part.data[order]
    for layer in (*hidden, model.last):  # of which they are inputs
        for part in (layer.weight, layer.mask):
            part.data = part.data[:, order]
    return model


def made_arrays(model, **others):
    """What the page needs of a MADE: its arrays and, as they are computed with, the model."""
    model = sorted_units(model)
    return packed(model, degrees=model.degrees.to(torch.int16), mean=model.mean, **others)


def write(name, arrays=None, **facts):
    """Write play/weights/NAME.js: facts and, deflated, arrays."""
    if arrays:
        facts["parts"] = [[n, KINDS[a.dtype], a.numel()] for n, a in arrays.items()]
        content = b"".join(a.detach().contiguous().numpy().tobytes() for a in arrays.values())
        facts["bytes"] = base64.b64encode(zlib.compress(content, 9)).decode()
    text = f"WEIGHTS.{name} = {json.dumps(facts, ensure_ascii=False)};\n"
    (PAGE / "weights" / f"{name}.js").write_text(text, encoding="utf-8")
    print(f"play/weights/{name}.js: {len(text.encode()):,} bytes")


def weights(file):
    """Trained weights, which a run of the notebooks has left."""
    if not (ROOT / "weights" / file).exists():
        raise SystemExit(f"weights/{file} is missing. Run `make` first, then `make play`.")
    return torch.load(ROOT / "weights" / file, weights_only=True)["weights"]


def cost(name, before, after):
    """What eight bits cost, in nats a test image: a row of the page's table, printed."""
    row = {"model": name, "before": round(before, 4), "after": round(after, 4)}
    print(f"{name}: {before:.3f} nats, with eight bits a number {after:.3f}")
    return row


# The four toys.


@torch.no_grad()
def make_plane():
    """The decoder of the VAE with two dimensions, and the medians of the classes."""
    names = notebook("Basic_VAE")
    model = names["VAE"](2, names["SMALL"], names["SMALL"])
    model.load_state_dict(weights("MNIST-VAE-plane.pt"))
    arrays, rounded = packed(model)
    arrays = {n: a for n, a in arrays.items() if n.startswith("decoder")}
    rounded.encoder = model.encoder  # the page has only the decoder

    torch.manual_seed(names["SEED"])
    images, labels = names["training"]
    means, _ = names["encode"](model, names["binarise"](images))
    medians = torch.stack([means[labels == label].median(0).values for label in range(10)])

    scores = []
    for each in (model, rounded):
        torch.manual_seed(names["SEED"])  # the same codes
        scores.append(sum(names["vae_terms"](each, names["test_x"])).mean().item())
    row = cost("the plane, −ELBO", *scores)
    write("plane", arrays, medians=medians.tolist(), cost=row)


def make_told():
    """MADE that is told the class."""
    names = notebook("MADE")
    kept = weights("MNIST-MADE-told-the-class.pt")
    model = names["MADE"](kept["order"], kept["degrees"], kept["mean"], names["BLOCKS"], 10)
    model.load_state_dict(kept)
    log_shares = names["log_shares"](names["training"][1])
    arrays, rounded = made_arrays(model, log_shares=log_shares)

    scores = []
    for each in (model, rounded):
        given = names["log_p_given_class"](each, names["test_x"]) + log_shares
        scores.append(-given.logsumexp(1).mean().item())
    row = cost("MADE, told the class, NLL", *scores)
    write("made", arrays, cost=row)


class Unconnected(nn.Module):
    """In the place of direct connections: none."""

    def forward(self, x):
        return 0


def leak_network(names, leaky):
    """A small MADE without direct connections, trained on flips; its last mask may be not strict."""
    mean = names["train_data"][0].float().mean(0) / 255
    order = torch.arange(len(mean))
    degrees = names["draw_degrees"](order, mean, LEAK_UNITS)
    torch.manual_seed(names["SEED"])
    model = names["MADE"](order, degrees, mean, names["BLOCKS"])
    model.direct = Unconnected()
    if leaky:
        model.last.mask = (order[:, None] + 1 >= degrees).float()  # the fault

    name = "play leaky" if leaky else "play correct"
    training = names["Training"](name, model, names["adamw"](model), LEAK_EPOCHS)
    names["fit"](training, grey=False)
    return model


def make_leak():
    """Two small networks that differ in one character of a mask, and their scores."""
    names = notebook("MADE")
    floor = names["flip_entropy"](names["test_images"]).mean().item()
    for name, leaky in (("correct", False), ("leaky", True)):
        model = leak_network(names, leaky)
        arrays, rounded = made_arrays(model)
        x = names["test_x"]
        scores = [-names["log_p"](each, x).mean().item() for each in (model, rounded)]
        row = cost(f"the {name} network, score", *scores)
        write(name, arrays, cost=row, floor=round(floor, 4))


def sheet(images, side, columns=SHOWN):
    """Images [N, side²] of probabilities as a picture that a page can hold, so many in a row."""
    rows = images.view(-1, columns, side, side).transpose(1, 2).reshape(-1, columns * side)
    levels = 255 - (rows * GREYS).round() * (255 // GREYS)
    buffer = io.BytesIO()
    Image.fromarray(levels.byte().numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def interleave(*rows):
    """The first SHOWN images of each, then the next of each, and so on: [N, D] each."""
    return torch.stack([row.view(-1, SHOWN, row.shape[1]) for row in rows], 1).flatten(0, 2)


def by_bound(names, name, case, budget):
    """A small VAE with a rate of at most so many bytes, as Act one of the notebook trains it, and λ."""
    train, steering, telling, test = case
    asked = budget * names["NATS_OF_A_BYTE"]
    name = f"play {name}, {budget} bytes"
    bound = names["Multiplier"](asked)
    pilot = (f"{name}, pilot", train, telling, None, bound, steering, names["SEED"] + 1)
    below = names["margin"](names["run_small"](*pilot).values("rate"), asked)
    bound = names["Multiplier"](asked - below)
    return names["run_small"](f"{name}, by bound", train, test, None, bound, steering)


def row_of(names, run):
    """What a small VAE has on test images: rate and its error in bytes, distortion in nats, λ or the weight."""
    rate, error = names["mean_and_error"](run.values("rate") / names["NATS_OF_A_BYTE"])
    row = {"rate": rate, "error": error, "distortion": run.values("distortion").mean().item()}
    row["price"] = run.beta or run.history[-1]["price"]
    return {name: round(value, 4) for name, value in row.items()}


def make_budget():
    """What a bound of one to nine bytes gives, and one of three, beside a weight, on other images."""
    names = notebook("Lagrangian_VAE")
    everything = names["test_x"][names["one_of_each"](names["test_labels"])]
    cases = {
        "all digits": lambda images, labels: images,
        "only ones": lambda images, labels: images[labels == 1],
        "only eights": lambda images, labels: images[labels == 8],
        "small images": names["coarse"],
    }
    cases = {name: names["images_of"](case) for name, case in cases.items()}

    stops = []
    for budget in BUDGETS:
        run = by_bound(names, "all digits", cases["all digits"], budget)
        pictures = interleave(everything, names["returned"](run.model, everything))
        stops.append({"bytes": budget} | row_of(names, run) | {"picture": sheet(pictures, 28)})
        print({n: v for n, v in stops[-1].items() if n != "picture"})

    others = []
    for name, case in cases.items():
        bound = by_bound(names, name, case, names["BUDGET"])
        weight = names["run_small"](
            f"play {name}, by weight", case[0], case[-1], beta=names["WEIGHT"]
        )
        some = case[-1][:SHOWN]
        back = [some, *(names["returned"](run.model, some) for run in (weight, bound))]
        side = round(some.shape[1] ** 0.5)
        row = {"images": name, "bound": row_of(names, bound), "weight": row_of(names, weight)}
        others.append(row | {"picture": sheet(torch.cat(back), side)})
        print({n: v for n, v in others[-1].items() if n != "picture"})
    write("budget", stops=stops, others=others)


def make_images():
    """Some binary test images, one of each class first: a bit a pixel."""
    names = notebook("MADE")
    some = names["one_of_each"](names["test_labels"], IMAGES)
    bits = names["numpy"].packbits(names["test_x"][some].numpy().astype("uint8"))
    text = base64.b64encode(bits.tobytes()).decode()
    write("images", bits=text, labels=names["test_labels"][some].tolist())


def take_picture():
    """images/play.png, a still of the page for the front page, if Playwright and a browser are there."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not (program and find_spec("playwright")):
        return print("no browser: images/play.png stays as it was")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW, reduced_motion="reduce")
        page.add_init_script(FIXED_RANDOM)
        page.goto((PAGE / "index.html").as_uri())
        page.wait_for_function("document.getElementById('finish-now').textContent")
        for _ in range(ENDINGS):
            page.locator("#finish-another").click()
        page.add_style_tag(content=f"#finish .pair {{ padding: {MARGIN}px }}")
        page.locator("#finish .pair").screenshot(path=ROOT / "images" / "play.png")
        browser.close()


def main():
    BUILD.mkdir(parents=True, exist_ok=True)
    os.chdir(BUILD)  # what is trained here is kept here
    make_images()
    make_plane()
    make_told()
    make_leak()
    make_budget()
    take_picture()


if __name__ == "__main__":
    main()
