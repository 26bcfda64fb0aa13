"""Writes that eager makes in place are in place again: equal bits, and no higher a peak than eager's."""

import copy

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.change_in_place import ChangeInPlace
from lowtide.passes.rewrites.changes import CHANGES, SCATTERS, in_place_overload
from lowtide.passes.step_graph import StepGraph
from pass_checks import captured_step, compare_with_golden
from side_by_side import backward_of, differences, plans, rewritten, trained
from torch import nn
from torch.nn import functional

aten = torch.ops.aten
ROWS, WIDTH = 96, 32


class Called(nn.Module):
    """A linear layer and a function of its result, with other inputs next to it."""

    def __init__(self, function) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(WIDTH, WIDTH), function

    def forward(self, x, *others):
        return self.function(self.layer(x), *others)


class ChunkedLoss(torch.autograd.Function):
    """A head and its cross-entropy in chunks of rows; the gradients are made in forward, into buffers for them all."""

    @staticmethod
    def forward(ctx, x, weight, targets):
        for_x, for_weight, loss = torch.empty_like(x), torch.zeros_like(weight), x.new_zeros(())
        for start in range(0, len(x), 32):
            rows = slice(start, start + 32)
            logs = torch.log_softmax(x[rows] @ weight.T, -1)
            loss += -logs.gather(1, targets[rows, None]).sum()
            gradient = logs.exp()
            gradient.scatter_add_(1, targets[rows, None], -torch.ones(32, 1))
            for_x[rows] = gradient @ weight
            for_weight += gradient.T @ x[rows]
        ctx.save_for_backward(for_x, for_weight)
        return loss

    @staticmethod
    def backward(ctx, gradient):
        for_x, for_weight = ctx.saved_tensors
        return for_x.mul_(gradient), for_weight.mul_(gradient), None


class ChunkedLikelihoods(torch.autograd.Function):
    """Log-likelihoods in chunks of rows; backward makes each chunk's logits again."""

    @staticmethod
    def forward(ctx, x, weight, targets):
        likelihoods, normalizers = torch.empty(len(x)), torch.empty(len(x))
        for start in range(0, len(x), 32):
            rows = slice(start, start + 32)
            logits = x[rows] @ weight.T
            normalizers[rows] = torch.logsumexp(logits, -1)
            likelihoods[rows] = logits.gather(1, targets[rows, None])[:, 0] - normalizers[rows]
        ctx.save_for_backward(x, weight, targets, normalizers)
        return likelihoods

    @staticmethod
    def backward(ctx, gradient):
        x, weight, targets, normalizers = ctx.saved_tensors
        for_x, for_weight = torch.empty_like(x), torch.zeros_like(weight)
        for start in range(0, len(x), 32):
            rows = slice(start, start + 32)
            chances = torch.exp(x[rows] @ weight.T - normalizers[rows, None])
            chances.neg_().scatter_add_(1, targets[rows, None], torch.ones(32, 1))
            chances.mul_(gradient[rows, None])
            for_x[rows] = chances @ weight
            for_weight.addmm_(chances.T, x[rows])
        return for_x, for_weight, None


class Head(nn.Module):
    """Hidden states, and a loss in chunks."""

    def __init__(self, loss) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(WIDTH, WIDTH), loss
        self.weight = nn.Parameter(torch.randn(128, WIDTH) / 8)

    def forward(self, x, targets):
        return self.loss.apply(torch.tanh(self.layer(x)), self.weight, targets).sum()


def column(y):
    y[:, 0] = 0
    return y.square().sum()


def by_mask(y, mask):
    y[mask] = 2.0
    return y.square().sum()


def values_by_mask(y, mask, values):
    y[mask] = values
    return y.square().sum()


def positions(y):
    table = torch.zeros_like(y)
    table[:, 0::2], table[:, 1::2] = torch.sin(y[:, 0::2]), torch.cos(y[:, 1::2])
    return (y + table).square().sum()


