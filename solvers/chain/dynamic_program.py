"""The tables of Rotor's dynamic program: the least seconds of every stretch of a chain for every number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np

from .chain import Chain, Link, LinkSchedule, storing


@dataclass(frozen=True)
class Keep:
    """Run link `link` by its schedule number `schedule`, then the links after it; its backward comes after theirs."""

    link: int
    schedule: int


@dataclass(frozen=True)
class ForwardSweep:
    """Run the forward of links first..stop-1, then links from `stop` on with their backward, then first..stop-1 again.

    level: the schedules whose values the first run keeps in addition to the first input; None to keep nothing.
    """

    first: int
    stop: int
    level: int | None


@dataclass(frozen=True)
class NestedSchedule:
    """A nested schedule of links first..last: one decision, and the nested schedules of the links it leaves.

    level: of the earlier sweep over these links that has kept values, None without one.
    after: the nested schedule of the links after the decision, None if none are left.
    again: of a `ForwardSweep`, the nested schedule of its own links.
    """

    first: int
    last: int
    level: int | None
    decision: Keep | ForwardSweep
    after: NestedSchedule | None
    again: NestedSchedule | None


@dataclass(frozen=True, eq=False)
class _Branches:
    """Decisions at the beginning of a stretch, one per entry of the arrays.

    seconds: of the decision itself.
    slots: the fewest in which the decision and the stretches it leaves fit.
    least: the seconds with all slots.
    after, again: (tables, rows, shifts), None if nothing is left. The entry's table is that row of the values, with
        its slots counted from the shift on.
    """

    decision: Callable[[int], Keep | ForwardSweep]
    seconds: np.ndarray
    slots: np.ndarray
    least: np.ndarray
    after: tuple[Tables, np.ndarray, np.ndarray] | None
    again: tuple[Tables, np.ndarray, np.ndarray] | None

    @staticmethod
    def of(decision, seconds, slots, after, again) -> _Branches:
        """Build branches, with the needs of their parts added to the slots and the seconds."""
        least = seconds.copy()
        for tables, rows, shifts in (part for part in (after, again) if part is not None):
            slots = np.maximum(slots, shifts + tables.lowest[rows])
            least += tables.values[rows, -1]
        return _Branches(decision, seconds, np.maximum(slots, 0), least, after, again)

    def lower(self, best: np.ndarray) -> None:
        """Lower the best seconds wherever a decision is better."""
        end = len(best)
        fits = np.flatnonzero(self.slots < end)
        # Tables never rise: an entry whose least is no better than the best where it begins to fit is nowhere better.
        for entry in fits[self.least[fits] < best[self.slots[fits]]]:
            start = int(self.slots[entry])
            if self.least[entry] >= best[start]:
                continue
            seconds = self.seconds[entry]
            for tables, rows, shifts in self._parts():
                shift = int(shifts[entry])
                seconds = seconds + tables.values[rows[entry], start - shift : end - shift]
            np.minimum(best[start:], seconds, out=best[start:])

    def _parts(self) -> Iterator[tuple[Tables, np.ndarray, np.ndarray]]:
        return (part for part in (self.after, self.again) if part is not None)

    def at(self, slot: int) -> np.ndarray:
        """Return the seconds of each decision in this number of slots."""
        seconds = np.where(self.slots <= slot, self.seconds, inf)
        for tables, rows, shifts in self._parts():
            seconds = seconds + tables.values[rows, np.maximum(slot - shifts, 0)]
        return seconds


_Part = tuple["Tables", int, int, int]  # first, last, slots


class Tables:
    """The least extra seconds of every stretch of a chain, for every number of bytes.

    C(i, j, m), for links i..j whose first input is there and m bytes next to it, is the least of (Beaumont et al. 2019,
    arXiv 1911.13214, theorem 1, with several schedules of a link as in Rockmate, arXiv 2307.01236, section 3.2)

        min over schedules s of link i:  seconds_s + C(i+1, j, m - kept_s - input_{i+1})   if base_i + peak_s <= m
        min over i < k <= j:             seconds of sweeping i..k-1
                                         + C(k, j, m - input_k) + C(i, k-1, m)             if the sweep fits in m

    and C over no links is 0. Where j is not the last link of the chain, the forward of i..j has run before. It then
    makes only the values still required, and the bytes alive meanwhile are those when the backward of j begins.

    A sweep may also keep some of the values that its links make, so that the next sweep costs less. For layers of a
    convolution network these are the convolutions' outputs: recomputing normalization, activation and sum costs little.
    It keeps the values of the schedules of one `level`, one per kind of link. C(i, k-1, ·) is then that of the chain in
    which these are stored already (`storing`), and their bytes are taken from m.

    Bytes are counted in slots of `slot_bytes` above `base_bytes` of link j, rounded to the nearest slot. The result is
    a nested schedule, whose exact peak the simulator gives. Stretches of equal kinds of links with equal differences
    between their bases share one table, so a run of n equal links has n tables, not n². Cost: tables × (schedules +
    links × levels) × slots.
    """

    def __init__(
        self,
        chain: Chain,
        slot_bytes: float,
        slots: int,
        levels: Sequence[Sequence[int]] = (),
        level: int | None = None,
        extra_slots: int = 0,
    ) -> None:
        """Fill the tables.

        levels: for each level the number of every link's schedule.
        level: the level whose values are stored in this chain already.
        extra_slots: the slots beyond `slots` that are looked up.
        """
        self.chain, self.levels, self.level = chain, levels, level
        self.slot_bytes, self.slots = slot_bytes, slots
        links = self.links = chain.links
        self.schedules = {link.kind: _columns(link.schedules, LinkSchedule) for link in links}
        self.columns = _columns(links, Link)
        level_schedules = [
            [link.schedules[schedule] for link, schedule in zip(links, chosen, strict=True)] for chosen in levels
        ]
        self.level_columns = [_columns(schedules, LinkSchedule) for schedules in level_schedules]
        self._known_branches: dict[tuple[int, int], tuple[_Branches, ...]] = {}  # filled while tracing
        self.rows = rows_of(links, level is None)
        # a table that another one looks up beyond its end is continued with its last entry
        base_bytes = self.columns["base_bytes"]
        extra_slots = max(extra_slots, min(int(self._slots(base_bytes.max() - base_bytes.min())) + 1, slots))
        self.stored = [
            Tables(storing(chain, chosen), slot_bytes, slots, level=number, extra_slots=extra_slots)
            for number, chosen in enumerate(levels)
        ]
        self.values = np.full((self.rows.max() + 1, slots + extra_slots), inf)
        self.lowest = np.full(len(self.values), -1)
        for length in range(len(links)):
            for first in range(len(links) - length):
                row = self.rows[first, first + length]
                if self.lowest[row] < 0:
                    best = self.values[row, :slots]
                    for branches in self._branches(first, first + length):
                        branches.lower(best)
                    self.values[row, slots:] = best[-1]
                    self.lowest[row] = np.searchsorted(-best, -inf, side="right")

    def nested_schedule(self, budget_bytes: float) -> NestedSchedule | None:
        """Return the best nested schedule of the whole chain under a budget of all bytes; None if none fits."""
        last = len(self.links) - 1
        slot = min(int(self._slots(budget_bytes - self.links[last].base_bytes)), self.slots - 1)
        if slot < self.lowest[self.rows[0, last]]:
            return None
        return self._trace(last, slot)

    def steps(self) -> list[tuple[float, float]]:
        """Return (budget in bytes, extra seconds) wherever more bytes make the whole chain faster."""
        table, base_bytes = self.values[self.rows[0, -1], : self.slots], self.links[-1].base_bytes
        falls = np.flatnonzero(np.append(table[:1] < inf, table[1:] < table[:-1]))
        return [(base_bytes + float(slot) * self.slot_bytes, float(table[slot])) for slot in falls]

    def _trace(self, last: int, slot: int) -> NestedSchedule:
        """Return the nested schedule of links 0..last behind a table's entry, without recursion."""
        parts: list[_Part] = [(self, 0, last, slot)]
        decided: list[tuple[Keep | ForwardSweep, int, int]] = []  # with the numbers of the parts left, 0 for none
        for tables, first, last, slot in parts:  # parts are added meanwhile
            decision, after, again = tables._decision(first, last, slot)
            numbers = []
            for part in (after, again):
                numbers.append(len(parts) if part else 0)
                parts += [part] if part else []
            decided.append((decision, *numbers))
        nested_schedules: dict[int, NestedSchedule] = {}
        for number in reversed(range(len(parts))):
            tables, first, last, _ = parts[number]
            decision, after, again = decided[number]
            left = nested_schedules.pop(after, None), nested_schedules.pop(again, None)
            nested_schedules[number] = NestedSchedule(first, last, tables.level, decision, *left)
        return nested_schedules[0]

    def _decision(self, first: int, last: int, slot: int) -> tuple[Keep | ForwardSweep, _Part | None, _Part | None]:
        """Return the decision behind a table's entry, and the parts left after it and again."""
        best, chosen, entry = inf, None, 0
        if (first, last) not in self._known_branches:
            self._known_branches[first, last] = tuple(self._branches(first, last))
        for branches in self._known_branches[first, last]:
            seconds = branches.at(slot)
            least = float(seconds.min(initial=inf))
            # of decisions equal up to rounding the first is taken, so that equal links are run alike
            if least < best - 1e-12 * abs(least):
                best, chosen = least, branches
                entry = int(np.flatnonzero(seconds <= least + 1e-12 * abs(least))[0])
        assert chosen is not None
        decision = chosen.decision(entry)
        after = again = None
        if chosen.after is not None:
            start = first + 1 if isinstance(decision, Keep) else decision.stop
            after = (self, start, last, min(slot - int(chosen.after[2][entry]), self.slots - 1))
        if chosen.again is not None and isinstance(decision, ForwardSweep):
            tables, _, shifts = chosen.again
            again = (tables, first, decision.stop - 1, min(slot - int(shifts[entry]), self.slots - 1))
        return decision, after, again

    def _is_first_forward(self, last: int) -> bool:
        return self.level is None and last == len(self.links) - 1

    def _branches(self, first: int, last: int) -> Iterator[_Branches]:
        """Yield all decisions at the beginning of a stretch."""
        yield self._keeps(first, last)
        if first < last:
            yield self._sweeps(first, last, None)
            for level in range(len(self.stored)):
                yield self._sweeps(first, last, level)

    def _keeps(self, first: int, last: int) -> _Branches:
        link, end, alone = self.links[first], self.links[last], first == last
        is_first_forward = self._is_first_forward(last)
        schedules = self.schedules[link.kind]
        highest = link.base_bytes - end.base_bytes + schedules["backward_peak_bytes"]
        forward_base = link.forward_base_bytes - end.base_bytes if is_first_forward else 0
        name = "forward" if is_first_forward else "last" if alone else "again"
        highest = np.maximum(highest, forward_base + schedules[f"{name}_peak_bytes"])
        seconds = schedules["seconds" if is_first_forward else f"{name}_seconds"]
        after = None
        if not alone:
            shifts = self._slots(schedules["kept_bytes"] + self.links[first + 1].input_bytes)
            after = (self, np.full(len(shifts), self.rows[first + 1, last]), shifts)
        return _Branches.of(lambda schedule: Keep(first, schedule), seconds, self._slots(highest), after, None)

    def _sweeps(self, first: int, last: int, level: int | None) -> _Branches:
        """Return the sweeps over links first..l for each l from `first` to `last` - 1."""
        swept, links, is_first_forward = slice(first, last), self.columns, self._is_first_forward(last)
        if level is None:
            seconds = links["first_sweep_seconds" if is_first_forward else "sweep_seconds"][swept]
            peak_bytes, stored_bytes = links["sweep_peak_bytes"][swept], np.zeros(last - first)
        else:
            schedules = self.level_columns[level]
            seconds = schedules["forward_seconds" if is_first_forward else "forward_again_seconds"][swept]
            peak_bytes = schedules["forward_peak_bytes" if is_first_forward else "again_peak_bytes"][swept]
            stored_bytes = np.cumsum(schedules["kept_bytes"][swept])
        end_bytes = self.links[last].base_bytes
        other_bytes = links["input_bytes"][swept].copy()
        other_bytes[0] = 0
        other_bytes[1:] += stored_bytes[:-1]
        if is_first_forward:
            other_bytes += links["forward_base_bytes"][swept] - end_bytes
        highest = np.maximum.accumulate(other_bytes + peak_bytes)
        tables = self if level is None else self.stored[level]
        after = self._slots(links["input_bytes"][first + 1 : last + 1] + stored_bytes)
        again = self._slots(links["base_bytes"][swept] + stored_bytes - end_bytes)
        again = np.maximum(again, -self.slots)  # all that fits, fits with this many more slots
        return _Branches.of(
            lambda entry: ForwardSweep(first, first + entry + 1, level),
            np.cumsum(seconds),
            self._slots(highest),
            (self, self.rows[first + 1 : last + 1, last], after),
            (tables, tables.rows[first, swept], again),
        )

    def _slots(self, size_bytes):
        """Return bytes in slots, rounded to the nearest."""
        return np.floor(np.asarray(size_bytes, dtype=float) / self.slot_bytes + 0.5).astype(np.int64)


