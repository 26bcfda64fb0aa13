"""The least seconds of every stretch of a chain for every number of bytes: the tables of Rotor's dynamic program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np

from .chain import Chain, Link, LinkSchedule, storing


@dataclass(frozen=True)
class Keep:
    """Run link `link` in its way number `way`, then the links after it; the link's backward comes after theirs."""

    link: int
    way: int


@dataclass(frozen=True)
class Pass:
    """Run the forward of links first..stop-1, then links from `stop` on with their backward, then first..stop-1 again.

    level: what the first run keeps beside the first input: nothing (None), or what the ways of this level keep.
    """

    first: int
    stop: int
    level: int | None


@dataclass(frozen=True)
class NestedSchedule:
    """How links first..last are run: one decision, and how what it leaves is run.

    level: of the pass that has been here before and kept something, None if none has. after: how the links after the
    decision are run (None if none are left). again: of a `Pass`, how its own links are then run.
    """

    first: int
    last: int
    level: int | None
    decision: Keep | Pass
    after: NestedSchedule | None
    again: NestedSchedule | None


@dataclass(frozen=True, eq=False)
class _Branches:
    """Decisions at the beginning of a stretch, one per entry of the arrays.

    seconds: of the decision itself. slots: the fewest in which it and what it leaves fit. least: the seconds with all
    the bytes there are. after, again: (tables, rows, shifts): the entry's table is that row of the values, its slots
    counted from the shift on; None if nothing is left.
    """

    decision: Callable[[int], Keep | Pass]
    seconds: np.ndarray
    slots: np.ndarray
    least: np.ndarray
    after: tuple[Tables, np.ndarray, np.ndarray] | None
    again: tuple[Tables, np.ndarray, np.ndarray] | None

    @staticmethod
    def of(decision, seconds, slots, after, again) -> _Branches:
        """With what the parts need added to the slots and the seconds."""
        least = seconds.copy()
        for tables, rows, shifts in (part for part in (after, again) if part is not None):
            slots = np.maximum(slots, shifts + tables.lowest[rows])
            least += tables.values[rows, -1]
        return _Branches(decision, seconds, np.maximum(slots, 0), least, after, again)

    def lower(self, best: np.ndarray) -> None:
        """Lower the best seconds wherever a decision is better."""
        end = len(best)
        fits = np.flatnonzero(self.slots < end)
        # tables never rise: what is at its least no better than the best where it begins to fit is nowhere better
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
        """The seconds of each decision in so many slots."""
        seconds = np.where(self.slots <= slot, self.seconds, inf)
        for tables, rows, shifts in self._parts():
            seconds = seconds + tables.values[rows, np.maximum(slot - shifts, 0)]
        return seconds


_Part = tuple["Tables", int, int, int]  # first..last in so many slots


