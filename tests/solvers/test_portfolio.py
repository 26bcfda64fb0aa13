"""The portfolio: budgets kept, monotone, never worse than a recipe, clear when nothing fits."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.candidates.candidate_cache import problem_digest
from lowtide.solvers.disk_cache import DiskCache
from lowtide.solvers.greedy import Greedy
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.errors import InfeasibleBudget
from lowtide.solvers.problem.liveness import forecast
from lowtide.solvers.problem.schedule import Record
from lowtide.solvers.problem.simulate import baseline_of, simulate
from lowtide.solvers.recipes import Recipes
from made_problems import MEBIBYTE, chain_of_blocks, llama

PORTFOLIO = Portfolio()


def answers(problem, count=12):
    """Return plans at `count` budgets from the smallest feasible one up, lowest first."""
    lowest = PORTFOLIO.frontier(problem, 1000)[-1].peak_bytes
    highest = baseline_of(problem).peak_bytes
    budgets = [lowest + (highest - lowest) * i // (count - 1) for i in range(count)]
    return [PORTFOLIO.solve(problem, budget) for budget in budgets]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 5), classes=st.integers(1, 2))
def test_every_plan_keeps_its_budget_and_a_smaller_budget_gives_no_higher_peak_and_no_less_time(seed, blocks, classes):
    problem = chain_of_blocks(seed, blocks=blocks, classes=classes)
    plans = answers(problem)
    for plan in plans:
        assert plan.peak_bytes <= plan.budget_bytes
        assert plan.seconds == simulate(problem, plan.schedule).seconds
        assert plan.lower_bound_seconds <= plan.extra_seconds + 1e-9
    for smaller, larger in pairwise(plans):
        assert smaller.peak_bytes <= larger.peak_bytes
        assert smaller.seconds >= larger.seconds


def test_a_plan_is_strictly_better_than_every_mixture_of_recipes_that_costs_something():
    problem = llama()
    for candidate in Recipes().candidates(problem):
        prediction = forecast(problem, candidate.order)
        plan = PORTFOLIO.solve(problem, prediction.peak_bytes)
        assert plan.seconds <= prediction.seconds
        if prediction.seconds > problem.seconds * 1.01:
            assert plan.seconds < prediction.seconds * 0.999, candidate.description


def test_extra_time_on_llama_blocks_is_close_to_what_is_proven_to_be_needed():
    problem = llama()
    for mebibytes, most in ((92.8, 0.0), (79.3, 4.0), (57.3, 9.5), (36.8, 15.0), (23.8, 19.0)):
        plan = PORTFOLIO.solve(problem, int(mebibytes * MEBIBYTE))
        assert 100 * plan.extra_share <= most + 1e-4
        assert plan.extra_seconds - plan.lower_bound_seconds < 0.02 * plan.baseline_seconds


def test_the_smallest_peak_is_far_below_checkpointing_every_block():
    problem = llama()
    orders = {candidate.description: candidate.order for candidate in Recipes().candidates(problem)}
    full = forecast(problem, orders["checkpoint every block"]).peak_bytes
    assert PORTFOLIO.frontier(problem, 50)[-1].peak_bytes < 0.6 * full


@pytest.mark.slow
def test_deep_models_need_no_more_distinct_schedules_of_a_block_than_shallow_ones():
    variants = {12: 0, 48: 0}
    for layers in variants:
        problem = llama(layers)
        baseline = baseline_of(problem).peak_bytes
        for percent in (70, 60, 50, 40, 30):
            plan = PORTFOLIO.solve(problem, baseline * percent // 100)
            variants[layers] += len(distinct_segments(problem, plan.schedule))
    assert variants[48] <= 1.5 * variants[12], variants


def distinct_segments(problem, schedule):
    """Return segments up to renaming: the operations that they run, by their place in their block."""
    first = {}
    for index, op in enumerate(problem.ops):
        first.setdefault((op.block, index >= problem.forward_length), index)
    distinct = set()
    for number, segment in enumerate(schedule.segments):
        runs = [problem.block_classes[segment.block], number < len(schedule.segments) // 2]
        for instruction in schedule.instructions[segment.start : segment.stop]:
            index = getattr(instruction, "op", None)
            if index is None:
                index = problem.maker[instruction.value]
            op = problem.ops[index]
            place = index - first[op.block, index >= problem.forward_length]
            runs.append((type(instruction).__name__, op.block - segment.block, place))
        distinct.add(tuple(runs))
    return distinct


def test_an_impossible_budget_names_the_operation_that_stands_in_the_way_and_what_would_help():
    problem = llama()
    smallest = PORTFOLIO.frontier(problem, 1000)[-1].peak_bytes
    with pytest.raises(
        InfeasibleBudget,
        match=r"no schedule of llama12 fits 8.90 MiB: the smallest peak found is 9.00 MiB, at head\.loss.*; "
        "raise the budget or lower the batch",
    ) as raised:
        PORTFOLIO.solve(problem, int(8.9 * MEBIBYTE))
    assert raised.value.smallest_bytes == smallest
    assert PORTFOLIO.solve(problem, smallest).peak_bytes == smallest
    with pytest.raises(
        InfeasibleBudget, match=f"fits {smallest - 1:,} bytes: the smallest peak found is {smallest:,} b"
    ):
        PORTFOLIO.solve(problem, smallest - 1)
    with pytest.raises(InfeasibleBudget, match=r"fits 5.00 MiB: layers\..* \(backward\) alone needs .* MiB"):
        PORTFOLIO.solve(problem, 5 * MEBIBYTE)


def test_a_solver_may_be_chosen_by_name_and_an_unknown_name_is_answered_with_the_known_ones():
    problem = llama(layers=2)
    assert PORTFOLIO.solve(problem, 10**9, solver="recipes").solver == "recipes"
    with pytest.raises(
        ValueError, match="no solver 'magic': choose among auto, keep_all, recipes, rockmate, greedy, rotor, checkmate"
    ):
        PORTFOLIO.solve(problem, 10**9, solver="magic")


def test_a_plan_says_why_the_other_solvers_were_not_taken():
    problem = llama()
    plan = PORTFOLIO.solve(problem, 60 * MEBIBYTE)
    assert plan.solver in ("rockmate", "greedy")
    assert any("keep_all does not fit" in note for note in plan.notes)
    assert any("recipes would take" in note for note in plan.notes)


def test_progress_never_goes_back_and_ends_at_one():
    shares = []
    Portfolio().solve(llama(layers=3), 10**9, progress=lambda share, text: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def without_time(plan):
    return replace(plan, solve_seconds=0.0)


def refuse(*args):
    raise AssertionError("this is known already")


@pytest.mark.parametrize("problem", [llama(layers=3), chain_of_blocks(3, blocks=4), chain_of_blocks(8, blocks=2)])
def test_what_another_process_found_gives_the_same_plans_without_solving(problem, tmp_path, monkeypatch):
    cold = Portfolio(cache=DiskCache(tmp_path))
    frontier = cold.frontier(problem, 6)
    names = ("auto", *(solver.name for solver in cold.solvers))
    budgets = [frontier[-1].peak_bytes - 1, *(plan.peak_bytes for plan in frontier)]
    expected = {(name, budget): answer(cold, problem, budget, name) for name in names for budget in budgets}
    monkeypatch.setattr("lowtide.solvers.candidates.offers.rate", refuse)
    monkeypatch.setattr("lowtide.solvers.candidates.candidate_cache.proofs_of", refuse)
    warm = Portfolio(cache=DiskCache(tmp_path))
    assert {request: answer(warm, problem, request[1], request[0]) for request in expected} == expected
    assert [*map(without_time, warm.frontier(problem, 6))] == [*map(without_time, frontier)]
    with pytest.raises(AssertionError, match="known already"):
        Portfolio(cache=DiskCache(tmp_path / "another")).solve(problem, budgets[0])


def answer(portfolio, problem, budget, name):
    """Return the plan without its solving time, or the error's message."""
    try:
        return without_time(portfolio.solve(problem, budget, solver=name))
    except InfeasibleBudget as error:
        return str(error)


