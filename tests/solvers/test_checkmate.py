"""Compare the exact solver with exhaustive search."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import original_checkmate
import pytest
from exhaustive import least_seconds
from lowtide.solvers.checkmate import Checkmate
from lowtide.solvers.greedy import Greedy
from lowtide.solvers.infeasible import largest_operation
from lowtide.solvers.integer.answer import Effort
from lowtide.solvers.integer.step_program import StepProgram
from lowtide.solvers.integer.step_stages import stages_of_step
from lowtide.solvers.problem.errors import InfeasibleBudget
from lowtide.solvers.problem.liveness import forecast, schedule_of, trace_order
from lowtide.solvers.problem.simulate import simulate
from lowtide.solvers.rockmate import Rockmate
from made_problems import Draft, chain_of_blocks
from pytest import approx


def small(seed: int, forward_most: int = 5, backward_most: int = 3, most: int = 8):
    """Return a problem of at most `most` operations.

    It has several outputs, scratch, operations of forward that run once, helpers in backward, sizes and times of zero,
    held values and diamonds.
    """
    draw = random.Random(seed)
    draft = Draft()
    source = draft.value("input", draw.choice((0, 4)), resident=True)
    pool = [source]
    forward, backward = draw.randint(forward_most - 3, forward_most), draw.randint(backward_most - 2, backward_most)
    blocks = draw.choice((1, 1, 2))

    def sizes():
        return [draw.choice((0, 1, 2, 3, 5, 8, 13)) for _ in range(draw.choice((1, 1, 1, 2)))]

    def pick(values, most):
        return draw.sample(values, min(len(values), draw.randint(1, most)))

    for index in range(forward):
        recent = pool[-3:] if draw.random() < 0.6 else pool
        made = sizes()
        held = (draw.randrange(len(made)),) if draw.random() < 0.12 else ()
        repeatable, block = draw.random() < 0.85, index * blocks // forward
        seconds, scratch = draw.choice((0, 1, 2, 5, 9)), draw.choice((0, 0, 4))
        pool += draft.op(f"f{index}", pick(recent, 2), made, seconds, block, scratch, held, repeatable=repeatable)
    draft.forward_length = forward
    gradient = []
    for index in range(backward):
        block = blocks - 1 - index * blocks // backward
        reads = pick(pool[1:], 2) + gradient
        if len(draft.ops) + backward - index < most and draw.random() < 0.4:
            helper = pick(pool[1:], 2) + (gradient if draw.random() < 0.3 else [])
            held = (0,) if draw.random() < 0.15 else ()
            reads += draft.op(f"h{index}", helper, sizes(), draw.choice((0, 1, 3)), block, draw.choice((0, 3)), held)
        held = (0,) if draw.random() < 0.3 else ()
        seconds = draw.randint(0, 3)
        gradient = draft.op(f"b{index}", dict.fromkeys(reads), sizes(), seconds, block, 0, held, repeatable=False)
    return draft.problem(range(blocks), name=f"small{seed}")


def budgets(problem, least_bytes):
    """Return the peak with everything kept, a budget that no schedule fits, and some in between."""
    high = forecast(problem, trace_order(problem)).peak_bytes
    return sorted({high, *(least_bytes + (high - least_bytes) * part // 5 for part in (-1, 1, 2, 3, 4))})


def test_it_is_as_fast_as_the_fastest_of_all_orders():
    """Compare on problems of up to eight operations, with three rounds: for a few of them one is not enough."""
    one_round_falls_short = solved = impossible = problems = 0
    for seed in range(420):
        problem = small(seed)
        if len(problem.values) > 13:
            continue
        problems += 1
        one_round, three_rounds = (StepProgram(problem, stages_of_step(problem, rounds)) for rounds in (1, 3))
        for budget in budgets(problem, one_round.low_bytes):
            case, best = (seed, budget), least_seconds(problem, budget)
            simple, general = one_round.fastest(budget, Effort()), three_rounds.fastest(budget, Effort())
            if best is None:
                assert general.order is None, case
                assert general.least_seconds == inf, case
                impossible += 1
                continue
            assert general.order is not None, case
            assert general.seconds == approx(best), case
            assert general.least_seconds == approx(best), case
            timeline = simulate(problem, schedule_of(problem, general.order))
            assert timeline.peak_bytes <= budget, case
            assert timeline.seconds == approx(best), case
            solved += 1
            one_round_falls_short += simple.order is None or simple.seconds > best + 1e-9
    assert problems >= 300
    assert solved > 600
    assert impossible > 500
    assert 3 < one_round_falls_short < 50


def test_it_is_never_slower_than_checkmate_whose_space_it_contains():
    """Compare on problems of ten to fifteen operations where Checkmate's program has a schedule."""
    compared = 0
    for seed in range(1000, 1024):
        problem = small(seed, forward_most=9, backward_most=6, most=15)
        program = StepProgram(problem, stages_of_step(problem, rounds=2))
        high = forecast(problem, trace_order(problem)).peak_bytes
        for budget in (high * 93 // 100, high * 80 // 100):
            checkmate_seconds = original_checkmate.least_seconds(problem, budget)
            if checkmate_seconds is None:
                continue
            optimum = program.fastest(budget, Effort())
            assert optimum.order is not None, (seed, budget)
            assert optimum.seconds <= checkmate_seconds + 1e-6, (seed, budget)
            timeline = simulate(problem, schedule_of(problem, optimum.order))
            assert timeline.peak_bytes <= budget
            assert timeline.seconds == approx(optimum.seconds)
            compared += 1
    assert compared >= 10


def test_checkmates_program_never_beats_the_fastest_of_all_orders():
    for seed in range(25):
        problem = small(seed)
        if len(problem.values) <= 13:
            budget = forecast(problem, trace_order(problem)).peak_bytes * 9 // 10
            checkmate_seconds, best = original_checkmate.least_seconds(problem, budget), least_seconds(problem, budget)
            assert checkmate_seconds is None or (best is not None and checkmate_seconds >= best - 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_steps_with_draws_get_valid_schedules_within_the_budget(seed):
    problem = chain_of_blocks(seed, blocks=2, width=3, randomness=0.4)
    program = StepProgram(problem, stages_of_step(problem))
    high = forecast(problem, trace_order(problem)).peak_bytes
    for share in (100, 90, 80, 70):
        optimum = program.fastest(high * share // 100, Effort(node_limit=200))
        if optimum.order is not None:
            timeline = simulate(problem, schedule_of(problem, optimum.order))
            assert timeline.peak_bytes <= high * share // 100
            assert timeline.seconds == approx(optimum.seconds)
            assert optimum.least_seconds <= optimum.seconds


def test_two_runs_give_the_same_orders():
    problem = chain_of_blocks(5, blocks=2, width=3, randomness=0.3)
    first, second = ([candidate.order for candidate in Checkmate(budgets=6).candidates(problem)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 1


def test_candidates_fit_the_budgets_that_they_are_made_for_and_go_from_slow_to_fast():
    problem = chain_of_blocks(2, blocks=2, width=3, randomness=0.0)
    predictions = [forecast(problem, candidate.order) for candidate in Checkmate().candidates(problem)]
    seconds = [prediction.seconds for prediction in predictions]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] <= problem.seconds


def test_a_budget_that_nothing_fits_is_refused_and_what_is_too_large_too():
    problem = small(3)
    with pytest.raises(InfeasibleBudget, match=r"alone needs .*; raise the budget") as raised:
        Checkmate().schedule(problem, 1)
    assert raised.value.smallest_bytes > 1
    alone_bytes, _ = largest_operation(problem)
    with pytest.raises(
        InfeasibleBudget, match=r"checkmate proves that there is none, the smallest peak known is .*; raise the budget"
    ):
        Checkmate().schedule(problem, alone_bytes)
    with pytest.raises(ValueError, match="more than checkmate's limit of 5"):
        Checkmate(most_choices=5).schedule(chain_of_blocks(1), 10**6)
    assert not list(Checkmate(most_choices=5).candidates(chain_of_blocks(1)))


def test_with_few_nodes_the_order_to_begin_with_is_not_lost_and_the_bound_stays_below():
    problem = chain_of_blocks(7, blocks=3, width=4, randomness=0.0)
    high = forecast(problem, trace_order(problem)).peak_bytes
    for candidate in Greedy().candidates(problem):
        start = forecast(problem, candidate.order)
        if start.peak_bytes > 0.8 * high:
            continue
        program = StepProgram(problem, stages_of_step(problem))
        optimum = program.fastest(start.peak_bytes, Effort(node_limit=1), candidate.order)
        if optimum.order is not None:
            assert forecast(problem, optimum.order).peak_bytes <= start.peak_bytes
            assert optimum.least_seconds <= optimum.seconds + 1e-9
        return


def test_a_peak_outside_of_the_schedule_is_not_planned_under():
    problem = replace(chain_of_blocks(1, blocks=2), floor_bytes=10**6)
    with pytest.raises(InfeasibleBudget, match="the optimizer's step needs"):
        Checkmate().schedule(problem, 500)


def test_a_step_in_which_nothing_may_run_again_has_its_trace_for_an_optimum():
    problem = chain_of_blocks(636, blocks=7, width=1, classes=1, randomness=0.6)
    fixed = replace(problem, ops=tuple(replace(op, repeatable=False) for op in problem.ops))
    assert Checkmate().least_seconds(fixed, 10**9).seconds == approx(problem.seconds)
    assert all(
        forecast(fixed, candidate.order).seconds == approx(problem.seconds)
        for candidate in Rockmate().candidates(fixed)
    )
