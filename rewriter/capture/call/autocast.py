"""The state of autocast, on which a captured step depends, and a context that restores it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch


def autocast_state(device_type: str) -> Hashable:
    """Return the casts of autocast on the CPU and on this device, and whether it caches casts of weights."""
    casts = tuple(
        (kind, torch.get_autocast_dtype(kind))
        for kind in dict.fromkeys(("cpu", device_type))
        if torch.is_autocast_enabled(kind)
    )
    return (casts, torch.is_autocast_cache_enabled()) if casts else None


@contextmanager
def autocast_kept(device_type: str) -> Iterator[None]:
    """Restore the state of autocast at the end of this context.

    An autocast object that is entered twice (a trainer makes one and decorates functions with it) would otherwise
    restore the state of the second entry.
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
