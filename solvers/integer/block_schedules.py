"""Schedules of a block by integer programming: the fastest one under limits, and those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ..blocks.block_schedules import BlockSchedule, unbeaten
from ..problem.problem import Problem
from .answer import Effort
from .block_program import BlockProgram, Proven
from .block_stages import stages_of_block
from .stages import choices

# Limits to try, the most promising first: shares of the most bytes kept, and positions among known backward peaks.
_CANDIDATE_LIMITS = (
    *((0.1, 0.3), (0.4, 0.0), (0.1, 0.0), (0.4, 0.3), (0.1, 0.6), (0.75, 0.3), (0.75, 0.0), (0.4, 0.6)),
    *((0.0, 0.3), (0.0, 0.0), (0.0, 0.6), (0.1, 0.1), (0.4, 0.1), (0.75, 0.6), (0.25, 0.3), (0.25, 0.0)),
)
_WORK = 12_000_000_000  # choices cubed, times limits: about two seconds
_GAP = 0.005  # of the time of the block's forward: measured times distinguish no smaller differences


def fastest_schedule(
    problem: Problem,
    block: int,
    kept_bytes: int,
    backward_peak_bytes: int,
    start: BlockSchedule | None = None,
    node_limit: int = 10_000,
) -> Proven:
    """Return the fastest schedule of a block with kept_bytes and backward_peak_bytes limited, in bytes.

    start: a schedule to begin with.
    node_limit: nodes of branch and bound, after which the best schedule so far is returned with the bound proven by
        then; 0 searches near the relaxation only.
    """
    return BlockProgram(problem, block).fastest(kept_bytes, backward_peak_bytes, start, Effort(node_limit))


def schedules_of(
    problem: Problem, block: int, known: Sequence[BlockSchedule], work: int = _WORK
) -> tuple[BlockSchedule, ...]:
    """Return schedules of a block that no other beats in every respect, searched from the known ones.

    The limits on kept bytes and the peak of backward are fixed candidates between those of known schedules. Only as
    many are tried as `work` allows, none for very large blocks. Each search begins with the best schedule so far, and
    keeps it where the relaxation proves that little can be gained. A pair of limits is skipped if the schedule for
    wider limits also fits it.
    """
    cut = stages_of_block(problem, block).stages
    limits = _limits(known)[: work // max(choices(cut), 1) ** 3]
    if not limits:
        return unbeaten(known)
    program = BlockProgram(problem, block)
    gap = _GAP * sum(problem.ops[index].seconds for index in program.block.forward)
    schedules = list(known)
    answers: list[tuple[int, int, Proven]] = []
    for kept_bytes, backward_peak_bytes in limits:
        if any(_answers(*answer, kept_bytes, backward_peak_bytes) for answer in answers):
            continue
        eligible = [
            schedule
            for schedule in schedules
            if schedule.kept_bytes <= kept_bytes and schedule.backward_peak_bytes <= backward_peak_bytes
        ]
        start = min(eligible, key=lambda schedule: schedule.seconds, default=None)
        proven = program.fastest(kept_bytes, backward_peak_bytes, start, Effort(node_limit=0, gap=gap))
        answers.append((kept_bytes, backward_peak_bytes, proven))
        if proven.schedule is not None:
            schedules.append(proven.schedule)
    return unbeaten(schedules)


def _limits(known: Sequence[BlockSchedule]) -> list[tuple[int, int]]:
    """Return pairs of limits on kept bytes and the peak of backward."""
    if not known:
        return []
    most = max(schedule.kept_bytes for schedule in known)
    backward_peaks = sorted({schedule.backward_peak_bytes for schedule in known})
    pairs = [
        (int(most * share), backward_peaks[int((len(backward_peaks) - 1) * place)])
        for share, place in _CANDIDATE_LIMITS
    ]
    return list(dict.fromkeys(pairs))


def _answers(
    kept_limit: int, backward_peak_limit: int, proven: Proven, kept_bytes: int, backward_peak_bytes: int
) -> bool:
    """Return whether the result proven for wider limits also holds for these limits."""
    if kept_bytes > kept_limit or backward_peak_bytes > backward_peak_limit:
        return False
    schedule = proven.schedule
    if schedule is None:
        return proven.least_seconds == inf
    return schedule.kept_bytes <= kept_bytes and schedule.backward_peak_bytes <= backward_peak_bytes