def nested(y):
    part = y[16:80]
    part[:, :8].mul_(2)
    part[4] = 1.0
    part.view(4, 16, WIDTH)[1].transpose(0, 1)[3].add_(1)
    return y.square().sum() + part.sum()


def overlapping(y):
    y[0:60] = 1.0
    y[30:90] += 1
    y[:, 5:20].sigmoid_()
    return y.square().sum()


def of_an_input(y, z):
    z[:, 0] = 1.0
    return (y * z).square().sum()


def reading_before(y):
    doubled = y * 2
    read = doubled + 1
    doubled[0] = 5.0
    return (read * 3 + doubled).square().sum() + read.sum()


def reading_in_backward(y):
    kept = y * 2
    changed = kept.clone()
    changed[3:] = 0
    return (kept.exp() * changed).sum()


def looping(y):
    states = torch.zeros_like(y)
    for step in range(1, 8):
        states[step] = torch.tanh(states[step - 1].clone() * 0.5 + y[step])
    return states.square().sum()


def keys_of_a_cache(y):
    y = y.view(4, 24, WIDTH)
    keys = torch.zeros(4, 24, WIDTH)
    for step in range(4):
        keys[:, step * 6 : step * 6 + 6] = y[:, step * 6 : step * 6 + 6] * (step + 1)
    return torch.softmax(y @ keys.transpose(1, 2), -1).matmul(keys).square().sum()


def one_after_the_other(y):
    y = y * 1.0
    y += 1
    y.mul_(2.0)
    y = functional.hardtanh(y, inplace=True) + 0
    y.div_(3).clamp_(-0.2, 0.3).neg_()
    return y.sum()


def scattered(y, index):
    return (torch.zeros_like(y).scatter_add_(1, index, y.gather(1, index)) * y).sum()


def added_by_index(y, index):
    sums = torch.zeros(32, WIDTH)
    sums.index_add_(0, index, y).index_fill_(0, index[:2], 1.0)
    return sums.square().sum()


def within_itself(y):
    y = y * 1.5
    y[0:10], y[:, 0] = y[10:20], y[:, 1]
    return y.square().sum()


def diagonals(y):
    y = y[:WIDTH].clone()
    y.as_strided((WIDTH,), (WIDTH + 1,)).fill_(3.0)
    y.diagonal()[:5] = 1.0
    torch.diagonal(y).mul_(2)
    return y.square().sum()


def parts_of_lists(y):
    z = y.detach() + 0
    z.chunk(2, 1)[0].mul_(2)
    z.unbind(0)[4].add_(1)
    z.split(32)[1].zero_()
    return (z * y).square().sum()


def turned(y):
    z = y.t() * 1.0
    z[3] = 1.0
    z.t()[5].mul_(3)
    z.mul_(2)
    return z.square().sum()


def other_numbers(y):
    z = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)
    z[:, 3:9] = y[:, 3:9]
    z[4] = 2
    return (z.float() * y).sum()


def innermost(y):
    z = torch.empty(ROWS, WIDTH, 4)
    for place in range(4):
        z[..., place] = y * place
    return z.square().sum()


def returned(y):
    z = y * 2
    z[0] = 1
    part = z[2:]
    part.mul_(2)
    return {"loss": z.square().sum(), "z": z, "part": part}


def noise(y):
    factors = torch.empty_like(y).uniform_().mul_(0.1).add_(1)
    y = y * factors
    y[factors > 1.05] = 0
    return y.square().sum()


def summed_up(y):
    return (y[:WIDTH] * 2).cumsum_(0).tril_().exp_().sum()


