"""Models trained in turn with eager: their steps' times as ratios to its, their peaks, their gradients' distance."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lowtide
import torch

Batch = Mapping[str, torch.Tensor]


def step_of(model: Any, batch: Batch) -> Callable[[], None]:
    """Forward and backward as one writes them."""
    return lambda: model(**batch).loss.backward()


def clear_gradients(model: Any) -> None:
    """Leaves every parameter without a gradient."""
    for parameter in model.parameters():
        parameter.grad = None


def peak_bytes(model: Any, batch: Batch) -> int:
    """The peak of a step above its start, gradients absent there, measured to the byte.

    After a step that warms up: the first call of a rewritten module checks that it is what was planned.
    """
    for _ in range(2):
        clear_gradients(model)
        found_bytes = lowtide.measure_peak(step_of(model, batch))
    clear_gradients(model)
    return found_bytes


def resident_bytes(model: Any, batch: Batch) -> int:
    """What is there before a step, gradients absent: parameters, buffers and inputs, each once."""
    tensors = [*model.parameters(), *model.buffers(), *batch.values()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def time_ratios(runners: Mapping[str, Any], batch: Batch, rounds: int) -> dict[str, list[float]]:
    """For each runner the time of its step divided by that of "eager", one per round; all run in turn."""
    ratios: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 1):
        seconds = {}
        for name, model in runners.items():
            clear_gradients(model)
            step = step_of(model, batch)
            started = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - started
            clear_gradients(model)
        if number:  # the first round warms up
            for name in runners:
                ratios[name].append(seconds[name] / seconds["eager"])
    return ratios


def ratio_text(ratios: Sequence[float]) -> str:
    """Median and quartiles."""
    low, high = statistics.quantiles(ratios, n=4)[::2]
    return f"{statistics.median(ratios):.3f} ({low:.3f}–{high:.3f})"


def rounds_text(rounds: int) -> str:
    """How ratios were measured."""
    threads = torch.get_num_threads()
    return f"medians (quartiles) over {rounds} rounds, all in turn; torch {torch.__version__}, {threads} threads"


def gradient_error(model: Any, other: Any, batch: Batch, seed: int = 0) -> float:
    """‖ĝ − g‖ / ‖g‖ over all gradients, with the same random numbers; 0 if they are equal bit for bit."""
    told = []
    for one in (model, other):
        clear_gradients(one)
        torch.manual_seed(seed)
        step_of(one, batch)()
        told.append([parameter.grad.double() for parameter in one.parameters()])
        clear_gradients(one)
    squares = [((a - b).square().sum(), a.square().sum()) for a, b in zip(*told, strict=True)]
    return float((sum(one for one, _ in squares) / sum(one for _, one in squares)) ** 0.5)


def error_text(error: float) -> str:
    """A gradient's error in words."""
    return "equal" if error == 0 else f"{error:.1e}"
