"""Models with every value of a kind encoded, regardless of what the planner would choose, to compare codecs alone."""

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
EncodingPicker = Callable[[Problem, int], int | None]


def named(suffix: str, *, only_products: bool = False) -> EncodingPicker:
    """Return a function that picks the encoding whose name ends in `suffix`.

    only_products: whether to pick only for values that nothing but products read in backward.
    """

    def pick(problem: Problem, value: int) -> int | None:
        readers = [reader for reader in problem.readers[value] if reader >= problem.forward_length]
        if only_products and not all(problem.ops[reader].compute_intensive for reader in readers):
            return None
        names = [encoding.name for encoding in problem.values[value].encodings]
        return next((number for number, name in enumerate(names) if name.endswith(suffix)), None)

    return pick


def all_encoded(model: torch.nn.Module, batch: Batch, *kinds: EncodingPicker, copied: bool = True) -> tuple[Any, Plan]:
    """Rewrite the model to keep all values, each by the first of `kinds` that picks an encoding for it.

    Return the plan too. Raises ValueError where no value has such an encoding.
    """
    clear_gradients(model)  # a copy has none, and a plan is for gradients either present or absent
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
