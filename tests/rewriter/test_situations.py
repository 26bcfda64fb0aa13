"""Situations of training loops: accumulation, several forwards, adapters, hooks, outputs of all kinds."""

import collections
import copy
import dataclasses
import gc
from typing import Any, NamedTuple

import lowtide
import pytest
import torch
from lowtide.rewriter.measure_peak import measure_peak
from side_by_side import assert_trains_alike, backward_of, calling, differences, rewritten, smallest_bytes, trained
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


# Less than keeping everything takes, and room for gradients that are there before the step.
WITH_GRADIENTS = "85%"


def deep(width: int = 16, depth: int = 4) -> nn.Sequential:
    """Blocks with dropout, so that random streams matter, and a head."""
    blocks = [
        nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.2), nn.Linear(4 * width, width), nn.LayerNorm(width)
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*blocks, nn.Linear(width, 3))


def batch(width: int = 16, rows: int = 64) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


class Called(nn.Module):
    """Named parts, and a function of the parts and the arguments as forward."""

    def __init__(self, told: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.told = told
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.told(self, *args, **kwargs)


def test_gradients_accumulate_over_micro_batches():
    def step(module):
        total = 0.0
        for part in batch().chunk(4):
            loss = module(part).square().mean() / 4
            loss.backward()
            total = total + loss.detach()
        return total

    assert_trains_alike(deep(), batch()[:16], step=step, budget=WITH_GRADIENTS)


def test_a_loss_divided_in_place_trains_alike():
    def step(module):
        loss = module(batch())["loss"]
        loss /= 4
        loss.backward()
        return loss

    model = Called(lambda m, x: {"loss": m.net(x).square().mean()}, net=deep())
    assert_trains_alike(model, batch(), step=step)


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


def test_two_live_forwards_each_find_their_own_values():
    def step(module):
        one, other = module(batch()), module(batch() * 2)
        other.sum().backward()
        one.square().sum().backward()
        return one, other

    assert_trains_alike(deep(), batch(), step=step)


def test_two_rewritten_models_work_side_by_side():
    pair = nn.ModuleList([deep(), deep(depth=2)])
    twin = copy.deepcopy(pair)
    for index in range(2):
        twin[index] = rewritten(twin[index], batch()[:, :16])

    def step(module):
        one, other = module[0](batch()), module[1](batch())
        (one * other).sum().backward()
        return one, other

    assert differences(trained(pair, step), trained(twin, step)) == []


def test_gradients_of_inputs_are_those_of_eager():
    def step(module):
        wanted = batch().requires_grad_()
        (gradient,) = torch.autograd.grad(module(wanted).square().sum(), wanted)
        return gradient

    assert_trains_alike(deep(), batch().requires_grad_(), step=step)


def test_a_rewritten_part_passes_gradients_on_to_what_comes_before_it():
    before = nn.Linear(16, 16)
    model = Called(lambda m, x: m.after(m.before(x)), before=before, after=deep())
    twin = copy.deepcopy(model)
    twin.after = rewritten(twin.after, batch().requires_grad_())
    assert differences(trained(model, calling(batch())), trained(twin, calling(batch()))) == []


def test_frozen_layers_get_no_gradient():
    model = deep()
    model[0].requires_grad_(False)
    model[2][0].requires_grad_(False)
    small = assert_trains_alike(model, batch())
    assert small[0][0].weight.grad is None and small[1][0].weight.grad is not None


class Adapter(nn.Module):
    """A frozen linear layer with a trained update of low rank."""

    def __init__(self, inner: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Linear(inner.in_features, rank, bias=False)
        self.up = nn.Linear(rank, inner.out_features, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.up(self.down(self.dropout(x))) * 0.5


def test_adapters_on_frozen_layers_train_alike():
    model = deep()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in list(model)[:-1]:
        block[0] = Adapter(block[0])
    assert_trains_alike(model, batch())


def test_an_embedding_tied_to_the_head_trains_alike():
    embedding, head = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
    head.weight = embedding.weight
    tokens = torch.randint(0, 30, (4, 9))
    small = assert_trains_alike(nn.Sequential(embedding, deep()[:-1], head), tokens)
    assert small[0].weight is small[2].weight


def test_running_statistics_are_updated_once_although_recomputed():
    parts = [part for _ in range(4) for part in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True))]
    small = assert_trains_alike(nn.Sequential(*parts, nn.Linear(16, 2)), batch())
    assert "Runs again" in small.code
    assert small[1].num_batches_tracked == 3


def test_an_unused_head_keeps_no_gradient():
    model = Called(lambda m, x: m.net(x), net=deep(), unused=nn.Linear(4, 4))
    small = assert_trains_alike(model, batch())
    assert small.unused.weight.grad is None


def test_only_one_of_several_outputs_gets_a_gradient():
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = m.net(x)
        return m.one(hidden), m.other(hidden)

    model = Called(forward, net=deep(), one=nn.Linear(3, 2), other=nn.Linear(3, 2))

    def step(module):
        one, other = module(batch())
        one.square().sum().backward()
        return one, other

    small = assert_trains_alike(model, batch(), step=step)
    assert small.other.weight.grad is None


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass
class Outcome:
    loss: Tensor
    extras: Any = None


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
    told, wanted = small(batch()), model(batch())
    assert type(told) is type(wanted)
    small.eval(), model.eval()
    assert str(type(small(batch()))) == str(type(told))


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


def test_a_tensor_that_is_no_buffer_is_read_at_each_call():
    scale = torch.tensor([0.5, 2.0, 3.0])
    small = assert_trains_alike(Called(lambda m, x: m.net(x) * scale, net=deep()), batch(), budget=WITH_GRADIENTS)
    scale.mul_(2)
    torch.manual_seed(0)
    one = small(batch())
    torch.manual_seed(0)
    assert torch.equal(one, small.net(batch()) * scale)


def test_inputs_may_be_strided_and_passed_twice():
    model = Called(lambda m, x, y: m.net(x + y.roll(1, 0)), net=deep())
    wide = torch.randn(16, 64).t()
    assert_trains_alike(model, wide, wide)
    assert_trains_alike(model, torch.randn(64, 32)[:, ::2], torch.randn(1, 16).expand(64, 16))


def test_not_a_number_passes_through():
    data = batch()
    data[3, 2] = float("nan")
    assert_trains_alike(deep(), data)


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


def live_bytes() -> int:
    """Bytes of all live tensors' storages."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
    return sum({s._cdata: s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def test_fifty_steps_leave_nothing_behind():
    small = rewritten(deep(depth=2), batch(), budget=WITH_GRADIENTS)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        small(batch()).sum().backward()
        optimizer.step()

    step()
    before, objects = live_bytes(), len(gc.get_objects())
    for _ in range(50):
        step()
    assert live_bytes() == before
    assert len(gc.get_objects()) - objects < 500
    for _ in range(5):
        small(batch())  # without backward the tape goes with the output
    assert live_bytes() == before


def test_scalar_arguments_are_part_of_the_kind_of_call():
    model = Called(lambda m, x, power=1, flip=False: m.net(x.flip(0) if flip else x) ** power, net=deep())
    small = rewritten(model, batch(), power=2, budget="100%")
    for kwargs in ({"power": 2}, {"power": 3}, {"power": 2.0}, {"flip": True, "power": 3}, {"power": 3, "flip": True}):
        torch.manual_seed(0)
        wanted = model(batch(), **kwargs)
        torch.manual_seed(0)
        assert torch.equal(small(batch(), **kwargs), wanted)
    assert len(small.lowtide._ready) == 5


def test_modes_of_gradients_go_by_the_original_forward():
    model = deep()
    small = rewritten(model, batch())
    for module in (model, small):
        module.eval()
    assert torch.equal(small(batch()), model(batch()))
    backward_of(small(batch())), backward_of(model(batch()))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(small.parameters(), model.parameters(), strict=True))
    small.train(), model.train()
    with torch.no_grad():
        torch.manual_seed(0)
        one = small(batch())
        torch.manual_seed(0)
        assert torch.equal(one, model(batch())) and not one.requires_grad
    with torch.inference_mode():
        assert small(batch()).is_inference()


def test_what_requires_a_gradient_may_change_later():
    model = deep()
    small = rewritten(model, batch())
    for module in (model, small):
        calling(batch())(module)
        module[0].requires_grad_(False)
    assert differences(trained(model, calling(batch())), trained(small, calling(batch()))) == []
    for module in (model, small):
        module[0].requires_grad_(True)
    assert differences(trained(model, calling(batch())), trained(small, calling(batch()))) == []


def test_other_shapes_are_planned_for_as_they_come():
    model = deep()
    small = lowtide.rewrite(copy.deepcopy(model), "100%", costs="flops")
    assert small.plan is None
    for rows in (64, 8, 64, 1):
        assert (
            differences(trained(model, calling(batch(rows=rows)), 1), trained(small, calling(batch(rows=rows)), 1))
            == []
        )
    assert len(small.lowtide._ready) == 3


def test_the_smallest_budget_is_smaller_than_with_everything_kept():
    assert smallest_bytes(deep(), batch()) < 0.6 * rewritten(deep(), batch(), budget="100%").plan.baseline_peak_bytes


class Replacing(nn.Module):
    """Puts new tensors in the place of its buffers, as code that was not written for in-place updates does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = deep()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x) - self.mean
        self.calls = self.calls + 1
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return y


