"""What one block can trade: bytes kept between forward and backward against seconds of running again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..problem.problem import Problem
from .minimum_cut import INFINITE, FlowGraph

SOURCE, SINK = 0, 1  # nodes; repeatable operation i of a block is node i + 2


@dataclass(frozen=True)
class Stake:
    """A value in the trade. Kept across the turn it takes `kept_bytes`; if it is neither kept nor made again,
    `missing_bytes` are paid for (by blocks that count on it). `position` is its place among the block's
    values, -1 for one that another block makes. `codes` are (bytes, seconds of codec) that keep it as well."""

    maker: int
    consumers: tuple[int, ...]
    kept_bytes: float
    missing_bytes: float = 0.0
    position: int = -1
    codes: tuple[tuple[int, float], ...] = ()

    def kept_at(self, price: float) -> tuple[float, float, int]:
        """(bytes, seconds, number of its code or -1) of the cheapest way to keep it, at a price in seconds per byte.

        The cost is the least of lines in the price, so concave.
        """
        ways = [(self.kept_bytes, 0.0, -1), *((*code, number) for number, code in enumerate(self.codes))]
        return min(ways, key=lambda way: way[1] + price * way[0])


@dataclass(frozen=True)
class Trade:
    """The trade of one block, free of names: equal for equal blocks.

    Operation i takes `seconds[i]` and `state_bytes[i]` to run again after the turn (0 s if nothing forces it
    to run before).
    """

    seconds: tuple[float, ...]
    state_bytes: tuple[int, ...]
    stakes: tuple[Stake, ...]


@dataclass(frozen=True)
class Point:
    """One way to trade: `kept` positions, their bytes (payments included), seconds of what runs again.

    encoded: positions and codes of what is kept encoded; `kept_bytes` and `seconds` count their codes and codecs.
    """

    kept: frozenset[int]
    kept_bytes: float
    seconds: float
    encoded: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Curve:
    """The best trades. worth[i] is the minimum of seconds + price[i] · bytes over all trades (never above it)."""

    points: tuple[Point, ...]
    price: tuple[float, ...]
    worth: tuple[float, ...]


@lru_cache(maxsize=8)
def forward_needs(problem: Problem) -> bytes:
    """For each operation 1 if every schedule runs it before backward begins: forward's outputs, operations
    that run once, random draws, and all that these are made from."""
    needs = bytearray(len(problem.ops))
    for index in range(problem.forward_length - 1, -1, -1):
        op = problem.ops[index]
        if not op.repeatable or op.random or any(problem.values[value].held for value in op.makes):
            needs[index] = 1
        if needs[index]:
            for value in op.reads:
                if problem.maker[value] >= 0:
                    needs[problem.maker[value]] = 1
    return bytes(needs)


def trade_of(problem: Problem, block: int, shares: bool) -> Trade:
    """The trade of a block.

    shares: whether values that several blocks use take part. If not, they are kept, and count nothing. If so,
        the block that makes one pays for keeping it, and gets its bytes back if it is there after the turn;
        of the later blocks that read it each pays an equal share of them if it needs it. With shares values may
        also be kept encoded.
    """
    segments = problem.segment_operations
    operations = segments[block] + segments[2 * len(problem.block_classes) - 1 - block]
    nodes = {index: SINK for index in operations if index >= problem.forward_length}
    repeatable = [index for index in operations if problem.ops[index].repeatable]
    nodes |= {index: node for node, index in enumerate(repeatable, 2)}
    needs = forward_needs(problem)
    stakes = _own_stakes(problem, block, operations, nodes, shares)
    if shares:
        stakes += _shares_of_others(problem, block, operations, nodes)
    return Trade(
        seconds=tuple(problem.ops[index].seconds * needs[index] for index in repeatable),
        state_bytes=tuple(problem.state_bytes * problem.ops[index].random for index in repeatable),
        stakes=tuple(stakes),
    )


def _own_stakes(
    problem: Problem, block: int, operations: tuple[int, ...], nodes: dict[int, int], shares: bool
) -> list[Stake]:
    stakes: list[Stake] = []
    made = ((index, value) for index in operations for value in problem.ops[index].makes)
    for position, (index, value) in enumerate(made):
        told, op = problem.values[value], problem.ops[index]
        in_backward = index >= problem.forward_length
        if told.held or (not op.repeatable and in_backward):
            continue
        readers = problem.readers[value]
        elsewhere = {problem.ops[r].block for r in readers if problem.ops[r].block != block}
        if elsewhere and not shares:
            continue
        consumers = tuple(dict.fromkeys(nodes[r] for r in readers if r in nodes))
        rewarded = not in_backward and any(other > block for other in elsewhere)
        missing_bytes = _shared_bytes(problem, value) if rewarded else 0
        if consumers or missing_bytes:
            kept_bytes = INFINITE if in_backward and not shares else told.size_bytes
            codes = tuple((one.size_bytes, one.seconds) for one in told.encodings) if shares else ()
            stakes.append(Stake(nodes.get(index, SOURCE), consumers, kept_bytes, missing_bytes, position, codes))
    return stakes


def _shares_of_others(problem: Problem, block: int, operations: tuple[int, ...], nodes: dict[int, int]) -> list[Stake]:
    stakes: list[Stake] = []
    reads = dict.fromkeys(value for index in operations for value in problem.ops[index].reads)
    for value in reads:
        maker = problem.maker[value]
        if not 0 <= maker < problem.forward_length or problem.values[value].held:
            continue
        owner = problem.ops[maker].block
        if owner < block:
            later = {problem.ops[r].block for r in problem.readers[value]}
            sharers = sum(other > owner for other in later)
            consumers = tuple(dict.fromkeys(nodes[r] for r in problem.readers[value] if r in nodes))
            if consumers:
                stakes.append(Stake(SOURCE, consumers, _shared_bytes(problem, value) / sharers))
    return stakes


def _shared_bytes(problem: Problem, value: int) -> float:
    """What the block that makes a value is paid for it by those that read it: its bytes, fewer if it can be encoded.

    Any amount gives a true bound, as long as it is in proportion to the price of bytes; the best would be what keeping
    the value costs, which with encodings is not. So it is that at one price, in bytes: what the whole step takes per
    byte of its values.
    """
    told = problem.values[value]
    if not told.encodings:
        return told.size_bytes
    usual = problem.seconds / max(sum(one.size_bytes for one in problem.values), 1)
    least_bytes = min(one.size_bytes + (one.seconds / usual if usual else 0.0) for one in told.encodings)
    return min(float(told.size_bytes), least_bytes)


@lru_cache(maxsize=256)
def curve_of(trade: Trade, highest_price: float, most_prices: int = 80) -> Curve:
    """The lower convex hull of (bytes, seconds) over all ways to keep and run again, by parametric minimum cut.

    For a price of λ seconds per byte, the least of (seconds run again) + λ · (bytes kept) is a minimum cut:
    operations on the sink's side run after the turn; a value is kept where its maker is on the source's side
    and a reader on the sink's (as in the min-cut partitioner of PyTorch, where however running again is
    free). The hull's vertices are found by Eisner and Severance 1976: solve at the price where two neighbours
    tie, and see whether another point lies below the line between them.
    """
    prices = {0.0: 0.0}
    points: dict[tuple[frozenset[int], frozenset[tuple[int, int]]], Point] = {}

    def solve(price: float) -> Point:
        point, prices[price] = _cheapest(trade, price)
        points.setdefault((point.kept, point.encoded), point)
        return point

    total_bytes = sum(s.kept_bytes for s in trade.stakes if s.kept_bytes != INFINITE) or 1.0
    total_seconds = sum(trade.seconds)
    lowest_price = 1e-7 * total_seconds / total_bytes if total_seconds else highest_price
    pending = [(solve(lowest_price), solve(highest_price))]
    while pending and len(prices) < most_prices:
        many, few = pending.pop(0)
        if many.kept_bytes <= few.kept_bytes or few.seconds <= many.seconds:
            continue
        price = (few.seconds - many.seconds) / (many.kept_bytes - few.kept_bytes)
        between = solve(price)
        below_line = many.seconds - between.seconds + price * (many.kept_bytes - between.kept_bytes)
        # with rounded numbers a known point may seem to lie below a line through itself
        new = all((between.kept, between.encoded) != (known.kept, known.encoded) for known in (many, few))
        if new and below_line > 1e-9 * total_seconds:
            pending += [(many, between), (between, few)]
    price = tuple(sorted(prices))
    in_order = tuple(sorted(points.values(), key=lambda point: (-point.kept_bytes, point.seconds)))
    return Curve(in_order, price, tuple(prices[one] for one in price))


def _cheapest(trade: Trade, price: float) -> tuple[Point, float]:
    """The trade that is best at a price (seconds per byte), and its worth."""
    first = len(trade.seconds) + 2
    graph = FlowGraph(first + len(trade.stakes))
    for node, (seconds, state_bytes) in enumerate(zip(trade.seconds, trade.state_bytes, strict=True), 2):
        graph.connect(SOURCE, node, seconds + price * state_bytes)
    given_back = 0.0
    for node, stake in enumerate(trade.stakes, first):
        kept_bytes, seconds, _ = stake.kept_at(price)
        graph.connect(stake.maker, node, seconds + price * kept_bytes)
        for consumer in stake.consumers:
            graph.connect(node, consumer, INFINITE)
        if stake.missing_bytes:
            graph.connect(node, SINK, price * stake.missing_bytes)
            given_back += price * stake.missing_bytes
    value, before = graph.cut()
    again = [node - 2 for node in range(2, first) if node not in before]
    kept: set[int] = set()
    kept_bytes = float(sum(trade.state_bytes[i] for i in again))
    codecs: dict[tuple[int, int], float] = {}
    for node, stake in enumerate(trade.stakes, first):
        if node in before:
            continue
        kept_bytes -= stake.missing_bytes
        if stake.maker in before:
            stake_bytes, codec_seconds, code = stake.kept_at(price)
            kept_bytes += stake_bytes
            kept.add(stake.position)
            if code >= 0:
                codecs[stake.position, code] = codec_seconds
    seconds = sum(trade.seconds[i] for i in again) + sum(codecs.values())
    return Point(frozenset(kept - {-1}), kept_bytes, seconds, frozenset(codecs)), value - given_back
