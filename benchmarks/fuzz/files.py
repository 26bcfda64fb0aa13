"""Damages plan files, measured costs, solvers' entries and compiled kernels at random, and checks reading them.

    python -m benchmarks.fuzz.files [--plans 10000] [--caches 2000] [--seed 0]

A damaged plan must be refused with PlanError, or be a plan that makes the same gradients within its budget. Damaged
parts of a cache must be measured, solved or compiled again. Failures are any other error, anything run, anything
imported, text that would reach a terminal unescaped, and whatever takes longer than ten seconds. Half of the damage is
to bytes, half to the content of the JSON. Half of the damaged caches get a correct digest, as only this user could
write it.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lowtide
import torch
from lowtide.kernels.backend import native
from lowtide.rewriter.cli.inspect_plan import request_of
from lowtide.rewriter.errors import PlanError
from lowtide.rewriter.measure import cost_cache
from lowtide.rewriter.plan.options import Options
from lowtide.rewriter.plan.plan_file import plan_to_dict
from lowtide.rewriter.plan.planner import StepPlanner
from lowtide.rewriter.plan.solve import solve_step
from lowtide.solvers import disk_cache
from lowtide.solvers.disk_cache import DiskCache
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.errors import InfeasibleBudget
from torch import nn

from benchmarks.fuzz.mutations import mutated_bytes, mutated_json, mutated_schedule

_LONGEST_SECONDS = 10.0
_MOST_TRAINED = 40  # plans among those accepted that are run and compared with eager
_RUNS = ("exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "ctypes.dlopen", "import")
_listening: list[list[str]] = []


@dataclass
class Report:
    """Counts of what happened, and every failure with the seed that repeats it."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0

    def failed(self, what: str) -> None:
        """Count a failure."""
        self.counts["wrong"] += 1
        self.failures.append(what)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event in _RUNS:
        _listening[-1].append(f"{event} {str(arguments)[:80]}")


@contextmanager
def nothing_run(report: Report, label: str) -> Iterator[None]:
    """Record a failure if anything is executed, imported or loaded inside, or it takes too long."""
    if not getattr(sys, "_lowtide_hears", False):
        sys._lowtide_hears = True  # pyright: ignore[reportAttributeAccessIssue]
        sys.addaudithook(_hear)
    heard: list[str] = []
    _listening.append(heard)
    started = time.perf_counter()
    try:
        yield
    finally:
        _listening.pop()
        seconds = time.perf_counter() - started
        report.longest_seconds = max(report.longest_seconds, seconds)
        if heard:
            report.failed(f"{label}: ran {heard[:3]}")
        if seconds > _LONGEST_SECONDS:
            report.failed(f"{label}: took {seconds:.1f} s")


class Subject:
    """A small model with a plan at a tight budget, and what reading a plan for it requires."""

    def __init__(self, fidelity: str) -> None:
        torch.manual_seed(0)
        parts = [nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 8)) for _ in range(2)]
        self.model = nn.Sequential(*parts, nn.Tanh(), nn.Linear(8, 2))
        self.x = torch.randn(128, 8)
        self.options: dict[str, Any] = {"costs": "flops", "fidelity": fidelity}
        if fidelity == "approximate":
            self.options["error_budget"] = 1.0
        self.plan = lowtide.plan(self.model, "70%", (self.x,), **self.options)
        if fidelity == "approximate" and not self.plan.encoded:
            raise SystemExit("the plan with codes has none: choose another budget")
        self.budget_bytes = self.plan.budget_bytes or 0
        planner, present = StepPlanner.of(self.model, (self.x,), {}, Options(**self.options))
        self.variants = planner.variants(present)
        self.portfolio = Portfolio(cache=None)

    def gradients(self, model: nn.Module) -> list[torch.Tensor]:
        """Return the gradients of one step, with the same random numbers each time."""
        torch.manual_seed(1)
        model(self.x).square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return gradients


def fuzz_plans(subject: Subject, count: int, seed: int, report: Report, folder: Path) -> Report:
    """Damage a plan's file `count` times, read it, and accept what is still a plan."""
    path = folder / "plan.json"
    lowtide.save_plan(subject.plan, path, made_by={"model": "gpt2", "settings": {"n_layer": "2"}, "batch": 2})
    whole = path.read_bytes()
    document = json.loads(whole)
    trained = 0
    _read_plan(path), request_of(path)  # the first calls import modules
    for number in range(count):
        label = f"plan {seed} {number}"
        chance = random.Random(label)
        damaged = mutated_bytes(whole, chance) if number % 2 else mutated_json(document, chance).encode()
        path.write_bytes(damaged)
        plan = None
        with nothing_run(report, label), expecting(report, label, PlanError):
            plan = _read_plan(path)
        with nothing_run(report, label), expecting(report, label, PlanError):
            request_of(path)
        if plan is None:
            continue
        with expecting(report, label, PlanError):
            taken = solve_step(subject.variants, subject.budget_bytes, subject.portfolio, None, plan)
            report.counts["plans taken"] += 1
            if taken.plan.peak_bytes > subject.budget_bytes:
                report.failed(f"{label}: taken above its budget")
            if trained < _MOST_TRAINED and damaged != whole:
                trained += 1
                _train(subject, plan, report, label, subject.budget_bytes)
    return report


