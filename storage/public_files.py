"""Reads files that anyone may have made, within bounds, and writes those that anyone may read: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | _FLAGS | getattr(os, "O_NONBLOCK", 0)  # a pipe in a file's place keeps nobody waiting
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS | getattr(os, "O_NOFOLLOW", 0)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError where it is none, is larger, or cannot be read."""
    descriptor = os.open(path, _READ)
    with os.fdopen(descriptor, "rb") as file:
        known = os.fstat(descriptor)
        if not stat.S_ISREG(known.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        content = file.read(most_bytes + 1) if known.st_size <= most_bytes else b""
        if known.st_size > most_bytes or len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")
        return content


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file with the mode that new files have, or that it has; what a link leads to, where it is one.

    It is on the disk before it takes the place of what is there: neither a killed process nor a power loss leaves a
    part of it. What is there and is no file, such as a pipe, is written to. Raises OSError.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() and path.exists() else path
    known_mode = None
    with contextlib.suppress(FileNotFoundError):
        known = path.stat()
        if not stat.S_ISREG(known.st_mode):
            path.write_bytes(content)
            return
        known_mode = stat.S_IMODE(known.st_mode)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")  # which nobody can have put there
    descriptor = os.open(temporary, _MAKE, 0o666)  # less what the user's mask takes away
    try:
        if known_mode is not None and hasattr(os, "fchmod"):
            os.fchmod(descriptor, known_mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
