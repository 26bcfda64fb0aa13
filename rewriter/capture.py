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
from pathlib import Path
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
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import stateless
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import CaptureError
from .lowering import lower_for
from .real_data import RealDataRefused
from .settings import Settings, attributes_read, settings_of
from .sources import Owners, Source
from .structure import Structure, flatten
from .untouched import held_tensors_untouched, random_streams_untouched

aten = torch.ops.aten


@dataclass(frozen=True)
class Guard:
    """Values the module looked at. `graph` computes them from inputs and buffers; `values` are those of the sample."""

    graph: fx.GraphModule
    sources: tuple[Source, ...]
    values: tuple[Any, ...]

    def holds(self, tensors: Mapping[Source, torch.Tensor]) -> bool:
        """Whether the module would see the same values in these tensors."""
        with torch.no_grad():
            seen = self.graph(*(tensors[source] for source in self.sources))
        return tuple(_looked_at(value) for value in seen) == self.values


@dataclass(frozen=True)
class Captured:
    """A captured step.

    graph: joint graph; each placeholder's `meta["source"]` is a `Source`, each call's `meta` holds `val` (fake
        tensors), `phase` ("forward" or "backward"), `sequence` (autograd's number) and `module`. The output is
        (outputs, gradients, mutations), three tuples of nodes.
    outputs: the structure of what forward returns; differentiable: which outputs (by number) have a tangent.
    gradients / mutations: for each such output of the graph, the source it belongs to.
    constants: tensors that the module holds without registering them, in the order of their sources.
    guard, settings: what other calls must agree in: values the module looked at, and attributes it read.
    """

    graph: fx.GraphModule
    outputs: Structure
    differentiable: tuple[int, ...]
    gradients: tuple[Source, ...]
    mutations: tuple[Source, ...]
    constants: tuple[torch.Tensor, ...]
    guard: Guard | None
    settings: Settings
    notes: tuple[str, ...]


class NothingToDifferentiate(CaptureError):
    """No output of the step requires a gradient: there is no backward to make room for."""


