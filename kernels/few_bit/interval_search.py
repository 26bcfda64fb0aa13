"""Finds the interval between ascending borders in which each element of a tensor lies: the C and its tables.

Interval i goes from border i - 1, which belongs to it, to border i; NaN lies in the last one.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..packing.tiles import SOURCE as TILES_SOURCE

SOURCE = (
    "#include <math.h>\n"
    + TILES_SOURCE
    + r"""
/* up to FEW borders each element is compared with all of them, with more it is looked up: as fast there, measured */
#if defined(__AVX512F__)
#include <immintrin.h>
enum { FEW = 31 };
#elif defined(__AVX2__)
enum { FEW = 12 };
#else
enum { FEW = 4 };
#endif

enum { BUCKETS = 65536 };

/* borders: `count` of them and a NaN; padded: as many as two registers hold, with infinities after them. With more than
   FEW borders first[k] of them lie in buckets before bucket k, and at most `most` in one bucket. A bucket is all floats
   of the same upper 16 bits. */
typedef struct {
    const float *borders;
    const uint16_t *first;
    int count, most;
    float padded[32];
} Intervals;

#ifdef __AVX512F__
enum { ONE_REGISTER = 15 };  /* borders, and one place more */

typedef struct { __m512 low, high; } Padded;

ALWAYS Padded padded_borders(const Intervals *a) {
    return (Padded){_mm512_loadu_ps(a->padded), _mm512_loadu_ps(a->padded + 16)};
}

ALWAYS __m512i halve_once(__m512 x, Padded borders, __m512i place, int half, int wide) {
    __m512i middle = _mm512_add_epi32(place, _mm512_set1_epi32(half - 1));
    __m512 border = wide ? _mm512_permutex2var_ps(borders.low, middle, borders.high)
                         : _mm512_permutexvar_ps(middle, borders.low);
    __mmask16 beyond = _mm512_cmp_ps_mask(x, border, _CMP_NLT_UQ);
    return _mm512_mask_add_epi32(place, beyond, place, _mm512_set1_epi32(half));
}

/* at most 31 borders in two registers; `wide`: whether there are more than ONE_REGISTER. Infinity and NaN pass the
   padding. Written out, since -O2 would keep a loop, which takes twice the time */
ALWAYS __m512i halved(const float *numbers, Padded borders, int wide) {
    __m512 x = _mm512_loadu_ps(numbers);
    __m512i place = _mm512_setzero_si512();
    if (wide) place = halve_once(x, borders, place, 16, wide);
    place = halve_once(x, borders, place, 8, wide);
    place = halve_once(x, borders, place, 4, wide);
    place = halve_once(x, borders, place, 2, wide);
    return halve_once(x, borders, place, 1, wide);
}

ALWAYS void halve_borders(const float *tile, const Intervals *a, int wide, int32_t *places) {
    Padded borders = padded_borders(a);
    __m512i last = _mm512_set1_epi32(a->count);
    for (int i = 0; i < TILE; i += 16)
        _mm512_storeu_si512(places + i, _mm512_min_epi32(halved(tile + i, borders, wide), last));
}

static inline void count_borders(const float *tile, const Intervals *a, int32_t *places) {
    if (a->count > ONE_REGISTER) halve_borders(tile, a, 1, places);
    else halve_borders(tile, a, 0, places);
}
#else
/* a comparison of vectors is -1 where it holds */
static inline void count_borders(const float *tile, const Intervals *a, int32_t *places) {
    for (int i = 0; i < TILE; i += 4 * LANES) {
        Floats x[4];
        Integers counts[4];
        memcpy(x, tile + i, sizeof x);
        for (int j = 0; j < 4; j++) counts[j] = (Integers){0} + a->count;
        for (int k = 0; k < a->count; k++) {
            Floats border = (Floats){0} + a->borders[k];
            for (int j = 0; j < 4; j++) counts[j] += x[j] < border;
        }
        memcpy(places + i, counts, sizeof counts);
    }
}
#endif

static inline uint32_t bucket(float x) {
    uint32_t word;
    memcpy(&word, &x, 4);
    return (word ^ ((uint32_t)((int32_t)word >> 31) | 0x80000000u)) >> 16;
}

static inline void look_up_borders(const float *tile, const Intervals *a, int32_t *places) {
    for (int i = 0; i < TILE; i++) {
        float x = tile[i] + 0.0f;  /* makes 0 of -0 */
        int32_t place = a->first[bucket(x)];
        for (int k = 0; k < a->most; k++) place += x >= a->borders[place];
        places[i] = x != x ? a->count : place;
    }
}

static inline void find(const float *tile, const Intervals *a, int32_t *places) {
    if (a->count <= FEW) count_borders(tile, a, places);
    else look_up_borders(tile, a, places);
}

/* fills first, of BUCKETS, and returns how many borders there are at most in one bucket */
static int fill_buckets(const float *borders, int count, uint16_t *first) {
    int most = 0, k = 0;
    for (uint32_t here = 0; here < BUCKETS; here++) {
        int before = k;
        first[here] = (uint16_t)k;
        while (k < count && bucket(borders[k]) == here) k++;
        if (k - before > most) most = k - before;
    }
    return most;
}

static Intervals intervals_of(const float *borders, int count, uint16_t *first) {
    Intervals a = {borders, first, count, 0, {0}};
    for (int k = 0; k < 32; k++) a.padded[k] = k < count ? borders[k] : INFINITY;
    if (count > FEW) a.most = fill_buckets(borders, count, first);
    return a;
}

/* a separate function, since many processors gather slower than they load one by one */
static __attribute__((noinline, optimize("no-tree-vectorize")))
void look_up_one_by_one(const float *table, const uint8_t *places, float *values) {
    for (int i = 0; i < TILE; i++) values[i] = table[places[i]];
}

/* table: of `count` entries, 256 at most */
static inline void look_up_floats(const float *table, int count, const uint8_t *places, float *values) {
#ifdef __AVX512F__
    if (count <= 32) {
        float padded[32] = {0};
        memcpy(padded, table, count * sizeof(float));
        __m512 low = _mm512_loadu_ps(padded), high = _mm512_loadu_ps(padded + 16);
        for (int i = 0; i < TILE; i += 16) {
            __m512i place = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(places + i)));
            _mm512_storeu_ps(values + i, _mm512_permutex2var_ps(low, place, high));
        }
        return;
    }
#endif
    look_up_one_by_one(table, places, values);
}
"""
)

BUCKETS = 1 << 16
_IN_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def ascending(borders: list[float], dtype: torch.dtype) -> Tensor:
    """Return borders as a tensor of a type; raises ValueError unless each is greater than the one before.

    numpy holds the numbers: their count is not known when peaks are predicted, and numpy's memory is not torch's.
    """
    tensor = torch.from_numpy(np.array(borders, dtype=_IN_NUMPY[dtype]) + 0)  # no negative zeros
    for before, after in pairwise([-torch.inf, *tensor.tolist()]):
        if not before < after < torch.inf:
            raise ValueError(f"border {after} follows {before}: borders must be finite and ascend, in {dtype} too")
    return tensor


def tables(borders: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tables in which C looks borders up: the borders and a NaN, and room for the buckets."""
    closed = np.append(borders.numpy(), np.float32(np.nan))
    return torch.from_numpy(closed), torch.empty(BUCKETS, dtype=torch.uint16)
