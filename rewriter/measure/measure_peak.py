"""Measures the bytes of torch's allocator that functions hold at their fullest moment.

On CPU the profiler reports every allocation and every free with its size and address. The running sum of these is exact
to the byte. Three cases need care.

First, a free of memory that was allocated before the session is not reported. The storages alive at the start are
therefore watched, and leave a mark when they are freed. Second, a reported free of an address that this session did not
allocate carries an outdated size, so it is ignored. Third, a session inside another one ends the other, or crashes it
during its warm-up, so a running one is refused. A session of this file is paused instead, and the bytes taken meanwhile
are added at their fullest moment.

Allocations on threads that the function itself starts are not seen, nor is memory from outside torch's allocator.
Neither is memory that only autograd's graph or C++ code holds at the start and the function frees.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd import profiler as autograd_profiler

from ..errors import LowtideError

_BEGIN = "lowtide::begin"
_END = "lowtide::end"
_FREED = "lowtide::freed "


class ProfilerBusyError(LowtideError, RuntimeError):
    """Reports that memory cannot be measured because a profiler is already running and only one can run."""


def measure_peak(function: Callable[[], object], device: torch.device | str | None = None) -> int:
    """Return the most bytes requested from torch's allocator while `function()` runs, above those at its start.

    The result of `function` counts until it has been returned. Memory from before the start that `function` frees
    counts as negative. On CPU the number is exact to the byte. On CUDA the allocator's own count of requested bytes is
    read and its peak statistics are reset. The first call of a library there may add its workspace, so call `function`
    once before.
    device: None means the current CUDA device if `function` allocates there, and otherwise the CPU.

    Raises `ProfilerBusyError` when a profiler is running and the CPU's memory is requested.
    """
    chosen_device = None if device is None else torch.device(device)
    if chosen_device is not None and chosen_device.type not in ("cpu", "cuda"):
        raise LowtideError(f"the memory of device {str(chosen_device)!r} cannot be measured; pass 'cpu' or 'cuda'")
    if chosen_device is not None and chosen_device.type == "cuda":
        gc.collect()
        return _cuda_peak(function, chosen_device)
    if chosen_device is None and torch.cuda.is_initialized():
        cuda_bytes: list[int] = []
        cuda = torch.device("cuda", torch.cuda.current_device())
        gc.collect()
        if is_profiler_running():
            return _cuda_peak(function, cuda)
        cpu_bytes = measure_allocations([lambda: cuda_bytes.append(_cuda_peak(function, cuda))])
        return cuda_bytes[0] or cpu_bytes[0]
    return measure_allocations([function])[0]


def measure_allocations(
    functions: Iterable[Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    watch_existing: bool = True,
) -> list[int]:
    """Return the peak of bytes of each function above its own start; on CPU all are measured in one profiler session.

    A function's result is released when its measurement has ended.
    functions: may be a generator. Its allocations between two functions are not counted, so it can build each
        function's operands just in time and release them afterwards.
    watch_existing: False skips the search through all live tensors, for functions that free nothing from before them.
        Garbage is not collected while they run, so that nothing else frees such memory.

    Raises `ProfilerBusyError` when a profiler is running; errors of a function pass through.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return [_cuda_peak(function, device) for function in functions]
    outer = _sessions.get(threading.get_ident())
    if outer is not None:
        with outer.paused() as note:
            peaks = measure_allocations(functions, device=device, watch_existing=watch_existing)
            note(max(peaks, default=0))
        return peaks
    if is_profiler_running():
        raise ProfilerBusyError(
            "peak memory cannot be measured inside a running profiler: torch allows one session at a time, and "
            "a second would end the first; leave the profiler's context, measure, then profile"
        )
    if watch_existing:
        gc.collect()
    watched = _watch_storages() if watch_existing else []
    try:
        with _quiet_first_session(), _memory_session() as session:
            for function in functions:
                with nullcontext() if watch_existing else _garbage_left():
                    with autograd_profiler.record_function(_BEGIN):
                        pass
                    result = function()
                    with autograd_profiler.record_function(_END):
                        pass
                del result, function
    finally:
        for finalizer in watched:
            finalizer.detach()
    return list(_peaks(session.events))


