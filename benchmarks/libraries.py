"""Compares what lowtide does itself with libraries that do it: minimum cuts, entries on disk, writing whole files.

    python -m benchmarks.libraries [cuts|entries|files ...] [--graphs N] [--repeats N]

Cuts are those that planning meets: GPT-2 with 12 layers, ResNet-152 and Llama-70B are planned without weights, with
costs by roofline, and the graphs are recorded. Of each plan `--graphs` are cut again by each library. `networkx` and
`scipy` are compared by the nodes on the source's side too. Entries and files are written and read `--repeats` times in
a temporary folder. Needs `pip install scipy diskcache atomicwrites safer`; what is missing is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pickle
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import networkx
import numpy as np

PLANS = {"gpt2": (8, 256), "resnet-152": (16, 128), "llama-70b": (4, 4096)}
_INT32_ROOM = 1e9  # the sum of all finite capacities, rounded to scipy's 32 bits
_INFINITE = float("inf")


@dataclass(frozen=True)
class Graph:
    """A graph whose minimum cut was asked for; edges are (tail, head, capacity), from node 0 to node 1."""

    nodes: int
    edges: tuple[tuple[int, int, float], ...]


Cut = tuple[float, set[int]]
"""The value of a minimum cut, and the nodes of the smallest source's side."""


def recorded_graphs(name: str, batch: int, length: int) -> list[Graph]:
    """Return the graphs that are cut while a model is planned for 60 %, with nothing cached."""
    import lowtide
    from lowtide.rewriter.models.batches import sample_batch
    from lowtide.rewriter.models.build import build_model
    from lowtide.solvers.blocks import tradeoff

    graphs: list[Graph] = []

    class Recorded(tradeoff.FlowGraph):
        def cut(self) -> Cut:
            edges = [(self.head[i + 1], self.head[i], self.rest[i]) for i in range(0, len(self.head), 2)]
            graphs.append(Graph(len(self.out), tuple(edges)))
            return super().cut()

    overrides = {"depths": [3, 8, 36, 3]} if name == "resnet-152" else {}
    model: Any = build_model(name.partition("-152")[0], overrides=overrides, meta=True)
    with mock.patch.object(tradeoff, "FlowGraph", Recorded):
        lowtide.plan(model, "60%", kwargs=sample_batch(model, batch, length), costs="roofline", device="h200-141gb")
    return graphs


def own_cut(graph: Graph) -> Cut:
    """Cut by `solvers/blocks/minimum_cut.py`."""
    from lowtide.solvers.blocks.minimum_cut import FlowGraph

    flow = FlowGraph(graph.nodes)
    for edge in graph.edges:
        flow.connect(*edge)
    return flow.cut()


def networkx_cut(graph: Graph, algorithm: Callable[..., Any]) -> Cut:
    """Cut by one of networkx's algorithms."""
    directed = networkx.DiGraph()
    directed.add_nodes_from(range(graph.nodes))
    for tail, head, capacity in graph.edges:
        directed.add_edge(tail, head, **({} if capacity == _INFINITE else {"capacity": capacity}))
    residual = algorithm(directed, 0, 1)
    smallest = 1e-12 * max((c for *_, c in graph.edges if c != _INFINITE), default=1.0)
    left = {node: [h for h, e in residual[node].items() if e["capacity"] - e["flow"] > smallest] for node in residual}
    return residual.graph["flow_value"], _reached(left)


def scipy_cut(graph: Graph) -> Cut:
    """Cut by scipy, whose capacities are whole numbers of 32 bits."""
    sparse = importlib.import_module("scipy.sparse")
    csgraph = importlib.import_module("scipy.sparse.csgraph")
    scale = _INT32_ROOM / (sum(c for *_, c in graph.edges if c != _INFINITE) or 1.0)
    tails, heads, capacities = zip(*graph.edges, strict=True)
    most = np.iinfo(np.int32).max
    rounded = np.array([most if c == _INFINITE else round(c * scale) for c in capacities], dtype=np.int32)
    matrix = sparse.csr_matrix((rounded, (tails, heads)), shape=(graph.nodes, graph.nodes), dtype=np.int32)
    result = csgraph.maximum_flow(matrix, 0, 1)
    rest = (matrix - result.flow).tocoo()
    left: dict[int, list[int]] = {}
    for tail, head, amount in zip(rest.row.tolist(), rest.col.tolist(), rest.data.tolist(), strict=True):
        if amount > 0:
            left.setdefault(tail, []).append(head)
    return result.flow_value / scale, _reached(left)


