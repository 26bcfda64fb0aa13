"""Codecs that lose precision: a decoded tensor differs from the encoded one, and the gradients made of it differ
too.
"""

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
"""The method by which a family makes few rows of many, by the family's name."""

FAMILIES = ("groups", "spread", "derivatives", *METHODS)
"""The families of approximate codecs, by the names that a user gives."""

USUAL_FAMILIES = FAMILIES[:4]
"""The families that a plan chooses among by default."""

SHARES = (0.5, 0.2, 0.1)
"""The shares of the rows that are kept."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_GROUP = 256


def check_families(families: Sequence[str]) -> None:
    """Raise ValueError unless all names are families of approximate codes, and there is at least one."""
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        message = f"no approximate code is called {unknown[0]!r}" if unknown else f"codecs={families!r} allows no code"
        raise ValueError(f"{message}: choose among {', '.join(FAMILIES)}")


def _random_codec(
    name: str, family: str, encode: Any, encode_options: tuple, decode: Any, decode_options: tuple, **keywords: Any
) -> Codec:
    """Return a codec that rounds, samples or sketches at random without bias.

    keywords: arguments by name, for encoding and for decoding.
    """
    return Codec(
        name,
        encode,
        decode,
        _FLOATS,
        "approximate",
        encode_options,
        decode_options,
        needs_dtype=True,
        draws=True,
        redraws=decode is not restore_rows,  # it reads the rows' numbers from the code
        arguments=(keywords, keywords),
        family=family,
    )


def _quantized(bits: int, is_spread: bool) -> Codec:
    family = "groups, spread" if is_spread else "groups"
    options = bits, _GROUP, True, is_spread
    return _random_codec(f"{bits}-bit {family}", family, encode_groups, options, decode_groups, options)


_QUANTIZED = {
    family: {bits: _quantized(bits, is_spread) for bits in (8, 6, 5, 4, 3, 2)}
    for family, is_spread in (("groups", False), ("spread", True))
}


def group_codecs(families: Iterable[str], fewest_bits: int = 1) -> tuple[Codec, ...]:
    """Return the codecs of groups of 256 elements, rounded at random without bias.

    The family "spread" applies a randomized Hadamard transform first.
    """
    codecs_of_families = (_QUANTIZED.get(family, {}).items() for family in families)
    return tuple(codec for codecs in codecs_of_families for bits, codec in codecs if bits >= fewest_bits)


def row_codecs(value: torch.Tensor, dim: int, families: Iterable[str]) -> tuple[Codec, ...]:
    """Return codecs for a value that only products read: they keep some of its rows, or sketches of all (`METHODS`).

    dim: the dimension of its features (`has_rows`). Codecs that would keep no row, or all rows, are left out.
    """
    rows, _ = rows_and_features(list(value.shape), dim)
    kept = {share: round(share * rows) for share in SHARES}
    keywords = {"dim": dim} if dim < value.dim() - 1 else {}
    return tuple(
        _row_codec(METHODS[family], share, kept[share], keywords)
        for family in families
        for share in SHARES
        if family in METHODS and 0 < kept[share] < rows
    )


def _row_codec(method: str, share: float, kept: int, keywords: dict[str, int]) -> Codec:
    if method in SAMPLINGS:
        name, family = f"{share:g} of rows, {method}", f"rows, {method}"
        return _random_codec(name, family, sample_rows, (method, kept), restore_rows, (kept,), **keywords)
    name, family = f"{share:g} sketch, {method}", f"sketch, {method}"
    return _random_codec(name, family, sketch, (method, kept), unsketch, (method,), **keywords)
