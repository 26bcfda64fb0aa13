"""Chains, tables and nested schedules: schedules cost what the tables predict, and no other one is better."""

from __future__ import annotations

import random
from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.blocks.block_schedules import BlockEvaluator, operations_of
from lowtide.solvers.blocks.block_values import alike, middle_member
from lowtide.solvers.blocks.cuts import in_parts, in_windows, partitions
from lowtide.solvers.blocks.layers import in_blocks, in_layers
from lowtide.solvers.chain.chain import Chain, Link, LinkSchedule, chain_of
from lowtide.solvers.chain.chain_schedule import order_of
from lowtide.solvers.chain.dynamic_program import Keep, NestedSchedule, Tables
from lowtide.solvers.chain.link_schedules import link_schedules, recipe_schedules
from lowtide.solvers.chain.retention_levels import levels_of
from lowtide.solvers.disk_cache import DiskCache
from lowtide.solvers.polish import polished
from lowtide.solvers.problem.liveness import forecast, schedule_of
from lowtide.solvers.problem.problem import Problem
from lowtide.solvers.problem.simulate import baseline_of, simulate
from lowtide.solvers.recipes import Recipes
from lowtide.solvers.rockmate import Rockmate
from lowtide.solvers.rotor import Rotor
from made_problems import MEBIBYTE, Draft, chain_of_blocks, llama, tiny

seeds = st.integers(0, 100_000)


def random_chain(seed: int, links: int) -> Chain:
    """Return links with two schedules each, one that keeps bytes and one that keeps none; some are equal."""
    draw = random.Random(seed)
    kinds = draw.randint(1, links)
    link_of_kind: dict[int, Link] = {}
    chain = []
    for _ in range(links):
        kind = draw.randrange(kinds)
        if kind not in link_of_kind:
            forward, kept = float(draw.randint(0, 9)), draw.randint(1, 6)
            peak_above_start, passing_bytes = draw.randint(0, 4), draw.randint(4, 7)  # an input takes at most 4
            keeping = LinkSchedule(
                kept_bytes=kept,
                backward_peak_bytes=kept + peak_above_start,
                forward_peak_bytes=kept + passing_bytes,
                seconds=0.0,
                again_seconds=0.0,
                last_seconds=0.0,
                again_peak_bytes=kept + passing_bytes,
                last_peak_bytes=kept + passing_bytes,
                forward_seconds=forward,
                forward_again_seconds=forward,
                recompute_seconds=inf,
                recompute_peak_bytes=0,
                backward_seconds=-forward,
            )
            nothing = replace(
                keeping,
                kept_bytes=0,
                forward_peak_bytes=passing_bytes,
                seconds=forward,
                again_seconds=forward,
                again_peak_bytes=passing_bytes,
                last_peak_bytes=0,
                backward_seconds=0.0,
            )
            link_of_kind[kind] = Link(
                kind, (keeping, nothing), draw.randint(1, 4), 0, 0, forward, forward, passing_bytes
            )
        chain.append(link_of_kind[kind])
    return Chain(tuple(chain), ())


def least_by_search(chain: Chain, budget_bytes: int) -> float:
    """Return the least extra seconds of any persistent order of forwards and backwards of links, by Dijkstra.

    Persistent: a stored input stays until its link's backward; any other input is there for the next forward alone
    (Beaumont et al. 2019, definition 1). Without this, rare chains have better orders, which no nested schedule has.
    State: the link whose backward comes next, inputs stored, links run by their keeping schedule, the input that is
    there for the moment, whether the first forward is complete. The search does not use the tables.
    """
    links, count = chain.links, len(chain.links)
    begin = (count - 1, frozenset([0]), frozenset(), None, False)
    best, front, number = {begin: 0.0}, [(0.0, 0, begin)], 0
    while front:
        seconds, _, state = heappop(front)
        if seconds > best[state]:
            continue
        due, stored, kept, passing, through = state
        if due < 0:
            return seconds - sum(link.first_sweep_seconds for link in links)
        there = stored if passing is None else stored | {passing}
        live = sum(links[i].input_bytes for i in there if i) + sum(links[i].schedules[0].kept_bytes for i in kept)
        steps = []
        for i in (stored_link for stored_link in there if stored_link <= due):
            cost, keeping = links[i].first_sweep_seconds, links[i].schedules[0]
            for keeps in (False, True):
                peak_bytes = keeping.forward_peak_bytes if keeps else links[i].sweep_peak_bytes
                if live + peak_bytes > budget_bytes or (keeps and (i in kept or i not in stored)):
                    continue
                now_kept, after = kept | {i} if keeps else kept, i + 1
                if after == count:
                    steps.append((cost, (due, stored, now_kept, None, True)))
                else:
                    steps.append((cost, (due, stored, now_kept, after, through)))
                    steps.append((cost, (due, stored | {after}, now_kept, None, through)))
        last = links[due]
        if due in stored and through:
            schedule = last.schedules[0] if due in kept else last.schedules[1]
            peak_bytes = live - (schedule.kept_bytes if due in kept else 0) + schedule.backward_peak_bytes
            if passing is None and peak_bytes <= budget_bytes:
                steps.append((schedule.seconds, (due - 1, stored - {due}, kept - {due}, None, through)))
        for cost, then in steps:
            if seconds + cost < best.get(then, inf):
                best[then] = seconds + cost
                number += 1
                heappush(front, (seconds + cost, number, then))
    return inf


