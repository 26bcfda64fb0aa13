"""Run orders become schedules with frees as early as possible, and states recorded only where they are needed."""

from lowtide.solvers.blocks.rematerialize import Lifetime, run_order
from lowtide.solvers.problem.liveness import schedule_of, trace_order
from lowtide.solvers.problem.schedule import Forget, Free, Record, Run
from lowtide.solvers.problem.simulate import simulate
from made_problems import Draft, chain_of_blocks


def small(random=False, sizes=(10,)):
    """embed -> many (`sizes`) -> loss; two operations of backward read it."""
    draft = Draft()
    source = draft.value("source", 1, resident=True)
    many = draft.op("many", [source], sizes, 2.0, 0, random=random)
    draft.op("loss", [many[0]], [1], 1.0, 0, held=(0,))
    draft.forward_length = 2
    first = draft.op("back1", [many[0]], [3], 1.0, 0, repeatable=False)
    draft.op("back2", [many[-1], *first], [3], 1.0, 0, repeatable=False, held=(0,))
    return draft.problem([0], state_bytes=7)


def test_a_value_is_freed_right_after_its_last_reader():
    schedule = schedule_of(small(), trace_order(small()))
    assert schedule.instructions == (Run(0), Run(1), Run(2), Run(3), Free(1), Free(3))
    assert schedule.forward_length == 2


def test_a_dropped_value_is_freed_in_forward_and_its_maker_runs_again_just_before_its_reader():
    problem = small()
    lifetimes = [Lifetime.SEGMENT] * len(problem.values)
    schedule = schedule_of(problem, run_order(problem, lifetimes))
    assert schedule.instructions == (Run(0), Run(1), Free(1), Run(0), Run(2), Run(3), Free(1), Free(3))


def test_a_momentary_value_is_recomputed_for_every_reader():
    problem = small()
    lifetimes = [Lifetime.MOMENT] * len(problem.values)
    runs = run_order(problem, lifetimes)
    assert runs == ((0, 1), (0, 2, 0, 3))


def test_a_state_is_recorded_only_for_draws_that_are_replayed_and_forgotten_after_the_last():
    problem = small(random=True)
    assert not any(isinstance(i, Record) for i in schedule_of(problem, trace_order(problem)).instructions)
    moment = schedule_of(problem, run_order(problem, [Lifetime.MOMENT] * len(problem.values)))
    assert moment.instructions[:4] == (Record(0), Run(0), Run(1), Free(1))
    assert moment.instructions[4:] == (Run(0), Run(2), Free(1), Run(0), Forget(0), Run(3), Free(1), Free(3))


def test_of_several_outputs_the_one_still_alive_is_not_lost_when_another_is_recomputed():
    problem = small(sizes=(10, 20))
    lifetimes = [0] * len(problem.values)
    lifetimes[2] = Lifetime.MOMENT
    schedule = schedule_of(problem, run_order(problem, lifetimes))
    assert simulate(problem, schedule).seconds == problem.seconds + 2.0


def test_what_only_backward_needs_is_made_there_for_the_first_time_at_no_cost():
    draft = Draft()
    source = draft.value("source", 1, resident=True)
    mask = draft.op("mask", [source], [50], 2.0, 0)
    draft.op("loss", [source], [1], 1.0, 0, held=(0,))
    draft.forward_length = 2
    draft.op("back", mask, [3], 1.0, 0, repeatable=False, held=(0,))
    problem = draft.problem([0])
    order = run_order(problem, [Lifetime.BACKWARD] * len(problem.values))
    assert order == ((1,), (0, 2))


def test_keeping_everything_is_the_trace():
    for seed in range(20):
        problem = chain_of_blocks(seed)
        assert run_order(problem, [0] * len(problem.values)) == trace_order(problem)
