"""The names inside one generated function, and the expressions made of them."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...passes.calls import operation_name
from ...passes.foreign_calls import with_autocast
from ...passes.rewrites.changes import Change, in_place_overload
from ...passes.sources import Source
from ...passes.step_graph import StepGraph
from ..text.source_text import identifier, is_reserved, literal
from .bound_names import BoundNames, named_argument
from .equal_views import EqualViews
from .program import Key
from .text import Rendered

_GRADIENTS = "input_gradient weight_gradient bias_gradient"
_TO_THE_END = 2**63 - 1
# Arguments by name that ATen's factories take for what they do without.
_DEFAULTS = (("layout", torch.strided), ("pin_memory", False))
# Names for the results of operations that return several, in their order.
_RESULTS = {
    "convolution_backward": _GRADIENTS,
    "native_batch_norm": "normalized mean inverse_std",
    "native_batch_norm_backward": _GRADIENTS,
    "native_group_norm": "normalized mean inverse_std",
    "native_group_norm_backward": _GRADIENTS,
    "native_layer_norm": "normalized mean inverse_std",
    "native_layer_norm_backward": _GRADIENTS,
    "nll_loss_forward": "loss total_weight",
    "_scaled_dot_product_flash_attention_for_cpu": "attention logsumexp",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "query_gradient key_gradient value_gradient",
}


@dataclass
class Scope:
    """The names of one function, and the lines that define them.

    bound: names of operations and constants, shared by all functions.
    views: views that equal an existing tensor.
    on_tape: storages that the function may take from the tape; those of placeholders are always available.
    names: names of tensors, including views.
    key_names: names of recorded states and codes.
    used: the number of requests for each name.
    returned: storages of gradients that the function returns, so that it does not delete them.
    """

    rendered: Rendered
    step: StepGraph
    bound: BoundNames
    views: EqualViews
    on_tape: set[int]
    names: dict[fx.Node, str] = field(default_factory=dict)
    key_names: dict[Key, str] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    returned: set[int] = field(default_factory=set)

    def fresh(self, hint: str) -> str:
        """Return a name not used before in this function."""
        # `split` a second time would be `split_1`, which may be the name of the first one's second part.
        while True:
            self.used[hint] += 1
            name = hint if self.used[hint] == 1 else f"{hint.rstrip('_')}_{self.used[hint] - 1}"
            if is_reserved(name):  # `constant_1`: all numbers after that word are, not those after `constant_`
                name = f"{hint}_{self.used[hint] - 1}"
            if name == hint or not self.used[name]:
                self.used[name] = max(self.used[name], 1)
                return name

    def name(self, node: fx.Node) -> str:
        """Return a new name for a tensor."""
        self.names[node] = self.fresh(hint_of(node))
        return self.names[node]

    def targets(self, node: fx.Node, outputs: list[int]) -> str:
        """Return the left side of an assignment, `name = `, for these outputs of a call, and name them."""
        if not outputs:
            return ""
        if isinstance(node.meta["val"], torch.Tensor):
            return f"{self.name(node)} = "
        picked: dict[int, fx.Node] = {
            user.args[1]: user  # pyright: ignore[reportAssignmentType]
            for user in node.users
            if user.target is operator.getitem and self.step.storage_of[user] in outputs
        }
        parts = range(len(node.meta["val"]))
        return f"{', '.join(self.name(picked[index]) if index in picked else 'unused' for index in parts)} = "

    def arguments(self, call: fx.Node, skip_first: bool = False, without: tuple[fx.Node, ...] = ()) -> str:
        """Return the arguments of a call as text; those in `without` are None."""
        positional = [None if argument in without else argument for argument in call.args]
        if call.target is torch.ops.aten.slice.Tensor and positional[3:] == [_TO_THE_END]:
            del positional[3:]
        parts = [self.argument(argument) for argument in positional[1 if skip_first else 0 :]]
        left_out = _DEFAULTS if _is_factory(call) else ()
        kwargs = [(name, value) for name, value in call.kwargs.items() if (name, value) not in left_out]
        parts += [named_argument(name, self.argument(value)) for name, value in kwargs]
        return ", ".join(parts)

    def written(self, change: Change, name: str) -> str:
        """Return the call that writes a change into the tensor of a name."""
        for view in change.place:
            name = f"{view.target}({name}, {self.arguments(view, skip_first=True)})"
        if change.copies:
            return f"aten.copy_.default({name}, {self.expression(change.by)})"
        others = self.arguments(change.by, skip_first=True)
        return f"{in_place_overload(change.by.target)}({', '.join(filter(None, [name, others]))})"

    def argument(self, argument: Any) -> str:
        """Return an argument as text: a tensor by its name, a sequence as a list, any other value as a constant."""
        if isinstance(argument, fx.Node):
            return self.expression(argument)
        if isinstance(argument, (list, tuple)):
            return f"[{', '.join(self.argument(a) for a in argument)}]"
        return self.constant(argument)

    def constant(self, value: Any) -> str:
        """Return a constant as text: a marked place for numbers, a literal, or the name of an object without one."""
        numbers = isinstance(value, (int, float, tuple)) and not isinstance(value, bool)
        return self.rendered.number(value) if numbers and literal(value) is not None else self.bound.constant(value)

    def called(self, call: fx.Node, arguments: str) -> str:
        """Return a call of the operation of a node with other arguments."""
        return f"{self.bound.operation(with_autocast(call))}({arguments})"

    def expression(self, node: fx.Node) -> str:
        """Return the name of a tensor in this function, or the mark of a view, which is made at its first use."""
        if node in self.names:
            return self.names[node]
        if node in self.step.overwrites:
            return self.expression(self.step.overwrites[node])
        storage = self.step.storage_of.get(node)
        if storage is not None and self.step.storages[storage].base is node:
            return self._take(storage)
        equal = self.views.of(node, self.names)
        if equal is not None:
            self.names[node] = self.expression(equal)
            return self.names[node]
        self.names[node] = self.rendered.body.view(hint_of(node), self._viewed(node))
        return self.names[node]

    def _viewed(self, node: fx.Node) -> str:
        """Return the expression that makes a view."""
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            return f"{self.expression(source)}[{index}]"
        reshaped = self.views.reshaped(node, self.names)
        if reshaped is not None:
            return f"aten.view.default({self.expression(reshaped)}, {self.arguments(node, skip_first=True)})"
        return self.called(node, self.arguments(node))

    def _take(self, storage: int) -> str:
        base = self.step.storages[storage].base
        assert base.op == "placeholder" or storage in self.on_tape, f"{base} is not alive"
        self.rendered.takes.append(storage)
        self.rendered.taken.append(self.name(base))
        return self.names[base]

    def give(self, key: Key, hint: str) -> str:
        """Return the name of a state or code that is made here and put on the tape."""
        self.key_names[key] = self.fresh(hint)
        self.rendered.gives.append(key)
        return self.key_names[key]

    def key_name(self, key: Key) -> str:
        """Return the name of a state or code, taken from the tape if it was not made here."""
        if key not in self.key_names:
            self.key_names[key] = self.fresh(str(key[0]))  # pyright: ignore[reportIndexIssue]
            self.rendered.takes.append(key)
            self.rendered.taken.append(self.key_names[key])
        return self.key_names[key]

    def forget(self, key: Key) -> None:
        """Delete a state or code that nothing reads later."""
        name = self.key_name(key)
        self.leave(key)
        self.rendered.body.delete(name)
        del self.key_names[key]

    def free(self, storage: int) -> None:
        """Delete the names of tensors in a storage that nothing reads later."""
        base = self.step.storages[storage].base
        if base not in self.names:
            self._take(storage)
        self.leave(storage)
        names = [node for node in self.names if self._lies_in(node, storage)]
        if storage not in self.returned:
            self.rendered.body.delete(*(self.names[node] for node in names))
        for node in names:
            del self.names[node]

    def leave(self, key: Key) -> None:
        """Record that a value ends in this function: it is not put on the tape, or it leaves the tape."""
        if key in self.rendered.gives:
            self.rendered.gives.remove(key)
        else:
            self.rendered.drops.add(key)

    def _lies_in(self, node: fx.Node, storage: int) -> bool:
        if node in self.step.storage_of:
            return self.step.storage_of[node] == storage
        # A list of views (the result of a split) is in the storage of the tensor that was split.
        return any(self.step.storage_of.get(n) == storage for n in node.all_input_nodes)


def _is_factory(call: fx.Node) -> bool:
    """Return whether a call makes a tensor of nothing but numbers, by an operation of ATen."""
    return getattr(call.target, "namespace", "") == "aten" and not call.all_input_nodes


def hint_of(node: fx.Node) -> str:
    """Return a readable name: for a parameter its last two names without numbers, for a call its operation or result.

    A tensor from outside that has no name is called `tensor`.
    """
    if node.op == "placeholder":
        origin: Source = node.meta["source"]
        parts = [part for part in origin.name.split(".") if not part.isdigit()]
        return identifier("_".join(parts[-2:]) or ("tensor" if origin.kind == "constant" else origin.kind))
    if node.target is operator.getitem:
        source, index = node.args
        assert isinstance(source, fx.Node) and isinstance(index, int)
        names = _RESULTS.get(operation_name(source), "").split() or [f"{hint_of(source)}_{index}"] * (index + 1)
        return names[index] if index < len(names) else f"{hint_of(source)}_{index}"
    return identifier(operation_name(node).rpartition("::")[2])
