"""Problems, schedules and plans print as programs that fit where they are printed."""

from dataclasses import replace

import pytest
from lowtide.solvers.greedy import Greedy
from lowtide.solvers.problem.problem import EncodingOption, Op, Problem, Value
from lowtide.solvers.problem.schedule import Decode, Encode, Forget, Free, FreeCode, Record, Run, Schedule, Segment
from lowtide.solvers.problem.simulate import baseline_of, make_plan
from lowtide.solvers.problem.units import format_bytes
from made_problems import chain_of_blocks, llama

HALF = EncodingOption("half", 1024, 0.5, 0.25, 1024, 2048, "rounding", 0.125)
KIND = "compute > aten.{}.default(f32[2](1)cpu)"


def two_steps() -> Problem:
    """weight -> noise -> a (2 KiB, may be encoded) -> loss (held); backward reads a and makes a gradient (held)."""
    values = (
        Value("weight", 4096, resident=True),
        Value("noise", 1024),
        Value("a", 2048, encodings=(HALF,)),
        Value("loss", 4, held=True),
        Value("grad", 512, held=True),
    )
    ops = (
        Op("draw", (), (1,), 0.5, 1024, 0, random=True, kind=KIND.format("rand"), module="h.0"),
        Op("make_a", (0, 1), (2,), 2.0, 4096, 0, kind=KIND.format("mm"), module="h.1"),
        Op("make_loss", (2,), (3,), 1.0, 4, 0, kind=KIND.format("sum"), module="loss"),
        Op("make_grad", (2, 1), (4,), 4.0, 512, 0, repeatable=False, kind=KIND.format("mv"), module="h.1"),
    )
    return Problem(ops, values, 3, (0,), resident_bytes=4096, state_bytes=8, error_budget=1.0, name="Two")


FORWARD = (Record(0), Run(0), Run(1), Free(1), Run(2), Encode(2, 0), Free(2))
BACKWARD = (Run(0), Forget(0), Decode(2, 0), FreeCode(2, 0), Run(3), Free(2), Free(1))
SCHEDULE = Schedule(FORWARD + BACKWARD, (Segment(0, 0, 7), Segment(0, 7, 14)))


def test_a_problem_prints_as_a_program(golden):
    golden("two_steps/problem", str(two_steps()))


def test_a_schedule_prints_as_a_program(golden):
    golden("two_steps/schedule", str(SCHEDULE))


def test_a_plan_prints_as_a_program(golden):
    plan = make_plan(two_steps(), SCHEDULE, solver="greedy", budget_bytes=9000)
    assert (plan.kept, plan.kept_codes, plan.recomputed, plan.kept_bytes) == ((3,), ((2, 0),), (0,), 4 + 1024)
    golden("two_steps/plan", str(plan))
    golden("two_steps/all_instructions", plan.schedule_text())


def test_nothing_is_kept_in_codes_that_are_freed_in_forward():
    forward = (Run(0), Run(1), Run(2), Encode(2, 0), FreeCode(2, 0))
    schedule = Schedule((*forward, Run(3), Free(1), Free(2)), (Segment(0, 0, 5), Segment(0, 5, 8)))
    plan = make_plan(two_steps(), schedule, solver="by hand")
    assert (plan.kept, plan.kept_codes, plan.recomputed) == ((1, 2, 3), (), ())


def hostile(problem: Problem) -> Problem:
    """Return the problem with names that are long, or that would move a cursor."""
    ops = [replace(op, name=f"\x1b[2J{op.name}", module=f"h.{n}.\n{'deep.' * 30}") for n, op in enumerate(problem.ops)]
    values = [replace(value, name=value.name * 20 + "\u202e") for value in problem.values]
    return replace(problem, ops=tuple(ops), values=tuple(values), name="\x1b[2J" * 30, notes=("y" * 300, "\x07") * 20)


@pytest.mark.parametrize("case", ["plain", "hostile", "one block"])
def test_a_plan_fits_one_screen_and_names_what_is_asked_first(case):
    problem = llama(layers=12) if case == "plain" else hostile(llama(layers=6))
    problem = chain_of_blocks(3, blocks=1) if case == "one block" else problem
    budget_bytes = baseline_of(problem).peak_bytes * (8 if case != "one block" else 10) // 10
    notes = tuple(f"a remark on solver {n}" for n in range(12))
    plan = make_plan(
        problem, Greedy().schedule(problem, budget_bytes), solver="greedy", budget_bytes=budget_bytes, notes=notes
    )
    lines = str(plan).split("\n")
    assert len(lines) <= 45 and max(map(len, lines)) <= 100 and all(map(str.isprintable, lines))
    asked = ("budget", "peak", "everything kept", "extra time", "proven", "kept", "recomputed", "encoded", "resident")
    names = [line[2:17].strip() for line in lines]
    assert [name for name in names if name in asked] == list(asked)
    assert f"> {plan.peak_instruction} " in str(plan)


def test_all_instructions_are_printed_with_the_bytes_alive():
    problem = hostile(llama(layers=6))
    plan = make_plan(problem, Greedy().schedule(problem, baseline_of(problem).peak_bytes * 7 // 10), solver="greedy")
    lines = plan.schedule_text().split("\n")
    assert all(map(str.isprintable, lines)) and max(map(len, lines)) <= 240
    instructions = [line for line in lines[1:] if not line.endswith(":")]
    assert len(lines) == 1 + len(plan.schedule.segments) + len(instructions)
    for line, live_bytes in zip(instructions, plan.live_bytes, strict=True):
        assert line[19:29].strip() == format_bytes(live_bytes)


def test_the_peak_of_an_optimizer_lies_outside_of_the_schedule():
    plan = make_plan(replace(two_steps(), floor_bytes=10**6), SCHEDULE, solver="by hand")
    assert "peak outside of forward and backward" in str(plan) and "976.6 KiB" in str(plan)


def test_representations_leave_out_what_is_long():
    problem = llama(layers=12)
    plan = make_plan(problem, Greedy().schedule(problem, 10**12), solver="greedy")
    assert max(len(repr(part)) for part in (problem, plan.schedule, plan)) < 1000
