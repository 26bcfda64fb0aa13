"""Captures one training step of a module as a joint graph of ATen calls, along the path eager takes on the sample.

The module runs once on fake tensors, under its own autograd, with in-place operations functionalized; every ATen
call below autograd is recorded, in forward and then in backward. Nothing is exported and nothing claims to be
compiling, so the module takes the path it takes in eager. Where it looks at data (`if mask.all():`) the value is
computed from the sample, and becomes a guard that is checked again at each call.

This is the one file that calls private interfaces of torch.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx.node import map_aggregate
from torch.nn.utils import stateless
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from ..passes.step_graph import updated_buffers
from .calls import is_random
from .captured import Captured, NothingToDifferentiate, check_former_values, guard_of, looked_at
from .chosen_outputs import differentiable_outputs, select_outputs
from .errors import CaptureError
from .fake_results import as_eager_makes_it, grouped_mm_result, is_blank
from .lowering import lower_for
from .real_data import RealDataRefused
from .running_modules import module_names, user_line
from .sample_values import SampleValues
from .settings import Settings, attributes_read, settings_of
from .sources import Owners, Source
from .structure import Structure, flatten
from .untouched import attributes_restored, held_tensors_untouched, random_streams_untouched

aten = torch.ops.aten


def bind(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keyword arguments of the step: a cache of keys and values serves no training step and is switched off."""
    config = getattr(model, "config", None)
    if not getattr(config, "use_cache", False) or "use_cache" in kwargs:
        return kwargs, ()
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" not in parameters or list(parameters).index("use_cache") < len(args):
        return kwargs, ()
    return {**kwargs, "use_cache": False}, ("use_cache=False: no cache of keys and values is made or returned",)


# What the cells of recurrent layers call, and nothing else does. Rewritten they would differ in the last bit: a
# sigmoid on a part of a tensor takes other vector lanes than one on a copy of that part.
_RECURRENT = (aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.mkldnn_rnn_layer.default)


