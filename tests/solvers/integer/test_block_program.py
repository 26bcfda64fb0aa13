"""Schedules by integer program: as fast as the best one of an exhaustive search within both limits."""

from itertools import chain, combinations, product
from math import inf

from lowtide.solvers.blocks.block_schedules import BlockEvaluator
from lowtide.solvers.blocks.rematerialize import may_wait
from lowtide.solvers.integer.answer import Effort
from lowtide.solvers.integer.block_program import BlockProgram
from lowtide.solvers.integer.block_schedules import fastest_schedule, schedules_of
from lowtide.solvers.problem.liveness import schedule_of, trace_order
from lowtide.solvers.problem.simulate import simulate
from made_problems import chain_of_blocks, llama
from pytest import approx

MOST_CHOICES = 15


def subsets(items):
    """Return all subsets, each in the given order."""
    return list(chain.from_iterable(combinations(items, size) for size in range(len(items) + 1)))


def every_schedule(problem, block):
    """Return the schedules that run subsets of the block's repeatable operations; None if they are too many.

    A subset runs in trace order before each operation of backward that runs once, and at the end.
    """
    evaluator, idle, boundary = BlockEvaluator(problem, block), may_wait(problem), problem.forward_length
    forward = [i for i in evaluator.operations if i < boundary]
    free = [i for i in forward if idle[i] and all(v in evaluator.local_values for v in problem.ops[i].makes)]
    repeatable = [i for i in forward if problem.ops[i].repeatable]
    once = [i for i in evaluator.operations if i >= boundary and not idle[i]]
    repeatable += [i for i in evaluator.operations if i >= boundary and idle[i]]
    if len(free) + len(repeatable) * (len(once) + 1) > MOST_CHOICES:
        return None
    schedules = []
    for waiting in subsets(free):
        first = [i for i in forward if i not in waiting]
        made = {v for i in first for v in problem.ops[i].makes}
        own = {v for i in forward for v in problem.ops[i].makes}
        if any(v in own and v not in made for i in first for v in problem.ops[i].reads):
            continue
        for runs in product(subsets(repeatable), repeat=len(once) + 1):
            order = [i for own_runs, last in zip(runs, [*once, None], strict=True) for i in (*own_runs, last)][:-1]
            if is_valid(problem, evaluator, made, order) and not has_useless_run(problem, evaluator, order, repeatable):
                schedules.append(evaluator.evaluate(tuple(first), tuple(order)))
    return schedules


def is_valid(problem, evaluator, made, order):
    """Return whether every run finds its inputs, and the values that later blocks read are there at the end."""
    available = set(made)
    own = {v for i in evaluator.operations for v in problem.ops[i].makes}
    for i in order:
        if any(v in own and v not in available for v in problem.ops[i].reads):
            return False
        available.update(problem.ops[i].makes)
    return all(v in available for v in evaluator.after_backward & own)


def has_useless_run(problem, evaluator, order, repeatable):
    """Return whether a run makes no needed value: it would count the values it reads as dying with it."""
    needed = set(evaluator.after_backward)
    for i in reversed(order):
        if i in repeatable and needed.isdisjoint(problem.ops[i].makes):
            return True
        needed -= set(problem.ops[i].makes)
        needed |= set(problem.ops[i].reads)
    return False


def small_blocks():
    """Yield blocks small enough for `every_schedule`."""
    for seed in range(100):
        for width in (1, 2, 3):
            problem = chain_of_blocks(seed, blocks=2, width=width, randomness=(0, 0.3)[seed % 2])
            for block in range(1, 3):
                yield problem, block


