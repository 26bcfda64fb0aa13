"""A proven lower bound on the extra time of any schedule under a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .blocks.cuts import partitions
from .blocks.tradeoff import curve_of, forward_needs, trade_of
from .problem.problem import Problem


@dataclass(frozen=True, eq=False)
class Proof:
    """What does not depend on the budget, for one way to cut the step into blocks.

    worth[b, i]: the least of (seconds run again) + price[i] · (bytes kept) over blocks 0..b-1.
    moments: (blocks whose whole backward lies ahead, bytes alive or taken whatever the schedule does).
    """

    price: np.ndarray
    worth: np.ndarray
    moments: tuple[tuple[int, int], ...]
    needless_seconds: float


def lower_bound_seconds(problem: Problem, budget_bytes: int) -> float:
    """No schedule whose peak is at most `budget_bytes` takes less extra time than this.

    Take the moment in which an operation t of backward that runs once (hence in trace order) begins. Let K be
    the values alive then, R the operations that run at t or later. Whatever t and the later operations that
    run once read is in K or made by R, and what R reads likewise. Operations of R that every schedule runs in
    forward (`forward_needs`: ancestors of forward's outputs, of random draws, of operations that run once;
    others might simply be delayed at no cost) run at least twice. So

        extra seconds  >=  min over closed (K, R) of  seconds(R that forward needs),   with  bytes(K) <= X,

    X being the budget less what is resident, held, on its way between operations that run once, and taken by
    t itself. For every price λ >= 0 per byte, min(seconds(R) + λ · bytes(K)) - λ · X is no more than that
    (Lagrange), and the minimum is one of a cut. Cuts of whole models are cut further at block boundaries: a
    value that other blocks use is paid for in shares by the blocks that need it and given back to the block
    that makes it available, which is Lagrange's relaxation of "needed only if available". So each distinct
    block is solved once, for a few prices; between these the minimum is concave in the price, so that its
    chords lie below it. A fractional knapsack over single values is the special case of R without inputs.

    A value with encodings may also be there as a code, which takes its bytes and will have taken the time of encoding
    and of decoding by the end: codecs run beyond what every schedule runs. In the cut it is kept at the lesser cost,
    which is concave in the price as well.

    Extra is what goes beyond the step with everything kept, or beyond `Problem.reference`.

    The bound is the largest over moments and prices, at least 0. Bytes and seconds; cost: some tens of cuts
    per distinct block the first time, then microseconds.
    """
    return proven_seconds(problem, proofs_of(problem), budget_bytes)


def proofs_of(problem: Problem) -> tuple[Proof, ...]:
    """What `proven_seconds` needs, for any budget."""
    # larger pieces lose less between them, smaller ones leave less out at moments within a piece
    return tuple(_proof_of(pieces) for pieces in (problem, *partitions(problem)))


def proven_seconds(problem: Problem, proofs: Iterable[Proof], budget_bytes: int) -> float:
    """`lower_bound_seconds` by proofs found before."""
    best = 0.0
    for proof in proofs:
        for ahead, taken_bytes in proof.moments:
            least = proof.worth[ahead] - proof.price * (budget_bytes - taken_bytes)
            best = max(best, float(least.max()) - proof.needless_seconds)
    # times are summed in floats: stay below what is proven by more than their error
    proven = max(0.0, best - 1e-9 * problem.seconds)
    return proven if problem.reference is None else max(0.0, proven + problem.seconds - problem.reference.seconds)


@lru_cache(maxsize=8)
def _proof_of(problem: Problem) -> Proof:
    sizes = [part.size_bytes for value in problem.values for part in (value, *value.encodings) if part.size_bytes]
    highest_price = (problem.seconds or 1.0) / min(sizes, default=1)
    curves = [
        curve_of(trade_of(problem, block, shares=True), highest_price) for block in range(len(problem.block_classes))
    ]
    price = np.unique([price for curve in set(curves) for price in curve.price])
    worth = np.zeros((len(curves) + 1, len(price)))
    of_curve = {curve: np.interp(price, curve.price, curve.worth) for curve in set(curves)}
    for block, curve in enumerate(curves):
        worth[block + 1] = worth[block] + of_curve[curve]
    return Proof(price, worth, _moments(problem), _needless_seconds(problem))


def _moments(problem: Problem) -> tuple[tuple[int, int], ...]:
    """For each operation of backward that runs once: the blocks whose backward is all ahead, and the bytes
    that no schedule can do without when it begins (resident; held already; made and to be read by those that
    run once; its own). Of moments with equally many blocks ahead only the fullest."""
    ops, values, turn = problem.ops, problem.values, problem.forward_length
    once = [index for index in range(turn, len(ops)) if not ops[index].repeatable]
    last_reader = {value: index for index in once for value in ops[index].reads}
    alive = problem.resident_bytes + sum(
        values[value].size_bytes for op in ops[:turn] for value in op.makes if values[value].held
    )
    fullest: dict[int, int] = {}
    begun: set[int] = set()
    dying: dict[int, int] = {}  # bytes that operations made for each later one to read last
    waiting: set[int] = set()  # values made for a later one to read

    def least_bytes(value: int) -> int:
        return min(part.size_bytes for part in (values[value], *values[value].encodings))

    for index in once:
        op = ops[index]
        made = sum(values[value].size_bytes for value in op.makes)
        ahead = op.block if op.block in begun else op.block + 1
        begun.add(op.block)
        # what it reads it reads as it is, or a code that is read itself; until then any code would do
        decoded = sum(values[v].least_read_bytes - least_bytes(v) for v in set(op.reads) if v in waiting)
        # what it makes may take the bytes of what it reads
        beside = max(op.working_bytes, made) - (values[op.reuses].size_bytes if op.reuses is not None else 0)
        fullest[ahead] = max(fullest.get(ahead, 0), alive + decoded + beside)
        for value in op.makes:
            reader = last_reader.get(value, -1)
            if values[value].held:
                alive += values[value].size_bytes
            elif reader > index:
                waiting.add(value)
                alive += least_bytes(value)
                dying[reader] = dying.get(reader, 0) + least_bytes(value)
        alive -= dying.pop(index, 0)
    return tuple(fullest.items())


def _needless_seconds(problem: Problem) -> float:
    """Time of repeatable operations that nothing needs: a schedule may leave them out."""
    needed = bytearray(forward_needs(problem))
    for index in range(len(problem.ops) - 1, -1, -1):
        op = problem.ops[index]
        if not op.repeatable or op.random or any(problem.values[value].held for value in op.makes):
            needed[index] = 1
        if needed[index]:
            for value in op.reads:
                if problem.maker[value] >= 0:
                    needed[problem.maker[value]] = 1
    return sum(op.seconds for index, op in enumerate(problem.ops) if not needed[index])
