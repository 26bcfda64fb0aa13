"""Backward of activations from their output: the input need not be kept.

Kept: the output, which the next layer keeps anyway, and ceil(n / 8) bytes more where the function has a minimum (GELU,
SiLU, Mish, hardswish): a bit that says on which side of it the input lay. Either side alone is monotonous, so that the
output has one inverse there, and the derivative is the function's own, taken at that inverse.

x(y) has no closed form for GELU, SiLU and Mish. A table (`inverse_tables.py`) holds nodes with the function's first
four derivatives; from the node nearest in y, the quadratic through it gives a start, and one Newton step on its Taylor
series the inverse.

Errors of the derivative of these three: next to the minimum a y that is off by e makes it sqrt(2 f'' e), which is 3e-4
in float32, where it depends on the processor's erf, and 2e-2 in bfloat16; in mean square, for normally distributed x,
1e-10 and 5e-6. Where y was not rounded, the inversion is right to some 2e-7 in float32 and 1e-9 in float64. For |y| <
2^-60 left of the minimum, the derivative, whose size is then below 1e-16, is given as 0; right of it, where y is 24
above the minimum, as 1.
"""

from __future__ import annotations

from ctypes import c_double, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from .backend.library import define
from .backend.native import native, pointer
from .inverse_tables import FARTHEST, INVERTED, LOWEST, function_and_derivatives, nearest, table
from .packing.bits import SOURCE as BITS_SOURCE
from .packing.bits import bytes_of_bits, dense, flat, pack_bits, unpack_plainly

