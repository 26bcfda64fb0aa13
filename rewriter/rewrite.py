"""Holds the public functions: rewrite a module, plan without rewriting, and sweep over budgets."""

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
    """Return a module like `model` whose training step peaks at no more than `budget` bytes, with the same results.

    budget: bytes (`8 * 2**30`), a text ("8GiB", "500MB"), or a share ("60%") of the simulated peak with everything
        kept. Everything counts: parameters, buffers, inputs, gradients, activations and scratch. With `optimizer`, its
        state and the temporaries of its `step()` count too.
    args, kwargs: sample inputs. With them the plan is made now, otherwise at the first call in training mode. Each kind
        of call (shapes, dtypes, modes, autocast, presence of `.grad`) gets its own plan.
    fidelity: "bitwise" (the same bits as the original), "rounding" (the same mathematics in another order), or
        "approximate". With "approximate", values are kept in a few bits: forward is exact and gradients are noisy. Only
        levels of derivatives also bias them.
    outputs: names of the outputs to return, e.g. ["loss"]. Other outputs need not be kept until backward ends.
    differentiable: names of the outputs that receive gradients. The default is `loss` if there is one, else all
        outputs.
    optimizer: the optimizer that steps the parameters. Its memory is part of the budget.
    costs: "measured" (each kernel is timed once), "roofline" (estimated from a device preset) or "flops".
    solver: the name of the solver to use, or "auto" to choose among them.
    device: the name of a device preset to plan for. A module planned for a preset cannot be run here.
    time_limit: seconds of solving after which the best plan so far is used. Recipes are always tried.
    error_budget: with "approximate", the share of its own variance (between batches) by which the gradient's variance
        may grow. The limit holds for all parameters together and, on average, for the elements of each parameter, which
        is what Adam sees. The noise of each code is measured on the sample inputs, at the present weights.
    codecs: with "approximate", the families of codes to choose among. The defaults are "groups" (a few bits), "spread"
        (the same after a Hadamard transform), "derivatives" (of activations, in a few levels) and "rows". "rows" keeps
        a sample of the rows that weights multiply. Further families for those rows are sketches ("gaussian",
        "rademacher", "hadamard", "dct") and other samples ("uniform", "norms", "winner_take_all").
    plan: a Plan, or the path of a saved one, to use instead of solving. A plan for another step is refused.

    The new module has the same class and shares the Parameter objects; the original is left unchanged. Its `plan` and
    `code` show the result. In eval mode and under no_grad it runs the original forward.

    Raises BudgetError, InfeasibleBudget, CaptureError, PlanError; ValueError for an unknown option.
    """
    parse_bytes(budget)
    names = _names(outputs), _names(differentiable)
    options = Options(fidelity, *names, costs, solver, device, time_limit, error_budget, _names(codecs))
    given_plan = load_plan(plan) if isinstance(plan, (str, Path)) else plan
    if given_plan is not None and not isinstance(given_plan, Plan):
        raise PlanError(f"plan={plan!r} is neither a Plan nor the path of a saved one")
    check_model(model)
    _check_optimizer(optimizer, model)
    _check_inputs(args, kwargs)
    rewritten = make_rewritten(model, Rewriting(budget, options, optimizer, given_plan))
    if args is not None or kwargs is not None:
        prepare(rewritten, tuple(args or ()), kwargs or {})
    return rewritten


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
    """Return the plan that `rewrite` would make. Parameters and inputs may live on `meta`.

    Options and errors are those of `rewrite`.
    """
    parse_bytes(budget)
    check_model(model)
    _check_optimizer(optimizer, model)
    _check_inputs(args, kwargs)
    names = _names(outputs), _names(differentiable)
    options = Options(fidelity, *names, costs, solver, device, time_limit, error_budget, _names(codecs))
    sample_args, sample_kwargs = tuple(args or ()), dict(kwargs or {})
    with shown_progress(f"planning {type(model).__name__}") as progress:
        step_problem = capture_and_formulate(model, sample_args, sample_kwargs, options, optimizer, progress)
        return solve_step(step_problem, budget, Portfolio(), progress).plan


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
    """Return the frontier of peak against time: at most `count` plans, from everything kept to the smallest feasible
    peak.

    time_limit: seconds of solving after which the best plans so far are returned; their notes say so. Other options and
        errors are those of `rewrite`.
    """
    if count < 1:
        raise ValueError(f"count={count} is below 1; pass the number of plans, at least 1")
    check_model(model)
    _check_optimizer(optimizer, model)
    _check_inputs(args, kwargs)
    names = _names(outputs), _names(differentiable)
    options = Options(fidelity, *names, costs, "auto", device, time_limit, error_budget, _names(codecs))
    sample_args, sample_kwargs = tuple(args or ()), dict(kwargs or {})
    with shown_progress(f"planning {type(model).__name__}") as progress:
        step_problem = capture_and_formulate(model, sample_args, sample_kwargs, options, optimizer, progress)
        return frontier_of(step_problem, count, Portfolio(), progress, time_limit)


def _check_optimizer(optimizer: Any, model: torch.nn.Module) -> None:
    """Raise ValueError for anything but an optimizer of the model's parameters."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer={optimizer!r} is not a torch.optim.Optimizer; pass the one that steps, or leave it out"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("the optimizer holds none of the model's parameters; pass the one that steps this model")


def _check_inputs(args: Any, kwargs: Any) -> None:
    """Raise ValueError for sample inputs that are not wrapped like those of a call."""
    if args is not None and not isinstance(args, (tuple, list)):
        raise ValueError(f"args is a {type(args).__qualname__}, not a tuple of arguments; pass (tensor,)")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"kwargs is a {type(kwargs).__qualname__}, not a mapping from names to arguments")


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    # A single string would be taken for its letters; Options refuses it by name.
    if names is None or isinstance(names, str) or not isinstance(names, Iterable):
        return names  # pyright: ignore[reportReturnType]
    return tuple(names)
