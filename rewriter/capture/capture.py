"""Capture one training step of a module as a joint graph of ATen calls, along the path eager takes on the sample.

The module runs once on fake tensors, under its own autograd, with in-place operations functionalized. Every ATen
call below autograd is recorded, in forward and then in backward. Nothing is exported and no flag says that torch is
compiling, so the module takes the same path as in eager. If it reads data (`if mask.all():`), the value is computed
from the sample and becomes a guard, which is checked at each call.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ...passes.calls import is_random
from ...passes.foreign_calls import is_effect
from ...passes.joint_graph import JointGraph
from ...passes.sources import Source
from ...passes.step_graph import updated_buffers
from ..errors import CaptureError, LowtideWarning, NothingToDifferentiate
from .autograd_graph import leaves_behind
from .boundary.left_behind import Stash, left_by
from .boundary.outputs import Arrivals, Outputs, choose_outputs, with_gradients
from .boundary.pytree import Structure, flatten
from .boundary.refused_parts import refuse_overlaps, refuse_parts, refuse_tensors, refuse_uninitialized
from .boundary.tensor_owners import Owners
from .call.caches import bind, without_caches
from .call.module_attributes import Settings, settings_of
from .capture_failures import meaning_of, shown
from .captured_step import CapturedStep, check_former_values, depends_on_changed, guard_of, place_backward
from .checked_decisions import add_checks
from .device_lowering import lower_for
from .eager.backwards import take_eager_branches
from .eager.composites import EagerComposites
from .eager.paths import eager_paths
from .eager.plain_branches import PlainBranches
from .foreign.operations import ForeignCalls
from .input_wrappers import Wrapper, by_place, changed_inputs, with_replaced, wrap_all
from .module_stack import user_line
from .recorder import Recorder
from .torch_internals import (
    checkpoints_passed,
    functional_wrapper,
    functionalized,
    present_value,
    swapped,
    tensors_without_data,
)
from .watch.data_access import RealDataRefused
from .watch.in_place_calls import InPlaceCallsNoted
from .watch.random_streams import other_streams_refused
from .watch.shadow_module import shadow_of, watched
from .watch.side_effects import held_by, held_tensors_untouched


def capture(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    outputs: list[str] | None = None,
    differentiable: list[str] | None = None,
    arriving: Arrivals | None = None,
    device: str | None = None,
) -> CapturedStep:
    """Capture forward and backward of `model(*args, **kwargs)` in its present modes, under the present autocast.

    outputs: names of the outputs to return (all by default).
    differentiable: names of the outputs that may receive gradients (by default all that can).
    arriving: the gradients for which backward is captured (by default that of `loss` if it exists, else all).
    device: a device type for which to lower fused operations when planning for another machine; parameters may then
        be on `meta`.

    Forward runs in a shadow copy, so that the module does not change.
    Raises CaptureError (with the module and the line at fault), NothingToDifferentiate.
    """
    kwargs, notes = bind(model, args, kwargs)
    inputs, structure = _flattened(model, args, kwargs)
    recorder = Recorder()
    recorder.foreign.are_here = device is None and not _is_on_meta(model, inputs)
    shadow, mode = shadow_of(model), tensors_without_data()
    with mode:
        wrappers = wrap_all(model, inputs, structure, recorder)
    with _recording(model, shadow, mode, wrappers, recorder, device) as observed:
        arguments = structure.unflatten([wrappers[id(t)].tensor for t in inputs])
        with held_tensors_untouched(shadow) as replaced, left_by(shadow, arguments) as left:
            cached: list[str] = []
            returned = without_caches(_run_forward(shadow, arguments, recorder), cached)
        recorder.placeholders.refuse_changes(held_by(shadow), lambda value: recorder.nodes[id(value)])
        wrappers = with_replaced(wrappers, replaced)
        try:
            tensors, chosen = _outputs(returned, left.stashes, outputs, wrappers, recorder)
            chosen = with_gradients(tensors, chosen, differentiable, arriving)
            step = _run_backward(tensors, chosen, wrappers, recorder)
        except NothingToDifferentiate as error:
            error.settings = settings_of(model, observed.read)
            raise
    settings = settings_of(model, observed.read, recorder.constants)
    all_notes = (
        *dict.fromkeys((*notes, *cached)),
        *left.notes,
        *([PASSED] if observed.checkpoints else []),
        *_note_scripted(observed.scripted),
    )
    return replace(_finish(recorder, step, wrappers, settings, all_notes), checkpoints=len(observed.checkpoints))


def _flattened(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], Structure]:
    """Return the tensors among the arguments with their structure.

    Raises CaptureError for arguments or parts of the module that cannot be captured.
    """
    try:
        inputs, structure = flatten((args, kwargs), "argument")
    except TypeError as error:
        raise CaptureError(str(error)) from error
    refuse_parts(model)
    refuse_uninitialized(Owners(model))
    refuse_tensors((f"argument {name}", tensor) for name, tensor in zip(structure.names, inputs, strict=True))
    return inputs, structure


@dataclass(frozen=True)
class _Observed:
    """What is observed of a module while it runs.

    read: the attributes of modules that forward reads, each as (name of the module, name of the attribute).
    scripted: the names of the functions in TorchScript that forward calls.
    checkpoints: an element for each of the module's own checkpoints.
    """

    read: set[tuple[str, str]]
    scripted: set[str]
    checkpoints: list[None]


@contextmanager
def _recording(
    model: torch.nn.Module,
    shadow: torch.nn.Module,
    mode: AbstractContextManager[Any],
    wrappers: dict[int, Wrapper],
    recorder: Recorder,
    device: str | None,
) -> Iterator[_Observed]:
    """Record, in this context, what the shadow copy of a module runs on wrappers of tensors without data.

    mode: the context in which tensors have no data.
    """
    with ExitStack() as stack:
        scripted = stack.enter_context(other_streams_refused(model))
        stack.enter_context(mode)
        stack.enter_context(eager_paths(shadow, recorder.averaging, recorder.placeholders.instead))
        watch = stack.enter_context(watched(shadow, recorder.modules))
        if "forward" in vars(model):
            # A forward set on the instance may read the original's attributes, which are not watched.
            watch.read |= {(name, key) for name, module in model.named_modules() for key in vars(module)}
        stack.enter_context(torch.enable_grad())
        stack.enter_context(recorder)
        stack.enter_context(lower_for(device))
        stack.enter_context(EagerComposites())
        stack.enter_context(PlainBranches(recorder.where, recorder.placeholders))
        stack.enter_context(RealDataRefused(recorder.where, {key: w.tensor for key, w in wrappers.items()}))
        stack.enter_context(ForeignCalls(recorder.foreign))
        stack.enter_context(InPlaceCallsNoted(recorder.graph, recorder.expect_change))
        stack.enter_context(functionalized())
        if torch.is_autocast_cache_enabled():
            stack.callback(torch.clear_autocast_cache)
        checkpoints = stack.enter_context(checkpoints_passed())
        # Backward is inside too, since a checkpoint recomputes forward.
        stack.enter_context(swapped(shadow, by_place(shadow, wrappers)))
        yield _Observed(watch.read, scripted, checkpoints)


PASSED = (
    "the module's own checkpoints are plain calls: recomputation is planned here, and running statistics are updated "
    "once, where a checkpoint updates them twice"
)


def _note_scripted(scripted: set[str]) -> tuple[str, ...]:
    """Return a note on functions in TorchScript, and warn about them."""
    if not scripted:
        return ()
    note = (
        f"forward calls functions in TorchScript ({', '.join(sorted(scripted))}): after a few runs TorchScript "
        "differentiates them by its own formulas, so gradients may differ from eager's in the last bit"
    )
    warnings.warn(note, LowtideWarning, stacklevel=2)
    return (note,)


def _is_on_meta(model: torch.nn.Module, inputs: list[torch.Tensor]) -> bool:
    """Return whether a tensor at the start of the step has no data, so that the step is planned but not run."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers(), *inputs))


