"""Capturing a step leaves the module as it was, and says where it cannot."""

import random

import numpy
import pytest
import torch
from lowtide.rewriter.capture.capture import capture
from lowtide.rewriter.errors import CaptureError
from side_by_side import assert_trains_alike
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_module_that_stands_in_two_places_keeps_its_parameters():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    before = dict(layer._parameters)
    capture(model, (torch.randn(2, 4),), {})
    assert all(layer._parameters[name] is parameter for name, parameter in before.items())


class Drawing(nn.Module):
    """Draws from a stream that is not torch's default one."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.draw = draw

    def forward(self, x):
        return self.layer(x) * self.draw()


@pytest.mark.parametrize(
    ("draw", "what"),
    [
        (random.random, "uses Python's random numbers"),
        (lambda: float(numpy.random.rand()), "uses numpy's random numbers"),
        (lambda: torch.manual_seed(3) is None or 1.0, "sets the state of torch's generator"),
    ],
)
def test_other_random_streams_are_refused_and_stay_where_they_are(draw, what):
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    with pytest.raises(CaptureError, match=f"forward of Drawing {what}"):
        capture(Drawing(draw), (torch.randn(2, 4),), {})
    after = random.random(), numpy.random.rand()
    random.seed(0), numpy.random.seed(0)
    assert after == (random.random(), numpy.random.rand())


class Scaled(nn.Module):
    """Doubles a buffer after it has computed with it."""

    def __init__(self, in_place: bool, copied: bool = False) -> None:
        super().__init__()
        self.layer, self.in_place, self.copied = nn.Linear(4, 4), in_place, copied
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        y = self.layer(x) * (self.scale.clone() if self.copied else self.scale)
        if self.in_place:
            self.scale.mul_(2)
        else:
            self.scale = self.scale * 2
        return y


FORMER_VALUE = {
    True: r"backward could not be captured: .* modified by an inplace operation",  # so says eager
    False: r"forward changes buffer scale, and the backward .* needs what it held before",
}


@pytest.mark.parametrize("in_place", [True, False])
def test_a_buffer_whose_former_value_backward_needs_is_named(in_place):
    with pytest.raises(CaptureError, match=FORMER_VALUE[in_place]):
        capture(Scaled(in_place), (torch.randn(2, 4),), {})
    assert_trains_alike(Scaled(in_place, copied=True), torch.randn(2, 4))
