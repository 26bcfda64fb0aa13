"""Arguments that forward changes in place: their new values, and the gradients that pass through these."""

import copy
import gc
import weakref

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import TapeError
from small_networks import Called
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


def rows() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


def rewritten(model: nn.Module, budget: str = "1MiB") -> nn.Module:
    return lowtide.rewrite(copy.deepcopy(model), budget, costs="flops")


def seen(module, make, loss, steps=3) -> list[list[Tensor]]:
    """Return for each step the changed argument, the gradients of its source and of the parameters, and the result."""
    results = []
    for step in range(steps):
        torch.manual_seed(step)
        module.zero_grad()
        start = rows().requires_grad_()
        argument = make(start)
        result = module(argument)
        loss(result, argument).backward()
        gradients = [start.grad, *(parameter.grad for parameter in module.parameters())]
        results.append([argument.detach().clone(), *(g.clone() for g in gradients if g is not None)])
        if result is not None:
            results[-1].append(result.detach().clone())
    return results


def alike(left, right) -> bool:
    return all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(left, right, strict=True))


def written_in_part(m, x):
    x[:, :2].mul_(3)
    x[0] = 0
    return m.net(x)


def given_back(m, x):
    return x.mul_(3).relu_()


def left_only(m, x):
    x.add_(m.net(torch.ones(8, 4)))


def mixed(m, x):
    x.add_(m.net(torch.ones(8, 4)))
    return x.square()


CHANGES = {
    "an activation first": lambda m, x: m.net(x.relu_()),
    "part": written_in_part,
    "given back": given_back,
    "with a gradient": mixed,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_result_of_a_changed_argument_that_was_computed_trains_alike(change):
    model = Called(CHANGES[change], net=net())
    made, loss = (lambda start: start * 2), (lambda result, argument: result.square().sum())
    small = rewritten(model)
    assert alike(seen(model, made, loss), seen(small, made, loss)) and len(small.lowtide.steps) == 1


def test_an_activation_in_place_at_the_head_of_a_module_trains_alike_at_the_smallest_budget():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))
    made, loss = (lambda start: start * 2), (lambda result, argument: result.sum())
    smallest = lowtide.sweep(model, (rows().requires_grad_() * 2,), costs="flops", count=2)[-1].peak_bytes
    small = rewritten(model, smallest + 4 * sum(p.numel() for p in model.parameters()))
    assert alike(seen(model, made, loss), seen(small, made, loss))


def test_gradients_pass_through_the_new_value_alone():
    model = Called(left_only, net=net())
    for made in (lambda start: start * 2, lambda start: start.detach() * 2):
        loss = lambda result, argument: argument.square().sum()  # noqa: E731
        small = rewritten(model)
        assert alike(seen(model, made, loss), seen(small, made, loss)) and small.plan is not None


@pytest.mark.parametrize("change", ["an activation first", "given back", "with a gradient"])
def test_gradients_through_the_result_and_the_new_value_are_refused_once_and_then_planned_for(change):
    model = Called(CHANGES[change], net=net())
    made, loss = (lambda start: start * 2), (lambda result, argument: result.square().sum() + argument.sum())
    small = rewritten(model)
    with pytest.raises(TapeError, match=r"gradients arrive at argument 0.0, the output.*planned for that now"):
        seen(small, made, loss, steps=1)
    assert alike(seen(model, made, loss), seen(small, made, loss))


def test_a_leaf_is_refused_as_in_eager():
    small = rewritten(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)))
    with pytest.raises(lowtide.CaptureError, match="a leaf Variable that requires grad is being used in an in-place"):
        small(rows().requires_grad_())
    small(rows().requires_grad_() * 2).sum().backward()
    with pytest.raises(lowtide.CaptureError, match="a leaf Variable that requires grad"):
        small(rows().requires_grad_())


def test_a_view_is_refused_only_where_gradients_pass_through_it():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
    small = rewritten(model)
    whole = rows().requires_grad_() * 2
    before = whole.detach().clone()
    with pytest.raises(TapeError, match=r"argument 0.0 in place, which is a view of another tensor.*clone"):
        small(whole[:4])
    assert torch.equal(whole, before)
    whole, whole_small = rows(), rows()
    assert torch.equal(model(whole[:4]), small(whole_small[:4])) and torch.equal(whole, whole_small)


def test_a_buffer_that_would_carry_gradients_from_step_to_step_is_refused():
    model = Called(lambda m, x: m.net(x) + m.seen.add_(m.net(x).sum(0)), net=net(), seen=torch.zeros(4))
    with pytest.raises(lowtide.CaptureError, match=r"changes buffer seen in place by what requires a gradient.*detach"):
        lowtide.plan(model, "1MiB", (rows(),))


def test_a_forward_without_backward_leaves_nothing_behind():
    small = rewritten(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)))
    small(rows().requires_grad_() * 2)
    gc.collect()
    gc.disable()
    try:
        argument = rows().requires_grad_() * 2
        result = small(argument)
        gone = weakref.ref(argument), weakref.ref(result)
        del argument, result
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_whether_an_argument_is_a_leaf_is_seen():
    model = Called(lambda m, x: m.net(x) * (1 if x.is_leaf else 2), net=net())
    small = rewritten(model)
    for argument in (rows().requires_grad_(), rows().requires_grad_() * 1, rows().requires_grad_()):
        torch.manual_seed(0)
        expected = model(argument)
        torch.manual_seed(0)
        assert torch.equal(small(argument), expected)
