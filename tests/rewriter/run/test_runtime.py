"""A tape refuses changed tensors, a second backward and a second derivative, and survives other uses."""

import copy

import pytest
import torch
from lowtide.rewriter.errors import LowtideWarning, TapeError
from side_by_side import backward_of, calling, differences, rewritten, trained
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def model() -> nn.Sequential:
    """Three blocks whose backward reads inputs, parameters and the output."""
    parts = [nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8)) for _ in range(3)]
    return nn.Sequential(*parts, nn.Tanh())


def data(rows: int = 32) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda small, x, y: x.mul_(2), "input 0.0 was changed in place"),
        (lambda small, x, y: small[1][0].weight.detach().add_(1), "parameter 1.0.weight was changed in place"),
        (lambda small, x, y: y.detach().add_(1), "an output of the module was changed in place"),
    ],
)
def test_backward_refuses_what_was_changed_in_place_as_eager_does(change, named):
    for module, error in ((rewritten(model(), data()), (TapeError, named)), (model(), (RuntimeError, "modified"))):
        x = data()
        y = module(x)
        with torch.no_grad():
            change(module, x, y)
        with pytest.raises(error[0], match=error[1]):
            y.sum().backward()


def test_a_change_after_backward_harms_nothing():
    small = rewritten(model(), data())
    x = data()
    small(x).sum().backward()
    x.mul_(2)
    small.zero_grad()
    small(x).sum().backward()


def test_a_second_backward_says_that_values_are_freed():
    y = rewritten(model(), data())(data())
    y.sum().backward(retain_graph=True)
    with pytest.raises(TapeError, match=r"backward ran a second time .* call forward again"):
        y.sum().backward()


def test_a_second_derivative_is_refused():
    x = data().requires_grad_()
    small = rewritten(model(), x)
    with pytest.raises(TapeError, match="no second derivative: create_graph=True"):
        torch.autograd.grad(small(x).sum(), x, create_graph=True)


def test_the_next_step_is_right_after_an_error_in_mid_forward():
    embedding = nn.Sequential(nn.Embedding(20, 8), model())
    tokens = torch.randint(0, 20, (4, 8))
    small = rewritten(embedding, tokens)
    with pytest.raises(IndexError):
        small(tokens + 20)
    assert differences(trained(embedding, calling(tokens)), trained(small, calling(tokens))) == []


def test_the_next_step_is_right_after_an_error_in_mid_backward():
    eager = model()
    small = rewritten(eager, data())

    def refuse(gradient):
        raise ValueError("no gradient wanted")

    handle = small[1][0].weight.register_hook(refuse)
    y = small(data())
    with pytest.raises(ValueError, match="no gradient wanted"):
        y.sum().backward()
    with pytest.raises(TapeError):
        y.sum().backward()
    handle.remove()
    small.zero_grad()
    assert differences(trained(eager, calling(data())), trained(small, calling(data()))) == []


def test_an_error_in_a_recomputation_leaves_the_generator_where_it_was():
    small = rewritten(model(), data())
    torch.manual_seed(0)
    y = small(data())
    expected = torch.get_rng_state()
    small[1][0].weight.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    assert torch.equal(torch.get_rng_state(), expected)


def test_the_output_may_be_changed_in_place_where_eager_allows_it():
    eager = nn.Sequential(model(), nn.Linear(8, 4))
    small = rewritten(eager, data())
    results = []
    for module in (eager, small):
        torch.manual_seed(0)
        y = module(data())
        y += 1
        y.mul_(2)
        y.sum().backward()
        results.append([y.detach(), *(p.grad for p in module.parameters())])
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_forward_of_a_failed_step_may_be_dropped():
    small = rewritten(model(), data())
    y = small(data())
    del y
    backward_of(small(data()))


def test_backward_may_run_under_no_grad():
    eager = model()
    small = rewritten(eager, data())
    results = []
    for module in (eager, small):
        torch.manual_seed(0)
        loss = module(data()).sum()
        with torch.no_grad():
            loss.backward()
        results.append([p.grad for p in module.parameters()])
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_gradients_of_some_parameters_only_may_be_asked_for():
    eager = model()
    small = rewritten(eager, data())
    results = []
    for module in (eager, small):
        torch.manual_seed(0)
        results.append(torch.autograd.grad(module(data()).sum(), [module[2][0].weight, module[0][3].bias]))
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_a_model_moved_to_another_dtype_is_planned_for_again():
    eager = model()
    small = rewritten(eager, data(), budget="1MiB")
    eager.double(), small.double()
    call = calling(data().double())
    assert differences(trained(eager, call), trained(small, call)) == []
    assert small[0][0].weight.dtype == torch.float64


def test_a_copy_made_between_forward_and_backward_is_independent():
    eager = model()
    small = rewritten(eager, data())
    y = small(data())
    duplicate = copy.deepcopy(small)
    y.sum().backward()
    assert all(p.grad is None for p in duplicate.parameters())
    assert differences(trained(eager, calling(data())), trained(duplicate, calling(data()))) == []


def test_backward_under_autocast_is_warned_about_and_computes_as_outside_of_it():
    eager = model()
    small = rewritten(eager, data(), budget="1MiB")
    results = []
    for module in (eager, small):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(data()).float().sum()
            if module is small:
                with pytest.warns(LowtideWarning, match="backward runs under autocast"):
                    loss.backward()
        if module is eager:
            loss.backward()
        results.append([p.grad for p in module.parameters()])
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_a_gradient_that_lies_unlike_its_output_is_copied_with_a_warning():
    small = rewritten(nn.Linear(4, 3), torch.randn(2, 4), budget="100%")
    with pytest.warns(LowtideWarning, match=r"of shape \(2, 3\) has strides \(0, 0\), the output had \(3, 1\)"):
        small(torch.randn(2, 4)).sum().backward()
