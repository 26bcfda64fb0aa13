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
    """The part of the bound that does not depend on the budget, for one cut of the step into blocks.

    price[i]: seconds per byte.
    worth[b, i]: the least of (recomputed seconds) + price[i] · (bytes kept) over blocks 0..b-1.
    moments: pairs of the number of blocks whose whole backward lies ahead and the bytes needed anyway.
    needless_seconds: the time of operations that a schedule may leave out.
    """

    price: np.ndarray
    worth: np.ndarray
    moments: tuple[tuple[int, int], ...]
    needless_seconds: float


def lower_bound_seconds(problem: Problem, budget_bytes: int) -> float:
    """Return a time such that no schedule with a peak of at most `budget_bytes` takes less extra time.

    Take the moment when an operation t of backward begins that runs once, and hence in trace order. Let K be the
    values alive then, and R the operations that run at t or later. Every value that t, later operations that run
    once, or R read is in K or made by R. Some operations of R run in the forward of every schedule (`forward_needs`):
    ancestors of forward's outputs, of random draws, of operations that run once. Those run at least twice; the others
    might be delayed at no cost. So

        extra seconds  >=  min over closed (K, R) of  seconds(R that forward needs),   with  bytes(K) <= X,

    X is the budget less the bytes that are resident, held, passed between operations that run once, and taken by t
    itself. For every price λ >= 0 per byte, min(seconds(R) + λ · bytes(K)) - λ · X is no more than that (Lagrange). The
    minimum is one of a cut. Cuts of whole models are cut further at block boundaries. The blocks that need a value
    of another block pay for it in shares, and the block that makes it available receives them. This is Lagrange's
    relaxation of "needed only if available". So each distinct block is solved once, for a few prices. Between prices
    the minimum is concave, so that its chords lie below it. A fractional knapsack over single values is the special
    case of R without inputs.

    A value with encodings may also be kept as a code. A code takes its bytes, and by the end the time of encoding and
    decoding, in addition to the operations that every schedule runs. In the cut the value is kept at the lesser cost,
    which is concave in the price as well.

    Extra time is the time beyond the step with everything kept, or beyond `Problem.reference`.

    The bound in seconds is the largest over moments and prices, at least 0. Cost: some tens of cuts per distinct block
    the first time, then microseconds.
    """
    return proven_seconds(problem, proofs_of(problem), budget_bytes)


def proofs_of(problem: Problem) -> tuple[Proof, ...]:
    """Return the proofs from which `proven_seconds` computes the bound for any budget."""
    # larger pieces lose less at their boundaries, smaller ones leave out less at moments within a piece
    return tuple(_proof_of(pieces) for pieces in (problem, *partitions(problem)))


def proven_seconds(problem: Problem, proofs: Iterable[Proof], budget_bytes: int) -> float:
    """Return `lower_bound_seconds` from proofs computed before."""
    best = 0.0
    for proof in proofs:
        for ahead, taken_bytes in proof.moments:
            least = proof.worth[ahead] - proof.price * (budget_bytes - taken_bytes)
            best = max(best, float(least.max()) - proof.needless_seconds)
    # times are summed in floats: stay below the proven bound by more than their rounding error
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
    """Return, for each operation of backward that runs once, the blocks ahead and the bytes that it needs.

    Blocks ahead are those whose whole backward follows. The bytes are those that every schedule has when the operation
    begins: resident, held already, passed between operations that run once, and its own. Of moments with equally many
    blocks ahead only the fullest is returned.
    """
    ops, values, forward_length = problem.ops, problem.values, problem.forward_length
    once = [index for index in range(forward_length, len(ops)) if not ops[index].repeatable]
    last_reader = {value: index for index in once for value in ops[index].reads}
    alive = problem.resident_bytes + sum(
        values[value].size_bytes for op in ops[:forward_length] for value in op.makes if values[value].held
    )
    fullest: dict[int, int] = {}
    begun: set[int] = set()
    dying: dict[int, int] = {}  # operation: bytes of earlier results that it reads last
    waiting: set[int] = set()  # values that a later operation reads

    def least_bytes(value: int) -> int:
        return min(part.size_bytes for part in (values[value], *values[value].encodings))

    for index in once:
        op = ops[index]
        made = sum(values[value].size_bytes for value in op.makes)
        ahead = op.block if op.block in begun else op.block + 1
        begun.add(op.block)
        # it reads the value itself, or a code that is read itself; before that any code suffices
        decoded = sum(values[v].least_read_bytes - least_bytes(v) for v in set(op.reads) if v in waiting)
        # its result may take the bytes of the value that it changes in place
        own_bytes = max(op.working_bytes, made) - (values[op.reuses].size_bytes if op.reuses is not None else 0)
        fullest[ahead] = max(fullest.get(ahead, 0), alive + decoded + own_bytes)
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
    """Return the time of repeatable operations that nothing needs, which a schedule may leave out."""
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