class Tables:
    """The least extra seconds of every stretch of a chain, for every number of bytes.

    C(i, j, m), for links i..j whose first input is there and m bytes beside it, is the least of (Beaumont et al. 2019,
    arXiv 1911.13214, theorem 1, with several ways to run a link as in Rockmate, arXiv 2307.01236, section 3.2)

        min over ways w of link i:   seconds_w + C(i+1, j, m - kept_w - input_{i+1})       if base_i + height_w <= m
        min over i < k <= j:         seconds of passing i..k-1
                                     + C(k, j, m - input_k) + C(i, k-1, m)                 if the pass fits in m

    and C over no links is 0. Where j is not the last link of the chain, the forward of i..j is not the first one: it
    makes only what is still wanted, and what is alive meanwhile is what is when the backward of j begins.

    A pass may also keep a part of what its links make, so that passing again costs less (of a convolution network's
    layers the convolutions' outputs: normalization, activation and sum are made again for nearly nothing). It keeps
    what the ways of one `level` keep, one way per kind of link; then C(i, k-1, ·) is that of the chain in which these
    are there already (`storing`), and what they take is taken from m.

    Bytes are counted in slots of `slot_bytes` above `base_bytes` of link j, rounded to the nearest slot: what comes out
    is a nesting, whose peak the simulator tells exactly. Stretches of equal kinds of links with equal differences
    between their bases share one table, so a run of n equal links has n tables, not n². Cost: tables × (ways + links ×
    levels) × slots.
    """

    def __init__(
        self,
        chain: Chain,
        slot_bytes: float,
        slots: int,
        levels: Sequence[Sequence[int]] = (),
        level: int | None = None,
        beyond: int = 0,
    ) -> None:
        """levels: for each level the number of the way of every link; level: the one stored in this chain already;
        beyond: how many slots more than `slots` are looked up."""
        self.chain, self.levels, self.level = chain, levels, level
        self.slot_bytes, self.slots = slot_bytes, slots
        links = self.links = chain.links
        self.ways = {link.kind: _columns(link.ways, LinkSchedule) for link in links}
        self.columns = _columns(links, Link)
        stored_ways = [[link.ways[way] for link, way in zip(links, chosen, strict=True)] for chosen in levels]
        self.of_levels = [_columns(ways, LinkSchedule) for ways in stored_ways]
        self._looked_at: dict[tuple[int, int], tuple[_Branches, ...]] = {}  # by tracing
        self.rows = rows_of(links, level is None)
        # a table that another one looks up further up than it goes is continued with its last entry
        base_bytes = self.columns["base_bytes"]
        beyond = max(beyond, min(int(self._slots(base_bytes.max() - base_bytes.min())) + 1, slots))
        self.stored = [
            Tables(storing(chain, chosen), slot_bytes, slots, level=number, beyond=beyond)
            for number, chosen in enumerate(levels)
        ]
        self.values = np.full((self.rows.max() + 1, slots + beyond), inf)
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

    def nesting(self, budget_bytes: float) -> NestedSchedule | None:
        """The best nesting of the whole chain under a budget, all bytes counted; None if there is none."""
        last = len(self.links) - 1
        slot = min(int(self._slots(budget_bytes - self.links[last].base_bytes)), self.slots - 1)
        if slot < self.lowest[self.rows[0, last]]:
            return None
        return self._traced(last, slot)

    def steps(self) -> list[tuple[float, float]]:
        """(budget in bytes, extra seconds) wherever more bytes make the whole chain faster."""
        table, base_bytes = self.values[self.rows[0, -1], : self.slots], self.links[-1].base_bytes
        falls = np.flatnonzero(np.append(table[:1] < inf, table[1:] < table[:-1]))
        return [(base_bytes + float(slot) * self.slot_bytes, float(table[slot])) for slot in falls]

    def _traced(self, last: int, slot: int) -> NestedSchedule:
        """The nesting of links 0..last behind a table's entry; without recursion, as nestings are as deep as chains."""
        parts: list[_Part] = [(self, 0, last, slot)]
        decided: list[tuple[Keep | Pass, int, int]] = []  # with the numbers of the parts it leaves, 0 for none
        for tables, first, last, slot in parts:  # parts are added meanwhile
            decision, after, again = tables._decided(first, last, slot)
            numbers = []
            for part in (after, again):
                numbers.append(len(parts) if part else 0)
                parts += [part] if part else []
            decided.append((decision, *numbers))
        nestings: dict[int, NestedSchedule] = {}
        for number in reversed(range(len(parts))):
            tables, first, last, _ = parts[number]
            decision, after, again = decided[number]
            left = nestings.pop(after, None), nestings.pop(again, None)
            nestings[number] = NestedSchedule(first, last, tables.level, decision, *left)
        return nestings[0]

    def _decided(self, first: int, last: int, slot: int) -> tuple[Keep | Pass, _Part | None, _Part | None]:
        """The decision behind a table's entry, and what is left after it and again."""
        best, chosen, entry = inf, None, 0
        if (first, last) not in self._looked_at:
            self._looked_at[first, last] = tuple(self._branches(first, last))
        for branches in self._looked_at[first, last]:
            seconds = branches.at(slot)
            least = float(seconds.min(initial=inf))
            # of decisions as good but for rounding the first is taken, so that equal links are run alike
            if least < best - 1e-12 * abs(least):
                best, chosen = least, branches
                entry = int(np.flatnonzero(seconds <= least + 1e-12 * abs(least))[0])
        assert chosen is not None
        decision = chosen.decision(entry)
        after = again = None
        if chosen.after is not None:
            start = first + 1 if isinstance(decision, Keep) else decision.stop
            after = (self, start, last, min(slot - int(chosen.after[2][entry]), self.slots - 1))
        if chosen.again is not None and isinstance(decision, Pass):
            tables, _, shifts = chosen.again
            again = (tables, first, decision.stop - 1, min(slot - int(shifts[entry]), self.slots - 1))
        return decision, after, again

    def _is_first_forward(self, last: int) -> bool:
        return self.level is None and last == len(self.links) - 1

    def _branches(self, first: int, last: int) -> Iterator[_Branches]:
        """Every decision at the beginning of a stretch."""
        yield self._keeps(first, last)
        if first < last:
            yield self._passes(first, last, None)
            for level in range(len(self.stored)):
                yield self._passes(first, last, level)

    def _keeps(self, first: int, last: int) -> _Branches:
        link, end, alone = self.links[first], self.links[last], first == last
        is_first_forward = self._is_first_forward(last)
        ways = self.ways[link.kind]
        highest = link.base_bytes - end.base_bytes + ways["height_bytes"]
        forward_base = link.forward_base_bytes - end.base_bytes if is_first_forward else 0
        name = "forward" if is_first_forward else "last" if alone else "again"
        highest = np.maximum(highest, forward_base + ways[f"{name}_height_bytes"])
        seconds = ways["seconds" if is_first_forward else f"{name}_seconds"]
        after = None
        if not alone:
            shifts = self._slots(ways["kept_bytes"] + self.links[first + 1].input_bytes)
            after = (self, np.full(len(shifts), self.rows[first + 1, last]), shifts)
        return _Branches.of(lambda way: Keep(first, way), seconds, self._slots(highest), after, None)

    def _passes(self, first: int, last: int, level: int | None) -> _Branches:
        """Passing links first..l for each l from `first` to `last` - 1."""
        passed, links, is_first_forward = slice(first, last), self.columns, self._is_first_forward(last)
        if level is None:
            seconds = links["first_pass_seconds" if is_first_forward else "pass_seconds"][passed]
            height_bytes, stored_bytes = links["pass_height_bytes"][passed], np.zeros(last - first)
        else:
            ways = self.of_levels[level]
            seconds = ways["forward_seconds" if is_first_forward else "forward_again_seconds"][passed]
            height_bytes = ways["forward_height_bytes" if is_first_forward else "again_height_bytes"][passed]
            stored_bytes = np.cumsum(ways["kept_bytes"][passed])
        end_bytes = self.links[last].base_bytes
        beside_bytes = links["input_bytes"][passed].copy()
        beside_bytes[0] = 0
        beside_bytes[1:] += stored_bytes[:-1]
        if is_first_forward:
            beside_bytes += links["forward_base_bytes"][passed] - end_bytes
        highest = np.maximum.accumulate(beside_bytes + height_bytes)
        tables = self if level is None else self.stored[level]
        after = self._slots(links["input_bytes"][first + 1 : last + 1] + stored_bytes)
        again = self._slots(links["base_bytes"][passed] + stored_bytes - end_bytes)
        again = np.maximum(again, -self.slots)  # everything that fits, fits with so many slots more
        return _Branches.of(
            lambda entry: Pass(first, first + entry + 1, level),
            np.cumsum(seconds),
            self._slots(highest),
            (self, self.rows[first + 1 : last + 1, last], after),
            (tables, tables.rows[first, passed], again),
        )

    def _slots(self, size_bytes):
        """Bytes as slots, to the nearest."""
        return np.floor(np.asarray(size_bytes, dtype=float) / self.slot_bytes + 0.5).astype(np.int64)


