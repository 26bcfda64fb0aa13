"""The interface to integer programs: answers of HiGHS and CBC, limits that are hit, and infeasible programs."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from lowtide.solvers.integer import program as integer_program
from lowtide.solvers.integer.answer import Effort, Status
from lowtide.solvers.integer.block_program import BlockProgram
from lowtide.solvers.integer.program import IntegerProgram
from lowtide.solvers.integer.step_program import StepProgram
from lowtide.solvers.integer.step_stages import stages_of_step
from made_problems import chain_of_blocks, tiny
from pytest import approx

FOLDERS = (Path(__file__).resolve().parents[2], Path(__file__).resolve().parents[1], Path(__file__).resolve().parent)


@pytest.fixture(params=["highs", "cbc"])
def solver(request, monkeypatch):
    """Select each of the two solvers."""
    if request.param == "cbc":
        monkeypatch.setattr(integer_program, "highspy", lambda: None)
    return request.param


def knapsack(seed=3, items=40, rows=6):
    """Build a knapsack program with several limited sizes; return it with its rows."""
    draw = random.Random(seed)
    program = IntegerProgram("knapsack")
    taken = [program.variable(f"x{i}") for i in range(items)]
    limits = [program.at_most([(draw.randint(1, 50), item) for item in taken], 300) for _ in range(rows)]
    program.minimize([(-draw.randint(5, 50), item) for item in taken])
    return program, limits


def test_both_solvers_find_the_same_optimum_and_prove_it(solver):
    answer = knapsack()[0].solve()
    assert answer.status is Status.OPTIMAL
    assert answer.objective == approx(-487)
    assert answer.bound == approx(answer.objective)
    assert all(min(value, 1 - value) == approx(0, abs=1e-6) for value in answer.values.values())


def test_limits_may_change_and_rows_may_come_between_solutions(solver):
    program, limits = knapsack()
    before = program.solve()
    limits[0].change(150)
    tighter = program.solve()
    assert tighter.objective > before.objective
    limits[0].change(300)
    assert program.solve().objective == approx(before.objective)
    taken = next(iter(program.columns))
    program.at_most([(1, taken)], 0)
    assert program.solve().values[taken.name] == approx(0)


def test_a_program_without_a_solution_is_reported_as_infeasible(solver):
    program, _ = knapsack()
    program.at_most([(-1, item) for item in program.columns], -39)
    answer = program.solve()
    assert answer.status is Status.INFEASIBLE
    assert answer.bound == float("inf")
    assert not answer.values


def test_a_row_of_numbers_alone_may_rule_everything_out(solver):
    program, _ = knapsack()
    row = program.at_most([(2, 3)], 6)
    assert program.solve().solved
    row.change(5)
    assert program.solve().status is Status.INFEASIBLE


def test_fixed_values_stay(solver):
    program, _ = knapsack()
    answer = program.solve(fixed={"x0": 1.0, "x1": 0.0})
    assert answer.values["x0"] == approx(1)
    assert answer.values["x1"] == approx(0)
    assert program.solve().objective <= answer.objective


def test_a_start_that_presolve_makes_optimal_is_not_returned_unchanged(solver):
    """Begin with the optimum except for a choice that no row limits, which presolve makes."""
    program, _ = knapsack()
    start = {**program.solve().values, "spare": 0.0}
    worth = {**program.costs, program.variable("spare"): -7.0}
    program.minimize((cost, variable) for variable, cost in worth.items())
    for fixed in ({}, {"x0": start["x0"]}):
        answer = program.solve(start=start, fixed=fixed)
        assert answer.objective == approx(-494)
        assert answer.bound == approx(-494)
        assert sum(cost * answer.values[variable.name] for variable, cost in worth.items()) == approx(-494)


def test_when_the_nodes_run_out_the_best_values_are_returned_with_a_bound_below_them():
    program, _ = knapsack(items=80, rows=12)
    answer = program.solve(Effort(node_limit=1))
    assert answer.status is Status.FEASIBLE
    assert answer.bound < answer.objective
    begun = program.solve(Effort(node_limit=1), start=answer.values)
    assert begun.objective <= answer.objective + 1e-6


def test_the_relaxation_goes_on_with_new_rows_and_limits():
    program, limits = knapsack()
    loose = program.relaxed()
    assert loose is not None
    assert loose.objective <= program.solve().objective + 1e-6
    limits[0].change(100)
    program.at_most([(1, item) for item in list(program.columns)[:10]], 2)
    tight = program.relaxed()
    fresh, others = knapsack()
    others[0].change(100)
    fresh.at_most([(1, item) for item in list(fresh.columns)[:10]], 2)
    assert tight is not None
    assert tight.objective == approx(fresh.relaxed().objective)


def test_without_highs_there_is_no_relaxation_and_the_same_optimum(monkeypatch):
    problem, layers = tiny(4), chain_of_blocks(4, blocks=2, width=3)

    def both():
        step = StepProgram(problem, stages_of_step(problem))
        schedule = BlockProgram(layers, 1).fastest(20, 120, None, Effort())
        return (
            step.fastest(step.low_bytes + 8, Effort()).seconds,
            schedule.least_seconds,
            schedule.schedule and schedule.schedule.seconds,
        )

    by_highs = both()
    monkeypatch.setattr(integer_program, "highspy", lambda: None)
    assert knapsack()[0].relaxed() is None
    assert both() == approx(by_highs)


def test_it_is_found_out_whether_highs_is_installed(monkeypatch):
    assert integer_program.highspy() is not None
    monkeypatch.setitem(__import__("sys").modules, "highspy", None)
    assert integer_program.highspy() is None


def test_nothing_that_solvers_print_reaches_the_terminal():
    """Run in a separate process: a banner is printed once per process, below Python's streams."""
    program = (
        f"import sys; sys.path[:0] = {[str(folder) for folder in FOLDERS]}\n"
        "import conftest, test_programs as made\n"
        "from lowtide.solvers.integer import program as integer_program\n"
        "for _ in range(2):\n"
        "    program, limits = made.knapsack()\n"
        "    program.relaxed(); program.solve(start=program.solve().values)\n"
        "    limits[0].change(-1); program.solve(); program.relaxed()\n"
        "    integer_program.highspy = lambda: None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
