"""State the encoding of values as an ordinary problem, in which encoding and decoding are operations."""

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

    reduced: the problem that ordinary solvers take. A value is encoded after its last reader of forward, in blocks up
        to the lowest one whose backward reads it. If there is none, it is encoded after its maker. So its code belongs
        to one block wherever only that block needs it. Each block whose backward reads the value decodes it separately.
        Only backward reads the decoded value, and in addition its code if that is read itself. Recomputed forward reads
        the value itself.
    merged: the same operations, in which decoding makes the value itself, or a view of its code. A run order of either
        problem is one of the other. The bytes alive in `merged` are those of the original problem's schedule.
    operations: for each of their operations the instruction of the original problem.
    codes: for each added code its value and the number of its encoding; values keep their numbers.
    """

    reduced: Problem
    merged: Problem
    operations: tuple[Run | Encode | Decode, ...]
    codes: dict[int, tuple[int, int]]


@lru_cache(maxsize=8)
def encodable(problem: Problem) -> tuple[int, ...]:
    """Return the values that may be encoded: made in forward, read in backward, not held, with a smaller encoding."""
    forward_length, values = problem.forward_length, []
    for index, (value, maker) in enumerate(zip(problem.values, problem.maker, strict=True)):
        smaller = any(encoding.size_bytes < value.size_bytes for encoding in value.encodings)
        if (
            smaller
            and 0 <= maker < forward_length
            and not value.held
            and max(problem.readers[index], default=0) >= forward_length
        ):
            values.append(index)
    return tuple(values)


@lru_cache(maxsize=8)
def encoded_problem_of(problem: Problem, choice: Choice) -> EncodedProblem:
    """Return the problem in which these values are encoded, each of them `encodable` and chosen once."""
    draft = _Draft(problem)
    for value, number in choice:
        draft.encode(value, number)
    return draft.build(choice)


def merged_problem(problem: Problem, choice: Choice) -> Problem:
    """Return the problem of a candidate's run order: the problem itself if nothing is chosen."""
    return encoded_problem_of(problem, choice).merged if choice else problem


@dataclass(frozen=True)
class _Added:
    """An operation that both problems add to the original one, with its instruction there."""

    reduced: Op
    merged: Op
    instruction: Encode | Decode


class _Draft:
    """An encoded problem under construction, value by value."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.values = [replace(value, encodings=()) for value in problem.values]
        self.codes: dict[int, tuple[int, int]] = {}
        self.encodes: dict[int, list[_Added]] = {}  # operation: encodings after it
        self.decodes: dict[int, list[_Added]] = {}  # operation: decodings before it
        # operation of backward: the values that it reads in place of each value
        self.replacements: dict[int, dict[int, tuple[int, ...]]] = {}

    def encode(self, value: int, number: int) -> None:
        """Add the operations that encode a value and decode it."""
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

    def build(self, choice: Choice) -> EncodedProblem:
        """Return the encoded problem for the choice whose values have been encoded."""
        added: list[_Added | int] = []
        for index in range(len(self.problem.ops)):
            added += [*self.decodes.get(index, ()), index, *self.encodes.get(index, ())]
        reduced = tuple(self._reading_decoded(entry) if isinstance(entry, int) else entry.reduced for entry in added)
        merged = tuple(self.problem.ops[entry] if isinstance(entry, int) else entry.merged for entry in added)
        parts = {
            "values": tuple(self.values),
            "forward_length": self.problem.forward_length + len(choice),
            "block_classes": self._block_classes(),
        }
        return EncodedProblem(
            reduced=replace(self.problem, ops=reduced, **parts),
            merged=replace(self.problem, ops=merged, **parts),
            operations=tuple(Run(entry) if isinstance(entry, int) else entry.instruction for entry in added),
            codes=self.codes,
        )

    def _add_encode(self, value: int, number: int, code: int, after: int) -> None:
        record, maker = self.problem.values[value], self.problem.ops[self.problem.maker[value]]
        encoding = record.encodings[number]
        op = Op(
            name=f"{record.name}.encode",
            reads=(value,),
            makes=(code,),
            seconds=encoding.encode_seconds,
            working_bytes=encoding.encode_working_bytes,
            block=self.problem.ops[after].block,
            compute_intensive=maker.compute_intensive,  # so that recipes that keep the value keep its code
            kind=f"encode {encoding.name}",
            module=maker.module,
        )
        self.encodes.setdefault(after, []).append(_Added(op, op, Encode(value, number)))

    def _add_decode(self, value: int, number: int, code: int, readers: list[int]) -> None:
        record, encoding = self.problem.values[value], self.problem.values[value].encodings[number]
        decoded = self._value(record.name, record.decoded_bytes(number))
        op = Op(
            name=f"{record.name}.decode",
            reads=(code,),
            makes=(decoded,),
            seconds=encoding.decode_seconds,
            working_bytes=encoding.decode_working_bytes,
            block=self.problem.ops[readers[0]].block,
            kind=f"{'read' if encoding.is_read_itself else 'decode'} {encoding.name}",
            module=self.problem.ops[self.problem.maker[value]].module,
        )
        added = _Added(op, replace(op, makes=(value,), view_bytes=encoding.read_itself_bytes), Decode(value, number))
        self.decodes.setdefault(readers[0], []).append(added)
        for reader in readers:
            self.replacements.setdefault(reader, {})[value] = (decoded, code) if encoding.is_read_itself else (decoded,)

    def _value(self, name: str, size_bytes: int) -> int:
        self.values.append(Value(name, size_bytes))
        return len(self.values) - 1

    def _reading_decoded(self, index: int) -> Op:
        op, replacements = self.problem.ops[index], self.replacements.get(index)
        if not replacements:
            return op
        reuses = replacements.get(op.reuses, (op.reuses,))[0] if op.reuses is not None else None
        return replace(
            op,
            reads=tuple(replacement for value in op.reads for replacement in replacements.get(value, (value,))),
            reuses=reuses,
        )

    def _block_classes(self) -> tuple[int, ...]:
        """Return classes of blocks in which equal operations have been added at the same places."""
        blocks, numbers, classes = len(self.problem.block_classes), {}, []
        for block, block_class in enumerate(self.problem.block_classes):
            segments = self.problem.segment_operations[block], self.problem.segment_operations[2 * blocks - 1 - block]
            codecs = tuple(
                (place, codec.reduced.kind)
                for place, index in enumerate((*segments[0], *segments[1]))
                for codec in (*self.decodes.get(index, ()), *self.encodes.get(index, ()))
            )
            classes.append(numbers.setdefault((block_class, codecs), len(numbers)))
        return tuple(classes)
