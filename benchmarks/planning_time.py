"""The time that planning takes, cold and warm: GPT-2 of four depths, ResNet-152, a U-Net, Llama-70B without weights.

    python -m benchmarks.planning_time [CASE ...] [--json FILE]

Each case is planned twice for a budget of 60 %, each time in a process of its own: with nothing cached, and with the
costs and candidates that the first left. `capture` is all but solving: tracing the step, passes, and measuring each
kind of kernel once (when warm, reading the measurements). Solving is `Plan.solve_seconds`: from the problem to the
simulated plan with its bound, reading and writing the cache included. Imports and building the model are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_GPT2 = {"n_embd": 384, "n_head": 6, "vocab_size": 8000}
_RESNET_152 = {"depths": [3, 8, 36, 3]}


@dataclass(frozen=True)
class Case:
    """A step to plan.

    build: returns the model and the keyword arguments of its forward.
    device: the preset to plan for, with costs by roofline; None to measure on this machine.
    """

    build: Callable[[], tuple[Any, dict[str, Any]]]
    device: str | None = None


def _from_transformers(name: str, batch: int, length: int, meta: bool = False, **overrides: Any) -> tuple[Any, Any]:
    """Build a model and a batch. length: tokens of text, or the side of pictures."""
    from lowtide.rewriter.models.batches import sample_batch
    from lowtide.rewriter.models.build import build_model

    model = build_model(name, overrides=overrides, meta=meta)
    return model, sample_batch(model, batch, length)


def _u_net() -> tuple[Any, Any]:
    from benchmarks.frontier.models import u_net

    return u_net(channels=16, batch=4, side=96)


CASES = {
    **{
        f"gpt2, {depth} layers": Case(partial(_from_transformers, "gpt2", 8, 256, n_layer=depth, **_GPT2))
        for depth in (12, 24, 48, 96)
    },
    "resnet-152": Case(partial(_from_transformers, "resnet", 16, 128, **_RESNET_152)),
    "u-net": Case(_u_net),
    "llama-70b on meta": Case(partial(_from_transformers, "llama-70b", 4, 4096, meta=True), "h200-141gb"),
}


def main() -> None:
    """Run the cases and print a table; `--once` runs one case here and prints its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {'; '.join(CASES)} (default: all)")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}: choose among {'; '.join(CASES)}")
    if options.once:
        print(json.dumps(_run(CASES[options.cases[0]])))
        return
    print(f"{'':<17}  operations  layers     capture, s       solving, s   host memory   peak /   extra")
    print(f"{'':<17}             (kinds)   cold    warm    cold    warm                 all kept    time")
    rows = {name: _twice(name) for name in options.cases or CASES}
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _twice(name: str) -> dict[str, Any]:
    """Run a case with nothing cached, then with the cache of that run; print its line."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = _in_process(name, cache), _in_process(name, cache)
    layers = f"{cold['layers']} ({cold['kinds_of_layers']})"
    print(
        f"{name:<17}  {cold['operations']:>10,} {layers:>8} "
        f"{cold['capture_seconds']:>7.1f} {warm['capture_seconds']:>7.1f} "
        f"{cold['solve_seconds']:>7.1f} {warm['solve_seconds']:>7.2f}    {cold['host_bytes'] / 2**30:>6.2f} GiB "
        f"  {cold['peak_share']:>7.1%} {cold['extra_share']:>7.1%}",
        flush=True,
    )
    return {"cold": cold, "warm": warm}


def _in_process(name: str, cache: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.planning_time", "--once", name]
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    completed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(completed.stdout.splitlines()[-1])


def _run(case: Case) -> dict[str, Any]:
    import lowtide
    from lowtide.solvers.blocks.block_values import alike
    from lowtide.solvers.blocks.layers import in_layers

    model, batch = case.build()
    options = {"costs": "roofline", "device": case.device} if case.device else {}
    started = time.perf_counter()
    plan = lowtide.plan(model, "60%", kwargs=batch, **options)
    planning_seconds = time.perf_counter() - started
    kinds = alike(in_layers(plan.problem))
    return {
        "operations": len(plan.problem.ops),
        "layers": len(kinds),
        "kinds_of_layers": len(set(kinds)),
        "capture_seconds": planning_seconds - plan.solve_seconds,
        "solve_seconds": plan.solve_seconds,
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_share": plan.peak_bytes / plan.baseline_peak_bytes,
        "extra_share": plan.extra_share,
    }


if __name__ == "__main__":
    main()
