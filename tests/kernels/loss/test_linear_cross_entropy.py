"""A linear layer and its cross-entropy in chunks give the loss and gradients of torch, in the memory of one chunk."""

from __future__ import annotations

import pytest
import torch
from lowtide.kernels.loss import cross_entropy_rows
from lowtide.kernels.loss import linear_cross_entropy as kernel
from lowtide.kernels.loss.linear_cross_entropy import (
    MEAN,
    SUM,
    chunk_rows,
    linear_cross_entropy,
    linear_cross_entropy_plainly,
)
from lowtide.rewriter.measure.measure_peak import measure_peak

IGNORED = -100
CLOSE = 1e-6  # ‖found - expected‖ / ‖expected‖ in float32


def problem(rows=150, features=24, classes=300, *, bias=True, dtype=torch.float32, seed=0):
    """hidden, weight, bias or None, target; every seventh row is ignored."""
    torch.manual_seed(seed)
    hidden, weight = torch.randn(rows, features), torch.randn(classes, features) / features**0.5 * 2
    target = torch.randint(0, classes, (rows,))
    target[3::7] = IGNORED
    return hidden.to(dtype), weight.to(dtype), torch.randn(classes).to(dtype) if bias else None, target


def compute(hidden, weight, bias, target, classes=None, reduction=MEAN, smoothing=0.0, upcast=None, gradients=None):
    """The operation's results with every gradient there is."""
    requested = (3 if bias is None else 7) if gradients is None else gradients
    return linear_cross_entropy(hidden, weight, bias, target, classes, reduction, IGNORED, smoothing, upcast, requested)


def plain(hidden, weight, bias, target, classes=None, reduction=MEAN, smoothing=0.0, upcast=None):
    """Return loss and gradients from torch and its autograd."""
    leaves = [None if leaf is None else leaf.detach().clone().requires_grad_() for leaf in (hidden, weight, bias)]
    loss = linear_cross_entropy_plainly(*leaves, target, classes, reduction, IGNORED, smoothing, upcast)
    return loss.detach(), *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


def distance(actual, expected):
    """‖found - expected‖ / ‖expected‖."""
    difference, size = (actual.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size) if size > 0 else float(difference)


def assert_close(actual, expected, limit=CLOSE):
    for name, left, right in zip(("loss", "hidden", "weight", "bias"), actual, expected, strict=False):
        assert left.shape == right.shape and left.dtype == right.dtype, name
        assert distance(left, right) <= limit, name


@pytest.fixture(params=["native", "plain"])
def either_way(request, monkeypatch):
    """Runs a test with the C where there is a compiler, and with plain torch."""
    if request.param == "plain":
        monkeypatch.setattr(cross_entropy_rows, "native", lambda *_: None)
    return request.param


@pytest.fixture
def small_chunks(monkeypatch):
    """Has 150 rows go in four chunks, of 38 and 36 rows."""
    monkeypatch.setattr(kernel, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(kernel, "_LEAST_ROWS", 40)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", [MEAN, SUM])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_are_those_of_torch(bias, reduction, smoothing, weighted, either_way, small_chunks):
    operands = problem(bias=bias)
    classes = torch.rand(300) + 0.1 if weighted else None
    actual = compute(*operands, classes, reduction, smoothing)
    assert_close(actual, plain(*operands, classes, reduction, smoothing))


def in_double(operands):
    return [each.double() if each is not None and each.is_floating_point() else each for each in operands]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("classes", "smoothing"), [(300, 1.0), (5003, 0.1)])
def test_much_smoothing_or_many_classes_give_the_gradients_of_torch_in_double_precision(
    weighted, classes, smoothing, either_way
):
    """Plain torch in float32 is itself more than 1e-6 away from them."""
    operands = problem(rows=70, classes=classes)
    weights = torch.rand(classes) + 0.1 if weighted else None
    expected = plain(*in_double(operands), None if weights is None else weights.double(), MEAN, smoothing)
    for left, right in zip(compute(*operands, weights, MEAN, smoothing), expected, strict=True):
        assert distance(left, right) <= CLOSE


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("reduction", [MEAN, SUM])
def test_no_row_and_a_single_row_are_computed_as_torch_does(rows, reduction, either_way):
    operands = problem(rows)
    actual, expected = compute(*operands, None, reduction), plain(*operands, None, reduction)
    assert torch.equal(actual[0].isnan(), expected[0].isnan())
    assert_close([actual[0].nan_to_num(), *actual[1:]], [expected[0].nan_to_num(), *expected[1:]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_if_every_row_is_ignored_the_mean_is_nan_and_the_gradients_are_zero(smoothing, either_way):
    hidden, weight, bias, target = problem()
    target.fill_(IGNORED)
    actual, expected = (each(hidden, weight, bias, target, None, MEAN, smoothing) for each in (compute, plain))
    assert actual[0].isnan() and expected[0].isnan()
    for left, right in zip(actual[1:], expected[1:], strict=True):
        assert torch.equal(left, right) and not left.any()


def test_an_ignored_index_that_is_a_class_is_ignored(either_way):
    hidden, weight, bias, target = problem()
    target = target.clamp(min=0)
    target[::3] = 5
    leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight, bias)]
    loss = linear_cross_entropy_plainly(*leaves, target, ignore_index=5)
    actual = linear_cross_entropy(hidden, weight, bias, target, None, MEAN, 5, 0.0, None, 7)
    assert_close(actual, (loss.detach(), *torch.autograd.grad(loss, leaves)))