@contextmanager
def _garbage_left() -> Iterator[None]:
    """Keep Python from collecting garbage, which may hold memory of earlier functions."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_profiler_running() -> bool:
    """Return whether a profiler of this process that cannot be paused is recording or warming up.

    A session of `measure_allocations` in this thread can be paused.
    """
    if threading.get_ident() in _sessions:
        return False
    return _any_session_recording() or any(
        getattr(session, "entered", False) and getattr(session, "kineto_results", None) is None
        for session in _alive(autograd_profiler.profile)
    )


def _alive(kind: type) -> list[Any]:
    """Return all objects of a class or of its subclasses that the garbage collector knows.

    The collector is asked for what refers to the classes, as each object does to its own. A list of all objects would
    hold tuples that other threads are still filling, and Python then fails in those threads.
    """
    classes = set(_with_subclasses(kind))
    return [candidate for candidate in gc.get_referrers(*classes) if type(candidate) in classes]


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    for subclass in type.__subclasses__(kind):
        yield from _with_subclasses(subclass)


def _any_session_recording() -> bool:
    """Return whether torch reports a recording session.

    torch has no public name for this. Without the private one, only sessions found by `gc` count.
    """
    enabled = getattr(torch.autograd, "_profiler_enabled", None)
    return bool(enabled and enabled())


def _cuda_peak(function: Callable[[], object], device: torch.device) -> int:
    """Return the peak of requested bytes on a CUDA device, or of allocated bytes if the allocator does not count
    requests.
    """
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)
    result = function()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_stats(device)
    del result
    counted = "requested_bytes" if after.get("requested_bytes.all.peak", 0) else "allocated_bytes"
    return after.get(f"{counted}.all.peak", 0) - before.get(f"{counted}.all.current", 0)


class _Session:
    """A session that records memory. It is paused where something inside of it measures in a session of its own.

    events: (time, name, address, bytes) in order, complete when the session has ended; bytes are negative for a free.
    """

    def __init__(self) -> None:
        self.events: list[tuple[int, str, int, int]] = []
        self._profiler: Any = None

    def start(self) -> None:
        self._profiler = autograd_profiler.profile(use_kineto=True, profile_memory=True)
        self._profiler.__enter__()

    def stop(self, *reason: Any) -> None:
        self._profiler.__exit__(*(reason or (None, None, None)))
        self.events += _allocation_events(self._profiler)

    @contextmanager
    def paused(self) -> Iterator[Callable[[int], None]]:
        """Pause the session for a context. Yields a function to call with the most bytes that were taken meanwhile."""
        thread = threading.get_ident()
        self.stop()
        del _sessions[thread]
        taken: list[int] = []
        try:
            yield taken.append
        finally:
            address = -1 - len(self.events)  # of nothing else
            for taken_bytes in taken:
                self.events += [(0, "[memory]", address, taken_bytes), (0, "[memory]", address, -taken_bytes)]
            _sessions[thread] = self
            self.start()


_sessions: dict[int, _Session] = {}  # by the thread that runs them


@contextmanager
def _memory_session() -> Iterator[_Session]:
    """Run one session; its events are read after the `with`."""
    session = _Session()
    thread = threading.get_ident()
    session.start()
    _sessions[thread] = session
    try:
        yield session
    finally:
        _sessions.pop(thread, None)
        session.stop()


@contextmanager
def _quiet_first_session() -> Iterator[None]:
    """Keep kineto, the profiler's backend, from printing to stderr.

    Kineto reads its level once, when a process's first session starts, so it stays quiet in later ones. If the user's
    own session came first, or `KINETO_LOG_LEVEL` is set, the user's level stays.
    """
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "6"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _watch_storages() -> list[weakref.finalize]:
    """Make every live CPU storage of torch's allocator leave a mark with its size when it is freed."""
    storages: dict[int, Any] = {}
    for candidate in _alive(torch.Tensor):
        try:
            # A gradient that has not been accessed yet is not a Python object.
            gradient = candidate.grad if candidate.is_leaf else None
            for tensor in (candidate, gradient):
                storage = None if tensor is None else tensor.untyped_storage()
                # A storage that cannot be resized is borrowed (from numpy, a file): not torch's to free.
                if storage and storage.device.type == "cpu" and storage.resizable():
                    storages[storage.data_ptr()] = storage
        except (RuntimeError, TypeError, AttributeError, ReferenceError):
            continue  # a sparse, fake or wrapper tensor: it has no storage of its own
    return [weakref.finalize(storage, _mark_freed, storage.nbytes()) for storage in storages.values()]


def _mark_freed(freed_bytes: int) -> None:
    with autograd_profiler.record_function(f"{_FREED}{freed_bytes}"):
        pass


def _allocation_events(profiler: Any) -> list[tuple[int, str, int, int]]:
    """Return the session's (time, name, address, bytes) in order; bytes are negative for a free.

    Only this function reads the profiler's event tree, which torch calls experimental. The flat list of events, which
    is public, has no addresses.
    """
    events: list[tuple[int, str, int, int]] = []
    pending = list(reversed(profiler.kineto_results.experimental_event_tree()))
    while pending:
        event = pending.pop()
        name = event.name
        if name == "[memory]":
            fields = event.extra_fields
            if fields.device.type == "cpu":
                events.append((event.start_time_ns, name, fields.ptr, fields.alloc_size))
        elif name.startswith("lowtide::"):
            events.append((event.start_time_ns, name, 0, 0))
        pending.extend(reversed(event.children))
    events.sort(key=lambda event: event[0])
    return events


def _peaks(events: list[tuple[int, str, int, int]]) -> Iterator[int]:
    """Yield the highest running sum of bytes between each begin and end."""
    size_by_address: dict[int, int] = {}
    live_bytes = peak_bytes = 0
    for _, name, address, allocated_bytes in events:
        if name == _BEGIN:
            live_bytes = peak_bytes = 0
        elif name == _END:
            yield peak_bytes
        elif name.startswith(_FREED):
            live_bytes -= int(name.removeprefix(_FREED))
        elif allocated_bytes > 0:
            size_by_address[address] = allocated_bytes
            live_bytes += allocated_bytes
            peak_bytes = max(peak_bytes, live_bytes)
        else:
            live_bytes -= size_by_address.pop(address, 0)
