"""Decides whether lowtide is better than each peer: at the peer's peak, and at the peer's operations or time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.frontier.row import LOWTIDE, Row, paired


@dataclass(frozen=True)
class Domination:
    """A peer compared with lowtide.

    peer_extra_flops_share: the peer's own extra operations.
    extra_flops_share: lowtide's within the peer's peak; None if it has no plan there.
    time_ratio, time_ratio_quartiles: lowtide's time there divided by the peer's, over rounds.
    lowest_peak_bytes: the lowest measured peak of lowtide's with no more operations than the peer (planned with costs
        "measured": in no more time, by medians); None if there is none.
    verdict: by operations, or by time, as planned.
    is_peer_wrong: whether the peer's gradients differ from eager's by more than rounding.
    """

    peer: str
    peer_peak_bytes: int
    peer_extra_flops_share: float
    extra_flops_share: float | None
    time_ratio: float | None
    time_ratio_quartiles: tuple[float, float] | None
    lowest_peak_bytes: int | None
    verdict: str
    is_peer_wrong: bool


def dominations(rows: Sequence[Row], costs: str) -> list[Domination]:
    """Compare lowtide with each peer that ran, in the order of the table."""
    ours = [row for row in rows if row.kind == LOWTIDE and row.failure is None and row.peak_bytes is not None]
    peers = [row for row in rows if row.kind != LOWTIDE and row.failure is None]
    return [_domination(peer, ours, costs) for peer in peers]


def _domination(peer: Row, ours: Sequence[Row], costs: str) -> Domination:
    assert peer.peak_bytes is not None and peer.extra_flops_share is not None
    counterpart = next((row for row in ours if peer.name in row.budget_of), None)
    if counterpart is not None and (counterpart.peak_bytes or 0) > peer.peak_bytes:
        counterpart = None
    ratio = (
        paired(counterpart, peer) if counterpart is not None and counterpart.seconds and peer.seconds else (None, None)
    )
    peaks = [row.peak_bytes for row in ours if _no_dearer(row, peer, costs) and row.peak_bytes is not None]
    lowest_bytes = min(peaks, default=None)
    verdict = _by_flops(peer, counterpart, lowest_bytes) if costs == "flops" else _by_time(peer, ratio[1], lowest_bytes)
    return Domination(
        peer.name,
        peer.peak_bytes,
        peer.extra_flops_share,
        None if counterpart is None else counterpart.extra_flops_share,
        *ratio,
        lowest_bytes,
        verdict,
        peer.is_wrong,
    )


def _no_dearer(row: Row, peer: Row, costs: str) -> bool:
    if costs == "flops":
        return row.total_flops <= peer.total_flops
    return None not in (row.time_ratio, peer.time_ratio) and row.time_ratio <= peer.time_ratio  # pyright: ignore


def _by_flops(peer: Row, counterpart: Row | None, lowest_bytes: int | None) -> str:
    """Return the verdict by operations.

    better: strictly fewer operations (none where the peer has none) at its peak, and a lower peak at its operations.
    equal: neither more operations nor a higher peak.
    """
    assert peer.peak_bytes is not None and peer.extra_flops_share is not None
    if counterpart is None or lowest_bytes is None:
        return "WORSE"
    extra = counterpart.total_flops - peer.total_flops
    fewer = extra < 0 or (extra == 0 and peer.extra_flops_share <= 0)
    if fewer and lowest_bytes < peer.peak_bytes:
        return "better"
    return "equal" if extra <= 0 and lowest_bytes <= peer.peak_bytes else "WORSE"


def _by_time(peer: Row, quartiles: tuple[float, float] | None, lowest_bytes: int | None) -> str:
    """Return the verdict by time.

    better: less time in three quarters of the rounds, and a lower peak at no more time.
    WORSE: more time in three quarters of the rounds.
    """
    if quartiles is None or quartiles[0] > 1:
        return "WORSE"
    lower = lowest_bytes is not None and lowest_bytes < (peer.peak_bytes or 0)
    return "better" if quartiles[1] < 1 and lower else "equal"


def lowtide_failures(rows: Sequence[Row]) -> list[str]:
    """List the failures of plans: errors, bits unlike eager's, peaks unlike the prediction or above the budget."""
    failures = []
    for row in rows:
        if row.kind != LOWTIDE or row.same_plan_as is not None:
            continue
        if row.failure is not None:
            failures.append(f"{row.name}: {row.failure}")
            continue
        if row.gradient_error != 0:
            failures.append(f"{row.name}: gradients differ by {row.gradient_error:.2g}")
        if not row.loss_equal:
            failures.append(f"{row.name}: the loss differs")
        if not row.buffers_equal:
            failures.append(f"{row.name}: buffers differ")
        if row.peak_bytes != row.predicted_peak_bytes:
            failures.append(f"{row.name}: {row.predicted_peak_bytes} bytes predicted, {row.peak_bytes} measured")
        if (row.peak_bytes or 0) > (row.budget_bytes or 0):
            failures.append(f"{row.name}: {row.peak_bytes} bytes measured, above the budget of {row.budget_bytes}")
    return failures
