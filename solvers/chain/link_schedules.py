"""For each distinct block of a problem the ways to run it that none other beats."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ..blocks.block_schedules import BlockEvaluator, BlockSchedule, unbeaten
from ..blocks.block_values import alike, middle_member
from ..blocks.lifetime_options import OptionEvaluator, by_hand, members_of, options_of
from ..disk_cache import DiskCache
from ..integer.block_schedules import ways_of
from ..problem.problem import Problem
from .link_cache import cached_schedules

_WORTH_PROVING = 4  # equal blocks for which an integer program is worth its time
_FEW_OPERATIONS = 30  # of forward that it takes on


def link_schedules(
    problem: Problem, visits: int, cache: DiskCache | None = None
) -> Mapping[int, tuple[BlockSchedule, ...]]:
    """By the first of equal blocks (`alike`) their ways, from the most bytes kept to the fewest.

    visits: limits the work, in operations looked at (a million takes about half a second). cache: where they are
    kept by what is in a block, so that models of other depths find those of equal layers.
    """
    kinds = alike(problem)
    each = visits // len(set(kinds))
    found = {}
    for kind in dict.fromkeys(kinds):
        block = middle_member(kinds, kind)
        find = partial(_found, problem, block, each)
        found[kind] = cached_schedules(
            problem, block, f"{each} visits, {members_of(problem, block)} members", find, cache
        )
    return found


def recipe_schedules(problem: Problem) -> Mapping[int, tuple[BlockSchedule, ...]]:
    """The same with only what is done by hand: keep everything, or what intensive operations make, or nothing."""
    kinds = alike(problem)
    found = {}
    for kind in dict.fromkeys(kinds):
        block = middle_member(kinds, kind)
        bench, walked = BlockEvaluator(problem, block), OptionEvaluator(problem, block)
        lifetimes = (bytes(len(walked.values)), *by_hand(walked))
        found[kind] = unbeaten(bench.weigh(*walked.runs_of(told)) for told in lifetimes)
    return found


def _found(problem: Problem, block: int, visits: int) -> tuple[BlockSchedule, ...]:
    ways = unbeaten(_from_options(problem, block, visits))
    repeats = members_of(problem, block) >= _WORTH_PROVING
    few = len(problem.segment_operations[block]) <= _FEW_OPERATIONS
    return ways_of(problem, block, ways) if repeats and few else ways


def _from_options(problem: Problem, block: int, visits: int) -> list[BlockSchedule]:
    """The ways that minimum cuts and single changes find."""
    bench, walked = BlockEvaluator(problem, block), OptionEvaluator(problem, block)
    return [bench.weigh(*walked.runs_of(option.lifetimes)) for option in options_of(problem, block, visits)]
