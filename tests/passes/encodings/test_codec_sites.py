"""Values kept encoded: planned, emitted, measured, saved, and trained with bit for bit."""

from __future__ import annotations

import copy

import lowtide
import pytest
import torch
from lowtide.rewriter.plan.plan_file import save_plan
from lowtide.solvers.problem.schedule import Decode, Encode, FreeCode
from side_by_side import calling, differences, trained
from small_networks import Called
from torch import nn


def masked(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Layers that keep a large mask of truth values each, which takes a product to compute again."""
    for layer, gate in zip(m.layers, m.others, strict=True):
        y = layer(x)
        x = x + y.masked_fill(gate(x) > 0, 0.0)
    return x.square().mean()


def model_and_input() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    parts = {name: nn.ModuleList(nn.Linear(96, 96) for _ in range(6)) for name in ("layers", "others")}
    return Called(masked, **parts), torch.randn(256, 96)


def tightest_encoded(model: nn.Module, x: torch.Tensor):
    """The plan of the smallest peak that encodes something."""
    plans = [plan for plan in lowtide.sweep(model, (x,), count=60, costs="flops") if plan.encoded]
    assert plans, "nothing is encoded at any budget"
    return plans[-1]


def test_masks_are_kept_in_bits_and_training_is_exact():
    model, x = model_and_input()
    plan = tightest_encoded(model, x)
    kinds = {type(instruction) for instruction in plan.schedule.instructions}
    assert {Encode, Decode, FreeCode} <= kinds
    assert plan.original_bytes == 8 * plan.packed_bytes
    small = lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (x,), costs="flops")
    assert "lowtide.pack_bits.default(" in small.code and "lowtide.unpack_bits.default(" in small.code
    step = calling(x)
    assert not differences(trained(copy.deepcopy(model), step), trained(small, step))


def test_the_peak_with_codes_is_predicted_to_the_byte():
    model, x = model_and_input()
    small = lowtide.rewrite(copy.deepcopy(model), tightest_encoded(model, x).peak_bytes, (x,), costs="flops")
    small(x).backward()
    small.zero_grad(set_to_none=True)
    resident = {t.data_ptr(): t.numel() * t.element_size() for t in (*small.parameters(), x)}
    small(x).backward()  # everything that is made once has been made
    small.zero_grad(set_to_none=True)
    measured = lowtide.measure_peak(lambda: small(x).backward())
    assert measured == small.plan.peak_bytes - sum(resident.values())


def test_a_saved_plan_with_codes_is_the_same_when_loaded(tmp_path):
    model, x = model_and_input()
    plan = tightest_encoded(model, x)
    save_plan(plan, tmp_path / "plan.json")
    small = lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (x,), costs="flops", plan=tmp_path / "plan.json")
    assert small.plan.schedule == plan.schedule
    text = (tmp_path / "plan.json").read_text().replace('["encode", ', '["encode", 99')
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(lowtide.PlanError):
        lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (x,), costs="flops", plan=tmp_path / "other.json")


def test_with_encodings_no_budget_is_met_in_more_time_and_some_in_less(monkeypatch):
    model, x = model_and_input()
    encoded = lowtide.sweep(model, (x,), count=40, costs="flops")
    monkeypatch.setattr("lowtide.rewriter.plan.measured_step.find_codec_sites", lambda *_: {})
    plain = lowtide.sweep(model, (x,), count=40, costs="flops")
    better = 0
    for plan in plain:
        best = min(e.seconds for e in encoded if e.peak_bytes <= plan.peak_bytes)
        assert best <= plan.seconds * (1 + 1e-9)
        better += best < plan.seconds * (1 - 1e-6)
    assert better >= 3
