"""What a small model becomes, as text: its step graph, problem, schedule and plan."""

from typing import Any

import lowtide
import pytest
import torch
from step_problems import formulated
from torch import nn

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that is here is measured")

# For a device that is not here bytes are counted from shapes, so that they are the same on every processor.
OPTIONS: dict[str, Any] = {"costs": "flops", "device": "h200-141gb", "solver": "greedy"}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Two blocks with ReLU and dropout, and a head."""
    blocks = [nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 32)) for _ in "ab"]
    return nn.Sequential(*blocks, nn.Linear(32, 4))


@pytest.fixture(scope="module")
def plan(model):
    """Its plan at a budget at which something runs again."""
    return lowtide.plan(model, "82%", (torch.randn(128, 32),), **OPTIONS)


def test_a_step_graph(golden, model):
    step = formulated(model, (torch.randn(128, 32),), {}, **OPTIONS).measured.step
    golden("small_network/step_graph", str(step))
    assert len(repr(step)) < 2000


@pytest.mark.parametrize("noun", ["problem", "schedule"])
def test_a_problem_and_a_schedule(golden, plan, noun):
    golden(f"small_network/{noun}", str(getattr(plan, noun)))


def test_a_plan(golden, plan):
    assert plan.recomputed
    golden("small_network/plan", str(plan))
    golden("small_network/all_instructions", plan.schedule_text())
