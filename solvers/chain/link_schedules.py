"""Finds for each distinct block of a problem the schedules that no other beats."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ..blocks.block_schedules import BlockSchedule, unbeaten
from ..blocks.block_values import alike, middle_member
from ..blocks.lifetime_options import OptionEvaluator, by_hand, members_of, options_of
from ..disk_cache import DiskCache
from ..integer.block_schedules import schedules_of
from ..problem.problem import Problem
from .link_cache import cached_schedules

_WORTH_PROVING = 4  # equal blocks for which an integer program is worth its time
_FEW_OPERATIONS = 30  # of forward that it takes on


def link_schedules(
    problem: Problem, visits: int, cache: DiskCache | None = None
) -> Mapping[int, tuple[BlockSchedule, ...]]:
    """Return schedules by the first of equal blocks (`alike`), from the most bytes kept to the fewest.

    visits: limits the work, in operations visited; a million take about half a second.
    cache: keeps the schedules by the content of a block, so that models of other depths find those of equal layers.
    """
    kinds = alike(problem)
    visits_per_kind = visits // len(set(kinds))
    schedules = {}
    for kind in dict.fromkeys(kinds):
        block = middle_member(kinds, kind)
        find = partial(_find_schedules, problem, block, visits_per_kind)
        schedules[kind] = cached_schedules(
            problem, block, f"{visits_per_kind} visits, {members_of(problem, block)} members", find, cache
        )
    return schedules


def recipe_schedules(problem: Problem) -> Mapping[int, tuple[BlockSchedule, ...]]:
    """Return the schedules of manual recipes: keep everything, the results of intensive operations, or nothing."""
    kinds = alike(problem)
    schedules = {}
    for kind in dict.fromkeys(kinds):
        block = middle_member(kinds, kind)
        evaluator = OptionEvaluator(problem, block)
        lifetimes = (bytes(len(evaluator.values)), *by_hand(evaluator))
        schedules[kind] = unbeaten(map(evaluator.schedule, lifetimes))
    return schedules


def _find_schedules(problem: Problem, block: int, visits: int) -> tuple[BlockSchedule, ...]:
    evaluator = OptionEvaluator(problem, block)
    options = options_of(problem, block, visits)
    schedules = unbeaten(evaluator.schedule(option.lifetimes) for option in options)
    repeats = members_of(problem, block) >= _WORTH_PROVING
    few = len(problem.segment_operations[block]) <= _FEW_OPERATIONS
    return schedules_of(problem, block, schedules) if repeats and few else schedules
