"""Reads files that anyone may have made, within bounds, and writes files that anyone may read, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | _FLAGS | getattr(os, "O_NONBLOCK", 0)  # a pipe in the place of a file does not block
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS | getattr(os, "O_NOFOLLOW", 0)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file. Raises OSError if it is not one, is larger, or cannot be read."""
    descriptor = os.open(path, _READ)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        content = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
        if status.st_size > most_bytes or len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")
        return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, with its present mode or that of new files; for a link, write its target.

    The content is on the disk before it replaces the old file, so neither a killed process nor a power loss leaves a
    part of it. A path that exists but is not a regular file, such as a pipe, is written to. Raises OSError.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() and path.exists() else path
    present_mode = None
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            path.write_bytes(content)
            return
        present_mode = stat.S_IMODE(status.st_mode)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")  # which nobody can have made before
    descriptor = os.open(temporary, _MAKE, 0o666)  # without the bits of the user's mask
    try:
        if present_mode is not None and hasattr(os, "fchmod"):
            os.fchmod(descriptor, present_mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
