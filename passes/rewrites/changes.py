"""Finds calls that make a changed copy of an operand, and how the same is written in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ...kernels.packing.bits import dense
from ..calls import lazy_changes
from ..step_graph import storage_key
from ..step_kernels import Change, Kernel

aten = torch.ops.aten

# Functionalization turns writes into a view into these: the whole with one view of it replaced; with the view's call.
SCATTERS: dict[Any, Any] = {
    aten.slice_scatter.default: aten.slice.Tensor,
    aten.select_scatter.default: aten.select.int,
    aten.diagonal_scatter.default: aten.diagonal.default,
    aten.as_strided_scatter.default: aten.as_strided.default,
}

# Operations that only change or only fill their first operand, and always begin with a copy of it.
CHANGES: set[Any] = {
    *SCATTERS,
    aten.copy.default,
    aten.fill.Scalar,
    aten.fill.Tensor,
    aten.zero.default,
    aten.index_put.default,
    aten.index_copy.default,
    aten.index_add.default,
    aten.index_fill.int_Scalar,
    aten.index_fill.int_Tensor,
    aten.index_reduce.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.reduce,
    aten.scatter.value_reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
    aten.masked_scatter.default,
    aten.put.default,
}


def in_place_overload(target: Any) -> Any:
    """Return the overload of ATen that writes another one's result into its first operand, None if there is none."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    packet = getattr(aten, target._schema.name.removeprefix("aten::") + "_", None)
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    if overload is None:
        return None
    own_arguments, in_place_arguments = target._schema.arguments, overload._schema.arguments
    same = [(a.name, str(a.type)) for a in own_arguments] == [(a.name, str(a.type)) for a in in_place_arguments]
    changed = in_place_arguments[0].alias_info
    return overload if same and changed is not None and changed.is_write else None