def _run_forward(model: torch.nn.Module, arguments: tuple[Any, Any], recorder: Recorder) -> Any:
    """Run forward on wrappers. Raises CaptureError."""
    args, kwargs = arguments
    try:
        return model(*args, **kwargs)
    except CaptureError:
        raise
    except Exception as error:
        where = recorder.modules[-1] if recorder.modules else ""
        line = user_line(traceback.extract_tb(error.__traceback__))
        raise CaptureError(
            f"forward of {type(model).__name__} could not be captured: {shown(error)}; in "
            f"{where or 'the root module'}{line}. {meaning_of(error)}"
        ) from error


@dataclass(frozen=True)
class _Step:
    """The results of forward and backward, on wrappers.

    reachable: sources that gradients may reach from any output.
    """

    outputs: Outputs
    tensors: list[torch.Tensor]
    gradients: dict[Source, torch.Tensor]
    reachable: tuple[Source, ...]


def _outputs(
    returned: Any,
    left: list[tuple[Stash, list[Any]]],
    names: list[str] | None,
    wrappers: dict[int, Wrapper],
    recorder: Recorder,
) -> tuple[list[torch.Tensor], Outputs]:
    """Return all outputs of a step and their places, with views and in-place changes replayed."""
    try:
        tensors, outputs = choose_outputs(returned, left, names)
    except TypeError as error:
        raise CaptureError(str(error)) from error
    tensors = [wrappers[id(t)].tensor if id(t) in wrappers else t for t in tensors]
    # A change replayed after the forward/backward boundary would count as backward.
    for tensor in tensors:
        if id(present_value(tensor)) not in recorder.nodes:
            recorder.hold(tensor)
    changed = changed_inputs(wrappers.values())
    return [*tensors, *(w.tensor for w in changed)], replace(outputs, changed=tuple(w.source for w in changed))


