"""Rewrites models whose classes, parts, arguments and outputs have hostile names, and looks for harm.

    python -m benchmarks.fuzz.names [--names 2000] [--each 10] [--seed 0]

Each name is a class, a part, a parameter, a buffer, an attribute, a key of the batch, a named argument and an output of
a model. The model is trained for two steps, in eager and rewritten. Its code, plan, tables and plan file are shown.
Failures are a gradient or output that is not eager's, code with anything but calls of operations, and a control
character that is printed. Harm is what a canary notices: its own call, a process started, a file opened in its folder.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.fuzz.hostile_names import hostile_names, listening
from benchmarks.named_models import tried


def main() -> None:
    """Try all names and print what they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=2000)
    parser.add_argument("--each", type=int, default=10, help="names in one model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    wrong: list[str] = []
    refused: Counter[str] = Counter()
    with TemporaryDirectory() as folder, TemporaryDirectory() as plans, listening(Path(folder)) as canary:
        names = hostile_names(options.names, canary.call, options.seed)
        for start in range(0, len(names), options.each):
            outcome = tried(names[start : start + options.each], Path(plans))
            wrong += [f"names {start} on: {fault}" for fault in outcome.wrong]
            refused.update([outcome.refused] if outcome.refused else [])
        harm = canary.harm
    models = -(-len(names) // options.each)
    print(f"{len(names)} names in {models} models, seed {options.seed}, {time.perf_counter() - started:.0f} s")
    print(f"{models - refused.total()} trained as eager does, {refused.total()} refused")
    print(f"{len(wrong)} wrong, {len(harm)} executed")
    for text in (*refused, *wrong, *harm):
        print(f"  {text[:200]}")
    raise SystemExit(bool(wrong or harm))


if __name__ == "__main__":
    main()
