"""Rewrites a module that is one operation, and compares its results and gradients with eager's, bit for bit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import lowtide
import torch
from lowtide.rewriter.errors import CaptureError, LowtideError
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .samples import Sample

_DRAWS = 3


@dataclass(frozen=True)
class Outcome:
    """How a sample fared: "equal", "different", "refused", "fails", or "none" where eager has no gradient either."""

    kind: str
    told: str = ""


class OneOperation(nn.Module):
    """Calls an operation on the tensors it is given."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.calls = _Call(sample)

    def forward(self, *tensors: Tensor) -> Any:
        """What the operation returns."""
        return self.calls.sample(*tensors)


class _Call:
    """Holds a sample, whose own tensors the module is not to be asked for."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample


@dataclass(frozen=True)
class _Step:
    outputs: list[Tensor]
    gradients: list[Tensor | None]
    generator: Tensor


def compared(sample: Sample) -> Outcome:
    """Runs a sample in eager and rewritten, with its own numbers, with zeros among them, and with equal ones."""
    if not any(one.requires_grad for one in sample.tensors):
        return Outcome("none")
    module = OneOperation(sample)
    small: Any = None
    for draw in range(_DRAWS):
        tensors = [_drawn(one, draw) for one in sample.tensors]
        try:
            expected = _step(module, tensors)
        except Exception as error:
            if draw:
                continue  # no operand of this operation
            return Outcome("none", str(error))
        if not expected.gradients:
            return Outcome("none")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                small = small or lowtide.rewrite(module, "100%", costs="flops")
                found = _step(small, tensors)
        except CaptureError as error:
            return Outcome("refused", str(error))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            return Outcome("refused" if isinstance(error, LowtideError) else "fails", told)
        differing = _differing(expected, found)
        if differing:
            return Outcome("different", f"{', '.join(differing)}, draw {draw}")
    return Outcome("equal")


def _drawn(tensor: Tensor, draw: int) -> Tensor:
    """A tensor's own numbers, or some of them zero, or all of them rounded, so that some are equal."""
    generator = torch.Generator().manual_seed(draw)
    plain = tensor.detach()
    if draw and plain.layout == torch.strided and (plain.is_floating_point() or plain.is_complex()):
        kept = torch.rand(plain.shape, generator=generator) < 0.7
        plain = torch.where(kept, plain, 0) if draw == 1 or plain.is_complex() else plain.round()
    return plain.clone(memory_format=torch.preserve_format).requires_grad_(tensor.requires_grad)


def _step(module: nn.Module, tensors: list[Tensor]) -> _Step:
    torch.manual_seed(3)
    given = [one.detach().requires_grad_(one.requires_grad) for one in tensors]
    outputs = [one for one in tree_leaves(module(*given)) if isinstance(one, Tensor)]
    able = [one for one in outputs if one.requires_grad]
    leaves = [one for one in given if one.requires_grad]
    generator = torch.Generator().manual_seed(5)
    wide = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in able]
    incoming = [one.to(output.dtype) for one, output in zip(wide, able, strict=True)]
    gradients = torch.autograd.grad(able, leaves, incoming, allow_unused=True) if able and leaves else ()
    return _Step(outputs, list(gradients), torch.get_rng_state())


def _differing(expected: _Step, found: _Step) -> list[str]:
    """What is not the same to the bit; NaN is equal to NaN, and 0 to -0."""
    if len(expected.outputs) != len(found.outputs):
        return [f"{len(found.outputs)} outputs for {len(expected.outputs)}"]
    pairs = {
        **{f"output {i}": pair for i, pair in enumerate(zip(expected.outputs, found.outputs, strict=True))},
        **{f"gradient {i}": pair for i, pair in enumerate(zip(expected.gradients, found.gradients, strict=True))},
        "generator": (expected.generator, found.generator),
    }
    return [name for name, (one, other) in pairs.items() if not _same(one, other)]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if one.layout != torch.strided or other.layout != torch.strided:
        return one.layout == other.layout and _same(one.to_dense(), other.to_dense())
    one, other = (part.detach().resolve_conj().resolve_neg() for part in (one, other))
    return bool(((one == other) | ((one != one) & (other != other))).all())
