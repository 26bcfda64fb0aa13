"""One call of a rewritten module: runs the plan that serves it, and another where the step goes another way."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...kernels.checks import DecisionChanged
from ...passes.sources import Source
from ..capture.boundary.outputs import Arrivals
from ..capture.boundary.tensor_owners import Owners
from ..capture.call.kind import Call
from ..emit.program import Generator
from ..errors import LowtideError, LowtideWarning
from ..text.byte_sizes import format_bytes
from .begin_again import Served, Start
from .runtime import run_forward
from .step_plans import Chosen

# Ways in which the decisions of one call may go, each captured and planned, until the original runs instead.
_MOST_WAYS = 8


class Find(Protocol):
    """Finds, or makes, the plan for a call; None where there is nothing to plan.

    excluded: captured steps, by id, that do not serve it. arriving: the gradients to plan for.
    """

    def __call__(self, excluded: frozenset[int] = ..., arriving: Arrivals | None = ...) -> Chosen | None: ...


@dataclass(frozen=True)
class Step:
    """A call of a rewritten module. find: plans for this call. expect: told which gradients have arrived, so that the
    next such call is planned for them."""

    model: torch.nn.Module
    args: tuple
    kwargs: dict[str, Any]
    call: Call
    owners: Owners
    find: Find
    expect: Callable[[Arrivals], None]
    run_original: Callable[[], Any]


def run_step(step: Step, chosen: Chosen | None) -> Any:
    """What the module returns. chosen: the plan that is to run, None where there is nothing to plan.

    Where a decision goes another way than it did when the step was captured, the step is undone and another plan runs,
    or the original with a warning.
    """
    excluded: frozenset[int] = frozenset()
    while chosen is not None:
        tensors = {**step.owners.sources(step.call.inputs, step.call.structure), **chosen.step.constants}
        try:
            return _run_plan(step, chosen, tensors)
        except DecisionChanged as changed:
            _undo(chosen, changed, tensors)
            excluded |= {id(chosen.step)}
        if len(excluded) == _MOST_WAYS:
            return _run_original(step, f"its decisions went {_MOST_WAYS} other ways than planned")
        try:
            chosen = step.find(excluded)
        except LowtideError as error:
            return _run_original(step, f"{type(error).__name__}: {error}")
    return step.run_original()


def _run_plan(step: Step, chosen: Chosen, tensors: Mapping[Source, torch.Tensor]) -> Any:
    program = chosen.ready.program
    start = None
    # Else no other gradients can arrive than those planned for, or the step cannot begin again; and an argument that
    # forward changes comes of the step, which must not hold it.
    if len(program.outputs.able) > 1 and not program.outputs.changed:
        start = Start.here(
            program,
            tensors,
            chosen.step.costs.device,
            plan_for=lambda arriving: _serve(step, chosen, arriving),
            conditions=_present_autocast(),
        )
    # The root is the rewritten module itself.
    modules = {**step.owners.modules, "": step.model} if program.outputs.stashes else {}
    if not program.is_checked:
        _let_go_of_left(chosen, modules)
    outputs = run_forward(program, tensors, step.owners.device_type, start, step.expect)
    return program.outputs.hand_over(outputs, modules, [step.args, step.kwargs])


def _let_go_of_left(chosen: Chosen, modules: Mapping[str, torch.nn.Module]) -> None:
    """Lets go of what the step before has left in modules, which eager replaces in the course of forward.

    Not where the step may be undone: what runs instead may read it.
    """
    for stash in chosen.ready.program.outputs.stashes:
        stash.let_go(modules)
        if stash.attribute is not None:
            chosen.step.costs.captured.settings.forget(*stash.attribute)


def _undo(chosen: Chosen, changed: DecisionChanged, tensors: Mapping[Source, torch.Tensor]) -> None:
    """Puts back the generator and what forward has changed, and lets go of what it has made."""
    with torch.no_grad():
        for source, copy in zip(chosen.ready.program.undo, changed.undo, strict=True):
            if source is None:
                Generator(chosen.step.costs.device).set(copy)
            else:
                tensors[source].copy_(copy)
    traceback.clear_frames(changed.__traceback__)
    changed.undo = ()


def _run_original(step: Step, why: str) -> Any:
    returned = step.run_original()
    warnings.warn(
        f"a decision in forward of {type(step.model).__name__} went another way than planned, and this step could "
        f"not be planned anew ({why}): it runs as the original does, outside of the budget",
        LowtideWarning,
        stacklevel=5,
    )
    return returned


def _serve(step: Step, before: Chosen, arriving: Arrivals) -> Served:
    """The program for these gradients, planned now where it was not before."""
    chosen = step.find(arriving=arriving)
    assert chosen is not None
    warnings.warn(
        f"gradients arrive at {arriving}, and this step was planned for gradients of "
        f"{before.ready.program.outputs.arrivals}: its backward begins with forward again, within "
        f"{format_bytes(chosen.plan.peak_bytes)} beside what the first forward returned; the next steps are "
        "planned for it",
        LowtideWarning,
        stacklevel=2,
    )
    return chosen.ready.program, chosen.step.constants


def _present_autocast() -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts with the present autocast of every device type that has one."""
    device = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    cached = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(device, dtype, enabled=enabled, cache_enabled=cached)
