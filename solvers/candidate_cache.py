"""Keeps on disk what planning for a problem comes down to: candidates and schedules of each solver, and proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import astuple, fields
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from itertools import chain
from math import inf
from operator import attrgetter, index

import numpy as np

from .bound import Proof, proofs_of, proven_seconds
from .disk_cache import DamagedEntry, DiskCache, Entry, decoding, entry_name
from .pareto import Rated
from .problem.liveness import Choice, RunOrder
from .problem.problem import Op, Problem, Value
from .problem.schedule import Decode, Encode, Forget, Free, FreeCode, Record, Run, Schedule, Segment

_NUMBER = np.dtype("<i4")
_MOST_RUNS = 64  # of an operation, in the mean, in any candidate
_INSTRUCTIONS = (Run, Record, Forget, Free, Encode, Decode, FreeCode)
_TELLS_NOTHING = ("name", "module", "notes")  # fields that say how things are called, on which no solver depends


def cached_candidates(
    cache: DiskCache | None, problem: Problem, solver: object, find: Callable[[], Iterable[Rated]]
) -> tuple[Rated, ...]:
    """The candidates of a solver as `find` finds them, from the cache if they are there, put there if not.

    solver: a dataclass, whose options are part of what is asked for.
    """
    if cache is None:
        return tuple(find())
    name = entry_name("ladder", problem_digest(problem), repr(solver))
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_candidates(entry, problem)
    found = tuple(find())
    told = [(one.solver, one.description, one.peak_bytes, one.seconds, one.choice) for one in found]
    cache.write(name, told, [_packed(one.order) for one in found])
    return found


def cached_schedule(
    cache: DiskCache | None, problem: Problem, solver: object, budget_bytes: int, find: Callable[[], Schedule]
) -> Schedule:
    """A solver's schedule for one budget as `find` finds it, from the cache if it is there, put there if not."""
    if cache is None:
        return find()
    name = entry_name("schedule", problem_digest(problem), repr(solver), str(budget_bytes))
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_schedule(entry)
    found = find()
    kinds = [_INSTRUCTIONS.index(type(instruction)) for instruction in found.instructions]
    operands = [(*astuple(instruction), 0)[:2] for instruction in found.instructions]
    columns = [np.array(column, dtype=np.int32) for column in zip(*operands, strict=True)]
    segments = [(segment.block, segment.start, segment.stop) for segment in found.segments]
    cache.write(name, segments, [np.array(kinds, dtype=np.int8), *columns])
    return found


def cached_proofs(cache: DiskCache | None, problem: Problem) -> tuple[Proof, ...]:
    """`proofs_of` a problem, from the cache if they are there, put there if not."""
    if cache is None:
        return proofs_of(problem)
    name = entry_name("proofs", problem_digest(problem))
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_proofs(entry, problem)
    found = proofs_of(problem)
    told = [(proof.moments, proof.needless_seconds) for proof in found]
    cache.write(name, told, [part for proof in found for part in (proof.price, proof.worth)])
    return found


@lru_cache(maxsize=8)
def problem_digest(problem: Problem) -> str:
    """Of everything in a problem that solving depends on."""
    digest = sha256()
    for kind, records in ((Problem, (problem,)), (Op, problem.ops), (Value, problem.values)):
        names = [one.name for one in fields(kind) if one.name not in (*_TELLS_NOTHING, "ops", "values")]
        digest.update(repr((names, [*map(attrgetter(*names), records)])).encode())
    return digest.hexdigest()


class _Stored(Rated):
    """A candidate from the disk, whose run order is unpacked when it is first asked for."""

    _unpack: Callable[[], RunOrder]

    def __init__(
        self,
        solver: str,
        description: str,
        peak_bytes: int,
        seconds: float,
        choice: Choice,
        unpack: Callable[[], RunOrder],
    ) -> None:
        vars(self).update(solver=solver, description=description, peak_bytes=peak_bytes, seconds=seconds, choice=choice)
        vars(self).update(_unpack=unpack)

    @cached_property
    def order(self) -> RunOrder:
        """What each segment runs."""
        return self._unpack()


