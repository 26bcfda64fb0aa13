"""Compares the memory layouts of real and fake results of every ATen call."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lowtide.rewriter.capture.eager.fake_kernel_fixes import as_eager_makes_it
from lowtide.rewriter.capture.operands.layouts_seen import Layouts, format_layouts, layouts_of, lie_alike, operands_of
from lowtide.rewriter.capture.torch_internals import OperationMode, tensors_without_data
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .samples import LAYOUTS, Sample, laid_out


@dataclass
class Compared:
    """The comparisons of one operation.

    calls: distinct calls.
    differ: calls with a fake result of another layout.
    corrected: those of them that the table of `fake_kernel_fixes.py` corrects.
    example: a description of one that it does not.
    failures: errors where nothing could be compared.
    """

    calls: int = 0
    differ: int = 0
    corrected: int = 0
    example: str = ""
    failures: Counter[str] = field(default_factory=Counter)


class Comparing(OperationMode):
    """Runs every call below autograd on fake tensors too, and compares the layouts of the results."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: dict[str, Compared] = defaultdict(Compared)
        self.where = ""
        self._without_data: Any = tensors_without_data()
        self._seen: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [tensor for tensor in tree_leaves((args, kwargs, out)) if isinstance(tensor, Tensor)]
        plain = all(tensor.layout == torch.strided and not tensor.is_quantized for tensor in tensors)
        if plain and not func._schema.is_mutable and func.namespace != "prim":
            self._compare(func, args, kwargs, out)
        return out

    def _compare(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        key = (func, repr(tree_map_only(Tensor, _describe, (args, kwargs))))
        if key in self._seen:
            return
        self._seen.add(key)
        compared = self.by_operation[str(func)]
        compared.calls += 1
        made: dict[int, Tensor] = {}
        with self._without_data:
            positional, named = tree_map_only(Tensor, lambda tensor: _fake(tensor, made), (args, kwargs))
            try:
                raw = func(*positional, **named)
                fixed = as_eager_makes_it(func, positional, raw)
            except Exception as error:
                compared.failures[type(error).__name__] += 1
                return
        operands = operands_of(positional, named)
        seen = layouts_of(out, operands_of(args, kwargs))
        if not lie_alike(raw, seen, operands, False):
            compared.differ += 1
            compared.corrected += lie_alike(fixed, seen, operands, False)
        if not lie_alike(fixed, seen, operands, False):
            compared.example = compared.example or self._shown(key[1], seen, layouts_of(fixed, operands))

    def _shown(self, call: str, seen: Layouts, fake_layouts: Layouts) -> str:
        return (
            f"{self.where}: {call[:300]}\n      real {format_layouts(seen)}\n      fake {format_layouts(fake_layouts)}"
        )


def _describe(tensor: Tensor) -> str:
    lazy = "*" * tensor.is_conj() + "-" * tensor.is_neg()
    return f"{str(tensor.dtype)[6:]}{list(tensor.shape)}{tensor.stride()}{lazy}".replace(" ", "")


def _fake(tensor: Tensor, made: dict[int, Tensor]) -> Tensor:
    """Return the fake tensor for a real one, with a storage of the same size."""
    if id(tensor) not in made:
        length = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = torch.empty(length, dtype=tensor.dtype, device=tensor.device)
        made[id(tensor)] = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return made[id(tensor)]


def run_laid_out(sample: Sample, comparing: Comparing) -> None:
    """Run a call and its backward, with its tensors and the incoming gradients in every layout."""
    for layout in LAYOUTS:
        comparing.where = f"{sample.name} {sample.number}, {layout}"
        try:
            variant = laid_out(sample, layout)
            if variant is not None:
                with comparing:
                    _run(variant)
        except Exception as error:  # some operations do not take some layouts
            comparing.by_operation[f"({sample.name})"].failures[type(error).__name__] += 1


def _run(sample: Sample) -> None:
    returned = tree_leaves(sample(*sample.tensors))
    outputs = [tensor for tensor in returned if isinstance(tensor, Tensor) and tensor.requires_grad]
    leaves = [tensor for tensor in sample.tensors if tensor.requires_grad]
    for gradients in _gradients(outputs) if leaves and outputs else ():
        torch.autograd.grad(outputs, leaves, gradients, allow_unused=True, retain_graph=True)


def _gradients(outputs: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield incoming gradients, all in the same layout."""
    for layout in ("contiguous", "turned", "channels last", "expanded"):
        can, change = LAYOUTS[layout]
        ones = [torch.ones_like(output, memory_format=torch.contiguous_format).detach() for output in outputs]
        if layout == "contiguous" or any(can(output) for output in ones):
            yield [change(output) if can(output) else output for output in ones]
