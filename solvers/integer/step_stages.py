"""The stages of a whole step, and the run orders that solutions over them mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..blocks.rematerialize import may_wait
from ..problem.liveness import RunOrder
from ..problem.problem import Problem
from ..problem.problem_arrays import arrays_of
from .stages import Piece, Repeatable, Stage, Stages, merged, with_windows


def stages_of_step(problem: Problem, rounds: int = 1) -> Stages:
    """Cut a step into stages.

    A stage ends at each operation that runs once, at a draw's first run, at the forward/backward boundary and at the
    end. A value is a piece unless its lifetime is fixed. Fixed are resident values, and values made by operations that
    run once if they are held or only such operations read them.

    rounds: as in `merged`.
    """
    return _Cutter(problem).cut(rounds)


class _Cutter:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        ops, idle = problem.ops, may_wait(problem)
        self.once = [index for index in range(len(ops)) if not idle[index]]
        self.at = {index: number + (index >= problem.forward_length) for number, index in enumerate(self.once)}
        self.boundary = sum(index < problem.forward_length for index in self.once)
        self.repeatables = [index for index, op in enumerate(ops) if op.repeatable and op.makes]
        self.place = {index: place for place, index in enumerate(self.repeatables)}
        self.last_once = [max((self.at[r] for r in readers if r in self.at), default=-1) for readers in problem.readers]
        self.number = {value: n for n, value in enumerate(filter(self._is_piece, range(len(problem.values))))}
        drawn = [index for index in self.repeatables if ops[index].random]
        self.states = {index: len(self.number) + n for n, index in enumerate(drawn)}
        self.momentary_bytes = arrays_of(problem).momentary_bytes.tolist()

    def cut(self, rounds: int) -> Stages:
        """Build the stages."""
        stages, merged_into = merged([*self._stages()], rounds)
        pieces = [self._piece(value, merged_into, len(stages)) for value in self.number]
        for index in self.states:
            born, reader = merged_into[self.at[index]], self.place[index]
            pieces.append(Piece(-1 - index, self.problem.state_bytes, born=born, readers=(reader,)))
        return with_windows(stages, pieces, [self._repeatable(index, merged_into) for index in self.repeatables])

    def _is_piece(self, value: int) -> bool:
        record, maker, readers = self.problem.values[value], self.problem.maker[value], self.problem.readers[value]
        if record.resident or maker < 0:
            return False
        if maker not in self.place or (record.held and maker in self.at):
            return not record.held and any(reader in self.place for reader in readers)
        return record.held or bool(readers)

    def _stages(self) -> Iterator[Stage]:
        """Yield one stage for each operation that runs once, for the forward/backward boundary, and for the end."""
        live = self.problem.resident_bytes
        for number, index in enumerate(self.once):
            if number == self.boundary:
                yield Stage((), live, live, marks=True)
            op = self.problem.ops[index]
            reads, at = dict.fromkeys(op.reads), self.at[index]
            makes = [self.number[v] for v in op.makes if v in self.number]
            makes += [self.states[index]] if index in self.states else []
            yield Stage(
                ops=(index,),
                fixed_bytes=live + self.momentary_bytes[index],
                base_bytes=live,
                reads=tuple(self.number[v] for v in reads if v in self.number),
                makes=tuple(makes),
                opens=any(reader in self.place for v in op.makes for reader in self.problem.readers[v]),
            )
            stay = [v for v in op.makes if self.problem.values[v].held or self.last_once[v] > at]
            die = [v for v in reads if self.last_once[v] == at and not self._lasts(v)]
            live += sum(self.problem.values[v].size_bytes for v in stay if v not in self.number)
            live -= sum(self.problem.values[v].size_bytes for v in die if v not in self.number)
        if self.boundary == len(self.once):
            yield Stage((), live, live, marks=True)
        yield Stage((), live, live, marks=True)

    def _lasts(self, value: int) -> bool:
        return self.problem.values[value].resident or self.problem.values[value].held

    def _piece(self, value: int, merged_into: list[int], end: int) -> Piece:
        record, maker, readers = self.problem.values[value], self.problem.maker[value], self.problem.readers[value]
        due = merged_into[self.boundary] + 1 if maker < self.problem.forward_length else end
        return Piece(
            value=value,
            size_bytes=record.size_bytes,
            maker=self.place.get(maker, -1),
            born=merged_into[self.at[maker]] if maker in self.at else -1,
            stays=record.held,
            due=due if record.held else -1,
            read_at=tuple(dict.fromkeys(merged_into[self.at[r]] for r in readers if r in self.at)),
            readers=tuple(self.place[r] for r in readers if r in self.place),
        )

    def _repeatable(self, index: int, merged_into: list[int]) -> Repeatable:
        op, maker = self.problem.ops[index], self.problem.maker
        # it follows its own first draw, and the constants made in the step that it reads
        makers = [maker[v] for v in op.reads if maker[v] in self.at] + [index] * (index in self.at)
        state = [self.states[index]] if index in self.states else []
        return Repeatable(
            op=index,
            seconds=op.seconds,
            momentary_bytes=self.momentary_bytes[index] + self.problem.state_bytes * len(state),
            reads=(*(self.number[v] for v in dict.fromkeys(op.reads) if v in self.number), *state),
            makes=tuple(self.number[v] for v in op.makes if v in self.number),
            first=max((merged_into[self.at[maker_index]] + 1 for maker_index in makers), default=0),
        )


def runs_of(problem: Problem, cut: Stages, ran: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the operations that run in each stage, in order, without useless runs.

    ran: for each stage the repeatable operations (their places) that run in it.
    """
    ops, values, boundary = problem.ops, problem.values, problem.forward_length
    held = [index for index, value in enumerate(values) if value.held]
    needed = set(held)
    order: list[list[int]] = []
    for stage in range(len(cut.stages) - 1, -1, -1):
        if any(piece.due == stage + 1 for piece in cut.pieces):
            needed.update(v for v in held if problem.maker[v] < boundary)
        runs = [(index, False) for index in reversed(cut.stages[stage].ops)]
        runs += [(cut.repeatables[place].op, True) for place in reversed(ran[stage])]
        order.append([])
        for index, repeatable in runs:
            if not repeatable or not needed.isdisjoint(ops[index].makes):
                needed.difference_update(ops[index].makes)
                needed.update(ops[index].reads)
                order[-1].append(index)
    return [runs[::-1] for runs in reversed(order)]


