"""The plans of one captured step, for the gradients present before it and for the other bytes in memory."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from ...passes.sources import Source
from ...passes.step_kernels import GradAccumulate
from ...solvers.problem.errors import InfeasibleBudget, ScheduleError
from ...solvers.problem.plan import Plan
from ...solvers.problem.simulate import baseline_of, make_plan
from ...solvers.problem.units import rounded_up
from ..capture.boundary.tensor_owners import Owners
from ..capture.call.kind import Call
from ..emit.emit import emit
from ..emit.program import Program
from ..errors import LowtideWarning
from ..plan.code_header import header_of
from ..plan.links import links_of
from ..plan.loss_outside import everything_kept_bytes, peak_with_room, room_bytes
from ..plan.planner import StepPlanner
from ..plan.present_gradients import problem_in, schedule_in
from ..plan.progress import Progress
from ..plan.situation import Situation, storages_bytes
from ..plan.step_problem import PlannedStep, formulate_step
from ..text.byte_sizes import format_bytes
from .budget_in_force import BudgetInForce

Tensors = Mapping[Source, torch.Tensor]
# Measured host memory of a capture per node of its graph, and of a plan per instruction.
_NODE_BYTES = 16 * 1024
_INSTRUCTION_BYTES = 2 * 1024
_MOST_SITUATIONS = 256  # remembered situations of one captured step; older ones are recomputed


@dataclass(frozen=True)
class SituationKey:
    """The differences between calls of one kind.

    grads: which parameters and trained inputs have a `.grad`.
    inputs_bytes: the bytes of the inputs' storages, which may be larger than the inputs.
    """

    grads: tuple[bool, ...]
    inputs_bytes: int

    @staticmethod
    def of(call: Call, owners: Owners) -> SituationKey:
        """Return the key of a call."""
        return SituationKey(owners.grads_present(call.inputs), storages_bytes(call.inputs))


@dataclass(eq=False)
class Ready:
    """A plan with its program.

    situation, budget_bytes: the situation and the budget for which it was made.
    room_bytes: the bytes of the budget that it leaves for a loss outside.
    fits: situations in which it is known to keep a budget, with that budget.
    """

    planned: PlannedStep
    program: Program
    situation: Situation = field(repr=False)
    budget_bytes: int
    room_bytes: int = 0
    fits: list[tuple[Situation, int]] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Chosen:
    """A plan in one situation."""

    step: StepPlans = field(repr=False)
    ready: Ready
    situation: Situation = field(repr=False)
    budget_bytes: int
    notes: tuple[str, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """The plan with its peak in this situation, computed at first use."""
        return self.step.plan_in(self.ready, self.situation, self.budget_bytes, self.notes)

    @property
    def planned(self) -> PlannedStep:
        """The plan together with its captured step."""
        planned = self.ready.planned
        return replace(planned, plan=self.plan, mapping=replace(planned.mapping, problem=self.plan.problem))


@dataclass(frozen=True)
class PlanRequest:
    """A request for a plan.

    batch: the call's tensors in words.
    training: whether the call is in training mode.
    must_fit: whether a share that cannot be kept is an error.
    given: a plan to use instead of solving.
    kept: a plan to use if it was made for the same problem.
    """

    budget: BudgetInForce
    batch: str
    training: bool = True
    must_fit: bool = False
    given: Plan | None = None
    kept: Plan | None = None


class StepPlans:
    """A captured step with its plans.

    One plan is made for a step that starts without gradients, and one for a step that starts with all of them. For
    any other subset of gradients one of these is used, and its peak is recomputed.
    """

    def __init__(self, planner: StepPlanner) -> None:
        self.planner = planner
        self.measured = measured = planner.measured
        self.constants = measured.captured.held
        self.plans: list[Ready] = []
        self._room_bytes = room_bytes(measured.captured, measured.granularity)
        self._chosen: OrderedDict[SituationKey, Chosen] = OrderedDict()
        self._infeasible: list[tuple[Situation, int, InfeasibleBudget]] = []
        self._gradients = {
            kernel.target.meta["source"]: rounded_up(kernel.target.meta["val"].nbytes, measured.granularity)
            for kernel in measured.mapping.kernels
            if isinstance(kernel, GradAccumulate) and kernel.target.op == "placeholder"
        }

    @property
    def host_bytes(self) -> int:
        """The approximate bytes that it takes in the host's memory."""
        instructions = sum(len(ready.planned.plan.schedule.instructions) for ready in self.plans)
        code = sum(len(ready.program.code) for ready in self.plans)
        nodes = len(self.measured.captured.graph.graph.nodes)
        return _NODE_BYTES * nodes + _INSTRUCTION_BYTES * instructions + 8 * code

    def known(self, key: SituationKey, budget_bytes: int) -> Chosen | None:
        """Return the plan that was chosen in a situation, if the budget in force is still the same."""
        chosen = self._chosen.get(key)
        return chosen if chosen is not None and chosen.budget_bytes == budget_bytes else None

    def choose(
        self, key: SituationKey, tensors: Tensors, request: PlanRequest, progress: Progress | None = None
    ) -> Chosen:
        """Return a plan that keeps the budget with these tensors in memory. Raises InfeasibleBudget, PlanError."""
        situation = self.planner.situation(tensors)
        if request.budget.is_share:
            problem = formulate_step(self.measured, situation).problem
            whole_bytes = everything_kept_bytes(problem, self._room_bytes)
            request.budget.see(whole_bytes, request.batch, request.training)
        budget_bytes = request.budget.bytes(request.training)
        ready = self._best_known(situation, budget_bytes)
        if ready is None or self._could_be_faster(ready, situation, budget_bytes):
            try:
                ready = self._solved(situation, budget_bytes, request, progress)
            except InfeasibleBudget:
                may_exceed = request.budget.is_share and request.training and not request.must_fit
                if ready is None and not may_exceed:
                    raise
                ready = ready or self._smallest(situation, budget_bytes, request, progress)
        notes = (*request.budget.notes(request.training), *self._notes(ready, budget_bytes))
        chosen = self._chosen[key] = Chosen(self, ready, _without_tensors(situation), budget_bytes, notes)
        if len(self._chosen) > _MOST_SITUATIONS:
            self._chosen.popitem(last=False)
        return chosen

    def plan_in(self, ready: Ready, situation: Situation, budget_bytes: int, notes: tuple[str, ...] = ()) -> Plan:
        """Return a plan as it runs in a situation. Raises ScheduleError if it cannot run."""
        planned = ready.planned
        solved, links = planned.plan, ready.program.link_sizes
        bound = solved.lower_bound_seconds if budget_bytes <= ready.budget_bytes else None
        is_as_solved = self._is_harder(situation, ready.situation) and self._is_harder(ready.situation, situation)
        holds_longer = len(links) < len(ready.program.forward) and not self._gradients.keys().isdisjoint(
            situation.grad_present
        )
        if is_as_solved and not holds_longer:
            notes = (*solved.notes, *notes)
            return replace(solved, budget_bytes=budget_bytes, lower_bound_seconds=bound, notes=notes)
        problem = problem_in(planned.step, planned.measured.mapping, situation)
        if planned.mapping.problem.reference is not None:
            reference = baseline_of(formulate_step(self.measured, situation).problem)
            problem = replace(problem, reference=reference)
        # A plan made on another machine may have a slightly larger error than one made here.
        problem = replace(problem, error_budget=max(problem.error_budget, solved.problem.error_budget))
        return make_plan(
            problem,
            schedule_in(problem, solved.schedule, links),
            solver=solved.solver,
            budget_bytes=budget_bytes,
            lower_bound_seconds=bound if self._is_harder(situation, ready.situation) else None,
            solve_seconds=solved.solve_seconds,
            notes=(*solved.notes, *notes),
        )

    def _best_known(self, situation: Situation, budget_bytes: int) -> Ready | None:
        """Return the fastest plan that keeps the budget in a situation, preferably one with room for a loss."""

        def rank(ready: Ready) -> tuple[int, float, int]:
            return -ready.room_bytes, ready.planned.plan.seconds, -ready.budget_bytes

        for ready in sorted(self.plans, key=rank):
            if any(limit <= budget_bytes and self._is_harder(fit, situation) for fit, limit in ready.fits):
                return ready
            try:
                plan = self.plan_in(ready, situation, budget_bytes)
                fits = peak_with_room(plan, ready.room_bytes) <= budget_bytes
            except ScheduleError:
                continue
            if fits:
                ready.fits.append((_without_tensors(situation), budget_bytes))
                return ready
        return None

    def _is_harder(self, situation: Situation, other: Situation) -> bool:
        """Return whether at each time of a schedule at least as many bytes are alive in a situation as in another."""
        more = situation.grad_present - other.grad_present
        return (
            other.grad_present & self._gradients.keys() <= situation.grad_present
            and situation.resident_bytes
            >= other.resident_bytes + sum(self._gradients.get(source, 0) for source in more)
            and situation.floor_bytes >= other.floor_bytes
        )

    def _could_be_faster(self, ready: Ready, situation: Situation, budget_bytes: int) -> bool:
        """Return whether solving again may find a faster plan than one made for more gradients or a smaller budget."""
        present, solved_for = (self._gradients.keys() & case.grad_present for case in (situation, ready.situation))
        is_made_for_more = not present and bool(solved_for)
        # With more bytes there may also be room for a loss outside.
        wanting = bool(ready.planned.plan.extra_seconds) or ready.room_bytes < self._room_bytes
        return wanting and (budget_bytes > ready.budget_bytes or is_made_for_more)

    def _solved(
        self, situation: Situation, budget_bytes: int, request: PlanRequest, progress: Progress | None
    ) -> Ready:
        """Make a plan for no gradients, or for all of them, or, if that is infeasible, for those that are present."""
        missing = self._gradients.keys() - situation.grad_present
        if request.given is None and 0 < len(missing) < len(self._gradients):
            with_all_gradients = replace(
                situation,
                grad_present=situation.grad_present | missing,
                resident_bytes=situation.resident_bytes + sum(self._gradients[source] for source in missing),
            )
            try:
                return self._solved(with_all_gradients, budget_bytes, request, progress)
            except InfeasibleBudget:
                pass
        self._raise_known_infeasibility(situation, budget_bytes)
        given = request.given
        if given is None and request.kept is not None:
            variants = self.planner.variants(situation)
            fits = any(variant.problem.fingerprint == request.kept.fingerprint for variant in variants)
            given = request.kept if fits else None
        try:
            planned = self.planner.plan(situation, budget_bytes, progress, given)
        except InfeasibleBudget as error:
            self._infeasible.append((_without_tensors(situation), budget_bytes, error))
            raise
        return self._keep(situation, planned, budget_bytes)

    def _raise_known_infeasibility(self, situation: Situation, budget_bytes: int) -> None:
        """Raise an earlier InfeasibleBudget, if it was for at least this budget in an easier situation."""
        for known, limit, error in self._infeasible:
            if budget_bytes <= limit and self._is_harder(situation, known):
                raise error

    def _smallest(
        self, situation: Situation, budget_bytes: int, request: PlanRequest, progress: Progress | None
    ) -> Ready:
        """Return the plan of the smallest peak, made once for each budget that could not be kept."""
        for ready in self.plans:
            if ready.budget_bytes == budget_bytes < ready.planned.plan.peak_bytes:
                return ready
        planned = self.planner.smallest(situation, progress)
        over = format_bytes(planned.plan.peak_bytes - budget_bytes)
        warnings.warn(
            f"a step of {self.measured.name} with {request.batch} cannot be done in {request.budget.budget}, which is "
            f"{format_bytes(budget_bytes)}: it peaks {over} above that, the least that could be planned, until a "
            "larger batch raises the bytes of the share; give the budget in bytes, or pass the largest batch to "
            "rewrite as args or kwargs",
            LowtideWarning,
            stacklevel=2,
        )
        return self._keep(situation, planned, budget_bytes)

    def _notes(self, ready: Ready, budget_bytes: int) -> tuple[str, ...]:
        over_bytes = ready.planned.plan.peak_bytes - budget_bytes
        return (
            ()
            if over_bytes <= 0
            else (f"no plan keeps the budget: this one peaks {format_bytes(over_bytes)} above it",)
        )

    def _keep(self, situation: Situation, planned: PlannedStep, budget_bytes: int) -> Ready:
        program = emit(
            planned.measured.captured,
            planned.step,
            planned.mapping,
            planned.plan.schedule,
            self.measured.name,
            header_of(planned),
            self.measured.device,
            self._links(situation, planned),
        )
        has_room = peak_with_room(planned.plan, self._room_bytes) <= budget_bytes
        room_bytes = self._room_bytes if has_room else 0
        ready = Ready(planned, program, _without_tensors(situation), budget_bytes, room_bytes)
        if planned.plan.peak_bytes <= budget_bytes:
            ready.fits.append((ready.situation, budget_bytes))
        self.plans.append(ready)
        return ready

    def _links(self, situation: Situation, planned: PlannedStep) -> tuple[int, ...]:
        """Return the numbers of blocks that are one node of autograd's graph."""
        with_all_gradients = replace(situation, grad_present=situation.grad_present | self._gradients.keys())
        step, mapping = planned.step, planned.measured.mapping
        return links_of(
            problem_in(step, mapping, with_all_gradients), problem_in(step, mapping, situation), planned.plan.schedule
        )


def _without_tensors(situation: Situation) -> Situation:
    """Return the situation without tensors, so that it keeps nothing alive."""
    return replace(situation, tensors={})
