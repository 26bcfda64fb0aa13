"""Keeping values encoded as an ordinary problem: what encodes and what decodes become operations like any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from .liveness import Choice
from .problem import Op, Problem, Value
from .schedule import Decode, Encode, Run


@dataclass(frozen=True, eq=False)
class EncodedProblem:
    """A problem in which chosen values are encoded between forward and backward.

        v = maker(...); forward(v); ...; backward(v)
    --> v = maker(...); forward(v); c = encode(v); ...; v' = decode(c); backward(v')

    reduced: the problem that ordinary solvers take. A value is encoded after its last reader of forward up to the
        lowest block whose backward reads it (after its maker if there is none), so that its code belongs to one block
        wherever one block alone needs it. Each block whose backward reads it decodes it for itself. Only backward
        reads what is decoded, and its code besides if that is read itself: forward, run again, reads the value.
    merged: the same operations, with all that is decoded from a value being that value, or a view of its code. A run
        order of either is one of the other. What is alive in `merged` is what is alive in the schedule of the original
        problem.
    operations: what each of their operations is in the original problem.
    codes: what the values are a code of that the original problem does not have; values keep their numbers.
    """

    reduced: Problem
    merged: Problem
    operations: tuple[Run | Encode | Decode, ...]
    codes: dict[int, tuple[int, int]]


@lru_cache(maxsize=8)
def encodable(problem: Problem) -> tuple[int, ...]:
    """Values made in forward and read in backward that may be freed and have an encoding that takes fewer bytes."""
    turn, found = problem.forward_length, []
    for index, (value, maker) in enumerate(zip(problem.values, problem.maker, strict=True)):
        smaller = any(encoding.size_bytes < value.size_bytes for encoding in value.encodings)
        if smaller and 0 <= maker < turn and not value.held and max(problem.readers[index], default=0) >= turn:
            found.append(index)
    return tuple(found)


@lru_cache(maxsize=8)
def encoded_problem_of(problem: Problem, choice: Choice) -> EncodedProblem:
    """The recoding in which these values are encoded, each of them `encodable` and chosen once."""
    draft = _Draft(problem)
    for value, number in choice:
        draft.encode(value, number)
    return draft.recoding(choice)


def merged_problem(problem: Problem, choice: Choice) -> Problem:
    """The problem that a candidate's run order is one of: the problem itself if nothing is chosen."""
    return encoded_problem_of(problem, choice).merged if choice else problem


@dataclass(frozen=True)
class _Added:
    """An operation that both problems have beyond the original one, and what it stands for there."""

    reduced: Op
    merged: Op
    instruction: Encode | Decode


class _Draft:
    """A recoding being written down, value by value."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.values = [replace(value, encodings=()) for value in problem.values]
        self.codes: dict[int, tuple[int, int]] = {}
        self.encodes: dict[int, list[_Added]] = {}  # by the operation that they come after
        self.decodes: dict[int, list[_Added]] = {}  # by the operation that they come before
        self.instead: dict[int, dict[int, tuple[int, ...]]] = {}  # for each one of backward what it reads for what

    def encode(self, value: int, number: int) -> None:
        """Add what encodes a value and what decodes it."""
        problem, encoding = self.problem, self.problem.values[value].encodings[number]
        forward, backward = [problem.maker[value]], {}
        for reader in problem.readers[value]:
            if reader >= problem.forward_length:
                backward.setdefault(problem.ops[reader].block, []).append(reader)
        for reader in problem.readers[value]:
            if reader < problem.forward_length and problem.ops[reader].block <= min(backward):
                forward.append(reader)
        code = self._value(f"{problem.values[value].name}.{encoding.name}", encoding.size_bytes)
        self.codes[code] = value, number
        self._add_encode(value, number, code, max(forward))
        for readers in backward.values():
            self._add_decode(value, number, code, readers)

    def recoding(self, choice: Choice) -> EncodedProblem:
        """What has been written down."""
        added: list[_Added | int] = []
        for index in range(len(self.problem.ops)):
            added += [*self.decodes.get(index, ()), index, *self.encodes.get(index, ())]
        reduced = tuple(self._reading_decoded(one) if isinstance(one, int) else one.reduced for one in added)
        merged = tuple(self.problem.ops[one] if isinstance(one, int) else one.merged for one in added)
        parts = {
            "values": tuple(self.values),
            "forward_length": self.problem.forward_length + len(choice),
            "block_classes": self._block_classes(),
        }
        return EncodedProblem(
            reduced=replace(self.problem, ops=reduced, **parts),
            merged=replace(self.problem, ops=merged, **parts),
            operations=tuple(Run(one) if isinstance(one, int) else one.instruction for one in added),
            codes=self.codes,
        )

    def _add_encode(self, value: int, number: int, code: int, after: int) -> None:
        told, maker = self.problem.values[value], self.problem.ops[self.problem.maker[value]]
        encoding = told.encodings[number]
        op = Op(
            name=f"{told.name}.encode",
            reads=(value,),
            makes=(code,),
            seconds=encoding.encode_seconds,
            working_bytes=encoding.encode_working_bytes,
            block=self.problem.ops[after].block,
            intensive=maker.intensive,  # recipes that keep the value then keep its code
            kind=f"encode {encoding.name}",
            module=maker.module,
        )
        self.encodes.setdefault(after, []).append(_Added(op, op, Encode(value, number)))

    def _add_decode(self, value: int, number: int, code: int, readers: list[int]) -> None:
        told, encoding = self.problem.values[value], self.problem.values[value].encodings[number]
        decoded = self._value(told.name, told.decoded_bytes(number))
        op = Op(
            name=f"{told.name}.decode",
            reads=(code,),
            makes=(decoded,),
            seconds=encoding.decode_seconds,
            working_bytes=encoding.decode_working_bytes,
            block=self.problem.ops[readers[0]].block,
            kind=f"{'read' if encoding.is_read_itself else 'decode'} {encoding.name}",
            module=self.problem.ops[self.problem.maker[value]].module,
        )
        added = _Added(op, replace(op, makes=(value,), view_bytes=encoding.decoded_bytes), Decode(value, number))
        self.decodes.setdefault(readers[0], []).append(added)
        for reader in readers:
            self.instead.setdefault(reader, {})[value] = (decoded, code) if encoding.is_read_itself else (decoded,)

    def _value(self, name: str, size_bytes: int) -> int:
        self.values.append(Value(name, size_bytes))
        return len(self.values) - 1

    def _reading_decoded(self, index: int) -> Op:
        op, instead = self.problem.ops[index], self.instead.get(index)
        if not instead:
            return op
        reuses = instead.get(op.reuses, (op.reuses,))[0] if op.reuses is not None else None
        return replace(
            op, reads=tuple(one for value in op.reads for one in instead.get(value, (value,))), reuses=reuses
        )

    def _block_classes(self) -> tuple[int, ...]:
        """Classes of blocks in which the same has been added at the same places."""
        blocks, numbers, found = len(self.problem.block_classes), {}, []
        for block, block_class in enumerate(self.problem.block_classes):
            segments = self.problem.segment_operations[block], self.problem.segment_operations[2 * blocks - 1 - block]
            told = tuple(
                (place, one.reduced.kind)
                for place, index in enumerate((*segments[0], *segments[1]))
                for one in (*self.decodes.get(index, ()), *self.encodes.get(index, ()))
            )
            found.append(numbers.setdefault((block_class, told), len(numbers)))
        return tuple(found)
