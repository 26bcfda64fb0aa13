"""How real kernels lay out their results, remembered where tensors without data are laid out otherwise."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ....passes.step_graph import storage_key
from .operands import extent_bytes, fake_operands, signature, target_name, tensors_in, value_of


@dataclass(frozen=True)
class Layout:
    """How one result of a kernel lies in memory.

    storage_bytes: of its storage; None for a view of an operand. operand: the number of the operand, among all tensors
    in the order of the arguments, whose storage it shares, if any; offset: elements from where that operand begins,
    or from the start of a storage of its own.
    """

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    storage_bytes: int | None = None
    operand: int | None = None

    def text(self) -> str:
        """In a line, as `parsed` reads it: `float32[2,3](3,1)+0:24`, or `float32[3](1)+3@0` for a view of operand 0."""
        place = f":{self.storage_bytes}" if self.operand is None else f"@{self.operand}"
        size, stride = (",".join(map(str, one)) for one in (self.size, self.stride))
        return f"{str(self.dtype).removeprefix('torch.')}[{size}]({stride})+{self.offset}{place}"


Layouts = tuple[Layout | None, ...]
"""Of all results of a kernel, in order; None for what is no tensor."""

_NUMBERS = r"((?:\d+(?:,\d+)*)?)"
_ONE = re.compile(rf"(\w+)\[{_NUMBERS}\]\({_NUMBERS}\)\+(\d+)(?::(\d+)|@(\d+))")


def layouts_of(result: Any, operands: Sequence[torch.Tensor]) -> Layouts:
    """How a kernel's results lie. operands: the tensors that it was given, each once, in the order of its arguments."""
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


def written(layouts: Layouts) -> str:
    """Layouts in a line, as `parsed` reads them."""
    return ";".join("-" if one is None else one.text() for one in layouts)


def parsed(text: str) -> Layouts:
    """The layouts that `written` wrote down. Raises ValueError for any other text."""
    return tuple(None if one == "-" else _parsed(one) for one in text.split(";"))


def _parsed(text: str) -> Layout:
    match = _ONE.fullmatch(text)
    dtype = getattr(torch, match[1], None) if match else None
    if match is None or not isinstance(dtype, torch.dtype):
        raise ValueError(f"{text[:80]!r} is no layout of a tensor")
    size, stride = (tuple(int(one) for one in match[part].split(",") if one) for part in (2, 3))
    if len(size) != len(stride):
        raise ValueError(f"{text[:80]!r} has {len(size)} sizes and {len(stride)} strides")
    storage_bytes, operand = (int(match[part]) if match[part] else None for part in (5, 6))
    return Layout(dtype, size, stride, int(match[4]), storage_bytes, operand)


class LayoutsSeen:
    """What was seen of kernels whose fake results lie otherwise, by the operation's name and the call's signature."""

    def __init__(self) -> None:
        self.by_name: dict[str, dict[str, Layouts]] = {}

    def _learn(self, node: fx.Node, seen: Layouts) -> bool:
        """Remembers how a call's results really lie if the fake ones lie otherwise; whether they do."""
        operands = operands_of(*fake_operands(node))
        if lie_alike(value_of(node), seen, operands, _depends_on_data(node)):
            return False
        self.by_name.setdefault(target_name(node), {})[signature(node)] = seen
        return True

    def surprises(self, nodes: Iterable[fx.Node], seen: Mapping[str, str | None]) -> list[str]:
        """The calls whose fake results lie unlike the real ones, by name and signature, each once; remembers them.

        seen: how the results of each call, by signature, were seen to lie (`written`).
        """
        calls = {signature(node): node for node in nodes}
        return [
            text
            for text, node in calls.items()
            # What draws in place draws into a blank tensor, whose layout it keeps; alone it would make another.
            if not node.meta.get("in_place")
            and (layouts := seen.get(text)) is not None
            and self._learn(node, parsed(layouts))
        ]

    def applied(self, node: fx.Node, out: Any) -> Any:
        """The fake result of a call, laid out as the real one was seen to be."""
        known = self.by_name.get(target_name(node))
        seen = known.get(signature(node)) if known else None
        parts = tuple(_parts(out))
        if seen is None or len(seen) != len(parts):
            return out
        operands = operands_of(*fake_operands(node))
        made = [_made(part, layout, operands) for part, layout in zip(parts, seen, strict=True)]
        return type(out)(made) if isinstance(out, (list, tuple)) else made[0]


def stand_ins(graph: fx.Graph) -> list[fx.Node]:
    """A copy of each distinct call of a graph on operands that stand for its own, so that it outlasts changes there.

    Calls that draw in place are left out: what runs is another operation.
    """
    copies = fx.Graph()
    distinct: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem or node.meta.get("in_place"):
            continue
        text = signature(node)
        if text not in distinct:
            given = {operand: _stand_in(copies, operand) for operand in node.all_input_nodes}
            distinct[text] = copies.node_copy(node, given.__getitem__)
    return list(distinct.values())


def _stand_in(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    stand_in = graph.placeholder(operand.name)
    stand_in.meta["val"] = value_of(operand)
    return stand_in


SEEN = LayoutsSeen()
"""Those of this process."""


def operands_of(positional: Sequence[Any], named: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that a call is given, each once, in the order of its arguments."""
    tensors = tensors_in([*positional, *(named[name] for name in sorted(named))])
    return list({id(tensor): tensor for tensor in tensors}.values())


def _depends_on_data(node: fx.Node) -> bool:
    """Whether the shape of a result may be another one for other data."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags


def lie_alike(fake: Any, seen: Layouts, operands: Sequence[torch.Tensor], of_any_shape: bool) -> bool:
    """Whether fake results lie as real ones were seen to. of_any_shape: these may be of another shape."""
    layouts = layouts_of(fake, operands)
    if len(layouts) != len(seen):
        return of_any_shape
    return all(
        _lies_alike(one, other, operands)
        or (of_any_shape and one is not None and other is not None and one.size != other.size)
        for one, other in zip(layouts, seen, strict=True)
    )


def _lies_alike(fake: Layout | None, seen: Layout | None, operands: Sequence[torch.Tensor]) -> bool:
    if fake is None or seen is None:
        return fake is seen
    if (fake.dtype, fake.size) != (seen.dtype, seen.size):
        return False
    if not all(fake.size):
        return True  # no element lies anywhere
    if fake.stride != seen.stride or (fake.operand is None) != (seen.operand is None):
        return False
    if fake.operand is None or seen.operand is None:
        same_bytes = fake.storage_bytes == seen.storage_bytes or not all(_fills_its_storage(one) for one in operands)
        return fake.offset == seen.offset and same_bytes
    here, there = operands[fake.operand], operands[seen.operand]
    begins = here.storage_offset() + fake.offset, there.storage_offset() + seen.offset
    return storage_key(here) == storage_key(there) and begins[0] == begins[1]


def _fills_its_storage(tensor: torch.Tensor) -> bool:
    """Whether there is nothing else in a tensor's storage: kernels are measured on such tensors, and some give their
    results a storage as large as an operand's."""
    return tensor.untyped_storage().nbytes() == extent_bytes(tensor)


def _made(fake: Any, seen: Layout | None, operands: Sequence[torch.Tensor]) -> Any:
    """A fake result laid out as seen: the fake one itself if there is nothing to change."""
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
