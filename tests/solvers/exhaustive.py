"""Find the true optimum of a tiny problem by exhaustive search."""

from __future__ import annotations

from heapq import heappop, heappush

from lowtide.solvers.problem.problem import Problem


def least_seconds(problem: Problem, budget_bytes: int) -> float | None:
    """Return the least time of any order of runs and frees under the budget, None if there is none.

    Dijkstra over (values and codes alive, operations run once so far). Values and codes may be freed at any moment,
    any repeatable operation run at any moment, and what is alive encoded and decoded; operations that run once do so
    in trace order. A value whose code is read itself may be read while both the code and a view of it are alive. An
    operation that makes a changed copy of a value may end that value, and take its bytes. There are no random
    operations. Written independently of the solvers.
    """
    ops, values = problem.ops, problem.values
    once = [i for i, op in enumerate(ops) if not op.repeatable]
    assert not any(op.random for op in ops)
    resident = mask(i for i, value in enumerate(values) if value.resident)
    held = mask(i for i, value in enumerate(values) if value.held)
    returned = mask(v for op in ops[: problem.forward_length] for v in op.makes) & held
    forward_once = sum(i < problem.forward_length for i in once)
    reads, makes = [mask(op.reads) for op in ops], [mask(op.makes) for op in ops]
    sizes = [0 if value.resident else value.size_bytes for value in values]
    codes = [(i, code) for i, value in enumerate(values) for code in value.encodings if not value.resident]
    sizes += [code.size_bytes for _, code in codes]
    views: dict[int, int] = {}  # place of a code: place of its view
    for place, (_, code) in enumerate(codes, len(values)):
        if code.read_itself_bytes is not None:
            views[place] = len(sizes)
            sizes.append(code.read_itself_bytes)

    def readable(alive: int) -> int:
        viewed = mask(codes[c - len(values)][0] for c, view in views.items() if alive >> c & alive >> view & 1)
        return alive | viewed

    def size(alive: int) -> int:
        return problem.resident_bytes + sum(s for i, s in enumerate(sizes) if alive >> i & 1)

    best: dict[tuple[int, int], float] = {(resident, 0): 0.0}
    front = [(0.0, resident, 0)]
    while front:
        seconds, alive, done = heappop(front)
        if seconds > best[alive, done]:
            continue
        if done == len(once) and not held & ~alive:
            return seconds
        steps = []
        for value in range(len(sizes)):
            if alive >> value & 1 and not (resident | held) >> value & 1:
                steps.append((0.0, alive & ~(1 << value), done))
        live = size(alive)
        for i, (value, code) in enumerate(codes, len(values)):
            has_value, has_code = alive >> value & 1, alive >> i & 1
            if has_value and not has_code and live + max(code.encode_working_bytes, code.size_bytes) <= budget_bytes:
                steps.append((code.encode_seconds, alive | 1 << i, done))
            made = views.get(i, value)
            decoding = max(code.decode_working_bytes, sizes[made])
            if has_code and not has_value and live + decoding <= budget_bytes:
                steps.append((code.decode_seconds, alive | 1 << made, done))
        for i, op in enumerate(ops):
            if reads[i] & ~readable(alive):
                continue
            if not op.repeatable:
                if done == len(once) or once[done] != i:
                    continue
                if done >= forward_once and returned & ~alive:
                    continue
            made = sum(sizes[v] for v in op.makes)
            if live + max(op.working_bytes, made) <= budget_bytes:
                steps.append((op.seconds, alive | makes[i], done + (not op.repeatable)))
            elif op.reuses is not None and alive >> op.reuses & 1:
                extra_bytes = max(op.working_bytes, made) - sizes[op.reuses]
                if live + extra_bytes <= budget_bytes:
                    then = alive & ~(1 << op.reuses) | makes[i]
                    steps.append((op.seconds, then, done + (not op.repeatable)))
        for cost, alive_then, done_then in steps:
            then = seconds + cost
            if then < best.get((alive_then, done_then), float("inf")):
                best[alive_then, done_then] = then
                heappush(front, (then, alive_then, done_then))
    return None


def mask(numbers) -> int:
    """Return a set of small numbers as bits."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits
