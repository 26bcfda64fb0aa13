"""Shows what passes do as text, for golden files, and compares the gradients of what they make with eager's."""

import copy
import inspect
import re

import lowtide
import torch
from lowtide.passes.build_step_graph import build_step_graph
from lowtide.passes.graph_pass import GraphPass
from lowtide.passes.rewrites.free_factories import FreeFactories
from lowtide.passes.rewrites.run_in_place import in_place_variant
from lowtide.passes.step_graph import StepGraph
from lowtide.passes.step_kernels import ComputeKernel, DecisionCheck, GradAccumulate, Kernel
from lowtide.rewriter.capture.capture import capture
from small_networks import Called
from torch import fx

OPERATION = re.compile(r"\b(?:aten|lowtide)\.\w+(?:\.\w+)?")


def captured_graph(model, *args, outputs=None) -> fx.GraphModule:
    """The joint graph of a step, with factories that read no operand."""
    return FreeFactories()(capture(model, args, {}, outputs=outputs).graph)


def captured_step(model, *args) -> StepGraph:
    """The step graph of a step before any pass over step graphs."""
    return build_step_graph(captured_graph(model, *args))


def shown_value(value) -> str:
    """The dtype and shape of a tensor, or of several."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return ", ".join(map(shown_value, value)) if isinstance(value, (list, tuple)) else str(value)


def shown_call(node: fx.Node) -> str:
    """A call as Python, operands by name."""
    arguments = [str(argument) for argument in node.args]
    arguments += [f"{name}={argument}" for name, argument in node.kwargs.items()]
    target = node.target if isinstance(node.target, torch._ops.OpOverload) else node.target.__name__
    return f"{target}({', '.join(arguments)})"


def shown_graph(graph: fx.GraphModule) -> str:
    """All nodes of a graph, one a line, with what each holds."""
    lines = []
    for node in graph.graph.nodes:
        if node.op == "output":
            lines.append(f"return {node.args[0]}")
        else:
            text = node.meta["source"].kind if node.op == "placeholder" else shown_call(node)
            phase = f"{node.meta['phase']} " if "phase" in node.meta else ""
            lines.append(f"{node.name} = {text}  # {phase}{shown_value(node.meta['val'])}")
    return "\n".join(lines)


def shown_calls(kernel: Kernel) -> list[str]:
    """The calls of a kernel as Python, with the variants that run in place."""
    if isinstance(kernel, DecisionCheck):
        return [f"lowtide.check.default{kernel.arguments}"]
    if isinstance(kernel, GradAccumulate):
        return [f"{kernel.target}.grad, {kernel.gradient}"]
    if not isinstance(kernel, ComputeKernel):
        return []
    if kernel.change is not None:
        return [shown_call(call) for call in (*kernel.change.place, kernel.change.call)]
    is_in_place = [kernel.destination is not None] + [True] * (len(kernel.calls) - 1)
    return [
        shown_call(call).replace(str(call.target), in_place_variant(call)) if written else shown_call(call)
        for call, written in zip(kernel.calls, is_in_place, strict=True)
    ]


def shown_step(step: StepGraph) -> str:
    """All views and kernels of a step, one a line, with the storages that each kernel reads, makes and writes."""
    bases = {storage.base for storage in step.storages}
    called = {call for kernel in step.compute_kernels for call in kernel.calls}
    views = [node for node in step.storage_of if node.op == "call_function" and node not in bases | called]
    lines = [f"{node.name} = {shown_call(node)}  # storage {step.storage_of[node]}" for node in views]
    for kernel in step.kernels:
        calls = "; ".join(shown_calls(kernel))
        numbers = (f"{what} {list(ids)}" for what in ("reads", "makes", "writes") if (ids := getattr(kernel, what)))
        block = f"{step.block_names[kernel.block]}, {kernel.phase}"
        lines.append(f"{kernel.name}: {kernel.role}({calls})  # {', '.join([block, *numbers])}")
    return "\n".join(lines)


def shown(graph: fx.GraphModule | StepGraph) -> str:
    """A graph or a step as text."""
    return shown_step(graph) if isinstance(graph, StepGraph) else shown_graph(graph)


def compare_with_golden(golden, a_pass, graph: fx.GraphModule | StepGraph) -> None:
    """Compare what a pass makes of a graph with its golden file and its docstring; the graph itself stays as it was."""
    before, kept = shown(graph), everything(graph)
    after = shown(a_pass(graph))
    assert after != before
    assert everything(graph) == kept, "the pass changed its input"
    golden(f"passes/{a_pass.name}", f"before:\n{before}\n\nafter:\n{after}")
    doc = inspect.getdoc(a_pass) or ""
    parts = re.split(r"^ *(before|after): ", doc, flags=re.MULTILINE)[1:]
    assert {"before", "after"} <= set(parts)
    for word, text in zip(parts[::2], parts[1::2], strict=True):
        for operation in OPERATION.findall(text.split("\n\n")[0]):
            whole = before if word == "before" else after
            assert operation in whole, f"the docstring shows {operation} {word} the pass, the golden file does not"


def everything(graph: fx.GraphModule | StepGraph) -> list[object]:
    """All that a pass could change of its input: nodes, arguments and meta; kernels, storages and their numbers."""
    kept: list[object] = []
    if isinstance(graph, StepGraph):
        kept = [graph.kernels, graph.storages, dict(graph.storage_of), graph.outputs, dict(graph.gradients)]
        kept += [dict(graph.overwrites), graph.block_names, graph.block_classes]
        nodes = next(iter(graph.storage_of)).graph.nodes
    else:
        nodes = graph.graph.nodes
    return kept + [
        (node, node.name, node.target, node.args, dict(node.kwargs), dict(node.users), dict(node.meta))
        for node in nodes
    ]


def assert_unchanged(a_pass: GraphPass, graph: fx.GraphModule) -> None:
    """A pass finds nothing to do in a graph."""
    assert shown(a_pass(graph)) == shown(graph)


def graph_after(a_pass, function, *args, **parts) -> tuple[list[str], fx.GraphModule]:
    """The targets of all calls after a pass, and the graph, for a function of a module's parts and arguments."""
    graph = a_pass(captured_graph(Called(function, **parts), *args))
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"], graph


def gradients_of(model, *args, **kwargs):
    """Loss and gradients of one step, drawing from the same numbers each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    returned = model(*args, **kwargs)
    loss = returned["loss"] if isinstance(returned, dict) else getattr(returned, "loss", returned)
    loss.sum().backward()
    return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_near(model, *args, most=1e-6, **options):
    """A rewritten copy gives the same loss and gradients up to rounding; returns its code."""
    small = lowtide.rewrite(copy.deepcopy(model), "100%", args, {}, fidelity="rounding", costs="flops", **options)
    (loss, expected), (actual_loss, actual) = gradients_of(model, *args), gradients_of(small, *args)
    assert torch.allclose(loss, actual_loss, rtol=1e-5)
    for left, right in zip(expected, actual, strict=True):
        assert (left is None) == (right is None)
        assert left is None or (left - right).norm() <= most * left.norm() + 1e-12
    return small.code