def fuzz_schedules(subject: Subject, count: int, seed: int, report: Report, folder: Path) -> Report:
    """Move a plan's instructions `count` times; run what is still a plan, and compare its bits and bytes."""
    path = folder / "plan.json"
    document = plan_to_dict(subject.plan)
    for number in range(count):
        label = f"schedule {seed} {number}"
        path.write_text(json.dumps(mutated_schedule(document, random.Random(label))))
        plan = None
        with nothing_run(report, label), expecting(report, label, PlanError):
            plan = lowtide.load_plan(path)
        if plan is not None and plan.schedule != subject.plan.schedule:
            with expecting(report, label, PlanError):
                _train(subject, plan, report, label, plan.peak_bytes)
    return report


def _read_plan(path: Path) -> lowtide.Plan:
    plan = lowtide.load_plan(path)
    repr(plan), str(plan), plan.schedule_text(), str(plan.problem), str(plan.schedule), plan.extra_share
    return plan


def _train(subject: Subject, plan: lowtide.Plan, report: Report, label: str, budget_bytes: int) -> None:
    """Run a plan and compare it with eager."""
    small = lowtide.rewrite(copy.deepcopy(subject.model), budget_bytes, (subject.x,), plan=plan, **subject.options)
    report.counts["plans run"] += 1
    predicted = small.plan.peak_bytes
    held = sum(p.nbytes for p in small.parameters()) + subject.x.nbytes
    measured = held + lowtide.measure_peak(lambda: small(subject.x).backward(torch.ones(128, 2)))
    small.zero_grad()
    if measured > predicted:
        report.failed(f"{label}: measured {measured}, predicted {predicted}")
    if plan.encoded and subject.options["fidelity"] == "approximate":
        return  # intentionally not eager's bits
    same = map(torch.equal, subject.gradients(subject.model), subject.gradients(small))
    if not all(same):
        report.failed(f"{label}: other gradients than eager's")


@contextmanager
def expecting(report: Report, label: str, *allowed: type[Exception]) -> Iterator[None]:
    """Record a failure for any error that is not allowed, and for a message that is not one printable line."""
    try:
        yield
    except allowed as error:
        report.counts[type(error).__name__] += 1
        text = str(error)
        if not text.isprintable() or len(text) > 2000:
            report.failed(f"{label}: a message of {len(text)} letters, {text[:80]!r}")
    except BaseException as error:
        report.failed(f"{label}: {type(error).__name__}: {str(error)[:200]!r}")


def fuzz_costs(count: int, seed: int, report: Report) -> Report:
    """Damage the file of measured costs, read it, and check every number read."""
    device = torch.device("cpu")
    cache = cost_cache.CostCache.load(device)
    for number in range(20):
        cache.add(f"aten.mm.default(float32[{number},4](4,1)cpu)", cost_cache.Measurement(1e-5 * number, 64 * number))
    cache.add("aten.half_known(x)", cost_cache.Measurement(None, 8))
    cache.save()
    path = cache.path
    assert path is not None
    whole = path.read_bytes()
    document = json.loads(whole)
    for number in range(count):
        label = f"costs {seed} {number}"
        chance = random.Random(label)
        sealed = number % 2 == 0
        damaged = _sealed_costs(document, chance) if sealed else mutated_bytes(whole, chance)
        path.write_bytes(damaged)
        with nothing_run(report, label), expecting(report, label):
            measurements = cost_cache.CostCache.load(device).measurements
            report.counts["costs read" if measurements else "costs measured again"] += 1
            if not sealed and measurements and measurements != cache.measurements:
                report.failed(f"{label}: damage was read")
            for measurement in measurements.values():
                seconds, working_bytes = measurement.seconds, measurement.working_bytes
                fits = seconds is None or (type(seconds) is float and 0 <= seconds < 1e4)
                fits &= working_bytes is None or (type(working_bytes) is int and 0 <= working_bytes < 2**60)
                if not fits:
                    report.failed(f"{label}: {measurement}")
            if number % 50 == 0:
                reloaded = cost_cache.CostCache.load(device)
                reloaded.add("aten.new(x)", cost_cache.Measurement(1.0, 1))
                reloaded.save()
                if "aten.new(x)" not in cost_cache.CostCache.load(device).measurements:
                    report.failed(f"{label}: not written again")
    path.write_bytes(whole)
    return report


