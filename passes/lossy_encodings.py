"""Which approximate codecs a value of a step may have: by what reads it in backward."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..kernels.approximate_codecs import FAMILIES, QUANTIZED, row_codecs
from ..kernels.codecs import Codec
from .derivative_encodings import codecs_of_derivatives, compares
from .products import is_product
from .step_graph import Kernel, StepGraph


def codecs_that_lose(step: StepGraph, storage: int, families: Collection[str]) -> Iterator[Codec]:
    """The approximate codecs of some `FAMILIES` for what lies in a storage."""
    value = step.storages[storage].base.meta["val"]
    if not value.is_floating_point():
        return
    readers = [kernel for kernel in step.kernels if kernel.phase == "backward" and storage in kernel.reads]
    chosen = [family for family in FAMILIES if family in families]
    if "derivatives" in chosen:
        yield from codecs_of_derivatives(step, storage, readers)
    if any(map(compares, readers)):
        return
    for family in chosen:
        yield from QUANTIZED.get(family, ())
    if value.dim() > 1 and value.is_contiguous() and all(map(_is_linear, readers)):
        yield from row_codecs(value, chosen)


def _is_linear(kernel: Kernel) -> bool:
    """Whether a kernel is a product with weights, not one of attention, whose probabilities all rows make together."""
    names = [str(call.target) for call in kernel.calls]
    return is_product(kernel) and not any(word in name for name in names for word in ("attention", "bmm"))
