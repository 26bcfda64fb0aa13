"""The simulator counts the bytes alive and refuses invalid schedules."""

import pytest
from lowtide.solvers.problem.errors import ScheduleError
from lowtide.solvers.problem.liveness import schedule_of, trace_order
from lowtide.solvers.problem.problem import Op, Problem, Value
from lowtide.solvers.problem.schedule import Forget, Free, Record, Run, Schedule, Segment
from lowtide.solvers.problem.simulate import make_plan, simulate
from made_problems import chain_of_blocks


def two_steps(**flags) -> Problem:
    """weight -> a (10 bytes) -> loss (1, held) ; backward reads a and makes a gradient (held)."""
    values = (
        Value("weight", 100, resident=True),
        Value("a", 10),
        Value("loss", 1, held=True),
        Value("gradient", 5, held=True),
    )
    ops = (
        Op("make_a", (0,), (1,), 2.0, 14, 0, **flags),
        Op("make_loss", (1,), (2,), 1.0, 1, 0),
        Op("make_gradient", (1, 2), (3,), 4.0, 7, 0, repeatable=False),
    )
    return Problem(ops, values, 2, (0,), resident_bytes=100, state_bytes=3, floor_bytes=50)


def written(forward, backward) -> Schedule:
    """Return a schedule of one block."""
    instructions = (*forward, *backward)
    return Schedule(instructions, (Segment(0, 0, len(forward)), Segment(0, len(forward), len(instructions))))


def test_live_bytes_and_peak_count_everything_resident_and_working_bytes_included():
    timeline = simulate(two_steps(), written([Run(0), Run(1)], [Run(2), Free(1)]))
    assert timeline.live_bytes == (110, 111, 116, 106)
    assert (timeline.peak_bytes, timeline.peak_instruction) == (118, 2)
    assert (timeline.forward_seconds, timeline.seconds) == (3.0, 7.0)


def test_a_second_run_takes_its_time_and_room_and_leaves_one_copy():
    timeline = simulate(two_steps(), written([Run(0), Run(1)], [Run(0), Run(2)]))
    assert timeline.live_bytes == (110, 111, 111, 116)
    assert timeline.peak_bytes == 111 + 14
    assert timeline.seconds == 9.0


def test_a_recorded_state_takes_room_until_forgotten_and_again_while_it_is_replayed():
    instructions = ([Record(0), Run(0), Run(1), Free(1)], [Run(0), Forget(0), Run(2)])
    timeline = simulate(two_steps(random=True), written(*instructions))
    assert timeline.live_bytes == (103, 113, 114, 104, 114, 111, 116)
    assert timeline.peak_bytes == 104 + 14 + 3


def test_a_plan_never_peaks_below_the_floor_of_its_problem():
    problem = two_steps()
    plan = make_plan(problem, schedule_of(problem, trace_order(problem)), solver="keep_all")
    assert (plan.peak_bytes, plan.baseline_peak_bytes) == (118, 118)
    high = Problem(problem.ops, problem.values, 2, (0,), 100, 3, floor_bytes=500)
    assert make_plan(high, plan.schedule, solver="keep_all").peak_bytes == 500


REFUSED = {
    "make_loss reads a, which is not alive": ([Run(1)], []),
    "instruction 1 make_loss reads a": ([Run(0), Free(1), Run(1)], [Run(2)]),
    "frees a, which is not alive": ([Free(1)], []),
    "frees weight, which is resident": ([Free(0)], []),
    "frees loss, which is held": ([Run(0), Run(1), Free(2)], [Run(2)]),
    "runs make_gradient outside backward": ([Run(0), Run(1), Run(2)], []),
    "runs make_gradient a second time, which is not repeatable": ([Run(0), Run(1)], [Run(2), Run(2)]),
    "loss is held but not there by the end of forward": ([Run(0)], [Run(1), Run(2)]),
    "make_gradient has not run by the end of the step": ([Run(0), Run(1)], []),
    "records a state for make_a, which must be random": ([Record(0), Run(0), Run(1)], [Run(2)]),
    "forgets the state of make_a, which is not recorded": ([Run(0), Run(1)], [Forget(0), Run(2)]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_it_refuses_what_cannot_be_carried_out_and_says_why(reason):
    problem = two_steps()
    at = " ".join(reason.split()[2:]) if reason.startswith("instruction") else reason
    with pytest.raises(ScheduleError, match=at):
        simulate(problem, written(*REFUSED[reason]))


def test_an_error_names_the_instruction():
    with pytest.raises(ScheduleError, match="instruction 2 make_loss reads a, which is not alive"):
        simulate(two_steps(), written([Run(0), Free(1), Run(1)], [Run(2)]))


def test_it_refuses_a_second_draw_without_the_state_of_the_first():
    problem = two_steps(random=True)
    with pytest.raises(ScheduleError, match="make_a a second time without its generator state recorded"):
        simulate(problem, written([Run(0), Run(1)], [Run(0), Run(2)]))


def test_it_refuses_a_state_recorded_too_early():
    problem = two_steps(random=True)
    with pytest.raises(ScheduleError, match="run first right after it"):
        simulate(problem, written([Record(0), Record(0), Run(0), Run(1)], [Run(2)]))


def test_it_refuses_draws_out_of_trace_order():
    problem = chain_of_blocks(3, blocks=2, randomness=0.9)
    order = [list(segment) for segment in trace_order(problem)]
    draws = [op for op in order[1] if problem.ops[op].random]
    assert len(draws) > 1
    order[1].remove(draws[0])
    order[1].append(draws[0])
    schedule = Schedule(tuple(Run(op) for segment in order for op in segment), _segments([len(s) for s in order]))
    with pytest.raises(ScheduleError, match=r"out of trace order|not alive"):
        simulate(problem, schedule)


def test_it_refuses_segments_that_leave_instructions_out():
    problem, schedule = two_steps(), written([Run(0), Run(1)], [Run(2)])
    with pytest.raises(ScheduleError, match="segments end at 2, the instructions at 3"):
        simulate(problem, Schedule(schedule.instructions, (Segment(0, 0, 1), Segment(0, 1, 2))))
    with pytest.raises(ScheduleError, match="segments must be forward of blocks"):
        simulate(problem, Schedule(schedule.instructions, (Segment(0, 0, 3),)))


def _segments(lengths: list[int]) -> tuple[Segment, ...]:
    blocks = len(lengths) // 2
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    order = [*range(blocks), *reversed(range(blocks))]
    return tuple(Segment(b, e - n, e) for b, e, n in zip(order, ends, lengths, strict=True))
