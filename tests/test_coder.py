"""Nats become bytes: symbols, pixels, codes and images are pushed and popped, at the price that they should have."""

import bz2
import lzma
import math
import random

import numpy
import pytest
import torch
from test_made import build, every_image, some_images

BITS = 28


def ideal(probability):
    """Bits that a symbol should take."""
    return -math.log2(probability)


def test_a_popped_symbol_leaves_the_state_before_it_was_pushed(vae):
    state = 12345678901234567890
    for start, count in ((0, 1), (2**BITS - 1, 1), (5, 2**BITS - 5), (1000, 77)):
        pushed = vae["push"](state, start, count)
        assert start <= pushed % 2**BITS < start + count
        assert vae["pop"](pushed, start, count) == state
        grown = math.log2(pushed) - math.log2(state)
        assert grown == pytest.approx(ideal(count / 2**BITS), abs=1e-9)


def test_a_file_has_all_bits_of_the_state(vae):
    for state in (1, 255, 256, 2**77 + 3):
        content = vae["to_bytes"](state)
        assert int.from_bytes(content, "big") == state and content[0] > 0


@pytest.mark.parametrize("p", [0.0, 1e-12, 0.3, 0.5, 1 - 1e-12, 1.0])
def test_pixels_of_any_probability_come_back_in_order(vae, p):
    pixels, probabilities = [1, 0, 0, 1, 1, 0, 1], [p, 0.1, p, 0.9, 0.0, 1.0, p]
    assert 1 <= vae["ones"](p) <= 2**BITS - 1
    state = vae["push_pixels"](2**200, pixels, probabilities)
    assert vae["pop_pixels"](state, probabilities) == (2**200, pixels)
    assert vae["pop_pixels"](2**200, []) == (2**200, [])


def test_a_one_owns_its_probability(vae):
    assert vae["ones"](0.25) == 2**26
    grown = math.log2(vae["push_pixels"](2**200, [1, 0], [0.25, 0.25])) - 200
    assert grown == pytest.approx(ideal(0.25) + ideal(0.75), abs=1e-6)


# Files of a MADE.


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


@pytest.mark.parametrize("fault", ["leaky", "averaged"])
def test_a_file_of_what_is_no_model_does_not_open(made, fault):
    """It is as short as the false score promises, and what is read is something else."""
    x, order = every_image(6), torch.randperm(6)
    networks = [build(made, 6, 30, order=order)]
    if fault == "leaky":
        networks[0].last.mask = (order.argsort()[:, None] + 1 >= networks[0].degrees).double()
    else:
        networks += [build(made, 6, 30) for _ in range(3)]  # of other orderings
    state = made["write"](networks, x, order)
    received, _ = made["read"](networks, state, len(x), order)
    wrong = (received != x).sum().item() / len(x)
    assert made["wrong_pixels"](received, x) == pytest.approx(wrong) and wrong > 0.1
    promised = -made["averaged"](networks, x).sum().item() / math.log(2)
    assert math.log2(state) - math.log2(made["FIRST_STATE"]) == pytest.approx(promised, abs=1)


# Bits back.


def test_buckets_are_equally_probable_and_middles_lie_inside(vae):
    edges, middles = vae["EDGES"], vae["MIDDLES"]
    assert len(edges) == 2**14 + 1 and len(middles) == 2**14
    assert all(a < m < b for a, m, b in zip(edges, middles, edges[1:], strict=False))
    standard = vae["NormalDist"]()
    assert standard.cdf(edges[5]) == pytest.approx(5 / 2**14)
    assert standard.cdf(middles[5]) == pytest.approx(5.5 / 2**14)


@pytest.mark.parametrize("mu", [-40.0, -1.0, 0.0, 0.7, 8.0])
@pytest.mark.parametrize("sigma", [1e-9, 0.01, 1.0, 300.0])
def test_buckets_come_back_under_any_guess(vae, mu, sigma):
    guess = vae["NormalDist"](mu, sigma)
    assert vae["first_slot"](guess, 0) == 0 and vae["first_slot"](guess, 2**14) == 2**BITS
    for i in (0, 1, 8191, 8192, 2**14 - 1):
        assert vae["first_slot"](guess, i) < vae["first_slot"](guess, i + 1)
        state = vae["push_bucket"](2**100 + i, i, guess)
        assert vae["pop_bucket"](state, guess) == (2**100 + i, i)
    for state in (2**100, 2**100 + 2**27, 2**101 - 1):  # pop first, as bits-back coding does
        popped, i = vae["pop_bucket"](state, guess)
        assert vae["push_bucket"](popped, i, guess) == state


def test_buckets_cost_fourteen_bits_under_the_prior(vae):
    for i in (0, 5, 2**14 - 1):
        state = vae["push_bucket"](2**100, i)
        assert math.log2(state) - 100 == pytest.approx(14, abs=1e-9)
        assert vae["pop_bucket"](state) == (2**100, i)


