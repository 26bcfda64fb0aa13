"""The derivative that an activation's backward multiplies by, as a function of the saved input or output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from .activations import Activation, activation_of
from .input_weights import InputWeight, Normal, Uniform

_LOOKED_AT = 257  # inputs


@dataclass(frozen=True)
class SavedDerivative:
    """The key of a derivative, which can be pickled.

    name: the activation's (`activations.NAMES`).
    saved: what backward reads, "input", "output" or "buffer" (of logsigmoid: exp(-|x|)).
    parameters: those that its backward takes, in the order of `_FORMS`.
    """

    name: str
    saved: str = "input"
    parameters: tuple[float, ...] = ()

    @property
    def activation(self) -> Activation:
        """Return the activation whose derivative is a function of what is saved."""
        return _form(self)[0]

    @property
    def has_levels(self) -> bool:
        """Return whether the derivative is finite on the usual support of what is saved, and not constant there.

        SoftPlus with beta = 0 multiplies by a half, ELU with an infinite alpha by NaN.
        """
        try:
            slopes = self.activation.slopes(np.linspace(*self.usual_weight.support, _LOOKED_AT))
        except ValueError:
            return False
        return bool(np.ptp(slopes) > 0)

    @property
    def usual_weight(self) -> InputWeight:
        """Return the assumed distribution of what is saved, used while nothing has been measured."""
        return _form(self)[1]


Form = tuple[
    Callable[[Tensor], Tensor], InputWeight, tuple[float, ...]
]  # the derivative, the weight of its inputs, and its breakpoints


def _elu_of_input(alpha: float, scale: float, input_scale: float) -> Form:
    factor = input_scale * alpha * scale

    def derivative(x: Tensor) -> Tensor:
        return torch.where(x > 0, scale, factor * torch.exp(x.clamp(max=0) * input_scale))

    return derivative, Normal(0.0, 1.0), (0.0,)


def _elu_of_output(alpha: float, scale: float, input_scale: float) -> Form:
    lowest = -alpha * scale
    return lambda y: torch.where(y > 0, scale, input_scale * (y - lowest)), Uniform(min(lowest, 0.0), scale), (0.0,)


def _softplus(beta: float, threshold: float) -> Form:
    def derivative(x: Tensor) -> Tensor:
        return torch.where(x * beta > threshold, 1.0, torch.sigmoid(x * beta))

    return derivative, Normal(0.0, 1.0), (threshold / beta,) if beta else ()


_FORMS: dict[tuple[str, str], Callable[..., Form]] = {
    ("sigmoid", "output"): lambda: (lambda y: y * (1 - y), Uniform(0.0, 1.0), ()),
    ("tanh", "output"): lambda: (lambda y: 1 - y * y, Uniform(-1.0, 1.0), ()),
    ("elu", "input"): _elu_of_input,
    ("elu", "output"): _elu_of_output,
    ("softplus", "input"): _softplus,
    ("logsigmoid", "buffer"): lambda: (lambda z: z / (1 + z), Uniform(0.0, 1.0), ()),
}
"""elu: alpha, scale, input_scale, as `elu_backward` has them, for SELU and CELU too; softplus: beta, threshold."""


@lru_cache(maxsize=64)
def _form(saved_derivative: SavedDerivative) -> tuple[Activation, InputWeight]:
    form = _FORMS.get((saved_derivative.name, saved_derivative.saved))
    if form is None:
        return activation_of(saved_derivative.name), Normal(0.0, 1.0)
    derivative, weight, breakpoints = form(*saved_derivative.parameters)
    breakpoints = tuple(filter(isfinite, breakpoints))
    return Activation(
        f"{saved_derivative.name} of its {saved_derivative.saved}", torch.nn.Identity(), derivative, breakpoints
    ), weight
