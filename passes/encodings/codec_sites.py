"""Finds the values of a step that could be kept encoded, and the calls that encode and decode them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import fx

from ...kernels.codec import CODECS, Codec, FittedCodec
from ..step_graph import StepGraph
from ..step_kernels import GradAccumulate
from .decode_free_products import GradientProduct, LevelProduct, build_level_product, match_gradient_product
from .index_bounds import codecs_that_narrow
from .lossy_codecs import codecs_that_lose
from .threshold_codecs import codecs_that_compare

_LEAST_BYTES = 4096  # smaller values are not worth a call
_LEAST_SHARE = 2e-3  # values of a smaller share of all made bytes together are not worth planning


@dataclass(frozen=True)
class CodecSite:
    """A codec for one value.

    encode, decode: calls on placeholders, whose first argument is the value and the code.
    fitted: the arguments of each by name that were fitted to the present values.
    error: the variance that it adds to the gradient's, relative to it; 0 if exact, infinite until it is measured.
    product: a call that may replace the value's reader, so that nothing need be decoded.
    """

    codec: Codec
    encode: fx.Node
    decode: fx.Node
    fitted: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    error: float = 0.0
    product: LevelProduct | None = None

    @property
    def calls(self) -> tuple[fx.Node, ...]:
        """Return all calls that may be made for it."""
        return self.encode, self.decode, *((self.product.call,) if self.product else ())

    @property
    def code_bytes(self) -> int:
        """Return the bytes of the code."""
        return self.encode.meta["val"].untyped_storage().nbytes()

    def keywords(self, call: fx.Node, seed: Any) -> dict[str, Any]:
        """Return the arguments of `encode` or `decode` by name."""
        fitted = self.fitted[0 if call is self.encode else 1]
        return {**call.kwargs, **fitted, **({"seed": seed} if "seed" in call.kwargs else {})}

    def product_keywords(self) -> dict[str, Any]:
        """Return the arguments of `product` by name."""
        assert self.product is not None
        keywords = self.keywords(self.decode, None)
        replaced = self.product.replaced
        return {
            "levels": replaced.levels(keywords["representatives"]),
            "bits": keywords["bits"],
            "stride": replaced.stride,
        }

    def round_trip(self, value: torch.Tensor, seed: int) -> torch.Tensor:
        """Return a value after encoding and decoding."""
        code = self.codec.encode(value, *self.encode.args[1:], **self.keywords(self.encode, seed))
        return self.codec.decode(code, *self.decode.args[1:], **self.keywords(self.decode, seed))

    def fitted_to(self, value: torch.Tensor, gradient: torch.Tensor) -> CodecSite:
        """Return the site fitted to a value like this one.

        gradient: the gradient that its reader multiplies with a function of the value.
        """
        return replace(self, fitted=self.codec.fit(value, gradient)) if isinstance(self.codec, FittedCodec) else self


def find_codec_sites(
    step: StepGraph, allowed: tuple[str, ...], families: Collection[str]
) -> Mapping[int, tuple[CodecSite, ...]]:
    """Return by storage, for each that forward makes and backward reads, the sites of the allowed codecs that take it.

    allowed: fidelities.
    families: of approximate codecs (`FAMILIES`).
    """
    forward = [kernel for kernel in step.compute_kernels if kernel.phase == "forward"]
    read = {storage for kernel in step.compute_kernels if kernel.phase == "backward" for storage in kernel.reads}
    held = {step.storage_of[node] for node in step.outputs}
    sites_of_storage = {}
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
        has_levels = any(isinstance(codec, FittedCodec) for codec in taken)
        replaced = match_gradient_product(step, storage) if has_levels else None
        sites = tuple(_codec_site(codec, value, replaced) for codec in taken)
        if sites:
            sites_of_storage[storage] = sites
    # Clones of gradients do not count.
    makers = [kernel for kernel in step.kernels if not isinstance(kernel, GradAccumulate)]
    made_bytes = sum(step.storages[storage].size_bytes for kernel in makers for storage in kernel.makes)
    worth = sum(step.storages[storage].size_bytes for storage in sites_of_storage) >= _LEAST_SHARE * made_bytes
    return sites_of_storage if worth else {}


def _codec_site(codec: Codec, value: torch.Tensor, replaced: GradientProduct | None) -> CodecSite:
    graph = fx.Graph()
    placeholder = graph.placeholder("value")
    placeholder.meta["val"] = value
    keywords = codec.arguments[0] | {"stride": list(value.stride())} | ({"seed": 0} if codec.draws else {})
    encode = graph.call_function(codec.encode, (placeholder, *codec.encode_options), keywords)  # pyright: ignore
    encode.meta["val"] = codec.encode(value, *codec.encode_options, **keywords)
    keywords = codec.arguments[1] | codec.layout(value) | ({"seed": 0} if codec.redraws else {})
    decode = graph.call_function(codec.decode, (encode, *codec.decode_options), keywords)
    decode.meta["val"] = codec.decode(encode.meta["val"], *codec.decode_options, **keywords)
    product = None
    if isinstance(codec, FittedCodec) and replaced:
        product = build_level_product(graph, codec, encode, replaced)
    return CodecSite(codec, encode, decode, error=inf if codec.fidelity == "approximate" else 0.0, product=product)
