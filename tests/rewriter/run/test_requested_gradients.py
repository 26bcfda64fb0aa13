"""`torch.autograd.grad` and `backward(inputs=)` at outputs inside the step, at inputs and at parameters."""

import copy
from collections.abc import Callable
from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import TapeError
from side_by_side import smallest_bytes
from small_models import small_model
from small_networks import Called, batch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # A first step that is asked for other gradients begins again; test_gradients_of_outputs.py asserts the warning.
    pytest.mark.filterwarnings("ignore:gradients arrive at"),
]


def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
    """Two outputs from which others are computed, one of them by several ways."""
    low = m.low(x)
    high = low + m.middle(low) * low.sigmoid()
    return {"loss": m.head(high).square().mean(), "low": low, "high": high}


def model() -> nn.Module:
    torch.manual_seed(0)
    parts = (nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.2)) for _ in range(2))
    low, middle = parts
    return Called(forward, low=low, middle=middle, head=nn.Linear(16, 2))


Ask = Callable[[nn.Module, dict[str, Tensor], Tensor], Any]

ASKED: dict[str, Ask] = {
    "inside": lambda m, out, x: torch.autograd.grad(out["loss"], out["low"]),
    "with a part from outside": lambda m, out, x: torch.autograd.grad(
        out["loss"] + out["low"].square().sum(), [out["low"]]
    ),
    "two inside": lambda m, out, x: torch.autograd.grad(out["loss"], [out["high"], out["low"]]),
    "twice the same": lambda m, out, x: torch.autograd.grad(out["loss"], [out["low"], out["low"]]),
    "the loss itself": lambda m, out, x: torch.autograd.grad(out["loss"] * 3, [out["loss"], out["low"]]),
    "of one inside": lambda m, out, x: torch.autograd.grad(out["high"].sum(), [out["low"], out["high"]]),
    "with parameters": lambda m, out, x: torch.autograd.grad(out["loss"], [out["low"], *m.parameters()]),
    "by its edge": lambda m, out, x: torch.autograd.grad(out["loss"], get_gradient_edge(out["low"])),
    "inputs": lambda m, out, x: torch.autograd.grad(out["loss"], x),
    "parameters": lambda m, out, x: torch.autograd.grad(out["loss"], list(m.parameters())),
    "unused": lambda m, out, x: torch.autograd.grad(out["low"].sum(), [out["high"], out["low"]], allow_unused=True),
    "as zeros": lambda m, out, x: torch.autograd.grad(out["low"].sum(), out["high"], materialize_grads=True),
}


def asked(module: nn.Module, ask: Ask) -> tuple[Any, Any]:
    """Return the requested gradients, and the values of `.grad` afterwards."""
    torch.manual_seed(1)
    x = batch().requires_grad_()
    answer = ask(module, module(x), x)
    return answer, [x.grad, *(parameter.grad for parameter in module.parameters())]


def same(left: Any, right: Any) -> bool:
    """Return whether two answers are equal to the bit."""
    return len(left) == len(right) and all(
        a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


@pytest.fixture(scope="module")
def tight_budget() -> int:
    """Little above the smallest, with room for gradients that are asked for."""
    return smallest_bytes(model(), batch().requires_grad_()) * 5 // 4


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize("at", ["100%", "smallest"])
def test_gradients_are_the_whole_ones_and_nothing_else_is_touched(at, ask, tight_budget):
    module, budget = model(), tight_budget if at == "smallest" else at
    small = lowtide.rewrite(copy.deepcopy(module), budget, costs="flops")
    for _ in range(3):
        expected, grads = asked(module, ASKED[ask])
        answer, own_grads = asked(small, ASKED[ask])
        assert same(expected, answer) and same(grads, own_grads) and own_grads == [None] * len(own_grads)


def test_backward_for_chosen_inputs_gives_them_alone_a_gradient():
    module = model()
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    for _ in range(2):
        results = []
        m: Any
        for m in (module, small):
            m.zero_grad()
            torch.manual_seed(0)
            out = m(batch())
            (out["loss"] + out["low"].sum()).backward(inputs=[out["low"], m.head.weight])
            results.append([out["low"].grad, *(parameter.grad for parameter in m.parameters())])
        assert same(*results)


def test_a_retained_gradient_may_be_asked_for_too():
    module = model()
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    for _ in range(2):
        results = []
        for m in (module, small):
            torch.manual_seed(0)
            out = m(batch())
            out["low"].retain_grad()
            results.append([*torch.autograd.grad(out["loss"], out["low"]), out["low"].grad])
        assert same(*results)


def test_what_nothing_reaches_is_an_error_as_in_eager():
    small = lowtide.rewrite(model(), "100%", costs="flops")
    for ask in ("high", "loss"):
        out = small(batch())
        with pytest.raises(RuntimeError, match="index 1 appears to not have been used in the graph"):
            torch.autograd.grad(out["low"].sum(), [out["low"], out[ask]])


def test_an_output_declared_without_gradient_is_refused_by_name():
    small = lowtide.rewrite(model(), "100%", costs="flops", differentiable=["loss"])
    out = small(batch())
    with pytest.raises(TapeError, match="'low', which was declared not to receive one"):
        torch.autograd.grad(out["loss"], out["low"], allow_unused=True)
    out["loss"].backward()
    assert small.head.weight.grad is not None


def test_steps_after_are_as_before():
    module = model()
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    for ask in (True, False, True):
        results = []
        for m in (module, small):
            m.zero_grad()
            torch.manual_seed(0)
            out = m(batch())
            if ask:
                results.append(torch.autograd.grad(out["loss"], out["low"]))
            else:
                out["loss"].backward()
                results.append([parameter.grad for parameter in m.parameters()])
        assert same(*results)


def test_the_peak_of_a_step_that_hands_out_a_gradient_is_predicted():
    small, x = lowtide.rewrite(model(), "100%", costs="flops"), batch()

    def step() -> Any:
        out = small(x)
        return torch.autograd.grad(out["loss"], [out["low"], *small.parameters()], incoming)

    incoming = torch.ones(())
    for _ in range(2):
        step()
    peak = lowtide.measure_peak(step) + small.plan.problem.resident_bytes + incoming.nbytes
    assert peak == small.plan.peak_bytes


def test_hidden_states_of_a_transformer():
    module, inputs = small_model("gpt2", layers=2)
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops", solver="rotor")
    for _ in range(2):
        results = []
        for m in (module, small):
            torch.manual_seed(0)
            out = m(**inputs, output_hidden_states=True)
            results.append(torch.autograd.grad(out.loss, [*out.hidden_states[1:-1], out.logits], allow_unused=True))
        assert same(*results) and all(gradient is not None for gradient in results[1])


def test_what_is_returned_twice_is_one_tensor():
    module = Called(lambda m, x: {"last": (h := m.net(x)), "states": (x, h), "loss": h.sum()}, net=nn.Linear(16, 4))
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    results = []
    m: Any
    for m in (module, small):
        out = m(batch())
        assert out["last"] is out["states"][1]
        out["states"][1].retain_grad()
        (out["loss"] + out["last"].square().sum()).backward()
        results.append([out["last"].grad, m.net.weight.grad])
    assert same(*results)
