"""Plans and trains in several threads at once, with one cache folder in which a further thread damages files.

    python -m benchmarks.threads [--threads 4] [--minutes 10] [--seed 0]

Each thread makes small networks and rewrites them for budgets between 60 % and 100 %. It trains each for three steps in
eager and rewritten. Outputs, gradients and weights must be eager's to the bit. Networks with dropout draw from the one
generator that all threads share: only their shapes are compared, and every number must be finite. Prints how many were
planned, trained and refused as infeasible; returns 1 if any differs or raises another error.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lowtide
import torch
from lowtide.solvers.problem.errors import InfeasibleBudget
from torch import nn

from benchmarks.fuzz.mutations import mutated_bytes

_STEPS = 3
_ACTIVATIONS = (nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU)
_SHARES = ("60%", "75%", "90%", "100%")


@dataclass
class Tally:
    """The counts and the failures of all threads."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str) -> None:
        """Count an event."""
        with self.lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        """Keep a failure."""
        with self.lock:
            self.failures.append(what)


def network(chance: random.Random) -> tuple[nn.Module, torch.Tensor, bool]:
    """Return a small network, its input, and whether it draws random numbers."""
    width, rows, is_drawing = chance.choice((8, 16, 24)), chance.randint(2, 48), chance.random() < 0.3
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    layers: list[nn.Module] = []
    for _ in range(chance.randint(1, 4)):
        layers += [nn.Linear(width, 2 * width), chance.choice(_ACTIVATIONS)(), nn.Linear(2 * width, width)]
        layers += [nn.LayerNorm(width)] if chance.random() < 0.5 else [nn.BatchNorm1d(width)]
        layers += [nn.Dropout(0.2)] if is_drawing else []
    return nn.Sequential(*layers), torch.randn(rows, width, generator=generator), is_drawing


def train(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Take a few steps of gradient descent; return each loss, and the weights, buffers and gradients at the end."""
    seen = []
    for _ in range(_STEPS):
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        seen.append(loss.detach().clone())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad  # pyright: ignore[reportOperatorIssue]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*seen, *(tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers(), *gradients))]


def try_once(chance: random.Random, tally: Tally) -> None:
    """Train one network in eager and rewritten, and compare both."""
    model, x, is_drawing = network(chance)
    rewritten, share = copy.deepcopy(model), chance.choice(_SHARES)
    try:
        small = lowtide.rewrite(rewritten, share, (x,), time_limit=2.0, costs="flops")
    except InfeasibleBudget:
        tally.add("infeasible")
        return
    tally.add("planned")
    expected, actual = train(model, x), train(small, x)
    tally.add("trained")
    if is_drawing:
        equal = all(a.shape == b.shape and bool(b.isfinite().all()) for a, b in zip(expected, actual, strict=True))
    else:
        equal = all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    if not equal:
        tally.fail(f"{share} of {model} on {tuple(x.shape)}: not eager's bits")


def damage(folder: Path, chance: random.Random, stop: threading.Event, tally: Tally) -> None:
    """Cut, empty and scramble files of the cache until `stop` is set."""
    while not stop.wait(1.0):
        files = [file for file in folder.rglob("*") if file.is_file()]
        if not files:
            continue
        file = chance.choice(files)
        try:
            file.write_bytes(mutated_bytes(file.read_bytes(), chance))
            tally.add("files damaged")
        except OSError:
            continue  # replaced by another thread meanwhile


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the threads and print the counts; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", lowtide.LowtideWarning)
    tally, end, stop = Tally(), time.monotonic() + 60 * options.minutes, threading.Event()

    def work(number: int) -> None:
        chance = random.Random(f"{options.seed} {number}")
        while time.monotonic() < end:
            try:
                try_once(chance, tally)
            except Exception:
                tally.fail(traceback.format_exc(limit=-4))

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        threads = [threading.Thread(target=work, args=(number,)) for number in range(options.threads)]
        breaker = threading.Thread(target=damage, args=(Path(folder), random.Random(options.seed), stop, tally))
        for thread in (*threads, breaker):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        breaker.join()
    print(f"{options.threads} threads, {options.minutes:g} minutes: {dict(sorted(tally.counts.items()))}")
    print(f"{len(tally.failures)} failures")
    print("\n".join(tally.failures[:10]))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