class _Recorder(TorchDispatchMode):
    """Writes every ATen call into an FX graph; sits above a FakeTensorMode, below autograd and functionalization."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.values = SampleValues(self.where)
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
            node = self.graph.placeholder(f"{kind}_{name}".replace(".", "_"))
        node.meta.update(val=fake, source=Source(kind, name, index))
        self.nodes[id(fake)] = node
        if sample is not None and sample.device.type != "meta":
            self.values.sample[node] = sample
        return node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if func in _RECURRENT:
            raise CaptureError(
                f"recurrent layers (LSTM, GRU) cannot be rewritten, {self.where()}: their cells work in place on parts "
                "of tensors, or in a fused kernel with a workspace of its own; keep them out of the rewritten module"
            )
        if func is aten.lift_fresh.default and not isinstance(args[0], FakeTensor):
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
        except (DataDependentOutputException, DynamicOutputShapeException):
            out = self._look_at_data(node, args)
        if func is aten.bernoulli.p and is_blank(node.args[0]):
            # Eager draws in place, in the order of the blank tensor's layout; the functional form draws in row order.
            out = torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype, device=args[0].device)
            node.meta["in_place"] = True
        out = as_eager_makes_it(func, args, out)
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
            self.sequence = torch.autograd._get_sequence_nr() - 1
        else:
            # The engine sums gradients between two nodes: then none is running, and the sum belongs to the last one.
            running = torch._C._current_autograd_node()
            self.sequence = running._sequence_nr() if running is not None else self.sequence
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
        if isinstance(value, FakeTensor):
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
                "before it is "
                "there; make the embedding with sparse=False"
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
        with unset_fake_temporarily(), torch.no_grad():
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
        return f"in {name or 'the root module'}{user_line(traceback.extract_stack())}"


def capture(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    outputs: list[str] | None = None,
    differentiable: list[str] | None = None,
    device: str | None = None,
) -> Captured:
    """Captures forward and backward of `model(*args, **kwargs)` in its present modes, under the present autocast.

    outputs: names of what is to be returned (all by default); differentiable: names of the outputs that receive
    gradients (by default the output called `loss` if there is one, else all floating ones). device: a device type to
    lower fused operations for when planning for a machine other than this one; parameters may then live on `meta`.
    Raises CaptureError (with the module and the line at fault), NothingToDifferentiate.
    """
    kwargs, notes = bind(model, args, kwargs)
    told_notes = list(notes)
    try:
        inputs, structure = flatten((args, kwargs), "argument")
    except TypeError as error:
        raise CaptureError(str(error)) from error
    recorder = _Recorder()
    with ExitStack() as stack:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        stack.enter_context(random_streams_untouched(model))
        stack.enter_context(attributes_restored(model, told_notes))
        with mode:
            wrappers = _wrap_all(model, inputs, structure, recorder)
        stack.enter_context(mode)
        stack.enter_context(module_names(model, recorder.modules))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(recorder)
        stack.enter_context(lower_for(device))
        stack.enter_context(RealDataRefused(recorder.where))
        torch._enable_functionalization(reapply_views=True)
        stack.callback(torch._disable_functionalization)
        if torch.is_autocast_cache_enabled():
            stack.callback(torch.clear_autocast_cache)
        stack.enter_context(_checkpoints_passed())
        stack.enter_context(_swapped(model, wrappers))
        with held_tensors_untouched(model) as replaced, attributes_read(model) as read:
            returned = _run_forward(model, structure, inputs, wrappers, recorder)
        wrappers = _with_replaced(wrappers, replaced)
        try:
            result = _run_backward(returned, outputs, differentiable, wrappers, recorder)
        except NothingToDifferentiate as error:
            error.settings = settings_of(model, read)
            raise
    return _finish(recorder, result, wrappers, settings_of(model, read, recorder.constants), tuple(told_notes))


@dataclass(frozen=True)
class _Wrapper:
    """The functional stand-in of one parameter, buffer or input."""

    source: Source
    node: fx.Node
    tensor: torch.Tensor


def _wrap_all(
    model: torch.nn.Module, inputs: list[torch.Tensor], structure: Structure, recorder: _Recorder
) -> dict[int, _Wrapper]:
    """Placeholders for all tensors the step starts from, by the id of the real tensor; the same tensor is one."""
    wrappers: dict[int, _Wrapper] = {}
    for source, tensor in Owners(model).sources(inputs, structure).items():
        fake = fake_like(tensor)
        node = recorder.placeholder(source.kind, source.name, fake, tensor)
        wrappers[id(tensor)] = _Wrapper(source, node, _functional(fake, tensor.requires_grad))
    return wrappers


def _with_replaced(wrappers: dict[int, _Wrapper], replaced: Mapping[torch.Tensor, torch.Tensor]) -> dict[int, _Wrapper]:
    """The wrappers with the values that forward put in the place of some: the new values of those buffers."""
    return {
        key: replace(wrapper, tensor=replaced[wrapper.tensor]) if wrapper.tensor in replaced else wrapper
        for key, wrapper in wrappers.items()
    }


def fake_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and dtype (under a FakeTensorMode: without data); meta becomes CPU."""
    device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


# Sees every operation below autograd, by `__torch_dispatch__`; named here for the other files that watch operations.
OperationMode = TorchDispatchMode


