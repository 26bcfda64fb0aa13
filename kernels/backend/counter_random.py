"""Random 64-bit words that depend on a seed and a place alone, so that drawing them again, or by more threads, gives
the same words.

Word i of a stream is the finalizer of splitmix64 applied to `state + i * 0x9e3779b97f4a7c15` (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014). A stream's state is its seed and number, finalized. Adjacent
seeds are therefore independent: a tensor's seed may be its step's plus the tensor's number. Two tensors with the same
seed get the same numbers.
"""

from __future__ import annotations

from ctypes import c_int64, c_uint64, c_void_p

import torch
from torch import Tensor

from .native import native, pointer

SOURCE = r"""
#include <stdint.h>

static inline uint64_t finalized(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebull;
    return word ^ (word >> 31);
}

static inline uint64_t random_word(uint64_t state, uint64_t place) {
    return finalized(state + place * 0x9e3779b97f4a7c15ull);
}

void random_words(uint64_t state, int64_t start, uint64_t *words, int64_t count) {
    #pragma omp parallel for simd schedule(static) if (count > 32768)
    for (int64_t i = 0; i < count; i++) words[i] = random_word(state, (uint64_t)(start + i));
}
"""

_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORDS = (c_uint64, c_int64, c_void_p, c_int64)


def signed_word(word: int) -> int:
    """Return 64 bits as torch's int64 holds them."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


def _finalized(word: int) -> int:
    word = (word ^ (word >> 30)) * _FACTORS[0] % 2**64
    word = (word ^ (word >> 27)) * _FACTORS[1] % 2**64
    return word ^ (word >> 31)


def state_of(seed: int, stream: int = 0) -> int:
    """Return the state of one of a seed's streams, 64 bits without a sign.

    No dependence between streams is known.
    """
    return _finalized(_finalized(seed % 2**64) + (stream + 1) * _STEP & 2**64 - 1)


def words_plainly(states: Tensor, places: Tensor) -> Tensor:
    """Return `random_words` in plain torch: int64 in the broadcast shape of states and places, both int64."""
    words = places * signed_word(_STEP) + states
    for shift, factor in ((30, _FACTORS[0]), (27, _FACTORS[1])):
        words.bitwise_xor_((words >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(signed_word(factor))
    return words.bitwise_xor_((words >> 31).bitwise_and_(2**33 - 1))


def random_words(state: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return words `start` to `start + count` of a stream: int64 [count] of any 64 bits."""
    run = native(SOURCE, "random_words", _WORDS) if device.type == "cpu" else None
    if run is None:
        places = torch.arange(start, start + count, dtype=torch.int64, device=device)
        return words_plainly(torch.tensor(signed_word(state), device=device), places)
    words = torch.empty(count, dtype=torch.int64)
    run(state, start, pointer(words), count)
    return words


def halves(state: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return numbers of 24 bits for elements `start` (even) and following: float32 [count].

    A word makes two of them, the low half first.
    """
    words = random_words(state, start // 2, -(-count // 2), device)
    return words.view(torch.int32)[:count].bitwise_right_shift(8).bitwise_and_(2**24 - 1).float()


def uniform(words: Tensor) -> Tensor:
    """Return words as float64 in [0, 1), by their upper 53 bits."""
    return (words >> 11).bitwise_and_(2**53 - 1).double().mul_(2.0**-53)


def signs(words: Tensor) -> Tensor:
    """Return words as 1 and -1, int64, by their highest bit."""
    return (words >> 63).bitwise_or_(1)
