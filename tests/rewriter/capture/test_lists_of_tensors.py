"""Tensors made from lists with tensors have eager's dtype and bits, and are recomputed in each step."""

import pytest
import torch
from lowtide.rewriter.capture.eager.lists_of_tensors import made_of_list
from side_by_side import assert_trains_alike, rewritten
from small_networks import Called
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def scalars(*values, dtype=None):
    return [torch.tensor(value, dtype=dtype) for value in values]


MADE = {
    "integers": (torch.tensor, ([*scalars(3, 1), 0, 1],), {}),
    "mixed with floats": (torch.tensor, ([*scalars(3, 1), 1.5, True],), {}),
    "nested": (torch.tensor, ([scalars(3, 1), [2, 5]],), {}),
    "a tuple": (torch.tensor, ((*scalars(0.1, 0.2),),), {}),
    "one element with dimensions": (torch.tensor, ([torch.ones(1), torch.ones(1, 1), 2.0],), {}),
    "booleans": (torch.tensor, (scalars(True, False),), {}),
    "whole numbers beyond single precision": (torch.tensor, ([*scalars(2**53 + 1), 2.5],), {}),
    "whole numbers as they are": (torch.tensor, ([*scalars(2**60 + 1), 2],), {}),
    "two half precisions": (torch.tensor, ([*scalars(1.1, dtype=torch.bfloat16), *scalars(2, dtype=torch.half)],), {}),
    "half precision and a float": (torch.tensor, ([*scalars(1.1, dtype=torch.bfloat16), 0.1],), {}),
    "half precision and a whole number": (torch.tensor, ([*scalars(1.1, dtype=torch.bfloat16), 3],), {}),
    "complex": (torch.tensor, (scalars(1 + 2j, 0.5),), {}),
    "bytes": (torch.tensor, ([*scalars(7, dtype=torch.uint8), *scalars(-1, dtype=torch.int8)],), {}),
    "a dtype": (torch.tensor, ([*scalars(0.1, 3), 1.0000001],), {"dtype": torch.float64}),
    "a coarse dtype": (torch.tensor, ([*scalars(0.1, dtype=torch.float64), 1],), {"dtype": torch.bfloat16}),
    "a narrow dtype": (torch.tensor, ([*scalars(3, 200), 1],), {"dtype": torch.uint8}),
    "with a gradient": (torch.tensor, (scalars(0.1, 0.2),), {"requires_grad": True}),
    "as_tensor": (torch.as_tensor, (scalars(0.1, 0.2),), {}),
    "asarray": (torch.asarray, ([*scalars(1, dtype=torch.int16), *scalars(2)],), {}),
    "new_tensor": (torch.Tensor.new_tensor, (torch.ones(1, dtype=torch.float64), [*scalars(0.1), 3]), {}),
}


@pytest.mark.parametrize("case", MADE)
def test_it_is_what_torch_makes(case):
    func, args, kwargs = MADE[case]
    made, expected = made_of_list(func, args, kwargs), func(*args, **kwargs)
    assert made is not None and (made.dtype, made.shape) == (expected.dtype, expected.shape)
    assert torch.equal(made, expected) and made.requires_grad == expected.requires_grad


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ([torch.ones(2), torch.ones(2)], {}),
        ([scalars(1, 2), scalars(3)], {}),
        ([torch.tensor(1.7), 2], {"dtype": torch.int64}),
    ],
    ids=["several elements", "unequal lengths", "floats for whole numbers"],
)
def test_what_torch_refuses_is_refused_alike(data, options):
    with pytest.raises((ValueError, TypeError)) as expected:
        torch.tensor(data, **options)
    with pytest.raises(expected.type):
        made_of_list(torch.tensor, (data,), options)


@pytest.mark.parametrize("data", [[1, 2.5], [], "text", [None, torch.ones(1)], 3, torch.ones(2)])
def test_anything_else_is_left_to_torch(data):
    assert made_of_list(torch.tensor, (data,), {}) is None


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Linear(16, 4))


FORWARDS = {
    "of an argument": lambda m, x, i: m.net(x + torch.tensor([i.max(), i.min(), 0, 1])),
    "of parameters": lambda m, x, i: m.net(x) + torch.tensor([m.net[0].weight.max(), 0.0, m.net[0].bias[0], 1.0]),
    "of decisions": lambda m, x, i: m.net(x) + torch.tensor([i.max() > 2, i.min() > 2, True, False]),
    "new_tensor": lambda m, x, i: m.net(x) + x.new_tensor([i.max(), 0, 0, 1]),
    "full": lambda m, x, i: m.net(x) + torch.full((4,), i.max()) + torch.full_like(x, i.min()),
    "filled": lambda m, x, i: m.net(x) + torch.zeros(4).fill_(i.max()),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")  # eager's own
@pytest.mark.parametrize("made", FORWARDS)
def test_each_step_makes_it_again(made):
    model = Called(FORWARDS[made], net=net())
    x = torch.randn(8, 4)
    small = assert_trains_alike(model, x, torch.arange(4), budget="1MiB")
    same = rewritten(model, x, torch.arange(4), budget="1MiB")
    for i in (torch.arange(4), torch.arange(4) + 3):
        torch.manual_seed(0)
        expected = model(x, i)
        torch.manual_seed(0)
        assert torch.equal(same(x, i), expected)
    assert len(small.lowtide.steps) == 1
