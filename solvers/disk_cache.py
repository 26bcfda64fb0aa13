"""Keeps what solving finds on disk: named entries of JSON and arrays, checked, written at once, limited in size."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..storage.bounded_json import read_json
from ..storage.cache_folder import cache_folder
from ..storage.private_files import read_private, remove_oldest, write_private

_FORMAT = 2  # raise it when the layout of entries changes
_OPENING = b"lowtide entry\n"
_DIGEST_BYTES = sha256().digest_size
_LENGTH_BYTES = 8
_writes = itertools.count()
_SUFFIX = ".entry"
_LIBRARIES = ("numpy", "pulp", "highspy")  # whose results the solvers hand on
# What an entry and its parts may have at most: as files, and unpacked. The largest of a 126-layer model have a tenth.
_MOST_ENTRY_BYTES = 128 * 2**20
_MOST_HEADER_BYTES = 64 * 2**20
_MOST_ARRAY_BYTES = 256 * 2**20
_MOST_PARTS = 16_000_000
_KINDS = frozenset(("|i1", "|u1", "|b1", "<i2", "<i4", "<i8", "<u4", "<u8", "<f4", "<f8"))


class DamagedEntry(ValueError):
    """An entry that is whole, but does not hold what one of its name holds."""


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turns whatever goes wrong in making something of an entry into DamagedEntry."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise DamagedEntry(f"no {what}: {error}") from error


@dataclass(frozen=True, eq=False)
class Entry:
    """What was kept under a name. content: anything that JSON can tell; the arrays stay packed until asked for.

    packed: of each array its kind, its bytes unpacked, and what it is packed as.
    """

    content: Any
    packed: tuple[tuple[str, int, bytes], ...]

    def array(self, number: int) -> np.ndarray:
        """One of the arrays, flat. Raises DamagedEntry where it is not as it says, or there is none of that number."""
        try:
            kind, size_bytes, packed = self.packed[number]
            return np.frombuffer(_unpacked_bytes(packed, size_bytes), dtype=kind)
        except (IndexError, ValueError) as error:
            raise DamagedEntry(f"array {number}: {error}") from error


@dataclass(frozen=True)
class DiskCache:
    """Entries in a folder, one file each; several processes may use it at once.

    An entry that is missing, cut short, changed or not ours is none, and is written anew. A folder that cannot be
    written to is no error: what is found is then found again next time.

    folder: by default `solved` in `cache_folder()`, as the environment says when an entry is asked for.
    most_bytes, most_entries: beyond these, entries that have not been asked for longest are removed, at each so many
    writes of this process (`tidied_every`), since all files of the folder are looked at.
    anew: entries are not read, but found and written again.
    """

    folder: Path | None = None
    most_bytes: int = 256 * 2**20
    most_entries: int = 4096
    tidied_every: int = 32
    anew: bool = False

    def read(self, name: str) -> Entry | None:
        """The entry of that name, None if there is none."""
        path = self._path(name)
        if path is None or self.anew:
            return None
        try:
            return _unpacked(read_private(path, _MOST_ENTRY_BYTES, touch=True))
        except (OSError, ValueError):
            return None

    def write(self, name: str, told: Any, arrays: Sequence[np.ndarray] = ()) -> None:
        """Keep something under a name, instead of what is kept there."""
        path = self._path(name)
        if path is None:
            return
        with contextlib.suppress(OSError):
            write_private(path, _packed(told, arrays))
            if next(_writes) % self.tidied_every == 0:
                remove_oldest(path.parent, _SUFFIX, self.most_bytes, self.most_entries)

    def _path(self, name: str) -> Path | None:
        folder = self.folder
        if folder is None:
            usual = cache_folder()
            folder = usual and usual / "solved"
        return folder and folder / f"{name}{_SUFFIX}"


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
    kinds = [(array.dtype.str, array.nbytes, len(content)) for array, content in zip(little, packed, strict=True)]
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
    header = read_json(_unpacked_bytes(content[at:end], None), _MOST_PARTS, finite=False)
    try:
        packed = []
        for kind, size_bytes, packed_bytes in header["arrays"]:
            if kind not in _KINDS or not 0 <= size_bytes <= _MOST_ARRAY_BYTES or packed_bytes < 0:
                raise ValueError(f"an array of kind {kind!r} with {size_bytes} bytes")
            packed.append((kind, size_bytes, content[end : end + packed_bytes]))
            end += packed_bytes
        return Entry(header["told"], tuple(packed))
    except (TypeError, KeyError) as error:
        raise ValueError("no entry's header") from error


def _unpacked_bytes(packed: bytes, size_bytes: int | None) -> bytes:
    """What was packed: so many bytes, or as many as a header may have. Raises ValueError; never unpacks more."""
    most = _MOST_HEADER_BYTES if size_bytes is None else size_bytes
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacking.eof or len(content) > most or (size_bytes is not None and len(content) != size_bytes):
        raise ValueError(f"not the {most:,} bytes that it says")
    return content


def _version() -> bytes:
    """A digest of what entries depend on beside their names: the layout, the solvers' sources, the libraries."""
    digest = sha256(str(_FORMAT).encode())
    sources = []
    with contextlib.suppress(OSError):
        folder = Path(__file__).parent  # with its subfolders: each file in it has a say in what solving finds
        files = sorted(folder.rglob("*.py"))
        sources = [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in files]
    # without sources no version can be told from another: this process then has a version of its own
    for name, source in sources or [("", os.urandom(_DIGEST_BYTES))]:
        digest.update(f"\n{name} {len(source)}\n".encode() + source)
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"\n{library} {metadata.version(library)}".encode())
    return digest.digest()


_VERSION = _version()  # at once, lest files change between being imported and being read
