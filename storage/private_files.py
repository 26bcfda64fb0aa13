"""Reads and writes the files of one user's caches: whole, bounded, and nothing that another user could have put there.

A folder is trusted if it belongs to this user (or to root) and no other user can write to it; the folders above it
must not let another user put something else in its place. A file must belong to the same, lie in such a folder, be a
regular file and not a link. Everything is checked on what was opened, never on a path that could change meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

_OWNED = os.name == "posix" and os.open in os.supports_dir_fd  # files have owners, folders can be held open
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_FOLDER = _NO_LINKS | getattr(os, "O_DIRECTORY", 0)
_PASSED = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)  # a folder that is only passed through need not be readable
_READ = (
    os.O_RDONLY | _NO_LINKS | _BINARY | getattr(os, "O_NONBLOCK", 0)
)  # a pipe in a file's place keeps nobody waiting
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS | _BINARY
_MOST_LINKS = 40
_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_warned: set[str] = set()


class UnsafeError(PermissionError):
    """A file or folder that another user could have made or changed."""


def read_private(path: Path, most_bytes: int, *, touch: bool = False) -> bytes:
    """The content of a file of this user's.

    touch: notes that the file has been asked for, as its time of change. Raises FileNotFoundError where it or its
    folder is missing, UnsafeError where another user could have made or changed either, OSError where it is no
    regular file, larger than `most_bytes` or cannot be read.
    """
    with _opened(path.parent) as folder:
        descriptor = os.open(folder.inside(path.name), _READ, dir_fd=folder.descriptor)
        with os.fdopen(descriptor, "rb") as file:
            known = os.fstat(descriptor)
            if not stat.S_ISREG(known.st_mode):
                raise OSError(errno.EINVAL, "is no regular file", str(path))
            if _OWNED and (known.st_uid not in _trusted() or known.st_mode & _OTHERS):
                raise UnsafeError(errno.EPERM, "is a file that another user could have changed", str(path))
            content = file.read(most_bytes + 1) if known.st_size <= most_bytes else None
            if content is None or len(content) > most_bytes:
                raise OSError(errno.EFBIG, f"has more than {most_bytes} bytes", str(path))
            if touch and os.utime in os.supports_fd:
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
            return content


def write_private(path: Path, content: bytes, *, lasting: bool = False) -> None:
    """Puts a file in a folder of this user's, which is made if it is missing; whole or not at all.

    lasting: waits until it is on the disk, so that no power loss leaves a part of it under its name. Raises OSError
    where it cannot be written, UnsafeError where another user could put something else in its place.
    """
    with _opened(path.parent, make=True) as folder:
        # with the file's own ending, so that what a killed process leaves is removed with the oldest
        temporary = folder.inside(f".{secrets.token_hex(8)}{path.suffix}")
        descriptor = os.open(temporary, _MAKE, 0o600, dir_fd=folder.descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                if lasting:
                    file.flush()
                    os.fsync(descriptor)
            ends = {"src_dir_fd": folder.descriptor, "dst_dir_fd": folder.descriptor}
            os.replace(temporary, folder.inside(path.name), **ends)  # noqa: PTH105 - within the folder held open
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder.descriptor)
            raise
        if lasting and folder.descriptor is not None:
            with contextlib.suppress(OSError):  # not every file system knows how
                os.fsync(folder.descriptor)


def remove_oldest(folder_path: Path, suffix: str, most_bytes: int, most_files: int) -> None:
    """Removes files of that ending which were not asked for longest, until so many bytes and files are left."""
    with _opened(folder_path) as folder:
        files = []
        with os.scandir(folder.path if folder.descriptor is None else folder.descriptor) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    with contextlib.suppress(OSError):  # another process may have removed it
                        known = entry.stat(follow_symlinks=False)
                        files.append((known.st_mtime_ns, known.st_size, entry.name))
        total_bytes = 0
        for number, (_, size_bytes, name) in enumerate(sorted(files, reverse=True)):
            total_bytes += size_bytes
            if total_bytes > most_bytes or number >= most_files:
                with contextlib.suppress(OSError):
                    os.unlink(folder.inside(name), dir_fd=folder.descriptor)


@contextlib.contextmanager
def working_folder(beside: Path | None = None) -> Iterator[Path]:
    """A new folder for this user alone, removed afterwards.

    It lies where no other user can put another in its place: among the system's temporary files, or else in `beside`.
    Raises OSError where neither can be used.
    """
    place = _working_place(beside)
    with tempfile.TemporaryDirectory(prefix="lowtide-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _working_place(beside: Path | None) -> Path:
    problem: OSError = FileNotFoundError(errno.ENOENT, "there is no folder for temporary files")
    try:
        places = [Path(tempfile.gettempdir()), beside]
    except FileNotFoundError:  # none that can be written to
        places = [beside]
    for place in places:
        try:
            if place is not None:
                with _opened(place, make=place is beside, shared=place is not beside):
                    pass
                if os.access(place, os.W_OK):
                    return place
        except OSError as error:
            problem = error
    raise problem


@dataclass(frozen=True)
class _Folder:
    """A folder held open: what is in it is reached through the descriptor, whatever becomes of its path."""

    path: Path
    descriptor: int | None

    def inside(self, name: str) -> str:
        """How a file in it is named to the system, beside the descriptor."""
        return name if self.descriptor is not None else str(self.path / name)


@contextlib.contextmanager
def _opened(path: Path, *, make: bool = False, shared: bool = False) -> Iterator[_Folder]:
    """Holds a trusted folder open. shared: one like /tmp will do, where others may put files but not remove mine.

    Raises UnsafeError, with a warning at the first time, for a folder that is not to be trusted; OSError.
    """
    if not _OWNED:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        yield _Folder(path, None)
        return
    try:
        descriptor = _walked(path, make, shared)
    except UnsafeError as error:
        if not shared:
            _warn(path, error)
        raise
    try:
        yield _Folder(path, descriptor)
    finally:
        os.close(descriptor)


def _walked(path: Path, make: bool, shared: bool) -> int:
    """Goes down to a folder from the root, checks each one on the way after opening it, and returns the last one."""
    pending = [*reversed(path.absolute().parts[1:])]
    at = Path("/")
    here = os.open(at, _PASSED)
    links = 0
    try:
        while pending:
            name = pending.pop()
            try:
                known = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=here)
                known = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(known.st_mode):
                links += 1
                if links > _MOST_LINKS or known.st_uid not in _trusted() | _unknown_root():
                    raise UnsafeError(errno.ELOOP, "is a link that another user made", str(at / name))
                target = PurePath(os.readlink(name, dir_fd=here))
                pending += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                below, at = (os.open("/", _PASSED), Path("/")) if target.is_absolute() else (os.dup(here), at)
            else:
                at = at / name
                is_last = not pending
                below = os.open(name, _FOLDER | os.O_RDONLY if is_last and not shared else _PASSED, dir_fd=here)
            os.close(here)
            here = below
            _check(here, at, own=not pending and not shared)
        return here
    except BaseException:
        os.close(here)
        raise


def _check(descriptor: int, path: Path, own: bool) -> None:
    """Raises UnsafeError if another user could put something else in the place of what is in the folder.

    own: it is one that only this user's files may lie in.
    """
    known = os.fstat(descriptor)
    writable = known.st_mode & _OTHERS
    if known.st_uid not in (_trusted() if own else _trusted() | _unknown_root()):
        raise UnsafeError(errno.EPERM, f"belongs to the user of the number {known.st_uid}", str(path))
    if writable == stat.S_IWGRP and _alone_in(known.st_gid):
        return
    if writable and (own or not known.st_mode & stat.S_ISVTX):
        raise UnsafeError(errno.EPERM, f"can be written by others (mode {known.st_mode & 0o7777:o})", str(path))


def _trusted() -> set[int]:
    """The users whose files may be relied on: root, who can do anything anyway, and this one."""
    return {0, os.geteuid()}


@cache
def _unknown_root() -> set[int]:
    """The number that root's folders have in a sandbox which does not know root; elsewhere none."""
    try:
        spans = [[*map(int, line.split())] for line in Path("/proc/self/uid_map").read_text().splitlines()]
        if any(first == 0 for first, _, _ in spans):
            return set()
        return {int(Path("/proc/sys/kernel/overflowuid").read_text())}
    except (OSError, ValueError):
        return set()


@cache
def _alone_in(group: int) -> bool:
    """Whether a group is this user's own and nobody else is in it, as many systems make one for each user."""
    try:
        import grp
        import pwd

        user, known = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == group and known.gr_name == user.pw_name and set(known.gr_mem) <= {user.pw_name}


def _warn(path: Path, error: UnsafeError) -> None:
    if str(path) not in _warned:
        _warned.add(str(path))
        warnings.warn(
            f"nothing is kept in {str(path)!r} and nothing there is used, since {error.filename!r} {error.strerror}: "
            "kernels are compiled and measured anew by each process; change that folder's owner or mode, or name a "
            "folder of your own in $XDG_CACHE_HOME",
            RuntimeWarning,
            stacklevel=4,
        )
