"""A rewritten module returns the original's structure and views, and gradients of its outputs."""

import collections
import dataclasses
from typing import Any, NamedTuple

import lowtide
import pytest
import torch
from side_by_side import assert_trains_alike, rewritten
from small_models import small_model
from small_networks import Called, batch, deep
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

# Less than keeping everything takes, and room for gradients that are there before the step.
WITH_GRADIENTS = "85%"
QUICK = {"costs": "flops", "solver": "rotor"}  # any plan that recomputes will do


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass
class Outcome:
    loss: Tensor
    extras: Any = None


@pytest.mark.filterwarnings("ignore:gradients arrive at")  # asserted in test_gradients_of_outputs.py
def test_only_one_of_several_outputs_gets_a_gradient():
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = m.net(x)
        return m.first(hidden), m.second(hidden)

    model = Called(forward, net=deep(), first=nn.Linear(3, 2), second=nn.Linear(3, 2))

    def step(module):
        first, second = module(batch())
        first.square().sum().backward()
        return first, second

    small = assert_trains_alike(model, batch(), step=step)
    assert small.second.weight.grad is None


def test_an_unused_head_keeps_no_gradient():
    model = Called(lambda m, x: m.net(x), net=deep(), unused=nn.Linear(4, 4))
    small = assert_trains_alike(model, batch())
    assert small.unused.weight.grad is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"a": y, "b": [y * 2, {"c": y.detach()}]},
        lambda y: Pair(y, (y * 2, None)),
        lambda y: Outcome(y.square().mean(), {"y": y}),
        lambda y: (y, 3, "text", None, [y.argmax(-1)]),
        lambda y: collections.OrderedDict(y=y, shape=y.shape),
        lambda y: [y, y],
    ],
)
def test_outputs_come_in_the_structure_that_the_module_returns(wrap):
    model = Called(lambda m, x: wrap(m.net(x)), net=deep())
    small = assert_trains_alike(model, batch(), budget=WITH_GRADIENTS)
    actual, expected = small(batch()), model(batch())
    assert type(actual) is type(expected)
    small.eval(), model.eval()
    assert str(type(small(batch()))) == str(type(actual))


def test_outputs_may_be_views_of_each_other():
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = m.net(x)
        return y, y[:2], y.t(), y.detach().view(-1)

    assert_trains_alike(Called(forward, net=deep()), batch())


def test_an_input_may_be_an_output():
    model = Called(lambda m, x: (m.net(x), x, m.net[0][0].weight), net=deep())
    small = assert_trains_alike(model, batch(), budget="1MiB")
    assert torch.equal(small(batch())[1], batch())


def test_an_output_that_is_a_view_may_be_written_into():
    model = Called(lambda m, x: m.net(x).view(4, -1), net=deep())
    small = rewritten(model, batch())
    results = []
    for module in (model, small):
        torch.manual_seed(0)
        y = module(batch())
        y[0] = 0
        y.mul_(2)
        y.sum().backward()
        results.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_hidden_states_and_attentions_of_transformers_are_returned():
    for name, option in (("gpt2", "output_hidden_states"), ("bert", "output_attentions")):
        model, kwargs = small_model(name, layers=1)
        model.set_attn_implementation("eager")
        report = lowtide.verify(model, "100%", (), {**kwargs, option: True}, steps=2, **QUICK)
        assert report.ok, str(report)


def test_transformers_without_labels_give_gradients_to_logits():
    model, kwargs = small_model("gpt2", layers=1)
    kwargs.pop("labels")
    for extra in ({}, {"return_dict": False}):
        report = lowtide.verify(model, "90%", (), {**kwargs, **extra}, steps=2, **QUICK)
        assert report.ok, str(report)


def test_only_some_outputs_may_be_differentiable():
    model, kwargs = small_model("gpt2", layers=1)
    for names in (["logits"], ["loss", "logits"]):
        report = lowtide.verify(model, "95%", (), kwargs, steps=2, differentiable=names, **QUICK)
        assert report.ok, str(report)