def bind(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keyword arguments of the step: a cache of keys and values serves no training step and is switched off."""
    config = getattr(model, "config", None)
    if not getattr(config, "use_cache", False) or "use_cache" in kwargs:
        return kwargs, ()
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" not in parameters or list(parameters).index("use_cache") < len(args):
        return kwargs, ()
    return {**kwargs, "use_cache": False}, ("use_cache=False: no cache of keys and values is made or returned",)


class _Recorder(TorchDispatchMode):
    """Writes every ATen call into an FX graph; sits above a FakeTensorMode, below autograd and functionalization."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.real: dict[fx.Node, Any] = {}
        self.sample: dict[fx.Node, torch.Tensor] = {}
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
            self.sample[node] = sample
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
            out = _grouped_mm_shape(*args) if shaped else func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            out = self._look_at_data(node, args)
        if func is aten.bernoulli.p and _is_blank(node.args[0]):
            # Eager draws in place, in the order of the blank tensor's layout; the functional form draws in row order.
            out = torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype, device=args[0].device)
            node.meta["in_place"] = True
        if func in _COPIES_THE_WHOLE and out.stride() == args[0].stride():
            out = _with_storage_like(args[0])
        if func in _MEANS_IN_PLACE and out.dim() == 0:
            # The storage stays as large as all terms take.
            out = torch.empty(torch.broadcast_shapes(args[0].shape, args[1].shape), dtype=out.dtype, device=out.device)
            out = out.as_strided((), ())
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
                f"{node.target} makes a sparse tensor, {self.where()}: a sparse gradient's size is not known before it is "
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
            fixed = self._same_for_any_draw(node)
            value = fixed if fixed is not None else self._evaluate(node)
        if fixed is None:
            self.reads.append((node, _looked_at(value)))
        place = getattr(args[0], "fake_device", None)
        return fx.node.map_aggregate(  # pyright: ignore[reportReturnType]
            value,
            lambda v: (
                torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=place)
                if isinstance(v, torch.Tensor)
                else v
            ),
        )

    def _evaluate(self, node: fx.Node, draws: float | None = None) -> Any:
        """The real value of a node, from the sample's inputs, buffers and constants; `draws` replaces random numbers."""
        if draws is None and node in self.real:
            return self.real[node]
        if node.op == "placeholder":
            return self._sample_of(node)
        if is_random(node):
            if draws is None:
                raise CaptureError(
                    f"the module decides by a random number ({node.target}), {self.where()}: each step would be "
                    "another program; switch it off (layerdrop=0, for one) or keep that part out of the rewritten module"
                )
            value = torch.full(node.meta["val"].shape, draws, dtype=node.meta["val"].dtype)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._evaluate(n, draws))
            value = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        if draws is None:
            self.real[node] = value
        return value

    def _sample_of(self, node: fx.Node) -> torch.Tensor:
        source: Source = node.meta["source"]
        if source.kind == "parameter":
            raise CaptureError(
                f"the module looks at the values of a parameter ({source.name}), {self.where()}: what it does may "
                "change with every step, so it has no fixed program; keep that part out of the rewritten module"
            )
        if node not in self.sample:
            raise CaptureError(
                f"the module looks at the values of {source.kind} {source.name}, {self.where()}, which has none on "
                "the meta device; pass it as a real tensor"
            )
        return self.sample[node]

    def _same_for_any_draw(self, node: fx.Node) -> Any:
        """The outcome of a comparison with uniform random numbers when it is the same over their whole range
        (a layerdrop of 0), else None: such a decision needs no guard."""
        seen = _inputs_of(node)
        drawn = [n for n in seen if n.op == "call_function" and is_random(n)]
        uniform = (aten.rand.default, aten.rand_like.default)
        comparisons = (
            aten.lt.Scalar,
            aten.le.Scalar,
            aten.gt.Scalar,
            aten.ge.Scalar,
            aten._local_scalar_dense.default,
        )
        if not drawn or any(n.target not in uniform + comparisons for n in seen if n.op == "call_function"):
            return None
        below_one = 1.0 - 2.0**-24
        lowest, highest = self._evaluate(node, 0.0), self._evaluate(node, below_one)
        return lowest if lowest == highest else None

    def where(self) -> str:
        """The innermost module running now, and the line of code, for errors."""
        name = self.modules[-1] if self.modules else "the root module"
        return f"in {name or 'the root module'}{_user_line(traceback.extract_stack())}"


def _looked_at(value: Any) -> Any:
    """What the program depends on: a number itself, of a tensor only its shape."""
    if isinstance(value, (list, tuple)):
        return tuple(_looked_at(part) for part in value)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


def _is_blank(node: Any) -> bool:
    """Whether a node makes a tensor without contents, which only an in-place operation can want."""
    return isinstance(node, fx.Node) and node.target in (aten.empty_like.default, aten.empty.memory_format)


# What the cells of recurrent layers call, and nothing else does. Rewritten they would differ in the last bit: a
# sigmoid on a part of a tensor takes other vector lanes than one on a copy of that part.
_RECURRENT = (aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.mkldnn_rnn_layer.default)

# Losses that write out all terms and their mean over the first of them.
_MEANS_IN_PLACE = (
    aten.mse_loss.default,
    aten.smooth_l1_loss.default,
    aten.binary_cross_entropy.default,
    aten.soft_margin_loss.default,
)

# What functionalization makes of writes into views: each copies all of the storage that its operand is a view of.
_COPIES_THE_WHOLE = (
    aten.copy.default,
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.diagonal_scatter.default,
    aten.as_strided_scatter.default,
)


def _with_storage_like(view: torch.Tensor) -> torch.Tensor:
    """A tensor like `view` in a storage of its own that is as large as the view's."""
    length = view.untyped_storage().nbytes() // view.element_size()
    whole = torch.empty(length, dtype=view.dtype, device=view.device)
    return whole.as_strided(view.shape, view.stride(), view.storage_offset())


