"""Tries lowtide on hundreds of models: transformers, timm, torchvision, diffusers, peft, and torch alone.

    python -m benchmarks.models [--family NAME ...] [--only PATTERN ...] [--limit N] [--jobs N] [--out FILE.jsonl]

Each model is built small, with random weights, and trained for two steps: in eager twice and rewritten once for a
budget of 60 %. Any difference of a bit is a failure, and so is a peak above prediction or budget. Models run in
separate processes with a limit of time and memory. `--resume FILE` leaves out the models in FILE and adds to it;
`--retry VERDICT` tries those with that verdict again. `--table docs/measurements/models.md` writes the page of the
docs. Packages that are not installed are left out. Returns 1 if a model has other bits, or a peak above prediction or
budget.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from .record import BREAKS_THE_PROMISE, VERDICTS, Record
from .selection import FAMILIES, cases_of, matching
from .tables import markdown, summary
from .worker import Bounds, Worker, serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Try models, print and save the results; return 1 if a model broke the promise."""
    options = _options(arguments)
    if options.worker:
        _serve(options)
        return 0
    known = _read(options.resume) if options.resume else {}
    selected = matching(options.family, options.only)
    if options.list:
        print("\n".join(case.name for case in selected))
        return 0
    names = [case.name for case in selected]
    names = [name for name in names if name not in known or known[name].verdict in options.retry]
    if options.shuffle:
        names.sort(key=lambda name: zlib.crc32(name.encode()))
    names = names[: options.limit]
    out = options.out or options.resume
    sweep = Sweep(names, options, out, known)
    sweep.run()
    records = list(sweep.records.values())
    print(summary(records))
    if options.table:
        options.table.write_text(markdown(records), encoding="utf-8")
    return 1 if any(record.verdict in BREAKS_THE_PROMISE for record in records) else 0


class Sweep:
    """Tries models with a few workers, and writes each record as soon as it is there."""

    def __init__(
        self, names: Sequence[str], options: argparse.Namespace, out: Path | None, known: dict[str, Record]
    ) -> None:
        self.options, self.out, self.records = options, out, dict(known)
        self.total, self.done = len(names), 0
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in names:
            self._waiting.put(name)
        self._lock = threading.Lock()
        if out and not (out == options.resume and out.exists()):
            out.write_text("".join(json.dumps(record.plain()) + "\n" for record in known.values()))

    def run(self) -> None:
        """Try all models."""
        with tempfile.TemporaryDirectory(prefix="lowtide-models-") as cache:
            threads = [threading.Thread(target=self._work, args=(cache,)) for _ in range(self.options.jobs)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _work(self, cache: str) -> None:
        options = self.options
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.models", "--worker"]
        command += ["--budget", options.budget, "--time-limit", str(options.time_limit)]
        command += ["--threads", str(options.threads), *(["--eager"] if options.eager else [])]
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"}
        worker = Worker(command, Bounds(seconds=options.seconds), environment)
        try:
            while True:
                self._add(worker.attempt(self._waiting.get_nowait()))
        except queue.Empty:
            pass
        finally:
            worker.close()

    def _add(self, record: Record) -> None:
        with self._lock:
            self.done += 1
            self.records[record.name] = record
            if self.out:
                with self.out.open("a") as file:
                    file.write(json.dumps(record.plain()) + "\n")
            seconds = sum(record.seconds.values())
            details = f"{record.stage}: {record.text.splitlines()[0][:90]}" if record.text else ""
            print(
                f"{self.done:>4}/{self.total}  {seconds:5.1f} s  {record.verdict:<15} {record.name}  {details}",
                flush=True,
            )


def _serve(options: argparse.Namespace) -> None:
    """Run the far end of a worker, which tries the models whose names it reads."""
    import torch

    from .trial import Limits, Trial

    torch.set_num_threads(options.threads)
    limits = Limits(options.budget, options.time_limit, options.eager)

    def attempt(name: str, report_stage: Callable[[str], object]) -> Record:
        (case,) = (case for case in cases_of(name.split("/")[0]) if case.name == name)
        gc.collect()
        gc.freeze()  # measuring a peak scans all objects: leave out those that packages have made
        return Trial(case, limits, report_stage).run()

    serve(attempt, Bounds().memory_bytes)


def _read(path: Path) -> dict[str, Record]:
    """Return the records of a file by name, the last of each."""
    if not path.exists():
        return {}
    rows = (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    return {row["name"]: Record(**row) for row in rows}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", choices=FAMILIES, help="which packages' models (default: all)")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="names to take, as in a shell, or a part")
    parser.add_argument("--limit", type=int, help="how many models at most")
    parser.add_argument("--shuffle", action="store_true", help="in an order that mixes all, the same each time")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in each (default: 1)")
    parser.add_argument("--budget", default="60%", help="for which models are rewritten (default: 60%%)")
    parser.add_argument("--time-limit", type=float, default=2.0, help="seconds of solving (default: 2)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the processor for a model (default: 120)")
    parser.add_argument("--out", type=Path, help="where to write a JSON line for each model")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="leave out what FILE has, and add to it")
    parser.add_argument("--retry", action="append", default=[], choices=VERDICTS, help="with --resume: try again")
    parser.add_argument("--table", type=Path, help="where to write the page of the docs")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--eager", action="store_true", help="only build and train in eager, to see what can be tried")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
