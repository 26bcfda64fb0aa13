"""Codes in schedules: their simulated bytes and seconds, the refused schedules, and their storage on disk."""

import json
from dataclasses import replace

import pytest
from lowtide.solvers.candidates.candidate_cache import cached_schedule, problem_digest
from lowtide.solvers.disk_cache import DiskCache
from lowtide.solvers.encoding.refine_precision import with_lower_error
from lowtide.solvers.problem.errors import ScheduleError
from lowtide.solvers.problem.problem import EncodingOption, Op, Problem, Value
from lowtide.solvers.problem.problem_diff import difference_of
from lowtide.solvers.problem.problem_file import problem_of
from lowtide.solvers.problem.schedule import Decode, Encode, Free, FreeCode, Record, Run, Schedule, Segment
from lowtide.solvers.problem.simulate import make_plan, simulate

HALF = EncodingOption("half", 5, 0.5, 0.25, 6, 12, "rounding", 0.125)
BITS = EncodingOption("bits", 1, 2.0, 1.0, 3, 10, "approximate", 0.5)
LEVELS = EncodingOption("levels", 3, 0.5, 0.0, 3, 2, "approximate", 0.5, read_itself_bytes=2)


def two_steps() -> Problem:
    """weight -> a (10 bytes, two encodings) -> loss (1, held) ; backward reads a and makes a gradient (held)."""
    values = (
        Value("weight", 100, resident=True),
        Value("a", 10, encodings=(HALF, BITS)),
        Value("loss", 1, held=True),
        Value("gradient", 5, held=True),
    )
    ops = (
        Op("make_a", (0,), (1,), 2.0, 14, 0),
        Op("make_loss", (1,), (2,), 1.0, 1, 0),
        Op("make_gradient", (1, 2), (3,), 4.0, 7, 0, repeatable=False),
    )
    return Problem(ops, values, 2, (0,), resident_bytes=100, error_budget=1.0)


def written(forward, backward) -> Schedule:
    """Return a schedule of one block."""
    instructions = (*forward, *backward)
    return Schedule(instructions, (Segment(0, 0, len(forward)), Segment(0, len(forward), len(instructions))))


ENCODED = written(
    [Run(0), Run(1), Encode(1, 0), Free(1)],
    [Decode(1, 0), FreeCode(1, 0), Run(2), Free(1)],
)


def test_a_code_takes_its_bytes_from_encoding_to_its_end_and_codecs_their_scratch_and_seconds():
    timeline = simulate(two_steps(), ENCODED)
    assert timeline.live_bytes == (110, 111, 116, 106, 116, 111, 116, 106)
    assert (timeline.peak_bytes, timeline.peak_instruction) == (106 + 12, 4)
    assert (timeline.forward_seconds, timeline.seconds) == (3.5, 7.75)


def reading_levels() -> Problem:
    """Return `two_steps` with a code from which backward computes directly."""
    problem = two_steps()
    values = [replace(value, encodings=(LEVELS,)) if value.encodings else value for value in problem.values]
    return replace(problem, values=tuple(values))


def test_a_code_that_is_read_itself_takes_its_own_bytes_until_it_has_been_read():
    backward = [Decode(1, 0), Run(2), Free(1), FreeCode(1, 0)]
    timeline = simulate(reading_levels(), written([Run(0), Run(1), Encode(1, 0), Free(1)], backward))
    assert timeline.live_bytes == (110, 111, 114, 104, 106, 111, 109, 106)
    assert timeline.moment_bytes == (114, 111, 114, 114, 106, 113, 111, 109)
    assert timeline.seconds == 7.5


def test_an_older_problem_is_another_one_where_codes_are_read_themselves_now_and_so_it_is_said():
    values = list(reading_levels().values)
    values[1] = replace(values[1], encodings=(replace(LEVELS, read_itself_bytes=None),))
    decoded = replace(two_steps(), values=tuple(values))
    assert problem_of(json.loads(reading_levels().to_json())) == reading_levels()
    difference = difference_of(reading_levels(), decoded)
    assert (
        difference == "what make_a makes may be kept in 1 codes (levels, read as it is) here, in 1 codes (levels) there"
    )


def test_a_value_may_be_encoded_by_two_encodings_and_again_after_its_code_is_gone():
    forward = [Run(0), Encode(1, 0), Encode(1, 1), FreeCode(1, 0), Encode(1, 0), Run(1), Free(1), FreeCode(1, 0)]
    timeline = simulate(two_steps(), written(forward, [Decode(1, 1), Run(2)]))
    assert timeline.live_bytes == (110, 115, 116, 111, 116, 117, 107, 102, 112, 117)
    assert timeline.seconds == 7 + 0.5 + 2 + 0.5 + 1


