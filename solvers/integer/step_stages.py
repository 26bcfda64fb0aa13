"""The stages of a whole step, and the run order that a solution over them means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..blocks.rematerialize import may_wait
from ..problem.liveness import RunOrder
from ..problem.problem import Problem
from ..problem.problem_arrays import arrays_of
from .stages import Piece, Repeatable, Stage, Stages, merged, with_windows


def stages_of_step(problem: Problem, rounds: int = 1) -> Stages:
    """Cut a step into stages: each operation that runs once ends one, a draw's first run too, the turn and the end;
    `rounds` as in `merged`.

    A value is a piece, unless no decision touches its life: what is resident, and what operations that run once make
    and only such read, or that is held.
    """
    return _Cutter(problem).cut(rounds)


class _Cutter:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        ops, idle = problem.ops, may_wait(problem)
        self.once = [index for index in range(len(ops)) if not idle[index]]
        self.at = {index: number + (index >= problem.forward_length) for number, index in enumerate(self.once)}
        self.turn = sum(index < problem.forward_length for index in self.once)
        self.repeatables = [index for index, op in enumerate(ops) if op.repeatable and op.makes]
        self.place = {index: place for place, index in enumerate(self.repeatables)}
        self.last_once = [max((self.at[r] for r in readers if r in self.at), default=-1) for readers in problem.readers]
        self.number = {value: n for n, value in enumerate(filter(self._is_piece, range(len(problem.values))))}
        drawn = [index for index in self.repeatables if ops[index].random]
        self.states = {index: len(self.number) + n for n, index in enumerate(drawn)}
        self.momentary_bytes = arrays_of(problem).momentary_bytes.tolist()

    def cut(self, rounds: int) -> Stages:
        """The stages."""
        stages, became = merged([*self._stages()], rounds)
        pieces = [self._piece(value, became, len(stages)) for value in self.number]
        for index in self.states:
            born, reader = became[self.at[index]], self.place[index]
            pieces.append(Piece(-1 - index, self.problem.state_bytes, born=born, readers=(reader,)))
        return with_windows(stages, pieces, [self._repeatable(index, became) for index in self.repeatables])

    def _is_piece(self, value: int) -> bool:
        told, maker, readers = self.problem.values[value], self.problem.maker[value], self.problem.readers[value]
        if told.resident or maker < 0:
            return False
        if maker not in self.place or (told.held and maker in self.at):
            return not told.held and any(reader in self.place for reader in readers)
        return told.held or bool(readers)

    def _stages(self) -> Iterator[Stage]:
        """One stage for each operation that runs once, the turn, and the end."""
        live = self.problem.resident_bytes
        for number, index in enumerate(self.once):
            if number == self.turn:
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
        if self.turn == len(self.once):
            yield Stage((), live, live, marks=True)
        yield Stage((), live, live, marks=True)

    def _lasts(self, value: int) -> bool:
        return self.problem.values[value].resident or self.problem.values[value].held

    def _piece(self, value: int, became: list[int], end: int) -> Piece:
        told, maker, readers = self.problem.values[value], self.problem.maker[value], self.problem.readers[value]
        due = became[self.turn] + 1 if maker < self.problem.forward_length else end
        return Piece(
            value=value,
            size_bytes=told.size_bytes,
            maker=self.place.get(maker, -1),
            born=became[self.at[maker]] if maker in self.at else -1,
            stays=told.held,
            due=due if told.held else -1,
            read_at=tuple(dict.fromkeys(became[self.at[r]] for r in readers if r in self.at)),
            readers=tuple(self.place[r] for r in readers if r in self.place),
        )

    def _repeatable(self, index: int, became: list[int]) -> Repeatable:
        op, maker = self.problem.ops[index], self.problem.maker
        # it follows its own first draw, and what it reads of constants made in the step
        made = [maker[v] for v in op.reads if maker[v] in self.at] + [index] * (index in self.at)
        state = [self.states[index]] if index in self.states else []
        return Repeatable(
            op=index,
            seconds=op.seconds,
            momentary_bytes=self.momentary_bytes[index] + self.problem.state_bytes * len(state),
            reads=(*(self.number[v] for v in dict.fromkeys(op.reads) if v in self.number), *state),
            makes=tuple(self.number[v] for v in op.makes if v in self.number),
            first=max((became[self.at[one]] + 1 for one in made), default=0),
        )


def runs_of(problem: Problem, cut: Stages, ran: Sequence[Sequence[int]]) -> list[list[int]]:
    """What runs in each stage, in order, without runs that make nothing needed.

    ran: for each stage the repeatable operations (their places) that run in it.
    """
    ops, values, turn = problem.ops, problem.values, problem.forward_length
    held = [index for index, value in enumerate(values) if value.held]
    needed = set(held)
    order: list[list[int]] = []
    for stage in range(len(cut.stages) - 1, -1, -1):
        if any(piece.due == stage + 1 for piece in cut.pieces):
            needed.update(v for v in held if problem.maker[v] < turn)
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
    """The segments of a step that runs this in its stages.

    What runs once is in its block's segment, and so is a first run of forward's unless that segment is over, or the
    one of the next operation that runs once comes before. What runs again is in the segment of what follows.
    """
    blocks, forward_length = len(problem.block_classes), problem.forward_length
    turn = next(stage for stage, own in enumerate(cut.stages) if own.marks)
    segments: list[list[int]] = [[] for _ in range(2 * blocks)]
    seen: set[int] = set()
    for phase in (range(turn + 1), range(turn + 1, len(runs))):
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
    """For each stage the repeatable operations (their places) that an order runs in it, in trace order.

    Nearly so where an order runs one of them twice before a stage's own operation, or not in trace order.
    """
    place = {one.op: place for place, one in enumerate(cut.repeatables)}
    stage_of = {index: stage for stage, own in enumerate(cut.stages) for index in own.ops}
    turn = next(stage for stage, own in enumerate(cut.stages) if own.marks)
    chosen: list[set[int]] = [set() for _ in cut.stages]
    begun: set[int] = set()
    for phase, last in ((order[: len(order) // 2], turn), (order[len(order) // 2 :], len(chosen) - 1)):
        waiting: set[int] = set()
        for index in (index for segment in phase for index in segment):
            if index in stage_of and index not in begun:
                begun.add(index)
                chosen[stage_of[index]] |= waiting
                waiting = set()
            elif index in place:
                waiting.add(place[index])
        chosen[last] |= waiting
    return [sorted(one) for one in chosen]
