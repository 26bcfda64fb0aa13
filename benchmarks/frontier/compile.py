"""torch's own memory budget: `activation_memory_budget` with `torch.compile`; what is private of it, in one place.

Every budget is compiled through a function with a code object of its own, so that compiled steps do not replace each
other and all can be timed in turn.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo
import torch._functorch.config
from torch import Tensor, nn
from torch.utils import flop_counter

from benchmarks.frontier.step import Runner, Subject

KIND = "memory budget"


def start_afresh() -> None:
    """Forgets everything compiled so far."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def budget_peer(subject: Subject, memory_budget: float, name: str) -> Runner:
    """The step compiled under a budget, a share of what torch would keep anyway. Raises what compiling raises."""
    model, batch = subject.twin(), subject.batch
    compiled: Any = torch.compile(_own_function(f"step_{int(1000 * memory_budget)}"), backend="aot_eager")
    breaks_before = _graph_breaks()
    with torch._functorch.config.patch(activation_memory_budget=memory_budget):
        for _ in range(2):
            subject.reset()
            compiled(model, batch).backward()
    breaks = _graph_breaks() - breaks_before
    notes = [f"{breaks} graph breaks"] if breaks else []

    def forward() -> Tensor:
        return compiled(model, batch)

    return Runner(name, KIND, model, forward, notes)


@contextmanager
def nothing_compiled_again() -> Iterator[None]:
    """Raises where a compiled step would be compiled once more, under whatever budget is set then."""
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


@contextmanager
def compiled_steps_counted() -> Iterator[None]:
    """Lets `FlopCounterMode` count what compiled steps run.

    By itself, torch.compile gives way to it: the step runs in eager, then and ever after.
    """
    mode: Any = flop_counter._FlopCounterMode
    with mock.patch.object(mode, "ignore_compile_internals", classmethod(lambda cls: True)):
        yield


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch)["loss"]


def _own_function(name: str) -> types.FunctionType:
    return types.FunctionType(_loss.__code__.replace(co_name=name), globals(), name)


def _graph_breaks() -> int:
    return sum(torch._dynamo.utils.counters["graph_break"].values())
