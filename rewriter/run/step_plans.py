"""The plans of one captured step: for the gradients that are there before it, and for what else is in memory."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from ...passes.sources import Source
from ...solvers.portfolio import Portfolio
from ...solvers.problem.errors import InfeasibleBudget, ScheduleError
from ...solvers.problem.plan import Plan
from ...solvers.problem.simulate import baseline_of, make_plan
from ..capture.boundary.tensor_owners import Owners
from ..capture.call.kind import Call
from ..emit.emit import emit
from ..emit.program import Program
from ..errors import LowtideWarning
from ..measure.optimizer_memory import OptimizerNeeds, optimizer_needs
from ..plan.code_header import header_of
from ..plan.links import links_of
from ..plan.loss_outside import everything_kept_bytes, peak_with_room
from ..plan.present_gradients import problem_in, schedule_in
from ..plan.situation import Situation, rounding_bytes, situation_with, storages_bytes
from ..plan.solve import room_of, smallest_step, solve_step
from ..plan.step import PlannedStep, Progress, StepCosts, StepProblem, calibrated, formulate_step
from ..text.byte_sizes import format_bytes
from .budget_in_force import BudgetInForce

Tensors = Mapping[Source, torch.Tensor]
# Host memory that a capture takes for each node of its graph, and a plan for each of its instructions; measured.
_NODE_BYTES = 16 * 1024
_INSTRUCTION_BYTES = 2 * 1024
_MOST_SITUATIONS = 256  # of one captured step; others are worked out again


@dataclass(frozen=True)
class SituationKey:
    """What differs between calls of one kind. grads: which parameters and trained inputs have a `.grad`; inputs_bytes:
    of the storages that the inputs lie in, which may be larger than the inputs."""

    grads: tuple[bool, ...]
    inputs_bytes: int

    @staticmethod
    def of(call: Call, owners: Owners) -> SituationKey:
        """That of a call."""
        return SituationKey(owners.grads_present(call.inputs), storages_bytes(call.inputs))


@dataclass(eq=False)
class Ready:
    """A plan whose program can run. situation, budget_bytes: what it was made for; room_bytes: what it leaves of a
    budget for a loss outside; fits: situations in which it was seen to keep a budget, with that budget."""

    planned: PlannedStep
    program: Program
    situation: Situation = field(repr=False)
    budget_bytes: int
    room_bytes: int = 0
    fits: list[tuple[Situation, int]] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Chosen:
    """A plan as it serves in one situation."""

    step: StepPlans = field(repr=False)
    ready: Ready
    situation: Situation = field(repr=False)
    budget_bytes: int
    notes: tuple[str, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """The plan with what it peaks at in this situation; worked out when it is first asked for."""
        return self.step.plan_in(self.ready, self.situation, self.budget_bytes, self.notes)

    @property
    def planned(self) -> PlannedStep:
        """The plan together with the captured step it is for."""
        planned = self.ready.planned
        return replace(planned, plan=self.plan, posed=replace(planned.posed, problem=self.plan.problem))


@dataclass(frozen=True)
class Asking:
    """What a plan is asked for. batch: the call's tensors in words; must_fit: whether a share that cannot be kept is an
    error; given: a plan to take instead of solving, or one that may serve."""

    budget: BudgetInForce
    portfolio: Portfolio
    batch: str
    training: bool = True
    must_fit: bool = False
    given: Plan | None = None
    kept: Plan | None = None


class StepPlans:
    """A captured step with its plans. One is made where no gradient is there before the step, one where all are there;
    with any other subset of gradients one of these serves, and its peak is worked out anew."""

    def __init__(
        self,
        costs: StepCosts,
        tensors: Tensors,
        optimizer: torch.optim.Optimizer | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._granularity = rounding_bytes(costs.device, costs.options.preset())
        self._room_bytes = room_of(costs)
        self._needs: OptimizerNeeds | None = None  # what is measured of codes does not depend on it
        self.constants = costs.captured.held
        self.costs = costs = calibrated(costs, self._situation(tensors), progress)
        self.plans: list[Ready] = []
        self._chosen: OrderedDict[SituationKey, Chosen] = OrderedDict()
        self._infeasible: list[tuple[Situation, int, InfeasibleBudget]] = []
        self._needs = optimizer_needs(optimizer, costs.device) if optimizer is not None else None
        self._gradients = {
            kernel.target.meta["source"]: -(-kernel.target.meta["val"].nbytes // self._granularity) * self._granularity
            for kernel in costs.posed[1].kernels
            if kernel.role == "accumulate" and kernel.target is not None and kernel.target.op == "placeholder"
        }

    @property
    def host_bytes(self) -> int:
        """About what is kept of it in the host's memory."""
        instructions = sum(len(ready.planned.plan.schedule.instructions) for ready in self.plans)
        code = sum(len(ready.program.code) for ready in self.plans)
        nodes = len(self.costs.captured.graph.graph.nodes)
        return _NODE_BYTES * nodes + _INSTRUCTION_BYTES * instructions + 8 * code

    def known(self, key: SituationKey, budget_bytes: int) -> Chosen | None:
        """The plan that was chosen in a situation, if the budget in force is still the same."""
        chosen = self._chosen.get(key)
        return chosen if chosen is not None and chosen.budget_bytes == budget_bytes else None

    def choose(self, key: SituationKey, tensors: Tensors, asking: Asking, progress: Progress | None = None) -> Chosen:
        """A plan that keeps the budget with these tensors there. Raises InfeasibleBudget, PlanError."""
        situation = self._situation(tensors)
        if asking.budget.is_share:
            whole_bytes = everything_kept_bytes(formulate_step(self.costs, situation)[1].problem, self._room_bytes)
            asking.budget.see(whole_bytes, asking.batch, asking.training)
        budget_bytes = asking.budget.bytes(asking.training)
        ready = self._best_known(situation, budget_bytes)
        if ready is None or self._could_be_faster(ready, situation, budget_bytes):
            try:
                ready = self._solved(situation, budget_bytes, asking, progress)
            except InfeasibleBudget:
                may_exceed = asking.budget.is_share and asking.training and not asking.must_fit
                if ready is None and not may_exceed:
                    raise
                ready = ready or self._smallest(situation, budget_bytes, asking, progress)
        notes = (*asking.budget.notes(asking.training), *self._notes(ready, budget_bytes))
        chosen = self._chosen[key] = Chosen(self, ready, _without_tensors(situation), budget_bytes, notes)
        if len(self._chosen) > _MOST_SITUATIONS:
            self._chosen.popitem(last=False)
        return chosen

    def plan_in(self, ready: Ready, situation: Situation, budget_bytes: int, notes: tuple[str, ...] = ()) -> Plan:
        """A plan as it is carried out in a situation. Raises ScheduleError where it cannot be."""
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
        problem = problem_in(planned.step, planned.costs.posed[1], situation)
        if planned.posed.problem.reference is not None:
            reference = baseline_of(formulate_step(self.costs, situation)[1].problem)
            problem = replace(problem, reference=reference)
        # A plan that was made elsewhere may err a little more than one that is made here.
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

    def _situation(self, tensors: Tensors) -> Situation:
        return situation_with({**tensors, **self.constants}, self._granularity, self._needs)

    def _best_known(self, situation: Situation, budget_bytes: int) -> Ready | None:
        """The fastest of the plans that keep the budget in a situation; first those that leave room for a loss."""

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
        """Whether at each moment of a schedule at least as much is alive in a situation as in another one."""
        more = situation.grad_present - other.grad_present
        return (
            other.grad_present & self._gradients.keys() <= situation.grad_present
            and situation.resident_bytes >= other.resident_bytes + sum(self._gradients.get(one, 0) for one in more)
            and situation.floor_bytes >= other.floor_bytes
        )

    def _could_be_faster(self, ready: Ready, situation: Situation, budget_bytes: int) -> bool:
        """Whether solving anew may find a faster plan than one made for more gradients, or for a smaller budget."""
        there, before = (self._gradients.keys() & one.grad_present for one in (situation, ready.situation))
        is_made_for_more = not there and bool(before)
        # With more bytes there may also be room for a loss outside that there was not.
        wanting = bool(ready.planned.plan.extra_seconds) or ready.room_bytes < self._room_bytes
        return wanting and (budget_bytes > ready.budget_bytes or is_made_for_more)

    def _solved(self, situation: Situation, budget_bytes: int, asking: Asking, progress: Progress | None) -> Ready:
        """A new plan: for no gradients, or for all of them, or, where that cannot be, for those that are there."""
        missing = self._gradients.keys() - situation.grad_present
        if asking.given is None and 0 < len(missing) < len(self._gradients):
            all_there = replace(
                situation,
                grad_present=situation.grad_present | missing,
                resident_bytes=situation.resident_bytes + sum(self._gradients[source] for source in missing),
            )
            try:
                return self._solved(all_there, budget_bytes, asking, progress)
            except InfeasibleBudget:
                pass
        self._refuse_again(situation, budget_bytes)
        posed = self._posed(situation)
        given = asking.given
        if given is None and asking.kept is not None:
            fits = any(way.posed.problem.fingerprint == asking.kept.fingerprint for way in posed.ways)
            given = asking.kept if fits else None
        try:
            planned = solve_step(posed, budget_bytes, asking.portfolio, progress, given)
        except InfeasibleBudget as error:
            self._infeasible.append((_without_tensors(situation), budget_bytes, error))
            raise
        return self._keep(situation, planned, budget_bytes)

    def _refuse_again(self, situation: Situation, budget_bytes: int) -> None:
        """Raises what was raised before, if the budget was not enough where no more was there."""
        for known, limit, error in self._infeasible:
            if budget_bytes <= limit and self._is_harder(situation, known):
                raise error

    def _smallest(self, situation: Situation, budget_bytes: int, asking: Asking, progress: Progress | None) -> Ready:
        """The plan of the smallest peak, made once for each budget that could not be kept."""
        for ready in self.plans:
            if ready.budget_bytes == budget_bytes < ready.planned.plan.peak_bytes:
                return ready
        planned = smallest_step(self._posed(situation), asking.portfolio, progress)
        over = format_bytes(planned.plan.peak_bytes - budget_bytes)
        warnings.warn(
            f"a step of {self.costs.name} with {asking.batch} cannot be done in {asking.budget.budget}, which is "
            f"{format_bytes(budget_bytes)}: it peaks {over} above that, the least that could be planned, until a "
            "larger batch comes, of which the share is taken then; give the budget in bytes, or pass the largest batch "
            "to rewrite as args or kwargs",
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
            planned.costs.captured,
            planned.step,
            planned.posed,
            planned.plan.schedule,
            self.costs.name,
            header_of(planned),
            self.costs.device,
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
        """Which blocks are one node of autograd's graph."""
        all_there = replace(situation, grad_present=situation.grad_present | self._gradients.keys())
        step, posed = planned.step, planned.costs.posed[1]
        return links_of(problem_in(step, posed, all_there), problem_in(step, posed, situation), planned.plan.schedule)

    def _posed(self, situation: Situation) -> StepProblem:
        return StepProblem(self.costs, situation, *formulate_step(self.costs, situation))


def _without_tensors(situation: Situation) -> Situation:
    """A situation that keeps nothing alive."""
    return replace(situation, tensors={})
