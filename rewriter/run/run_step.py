"""Run one call of a rewritten module by its plan, and by another plan if a decision of the step differs."""

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
from .runtime import run_forward
from .step_plans import Chosen
from .step_start import Served, Start

# The number of branches of decisions in one call that are captured and planned before the original runs instead.
_MOST_BRANCHES = 8


class Find(Protocol):
    """Finds, or makes, the plan for a call; None if there is nothing to plan.

    excluded: captured steps, by id, that do not serve it.
    arriving: the gradients to plan for.
    """

    def __call__(self, excluded: frozenset[int] = ..., arriving: Arrivals | None = ...) -> Chosen | None: ...


@dataclass(frozen=True)
class Step:
    """A call of a rewritten module.

    find: plans for this call.
    expect: records which gradients have arrived, so that the next call of this kind is planned for them.
    """

    model: torch.nn.Module
    args: tuple
    kwargs: dict[str, Any]
    call: Call
    owners: Owners
    find: Find
    expect: Callable[[Arrivals], None]
    run_original: Callable[[], Any]


def run_step(step: Step, chosen: Chosen | None) -> Any:
    """Run a call and return the module's result.

    chosen: the plan to run, None if there is nothing to plan.
    If a decision differs from the one at capture, the step is undone and another plan runs, or the original with a
    warning.
    """
    excluded: frozenset[int] = frozenset()
    while chosen is not None:
        tensors = {**step.owners.sources(step.call.inputs, step.call.structure), **chosen.step.constants}
        try:
            return _run_plan(step, chosen, tensors)
        except DecisionChanged as changed:
            _undo(chosen, changed, tensors)
            excluded |= {id(chosen.step)}
        if len(excluded) == _MOST_BRANCHES:
            return _run_original(step, f"its decisions took {_MOST_BRANCHES} branches that differ from the plans")
        try:
            chosen = step.find(excluded)
        except LowtideError as error:
            return _run_original(step, f"{type(error).__name__}: {error}")
    return step.run_original()


def _run_plan(step: Step, chosen: Chosen, tensors: Mapping[Source, torch.Tensor]) -> Any:
    program = chosen.ready.program
    start = None
    # Otherwise no other gradients can arrive, or the step cannot restart. An argument that forward changes depends
    # on the step, which must not hold it.
    if len(program.outputs.differentiable) > 1 and not program.outputs.changed:
        start = Start.begin(
            program,
            tensors,
            chosen.step.measured.device,
            plan_for=lambda arriving: _serve(step, chosen, arriving),
            conditions=_present_autocast(),
        )
    # The root is the rewritten module itself.
    modules = {**step.owners.modules, "": step.model} if program.outputs.stashes else {}
    if not program.is_checked:
        _release_left_values(chosen, modules)
    outputs = run_forward(program, tensors, step.owners.device_type, start, step.expect)
    return program.outputs.deliver(outputs, modules, [step.args, step.kwargs])


def _release_left_values(chosen: Chosen, modules: Mapping[str, torch.nn.Module]) -> None:
    """Release the values that the previous step left in modules, which eager replaces during forward.

    It must not be called for a step that may be undone: the forward that runs instead may read them.
    """
    for stash in chosen.ready.program.outputs.stashes:
        stash.release(modules)
        if stash.attribute is not None:
            chosen.step.measured.captured.settings.forget(*stash.attribute)


def _undo(chosen: Chosen, changed: DecisionChanged, tensors: Mapping[Source, torch.Tensor]) -> None:
    """Restore the generator and the tensors that forward has changed, and release the tensors that it has made."""
    with torch.no_grad():
        for source, copy in zip(chosen.ready.program.undo, changed.undo, strict=True):
            if source is None:
                Generator(chosen.step.measured.device).set(copy)
            else:
                tensors[source].copy_(copy)
    traceback.clear_frames(changed.__traceback__)
    changed.undo = ()


def _run_original(step: Step, why: str) -> Any:
    returned = step.run_original()
    warnings.warn(
        f"a decision in forward of {type(step.model).__name__} differs from the plan, and this step could not be "
        f"planned again ({why}): it runs as the original does, outside of the budget",
        LowtideWarning,
        stacklevel=5,
    )
    return returned


def _serve(step: Step, before: Chosen, arriving: Arrivals) -> Served:
    """Return the program for these gradients, and plan it if necessary."""
    chosen = step.find(arriving=arriving)
    assert chosen is not None
    warnings.warn(
        f"gradients arrive at {arriving}, and this step was planned for gradients of "
        f"{before.ready.program.outputs.arrivals}: its backward begins with forward again, within "
        f"{format_bytes(chosen.plan.peak_bytes)} in addition to what the first forward returned; the next steps are "
        "planned for it",
        LowtideWarning,
        stacklevel=2,
    )
    return chosen.ready.program, chosen.step.constants


def _present_autocast() -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes contexts with the present autocast."""
    device = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    cached = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(device, dtype, enabled=enabled, cache_enabled=cached)