def test_logits_of_minus_infinity_and_nan_give_what_torch_gives(either_way):
    hidden, weight, bias, target = problem()
    target = target.clamp(min=10)
    bias[:10] = -torch.inf
    assert_close(compute(hidden, weight, bias, target), plain(hidden, weight, bias, target))
    hidden[4] = torch.nan
    actual, expected = compute(hidden, weight, bias, target), plain(hidden, weight, bias, target)
    for left, right in zip(actual, expected, strict=True):
        assert torch.equal(left.isnan(), right.isnan())


def test_large_logits_do_not_overflow(either_way):
    hidden, weight, bias, target = problem()
    operands = hidden * 40, weight * 40, bias, target
    assert_close(compute(*operands), plain(*operands))


def test_a_transposed_weight_gets_a_gradient_that_is_laid_out_like_it(small_chunks):
    hidden, weight, bias, target = problem()
    transposed = weight.t().contiguous().t()
    actual = compute(hidden, transposed, bias, target)
    assert actual[2].stride() == transposed.stride()
    assert_close(actual, plain(hidden, weight, bias, target))


def test_hidden_states_and_targets_of_any_strides_are_accepted(small_chunks):
    hidden, weight, bias, target = problem()
    wide = torch.randn(150, 2, 24)
    wide[:, 1] = hidden
    targets = torch.stack([target, target], 1)[:, 1]
    expected = plain(hidden, weight, bias, target)
    for states in (wide[:, 1], hidden.t().contiguous().t(), wide.permute(2, 1, 0).contiguous().permute(2, 1, 0)[:, 1]):
        assert_close(compute(states, weight, bias, targets), expected)


@pytest.mark.parametrize("upcast", [torch.float32, None])
def test_logits_in_16_bits_are_computed_as_torch_does_within_their_rounding(upcast, either_way, small_chunks):
    operands = problem(dtype=torch.bfloat16)
    actual, expected = compute(*operands, upcast=upcast), plain(*operands, upcast=upcast)
    truth = plain(*in_double(operands))
    for left, right, exact in zip(actual, expected, truth, strict=True):
        assert left.dtype == right.dtype
        assert distance(left, exact) <= 2 * max(distance(right, exact), 2.0**-9)
    if upcast is not None:
        assert distance(actual[0], expected[0]) <= CLOSE


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_the_loss_is_right_in_double_precision(smoothing, weighted, monkeypatch):
    monkeypatch.setattr(kernel, "_LEAST_ROWS", 3)
    monkeypatch.setattr(kernel, "_CHUNK_BYTES", 1)
    hidden, weight, bias, target = problem(8, 4, 6, dtype=torch.float64)
    classes = torch.rand(6, dtype=torch.float64) + 0.1 if weighted else None
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias)]
    for reduction in (MEAN, SUM):
        assert torch.autograd.gradcheck(lambda *a: compute(*a, target, classes, reduction, smoothing)[0], leaves)  # noqa: B023


def test_an_incoming_gradient_multiplies_the_saved_ones():
    hidden, weight, bias, target = problem()
    leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight, bias)]
    loss, *saved = compute(*leaves, target)
    assert not any(each.requires_grad for each in saved)
    (loss * 3).backward()
    for leaf, each in zip(leaves, saved, strict=True):
        assert torch.equal(leaf.grad, each * 3)


def test_a_second_derivative_is_refused():
    hidden, weight, _, target = problem(bias=False)
    loss = compute(hidden.requires_grad_(), weight, None, target)[0]
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_a_gradient_that_is_not_requested_has_no_elements():
    operands = problem()
    everything = compute(*operands)
    for gradients in range(8):
        actual = compute(*operands, gradients=gradients)
        assert torch.equal(actual[0], everything[0])
        for bit, left, whole in zip((1, 2, 4), actual[1:], everything[1:], strict=True):
            assert torch.equal(left, whole) if gradients & bit else left.shape == (0,)


@pytest.mark.parametrize(("bias", "transposed", "dtype"), [(True, False, torch.float32), (False, True, torch.bfloat16)])
def test_the_registration_passes_the_checks_of_torch(bias, transposed, dtype):
    hidden, weight, vector, target = problem(20, 6, 10, bias=bias, dtype=dtype)
    if transposed:
        weight = weight.t().contiguous().t()
    leaves = [None if leaf is None else leaf.requires_grad_() for leaf in (hidden, weight, vector)]
    upcast = None if dtype == torch.float32 else torch.float32
    arguments = (*leaves, target, torch.rand(10), MEAN, IGNORED, 0.1, upcast, 7 if bias else 3)
    torch.library.opcheck(linear_cross_entropy, arguments)


