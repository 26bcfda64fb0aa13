"""Codecs keep a tensor in fewer bytes between forward and backward; the planner chooses among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .packing.bits import dense, pack_bits, unpack_bits

CodecArguments = tuple[dict[str, Any], dict[str, Any]]
"""The arguments of encoding and of decoding, by name."""


@dataclass(frozen=True)
class Codec:
    """A pair of operations: one makes a code of a tensor, the other a tensor of the code.

    encode: called with the tensor, `encode_options`, and by name the planned stride of the tensor (`laid_out`).
    decode: called with the code, `decode_options`, and by name the size and stride of the tensor.
    dtypes: the types of the tensors that it takes; only dense tensors.
    fidelity: how exactly decoding restores the tensor.
    needs_dtype: whether decoding also takes the tensor's dtype by name.
    draws: whether encoding takes a `seed` by name.
    redraws: whether decoding takes the same seed.
    arguments: further arguments by name, for encoding and for decoding.
    family: a name shared by codecs that differ in one number, and whose errors differ only by a factor.
    decodes_to_placeholder: whether decoding makes another tensor, from which readers in backward compute the same bits;
        forward must not read it.
    """

    name: str
    encode: Any
    decode: Any
    dtypes: tuple[torch.dtype, ...]
    fidelity: Literal["bitwise", "rounding", "approximate"] = "bitwise"
    encode_options: tuple[Any, ...] = ()
    decode_options: tuple[Any, ...] = ()
    needs_dtype: bool = False
    draws: bool = False
    redraws: bool = False
    arguments: CodecArguments = field(default_factory=lambda: ({}, {}), hash=False)
    family: str = ""
    decodes_to_placeholder: bool = False

    def takes(self, value: Tensor) -> bool:
        """Return whether the codec can encode a tensor like this one."""
        return value.dtype in self.dtypes and dense(value)

    def layout(self, value: Tensor) -> dict[str, Any]:
        """Return what decoding needs to know of the tensor, by name."""
        layout: dict[str, Any] = {"size": list(value.shape), "stride": list(value.stride())}
        return layout | ({"dtype": value.dtype} if self.needs_dtype else {})


@dataclass(frozen=True, kw_only=True)
class FittedCodec(Codec):
    """A codec whose levels are fitted to present values, and whose code replaces the tensor in a product.

    fit: makes `arguments` from a tensor and the gradient that its only reader multiplies with a function of it.
    multiply: called with a gradient, the code, and by name `levels`, `bits` and `stride`; does what decoding and
        reading would, without decoding. `levels` are what the reader multiplies with where decoding gives
        `representatives`.
    """

    fit: Callable[[Tensor, Tensor], CodecArguments]
    multiply: Callable[..., Tensor]


BITS = Codec("bits", pack_bits, unpack_bits, (torch.bool,))
"""Truth values in one bit each."""

CODECS = (BITS,)