def test_one_solver_is_asked_alone_and_the_others_when_they_are_needed(tmp_path):
    problem, portfolio = llama(layers=2), Portfolio(cache=DiskCache(tmp_path))
    portfolio.solve(problem, 10**9, solver="recipes")
    assert [path.name.split("-")[0] for path in sorted(tmp_path.iterdir())] == ["candidates", "proofs"]
    portfolio.solve(problem, 10**9)
    assert len([*tmp_path.glob("candidates-*")]) == len(portfolio.solvers)


def test_damaged_entries_are_solved_and_written_again(tmp_path):
    problem = chain_of_blocks(5)
    plan = Portfolio(cache=DiskCache(tmp_path)).solve(problem, 10**9)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    assert without_time(Portfolio(cache=DiskCache(tmp_path)).solve(problem, 10**9)) == without_time(plan)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = Portfolio(cache=None).solve(chain_of_blocks(5), 10**9)
    assert [*tmp_path.iterdir()] == []
    assert without_time(Portfolio().solve(chain_of_blocks(5), 10**9)) == without_time(plan)
    assert [*tmp_path.iterdir()] != []


def test_other_options_of_a_solver_are_not_answered_from_the_cache(tmp_path, monkeypatch):
    problem = chain_of_blocks(5)
    options = [Greedy(), replace(Greedy(), name="greedier")]
    for solver in options:
        Portfolio((solver,), cache=DiskCache(tmp_path)).solve(problem, 10**9)
    assert len([*tmp_path.glob("candidates-*")]) == len(options)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 1} for name in ("forward_length", "resident_bytes", "state_bytes", "floor_bytes")),
        {"block_classes": (0, 1, 2)},
        {"costs": "flops"},
        *({"ops": change} for change in ({"seconds": 0.5}, {"working_bytes": 10**9}, {"reads": ()}, {"makes": ()})),
        *({"ops": {name: True}} for name in ("random", "compute_intensive")),
        *({"ops": change} for change in ({"repeatable": False}, {"kind": "another"}, {"block": 2})),
        *({"values": change} for change in ({"size_bytes": 1}, {"held": True}, {"resident": True})),
    ],
)
def test_a_problem_that_differs_in_anything_has_another_digest(changes):
    problem = llama(layers=2)
    changed = {}
    for name, change in changes.items():
        if name in ("ops", "values"):
            records = list(getattr(problem, name))
            records[3] = replace(records[3], **change)
            change = tuple(records)
        changed[name] = change
    assert problem_digest(replace(problem, **changed)) != problem_digest(problem)


