"""Factories take as a constant the shape that they looked at, as the pass's docstring shows."""

import inspect
import re

import torch
from lowtide.passes.joint_graph import JointGraph, evaluate_graph
from lowtide.passes.rewrites.free_factories import FreeFactories
from lowtide.rewriter.capture.capture import capture
from pass_checks import compare_with_golden
from small_networks import Called
from torch import fx, nn
from torch.nn import functional

aten = torch.ops.aten


def graph_of(call, shape=(4, 256), dtype=torch.float32, stride=None) -> fx.GraphModule:
    """A graph of one input and one call on it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty_strided(shape, stride, dtype=dtype) if stride else torch.empty(shape, dtype=dtype)
    target, *rest = call
    node = graph.call_function(target, (x, *rest))
    node.meta["val"] = target(x.meta["val"], *rest)
    graph.output(node)
    return JointGraph(graph)


def shown(module: fx.GraphModule) -> str:
    """The only call of a graph, as Python."""
    (node,) = (n for n in module.graph.nodes if n.op == "call_function")
    parts = [str(argument) for argument in node.args] + [f"{k}={v!r}" for k, v in node.kwargs.items()]
    return f"{node.target}({', '.join(parts)})".replace("'", '"').replace("device(type=", "device(")


def test_the_docstring_shows_what_the_pass_does():
    shown_calls = dict(
        re.findall(r"^ *(before|after): +\w+ = (.+)$", inspect.getdoc(FreeFactories) or "", re.MULTILINE)
    )
    module = graph_of((aten.empty_like.default,))
    assert shown(module) == shown_calls["before"]
    assert shown(FreeFactories()(module)) == shown_calls["after"]


def test_before_and_after(golden):
    model = Called(lambda m, x: functional.dropout(m.layer(x), 0.1), layer=nn.Linear(16, 16, bias=False))
    compare_with_golden(golden, FreeFactories(), capture(model, (torch.randn(4, 16),), {}).graph)


def test_every_factory_makes_the_same_without_its_model():
    calls = [
        (aten.zeros_like.default,),
        (aten.ones_like.default,),
        (aten.full_like.default, 2.5),
        (aten.new_zeros.default, [3, 2]),
        (aten.new_ones.default, [3]),
        (aten.new_full.default, [2, 2], 7),
    ]
    for call in calls:
        for dtype in (torch.float32, torch.int64, torch.bool):
            module = graph_of(call, dtype=dtype)
            x = module.graph.find_nodes(op="placeholder")[0].meta["val"]
            expected = call[0](x, *call[1:])
            freed = FreeFactories()(module).graph
            assert not freed.find_nodes(op="placeholder")[0].users
            made = evaluate_graph(freed, x)
            assert torch.equal(made, expected) and made.dtype == expected.dtype and made.stride() == expected.stride()


def test_blank_tensors_keep_their_layout():
    freed = FreeFactories()(graph_of((aten.empty_like.default,), shape=(4, 3), stride=(1, 4)))
    assert evaluate_graph(freed.graph, torch.empty(0)).stride() == (1, 4)


def test_a_filled_tensor_of_another_layout_stays_as_it_is():
    module = graph_of((aten.zeros_like.default,), shape=(4, 3), stride=(1, 4))
    before = shown(module)
    assert shown(FreeFactories()(module)) == before


def test_other_calls_stay_as_they_are():
    module = graph_of((aten.mul.Tensor, 2.0))
    before = shown(module)
    assert shown(FreeFactories()(module)) == before


def test_a_dimension_of_one_element_keeps_its_stride():
    module = graph_of((aten.full_like.default, 2.5), shape=(4, 8, 1, 5), stride=(40, 5, 40, 1))
    assert module.graph.find_nodes(op="placeholder")[0].meta["val"].is_contiguous()
    (made,) = (n for n in FreeFactories()(module).graph.nodes if n.op == "call_function")
    assert made.target is aten.full_like.default and made.meta["val"].stride() == (40, 5, 40, 1)