def test_a_plan_reports_what_is_encoded_and_its_summed_error():
    plan = make_plan(two_steps(), ENCODED, solver="by hand")
    assert (plan.encoded, plan.original_bytes, plan.packed_bytes, plan.encoding_error) == (((1, 0),), 10, 5, 0.125)
    kept = make_plan(two_steps(), written([Run(0), Run(1)], [Run(2)]), solver="by hand")
    assert (kept.encoded, kept.original_bytes, kept.packed_bytes, kept.encoding_error) == ((), 0, 0, 0.0)


@pytest.mark.parametrize(
    ("reason", "forward", "backward"),
    [
        ("instruction 0 encodes a, which is not alive", [Encode(1, 0), Run(0), Run(1)], [Run(2)]),
        ("instruction 2 encodes a, which is not alive", [Run(0), Free(1), Encode(1, 0)], []),
        ("encodes a, whose code by half is alive already", [Run(0), Encode(1, 0), Encode(1, 0)], []),
        ("names encoding 2 of a, which has 2", [Run(0), Encode(1, 2)], []),
        ("names encoding -1 of a, which has 2", [Run(0), Encode(1, -1)], []),
        ("names encoding 0 of loss, which has 0", [Run(0), Run(1), Encode(2, 0)], []),
        ("decodes a, whose code by bits is not alive", [Run(0), Encode(1, 0), Free(1), Decode(1, 1)], []),
        (
            "decodes a, whose code by half is not alive",
            [Run(0), Encode(1, 0), Free(1), FreeCode(1, 0), Decode(1, 0)],
            [],
        ),
        ("decodes a, which is alive already", [Run(0), Encode(1, 0), Decode(1, 0)], []),
        ("frees the code of a by half, which is not alive", [Run(0), FreeCode(1, 0)], []),
        ("frees the code of a by half, which is not", [Run(0), Encode(1, 0), FreeCode(1, 0), FreeCode(1, 0)], []),
        ("make_loss reads a, which is not alive", [Run(0), Encode(1, 0), Free(1), Run(1)], []),
        ("make_gradient reads a, which is not alive", [Run(0), Run(1), Encode(1, 0), Free(1)], [Run(2)]),
    ],
)
def test_it_refuses_codes_that_cannot_be_made_or_read_and_says_why(reason, forward, backward):
    with pytest.raises(ScheduleError, match=reason):
        simulate(two_steps(), written(forward, backward))


@pytest.mark.parametrize(
    ("reason", "backward"),
    [
        ("make_gradient reads the code of a by levels, which is not alive", [Decode(1, 0), FreeCode(1, 0), Run(2)]),
        ("make_loss of forward reads a, which is approximate", [Decode(1, 0), Run(1), Run(2)]),
    ],
)
def test_what_reads_a_code_itself_is_backward_and_finds_it_alive(reason, backward):
    with pytest.raises(ScheduleError, match=reason):
        simulate(reading_levels(), written([Run(0), Run(1), Encode(1, 0), Free(1)], backward))


def test_codes_of_lower_error_are_read_as_those_before():
    finer = (replace(BITS, name="finer", size_bytes=2, error=0.3), replace(LEVELS, name="finest", error=0.01))
    values = list(two_steps().values)
    values[1] = replace(values[1], encodings=(BITS, *finer))
    problem = replace(two_steps(), values=tuple(values))
    schedule = written(ENCODED.instructions[:4], ENCODED.instructions[4:])
    refined = with_lower_error(problem, schedule, 200)
    assert refined.encoded == ((1, 1),)


def test_a_schedule_with_codes_goes_through_the_cache_as_it_is(tmp_path):
    problem, cache = two_steps(), DiskCache(tmp_path)
    schedule = Schedule((Record(0), *ENCODED.instructions), ENCODED.segments)
    assert cached_schedule(cache, problem, "solver", 7, lambda: schedule) == schedule
    assert cached_schedule(cache, problem, "solver", 7, lambda: ENCODED) == schedule


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 9} for name in ("size_bytes", "encode_seconds", "decode_seconds")),
        *({name: 99} for name in ("encode_working_bytes", "decode_working_bytes")),
        {"fidelity": "approximate"},
        {"error": 0.5},
        {"read_itself_bytes": 0},
    ],
)
def test_a_problem_with_another_encoding_has_another_digest(changes):
    problem = two_steps()
    values = list(problem.values)
    values[1] = replace(values[1], encodings=(replace(HALF, **changes), BITS))
    assert problem_digest(replace(problem, values=tuple(values))) != problem_digest(problem)
