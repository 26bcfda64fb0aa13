"""Selects models by family, as far as its package is installed, and by pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from .case import Case

FAMILIES = {
    "torch": "of_torch.cases",
    "transformers": "of_transformers.cases",
    "peft": "of_peft",
    "timm": "of_timm",
    "diffusers": "of_diffusers.cases",
    "torchvision": "of_torchvision",
}


@cache
def cases_of(family: str) -> Sequence[Case]:
    """Return the models of a family in order; none if its package is not installed."""
    if find_spec(family) is None:
        return ()
    return tuple(import_module(f".cases.{FAMILIES[family]}", __package__).cases())


def matching(families: Iterable[str] | None, patterns: Sequence[str] | None) -> list[Case]:
    """Return the models of some families (all by default) whose names match or contain a pattern."""
    every = [case for family in families or FAMILIES for case in cases_of(family)]
    if not patterns:
        return every
    return [case for case in every if any(fnmatch.fnmatch(case.name, p) or p in case.name for p in patterns)]