def _grouped_mm_shape(
    left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None = None, *_: Any
) -> torch.Tensor:
    """The result of a grouped matrix product: eager on CPU computes any dtype, the fake kernel takes bfloat16 only."""
    if left.dim() == 2 and right.dim() == 2 and offsets is not None:
        size = (offsets.size(0), left.size(0), right.size(1))
    elif left.dim() == right.dim():
        size = (left.size(0), left.size(1), right.size(-1))
    else:
        size = (left.size(-2), right.size(-1))
    return torch.empty(size, dtype=left.dtype, device=left.device)


def _inputs_of(node: fx.Node) -> list[fx.Node]:
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
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    for position, argument in enumerate(target._schema.arguments):
        if argument.name == _DROPOUT_ARGUMENT:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(_DROPOUT_ARGUMENT, 0.0)
            return bool(value != 0.0)
    return True


def _user_line(frames: traceback.StackSummary) -> str:
    """The innermost line outside torch and lowtide, as text."""
    torch_folder, own_folder = Path(torch.__file__).parent, Path(__file__).parent.parent
    for frame in reversed(frames):
        path = Path(frame.filename)
        inside = path.is_relative_to(torch_folder) or path.parent in (own_folder / "rewriter", own_folder / "passes")
        if not inside and path.is_file():
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""


