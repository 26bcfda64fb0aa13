"""Shows the origin of a saved plan, and its code, which is generated from the model and never read from the file."""

from __future__ import annotations

import re
from pathlib import Path

from ...solvers.problem.plain_text import printable
from ...solvers.problem.plan import Plan
from ..errors import LowtideError, PlanError
from ..plan.plan_file import load_made_by
from ..rewrite import rewrite
from .request import Request, build


def request_of(path: Path) -> Request | None:
    """Return the request for which `lowtide plan` made the plan; None for a plan saved from Python.

    Raises PlanError if the request in the file is invalid.
    """
    made_by = load_made_by(path)
    if made_by is None:
        return None
    try:
        request = Request.from_dict(made_by)
    except (ValueError, TypeError) as error:
        raise PlanError(f"{printable(str(path))} is a damaged plan ({printable(str(error))}); plan again") from error
    for name, value in request.settings.items():
        # transformers takes such a value for a kernel to be fetched from the hub, and runs it
        if "implementation" in name and not re.fullmatch(r"[a-z0-9_]*", value):
            raise PlanError(
                f"{printable(str(path))} asks for {printable(name)}={value[:100]!a}, which may be code from elsewhere; "
                "to use it, plan again with --set"
            )
    return request


def code_of(path: Path, plan: Plan, request: Request | None) -> str:
    """Return the Python code of the plan, generated from its model; nothing is allocated for a device that is not here.

    Raises LowtideError if the file does not name the model, PlanError if the model's step is another one now.
    """
    if request is None:
        raise LowtideError(
            f"{path} was saved from Python and does not say which model it is for, so its code cannot be made here; "
            "there `small = lowtide.rewrite(model, budget, args, kwargs, plan=path)` and `print(small.code)` show it"
        )
    subject = build(request)
    budget_bytes = plan.budget_bytes or max(plan.peak_bytes, 1)
    return rewrite(subject.model, budget_bytes, (), subject.batch, plan=plan, **subject.options).lowtide.code
