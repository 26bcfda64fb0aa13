"""The trade of one block: bytes kept between forward and backward against seconds of recomputation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..problem.problem import Problem
from .minimum_cut import INFINITE, FlowGraph

SOURCE, SINK = 0, 1  # nodes; repeatable operation i of a block is node i + 2


@dataclass(frozen=True)
class Stake:
    """A value in the trade.

    kept_bytes: the bytes it takes if kept across the forward/backward boundary.
    missing_bytes: paid for by blocks that rely on it, if it is neither kept nor recomputed.
    position: its place among the block's values, -1 for one that another block makes.
    codes: (bytes, seconds of the codec) of encodings that keep it as well.
    """

    maker: int
    consumers: tuple[int, ...]
    kept_bytes: float
    missing_bytes: float = 0.0
    position: int = -1
    codes: tuple[tuple[int, float], ...] = ()

    def kept_at(self, price: float) -> tuple[float, float, int]:
        """Return (bytes, seconds, number of the code or -1) that keep it at the least cost.

        price: in seconds per byte.

        The cost is the minimum of lines in the price, hence concave.
        """
        choices = [(self.kept_bytes, 0.0, -1), *((*code, number) for number, code in enumerate(self.codes))]
        return min(choices, key=lambda choice: choice[1] + price * choice[0])


@dataclass(frozen=True)
class Trade:
    """The trade of one block, without names: equal for equal blocks.

    Operation i takes `seconds[i]` and `state_bytes[i]` to be recomputed in backward; 0 s if nothing forces it to run
    in forward.
    """

    seconds: tuple[float, ...]
    state_bytes: tuple[int, ...]
    stakes: tuple[Stake, ...]


@dataclass(frozen=True)
class Point:
    """One point of a trade.

    kept: positions of the values kept.
    kept_bytes: of these values, with payments, generator states and codes.
    seconds: of recomputed operations and of codecs.
    encoded: (position, code) of the values kept encoded.
    """

    kept: frozenset[int]
    kept_bytes: float
    seconds: float
    encoded: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Curve:
    """The best trades; worth[i] is at most the minimum of seconds + price[i] · bytes over all trades."""

    points: tuple[Point, ...]
    price: tuple[float, ...]
    worth: tuple[float, ...]


@lru_cache(maxsize=8)
def forward_needs(problem: Problem) -> bytes:
    """Return for each operation 1 if every schedule runs it before backward begins.

    These make forward's outputs, run once or draw random numbers, or make the values that such operations read.
    """
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
    """Build the trade of a block.

    shares: whether values that several blocks use take part. Without it they are kept and count nothing. With it
        the block that makes one pays for keeping it, and gets its bytes back if it is there in backward. Each later
        block that reads it pays an equal share if it needs it. With shares values may also be kept encoded.
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
        record, op = problem.values[value], problem.ops[index]
        in_backward = index >= problem.forward_length
        if record.held or (not op.repeatable and in_backward):
            continue
        readers = problem.readers[value]
        elsewhere = {problem.ops[r].block for r in readers if problem.ops[r].block != block}
        if elsewhere and not shares:
            continue
        consumers = tuple(dict.fromkeys(nodes[r] for r in readers if r in nodes))
        rewarded = not in_backward and any(other > block for other in elsewhere)
        missing_bytes = _shared_bytes(problem, value) if rewarded else 0
        if consumers or missing_bytes:
            kept_bytes = INFINITE if in_backward and not shares else record.size_bytes
            codes = tuple((encoding.size_bytes, encoding.seconds) for encoding in record.encodings) if shares else ()
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
    """Return the bytes that readers of a value pay to the block that makes it; fewer if it can be encoded.

    Any amount in proportion to the price of bytes gives a true bound. The best amount is the cost of keeping the value,
    but with encodings that is not in proportion. So the cost is taken at one price: the seconds of the whole step per
    byte of its values.
    """
    record = problem.values[value]
    if not record.encodings:
        return record.size_bytes
    average_price = problem.seconds / max(sum(v.size_bytes for v in problem.values), 1)
    least_bytes = min(
        encoding.size_bytes + (encoding.seconds / average_price if average_price else 0.0)
        for encoding in record.encodings
    )
    return min(float(record.size_bytes), least_bytes)


@lru_cache(maxsize=256)
def curve_of(trade: Trade, highest_price: float, most_prices: int = 80) -> Curve:
    """Return the lower convex hull of (bytes, seconds) over all trades, by parametric minimum cut.

    At a price of λ seconds per byte, the least of (seconds recomputed) + λ · (bytes kept) is a minimum cut. Operations
    on the sink's side run in backward. A value is kept where its maker is on the source's side and a reader on the
    sink's. PyTorch's min-cut partitioner does the same, but there recomputation is free. The hull's vertices are found
    by Eisner and Severance 1976: solve at the price where two neighbours tie, and look for a point below their line.
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
        new = all((between.kept, between.encoded) != (neighbour.kept, neighbour.encoded) for neighbour in (many, few))
        if new and below_line > 1e-9 * total_seconds:
            pending += [(many, between), (between, few)]
    price = tuple(sorted(prices))
    in_order = tuple(sorted(points.values(), key=lambda point: (-point.kept_bytes, point.seconds)))
    return Curve(in_order, price, tuple(prices[each] for each in price))


def _cheapest(trade: Trade, price: float) -> tuple[Point, float]:
    """Return the point that is best at a price (seconds per byte), and its worth."""
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
    recomputed = [node - 2 for node in range(2, first) if node not in before]
    kept: set[int] = set()
    kept_bytes = float(sum(trade.state_bytes[i] for i in recomputed))
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
    seconds = sum(trade.seconds[i] for i in recomputed) + sum(codecs.values())
    return Point(frozenset(kept - {-1}), kept_bytes, seconds, frozenset(codecs)), value - given_back
