"""Writes down every ATen call of a step as it runs on tensors without data: an FX graph, and what forward looked at."""

from __future__ import annotations

import operator
import traceback
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from ..passes.foreign_calls import is_foreign
from .captured import looked_at
from .errors import CaptureError
from .fake_results import as_eager_makes_it, grouped_mm_result, is_blank
from .foreign_operations import ForeignOperations, fake_kernel_failed
from .plain_text import printable
from .running_modules import user_line
from .sample_values import SampleValues
from .source_text import identifier
from .sources import Source
from .torch_internals import (
    NEEDS_DATA,
    OperationMode,
    backward_sequence,
    forward_sequence,
    is_without_data,
    tensors_with_data,
)

aten = torch.ops.aten

# What the cells of recurrent layers call, and nothing else does. Rewritten they would differ in the last bit: a
# sigmoid on a part of a tensor takes other vector lanes than one on a copy of that part.
_RECURRENT = (aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.mkldnn_rnn_layer.default)


class Recorder(OperationMode):
    """Writes every ATen call into an FX graph; sits above tensors without data, below autograd and functionalization.

    graph: what is recorded, each call's `meta` as `Captured` has it. nodes: by the id of the fake tensor, what gave it.
    phase: "forward" until whoever runs the step sets "backward". modules: names of the modules running, innermost last,
    kept by `module_names`. constants: tensors that were met but are no inputs of the step, in the order of their
    placeholders. reads: the nodes whose values forward looked at, each with what it saw.

    Raises CaptureError, with the module and the line at fault, for what a captured step cannot follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.values = SampleValues(self.where)
        self.foreign = ForeignOperations(self.where)
        self.constants: list[torch.Tensor] = []
        self.reads: list[tuple[fx.Node, Any]] = []
        self.positions: dict[fx.Node, list[torch.Tensor]] = {}
        self.modules: list[str] = []
        self.phase = "forward"
        self.sequence = -1
        self.counts: dict[str, int] = {}

    def placeholder(self, kind: str, name: str, fake: torch.Tensor, sample: torch.Tensor | None) -> fx.Node:
        """A new input of the graph, standing for `fake`; `sample` holds its real data where there is any."""
        index = self.counts.get(kind, 0)
        self.counts[kind] = index + 1
        last = next((n for n in reversed(self.graph.nodes) if n.op == "placeholder"), None)
        first = next(iter(self.graph.nodes), None)
        place = self.graph.inserting_after(last) if last else self.graph.inserting_before(first)
        with place:
            node = self.graph.placeholder(identifier(f"{kind}_{name}"))
        node.meta.update(val=fake, source=Source(kind, name, index))
        self.nodes[id(fake)] = node
        if sample is not None and sample.device.type != "meta":
            self.values.sample[node] = sample
        return node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default or func.namespace == "profiler":
            return func(*args, **kwargs)
        if func in _RECURRENT:
            raise CaptureError(
                f"recurrent layers (LSTM, GRU) cannot be rewritten, {self.where()}: their cells work in place on parts "
                "of tensors, or in a fused kernel with a workspace of its own; keep them out of the rewritten module"
            )
        if func is aten.lift_fresh.default and not is_without_data(args[0]):
            return self._lift(args[0])
        if func._schema.is_mutable:
            raise CaptureError(f"{func} changes a tensor that lowtide cannot follow, {self.where()}")
        if func is aten.index.Tensor or (func is aten.index_put.default and self._knows_masks(args[1])):
            args = (args[0], [part for index in args[1] for part in self._positions(index)], *args[2:])
        node_args, node_kwargs = self._nodes_of((args, kwargs))
        node = self.graph.call_function(func, node_args, node_kwargs)
        node.meta.update(
            phase=self.phase,
            sequence=self._sequence(),
            module=self.modules[-1] if self.modules and self.phase == "forward" else "",
        )
        try:
            shaped = func is aten._grouped_mm.default and args[0].dtype != torch.bfloat16
            out = grouped_mm_result(*args) if shaped else func(*args, **kwargs)
        except NEEDS_DATA:
            node.meta["shaped_by_data"] = True
            out = self._look_at_data(node, args)
        except Exception as error:
            if is_foreign(func):
                raise fake_kernel_failed(func, error, self.where()) from error
            raise
        if func is aten.bernoulli.p and is_blank(node.args[0]):
            # Eager draws in place, in the order of the blank tensor's layout; the functional form draws in row order.
            out = torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype, device=args[0].device)
            node.meta["in_place"] = True
        out = self.foreign.seen(node, out) if is_foreign(func) else as_eager_makes_it(func, args, out)
        self._name_outputs(node, out)
        return out

    def _knows_masks(self, indices: Any) -> bool:
        """Whether forward has taken elements by these very masks."""
        return any(isinstance(i, torch.Tensor) and self.nodes.get(id(i)) in self.positions for i in indices)

    def _positions(self, index: torch.Tensor | None) -> list[torch.Tensor | None]:
        """A mask as the positions where it is true, as eager reads it: how many there are is guarded."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        mask = self.nodes[id(index)] if id(index) in self.nodes else self._constant(index)
        if mask not in self.positions:
            with self:
                found = aten.nonzero.default(index)
                self.positions[mask] = [aten.select.int(found, 1, i) for i in range(index.dim())]
        return list(self.positions[mask])

    def _sequence(self) -> int:
        """The number of the autograd node that a forward call belongs to, or that backward is running."""
        if self.phase == "forward":
            self.sequence = forward_sequence()
        elif (running := backward_sequence()) is not None:
            # The engine sums gradients between two nodes: then none is running, and the sum belongs to the last one.
            self.sequence = running
        return self.sequence

    def _nodes_of(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            node = self.nodes.get(id(value))
            return node if node is not None else self._constant(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._nodes_of(v) for v in value)
        if isinstance(value, dict):
            return {k: self._nodes_of(v) for k, v in value.items()}
        if isinstance(value, torch.Generator):
            raise CaptureError(f"a random operation was given its own generator, {self.where()}; use the default one")
        return value

    def _lift(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor made of Python numbers in forward: the same storage from here on."""
        node = self._constant(value)
        lifted = aten.lift_fresh.default(value)
        node.meta["val"] = lifted
        self.nodes[id(lifted)] = node
        return lifted

    def _constant(self, value: torch.Tensor) -> fx.Node:
        if is_without_data(value):
            raise CaptureError(f"a tensor made outside the step reached it, {self.where()}")
        if value.requires_grad:
            raise CaptureError(
                f"a tensor of shape {tuple(value.shape)} requires a gradient but is no parameter of the module, "
                f"{self.where()}; register it as an nn.Parameter or pass it as an argument"
            )
        # Kept by the recorder, so that its id stays its own.
        self.constants.append(value)
        return self.placeholder("constant", str(len(self.constants) - 1), value, value)

    def _name_outputs(self, node: fx.Node, out: Any) -> None:
        node.meta["val"] = out
        if isinstance(out, torch.Tensor) and out.layout != torch.strided:
            raise CaptureError(
                f"{node.target} makes a sparse tensor, {self.where()}: a sparse gradient's size is not known "
                "before it is there; make the embedding with sparse=False"
            )
        if isinstance(out, torch.Tensor):
            self.nodes[id(out)] = node
        elif isinstance(out, (list, tuple)):
            for index, part in enumerate(out):
                if isinstance(part, torch.Tensor):
                    item = self.graph.call_function(operator.getitem, (node, index))
                    item.meta.update(node.meta, val=part)
                    self.nodes[id(part)] = item

    def _look_at_data(self, node: fx.Node, args: Any) -> Any:
        """The value of a node that fake tensors cannot know: computed from the sample, and guarded."""
        if self.phase == "backward":
            raise CaptureError(f"backward looks at data ({node.target}), {self.where()}")
        # Above this handler functionalization and autograd are still on; below it only the fake mode is.
        with tensors_with_data(), torch.no_grad():
            fixed = self.values.same_for_any_draw(node)
            value = fixed if fixed is not None else self.values.of(node)
        if fixed is None:
            self.reads.append((node, looked_at(value)))
        place = getattr(args[0], "fake_device", None)
        return map_aggregate(  # pyright: ignore[reportReturnType]
            value,
            lambda v: (
                torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=place)
                if isinstance(v, torch.Tensor)
                else v
            ),
        )

    def where(self) -> str:
        """The innermost module running now, and the line of code, for errors."""
        name = self.modules[-1] if self.modules else "the root module"
        return f"in {printable(name) or 'the root module'}{user_line(traceback.extract_stack())}"
