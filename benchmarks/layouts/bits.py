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
    """The result for a sample: "equal", "different", "refused", "fails", or "none" if eager has no gradient either."""

    kind: str
    explanation: str = ""


class OneOperation(nn.Module):
    """Calls an operation on the tensors it is given."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.calls = _Call(sample)

    def forward(self, *tensors: Tensor) -> Any:
        """Return what the operation returns."""
        return self.calls.sample(*tensors)


class _Call:
    """Holds a sample, so that the module does not own the sample's tensors."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample


@dataclass(frozen=True)
class _Step:
    outputs: list[Tensor]
    gradients: list[Tensor | None]
    generator: Tensor


def compared(sample: Sample) -> Outcome:
    """Run a sample in eager and rewritten, with its own numbers, with zeros among them, and with equal ones."""
    if not any(tensor.requires_grad for tensor in sample.tensors):
        return Outcome("none")
    module = OneOperation(sample)
    small: Any = None
    for draw in range(_DRAWS):
        tensors = [_drawn(tensor, draw) for tensor in sample.tensors]
        try:
            expected = _step(module, tensors)
        except Exception as error:
            if draw:
                continue  # not an operand of this operation
            return Outcome("none", str(error))
        if not expected.gradients:
            return Outcome("none")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                small = small or lowtide.rewrite(module, "100%", costs="flops")
                actual = _step(small, tensors)
        except CaptureError as error:
            return Outcome("refused", str(error))
        except Exception as error:
            explanation = f"{type(error).__name__}: {error}"
            return Outcome("refused" if isinstance(error, LowtideError) else "fails", explanation)
        differing = _differing(expected, actual)
        if differing:
            return Outcome("different", f"{', '.join(differing)}, draw {draw}")
    return Outcome("equal")


def _drawn(tensor: Tensor, draw: int) -> Tensor:
    """Return a tensor's own numbers, or some of them zero, or all of them rounded, so that some are equal."""
    generator = torch.Generator().manual_seed(draw)
    plain = tensor.detach()
    if draw and plain.layout == torch.strided and (plain.is_floating_point() or plain.is_complex()):
        kept = torch.rand(plain.shape, generator=generator) < 0.7
        plain = torch.where(kept, plain, 0) if draw == 1 or plain.is_complex() else plain.round()
    return plain.clone(memory_format=torch.preserve_format).requires_grad_(tensor.requires_grad)


def _step(module: nn.Module, tensors: list[Tensor]) -> _Step:
    torch.manual_seed(3)
    given = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    outputs = [tensor for tensor in tree_leaves(module(*given)) if isinstance(tensor, Tensor)]
    differentiable = [tensor for tensor in outputs if tensor.requires_grad]
    leaves = [tensor for tensor in given if tensor.requires_grad]
    generator = torch.Generator().manual_seed(5)
    wide = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in differentiable]
    incoming = [tensor.to(output.dtype) for tensor, output in zip(wide, differentiable, strict=True)]
    gradients = (
        torch.autograd.grad(differentiable, leaves, incoming, allow_unused=True) if differentiable and leaves else ()
    )
    return _Step(outputs, list(gradients), torch.get_rng_state())


def _differing(expected: _Step, actual: _Step) -> list[str]:
    """List what is not the same to the bit; NaN is equal to NaN, and 0 to -0."""
    if len(expected.outputs) != len(actual.outputs):
        return [f"{len(actual.outputs)} outputs for {len(expected.outputs)}"]
    pairs = {
        **{f"output {i}": pair for i, pair in enumerate(zip(expected.outputs, actual.outputs, strict=True))},
        **{f"gradient {i}": pair for i, pair in enumerate(zip(expected.gradients, actual.gradients, strict=True))},
        "generator": (expected.generator, actual.generator),
    }
    return [name for name, (left, right) in pairs.items() if not _same(left, right)]


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    if left.layout != torch.strided or right.layout != torch.strided:
        return left.layout == right.layout and _same(left.to_dense(), right.to_dense())
    left, right = (tensor.detach().resolve_conj().resolve_neg() for tensor in (left, right))
    return bool(((left == right) | ((left != left) & (right != right))).all())
