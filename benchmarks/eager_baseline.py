"""Compares models with eager, in turn: step times as ratios, peaks, and distances of gradients."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lowtide
import torch

Batch = Mapping[str, torch.Tensor]


def step_of(model: Any, batch: Batch) -> Callable[[], None]:
    """Return a function that runs forward and backward in the usual form."""
    return lambda: model(**batch).loss.backward()


def clear_gradients(model: Any) -> None:
    """Leave every parameter without a gradient."""
    for parameter in model.parameters():
        parameter.grad = None


def peak_bytes(model: Any, batch: Batch) -> int:
    """Return the peak of a step above its start, gradients absent there, measured to the byte.

    A step before it warms up, because the first call of a rewritten module checks that the plan serves it.
    """
    for _ in range(2):
        clear_gradients(model)
        measured_bytes = lowtide.measure_peak(step_of(model, batch))
    clear_gradients(model)
    return measured_bytes


def resident_bytes(model: Any, batch: Batch) -> int:
    """Return the bytes of parameters, buffers and inputs, each once; gradients are absent."""
    tensors = [*model.parameters(), *model.buffers(), *batch.values()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def time_ratios(runners: Mapping[str, Any], batch: Batch, rounds: int) -> dict[str, list[float]]:
    """Return the time of each runner's step divided by that of "eager", one per round; all run in turn."""
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
    """Format the median and the quartiles."""
    low, high = statistics.quantiles(ratios, n=4)[::2]
    return f"{statistics.median(ratios):.3f} ({low:.3f}–{high:.3f})"


def rounds_text(rounds: int) -> str:
    """Describe how ratios were measured."""
    threads = torch.get_num_threads()
    return f"medians (quartiles) over {rounds} rounds, all in turn; torch {torch.__version__}, {threads} threads"


def gradient_error(model: Any, other: Any, batch: Batch, seed: int = 0) -> float:
    """Return ‖ĝ − g‖ / ‖g‖ over all gradients, with the same random numbers; 0 if they are equal bit for bit."""
    gradients = []
    for module in (model, other):
        clear_gradients(module)
        torch.manual_seed(seed)
        step_of(module, batch)()
        gradients.append([parameter.grad.double() for parameter in module.parameters()])
        clear_gradients(module)
    squares = [((a - b).square().sum(), a.square().sum()) for a, b in zip(*gradients, strict=True)]
    return float((sum(error for error, _ in squares) / sum(size for _, size in squares)) ** 0.5)


def error_text(error: float) -> str:
    """Format a gradient's error."""
    return "equal" if error == 0 else f"{error:.1e}"
