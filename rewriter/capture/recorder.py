"""Record every ATen call of a step that runs on tensors without data in an FX graph, and the values forward read."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from ...kernels.eager.averaged_statistics import AVERAGED
from ...passes.foreign_calls import is_foreign
from ...passes.rewrites.changes import fills_storage, is_written_in_place
from ...passes.sources import Source, SourceKind
from ...solvers.problem.plain_text import printable
from ..errors import CaptureError
from ..text.source_text import identifier
from .boundary.refused_parts import refuse_tensors
from .capture_failures import about_sparse
from .captured_step import observed_value
from .eager.fake_kernel_fixes import as_eager_makes_it, grouped_mm_result, is_blank
from .eager.shaped_by_data import result_by_shape
from .foreign.operations import ForeignOperations, fake_kernel_failed
from .module_stack import running_line, user_line
from .operands.layouts_seen import SEEN
from .sample_values import SampleValues
from .torch_internals import (
    NEEDS_DATA,
    OperationMode,
    backward_sequence,
    forward_sequence,
    is_without_data,
    no_function_modes,
    present_value,
    tensors_with_data,
)
from .value_reads import is_decided_in_step, looks_for_nan, refuse_varying
from .watch.random_streams import unwatched
from .watch.tensor_placeholders import TensorPlaceholders

aten = torch.ops.aten

# Only the cells of recurrent layers call these. Rewritten they would differ in the last bit: a sigmoid on a part of a
# tensor uses different vector instructions than one on a copy of that part.
_RECURRENT = (aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.mkldnn_rnn_layer.default)


class Recorder(OperationMode):
    """A mode that records every ATen call in an FX graph, above fake tensors, below autograd and functionalization.

    graph: the recorded calls, each with `meta` as in `CapturedStep`.
    nodes: the node that made each fake tensor, by the tensor's id.
    phase: "forward" until the caller sets "backward".
    modules: names of the running modules, innermost last, maintained by `shadow_module.watched`.
    constants: tensors that forward reads but that are not inputs, in the order of their placeholders.
    reads: the nodes whose values forward read, each with the value for the sample.
    checks: truth values that depend on parameters or random numbers and by which forward decided, each with its value
        for the sample; every step checks that they are the same.
    outer: the autograd node that runs around the capture, if any.

    Raises CaptureError, with the module and the line at fault, for operations that a captured step cannot follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.values = SampleValues(self.where)
        self.foreign = ForeignOperations(self.where)
        self.constants: list[torch.Tensor] = []
        self._changing: torch.Tensor | None = None
        self.reads: list[tuple[fx.Node, Any]] = []
        self.checks: list[tuple[fx.Node, bool]] = []
        self.positions: dict[fx.Node, list[torch.Tensor]] = {}
        self.modules: list[str] = []
        self.phase = "forward"
        self.batches: torch.Tensor | None = None
        self.placeholders = TensorPlaceholders(self._constant, self._pause)
        self.paused = False
        self.sequence = -1
        self.outer = backward_sequence()
        self.counts: dict[str, int] = {}

    def placeholder(self, kind: SourceKind, name: str, fake: torch.Tensor, sample: torch.Tensor | None) -> fx.Node:
        """Add an input of the graph for `fake`; `sample` holds its real data, if any."""
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

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with unwatched(), no_function_modes():  # function modes only see calls of forward
            return func(*args, **kwargs or {}) if self.paused else self._recorded(func, args, kwargs or {})

    def _recorded(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Record a call and return its result without data."""
        if func is torch.ops.prim.device.default or func.namespace == "profiler":
            return func(*args, **kwargs)
        if func in _RECURRENT:
            raise CaptureError(
                f"{func} cannot be rewritten, {self.where()}: it is what recurrent layers (LSTM, GRU) run, whose cells "
                "work in place on parts of tensors, or in a fused kernel with its own workspace; keep them out of the "
                "rewritten module"
            )
        if func is aten.lift_fresh.default and not is_without_data(args[0]):
            return self._lift(args[0])
        if func._schema.is_mutable:
            raise CaptureError(
                f"{func} changes a tensor in place that is neither made in forward nor a parameter, a buffer or an "
                f"argument, {self.where()}; register it as a buffer"
            )
        if func is aten.index.Tensor or (func is aten.index_put.default and self._knows_masks(args[1])):
            args = (args[0], [part for index in args[1] for part in self._positions(index)], *args[2:])
        args, kwargs = map_aggregate((args, kwargs), self._without_data)  # pyright: ignore
        by_shape = self._shaped_by_few(func, args)
        node_args, node_kwargs = self._nodes_of((args, kwargs))
        target = func
        if self.batches is not None and func in AVERAGED:
            target, counted = AVERAGED[func], self._nodes_of(present_value(self.batches))
            node_args = (*node_args[:6], counted, *node_args[7:])
        node = self.graph.call_function(target, node_args, node_kwargs)
        node.meta.update(
            phase=self.phase,
            sequence=self._sequence(),
            module=self.modules[-1] if self.modules and self.phase == "forward" else "",
            line=running_line() if self.phase == "forward" else "",
        )
        try:
            shaped = func is aten._grouped_mm.default and args[0].dtype != torch.bfloat16
            run = grouped_mm_result if shaped else func
            out = by_shape if by_shape is not None else run(*args, **kwargs)
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
        elif self._keeps_layout(func, args, out):
            out = torch.empty_strided(out.shape, args[0].stride(), dtype=out.dtype, device=out.device)
            node.meta["keeps_layout"] = True
        elif is_foreign(func):
            out = self.foreign.seen(node, out)
        else:
            out = SEEN.applied(node, as_eager_makes_it(func, args, out))
        self._name_outputs(node, out)
        return out

    def expect_change(self, tensor: torch.Tensor | None) -> None:
        """Take note of the tensor that the running call of forward may change in place, if any."""
        self._changing = tensor

    def _keeps_layout(self, func: Any, args: Any, out: Any) -> bool:
        """Return whether eager writes this result over the first operand, whose layout differs from the result's."""
        if self._changing is None or not args or args[0] is not self._changing or not isinstance(out, torch.Tensor):
            return False
        before = args[0]
        alike = (out.shape, out.dtype, out.device) == (before.shape, before.dtype, before.device)
        return alike and out.stride() != before.stride() and fills_storage(before) and is_written_in_place(func)

    def _shaped_by_few(self, func: Any, args: Any) -> Any:
        """Return the result of an operation whose shape depends on the values of a few operands; else None."""
        if self.phase == "backward":
            return None
        with self:
            result = result_by_shape(func, args)
        for part in result if isinstance(result, tuple) else () if result is None else (result,):
            self.graph.erase_node(self.nodes.pop(id(part)))  # the operation makes it, not the blank constructor
        return result

    def _knows_masks(self, indices: Any) -> bool:
        """Return whether forward has indexed by one of these masks before."""
        return any(isinstance(i, torch.Tensor) and self.nodes.get(id(i)) in self.positions for i in indices)

    def _positions(self, index: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Return the positions at which a mask is true, as eager computes them; their number is guarded."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        mask = self.nodes[id(index)] if id(index) in self.nodes else self._constant(index)
        if mask not in self.positions:
            with self:
                indices = aten.nonzero.default(index)
                self.positions[mask] = [aten.select.int(indices, 1, i) for i in range(index.dim())]
        return list(self.positions[mask])

    def _sequence(self) -> int:
        """Return the number of the autograd node of a forward call, or of the one that backward is running."""
        if self.phase == "forward":
            self.sequence = forward_sequence()
        elif (running := backward_sequence()) not in (None, self.outer):
            # The engine sums gradients between two nodes: then none is running, and the sum belongs to the last node.
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
        """Record a tensor made of Python numbers in forward as a constant with one storage."""
        node = self._constant(value)
        lifted = aten.lift_fresh.default(value)
        node.meta.update(val=lifted, lifted=True)
        self.nodes[id(lifted)] = node
        return lifted

    def _without_data(self, value: Any) -> Any:
        """Return the fake tensor of a real tensor, which becomes a constant; any other value itself."""
        if not isinstance(value, torch.Tensor) or is_without_data(value):
            return value
        if id(value) not in self.nodes:
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            self._constant(value, fake)
        return self.nodes[id(value)].meta["val"]

    def _constant(self, value: torch.Tensor, fake: torch.Tensor | None = None) -> fx.Node:
        if is_without_data(value):
            raise CaptureError(
                f"forward uses a tensor whose making was not recorded (in another thread, perhaps), {self.where()}; "
                "make it in forward, in the thread that calls it"
            )
        refuse_tensors([("a tensor that forward reaches", value)])
        if value.requires_grad:
            raise CaptureError(
                f"a tensor of shape {tuple(value.shape)} requires a gradient but is not a parameter of the module, "
                f"{self.where()}; register it as an nn.Parameter or pass it as an argument"
            )
        # The recorder keeps it alive, so that its id stays unique.
        self.constants.append(value)
        node = self.placeholder("constant", str(len(self.constants) - 1), value if fake is None else fake, value)
        self.nodes[id(value)] = node
        return node

    def hold(self, value: torch.Tensor) -> None:
        """Register a tensor from outside the step as a constant."""
        self.nodes[id(value)] = self._constant(value)

    def _name_outputs(self, node: fx.Node, out: Any) -> None:
        node.meta["val"] = out
        if isinstance(out, torch.Tensor) and out.layout != torch.strided:
            raise CaptureError(about_sparse(str(node.target), self.where(), self.phase))
        if isinstance(out, torch.Tensor):
            self.nodes[id(out)] = node
        elif isinstance(out, (list, tuple)):
            for index, part in enumerate(out):
                if isinstance(part, torch.Tensor):
                    item = self.graph.call_function(operator.getitem, (node, index))
                    item.meta.update(node.meta, val=part)
                    self.nodes[id(part)] = item

    def _look_at_data(self, node: fx.Node, args: Any) -> Any:
        """Return the value of a node that fake tensors cannot know, from the sample, and guard or check it."""
        if self.phase == "backward":
            if looks_for_nan(node):
                return False
            raise CaptureError(
                f"backward looks at the values of a gradient ({node.target}), {self.where()}: they may change the "
                "program with every step; compute with the tensor, or keep that part out of the rewritten module"
            )
        # Above this handler functionalization and autograd are still active; below it only the fake mode is.
        with tensors_with_data(), torch.no_grad():
            fixed = self.values.same_for_any_draw(node)
            if fixed is None:
                refuse_varying(node, self.where)
            value = fixed if fixed is not None else self.values.of(node)
        if fixed is None and is_decided_in_step(node):
            self.checks.append((node.all_input_nodes[0], value))
        elif fixed is None:
            self.reads.append((node, observed_value(value)))
        place = getattr(args[0], "fake_device", None)
        return map_aggregate(  # pyright: ignore[reportReturnType]
            value,
            lambda v: (
                torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=place)
                if isinstance(v, torch.Tensor)
                else v
            ),
        )

    @contextmanager
    def averaging(self, batches: torch.Tensor) -> Iterator[None]:
        """Make batch normalization in this context average over the number of batches in a tensor of each step."""
        before, self.batches = self.batches, batches
        try:
            yield
        finally:
            self.batches = before

    def where(self) -> str:
        """Return the innermost module whose forward or backward runs, and the line of code, for errors."""
        if self.phase == "backward":
            ran = [node.meta for node in self.graph.nodes if node.op == "call_function"]
            names = [meta["module"] for meta in ran if (meta["phase"], meta["sequence"]) == ("forward", self.sequence)]
            name = f"the backward of {names[0] or 'the root module'}" if names else "backward"
        else:
            name = (self.modules[-1] if self.modules else "") or "the root module"
        return f"in {printable(name)}{user_line(traceback.extract_stack())}"
