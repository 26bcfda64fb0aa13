"""Gradients where autograd is used in more ways than one backward from a loss."""

import collections
import copy
from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.measure.measure_peak import measure_peak
from side_by_side import assert_trains_alike, backward_of, calling, differences, rewritten, trained
from small_networks import Called, batch, deep
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_gradients_of_inputs_are_those_of_eager():
    def step(module):
        inputs = batch().requires_grad_()
        (gradient,) = torch.autograd.grad(module(inputs).square().sum(), inputs)
        return gradient

    assert_trains_alike(deep(), batch().requires_grad_(), step=step)


def test_checkpoint_inside_the_model_trains_alike():
    model = Called(
        lambda m, x: m.head(checkpoint(m.second, checkpoint(m.first, x, use_reentrant=False), use_reentrant=False)),
        first=deep()[0],
        second=deep()[1],
        head=nn.Linear(16, 2),
    )
    assert_trains_alike(model, batch())


class Doubled(torch.autograd.Function):
    """Doubles, and gives back three times the gradient."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 + x.sign() * ctx.factor, None


def test_a_custom_autograd_function_keeps_its_own_backward():
    model = Called(lambda m, x: m.second(Doubled.apply(m.first(x), 0.5)), first=deep(), second=nn.Linear(3, 2))
    assert_trains_alike(model, batch())


class Summed(nn.Module):
    """Adds two parameters, whose gradients are the same tensor in two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(12))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first + self.second.view(3, 4) + x)


def test_gradients_of_two_parameters_never_share_memory():
    def step(module):
        for scale in (1, 2, 3):
            module(torch.ones(3, 4) * scale).square().sum().backward()

    small = assert_trains_alike(Summed(), torch.ones(3, 4), step=step, budget="1MiB")
    assert small.first.grad.untyped_storage().data_ptr() != small.second.grad.untyped_storage().data_ptr()


class GivesItsInput(torch.autograd.Function):
    """Has its own output for a gradient."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0]


def test_a_gradient_never_shares_memory_with_an_output():
    model = Called(lambda m, x: GivesItsInput.apply(x.sin()))
    x = torch.randn(4, requires_grad=True)
    small = rewritten(model, x)
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    y = small(x)
    y.sum().backward()
    assert torch.equal(x.grad, expected)
    before = y.detach().clone()
    x.grad.zero_()
    assert torch.equal(y, before)


def test_parameter_hooks_fire_once_a_step_and_may_change_gradients():
    def hooked(model: nn.Module) -> list[str]:
        fired: list[str] = []
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda g, name=name: (fired.append(name), g * 2)[1])
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: fired.append("after " + name))
        return fired

    model = deep()
    small = rewritten(model, batch())
    fired, fired_small = hooked(model), hooked(small)
    assert differences(trained(model, calling(batch())), trained(small, calling(batch()))) == []
    assert sorted(fired) == sorted(fired_small)


def test_an_optimizer_may_step_inside_backward():
    def stepping(model: nn.Module) -> None:
        for parameter in model.parameters():
            optimizer = torch.optim.SGD([parameter], lr=0.1)

            def update(p: Tensor, optimizer: Any = optimizer) -> None:
                optimizer.step()
                p.grad = None

            parameter.register_post_accumulate_grad_hook(update)

    model = deep()
    small = rewritten(model, batch())
    stepping(model), stepping(small)
    for seed in range(3):
        torch.manual_seed(seed)
        backward_of(model(batch()))
        torch.manual_seed(seed)
        backward_of(small(batch()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))


def test_gradients_added_to_existing_ones_take_no_more_than_one_blocks_at_a_time():
    # One row, so that gradients outweigh activations by far.
    small = rewritten(deep(width=32, depth=8), batch(32, 1), budget="4MiB")
    step = calling(batch(32, 1))
    step(small)
    forward = measure_peak(lambda: small(batch(32, 1)))
    both = measure_peak(lambda: step(small))
    assert small.plan.peak_bytes == small.plan.problem.resident_bytes + both
    bytes_of_block = collections.Counter()
    for kernel in small.lowtide.planned.step.kernels:
        if kernel.role == "accumulate":
            bytes_of_block[kernel.block] += kernel.target.meta["val"].nbytes
    assert len(bytes_of_block) > 6
    momentary = 4 * 4 * 32 * 4  # gradients of activations of one layer
    assert both <= forward + max(bytes_of_block.values()) + momentary


def test_a_rewritten_part_passes_gradients_on_to_what_comes_before_it():
    before = nn.Linear(16, 16)
    model = Called(lambda m, x: m.after(m.before(x)), before=before, after=deep())
    duplicate = copy.deepcopy(model)
    duplicate.after = rewritten(duplicate.after, batch().requires_grad_())
    assert differences(trained(model, calling(batch())), trained(duplicate, calling(batch()))) == []


def test_a_gradient_taken_inside_forward_is_differentiated_through():
    def forward(m: Any, x: Tensor) -> Tensor:
        place = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m.net(place).square().sum(), place, create_graph=True)
        return slope

    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    report = lowtide.verify(Called(forward, net=net), "100%", (batch(),), costs="flops", steps=2)
    assert report.ok, str(report)


def test_a_penalty_on_all_parameters_trains_alike():
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        return {"loss": m.net(x).square().mean() + sum(p.square().sum() for p in m.parameters())}

    assert_trains_alike(Called(forward, net=deep()), batch())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_rewritten_module_changes_nothing(reentrant):
    model = deep()
    small = rewritten(model, batch().requires_grad_())

    def step(module: Any) -> Tensor:
        x = batch().requires_grad_()
        checkpoint(module, x, use_reentrant=reentrant).square().sum().backward()
        return x.grad

    assert differences(trained(model, step), trained(small, step)) == []


def test_a_part_without_gradients_stays_without():
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = m.teacher(x)
        return m.student(hidden + m.second(x).detach())

    small = assert_trains_alike(Called(forward, teacher=deep()[:-1], second=deep()[:-1], student=deep()), batch())
    assert small.second[0][0].weight.grad is None


@pytest.mark.xfail(strict=True, reason="autograd adds a tied weight's gradients one by one to those of a later forward")
def test_two_forwards_of_tied_weights_in_one_backward_add_up_in_eagers_order():
    embedding, head = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
    head.weight = embedding.weight
    tokens = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(0))

    def step(module: Any) -> Tensor:
        loss = module(tokens).square().mean() + module(tokens.flip(0)).square().mean()
        loss.backward()
        return loss

    assert_trains_alike(nn.Sequential(embedding, deep()[:-1], head), tokens, step=step, budget="1MiB")