def tensors_without_data() -> AbstractContextManager[Any]:
    """A context in which new tensors have a device but no data, and every operation only works out shapes."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _functional(fake: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """A functional wrapper: in-place changes of it are recorded as new values."""
    wrapper = torch._to_functional_tensor(fake)  # pyright: ignore[reportAttributeAccessIssue]
    return wrapper.requires_grad_(requires_grad)


def _inner(wrapper: torch.Tensor) -> torch.Tensor:
    """The present value behind a functional wrapper."""
    if not torch._is_functional_tensor(wrapper):
        return wrapper
    torch._sync(wrapper)
    return torch._from_functional_tensor(wrapper)


def _swapped(model: torch.nn.Module, wrappers: dict[int, _Wrapper]) -> AbstractContextManager[Any]:
    """A context in which the module holds wrappers; backward is in it too, since a checkpoint runs forward again."""
    # By module, not by name: a module that stands in two places would be swapped twice and not be put back.
    swapped = {
        f"{prefix}.{name}" if prefix else name: wrappers[id(tensor)].tensor
        for prefix, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    return stateless._reparametrize_module(model, swapped)


@contextmanager
def _checkpoints_passed() -> Iterator[None]:
    """Makes torch's own checkpoints plain calls: what to recompute is planned here, and the bits are the same."""

    def plain(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        yield

    class Plain:
        @staticmethod
        def apply(function: Any, _preserve: bool, *args: Any) -> Any:
            return function(*args)

    before = checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction
    checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction = plain, Plain  # pyright: ignore
    try:
        yield
    finally:
        checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction = before


def _run_forward(
    model: torch.nn.Module,
    structure: Structure,
    inputs: list[torch.Tensor],
    wrappers: dict[int, _Wrapper],
    recorder: _Recorder,
) -> Any:
    """What the module returns, on wrappers."""
    args, kwargs = structure.unflatten([wrappers[id(t)].tensor for t in inputs])
    try:
        return model(*args, **kwargs)
    except CaptureError:
        raise
    except Exception as error:
        where = recorder.modules[-1] if recorder.modules else ""
        line = user_line(traceback.extract_tb(error.__traceback__))
        raise CaptureError(
            f"forward of {type(model).__name__} could not be captured: {type(error).__name__}: {error}; "
            f"in {where or 'the root module'}{line}. If it runs in eager, that line needs real data: move it out "
            "of the "
            "forward, or rewrite the part of the model that does not contain it"
        ) from error


@dataclass(frozen=True)
class _Step:
    """What running both directions gave, on wrappers."""

    outputs: Structure
    returned: list[torch.Tensor]
    differentiable: tuple[int, ...]
    gradients: dict[Source, torch.Tensor]


def _run_backward(
    returned: Any,
    outputs: list[str] | None,
    differentiable: list[str] | None,
    wrappers: dict[int, _Wrapper],
    recorder: _Recorder,
) -> _Step:
    try:
        tensors, structure = flatten(returned, "output")
    except TypeError as error:
        raise CaptureError(str(error)) from error
    tensors, structure = select_outputs(tensors, structure, outputs)
    chosen = differentiable_outputs(tensors, structure, differentiable)
    wanted = {w.source: w.tensor for w in wrappers.values() if w.tensor.requires_grad}
    # Every view and in-place change has to be replayed before the phase turns, or it would count as backward.
    for tensor in tensors:
        _inner(tensor)
    for wrapper in wrappers.values():
        _inner(wrapper.tensor)
    recorder.phase = "backward"
    tangents = []
    for index in chosen:
        # Laid out like the output, as the gradients that torch's losses return are.
        fake = torch.empty_like(_inner(tensors[index]))
        recorder.graph.erase_node(recorder.nodes.pop(id(fake)))
        recorder.placeholder("tangent", structure.names[index] or "output", fake, None)
        tangents.append(_functional(fake, False))
    try:
        with torch.autocast(_device_type(tensors), enabled=False):
            gradients = torch.autograd.grad(
                [tensors[i] for i in chosen],
                list(wanted.values()),
                tangents,
                allow_unused=True,
                materialize_grads=False,
            )
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"backward could not be captured: {type(error).__name__}: {error}. If it runs in eager, keep the part of "
            "the model that it belongs to out of the rewritten module"
        ) from error
    found = {source: g for source, g in zip(wanted, gradients, strict=True) if g is not None}
    return _Step(structure, tensors, chosen, found)


def _device_type(tensors: list[torch.Tensor]) -> str:
    return tensors[0].device.type if tensors else "cpu"


def _finish(
    recorder: _Recorder,
    step: _Step,
    wrappers: dict[int, _Wrapper],
    settings: Settings,
    notes: tuple[str, ...],
) -> Captured:
    """Adds the graph's outputs, drops what nothing needs, and splits off the guard."""
    graph = recorder.graph
    mutated = [(w, _inner(w.tensor)) for w in wrappers.values()]
    mutations = {w.source: recorder.nodes[id(now)] for w, now in mutated if recorder.nodes[id(now)] is not w.node}
    outputs = tuple(recorder.nodes[id(_inner(t))] for t in step.returned)
    gradients = {source: recorder.nodes[id(_inner(g))] for source, g in step.gradients.items()}
    graph.output((outputs, tuple(gradients.values()), tuple(mutations.values())))
    guard = guard_of(recorder.reads, {source.name for source in mutations})
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not is_random(node) and not updated_buffers(node):
            graph.erase_node(node)
    modules: dict[int, str] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.meta["phase"] == "forward":
            modules.setdefault(node.meta["sequence"], node.meta["module"])
    for node in graph.nodes:
        if node.op == "call_function" and node.meta["phase"] == "backward":
            node.meta["module"] = modules.get(node.meta["sequence"], "")
    graph.lint()
    check_former_values(graph, set(mutations))
    return Captured(
        graph=fx.GraphModule(torch.nn.Module(), graph),
        outputs=step.outputs,
        differentiable=step.differentiable,
        gradients=tuple(gradients),
        mutations=tuple(mutations),
        constants=tuple(recorder.constants),
        guard=guard,
        settings=settings,
        notes=notes,
    )
