"""What a saved plan was made from, and its code, which is made anew from the model and never read from the file."""

from __future__ import annotations

from pathlib import Path

from ..solvers.plan import Plan
from .errors import LowtideError, PlanError
from .plan_file import load_made_by
from .request import Request, build
from .rewrite import rewrite


def request_of(path: Path) -> Request | None:
    """What `lowtide plan` was asked for when it made the plan; None for a plan saved from Python.

    Raises PlanError if the file's answer makes no sense.
    """
    told = load_made_by(path)
    if told is None:
        return None
    try:
        return Request.from_dict(told)
    except (ValueError, TypeError) as error:
        raise PlanError(f"{path} is a damaged plan ({error}); plan again") from error


def code_of(path: Path, plan: Plan, request: Request | None) -> str:
    """The Python that the plan becomes, made anew from the model it is for; nothing is allocated for a foreign device.

    Raises LowtideError if the file does not say which model that is, PlanError if that model is another step now.
    """
    if request is None:
        raise LowtideError(
            f"{path} was saved from Python and does not say which model it is for, so its code cannot be made here; "
            "there `small = lowtide.rewrite(model, budget, args, kwargs, plan=path)` and `print(small.code)` show it"
        )
    subject = build(request)
    budget_bytes = plan.budget_bytes or plan.peak_bytes
    return rewrite(subject.model, budget_bytes, (), subject.batch, plan=plan, **subject.options).lowtide.code
