"""Situations of training loops: accumulation, several forwards, adapters, frozen and tied parameters, modes."""

import copy
import gc
from typing import Any

import lowtide
import pytest
import torch
from side_by_side import assert_trains_alike, backward_of, calling, differences, rewritten, smallest_bytes, trained
from small_networks import Called, batch, deep
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = pytest.mark.usefixtures("one_thread")

# Less than keeping everything takes, and room for gradients that are there before the step.
WITH_GRADIENTS = "95%"


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


def test_two_live_forwards_each_find_their_own_values():
    def step(module):
        first, second = module(batch()), module(batch() * 2)
        second.sum().backward()
        first.square().sum().backward()
        return first, second

    assert_trains_alike(deep(), batch(), step=step)


def test_two_rewritten_models_work_side_by_side():
    pair = nn.ModuleList([deep(), deep(depth=2)])
    shadow = copy.deepcopy(pair)
    for index in range(2):
        shadow[index] = rewritten(shadow[index], batch()[:, :16])

    def step(module):
        first, second = module[0](batch()), module[1](batch())
        (first * second).sum().backward()
        return first, second

    assert differences(trained(pair, step), trained(shadow, step)) == []


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


def test_inputs_may_be_strided_and_passed_twice():
    model = Called(lambda m, x, y: m.net(x + y.roll(1, 0)), net=deep())
    wide = torch.randn(16, 64).t()
    assert_trains_alike(model, wide, wide)
    assert_trains_alike(model, torch.randn(64, 32)[:, ::2], torch.randn(1, 16).expand(64, 16))


def test_not_a_number_passes_through():
    data = batch()
    data[3, 2] = float("nan")
    assert_trains_alike(deep(), data)


def live_bytes() -> int:
    """The bytes of all live tensors' storages."""
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
        expected = model(batch(), **kwargs)
        torch.manual_seed(0)
        assert torch.equal(small(batch(), **kwargs), expected)
    assert len(small.lowtide.steps) == 5


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
        first = small(batch())
        torch.manual_seed(0)
        assert torch.equal(first, model(batch())) and not first.requires_grad
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
    assert len(small.lowtide.steps) == 3


def test_the_smallest_budget_is_smaller_than_with_everything_kept():
    assert smallest_bytes(deep(), batch()) < 0.6 * rewritten(deep(), batch(), budget="100%").plan.baseline_peak_bytes


def test_the_default_dtype_is_part_of_the_kind_of_call():
    model = Called(lambda m, x: m.net(x) * torch.ones(3) + torch.rand(3), net=deep())
    small = rewritten(model, batch(), budget="1MiB")
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            torch.manual_seed(0)
            expected = model(batch().float())
            torch.manual_seed(0)
            result = small(batch().float())
            assert result.dtype == expected.dtype and torch.equal(result, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_choice_of_attention_kernels_is_part_of_the_kind_of_call():
    def forward(m: Any, x: Tensor) -> Tensor:
        heads = m.net(x).view(1, 2, 32, 16)
        return functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)

    model = Called(forward, net=deep()[:-1])
    small = rewritten(model, batch(), budget="1MiB")
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend):
            torch.manual_seed(0)
            expected = model(batch())
            torch.manual_seed(0)
            assert torch.equal(small(batch()), expected)


def test_a_compiled_rewritten_module_runs_its_own_forward():
    model = deep()
    small = rewritten(model, batch())
    compiled = torch.compile(small, backend="eager")
    torch.manual_seed(0)
    expected = model(batch())
    torch.manual_seed(0)
    assert torch.equal(compiled(batch()), expected)


def test_a_part_in_evaluation_mode_stays_so():
    model = nn.Sequential(deep()[:-1], nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    small = rewritten(model, batch(), budget="1MiB")
    for training in (False, True):
        for module in (model, small):
            module[1].train(training), module[2].train(training)
        assert differences(trained(model, calling(batch())), trained(small, calling(batch()))) == []
