"""Replace functions of torch that look at values to check or copy them, and refuses what cannot be captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ...errors import CaptureError, Unsettled
from ..capture_failures import NESTED
from ..torch_internals import ASSERTIONS, MAKES_DUAL, MAKES_NESTED, ONE_HOT, is_functional, is_real
from ..watch.tensor_placeholders import TensorPlaceholders
from .lists_of_tensors import made_of_list
from .shaped_by_data import CTC_LOSSES, ctc_loss

_BACKWARD = (torch.Tensor.backward, torch.autograd.backward)


class PlainBranches(TorchFunctionMode):
    """A mode that intercepts calls of torch by forward, above autograd.

    where: describes the module and line that are running.
    placeholders: the wrappers that replace tensors with data.
    """

    def __init__(self, where: Callable[[], str], placeholders: TensorPlaceholders) -> None:
        super().__init__()
        self.where = where
        self.placeholders = placeholders

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = self.placeholders.instead(args), self.placeholders.instead(kwargs or {})
        if any(isinstance(argument, torch.nn.Parameter) and is_functional(argument) for argument in args):
            raise Unsettled(f"forward makes a parameter, {self.where()}")
        if func is ONE_HOT:
            return _one_hot(*args, **kwargs)
        if func in CTC_LOSSES and args[0].device.type == "cpu":
            return ctc_loss(*args, **kwargs)
        if func in ASSERTIONS:
            return _asserted(*args, **kwargs)
        if func in _BACKWARD:
            self._refuse(
                "forward calls backward",
                "the gradients that it adds to .grad would be added only during capture; compute them with "
                "torch.autograd.grad, or keep that part out of the rewritten module",
            )
        if func in MAKES_DUAL:
            self._refuse(
                "forward differentiates in forward mode (torch.func.jvp, jacfwd, hessian, linearize, or dual tensors)",
                "lowtide cannot follow that; use torch.func.vjp or torch.autograd.grad, or keep that part out of the "
                "rewritten module",
            )
        if func in MAKES_NESTED:
            self._refuse("forward makes a nested tensor", NESTED)
        if func is torch.Tensor.__deepcopy__:
            return _copied(*args)
        if func is torch.Tensor.to_mkldnn:
            self._refuse(
                "forward makes a tensor in oneDNN's own layout (to_mkldnn)",
                "lowtide plans dense tensors; do not convert the tensor, or keep that part out of the rewritten module",
            )
        made = made_of_list(func, args, kwargs)
        result = func(*args, **kwargs) if made is None else made
        if isinstance(result, torch.Tensor) and is_real(result):
            self.placeholders.made[id(result)] = result
        return result

    def _refuse(self, what: str, why: str) -> None:
        raise CaptureError(f"{what}, {self.where()}: {why}")


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """Compute one_hot like eager, without reading the classes first: the kernel itself refuses one out of range."""
    if num_classes < 1 or tensor.numel() == 0 or tensor.dtype != torch.int64:
        return ONE_HOT(tensor, num_classes)
    zeros = torch.zeros((*tensor.shape, num_classes), dtype=tensor.dtype, device=tensor.device)
    return zeros.scatter_(-1, tensor.unsqueeze(-1), 1)


def _copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """Return the copy that `copy.deepcopy` makes of a tensor."""
    if id(tensor) not in memo:
        if not tensor.is_leaf:
            raise RuntimeError("only tensors created explicitly by the user (graph leaves) can be deep-copied")
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return memo[id(tensor)]


def _asserted(condition: torch.Tensor, message: str = "an assertion of the module does not hold") -> None:
    """Make the assertion a decision, which each step checks."""
    if not bool(condition):
        raise RuntimeError(message)