def _reached(left: dict[int, list[int]]) -> set[int]:
    """Return the nodes that the source reaches along edges with capacity left."""
    reached, front = {0}, deque([0])
    while front:
        for node in left.get(front.popleft(), ()):
            if node not in reached:
                reached.add(node)
                front.append(node)
    return reached


def compare_cuts(most_graphs: int) -> None:
    """Print for each model and library the time of a cut, and how often its side and value are lowtide's."""
    flow = networkx.algorithms.flow
    cuts: dict[str, Callable[[Graph], Cut]] = {
        "lowtide": own_cut,
        "networkx dinitz": partial(networkx_cut, algorithm=flow.dinitz),
        "networkx preflow_push": partial(networkx_cut, algorithm=flow.preflow_push),
        "networkx boykov_kolmogorov": partial(networkx_cut, algorithm=flow.boykov_kolmogorov),
    }
    if _installed("scipy"):
        cuts["scipy maximum_flow"] = scipy_cut
    for name, size in PLANS.items():
        with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
            graphs = recorded_graphs(name, *size)
        chosen = graphs[:: max(1, len(graphs) // most_graphs)][:most_graphs]
        nodes = [graph.nodes for graph in chosen]
        print(f"\n{name}: {len(graphs)} cuts, {len(chosen)} repeated; nodes {min(nodes)} to {max(nodes)}")
        print(f"{'':<28} {'ms a cut':>9} {'equal sides':>12} {'failed':>7} {'values apart':>12}")
        expected = [own_cut(graph) for graph in chosen]
        for library, cut in cuts.items():
            started = time.process_time()
            results = [_attempt(cut, graph) for graph in chosen]
            milliseconds = 1e3 * (time.process_time() - started) / len(chosen)
            pairs = [(mine, other) for mine, other in zip(expected, results, strict=True) if other is not None]
            equal = sum(mine[1] == other[1] for mine, other in pairs) / len(chosen)
            apart = max((abs(mine[0] - other[0]) / (mine[0] or 1.0) for mine, other in pairs), default=0.0)
            failed = len(chosen) - len(pairs)
            print(f"{library:<28} {milliseconds:>9.3f} {equal:>12.1%} {failed:>7} {apart:>12.1e}", flush=True)


def _attempt(cut: Callable[[Graph], Cut], graph: Graph) -> Cut | None:
    """Return a cut, or None where the library fails: networkx's algorithms raise errors for some rounded capacities."""
    try:
        return cut(graph)
    except (ValueError, LookupError, networkx.NetworkXException):
        return None


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: left out")
        return False
    return True


def _microseconds(act: Callable[[int], object], repeats: int) -> float:
    times = []
    for number in range(repeats):
        started = time.perf_counter()
        act(number)
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


class _Planted:
    """A pickle that leaves a mark when it is read."""

    marks: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _leave_mark, ("read",)


def _leave_mark(mark: str) -> None:
    _Planted.marks.append(mark)


def runs_planted_code(diskcache: Any, folder: Path) -> bool:
    """Return whether reading a cache of JSON runs a pickle that somebody else put into its database."""
    with diskcache.Cache(folder, disk=diskcache.JSONDisk) as cache:
        cache["entry"] = [1]
        cache._sql("UPDATE Cache SET mode = 4, value = ?", (pickle.dumps(_Planted()),))
        with contextlib.suppress(TypeError):  # what the pickle returns is no JSON
            cache["entry"]
    return bool(_Planted.marks)


def compare_entries(repeats: int) -> None:
    """Print the times of writing and reading a small and a large entry."""
    from lowtide.solvers.disk_cache import DiskCache

    random = np.random.default_rng(0)
    entries = {"small": ({"order": list(range(200))}, 1000), "large": ({"order": list(range(20_000))}, 200_000)}
    library = importlib.import_module("diskcache") if _installed("diskcache") else None
    print(f"\n{'entries on disk, µs':<28} {'write':>9} {'read':>9}")
    for size, (payload, elements) in entries.items():
        array = random.integers(0, 1000, elements)
        with tempfile.TemporaryDirectory() as folder:
            _time_own_entries(f"lowtide, {size}", DiskCache(Path(folder) / "own"), payload, array, repeats)
            if library is not None:
                with library.Cache(Path(folder) / "library", disk=library.JSONDisk) as cache:
                    plain = {"payload": payload, "array": array.tolist()}
                    _time_library_entries(f"diskcache.JSONDisk, {size}", cache, plain, repeats)
    if library is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(f"diskcache.JSONDisk runs a planted pickle: {runs_planted_code(library, Path(folder))}")


def _time_own_entries(name: str, cache: Any, payload: Any, array: np.ndarray, repeats: int) -> None:
    def read(number: int) -> object:
        entry = cache.read(f"entry-{number}")
        return entry.content, entry.array(0)

    written = _microseconds(lambda number: cache.write(f"entry-{number}", payload, [array]), repeats)
    print(f"{name:<28} {written:>9.0f} {_microseconds(read, repeats):>9.0f}")


def _time_library_entries(name: str, cache: Any, plain: dict[str, Any], repeats: int) -> None:
    written = _microseconds(lambda number: cache.set(f"entry-{number}", plain), repeats)
    read = _microseconds(lambda number: np.array(cache[f"entry-{number}"]["array"]), repeats)
    print(f"{name:<28} {written:>9.0f} {read:>9.0f}")


def compare_files(repeats: int) -> None:
    """Print the time of writing a file of 64 KiB, whole or not at all."""
    from lowtide.storage.private_files import write_private
    from lowtide.storage.public_files import write_whole

    content = os.urandom(1 << 16)
    writers: dict[str, Callable[[Path], object]] = {
        "write_private": lambda path: write_private(path, content),
        "write_private, lasting": lambda path: write_private(path, content, lasting=True),
        "write_whole": lambda path: write_whole(path, content),
    }
    if _installed("atomicwrites"):
        atomic = importlib.import_module("atomicwrites")
        writers["atomicwrites"] = lambda path: _written(atomic.atomic_write(path, mode="wb", overwrite=True), content)
    if _installed("safer"):
        safer = importlib.import_module("safer")
        writers["safer"] = lambda path: _written(safer.open(path, "wb", temp_file=True), content)
    print(f"\n{'files of 64 KiB, µs':<28} {'new':>9} {'replaced':>9}   mode")
    for name, write in writers.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / str(number) for number in range(repeats)]
            new, replaced = (_microseconds(lambda number: write(paths[number]), repeats) for _ in range(2))  # noqa: B023
            print(f"{name:<28} {new:>9.0f} {replaced:>9.0f}   {paths[0].stat().st_mode & 0o777:o}")


def _written(manager: Any, content: bytes) -> None:
    with manager as file:
        file.write(content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparisons that are asked for, all by default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.libraries",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="of: cuts, entries, files (default: all)")
    parser.add_argument("--graphs", type=int, default=200, help="of each plan (default: 200)")
    parser.add_argument("--repeats", type=int, default=200, help="of writing and reading (default: 200)")
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], None]] = {
        "cuts": lambda: compare_cuts(options.graphs),
        "entries": lambda: compare_entries(options.repeats),
        "files": lambda: compare_files(options.repeats),
    }
    for part in options.parts or parts:
        if part not in parts:
            parser.error(f"there is no part {part!r}: choose among {', '.join(parts)}")
        parts[part]()


if __name__ == "__main__":
    main()