def _columns(records: Sequence[Link] | Sequence[LinkSchedule], kind: type) -> dict[str, np.ndarray]:
    """The numbers of records by field."""
    names = [name for name in kind.__dataclass_fields__ if name.endswith(("_bytes", "seconds"))]
    return {name: np.array([getattr(record, name) for record in records], dtype=float) for name in names}


def rows_of(links: Sequence[Link], has_first_forward: bool) -> np.ndarray:
    """rows[first, last]: where the table of a stretch lies among the values; equal stretches share one."""
    falls = [a.base_bytes - b.base_bytes for a, b in pairwise(links)]
    known: dict[tuple, int] = {}
    rows = np.zeros((len(links), len(links)), dtype=np.int64)
    for last, end in enumerate(links):
        row = known.setdefault((end.kind, end.input_bytes), len(known))
        for first in range(last, -1, -1):
            if has_first_forward and last == len(links) - 1:
                row = known.setdefault((first,), len(known))  # the first forward has bases of its own
            elif first < last:
                link = links[first]
                row = known.setdefault((link.kind, link.input_bytes, falls[first], row), len(known))
            rows[first, last] = row
    return np.unique(rows, return_inverse=True)[1].reshape(rows.shape)


def decisions_of(chain: Chain) -> int:
    """In how many ways, of all that the tables tell apart, a stretch can be divided in two: what filling them costs."""
    rows = rows_of(chain.links, True)
    first, last = np.triu_indices(len(chain.links))
    _, examples = np.unique(rows[first, last], return_index=True)
    return int((last - first + 1)[examples].sum())
