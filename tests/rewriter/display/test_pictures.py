"""Pictures are drawn from plans, and what is drawn adds up to what the simulator said."""

import builtins

import lowtide
import pytest
from lowtide.rewriter.display.memory_timeline import moments_of, peak_of
from lowtide.rewriter.display.pictures import check_drawable, draw_frontier, draw_timeline
from lowtide.rewriter.errors import LowtideError
from lowtide.rewriter.plan.solve import spread_out
from lowtide.solvers.problem.module_names import grouped, merged_name, plain_operation, shortened
from lowtide.solvers.problem.plan import Plan
from small_models import small_model

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    """A frontier of a small GPT-2."""
    model, batch = small_model("gpt2", layers=2)
    return lowtide.sweep(model, (), batch, count=20, costs="roofline")


def test_the_parts_of_the_live_bytes_add_up_to_the_simulated_peak(plans):
    for plan in plans:
        moments = moments_of(plan)
        assert max(moment.within_bytes for moment in moments) == plan.peak_bytes
        assert min(moment.activation_bytes for moment in moments) >= 0
        assert sum(moment.kind == "recomputed" for moment in moments) == len(moments) - len(plan.problem.ops)
        peak = peak_of(plan)
        assert sum(size for name, size in peak.to_dict().items() if name.endswith("_bytes")) == plan.peak_bytes


def test_at_the_end_only_what_is_held_is_there(plans):
    for plan in plans:
        last = moments_of(plan)[-1]
        held = sum(value.size_bytes for value in plan.problem.values if value.held and not value.resident)
        assert last.activation_bytes == 0
        assert last.gradients_bytes + last.returned_bytes == held


def test_a_smaller_budget_keeps_fewer_bytes_between_forward_and_backward(plans):
    kept = [plan.kept_bytes for plan in plans]
    assert kept[-1] < 0.6 * kept[0]


def test_a_timeline_is_drawn(plans, tmp_path):
    path = tmp_path / "timeline.png"
    draw_timeline(plans[-1], "a small model", path)
    assert path.read_bytes().startswith(PNG) and path.stat().st_size > 10_000


def test_a_frontier_is_drawn_next_to_the_recipes(plans, tmp_path):
    path = tmp_path / "frontier.png"
    recipes = draw_frontier(plans, "a small model", path)
    assert path.read_bytes().startswith(PNG) and path.stat().st_size > 10_000
    assert "checkpoint every block" in [recipe.description for recipe in recipes]


def test_pictures_can_be_vector_graphics(plans, tmp_path):
    draw_timeline(plans[0], "a small model", tmp_path / "timeline.svg")
    assert "<svg" in (tmp_path / "timeline.svg").read_text(encoding="utf-8")


def test_a_name_that_is_no_pictures_is_refused(tmp_path):
    with pytest.raises(LowtideError, match="is not a picture's name"):
        check_drawable(tmp_path / "timeline.docx")


def test_without_matplotlib_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    load = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LowtideError, match=r'pip install "lowtide\[plot\]"'):
        check_drawable(tmp_path / "timeline.png")


def test_a_frontier_is_thinned_evenly_with_both_ends(plans):
    few = spread_out(plans, 4)
    assert few[0] is plans[0] and few[-1] is plans[-1] and 2 <= len(few) <= 4


def test_names_that_differ_in_a_number_become_one():
    assert merged_name(["h.0.attn", "h.1.attn", "h.2.attn", "h.5.attn"]) == "h.0-2,5.attn"
    assert merged_name(["lm_head"]) == "lm_head"
    assert shortened("transformer.h.3.attn.c_proj") == "transformer.h.3"
    assert shortened("transformer.h.3.attn.c_proj", 4) == "transformer.h.3.attn"
    assert [plain_operation(n) for n in ("mm_default_4", "add_tensor", "tanh")] == ["mm", "add", "tanh"]
    rows = [("h.0", 1), ("h.1", 1), ("h.2", 2), ("top", 1)]
    assert [name for name, _ in grouped(rows, lambda r: r[0], lambda r: r[1])] == ["h.0-1", "h.2", "top"]
