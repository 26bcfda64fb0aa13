"""Holds the public functions: rewrite a module, plan without rewriting, and sweep over budgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch

from ..solvers.problem.plan import Plan
from .errors import PlanError
from .plan.options import OptionArguments, Options, shows_options
from .plan.plan_file import load_plan
from .plan.planner import StepPlanner
from .plan.progress import shown_progress
from .run.module import make_rewritten, prepare
from .run.rewriting import Rewriting
from .run.wrappers import check_model
from .text.byte_sizes import parse_bytes


@shows_options
def rewrite(
    model: torch.nn.Module,
    budget: int | str,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    plan: Plan | str | Path | None = None,
    **options: Unpack[OptionArguments],
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
    rewriting = Rewriting(budget, Options.of("rewrite", options), optimizer)
    rewriting.given_plan = load_plan(plan) if isinstance(plan, (str, Path)) else plan
    if not isinstance(rewriting.given_plan, (Plan, type(None))):
        raise PlanError(f"plan={plan!r} is neither a Plan nor the path of a saved one")
    _check_arguments(model, args, kwargs, optimizer)
    rewritten = make_rewritten(model, rewriting)
    if args is not None or kwargs is not None:
        prepare(rewritten, tuple(args or ()), kwargs or {})
    return rewritten


@shows_options
def plan(
    model: torch.nn.Module,
    budget: int | str,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Unpack[OptionArguments],
) -> Plan:
    """Return the plan that `rewrite` would make. Parameters and inputs may live on `meta`.

    Options and errors are those of `rewrite`.
    """
    budget_bytes = parse_bytes(budget)
    checked_options = Options.of("plan", options)
    _check_arguments(model, args, kwargs, optimizer)
    with shown_progress(f"planning {type(model).__name__}") as progress:
        planner, present = StepPlanner.of(
            model, tuple(args or ()), dict(kwargs or {}), checked_options, optimizer, progress
        )
        return planner.plan(present, budget_bytes, progress).plan


@shows_options
def sweep(
    model: torch.nn.Module,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    count: int = 12,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Unpack[OptionArguments],
) -> list[Plan]:
    """Return the frontier of peak against time: at most `count` plans, from everything kept to the smallest feasible
    peak.

    time_limit: seconds of solving after which the best plans so far are returned; their notes say so. Other options and
        errors are those of `rewrite`. The solver cannot be chosen: a frontier has the best plans of all.
    """
    if count < 1:
        raise ValueError(f"count={count} is below 1; pass the number of plans, at least 1")
    checked_options = Options.of("sweep", options)
    if checked_options.solver != "auto":
        raise ValueError(f"solver={checked_options.solver!r}: a sweep has the best plans of all solvers; leave it out")
    _check_arguments(model, args, kwargs, optimizer)
    with shown_progress(f"planning {type(model).__name__}") as progress:
        planner, present = StepPlanner.of(
            model, tuple(args or ()), dict(kwargs or {}), checked_options, optimizer, progress
        )
        return planner.frontier(present, count, progress)


def _check_arguments(model: Any, args: Any, kwargs: Any, optimizer: Any) -> None:
    """Raise LowtideError for a model that cannot be rewritten, ValueError for other arguments of a wrong kind."""
    check_model(model)
    _check_optimizer(optimizer, model)
    _check_inputs(args, kwargs)


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
