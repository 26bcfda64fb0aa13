"""Runs kernels alone on made-up operands, to see how long each takes and how much memory it holds."""

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
from ...passes.foreign_calls import calling
from ..capture.operands.layouts_seen import layouts_of, operands_of, written
from ..capture.operands.operand_values import Fitting, fittings_of
from ..capture.operands.operands import OperandMaker, target_name
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
# What a kernel takes on an idle machine, roughly: a launch, its memory traffic, its arithmetic.
_PLAUSIBLE_LAUNCH_SECONDS = 5e-5
_PLAUSIBLE_BYTES_PER_SECOND = 1e10
_PLAUSIBLE_FLOPS_PER_SECOND = 1e11
_LONGEST_WAIT_SECONDS = 0.05
_WAITING = 20  # times as long as is plausible: then it has waited, however long it took
_SURPRISING = 4  # times as long as is plausible: then a first run has perhaps prepared something
_Progress = Callable[[int, int, str], None]


class MeasureWarning(UserWarning):
    """A cost that had to be estimated although it was to be measured."""


def prepare_kernels(nodes: Iterable[fx.Node], device: torch.device) -> None:
    """Does once what the first run of each kernel would do besides running: it is no cost of a kernel, nor of a step.

    Steps whose costs are known need it too, lest their first one takes more than planned.
    """
    own = [node for node in nodes if is_own(node.target)]
    with _undisturbed(device):
        for node in own:
            names = (argument.name for argument in node.target._schema.arguments)  # pyright: ignore
            given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
            prepare(node.target, {name: one for name, one in given.items() if not isinstance(one, fx.Node)})
        if own and device.type == "cuda":
            works(device)


def run_kernels(
    memory_of: Mapping[str, fx.Node],
    seconds_of: Mapping[str, fx.Node],
    device: torch.device,
    progress: _Progress | None = None,
) -> dict[str, Measurement]:
    """Measures the memory of the kernels in `memory_of` and the time of those in `seconds_of`, by signature.

    The memory of all is measured in one profiler session. Operands live only while their kernel is measured;
    the global random streams stay where they are. What could not be measured is None, and a `MeasureWarning`
    says so.
    """
    trials = _Trials(OperandMaker(device), progress, total=len({**memory_of, **seconds_of}))
    with _undisturbed(device):
        if memory_of and device.type == "cpu" and is_profiler_running():
            warnings.warn(
                f"a profiler is running, so the memory of {len(memory_of)} kernels was not measured: their "
                "outputs are counted, not their scratch; plan outside the profiler to have it measured",
                MeasureWarning,
                stacklevel=4,
            )
        elif memory_of:
            runs = trials.each(memory_of, seconds_of, least_seconds=_SLOW_SECONDS)
            peaks = measure_allocations(runs, device=device, watch_existing=False)
            for text, peak_bytes in zip(trials.started, peaks, strict=True):
                trials.working_bytes[text] = max(trials.working_bytes.get(text, 0), peak_bytes)
        untimed = {text: node for text, node in seconds_of.items() if text not in trials.seconds}
        unseen = {text: node for text, node in memory_of.items() if text not in trials.layouts}
        for run in trials.each({**unseen, **untimed}, untimed, least_seconds=0.0):
            run()
    for text, error in trials.failures.items():
        name = target_name({**memory_of, **seconds_of}[text])
        warnings.warn(
            f"{name} cannot be run alone ({error}), so its cost is estimated from shapes, its memory from above; "
            f"called as {text}",
            MeasureWarning,
            stacklevel=4,
        )
    return trials.measurements()


@dataclass
class _Trials:
    """The kernels run so far: which, how long they took, how much they held, why they could not be run."""

    maker: OperandMaker
    progress: _Progress | None
    total: int
    started: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    working_bytes: dict[str, int] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def each(
        self, nodes: Mapping[str, fx.Node], timed: Mapping[str, fx.Node], least_seconds: float
    ) -> Iterator[Callable[[], object]]:
        """Yields each kernel's first run, on each kind of operands; then times those that take `least_seconds` or more.

        timed: of which kernels the time is wanted, on the first kind of operands.
        """
        for text, node in nodes.items():
            for number, fitting in enumerate(fittings_of(node)):
                if text in self.failures:
                    break
                try:
                    trial = _Trial.prepare(node, self.maker, fitting)
                except Exception as error:  # any operand that cannot be made: the cost is estimated instead
                    self.failures[text] = _first_line(error)
                    break
                self.started.append(text)
                yield trial.run
                if trial.layouts is not None:
                    self.layouts.setdefault(text, trial.layouts)
                if trial.error is not None:
                    self.failures[text] = trial.error
                elif number == 0 and text in timed and trial.seconds[-1] >= least_seconds:
                    seconds = trial.least_seconds()
                    if seconds >= least_seconds:  # or else only the first run was slow, as of what compiles itself then
                        self.seconds[text] = seconds
                del trial  # its operands go before the next kernel's are made
            self._report(text, node)

    def measurements(self) -> dict[str, Measurement]:
        known = (set(self.seconds) | set(self.working_bytes) | set(self.layouts)) - set(self.failures)
        return {
            text: Measurement(self.seconds.get(text), self.working_bytes.get(text), self.layouts.get(text))
            for text in known
        }

    def _report(self, text: str, node: fx.Node) -> None:
        self.seen.add(text)
        if self.progress is not None:
            self.progress(len(self.seen), self.total, target_name(node))


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
        trial = cls(calling(node), *maker.make(node, filled=not is_view(node), fitting=fitting), maker.device)
        trial.plausible_seconds = (
            _PLAUSIBLE_LAUNCH_SECONDS
            + moved_bytes(node) / _PLAUSIBLE_BYTES_PER_SECOND
            + count_flops(node) / _PLAUSIBLE_FLOPS_PER_SECOND
        )
        if maker.device.type == "cuda" or is_own(node.target):
            trial.run()  # a library's workspace, which it then keeps, is not the kernel's, nor is being compiled
            trial.seconds.clear()
        return trial

    def run(self) -> object:
        """Runs the kernel once, notes the time and returns what it returned; None when it fails."""
        try:
            if self.device.type == "cuda":
                return self._run_on_cuda()
            start = time.perf_counter()
            result = self.call(*self.positional, **self.named)
            self.seconds.append(time.perf_counter() - start)
            return self._seen(result)
        except Exception as error:  # whatever a kernel raises, the others are measured
            self.error = _first_line(error)
            return None

    def least_seconds(self) -> float:
        """The least of several runs: as many as fit a share of time, so that slow kernels run once; twice if they look
        as if they had done something else besides.

        On a busy machine threads wait for each other until all have a core, which can make a short kernel
        20 times as slow, every time. A kernel that looks so is run on one thread too: on an idle machine it
        would be no slower than the faster of both.
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
        """Runs again until `budget_seconds` were spent; a kernel that is slow by its nature not at all."""
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
        return self._seen(result)

    def _seen(self, result: object) -> object:
        """A result, once it has been noted how it lies."""
        if self.layouts is None:
            self.layouts = written(layouts_of(result, operands_of(self.positional, self.named)))
        return result


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Runs kernels as they are: no graph, no casts, and every default generator put back afterwards."""
    generators = [device] if device.type == "cuda" else []
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=generators, device_type="cuda"),
    ):
        yield


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
