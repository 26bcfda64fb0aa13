"""Models with every value of a kind encoded, whatever the planner would choose: to compare codecs by themselves."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lowtide
import torch
from lowtide.solvers.encoding.decode_order import encoded_schedule, with_codes
from lowtide.solvers.problem.encoded_problem import encodable
from lowtide.solvers.problem.liveness import trace_order
from lowtide.solvers.problem.plan import Plan
from lowtide.solvers.problem.problem import Problem
from lowtide.solvers.problem.simulate import make_plan

from benchmarks.eager_baseline import clear_gradients

Batch = Mapping[str, torch.Tensor]
Wanted = Callable[[Problem, int], int | None]


def named(suffix: str, *, only_products: bool = False) -> Wanted:
    """Picks the encoding whose name ends so; only_products: of values that in backward nothing but products read."""

    def wanted(problem: Problem, value: int) -> int | None:
        readers = [reader for reader in problem.readers[value] if reader >= problem.forward_length]
        if only_products and not all(problem.ops[reader].intensive for reader in readers):
            return None
        names = [encoding.name for encoding in problem.values[value].encodings]
        return next((number for number, name in enumerate(names) if name.endswith(suffix)), None)

    return wanted


def all_encoded(model: torch.nn.Module, batch: Batch, *kinds: Wanted, copied: bool = True) -> tuple[Any, Plan]:
    """The model rewritten so that all is kept, each value by the first of `kinds` that picks an encoding for it.

    Gives the plan too. Raises ValueError where no value has such an encoding.
    """
    clear_gradients(model)  # a copy has none either, and a plan is for one or the other
    options = {"fidelity": "approximate", "outputs": ["loss"], "costs": "flops", "error_budget": math.inf}
    problem = lowtide.plan(model, "100%", (), dict(batch), **options).problem
    picked = {
        v: next((n for n in (kind(problem, v) for kind in kinds) if n is not None), None) for v in encodable(problem)
    }
    choice = tuple((value, number) for value, number in picked.items() if number is not None)
    if kinds and not choice:
        raise ValueError("no value of the step has such an encoding")
    order = with_codes(problem, choice, trace_order(problem))
    plan = make_plan(problem, encoded_schedule(problem, choice, order), solver="all encoded")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = copy.deepcopy(model) if copied else model
        return lowtide.rewrite(own, plan.peak_bytes, (), dict(batch), plan=plan, **options), plan
