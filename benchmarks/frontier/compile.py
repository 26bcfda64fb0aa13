"""torch's own memory budget: `activation_memory_budget` with `torch.compile`, and all uses of its private parts.

Every budget is compiled through a function with a code object of its own. So compiled steps do not replace each other,
and all can be timed in turn.
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
    """Discard everything compiled so far."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def budget_peer(subject: Subject, memory_budget: float, name: str) -> Runner:
    """Compile the step under a budget, a share of what torch would keep otherwise. Raises what compiling raises."""
    model, batch = subject.shadow_copy(), subject.batch
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
    """Raise if a compiled step would be compiled again, under the budget that is set at that time."""
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


@contextmanager
def compiled_steps_counted() -> Iterator[None]:
    """Let `FlopCounterMode` count what compiled steps run.

    Without this, torch.compile steps aside for it: the step runs in eager, then and afterwards.
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