def order_of(problem: Problem, cut: Stages, runs: Sequence[Sequence[int]]) -> RunOrder:
    """Return the segments of a step with these runs in its stages.

    An operation that runs once is in its block's segment. So is a first run of an operation of forward, unless that
    segment is over or the segment of the next operation that runs once comes before. A recomputed operation is in the
    segment of the next operation.
    """
    blocks, forward_length = len(problem.block_classes), problem.forward_length
    boundary = next(stage for stage, own in enumerate(cut.stages) if own.marks)
    segments: list[list[int]] = [[] for _ in range(2 * blocks)]
    seen: set[int] = set()
    for phase in (range(boundary + 1), range(boundary + 1, len(runs))):
        first, last = (0, blocks - 1) if phase[0] == 0 else (blocks, 2 * blocks - 1)
        at, waiting = first, list[int]()
        for stage in phase:
            blocks_ahead = [
                problem.ops[own].block for later in phase for own in cut.stages[later].ops if later >= stage
            ]
            most = min((b if first == 0 else 2 * blocks - 1 - b for b in blocks_ahead), default=last)
            for index in runs[stage]:
                home = problem.ops[index].block
                home = home if index < forward_length else 2 * blocks - 1 - home
                own = index in cut.stages[stage].ops
                if not own and (index in seen or home < first):
                    waiting.append(index)
                    continue
                at = min(most, max(at, home))
                segments[at] += [*waiting, index]
                waiting = []
                seen.add(index)
        segments[at] += waiting
    return tuple(tuple(segment) for segment in segments)


def placed_in(problem: Problem, cut: Stages, order: RunOrder) -> list[list[int]]:
    """Return for each stage the repeatable operations (their places) that an order runs in it, in trace order.

    The result is approximate if an order runs one of them twice before a stage's own operation, or not in trace order.
    """
    place = {repeatable.op: place for place, repeatable in enumerate(cut.repeatables)}
    stage_of = {index: stage for stage, own in enumerate(cut.stages) for index in own.ops}
    boundary = next(stage for stage, own in enumerate(cut.stages) if own.marks)
    chosen: list[set[int]] = [set() for _ in cut.stages]
    begun: set[int] = set()
    for phase, last in ((order[: len(order) // 2], boundary), (order[len(order) // 2 :], len(chosen) - 1)):
        waiting: set[int] = set()
        for index in (index for segment in phase for index in segment):
            if index in stage_of and index not in begun:
                begun.add(index)
                chosen[stage_of[index]] |= waiting
                waiting = set()
            elif index in place:
                waiting.add(place[index])
        chosen[last] |= waiting
    return [sorted(places) for places in chosen]
