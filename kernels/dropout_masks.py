"""Draws the masks of dropout straight into bits: the masks that eager would draw, from the same generator.

Kept: ceil(n / 8) bytes for n numbers, where eager on a CPU keeps 4 n. Torch's own drawing on a CPU asks its Mersenne
twister for one 53-bit number at a time, which takes some 16 ns for each element. Here the twister makes 624 words at
once.
"""

from __future__ import annotations

from ctypes import c_int64, c_uint64, c_void_p
from functools import cache
from math import ceil, prod

import torch
from torch import Tensor

from .backend.library import define
from .backend.native import native, pointer
from .packing.bits import SOURCE as BITS_SOURCE
from .packing.bits import bytes_of_bits, pack_bits

SOURCE = (
    BITS_SOURCE
    + r"""
enum { WORDS = 624, FAR = 397, PART = 4096 };

/* the part of torch.get_rng_state() of a CPU's generator that is used here */
typedef struct {
    uint64_t seed;
    int32_t left, seeded;
    uint64_t next, words[WORDS];
} Generator;

static inline uint32_t twisted(uint32_t here, uint32_t following) {
    uint32_t mixed = (here & 0x80000000u) | (following & 0x7fffffffu);
    return (mixed >> 1) ^ ((following & 1u) ? 0x9908b0dfu : 0u);
}

static void turn(uint32_t *words) {
    for (int i = 0; i < WORDS - FAR; i++) words[i] = words[i + FAR] ^ twisted(words[i], words[i + 1]);
    for (int i = WORDS - FAR; i < WORDS - 1; i++) words[i] = words[i + FAR - WORDS] ^ twisted(words[i], words[i + 1]);
    words[WORDS - 1] = words[FAR - 1] ^ twisted(words[WORDS - 1], words[0]);
}

static inline uint32_t tempered(uint32_t word) {
    word ^= word >> 11;
    word ^= (word << 7) & 0x9d2c5680u;
    word ^= (word << 15) & 0xefc60000u;
    return word ^ (word >> 18);
}

/* bit i is 1 if the i-th 53-bit number is below the threshold */
void draw(Generator *generator, uint64_t threshold, uint8_t *bits, int64_t count) {
    uint32_t words[WORDS], ready[WORDS + 1];
    uint8_t truths[PART + WORDS];
    int have = 0, left = generator->left - 1;  /* words of this state not drawn yet; of them `have` are ready */
    int64_t waiting = 0, done = 0;
    for (int i = 0; i < WORDS; i++) words[i] = (uint32_t)generator->words[i];
    while (done + waiting < count) {
        if (left == 0) {
            turn(words);
            left = WORDS;
        }
        for (int i = 0; i < left; i++) ready[have + i] = tempered(words[WORDS - left + i]);
        have += left;
        int64_t pairs = have / 2, missing = count - done - waiting;
        if (pairs > missing) pairs = missing;
        for (int i = 0; i < pairs; i++) {
            uint64_t number = ((uint64_t)ready[2 * i] << 32) | ready[2 * i + 1];
            truths[waiting + i] = (number & 0x1fffffffffffffull) < threshold;
        }
        waiting += pairs;
        have -= 2 * pairs;
        left = have;
        if (have == 1 && done + waiting < count) {
            ready[0] = ready[2 * pairs];  /* the first half of a number whose other half comes with the next state */
            left = 0;
        } else {
            have = 0;
        }
        if (waiting >= PART || done + waiting == count) {
            int64_t whole = done + waiting == count ? waiting : waiting / 8 * 8;
            for (int64_t i = 0; i < whole / 8; i++) bits[done / 8 + i] = packed(truths + 8 * i);
            if (whole % 8) {
                uint8_t last[8] = {0};
                memcpy(last, truths + whole / 8 * 8, whole % 8);
                bits[(done + whole) / 8] = packed(last);
            }
            memmove(truths, truths + whole, waiting - whole);
            done += whole;
            waiting -= whole;
        }
    }
    for (int i = 0; i < WORDS; i++) generator->words[i] = words[i];
    generator->left = left + 1;
    generator->next = WORDS - left;
}
"""
)

_DRAW = (c_void_p, c_uint64, c_void_p, c_int64)
_STATE_BYTES = 5056  # of a CPU's generator, whose layout this file knows


def draw_plainly(count: int, probability: float, device: torch.device) -> Tensor:
    """Draw `draw_bits` in plain torch: as truth values that are then packed."""
    return pack_bits(torch.empty(count, dtype=torch.bool, device=device).bernoulli_(probability))


def _draw(size: list[int], probability: float, device: torch.device) -> Tensor:
    if device.type != "cpu" or not draws_alike():
        return draw_plainly(prod(size), probability, device)
    return _draw_natively(prod(size), probability)


def _draw_natively(count: int, probability: float) -> Tensor:
    state = torch.get_rng_state()
    bits = torch.empty(bytes_of_bits(count), dtype=torch.uint8)
    if count:
        # a number k / 2^53 is below the probability p exactly if k < ceil(p 2^53)
        native(SOURCE, "draw", _DRAW)(pointer(state), ceil(probability * 2.0**53), pointer(bits), count)
        torch.set_rng_state(state)
    return bits


@cache
def draws_alike() -> bool:
    """Return whether drawing here gives the bits of torch's own drawing, and leaves its generator in the same state.

    This is tried once: torch draws different numbers where it was built for another processor.
    """
    before = torch.get_rng_state()
    if native(SOURCE, "draw", _DRAW) is None or len(before) != _STATE_BYTES:
        return False
    try:
        for count, probability in ((1, 0.5), (313, 0.9), (4999, 0.1)):
            start = torch.get_rng_state()
            plain, after = draw_plainly(count, probability, torch.device("cpu")), torch.get_rng_state()
            torch.set_rng_state(start)
            same = torch.equal(_draw_natively(count, probability), plain)
            if not same or not torch.equal(torch.get_rng_state(), after):
                return False
    finally:
        torch.set_rng_state(before)
    return True


draw_bits = define(
    "draw_bits(int[] size, float probability, Device device) -> Tensor",
    _draw,
    lambda size, probability, device: torch.empty(bytes_of_bits(prod(size)), dtype=torch.uint8, device=device),
    random=True,
    prepare=lambda device, **_: device.type == "cpu" and draws_alike(),
)
"""Draws truth values as `bernoulli_` would draw them into a contiguous tensor of this size: uint8 [ceil(n / 8)]."""
