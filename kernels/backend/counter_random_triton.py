"""Functions in Triton for kernels that need the random numbers of `counter_random.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def random_words(state, place):
    """Return the words of a stream at some places: uint64.

    state: 64 bits in an integer with or without a sign.
    """
    word = state.to(tl.uint64) + place.to(tl.uint64) * 0x9E3779B97F4A7C15
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def halves(state, group):
    """Return numbers of 24 bits for the elements of groups of eight: float32 [groups, 8].

    A word makes two of them, the low half first.
    """
    words = random_words(state, group[:, None] * 4 + tl.arange(0, 4)[None, :])
    both = tl.join(words >> 8 & 0xFFFFFF, words >> 40)
    return tl.reshape(both, [group.shape[0], 8]).to(tl.int32).to(tl.float32)