@settings(max_examples=300, deadline=None)
@given(seed=seeds, links=st.integers(2, 5), share=st.floats(0, 1))
def test_tables_hold_the_least_seconds_of_random_chains(seed, links, share):
    chain = random_chain(seed, links)
    most = sum(link.input_bytes + link.schedules[0].backward_peak_bytes for link in chain.links)
    tables = Tables(chain, 1.0, most + 5)
    budget = int(share * (most + 4))
    tabulated = float(tables.values[tables.rows[0, links - 1], budget])
    assert tabulated == pytest.approx(least_by_search(chain, budget))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, blocks=st.integers(2, 5), randomness=st.sampled_from((0.0, 0.2)))
def test_a_nested_schedule_runs_no_longer_and_no_higher_than_its_table_says(seed, blocks, randomness):
    problem = chain_of_blocks(seed, blocks=blocks, classes=blocks, randomness=randomness)
    for cut in partitions(problem):
        chain = chain_of(cut, link_schedules(cut, 100_000))
        tables = Tables(chain, 1.0, 400, levels_of(chain, 4))
        steps = tables.steps()
        assert steps
        for budget, seconds in steps[:: max(len(steps) // 6, 1)]:
            nested_schedule = tables.nested_schedule(budget)
            assert nested_schedule is not None
            order = in_blocks(problem, order_of(cut, tables, nested_schedule))
            timeline = simulate(problem, schedule_of(problem, order))
            assert timeline.seconds <= problem.seconds + seconds + 1e-6
            # a state is weighed once, and taken once more while the present one is saved; a pass weighs none
            states_bytes = 2 * problem.state_bytes * sum(op.random for op in problem.ops)
            assert timeline.peak_bytes <= budget + states_bytes


def test_on_a_chain_of_layers_the_peak_is_as_predicted_and_the_seconds_exactly():
    problem = in_layers(llama())
    chain = chain_of(problem, link_schedules(problem, 500_000))
    slot_bytes = 2.0**16
    tables = Tables(chain, slot_bytes, 2600, levels_of(chain, 4))
    for budget, seconds in tables.steps()[::20]:
        nested_schedule = tables.nested_schedule(budget)
        assert nested_schedule is not None
        seen = forecast(problem, order_of(problem, tables, nested_schedule))
        assert seen.seconds - problem.seconds == pytest.approx(seconds, abs=1e-9)
        assert seen.peak_bytes <= budget + len(chain.links) * slot_bytes


def test_equal_layers_share_their_tables_whatever_the_depth():
    counts = []
    for layers in (12, 24, 48):
        problem = in_layers(llama(layers=layers))
        tables = Tables(chain_of(problem, recipe_schedules(problem)), 2.0**20, 200)
        counts.append(len(tables.values) / layers)
    assert max(counts) < 4
    assert counts[2] <= counts[0] * 1.2


def test_tight_budgets_pass_over_layers_again_and_loose_ones_do_not():
    problem = in_layers(llama())
    tables = Tables(chain_of(problem, recipe_schedules(problem)), 2.0**16, 2600)

    def passes(nested_schedule: NestedSchedule | None) -> int:
        if nested_schedule is None:
            return 0
        return (
            (not isinstance(nested_schedule.decision, Keep))
            + passes(nested_schedule.after)
            + passes(nested_schedule.again)
        )

    assert passes(tables.nested_schedule(200 * MEBIBYTE)) == 0
    assert passes(tables.nested_schedule(12 * MEBIBYTE)) > 1
    assert tables.nested_schedule(2 * MEBIBYTE) is None


@settings(max_examples=40, deadline=None)
@given(seed=seeds, blocks=st.integers(2, 4))
def test_every_candidate_is_a_schedule_of_the_step(seed, blocks):
    problem = chain_of_blocks(seed, blocks=blocks)
    for solver in (Rotor(), Rockmate()):
        for candidate in solver.candidates(problem):
            timeline = simulate(problem, schedule_of(problem, candidate.order))
            assert candidate.forecast is not None
            assert timeline.peak_bytes == candidate.forecast.peak_bytes


@settings(max_examples=60, deadline=None)
@given(seed=seeds, blocks=st.integers(2, 4))
def test_a_schedule_costs_the_seconds_that_it_adds_to_the_whole_step(seed, blocks):
    problem = chain_of_blocks(seed, blocks=blocks, randomness=0.0)
    everything = forecast(problem, problem.segment_operations)
    last = 2 * len(problem.block_classes) - 1
    for kind, schedules in link_schedules(problem, 100_000).items():
        block = middle_member(alike(problem), kind)
        operations = operations_of(problem, block)
        for schedule in schedules:
            order = list(problem.segment_operations)
            order[block] = tuple(operations[position] for position in schedule.forward)
            order[last - block] = tuple(operations[position] for position in schedule.backward)
            seen = forecast(problem, tuple(order))
            assert seen.seconds - everything.seconds == pytest.approx(schedule.seconds)
            assert BlockEvaluator(problem, block).evaluate(order[block], order[last - block]) == schedule


def test_finer_cuts_have_the_same_operations_in_the_same_order():
    for problem in (llama(layers=3), chain_of_blocks(5, blocks=4, width=30), tiny(3)):
        for cut in (in_parts(problem), in_windows(in_parts(problem)), *partitions(problem)):
            assert [op.name for op in cut.ops] == [op.name for op in problem.ops]
            forward = [op.block for op in cut.ops[: cut.forward_length]]
            backward = [op.block for op in cut.ops[cut.forward_length :]]
            assert forward == sorted(forward)
            assert backward == sorted(backward, reverse=True)
            assert max(forward + backward) < len(cut.block_classes)


def test_large_blocks_are_cut_into_windows_and_layers_into_parts():
    wide = chain_of_blocks(5, blocks=2, width=60)
    assert len(in_windows(wide).block_classes) > 2 * len(wide.block_classes)
    layers = llama(layers=4)
    assert len(in_parts(layers).block_classes) == len(in_layers(layers).block_classes)


@settings(max_examples=80, deadline=None)
@given(seed=seeds, blocks=st.integers(2, 4), spare=st.integers(0, 40))
def test_polishing_saves_time_and_stays_under_its_limit(seed, blocks, spare):
    problem = chain_of_blocks(seed, blocks=blocks)
    for candidate in list(Recipes().candidates(problem))[::3]:
        before = forecast(problem, candidate.order)
        after = polished(problem, candidate.order, before.peak_bytes + spare)
        timeline = simulate(problem, schedule_of(problem, after))
        assert timeline.peak_bytes <= before.peak_bytes + spare
        assert timeline.seconds <= before.seconds


def test_polishing_with_all_the_bytes_leaves_nothing_that_runs_again_but_random_operations():
    problem = llama(layers=3)
    for candidate in Recipes().candidates(problem):
        after = polished(problem, candidate.order, 10**12)
        runs = [op for segment in after for op in segment]
        repeated = [op for op in runs if runs.count(op) > 1]
        assert sum(problem.ops[op].seconds for op in repeated) == 0


def test_schedules_of_equal_layers_are_found_once_for_all_depths(tmp_path):
    cache = DiskCache(tmp_path)
    schedules = [link_schedules(in_layers(llama(layers=layers)), 200_000, cache) for layers in (12, 24)]
    entries = list(tmp_path.iterdir())
    assert len(entries) == len(schedules[0]) == len(schedules[1])
    assert list(schedules[0].values()) == list(schedules[1].values())
    assert link_schedules(in_layers(llama(layers=12)), 200_000) == schedules[0]


def two_part_layers(layers: int, odd: int) -> Problem:
    """Return layers of two blocks; one layer's second block reads another value of its first than the others."""
    draft = Draft()
    weight = draft.value("weight", 0, resident=True)
    stream = draft.op("embed", [weight], [10], 1.0, 0)[0]
    saved = []
    for layer in range(layers):
        first = draft.op("first", [stream], [100], 2.0, 2 * layer + 1)[0]
        second = draft.op("second", [first], [100], 1.0, 2 * layer + 1)[0]
        third = draft.op("third", [second if layer == odd else first], [90], 2.0, 2 * layer + 2)[0]
        saved.append((stream, first, second, third))
        stream = draft.op("out", [third], [10], 1.0, 2 * layer + 2)[0]
    draft.op("loss", [stream], [4], 0.1, 2 * layers + 1, held=(0,))
    draft.forward_length = len(draft.ops)
    gradient = draft.op("loss.backward", [stream], [10], 0.1, 2 * layers + 1, repeatable=False)[0]
    for layer in reversed(range(layers)):
        before, first, second, third = saved[layer]
        gradient = draft.op("back.2", [gradient, third], [10], 1.0, 2 * layer + 2, repeatable=False)[0]
        reads = [gradient, first, second, before]
        gradient = draft.op("back.1", reads, [10], 1.0, 2 * layer + 1, repeatable=False)[0]
    draft.op("embed.backward", [gradient], [4], 0.1, 0, repeatable=False)
    return draft.problem([0, *[1, 2] * layers, 3])


@pytest.mark.parametrize("odd", [0, 1, 5])
def test_a_layer_wired_unlike_others_of_its_class_does_not_get_their_schedules(odd):
    problem = two_part_layers(6, odd)
    assert len(set(alike(in_layers(problem)))) == 4
    for candidate in Rockmate().candidates(problem):
        simulate(problem, schedule_of(problem, candidate.order))


def test_what_is_resident_does_not_change_what_is_found():
    problem = llama(layers=3)
    heavy = replace(problem, resident_bytes=problem.resident_bytes + 10**10)
    light_forecasts = [candidate.forecast for candidate in Rockmate().candidates(problem)]
    heavy_forecasts = [candidate.forecast for candidate in Rockmate().candidates(heavy)]
    assert [seen.seconds for seen in heavy_forecasts if seen] == [seen.seconds for seen in light_forecasts if seen]
    assert [seen.peak_bytes - 10**10 for seen in heavy_forecasts if seen] == [
        seen.peak_bytes for seen in light_forecasts if seen
    ]


def test_a_chain_of_many_links_all_different_takes_seconds_not_minutes():
    problem = chain_of_blocks(1, blocks=100, width=6, classes=100, randomness=0.0)
    started = process_time()  # seconds of this process: others may keep the cores busy
    peaks = [forecast(problem, candidate.order).peak_bytes for candidate in Rockmate().candidates(problem)]
    assert process_time() - started < 40
    assert min(peaks) < 0.5 * baseline_of(problem).peak_bytes


def test_a_chain_longer_than_recursion_reaches_has_a_nested_schedule():
    alone = random_chain(0, 1).links[0]
    links = 1000
    tables = Tables(Chain((alone,) * links, ()), 1.0, 200)
    nested_schedule, decisions = tables.nested_schedule(tables.steps()[0][0]), 0
    assert nested_schedule is not None
    pending = [nested_schedule]
    while pending:
        part = pending.pop()
        decisions += 1
        pending += [child for child in (part.after, part.again) if child is not None]
    assert decisions > links


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_with_all_the_bytes_the_tables_find_everything_kept(seed):
    small = tiny(seed)
    problem = replace(
        small,
        values=tuple(replace(value, size_bytes=value.size_bytes * 10**6) for value in small.values),
        ops=tuple(replace(op, working_bytes=op.working_bytes * 10**6) for op in small.ops),
    )
    seconds = [forecast(problem, candidate.order).seconds for candidate in Rotor().candidates(problem)]
    assert min(seconds) <= baseline_of(problem).seconds + 1e-9
