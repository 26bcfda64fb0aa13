"""Questions about recorded calls: what a call is computed from, whether it draws random numbers."""

from __future__ import annotations

import torch
from torch import fx

from ..passes.foreign_calls import is_foreign


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """A node and all it is computed from, in no particular order."""
    seen = {node}
    stack = [node]
    while stack:
        for before in stack.pop().all_input_nodes:
            if before not in seen:
                seen.add(before)
                stack.append(before)
    return list(seen)


_DROPOUT_ARGUMENT = "dropout_p"


def is_random(node: fx.Node) -> bool:
    """Whether a call draws from a generator. Fused attention is tagged as random but draws only with dropout."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    tagged = torch.Tag.nondeterministic_seeded in target.tags
    if is_foreign(target):
        return tagged or node.meta.get("draws", False)
    if not tagged:
        return False
    for position, argument in enumerate(target._schema.arguments):
        if argument.name == _DROPOUT_ARGUMENT:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(_DROPOUT_ARGUMENT, 0.0)
            return bool(value != 0.0)
    return True
