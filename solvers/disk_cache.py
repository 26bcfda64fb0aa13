"""Keeps what solving finds on disk: named entries of JSON and arrays, checked, written at once, limited in size."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = 1  # raise it when the layout of entries changes
_OPENING = b"lowtide entry\n"
_DIGEST_BYTES = sha256().digest_size
_LENGTH_BYTES = 8
_SUFFIX = ".entry"
_LIBRARIES = ("numpy", "pulp", "highspy")  # whose results the solvers hand on


def cache_folder() -> Path:
    """`lowtide` in the user's cache folder: `$XDG_CACHE_HOME`, by default `~/.cache`; else a temporary one."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named) / "lowtide"
    try:
        return Path("~/.cache").expanduser() / "lowtide"
    except RuntimeError:  # a user without an entry and without $HOME
        return Path(tempfile.gettempdir()) / f"lowtide-{os.getuid()}"


@dataclass(frozen=True, eq=False)
class Entry:
    """What was kept under a name. told: anything that JSON can tell; the arrays stay packed until asked for."""

    told: Any
    packed: tuple[tuple[str, bytes], ...]

    def array(self, number: int) -> np.ndarray:
        """One of the arrays, flat."""
        kind, packed = self.packed[number]
        return np.frombuffer(zlib.decompress(packed), dtype=kind)


@dataclass(frozen=True)
class DiskCache:
    """Entries in a folder, one file each; several processes may use it at once.

    An entry that is missing, cut short, changed or not ours is none, and is written anew. A folder that cannot be
    written to is no error: what is found is then found again next time.

    folder: by default `solved` in `cache_folder()`, as the environment says when an entry is asked for.
    most_bytes, most_entries: beyond these, entries that have not been asked for longest are removed.
    """

    folder: Path | None = None
    most_bytes: int = 256 * 2**20
    most_entries: int = 4096

    def read(self, name: str) -> Entry | None:
        """The entry of that name, None if there is none."""
        path = self._path(name)
        try:
            entry = _unpacked(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, zlib.error):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # asked for now
        return entry

    def write(self, name: str, told: Any, arrays: Sequence[np.ndarray] = ()) -> None:
        """Keep something under a name, instead of what is kept there."""
        path, content = self._path(name), _packed(told, arrays)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=_SUFFIX)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)  # it is there still if anything went wrong
            self._remove_oldest(path.parent)

    def _path(self, name: str) -> Path:
        return (self.folder or cache_folder() / "solved") / f"{name}{_SUFFIX}"

    def _remove_oldest(self, folder: Path) -> None:
        found = []
        with os.scandir(folder) as files:
            for file in files:
                if file.name.endswith(_SUFFIX):
                    with contextlib.suppress(OSError):  # another process may have removed it
                        known = file.stat(follow_symlinks=False)
                        found.append((known.st_mtime_ns, known.st_size, file.path))
        total_bytes = 0
        for number, (_, size_bytes, path) in enumerate(sorted(found, reverse=True)):
            total_bytes += size_bytes
            if total_bytes > self.most_bytes or number >= self.most_entries:
                with contextlib.suppress(OSError):
                    Path(path).unlink()


def entry_name(what: str, *told: str) -> str:
    """The name of an entry: what it is, and a digest of all that it depends on, this version of the solvers included.

    told: texts that are equal wherever the entry is the same, whatever the process, the machine and the Python.
    """
    digest = sha256(_VERSION)
    for text in (what, *told):
        content = text.encode()
        digest.update(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
    return f"{what}-{digest.hexdigest()}"


def _packed(told: Any, arrays: Sequence[np.ndarray]) -> bytes:
    """An entry as bytes: an opening, a digest of the rest, the length of the header, the header, the arrays."""
    little = [array.astype(array.dtype.newbyteorder("<"), copy=False) for array in arrays]
    packed = [zlib.compress(array.tobytes(), 1) for array in little]
    kinds = [(array.dtype.str, len(content)) for array, content in zip(little, packed, strict=True)]
    text = json.dumps({"told": told, "arrays": kinds}, default=lambda number: number.item())  # numpy's numbers
    header = zlib.compress(text.encode(), 1)
    rest = b"".join((len(header).to_bytes(_LENGTH_BYTES, "little"), header, *packed))
    return b"".join((_OPENING, sha256(rest).digest(), rest))


def _unpacked(content: bytes) -> Entry:
    """The inverse of `_packed`. Raises ValueError for what is no entry."""
    start = len(_OPENING) + _DIGEST_BYTES
    if not content.startswith(_OPENING) or sha256(content[start:]).digest() != content[len(_OPENING) : start]:
        raise ValueError("no entry, or a damaged one")
    at = start + _LENGTH_BYTES
    end = at + int.from_bytes(content[start:at], "little")
    header = json.loads(zlib.decompress(content[at:end]))
    packed = []
    for kind, size_bytes in header["arrays"]:
        packed.append((kind, content[end : end + size_bytes]))
        end += size_bytes
    return Entry(header["told"], tuple(packed))


def _version() -> bytes:
    """A digest of what entries depend on beside their names: the layout, the solvers' sources, the libraries."""
    digest = sha256(str(_FORMAT).encode())
    sources = []
    with contextlib.suppress(OSError):
        files = resources.files(str(__package__)).iterdir()
        sources = sorted((file.name, file.read_bytes()) for file in files if file.name.endswith(".py"))
    # without sources no version can be told from another: this process then has a version of its own
    for name, source in sources or [("", os.urandom(_DIGEST_BYTES))]:
        digest.update(f"\n{name} {len(source)}\n".encode() + source)
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"\n{library} {metadata.version(library)}".encode())
    return digest.digest()


_VERSION = _version()  # at once, lest files change between being imported and being read