MASK, TARGETS = torch.arange(ROWS) % 4 == 0, torch.randint(128, (ROWS,))
CASES = {
    "loss in chunks": (lambda: Head(ChunkedLoss), (TARGETS,)),
    "likelihoods in chunks": (lambda: Head(ChunkedLikelihoods), (TARGETS,)),
    "mask": (lambda: Called(by_mask), (torch.rand(ROWS) > 0.5,)),
    "values by mask": (lambda: Called(values_by_mask), (MASK, torch.randn(ROWS // 4, WIDTH))),
    "input": (lambda: Called(of_an_input), (torch.randn(ROWS, WIDTH),)),
    "scattered": (lambda: Called(scattered), (torch.randint(WIDTH, (ROWS, WIDTH)),)),
    "added by index": (lambda: Called(added_by_index), (torch.randint(32, (ROWS,)),)),
    **{
        function.__name__: (lambda function=function: Called(function), ())
        for function in (
            *(column, positions, nested, overlapping, reading_before, reading_in_backward, looping, keys_of_a_cache),
            *(one_after_the_other, within_itself, diagonals, parts_of_lists, turned, other_numbers, innermost),
            *(returned, noise, summed_up),
        )
    },
}


@pytest.mark.parametrize("name", CASES)
def test_bits_are_eagers_and_the_peak_is_no_higher(name):
    torch.manual_seed(0)
    made, others = CASES[name]
    model, arguments = made(), (torch.randn(ROWS, WIDTH), *others)

    def given():
        return tuple(argument.clone() for argument in arguments)

    def step(module):
        outputs = module(*given())
        backward_of(outputs)
        return outputs

    def peak_of(module):
        fresh = given()  # made before what is measured
        return lowtide.measure_peak(lambda: backward_of(module(*fresh)))

    eager, eager_bytes = trained(copy.deepcopy(model), step, 2), peak_of(copy.deepcopy(model))
    for budget in {plan.peak_bytes for plan in plans(model, *given(), count=2)}:
        small = rewritten(model, *given(), budget=budget)
        peak_bytes = peak_of(small)
        assert peak_bytes + small.plan.problem.resident_bytes == small.plan.peak_bytes
        assert peak_bytes <= eager_bytes
        assert differences(eager, trained(small, step, 2)) == []


def step_of(function) -> StepGraph:
    """The step graph of a function of a linear layer's result, before any pass over step graphs."""
    return captured_step(Called(function), torch.randn(ROWS, WIDTH))


def part_written(y):
    """A buffer of which a part is written."""
    buffer = torch.zeros(ROWS, WIDTH)
    buffer[8:16] = y[8:16] * 2
    return buffer.sum()


def test_before_and_after(golden):
    compare_with_golden(golden, ChangeInPlace(), step_of(part_written))


def test_calls_that_replace_a_part_become_one_kernel():
    step = step_of(part_written)
    changed = [kernel for kernel in ChangeInPlace()(step).compute_kernels if kernel.change is not None]
    forward = next(kernel for kernel in changed if kernel.phase == "forward")
    assert [str(call.target) for call in forward.calls] == ["aten.copy.default", "aten.slice_scatter.default"]
    assert len(ChangeInPlace()(step).kernels) < len(step.kernels)


def test_each_change_has_a_variant_in_place():
    for target in CHANGES - set(SCATTERS):
        variant = in_place_overload(target)
        assert variant is not None, target
        assert str(variant) == str(target).replace(".", "_.", 2).replace("aten_.", "aten.", 1)


@pytest.mark.parametrize("function", [lambda y: y * 2 + 1, lambda y: y.exp().masked_fill(y > 0, 1.0), functional.relu])
def test_what_eager_makes_new_is_left_as_it_is(function):
    step = step_of(lambda y: function(y).sum())
    assert ChangeInPlace()(step).kernels == step.kernels


def test_what_is_read_later_is_copied_and_not_overwritten():
    """The other part of what is written to is read by the write, which eager would not do in place."""
    torch.manual_seed(0)
    model, x = Called(lambda y: (torch.slice_scatter(y, y[:-1], 0, 1) * y).sum()), torch.randn(ROWS, WIDTH)
    small = rewritten(model, x, budget="100%")
    assert "aten.clone.default" in small.code
    model(x).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    small(x).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(small.parameters(), expected, strict=True))
