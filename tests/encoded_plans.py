"""Plans that keep every value in a code, whatever a planner would choose, for tests of what codes do."""

import math
from collections.abc import Sequence

from lowtide.rewriter.plan.step import Options, capture_and_formulate
from lowtide.solvers.encoding.decode_order import encoded_schedule, with_codes
from lowtide.solvers.problem.encoded_problem import encodable
from lowtide.solvers.problem.liveness import trace_order
from lowtide.solvers.problem.simulate import make_plan

OPTIONS = {"fidelity": "approximate", "costs": "flops", "error_budget": math.inf}
"""With which such a plan is made and taken, besides the loss alone as output."""

MIXED = ("4-bit groups", "3-bit groups, spread", "8-bit groups", "2-bit groups")


def with_all_encoded(model, batch, names: Sequence[str] = MIXED):
    """The plan that keeps all, each value by one of the encodings whose names begin so, in turn, where it has it."""
    problem = capture_and_formulate(model, (), batch, Options(**OPTIONS, outputs=("loss",))).posed.problem
    choice = []
    for place, value in enumerate(encodable(problem)):
        told = [encoding.name for encoding in problem.values[value].encodings]
        wanted = [*names[place % len(names) :], *names]
        found = next((n for name in wanted for n, one in enumerate(told) if one.startswith(name)), None)
        choice += [(value, found)] if found is not None else []
    order = with_codes(problem, tuple(choice), trace_order(problem))
    return make_plan(problem, encoded_schedule(problem, tuple(choice), order), solver="all encoded")
