"""The stages of one block's backward, with the values that its forward may keep for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..blocks.block_schedules import BlockEvaluator
from ..blocks.rematerialize import may_wait
from ..problem.problem import Problem
from ..problem.problem_arrays import arrays_of
from .stages import Piece, Repeatable, Stage, Stages, Start, merged, with_windows


@dataclass(frozen=True, eq=False)
class BlockStages:
    """The stages of a block's backward, and its forward.

    stages: bytes are relative to those alive when backward begins, with kept bytes added, as in `BlockSchedule`.
    forward: the operations of forward in trace order.
    must: those that always run in forward: they run once or draw, or forward or another block needs their values.
    needs: for each other operation of forward the operations of the same forward that must run if it does.
    """

    stages: Stages
    forward: tuple[int, ...]
    must: frozenset[int]
    needs: dict[int, tuple[int, ...]]


def stages_of_block(problem: Problem, block: int, rounds: int = 1) -> BlockStages:
    """Cut a block's backward into stages; `rounds` as in `merged`.

    A value that backward touches is a piece unless its lifetime is fixed. Fixed are resident and held values, values
    that later blocks read, and values that only other blocks or operations that run once make and read.
    """
    return _Cutter(problem, block).cut(rounds)


class _Cutter:
    def __init__(self, problem: Problem, block: int) -> None:
        self.problem, self.evaluator = problem, BlockEvaluator(problem, block)
        ops, idle, boundary = problem.ops, may_wait(problem), problem.forward_length
        self.forward = tuple(index for index in self.evaluator.operations if index < boundary)
        backward = [index for index in self.evaluator.operations if index >= boundary]
        self.once = [index for index in backward if not idle[index]]  # a draw in backward is not repeated
        recomputable = [index for index in self.forward if ops[index].repeatable and ops[index].makes]
        self.repeatables = recomputable + [index for index in backward if idle[index]]
        self.place = {index: place for place, index in enumerate(self.repeatables)}
        self.at = {index: number for number, index in enumerate(self.once)}
        touched = dict.fromkeys(v for i in self.evaluator.operations for v in (*ops[i].reads, *ops[i].makes))
        self.last_once = {v: max((self.at[r] for r in problem.readers[v] if r in self.at), default=-1) for v in touched}
        self.number = {value: number for number, value in enumerate(filter(self._is_piece, touched))}
        self.momentary_bytes = arrays_of(problem).momentary_bytes.tolist()

    def cut(self, rounds: int) -> BlockStages:
        """Build the stages."""
        stages, merged_into = merged([*self._stages()], rounds)
        pieces = [self._piece(value, merged_into, len(stages)) for value in self.number]
        drawn = [index for index in self.repeatables if self.problem.ops[index].random]
        states = {index: len(pieces) + i for i, index in enumerate(drawn)}
        pieces += [self._state(index) for index in drawn]
        repeatables = [self._repeatable(index, merged_into, states) for index in self.repeatables]
        must = self._must()
        needs = {index: self._makers(index) - must for index in self.forward if index not in must}
        placed = with_windows(stages, pieces, repeatables)
        return BlockStages(placed, self.forward, must, {index: tuple(sorted(n)) for index, n in needs.items()})

    def _is_piece(self, value: int) -> bool:
        record, maker = self.problem.values[value], self.problem.maker[value]
        if record.resident or (record.held and maker < self.problem.forward_length):
            return False
        read_again = any(reader in self.place for reader in self.problem.readers[value])
        if value in self.evaluator.local_values:
            return read_again or self.last_once[value] >= 0
        if maker in self.place:
            return read_again or self.last_once[value] >= 0 or value in self.evaluator.after_backward
        return read_again and value not in self.evaluator.after_backward

    def _stages(self) -> Iterator[Stage]:
        """Yield one stage for each operation that runs once, and the end."""
        live = 0
        for at, index in enumerate(self.once):
            op = self.problem.ops[index]
            reads = dict.fromkeys(v for v in op.reads if not self.problem.values[v].resident)
            yield Stage(
                ops=(index,),
                fixed_bytes=live + self.momentary_bytes[index],
                base_bytes=live,
                reads=tuple(self.number[v] for v in reads if v in self.number),
                makes=tuple(self.number[v] for v in op.makes if v in self.number),
                opens=any(reader in self.place for v in op.makes for reader in self.problem.readers[v]),
            )
            stay = [v for v in op.makes if v in self.evaluator.after_backward or self.last_once[v] > at]
            die = [v for v in reads if self.last_once[v] == at and v not in self.evaluator.after_backward]
            live += sum(self.evaluator.size_bytes[v] for v in stay if v not in self.number)
            live -= sum(self.evaluator.size_bytes[v] for v in die if v not in self.number)
        yield Stage((), live, live, marks=True)

    def _piece(self, value: int, merged_into: list[int], end: int) -> Piece:
        maker = self.problem.maker[value]
        readers = self.problem.readers[value]
        return Piece(
            value=value,
            size_bytes=self.evaluator.size_bytes[value],
            maker=self.place.get(maker, -1),
            born=merged_into[self.at[maker]] if maker in self.at else -1,
            start=self._start(value),
            stays=self.problem.values[value].held,
            due=end if value in self.evaluator.after_backward else -1,
            read_at=tuple(dict.fromkeys(merged_into[self.at[r]] for r in readers if r in self.at)),
            readers=tuple(self.place[r] for r in readers if r in self.place),
        )

    def _start(self, value: int) -> Start:
        """Return how the bytes of a value count if it is there when this block's backward begins."""
        maker = self.problem.maker[value]
        if value in self.evaluator.local_values:
            return Start.KEPT
        if value in self.evaluator.stream:
            return Start.COUNTED
        there = maker < self.problem.forward_length or maker not in self.evaluator.position
        return Start.GIVEN if there else Start.ABSENT

    def _state(self, index: int) -> Piece:
        """Return the generator state of an operation that draws: recorded if it is recomputed, then always counted."""
        size_bytes = self.problem.state_bytes
        return Piece(-1 - index, size_bytes, start=Start.KEPT, stays=True, readers=(self.place[index],))

    def _repeatable(self, index: int, merged_into: list[int], states: dict[int, int]) -> Repeatable:
        op, maker = self.problem.ops[index], self.problem.maker
        state = (states[index],) if index in states else ()
        return Repeatable(
            op=index,
            seconds=op.seconds,
            momentary_bytes=self.momentary_bytes[index],
            reads=tuple(self.number[v] for v in dict.fromkeys(op.reads) if v in self.number) + state,
            makes=tuple(self.number[v] for v in op.makes if v in self.number),
            first=max((merged_into[self.at[maker[v]]] + 1 for v in op.reads if maker[v] in self.at), default=0),
        )

    def _must(self) -> frozenset[int]:
        """Return the operations that always run in forward."""
        idle, must = may_wait(self.problem), set[int]()
        for index in reversed(self.forward):
            op = self.problem.ops[index]
            if index in must or not idle[index] or any(v not in self.evaluator.local_values for v in op.makes):
                must |= {index} | self._makers(index)
        return frozenset(must)

    def _makers(self, index: int) -> frozenset[int]:
        """Return the operations of this forward that make the values an operation reads."""
        makers = {self.problem.maker[value] for value in self.problem.ops[index].reads}
        return frozenset(makers.intersection(self.forward))
