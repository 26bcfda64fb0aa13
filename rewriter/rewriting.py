"""What a rewritten module knows of its rewriting: it plans at the first call of each kind, and finds the plan again."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..solvers.plan import Plan
from ..solvers.portfolio import Portfolio
from .call import Call, describe, modules_key
from .chosen_outputs import Arrivals
from .emit import emit
from .errors import LowtideError, LowtideWarning, NothingToDifferentiate, Unsettled
from .header import header_of
from .inner_hooks import warn_of_hooks
from .planning import Options, PlannedStep, PosedStep, StepCosts, calibrated, capture_step, pose_step, situation_of
from .progress import shown_progress
from .refused_parts import refuse_uninitialized
from .run_step import Ready, Step, run_step
from .settings import Settings
from .solving import solve_step
from .sources import Owners

# Plans kept at once. Each costs only host memory, but a training loop whose every batch is another shape would
# plan at every step, and should be told.
_MOST_PLANS = 16

_planning = threading.RLock()


@dataclass
class Rewriting:
    """What a rewritten module knows of its rewriting: the budget, the options, and a plan per kind of call.

    It is reached as `small.lowtide`. Copies and pickles carry the budget, the options and the plans' schedules;
    captures and code are made again.
    """

    budget: int | str
    options: Options
    optimizer: torch.optim.Optimizer | None = None
    given_plan: Plan | None = None
    kept_plan: Plan | None = None
    portfolio: Portfolio = field(default_factory=Portfolio, repr=False)
    _steps: dict[Hashable, list[StepCosts]] = field(default_factory=dict, repr=False)
    _ready: OrderedDict[Hashable, Ready] = field(default_factory=OrderedDict, repr=False)
    _eager: dict[Hashable, list[Settings]] = field(default_factory=dict, repr=False)
    _arrived: dict[Hashable, Arrivals] = field(default_factory=dict, repr=False)
    _owners: tuple[Hashable, Owners] | None = field(default=None, repr=False)
    _last: Ready | None = field(default=None, repr=False)
    hooked: set[str] = field(default_factory=set, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # An optimizer belongs to the parameters of one module: a copy has other ones.
        return {"budget": self.budget, "options": self.options, "kept_plan": self.plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewriting:
        return Rewriting(**self.__getstate__())

    @property
    def plan(self) -> Plan | None:
        """The plan of the last kind of call, None before the first."""
        return self._last.planned.plan if self._last is not None else self.given_plan or self.kept_plan

    @property
    def code(self) -> str:
        """The generated Python of the last kind of call. Raises LowtideError before the first."""
        if self._last is None:
            raise LowtideError("there is no code before the first training-mode call, or rewrite(model, budget, args)")
        return self._last.program.code

    @property
    def planned(self) -> PlannedStep | None:
        """The plan of the last kind of call together with the captured step it is for."""
        return self._last.planned if self._last is not None else None

    def run(self, model: torch.nn.Module, original: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One forward of the rewritten module. original: the module under its own class."""
        preset = self.options.preset()
        owners = self._owners_of(original)
        if preset is not None and preset.kind != owners.device_type:
            raise LowtideError(
                f"this module was rewritten for the preset {self.options.device!r}, which is for planning only; "
                "rewrite it without device= to run it here"
            )
        try:
            refuse_uninitialized(owners)
            call = describe(original, args, kwargs, owners)

            def find(excluded: frozenset[int] = frozenset(), arriving: Arrivals | None = None) -> Ready | None:
                wanted = arriving if arriving is not None else self._arrived.get(call.key)
                ready = self._find(original, args, kwargs, call, owners, wanted, excluded)
                if ready is not None and arriving is not None:
                    self._arrived[call.key] = arriving
                return ready

            expect = partial(self._arrived.__setitem__, call.key)
            return run_step(Step(model, original, args, kwargs, call, owners, find, expect))
        except Unsettled as error:
            _warn_of_settling(error)
            return original.forward(*args, **kwargs)

    def prepare(self, original: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """Plans for a kind of call without running it.

        Raises NothingToDifferentiate where there is no backward, Unsettled where the next forward changes the module.
        """
        owners = self._owners_of(original)
        refuse_uninitialized(owners)
        call = describe(original, args, kwargs, owners)
        with torch.enable_grad():
            ready = self._find(original, args, kwargs, call, owners)
        if ready is None:
            raise NothingToDifferentiate("no output requires a gradient: there is no backward to plan")
        return ready.planned.plan

    def _owners_of(self, original: torch.nn.Module) -> Owners:
        # Modules that gained, lost or exchanged a part, or tie other parameters, have other tensors.
        _, *inner = original.modules()
        shape = (tuple(id(module) for module in inner), modules_key(original))
        if self._owners is None or self._owners[0] != shape:
            self._owners = (shape, Owners(original, shape[1]))
        return self._owners[1]

    def _find(
        self,
        original: torch.nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        call: Call,
        owners: Owners,
        arriving: Arrivals | None = None,
        excluded: frozenset[int] = frozenset(),
    ) -> Ready | None:
        """The plan for a call, None if there is nothing to plan. arriving: the gradients it is for, by default
        those that most likely come; excluded: captured steps, by id, that do not serve."""
        parts = {**owners.modules, "": original}  # as they are now, since each call looks at them anew
        if any(settings.hold(parts) for settings in self._eager.get(call.key, ())):
            return None
        costs = self._matching(parts, call, owners, arriving, excluded)
        full_key = (call.key, call.grad_key, id(costs))
        if costs is None or full_key not in self._ready:
            try:
                costs, ready = self._plan(original, args, kwargs, costs, arriving)
            except NothingToDifferentiate as error:
                if error.settings is not None:
                    self._eager.setdefault(call.key, []).append(error.settings)
                return None
            if all(known is not costs for known in self._steps.setdefault(call.key, [])):
                self._steps[call.key].append(costs)
            full_key = (call.key, call.grad_key, id(costs))
            self._remember(full_key, ready)
        self._ready.move_to_end(full_key)
        self._last = self._ready[full_key]
        return self._last

    def _matching(
        self,
        parts: Mapping[str, torch.nn.Module],
        call: Call,
        owners: Owners,
        arriving: Arrivals | None,
        excluded: frozenset[int],
    ) -> StepCosts | None:
        """The captured step whose settings and guard hold for this call. parts: the module's by name, itself too."""
        for costs in self._steps.get(call.key, ()):
            guard = costs.captured.guard
            if id(costs) in excluded or not costs.captured.outputs.are_for(arriving):
                continue
            if not costs.captured.settings.hold(parts):
                continue
            if guard is None or guard.holds(owners.sources(call.inputs, call.structure)):
                return costs
        return None

    def _plan(
        self,
        original: torch.nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        costs: StepCosts | None,
        arriving: Arrivals | None,
    ) -> tuple[StepCosts, Ready]:
        # Capturing watches what the whole process runs: one thread at a time.
        with _planning, shown_progress(f"planning {type(original).__name__}") as progress:
            found = costs
            if found is None:
                _check_arguments(original, args, kwargs)
                warn_of_hooks(original, self.hooked)
                found = capture_step(original, args, kwargs, self.options, progress, arriving)
            situation = situation_of(
                original, args, kwargs, self.options, found.device, found.captured.constants, self.optimizer
            )
            costs = calibrated(found, situation, progress) if costs is None else found
            # A given plan is for the first kind of call; a kept one, of a copy, serves where it happens to fit.
            given = self.given_plan if not self._ready else None
            posed = PosedStep(costs, situation, *pose_step(costs, situation))
            kept = self.kept_plan
            if given is None and kept is not None:
                fits = any(way.posed.problem.fingerprint == kept.fingerprint for way in posed.ways)
                given = kept if fits else None
            planned = solve_step(posed, self.budget, self.portfolio, progress, given)
        program = emit(
            planned.costs.captured,
            planned.step,
            planned.posed,
            planned.plan.schedule,
            costs.name,
            header_of(planned),
            costs.device,
        )
        return costs, Ready(planned, program, costs.captured.held)

    def _remember(self, key: Hashable, ready: Ready) -> None:
        self._ready[key] = ready
        if len(self._ready) > _MOST_PLANS:
            self._ready.popitem(last=False)
            used = {key[2] for key in self._ready}  # pyright: ignore[reportIndexIssue]
            kept = {key: [costs for costs in steps if id(costs) in used] for key, steps in self._steps.items()}
            self._steps = {key: steps for key, steps in kept.items() if steps}
            warnings.warn(
                f"lowtide has planned for more than {_MOST_PLANS} kinds of calls (shapes, dtypes, modes, numbers) and "
                "forgets the oldest; pad batches to a few shapes, and pass numbers that change as tensors",
                LowtideWarning,
                stacklevel=5,
            )


def _warn_of_settling(error: Unsettled) -> None:
    warnings.warn(f"this call runs the original forward, within no budget: {error.what}", LowtideWarning, stacklevel=5)


def _check_arguments(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises the TypeError that calling forward with these arguments would raise."""
    inspect.signature(model.forward).bind(*args, **kwargs)
