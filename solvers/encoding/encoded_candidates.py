"""Candidates with values kept encoded: solved with encodings, or made from candidates without, as bytes require."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil, inf

from ..candidates.pareto import Rated, envelope
from ..polish import polished
from ..problem.encoded_problem import encoded_problem_of
from ..problem.errors import InfeasibleBudget
from ..problem.liveness import Choice, RunOrder, forecast
from ..problem.problem import Problem
from ..problem.schedule import Run, Schedule
from ..problem.simulate import simulate
from ..solver import Solver
from .choices import choice_text, choices_of
from .decode_order import decoded_order, encoded_schedule, is_exact_where_due, with_codes, without_idle_codes

_SOURCES_PER_BUDGET = 3
_GRAIN = 1e-3  # least difference between sources, as a share of the seconds of the step


@dataclass(frozen=True)
class Encoded:
    """Find candidates with values kept encoded between forward and backward, for a few choices (`choices_of`).

    There are three sources of run orders for a choice:

        candidates of `plain_solvers` without encodings, with chosen values encoded wherever they wait (`with_codes`);
        if approximate codes are chosen, candidates of `solver` for a smaller problem, then encoded in the same way. In
            it chosen values have the size of their codes while nothing reads them. So the candidates ignore the codecs,
            and values decoded between two readers;
        for the largest choice, candidates of `solver` for the encoded problem (`EncodedProblem.reduced`). They count
            everything exactly, and recompute nothing from decoded values.

    The best of these are polished for budgets between the lowest and the highest peak. Values for which a budget has
    the bytes are kept unencoded, the most seconds per byte first (`polished`).

    plain_solvers: the solvers whose candidates without encodings are used.
    solver: the solver for problems with encodings.
    polished_operations: the limit of operations to polish.
    fewest_polished: the candidates polished even beyond that limit.

    Guarantee: none; compare `lower_bound_seconds`. Cost: for each choice that of `solver` (twice for the largest), and
    that of polishing.
    """

    plain_solvers: tuple[Solver, ...]
    solver: Solver
    polished_operations: int = 160_000
    fewest_polished: int = 64
    name: str = "encoded"

    def rated(self, problem: Problem, plain: Sequence[Rated]) -> Iterator[Rated]:
        """Yield all candidates, none if no value has encodings.

        plain: the envelope of the candidates without encodings.
        """
        choices = choices_of(problem)
        limit = max(self.fewest_polished, self.polished_operations // len(problem.ops))
        for choice in choices:
            candidates = _ChoiceCandidates(problem, choice, plain)
            for known in plain:
                yield from candidates.rated(known.solver, known.description, with_codes(problem, choice, known.order))
            if _is_approximate(problem, choice):
                for candidate in self.solver.candidates(_in_code_sizes(problem, choice)):
                    order = with_codes(problem, choice, candidate.order)
                    yield from candidates.rated(self.solver.name, candidate.description, order)
            if choice == choices[-1]:
                encoded = encoded_problem_of(problem, choice)
                for candidate in self.solver.candidates(encoded.reduced):
                    yield from candidates.rated(
                        self.solver.name, candidate.description, decoded_order(encoded, candidate.order)
                    )
            yield from candidates.spend(limit)


def encoded_of(problem: Problem, solvers: Sequence[Solver]) -> Encoded | None:
    """Return the solver that plans with encoded values, None if nothing is to be encoded."""
    thinned = [solver for solver in (solver.thinned() for solver in solvers) if solver is not None]
    if not thinned or not choices_of(problem):
        return None
    return Encoded(tuple(solvers), next((solver for solver in thinned if solver.is_slow), thinned[-1]))


def schedule_with_codes(problem: Problem, solver: Solver, budget_bytes: int) -> Schedule:
    """Return the fastest of a solver's schedules for one budget: that without encodings, and one for each choice.

    Raises InfeasibleBudget if none of them fits, and other errors of the solver without encodings.
    """
    schedules, error = [], None
    try:
        schedules.append(solver.schedule(problem, budget_bytes))
    except InfeasibleBudget as infeasible:
        error = infeasible
    for choice in choices_of(problem):
        encoded = encoded_problem_of(problem, choice)
        with suppress(InfeasibleBudget, ValueError):  # with codecs the graph may be too large
            order = decoded_order(encoded, _order(solver.schedule(encoded.reduced, budget_bytes)))
            if is_exact_where_due(problem, choice, order):
                schedules.append(encoded_schedule(problem, choice, order))
    if not schedules:
        assert error is not None
        raise error
    return min(schedules, key=lambda schedule: simulate(problem, schedule).seconds)


def _order(schedule: Schedule) -> RunOrder:
    """Return the operations that each segment of a schedule runs."""
    runs = (schedule.instructions[segment.start : segment.stop] for segment in schedule.segments)
    return tuple(tuple(instruction.op for instruction in segment if isinstance(instruction, Run)) for segment in runs)


def _is_approximate(problem: Problem, choice: Choice) -> bool:
    """Return whether a choice has approximate codes, which most values have; few values have exact ones."""
    return any(problem.values[value].encodings[number].fidelity == "approximate" for value, number in choice)


def _in_code_sizes(problem: Problem, choice: Choice) -> Problem:
    """Return the problem in which chosen values have the size of their codes, except while operations read them."""
    values = [replace(value, encodings=()) for value in problem.values]
    saved, saved_in_backward = [0] * len(values), [0] * len(values)
    for value, number in choice:
        record = problem.values[value]
        encoding = record.encodings[number]
        saved[value] = saved_in_backward[value] = record.size_bytes - encoding.size_bytes
        if encoding.is_read_itself:
            saved_in_backward[value] = record.decoded_bytes(number)
        values[value] = replace(values[value], size_bytes=encoding.size_bytes)
    ops = []
    for index, op in enumerate(problem.ops):
        made_bytes = sum(problem.values[value].size_bytes for value in op.makes)
        more_bytes = saved if index < problem.forward_length else saved_in_backward
        decoded_bytes = sum(more_bytes[value] for value in dict.fromkeys(op.reads))
        ops.append(replace(op, working_bytes=max(op.working_bytes, made_bytes) + decoded_bytes))
    return replace(problem, ops=tuple(ops), values=tuple(values))


class _ChoiceCandidates:
    """The candidates of one choice, and further ones made from the best of them."""

    def __init__(self, problem: Problem, choice: Choice, plain: Sequence[Rated]) -> None:
        self.problem, self.choice = problem, choice
        self.grain_seconds = _GRAIN * problem.seconds or 1.0
        self.encoded = encoded_problem_of(problem, choice)
        self.merged = self.encoded.merged
        pairs = zip(self.encoded.operations, self.merged.ops, strict=True)
        self.codec_seconds = [0.0 if isinstance(operation, Run) else op.seconds for operation, op in pairs]
        self.choice_description = choice_text(problem, choice)
        self.known = list(plain)  # the envelope
        self.sources: list[Rated] = []  # the envelope with the seconds without any codec

    def rated(self, solver: str, description: str, order: RunOrder) -> Iterator[Rated]:
        """Yield the candidate of an order and remember it as a source; nothing if forward reads approximate values."""
        if not is_exact_where_due(self.problem, self.choice, order):
            return
        rated = self._rated(solver, f"{description}; {self.choice_description}", order)
        codec_seconds = sum(self.codec_seconds[op] for op in chain.from_iterable(order))
        # a source that is hardly faster, and keeps more, would hide one with more values to encode
        seconds = self.grain_seconds * ceil((rated.seconds - codec_seconds) / self.grain_seconds)
        self.sources = envelope([*self.sources, replace(rated, seconds=seconds)])
        yield rated

    def spend(self, most: int) -> Iterator[Rated]:
        """Yield sources with as few values encoded as their own peaks and higher budgets allow, about `most`.

        A source is tried for a budget only if it could be faster than the known candidates. Those that recompute least
        come first.
        """
        if not self.sources:
            return
        step = max(1, 2 * len(self.sources) // most)
        tried = [(source.peak_bytes, source) for source in self.sources[::step]]
        limits = self._limits(most // (2 * _SOURCES_PER_BUDGET))
        for limit in limits:
            below = bisect_right(self.sources, limit, key=lambda rated: rated.peak_bytes)
            tried += [(limit, source) for source in reversed(self.sources[max(below - _SOURCES_PER_BUDGET, 0) : below])]
        for limit, source in tried:
            if source.seconds < self._fastest_known(limit) + self.grain_seconds:
                order = without_idle_codes(self.encoded, polished(self.merged, source.order, limit))
                if is_exact_where_due(self.problem, self.choice, order):
                    description = f"{source.description}; of {self.choice_description} those for which it needs to"
                    yield self._rated(source.solver, description, order)

    def _limits(self, count: int) -> list[int]:
        """Return budgets from the lowest peak to the highest, closer together at lower peaks."""
        low, high = self.sources[0].peak_bytes, max(rated.peak_bytes for rated in (*self.known, *self.sources))
        ratio = high / max(low, 1)
        return sorted({int(max(low, 1) * ratio ** (step / count)) for step in range(1, count + 1)})

    def _fastest_known(self, budget_bytes: int) -> float:
        fitting = bisect_right(self.known, budget_bytes, key=lambda rated: rated.peak_bytes)
        return self.known[fitting - 1].seconds if fitting else inf

    def _rated(self, solver: str, description: str, order: RunOrder) -> Rated:
        prediction = forecast(self.merged, order)
        rated = Rated(
            solver,
            description,
            order,
            max(prediction.peak_bytes, self.problem.floor_bytes),
            prediction.seconds,
            self.choice,
        )
        self.known = envelope([*self.known, rated])
        return rated
