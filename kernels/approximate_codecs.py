"""Codecs that lose something: what they give back differs from what was there, and gradients with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .codec import Codec
from .quantize.groups import decode_groups, encode_groups
from .rows.sampling import SAMPLINGS, restore_rows, sample_rows
from .rows.sketches import SKETCHES, sketch, unsketch
from .rows.tensor_rows import rows_and_features

METHODS = {
    "rows": "without_replacement",
    **{name: name for name in (*SKETCHES, *SAMPLINGS) if name != "without_replacement"},
}
"""How a family makes few rows of many, by its name."""

FAMILIES = ("groups", "spread", "derivatives", *METHODS)
"""Of approximate codecs, by the names that a user gives."""

USUAL_FAMILIES = FAMILIES[:4]
"""Those that a plan chooses among unless it is told otherwise."""

SHARES = (0.5, 0.2, 0.1)
"""Of the rows that are kept."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_GROUP = 256


def check_families(families: Sequence[str]) -> None:
    """Raises ValueError unless all are families of approximate codes, one at least."""
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        told = f"no approximate code is called {unknown[0]!r}" if unknown else f"codecs={families!r} allows no code"
        raise ValueError(f"{told}: choose among {', '.join(FAMILIES)}")


def _drawn(
    name: str, family: str, encode: Any, encode_options: tuple, decode: Any, decode_options: tuple, **told: Any
) -> Codec:
    """A codec that rounds, samples or sketches at random, without bias. told: by name, in both directions."""
    return Codec(
        name,
        encode,
        decode,
        _FLOATS,
        "approximate",
        encode_options,
        decode_options,
        tells_dtype=True,
        draws=True,
        redraws=decode is not restore_rows,  # which finds the rows' numbers beside them
        arguments=(told, told),
        family=family,
    )


def _quantized(bits: int, is_spread: bool) -> Codec:
    family = "groups, spread" if is_spread else "groups"
    options = bits, _GROUP, True, is_spread
    return _drawn(f"{bits}-bit {family}", family, encode_groups, options, decode_groups, options)


_QUANTIZED = {
    family: {bits: _quantized(bits, is_spread) for bits in (8, 6, 5, 4, 3, 2)}
    for family, is_spread in (("groups", False), ("spread", True))
}


def group_codecs(families: Iterable[str], fewest_bits: int = 1) -> tuple[Codec, ...]:
    """Codecs of groups of 256 elements, rounded at random without bias; "spread" by a randomized Hadamard transform
    before."""
    told = (_QUANTIZED.get(family, {}).items() for family in families)
    return tuple(codec for several in told for bits, codec in several if bits >= fewest_bits)


def row_codecs(value: torch.Tensor, dim: int, families: Iterable[str]) -> tuple[Codec, ...]:
    """Codecs for what only products read: some of its rows, or sketches of all (`METHODS`).

    dim: along which its features lie (`has_rows`); codecs that would keep no row are left out.
    """
    rows, _ = rows_and_features(list(value.shape), dim)
    kept = {share: round(share * rows) for share in SHARES}
    told = {"dim": dim} if dim < value.dim() - 1 else {}
    return tuple(
        _of_rows(METHODS[family], share, kept[share], told)
        for family in families
        for share in SHARES
        if family in METHODS and 0 < kept[share] < rows
    )


def _of_rows(method: str, share: float, kept: int, told: dict[str, int]) -> Codec:
    if method in SAMPLINGS:
        name, family = f"{share:g} of rows, {method}", f"rows, {method}"
        return _drawn(name, family, sample_rows, (method, kept), restore_rows, (kept,), **told)
    name, family = f"{share:g} sketch, {method}", f"sketch, {method}"
    return _drawn(name, family, sketch, (method, kept), unsketch, (method,), **told)
