"""C that codecs share: stretches of 256 elements read as float, written from float, and random numbers for them."""

from __future__ import annotations

import torch

from ..backend.counter_random import SOURCE as RANDOM_SOURCE
from .packed_codes import SOURCE as PACKING_SOURCE

SOURCE = (
    RANDOM_SOURCE
    + PACKING_SOURCE
    + r"""
enum { FLOAT = 0, BFLOAT16 = 1, LANES = 8 };

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

/* elements start to start + count of x, and zeros up to the tile's end: where they lie, or copied to room */
static inline const float *load_tile(const void *x, int kind, int64_t start, int64_t count, float *room) {
    if (kind == FLOAT) {
        if (count == TILE) return (const float *)x + start;
        memcpy(room, (const float *)x + start, count * sizeof(float));
    } else {
        const uint16_t *upper = (const uint16_t *)x + start;
        uint32_t *words = (uint32_t *)room;
        for (int64_t i = 0; i < count; i++) words[i] = (uint32_t)upper[i] << 16;
    }
    if (count < TILE) memset(room + count, 0, (TILE - count) * sizeof(float));
    return room;
}

/* to the nearest, ties to even, as torch rounds */
static inline uint16_t bfloat16_of(float number) {
    uint32_t word;
    memcpy(&word, &number, 4);
    return number != number ? 0x7fc0 : (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

/* where to write a tile that store_tile then finishes: in x, or in room */
static inline float *new_tile(void *x, int kind, int64_t start, int64_t count, float *room) {
    return kind == FLOAT && count == TILE ? (float *)x + start : room;
}

static inline void store_tile(const float *tile, int kind, int64_t start, int64_t count, void *x) {
    if (kind == FLOAT) {
        if (count < TILE) memcpy((float *)x + start, tile, count * sizeof(float));
    } else {
        uint16_t *upper = (uint16_t *)x + start, rounded[TILE];
        #pragma omp simd
        for (int i = 0; i < TILE; i++) rounded[i] = bfloat16_of(tile[i]);
        memcpy(upper, rounded, count * sizeof(uint16_t));
    }
}

/* numbers of 24 bits for the elements from start (even) on */
static inline void random_tile(uint64_t state, int64_t start, float *numbers) {
    uint64_t words[TILE / 2];
    uint32_t halves[TILE];
    #pragma omp simd
    for (int i = 0; i < TILE / 2; i++) words[i] = random_word(state, (uint64_t)(start / 2 + i));
    memcpy(halves, words, sizeof words);
    #pragma omp simd
    for (int i = 0; i < TILE; i++) numbers[i] = (float)(int32_t)(halves[i] >> 8);
}
"""
)

KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""The types that `load_tile` and `store_tile` take, with the number of each in the C."""
