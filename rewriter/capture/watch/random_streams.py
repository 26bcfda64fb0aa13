"""Refuse forwards that use random streams which a captured step does not follow, or set torch's own."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import numpy
import torch

from ...errors import CaptureError
from ..torch_internals import is_default_generator

_SETS_STATE = ("manual_seed", "set_state", "seed", "graphsafe_set_state", "set_offset")
_NUMPY_STREAM = type(numpy.random.mtrand._rand)  # pyright: ignore[reportAttributeAccessIssue]
_STREAMS = (torch.Generator, type(random._inst))  # pyright: ignore[reportAttributeAccessIssue]
_WHAT_TO_DO = "draw with torch's own functions, or keep that part out of the rewritten module"


@contextmanager
def other_streams_refused(model: torch.nn.Module) -> Iterator[set[str]]:
    """Raise CaptureError if this thread draws from Python's or numpy's streams, or sets the state of torch's.

    Yields the names of functions in TorchScript to which the running code refers. Other threads do not count.
    The streams of Python and numpy are restored if this thread moved them; torch's draws are only recorded.
    """
    before = (random.getstate(), numpy.random.get_state())
    watch = _Watch(type(model).__name__)
    try:
        with watch.watching():
            yield watch.scripted
    finally:
        # Some code sets a state that it has just read (torch's compiler does), which draws nothing.
        moved_python = watch.drew_python or (watch.set_python and random.getstate() != before[0])
        if moved_python:
            random.setstate(before[0])
        moved_numpy = watch.may_draw_numpy and not _same_arrays(before[1], numpy.random.get_state())
        if moved_numpy:
            numpy.random.set_state(before[1])
    if moved_python or moved_numpy:
        owners = " and ".join(["Python's"] * moved_python + ["numpy's"] * moved_numpy)
        raise CaptureError(
            f"forward of {watch.name} uses {owners} random numbers: a rewritten forward would reuse the numbers drawn "
            f"during capture at every step; {_WHAT_TO_DO}"
        )


class unwatched:
    """A context within `other_streams_refused` for code that is not part of forward, as recording an operation.

    Watching makes each function call take half as long again.
    """

    def __enter__(self) -> None:
        profile = sys.getprofile()
        self._watch = profile if getattr(profile, "__func__", None) is _Watch._see else None
        if self._watch is not None:
            sys.setprofile(None)

    def __exit__(self, *_failure: object) -> None:
        if self._watch is not None:
            sys.setprofile(self._watch)


class _Watch:
    """A profiler of the calls of one thread.

    drew_python: whether it drew from Python's stream.
    set_python: whether it set the state of Python's stream.
    may_draw_numpy: whether code ran that refers to numpy's stream.
    scripted: names of functions in TorchScript to which that code refers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.drew_python = self.set_python = False
        self.may_draw_numpy = False
        self.scripted: set[str] = set()
        # The code that resumes under the profiler to end it is not part of forward.
        self._seen: set[CodeType] = {other_streams_refused.__wrapped__.__code__}  # pyright: ignore

    @contextmanager
    def watching(self) -> Iterator[None]:
        if sys.getprofile() is not None:
            # A profiler of the user cannot be replaced and restored: only the states are compared.
            before = random.getstate()
            self.may_draw_numpy = True
            try:
                yield
            finally:
                self.drew_python = before != random.getstate()
            return
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code not in self._seen:
                self._seen.add(code)
                self.may_draw_numpy = self.may_draw_numpy or _refers_to_numpy_stream(code, frame.f_globals)
                self.scripted |= _scripted(code, frame)
        elif event == "c_call":
            owner = getattr(argument, "__self__", None)
            if type(owner) not in _STREAMS:
                return
            if is_default_generator(owner):
                if argument.__name__ in _SETS_STATE:
                    self._refuse(argument.__name__)
            elif owner is random._inst:  # pyright: ignore
                self.drew_python |= argument.__name__ in ("random", "getrandbits")
                self.set_python |= argument.__name__ in ("seed", "setstate")

    def _refuse(self, name: str) -> None:
        raise CaptureError(
            f"forward of {self.name} sets the state of torch's generator ({name}): later random numbers would differ "
            "from the original's; draw without setting it, or keep that part out of the rewritten module"
        )


def _refers_to_numpy_stream(code: CodeType, names: dict[str, Any]) -> bool:
    """Return whether code refers to numpy's global stream: `numpy.random`, or a function imported from it."""
    for name in code.co_names:
        value = names.get(name)
        if value is numpy.random or (value is numpy and "random" in code.co_names):
            return True
        if isinstance(getattr(value, "__self__", None), _NUMPY_STREAM):
            return True
    return False


def _scripted(code: CodeType, frame: FrameType) -> set[str]:
    """Return the names by which code reaches functions in TorchScript: globals, or attributes of its first argument."""
    owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    held = vars(owner) if isinstance(owner, torch.nn.Module) else {}
    reached = {name: {**frame.f_globals, **held}.get(name) for name in code.co_names} | {
        name: frame.f_locals.get(name) for name in code.co_freevars
    }
    return {name for name, value in reached.items() if isinstance(value, torch.jit.ScriptFunction)}


def _same_arrays(first: Any, second: Any) -> bool:
    return first[0] == second[0] and bool((first[1] == second[1]).all()) and first[2:] == second[2:]
