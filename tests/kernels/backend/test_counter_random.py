"""Random words of a seed and a place: the published generator's, the same in C and torch, and evenly spread."""

import pytest
import torch
from lowtide.kernels.backend import counter_random
from lowtide.kernels.backend.counter_random import halves, random_words, signs, state_of, uniform, words_plainly

CPU = torch.device("cpu")


def test_words_are_those_of_splitmix64():
    # the first outputs of java.util.SplittableRandom's generator for the seed 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [word % 2**64 for word in random_words(1234567, 1, 3, CPU).tolist()] == published


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_plain_torch_and_c_draw_alike(seed, monkeypatch):
    state = state_of(seed, 3)
    fast = random_words(state, 5, 40_000, CPU)
    monkeypatch.setattr(counter_random, "native", lambda *_: None)
    assert torch.equal(random_words(state, 5, 40_000, CPU), fast)
    part = words_plainly(torch.tensor([[state - 2**64 if state >= 2**63 else state]]), torch.arange(5, 9))
    assert torch.equal(part[0], fast[:4])


def test_words_do_not_depend_on_where_drawing_starts_or_on_threads():
    whole, threads = random_words(7, 0, 100_000, CPU), torch.get_num_threads()
    assert torch.equal(random_words(7, 99_000, 1000, CPU), whole[99_000:])
    try:
        torch.set_num_threads(3)
        assert torch.equal(random_words(7, 0, 100_000, CPU), whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(halves(7, 1000, 301, CPU), halves(7, 0, 1301, CPU)[1000:])


def test_streams_of_one_seed_and_adjacent_seeds_differ():
    states = {state_of(seed, stream) for seed in range(-50, 50) for stream in range(4)}
    assert len(states) == 400


def test_numbers_are_spread_evenly():
    words = random_words(state_of(1), 0, 1 << 20, CPU)
    for numbers in (uniform(words), halves(state_of(1), 0, 1 << 20, CPU).double() / 2**24):
        assert numbers.min() >= 0 and numbers.max() < 1
        counts = torch.histc(numbers, 64, 0, 1)
        square = ((counts - 2**14) ** 2 / 2**14).sum()
        assert 30 < square < 110  # chi square of 63 degrees: five deviations to the right, three to the left
    assert abs(signs(words).sum()) < 5 * 2**10
    assert set(signs(words[:64]).tolist()) == {-1, 1}
