"""Masks drawn into bits: torch's own numbers, and its generator left where torch would have left it."""

import pytest
import torch
from lowtide.kernels import dropout_masks
from lowtide.kernels.dropout_masks import draw_bits
from lowtide.kernels.packing.bits import unpack_plainly

CPU = torch.device("cpu")


@pytest.fixture(params=["compiled", "plain"])
def either(request, monkeypatch):
    """Runs a test with the compiled version, and with the one that serves everywhere."""
    if request.param == "plain":
        monkeypatch.setattr(dropout_masks, "draws_alike", lambda: False)
    elif not dropout_masks.draws_alike():
        pytest.skip("torch draws otherwise here, or there is no C compiler")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0, 1e-17, 1 - 2.0**-53])
def test_bits_are_what_torch_draws_and_what_is_drawn_next_is_too(probability):
    for count in (1, 7, 8, 9, 311, 312, 313, 623, 624, 625, 4095, 4097, 100_003):
        torch.manual_seed(count)
        torch.randn(3)  # leaves a number of the normal distribution behind
        torch.randint(9, (count % 5,))  # an odd number of words
        start = torch.get_rng_state()
        expected = torch.empty(count).bernoulli_(probability)
        following = torch.randn(5), torch.rand(5)
        torch.set_rng_state(start)
        mask = unpack_plainly(draw_bits([count], probability, CPU), count)
        assert torch.equal(mask.float(), expected)
        assert torch.equal(torch.randn(5), following[0]) and torch.equal(torch.rand(5), following[1])


@pytest.mark.usefixtures("either")
def test_drawing_nothing_leaves_the_generator_alone():
    before = torch.get_rng_state()
    assert draw_bits([0, 4], 0.5, CPU).numel() == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_trying_whether_torch_draws_alike_leaves_the_generator_alone():
    before = torch.get_rng_state()
    dropout_masks.draws_alike.cache_clear()
    dropout_masks.draws_alike()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_operation_is_registered_as_torch_wants_it():
    assert torch.Tag.nondeterministic_seeded in draw_bits.tags
    torch.library.opcheck(draw_bits, ([3, 5], 0.5, CPU), test_utils=("test_schema", "test_faketensor"))
