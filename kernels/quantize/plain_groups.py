"""`groups.py` in plain torch, where neither C nor Triton serves, and the error that its codes are expected to have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backend.counter_random import halves, state_of
from ..few_bit.few_bit import check_dense
from ..packing.bits import flat
from ..packing.packed_codes import bytes_of_codes, pack_codes_plainly, unpack_codes_plainly
from .hadamard import blocks, spread_plainly, state_of_signs

_CHUNK = 1 << 18  # elements worked on at once, a multiple of every group
_LARGEST = 4096
_NEAREST = 2.0**23 - 0.5


def bytes_of_groups(count: int, bits: int, group: int) -> int:
    """Return the bytes of the code of a number of elements.

    Raises ValueError unless a group is a power of two from 8 to 4096.
    """
    if not 8 <= group <= _LARGEST or group & (group - 1):
        raise ValueError(
            f"groups of {group} elements: the size must be a power of two from 8 to {_LARGEST}; 256 is usual"
        )
    return bytes_of_codes(count, bits) + 4 * -(-count // group)


def _words(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def parameters_plainly(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return offsets and scales, float32 [groups, 1] with 16 significant bits, of float32 [groups, elements]; NaN if
    unfit.
    """
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    levels = torch.tensor(2.0**bits - 1, device=groups.device)
    word = _words(low)
    away = ((word < 0) & (word.bitwise_and(0xFFFF) != 0)).int() << 16
    offset = (word.bitwise_and(-0x10000) + away).view(torch.float32) + 0.0
    width = high - offset + 0.0
    word = _words(width / levels)
    word = torch.where((width > 0) & (word == 0), 1, word)
    scale = (word + 0xFFFF).bitwise_and(-0x10000).view(torch.float32)
    fit = (offset + scale * (levels + 0.5)).isfinite() & (offset - scale * 0.5).isfinite()
    fit &= low.isfinite() & high.isfinite()
    return torch.where(fit, offset, torch.nan), torch.where(fit, scale, torch.nan)


def _grouped(x: Tensor, group: int) -> Tensor:
    """Return float32 [n] as [groups, group]; the last element is repeated to fill the last group."""
    missing = -len(x) % group
    return (torch.cat([x, x[-1:].expand(missing)]) if missing else x).view(-1, group)


