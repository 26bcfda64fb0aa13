"""Plans that keep every value in a code, regardless of what a planner would choose, for tests of codes."""

import math
from collections.abc import Sequence

from lowtide.solvers.encoding.decode_order import encoded_schedule, with_codes
from lowtide.solvers.problem.encoded_problem import encodable
from lowtide.solvers.problem.liveness import trace_order
from lowtide.solvers.problem.simulate import make_plan
from step_problems import formulated

OPTIONS = {"fidelity": "approximate", "costs": "flops", "error_budget": math.inf}
"""The options with which these plans are made and used; the loss is the only output."""

MIXED = ("4-bit groups", "3-bit groups, spread", "8-bit groups", "2-bit groups")


def with_all_encoded(model, batch, names: Sequence[str] = MIXED):
    """Return a plan that keeps all values encoded.

    names: beginnings of encodings' names, taken in turn; each value gets the first that it has.
    """
    problem = formulated(model, (), batch, **OPTIONS, outputs=("loss",)).mapping.problem
    choice = []
    for place, value in enumerate(encodable(problem)):
        available = [encoding.name for encoding in problem.values[value].encodings]
        prefixes = [*names[place % len(names) :], *names]
        number = next(
            (n for name in prefixes for n, encoding_name in enumerate(available) if encoding_name.startswith(name)),
            None,
        )
        choice += [(value, number)] if number is not None else []
    order = with_codes(problem, tuple(choice), trace_order(problem))
    return make_plan(problem, encoded_schedule(problem, tuple(choice), order), solver="all encoded")
