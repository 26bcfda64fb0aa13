"""Ways by integer program: the fastest of all that a search through every choice finds, within both limits."""

from itertools import chain, combinations, product
from math import inf

from lowtide.solvers.blocks.block_schedules import BlockEvaluator
from lowtide.solvers.blocks.rematerialize import may_wait
from lowtide.solvers.integer.answer import Effort
from lowtide.solvers.integer.block_program import BlockProgram
from lowtide.solvers.integer.block_schedules import fastest_schedule, ways_of
from lowtide.solvers.problem.liveness import schedule_of, trace_order
from lowtide.solvers.problem.simulate import simulate
from made_problems import chain_of_blocks, llama
from pytest import approx

MOST_CHOICES = 15


def subsets(items):
    """All subsets, each in the given order."""
    return list(chain.from_iterable(combinations(items, size) for size in range(len(items) + 1)))


def every_way(problem, block):
    """Every way that runs a subset of the block's repeatable operations, in trace order, before each operation of
    backward that runs once and at the end; None if these are too many."""
    bench, idle, turn = BlockEvaluator(problem, block), may_wait(problem), problem.forward_length
    forward = [i for i in bench.operations if i < turn]
    free = [i for i in forward if idle[i] and all(v in bench.loose for v in problem.ops[i].makes)]
    again = [i for i in forward if problem.ops[i].repeatable]
    once = [i for i in bench.operations if i >= turn and not idle[i]]
    again += [i for i in bench.operations if i >= turn and idle[i]]
    if len(free) + len(again) * (len(once) + 1) > MOST_CHOICES:
        return None
    ways = []
    for waiting in subsets(free):
        first = [i for i in forward if i not in waiting]
        made = {v for i in first for v in problem.ops[i].makes}
        own = {v for i in forward for v in problem.ops[i].makes}
        if any(v in own and v not in made for i in first for v in problem.ops[i].reads):
            continue
        for runs in product(subsets(again), repeat=len(once) + 1):
            order = [i for own_runs, last in zip(runs, [*once, None], strict=True) for i in (*own_runs, last)][:-1]
            if is_valid(problem, bench, made, order) and not runs_in_vain(problem, bench, order, again):
                ways.append(bench.weigh(tuple(first), tuple(order)))
    return ways


def is_valid(problem, bench, made, order):
    """Whether every run finds what it reads, and what later blocks read is there at the end."""
    there = set(made)
    own = {v for i in bench.operations for v in problem.ops[i].makes}
    for i in order:
        if any(v in own and v not in there for v in problem.ops[i].reads):
            return False
        there.update(problem.ops[i].makes)
    return all(v in there for v in bench.after_backward & own)


def runs_in_vain(problem, bench, order, again):
    """Whether something runs that makes nothing needed: it would count what it reads as dying with it."""
    needed = set(bench.after_backward)
    for i in reversed(order):
        if i in again and needed.isdisjoint(problem.ops[i].makes):
            return True
        needed -= set(problem.ops[i].makes)
        needed |= set(problem.ops[i].reads)
    return False


def small_blocks():
    """Blocks small enough for `every_way`."""
    for seed in range(100):
        for width in (1, 2, 3):
            problem = chain_of_blocks(seed, blocks=2, width=width, randomness=(0, 0.3)[seed % 2])
            for block in range(1, 3):
                yield problem, block


def test_no_way_is_faster_within_the_same_limits():
    seen = 0
    for problem, block in small_blocks():
        ways = every_way(problem, block)
        if not ways:
            continue
        program = BlockProgram(problem, block)
        kept = sorted({way.kept_bytes for way in ways})
        height = sorted({way.height_bytes for way in ways})
        middle = kept[len(kept) // 2], height[len(height) // 3]
        for kept_limit, height_limit in ((kept[-1], height[0]), (kept[0], height[-1]), middle, (kept[0], height[0])):
            fitting = [w for w in ways if w.kept_bytes <= kept_limit and w.height_bytes <= height_limit]
            best = min((way.seconds for way in fitting), default=inf)
            proven = program.fastest(kept_limit, height_limit, None, Effort())
            assert proven.least_seconds == approx(best), (problem.name, block, kept_limit, height_limit)
            if proven.way is not None:
                assert proven.way.seconds == approx(best)
                assert proven.way.kept_bytes <= kept_limit
                assert proven.way.height_bytes <= height_limit
            seen += 1
    assert seen > 1000


def test_no_known_way_is_lost_and_faster_ones_are_found_for_a_layer_of_llama():
    problem, block = llama(layers=4), 2
    program = BlockProgram(problem, block)
    wide = 10**12
    known = [program.fastest(kept_bytes, wide, None, Effort()).way for kept_bytes in (wide, 10**6, 0)]
    ways = ways_of(problem, block, known)
    for old in known:
        assert any(
            way.kept_bytes <= old.kept_bytes and way.height_bytes <= old.height_bytes and way.seconds <= old.seconds
            for way in ways
        )
    assert len(ways) > len(known)


def test_a_whole_step_takes_the_seconds_that_a_way_put_into_it_adds():
    checked = 0
    for seed in range(30):
        problem = chain_of_blocks(seed, blocks=2, width=3, randomness=0.3)
        bench, blocks = BlockEvaluator(problem, 1), len(problem.block_classes)
        for height_bytes in (10**6, 100, 80):
            way = fastest_schedule(problem, 1, 20, height_bytes).way
            if way is None:
                continue
            order = list(trace_order(problem))
            order[1] = tuple(bench.operations[position] for position in way.forward)
            order[2 * blocks - 2] = tuple(bench.operations[position] for position in way.backward)
            assert simulate(problem, schedule_of(problem, tuple(order))).seconds - problem.seconds == approx(
                way.seconds
            )
            assert way == bench.weigh(order[1], order[2 * blocks - 2])
            assert way.kept_bytes <= 20
            assert way.height_bytes <= height_bytes
            checked += 1
    assert checked > 30


def test_ways_are_the_same_in_two_runs():
    problem = llama(layers=3)
    known = [fastest_schedule(problem, 2, kept_bytes, 10**12).way for kept_bytes in (10**12, 0)]
    assert ways_of(problem, 2, known) == ways_of(problem, 2, known)


def test_a_layer_too_large_for_the_work_keeps_its_known_ways():
    problem = llama(layers=3)
    known = [fastest_schedule(problem, 2, kept_bytes, 10**12).way for kept_bytes in (10**12, 0)]
    assert set(ways_of(problem, 2, known, work=1)) == set(known)


def test_without_nodes_the_answer_is_no_slower_than_the_start_and_the_bound_no_higher_than_the_optimum():
    problem = llama(layers=3)
    start = fastest_schedule(problem, 2, 0, 10**12).way
    limits = start.kept_bytes + 2**20, start.height_bytes * 9 // 10
    quick, exact = (
        fastest_schedule(problem, 2, *limits, start, node_limit=0),
        fastest_schedule(problem, 2, *limits, start),
    )
    assert exact.way is not None
    assert exact.least_seconds == approx(exact.way.seconds)
    assert quick.least_seconds <= exact.way.seconds + 1e-9
    assert quick.way is None or quick.way.seconds >= exact.way.seconds - 1e-9
