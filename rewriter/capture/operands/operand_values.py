"""Fit generated operands to a call's results, where a kernel would refuse others or use different memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ....passes.rewrites.changes import functional_packet

aten = torch.ops.aten

Fitting = Callable[[tuple, dict[str, Any], Any], None]
"""A function of filled operands, positional and by name, and the call's fake result, that changes operands in place."""
_Operands = dict[str, Any]  # by the names of the schema
_Fitting = Callable[[_Operands, Any], None]


def fittings_of(node: fx.Node) -> tuple[Fitting, ...]:
    """Return the functions that fit filled operands to a call, at least one.

    If memory depends on the operands' values, there are several; the call's memory is the maximum over all of them.
    """
    packet = functional_packet(node.target)
    fittings = _FITTINGS.get(packet)
    if fittings is None:
        return (lambda positional, named, result: None,)
    names = [argument.name for argument in node.target._schema.arguments]  # pyright: ignore

    def applying(fitting: _Fitting) -> Fitting:
        def fit(positional: tuple, named: dict[str, Any], result: Any) -> None:
            fitting(dict(zip(names, positional, strict=False)) | named, result)

        return fit

    return tuple(applying(fitting) for fitting in fittings)


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor in which expanded dimensions have one element."""
    sizes = [size if stride else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(sizes, tensor.stride())


def _set_first(tensor: torch.Tensor, count: int, elements: int) -> None:
    """Set elements of a tensor to 1 and the rest to 0, so that `count` are 1 when it is broadcast to `elements`."""
    once = _once(tensor)
    chosen = count * once.numel() // max(elements, 1)
    once.copy_(torch.arange(once.numel(), device=once.device).view(once.shape) < chosen)


def _broadcast(*tensors: torch.Tensor) -> int:
    return torch.broadcast_shapes(*(tensor.shape for tensor in tensors)).numel()


def _as_many_as_selected(operands: _Operands, result: Any) -> None:
    _set_first(operands["mask"], result.numel(), _broadcast(operands["self"], operands["mask"]))


def _as_many_as_the_source_has(operands: _Operands, _: Any) -> None:
    elements = _broadcast(operands["self"], operands["mask"])
    _set_first(operands["mask"], min(operands["source"].numel(), elements), elements)


def _as_many_as_are_nonzero(operands: _Operands, result: Any) -> None:
    _set_first(operands["self"], result.shape[0], operands["self"].numel())


def _part_of_the_source(share: float) -> _Fitting:
    """Return a fitting that selects a share of the source: backward fills the rest with zeros."""

    def fitting(operands: _Operands, _: Any) -> None:
        elements = _broadcast(operands["grad_output"], operands["mask"])
        _set_first(operands["mask"], int(min(math.prod(operands["sizes"]), elements) * share), elements)

    return fitting


def _as_many_as_are_put(operands: _Operands, _: Any) -> None:
    """Set as many elements of masks among indices as there are values; all of them for a broadcast value."""
    masks = [index for index in operands["indices"] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    others = [index.numel() for index in operands["indices"] if index is not None and index.dtype.is_signed]
    for mask in masks:
        position = next(place for place, index in enumerate(operands["indices"]) if index is mask)
        after = operands["self"].dim() - position - mask.dim()
        values = operands["values"]
        count = values.shape[-1 - after] if values.dim() > after else 1
        count = max([count, *others])
        _set_first(mask, mask.numel() if count == 1 else count, mask.numel())


def _distinct(operands: _Operands, result: Any) -> None:
    """Fill the operand with as many distinct values, in order, as the result has."""
    tensor, values = operands["self"], result[0]
    dim = operands.get("dim")
    if dim is None:
        order = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
        tensor.copy_(order * values.numel() // max(tensor.numel(), 1))
    else:
        order = torch.arange(tensor.shape[dim], device=tensor.device) * values.shape[dim] // max(tensor.shape[dim], 1)
        tensor.copy_(order.view([-1 if place == dim % tensor.dim() else 1 for place in range(tensor.dim())]))


def _last_is(name: str, least: Callable[[_Operands, Any], int], first: bool = False) -> _Fitting:
    """Return a fitting that sets an operand to zeros, except for its last, or first, element."""

    def fitting(operands: _Operands, result: Any) -> None:
        if isinstance(operands.get(name), torch.Tensor) and operands[name].numel():
            operands[name].zero_()
            operands[name][..., 0 if first else -1] = least(operands, result)

    return fitting


def _all(*fittings: _Fitting) -> _Fitting:
    def fitting(operands: _Operands, result: Any) -> None:
        for part in fittings:
            part(operands, result)

    return fitting


def _ascending(*names: str) -> _Fitting:
    def fitting(operands: _Operands, _: Any) -> None:
        for name in names:
            for tensor in operands[name] if isinstance(operands[name], (list, tuple)) else [operands[name]]:
                if isinstance(tensor, torch.Tensor) and tensor.dim():
                    _once(tensor).copy_(_once(tensor).sort(-1).values)

    return fitting


def _numbered(name: str, first: int) -> _Fitting:
    """Return a fitting that numbers the last dimension from `first`.

    It serves orders, and pivots, which LAPACK uses as indices without checks.
    """

    def fitting(operands: _Operands, _: Any) -> None:
        if isinstance(operands.get(name), torch.Tensor) and operands[name].dim():
            length = operands[name].shape[-1]
            _once(operands[name]).copy_(torch.arange(first, first + length, device=operands[name].device))

    return fitting


def _positive_definite(*names: str) -> _Fitting:
    """Return a fitting that adds the number of rows to the diagonal of matrices with elements between 0 and 1."""

    def fitting(operands: _Operands, _: Any) -> None:
        for name in names:
            if isinstance(operands.get(name), torch.Tensor) and operands[name].dim() > 1:
                _once(operands[name]).diagonal(0, -2, -1).add_(operands[name].shape[-1])

    return fitting


def _with_norms(growth: float) -> _Fitting:
    """Return a fitting with each matrix `growth` times the previous, the first large enough for the longest series."""

    def fitting(operands: _Operands, _: Any) -> None:
        matrices = _once(operands["self"])
        count = max(matrices[..., 0, 0].numel(), 1)
        factors = torch.tensor([growth ** (number % 8) for number in range(count)], device=matrices.device)
        matrices.mul_((16 * factors).view(*matrices.shape[:-2], 1, 1).to(matrices.dtype))

    return fitting


def _set_lengths(tensor: torch.Tensor, longest: int, total: int) -> None:
    """Set descending lengths of sequences, at least 1, starting with the longest, that add up to a total."""
    count = tensor.numel()
    lengths, left = [1] * count, total - count
    for place in range(count):
        more = min(longest - 1, max(left, 0))
        lengths[place] += more
        left -= more
    tensor.copy_(torch.tensor(lengths, dtype=tensor.dtype).view(tensor.shape))


def _packed(operands: _Operands, result: Any) -> None:
    _set_lengths(operands["lengths"], result[1].numel(), result[0].shape[0])


def _packed_backward(operands: _Operands, _: Any) -> None:
    batch = operands["input_size"][0 if operands["batch_first"] else 1]
    _set_lengths(operands["batch_sizes"], batch, operands["grad"].shape[0])


def _labels(operands: _Operands, result: Any) -> None:
    """Set lengths of label sequences, of which the longest fills the table of forward."""
    table = operands["log_alpha"] if "log_alpha" in operands else result[1]
    if isinstance(operands["input_lengths"], torch.Tensor):
        operands["input_lengths"].fill_(operands["log_probs"].shape[0])
    if isinstance(operands["target_lengths"], torch.Tensor):
        longest, targets = (table.shape[-1] - 1) // 2, operands["targets"]
        operands["target_lengths"].fill_(longest)
        if targets.dim() == 1 and longest:
            _set_lengths(operands["target_lengths"], longest, targets.numel())


def _bags(operands: _Operands, _: Any) -> None:
    """Set bags of equal sizes; the kernel for maxima reads only bags that are not empty."""
    count = operands["indices"].numel()
    if isinstance(operands.get("offsets"), torch.Tensor):
        bags = operands["offsets"].numel()
        last = max(bags - bool(operands.get("include_last_offset")), 1)
        operands["offsets"].copy_(torch.arange(bags) * count // last)
    if isinstance(operands.get("bag_size"), torch.Tensor):
        bags = operands["bag_size"].numel()
        operands["bag_size"].fill_(max(count // max(bags, 1), 1))
        placed = operands["offset2bag"].numel()
        operands["offset2bag"].copy_(torch.arange(placed) * bags // max(placed, 1))


def _zero_points(operands: _Operands, _: Any) -> None:
    if isinstance(operands["zero_point"], torch.Tensor):
        operands["zero_point"].fill_(max(operands["quant_min"], 0))


def _segments(operands: _Operands, _: Any) -> None:
    """Put all rows in the first segment."""
    for name, first in (("lengths", True), ("offsets", False)):
        if isinstance(operands.get(name), torch.Tensor):
            rows = operands["data"].shape[operands[name].dim() - 1]
            _last_is(name, lambda *_, rows=rows: rows, first)(operands, None)


_UNIQUE = (_distinct,)
_OLD_CHOLESKY = (aten.cholesky,) if hasattr(aten, "cholesky") else ()  # torch 2.14 has only the one in linalg

_FITTINGS: dict[Any, tuple[_Fitting, ...]] = {
    aten.masked_select: (_as_many_as_selected,),
    aten.masked_scatter: (_as_many_as_the_source_has,),
    aten.masked_scatter_backward: (_part_of_the_source(1.0), _part_of_the_source(0.99), _part_of_the_source(0.0)),
    aten.nonzero: (_as_many_as_are_nonzero,),
    aten.index_put: (_as_many_as_are_put,),
    aten._index_put_impl: (_as_many_as_are_put,),
    aten._unsafe_index_put: (_as_many_as_are_put,),
    aten._unique: _UNIQUE,
    aten._unique2: _UNIQUE,
    aten.unique_dim: _UNIQUE,
    aten.unique_consecutive: _UNIQUE,
    aten.unique_dim_consecutive: _UNIQUE,
    aten.bincount: (_last_is("self", lambda operands, result: result.numel() - 1),),
    aten.repeat_interleave: (_last_is("repeats", lambda operands, result: result.numel()),),
    aten.searchsorted: (_all(_ascending("sorted_sequence"), _numbered("sorter", 0)),),
    aten.bucketize: (_ascending("boundaries"),),
    aten.histogram: (_ascending("bins"),),
    aten._histogramdd_from_bin_tensors: (_ascending("bins"),),
    aten.segment_reduce: (_segments,),
    aten._segment_reduce_backward: (_segments,),
    aten._pack_padded_sequence: (_packed,),
    aten._pack_padded_sequence_backward: (_packed_backward,),
    aten._ctc_loss: (_labels,),
    aten._ctc_loss_backward: (_labels,),
    aten._embedding_bag: (_bags,),
    aten._embedding_bag_forward_only: (_bags,),
    aten._embedding_bag_backward: (_bags,),
    aten._embedding_bag_dense_backward: (_bags,),
    aten._embedding_bag_per_sample_weights_backward: (_bags,),
    aten.fake_quantize_per_channel_affine_cachemask: (_zero_points,),
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams: (_zero_points,),
    aten.lu_unpack: (_numbered("LU_pivots", 1),),
    aten.linalg_lu_solve: (_all(_positive_definite("LU"), _numbered("pivots", 1)),),
    aten.linalg_ldl_solve: (_all(_positive_definite("LD"), _numbered("pivots", 1)),),
    # The number of terms and of squarings follows from each matrix's norm; equal ones are computed together.
    aten.linalg_matrix_exp: (_with_norms(1.0), _with_norms(2.0), _with_norms(1e-3)),
    **dict.fromkeys(
        (aten.linalg_cholesky_ex, aten.linalg_inv_ex, aten._linalg_solve_ex, aten.linalg_lu_factor_ex, *_OLD_CHOLESKY),
        (_positive_definite("self", "A"),),
    ),
}
