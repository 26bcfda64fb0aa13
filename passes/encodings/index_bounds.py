"""Finds integers of a step that are indices into a known size, and so need fewer bytes than int64."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from ...kernels.codec import Codec
from ...kernels.exact_codes.narrow_integers import NARROW_CODECS, narrowest
from ...kernels.packing.bits import dense
from ..calls import arguments_of, operation_name
from ..step_graph import StepGraph
from ..step_kernels import ComputeKernel

Bounds = tuple[int, int]  # the least and the greatest

# Operations that raise for an index outside of 0, ..., n - 1, n being the length of `self` along `dim`.
_ALONG = ("gather", "scatter", "scatter_add", "scatter_reduce", "index_select", "index_add")
# Operations that take -n, ..., n - 1 for each of the leading dimensions of `self`.
_EACH = ("index", "index_put")
# Operations that take classes, or `ignore_index`, as targets, and the dimension of their scores that has the classes.
_LOSSES = {"nll_loss_forward": -1, "nll_loss2d_forward": 1, "linear_cross_entropy": 0}
# Operations that make indices along `dim`, and the number of that result.
_MAKERS = {"topk": 1, "sort": 1, "max": 1, "min": 1, "argmax": 0, "argmin": 0, "multinomial": 0}


def codecs_that_narrow(step: StepGraph, storage: int) -> tuple[Codec, ...]:
    """Return the codec of the fewest bytes for a storage of indices, none for other storages.

    Every element must be used as an index in forward, in eager too: a value outside of its bounds raises there.
    """
    base = step.storages[storage].base
    if base.meta["val"].dtype != torch.int64:
        return ()
    for low, high in _bounds(step, storage, base):
        dtype = narrowest(low, high)
        return (NARROW_CODECS[dtype],) if dtype is not None else ()
    return ()


def _bounds(step: StepGraph, storage: int, base: fx.Node) -> Iterator[Bounds]:
    """Yield all known bounds of all elements of a storage."""
    call, result = base.args if base.target is operator.getitem else (base, 0)
    if isinstance(call, fx.Node) and _MAKERS.get(operation_name(call)) == result:
        arguments = arguments_of(call)
        dim = arguments.get("dim", -1)
        yield (
            0,
            max(_length(arguments["self"], dim) if dim is not None else arguments["self"].meta["val"].numel(), 1) - 1,
        )
    for kernel in step.compute_kernels:
        if kernel.phase == "forward" and storage in kernel.reads:
            for index in _whole(step, storage, kernel):
                yield from (bounds for call in kernel.calls for bounds in _bounds_as_index(call, index))


def _whole(step: StepGraph, storage: int, kernel: ComputeKernel) -> Iterator[fx.Node]:
    """Yield the operands of a kernel that hold every element of a storage."""
    size_bytes = step.storages[storage].size_bytes
    for node in dict.fromkeys(operand for call in kernel.calls for operand in call.all_input_nodes):
        if step.storage_of.get(node) != storage or node.meta["val"].dtype != torch.int64:
            continue
        value = node.meta["val"]
        dims = [pair for pair in zip(value.shape, value.stride(), strict=True) if pair[1]]  # without what is expanded
        unexpanded = value.as_strided([size for size, _ in dims], [stride for _, stride in dims])
        if dense(unexpanded) and unexpanded.numel() * value.element_size() == size_bytes and value.numel():
            yield node


def _bounds_as_index(call: fx.Node, index: fx.Node) -> Iterator[Bounds]:
    """Yield the bounds of the values that a call takes as indices."""
    name, arguments = operation_name(call), arguments_of(call)
    if name == "embedding" and arguments["indices"] is index:
        yield 0, _length(arguments["weight"], 0) - 1
    elif name in _ALONG and arguments["index"] is index:
        yield 0, _length(arguments["self"], arguments["dim"]) - 1
    elif name in _EACH:
        for dim, indices in enumerate(arguments["indices"]):
            if indices is index:
                yield -_length(arguments["self"], dim), _length(arguments["self"], dim) - 1
    elif name in _LOSSES and arguments["target"] is index:
        scores = arguments["weight" if name == "linear_cross_entropy" else "self"]
        classes = _length(scores, _LOSSES[name])
        yield min(0, arguments["ignore_index"]), max(classes - 1, arguments["ignore_index"])


def _length(tensor: fx.Node, dim: int) -> int:
    """Return the length along a dimension; a number has one element."""
    shape = tensor.meta["val"].shape
    return shape[dim] if shape else 1
