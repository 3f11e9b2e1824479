"""Each notebook whole, small, on a pretended GPU; and the tool that runs them from a shell."""

import math
import re
import shutil
import sys

import gpu
import matplotlib.image
import nbformat
import pictures
import pytest
import run as tool
import sync
import torch
from conftest import PRETENDS, ROOT, code_cells, results, values
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten

RUNS = [  # a data set, the file of a trained model, and its name
    ("Basic_VAE", "digits", "digits-VAE", "model"),
    ("MADE", "digits", "digits-MADE", "single"),
    ("Lagrangian_VAE", "my_images", "my_images-lagVAE-β-1-0", "plain"),
]
NEAR = {"abs": 1e-3}  # results are rounded


def figures(stem, dataset):
    """The names of the figures that a notebook saves."""
    code = "\n".join(c.source for c in code_cells(ROOT / f"{stem}.ipynb"))
    found = re.findall(r'^ *save(?:_loop)?\(f?"(.*?)"[,)]', code, flags=re.M)
    return {name.format(DATASET=dataset) for name in found}


@pytest.mark.parametrize(("stem", "dataset", "file", "model"), RUNS)
def test_a_notebook_runs_whole_alone_in_a_folder(whole, stem, dataset, file, model):
    folder, names, _ = whole(stem)
    made = folder / "images" / dataset
    assert {path.stem for path in made.iterdir()} == figures(stem, dataset)
    assert all(matplotlib.image.imread(path).std() > 0.01 for path in made.iterdir())
    rows = results(stem, folder / "results" / dataset)
    assert any(name.startswith("test NLL") for name in rows)
    if PRETENDS:
        modules = [part for part in tree_flatten(names)[0] if isinstance(part, torch.nn.Module)]
        assert gpu.GPU in {weights.device for m in modules for weights in m.parameters()}

    loaded = names["load"](folder / "weights" / f"{file}.pt").state_dict()  # on the CPU
    trained = {name: part.cpu() for name, part in names[model].state_dict().items()}
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], part) for name, part in trained.items())


# What a run says fits together: the arithmetic between the functions.


def test_the_numbers_of_basic_vae_fit_together(whole):
    folder, names, _ = whole("Basic_VAE")
    found = values("Basic_VAE", folder / "results" / "digits")
    bound, nll = found["test -ELBO"], found["test NLL"]
    assert bound == pytest.approx(found["test distortion"] + found["test rate"], **NEAR)
    assert found["gap, -ELBO less NLL"] == pytest.approx(bound - nll, **NEAR)
    assert found["test bits per dimension"] == pytest.approx(nll / 784 / math.log(2), **NEAR)
    assert found["test NLL, d = 2"] == pytest.approx(names["exact"].mean().item(), **NEAR)
    assert found["active units"] == names["active"].sum() and found["trained"] == 2
    apart = names["gap"] - names["kl"]  # two ways to the same
    assert apart.mean().abs() < 4 * apart.std() / math.sqrt(len(apart)) < 1
    assert names["ks"] == (1, 1, 2, 3) and torch.equal(names["left"][0], names["gap"])


def test_the_bytes_of_basic_vae_come_back_and_are_paid_for(whole):
    folder, names, said = whole("Basic_VAE")
    assert re.findall(r"push .: (.*) bits", said) == ["1.00", "3.00", "4.00", "6.00"]
    assert "pop  c: 4.00" in said
    assert "came back equal: 20\n" in said and "initial bits that came back: True\n" in said
    sizes, written, paid = dict(names["sizes"]), names["written"], names["paid"]
    assert (folder / "weights" / "digits-VAE.bits").stat().st_size == written
    assert sizes.pop("bits-back") == written / 20 and sizes["packed bits"] == 98
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert paid == pytest.approx(names["promised"], rel=0.02)
    assert written == pytest.approx(20 * paid + names["initial_bits"] / 8, abs=2)