def bytes_of_a_product(dtype, rows, features, classes):
    """Return the working bytes of torch's own products of a chunk: none in float32, some for packing in bfloat16."""
    gradient, hidden = torch.ones(rows, classes, dtype=dtype), torch.ones(rows, features, dtype=dtype)
    weight = torch.ones(classes, features, dtype=dtype)
    return max(
        measure_peak(lambda: torch.mm(hidden, weight.t(), out=gradient)),
        measure_peak(lambda: torch.mm(gradient, weight, out=hidden)),
        measure_peak(lambda: weight.addmm_(gradient.t(), hidden)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [400, 1200])
def test_the_peak_of_memory_is_one_chunk_above_the_results(dtype, rows, either_way):
    features, classes, element = 32, 3000, 4 if dtype == torch.float32 else 2 + 4
    operands, weights = problem(rows, features, classes, dtype=dtype), torch.rand(classes)
    step = chunk_rows(rows, classes * element)
    chunk = step * classes * element
    assert step < rows and chunk <= kernel._CHUNK_BYTES

    def function():
        return compute(*operands, weights, MEAN, 0.1, torch.float32)

    results = sum(each.nbytes for each in function())
    vectors = 3 * classes * 4 + 8 * rows * 4
    product = bytes_of_a_product(dtype, step, features, classes)
    assert product == 0 or dtype != torch.float32
    assert measure_peak(function) <= results + chunk + vectors + product


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_rows_may_count_more_or_less_in_the_sum(kind, weighted, either_way, small_chunks):
    hidden, weight, bias, target = problem()
    classes, rows = torch.rand(300) + 0.1 if weighted else None, torch.randn(150).round().to(kind)
    leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight, bias)]
    arguments = (target, classes, SUM, IGNORED, 0.0, None)
    expected = linear_cross_entropy_plainly(*leaves, *arguments, row_weight=rows)
    expected = expected.detach(), *torch.autograd.grad(expected, leaves)
    assert_close(linear_cross_entropy(hidden, weight, bias, *arguments, 7, rows), expected)
    if weighted and kind is torch.bool and either_way == "native":
        torch.library.opcheck(linear_cross_entropy, (*leaves, *arguments, 7, rows))


def test_chunks_are_alike_and_about_4_mib_and_never_too_few_rows():
    assert chunk_rows(0, 4) == chunk_rows(1, 1 << 30) == 1
    assert chunk_rows(2048, 4 * 8000) == 128
    assert chunk_rows(132, 4 * 8000) == 66
    assert chunk_rows(1000, 1 << 30) == 63


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": 0}, "reduction must be 1"),
        ({"label_smoothing": 1.5}, "label_smoothing must be between"),
        ({"gradients": 8}, "gradients must be a sum"),
        ({"bias": None}, "gradients must be a sum"),
        ({"bias": torch.zeros(9)}, "bias must have an element for each class"),
        ({"class_weight": torch.ones(9)}, "class_weight must have an element for each class"),
        ({"class_weight": torch.ones(10, dtype=torch.float64)}, "class_weight must have the logits' dtype"),
        ({"target": torch.zeros(20, dtype=torch.int32)}, "target must hold int64"),
        ({"target": torch.zeros(19, dtype=torch.int64)}, "sizes do not fit"),
        ({"hidden": torch.zeros(2, 10, 6)}, "hidden must be"),
        ({"weight": torch.zeros(10, 6, dtype=torch.float64)}, "must have hidden's dtype"),
        ({"logits_dtype": torch.int32}, "must be floating-point"),
        ({"row_weight": torch.ones(19), "reduction": SUM}, "row_weight must have an element for each row"),
        ({"row_weight": torch.ones(20)}, "row_weight goes with reduction 2"),
        ({"row_weight": torch.ones(20), "reduction": SUM, "label_smoothing": 0.1}, "no smoothing; they are 2 and 0.1"),
    ],
)
def test_what_the_operation_does_not_do_is_refused_with_the_reason(change, message):
    hidden, weight, bias, target = problem(20, 6, 10)
    arguments = {"hidden": hidden, "weight": weight, "bias": bias, "target": target, "class_weight": None}
    arguments |= {"reduction": MEAN, "ignore_index": IGNORED, "label_smoothing": 0.0, "logits_dtype": None}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**arguments, "gradients": 7, **change})


def test_a_target_that_is_no_class_is_refused():
    hidden, weight, bias, target = problem(20, 6, 10)
    for wrong in (10, -1):
        target[0] = wrong
        with pytest.raises(IndexError, match=f"target {wrong} is out of bounds for 10 classes"):
            compute(hidden, weight, bias, target)


def test_a_leaf_that_needs_a_gradient_which_is_not_asked_for_is_refused():
    hidden, weight, bias, target = problem()
    with pytest.raises(ValueError, match="weight requires a gradient"):
        compute(hidden, weight.requires_grad_(), bias, target, gradients=1)
    with pytest.raises(ValueError, match="row_weight requires a gradient"):
        arguments = (target, None, SUM, IGNORED, 0.0, None, 7, torch.ones(len(target)).requires_grad_())
        linear_cross_entropy(hidden, weight, bias, *arguments)
