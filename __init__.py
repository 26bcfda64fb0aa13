"""lowtide rewrites a PyTorch model so that one training step fits a given number of bytes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rewriter.codes import Codes, codes
    from .rewriter.errors import BudgetError, CaptureError, InfeasibleBudget, LowtideError, LowtideWarning, PlanError
    from .rewriter.measure.measure_peak import measure_peak
    from .rewriter.plan.plan_file import load_plan, save_plan
    from .rewriter.rewrite import plan, rewrite, sweep
    from .rewriter.verify.report import Report
    from .rewriter.verify.verify import verify
    from .solvers.problem.plan import Plan

__version__ = "0.1.0"

# Where each public name lives. Loading is lazy (PEP 562), so that `import lowtide` costs no import of torch.
_HOMES = {
    "BudgetError": "rewriter.errors",
    "CaptureError": "rewriter.errors",
    "Codes": "rewriter.codes",
    "InfeasibleBudget": "rewriter.errors",
    "LowtideError": "rewriter.errors",
    "LowtideWarning": "rewriter.errors",
    "Plan": "solvers.problem.plan",
    "PlanError": "rewriter.errors",
    "Report": "rewriter.verify.report",
    "codes": "rewriter.codes",
    "load_plan": "rewriter.plan.plan_file",
    "measure_peak": "rewriter.measure.measure_peak",
    "plan": "rewriter.rewrite",
    "rewrite": "rewriter.rewrite",
    "save_plan": "rewriter.plan.plan_file",
    "sweep": "rewriter.rewrite",
    "verify": "rewriter.verify.verify",
}

__all__ = [
    "BudgetError",
    "CaptureError",
    "Codes",
    "InfeasibleBudget",
    "LowtideError",
    "LowtideWarning",
    "Plan",
    "PlanError",
    "Report",
    "codes",
    "load_plan",
    "measure_peak",
    "plan",
    "rewrite",
    "save_plan",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("." + _HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
