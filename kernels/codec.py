"""Ways to keep a tensor in fewer bytes between forward and backward, for the planner to choose among."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .packing.bits import dense, pack_bits, unpack_bits


@dataclass(frozen=True)
class Codec:
    """A pair of operations: one makes a code of a tensor, the other the tensor of its code.

    encode: called with the tensor and `encode_options`, and by name the stride with which the tensor is planned to lie
    (`laid_out`); decode: with the code, `decode_options`, and by name the size
    and stride of the tensor, and its dtype where `tells_dtype`. Encoding takes a `seed` by name where it `draws`,
    decoding the same one where it `redraws`.
    fidelity: what decoding gives back. dtypes: which tensors it takes, dense ones only.
    arguments: what encoding and decoding are told by name besides; fit: the same for a tensor and the gradient that its only
    reader multiplies with a function of it. family: of codecs that differ in one number, and whose errors are alike but
    for a factor. stands_in: what decoding gives back is another tensor, of which its readers in backward make the same
    bits; forward must not read it. multiply: called with a gradient, the code, and by name the `levels` with which its
    reader multiplies gradients where decoding gives back `representatives` (both told by name), and `bits`: as decoding
    and reading, without decoding.
    """

    name: str
    encode: Any
    decode: Any
    dtypes: tuple[torch.dtype, ...]
    fidelity: Literal["bitwise", "rounding", "approximate"] = "bitwise"
    encode_options: tuple[Any, ...] = ()
    decode_options: tuple[Any, ...] = ()
    tells_dtype: bool = False
    draws: bool = False
    redraws: bool = False
    arguments: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}), hash=False)
    fit: Callable[[Tensor, Tensor], tuple[dict[str, Any], dict[str, Any]]] | None = None
    family: str = ""
    stands_in: bool = False
    multiply: Any = None

    def takes(self, value: Tensor) -> bool:
        """Whether it can encode such a tensor."""
        return value.dtype in self.dtypes and dense(value)

    def layout(self, value: Tensor) -> dict[str, Any]:
        """What decoding has to be told of the tensor, by name."""
        told: dict[str, Any] = {"size": list(value.shape), "stride": list(value.stride())}
        return told | ({"dtype": value.dtype} if self.tells_dtype else {})


BITS = Codec("bits", pack_bits, unpack_bits, (torch.bool,))
"""Truth values in a bit each."""

CODECS = (BITS,)
