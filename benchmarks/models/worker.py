"""Processes that try models one after the other, so that a crash, a hang or a leak ends one trial and not the sweep."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .record import CRASHED, NOT_BUILT, Record, kind_of

_ROOT = Path(__file__).resolve().parents[2]
_LOOK_SECONDS = 0.5  # between two checks of the limit
_PATIENCE = 10.0


@dataclass(frozen=True)
class Bounds:
    """The resources that a process may take.

    seconds: of the processor for one model, and ten times that by the clock, as other processes may be running.
    memory_bytes: of addresses.
    models: how many before a new process starts.
    """

    seconds: float = 120.0
    memory_bytes: int = 12 * 2**30
    models: int = 25


class _Limit:
    """The time limit of a process: by its processor time if the system reports that, and by the clock."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid, self._seconds = pid, seconds
        self._clock, self._used = time.monotonic(), _used_seconds(pid)

    def has_passed(self) -> bool:
        waited = time.monotonic() - self._clock
        used = _used_seconds(self._pid)
        spent = waited if used is None or self._used is None else used - self._used
        return spent > self._seconds or waited > _PATIENCE * self._seconds


def _used_seconds(pid: int) -> float | None:
    """Return the processor time that a process has used; None if there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Worker:
    """The near end of a process that tries models; it starts the process when it is needed.

    command: the command to run, which reads names and writes lines as `serve` does.
    """

    command: list[str]
    bounds: Bounds
    environment: dict[str, str]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _tried: int = 0
    _unread: bytes = b""

    def attempt(self, name: str) -> Record:
        """Return the process's record of a model, or one that says how the process ended."""
        if self._process is None or self._tried >= self.bounds.models:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None
        self._tried += 1
        stage = "building"
        limit = _Limit(process.pid, self.bounds.seconds)
        try:
            process.stdin.write(name.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._gone(name, stage)
        while (line := self._line(limit)) is not None:
            if not line:
                return self._gone(name, stage)
            message = json.loads(line)
            if "stage" not in message or "verdict" in message:
                return Record(**message)
            stage = message["stage"]
        self.close()
        return _lost(name, stage, f"the limit of {self.bounds.seconds:g} s passed")

    def _start(self) -> None:
        self.close()
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self.command, **pipes, env=self.environment, cwd=_ROOT, start_new_session=True)
        self._tried, self._unread = 0, b""

    def _line(self, limit: _Limit) -> bytes | None:
        """Return the next line; empty if the process has ended, None when the time is over."""
        assert self._process is not None and self._process.stdout is not None
        source = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([source], [], [], _LOOK_SECONDS)[0]:
                if limit.has_passed():
                    return None
                continue
            data = os.read(source, 1 << 16)
            if not data:
                return b""
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _gone(self, name: str, stage: str) -> Record:
        assert self._process is not None
        code = self._process.wait()
        self.close()
        return _lost(name, stage, f"the process ended with {signal.Signals(-code).name if code < 0 else code}")

    def close(self) -> None:
        """End the process with all that it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _lost(name: str, stage: str, text: str) -> Record:
    """Return the record of a model whose process ended; before eager has run, that is not lowtide's fault."""
    verdict = NOT_BUILT if stage in ("building", "eager") else CRASHED
    return Record(name, verdict=verdict, stage=stage, text=text, kind=f"{kind_of(text)}, {stage}")


def serve(attempt: Callable[[str, Callable[[str], object]], Record], memory_bytes: int) -> None:
    """Run the far end: read names, write a line for each stage and one with the record.

    attempt: tries the model of a name and reports its stages.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what models print must not be read as a record

    def write(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message) + "\n")

    for name in sys.stdin:
        record = attempt(name.strip(), lambda stage: write({"stage": stage}))
        write(asdict(record))
