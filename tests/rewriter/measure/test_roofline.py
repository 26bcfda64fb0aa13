"""Costs by roofline and by flops are the same every time, run nothing for a device that is not here."""

from __future__ import annotations

import pytest
import torch
from lowtide.passes.calls import call_signature
from lowtide.rewriter.capture.operands import operands
from lowtide.rewriter.measure import costs
from lowtide.rewriter.measure.costs import measure_costs
from lowtide.rewriter.measure.device_presets import load_device
from lowtide.rewriter.measure.flops import count_flops
from lowtide.rewriter.measure.roofline import estimated_working_bytes, moved_bytes, roofline_seconds
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*_arguments, **_named):
        raise AssertionError("a kernel was about to be run")

    monkeypatch.setattr(costs, "run_kernels", refuse)
    monkeypatch.setattr(operands.OperandMaker, "make", refuse)


def calls(function, *arguments):
    graph = make_fx(function, tracing_mode="fake")(*arguments)
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def test_a_large_product_takes_its_flops_at_the_devices_rate():
    preset = load_device("h200-141gb")
    (node,) = calls(torch.mm, *(torch.empty(4096, 4096, dtype=torch.bfloat16) for _ in range(2)))
    seconds = roofline_seconds(node, count_flops(node), preset)
    assert seconds == pytest.approx(2 * 4096**3 / 989.4e12 + preset.launch_seconds)


def test_a_small_product_and_an_addition_take_their_traffic():
    preset = load_device("a100-80gb")
    (node,) = calls(torch.add, torch.empty(1 << 20), torch.empty(1 << 20))
    assert moved_bytes(node) == 3 * 4 * (1 << 20)
    assert roofline_seconds(node, 0, preset) == pytest.approx(3 * 4 * (1 << 20) / 2.039e12 + 5e-6)


def test_an_expanded_operand_is_read_once():
    nodes = calls(lambda tensor, row: tensor + row.expand(64, 8), torch.empty(64, 8), torch.empty(8))
    addition = next(node for node in nodes if node.target is aten.add.Tensor)
    assert moved_bytes(addition) == (2 * 64 * 8 + 8) * 4


def test_an_embedding_reads_the_rows_it_picks_not_its_table():
    (node,) = calls(lambda table, rows: aten.embedding(table, rows), torch.empty(50_000, 8), torch.tensor([1, 2]))
    assert moved_bytes(node) == 2 * 8 * 4 * 2 + 2 * 8


def test_fp32_products_use_tf32_only_where_torch_does():
    preset = load_device("h100-80gb")
    (node,) = calls(torch.mm, torch.empty(4096, 4096), torch.empty(4096, 4096))
    exact = roofline_seconds(node, count_flops(node), preset)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert roofline_seconds(node, count_flops(node), preset) < exact / 3
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_view_costs_nothing():
    (node,) = calls(lambda tensor: tensor.transpose(0, 1), torch.empty(64, 8))
    assert roofline_seconds(node, 0, load_device("cpu")) == 0.0


@pytest.mark.parametrize("costs", ["roofline", "flops"])
def test_planning_for_another_device_runs_and_allocates_nothing_and_repeats_itself(costs, nothing_runs):
    nodes = calls(lambda tensor, weight: torch.softmax(tensor @ weight, -1), torch.empty(64, 32), torch.empty(32, 8))
    first = measure_costs(nodes, "cpu", costs=costs, preset="h200-141gb")
    assert first == measure_costs(nodes, "cpu", costs=costs, preset="h200-141gb")
    product = first[call_signature(nodes[0])]
    assert product.working_bytes == 64 * 8 * 4
    assert product.flops == 2 * 64 * 32 * 8


def test_tensors_on_meta_are_never_run(nothing_runs):
    weight = torch.empty(1 << 20, 1 << 16, device="meta")
    nodes = calls(torch.mv, weight, torch.empty(1 << 16, device="meta"))
    cost = measure_costs(nodes, "cpu", costs="roofline", preset="cpu")[call_signature(nodes[0])]
    assert cost.flops == 2 * (1 << 36)
    assert cost.working_bytes == (1 << 20) * 4


def test_measuring_tensors_on_meta_says_that_they_were_estimated():
    nodes = calls(torch.exp, torch.empty(1 << 40, device="meta"))
    with pytest.warns(UserWarning, match="tensors on 'meta'"):
        cost = measure_costs(nodes, "cpu")[call_signature(nodes[0])]
    assert cost.working_bytes == 4 << 40


def test_by_flops_products_take_time_and_bytes_moved_next_to_none():
    nodes = calls(lambda a, b: (a @ b).exp(), torch.empty(64, 32), torch.empty(32, 8))
    costs = measure_costs(nodes, "cpu", costs="flops")
    moved = [4 * (64 * 32 + 32 * 8 + 64 * 8), 4 * 2 * 64 * 8]
    seconds = [(2 * 64 * 32 * 8 + moved[0] / 1000) / 1e12, moved[1] / 1000 / 1e12]
    assert [costs[call_signature(node)].seconds for node in nodes] == seconds


def test_on_this_machine_the_scratch_is_measured_whatever_the_seconds_come_from():
    nodes = calls(lambda tensor: torch.sort(tensor)[0], torch.randn(1000, 100))
    sort = next(node for node in nodes if "sort" in str(node.target))
    measured = measure_costs(nodes, "cpu", costs="roofline")[call_signature(sort)]
    assert measured.working_bytes > estimated_working_bytes(sort) == 1000 * 100 * (4 + 8)


def test_what_is_written_in_place_allocates_nothing():
    nodes = calls(lambda tensor: tensor.mul_(2), torch.randn(10))
    assert estimated_working_bytes(nodes[0]) == 0


def test_flash_attentions_backward_counts_its_accumulators():
    batch, heads, length, width = 2, 4, 300, 64
    query = torch.empty(batch, heads, length, width, device="meta", dtype=torch.bfloat16)
    rows = torch.empty(batch, heads, length, device="meta")
    none = torch.empty(0, device="meta", dtype=torch.int64)

    def function(query, rows, none):
        return aten._scaled_dot_product_flash_attention_backward(
            query, query, query, query, query, rows, none, none, length, length, 0.0, True, none, none
        )

    nodes = calls(function, query, rows, none)
    backward = next(node for node in nodes if "backward" in str(node.target))
    gradients = 3 * batch * heads * length * width * 2
    accumulators = batch * heads * 384 * (64 + 1) * 4  # rows in multiples of 128
    assert estimated_working_bytes(backward) == gradients + accumulators