SOURCE = (
    BITS_SOURCE
    + r"""
#include <math.h>

enum { BLOCK = 256, STEPS = 256, LOWEST = 67 * 32, SHIFT = 18 };

void sides(const float *x, double minimum, uint8_t *bits, int64_t count) {
    float bound = (float)minimum;
    #pragma omp parallel for schedule(static) if (count > 16384)
    for (int64_t i = 0; i < (count + 63) / 64; i++) {
        uint8_t truths[64] = {0};
        int here = count - 64 * i < 64 ? (int)(count - 64 * i) : 64;
        if (here == 64)
            for (int k = 0; k < 64; k++) truths[k] = x[64 * i + k] > bound;
        else
            for (int k = 0; k < here; k++) truths[k] = x[64 * i + k] > bound;
        for (int k = 0; k < (here + 7) / 8; k++) bits[8 * i + k] = packed(truths + 8 * k);
    }
}

/* from here on, what is not chosen may be computed too, without which loops with choices stay scalar */
#pragma GCC optimize("no-trapping-math")

/* the table's layout: nodes right of the minimum, left of it, and towards -0; 4 derivatives each */
typedef struct {
    const float *table;
    float minimum, rest, farthest;  /* the minimum is minimum + rest; farthest: where sqrt(y - minimum) ends */
    int left, tail;
} Inverse;

static const float smallest = 8.673617379884035e-19f, near = 0.125f, tiny = 1e-30f;

/* the row of the node nearest to y, and how far y is beyond it */
static inline int nearest(float y, int right, Inverse f, float *beyond) {
    float excess = (y - f.minimum) - f.rest;
    excess = excess > 0 ? excess : 0;
    float root = sqrtf(excess);
    int far = root >= f.farthest;
    root = far ? f.farthest : root;
    int step = (int)(root * STEPS + 0.5f);
    float size = fabsf(y), lying = (float)step * (1.0f / STEPS);
    int tail = !right & (size < near);
    float held = size < smallest ? smallest : tail ? size : near;
    int32_t bits;
    memcpy(&bits, &held, 4);
    int32_t place = (bits + (1 << (SHIFT - 1))) >> SHIFT, rounded = (int32_t)((uint32_t)place << SHIFT);
    float node;
    memcpy(&node, &rounded, 4);
    float beyond_node = node - held, beyond_step = excess - lying * lying;
    int node_row = f.tail - LOWEST + place, step_row = (1 - right) * f.left + step;
    *beyond = tail ? beyond_node : beyond_step;
    return tail ? node_row : step_row;
}

/* the derivative there: the quadratic's root, a Newton step on the series of four terms, and the series' derivative */
static inline float slope(float y, int right, float beyond, const float *at, Inverse f) {
    float first = at[0], second = at[1], third = at[2], fourth = at[3];
    float sign = right ? 1.0f : -1.0f;
    float inside = first * first + 2 * second * beyond;
    float d = 2 * beyond / (first + sign * (sqrtf(inside > 0 ? inside : 0) + tiny));
    float value = d * (first + d * (second * 0.5f + d * (third * (1.0f / 6) + d * (fourth * (1.0f / 24)))));
    float there = first + d * (second + d * (third * 0.5f + d * (fourth * (1.0f / 6))));
    d -= (value - beyond) / (there + sign * tiny);
    there = first + d * (second + d * (third * 0.5f + d * (fourth * (1.0f / 6))));
    there = right & (y - f.minimum >= f.farthest * f.farthest) ? 1.0f : there;
    there = !right & (fabsf(y) < smallest) ? 0.0f : there;
    return y == y ? there : y;
}

static void block(const float *g, const float *y, const uint8_t *side, float *out, Inverse f) {
    uint8_t right[BLOCK];
    int32_t rows[BLOCK];
    float beyond[BLOCK], at[4 * BLOCK];
    for (int i = 0; i < BLOCK / 8; i++)
        for (int k = 0; k < 8; k++) right[8 * i + k] = (side[i] >> k) & 1;
    #pragma omp simd
    for (int i = 0; i < BLOCK; i++) rows[i] = nearest(y[i], right[i], f, beyond + i);
    for (int i = 0; i < BLOCK; i++) memcpy(at + 4 * i, f.table + 4 * rows[i], 16);
    #pragma omp simd
    for (int i = 0; i < BLOCK; i++) out[i] = g[i] * slope(y[i], right[i], beyond[i], at + 4 * i, f);
}

/* y = x (x + 3) / 6 between -3 and 3; the table is not looked at */
static void hardswish(const float *g, const float *y, const uint8_t *side, float *out, Inverse f) {
    uint8_t right[BLOCK];
    (void)f;
    for (int i = 0; i < BLOCK / 8; i++)
        for (int k = 0; k < 8; k++) right[8 * i + k] = (side[i] >> k) & 1;
    #pragma omp simd
    for (int i = 0; i < BLOCK; i++) {
        float excess = y[i] + 0.375f;
        float there = sqrtf((excess < 0 ? 0 : excess) * 24) / 6;
        float beyond = y[i] >= 3 ? 1.0f : there, before = y[i] == 0 ? 0.0f : -there;
        out[i] = g[i] * (right[i] ? beyond : before);
    }
}

#define OVER(name, each)                                                                                        \
    void name(const float *g, const float *y, const uint8_t *side, const float *table, float *out, float minimum, \
              float rest, float farthest, int left, int tail, int64_t count) {                                  \
        Inverse f = {table, minimum, rest, farthest, left, tail};                                               \
        _Pragma("omp parallel for schedule(static) if (count > 4096)")                                          \
        for (int64_t i = 0; i < count / BLOCK; i++)                                                             \
            each(g + BLOCK * i, y + BLOCK * i, side + BLOCK / 8 * i, out + BLOCK * i, f);                       \
        int64_t done = count / BLOCK * BLOCK, over = count - done;                                              \
        if (over) {                                                                                             \
            float gs[BLOCK] = {0}, ys[BLOCK] = {0}, outs[BLOCK];                                                \
            uint8_t bits[BLOCK / 8] = {0};                                                                      \
            memcpy(gs, g + done, 4 * over);                                                                     \
            memcpy(ys, y + done, 4 * over);                                                                     \
            memcpy(bits, side + done / 8, (over + 7) / 8);                                                      \
            each(gs, ys, bits, outs, f);                                                                        \
            memcpy(out + done, outs, 4 * over);                                                                 \
        }                                                                                                       \
    }
OVER(backward, block)
OVER(backward_hardswish, hardswish)
"""
)

_BACKWARD = (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_float, c_float, c_float, c_int, c_int, c_int64)
_SIDES = (c_void_p, c_double, c_void_p, c_int64)
_CHUNK = 1 << 18  # elements that versions which need more room take at once

SIDED = (*INVERTED, "hardswish")
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

aten = torch.ops.aten