@contextmanager
def _module_names(model: torch.nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keeps `recorder.modules` the stack of qualified names of the modules running."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: torch.nn.Module, _inputs: Any) -> None:
        if id(module) in names:
            recorder.modules.append(names[id(module)])

    def leave(module: torch.nn.Module, _inputs: Any, _outputs: Any) -> None:
        if id(module) in names:
            recorder.modules.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _attributes_restored(model: torch.nn.Module, notes: list[str]) -> Iterator[None]:
    """Puts back what forward sets on modules, and notes it: a rewritten forward does not set it again."""
    before = {name: (module, dict(vars(module))) for name, module in model.named_modules()}
    try:
        yield
    finally:
        for name, (module, told) in before.items():
            now = vars(module)
            changed = [key for key in now if key not in told or now[key] is not told[key]]
            if changed or len(now) != len(told):
                now.clear()
                now.update(told)
                notes.append(
                    f"forward sets {', '.join(sorted(changed))} of {name or 'the root module'}: capture put it back, and the "
                    "rewritten forward leaves it alone"
                )


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
        stack.enter_context(_attributes_restored(model, told_notes))
        with mode:
            wrappers = _wrap_all(model, inputs, structure, recorder)
        stack.enter_context(mode)
        stack.enter_context(_module_names(model, recorder))
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
        result = _run_backward(returned, outputs, differentiable, wrappers, recorder)
    return _finish(recorder, result, wrappers, settings_of(model, read), tuple(told_notes))


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


def _with_replaced(
    wrappers: dict[int, _Wrapper], replaced: Mapping[torch.Tensor, torch.Tensor]
) -> dict[int, _Wrapper]:
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
        line = _user_line(traceback.extract_tb(error.__traceback__))
        raise CaptureError(
            f"forward of {type(model).__name__} could not be captured: {type(error).__name__}: {error}; "
            f"in {where or 'the root module'}{line}. If it runs in eager, that line needs real data: move it out of the "
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
    tensors, structure = _select(tensors, structure, outputs)
    chosen = _differentiable(tensors, structure, differentiable)
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


def _select(
    tensors: list[torch.Tensor], structure: Structure, outputs: list[str] | None
) -> tuple[list[torch.Tensor], Structure]:
    """Drops the outputs that are not wanted; in their place stands None."""
    if outputs is None:
        return tensors, structure
    _check_names(outputs, structure, "outputs")
    kept = [
        None if not _named(name, outputs) else tensor for name, tensor in zip(structure.names, tensors, strict=True)
    ]
    return flatten(structure.unflatten(kept), "output")


def _named(name: str, wanted: list[str]) -> bool:
    """Whether an output is one of those wanted, or lies inside one."""
    return any(name == w or name.startswith(w + ".") for w in wanted)


def _check_names(wanted: list[str], structure: Structure, what: str) -> None:
    for name in wanted:
        if not any(_named(have, [name]) for have in structure.names):
            raise CaptureError(
                f"{what} names {name!r}, which the module does not return; it returns {list(structure.names)}"
            )


def _differentiable(tensors: list[torch.Tensor], structure: Structure, names: list[str] | None) -> tuple[int, ...]:
    able = [i for i, t in enumerate(tensors) if t.requires_grad and (t.is_floating_point() or t.is_complex())]
    if names is not None:
        _check_names(names, structure, "differentiable")
        able = [i for i in able if _named(structure.names[i], names)]
    elif any(structure.names[i] == "loss" for i in able):
        able = [i for i in able if structure.names[i] == "loss"]
    if not able:
        raise NothingToDifferentiate(
            f"no output requires a gradient (the module returns {list(structure.names)}): there is no backward to plan; "
            "check that parameters require gradients and that labels are passed"
        )
    return tuple(able)


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
    guard = _guard(recorder, {source.name for source in mutations})
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not is_random(node):
            graph.erase_node(node)
    modules: dict[int, str] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.meta["phase"] == "forward":
            modules.setdefault(node.meta["sequence"], node.meta["module"])
    for node in graph.nodes:
        if node.op == "call_function" and node.meta["phase"] == "backward":
            node.meta["module"] = modules.get(node.meta["sequence"], "")
    graph.lint()
    _check_former_values(graph, set(mutations))
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


def _check_former_values(graph: fx.Graph, changed: set[Source]) -> None:
    """Raises CaptureError if backward reads what a changed buffer held before: it is overwritten by then."""
    storages = {
        node.meta["val"].untyped_storage()._cdata: node.meta["source"]
        for node in graph.nodes
        if node.op == "placeholder" and node.meta["source"] in changed
    }
    for node in graph.nodes:
        # Batch normalization is handed its running statistics in backward too, and in training does not read them.
        if node.op != "call_function" or node.meta["phase"] == "forward" or "batch_norm" in str(node.target):
            continue
        for read in node.all_input_nodes:
            value = read.meta["val"]
            source = storages.get(value.untyped_storage()._cdata) if isinstance(value, torch.Tensor) else None
            if source is not None:
                place = node.meta["module"] or "the step"
                raise CaptureError(
                    f"forward changes {source.kind} {source.name}, and the backward of {place} needs what it held "
                    "before; compute with a copy of it (.clone()), or change it first"
                )


def _guard(recorder: _Recorder, changed: set[str]) -> Guard | None:
    """A graph of its own that computes again what the module looked at; None where it looked at nothing that varies."""
    reads = [(node, value) for node, value in recorder.reads if _varies(node)]
    if not reads:
        return None
    needed = {n for node, _ in reads for n in _inputs_of(node)}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    sources = []
    for node in recorder.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.op == "placeholder":
                sources.append(node.meta["source"])
    stale = [source.name for source in sources if source.name in changed]
    if stale:
        raise CaptureError(
            f"the module decides by the value of {stale[0]}, which every forward changes: each step would be another "
            "program (a BatchNorm with momentum=None, for one; give it a momentum)"
        )
    graph.output(tuple(copies[node] for node, _ in reads))
    values = tuple(value for _, value in reads)
    return Guard(fx.GraphModule(torch.nn.Module(), graph), tuple(sources), values)


def _varies(node: fx.Node) -> bool:
    """Whether a value depends on anything that another call may bring."""
    return any(n.op == "placeholder" and n.meta["source"].kind in ("input", "buffer") for n in _inputs_of(node))