def _sealed_costs(document: Any, chance: random.Random) -> bytes:
    """Return changed costs with the digest that belongs to them."""
    parts = {name: document[name] for name in ("environment", "kernels")}
    changed = mutated_json({"kernels": parts["kernels"]} if chance.random() < 0.8 else parts, chance)
    rest = (json.dumps(parts | json.loads(changed)) if changed.startswith("{") else f"{{{changed}}}")[1:].encode()
    return b'{"digest": "' + hashlib.sha256(rest).hexdigest().encode() + b'", ' + rest


def fuzz_entries(subject: Subject, count: int, seed: int, report: Report, folder: Path) -> Report:
    """Damage the solvers' cached entries, and solve with them."""
    cache = DiskCache(folder / "solved")
    problem = subject.variants.as_captured.problem
    usual = Portfolio(cache=cache).solve(problem, subject.budget_bytes)
    files = {path: path.read_bytes() for path in sorted((folder / "solved").iterdir())}
    for number in range(count):
        label = f"entry {seed} {number}"
        chance = random.Random(label)
        path = chance.choice([*files])
        sealed = number % 2 == 0
        damaged = _sealed_entry(files[path], chance) if sealed else mutated_bytes(files[path], chance)
        path.write_bytes(damaged)
        allowed = (InfeasibleBudget,) if sealed else ()  # sealed, it may say that there is no better candidate
        with nothing_run(report, label), expecting(report, label, *allowed):
            plan = Portfolio(cache=cache).solve(problem, subject.budget_bytes)
            report.counts["solved"] += 1
            if plan.peak_bytes > subject.budget_bytes:
                report.failed(f"{label}: above the budget")
            if not sealed and plan.schedule != usual.schedule:
                report.failed(f"{label}: another plan from what is damaged")
        path.write_bytes(files[path])
    return report


def _sealed_entry(content: bytes, chance: random.Random) -> bytes:
    """Return a changed entry with the digest that belongs to it."""
    entry = disk_cache._unpack(content)
    if not entry.packed or chance.random() < 0.6:
        mutated, arrays = (
            json.loads(mutated_json([entry.content], chance)),
            [entry.array(n) for n in range(len(entry.packed))],
        )
        return disk_cache._pack(mutated[0] if isinstance(mutated, list) and mutated else mutated, arrays)
    arrays = [entry.array(n).copy() for n in range(len(entry.packed))]
    changed = arrays[chance.randrange(len(arrays))]
    if len(changed):
        changed[chance.randrange(len(changed))] = chance.choice((0, 1, -1, 2**31 - 1, -(2**31), 7, 10**6))
    return disk_cache._pack(entry.content, arrays)


def fuzz_libraries(count: int, seed: int, report: Report) -> Report:
    """Damage a compiled kernel, and check that the loader never gets it unless it is whole."""
    library, made_from = bytes(range(256)) * 64, b"some C"
    whole = native._sealed(library, made_from)
    for number in range(count):
        label = f"library {seed} {number}"
        damaged = mutated_bytes(whole, random.Random(label))
        with nothing_run(report, label), expecting(report, label, OSError):
            if native._unsealed(damaged, made_from) != library:
                report.failed(f"{label}: damage would be loaded")
            report.counts["libraries whole"] += 1
    return report


def main() -> None:
    """Run everything, and print the counts and every failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=10_000, help="mutations of plan files")
    parser.add_argument("--schedules", type=int, default=500, help="of a plan's instructions, twice")
    parser.add_argument("--caches", type=int, default=2_000, help="of costs and of solvers' entries, half each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        exact, coded = Subject("bitwise"), Subject("approximate")
        seed, half = options.seed, options.caches // 2
        few, rest = options.plans // 2, options.plans - options.plans // 2
        runs: dict[str, Callable[[Report], Report]] = {
            f"{few} of a plan": lambda r: fuzz_plans(exact, few, seed, r, folder),
            f"{rest} of a plan with codes": lambda r: fuzz_plans(coded, rest, seed + 1, r, folder),
            f"{options.schedules} of a schedule": lambda r: fuzz_schedules(exact, options.schedules, seed, r, folder),
            f"{options.schedules} of one with codes": lambda r: fuzz_schedules(
                coded, options.schedules, seed + 1, r, folder
            ),
            f"{half} of costs": lambda r: fuzz_costs(half, seed, r),
            f"{options.caches - half} of entries": lambda r: fuzz_entries(
                exact, options.caches - half, seed, r, folder
            ),
            f"{options.caches} of compiled kernels": lambda r: fuzz_libraries(options.caches, seed, r),
        }
        for title, run in runs.items():
            started = time.perf_counter()
            report = run(Report())
            counts = ", ".join(f"{what} {count}" for what, count in sorted(report.counts.items()))
            seconds = time.perf_counter() - started
            print(f"{title}: {counts or 'nothing'}; longest {report.longest_seconds:.2f} s, in all {seconds:.0f} s")
            for failure in report.failures[:20]:
                print("   ", ascii(failure))
            failed |= bool(report.failures)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
