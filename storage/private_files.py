"""Reads and writes the files of one user's caches: whole, bounded, and never made or changed by another user.

A folder is trusted if it belongs to this user or to root and no other user can write to it. The folders above it must
not let another user replace it. A file must belong to this user or root, lie in a trusted folder, and be a regular
file, not a link. All checks are made on opened descriptors, never on a path that could change meanwhile.
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
_PASSED = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)  # folders on the way need not be readable
_READ = os.O_RDONLY | _NO_LINKS | _BINARY | getattr(os, "O_NONBLOCK", 0)  # a pipe in the place of a file does not block
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS | _BINARY
_MOST_LINKS = 40
_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_warned: set[str] = set()


class UnsafeError(PermissionError):
    """A file or folder that another user could have made or changed."""


def read_private(path: Path, most_bytes: int, *, touch: bool = False) -> bytes:
    """Return the content of a file of this user.

    Raises FileNotFoundError if it or its folder is missing, UnsafeError if another user could have made or changed
    either, and OSError if it is not a regular file, is larger than `most_bytes` or cannot be read.

    touch: whether to record the access as the file's time of change.
    """
    with _opened(path.parent) as folder:
        descriptor = os.open(folder.inside(path.name), _READ, dir_fd=folder.descriptor)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "is not a regular file", str(path))
            if _OWNED and (status.st_uid not in _trusted() or status.st_mode & _OTHERS):
                raise UnsafeError(errno.EPERM, "is a file that another user could have changed", str(path))
            content = file.read(most_bytes + 1) if status.st_size <= most_bytes else None
            if content is None or len(content) > most_bytes:
                raise OSError(errno.EFBIG, f"has more than {most_bytes} bytes", str(path))
            if touch and os.utime in os.supports_fd:
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
            return content


def write_private(path: Path, content: bytes, *, lasting: bool = False) -> None:
    """Write a file of this user, whole or not at all; a missing folder is made.

    Raises OSError if it cannot be written, and UnsafeError if another user could replace it.

    lasting: whether to wait until it is on the disk, so that a power loss cannot leave a part of it.
    """
    with _opened(path.parent, make=True) as folder:
        # with the file's own ending, so that files left by a killed process are removed with the oldest
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
            with contextlib.suppress(OSError):  # not every file system supports it
                os.fsync(folder.descriptor)


def remove_oldest(folder_path: Path, suffix: str, most_bytes: int, most_files: int) -> None:
    """Remove the least recently used files with this ending until the rest is within both limits."""
    with _opened(folder_path) as folder:
        files = []
        with os.scandir(folder.path if folder.descriptor is None else folder.descriptor) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    with contextlib.suppress(OSError):  # another process may have removed it
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_mtime_ns, status.st_size, entry.name))
        total_bytes = 0
        for position, (_, size_bytes, name) in enumerate(sorted(files, reverse=True)):
            total_bytes += size_bytes
            if total_bytes > most_bytes or position >= most_files:
                with contextlib.suppress(OSError):
                    os.unlink(folder.inside(name), dir_fd=folder.descriptor)


@contextlib.contextmanager
def working_folder(fallback: Path | None = None) -> Iterator[Path]:
    """Make a new folder for this user alone, and remove it afterwards.

    It lies where no other user can replace it: among the system's temporary files, or else in `fallback`. Raises
    OSError if neither can be used.
    """
    place = _working_place(fallback)
    with tempfile.TemporaryDirectory(prefix="lowtide-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _working_place(fallback: Path | None) -> Path:
    failure: OSError = FileNotFoundError(errno.ENOENT, "there is no folder for temporary files")
    try:
        places = [Path(tempfile.gettempdir()), fallback]
    except FileNotFoundError:  # no temporary folder is writable
        places = [fallback]
    for place in places:
        try:
            if place is not None:
                with _opened(place, make=place is fallback, shared=place is not fallback):
                    pass
                if os.access(place, os.W_OK):
                    return place
        except OSError as error:
            failure = error
    raise failure


@dataclass(frozen=True)
class _Folder:
    """A folder held open: its files are reached through the descriptor, even if its path changes."""

    path: Path
    descriptor: int | None

    def inside(self, name: str) -> str:
        """Return the name of one of its files for system calls that also take the descriptor."""
        return name if self.descriptor is not None else str(self.path / name)


@contextlib.contextmanager
def _opened(path: Path, *, make: bool = False, shared: bool = False) -> Iterator[_Folder]:
    """Hold a trusted folder open.

    Raises UnsafeError, with a warning the first time, for a folder that is not trusted, and OSError if it cannot be
    opened.

    shared: whether to accept a folder like /tmp, where others may put files but not remove this user's.
    """
    if not _OWNED:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        yield _Folder(path, None)
        return
    try:
        descriptor = _open_from_root(path, make, shared)
    except UnsafeError as error:
        if not shared:
            _warn(path, error)
        raise
    try:
        yield _Folder(path, descriptor)
    finally:
        os.close(descriptor)


def _open_from_root(path: Path, make: bool, shared: bool) -> int:
    """Open a folder step by step from the root, check each folder once open, and return the last descriptor."""
    pending = [*reversed(path.absolute().parts[1:])]
    path_so_far = Path("/")
    here = os.open(path_so_far, _PASSED)
    links = 0
    try:
        while pending:
            name = pending.pop()
            try:
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=here)
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MOST_LINKS or status.st_uid not in _trusted() | _unknown_root():
                    raise UnsafeError(errno.ELOOP, "is a link that another user made", str(path_so_far / name))
                target = PurePath(os.readlink(name, dir_fd=here))
                pending += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                below, path_so_far = (
                    (os.open("/", _PASSED), Path("/")) if target.is_absolute() else (os.dup(here), path_so_far)
                )
            else:
                path_so_far = path_so_far / name
                is_last = not pending
                below = os.open(name, _FOLDER | os.O_RDONLY if is_last and not shared else _PASSED, dir_fd=here)
            os.close(here)
            here = below
            _check(here, path_so_far, own=not pending and not shared)
        return here
    except BaseException:
        os.close(here)
        raise


def _check(descriptor: int, path: Path, own: bool) -> None:
    """Raise UnsafeError if another user could replace files in the folder.

    own: whether only files of this user may lie in it.
    """
    status = os.fstat(descriptor)
    writable = status.st_mode & _OTHERS
    if status.st_uid not in (_trusted() if own else _trusted() | _unknown_root()):
        raise UnsafeError(errno.EPERM, f"belongs to user {status.st_uid}", str(path))
    if writable == stat.S_IWGRP and _alone_in(status.st_gid):
        return
    if writable and (own or not status.st_mode & stat.S_ISVTX):
        raise UnsafeError(errno.EPERM, f"can be written by others (mode {status.st_mode & 0o7777:o})", str(path))


def _trusted() -> set[int]:
    """Return the users whose files are trusted: root, who can change any file, and this one."""
    return {0, os.geteuid()}


@cache
def _unknown_root() -> set[int]:
    """Return the owner of root's folders in a sandbox that does not map root; elsewhere none."""
    try:
        spans = [[*map(int, line.split())] for line in Path("/proc/self/uid_map").read_text().splitlines()]
        if any(first == 0 for first, _, _ in spans):
            return set()
        return {int(Path("/proc/sys/kernel/overflowuid").read_text())}
    except (OSError, ValueError):
        return set()


@cache
def _alone_in(group: int) -> bool:
    """Return whether a group is this user's own without other members, as many systems make for each user."""
    try:
        import grp
        import pwd

        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == group and entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}


def _warn(path: Path, error: UnsafeError) -> None:
    if str(path) not in _warned:
        _warned.add(str(path))
        warnings.warn(
            f"nothing is kept in {str(path)!r} and nothing there is used, since {error.filename!r} {error.strerror}: "
            "each process compiles and measures kernels again; change that folder's owner or mode, or set "
            "$XDG_CACHE_HOME to a folder of your own",
            RuntimeWarning,
            stacklevel=4,
        )
