"""Gradients that arrive at other outputs than expected, at several, at none, or at one inside the step."""

import copy
import warnings
from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import LowtideWarning, TapeError
from side_by_side import differences, rewritten, trained
from small_networks import Called, batch, deep
from torch import Tensor, nn
from torch.nn import functional

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:gradients arrive at"),  # asserted where it is the subject
]


def losses(m: Any, x: Tensor) -> dict[str, Tensor]:
    hidden = m.norm(m.net(x))
    logits = m.head(hidden)
    return {"loss": functional.cross_entropy(logits, x[:, :2].argmax(-1)), "logits": logits, "hidden": hidden}


def model() -> nn.Module:
    """Dropout and BatchNorm within, so that what runs again must draw the same and update nothing again."""
    return Called(losses, net=deep(), norm=nn.BatchNorm1d(3), head=nn.Linear(3, 2))


USES = {
    "loss alone": lambda out: out["loss"],
    "a term on the logits": lambda out: out["loss"] + 0.1 * out["logits"].square().mean(),
    "logits alone": lambda out: out["logits"].square().mean(),
    "all three": lambda out: out["loss"] + out["logits"].mean() + out["hidden"].abs().sum(),
}


def using(*uses: str) -> Any:
    """A step whose loss is made in another way each time, in turn."""
    turn = iter(uses * 9)

    def step(module: nn.Module) -> Tensor:
        loss = USES[next(turn)](module(batch()))
        loss.backward()
        return loss.detach()

    return step


@pytest.mark.parametrize("uses", [[name] for name in USES] + [list(USES)], ids=str)
def test_any_output_may_receive_a_gradient(uses):
    module = model()
    small = rewritten(module, batch(), budget="100%")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert differences(trained(copy.deepcopy(module), using(*uses), 6), trained(small, using(*uses), 6)) == []
    again = [str(w.message) for w in said if "begins with forward again" in str(w.message)]
    # Each other set of outputs is planned for once; a step after another of the same kind runs as planned.
    assert len(again) == (0 if uses == ["loss alone"] else 1 if len(uses) == 1 else len(again))
    assert small.norm.num_batches_tracked == 6


def test_an_output_that_receives_no_gradient_costs_nothing():
    module = model()
    whole = lowtide.plan(module, "100%", (batch(),), costs="flops")
    alone = lowtide.plan(module, "100%", (batch(),), costs="flops", differentiable=["loss"])
    assert whole.peak_bytes == alone.peak_bytes and len(whole.problem.ops) == len(alone.problem.ops)


def test_the_gradient_of_no_zero_is_made():
    """A zero in the place of a gradient that does not come would turn infinite values into NaN."""
    module = Called(lambda m, x: (m.net(x).sum(), m.net(x).exp().log() / 0), net=nn.Linear(16, 2))
    small = rewritten(module, batch(), budget="100%")
    for m in (module, small):
        m(batch())[0].backward()
    assert torch.equal(module.net.weight.grad, small.net.weight.grad)


def test_a_gradient_at_an_output_that_was_declared_without_is_an_error():
    small = lowtide.rewrite(model(), "100%", costs="flops", differentiable=["loss"])
    out = small(batch())
    with pytest.raises(TapeError, match=r"'logits', which was declared not to receive one"):
        (out["loss"] + out["logits"].mean()).backward()
    assert all(p.grad is None for p in small.parameters())


def test_the_budget_holds_once_it_is_known_which_gradients_arrive():
    module = model()
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")

    def step() -> None:
        out = list(small(x).values())
        torch.autograd.backward(out, incoming)

    x, incoming = batch(), [torch.ones(()), torch.ones(64, 2), torch.ones(64, 3)]
    with pytest.warns(LowtideWarning, match="begins with forward again"):
        step()
    small.zero_grad()
    peak = lowtide.measure_peak(step) + small.plan.problem.resident_bytes
    assert peak + sum(gradient.nbytes for gradient in incoming) == small.plan.peak_bytes


def test_a_gradient_retained_inside_the_step_is_the_whole_one():
    module = Called(lambda m, x: (m.head(h := m.net(x).tanh()), h), net=deep(), head=nn.Linear(3, 1))
    small = rewritten(module, batch(), budget="100%")

    def step(m: nn.Module) -> Tensor:
        y, hidden = m(batch())
        hidden.retain_grad()
        (y.mean() + 0.1 * hidden.square().mean()).backward()
        return hidden.grad

    assert differences(trained(copy.deepcopy(module), step), trained(small, step)) == []


def test_a_hook_on_an_output_inside_the_step_is_refused():
    small = rewritten(Called(lambda m, x: (m.head(h := m.net(x)), h), net=deep(), head=nn.Linear(3, 1)), batch())
    y, hidden = small(batch())
    hidden.register_hook(lambda gradient: gradient * 2)
    with pytest.raises(TapeError, match=r"hook waits for the gradient of the output '1'"):
        (y.mean() + hidden.mean()).backward()


def test_a_step_that_cannot_begin_again_says_so_and_is_planned_for_the_next_time():
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.net(x) + m.scale
        m.scale = m.scale * 0.5
        return y, y * 2

    module = Called(forward, net=deep(), scale=torch.ones(3))
    small = rewritten(module, batch(), budget="100%")
    with pytest.raises(TapeError, match="cannot begin again: forward has changed what it reads"):
        small(batch())[1].sum().backward()
    module.scale = module.scale * 0.5
    for m in (module, small):
        torch.manual_seed(0)
        m(batch())[1].sum().backward()
    assert torch.equal(module.net[-1].weight.grad, small.net[-1].weight.grad)


def test_an_input_changed_between_the_forwards_is_an_error():
    small = rewritten(Called(lambda m, x: (m.net(x), m.net(x) * x.sum()), net=deep()), batch(), budget="100%")
    x = batch()
    out = small(x)
    x.add_(1)
    with pytest.raises(TapeError, match="changed in place"):
        out[1].sum().backward()