def slope_plainly(kind: str, y: Tensor, right: Tensor) -> Tensor:
    """An activation's derivative, from its output and the side of the minimum: float64, in plain torch.

    As the C does it, and two Newton steps more, on the function itself.
    """
    nodes = table(kind)
    row, beyond = nearest(y, right, nodes)
    x, first, second, third, fourth = nodes.at.to(y.device)[row].unbind(-1)
    sign = torch.where(right, 1.0, -1.0).to(y)
    d = 2 * beyond / (first + sign * ((first**2 + 2 * second * beyond).clamp_min(0).sqrt() + 1e-200))
    for _ in range(2):
        value = d * (first + d * (second / 2 + d * (third / 6 + d * fourth / 24)))
        there = first + d * (second + d * (third / 2 + d * fourth / 6))
        d = d - (value - beyond) / (there + sign * 1e-200)
    x = x + d
    for _ in range(2):
        value, there = function_and_derivatives(kind, x)[:2]
        # next to the minimum the series is exact, and the function's rounding would be divided by nearly 0
        x = x - torch.where(there.abs() > 1e-3, (value - y) / there, 0)
    result = function_and_derivatives(kind, x)[1]
    result = torch.where(right & (y - nodes.y >= FARTHEST**2), 1.0, result)
    result = torch.where(~right & (y.abs() < 2.0**LOWEST), 0.0, result)
    return torch.where(y.isnan(), y, result)


def _hardswish_slope(y: Tensor, right: Tensor) -> Tensor:
    """y = x (x + 3) / 6 for x from -3 to 3: the derivative is ± sqrt(24 (y + 3 / 8)) / 6."""
    inside = ((y + 0.375) * 24).clamp_min_(0).sqrt_().div_(6)
    left = torch.where(y == 0, 0.0, -inside)
    return torch.where(y.isnan(), y, torch.where(right, torch.where(y >= 3, 1.0, inside), left))


