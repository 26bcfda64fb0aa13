"""The savings of passes are reported by module, and measuring them changes nothing."""

import lowtide
import torch
from lowtide.passes.rewrites.free_factories import FreeFactories
from lowtide.passes.rewrites.pack_masks import PackMasks
from lowtide.passes.savings import apply_passes
from lowtide.rewriter.capture.capture import capture
from lowtide.rewriter.display.profile import profile
from small_models import small_model
from torch import nn


def dropped() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 8)), torch.randn(16, 32)


def test_a_mask_in_bits_saves_all_but_an_eighth_of_a_byte_for_each_element():
    model, x = dropped()
    graph = FreeFactories()(capture(model, (x,), {}).graph)
    _, (saving,) = apply_passes(graph, (PackMasks(),))
    assert (saving.name, saving.fidelity, saving.module) == ("packed_masks", "bitwise", "1")
    assert saving.saved_bytes == 16 * 64 * 4 - 16 * 64 // 8


def test_measuring_savings_leaves_the_graph_as_it_was():
    model, x = dropped()
    graph = FreeFactories()(capture(model, (x,), {}).graph)
    before = str(graph.graph)
    apply_passes(graph, (PackMasks(),))
    assert str(graph.graph) == before


def test_a_profile_reports_what_is_saved_and_what_could_be():
    model, batch = small_model("gpt2")
    summary = profile(model, (), batch, costs="flops", outputs=["loss"])
    savings = {(saving.name, saving.fidelity, saving.taken) for saving in summary.savings}
    assert {("packed_masks", "bitwise", True), ("written_gelu", "rounding", False)} <= savings
    assert ("chunked_cross_entropy", "rounding", False) in savings
    assert {saving["name"] for saving in summary.to_dict()["savings"]} == {name for name, *_ in savings}


def test_a_plan_says_what_was_taken_back():
    model, x = dropped()
    notes = lowtide.plan(model, "100%", (x,), costs="flops").problem.notes
    assert "packed_masks: backward reads 3.88 KiB less of forward" in notes
