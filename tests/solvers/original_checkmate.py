"""Checkmate's integer program, written from the paper: a second opinion on small steps."""

from __future__ import annotations

import pulp
from lowtide.solvers.problem.problem import Problem


def least_seconds(problem: Problem, budget_bytes: int) -> float | None:
    """Return the least time under the budget by Jain et al. 2020 (arXiv 1910.02653, section 4), None if infeasible.

    Operation t runs for the first time in stage t (equation 1), so first runs keep trace order; in a stage the
    operations up to t run in order. R[t,i]: operation i runs in stage t. S[t,v]: value v is kept from stage t - 1
    to stage t. U[t,k]: bytes in use while operation k of stage t runs. FREE[t,v,k]: v is freed right after k; the
    paper has it for each edge (k reads v), here also for k making v, which several outputs need. Held values are
    never freed. Values are those of single operations with several outputs; the paper has one output each.

    An operation that runs only once runs in its own stage. The space is smaller than that of the solver `checkmate`:
    everything runs by its own stage, nothing waits or is left out. Written independently of the solvers; no random
    operations.
    """
    ops, values = problem.ops, problem.values
    count = len(ops)
    own = [v for v, value in enumerate(values) if not value.resident]
    maker = {v: i for i, op in enumerate(ops) for v in op.makes}
    readers = {v: [i for i, op in enumerate(ops) if v in op.reads] for v in own}
    program = pulp.LpProblem("checkmate", pulp.LpMinimize)

    def choice(name: str) -> pulp.LpVariable:
        return program.add_variable(name, 0, 1, pulp.LpInteger)

    run = {(t, i): 1 if i == t else choice(f"R{t}_{i}") for t in range(count) for i in range(t + 1)}
    kept = {(t, v): choice(f"S{t}_{v}") for t in range(1, count) for v in own if maker[v] < t}
    program += pulp.lpSum(ops[i].seconds * variable for (_, i), variable in run.items())
    for (t, i), variable in run.items():
        if i != t and not ops[i].repeatable:
            program += variable == 0
        for v in set(ops[i].reads) & set(own):
            program += variable <= run[t, maker[v]] + kept.get((t, v), 0)  # (1b)
    for (t, v), variable in kept.items():
        program += variable <= run[t - 1, maker[v]] + kept.get((t - 1, v), 0)  # (1c)
        if values[v].held:
            program += variable == 1
    size = {v: values[v].size_bytes for v in own}
    for t in range(count):
        # a value not made before this stage is alive once it is made; values freed after operation k are not alive
        here = {v: kept.get((t, v), 0) for v in own}
        used = problem.resident_bytes + pulp.lpSum(size[v] * here[v] for v in own)  # (2)
        for k in range(t + 1):
            momentary = max(ops[k].working_bytes, sum(size[v] for v in ops[k].makes))
            # a copy that is still alive when its maker runs again counts in addition to the new one
            program += used + momentary * run[t, k] <= budget_bytes
            for v in ops[k].makes:
                fresh = choice(f"new{t}_{v}")  # made now, not alive before
                program += fresh >= run[t, k] - here[v]
                program += fresh <= run[t, k]
                program += fresh <= 1 - here[v]
                here[v] = here[v] + fresh
                used = used + size[v] * fresh
            for v in sorted((set(ops[k].reads) | set(ops[k].makes)) & set(own)):
                if values[v].held:
                    continue
                free = choice(f"FREE{t}_{v}_{k}")
                # (4), (5): freed only after k has run, if nothing needs it later in this stage or in the next one
                program += free <= run[t, k]
                program += free <= here[v]
                later = [run[t, j] for j in readers[v] if k < j <= t]
                for variable in later:
                    program += free <= 1 - variable
                if (t + 1, v) in kept:
                    program += free <= 1 - kept[t + 1, v]
                here[v] = here[v] - free
                used = used - size[v] * free
    program.solve(pulp.PULP_CBC_CMD(msg=False, threads=1))
    if program.status != pulp.LpStatusOptimal:
        return None
    return float(pulp.value(program.objective))