def backward_plainly(gradient: Tensor, output: Tensor, side: Tensor, kind: str, result: Tensor) -> None:
    """Writes the product of gradient and derivative, all flat, into `result`: a chunk at a time, in float64."""
    for start in range(0, len(output), _CHUNK):
        y = output[start : start + _CHUNK].double()
        right = unpack_plainly(side[start // 8 : bytes_of_bits(start + len(y))], len(y))
        slope = _hardswish_slope(y, right) if kind == "hardswish" else slope_plainly(kind, y, right)
        result[start : start + _CHUNK] = gradient[start : start + _CHUNK] * slope


def _invert(gradient: Tensor, output: Tensor, side: Tensor, kind: str, result: Tensor) -> None:
    """`backward_plainly`, in C where there is any; in float32 then, for half precision too."""
    name = "backward_hardswish" if kind == "hardswish" else "backward"
    fast = output.device.type == "cpu" and output.dtype != torch.float64
    run = native(SOURCE, name, _BACKWARD) if fast else None
    if run is None:
        return backward_plainly(gradient, output, side, kind, result)
    singles, rest = None, (0.0, 0.0, 0.0, 0, 0)
    if kind in INVERTED:
        nodes = table(kind)
        minimum = torch.tensor(nodes.y, dtype=torch.float32, device="cpu").item()
        singles, rest = pointer(nodes.singles), (minimum, nodes.y - minimum, FARTHEST, nodes.left, nodes.tail)
    chunk = max(1, len(output)) if output.dtype == gradient.dtype == torch.float32 else _CHUNK
    for start in range(0, len(output), chunk):
        target = result[start : start + chunk]
        g, y = gradient[start : start + chunk].float(), output[start : start + chunk].float()
        out = target if result.dtype == torch.float32 else torch.empty_like(g)
        pointers = (pointer(g), pointer(y), pointer(side[start // 8 :]), singles, pointer(out))
        run(*pointers, *rest, len(y))
        if out is not target:
            target.copy_(out)
    return None


def _side(x: Tensor, kind: str) -> Tensor:
    if kind not in SIDED:
        raise ValueError(f"{kind} has no minimum between two sides; those that have: {', '.join(SIDED)}")
    minimum = -1.5 if kind == "hardswish" else table(kind).x
    x = x if dense(x) else x.contiguous()
    fast = x.device.type == "cpu" and x.dtype == torch.float32
    run = native(SOURCE, "sides", _SIDES) if fast else None
    if run is None:
        return pack_bits(x > minimum)
    bits = torch.empty(bytes_of_bits(x.numel()), dtype=torch.uint8)
    run(pointer(x), minimum, pointer(bits), x.numel())
    return bits


def _softplus(gradient: Tensor, output: Tensor, beta: float) -> Tensor:
    """sigma(beta x) = 1 - exp(-beta y)."""
    wide = torch.promote_types(output.dtype, torch.float32)
    return gradient * output.to(wide).mul(-beta).expm1_().neg_().to(gradient.dtype)


def _directly(gradient: Tensor, output: Tensor, kind: str, parameter: float) -> Tensor:
    """The activations whose derivative is a formula of the output: torch's own backward, as far as it takes that."""
    # what a bound became in the output, which half precision rounds
    bound = torch.tensor(parameter, dtype=output.dtype, device="cpu").item()
    formulas = {
        "relu": lambda: aten.threshold_backward(gradient, output, 0),
        "relu6": lambda: aten.hardtanh_backward(gradient, output, 0.0, 6.0),
        "hardtanh": lambda: aten.hardtanh_backward(gradient, output, -bound, bound),
        "leaky_relu": lambda: aten.leaky_relu_backward(gradient, output, parameter, True),
        "sigmoid": lambda: aten.sigmoid_backward(gradient, output),
        "tanh": lambda: aten.tanh_backward(gradient, output),
        "elu": lambda: aten.elu_backward(gradient, parameter, 1.0, 1.0, True, output),
        "celu": lambda: aten.elu_backward(gradient, parameter, 1.0, 1.0 / parameter, True, output),
        "selu": lambda: aten.elu_backward(gradient, _SELU_ALPHA, _SELU_SCALE, 1.0, True, output),
        "softplus": lambda: _softplus(gradient, output, parameter),
    }
    if kind not in formulas:
        raise ValueError(f"no activation of the name {kind}; there are {', '.join((*SIDED, *formulas))}")
    return formulas[kind]()


def _from_output(gradient: Tensor, output: Tensor, side: Tensor | None, kind: str, parameter: float) -> Tensor:
    output = output if dense(output) else output.contiguous()
    if gradient.stride() != output.stride():
        gradient = torch.empty_like(output, dtype=gradient.dtype).copy_(gradient)
    if kind not in SIDED:
        return _directly(gradient, output, kind, parameter)
    if side is None:
        raise ValueError(f"{kind} attains each of its outputs twice: `side` has to say which input it was")
    result = torch.empty_like(gradient)
    _invert(flat(gradient), flat(output), side, kind, flat(result))
    return result


def _prepare(kind: str, **_: object) -> None:
    if kind in INVERTED:
        table(kind)


activation_side = define(
    "activation_side(Tensor x, str kind) -> Tensor",
    _side,
    lambda x, kind: x.new_empty((bytes_of_bits(x.numel()),), dtype=torch.uint8),
    prepare=_prepare,
)
"""Where x (dense, any shape) lies right of the minimum of a kind of activation: bits, uint8 [ceil(n / 8)], in the order
in which x lies in memory. kind: gelu, gelu_tanh, silu, mish or hardswish."""


def _from_output_shapes(gradient, output, side, kind, parameter):
    return torch.empty_like(output if dense(output) else output.contiguous(), dtype=gradient.dtype)


activation_backward_from_output = define(
    "activation_backward_from_output(Tensor gradient, Tensor output, Tensor? side, str kind, float parameter)"
    " -> Tensor",
    _from_output,
    _from_output_shapes,
    prepare=_prepare,
)
"""The gradient of an activation's input from that of its output, and the output (dense): laid out like the output.

side: of `activation_side`, for the kinds that it knows; otherwise None. The other kinds are relu, relu6, hardtanh,
leaky_relu, sigmoid, tanh, elu, celu, selu and softplus. parameter: the negative slope of leaky_relu (not negative),
alpha of elu and celu (positive), beta of softplus, the bound of hardtanh (from -parameter to parameter; where half
precision rounds it, an input that equals the rounded bound counts as beyond it); else unused.
"""
