"""Captures one training step of a module as a joint graph of ATen calls, along the path eager takes on the sample.

The module runs once on fake tensors, under its own autograd, with in-place operations functionalized; every ATen
call below autograd is recorded, in forward and then in backward. Nothing is exported and nothing claims to be
compiling, so the module takes the path it takes in eager. Where it looks at data (`if mask.all():`) the value is
computed from the sample, and becomes a guard that is checked again at each call.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ..passes.step_graph import updated_buffers
from .call import bind
from .calls import is_random
from .captured import Captured, NothingToDifferentiate, check_former_values, guard_of
from .chosen_outputs import differentiable_outputs, select_outputs
from .errors import CaptureError
from .in_place_calls import InPlaceCallsNoted
from .lowering import lower_for
from .operands import lazily_changed
from .real_data import RealDataRefused
from .recorder import Recorder
from .running_modules import module_names, user_line
from .settings import Settings, attributes_read, settings_of
from .sources import Owners, Source
from .structure import Structure, flatten
from .torch_internals import (
    checkpoints_passed,
    functional_wrapper,
    functionalized,
    present_value,
    swapped,
    tensors_without_data,
)
from .untouched import attributes_restored, held_tensors_untouched, random_streams_untouched


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
    recorder = Recorder()
    with ExitStack() as stack:
        mode = tensors_without_data()
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
        stack.enter_context(InPlaceCallsNoted(recorder.graph))
        stack.enter_context(functionalized())
        if torch.is_autocast_cache_enabled():
            stack.callback(torch.clear_autocast_cache)
        stack.enter_context(checkpoints_passed())
        # Around backward too, since a checkpoint runs forward again.
        stack.enter_context(swapped(model, _by_place(model, wrappers)))
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
    model: torch.nn.Module, inputs: list[torch.Tensor], structure: Structure, recorder: Recorder
) -> dict[int, _Wrapper]:
    """Placeholders for all tensors the step starts from, by the id of the real tensor; the same tensor is one."""
    wrappers: dict[int, _Wrapper] = {}
    for source, tensor in Owners(model).sources(inputs, structure).items():
        fake = _fake_like(tensor)
        node = recorder.placeholder(source.kind, source.name, fake, tensor)
        wrappers[id(tensor)] = _Wrapper(source, node, functional_wrapper(fake, tensor.requires_grad))
    return wrappers


def _with_replaced(wrappers: dict[int, _Wrapper], replaced: Mapping[torch.Tensor, torch.Tensor]) -> dict[int, _Wrapper]:
    """The wrappers with the values that forward put in the place of some: the new values of those buffers."""
    return {
        key: replace(wrapper, tensor=replaced[wrapper.tensor]) if wrapper.tensor in replaced else wrapper
        for key, wrapper in wrappers.items()
    }


def _fake_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and dtype (under `tensors_without_data`: without data); meta becomes CPU."""
    device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return lazily_changed(fake, tensor)


def _by_place(model: torch.nn.Module, wrappers: dict[int, _Wrapper]) -> dict[str, torch.Tensor]:
    """The wrappers of parameters and buffers by the name of each place where they stand."""
    # By module, not by name: a module that stands in two places would be swapped twice and not be put back.
    return {
        f"{prefix}.{name}" if prefix else name: wrappers[id(tensor)].tensor
        for prefix, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _run_forward(
    model: torch.nn.Module,
    structure: Structure,
    inputs: list[torch.Tensor],
    wrappers: dict[int, _Wrapper],
    recorder: Recorder,
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
            "of the forward, or rewrite the part of the model that does not contain it"
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
    recorder: Recorder,
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
        present_value(tensor)
    for wrapper in wrappers.values():
        present_value(wrapper.tensor)
    recorder.phase = "backward"
    tangents = []
    for index in chosen:
        # Laid out like the output, as the gradients that torch's losses return are.
        fake = torch.empty_like(present_value(tensors[index]))
        recorder.graph.erase_node(recorder.nodes.pop(id(fake)))
        recorder.placeholder("tangent", structure.names[index] or "output", fake, None)
        tangents.append(functional_wrapper(fake, False))
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
    recorder: Recorder,
    step: _Step,
    wrappers: dict[int, _Wrapper],
    settings: Settings,
    notes: tuple[str, ...],
) -> Captured:
    """Adds the graph's outputs, drops what nothing needs, and splits off the guard."""
    graph = recorder.graph
    mutated = [(w, present_value(w.tensor)) for w in wrappers.values()]
    mutations = {w.source: recorder.nodes[id(now)] for w, now in mutated if recorder.nodes[id(now)] is not w.node}
    outputs = tuple(recorder.nodes[id(present_value(t))] for t in step.returned)
    gradients = {source: recorder.nodes[id(present_value(g))] for source, g in step.gradients.items()}
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
