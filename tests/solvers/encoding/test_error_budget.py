"""Approximate encodings under an error budget: the choices, the allowed schedules, and the errors of plans."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide import solvers
from lowtide.solvers.candidates.pareto import rate
from lowtide.solvers.encoding.choices import choices_of
from lowtide.solvers.encoding.decode_order import encoded_schedule, with_codes
from lowtide.solvers.encoding.encoded_candidates import Encoded
from lowtide.solvers.encoding.refine_precision import with_lower_error
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.encoded_problem import encodable
from lowtide.solvers.problem.errors import ScheduleError
from lowtide.solvers.problem.liveness import trace_order
from lowtide.solvers.problem.problem import EncodingOption, Problem
from lowtide.solvers.problem.schedule import Decode, Encode, Free, FreeCode, Run, Schedule, Segment
from lowtide.solvers.problem.simulate import baseline_of, make_plan, simulate
from lowtide.solvers.recipes import Recipes
from made_problems import Draft, chain_of_blocks, llama, with_encodings


def read_twice(error: float = 0.01, error_budget: float = 0.02) -> Problem:
    """Return a problem with a value that forward and backward read; its approximate code has a tenth of its bytes."""
    draft = Draft()
    source = draft.value("source", 1, resident=True)
    wide = draft.op("wide", [source], [100], 5.0, 0)[0]
    narrow = draft.op("narrow", [wide], [10], 1.0, 0)[0]
    draft.op("loss", [narrow], [1], 1.0, 0, held=(0,))
    draft.forward_length = 3
    gradient = draft.op("back_loss", [narrow], [10], 1.0, 0, repeatable=False)[0]
    draft.op("back_wide", [wide, gradient], [3], 1.0, 0, repeatable=False, held=(0,))
    problem = draft.problem([0])
    values = list(problem.values)
    values[wide] = replace(
        values[wide], encodings=(EncodingOption("tenth", 10, 0.5, 0.25, 10, 100, "approximate", error),)
    )
    return replace(problem, values=tuple(values), error_budget=error_budget)


def schedule(*backward) -> Schedule:
    """Return a schedule in which wide is encoded in forward, followed by the given backward."""
    forward = (Run(0), Encode(1, 0), Run(1), Free(1), Run(2))
    return Schedule((*forward, *backward), (Segment(0, 0, len(forward)), Segment(0, 5, 5 + len(backward))))


WHOLE = (Run(3), Free(2), Decode(1, 0), FreeCode(1, 0), Run(4), Free(1), Free(4))


def test_backward_reads_what_is_approximate():
    assert make_plan(read_twice(), schedule(*WHOLE), solver="by hand").encoding_error == 0.01


@pytest.mark.parametrize(
    ("backward", "error"),
    [
        ((Decode(1, 0), Free(2), Run(1), *WHOLE[:2]), "narrow of forward reads wide.*, which is approximate"),
        ((Decode(1, 0), FreeCode(1, 0), Encode(1, 0)), "encodes wide.*, which is approximate already"),
    ],
)
def test_an_error_is_not_carried_to_where_nobody_predicts_it(backward, error):
    with pytest.raises(ScheduleError, match=error):
        simulate(read_twice(), schedule(*backward))


def test_what_is_recomputed_is_exact_again():
    recomputed = (Decode(1, 0), FreeCode(1, 0), Free(1), Run(0), Run(1), Run(3), Free(2), Run(4), Free(1), Free(4))
    assert simulate(read_twice(), schedule(*recomputed)).seconds == 15.75


def test_errors_beyond_the_budget_are_refused():
    with pytest.raises(ScheduleError, match=r"an error of 0\.01 in all, above 0\.005"):
        simulate(read_twice(error_budget=0.005), schedule(*WHOLE))


def test_without_an_error_budget_nothing_approximate_is_chosen():
    assert choices_of(read_twice(error_budget=0.0)) == ()
    assert choices_of(read_twice(error=0.0, error_budget=0.0)) == (((1, 0),),)


@pytest.mark.parametrize(("fidelity", "solved"), [("bitwise", 1), ("approximate", 2)])
def test_only_with_approximate_codes_the_step_is_solved_without_codecs_too(fidelity, solved):
    problem, asked = read_twice(), []
    wide = replace(problem.values[1], encodings=(replace(problem.values[1].encodings[0], fidelity=fidelity, error=0),))
    problem = replace(problem, values=(problem.values[0], wide, *problem.values[2:]))

    class Asked(Recipes):
        """Recipes that remember the problems they were called with."""

        def candidates(self, problem):
            """Yield the recipes."""
            asked.append(problem)
            return super().candidates(problem)

    rated = list(
        Encoded((Recipes(),), Asked()).rated(
            problem, [rate(problem, "", candidate) for candidate in Recipes().candidates(problem)]
        )
    )
    assert len(choices_of(problem)) == 1 and len(asked) == solved and any(candidate.choice for candidate in rated)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), error_budget=st.sampled_from((0.0, 0.001, 0.005, 0.02, 0.05)))
def test_a_choice_is_within_the_error_budget_and_near_the_best_one(seed, error_budget):
    problem = with_encodings(chain_of_blocks(seed, blocks=2, classes=2), seed, error_budget=error_budget)
    values = encodable(problem)[:6]
    few = {v: problem.values[v].encodings for v in values}
    stripped = [replace(v, encodings=few.get(i, ())) for i, v in enumerate(problem.values)]
    problem = replace(problem, values=tuple(stripped))
    forward = problem.ops[: problem.forward_length]
    usual = sum(op.seconds for op in forward) / sum(problem.values[v].size_bytes for op in forward for v in op.makes)
    best_of = {price: _best(problem, values, price * usual) for price in (0.1, 1.0, 4.0)}
    chosen = choices_of(problem)
    for choice in chosen:
        assert _error(problem, choice) <= error_budget
    for price, (best, whole) in best_of.items():
        least = min((_cost(problem, choice, price * usual, values) for choice in chosen), default=whole)
        largest = max((price * usual * problem.values[v].size_bytes for v in values), default=0.0)
        assert best - 1e-9 <= min(least, whole) <= best + largest  # a relaxation: one exchange from the optimum


def _error(problem, choice):
    encodings = [problem.values[value].encodings[number] for value, number in choice]
    return sum(encoding.error for encoding in encodings if encoding.fidelity == "approximate")


def _cost(problem, choice, price, values):
    chosen = {value: problem.values[value].encodings[number] for value, number in choice}
    whole = sum(price * problem.values[v].size_bytes for v in values if v not in chosen)
    return whole + sum(encoding.seconds + price * encoding.size_bytes for encoding in chosen.values())


def _best(problem, values, price):
    """Return the least cost within the budget, and that of keeping everything unencoded."""
    options = [[None, *range(len(problem.values[v].encodings))] for v in values]
    choices = [
        tuple((v, number) for v, number in zip(values, numbers, strict=True) if number is not None)
        for numbers in product(*options)
    ]
    fitting = [choice for choice in choices if _error(problem, choice) <= problem.error_budget]
    return min(_cost(problem, choice, price, values) for choice in fitting), _cost(problem, (), price, values)


def quantized(problem: Problem, error_budget: float) -> Problem:
    """Return the problem with codes of 8, 4 and 2 bits for values above 1,000 bytes: fewer bits have a higher error."""
    values = []
    for value in problem.values:
        if value.size_bytes > 1000 and not value.resident:
            seconds = value.size_bytes * 1e-11
            codes = [
                EncodingOption(
                    f"{b} bits", value.size_bytes * b // 32, seconds, seconds, 0, 0, "approximate", 4.0 ** (4 - b)
                )
                for b in (8, 4, 2)
            ]
            value = replace(value, encodings=tuple(codes))
        values.append(value)
    return replace(problem, values=tuple(values), error_budget=error_budget)


@pytest.fixture(scope="module")
def portfolio() -> Portfolio:
    """A portfolio that keeps the candidates of the problems below in memory."""
    return Portfolio(cache=None)


@pytest.mark.slow
def test_a_larger_error_budget_takes_less_time_or_fewer_bytes(portfolio):
    plain = llama(layers=3)
    frontiers = [portfolio.frontier(quantized(plain, budget), 20) for budget in (0.0, 1.0, 1000.0)]
    for frontier, error_budget in zip(frontiers, (0.0, 1.0, 1000.0), strict=True):
        assert all(plan.encoding_error <= error_budget for plan in frontier)
    smallest = [frontier[-1].peak_bytes for frontier in frontiers]
    assert smallest[0] >= smallest[1] >= smallest[2]
    half = baseline_of(plain).peak_bytes // 3
    extra = [portfolio.solve(quantized(plain, budget), half).extra_seconds for budget in (0.0, 1.0, 1000.0)]
    assert extra[0] > extra[1] >= extra[2]


def test_bytes_that_are_left_go_to_smaller_errors():
    problem = quantized(llama(layers=4), 10_000.0)
    choice = choices_of(problem)[-1]
    schedule = encoded_schedule(problem, choice, with_codes(problem, choice, trace_order(problem)))
    before = make_plan(problem, schedule, solver="by hand")
    errors = [before.encoding_error]
    for more in (0, 5, 20, 100):
        budget = before.peak_bytes * (100 + more) // 100
        plan = make_plan(problem, with_lower_error(problem, schedule, budget), solver="by hand")
        assert plan.peak_bytes <= budget
        errors.append(plan.encoding_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 4.0**-4 * len(before.encoded) < errors[1]


def test_of_plans_that_take_equally_long_the_one_with_the_smallest_error_is_taken(monkeypatch, portfolio):
    problem = quantized(llama(layers=3), 1000.0)
    budgets = [baseline_of(problem).peak_bytes * share // 100 for share in (25, 30, 35, 40, 45)]
    plans = [portfolio.solve(problem, budget) for budget in budgets]
    monkeypatch.setattr(solvers.portfolio, "lowest_error", lambda problem, fitting, budget: fitting[-1])
    smaller = 0
    for budget, plan in zip(budgets, plans, strict=True):
        fastest = portfolio.solve(problem, budget)  # with its codes exchanged for ones of lower error, as they fit
        assert plan.peak_bytes <= budget
        assert plan.seconds <= fastest.seconds + 2.001e-3 * problem.seconds
        assert plan.encoding_error <= fastest.encoding_error * (1 + 1e-9)
        smaller += plan.encoding_error < 0.5 * fastest.encoding_error
    assert smaller >= 4


def test_a_frontier_has_the_errors_of_the_plans_for_its_budgets(portfolio):
    problem = quantized(llama(layers=3), 1000.0)
    frontier = portfolio.frontier(problem, 12)
    assert sum(plan.encoding_error > 0 for plan in frontier) >= 4
    assert [plan.peak_bytes for plan in frontier] == sorted((plan.peak_bytes for plan in frontier), reverse=True)
    for plan in frontier:
        assert plan.schedule == portfolio.solve(problem, plan.budget_bytes).schedule


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.integers(0, 30))
def test_codes_of_lower_error_keep_peak_time_and_all_else(seed, share):
    problem = with_encodings(chain_of_blocks(seed, blocks=3, classes=2), seed)
    for choice in choices_of(problem):
        order = with_codes(problem, choice, trace_order(problem))
        schedule = encoded_schedule(problem, choice, order)
        before = simulate(problem, schedule)
        budget = before.peak_bytes * (100 + share) // 100
        refined = with_lower_error(problem, schedule, budget)
        after = make_plan(problem, refined, solver="by hand")
        assert after.peak_bytes <= budget
        assert after.seconds <= before.seconds + 1.001e-3 * problem.seconds
        assert after.encoding_error <= make_plan(problem, schedule, solver="by hand").encoding_error + 1e-12


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), error_budget=st.sampled_from((0.002, 0.01)))
def test_plans_of_random_problems_keep_the_error_budget(seed, error_budget):
    problem = with_encodings(chain_of_blocks(seed, blocks=3, classes=2), seed, error_budget=error_budget)
    for plan in Portfolio(cache=None).frontier(problem, 20):
        encodings = [problem.values[value].encodings[number] for value, number in plan.encoded]
        assert sum(encoding.error for encoding in encodings if encoding.fidelity == "approximate") <= error_budget * (
            1 + 1e-9
        )
        simulate(problem, plan.schedule)
