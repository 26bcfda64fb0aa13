"""The state of autocast: what a captured step depends on, and what is left as it was found."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch


def autocast_state(device_type: str) -> Hashable:
    """Which casts autocast makes on the CPU and on this device; whether it casts a weight once or each time."""
    told = tuple(
        (kind, torch.get_autocast_dtype(kind))
        for kind in dict.fromkeys(("cpu", device_type))
        if torch.is_autocast_enabled(kind)
    )
    return (told, torch.is_autocast_cache_enabled()) if told else None


@contextmanager
def autocast_kept(device_type: str) -> Iterator[None]:
    """Leaves autocast as it was found, whatever happens within.

    A context that is entered again while it is entered (a trainer makes one and decorates functions with it) would
    otherwise put back what it found the second time.
    """
    kinds = tuple(dict.fromkeys(("cpu", device_type)))
    before = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    cached = torch.is_autocast_cache_enabled()
    try:
        yield
    finally:
        for kind, enabled, dtype in before:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(cached)
