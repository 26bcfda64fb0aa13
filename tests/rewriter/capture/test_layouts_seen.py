"""Layouts of real kernels that differ from fake ones are remembered, and the step is captured again with them."""

import pytest
import torch
from lowtide.rewriter.capture import recorder
from lowtide.rewriter.capture.operands import layouts_seen
from lowtide.rewriter.capture.operands.layouts_seen import LayoutsSeen, format_layouts, layouts_of, parse_layouts
from lowtide.rewriter.errors import PlanError
from lowtide.rewriter.measure import costs
from lowtide.rewriter.plan import measured_step
from lowtide.rewriter.plan.options import Options
from side_by_side import assert_trains_alike
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Turned(nn.Module):
    """Normalizes between transposes, after dropout: the real gradient of the norm is contiguous, the fake one not."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv1d(16, 16, 1), nn.Conv1d(16, 16, 1)
        self.dropout, self.norm = nn.Dropout(0.1), nn.LayerNorm(16)

    def forward(self, x):
        normalized = self.norm(self.dropout(self.before(x)).transpose(1, 2)).transpose(1, 2)
        return self.after(normalized).pow(2).mean()


@pytest.fixture
def nothing_seen(monkeypatch):
    """Nothing learned before, and nothing learned that outlasts a test."""
    seen = LayoutsSeen()
    for module in (measured_step, recorder):
        monkeypatch.setattr(module, "SEEN", seen)
    return seen


@pytest.fixture
def nothing_predicted(monkeypatch):
    """No corrections of fake results but those that are seen."""
    monkeypatch.setattr(recorder, "as_eager_makes_it", lambda func, args, out: out)


@pytest.fixture
def captures(monkeypatch):
    """Return a list that grows with each capture of a step."""
    counted = []
    capture = measured_step.capture
    monkeypatch.setattr(measured_step, "capture", lambda *args, **kwargs: counted.append(1) or capture(*args, **kwargs))
    return counted


def step(size: int = 20):
    torch.manual_seed(0)
    return Turned(), (torch.randn(2, 16, size),), {}, Options(costs="flops")


@pytest.mark.usefixtures("nothing_seen", "nothing_predicted")
def test_gradients_are_right_where_fake_ones_lie_otherwise(captures):
    model, args, _, _ = step()
    assert_trains_alike(model, *args, budget="100%")
    assert len(captures) == 2


@pytest.mark.usefixtures("nothing_predicted")
def test_what_was_seen_spares_the_next_capture_and_costs_no_run_in_another_process(nothing_seen, captures, monkeypatch):
    measured_step.measure_step(*step(21))
    assert list(nothing_seen.by_name) == ["aten.native_layer_norm_backward.default"] and len(captures) == 2
    measured_step.measure_step(*step(21))
    assert len(captures) == 3  # known from the start

    def run_nothing(*_, **__):
        raise AssertionError("a kernel was run whose layouts the cache knows")

    nothing_seen.by_name.clear()  # as another process begins, with the cache of the first
    monkeypatch.setattr(costs, "run_kernels", run_nothing)
    measured_step.measure_step(*step(21))
    assert len(captures) == 5 and nothing_seen.by_name


@pytest.mark.usefixtures("nothing_predicted")
def test_a_step_that_does_not_settle_is_refused_by_the_name_of_a_kernel(nothing_seen, monkeypatch):
    monkeypatch.setattr(nothing_seen, "applied", lambda node, out: out)
    with pytest.raises(
        PlanError, match=r"Turned: after 8 captures aten.native_layer_norm_backward.default\(.* still lays"
    ):
        measured_step.measure_step(*step(22))


def test_no_recapture_is_needed_where_the_table_says_what_kernels_do(nothing_seen, captures):
    measured_step.measure_step(*step(23))
    assert len(captures) == 1 and not nothing_seen.by_name


def test_layouts_are_written_and_read_as_they_are():
    x, y = torch.randn(4, 6), torch.randn(3)
    results = (x.t(), x[1:, 2:], y * 2, None, torch.arange(6)[2:], y.sum(), torch.empty(0, 3))
    layouts = layouts_of(results, [y, x])
    assert parse_layouts(format_layouts(layouts)) == layouts
    assert [layout and layout.operand for layout in layouts] == [1, 1, None, None, None, None, None]
    assert format_layouts(layouts_of(x[1:, 2:], [x])) == "float32[3,4](6,1)+8@0"


@pytest.mark.parametrize(
    "text", ["", "float32[2](1)", "nn[2](1)+0:8", "float32[2,3](1)+0:24", "float32[-2](1)+0:8", "x" * 999]
)
def test_a_text_that_is_no_layout_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a layout|sizes and"):
        parse_layouts(text)


def test_fake_results_take_the_layout_that_was_seen(nothing_seen):
    """Layouts in a storage larger than the elements, and of a view."""
    from torch import fx

    x = torch.empty_strided((2, 3), (3, 1), device="meta")
    graph = fx.Graph()
    operand = graph.placeholder("x")
    operand.meta["val"] = x
    call = graph.call_function(torch.ops.aten.mul.Tensor, (operand, 2))
    call.meta["val"] = fake = torch.empty_like(x)
    for text in ("float32[2,3](1,2)+1:40", "float32[3](1)+2@0"):
        assert nothing_seen._learn(call, parse_layouts(text))
        assert format_layouts(layouts_of(nothing_seen.applied(call, fake), [x])) == text
    assert layouts_seen.SEEN is not nothing_seen
