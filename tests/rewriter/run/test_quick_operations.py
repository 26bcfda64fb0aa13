"""Quicker ways to call an operation call that operation, with its result; views that are left out are equal."""

import re

import pytest
import torch
from lowtide.rewriter.capture.torch_internals import QUICK_OPERATIONS, OperationMode
from side_by_side import assert_trains_alike, rewritten
from small_networks import Called
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

X, Y, ROW = torch.randn(4, 4), torch.randn(4, 4), torch.randn(4)
BATCH, IDS, HEADS = torch.randn(2, 4, 4), torch.tensor([0, 2]), torch.randn(1, 2, 4, 8)
ARGUMENTS = {
    "_log_softmax.default": [(X, 1, False)],
    "_scaled_dot_product_flash_attention_for_cpu.default": [(HEADS, HEADS, HEADS, 0.0, True)],
    "_softmax.default": [(X, -1, False)],
    "add.Tensor": [(X, Y), (X, 1e-6), (IDS, 1)],
    "add_.Tensor": [(X, Y), (X, 2)],
    "addmm.default": [(ROW, X, Y)],
    "baddbmm.default": [(BATCH, BATCH, BATCH)],
    "bmm.default": [(BATCH, BATCH)],
    "cat.default": [([X, Y],), ([X, Y], 1)],
    "clone.default": [(X,)],
    "div.Scalar": [(X, 64), (X.half(), 3.0), (IDS, 2)],
    "div.Tensor": [(X, Y), (X, 3.0)],
    "embedding.default": [(X, IDS), (X, IDS, 0)],
    "expand.default": [(ROW, [3, 4])],
    "gelu.default": [(X,)],
    "mean.dim": [(X, [-1], True)],
    "mm.default": [(X, Y)],
    "mul.Scalar": [(X, 2.0), (X.half(), 3), (IDS, 2), (X.bfloat16(), 0.1)],
    "mul.Tensor": [(X, Y), (X, 0.5)],
    "mul_.Tensor": [(X, Y)],
    "native_layer_norm.default": [(X, [4], ROW, ROW, 1e-5)],
    "permute.default": [(BATCH, [2, 0, 1])],
    "pow.Tensor_Scalar": [(X, 2), (X, 1.0), (IDS, 3)],
    "stack.default": [([X, Y],), ([X, Y], 1)],
    "sub.Tensor": [(X, Y)],
    "sum.dim_IntList": [(X, [0], True), (BATCH, [0, 1], True)],
    "transpose.int": [(BATCH, 1, 2)],
    "unbind.int": [(BATCH,), (BATCH, 1)],
    "unsqueeze.default": [(X, 1)],
    "view.default": [(X, [2, 8]), (X, [-1])],
}
OF_ONE_MATRIX = ("cos", "exp", "neg", "relu", "rsqrt", "sigmoid", "silu", "sin", "t", "tanh")
ARGUMENTS |= {f"{name}.default": [(X.abs(),)] for name in OF_ONE_MATRIX}
# Which make a tensor of the number and call another overload of theirs; the quicker way begins with that.
THROUGH_OTHERS = ("mul.Scalar", "div.Scalar")


class Watching(OperationMode):
    """Notes which operations are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(name.removeprefix("aten.") for name in QUICK_OPERATIONS))
def test_a_quicker_way_calls_the_same_operation_with_the_same_result(name):
    packet, overload = name.split(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload)
    for arguments in ARGUMENTS[name]:
        results = []
        for call in (operation, QUICK_OPERATIONS[f"aten.{name}"]):
            own = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
            with torch.no_grad(), Watching() as watching:
                results.append(call(*own))
        assert watching.called == [f"aten.{packet}.Tensor" if name in THROUGH_OTHERS else f"aten.{name}"]
        expected_parts, actual_parts = ([r] if isinstance(r, torch.Tensor) else r for r in results)
        for expected, actual in zip(expected_parts, actual_parts, strict=True):
            assert (
                torch.equal(expected, actual)
                and expected.dtype == actual.dtype
                and expected.stride() == actual.stride()
            )


def test_a_weight_is_not_transposed_twice_nor_a_shape_changed_and_changed_back():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
    code = rewritten(model, torch.randn(2, 4, 8), budget="100%").code
    assert "aten.t.default(" in code and "aten.view.default(" in code
    assert not re.search(r"aten\.(t|view)\.default\(aten\.\1\.default\(", code)
    assert "_unsafe_view" not in code


def test_views_that_only_look_alike_are_all_taken():
    """Square matrices transposed, halves of one tensor, and a tensor that is changed in place between two views."""

    def forward(m, x):
        y = m.layer(x)
        z = y.view(4, 2, 8).transpose(0, 1).reshape(2, 32).view(2, 4, 8)
        first, second = z.chunk(2, 1)
        w = torch.zeros_like(first)
        w.view(2, -1)[:, 8:] = second.reshape(2, -1)[:, :8]
        return (w + first.t() if first.dim() == 2 else w + first) @ m.square.t() + second @ m.square.t().t()

    model = Called(forward, layer=nn.Linear(8, 8), square=nn.Parameter(torch.randn(8, 8)))
    for budget in ("100%", None):
        assert_trains_alike(model, torch.randn(8, 8), budget=budget)
