"""`hadamard.py` in Triton: the transform of elements that a kernel has read, for kernels that encode them.

Elements that lie 1, 2, 4, … apart are added and subtracted as in the other versions, so that bits are the same. The two
halves are concatenated after every step: after eight steps all elements are back in their places.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..backend.counter_random_triton import random_words
from .hadamard import BLOCK

_BLOCK = tl.constexpr(BLOCK)
_STEPS = tl.constexpr(BLOCK.bit_length() - 1)


@triton.jit
def _signed(x, group, state):
    """Return x [groups, 8] of groups of eight times their random signs."""
    words = random_words(state, group // 8)[:, None]
    shift = (group % 8 * 8)[:, None] + tl.arange(0, 8)[None, :]
    return x * tl.where((words >> shift.to(tl.uint64)) & 1 != 0, -1.0, 1.0)


@triton.jit
def _apart(place, count, step):
    """Return whether a place's block among `count` elements, a BLOCK at most, is longer than 2^step.

    Blocks are the powers of two that `count` is the sum of, the largest first. The highest bit in which a place differs
    from `count` gives the length of its block.
    """
    return ((place ^ tl.minimum(count, _BLOCK)) >> (step + 1)) != 0


@triton.jit
def _hadamard(x, count):
    """Return the transform of x [rows, BLOCK], whose rows hold `count` elements each, [rows, 1]."""
    HALF: tl.constexpr = _BLOCK // 2
    even, place = tl.arange(0, HALF)[None, :] * 2, tl.arange(0, _BLOCK)[None, :]
    factor = tl.full(x.shape, 1, tl.float32)
    for step in tl.static_range(_STEPS):  # pyright: ignore[reportGeneralTypeIssues]
        low, high = tl.split(tl.reshape(x, [x.shape[0], HALF, 2]))
        apart = _apart(((even << step) | (even >> (_STEPS - step))) & (_BLOCK - 1), count, step)
        both = tl.join(tl.where(apart, low + high, low), tl.where(apart, low - high, high))
        x = tl.reshape(tl.permute(both, (0, 2, 1)), x.shape)
        factor = tl.where(_apart(place, count, step), 2.0 ** (-0.5 * (step + 1)), factor)
    return x * factor


@triton.jit
def spread(x, group, count, state, INVERSE: tl.constexpr):
    """Return the transform of x, float32 [groups, 8], or its inverse; group: of eight elements of `count`, in whole
    BLOCKs.
    """
    ROWS: tl.constexpr = x.shape[0] * 8 // _BLOCK
    if not INVERSE:
        x = _signed(x, group, state)
    # elements of a row's BLOCK and of those behind it
    left = tl.max(tl.reshape(count - group * 8, [ROWS, _BLOCK // 8]), axis=1, keep_dims=True)
    x = tl.reshape(_hadamard(tl.reshape(x, [ROWS, _BLOCK]), left), x.shape)
    if INVERSE:
        x = _signed(x, group, state)
    return x
