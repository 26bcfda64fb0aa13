"""Remember how real kernels lay out their results, where tensors without data have a different layout."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ....passes.calls import call_signature, target_name
from ....passes.step_graph import storage_key
from .operands import extent_bytes, fake_operands, tensors_in, value_of


@dataclass(frozen=True)
class Layout:
    """The place of one result of a kernel in memory.

    storage_bytes: the bytes of its storage; None for a view of an operand.
    operand: the number of the operand, among all tensors in the order of the arguments, whose storage it shares.
    offset: elements from the start of that operand, or of its own storage.
    """

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    storage_bytes: int | None = None
    operand: int | None = None

    def text(self) -> str:
        """Format it for `parse_layouts`: `float32[2,3](3,1)+0:24`, or `float32[3](1)+3@0` for a view of operand 0."""
        place = f":{self.storage_bytes}" if self.operand is None else f"@{self.operand}"
        size, stride = (",".join(map(str, lengths)) for lengths in (self.size, self.stride))
        return f"{str(self.dtype).removeprefix('torch.')}[{size}]({stride})+{self.offset}{place}"


Layouts = tuple[Layout | None, ...]
"""The layouts of all results of a kernel, in order; None for a result that is not a tensor."""

_NUMBERS = r"((?:\d+(?:,\d+)*)?)"
_LAYOUT = re.compile(rf"(\w+)\[{_NUMBERS}\]\({_NUMBERS}\)\+(\d+)(?::(\d+)|@(\d+))")


def layouts_of(result: Any, operands: Sequence[torch.Tensor]) -> Layouts:
    """Return the layouts of a kernel's results.

    operands: the tensors that it received, each once, in the order of its arguments.
    """
    places = {storage_key(operand): number for number, operand in reversed(list(enumerate(operands)))}
    return tuple(_layout(part, operands, places) for part in _parts(result))


def _parts(result: Any) -> Iterable[Any]:
    return result if isinstance(result, (list, tuple)) else (result,)


def _layout(part: Any, operands: Sequence[torch.Tensor], places: Mapping[int, int]) -> Layout | None:
    if not isinstance(part, torch.Tensor) or part.layout != torch.strided:
        return None
    operand = places.get(storage_key(part))
    begin = 0 if operand is None else int(operands[operand].storage_offset())
    return Layout(
        part.dtype,
        tuple(int(size) for size in part.shape),
        tuple(int(stride) for stride in part.stride()),
        int(part.storage_offset()) - begin,
        part.untyped_storage().nbytes() if operand is None else None,
        operand,
    )


def format_layouts(layouts: Layouts) -> str:
    """Format layouts in one line, as `parse_layouts` reads them."""
    return ";".join("-" if layout is None else layout.text() for layout in layouts)


def parse_layouts(text: str) -> Layouts:
    """Invert `format_layouts`. Raises ValueError for any other text."""
    return tuple(None if part == "-" else _parse_layout(part) for part in text.split(";"))


def _parse_layout(text: str) -> Layout:
    match = _LAYOUT.fullmatch(text)
    dtype = getattr(torch, match[1], None) if match else None
    if match is None or not isinstance(dtype, torch.dtype):
        raise ValueError(f"{text[:80]!r} is not a layout of a tensor, as float32[2,3](3,1)+0:24 is")
    size, stride = (tuple(int(number) for number in match[part].split(",") if number) for part in (2, 3))
    if len(size) != len(stride):
        raise ValueError(f"{text[:80]!r} has {len(size)} sizes and {len(stride)} strides")
    storage_bytes, operand = (int(match[part]) if match[part] else None for part in (5, 6))
    return Layout(dtype, size, stride, int(match[4]), storage_bytes, operand)


class LayoutsSeen:
    """The real layouts of kernels whose fake results differ, by the operation's name and the call's signature."""

    def __init__(self) -> None:
        self.by_name: dict[str, dict[str, Layouts]] = {}

    def _learn(self, node: fx.Node, seen: Layouts) -> bool:
        """Remember the real layouts of a call's results if the fake ones differ; return whether they do."""
        operands = operands_of(*fake_operands(node))
        if lie_alike(value_of(node), seen, operands, _depends_on_data(node)):
            return False
        self.by_name.setdefault(target_name(node), {})[call_signature(node)] = seen
        return True

    def layout_mismatches(self, nodes: Iterable[fx.Node], seen: Mapping[str, str | None]) -> list[str]:
        """Remember the calls whose fake results are laid out unlike the real ones; return their signatures.

        seen: the real layouts of each call's results, by signature (`format_layouts`).
        """
        calls = {call_signature(node): node for node in nodes}
        return [
            text
            for text, node in calls.items()
            # A call that draws in place keeps the layout of its blank tensor; alone it would choose another.
            if not _is_written_in_place(node)
            and (layouts := seen.get(text)) is not None
            and self._learn(node, parse_layouts(layouts))
        ]

    def applied(self, node: fx.Node, out: Any) -> Any:
        """Return the fake result of a call with the layout of the real one, if known."""
        known = self.by_name.get(target_name(node))
        seen = known.get(call_signature(node)) if known else None
        parts = tuple(_parts(out))
        if seen is None or len(seen) != len(parts):
            return out
        operands = operands_of(*fake_operands(node))
        made = [_made(part, layout, operands) for part, layout in zip(parts, seen, strict=True)]
        return type(out)(made) if isinstance(out, (list, tuple)) else made[0]