def test_how_things_are_called_makes_no_other_problem():
    problem = llama(layers=2)
    ops = tuple(replace(op, name="x", module="y") for op in problem.ops)
    values = tuple(replace(value, name="z") for value in problem.values)
    renamed = replace(problem, ops=ops, values=values, name="another", notes=("a note",))
    assert problem_digest(renamed) == problem_digest(problem)


@pytest.mark.parametrize("problem", [llama(), chain_of_blocks(21, blocks=6, classes=2), chain_of_blocks(34, blocks=9)])
def test_forty_budgets_are_answered_monotonously_cold_and_from_the_cache(problem, tmp_path):
    highest = baseline_of(problem).peak_bytes
    lowest = PORTFOLIO.frontier(problem, 1000)[-1].peak_bytes
    budgets = [lowest + (highest - lowest) * step // 39 for step in range(40)]
    for portfolio in (Portfolio(cache=DiskCache(tmp_path)), Portfolio(cache=DiskCache(tmp_path))):
        plans = [portfolio.solve(problem, budget) for budget in budgets]
        assert all(plan.peak_bytes <= budget for plan, budget in zip(plans, budgets, strict=True))
        for smaller, larger in pairwise(plans):
            assert smaller.peak_bytes <= larger.peak_bytes
            assert smaller.seconds >= larger.seconds


def test_a_solver_asked_for_by_name_alone_answers_for_the_budget_with_the_bound():
    problem = llama(layers=3)
    plan = PORTFOLIO.solve(problem, 20 * MEBIBYTE, solver="rotor")
    assert plan.solver == "rotor"
    assert plan.peak_bytes <= 20 * MEBIBYTE
    assert plan.lower_bound_seconds is not None
    assert plan.seconds >= PORTFOLIO.solve(problem, 20 * MEBIBYTE).seconds


def test_the_schedule_of_a_solver_asked_for_by_name_alone_is_kept_for_each_budget(tmp_path, monkeypatch):
    problem, budgets = (
        chain_of_blocks(1, blocks=2, randomness=0.4),
        (10**9, 112),
    )  # under the smaller one draws are repeated
    plans = [answer(Portfolio(cache=DiskCache(tmp_path)), problem, budget, "checkmate") for budget in budgets]
    assert any(isinstance(instruction, Record) for instruction in plans[1].schedule.instructions)
    monkeypatch.setattr("lowtide.solvers.checkmate.Checkmate.schedule", refuse)
    assert [answer(Portfolio(cache=DiskCache(tmp_path)), problem, budget, "checkmate") for budget in budgets] == plans
    with pytest.raises(AssertionError, match="known already"):
        Portfolio(cache=DiskCache(tmp_path)).solve(problem, 113, solver="checkmate")


def test_checkmate_answers_for_small_steps_and_says_which_are_too_large():
    problem = chain_of_blocks(3, blocks=2, randomness=0.0)
    smallest = PORTFOLIO.frontier(problem, 50)[-1].peak_bytes
    for budget in (smallest, 2 * smallest):
        exact, plan = PORTFOLIO.solve(problem, budget, solver="checkmate"), PORTFOLIO.solve(problem, budget)
        assert exact.solver == "checkmate"
        assert exact.peak_bytes <= budget
        assert exact.seconds <= plan.seconds + 1e-9
    with pytest.raises(ValueError, match="more than checkmate's limit of 6,000"):
        PORTFOLIO.solve(llama(layers=12), 10**9, solver="checkmate")


def test_out_of_time_the_best_so_far_answers_recipes_are_tried_and_nothing_is_left_on_disk(tmp_path):
    problem, cache = llama(4), DiskCache(tmp_path)
    budget_bytes = baseline_of(problem).peak_bytes // 2
    hurried = Portfolio(cache=cache).solve(problem, budget_bytes, time_limit_seconds=1e-9)
    assert hurried.peak_bytes <= budget_bytes
    assert "rockmate was stopped at the time limit of 1e-09 s" in hurried.notes
    assert not any("recipes was stopped" in note for note in hurried.notes)
    recipes = Portfolio(cache=None).solve(problem, budget_bytes, "recipes")
    patient = Portfolio(cache=cache).solve(problem, budget_bytes)
    assert patient.seconds < hurried.seconds <= recipes.seconds
    assert not any("stopped" in note for note in patient.notes)


def test_what_was_stopped_is_solved_when_there_is_more_time_and_noted_only_where_it_was_asked():
    problem, portfolio = llama(4), Portfolio(cache=None)
    budget_bytes = baseline_of(problem).peak_bytes // 2
    hurried = portfolio.solve(problem, budget_bytes, time_limit_seconds=1e-9)
    assert not any("stopped" in note for note in portfolio.solve(problem, budget_bytes, "recipes").notes)
    patient = portfolio.solve(problem, budget_bytes)
    assert patient.seconds == Portfolio(cache=None).solve(problem, budget_bytes).seconds < hurried.seconds
    with pytest.raises(InfeasibleBudget, match=r"found is .*; rockmate was stopped .*; raise the"):
        Portfolio(cache=None).solve(problem, 6 * MEBIBYTE, time_limit_seconds=1e-9)


def test_what_is_solved_by_name_is_refused_with_what_would_help_too():
    problem = llama(2)
    for solver in ("rotor", "recipes", "rockmate"):
        with pytest.raises(InfeasibleBudget, match="raise the budget or lower the batch"):
            Portfolio(cache=None).solve(problem, 5 * MEBIBYTE, solver)
