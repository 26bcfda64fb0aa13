"""Compiles the C of the kernels once per machine with the compiler that is there, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch  # its OpenMP library has to be loaded first: what is compiled here then shares its threads

from ...storage.cache_folder import cache_folder
from ...storage.private_files import read_private, remove_oldest, working_folder, write_private

# Bits must be torch's own, so products and sums stay apart.
_FLAGS = (
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=c11",
)
_SECONDS = 120
# A kept file is no library by itself: an opening, a digest of what it was made from and of the library, the library.
_OPENING = b"lowtide compiled kernels\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MOST_BYTES = 64 * 2**20
_MOST_FILES = 256
# What all of the C needs; where this cannot be compiled and loaded, plain torch serves everywhere.
_PROBE = """
#include <math.h>
#include <stdint.h>
#include <string.h>
void probe(double *values, int64_t count) {
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++) values[i] = exp(values[i]);
}
"""

_failed: set[str] = set()  # digests of C that could not be compiled, or not loaded
_numbers = itertools.count()


def kernels_folder() -> Path | None:
    """The folder of the user's own in which compiled kernels are kept for other processes; None where there is none."""
    folder = cache_folder()
    return folder and folder / "kernels"


def native(source: str, name: str, argument_types: Sequence[Any]) -> Any:
    """The function `name` of some C, which returns nothing; None where there is no compiler or it cannot compile it.

    argument_types: ctypes. The function runs without the interpreter's lock.
    """
    library = _library(source)
    if library is None:
        return None
    function = getattr(library, name)
    function.argtypes, function.restype = tuple(argument_types), None
    return function


def state() -> Hashable:
    """What serves in this process: plain torch, or the compiler and all that it could not compile so far.

    Kernels cost otherwise, and take other scratch, where it differs.
    """
    compiler = _compiler()
    if compiler is None or _library(_PROBE) is None:
        return "plain torch"
    return (*_identity(compiler), *sorted(_failed))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where a tensor's elements begin."""
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def _library(source: str) -> ctypes.CDLL | None:
    compiler = _compiler()
    if compiler is None or (source != _PROBE and _library(_PROBE) is None):
        return None
    made_from = repr((source, _identity(compiler), *_FLAGS, platform.machine(), _processor())).encode()
    digest = hashlib.sha256(_OPENING + made_from).hexdigest()
    folder = kernels_folder()
    kept = folder and folder / f"{digest[:32]}{'.probe' if source == _PROBE else '.so'}"
    try:
        if kept is not None:
            with suppress(OSError):  # missing, damaged, not ours, or made for other libraries than are here
                return _loaded(_unsealed(read_private(kept, _MOST_BYTES), made_from))
        content = _compiled(compiler, source)
        library = _loaded(content)
    except (OSError, subprocess.SubprocessError):
        _failed.add(digest)
        return None
    if kept is not None:
        with suppress(OSError):  # a folder that cannot be written to: the next process compiles it again
            write_private(kept, _sealed(content, made_from), lasting=True)
            remove_oldest(kept.parent, kept.suffix, _MOST_BYTES, _MOST_FILES)
    return library


def _sealed(library: bytes, made_from: bytes) -> bytes:
    return _OPENING + hashlib.sha256(made_from + library).digest() + library


def _unsealed(content: bytes, made_from: bytes) -> bytes:
    """The library in a kept file. Raises OSError unless every bit of it is as it was compiled, from this."""
    start = len(_OPENING) + _DIGEST_BYTES
    library = content[start:]
    if content[:start] != _OPENING + hashlib.sha256(made_from + library).digest():
        raise OSError("damaged, or none of these kernels")
    return library


def _loaded(library: bytes) -> ctypes.CDLL:
    """Loads exactly these bytes, from a copy that nobody else can change. Raises OSError."""
    for placed in (_in_memory, _in_a_file):
        try:
            with placed(library) as path:
                return ctypes.CDLL(path)
        except OSError as error:
            problem = error
    raise problem


@contextmanager
def _in_memory(library: bytes) -> Iterator[str]:
    if not hasattr(os, "memfd_create"):
        raise OSError("files in memory are there on Linux only")
    descriptor = os.memfd_create("lowtide-kernels")
    with os.fdopen(descriptor, "wb") as file:
        file.write(library)
        file.flush()
        # The loader takes equal paths for the same library, so the path of a number used again must not be equal.
        yield f"/proc/self/{'./' * next(_numbers)}fd/{descriptor}"


@contextmanager
def _in_a_file(library: bytes) -> Iterator[str]:
    with working_folder(kernels_folder()) as folder:
        file = folder / "kernels.so"
        file.write_bytes(library)
        yield str(file)


def _compiled(compiler: str, source: str) -> bytes:
    """Raises OSError, or subprocess.SubprocessError, where it cannot be compiled."""
    with working_folder(kernels_folder()) as folder:
        made = folder / "kernels.so"
        subprocess.run(
            [compiler, *_FLAGS, "-x", "c", "-", "-o", str(made), "-lm"],
            input=source.encode(),
            check=True,
            capture_output=True,
            timeout=_SECONDS,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        return made.read_bytes()


@cache
def _compiler() -> str | None:
    """The C compiler that `$CC` names, or the system's."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    paths = (shutil.which(name) for name in names if name)
    return next((str(Path(path).absolute()) for path in paths if path), None)


@cache
def _identity(compiler: str) -> tuple[Hashable, ...]:
    """The compiler's path and what tells it from another one there."""
    try:
        known = Path(compiler).stat()
    except OSError:
        return (compiler,)
    return compiler, known.st_size, known.st_mtime_ns


@cache
def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
