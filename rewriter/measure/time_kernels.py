"""Runs kernels alone on generated operands, to measure the time and the memory of each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...kernels.backend.library import is_own, prepare
from ...kernels.backend.triton_dispatch import works
from ...passes.calls import target_name
from ...passes.foreign_calls import with_autocast
from ..capture.operands.layouts_seen import format_layouts, layouts_of, operands_of
from ..capture.operands.operand_values import Fitting, fittings_of
from ..capture.operands.operands import OperandMaker
from .cost_cache import Measurement
from .flops import count_flops
from .measure_peak import is_profiler_running, measure_allocations
from .roofline import is_view, moved_bytes

# A kernel this slow is timed while its memory is measured: the profiler's microseconds do not show.
_SLOW_SECONDS = 2e-3
_ONCE_SECONDS = 0.3
_SECONDS_PER_KERNEL = 0.015
_LEAST_RUNS = 1
_MOST_RUNS = 30
# Rough costs of a kernel on an idle machine: a launch, its memory traffic, its arithmetic.
_PLAUSIBLE_LAUNCH_SECONDS = 5e-5
_PLAUSIBLE_BYTES_PER_SECOND = 1e10
_PLAUSIBLE_FLOPS_PER_SECOND = 1e11
_LONGEST_WAIT_SECONDS = 0.05
_WAITING = 20  # a kernel this many times slower than plausible has waited for a core
_SURPRISING = 4  # a first run this many times slower than plausible has perhaps prepared something
_Progress = Callable[[int, int, str], None]


class MeasureWarning(UserWarning):
    """Warns of a cost that had to be estimated although it was to be measured."""


def prepare_kernels(nodes: Iterable[fx.Node], device: torch.device) -> None:
    """Do once the one-time work of each kernel's first run, which is not a cost of a kernel or of a step.

    Steps whose costs are known need it too; otherwise their first one takes more than planned.
    """
    own = [node for node in nodes if is_own(node.target)]
    with _undisturbed(device):
        for node in own:
            names = (argument.name for argument in node.target._schema.arguments)  # pyright: ignore
            operands = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
            prepare(
                node.target, {name: operand for name, operand in operands.items() if not isinstance(operand, fx.Node)}
            )
        if own and device.type == "cuda":
            works(device)


def run_kernels(
    memory_of: Mapping[str, fx.Node],
    seconds_of: Mapping[str, fx.Node],
    device: torch.device,
    progress: _Progress | None = None,
) -> dict[str, Measurement]:
    """Measure the memory of the kernels in `memory_of` and the time of those in `seconds_of`, by signature.

    The memory of all kernels is measured in one profiler session. Operands live only while their kernel is measured,
    and the global random streams stay unchanged. Numbers that could not be measured are None, with a `MeasureWarning`.
    """
    trials = _Trials(OperandMaker(device), progress, total=len({**memory_of, **seconds_of}))
    with _undisturbed(device):
        if memory_of and device.type == "cpu" and is_profiler_running():
            warnings.warn(
                f"a profiler is running, so the memory of {len(memory_of)} kernels was not measured: their outputs "
                "are counted, not their scratch; plan outside the profiler to have it measured",
                MeasureWarning,
                stacklevel=4,
            )
        elif memory_of:
            runs = trials.each(memory_of, seconds_of, least_seconds=_SLOW_SECONDS)
            peaks = measure_allocations(runs, device=device, watch_existing=False)
            for key, peak_bytes in zip(trials.started, peaks, strict=True):
                trials.working_bytes[key] = max(trials.working_bytes.get(key, 0), peak_bytes)
        untimed = {key: node for key, node in seconds_of.items() if key not in trials.seconds}
        unseen = {key: node for key, node in memory_of.items() if key not in trials.layouts}
        for run in trials.each({**unseen, **untimed}, untimed, least_seconds=0.0):
            run()
    for key, error in trials.failures.items():
        name = target_name({**memory_of, **seconds_of}[key])
        warnings.warn(
            f"{name} cannot be run alone ({error}), so its cost is estimated from shapes, its memory from above; "
            f"called as {key}",
            MeasureWarning,
            stacklevel=4,
        )
    return trials.measurements()


@dataclass
class _Trials:
    """The kernels run so far, by signature: their time, memory, layouts and failures."""

    maker: OperandMaker
    progress: _Progress | None
    total: int
    started: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    working_bytes: dict[str, int] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def each(
        self, nodes: Mapping[str, fx.Node], timed: Mapping[str, fx.Node], least_seconds: float
    ) -> Iterator[Callable[[], object]]:
        """Yield each kernel's first run, on each kind of operands, and time those that take `least_seconds` or more.

        timed: the kernels whose time is needed, on the first kind of operands.
        """
        for key, node in nodes.items():
            for number, fitting in enumerate(fittings_of(node)):
                if key in self.failures:
                    break
                try:
                    trial = _Trial.prepare(node, self.maker, fitting)
                except Exception as error:  # any operand that cannot be made: the cost is estimated instead
                    self.failures[key] = _first_line(error)
                    break
                self.started.append(key)
                yield trial.run
                if trial.layouts is not None:
                    self.layouts.setdefault(key, trial.layouts)
                if trial.error is not None:
                    self.failures[key] = trial.error
                elif number == 0 and key in timed and trial.seconds[-1] >= least_seconds:
                    seconds = trial.least_seconds()
                    if seconds >= least_seconds:  # otherwise only the first run was slow, for example by compiling
                        self.seconds[key] = seconds
                del trial  # its operands go before the next kernel's are made
            self._report(key, node)

    def measurements(self) -> dict[str, Measurement]:
        known = (set(self.seconds) | set(self.working_bytes) | set(self.layouts)) - set(self.failures)
        return {
            key: Measurement(self.seconds.get(key), self.working_bytes.get(key), self.layouts.get(key)) for key in known
        }

    def _report(self, key: str, node: fx.Node) -> None:
        self.reported.add(key)
        if self.progress is not None:
            self.progress(len(self.reported), self.total, target_name(node))


@dataclass
class _Trial:
    """One kernel with operands to run it on."""

    call: Callable[..., object]
    positional: tuple[Any, ...]
    named: dict[str, Any]
    device: torch.device
    seconds: list[float] = field(default_factory=list)
    plausible_seconds: float = 0.0
    layouts: str | None = None
    error: str | None = None

    @classmethod
    def prepare(cls, node: fx.Node, maker: OperandMaker, fitting: Fitting) -> _Trial:
        trial = cls(with_autocast(node), *maker.make(node, filled=not is_view(node), fitting=fitting), maker.device)
        trial.plausible_seconds = (
            _PLAUSIBLE_LAUNCH_SECONDS
            + moved_bytes(node) / _PLAUSIBLE_BYTES_PER_SECOND
            + count_flops(node) / _PLAUSIBLE_FLOPS_PER_SECOND
        )
        if maker.device.type == "cuda" or is_own(node.target):
            trial.run()  # neither a library's workspace, which it then keeps, nor compiling is a cost of the kernel
            trial.seconds.clear()
        return trial

    def run(self) -> object:
        """Run the kernel once, record the time and return its result; None if it fails."""
        try:
            if self.device.type == "cuda":
                return self._run_on_cuda()
            start = time.perf_counter()
            result = self.call(*self.positional, **self.named)
            self.seconds.append(time.perf_counter() - start)
            return self._note_layouts(result)
        except Exception as error:  # whatever a kernel raises, the others are measured
            self.error = _first_line(error)
            return None

    def least_seconds(self) -> float:
        """Return the least time of several runs.

        There are as many runs as fit a share of time, so that slow kernels run once. They run twice if the first run
        seems to have done other work too.

        On a busy machine threads wait for each other until all have a core. This can make a short kernel 20 times as
        slow, every time. Such a kernel is run on one thread too: on an idle machine that would not be faster than the
        faster of both.
        """
        self._repeat(_SECONDS_PER_KERNEL)
        threads = torch.get_num_threads()
        waited = self.plausible_seconds < min(self.seconds) < _LONGEST_WAIT_SECONDS
        waited |= _WAITING * self.plausible_seconds < min(self.seconds) < _ONCE_SECONDS
        if waited and threads > 1 and self.device.type == "cpu":
            try:
                torch.set_num_threads(1)
                self._repeat(_SECONDS_PER_KERNEL)
            finally:
                torch.set_num_threads(threads)
        return min(self.seconds)

    def _repeat(self, budget_seconds: float) -> None:
        """Run again until `budget_seconds` were spent. A kernel that is inherently slow is not run again."""
        start = time.perf_counter()
        for run in range(_MOST_RUNS):
            spent = time.perf_counter() - start
            surprising = len(self.seconds) == 1 and self.seconds[0] > _SURPRISING * self.plausible_seconds
            if self.error is not None or (spent + min(self.seconds) >= _ONCE_SECONDS and not surprising):
                return
            if run >= _LEAST_RUNS and spent >= budget_seconds:
                return
            self.run()

    def _run_on_cuda(self) -> object:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = self.call(*self.positional, **self.named)
        end.record()
        torch.cuda.synchronize(self.device)
        self.seconds.append(start.elapsed_time(end) / 1e3)
        return self._note_layouts(result)

    def _note_layouts(self, result: object) -> object:
        """Record the layouts of a result and return it."""
        if self.layouts is None:
            self.layouts = format_layouts(layouts_of(result, operands_of(self.positional, self.named)))
        return result


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Run kernels without graph and casts, and restore every default generator afterwards."""
    generators = [device] if device.type == "cuda" else []
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=generators, device_type="cuda"),
    ):
        yield


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
