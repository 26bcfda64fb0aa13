"""The peaks of a part of a run order, by a walk from its end to its beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..problem.problem import Problem
from ..problem.problem_arrays import arrays_of


class PeakWalk:
    """Walks back through parts of run orders, for searches that try thousands of them.

    A whole run order has thousands of runs, so `forecast` computes their peaks with arrays. For the few runs of a block
    this walk takes less time, and the values alive at its end may be any. Generator states and codes do not count.

    size_bytes: of each value.
    held: values that are never freed.
    """

    def __init__(self, problem: Problem) -> None:
        arrays = arrays_of(problem)
        self.ops = problem.ops
        self.size_bytes: list[int] = arrays.size_bytes.tolist()
        self.momentary_bytes: list[int] = arrays.momentary_bytes.tolist()
        self.held = frozenset(np.flatnonzero(arrays.held).tolist())

    def peak_above_start(self, order: Sequence[int], alive: set[int]) -> int:
        """Return the highest peak above the bytes alive at the beginning; `alive` as in `peaks`."""
        peaks, start_bytes = self.peaks(order, alive)
        return max(0, max(peaks, default=0)) - start_bytes

    def peaks(self, order: Sequence[int], alive: set[int]) -> tuple[list[int], int]:
        """Return the peak of each run, the last run's first, and the bytes alive at the beginning.

        All bytes are relative to those alive at the end. A value that is alive later lives from its maker on; any other
        one dies with its last reader. A value that dies by being changed in place gives its bytes to the result.

        alive: the values alive at the end. They are replaced by those alive at the beginning.
        """
        ops, size, momentary, held = self.ops, self.size_bytes, self.momentary_bytes, self.held
        peaks: list[int] = []
        live = 0
        for index in reversed(order):
            op = ops[index]
            for value in op.makes:
                if value in alive:
                    live -= size[value]
                    if value not in held:
                        alive.discard(value)
            reused = 0
            for value in op.reads:
                if value not in alive:
                    alive.add(value)
                    live += size[value]
                    if value == op.reuses:
                        reused = size[value]
            peaks.append(live + momentary[index] - reused)
        return peaks, live
