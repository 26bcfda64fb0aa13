"""Compiles the C of the kernels once per machine with the compiler that is there, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch  # its OpenMP library has to be loaded first: what is compiled here then shares its threads

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

_kept_in: Path | None = None
_failed: set[str] = set()  # digests of C that could not be compiled, or not loaded
_own: list[tempfile.TemporaryDirectory] = []  # where this process alone keeps what it compiles


def keep_in(folder: Path) -> None:
    """Has what is compiled from now on kept in a folder, for other processes; it must be the user's own."""
    global _kept_in
    _kept_in = folder


def _folder() -> Path:
    if _kept_in is not None:
        return _kept_in
    if not _own:
        _own.append(tempfile.TemporaryDirectory(prefix="lowtide-kernels-"))
    return Path(_own[0].name)


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
    return "plain torch" if compiler is None else (compiler, *sorted(_failed))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where a tensor's elements begin."""
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def _library(source: str) -> ctypes.CDLL | None:
    compiler = _compiler()
    if compiler is None:
        return None
    told = (source, compiler, *_FLAGS, platform.machine(), _processor())
    file = _folder() / f"{hashlib.sha256(repr(told).encode()).hexdigest()[:24]}.so"
    for kept in (file, None):
        try:
            # a folder that cannot be written to is no error: what is compiled is then this process's own
            made = kept or Path(tempfile.mkdtemp(prefix="lowtide-kernels-")) / file.name
            if not made.exists():
                _compile(compiler, source, made)
            return ctypes.CDLL(str(made))
        except OSError:
            continue
        except subprocess.SubprocessError:
            break
    _failed.add(file.stem)
    return None


def _compile(compiler: str, source: str, file: Path) -> None:
    """Makes the library beside where it belongs and moves it there at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        subprocess.run(
            [compiler, *_FLAGS, "-x", "c", "-", "-o", str(made), "-lm"],
            input=source.encode(),
            check=True,
            capture_output=True,
            timeout=_SECONDS,
        )
        made.replace(file)


@cache
def _compiler() -> str | None:
    """The C compiler that `$CC` names, or the system's."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@cache
def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