def _run_backward(
    tensors: list[torch.Tensor], outputs: Outputs, wrappers: dict[int, Wrapper], recorder: Recorder
) -> _Step:
    targets = {w.source: w.leaf for w in wrappers.values() if w.leaf.requires_grad}
    leaves = leaves_behind(*(tensors[i] for i in outputs.differentiable))
    reachable = tuple(source for source, tensor in targets.items() if id(tensor) in leaves or not tensor.is_leaf)
    for i in outputs.retained:
        source = Source("output", outputs.names[i], i)
        recorder.nodes[id(present_value(tensors[i]))].meta["source"] = source
        targets[source] = tensors[i]
    take_eager_branches(tensors[index] for index in outputs.expected)
    recorder.phase = "backward"
    tangents = []
    for index in outputs.expected:
        # Its layout is the output's, like that of gradients from torch's losses.
        fake = torch.empty_like(present_value(tensors[index]))
        recorder.graph.erase_node(recorder.nodes.pop(id(fake)))
        recorder.placeholder("tangent", outputs.names[index] or "output", fake, None)
        tangents.append(functional_wrapper(fake, False))
    try:
        with torch.autocast(_device_type(tensors), enabled=False):
            gradients = torch.autograd.grad(
                [tensors[i] for i in outputs.expected],
                list(targets.values()),
                tangents,
                allow_unused=True,
                materialize_grads=False,
            )
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"backward could not be captured: {shown(error)}; {recorder.where()}"
            f"{user_line(traceback.extract_tb(error.__traceback__))}. {meaning_of(error)}"
        ) from error
    arrived = {source: g for source, g in zip(targets, gradients, strict=True) if g is not None}
    for gradient in arrived.values():
        present_value(gradient)  # records in-place writes of backward into the base of this view
    return _Step(outputs, tensors, arrived, reachable)


def _device_type(tensors: list[torch.Tensor]) -> str:
    return tensors[0].device.type if tensors else "cpu"


def _finish(
    recorder: Recorder,
    step: _Step,
    wrappers: dict[int, Wrapper],
    settings: Settings,
    notes: tuple[str, ...],
) -> CapturedStep:
    """Add the graph's outputs and checks, split off the guard, and remove unused calls."""
    graph = recorder.graph
    held = [*((w.node, w.tensor) for w in wrappers.values()), *((n, t) for _, n, t in recorder.placeholders.lasting())]
    present = [(node, recorder.nodes[id(present_value(tensor))]) for node, tensor in held]
    mutations = {node.meta["source"]: now for node, now in present if now is not node}
    refuse_overlaps({n.meta["source"]: t for n, t in recorder.values.sample.items()}, mutations)
    # A changed input holds its own new value.
    places = {w.tensor: w.node for w in wrappers.values() if w.source in step.outputs.changed}
    outputs = tuple(places.get(t) or recorder.nodes[id(present_value(t))] for t in step.tensors)
    gradients = {source: recorder.nodes[id(present_value(g))] for source, g in step.gradients.items()}
    output = graph.output((outputs, tuple(gradients.values()), tuple(mutations.values())))
    output.meta |= {"gradients": tuple(gradients), "mutations": tuple(mutations)}
    guard = guard_of(recorder.reads, {source.name for source in mutations}, recorder.constants)
    rereads = depends_on_changed(graph, mutations)
    undo = add_checks(graph, recorder.checks, mutations)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not _acts(node):
            graph.erase_node(node)
    place_backward(graph)
    graph.lint()
    check_former_values(graph, set(mutations))
    return CapturedStep(
        graph=JointGraph(graph),
        outputs=step.outputs,
        reachable=step.reachable,
        constants=tuple(recorder.constants),
        guard=guard,
        settings=settings,
        undo=undo,
        rereads=rereads,
        notes=notes,
    )


def _acts(node: fx.Node) -> bool:
    """Return whether a call has effects in addition to its result, and must run even if the result is unused."""
    return is_random(node) or bool(updated_buffers(node)) or is_effect(node)
