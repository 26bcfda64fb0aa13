"""Describes recorded calls: name, arguments and signature, inputs, and whether they draw random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .foreign_calls import is_foreign


def operation_name(node: fx.Node) -> str:
    """Return `gelu_backward` for aten's and lowtide's operations, `namespace::name` for others, "" for other nodes."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::").removeprefix("lowtide::") if schema is not None else ""


def arguments_of(call: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults too."""
    schema_arguments = call.target._schema.arguments  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    given = {argument.name: value for argument, value in zip(schema_arguments, call.args, strict=False)}
    return {argument.name: argument.default_value for argument in schema_arguments} | given | dict(call.kwargs)


def call_signature(node: fx.Node) -> str:
    """Return a text that is equal for calls that are equal up to renaming, in any process.

    It holds the operation, the dtype, shape, strides and device type of each tensor that it reads, and its constants. A
    second use of a tensor is its number. Where the size of the results depends on values, the results are included.
    """
    numbers: dict[fx.Node, int] = {}
    parts = [_format_argument(argument, numbers) for argument in node.args]
    parts += [f"{name}={_format_argument(node.kwargs[name], numbers)}" for name in sorted(node.kwargs)]
    results = f" -> {_format_argument(node.meta.get('val'), numbers)}" if _depends_on_values(node) else ""
    autocast = f" in {node.meta['autocast']}" if node.meta.get("autocast") else ""
    return f"{target_name(node)}({', '.join(parts)}){results}{autocast}"


def target_name(node: fx.Node) -> str:
    """Return `aten.mm.default` for a call of ATen, the function's own name for another call."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _format_argument(argument: Any, numbers: dict[fx.Node, int]) -> str:
    if isinstance(argument, fx.Node):
        if argument in numbers:
            return f"={numbers[argument]}"
        numbers[argument] = len(numbers)
        return _format_argument(argument.meta["val"], numbers)
    if isinstance(argument, torch.Tensor):
        sizes, strides = (", ".join(str(int(n)) for n in extents) for extents in (argument.shape, argument.stride()))
        return f"{dtype_name(argument.dtype)}[{sizes}]({strides}){argument.device.type}{lazy_changes(argument)}"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_format_argument(item, numbers) for item in argument)}]"
    if isinstance(argument, slice):
        return f"slice({argument.start}, {argument.stop}, {argument.step})"
    return argument.type if isinstance(argument, torch.device) else repr(plain_number(argument))


def _depends_on_values(node: fx.Node) -> bool:
    """Return whether the sizes of a call's results depend on the values of its operands."""
    target = node.target
    tagged = isinstance(target, torch._ops.OpOverload) and torch.Tag.dynamic_output_shape in target.tags
    return tagged or getattr(target, "overloadpacket", None) in _SIZED_BY_LENGTHS


_SIZED_BY_LENGTHS = {torch.ops.aten._pack_padded_sequence, torch.ops.aten._ctc_loss}


def plain_number(argument: Any) -> Any:
    """Return a symbolic number at its captured size; any other value unchanged."""
    if isinstance(argument, torch.SymInt):
        return int(argument)
    if isinstance(argument, torch.SymFloat):
        return float(argument)
    return bool(argument) if isinstance(argument, torch.SymBool) else argument


_SHORT_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
}


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's short name: `f32`, `i64`, `bool`."""
    return _SHORT_DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def lazy_changes(tensor: torch.Tensor) -> str:
    """Return the changes that torch makes to elements only when a kernel reads them, which may take a copy; usually
    "".
    """
    return (" conj" if tensor.is_conj() else "") + (" neg" if tensor.is_neg() else "")


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """Return a node and all nodes that it is computed from, in no particular order."""
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
    """Return whether a call draws from a generator; fused attention is tagged as random but draws only with dropout."""
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


def rounds_by_layout(call: fx.Node) -> bool:
    """Return whether the last bits of a product or quotient depend on how its operands lie in memory.

    Kernels for complex numbers choose the order of their operations by the operands' strides.
    """
    value = call.meta["val"]
    if not isinstance(value, torch.Tensor) or not value.is_complex():
        return False
    operands = (node.meta["val"] for node in call.all_input_nodes)
    return any(isinstance(operand, torch.Tensor) and operand.stride() != value.stride() for operand in operands)
