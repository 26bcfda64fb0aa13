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
    """Return the operation, the shape, strides, dtype and device type of each tensor it reads, and its constants."""
    parts = [_format_argument(argument) for argument in node.args]
    parts += [f"{name}={_format_argument(argument)}" for name, argument in sorted(node.kwargs.items())]
    autocast = f" in {node.meta['autocast']}" if node.meta.get("autocast") else ""
    return f"{node.target}({', '.join(parts)}){autocast}"


def _format_argument(argument: Any) -> str:
    if isinstance(argument, fx.Node):
        return tensor_signature(argument.meta["val"])
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_format_argument(a) for a in argument)}]"
    return repr(argument)


_SHORT = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
}


def tensor_signature(value: Any) -> str:
    """Return for example `f32[4, 256](256, 1)cpu`: dtype, shape, strides, device type.

    It also says whether the tensor is conjugated or negated when it is read (`lazy_changes`).
    """
    if not isinstance(value, torch.Tensor):
        return repr(value)
    dtype = _SHORT.get(value.dtype, str(value.dtype).removeprefix("torch."))
    return f"{dtype}{list(value.shape)}{tuple(value.stride())}{value.device.type}{lazy_changes(value)}"


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
