"""Codecs that lose something: what they give back differs from what was there, and gradients with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .codecs import Codec
from .group_quantization import decode_groups, encode_groups
from .row_sampling import SAMPLINGS, restore_rows, sample_rows
from .sketches import SKETCHES, sketch, unsketch

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_GROUP = 256


def _quantized(bits: int, is_spread: bool) -> Codec:
    return Codec(
        f"{bits}-bit groups" + (", spread" if is_spread else ""),
        encode_groups,
        decode_groups,
        _FLOATS,
        "approximate",
        encode_options=(bits, _GROUP, True, is_spread),
        decode_options=(bits, _GROUP, is_spread),
        tells_dtype=True,
        draws=True,
        redraws=True,
        family="groups, spread" if is_spread else "groups",
    )


QUANTIZED = tuple(_quantized(bits, is_spread) for is_spread in (False, True) for bits in (8, 4, 3, 2))
"""Groups of 256 elements, rounded at random without bias; "spread" by a randomized Hadamard transform before."""


SHARES = (0.5, 0.2, 0.1)
"""Of the rows that are kept."""


def row_codecs(value: torch.Tensor, methods: Sequence[str] = ("without_replacement",)) -> tuple[Codec, ...]:
    """Codecs for what only products read: some of its rows, or sketches of all (`SAMPLINGS`, `SKETCHES`).

    value: contiguous, seen as (rows, features); codecs that would keep no row are left out.
    """
    rows = value.numel() // max(value.shape[-1], 1)
    kept = {share: round(share * rows) for share in SHARES}
    return tuple(
        _sampled(method, share, kept[share]) if method in SAMPLINGS else _sketched(method, share, kept[share])
        for method in methods
        for share in SHARES
        if 0 < kept[share] < rows
    )


def _sampled(method: str, share: float, kept_rows: int) -> Codec:
    return Codec(
        f"{share:g} of rows, {method}",
        sample_rows,
        restore_rows,
        _FLOATS,
        "approximate",
        encode_options=(method, kept_rows),
        decode_options=(kept_rows,),
        tells_dtype=True,
        draws=True,
        family=f"rows, {method}",
    )


def _sketched(kind: str, share: float, kept_rows: int) -> Codec:
    assert kind in SKETCHES
    return Codec(
        f"{share:g} sketch, {kind}",
        sketch,
        unsketch,
        _FLOATS,
        "approximate",
        encode_options=(kind, kept_rows),
        decode_options=(kind,),
        tells_dtype=True,
        draws=True,
        redraws=True,
        family=f"sketch, {kind}",
    )
