"""Ways to keep a tensor in fewer bytes between forward and backward, for the planner to choose among."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .bits import dense, pack_bits, unpack_bits


@dataclass(frozen=True)
class Codec:
    """A pair of operations: one makes a code of a tensor, the other the tensor of its code.

    fidelity: what decoding gives back. dtypes: which tensors it takes, dense ones only. options: what encoding and
    decoding are told besides, before size and stride. seeded: both take a `seed`. fit: what both are told of the values
    that a tensor really has, by name. family: of codecs that differ in one number, and whose errors are alike.
    """

    name: str
    encode: Any
    decode: Any
    dtypes: tuple[torch.dtype, ...]
    fidelity: Literal["bitwise", "rounding", "approximate"] = "bitwise"
    options: tuple[Any, ...] = ()
    seeded: bool = False
    fit: Callable[[Tensor], dict[str, float]] | None = None
    family: str = ""

    def takes(self, value: Tensor) -> bool:
        """Whether it can encode such a tensor."""
        return value.dtype in self.dtypes and dense(value)

    def decode_arguments(self, value: Tensor) -> tuple[Any, ...]:
        """What decoding has to be told besides the code: size and stride."""
        return *self.options, list(value.shape), list(value.stride())


BITS = Codec("bits", pack_bits, unpack_bits, (torch.bool,))
"""Truth values in a bit each."""

CODECS = (BITS,)
