"""Minimum cuts of small directed graphs, by Dinic's algorithm."""

from __future__ import annotations

INFINITE = float("inf")


class FlowGraph:
    """A directed graph with capacities between node 0 (the source) and node 1 (the sink).

    Dinic 1970: shortest augmenting paths, a level at a time; O(nodes² · edges), far less on the sparse graphs of
    models. Capacities are floats; an edge with less than `smallest` left counts as saturated.
    """

    def __init__(self, nodes: int) -> None:
        self.out: list[list[int]] = [[] for _ in range(nodes)]  # edges by number; edge ^ 1 goes back
        self.head: list[int] = []
        self.rest: list[float] = []
        self.smallest = 0.0

    def connect(self, tail: int, head: int, capacity: float) -> None:
        """Add an edge."""
        self.out[tail].append(len(self.head))
        self.out[head].append(len(self.head) + 1)
        self.head += (head, tail)
        self.rest += (capacity, 0.0)

    def cut(self) -> tuple[float, set[int]]:
        """Return (value, nodes on the source's side) of the minimum cut with the fewest nodes on that side.

        The value is that of a flow, hence never above the true minimum.
        """
        finite = [capacity for capacity in self.rest if capacity != INFINITE]
        self.smallest = 1e-12 * max(finite, default=1.0)
        value = 0.0
        while True:
            level = self._levels()
            if level[1] < 0:
                return value, {node for node, depth in enumerate(level) if depth >= 0}
            upcoming = [0] * len(self.out)
            while pushed := self._push(level, upcoming):
                value += pushed

    def _levels(self) -> list[int]:
        """Return the distance of every node from the source along edges with capacity left; -1 without a path."""
        level = [-1] * len(self.out)
        level[0] = 0
        front = [0]
        for node in front:
            for edge in self.out[node]:
                if self.rest[edge] > self.smallest and level[self.head[edge]] < 0:
                    level[self.head[edge]] = level[node] + 1
                    front.append(self.head[edge])
        return level

    def _push(self, level: list[int], upcoming: list[int]) -> float:
        """Push flow along one shortest path and return it; 0 if no path is left.

        upcoming: the next edge to try per node.
        """
        path: list[int] = []
        node = 0
        while node != 1:
            if upcoming[node] == len(self.out[node]):
                if not path:
                    return 0.0
                node = self.head[path.pop() ^ 1]  # a dead end: step back and try the next edge there
                upcoming[node] += 1
                continue
            edge = self.out[node][upcoming[node]]
            if self.rest[edge] > self.smallest and level[self.head[edge]] == level[node] + 1:
                path.append(edge)
                node = self.head[edge]
            else:
                upcoming[node] += 1
        flow = min(self.rest[edge] for edge in path)
        for edge in path:
            self.rest[edge] -= flow
            self.rest[edge ^ 1] += flow
        return flow
