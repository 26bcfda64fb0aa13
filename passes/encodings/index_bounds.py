"""Which integers of a step are indices of something of known size, and so need fewer bytes than int64."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from ...kernels.codec import Codec
from ...kernels.exact_codes.narrow_integers import NARROW_CODECS, narrowest
from ...kernels.packing.bits import dense
from ..calls import arguments_of, operation_name
from ..step_graph import Kernel, StepGraph

Bounds = tuple[int, int]  # the least and the greatest

# What raises for an index outside of 0, ..., n - 1, n being the length of `self` along `dim`.
_ALONG = ("gather", "scatter", "scatter_add", "scatter_reduce", "index_select", "index_add")
# What takes -n, ..., n - 1 for each of the leading dimensions of `self`.
_EACH = ("index", "index_put")
# What takes classes, or `ignore_index`, for targets, and along which dimension of its first or second operand they are.
_LOSSES = {"nll_loss_forward": -1, "nll_loss2d_forward": 1, "linear_cross_entropy": 0}
# What makes indices along `dim`, and as which of its results.
_MAKERS = {"topk": 1, "sort": 1, "max": 1, "min": 1, "argmax": 0, "argmin": 0, "multinomial": 0}


def codecs_that_narrow(step: StepGraph, storage: int) -> tuple[Codec, ...]:
    """The codec of the fewest bytes for a storage of indices, none for other storages.

    Every element must be an index of something in forward, in eager too: a value outside of its bounds raises there.
    """
    base = step.storages[storage].base
    if base.meta["val"].dtype != torch.int64:
        return ()
    for low, high in _bounds(step, storage, base):
        dtype = narrowest(low, high)
        return (NARROW_CODECS[dtype],) if dtype is not None else ()
    return ()


def _bounds(step: StepGraph, storage: int, base: fx.Node) -> Iterator[Bounds]:
    """All bounds that are known of all elements of a storage."""
    call, result = base.args if base.target is operator.getitem else (base, 0)
    if isinstance(call, fx.Node) and _MAKERS.get(operation_name(call)) == result:
        told = arguments_of(call)
        dim = told.get("dim", -1)
        yield 0, max(_length(told["self"], dim) if dim is not None else told["self"].meta["val"].numel(), 1) - 1
    for kernel in step.kernels:
        if kernel.phase == "forward" and kernel.role == "compute" and storage in kernel.reads:
            for index in _whole(step, storage, kernel):
                yield from (bounds for call in kernel.calls for bounds in _bounds_as_index(call, index))


def _whole(step: StepGraph, storage: int, kernel: Kernel) -> Iterator[fx.Node]:
    """The operands of a kernel that hold every element of a storage."""
    size_bytes = step.storages[storage].size_bytes
    for node in dict.fromkeys(operand for call in kernel.calls for operand in call.all_input_nodes):
        if step.storage_of.get(node) != storage or node.meta["val"].dtype != torch.int64:
            continue
        value = node.meta["val"]
        told = [pair for pair in zip(value.shape, value.stride(), strict=True) if pair[1]]  # without what is expanded
        once = value.as_strided([size for size, _ in told], [stride for _, stride in told])
        if dense(once) and once.numel() * value.element_size() == size_bytes and value.numel():
            yield node


def _bounds_as_index(call: fx.Node, index: fx.Node) -> Iterator[Bounds]:
    """The bounds of what a call takes for indices."""
    name, told = operation_name(call), arguments_of(call)
    if name == "embedding" and told["indices"] is index:
        yield 0, _length(told["weight"], 0) - 1
    elif name in _ALONG and told["index"] is index:
        yield 0, _length(told["self"], told["dim"]) - 1
    elif name in _EACH:
        for dim, one in enumerate(told["indices"]):
            if one is index:
                yield -_length(told["self"], dim), _length(told["self"], dim) - 1
    elif name in _LOSSES and told["target"] is index:
        scores = told["weight" if name == "linear_cross_entropy" else "self"]
        classes = _length(scores, _LOSSES[name])
        yield min(0, told["ignore_index"]), max(classes - 1, told["ignore_index"])


def _length(tensor: fx.Node, dim: int) -> int:
    """Along a dimension; a number has one element."""
    shape = tensor.meta["val"].shape
    return shape[dim] if shape else 1
