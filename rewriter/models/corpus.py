"""Reads real text that every machine has: the sources of Python's own standard library."""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path


def sample_words(count: int, seed: int = 0) -> list[str]:
    """Return `count` words and marks of the standard library's sources; another seed starts at another file."""
    words: list[str] = []
    for text in _texts(seed):
        words += re.findall(r"\w+|[^\w\s]", text)
        if len(words) >= count:
            break
    return words[:count]


def sample_bytes(count: int, seed: int = 0) -> bytes:
    """Return `count` bytes of the standard library's sources; another seed starts at another file."""
    data = bytearray()
    for text in _texts(seed):
        data += text.encode()
        if len(data) >= count:
            break
    return bytes(data[:count])


def hashed(words: list[str], size: int, leave_out: frozenset[int] = frozenset()) -> list[int]:
    """Return for each word a number in [0, size) outside `leave_out`; equal words have equal numbers."""
    skipped = sorted(number for number in leave_out if 0 <= number < size)
    room = max(1, size - len(skipped))
    numbers = []
    for word in words:
        number = zlib.crc32(word.encode()) % room
        for skip in skipped:
            number += number >= skip
        numbers.append(min(number, size - 1))
    return numbers


def _texts(seed: int) -> Iterator[str]:
    """Yield the sources one after the other in an endless cycle, starting at a file that the seed picks."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) or [Path(__file__)]
    start = seed * 7919 % len(files)
    while True:
        for file in files[start:] + files[:start]:
            yield file.read_text(encoding="utf-8", errors="replace")