def test_no_schedule_is_faster_within_the_same_limits():
    seen = 0
    for problem, block in small_blocks():
        schedules = every_schedule(problem, block)
        if not schedules:
            continue
        program = BlockProgram(problem, block)
        kept = sorted({schedule.kept_bytes for schedule in schedules})
        backward_peak = sorted({schedule.backward_peak_bytes for schedule in schedules})
        middle = kept[len(kept) // 2], backward_peak[len(backward_peak) // 3]
        for kept_limit, backward_peak_limit in (
            (kept[-1], backward_peak[0]),
            (kept[0], backward_peak[-1]),
            middle,
            (kept[0], backward_peak[0]),
        ):
            eligible = [
                schedule
                for schedule in schedules
                if schedule.kept_bytes <= kept_limit and schedule.backward_peak_bytes <= backward_peak_limit
            ]
            best = min((schedule.seconds for schedule in eligible), default=inf)
            proven = program.fastest(kept_limit, backward_peak_limit, None, Effort())
            assert proven.least_seconds == approx(best), (problem.name, block, kept_limit, backward_peak_limit)
            if proven.schedule is not None:
                assert proven.schedule.seconds == approx(best)
                assert proven.schedule.kept_bytes <= kept_limit
                assert proven.schedule.backward_peak_bytes <= backward_peak_limit
            seen += 1
    assert seen > 1000


def test_no_known_schedule_is_lost_and_faster_ones_are_found_for_a_layer_of_llama():
    problem, block = llama(layers=4), 2
    program = BlockProgram(problem, block)
    wide = 10**12
    known = [program.fastest(kept_bytes, wide, None, Effort()).schedule for kept_bytes in (wide, 10**6, 0)]
    schedules = schedules_of(problem, block, known)
    for old in known:
        assert any(
            schedule.kept_bytes <= old.kept_bytes
            and schedule.backward_peak_bytes <= old.backward_peak_bytes
            and schedule.seconds <= old.seconds
            for schedule in schedules
        )
    assert len(schedules) > len(known)


def test_a_whole_step_takes_the_seconds_that_a_schedule_put_into_it_adds():
    checked = 0
    for seed in range(30):
        problem = chain_of_blocks(seed, blocks=2, width=3, randomness=0.3)
        evaluator, blocks = BlockEvaluator(problem, 1), len(problem.block_classes)
        for backward_peak_bytes in (10**6, 100, 80):
            schedule = fastest_schedule(problem, 1, 20, backward_peak_bytes).schedule
            if schedule is None:
                continue
            order = list(trace_order(problem))
            order[1] = tuple(evaluator.operations[position] for position in schedule.forward)
            order[2 * blocks - 2] = tuple(evaluator.operations[position] for position in schedule.backward)
            assert simulate(problem, schedule_of(problem, tuple(order))).seconds - problem.seconds == approx(
                schedule.seconds
            )
            assert schedule == evaluator.evaluate(order[1], order[2 * blocks - 2])
            assert schedule.kept_bytes <= 20
            assert schedule.backward_peak_bytes <= backward_peak_bytes
            checked += 1
    assert checked > 30


def test_schedules_are_the_same_in_two_runs():
    problem = llama(layers=3)
    known = [fastest_schedule(problem, 2, kept_bytes, 10**12).schedule for kept_bytes in (10**12, 0)]
    assert schedules_of(problem, 2, known) == schedules_of(problem, 2, known)


def test_a_layer_too_large_for_the_work_keeps_its_known_schedules():
    problem = llama(layers=3)
    known = [fastest_schedule(problem, 2, kept_bytes, 10**12).schedule for kept_bytes in (10**12, 0)]
    assert set(schedules_of(problem, 2, known, work=1)) == set(known)


def test_without_nodes_the_answer_is_no_slower_than_the_start_and_the_bound_no_higher_than_the_optimum():
    problem = llama(layers=3)
    start = fastest_schedule(problem, 2, 0, 10**12).schedule
    limits = start.kept_bytes + 2**20, start.backward_peak_bytes * 9 // 10
    quick, exact = (
        fastest_schedule(problem, 2, *limits, start, node_limit=0),
        fastest_schedule(problem, 2, *limits, start),
    )
    assert exact.schedule is not None
    assert exact.least_seconds == approx(exact.schedule.seconds)
    assert quick.least_seconds <= exact.schedule.seconds + 1e-9
    assert quick.schedule is None or quick.schedule.seconds >= exact.schedule.seconds - 1e-9
