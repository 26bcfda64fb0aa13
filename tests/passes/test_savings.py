"""What passes take back is told by module, and looking at it changes nothing."""

import lowtide
import torch
from lowtide.passes.rewrites.free_factories import FreeFactories
from lowtide.passes.rewrites.pack_masks import PackMasks
from lowtide.passes.savings import applied, copied
from lowtide.rewriter.capture.capture import capture
from lowtide.rewriter.display.profile import profile
from small_models import small_model
from torch import nn


def dropped() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 8)), torch.randn(16, 32)


def test_a_mask_in_bits_saves_all_but_an_eighth_of_a_byte_for_each_element():
    model, x = dropped()
    graph = FreeFactories()(capture(model, (x,), {}).graph)
    _, (saving,) = applied(graph, (PackMasks(),))
    assert (saving.name, saving.fidelity, saving.module) == ("packed_masks", "bitwise", "1")
    assert saving.saved_bytes == 16 * 64 * 4 - 16 * 64 // 8


def test_passes_over_a_copy_leave_the_graph_as_it_was():
    model, x = dropped()
    graph = FreeFactories()(capture(model, (x,), {}).graph)
    before = str(graph.graph)
    applied(copied(graph), (PackMasks(),))
    assert str(graph.graph) == before


def test_a_profile_tells_what_is_taken_back_and_what_could_be():
    model, batch = small_model("gpt2")
    told = profile(model, (), batch, costs="flops", outputs=["loss"])
    found = {(saving.name, saving.fidelity, saving.taken) for saving in told.savings}
    assert {("packed_masks", "bitwise", True), ("written_gelu", "rounding", False)} <= found
    assert ("chunked_cross_entropy", "rounding", False) in found
    assert {saving["name"] for saving in told.to_dict()["savings"]} == {name for name, *_ in found}


def test_a_plan_says_what_was_taken_back():
    model, x = dropped()
    notes = lowtide.plan(model, "100%", (x,), costs="flops").problem.notes
    assert "packed_masks: backward reads 3.88 KiB less of forward" in notes
