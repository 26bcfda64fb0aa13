"""The randomized Hadamard transform of blocks of 256 elements: an orthonormal map that spreads outliers.

With D random signs and H the Hadamard matrix over its root, it is H D x; the inverse is D H x. The elements behind the
last whole block are cut into blocks of decreasing powers of two. C and torch add in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from ..backend.counter_random import random_words, signs, state_of

SOURCE = r"""
/* sums and differences of what lies 1, 2, 4, … apart; size: a power of two up to TILE */
static inline __attribute__((always_inline)) void hadamard(float *x, int size) {
    const Floats one = {1, -1, 1, -1, 1, -1, 1, -1}, two = {1, 1, -1, -1, 1, 1, -1, -1};
    const Floats four = {1, 1, 1, 1, -1, -1, -1, -1};
    int done = 1;
    if (size >= LANES) for (int i = 0; i < size; i += LANES, done = LANES) {
        Floats v;
        memcpy(&v, x + i, sizeof v);
        v = (Floats){v[1], v[0], v[3], v[2], v[5], v[4], v[7], v[6]} + v * one;
        v = (Floats){v[2], v[3], v[0], v[1], v[6], v[7], v[4], v[5]} + v * two;
        v = (Floats){v[4], v[5], v[6], v[7], v[0], v[1], v[2], v[3]} + v * four;
        memcpy(x + i, &v, sizeof v);
    }
    for (; done < size; done *= 2)
        for (int i = 0; i < size; i += 2 * done) {
            float *low = x + i, *high = x + i + done;
            #pragma omp simd
            for (int k = 0; k < done; k++) {
                float a = low[k], b = high[k];
                low[k] = a + b;
                high[k] = a - b;
            }
        }
}

static inline __attribute__((always_inline))
void spread_block(float *x, const float *signs, int size, int inverse, float factor) {
    #pragma omp simd
    for (int i = 0; i < size; i++) x[i] *= inverse ? 1 : signs[i];
    hadamard(x, size);
    #pragma omp simd
    for (int i = 0; i < size; i++) x[i] *= factor;
    #pragma omp simd
    for (int i = 0; i < size; i++) x[i] *= inverse ? signs[i] : 1;
}

static void spread_tile(float *tile, int64_t count, int inverse, uint64_t state, int64_t start) {
    float signs[TILE];
    for (int i = 0; i < TILE; i += 32) {
        uint32_t bits = (uint32_t)(random_word(state, (uint64_t)((start + i) / 64)) >> (start + i) % 64);
        #pragma omp simd
        for (int k = 0; k < 32; k++) signs[i + k] = bits >> k & 1 ? -1.0f : 1.0f;
    }
    if (count == TILE) {
        spread_block(tile, signs, TILE, inverse, 0.0625f);
        return;
    }
    for (int64_t done = 0; done < count;) {
        int size = TILE;
        while (size > count - done) size /= 2;
        spread_block(tile + done, signs + done, size, inverse, (float)(1 / sqrt((double)size)));
        done += size;
    }
}
"""

BLOCK = 256
_STREAM = 1  # of a seed; rounding uses another one


def state_of_signs(seed: int) -> int:
    """Return the state from which a transform's signs are drawn."""
    return state_of(seed, _STREAM)


def blocks(count: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, size of a block) of the stretches of elements that are cut into blocks of one size."""
    start, size = 0, BLOCK
    while start < count:
        end = start + (count - start) // size * size
        if end > start:
            yield start, end, size
        start, size = end, size // 2


def signs_at(state: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return the signs of elements `start` (a multiple of 64) and following: int64 [count], one bit of a word each."""
    words = random_words(state, start // 64, -(-count // 64), device)
    lowest_first = words[:, None] << torch.arange(63, -1, -1, device=device)
    return signs(lowest_first).view(-1)[:count]


def hadamard_plainly(x: Tensor) -> Tensor:
    """Return the transform along the last dimension, a power of two long; not scaled."""
    size = x.shape[-1]
    for k in range(size.bit_length() - 1):
        a, b = x.unflatten(-1, (-1, 2, 2**k)).unbind(-2)
        x = torch.stack([a + b, a - b], -2).flatten(-3)
    return x


def spread_plainly(x: Tensor, inverse: bool, state: int, start: int) -> Tensor:
    """Return the transform of elements `start` (a multiple of 256) and following, float32 [n], or its inverse."""
    sign = signs_at(state, start, len(x), x.device).to(x.dtype)
    moved = x if inverse else x * sign
    parts = []
    for begin, end, size in blocks(len(x)):
        parts.append(hadamard_plainly(moved[begin:end].view(-1, size)).view(-1).mul_(1 / sqrt(size)))
    transformed = torch.cat(parts) if parts else moved
    return transformed * sign if inverse else transformed
