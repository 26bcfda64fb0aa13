"""Chooses the approximate codecs that a value of a step may have, by its readers in backward."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import fx

from ...kernels.approximate_codecs import FAMILIES, group_codecs, row_codecs
from ...kernels.codec import Codec
from ...kernels.rows.tensor_rows import has_rows
from ..calls import arguments_of, operation_name
from ..compute_intensive import is_product
from ..step_graph import StepGraph
from ..step_kernels import ComputeKernel
from .backward_reads import reads_of_values
from .comparisons import is_compared
from .derivative_codecs import codecs_of_derivatives
from .exponentials import FEWEST_BITS, is_exponentiated
from .singularities import has_singularity


def codecs_that_lose(step: StepGraph, storage: int, families: Collection[str]) -> Iterator[Codec]:
    """Yield the approximate codecs of some `FAMILIES` for a storage's value."""
    value = step.storages[storage].base.meta["val"]
    if not value.is_floating_point():
        return
    readers = step.backward_readers(storage)
    chosen = [family for family in FAMILIES if family in families]
    if "derivatives" in chosen:
        yield from codecs_of_derivatives(step, storage, readers)
    reads = tuple(reads_of_values(step, storage, readers))
    if is_compared(step, reads) or has_singularity(step, reads):
        return
    if is_exponentiated(step, reads):
        yield from group_codecs(chosen, FEWEST_BITS)
        return
    yield from group_codecs(chosen)
    dims = {_feature_dim(step, storage, kernel) for kernel in readers}
    dim = dims.pop()
    if not dims and dim is not None and value.dim() > 1 and has_rows(value, dim):
        yield from row_codecs(value, dim, chosen)


def _feature_dim(step: StepGraph, storage: int, kernel: ComputeKernel) -> int | None:
    """Return the dimension of a value along which a product of it with weights has features; it sums over all others,
    rows.

    None if the kernel is another product: attention, whose probabilities all rows make together, or a batched product
        of
    two values that forward made.
    """
    value = step.storages[storage].base.meta["val"]
    names = {operation_name(call) for call in kernel.calls}
    if not is_product(kernel) or any(word in name for name in names for word in ("attention", "bmm")):
        return None
    convolution = next((call for call in kernel.calls if operation_name(call) == "convolution_backward"), None)
    if convolution is None:
        return value.dim() - 1
    arguments = arguments_of(convolution).items()
    read = {name: a for name, a in arguments if isinstance(a, fx.Node) and step.storage_of.get(a) == storage}
    if list(read) != ["input"]:
        return None
    operand = read["input"].meta["val"]
    places = list(zip(value.shape, value.stride(), strict=True))
    channels = operand.shape[1], operand.stride(1)  # of a view of the value, or of the value itself
    return places.index(channels) if channels in places else None