def _stored_candidates(entry: Entry, problem: Problem) -> tuple[Rated, ...]:
    """The candidates of an entry, whose runs are looked at when asked for. Raises DamagedEntry where it holds none."""
    codes = sum(len(value.encodings) for value in problem.values)
    most_bytes = _NUMBER.itemsize * (_MOST_RUNS * (len(problem.ops) + 2 * codes) + 2 * len(problem.block_classes) + 1)
    found = []
    with decoding("ladder"):
        for number, (solver, description, peak_bytes, seconds, choice) in enumerate(entry.content):
            pairs = tuple((index(value), index(encoding)) for value, encoding in choice)
            if not all(0 <= encoding < len(problem.values[value].encodings) for value, encoding in pairs):
                raise ValueError("a choice of encodings that there are not")
            if not isinstance(solver, str) or not isinstance(description, str) or entry.packed[number][1] > most_bytes:
                raise ValueError("a candidate without a name, or with more runs than any has")
            if index(peak_bytes) < problem.resident_bytes or not 0 <= seconds < inf:
                raise ValueError(f"a candidate of {peak_bytes} bytes and {seconds} s")
            found.append(_Stored(solver, description, peak_bytes, seconds, pairs, partial(_order, entry, number)))
    return tuple(found)


def _stored_schedule(entry: Entry) -> Schedule:
    with decoding("schedule"):
        operands = zip(*(iter(entry.array(column).tolist()) for column in (1, 2)), strict=True)
        told = zip(entry.array(0).tolist(), operands, strict=True)
        instructions = tuple(_INSTRUCTIONS[kind](*both[: len(fields(_INSTRUCTIONS[kind]))]) for kind, both in told)
        segments = tuple(Segment(*map(index, segment)) for segment in entry.content)
        return Schedule(instructions, segments)


def _packed(order: RunOrder) -> np.ndarray:
    """How many segments, how long each is, and the differences between runs: mostly ones, which compress well."""
    lengths = [len(segment) for segment in order]
    runs = np.fromiter(chain.from_iterable(order), dtype=_NUMBER, count=sum(lengths))
    return np.concatenate((np.array([len(lengths), *lengths], dtype=_NUMBER), np.diff(runs, prepend=_NUMBER.type(0))))


def _order(entry: Entry, number: int) -> RunOrder:
    """The inverse of `_packed`. Raises DamagedEntry."""
    with decoding("order"):
        packed = entry.array(number)
        stop = 1 + int(packed[0])
        lengths = packed[1:stop]
        runs = np.cumsum(packed[stop:])
        if packed.dtype != _NUMBER or lengths.min(initial=0) < 0 or lengths.sum() != len(runs):
            raise ValueError(f"{len(runs)} runs in segments of {lengths.sum()}")
        if runs.min(initial=0) < 0:
            raise ValueError("a run of no operation")
        ends, told = np.cumsum(lengths).tolist(), runs.tolist()
        return tuple(tuple(told[start:end]) for start, end in zip([0, *ends], ends, strict=False))


def _stored_proofs(entry: Entry, problem: Problem) -> tuple[Proof, ...]:
    found = []
    with decoding("proof"):
        for number, (moments, needless_seconds) in enumerate(entry.content):
            price, worth = entry.array(2 * number), entry.array(2 * number + 1)
            pairs = tuple((ahead, taken_bytes) for ahead, taken_bytes in moments)
            if not (np.isfinite(price).all() and np.isfinite(worth).all() and 0 <= needless_seconds < inf):
                raise ValueError("a proof by numbers that are not finite")
            found.append(Proof(price, worth.reshape(-1, len(price)), pairs, needless_seconds))
            proven_seconds(problem, found[-1:], problem.resident_bytes)  # which raises where they do not fit together
    return tuple(found)