def _chunks(x: Tensor, hadamard: bool, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield what is quantized, float32, in stretches of whole groups, each with the number of its first element."""
    elements = flat(x.detach())
    for start in range(0, len(elements), _CHUNK):
        part = elements[start : start + _CHUNK].float()
        yield start, spread_plainly(part, False, state_of_signs(seed), start) if hadamard else part


def _above(groups: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """Return the distance of each element above the offset, in levels."""
    return (groups - offset).div_(torch.where(scale > 0, scale, 1))


def _left(above: Tensor) -> Tensor:
    """Return the fraction of a level that each element lies above a level, times 2^24."""
    return (above - above.floor()).mul_(2.0**24)


def _on_levels(left: Tensor, scale: Tensor, count: int) -> Tensor:
    """Return whether each group errs less without subtraction: bool [groups, 1].

    count: elements, without those that fill the last group.
    """
    part = left.int() >> 16
    variance = (part * (256 - part)).view(-1)
    variance[count:] = 0
    counts = torch.full_like(scale, left.shape[1], dtype=torch.int64)
    counts[-1] -= left.numel() - count
    return (12 * variance.view_as(left).sum(1, keepdim=True) < 65536 * counts) & (scale > 0)


def _numbers(seed: int, start: int, groups: Tensor) -> Tensor:
    """Return numbers of 24 bits for the elements of groups, the first of which is `start`."""
    return halves(state_of(seed), start, groups.numel(), groups.device).view_as(groups)


def encode_plainly(x: Tensor, bits: int, group: int, stochastic: bool, hadamard: bool, seed: int) -> Tensor:
    """Return `encode_groups` in plain torch."""
    parameters, codes = [], []
    for start, part in _chunks(x, hadamard, seed):
        groups = _grouped(part, group)
        offset, scale = parameters_plainly(groups, bits)
        above = _above(groups, offset, scale).nan_to_num_(0)
        left = _left(above)
        number = _numbers(seed, start, groups) if stochastic else _NEAREST
        code = above.floor_() + (number < left)
        codes.append(pack_codes_plainly(code.clamp_(max=2**bits - 1).to(torch.uint8).view(-1)[: len(part)], bits))
        if stochastic:
            scale = torch.where(_on_levels(left, scale, len(part)), -scale, scale)
        parameters.append(_words(torch.cat([offset, scale], 1)).bitwise_right_shift(16).to(torch.int16).view(-1))
    empty = torch.empty(0, dtype=torch.uint8, device=x.device)
    return torch.cat([empty, *(part.view(torch.uint8) for part in parameters), *codes])


def decode_plainly(code: Tensor, x: Tensor, bits: int, group: int, stochastic: bool, hadamard: bool, seed: int) -> None:
    """Write `decode_groups` in plain torch into x, a tensor of one dimension."""
    groups = -(-len(x) // group)
    parameters = (code[: 4 * groups].clone().view(torch.int16).int() << 16).view(torch.float32).view(-1, 2, 1)
    packed = code[4 * groups :]
    for start in range(0, len(x), _CHUNK):
        count = min(_CHUNK, len(x) - start)
        part = packed[start // 8 * bits : bytes_of_codes(start + count, bits)]
        codes = _grouped(unpack_codes_plainly(part, bits, count).float(), group)
        offset, scale = parameters[start // group : start // group + len(codes)].unbind(1)
        if stochastic:
            number = _numbers(seed, start, codes).mul_(2.0**-24).sub_(0.5)
            codes += torch.where(scale.signbit(), 0, number)
        values = (offset + codes * scale.abs()).view(-1)[:count]
        values = spread_plainly(values, True, state_of_signs(seed), start) if hadamard else values
        most = torch.finfo(x.dtype).max
        x[start : start + count] = values.clamp_(-most, most) if most < torch.finfo(torch.float32).max else values


def expected_squared_error(
    x: Tensor, bits: int, group: int = 256, stochastic: bool = True, hadamard: bool = False, seed: int = 0
) -> Tensor:
    """Return the squared error of encoding x (dense), for each element: float32, laid out like x.

    Rounded at random it is the expectation, scale² / 12, or scale² f (1 - f) in groups on their levels. Rounded to the
    nearest it is the error itself, which is not random. With the transform it is the mean over a block, which is each
    element's expectation. It is NaN where decoding gives NaN. The error of Xᵀ Y for X of (rows, columns) is then the
    sum over rows of the row's errors times |y|².
    """
    check_dense(x)
    bytes_of_groups(x.numel(), bits, group)  # raises for invalid groups and bits
    squared_errors = torch.empty_like(x, dtype=torch.float32)
    for start, part in _chunks(x, hadamard, seed):
        groups = _grouped(part, group)
        offset, scale = parameters_plainly(groups, bits)
        left = _left(_above(groups, offset, scale).nan_to_num_(0))
        part_above = left / 2.0**24
        if stochastic:
            random = part_above * (1 - part_above)
            relative = torch.where(_on_levels(left, scale, len(part)), random, 1 / 12)
        else:
            relative = torch.minimum(part_above, 1 - part_above).square_()
        error = (relative * scale.square()).view(-1)[: len(part)]
        for begin, end, size in blocks(len(error)) if hadamard else ():
            mean = error[begin:end].view(-1, size).mean(1, keepdim=True)
            error[begin:end] = mean.expand(-1, size).reshape(-1)
        flat(squared_errors)[start : start + len(error)] = error
    return squared_errors
