"""Which values of a step could be kept encoded, and the calls that encode and decode them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import fx

from ...kernels.codec import CODECS, Codec
from ..step_graph import StepGraph
from .decode_free_products import LevelProduct, Multiplying, level_product, multiplying
from .index_bounds import codecs_that_narrow
from .lossy_codecs import codecs_that_lose
from .threshold_codecs import codecs_that_compare

_LEAST_BYTES = 4096  # smaller values are not worth a call,
_LEAST_SHARE = 2e-3  # nor all of them planning for, if they are a smaller share of all that is made


@dataclass(frozen=True)
class CodecSite:
    """A codec for one value. encode, decode: calls on stand-ins, whose first argument is the value and the code.

    fitted: what each is told by name, for the values that there are. error: what it adds to the gradient's variance, as
    a share of that which the gradient has anyway; 0 if it is exact, infinite as long as nobody has measured it.
    product: what may run in the place of the value's reader, so that nothing need be decoded.
    """

    codec: Codec
    encode: fx.Node
    decode: fx.Node
    fitted: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    error: float = 0.0
    product: LevelProduct | None = None

    @property
    def calls(self) -> tuple[fx.Node, ...]:
        """All that may be called for it."""
        return self.encode, self.decode, *((self.product.call,) if self.product else ())

    @property
    def code_bytes(self) -> int:
        """What the code takes."""
        return self.encode.meta["val"].untyped_storage().nbytes()

    def named(self, call: fx.Node, seed: Any) -> dict[str, Any]:
        """What `encode` or `decode` is told by name."""
        fitted = self.fitted[0 if call is self.encode else 1]
        return {**call.kwargs, **fitted, **({"seed": seed} if "seed" in call.kwargs else {})}

    def levels_named(self) -> dict[str, Any]:
        """What `product` is told by name."""
        assert self.product is not None
        told = self.named(self.decode, None)
        replaced = self.product.replaced
        return {"levels": replaced.levels(told["representatives"]), "bits": told["bits"], "stride": replaced.stride}

    def coded(self, value: torch.Tensor, seed: int) -> torch.Tensor:
        """A value as it is after encoding and decoding."""
        code = self.codec.encode(value, *self.encode.args[1:], **self.named(self.encode, seed))
        return self.codec.decode(code, *self.decode.args[1:], **self.named(self.decode, seed))

    def fitted_to(self, value: torch.Tensor, gradient: torch.Tensor) -> CodecSite:
        """The coding for a value like this one. gradient: what its reader multiplies with a function of it."""
        return replace(self, fitted=self.codec.fit(value, gradient)) if self.codec.fit else self


def codec_sites_of(
    step: StepGraph, allowed: tuple[str, ...], families: Collection[str]
) -> Mapping[int, tuple[CodecSite, ...]]:
    """By storage, for each that forward makes and backward reads, the codecs of the fidelities allowed that take it.

    families: of approximate codecs (`FAMILIES`).
    """
    forward = [kernel for kernel in step.kernels if kernel.phase == "forward" and kernel.role == "compute"]
    read = {storage for kernel in step.kernels if kernel.phase == "backward" for storage in kernel.reads}
    held = {step.storage_of[node] for node in step.outputs}
    found = {}
    for storage in (made for kernel in forward for made in kernel.makes if made in read - held):
        base, size_bytes = step.storages[storage].base, step.storages[storage].size_bytes
        value = base.meta["val"]
        whole = isinstance(value, torch.Tensor) and value.numel() * value.element_size() == size_bytes
        if not whole or size_bytes < _LEAST_BYTES:
            continue
        codecs = (
            *CODECS,
            *codecs_that_narrow(step, storage),
            *codecs_that_compare(step, storage),
            *codecs_that_lose(step, storage, families),
        )
        taken = [codec for codec in codecs if codec.fidelity in allowed and codec.takes(value)]
        replaced = multiplying(step, storage) if any(codec.multiply for codec in taken) else None
        codec_sites = tuple(_coding(codec, value, replaced) for codec in taken)
        if codec_sites:
            found[storage] = codec_sites
    made_bytes = sum(step.storages[storage].size_bytes for kernel in step.kernels for storage in kernel.makes)
    worth = sum(step.storages[storage].size_bytes for storage in found) >= _LEAST_SHARE * made_bytes
    return found if worth else {}


def _coding(codec: Codec, value: torch.Tensor, replaced: Multiplying | None) -> CodecSite:
    graph = fx.Graph()
    stand_in = graph.placeholder("value")
    stand_in.meta["val"] = value
    told = codec.arguments[0] | {"stride": list(value.stride())} | ({"seed": 0} if codec.draws else {})
    encode = graph.call_function(codec.encode, (stand_in, *codec.encode_options), told)  # pyright: ignore
    encode.meta["val"] = codec.encode(value, *codec.encode_options, **told)
    told = codec.arguments[1] | codec.layout(value) | ({"seed": 0} if codec.redraws else {})
    decode = graph.call_function(codec.decode, (encode, *codec.decode_options), told)
    decode.meta["val"] = codec.decode(encode.meta["val"], *codec.decode_options, **told)
    product = level_product(graph, codec, encode, replaced) if codec.multiply and replaced else None
    return CodecSite(codec, encode, decode, error=inf if codec.fidelity == "approximate" else 0.0, product=product)