def test_the_worst_of_five_posteriors_is_drawn_where_it_is(vae, whole):
    """The darkest place of its picture is the best code of a fine grid."""
    folder, names, _ = whole("Basic_VAE")
    plane = vae["VAE"](2, vae["SMALL"], vae["SMALL"])
    plane.load_state_dict(torch.load(folder / "weights" / "digits-VAE-plane.pt")["weights"])
    assert names["i"] == names["kl"].argmax()
    z, _ = vae["grid"](301)
    best = z[vae["log_joint"](plane, names["some_x"][names["i"]][None], z)[0].argmax()]
    height, (left, right, bottom, top) = torch.as_tensor(names["height"]), names["box"]
    row, column = divmod(height.argmax().item(), len(height))
    drawn = (
        torch.tensor([left, bottom]) + (right - left) * (torch.tensor([column, row]) + 0.5) / 150
    )
    assert_close(drawn, best, atol=0.1, rtol=0)
    assert height.max() == 1 and right - left == pytest.approx(top - bottom)


def test_of_four_pixels_everything_is_known(whole):
    names = whole("MADE").names
    x, grey = names["everything"], names["grey"].double()
    each = torch.stack([torch.where(image == 1, grey, 1 - grey).prod(1) for image in x])  # p(x | g)
    truth, known = each.mean(1), each @ grey / each.sum(1, keepdim=True)  # p(x) and E[g | x]
    torch.testing.assert_close(names["truth"].double(), truth, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(names["targets"]["grey levels"].double(), known, rtol=1e-3, atol=0)


def test_the_planted_fault_scores_too_well_and_sums_to_more_than_one(whole):
    names = whole("MADE").names
    small, total, entropy = names["small_network"], names["total"], names["truth"]
    entropy = -torch.special.xlogy(entropy, entropy).sum().item()
    assert names["largest_difference"](small(names["first"], names["last"])) < 1e-6
    assert names["largest_difference"](small(torch.ones(5, 4), torch.ones(4, 5))) > 1e-2
    networks = [*names["small"].values(), names["fitted_to_grey"]]
    assert total(networks[0]) == pytest.approx(1, abs=1e-4) and total(networks[1]) > 1.5
    losses = [[names["mean_loss"](n, t) for t in names["targets"].values()] for n in networks]
    (right, right_levels), (wrong, wrong_levels), (score, trained_with) = losses
    assert entropy - 1e-3 <= right < entropy + 0.1 and wrong < entropy - 0.5
    assert right_levels == pytest.approx(right, abs=2e-4)  # grey is allowed, without a leak
    assert wrong_levels > wrong + 0.2 and score + 0.2 < trained_with < wrong_levels


def test_the_numbers_of_made_fit_together(whole):
    folder, names, _ = whole("MADE")
    found = values("MADE", folder / "results" / "digits")
    nll, given, log_joint = (names[name] for name in ("nll", "given", "log_joint"))
    labels, mixture = names["test_labels"], -log_joint.logsumexp(1).mean().item()
    assert_close(names["surprise"].sum(1), nll)
    assert found["test NLL, one ordering"] == pytest.approx(nll.mean().item(), **NEAR)
    assert found["test NLL, mixture over classes"] == pytest.approx(mixture, **NEAR)
    assert names["gain"] == pytest.approx(nll.mean().item() - mixture, **NEAR)
    class_given = -given[range(len(labels)), labels].mean().item()
    assert found["test NLL, class given"] == pytest.approx(class_given, **NEAR)
    wrong = (log_joint.argmax(1) != labels).float().mean().item()
    assert found["test error as a classifier"] == pytest.approx(100 * wrong, **NEAR)
    assert (log_joint - given)[0].exp().sum().item() == pytest.approx(1)
    validation = names["history"][-1]["NLL"]  # of all 256, after the last step
    assert found["validation NLL, one ordering"] == pytest.approx(validation, **NEAR)
    assert found["trained"] == 2 and names["told"].classes == 10
    fair, *_, floor = (row.mean().item() for row in names["nlls"].values())
    assert fair == pytest.approx(784 * math.log(2))
    assert floor == pytest.approx(found["coin flips"], **NEAR)


def test_what_made_draws_writes_and_reads_is_the_same_both_ways(whole):
    folder, names, said = whole("MADE")
    assert said.count("slopes on and above the diagonal that are not exactly 0: 0\n") == 2
    assert said.count("pixels that differ: 0\n") == 2  # of two samplers; of a file that is read
    assert "the state is back where it began: True\n" in said
    sizes, written, promised = dict(names["sizes"]), names["written"], names["promised"]
    assert (folder / "weights" / "digits-MADE.bits").stat().st_size == written
    assert sizes.pop("MADE") == written / 20
    assert sizes.pop("independent pixels, promised") > promised
    assert names["best"] == min(sizes.values()) and sizes["packed bits"] == 98
    assert written == pytest.approx(20 * promised + 28 / 8, abs=2)  # and the first state


def test_the_leak_of_made_is_a_mask_that_is_not_strict(whole):
    folder, names, _ = whole("MADE")
    strict, leaky = (names[name].last.mask.cpu() for name in ("single", "leaky"))
    equal = names["single"].order.cpu()[:, None] + 1 == names["single"].degrees.cpu()
    assert torch.equal(leaky, strict + equal)
    # Grey targets are not allowed with a leak.
    assert "{'grey': False}" in trained_with(folder / "weights" / "digits-MADE-leaky.pt")


def test_the_pictures_of_made_show_what_they_say(whole):
    names = whole("MADE").names
    upright, turned, negative = names["views"].values()
    assert torch.equal(turned.view(10, 28, 28), upright.view(10, 28, 28).rot90(2, (1, 2)))
    assert torch.equal(negative, 1 - upright)
    best, worst, noise, _ = names["groups"].values()
    order = names["nll"].argsort()
    ends = torch.cat([order[:10], order[-10:]])
    assert torch.equal(torch.cat([best, worst]), names["test_x"][ends])
    assert noise.mean().item() == pytest.approx(names["test_x"].mean().item(), abs=0.05)


def test_holes_are_the_last_pixels_of_a_visit_and_what_is_known_stays(whole):
    names = whole("MADE").names
    bottom, middle = torch.arange(784) >= 392, torch.zeros(28, 28, dtype=torch.bool)
    middle[8:20, 8:20] = True
    filled = zip(names["holes"].values(), names["filled"].values(), strict=True)
    for hole, ((model, known), images) in zip((bottom, middle.flatten()), filled, strict=True):
        assert torch.equal(known, ~hole)
        assert torch.equal(model.order.cpu(), hole.int().argsort(stable=True))
        assert images.shape == (8, 6, 784) and (images[:, 0, hole] == names["UNKNOWN"]).all()
        assert (images[:, :, known] == images[:, -1:, known]).all()
        assert ((images[:, 1:] == 0) | (images[:, 1:] == 1)).all()


def trained_with(file):
    """With what a model was trained, as its file says."""
    return torch.load(file)["marks"]["training"]


@pytest.fixture
def told(whole):
    """`told(name)` is with what that model of Lagrangian_VAE was trained."""

    def told(name):
        file = re.sub(r"\W+", "-", f"my_images lagVAE {name}")
        return trained_with(whole("Lagrangian_VAE").folder / "weights" / f"{file}.pt")

    return told


def bounds_of(text):
    return [float(bound) for bound in re.findall(r"Multiplier\(bound=(.*?), value=1.0,", text)]


def test_every_model_of_the_front_has_the_weight_or_the_bound_that_the_text_says(whole, told):
    names = whole("Lagrangian_VAE").names
    assert names["epsilon"] == pytest.approx(names["plain_elbo"] + 4.0)
    for beta in (0.32, 0.5, 1.0, 1.8, 2.7):
        run = names["runs"][f"β = {beta}"]
        assert f"{{0: {beta}}}" in told(f"β = {beta}") and run.beta == beta
    for name, f in {"maximal information": "distortion", "minimal information": "rate"}.items():
        assert f"0: '{f}', 1: '-ELBO'" in told(name) and names["runs"][name].beta is None
        assert "ChangeFrom(-ELBO, 14 images" in told(name)
        assert bounds_of(told(name)) == pytest.approx([names["epsilon"] - 0.1])
    assert names["runs"].keys() >= {name for front in names["fronts"].values() for name in front}


def test_a_pilot_with_another_seed_tells_the_margin_below_what_was_asked(whole, told):
    names, asked = whole("Lagrangian_VAE").names, 3 * 8 * math.log(2)
    for name, case in names["found"].items():
        kinds = "pilot", "by bound", "by weight"
        pilot, bounded, weighted = (told(f"{name}, {kind}") for kind in kinds)
        assert bounds_of(pilot + bounded) == pytest.approx([asked, asked - case.margin])
        assert "{0: 1.6}" in weighted and case.weighted.beta == 1.6 and case.margin > 0
        first = [text[text.rindex("[") :] for text in (pilot, bounded, weighted)]  # sums of weights
        assert first[0] != first[1] == first[2]
    images, labels = torch.zeros(40, 784).byte(), torch.arange(40) % 2
    sizes = {name: tuple(case(images, labels).shape) for name, case in names["cases"].items()}
    assert list(sizes.values()) == [(40, 784), (40, 196), (20, 784), (20, 1568)]
    assert sizes.keys() == names["found"].keys()
    assert (names["cases"]["ones only"](labels[:, None], labels) == 1).all()


def test_small_models_go_on_with_one_bound_or_two(whole, told):
    names = whole("Lagrangian_VAE").names
    bound = names["small_bound"]
    assert bounds_of(told("too low")) == pytest.approx([names["reached"] - 1])
    assert bounds_of(told("one constraint")) == pytest.approx([bound])
    assert bounds_of(told("two constraints")) == pytest.approx([bound, 1.0])
    for name in ("control", "too low", "two constraints"):
        assert " (24, 3, 0.05, 12) " in told(name)  # steps, of a batch, final rate, steps of a row


def test_the_numbers_of_lagrangian_vae_fit_together(whole):
    folder, names, said = whole("Lagrangian_VAE")
    found, runs = values("Lagrangian_VAE", folder / "results" / "my_images"), names["runs"]
    assert found["test NLL, learned prior"] == pytest.approx(names["scored"][-1]["−L_K"], **NEAR)
    elbo = runs["β = 1.0"].terms.sum(0).mean().item()
    assert found["test -ELBO, learned prior"] == pytest.approx(elbo, **NEAR)
    for name in ("maximal information", "minimal information"):
        distortion, rate = runs[name].terms.mean(1).tolist()
        assert found[f"test -ELBO, {name}"] == pytest.approx(distortion + rate, **NEAR)
        assert found[f"test rate, {name}"] == pytest.approx(rate, **NEAR)
        prices = [row["price"] for row in runs[name].history]
        assert min(prices) - 1e-4 <= found[f"λ, {name}"] <= max(prices) + 1e-4
    kept = [case.bounded.terms[1].mean() <= names["asked"] for case in names["found"].values()]
    assert found["3 bytes kept"] == sum(kept)
    zeros = re.findall(r"^(?:h² =|the published).* (\S+)$", said, flags=re.M)
    wide, here, bound = map(float, zeros)
    assert 3e-4 < wide < bound == 5e-4 and here > 0.5


# The pretended GPU.


@pytest.mark.skipif(not PRETENDS, reason="needs PyTorch 2.14 or newer")
def test_the_pretended_gpu_refuses_tensors_of_the_cpu(monkeypatch):
    with gpu.pretended(monkeypatch):
        there, here = torch.ones(3, 2, device=gpu.GPU), torch.ones(3, 2)
        for mix in (
            lambda: there + here,
            lambda: torch.cat([here, there]),
            lambda: here[torch.tensor([0, 2], device=gpu.GPU)],
            lambda: there.index_put((torch.tensor([0]),), torch.ones(1, 2)),
        ):
            with pytest.raises((RuntimeError, IndexError)):
                mix()
        assert (there[torch.tensor([0, 2])] * 2 + 1).sum().item() == 12  # as on a real one
        assert (there.cpu() + here).device.type == "cpu"


# The tool.


@pytest.fixture
def house(tmp_path, monkeypatch, capsys):
    """`house(last)` runs the tool over a small notebook that ends with `last`: what it printed, why it ended."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "images").mkdir()
    for name in ("MADE-samples.png", "MADE-drawing.gif"):
        shutil.copy(ROOT / "images" / name, tmp_path / "images")
    monkeypatch.setattr(tool, "ROOT", tmp_path)

    def run(last, *arguments, missing="KMNIST"):
        loader = f"def load_images(name, folder):\n    assert name != '{missing}', 'no {missing}'"
        made = "from pathlib import Path\nfor made in ('images', 'weights', 'results'):"
        made += "\n    Path(made, DATASET).mkdir(parents=True)"
        sources = ("DATASET = 'MNIST'\nTRAIN = True", loader, made, last)
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, tmp_path / "small.ipynb")
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        reason = ""
        try:
            tool.main()
        except SystemExit as end:
            reason = end.code
        return capsys.readouterr().out, reason

    return run


def is_as_it_was(folder):
    untouched = not any(c.execution_count for c in code_cells(folder / "small.ipynb"))
    return untouched and not any((folder / made / "MNIST").exists() for made in tool.PRODUCTS)


def test_a_run_replaces_the_notebook_and_shows_where_it_is(house, tmp_path):
    said, reason = house("print('epoch 7', TRAIN)")
    assert reason == "" and "small: 2 of 4 cells" in said and "epoch 7 True" in said
    assert [c.execution_count for c in code_cells(tmp_path / "small.ipynb")] == [1, 2, 3, 4]
    assert all((tmp_path / made / "MNIST").exists() for made in tool.PRODUCTS)
    assert {p.name for p in (tmp_path / "images").iterdir()} >= set(pictures.TOGETHER)


def test_a_run_with_what_is_kept_takes_weights_along_and_changes_build_alone(house, tmp_path):
    weights = tmp_path / "weights" / "MNIST-small.pt"
    weights.parent.mkdir()
    weights.write_text("trained")
    last = f"kept = Path('{weights.relative_to(tmp_path)}')\nprint(TRAIN, kept.read_text())"
    said, reason = house(f"{last}\nkept.write_text('anew')", "--kept")
    assert reason == "" and "False trained" in said
    assert is_as_it_was(tmp_path) and weights.read_text() == "trained"
    made = tmp_path / "build" / "kept"
    assert code_cells(made / "small.ipynb")[-1].execution_count == 5  # and the injected parameters
    assert {path.name for path in made.iterdir()} == {"small.ipynb", *tool.PRODUCTS}


def test_a_failed_run_changes_nothing_and_says_so(house, tmp_path):
    _, reason = house("raise ValueError('no luck')")
    assert "no luck" in reason and "neither it nor images/ were changed" in reason
    assert is_as_it_was(tmp_path)


def test_a_folder_that_cannot_be_written_is_named_and_nothing_changed(house, tmp_path):
    (tmp_path / "results").touch()  # a file in its place: no one may write into it, not even root
    said, reason = house("pass")
    assert str(tmp_path / "results") in reason
    assert "cells" not in said  # before the run, not after it
    assert is_as_it_was(tmp_path)


def test_without_mnist_copies_run_on_the_digits_loudly(house, tmp_path):
    said, reason = house("print('on', DATASET)", missing="MNIST")
    assert reason == "" and "NO MNIST" in said and "on digits" in said
    assert is_as_it_was(tmp_path) and (tmp_path / "build" / "digits" / "small.ipynb").exists()


def test_another_data_set_that_cannot_be_had_ends_with_the_reason(house, tmp_path):
    _, reason = house("pass", "--dataset", "KMNIST")
    assert "no KMNIST" in reason and is_as_it_was(tmp_path)


def test_sync_carries_a_changed_cell_and_nothing_else(tmp_path):
    first, second = tmp_path / "first.ipynb", tmp_path / "second.ipynb"
    for path in (first, second):
        cells = [nbformat.v4.new_code_cell(f"x = '{path.stem}'", id=i) for i in ("both", "own")]
        cells[0].metadata["tags"] = ["shared"]
        cells[0].outputs = [nbformat.v4.new_output("stream", text=path.stem)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert list(sync.sync(first, [second])) == [(second, "both")]
    sources = [c.source for c in code_cells(second)]
    assert sources == ["x = 'first'", "x = 'second'"]
    assert code_cells(second)[0].outputs[0].text == "second"
    assert list(sync.sync(first, [second])) == []