def functional_packet(target: Any) -> Any:
    """Return the operation of a call's target, for one in place its functional variant; None if it is not an
    operation.
    """
    packet = getattr(target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else ""
    is_in_place = name.endswith("_") and target._schema.is_mutable and target.namespace == "aten"
    return getattr(aten, name[:-1], packet) if is_in_place else packet


def match_change(top: fx.Node, kernel_of: Mapping[fx.Node, Kernel], storage_of: Mapping[fx.Node, int]) -> Change | None:
    """Return how the result of a call can be written in place, None if it is not a changed copy of its first operand.

    kernel_of: kernels that consist of one call, which may become part of this one.
    """
    of = top.args[0] if top.args else None
    if not isinstance(of, fx.Node) or not _is_change(top) or not _fills(of) or not _fills(top):
        return None
    if _geometry(of) != _geometry(top):
        return None
    calls, node, written = [top], top, of
    while node.target in SCATTERS:
        region = _view(SCATTERS[node.target], written, node.args[2:])
        inner = _inner(node, region, storage_of[of], kernel_of, storage_of)
        if inner is None:
            return _copying(of, node, (*_chain(written, of), region), tuple(reversed(calls)), storage_of)
        calls.append(inner)
        node, written = inner, _node(inner.args[0])
    variant = in_place_overload(node.target)
    if variant is None:
        return None
    call = _placeholder_call(variant, written, node.args[1:], node.kwargs)
    others = [operand for operand in node.all_input_nodes if operand is not written]
    aliased = any(storage_of.get(operand) == storage_of[of] for operand in others)
    # Eager has written in place next to the same parts.
    aliased = aliased and not node.meta.get("eager_in_place")
    return Change(of, _chain(written, of), node, False, call, tuple(reversed(calls)), aliased)


def is_worth_a_copy(change: Change) -> bool:
    """Return whether copying the whole and writing into the copy takes no more than the calls themselves.

    A result that keeps its operand's layout (`meta["keeps_layout"]`) is only made by writing into it or a copy of it.
    """
    return bool(change.place) or any(call.meta.get("keeps_layout") for call in change.calls)


def _copying(
    of: fx.Node,
    node: fx.Node,
    place: tuple[fx.Node, ...],
    calls: tuple[fx.Node, ...],
    storage_of: Mapping[fx.Node, int],
) -> Change | None:
    """Return the change that copies a scatter's source, which others may read, to its place."""
    source = node.args[1]
    if not isinstance(source, fx.Node):
        return None
    call = _placeholder_call(aten.copy_.default, place[-1], (source,), {})
    return Change(of, place, source, True, call, calls, storage_of.get(source) == storage_of[of])


def _is_change(node: fx.Node) -> bool:
    """Return whether eager has written this in place, or its result is a copy in any case."""
    if node.target in CHANGES:
        return True
    return bool(node.meta.get("eager_in_place")) and in_place_overload(node.target) is not None


def _inner(
    node: fx.Node,
    region: fx.Node,
    storage: int,
    kernel_of: Mapping[fx.Node, Kernel],
    storage_of: Mapping[fx.Node, int],
) -> fx.Node | None:
    """Return the call that makes a scatter's source of the region's content, if it can be written there directly."""
    source = made = node.args[1]
    seen = node
    while isinstance(made, fx.Node) and len(made.users) == 1 and made not in kernel_of:
        if not made.args or not isinstance(made.args[0], fx.Node) or not _is_view_of(made, made.args[0]):
            return None
        seen, made = made, made.args[0]
    if not isinstance(made, fx.Node) or made not in kernel_of or set(made.users) != {seen} or not _is_change(made):
        return None
    before = made.args[0] if made.args else None
    same_phase = kernel_of[made].phase == node.meta["phase"]
    if not isinstance(before, fx.Node) or storage_of.get(before) != storage or not same_phase:
        return None
    if made is source:
        alike = _geometry(before) == _geometry(region) and _value(made).dtype == _value(before).dtype
        return made if alike and _value(made).shape == _value(before).shape else None
    # Views lie between: elements correspond if the result lies in memory as its operand does.
    moved = _offset(before) - _offset(made)
    alike = _geometry(before) == _geometry(made, moved) and _geometry(region) == _geometry(source, moved)
    return made if alike else None


def _node(argument: Any) -> fx.Node:
    assert isinstance(argument, fx.Node)
    return argument


def _value(node: Any) -> torch.Tensor:
    return node.meta["val"]


def _offset(node: Any) -> int:
    return int(_value(node).storage_offset())


def _geometry(node: Any, moved: int = 0) -> tuple[Any, ...]:
    """Return the places of a value's elements in its storage, its dtype, device and lazy changes."""
    value = _value(node)
    lies = (tuple(value.shape), tuple(value.stride()), _offset(node) + moved)
    return (*lies, value.dtype, value.device, lazy_changes(value))


def _fills(node: fx.Node) -> bool:
    value = _value(node)
    return isinstance(value, torch.Tensor) and fills_storage(value)


def fills_storage(value: torch.Tensor) -> bool:
    """Return whether a tensor is all there is in its storage."""
    if not value.numel() or lazy_changes(value):
        return False
    return dense(value) and value.numel() * value.element_size() == value.untyped_storage().nbytes()


def is_written_in_place(target: Any) -> bool:
    """Return whether what eager does in place by this operation can be written in place here."""
    return target in CHANGES or in_place_overload(target) is not None


def _is_view_of(node: fx.Node, other: fx.Node) -> bool:
    value, other_value = _value(node), _value(other)
    both = isinstance(value, torch.Tensor) and isinstance(other_value, torch.Tensor)
    return both and storage_key(value) == storage_key(other_value)


def _view(target: Any, of: fx.Node, args: tuple[Any, ...]) -> fx.Node:
    """Return a node, in a graph of its own, for a view of another node."""
    (placeholder,) = _placeholders(fx.Graph(), (of,))
    node = placeholder.graph.call_function(target, (placeholder, *args))
    node.meta["val"] = target(_value(of), *args)
    return node


def _chain(written: fx.Node, of: fx.Node) -> tuple[fx.Node, ...]:
    """Return the views that lead from an operand to a part of it, from the first to the last."""
    chain: list[fx.Node] = []
    node = written
    while _geometry(node) != _geometry(of):
        chain.append(node)
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or not _is_view_of(node, before) or len(node.all_input_nodes) != 1:
            value = _value(written)
            strided = (list(value.shape), list(value.stride()), _offset(written))
            return (_view(aten.as_strided.default, of, strided),)
        node = before
    return tuple(reversed(chain))


def _placeholders(graph: fx.Graph, nodes: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
    """Return placeholders for nodes of another graph."""
    placeholders = []
    for node in nodes:
        placeholders.append(graph.placeholder(node.name))
        placeholders[-1].meta["val"] = node.meta["val"]
    return tuple(placeholders)


def _placeholder_call(target: Any, place: fx.Node, others: tuple[Any, ...], keywords: Mapping[str, Any]) -> fx.Node:
    """Return the call of an in-place overload, in a graph of its own."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}

    def placeholder_of(node: fx.Node) -> fx.Node:
        if node not in known:
            (known[node],) = _placeholders(graph, (node,))
        return known[node]

    args, kwargs = fx.map_arg(((place, *others), dict(keywords)), placeholder_of)  # pyright: ignore[reportArgumentType]
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = _value(place)
    return node