def _columns(records: Sequence[Link] | Sequence[LinkSchedule], kind: type) -> dict[str, np.ndarray]:
    """Return the numeric fields of records as columns."""
    names = [name for name in kind.__dataclass_fields__ if name.endswith(("_bytes", "seconds"))]
    return {name: np.array([getattr(record, name) for record in records], dtype=float) for name in names}


def rows_of(links: Sequence[Link], has_first_forward: bool) -> np.ndarray:
    """Return rows[first, last], the row of the table of a stretch among the values; equal stretches share one."""
    falls = [a.base_bytes - b.base_bytes for a, b in pairwise(links)]
    known: dict[tuple, int] = {}
    rows = np.zeros((len(links), len(links)), dtype=np.int64)
    for last, end in enumerate(links):
        row = known.setdefault((end.kind, end.input_bytes), len(known))
        for first in range(last, -1, -1):
            if has_first_forward and last == len(links) - 1:
                row = known.setdefault((first,), len(known))  # the first forward has its own bases
            elif first < last:
                link = links[first]
                row = known.setdefault((link.kind, link.input_bytes, falls[first], row), len(known))
            rows[first, last] = row
    return np.unique(rows, return_inverse=True)[1].reshape(rows.shape)


def decisions_of(chain: Chain) -> int:
    """Return the number of distinct decisions over all stretches: the cost of filling the tables, per slot."""
    rows = rows_of(chain.links, True)
    first, last = np.triu_indices(len(chain.links))
    _, examples = np.unique(rows[first, last], return_index=True)
    return int((last - first + 1)[examples].sum())
