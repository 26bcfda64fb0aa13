"""Operations that ATen computes otherwise while they are recorded have eager's bits, whatever the numbers."""

import copy
from contextlib import nullcontext
from itertools import product

import lowtide
import pytest
import torch
import torch.nn.functional as F
from lowtide.rewriter.measure.costs import MeasureWarning
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
DRAWS = 40


class Calling(nn.Module):
    """Applies a function to a parameter's product with the input, which is laid out in rows or columns."""

    def __init__(self, function, turned: bool) -> None:
        super().__init__()
        self.function, self.turned = function, turned
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x, *others):
        x = x * self.scale
        return self.function(x.t().contiguous().t() if self.turned else x, *others)


# Their formulas ask whether anything is zero, or whether the result is NaN.
REDUCTIONS = {
    "prod": lambda x: x.prod(),
    "prod over one dimension": lambda x: x.prod(1),
    "prod over the last one, kept": lambda x: x.prod(-1, keepdim=True),
    "prod in double precision": lambda x: x.prod(0, dtype=torch.float64),
    "cumprod": lambda x: x.cumprod(-1),
    "max": lambda x: x.max() * 3,
    "min": lambda x: -x.min(),
    "median": lambda x: x.median(),
    "nanmedian": lambda x: x.nanmedian(),
}


def drawn(seed: int) -> torch.Tensor:
    """Numbers, in every third draw without zeros, with some, and with many equal ones."""
    torch.manual_seed(seed)
    x = torch.randn(12, 8)
    return [x, x.masked_fill(torch.rand(12, 8) < 0.05, 0), x.round()][seed % 3]


def bits(module: nn.Module, x: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """The result and all gradients of one call."""
    x = x.clone().requires_grad_()
    able = [x, *module.parameters(), *(tensor for tensor in others if tensor.requires_grad)]
    result = module(x, *others)
    incoming = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=result.dtype)
    return [result, *torch.autograd.grad(result, able, incoming)]


