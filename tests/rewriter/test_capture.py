"""Capturing a step leaves the module as it was, and says where it cannot."""

import pytest
import torch
from lowtide.rewriter.capture import capture
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_module_that_stands_in_two_places_keeps_its_parameters():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    before = dict(layer._parameters)
    capture(model, (torch.randn(2, 4),), {})
    assert all(layer._parameters[name] is parameter for name, parameter in before.items())
