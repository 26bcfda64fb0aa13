"""One call of a rewritten module: runs the plan that serves it, and another where the step goes another way."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..kernels.checks import DecisionChanged
from .begin_again import Served, Start
from .bytes_text import format_bytes
from .call import Call
from .chosen_outputs import Arrivals
from .errors import LowtideError, LowtideWarning
from .planning import PlannedStep
from .program import Generator, Program
from .runtime import run_forward
from .sources import Owners, Source

# Ways in which the decisions of one call may go, each captured and planned, until the original runs instead.
_MOST_WAYS = 8


@dataclass
class Ready:
    """A planned kind of call."""

    planned: PlannedStep
    program: Program
    constants: dict[Source, torch.Tensor]


class Find(Protocol):
    """Finds, or makes, the plan for a call; None where there is nothing to plan.

    excluded: captured steps, by id, that do not serve it. arriving: the gradients to plan for.
    """

    def __call__(self, excluded: frozenset[int] = ..., arriving: Arrivals | None = ...) -> Ready | None: ...


@dataclass(frozen=True)
class Step:
    """A call. model: the rewritten module; original: the same under its own class; find: plans for this call. expect:
    told which gradients have arrived, so that the next such call is planned for them."""

    model: torch.nn.Module
    original: torch.nn.Module
    args: tuple
    kwargs: dict[str, Any]
    call: Call
    owners: Owners
    find: Find
    expect: Callable[[Arrivals], None]


def run_step(step: Step) -> Any:
    """What the module returns.

    Where a decision goes another way than it did when the step was captured, the step is undone and another plan runs,
    or the original with a warning.
    """
    excluded: frozenset[int] = frozenset()
    while len(excluded) < _MOST_WAYS:
        try:
            ready = step.find(excluded)
        except LowtideError as error:
            if not excluded:
                raise
            return _run_original(step, f"{type(error).__name__}: {error}")
        if ready is None:
            return step.original.forward(*step.args, **step.kwargs)
        tensors = {**step.owners.sources(step.call.inputs, step.call.structure), **ready.constants}
        try:
            return _run_plan(step, ready, tensors)
        except DecisionChanged as changed:
            _undo(ready, changed, tensors)
            excluded |= {id(ready.planned.costs)}
    return _run_original(step, f"its decisions went {_MOST_WAYS} other ways than planned")


def _run_plan(step: Step, ready: Ready, tensors: Mapping[Source, torch.Tensor]) -> Any:
    program = ready.program
    start = None
    # Else no other gradients can arrive than those planned for, or the step cannot begin again; and an argument that
    # forward changes comes of the step, which must not hold it.
    if len(program.outputs.able) > 1 and not program.outputs.changed:
        device = ready.planned.costs.device
        start = Start.here(
            program, tensors, device, lambda arriving: _serve(step, ready, arriving), _present_autocast()
        )
    outputs = run_forward(program, tensors, step.owners.device_type, start, step.expect)
    modules = {**step.owners.modules, "": step.model}
    return program.outputs.hand_over(outputs, modules, [step.args, step.kwargs])


def _undo(ready: Ready, changed: DecisionChanged, tensors: Mapping[Source, torch.Tensor]) -> None:
    """Puts back the generator and what forward has changed, and lets go of what it has made."""
    with torch.no_grad():
        for source, copy in zip(ready.program.undo, changed.undo, strict=True):
            if source is None:
                Generator(ready.planned.costs.device).set(copy)
            else:
                tensors[source].copy_(copy)
    traceback.clear_frames(changed.__traceback__)
    changed.undo = ()


def _run_original(step: Step, why: str) -> Any:
    returned = step.original.forward(*step.args, **step.kwargs)
    warnings.warn(
        f"a decision in forward of {type(step.original).__name__} went another way than planned, and this step could "
        f"not be planned anew ({why}): it runs as the original does, outside of the budget",
        LowtideWarning,
        stacklevel=5,
    )
    return returned


def _serve(step: Step, before: Ready, arriving: Arrivals) -> Served:
    """The program for these gradients, planned now where it was not before."""
    ready = step.find(arriving=arriving)
    assert ready is not None
    warnings.warn(
        f"gradients arrive at {arriving}, and this step was planned for gradients of "
        f"{before.program.outputs.arrivals}: its backward begins with forward again, within "
        f"{format_bytes(ready.planned.plan.peak_bytes)} beside what the first forward returned; the next steps are "
        "planned for it",
        LowtideWarning,
        stacklevel=2,
    )
    return ready.program, ready.constants


def _present_autocast() -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts with the present autocast of every device type that has one."""
    device = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    cached = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(device, dtype, enabled=enabled, cache_enabled=cached)
