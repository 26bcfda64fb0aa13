"""The state of a rewritten module: it plans at the first call of each kind, and finds the plan at later calls."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ...passes.sources import Source
from ...solvers.portfolio import Portfolio
from ...solvers.problem.plan import Plan
from ..capture.boundary.outputs import Arrivals
from ..capture.call.autocast import autocast_kept
from ..capture.call.inner_hooks import warn_of_hooks
from ..capture.call.key import CallKey
from ..capture.call.kind import Call, Describer, batch_text
from ..capture.call.module_attributes import Settings
from ..capture.call.original import original_forward, original_view
from ..errors import LowtideError, LowtideWarning, NothingToDifferentiate, Unsettled
from ..plan.measured_step import measure_step
from ..plan.options import Options
from ..plan.planner import StepPlanner
from ..plan.progress import Progress, shown_progress
from ..plan.step_problem import PlannedStep
from ..text.byte_sizes import format_bytes
from .budget_in_force import BudgetInForce
from .evaluation import Evaluation
from .forwards import SetForward
from .known_steps import KnownSteps
from .run_step import Step, run_step
from .step_plans import Chosen, PlanRequest, SituationKey, StepPlans

_planning = threading.RLock()


@dataclass(frozen=True)
class _Known:
    """The captured step that serves a call, and the plan chosen before in the same situation.

    has_backward: whether the call has a backward at all.
    """

    step: StepPlans | None = None
    chosen: Chosen | None = None
    has_backward: bool = True


@dataclass
class Rewriting:
    """The state of a rewritten module: the budget, the options, and a plan per kind of call.

    It is available as `small.lowtide`. Copies and pickles contain the budget, the options and the plan;
    captures and code are rebuilt.
    """

    budget: int | str
    options: Options
    optimizer: torch.optim.Optimizer | None = None
    given_plan: Plan | None = None
    kept_plan: Plan | None = None
    portfolio: Portfolio = field(default_factory=Portfolio, repr=False)
    steps: KnownSteps = field(default_factory=KnownSteps, repr=False)
    hooked: set[str] = field(default_factory=set, repr=False)
    _in_force: BudgetInForce = field(init=False, repr=False)
    _evaluation: Evaluation = field(default_factory=Evaluation, repr=False)
    _without_backward: dict[CallKey, list[Settings]] = field(default_factory=dict, repr=False)
    calls: int = field(default=0, repr=False)
    has_warned_of_step: bool = field(default=False, repr=False)
    _here: threading.local = field(default_factory=threading.local, repr=False)
    _describer: Describer = field(default_factory=Describer, repr=False)
    _arrived: dict[CallKey, Arrivals] = field(default_factory=dict, repr=False)
    _last: Chosen | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._in_force = BudgetInForce(self.budget)

    def __getstate__(self) -> dict[str, Any]:
        # An optimizer belongs to the parameters of one module, and a copy has different ones.
        return {"budget": self.budget, "options": self.options, "kept_plan": self.plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewriting:
        return Rewriting(**self.__getstate__())

    @property
    def plan(self) -> Plan | None:
        """The plan of the last kind of call, None before the first."""
        return self._last.plan if self._last is not None else self.given_plan or self.kept_plan

    @property
    def code(self) -> str:
        """The generated Python of the last kind of call. Raises LowtideError before the first."""
        if self._last is None:
            raise LowtideError(
                "there is no code before the first training-mode call: call the module in training mode, or pass args "
                "to rewrite"
            )
        return self._last.ready.program.code

    @property
    def planned(self) -> PlannedStep | None:
        """The plan of the last kind of call, together with its captured step."""
        return self._last.planned if self._last is not None else None

    @property
    def is_inside(self) -> bool:
        """Return whether this thread is capturing the module, or running its original forward."""
        return getattr(self._here, "inside", False)

    def run(self, model: Any, args: tuple, kwargs: dict[str, Any], custom_forward: SetForward | None = None) -> Any:
        """Run one forward of the rewritten module, with grad mode on.

        custom_forward: a forward that was set on it.
        """
        self.calls += 1

        def run_original() -> Any:
            with self._inside():
                return (original_forward(model) if custom_forward is None else custom_forward.on(model))(
                    *args, **kwargs
                )

        self._check_place(model)
        try:
            call = self._describe(model, args, kwargs, custom_forward)
        except Exception as error:
            return self._original(model, run_original, None, error)

        def find(excluded: frozenset[int] = frozenset(), arriving: Arrivals | None = None) -> Chosen | None:
            expected = arriving if arriving is not None else self._arrived.get(call.key)
            is_first = not excluded and arriving is None  # else forward has run since the call was described
            present = call if is_first else replace(call, state=self._describer.state_of(model))
            chosen = self._choose(model, args, kwargs, present, custom_forward, expected, excluded)
            if chosen is not None:
                self._last = chosen
                if arriving is not None:
                    self._arrived[call.key] = arriving
            return chosen

        try:
            chosen = find()
        except Exception as error:
            return self._original(model, run_original, call, error)
        expect = partial(self._arrived.__setitem__, call.key)
        step = Step(model, args, kwargs, call, call.state.owners, find, expect, run_original)
        return run_step(step, chosen)

    def _original(self, model: Any, run_original: Callable[[], Any], call: Call | None, error: Exception) -> Any:
        """Run the original if a call cannot be planned in evaluation mode or before settling; else raise the error."""
        if isinstance(error, Unsettled):
            _warn_of_settling(error)
        elif model.training:
            raise error
        else:
            self._evaluation.give_up(call and call.key, error)
        return run_original()

    def prepare(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """Plan for a kind of call without running it.

        Raises NothingToDifferentiate if there is no backward, Unsettled if the next forward changes the module.
        """
        with torch.enable_grad():
            call = self._describe(model, args, kwargs)
            chosen = self._choose(model, args, kwargs, call, must_fit=True)
        if chosen is None:
            raise NothingToDifferentiate(
                "no output requires a gradient: there is no backward to plan; check that parameters require gradients"
            )
        self._last = chosen
        return chosen.plan

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Make calls of the rewritten forward in this thread run the original within this context."""
        before = self.is_inside
        self._here.inside = True
        try:
            yield
        finally:
            self._here.inside = before

    def _describe(
        self, model: Any, args: tuple, kwargs: dict[str, Any], custom_forward: SetForward | None = None
    ) -> Call:
        return self._describer.describe(
            model, args, kwargs, self._options(model).outputs, custom_forward and custom_forward.key
        )

    def _options(self, model: Any) -> Options:
        # In evaluation mode all outputs are returned, for metrics.
        return self.options if model.training or self.options.outputs is None else replace(self.options, outputs=None)

    def _choose(
        self,
        model: Any,
        args: tuple,
        kwargs: dict[str, Any],
        call: Call,
        custom_forward: SetForward | None = None,
        arriving: Arrivals | None = None,
        excluded: frozenset[int] = frozenset(),
        must_fit: bool = False,
    ) -> Chosen | None:
        """Return the plan for a call; None for a call without backward, and for one that is not planned.

        arriving: the gradients to plan for, by default the most likely ones.
        excluded: captured steps, by id, that do not serve the call.
        must_fit: whether a share that cannot be kept is an error.
        """
        wants_gradient = call.state.trains or any(tensor.requires_grad for tensor in call.inputs)
        if not wants_gradient or (not model.training and not must_fit and self._evaluation.has_given_up(call.key)):
            return None
        known = self._known(model, call, Settings.are_current, arriving, excluded)
        if known.chosen is not None or not known.has_backward:
            return known.chosen
        # Capture watches the whole process, so that only one thread may plan at a time.
        with _planning:
            call = self._describe(model, args, kwargs, custom_forward)
            known = self._known(model, call, Settings.hold, arriving, excluded)
            if known.chosen is not None or not known.has_backward:
                return known.chosen
            with shown_progress(f"planning {type(model).__name__}") as progress:
                return self._planned(
                    model, args, kwargs, call, custom_forward, known.step, arriving, must_fit, progress
                )

    def _known(
        self,
        model: Any,
        call: Call,
        holds: Callable[[Settings, Mapping[str, torch.nn.Module]], bool],
        arriving: Arrivals | None,
        excluded: frozenset[int],
    ) -> _Known:
        """Return the captured step that serves a call, and the plan chosen before in the same situation.

        holds: decides whether the attributes that the step read are unchanged in the modules.
        """
        owners = call.state.owners
        if any(holds(settings, owners.modules) for settings in self._without_backward.get(call.key, ())):
            return _Known(has_backward=False)
        for step in self.steps.of(call.key):
            guard = step.measured.captured.guard
            if id(step) in excluded or not step.measured.captured.outputs.are_planned_for(arriving):
                continue
            if not holds(step.measured.captured.settings, owners.modules):
                continue
            if guard is None or guard.holds(owners.sources(call.inputs, call.structure)):
                return _Known(step, step.known(SituationKey.of(call, owners), self._in_force.bytes(model.training)))
        return _Known()

    def _planned(
        self,
        model: Any,
        args: tuple,
        kwargs: dict[str, Any],
        call: Call,
        custom_forward: SetForward | None,
        step: StepPlans | None,
        arriving: Arrivals | None,
        must_fit: bool,
        progress: Progress | None,
    ) -> Chosen | None:
        """Make a plan, and capture the step if that was not done before; return None if it has no backward."""
        owners = call.state.owners
        tensors = owners.sources(call.inputs, call.structure)
        request = PlanRequest(
            self._in_force,
            batch_text(call),
            model.training,
            must_fit,
            given=self.given_plan if not len(self.steps) else None,
            kept=self.kept_plan,
        )
        is_new = step is None
        if step is None:
            try:
                step = self._captured(model, args, kwargs, custom_forward, tensors, arriving, progress)
            except NothingToDifferentiate as error:
                if error.settings is not None:
                    self._without_backward.setdefault(call.key, []).append(error.settings)
                return None
        chosen = step.choose(SituationKey.of(call, owners), tensors, request, progress)
        if is_new:
            # A kernel that failed to compile in the meantime has changed the state of the process.
            process = self._describer.process(self._describer.state_of(model))
            self.steps.add(replace(call.key, process=process), step)
        self._forget_oldest()
        return chosen

    def _captured(
        self,
        model: Any,
        args: tuple,
        kwargs: dict[str, Any],
        custom_forward: SetForward | None,
        tensors: Mapping[Source, torch.Tensor],
        arriving: Arrivals | None,
        progress: Progress | None,
    ) -> StepPlans:
        original = original_view(model, custom_forward and custom_forward.on)
        inspect.signature(original.forward).bind(*args, **kwargs)  # raises TypeError like a call
        warn_of_hooks(original, self.hooked)
        options = self._options(model)
        with self._inside(), autocast_kept(self._describer.state_of(model).owners.device_type):
            measured = measure_step(original, args, kwargs, options, progress, arriving)
        return StepPlans(StepPlanner(measured, tensors, self.optimizer, self.portfolio, progress))

    def _check_place(self, model: Any) -> None:
        """Raise LowtideError for a replica, and for a module that was rewritten for another machine."""
        if vars(model).get("_is_replica"):
            raise LowtideError(
                "this is a replica that DataParallel made of a rewritten module; its parameters are copies for which "
                "no step is planned: use DistributedDataParallel around the rewritten module"
            )
        preset = self.options.preset()
        if preset is not None and preset.kind != self._describer.state_of(model).owners.device_type:
            raise LowtideError(
                f"this module was rewritten for the preset {self.options.device!r}, which is for planning only; "
                "rewrite it without device= to run it here"
            )

    def _forget_oldest(self) -> None:
        keys = self.steps.keys
        if self.steps.forget_oldest():
            differing = ", ".join(keys[-1].differing(keys[-2]))
            warnings.warn(
                f"lowtide keeps its plans in {format_bytes(self.steps.most_bytes)} of the host's memory, which "
                f"{len(keys)} kinds of calls exceed, and forgets the oldest; the last two differ in their {differing}: "
                "pad batches to a few shapes, and pass numbers that change as tensors",
                LowtideWarning,
                stacklevel=5,
            )


def _warn_of_settling(error: Unsettled) -> None:
    warnings.warn(f"this call runs the original forward, within no budget: {error.what}", LowtideWarning, stacklevel=5)
