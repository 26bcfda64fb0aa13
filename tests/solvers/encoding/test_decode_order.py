"""Values kept encoded: the encoded problem, its translation back, and the plans of the portfolio."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lowtide.solvers.disk_cache import DiskCache
from lowtide.solvers.encoding.choices import choices_of
from lowtide.solvers.encoding.decode_order import decoded_order, encoded_schedule, is_exact_where_due, with_codes
from lowtide.solvers.greedy import Greedy
from lowtide.solvers.infeasible import largest_operation
from lowtide.solvers.polish import polished
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.encoded_problem import encodable, encoded_problem_of
from lowtide.solvers.problem.errors import InfeasibleBudget, ScheduleError
from lowtide.solvers.problem.liveness import forecast, schedule_of, trace_order
from lowtide.solvers.problem.problem import EncodingOption, Problem
from lowtide.solvers.problem.problem_diff import difference_of
from lowtide.solvers.problem.problem_file import problem_of
from lowtide.solvers.problem.schedule import Decode, Encode, Free, FreeCode, Run
from lowtide.solvers.problem.simulate import baseline_of, make_plan, simulate
from lowtide.solvers.recipes import Recipes
from made_problems import Draft, chain_of_blocks, llama, with_encodings, with_halves

QUARTER = EncodingOption("quarter", 25, 0.5, 0.25, 30, 104, "rounding", 0.125)


def skip(encoding: EncodingOption = QUARTER, wide_bytes: int = 120, gradient_bytes: int = 3) -> Problem:
    """Return a problem with a value of 100 bytes, read in forward and backward of block 0; its code has 25 bytes."""
    draft = Draft()
    source = draft.value("source", 1, resident=True)
    many = draft.op("many", [source], [100], 5.0, 0)[0]
    first = draft.op("first", [many], [10], 1.0, 0)[0]
    wide = draft.op("wide", [first], [wide_bytes], 1.0, 1)[0]
    draft.op("loss", [wide], [1], 1.0, 1, held=(0,))
    draft.forward_length = 4
    gradient = draft.op("back_loss", [wide], [10], 1.0, 1, repeatable=False)[0]
    draft.op("back_many", [many, gradient], [gradient_bytes], 1.0, 0, repeatable=False, held=(0,))
    problem = draft.problem([0, 1])
    values = list(problem.values)
    values[many] = replace(values[many], encodings=(encoding,))
    return replace(problem, values=tuple(values))


def all_choices(problem):
    """Return the choice of all values that can be encoded, by the encodings with the smallest codes."""
    smallest = [
        min(range(len(v.encodings)), key=lambda n: v.encodings[n].size_bytes, default=0) for v in problem.values
    ]
    return tuple((value, smallest[value]) for value in encodable(problem))


def test_an_encoded_problem_encodes_after_the_last_reader_of_forward_and_decodes_before_the_first_of_backward():
    problem = skip()
    assert encodable(problem) == (1,)
    encoded = encoded_problem_of(problem, ((1, 0),))
    assert [op.name for op in encoded.reduced.ops] == [
        *("many", "first", "many.encode", "wide", "loss"),
        *("back_loss", "many.decode", "back_many"),
    ]
    assert encoded.reduced.forward_length == 5
    assert [op.block for op in encoded.reduced.ops] == [0, 0, 0, 1, 1, 1, 0, 0]
    order = decoded_order(encoded, trace_order(encoded.reduced))
    schedule = encoded_schedule(problem, ((1, 0),), order)
    instructions = [instruction for instruction in schedule.instructions if not isinstance(instruction, Free)]
    assert instructions == [Run(0), Run(1), Encode(1, 0), Run(2), Run(3), Run(4), Decode(1, 0), FreeCode(1, 0), Run(5)]
    kept, coded = baseline_of(problem), simulate(problem, schedule)
    assert coded.seconds == kept.seconds + 0.75
    assert coded.peak_bytes == 1 + 25 + 1 + 120 + 10 < kept.peak_bytes
    plan = make_plan(problem, schedule, solver="by hand")
    assert (plan.encoded, plan.original_bytes, plan.packed_bytes, plan.encoding_error) == (((1, 0),), 100, 25, 0.125)


def test_a_code_that_is_read_itself_lowers_what_backward_needs():
    levels = EncodingOption("levels", 25, 0.5, 0.0, 25, 0, read_itself_bytes=0)
    problem = skip(levels, wide_bytes=5, gradient_bytes=60)
    encoding_bytes, whole_bytes = 1 + 100 + 10 + 25, 1 + 1 + 100 + 10 + 60
    assert largest_operation(problem)[0] < encoding_bytes < whole_bytes
    plan = Portfolio(cache=None).solve(problem, encoding_bytes)
    assert (plan.peak_bytes, plan.extra_seconds, plan.encoded) == (encoding_bytes, 0.5, ((1, 0),))
    assert plan.lower_bound_seconds <= 0.5
    assert not Portfolio(cache=None).solve(problem, whole_bytes).encoded


def test_what_waits_in_a_run_order_is_encoded_and_kept_instead_where_there_are_bytes_for_it():
    problem, choice = skip(), ((1, 0),)
    order = with_codes(problem, choice, trace_order(problem))
    assert encoded_schedule(problem, choice, order) == encoded_schedule(
        problem,
        choice,
        decoded_order(encoded_problem_of(problem, choice), trace_order(encoded_problem_of(problem, choice).reduced)),
    )
    merged = encoded_problem_of(problem, choice).merged
    kept = polished(merged, order, 10**6)
    assert not any(
        isinstance(instruction, Decode) for instruction in encoded_schedule(problem, choice, kept).instructions
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 4), randomness=st.sampled_from((0.0, 0.2)))
def test_decoding_an_encoded_order_costs_no_bytes_and_no_time_and_what_is_forecast_is_simulated(
    seed, blocks, randomness
):
    problem = with_encodings(chain_of_blocks(seed, blocks=blocks, classes=2, randomness=randomness), seed)
    choice = all_choices(problem)
    assume(choice)
    encoded = encoded_problem_of(problem, choice)
    for solver in (Recipes(mixture_count=4), Greedy(most_moves=3)):
        for candidate in solver.candidates(encoded.reduced):
            reduced_timeline = simulate(encoded.reduced, schedule_of(encoded.reduced, candidate.order))
            order = decoded_order(encoded, candidate.order)
            if not is_exact_where_due(problem, choice, order):
                with pytest.raises(ScheduleError, match=r"of forward reads .* which is approximate"):
                    simulate(problem, encoded_schedule(problem, choice, order))
                continue
            timeline = simulate(problem, encoded_schedule(problem, choice, order))
            assert timeline.peak_bytes <= reduced_timeline.peak_bytes
            assert timeline.seconds <= reduced_timeline.seconds + 1e-9
            prediction = forecast(encoded.merged, order)
            assert (prediction.peak_bytes, prediction.seconds) == (timeline.peak_bytes, timeline.seconds)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 4), randomness=st.sampled_from((0.0, 0.2)))
def test_any_run_order_with_codes_is_simulated_as_forecast(seed, blocks, randomness):
    problem = with_encodings(chain_of_blocks(seed, blocks=blocks, classes=2, randomness=randomness), seed)
    choice = all_choices(problem)
    assume(choice)
    merged = encoded_problem_of(problem, choice).merged
    for candidate in Recipes(mixture_count=4).candidates(problem):
        order = with_codes(problem, choice, candidate.order)
        assert is_exact_where_due(problem, choice, order)
        limit = forecast(merged, order).peak_bytes
        for tried in (order, polished(merged, order, limit)):
            if not is_exact_where_due(problem, choice, tried):
                with pytest.raises(ScheduleError, match=r"of forward reads .* which is approximate"):
                    simulate(problem, encoded_schedule(problem, choice, tried))
                continue
            schedule = encoded_schedule(problem, choice, tried)
            timeline, prediction = simulate(problem, schedule), forecast(merged, tried)
            assert (prediction.peak_bytes, prediction.seconds) == (timeline.peak_bytes, timeline.seconds)
            assert timeline.peak_bytes <= limit
            decoded = {
                (instruction.value, instruction.encoding)
                for instruction in schedule.instructions
                if isinstance(instruction, Decode)
            }
            assert decoded <= {
                (instruction.value, instruction.encoding)
                for instruction in schedule.instructions
                if isinstance(instruction, Encode)
            }


def test_choices_are_few_and_treat_equal_values_alike():
    problem = with_halves(llama(layers=4), 1, 1e-9, bits=(16, 4))
    choices = choices_of(problem)
    assert 1 <= len(choices) <= 3
    for choice in choices:
        decided = dict(choice)
        alike = {}
        for value in encodable(problem):
            record = problem.values[value]
            assert alike.setdefault((record.size_bytes, record.encodings), decided.get(value)) == decided.get(value)
    assert choices_of(llama(layers=4)) == ()


def seconds_within(frontier, budget_bytes):
    return min((plan.seconds for plan in frontier if plan.peak_bytes <= budget_bytes), default=float("inf"))


def test_with_encodings_plans_are_nowhere_worse_and_much_better_where_bytes_are_short():
    plain = llama(layers=3)
    problem = with_halves(plain, 1, 1e-10)
    portfolio = Portfolio(cache=None)
    without, frontier = portfolio.frontier(plain, 12), portfolio.frontier(problem, 12)
    assert frontier[-1].peak_bytes <= without[-1].peak_bytes
    for budget in {plan.peak_bytes for plan in (*without, *frontier)}:
        if budget >= without[-1].peak_bytes:
            assert portfolio.solve(problem, budget).seconds <= portfolio.solve(plain, budget).seconds
    half = baseline_of(plain).peak_bytes * 45 // 100
    encoded_plan, plain_plan = portfolio.solve(problem, half), portfolio.solve(plain, half)
    assert encoded_plan.extra_seconds < 0.5 * plain_plan.extra_seconds
    assert encoded_plan.encoded
    assert 0 < encoded_plan.packed_bytes < encoded_plan.original_bytes


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 3))
def test_random_problems_with_encodings_are_answered_monotonously_and_never_worse(seed, blocks):
    plain = chain_of_blocks(seed, blocks=blocks, classes=2)
    problem, portfolio = with_encodings(plain, seed), Portfolio(cache=None)
    frontier = portfolio.frontier(problem, 20)
    for plain_plan in portfolio.frontier(plain, 20):
        assert portfolio.solve(problem, plain_plan.peak_bytes).seconds <= plain_plan.seconds
    for larger, smaller in pairwise(frontier):
        assert smaller.peak_bytes < larger.peak_bytes
        assert smaller.seconds > larger.seconds
    for plan in frontier:
        assert plan.lower_bound_seconds <= plan.extra_seconds + 1e-9


@pytest.mark.parametrize("solver", ["auto", "recipes", "greedy", "rotor"])
def test_plans_with_codes_come_from_the_cache_as_they_were_found(solver, tmp_path, monkeypatch):
    problem = with_halves(llama(layers=3), 1, 1e-10)
    budgets = [baseline_of(problem).peak_bytes * percent // 100 for percent in (75, 60, 45)]
    cold = Portfolio(cache=DiskCache(tmp_path))
    plans = [replace(cold.solve(problem, budget, solver), solve_seconds=0.0) for budget in budgets]
    assert any(plan.encoded for plan in plans)
    functions = ("offers.rate", "candidate_cache.proofs_of")
    for function in (*(f"candidates.{name}" for name in functions), "encoding.encoded_candidates.with_codes"):
        monkeypatch.setattr(f"lowtide.solvers.{function}", refuse)
    warm = Portfolio(cache=DiskCache(tmp_path))
    assert [replace(warm.solve(problem, budget, solver), solve_seconds=0.0) for budget in budgets] == plans


def refuse(*args):
    raise AssertionError("this is known already")


def test_out_of_time_a_plan_without_codes_answers_and_nothing_half_done_is_kept(tmp_path):
    problem = with_halves(llama(layers=3), 1, 1e-10)
    budget = baseline_of(problem).peak_bytes // 2
    hurried = Portfolio(cache=DiskCache(tmp_path)).solve(problem, budget, time_limit_seconds=1e-9)
    assert "encoded was stopped at the time limit of 1e-09 s" in hurried.notes
    patient = Portfolio(cache=DiskCache(tmp_path)).solve(problem, budget)
    assert patient.seconds < hurried.seconds


def test_checkmate_encodes_where_that_is_faster_or_all_that_fits():
    problem = skip()
    plain = replace(problem, values=tuple(replace(value, encodings=()) for value in problem.values))
    portfolio, budget = Portfolio(cache=None), 160
    assert portfolio.solve(plain, budget, "checkmate").extra_seconds == 5.0
    plan = portfolio.solve(problem, budget, "checkmate")
    assert (plan.extra_seconds, plan.encoded) == (0.75, ((1, 0),))
    assert portfolio.solve(problem, 10**6, "checkmate").extra_seconds == 0
    with pytest.raises(InfeasibleBudget):
        portfolio.solve(problem, 100, "checkmate")


def test_progress_counts_planning_with_codes_too():
    reports = []
    Portfolio(cache=None).solve(
        with_halves(llama(layers=1), 1, 1e-10), 10**9, progress=lambda share, text: reports.append((share, text))
    )
    assert reports == sorted(reports, key=lambda report: report[0])
    assert reports[-1] == (1.0, "solved")
    assert any(text.startswith("encoded: ") for _, text in reports)


def test_keeping_everything_by_name_keeps_it_as_it_is():
    problem = with_halves(llama(layers=2), 1, 1e-10)
    assert not Portfolio(cache=None).solve(problem, 10**9, "keep_all").encoded


def test_encodings_go_through_json_and_make_another_problem():
    plain = chain_of_blocks(3)
    problem = with_encodings(plain, 3)
    assert problem_of(json.loads(problem.to_json())) == problem
    assert problem.fingerprint != plain.fingerprint
    slower = [replace(v, encodings=tuple(replace(e, encode_seconds=9.0) for e in v.encodings)) for v in problem.values]
    assert replace(problem, values=tuple(slower)).fingerprint == problem.fingerprint
    assert difference_of(problem, replace(problem, values=tuple(slower))) is None
    difference = difference_of(problem, plain)
    assert difference is not None
    assert "may be kept in" in difference and difference.endswith("here, only unencoded there")
