"""One training step of the frontier's rows: run from the same start, and measured for memory, bits and time."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lowtide
import torch
from torch import Tensor, nn

MEASURE_SEED = 0


@dataclass(frozen=True)
class Subject:
    """The model that all rows train, on one batch. It does not run itself: rows run shadow copies.

    gradients_present: whether `.grad` is there, zeroed, at each start.
    """

    model: nn.Module
    batch: dict[str, Tensor]
    gradients_present: bool

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train; the same objects in every row."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def shadow_copy(self) -> nn.Module:
        """Copy the modules over the same parameters, with buffers of their own."""
        return copy.deepcopy(self.model, {id(parameter): parameter for parameter in self.model.parameters()})

    def reset(self) -> None:
        """Set gradients to what they are before a step."""
        for parameter in self.parameters:
            if not self.gradients_present:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()


@dataclass
class Runner:
    """A method to run the step.

    module: the one whose buffers a step changes.
    forward: returns the loss.
    """

    name: str
    kind: str
    module: nn.Module
    forward: Callable[[], Tensor]
    notes: list[str] = field(default_factory=list)

    def step(self) -> Tensor:
        """Run forward and backward; return the loss."""
        loss = self.forward()
        loss.backward()
        return loss.detach()


def runner_of(name: str, kind: str, module: nn.Module, batch: dict[str, Tensor], notes: Sequence[str] = ()) -> Runner:
    """Build a runner that calls a module whose output has a loss."""
    return Runner(name, kind, module, lambda: module(**batch)["loss"], list(notes))


@dataclass(frozen=True)
class Result:
    """The loss of one step, gradients of the subject's parameters, and buffers of the module that ran."""

    loss: Tensor
    gradients: list[Tensor | None]
    buffers: list[Tensor]


def result_of(subject: Subject, runner: Runner) -> Result:
    """Run one step from the original's buffers and the same random numbers."""
    own = list(runner.module.buffers())  # by position: groups of blocks have other names
    with torch.no_grad():
        for buffer, start in zip(own, subject.model.buffers(), strict=True):
            buffer.copy_(start)
    subject.reset()
    torch.manual_seed(MEASURE_SEED)
    loss = runner.step()
    gradients = [None if p.grad is None else p.grad.clone() for p in subject.parameters]
    return Result(loss.clone(), gradients, [buffer.clone() for buffer in own])


def gradient_error(reference: Result, other: Result) -> float:
    """Return the largest ‖g − reference‖ / ‖reference‖ over parameters; 0 only if all are equal bit for bit."""
    return max(map(_relative_error, reference.gradients, other.gradients), default=0.0)


def _relative_error(reference: Tensor | None, other: Tensor | None) -> float:
    if reference is None or other is None:
        return 0.0 if reference is other else float("inf")
    if torch.equal(reference, other):
        return 0.0
    scale = reference.double().norm().item()
    error = (other.double() - reference.double()).norm().item()
    return max(error / scale if scale else error, torch.finfo(torch.float64).tiny)


def buffers_equal(reference: Result, other: Result) -> bool:
    """Return whether all buffers are what they are after eager's step."""
    return all(map(torch.equal, reference.buffers, other.buffers))


def peak_bytes(subject: Subject, runner: Runner) -> int:
    """Measure the most bytes of one step above its start."""
    subject.reset()
    return lowtide.measure_peak(runner.step)


def seconds_in_turn(subject: Subject, runners: Sequence[Runner], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each runner, one per round; all run in turn, in alternating direction.

    A round before the first warms up, and so does one step before each round.
    """
    seconds: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for number in range(rounds + 1):
        gc.collect()
        subject.reset()
        runners[0].step()
        for runner in runners if number % 2 else reversed(runners):
            subject.reset()
            taken = _timed(runner.step)
            if number:
                seconds[runner.name].append(taken)
    return seconds


def _timed(step: Callable[[], Any]) -> float:
    """Return the seconds of one step, with the garbage collector off."""
    gc.disable()
    try:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    finally:
        gc.enable()
