"""The forward is cut where few bytes cross, and equal blocks are of one class."""

from collections import Counter

import pytest
import torch
from lowtide.passes.pipeline import run_passes
from lowtide.passes.rewrites.assign_blocks import AssignBlocks, crossing_bytes, find_narrow_cuts
from lowtide.rewriter.capture.capture import capture
from pass_checks import captured_step, compare_with_golden
from small_models import small_model
from small_unet import small_unet
from torch import nn


@pytest.mark.parametrize(
    ("crossing", "cuts"),
    [
        ([0, 10, 10, 10, 0], []),
        ([0, 10, 2, 10, 0], [2]),
        ([0, 10, 2, 2, 2, 10, 0], [2]),
        ([0, 10, 5, 2, 5, 10, 0], [3]),
        ([0, 10, 9, 10, 0], []),
        ([0, 10, 2, 10, 3, 10, 0], [2, 4]),
        ([0, 110, 102, 110, 0], []),
        ([0, 200, 102, 200, 102, 200, 0], [2, 4]),
        ([0, 0, 0, 0], []),
        ([0, 5], []),
        ([0], []),
        ([0, 10, 0, 10, 0, 10, 0], [2, 4]),
        ([0, 10, 2, 2.3, 2, 10, 0], [2]),
    ],
)
def test_cuts_are_the_valleys_between_two_rises(crossing, cuts):
    assert find_narrow_cuts(crossing, rise=1.2) == cuts


def layers(count: int = 4) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(count)))


def test_before_and_after(golden):
    compare_with_golden(golden, AssignBlocks(), captured_step(layers(2), torch.randn(32, 8)))


def test_a_larger_rise_gives_fewer_blocks():
    step = captured_step(layers(), torch.randn(32, 8))
    assert len(AssignBlocks()(step).block_names) > len(AssignBlocks(rise=1000)(step).block_names) == 1


def step_of(model, args=(), kwargs=None):
    captured = capture(model, args, kwargs or {})
    return run_passes(captured.graph)[1]


@pytest.fixture(scope="module")
def gpt2_step():
    model, kwargs = small_model("gpt2")
    return step_of(model, (), kwargs)


def test_layers_of_gpt2_are_blocks_of_few_classes(gpt2_step):
    names = gpt2_step.block_names
    assert [name for name in dict.fromkeys(names) if ".h." in name] == [f"transformer.h.{i}" for i in range(3)]
    kinds = {}
    for name, kind in zip(names, gpt2_step.block_classes, strict=True):
        kinds.setdefault(name, []).append(kind)
    assert kinds["transformer.h.1"] == kinds["transformer.h.0"] or kinds["transformer.h.1"] == kinds["transformer.h.2"]
    assert len(set(gpt2_step.block_classes)) < len(names)


def test_blocks_never_go_back(gpt2_step):
    forward = [kernel.block for kernel in gpt2_step.kernels[: gpt2_step.forward_length]]
    backward = [kernel.block for kernel in gpt2_step.kernels[gpt2_step.forward_length :]]
    assert forward == sorted(forward) and backward == sorted(backward, reverse=True)
    assert forward[0] == 0 and backward[0] == len(gpt2_step.block_names) - 1 and backward[-1] == 0


def test_crossing_bytes_count_what_is_made_before_and_read_after():
    model = nn.Sequential(nn.Linear(8, 100), nn.GELU(), nn.Linear(100, 4))
    step = step_of(model, (torch.randn(5, 8),))
    crossing = crossing_bytes(step)
    # Between kernels: the hidden layer before GELU, after it, and after the last layer nothing.
    assert crossing == [0, 5 * 100 * 4, 5 * 100 * 4, 0]


def test_a_value_that_all_blocks_read_hides_no_cut():
    class Carried(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(4))

        def forward(self, x, other):
            carried = other.sin()
            for layer in self.layers:
                x = layer(x) * carried
            return x

    step = step_of(Carried(), (torch.randn(32, 8), torch.randn(32, 8)))
    assert len(step.block_names) >= 4


def test_blocks_of_a_class_have_equal_kernels_in_the_same_order(gpt2_step):
    calls_of_class = {}
    for block, kind in enumerate(gpt2_step.block_classes):
        calls = [str(call.target) for k in gpt2_step.compute_kernels if k.block == block for call in k.calls]
        assert calls_of_class.setdefault(kind, calls) == calls


def test_a_network_with_skips_is_cut_into_windows_of_few_kernels():
    # skips cross every cut: by what crosses alone, all of it would be one block, which holds all of its gradients
    model, kwargs = small_unet(1, 32, 0)
    step = step_of(model, (), kwargs)
    counts = Counter(kernel.block for kernel in step.kernels[: step.forward_length])
    assert len(step.block_names) >= step.forward_length // 24
    assert max(counts.values()) <= 24
    backward = [kernel.block for kernel in step.kernels[step.forward_length :]]
    assert backward == sorted(backward, reverse=True)