def test_buffers_that_forward_replaces_take_their_new_values():
    small = assert_trains_alike(Replacing(), batch())
    assert small.calls == 3


def test_inputs_that_forward_changes_are_changed():
    model = Called(lambda m, x, seen: m.net(x) + seen.add_(1).sum(), net=deep())
    seen, seen_small = torch.zeros(3), torch.zeros(3)
    small = rewritten(model, batch(), seen_small)
    assert torch.equal(seen_small, torch.zeros(3))
    for seed in range(2):
        torch.manual_seed(seed)
        wanted = model(batch(), seen)
        torch.manual_seed(seed)
        assert torch.equal(small(batch(), seen_small), wanted)
        assert torch.equal(seen, seen_small)


class Summed(nn.Module):
    """Adds two parameters, whose gradients are the same tensor in two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(12))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.one + self.other.view(3, 4) + x)


def test_gradients_of_two_parameters_never_share_memory():
    def step(module):
        for scale in (1, 2, 3):
            module(torch.ones(3, 4) * scale).square().sum().backward()

    small = assert_trains_alike(Summed(), torch.ones(3, 4), step=step, budget="1MiB")
    assert small.one.grad.untyped_storage().data_ptr() != small.other.grad.untyped_storage().data_ptr()


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
    wanted, x.grad = x.grad, None
    y = small(x)
    y.sum().backward()
    assert torch.equal(x.grad, wanted)
    before = y.detach().clone()
    x.grad.zero_()
    assert torch.equal(y, before)


def test_statistics_of_results_that_nobody_reads_are_updated():
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.first(x)
        m.norm(hidden.detach())
        m.dropout(hidden)
        return m.second(hidden)

    parts = {"first": deep(), "norm": nn.BatchNorm1d(3), "dropout": nn.RReLU(), "second": nn.Linear(3, 2)}
    small = assert_trains_alike(Called(forward, **parts), batch())
    assert small.norm.num_batches_tracked == 3 and bool(small.norm.running_mean.any())
