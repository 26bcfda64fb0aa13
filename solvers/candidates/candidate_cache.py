"""Store on disk the results of planning for a problem: candidates and schedules of each solver, and proofs."""

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

from ..bound import Proof, proofs_of, proven_seconds
from ..disk_cache import DamagedEntry, DiskCache, Entry, decoding, entry_name
from ..problem.liveness import Choice, RunOrder
from ..problem.problem import Op, Problem, Value
from ..problem.schedule import Decode, Encode, Forget, Free, FreeCode, Record, Run, Schedule, Segment
from .pareto import Rated

_NUMBER = np.dtype("<i4")
_MOST_RUNS = 64  # runs per operation of a candidate, on average
_INSTRUCTIONS = (Run, Record, Forget, Free, Encode, Decode, FreeCode)
_NAME_FIELDS = ("name", "module", "notes")  # fields with names only, on which no solver depends


def cached_candidates(
    cache: DiskCache | None, problem: Problem, solver: object, find: Callable[[], Iterable[Rated]]
) -> tuple[Rated, ...]:
    """Return the candidates that `find` finds, from the cache if they are stored there, else stored there.

    solver: a dataclass, whose `repr` is part of the entry's name.
    """
    if cache is None:
        return tuple(find())
    name = entry_name("candidates", problem_digest(problem), repr(solver))
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_candidates(entry, problem)
    candidates = tuple(find())
    rows = [
        (candidate.solver, candidate.description, candidate.peak_bytes, candidate.seconds, candidate.choice)
        for candidate in candidates
    ]
    cache.write(name, rows, [_pack_order(candidate.order) for candidate in candidates])
    return candidates


def cached_schedule(
    cache: DiskCache | None, problem: Problem, solver: object, budget_bytes: int, find: Callable[[], Schedule]
) -> Schedule:
    """Return the schedule that `find` finds for one budget, from the cache if it is stored there, else stored there."""
    if cache is None:
        return find()
    name = entry_name("schedule", problem_digest(problem), repr(solver), str(budget_bytes))
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_schedule(entry)
    schedule = find()
    kinds = [_INSTRUCTIONS.index(type(instruction)) for instruction in schedule.instructions]
    operands = [(*astuple(instruction), 0)[:2] for instruction in schedule.instructions]
    columns = [np.array(column, dtype=np.int32) for column in zip(*operands, strict=True)]
    segments = [(segment.block, segment.start, segment.stop) for segment in schedule.segments]
    cache.write(name, segments, [np.array(kinds, dtype=np.int8), *columns])
    return schedule


def cached_proofs(cache: DiskCache | None, problem: Problem) -> tuple[Proof, ...]:
    """Return `proofs_of` a problem, from the cache if they are stored there, else stored there."""
    if cache is None:
        return proofs_of(problem)
    name = entry_name("proofs", problem_digest(problem))
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_proofs(entry, problem)
    proofs = proofs_of(problem)
    rows = [(proof.moments, proof.needless_seconds) for proof in proofs]
    cache.write(name, rows, [part for proof in proofs for part in (proof.price, proof.worth)])
    return proofs


@lru_cache(maxsize=8)
def problem_digest(problem: Problem) -> str:
    """Return a digest of all fields of a problem on which solving depends."""
    digest = sha256()
    for kind, records in ((Problem, (problem,)), (Op, problem.ops), (Value, problem.values)):
        names = [field.name for field in fields(kind) if field.name not in (*_NAME_FIELDS, "ops", "values")]
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
        """The operations that each segment runs."""
        return self._unpack()


def _stored_candidates(entry: Entry, problem: Problem) -> tuple[Rated, ...]:
    """Return the candidates of an entry, whose run orders are unpacked on demand. Raises DamagedEntry."""
    codes = sum(len(value.encodings) for value in problem.values)
    most_bytes = _NUMBER.itemsize * (_MOST_RUNS * (len(problem.ops) + 2 * codes) + 2 * len(problem.block_classes) + 1)
    candidates = []
    with decoding("list of candidates"):
        for number, (solver, description, peak_bytes, seconds, choice) in enumerate(entry.content):
            pairs = tuple((index(value), index(encoding)) for value, encoding in choice)
            if not all(0 <= encoding < len(problem.values[value].encodings) for value, encoding in pairs):
                raise ValueError("a choice names encodings that do not exist")
            if not isinstance(solver, str) or not isinstance(description, str) or entry.packed[number][1] > most_bytes:
                raise ValueError("a candidate without a name, or with too many runs")
            if index(peak_bytes) < problem.resident_bytes or not 0 <= seconds < inf:
                raise ValueError(f"a candidate of {peak_bytes} bytes and {seconds} s")
            candidates.append(
                _Stored(solver, description, peak_bytes, seconds, pairs, partial(_unpack_order, entry, number))
            )
    return tuple(candidates)


def _stored_schedule(entry: Entry) -> Schedule:
    with decoding("schedule"):
        operands = zip(*(iter(entry.array(column).tolist()) for column in (1, 2)), strict=True)
        rows = zip(entry.array(0).tolist(), operands, strict=True)
        instructions = tuple(_INSTRUCTIONS[kind](*pair[: len(fields(_INSTRUCTIONS[kind]))]) for kind, pair in rows)
        segments = tuple(Segment(*map(index, segment)) for segment in entry.content)
        return Schedule(instructions, segments)


def _pack_order(order: RunOrder) -> np.ndarray:
    """Pack the number of segments, their lengths, and the differences between runs: mostly 1, which compresses well."""
    lengths = [len(segment) for segment in order]
    runs = np.fromiter(chain.from_iterable(order), dtype=_NUMBER, count=sum(lengths))
    return np.concatenate((np.array([len(lengths), *lengths], dtype=_NUMBER), np.diff(runs, prepend=_NUMBER.type(0))))


def _unpack_order(entry: Entry, number: int) -> RunOrder:
    """Invert `_pack_order`. Raises DamagedEntry."""
    with decoding("order"):
        packed = entry.array(number)
        stop = 1 + int(packed[0])
        lengths = packed[1:stop]
        runs = np.cumsum(packed[stop:])
        if packed.dtype != _NUMBER or lengths.min(initial=0) < 0 or lengths.sum() != len(runs):
            raise ValueError(f"{len(runs)} runs in segments of {lengths.sum()}")
        if runs.min(initial=0) < 0:
            raise ValueError("a run with a negative operation number")
        ends, operations = np.cumsum(lengths).tolist(), runs.tolist()
        return tuple(tuple(operations[start:end]) for start, end in zip([0, *ends], ends, strict=False))


def _stored_proofs(entry: Entry, problem: Problem) -> tuple[Proof, ...]:
    proofs = []
    with decoding("proof"):
        for number, (moments, needless_seconds) in enumerate(entry.content):
            price, worth = entry.array(2 * number), entry.array(2 * number + 1)
            pairs = tuple((ahead, taken_bytes) for ahead, taken_bytes in moments)
            if not (np.isfinite(price).all() and np.isfinite(worth).all() and 0 <= needless_seconds < inf):
                raise ValueError("a proof with numbers that are not finite")
            proofs.append(Proof(price, worth.reshape(-1, len(price)), pairs, needless_seconds))
            proven_seconds(problem, proofs[-1:], problem.resident_bytes)  # raises where they do not fit together
    return tuple(proofs)
