"""Blocks with the same schedules share them on disk across models; other blocks never do."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.blocks.block_schedules import BlockEvaluator, BlockSchedule, operations_of
from lowtide.solvers.chain.link_cache import block_content, cached_schedules
from lowtide.solvers.disk_cache import DiskCache
from made_problems import chain_of_blocks, llama

SCHEDULES = (BlockSchedule((0, 1), (2, 1, 3), 10, 20, 30, 0.1 + 0.2), BlockSchedule((), (0, 1, 2, 3), 0, 25, 3, 1.5))


def refuse():
    raise AssertionError("these schedules are known")


def test_schedules_found_for_a_block_serve_equal_blocks_of_models_of_any_depth(tmp_path):
    cache = DiskCache(tmp_path)
    shallow, deep = llama(layers=4), llama(layers=9)
    assert cached_schedules(shallow, 2, "some solver", lambda: SCHEDULES, cache) == SCHEDULES
    for problem, blocks in ((shallow, (2, 3)), (deep, range(2, 8))):
        for block in blocks:
            assert cached_schedules(problem, block, "some solver", refuse, cache) == SCHEDULES


def test_other_limits_another_solver_and_no_cache_find_schedules_again(tmp_path):
    cache, problem = DiskCache(tmp_path), llama(layers=4)
    for configuration in ("some solver", "some solver, 20 nodes", "another"):
        searches = []
        cached_schedules(
            problem,
            2,
            configuration,
            lambda configuration=configuration, searches=searches: searches.append(configuration) or SCHEDULES,
            cache,
        )
        assert searches == [configuration]
    assert cached_schedules(problem, 2, "some solver", lambda: SCHEDULES[:1], None) == SCHEDULES[:1]


def changed_op(problem, index, **changes):
    ops = list(problem.ops)
    ops[index] = replace(ops[index], **changes)
    return replace(problem, ops=tuple(ops))


def changed_value(problem, value, **changes):
    values = list(problem.values)
    values[value] = replace(values[value], **changes)
    return replace(problem, values=tuple(values))


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize(
    "change",
    [
        lambda op: {"seconds": op.seconds + 1e-12},
        lambda op: {"working_bytes": op.working_bytes + 1},
        lambda op: {"repeatable": not op.repeatable},
        lambda op: {"random": True},
        lambda op: {"compute_intensive": not op.compute_intensive},
        lambda op: {"kind": "another"},
        lambda op: {"reads": op.reads[::-1]},
        lambda op: {"reads": op.reads[1:]},
        lambda op: {"reads": (*op.reads, op.reads[0])},
    ],
)
def test_an_operation_changed_in_any_way_makes_another_block(phase, change):
    problem = llama(layers=4)
    operations = [index for index in operations_of(problem, 2) if len(problem.ops[index].reads) > 1]
    index = operations[2 if phase == "forward" else -2]
    other = changed_op(problem, index, **change(problem.ops[index]))
    assert block_content(other, 2) != block_content(problem, 2)


@pytest.mark.parametrize("change", [{"size_bytes": 12_345}, {"held": True}, {"resident": True}])
def test_a_value_changed_in_any_way_makes_another_block(change):
    problem = llama(layers=4)
    operations = operations_of(problem, 2)
    touched = {value for index in operations for value in (*problem.ops[index].reads, *problem.ops[index].makes)}
    for value in touched:
        if not problem.values[value].resident:
            other = changed_value(problem, value, **change)
            assert block_content(other, 2) != block_content(problem, 2)


def test_who_else_reads_a_value_and_what_a_generator_state_takes_make_another_block():
    problem = llama(layers=6)
    own = problem.ops[operations_of(problem, 3)[4]].makes[0]
    contents = [block_content(problem, 3), block_content(replace(problem, state_bytes=1), 3)]
    earlier_and_later = [(4, 3), (5, 3), (1, -3), (2, -3), (4, -3)]  # block, and operation of its forward or backward
    for reader in (operations_of(problem, block)[position] for block, position in earlier_and_later):
        other = changed_op(problem, reader, reads=(*problem.ops[reader].reads, own))
        contents.append(block_content(other, 3))
    assert len(set(contents)) == len(contents)


def test_names_and_distant_operations_do_not_matter():
    problem = llama(layers=6)
    renamed = replace(
        problem,
        name="another",
        resident_bytes=1,
        ops=tuple(replace(op, name="x", module="y") for op in problem.ops),
        values=tuple(replace(value, name="z") for value in problem.values),
    )
    far = changed_op(renamed, operations_of(problem, 5)[3], seconds=7.0)
    assert block_content(far, 2) == block_content(problem, 2)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_blocks_of_equal_content_cost_the_same_by_every_schedule(seed):
    problem = chain_of_blocks(seed, blocks=7, width=5, classes=2)
    alike: dict[str, list[tuple[BlockSchedule, ...]]] = {}
    for block in range(len(problem.block_classes)):
        alike.setdefault(block_content(problem, block), []).append(tuple(some_schedules(problem, block)))
    for evaluations in alike.values():
        for first, second in pairwise(evaluations):
            assert first == second


def some_schedules(problem, block):
    """Yield schedules that keep everything, recompute all repeatable operations, or those from one operation on."""
    evaluator, operations = BlockEvaluator(problem, block), operations_of(problem, block)
    forward = tuple(index for index in operations if index < problem.forward_length)
    backward = operations[len(forward) :]
    repeatable = tuple(index for index in forward if problem.ops[index].repeatable)
    for start in range(len(repeatable) + 1):
        yield evaluator.evaluate(forward, repeatable[start:] + backward)
