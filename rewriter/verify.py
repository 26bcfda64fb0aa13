"""Runs the original and the rewritten module side by side, and compares bits and peaks."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .capture import bind
from .measure_peak import measure_peak
from .planning import Options, Situation, device_of, situation_of
from .report import Difference, Report
from .rewrite import rewrite
from .structure import flatten

_LEARNING_RATE = 1e-3


def verify(
    model: torch.nn.Module,
    budget: int | str,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    steps: int = 3,
    timed_pairs: int = 0,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    **options: Any,
) -> Report:
    """Trains copies of a module for a few steps, in eager and rewritten, and compares everything bit for bit.

    steps: optimizer steps (AdamW unless `make_optimizer` makes another from parameters); timed_pairs: how many steps of
    each are timed in turn; options: those of `rewrite`. Outputs, gradients, parameters, buffers and the generator's
    state are compared after each step. What differs between two runs of eager is listed apart: no rewriting can be
    equal to it. The module itself is not changed, nor is the random state.

    Raises what `rewrite` raises.
    """
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    make_optimizer = make_optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=_LEARNING_RATE))
    kwargs, _ = bind(model, args, kwargs)
    with _generators_restored(device_of(model, args, kwargs)):
        small = rewrite(copy.deepcopy(model).train(), budget, args, kwargs, **options)
        first = small.lowtide.planned
        constants = first.costs.captured.constants
        modules = (copy.deepcopy(model).train(), copy.deepcopy(model).train(), small)
        runners = [_Runner(module, args, kwargs, options, make_optimizer, constants) for module in modules]
        unstable: dict[str, Difference] = {}
        differences: list[Difference] = []
        for step in range(steps):
            eager, again, rewritten = [runner.step(step) for runner in runners]
            unstable.update({d.what: d for d in _compare(step, eager, again)})
            differences += [d for d in _compare(step, eager, rewritten) if d.what not in unstable]
        peaks = _peaks(runners[0], runners[2])
        ratio = _time_ratio(runners[0], runners[2], timed_pairs) if timed_pairs else None
    return Report(
        name=type(model).__name__,
        plan=first.plan,
        steps=steps,
        compared=len(eager),
        differences=tuple(differences),
        unstable=tuple(unstable),
        eager_peak_bytes=peaks[0],
        measured_peak_bytes=peaks[1],
        dropped_peak_bytes=peaks[2],
        time_ratio=ratio,
        timed_pairs=timed_pairs,
        device_type=first.costs.device.type,
        notes=first.posed.problem.notes,
    )


@contextmanager
def _generators_restored(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class _Runner:
    """One copy of the module with its optimizer."""

    def __init__(
        self,
        model: Any,
        args: tuple,
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
        make_optimizer: Any,
        constants: tuple[torch.Tensor, ...],
    ) -> None:
        self.model = model
        self.constants = constants
        self.args, self.kwargs = args, kwargs
        self.wanted = options.get("differentiable")
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(trained) if trained else None
        self.device = device_of(model, args, kwargs)

    def step(self, seed: int) -> dict[str, torch.Tensor | None]:
        """One optimizer step; everything there is to compare, by name."""
        torch.manual_seed(seed)
        # Under a context that spans steps, eager would go on with the casts of parameters from before they changed.
        torch.clear_autocast_cache()
        self.clear()
        outputs, structure = flatten(self.model(*self.args, **self.kwargs), "output")
        self._backward(outputs, structure.names)
        told: dict[str, torch.Tensor | None] = {
            f"output {name}": output.detach().clone() for name, output in zip(structure.names, outputs, strict=True)
        }
        for name, parameter in self.model.named_parameters():
            told[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        for index, tensor in enumerate(self._inputs()):
            told[f"gradient of input {index}"] = None if tensor.grad is None else tensor.grad.clone()
        if self.optimizer is not None:
            self.optimizer.step()
        told |= {f"parameter {name}": p.detach().clone() for name, p in self.model.named_parameters()}
        told |= {f"buffer {name}": b.clone() for name, b in self.model.named_buffers()}
        told["generator state"] = torch.get_rng_state()
        if self.device.type == "cuda":
            told["generator state on the device"] = torch.cuda.get_rng_state(self.device)
        return told

    def once(self, *, hold: bool) -> None:
        """Forward and backward; `hold` keeps what forward returned until backward has ended."""
        outputs, structure = flatten(self.model(*self.args, **self.kwargs), "output")
        if not hold:
            chosen = self._chosen(outputs, structure.names)
            outputs = [outputs[i] if i in chosen else None for i in range(len(outputs))]  # pyright: ignore
        self._backward(outputs, structure.names)

    def clear(self) -> None:
        """Lets go of all gradients."""
        for tensor in (*self.model.parameters(), *self._inputs()):
            tensor.grad = None

    def situation(self) -> Situation:
        """What is there when a step begins."""
        return situation_of(self.model, self.args, self.kwargs, Options(), self.device, self.constants)

    def _inputs(self) -> list[torch.Tensor]:
        tensors, _ = flatten((self.args, self.kwargs), "argument")
        return [t for t in tensors if t.requires_grad and t.is_leaf]

    def _chosen(self, outputs: Sequence[torch.Tensor | None], names: Sequence[str]) -> list[int]:
        """The outputs that backward starts from: the loss, or all that carry a gradient."""
        able = [i for i, output in enumerate(outputs) if output is not None and output.requires_grad]
        if self.wanted is not None:
            return [i for i in able if any(names[i] == w or names[i].startswith(w + ".") for w in self.wanted)]
        return [i for i in able if names[i] == "loss"] or able

    def _backward(self, outputs: Sequence[torch.Tensor | None], names: Sequence[str]) -> None:
        chosen = [outputs[i] for i in self._chosen(outputs, names)]
        # As torch recommends, and as steps are planned: autocast is for forward.
        with torch.autocast(self.device.type, enabled=False):
            torch.autograd.backward(chosen, [torch.ones_like(output) for output in chosen])  # pyright: ignore


def _compare(
    step: int, first: Mapping[str, torch.Tensor | None], second: Mapping[str, torch.Tensor | None]
) -> Iterator[Difference]:
    """What is not the same to the bit."""
    for what in first.keys() | second.keys():
        one, other = first.get(what), second.get(what)
        if one is None and other is None:
            continue
        if one is None or other is None:
            yield Difference(step, what, float("inf"))
        elif one.shape != other.shape or one.dtype != other.dtype or not _same_bits(one, other):
            alike = one.shape == other.shape
            yield Difference(step, what, float((one.double() - other.double()).abs().max()) if alike else float("inf"))


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal values, with NaN equal to NaN."""
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _peaks(eager: _Runner, rewritten: _Runner) -> tuple[int, int, int]:
    """Measured peaks: of eager, of the rewritten module, and of the latter with outputs dropped before backward."""
    peaks = []
    for runner, hold in ((eager, True), (rewritten, True), (rewritten, False)):
        runner.clear()
        resident_bytes = runner.situation().resident_bytes
        above = measure_peak(lambda runner=runner, hold=hold: runner.once(hold=hold), runner.device)
        peaks.append(resident_bytes + above)
        runner.clear()
    return peaks[0], peaks[1], peaks[2]


def _time_ratio(eager: _Runner, rewritten: _Runner, pairs: int) -> float:
    """The median over pairs, run in turn, of the rewritten step's time divided by eager's."""
    ratios = []
    for _ in range(pairs):
        seconds = []
        for runner in (eager, rewritten):
            runner.clear()
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            started = time.perf_counter()
            runner.once(hold=True)
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)
