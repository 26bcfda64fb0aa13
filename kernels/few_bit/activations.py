"""Pointwise nonlinearities by torch's names, or a user's own functions, with their derivatives in float64."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Pointwise = Callable[[Tensor], Tensor]

_SQRT_2 = math.sqrt(2)
_SQRT_2_PI = math.sqrt(2 * math.pi)
_TANH_SCALE, _TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
_LEAKY_SLOPE = 0.01
_SHRINK = 0.5


@dataclass(frozen=True)
class Activation:
    """A scalar function, applied to each element of a tensor, and its derivative.

    function: on tensors of any shape and floating dtype.
    derivative: float64 → float64, same shape.
    breakpoints: known inputs where the derivative jumps or has a kink; others are found by bisection.
    """

    name: str
    function: Pointwise = field(repr=False, compare=False)
    derivative: Pointwise = field(repr=False)
    breakpoints: tuple[float, ...] = ()

    def slopes(self, x: np.ndarray) -> np.ndarray:
        """Return the derivative at x (float64, any shape); raises ValueError where it is not finite."""
        slopes = self.derivative(torch.from_numpy(np.require(x, np.float64, ["C", "W"]))).numpy()
        if not np.isfinite(slopes).all():
            at = x[~np.isfinite(slopes)].flat[0]
            slope = slopes[~np.isfinite(slopes)].flat[0]
            raise ValueError(
                f"the derivative of {self.name} at {at:.6g} is {slope}: "
                "choose a weight over inputs at which it is a finite number"
            )
        return slopes


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-x / _SQRT_2) + x * torch.exp(-0.5 * x * x) / _SQRT_2_PI


def _gelu_tanh(x: Tensor) -> Tensor:
    inside = 2 * _TANH_SCALE * (x + _TANH_CUBIC * x**3)  # (1 + tanh(u / 2)) / 2 is the sigmoid of u
    right, left = torch.sigmoid(inside), torch.sigmoid(-inside)
    return right * (1 + x * left * 2 * _TANH_SCALE * (1 + 3 * _TANH_CUBIC * x * x))


def _silu(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def _mish(x: Tensor) -> Tensor:
    gate = torch.tanh(F.softplus(x))
    return gate + x * torch.sigmoid(x) * (1 - gate * gate)


def _sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, torch.exp(x.clamp(max=0)))


def _hardswish(x: Tensor) -> Tensor:
    return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, (2 * x + 3) / 6))


def _inside(x: Tensor, low: float, high: float) -> Tensor:
    return ((x > low) & (x < high)).double()


ACTIVATIONS = (
    Activation("gelu", F.gelu, _gelu),
    Activation("gelu_tanh", partial(F.gelu, approximate="tanh"), _gelu_tanh),
    Activation("silu", F.silu, _silu),
    Activation("mish", F.mish, _mish),
    Activation("sigmoid", torch.sigmoid, _sigmoid),
    Activation("tanh", torch.tanh, lambda x: 4 * _sigmoid(2 * x)),
    Activation("softplus", F.softplus, torch.sigmoid),
    Activation("logsigmoid", F.logsigmoid, lambda x: torch.sigmoid(-x)),
    Activation("softsign", F.softsign, lambda x: (1 + x.abs()) ** -2, (0.0,)),
    Activation("tanhshrink", F.tanhshrink, lambda x: torch.tanh(x) ** 2),
    Activation("elu", F.elu, _elu, (0.0,)),
    Activation("celu", F.celu, _elu, (0.0,)),
    Activation(
        "selu", F.selu, lambda x: _SELU_SCALE * torch.where(x > 0, 1.0, _SELU_ALPHA * torch.exp(x.clamp(max=0))), (0.0,)
    ),
    Activation("hardswish", F.hardswish, _hardswish, (-3.0, 3.0)),
    Activation("hardsigmoid", F.hardsigmoid, lambda x: _inside(x, -3, 3) / 6, (-3.0, 3.0)),
    Activation("relu", F.relu, lambda x: (x > 0).double(), (0.0,)),
    Activation("relu6", F.relu6, lambda x: _inside(x, 0, 6), (0.0, 6.0)),
    Activation("leaky_relu", F.leaky_relu, lambda x: torch.where(x > 0, 1.0, _LEAKY_SLOPE).double(), (0.0,)),
    Activation("hardtanh", F.hardtanh, lambda x: _inside(x, -1, 1), (-1.0, 1.0)),
    Activation("hardshrink", F.hardshrink, lambda x: 1 - _inside(x, -_SHRINK, _SHRINK), (-_SHRINK, _SHRINK)),
    Activation("softshrink", F.softshrink, lambda x: 1 - _inside(x, -_SHRINK, _SHRINK), (-_SHRINK, _SHRINK)),
)
"""Torch's activations with its default parameters; for other parameters pass a function of your own to
`activation_of`.
"""

NAMES = tuple(activation.name for activation in ACTIVATIONS)


def activation_of(named: str | Pointwise | Activation) -> Activation:
    """Return the activation of a name, or of a user's own function of tensors with autograd's derivative in float64.

    Raises ValueError for an unknown name, for a function that mixes elements and for one that autograd cannot
    differentiate.
    """
    if isinstance(named, Activation):
        return named
    if isinstance(named, str):
        for activation in ACTIVATIONS:
            if activation.name == named:
                return activation
        closest = difflib.get_close_matches(named, NAMES, 1)
        hint = f"did you mean {closest[0]}? Known" if closest else "known"
        raise ValueError(
            f"no activation is called {named!r}: {hint} are {', '.join(NAMES)}, and functions of your own (module:name)"
        )
    name = getattr(named, "__qualname__", None) or type(named).__name__
    _check_pointwise(name, named)
    return Activation(name, named, partial(_differentiated, name, named))


def _differentiated(name: str, function: Pointwise, x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        y = function(x)
        if not y.requires_grad:
            raise ValueError(f"{name} does not compute its result from its input by operations that autograd follows")
        return torch.autograd.grad(y.sum(), x)[0].detach()


def _check_pointwise(name: str, function: Pointwise) -> None:
    """Raise ValueError for a function that mixes elements (softmax, a sum), which has no scalar derivative."""
    if not callable(function):
        raise ValueError(f"{function!r} is not an activation: pass a name, or a function of a tensor")
    # positive inputs, so that logarithms and roots can be computed too
    x = torch.linspace(0.05, 1.95, 16, dtype=torch.float64)
    with torch.no_grad():
        whole = function(x.clone())
        if not isinstance(whole, Tensor) or whole.shape != x.shape or not whole.is_floating_point():
            result = (
                f"{whole.dtype} of shape {tuple(whole.shape)}" if isinstance(whole, Tensor) else type(whole).__name__
            )
            raise ValueError(
                f"{name} gives {result} for float64 of shape {tuple(x.shape)}: an activation gives a number per element"
            )
        parts = torch.cat([function(part.clone()) for part in x.flip(0).split(3)]).flip(0)
    if not torch.allclose(whole, parts, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(
            f"{name} gives an element a different value next to other elements: it is not a scalar function"
        )
