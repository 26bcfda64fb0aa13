"""Store results of solving on disk: named entries of JSON and arrays, checked, written atomically, limited in size."""

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

_FORMAT = 2  # increased when the layout of entries changes
_OPENING = b"lowtide entry\n"
_DIGEST_BYTES = sha256().digest_size
_LENGTH_BYTES = 8
_writes = itertools.count()
_SUFFIX = ".entry"
_LIBRARIES = ("numpy", "pulp", "highspy")  # libraries whose results the solvers return
# Limits of an entry and its parts, as files and unpacked. The largest of a 126-layer model have a tenth of them.
_MOST_ENTRY_BYTES = 128 * 2**20
_MOST_HEADER_BYTES = 64 * 2**20
_MOST_ARRAY_BYTES = 256 * 2**20
_MOST_PARTS = 16_000_000
_KINDS = frozenset(("|i1", "|u1", "|b1", "<i2", "<i4", "<i8", "<u4", "<u8", "<f4", "<f8"))


class DamagedEntry(ValueError):
    """A complete entry whose content does not fit its name."""


@contextlib.contextmanager
def decoding(kind: str) -> Iterator[None]:
    """Turn errors while decoding an entry into DamagedEntry.

    kind: the name of the decoded thing, for the message.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise DamagedEntry(f"not a {kind}: {error}") from error


@dataclass(frozen=True, eq=False)
class Entry:
    """The content stored under a name.

    content: any JSON value.
    packed: for each array its kind, its unpacked size in bytes, and its packed bytes; unpacked on demand.
    """

    content: Any
    packed: tuple[tuple[str, int, bytes], ...]

    def array(self, number: int) -> np.ndarray:
        """Return one of the arrays, flat. Raises DamagedEntry if it is damaged or does not exist."""
        try:
            kind, size_bytes, packed = self.packed[number]
            return np.frombuffer(_unpack_bytes(packed, size_bytes), dtype=kind)
        except (IndexError, ValueError) as error:
            raise DamagedEntry(f"array {number}: {error}") from error


@dataclass(frozen=True)
class DiskCache:
    """Entries in a folder, one file each, which several processes may use at once.

    An entry that is cut short, damaged or open to other users counts as missing, and is written again. A
    folder that cannot be written to is not an error: results are then computed again next time.

    folder: by default `solved` in `cache_folder()`, from the environment at the time of the access.
    most_bytes: the limit of all entries together; beyond it the entries read least recently are removed.
    most_entries: the limit of their number.
    tidied_every: the number of writes of this process between removals, which look at all files of the folder.
    refresh: whether entries are not read, but computed and written again.
    """

    folder: Path | None = None
    most_bytes: int = 256 * 2**20
    most_entries: int = 4096
    tidied_every: int = 32
    refresh: bool = False

    def read(self, name: str) -> Entry | None:
        """Return the entry of a name, None if there is none."""
        path = self._path(name)
        if path is None or self.refresh:
            return None
        try:
            return _unpack(read_private(path, _MOST_ENTRY_BYTES, touch=True))
        except (OSError, ValueError):
            return None

    def write(self, name: str, payload: Any, arrays: Sequence[np.ndarray] = ()) -> None:
        """Store a JSON value and arrays under a name, in place of an earlier entry."""
        path = self._path(name)
        if path is None:
            return
        with contextlib.suppress(OSError):
            write_private(path, _pack(payload, arrays))
            if next(_writes) % self.tidied_every == 0:
                remove_oldest(path.parent, _SUFFIX, self.most_bytes, self.most_entries)

    def _path(self, name: str) -> Path | None:
        folder = self.folder
        if folder is None:
            usual = cache_folder()
            folder = usual and usual / "solved"
        return folder and folder / f"{name}{_SUFFIX}"


def entry_name(kind: str, *parts: str) -> str:
    """Return the name of an entry: its kind, and a digest of its dependencies and of this version of the solvers.

    parts: texts that are equal wherever the entry is the same, on any process, machine and Python.
    """
    digest = sha256(_VERSION)
    for text in (kind, *parts):
        content = text.encode()
        digest.update(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
    return f"{kind}-{digest.hexdigest()}"


def _pack(payload: Any, arrays: Sequence[np.ndarray]) -> bytes:
    """Return an entry as bytes: an opening, a digest of the rest, the header's length, the header, the arrays."""
    little_endian = [array.astype(array.dtype.newbyteorder("<"), copy=False) for array in arrays]
    packed = [zlib.compress(array.tobytes(), 1) for array in little_endian]
    kinds = [
        (array.dtype.str, array.nbytes, len(content)) for array, content in zip(little_endian, packed, strict=True)
    ]
    text = json.dumps({"payload": payload, "arrays": kinds}, default=lambda number: number.item())  # numbers of numpy
    header = zlib.compress(text.encode(), 1)
    rest = b"".join((len(header).to_bytes(_LENGTH_BYTES, "little"), header, *packed))
    return b"".join((_OPENING, sha256(rest).digest(), rest))


def _unpack(content: bytes) -> Entry:
    """Invert `_pack`. Raises ValueError for damaged content."""
    start = len(_OPENING) + _DIGEST_BYTES
    if not content.startswith(_OPENING) or sha256(content[start:]).digest() != content[len(_OPENING) : start]:
        raise ValueError("not a cache entry, or a damaged one")
    at = start + _LENGTH_BYTES
    end = at + int.from_bytes(content[start:at], "little")
    header = read_json(_unpack_bytes(content[at:end], None), _MOST_PARTS, finite=False)
    try:
        packed = []
        for kind, size_bytes, packed_bytes in header["arrays"]:
            if kind not in _KINDS or not 0 <= size_bytes <= _MOST_ARRAY_BYTES or packed_bytes < 0:
                raise ValueError(f"an array of kind {kind!r} with {size_bytes} bytes")
            packed.append((kind, size_bytes, content[end : end + packed_bytes]))
            end += packed_bytes
        return Entry(header["payload"], tuple(packed))
    except (TypeError, KeyError) as error:
        raise ValueError("the header of the entry is damaged") from error


def _unpack_bytes(packed: bytes, size_bytes: int | None) -> bytes:
    """Unpack exactly `size_bytes`, or at most the limit of a header if None. Raises ValueError; never unpacks more."""
    limit_bytes = _MOST_HEADER_BYTES if size_bytes is None else size_bytes
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, limit_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacking.eof or len(content) > limit_bytes or (size_bytes is not None and len(content) != size_bytes):
        raise ValueError(f"the unpacked content does not have the {limit_bytes:,} bytes stated")
    return content


def _version() -> bytes:
    """Return a digest of the layout, the solvers' sources and the libraries, on which all entries depend."""
    digest = sha256(str(_FORMAT).encode())
    sources = []
    with contextlib.suppress(OSError):
        folder = Path(__file__).parent  # with its subfolders: every file in it may change the results
        files = sorted(folder.rglob("*.py"))
        sources = [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in files]
    # without sources versions cannot be distinguished: this process then has a version of its own
    for name, source in sources or [("", os.urandom(_DIGEST_BYTES))]:
        digest.update(f"\n{name} {len(source)}\n".encode() + source)
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"\n{library} {metadata.version(library)}".encode())
    return digest.digest()


_VERSION = _version()  # at import, so that files cannot change between being imported and being read
