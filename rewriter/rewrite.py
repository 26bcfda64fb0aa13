"""The public face: rewrite a module, plan without rewriting, sweep over budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch

from ..solvers.portfolio import Portfolio
from ..solvers.problem.plan import Plan
from .errors import PlanError
from .plan.plan_file import load_plan
from .plan.progress import shown_progress
from .plan.solve import frontier_of, solve_step
from .plan.step import Options, capture_and_formulate
from .run.module import make_rewritten, prepare
from .run.rewriting import Rewriting
from .run.wrappers import check_model
from .text.byte_sizes import parse_bytes


def rewrite(
    model: torch.nn.Module,
    budget: int | str,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    fidelity: str = "bitwise",
    outputs: Sequence[str] | None = None,
    differentiable: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    costs: str = "measured",
    solver: str = "auto",
    device: str | None = None,
    time_limit: float = inf,
    error_budget: float = 0.01,
    codecs: Sequence[str] | None = None,
    plan: Plan | str | Path | None = None,
) -> Any:
    """A module like `model` whose training step peaks at no more than `budget` bytes, with the same results.

    budget: bytes (`8 * 2**30`), a text ("8GiB", "500MB"), or a share ("60%") of the step's simulated peak with
        everything kept. Everything counts: parameters, buffers, inputs, gradients, activations, scratch, and with
        `optimizer` its state and the temporaries of its `step()`.
    args, kwargs: sample inputs; with them the plan is made now, otherwise at the first training-mode call. Each kind
        of call (shapes, dtypes, modes, autocast, `.grad` there or not) gets its own plan.
    fidelity: "bitwise" (same bits as the original), "rounding" (same mathematics in another order), "approximate"
        (values kept in a few bits: forward is exact, gradients are noisy; only levels of derivatives also bias them).
    outputs: names of the outputs to return, e.g. ["loss"]: others need not be kept alive until backward ends.
    differentiable: names of the outputs that receive gradients; by default `loss` if there is one, else all.
    costs: "measured" (each kernel is timed once), "roofline" (estimated from a device preset) or "flops".
    device: the name of a device preset to plan for. Only planning: such a module cannot be run here.
    time_limit: seconds of solving after which the best plan so far is taken; recipes are always tried.
    error_budget: with "approximate", by how much of its own variance (from one batch to the next) the gradient's
        variance may grow: of all parameters together, and of each one's elements in the mean, which is what Adam sees.
        The noise of each code is measured on the sample inputs, at the weights that there are.
    codecs: with "approximate", the codes to choose among. By default "groups" (of a few bits), "spread" (the same after
        a Hadamard transform), "derivatives" (of activations, in a few levels) and "rows" (some of the rows that weights
        multiply); besides, of such rows, "gaussian", "rademacher", "hadamard" and "dct" (sketches of all of them),
        "uniform", "norms" and "winner_take_all" (other ways to draw some).
    plan: a Plan, or the path of a saved one, to use instead of solving; refused if it is for another step.

    Returns a new module of the same class over the same Parameter objects; the original is left as it is. Its `plan`
    and `code` tell what was done. In eval mode and under no_grad it runs the original forward.

    Raises BudgetError, InfeasibleBudget, CaptureError, PlanError; ValueError for an unknown option.
    """
    parse_bytes(budget)
    names = _names(outputs), _names(differentiable)
    options = Options(fidelity, *names, costs, solver, device, time_limit, error_budget, _names(codecs))
    given = load_plan(plan) if isinstance(plan, (str, Path)) else plan
    if given is not None and not isinstance(given, Plan):
        raise PlanError(f"plan={plan!r} is neither a Plan nor the path of a saved one")
    check_model(model)
    _check_optimizer(optimizer, model)
    _check_inputs(args, kwargs)
    small = make_rewritten(model, Rewriting(budget, options, optimizer, given))
    if args is not None or kwargs is not None:
        prepare(small, tuple(args or ()), kwargs or {})
    return small


def plan(
    model: torch.nn.Module,
    budget: int | str,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    fidelity: str = "bitwise",
    outputs: Sequence[str] | None = None,
    differentiable: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    costs: str = "measured",
    solver: str = "auto",
    device: str | None = None,
    time_limit: float = inf,
    error_budget: float = 0.01,
    codecs: Sequence[str] | None = None,
) -> Plan:
    """The plan that `rewrite` would make; parameters and inputs may live on `meta`. Options and errors as there."""
    parse_bytes(budget)
    check_model(model)
    _check_optimizer(optimizer, model)
    _check_inputs(args, kwargs)
    names = _names(outputs), _names(differentiable)
    options = Options(fidelity, *names, costs, solver, device, time_limit, error_budget, _names(codecs))
    told_args, told_kwargs = tuple(args or ()), dict(kwargs or {})
    with shown_progress(f"planning {type(model).__name__}") as progress:
        found = capture_and_formulate(model, told_args, told_kwargs, options, optimizer, progress)
        return solve_step(found, budget, Portfolio(), progress).plan


def sweep(
    model: torch.nn.Module,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    count: int = 12,
    fidelity: str = "bitwise",
    outputs: Sequence[str] | None = None,
    differentiable: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    costs: str = "measured",
    device: str | None = None,
    time_limit: float = inf,
    error_budget: float = 0.01,
    codecs: Sequence[str] | None = None,
) -> list[Plan]:
    """The frontier of peak against time: at most `count` plans, from everything kept to the smallest feasible.

    time_limit: seconds of solving, then what was found so far, which the plans' notes say. Options and errors otherwise
    as at `rewrite`.
    """
    if count < 1:
        raise ValueError(f"count={count} asks for no plan; pass at least 1")
    check_model(model)
    _check_optimizer(optimizer, model)
    _check_inputs(args, kwargs)
    names = _names(outputs), _names(differentiable)
    options = Options(fidelity, *names, costs, "auto", device, time_limit, error_budget, _names(codecs))
    told_args, told_kwargs = tuple(args or ()), dict(kwargs or {})
    with shown_progress(f"planning {type(model).__name__}") as progress:
        found = capture_and_formulate(model, told_args, told_kwargs, options, optimizer, progress)
        return frontier_of(found, count, Portfolio(), progress, time_limit)


def _check_optimizer(optimizer: Any, model: torch.nn.Module) -> None:
    """Raises ValueError for what is no optimizer of the model's parameters."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer={optimizer!r} is no torch.optim.Optimizer; pass the one that steps, or leave it out"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("the optimizer holds none of the model's parameters; pass the one that steps this model")


def _check_inputs(args: Any, kwargs: Any) -> None:
    """Raises ValueError for sample inputs that are not wrapped as a call's."""
    if args is not None and not isinstance(args, (tuple, list)):
        raise ValueError(f"args is a {type(args).__qualname__}, not a tuple of arguments; pass (tensor,)")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs is a {type(kwargs).__qualname__}, not a mapping from names to arguments")


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    # A single string would be taken for its letters; Options refuses it by name.
    if names is None or isinstance(names, str) or not isinstance(names, Iterable):
        return names  # pyright: ignore[reportReturnType]
    return tuple(names)
