"""The last linear layer with its cross-entropy by Triton: as near to the truth as torch's."""

from importlib import import_module

import pytest
import torch
from lowtide.kernels.loss import linear_cross_entropy
from lowtide.kernels.loss.linear_cross_entropy import MEAN, SUM, linear_cross_entropy_plainly
from triton_device import DEVICE, distance, randn

IGNORED = -100


@pytest.fixture
def small_blocks(monkeypatch):
    """Has 300 classes go in two blocks, and 8 rows in two chunks."""
    monkeypatch.setattr(import_module("lowtide.kernels.loss.cross_entropy_rows_triton"), "_MOST_BLOCK", 256)
    monkeypatch.setattr(linear_cross_entropy, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(linear_cross_entropy, "_LEAST_ROWS", 4)


def problem(dtype: torch.dtype = torch.float32, rows: int = 8, features: int = 8, classes: int = 300):
    """hidden, weight, bias, target; every seventh row is ignored."""
    target = torch.randint(0, classes, (rows,))
    target[3::7] = IGNORED
    operands = (randn(rows, features), randn(classes, features) / features**0.5 * 2, randn(classes))
    return *(operand.to(dtype) for operand in operands), target.to(DEVICE)


def computed(operands, weights, reduction, smoothing, upcast=None, ignored=IGNORED):
    arguments = (weights, reduction, ignored, smoothing, upcast, 7)
    return torch.ops.lowtide.linear_cross_entropy(*operands, *arguments)


def exact(operands, weights, reduction, smoothing, ignored=IGNORED):
    """Loss and gradients in float64, from torch's autograd."""
    leaves = [operand.double().detach().requires_grad_() for operand in operands[:3]]
    weights = None if weights is None else weights.double()
    loss = linear_cross_entropy_plainly(*leaves, operands[3], weights, reduction, ignored, smoothing)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("dtype", "limit", "smoothing", "weighted"),
    [
        *((torch.float32, 1e-6, smoothing, weighted) for smoothing in (0.0, 0.1, 1.0) for weighted in (False, True)),
        (torch.float64, 1e-14, 0.0, False),
        (torch.float64, 1e-14, 0.1, True),
    ],
    ids=str,
)
def test_loss_and_gradients_of_cross_entropy_are_those_of_torch_in_double_precision(dtype, limit, smoothing, weighted):
    operands = problem(dtype)
    weights = torch.rand(300).add(0.1).to(DEVICE, dtype) if weighted else None
    reduction = SUM if smoothing == 0.1 else MEAN
    actual, truth = (each(operands, weights, reduction, smoothing) for each in (computed, exact))
    for left, right in zip(actual, truth, strict=True):
        assert left.dtype == dtype and distance(left, right) <= limit


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("upcast", [torch.float32, None])
def test_cross_entropy_in_16_bits_is_as_far_from_the_truth_as_that_of_torch(upcast):
    operands = problem(torch.bfloat16)
    leaves = [operand.clone().requires_grad_() for operand in operands[:3]]
    loss = linear_cross_entropy_plainly(*leaves, operands[3], logits_dtype=upcast)
    expected = loss.detach(), *torch.autograd.grad(loss, leaves)
    actual, truth = computed(operands, None, MEAN, 0.0, upcast), exact(operands, None, MEAN, 0.0)
    for left, right, true_value in zip(actual, expected, truth, strict=True):
        assert left.dtype == right.dtype
        assert distance(left, true_value) <= 2 * max(distance(right, true_value), 2.0**-9)
    if upcast is not None:
        assert distance(actual[0], expected[0]) <= 1e-6


@pytest.mark.usefixtures("small_blocks")
def test_ignored_rows_large_logits_infinities_and_nan_in_cross_entropy_are_as_in_torch():
    hidden, weight, bias, target = problem()
    target = torch.where(target == IGNORED, target, target.clamp(min=260))
    classes = target.clamp(min=260)
    classes[::3] = 270
    without = bias.clone()
    without[:256] = -torch.inf  # the first block holds nothing else
    cases = (
        (hidden, weight, bias, classes, 270),
        (hidden * 40, weight * 40, bias, target, IGNORED),
        (hidden, weight, without, target, IGNORED),
    )
    for *operands, ignored in cases:
        actual, truth = computed(operands, None, MEAN, 0.0, None, ignored), exact(operands, None, MEAN, 0.0, ignored)
        assert all(distance(left, right) <= 1e-6 for left, right in zip(actual, truth, strict=True))
    hidden[4] = torch.nan
    spoiled_operands = hidden, weight, bias, target
    actual, truth = computed(spoiled_operands, None, MEAN, 0.0), exact(spoiled_operands, None, MEAN, 0.0)
    assert all(torch.equal(left.isnan(), right.isnan()) for left, right in zip(actual, truth, strict=True))


@pytest.mark.usefixtures("small_blocks")
def test_a_target_that_is_no_class_is_not_followed_out_of_its_row():
    version = import_module("lowtide.kernels.loss.cross_entropy_rows_triton")
    memory = torch.full((5, 300), 7.0, device=DEVICE)
    unit, losses = torch.ones((), device=DEVICE), torch.zeros(3, device=DEVICE)
    targets = torch.tensor([-1, 900, -(2**40)], device=DEVICE)
    version.softmax_rows(memory[1:4], targets, unit.expand(3).contiguous(), None, 300 * unit, unit, 0.0, -100, losses)
    assert (memory[0] == 7).all() and (memory[4] == 7).all()
    torch.testing.assert_close(memory[1:4], torch.full_like(memory[1:4], 1 / 300))


def test_probabilities_are_as_exact_as_single_precision_allows_down_to_the_smallest():
    version = import_module("lowtide.kernels.loss.cross_entropy_rows_triton")
    below = torch.cat([torch.zeros(2), -torch.linspace(0, 80, 4093)]).to(DEVICE)
    logits, unit, loss = below[None].clone(), torch.ones((), device=DEVICE), torch.zeros(1, device=DEVICE)
    target = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    version.softmax_rows(logits, target, unit[None], None, unit, unit, 0.0, -100, loss)
    probabilities = below.double().softmax(0)
    assert ((logits[0, 1:] - probabilities[1:]) / probabilities[1:]).abs().max() <= 2.0**-22
    assert distance(loss, -probabilities[:1].log()) <= 2.0**-23
