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

import torch  # its OpenMP library has to be loaded first, so that the kernels share its threads

from ...storage.cache_folder import cache_folder
from ...storage.private_files import read_private, remove_oldest, working_folder, write_private

# Bits must be torch's own, so products are not joined with sums.
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
# A cached file holds an opening, a digest of its inputs and of the library, and the library.
_OPENING = b"lowtide compiled kernels\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MOST_BYTES = 64 * 2**20
_MOST_FILES = 256
# All of the C needs this; where it cannot be compiled and loaded, plain torch is used everywhere.
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
    """Return the user's own folder that keeps compiled kernels for other processes; None if there is none."""
    folder = cache_folder()
    return folder and folder / "kernels"


def native(source: str, name: str, argument_types: Sequence[Any]) -> Any:
    """Return the function `name` of some C, which itself returns nothing.

    None if there is no compiler or it cannot compile the C. argument_types: ctypes. The function runs without the
    interpreter's lock.
    """
    library = _library(source)
    if library is None:
        return None
    function = getattr(library, name)
    function.argtypes, function.restype = tuple(argument_types), None
    return function


def state() -> Hashable:
    """Return what is used in this process: plain torch, or the compiler and all that it failed to compile so far.

    Kernels have other costs and other scratch memory where this differs.
    """
    compiler = _compiler()
    if compiler is None or _library(_PROBE) is None:
        return "plain torch"
    return (*_identity(compiler), *sorted(_failed))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Return the address of a tensor's first element."""
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
            with suppress(OSError):  # missing, damaged, not the user's own, or made for other libraries
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
    """Return the library in a cached file.

    Raises OSError unless every bit of it is as it was compiled from these inputs.
    """
    start = len(_OPENING) + _DIGEST_BYTES
    library = content[start:]
    if content[:start] != _OPENING + hashlib.sha256(made_from + library).digest():
        raise OSError("the file is damaged or does not hold these kernels")
    return library


def _loaded(library: bytes) -> ctypes.CDLL:
    """Load exactly these bytes, from a copy that nobody else can change. Raises OSError."""
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
        raise OSError("files in memory exist on Linux only")
    descriptor = os.memfd_create("lowtide-kernels")
    with os.fdopen(descriptor, "wb") as file:
        file.write(library)
        file.flush()
        # The loader takes equal paths for the same library, so a descriptor that is used again needs a new path.
        yield f"/proc/self/{'./' * next(_numbers)}fd/{descriptor}"


@contextmanager
def _in_a_file(library: bytes) -> Iterator[str]:
    with working_folder(kernels_folder()) as folder:
        file = folder / "kernels.so"
        file.write_bytes(library)
        yield str(file)


def _compiled(compiler: str, source: str) -> bytes:
    """Compile C to a library.

    Raises OSError, or subprocess.SubprocessError, where it cannot be compiled.
    """
    with working_folder(kernels_folder()) as folder:
        library = folder / "kernels.so"
        subprocess.run(
            [compiler, *_FLAGS, "-x", "c", "-", "-o", str(library), "-lm"],
            input=source.encode(),
            check=True,
            capture_output=True,
            timeout=_SECONDS,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        return library.read_bytes()


@cache
def _compiler() -> str | None:
    """Return the C compiler that `$CC` names, or the system's."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    paths = (shutil.which(name) for name in names if name)
    return next((str(Path(path).absolute()) for path in paths if path), None)


@cache
def _identity(compiler: str) -> tuple[Hashable, ...]:
    """Return the compiler's path, size and time of change, which distinguish it from another compiler there."""
    try:
        status = Path(compiler).stat()
    except OSError:
        return (compiler,)
    return compiler, status.st_size, status.st_mtime_ns


@cache
def _processor() -> str:
    """Return the processor's features, on which `-march=native` depends."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    return features or platform.processor()  # which may start a process, and so is asked last