def _is_written_in_place(node: fx.Node) -> bool:
    """Return whether the step runs another operation for a call: one that keeps the layout of what it writes over."""
    return bool(node.meta.get("in_place") or node.meta.get("keeps_layout"))


def distinct_calls(graph: fx.Graph) -> list[fx.Node]:
    """Return a copy of each distinct call of a graph, on placeholders, so that later passes do not change it.

    Calls that draw in place are left out: the step runs a different operation for them.
    """
    copies = fx.Graph()
    distinct: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem or _is_written_in_place(node):
            continue
        text = call_signature(node)
        if text not in distinct:
            given = {operand: _placeholder(copies, operand) for operand in node.all_input_nodes}
            distinct[text] = copies.node_copy(node, given.__getitem__)
    return list(distinct.values())


def _placeholder(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    placeholder = graph.placeholder(operand.name)
    placeholder.meta["val"] = value_of(operand)
    return placeholder


SEEN = LayoutsSeen()
"""The layouts seen in this process."""


def operands_of(positional: Sequence[Any], named: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that a call receives, each once, in the order of its arguments."""
    tensors = tensors_in([*positional, *(named[name] for name in sorted(named))])
    return list({id(tensor): tensor for tensor in tensors}.values())


def _depends_on_data(node: fx.Node) -> bool:
    """Return whether the shape of a result may depend on data."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags


def lie_alike(fake: Any, seen: Layouts, operands: Sequence[torch.Tensor], may_differ_in_shape: bool) -> bool:
    """Return whether fake results have the layouts of real ones.

    may_differ_in_shape: whether results of another shape count as alike.
    """
    layouts = layouts_of(fake, operands)
    if len(layouts) != len(seen):
        return may_differ_in_shape
    return all(
        _lies_alike(predicted, observed, operands)
        or (may_differ_in_shape and predicted is not None and observed is not None and predicted.size != observed.size)
        for predicted, observed in zip(layouts, seen, strict=True)
    )


def _lies_alike(fake: Layout | None, seen: Layout | None, operands: Sequence[torch.Tensor]) -> bool:
    if fake is None or seen is None:
        return fake is seen
    if (fake.dtype, fake.size) != (seen.dtype, seen.size):
        return False
    if not all(fake.size):
        return True  # there are no elements
    if fake.stride != seen.stride or (fake.operand is None) != (seen.operand is None):
        return False
    if fake.operand is None or seen.operand is None:
        same_bytes = fake.storage_bytes == seen.storage_bytes or not all(
            _fills_its_storage(operand) for operand in operands
        )
        return fake.offset == seen.offset and same_bytes
    fake_base, seen_base = operands[fake.operand], operands[seen.operand]
    begins = fake_base.storage_offset() + fake.offset, seen_base.storage_offset() + seen.offset
    return storage_key(fake_base) == storage_key(seen_base) and begins[0] == begins[1]


def _fills_its_storage(tensor: torch.Tensor) -> bool:
    """Return whether a tensor fills its storage.

    Kernels are measured on tensors that do, and some give their results a storage as large as an operand's.
    """
    return tensor.untyped_storage().nbytes() == extent_bytes(tensor)


def _made(fake: Any, seen: Layout | None, operands: Sequence[torch.Tensor]) -> Any:
    """Return a fake result with the real layout; the fake one itself if the layouts agree."""
    if seen is None or not isinstance(fake, torch.Tensor) or _lies_alike(layouts_of(fake, operands)[0], seen, operands):
        return fake if seen is not None else None
    if seen.operand is not None:
        base = operands[seen.operand]
        viewed = base if base.dtype == seen.dtype else base.view(seen.dtype)
        return viewed.as_strided(seen.size, seen.stride, viewed.storage_offset() + seen.offset)
    assert seen.storage_bytes is not None
    whole = torch.empty(seen.storage_bytes, dtype=torch.uint8, device=fake.device)
    length = whole.numel() // seen.dtype.itemsize * seen.dtype.itemsize
    return whole[:length].view(seen.dtype).as_strided(seen.size, seen.stride, seen.offset)
