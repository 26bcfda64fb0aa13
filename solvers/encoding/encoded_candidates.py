"""Plans with values kept encoded: solved as such, or made from what was solved without, as far as bytes require."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil, inf

from ..pareto import Rated, envelope
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
_GRAIN = 1e-3  # of the seconds of the step, by which sources differ


@dataclass(frozen=True)
class Encoded:
    """Plans with values kept encoded between forward and backward, for each of a few choices of values (`choices_of`).

    There are three sources of run orders for a choice:

        those that `asked` found without encodings, with chosen values encoded wherever they wait (`with_codes`);
        where approximate codes are chosen, those of `solver` for the problem in which chosen values have the size of
            their codes wherever nothing reads them, with the same done to them: they leave out the codecs, and what is
            decoded between two readers;
        for the largest choice, those of `solver` for the recoded problem (`Recoding.reduced`): they count everything
            right, and run nothing again from what is decoded.

    The best of these go on: for budgets between the lowest and the highest peak what the budget has the bytes for is
    kept as it is, the most seconds per byte first (`polished`).

    Guarantee: none; compare `lower_bound_seconds`. Cost: for each choice that of `solver` (twice for the largest), and
    of polishing at most `polished_operations` operations, or `fewest_polished` candidates.
    """

    asked: tuple[Solver, ...]
    solver: Solver
    polished_operations: int = 160_000
    fewest_polished: int = 64
    name: str = "encoded"

    def rated(self, problem: Problem, plain: Sequence[Rated]) -> Iterator[Rated]:
        """All that is found; nothing if no value has encodings. plain: the envelope of what `asked` found without."""
        choices = choices_of(problem)
        most = max(self.fewest_polished, self.polished_operations // len(problem.ops))
        for choice in choices:
            ladder = _Ladder(problem, choice, plain)
            for one in plain:
                yield from ladder.rated(one.solver, one.description, with_codes(problem, choice, one.order))
            if _is_approximate(problem, choice):
                for candidate in self.solver.candidates(_in_code_sizes(problem, choice)):
                    order = with_codes(problem, choice, candidate.order)
                    yield from ladder.rated(self.solver.name, candidate.description, order)
            if choice == choices[-1]:
                recoding = encoded_problem_of(problem, choice)
                for candidate in self.solver.candidates(recoding.reduced):
                    yield from ladder.rated(
                        self.solver.name, candidate.description, decoded_order(recoding, candidate.order)
                    )
            yield from ladder.spent(most)


def schedule_with_codes(problem: Problem, solver: Solver, budget_bytes: int) -> Schedule:
    """The fastest of a solver's schedules for one budget: that without encodings, and one for each choice.

    Raises InfeasibleBudget if none of them fits, and what else the solver raises without encodings.
    """
    found, error = [], None
    try:
        found.append(solver.schedule(problem, budget_bytes))
    except InfeasibleBudget as short:
        error = short
    for choice in choices_of(problem):
        recoding = encoded_problem_of(problem, choice)
        with suppress(InfeasibleBudget, ValueError):  # with codecs the graph may be too large
            order = decoded_order(recoding, _order(solver.schedule(recoding.reduced, budget_bytes)))
            if is_exact_where_due(problem, choice, order):
                found.append(encoded_schedule(problem, choice, order))
    if not found:
        assert error is not None
        raise error
    return min(found, key=lambda schedule: simulate(problem, schedule).seconds)


def _order(schedule: Schedule) -> RunOrder:
    """What each segment of a schedule runs."""
    runs = (schedule.instructions[segment.start : segment.stop] for segment in schedule.segments)
    return tuple(tuple(one.op for one in segment if isinstance(one, Run)) for segment in runs)


def _is_approximate(problem: Problem, choice: Choice) -> bool:
    """Whether a choice has approximate codes, which are of most values; exact ones are of few."""
    return any(problem.values[value].encodings[number].fidelity == "approximate" for value, number in choice)


def _in_code_sizes(problem: Problem, choice: Choice) -> Problem:
    """The problem in which chosen values are never larger than their codes, but for what reads them while it runs."""
    values = [replace(value, encodings=()) for value in problem.values]
    saved, saved_in_backward = [0] * len(values), [0] * len(values)
    for value, number in choice:
        told = problem.values[value]
        encoding = told.encodings[number]
        saved[value] = saved_in_backward[value] = told.size_bytes - encoding.size_bytes
        if encoding.is_read_itself:
            saved_in_backward[value] = told.decoded_bytes(number)
        values[value] = replace(values[value], size_bytes=encoding.size_bytes)
    ops = []
    for index, op in enumerate(problem.ops):
        made_bytes = sum(problem.values[value].size_bytes for value in op.makes)
        more_bytes = saved if index < problem.forward_length else saved_in_backward
        decoded_bytes = sum(more_bytes[value] for value in dict.fromkeys(op.reads))
        ops.append(replace(op, working_bytes=max(op.working_bytes, made_bytes) + decoded_bytes))
    return replace(problem, ops=tuple(ops), values=tuple(values))


class _Ladder:
    """What is found for one choice, and what else can be made of the best of it."""

    def __init__(self, problem: Problem, choice: Choice, plain: Sequence[Rated]) -> None:
        self.problem, self.choice = problem, choice
        self.grain_seconds = _GRAIN * problem.seconds or 1.0
        self.recoding = encoded_problem_of(problem, choice)
        self.merged = self.recoding.merged
        told = zip(self.recoding.operations, self.merged.ops, strict=True)
        self.codec_seconds = [0.0 if isinstance(one, Run) else op.seconds for one, op in told]
        self.words = choice_text(problem, choice)
        self.known = list(plain)  # the envelope
        self.sources: list[Rated] = []  # the envelope with the seconds that they would take without any codec

    def rated(self, solver: str, told: str, order: RunOrder) -> Iterator[Rated]:
        """What has been found, remembered as something to spend bytes on; nothing if it carries errors too far."""
        if not is_exact_where_due(self.problem, self.choice, order):
            return
        found = self._rated(solver, f"{told}; {self.words}", order)
        codec_seconds = sum(self.codec_seconds[op] for op in chain.from_iterable(order))
        # what is faster by next to nothing, and keeps more for it, would hide what there is more to encode in
        seconds = self.grain_seconds * ceil((found.seconds - codec_seconds) / self.grain_seconds)
        self.sources = envelope([*self.sources, replace(found, seconds=seconds)])
        yield found

    def spent(self, most: int) -> Iterator[Rated]:
        """Sources with as little encoded as their own peaks and higher budgets allow, about so many of these.

        A source is tried for a budget only if it could be faster than what is known for it; those that run least again
        come first.
        """
        if not self.sources:
            return
        step = max(1, 2 * len(self.sources) // most)
        tried = [(source.peak_bytes, source) for source in self.sources[::step]]
        limits = self._limits(most // (2 * _SOURCES_PER_BUDGET))
        for limit in limits:
            below = bisect_right(self.sources, limit, key=lambda one: one.peak_bytes)
            tried += [(limit, source) for source in reversed(self.sources[max(below - _SOURCES_PER_BUDGET, 0) : below])]
        for limit, source in tried:
            if source.seconds < self._fastest_known(limit) + self.grain_seconds:
                order = without_idle_codes(self.recoding, polished(self.merged, source.order, limit))
                if is_exact_where_due(self.problem, self.choice, order):
                    words = f"{source.description}; of {self.words} those for which it needs to"
                    yield self._rated(source.solver, words, order)

    def _limits(self, count: int) -> list[int]:
        """Budgets from the lowest peak to the highest, the closer the lower."""
        low, high = self.sources[0].peak_bytes, max(one.peak_bytes for one in (*self.known, *self.sources))
        ratio = high / max(low, 1)
        return sorted({int(max(low, 1) * ratio ** (step / count)) for step in range(1, count + 1)})

    def _fastest_known(self, budget_bytes: int) -> float:
        fitting = bisect_right(self.known, budget_bytes, key=lambda one: one.peak_bytes)
        return self.known[fitting - 1].seconds if fitting else inf

    def _rated(self, solver: str, told: str, order: RunOrder) -> Rated:
        seen = forecast(self.merged, order)
        found = Rated(solver, told, order, max(seen.peak_bytes, self.problem.floor_bytes), seen.seconds, self.choice)
        self.known = envelope([*self.known, found])
        return found
