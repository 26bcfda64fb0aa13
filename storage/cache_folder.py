"""The folder of a user's caches."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Return `lowtide` in the user's cache folder: `$XDG_CACHE_HOME`, by default `~/.cache`; None without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named) / "lowtide"
    try:
        folder = Path("~/.cache").expanduser()
    except RuntimeError:  # a user without an entry and without $HOME
        return None
    return folder / "lowtide" if folder.is_absolute() else None