def test_popped_buckets_are_draws_from_the_guess(vae):
    guess, generator = vae["NormalDist"](0.5, 0.2), random.Random(0)
    drawn = [vae["pop_bucket"](generator.getrandbits(100), guess)[1] for _ in range(4000)]
    z = torch.tensor([vae["MIDDLES"][i] for i in drawn])
    assert z.mean().item() == pytest.approx(0.5, abs=0.015)
    assert z.std().item() == pytest.approx(0.2, abs=0.01)


def coder(vae, sigma):
    """A tiny model whose guesses have this scale; its decoder is nearly certain."""
    network = vae["VAE"](3, (8, 0), (8, 0), pixels=9)
    with torch.no_grad():
        network.encoder[-1].bias[3:] = math.log(sigma)
        network.decoder[-1].weight.mul_(30)
    return network


@pytest.mark.parametrize("sigma", [1e-6, 0.3, 50.0])
@pytest.mark.parametrize("number", [0, 1, 12])
def test_images_come_back_with_the_initial_bits(vae, sigma, number):
    network = coder(vae, sigma)
    images = some_images(number, 9).int().tolist()
    initial = vae["random_bits"](300, 1)
    state, steps, slots = vae["write"](initial, network, images)
    assert len(steps) == number and len(slots) == 3 * number
    assert all(0 <= slot < 2**BITS for slot in slots)
    assert vae["read"](state, network, 3, number) == (initial, images)


def test_initial_bits_are_all_kept(vae):
    for seed in range(20):
        assert vae["random_bits"](28, seed).bit_length() == 29
    assert vae["random_bits"](28, 1) != vae["random_bits"](28, 2)


def test_popped_slots_are_counted_in_equal_parts(vae):
    eighth = 2**BITS // 8
    slots = [0, eighth - 1, eighth, 3 * eighth, 2**BITS - 1]
    assert vae["shares"](slots) == pytest.approx([0.4, 0.2, 0, 0.2, 0, 0, 0, 0.2])
    assert vae["shares"](slots, 2) == pytest.approx([0.8, 0.2])


def test_the_length_is_that_of_the_drawn_codes_to_a_bit(vae):
    """Against −log2 w(x, z) from densities, with the codes that were popped."""
    network, probabilities = coder(vae, 0.2), vae["probabilities"]
    state, bits, codes = random.Random(2).getrandbits(400), 0.0, []
    vae["probabilities"] = lambda m, b: codes.append(b) or probabilities(m, b)
    before = math.log2(state)
    for pixels in some_images(10, 9).int().tolist():
        state, (back, pixel_bits, code_bits), _ = vae["send"](state, network, pixels)
        assert back < 0 < pixel_bits and code_bits == pytest.approx(3 * 14, abs=1)
        x = torch.tensor([pixels], dtype=torch.float32)
        z = torch.tensor([[vae["MIDDLES"][i] for i in codes[-1]]])
        bits -= vae["log_w"](network, x, z, network.q(x)).item() / math.log(2)
    assert math.log2(state) - before == pytest.approx(bits, abs=0.5)


# Prices, and other people's programs.


def test_prices_are_bytes_and_the_rate_has_its_bits_back(vae):
    price = vae["prices"]([[-40, 88, 56], [-24, 72, 56]])
    assert price == {"distortion": 10.0, "rate": 3.0}
    assert vae["bytes_of"](8 * math.log(2)) == pytest.approx(1)


def test_a_model_pays_from_so_many_images_or_never(vae):
    assert vae["pays_from"](1000, 5.0, 7.0) == 500 and vae["pays_from"](1001, 5.0, 7.0) == 501
    assert vae["pays_from"](1000, 7.0, 7.0) == math.inf


def test_other_peoples_compressors_are_given_the_same_bits(vae):
    images = (torch.rand(20, 784) < 0.2).int().tolist()
    sizes = vae["compressed"](images)
    assert sizes["packed bits"] == 20 * 98
    assert set(sizes) == {"packed bits", "PNG, each", "xz", "CCITT group 4", "bz2"}
    blank = vae["compressed"]([[0] * 784] * 20)
    assert all(0 < blank[name] < sizes[name] for name in sizes if name != "packed bits")
    raw = bytes(pixel for image in images for pixel in image)
    assert sizes["xz"] <= len(lzma.compress(raw, preset=9))
    assert sizes["bz2"] <= len(bz2.compress(raw))


def test_a_primed_compressor_knows_what_it_has_seen(made):
    images, others = some_images(40, 784), some_images(40, 784)
    alone = len(lzma.compress(numpy.packbits(images.numpy().astype(numpy.uint8)).tobytes()))
    assert 0 < made["primed"](images, images) < alone / 5
    assert 0.9 * alone < made["primed"](images, others) < 1.1 * alone
