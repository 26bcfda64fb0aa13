"""Rounds bytes as allocators do, and formats bytes and times for people to read."""

from __future__ import annotations


def rounded_up(size_bytes: int, granularity: int) -> int:
    """Return the bytes that an allocator with a granularity in bytes hands out for a number of bytes."""
    return -(-size_bytes // granularity) * granularity


def format_bytes(count: float) -> str:
    """Return bytes in a readable unit: `2.60 GiB`, `952.7 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            digits = 0 if unit == "bytes" else 2 if abs(count) < 10 else 1
            return f"{count:.{digits}f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def format_milliseconds(seconds: float) -> str:
    """Return seconds as a number of milliseconds: `1234`, `12.3`, `0.00012`."""
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def format_keeping(count: int, size_bytes: float) -> str:
    """Return the bytes that a number of layers keep: `1 keeps 2.25 MiB`."""
    return f"{count} {'keeps' if count == 1 else 'keep'} {format_bytes(size_bytes)}"