def assert_same_bits(module: nn.Module, calls) -> None:
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    for call in calls:
        for actual, expected in zip(bits(small, *call), bits(module, *call), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("function", REDUCTIONS.values(), ids=REDUCTIONS)
def test_reductions_whose_backward_looks_at_data(function, turned):
    assert_same_bits(Calling(function, turned), [(drawn(seed),) for seed in range(DRAWS)])


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_a_value_that_fills(turned):
    module = Calling(lambda x, mask, value: (x.masked_fill(mask, value) * x).sum(1), turned)
    calls = [(drawn(seed), torch.rand(12, 8) < 0.4, torch.randn((), requires_grad=True)) for seed in range(DRAWS)]
    assert_same_bits(module, calls)


# On plain tensors the last step of their formulas works in place, so that gradients keep another layout.
BETWEEN = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "clamp": lambda x, other: torch.clamp(x, other - 1, other),
    "clamp, one bound": lambda x, other: torch.clamp(x, other[0, 0], torch.tensor(torch.inf)),
    "clamp from below": lambda x, other: torch.clamp(x, min=other),
    "clamp from above": lambda x, other: torch.clamp(x, max=other),
    "clamp_min": torch.clamp_min,
    "clamp_max": lambda x, other: torch.clamp_max(x, other[0]),
    "masked_select": lambda x, other: torch.masked_select(x, other.detach() < 3).sum() * other,
    "householder_product": lambda x, other: torch.linalg.householder_product(x[:8], other[0]),
    "ormqr": lambda x, other: torch.ormqr(x[:8], other[0], other[:8].mT, transpose=True),
    "ormqr from the right": lambda x, other: torch.ormqr(x[:8], other[0], other[:8], left=False).contiguous(),
}


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("function", BETWEEN.values(), ids=BETWEEN)
def test_gradients_lie_in_memory_as_eager_s_do(function, turned):
    module = Calling(function, turned)
    calls = [(drawn(seed), drawn(seed + 1).requires_grad_()) for seed in range(DRAWS // 4)]
    # The number of elements that it selects depends on data, which measuring makes up.
    is_estimated = function is BETWEEN["masked_select"]
    with pytest.warns(MeasureWarning, match="cannot be run alone") if is_estimated else nullcontext():
        assert_same_bits(module, calls)


SHAPES = {"rows": (64, 8), "pictures": (4, 8, 5, 3), "sequences": (4, 8, 9), "a row": (8,)}


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_smoothed_losses_with_weights_and_targets_that_do_not_count(shape, ignored):
    weight = torch.linspace(0.5, 1.7, 8)
    loss = nn.CrossEntropyLoss(weight, ignore_index=ignored, label_smoothing=0.1)
    calls = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        x = torch.randn(shape)
        target = torch.randint(8, shape[:1] + shape[2:] if len(shape) > 1 else ())
        calls.append((x, target.masked_fill(torch.rand(target.shape) < 0.3, ignored) if len(shape) > 1 else target))

    class Losing(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss, self.mix = loss, nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))

        def forward(self, x, target):
            mixed = x @ self.mix if x.dim() < 3 else torch.einsum("bc...,cd->bd...", x, self.mix)
            return self.loss(mixed, target)

    assert_same_bits(Losing(), calls)


@pytest.mark.parametrize(("reduction", "smoothing"), [*product(["mean", "sum", "none"], [0.0, 0.2])])
def test_other_losses_are_what_they_were(reduction, smoothing):
    def function(x, target):
        return F.cross_entropy(x, target, torch.linspace(0.5, 1.7, 8), reduction=reduction, label_smoothing=smoothing)

    calls = [(drawn(seed), torch.randint(8, (12,))) for seed in range(3)]
    assert_same_bits(Calling(function, False), calls)


def test_a_smoothed_loss_under_autocast_is_in_single_precision():
    def function(x, target):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(x.bfloat16(), target, torch.linspace(0.5, 1.7, 8).bfloat16(), label_smoothing=0.1)

    calls = [(drawn(seed), torch.randint(8, (12,))) for seed in range(6)]
    assert_same_bits(Calling(function, False), calls)


INDICES = torch.tensor([0, 2])
IN_PLACE = {
    "masked_fill_": lambda x: x.masked_fill_(x > 1, 0.0),
    "cumsum_": lambda x: x.cumsum_(1),
    "tril_": lambda x: x.tril_(),
    "index_add_": lambda x: x.index_add_(1, INDICES, torch.ones(12, 2)),
    "index_copy_": lambda x: x.index_copy_(1, INDICES, torch.ones(12, 2)),
    "scatter_": lambda x: x.scatter_(1, torch.zeros(12, 1, dtype=torch.long), 1.0),
    "of what is read later": lambda x: (x * 2).masked_fill_(x > 1, 0.0) + x,
    "of a view": lambda x: (x[:, 2:].masked_fill_(x[:, 2:] > 1, 0.0), x)[1],
}


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
def test_what_is_changed_in_place_keeps_its_layout(function, turned):
    module = Calling(lambda x: function(x * 2).square().mean(), turned)
    assert_same_bits(module, [(drawn(seed),) for seed in range(DRAWS // 4)])


NORMS = {
    "over columns": lambda x: x.norm(dim=1),
    "over rows": lambda x: torch.linalg.vector_norm(x, dim=0, keepdim=True),
    "of the third order": lambda x: x.norm(3, dim=1),
    "of all": lambda x: x.norm() * 2,
    "of a difference": lambda x: F.pairwise_distance(x, x.roll(1, 0)),
    "of a product": lambda x: F.normalize(x, dim=1).square().sum(0),
}


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("function", NORMS.values(), ids=NORMS)
def test_gradients_of_norms_lie_in_memory_as_eager_s_do(function, turned):
    assert_same_bits(Calling(function, turned), [(drawn(seed),) for seed in range(DRAWS // 4)])


COMPLEX = {
    "square": lambda x, y: (x * x).abs().mean(),
    "product": lambda x, y: (x * y * 1j).abs().sum(0),
    "quotient": lambda x, y: (x / (y * x + 2)).abs().sum(0),
}


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("function", COMPLEX.values(), ids=COMPLEX)
def test_products_of_complex_numbers_that_lie_differently(function, turned):
    def of_complex(x, y):
        return function(torch.complex(x, x.roll(1, 0)), torch.complex(y, -y))

    assert_same_bits(Calling(of_complex, turned), [(drawn(seed), drawn(seed + 1)) for seed in range(DRAWS // 4)])
