"""Kernels are measured alone: exact bytes, stable signatures, a lasting cache, and nothing disturbed."""

from __future__ import annotations

import json
import warnings

import lowtide
import pytest
import torch
from lowtide.passes.calls import call_signature
from lowtide.rewriter.errors import LowtideError
from lowtide.rewriter.measure import cost_cache, time_kernels
from lowtide.rewriter.measure.costs import Cost, measure_costs
from lowtide.solvers.problem.schedule import Run
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lowtide"


def calls(function, *arguments):
    """The captured calls of a function, as nodes."""
    graph = make_fx(function, tracing_mode="fake")(*arguments)
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def cost_of(operator, nodes, **keywords) -> Cost:
    costs = measure_costs(nodes, "cpu", **keywords)
    (cost,) = {costs[call_signature(node)] for node in nodes if node.target is operator}
    return cost


def test_a_product_holds_its_output_and_nothing_else():
    nodes = calls(torch.mm, torch.randn(30, 20), torch.randn(20, 7))
    cost = cost_of(aten.mm.default, nodes)
    assert cost.working_bytes == 30 * 7 * 4
    assert cost.flops == 2 * 30 * 20 * 7
    assert cost.seconds > 0


def test_a_view_holds_nothing():
    nodes = calls(lambda tensor: tensor.t()[2:].unsqueeze(0), torch.randn(30, 20))
    assert {cost.working_bytes for cost in measure_costs(nodes, "cpu").values()} == {0}


def test_softmax_backward_holds_its_output():
    nodes = calls(
        lambda grad, output: aten._softmax_backward_data(grad, output, -1, torch.float32),
        torch.randn(64, 30),
        torch.rand(64, 30),
    )
    assert cost_of(aten._softmax_backward_data.default, nodes).working_bytes == 64 * 30 * 4


def test_layer_norm_backward_holds_its_gradients_and_a_buffer_for_each_thread():
    rows, width = 64, 48
    tensor, weight = torch.randn(rows, width), torch.randn(width)
    nodes = calls(
        lambda grad, tensor, mean, rstd, weight: aten.native_layer_norm_backward(
            grad, tensor, [width], mean, rstd, weight, weight, [True, True, True]
        ),
        tensor,
        tensor,
        torch.rand(rows, 1),
        torch.rand(rows, 1),
        weight,
    )
    outputs = (rows * width + 2 * width) * 4
    buffers = 2 * torch.get_num_threads() * width * 4
    assert cost_of(aten.native_layer_norm_backward.default, nodes).working_bytes == outputs + buffers


def test_dropout_is_run_without_moving_the_global_random_stream():
    before = torch.get_rng_state()
    nodes = calls(lambda tensor: aten.native_dropout(tensor, 0.1, True), torch.ones(64, 4))
    cost = cost_of(aten.native_dropout.default, nodes)
    assert torch.equal(torch.get_rng_state(), before)
    assert cost.working_bytes >= 64 * 4 * (4 + 1)


def test_a_kernel_that_draws_with_given_probabilities_runs():
    nodes = calls(lambda tensor: aten.bernoulli(tensor), torch.rand(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost_of(aten.bernoulli.default, nodes).working_bytes == 8 * 8 * 4


@pytest.fixture
def attention_nodes():
    batch, heads, length, width = 2, 3, 64, 16
    tensor = torch.randn(batch, heads, length, width)
    rows = torch.randn(batch, heads, length)
    return calls(
        lambda tensor, rows: (
            aten._scaled_dot_product_flash_attention_for_cpu(tensor, tensor, tensor),
            aten._scaled_dot_product_flash_attention_for_cpu_backward(
                tensor, tensor, tensor, tensor, tensor, rows, 0.0, False
            ),
        ),
        tensor,
        rows,
    )


def test_fused_attention_on_cpu_counts_the_flops_of_the_cuda_kernels(attention_nodes):
    pairs = 2 * 3 * 64 * 64
    forward = cost_of(aten._scaled_dot_product_flash_attention_for_cpu.default, attention_nodes)
    backward = cost_of(aten._scaled_dot_product_flash_attention_for_cpu_backward.default, attention_nodes)
    assert forward.flops == 2 * 2 * pairs * 16
    assert backward.flops == 5 * 2 * pairs * 16


def test_the_scratch_of_fused_attention_backward_depends_on_the_threads_and_is_kept_apart(attention_nodes):
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cost_of(backward, attention_nodes).working_bytes
        torch.set_num_threads(2)
        together = cost_of(backward, attention_nodes).working_bytes
    finally:
        torch.set_num_threads(threads)
    gradients = 3 * 2 * 3 * 64 * 16 * 4
    assert gradients < alone < together


def test_integers_are_valid_indices_for_embedding_and_loss():
    def function(weight, indices, targets):
        logits = torch.nn.functional.embedding(indices, weight)
        return torch.nn.functional.cross_entropy(logits, targets)

    nodes = calls(function, torch.randn(5, 9), torch.tensor([1, 4]), torch.tensor([8, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost_of(aten.embedding.default, nodes).working_bytes == 2 * 9 * 4


def test_expanded_and_transposed_operands_keep_their_strides():
    nodes = calls(lambda tensor, row: torch.add(tensor.t(), row.expand(20, 30)), torch.randn(30, 20), torch.randn(30))
    assert "(1, 20)cpu, f32[20, 30](0, 1)cpu" in next(
        call_signature(node) for node in nodes if node.target is aten.add.Tensor
    )
    assert cost_of(aten.add.Tensor, nodes).working_bytes == 600 * 4


def test_equal_calls_have_equal_signatures_whatever_their_nodes_are_called():
    def function(first, second):
        return torch.mm(first, second), torch.mm(second, first), torch.mm(first, first)

    first, second, square = calls(function, torch.randn(4, 4), torch.randn(4, 4))
    assert call_signature(first) == call_signature(second) != call_signature(square)
    assert call_signature(first) == "aten.mm.default(f32[4, 4](4, 1)cpu, f32[4, 4](4, 1)cpu)"
    (repeated,) = calls(torch.mm, torch.randn(4, 4), torch.randn(4, 4))
    assert call_signature(repeated) == call_signature(first)


def test_constants_dtypes_and_strides_tell_signatures_apart():
    tensor = torch.randn(4, 6)
    variants = [
        calls(lambda t: t.sum(0), tensor),
        calls(lambda t: t.sum(1), tensor),
        calls(lambda t: t.sum(0), tensor.double()),
        calls(lambda t: t.sum(0), torch.randn(6, 4).t()),
        calls(lambda t: t.sum(0, dtype=torch.float64), tensor),
    ]
    assert len({call_signature(nodes[0]) for nodes in variants}) == len(variants)


def test_the_choice_of_one_output_costs_nothing():
    nodes = calls(lambda tensor: torch.max(tensor, 0)[0], torch.randn(4, 6))
    costs = measure_costs(nodes, "cpu")
    assert costs[call_signature(nodes[-1])] == Cost(0.0, 0, 0)


def test_a_second_measurement_comes_from_the_cache(own_cache, monkeypatch):
    nodes = calls(torch.mm, torch.randn(30, 20), torch.randn(20, 7))
    first = measure_costs(nodes, "cpu")
    monkeypatch.setattr(time_kernels, "measure_allocations", None)
    assert measure_costs(nodes, "cpu") == first
    assert [path.suffix for path in own_cache.iterdir()] == [".json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kernels": {"a": 3}}', "\x00\xff"])
def test_a_damaged_cache_is_ignored_and_written_again(own_cache, damage):
    nodes = calls(torch.mm, torch.randn(30, 20), torch.randn(20, 7))
    measure_costs(nodes, "cpu")
    (path,) = own_cache.iterdir()
    path.write_text(damage)
    assert measure_costs(nodes, "cpu")[call_signature(nodes[0])].working_bytes == 30 * 7 * 4
    assert call_signature(nodes[0]) in json.loads(path.read_text())["kernels"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    nodes = calls(torch.mm, torch.randn(3, 2), torch.randn(2, 7))
    assert measure_costs(nodes, "cpu")[call_signature(nodes[0])].working_bytes == 3 * 7 * 4


def test_what_two_processes_measured_is_kept_by_both():
    device = torch.device("cpu")
    first, second = cost_cache.CostCache.load(device), cost_cache.CostCache.load(device)
    first.add("one", cost_cache.Measurement(1.0, 10))
    second.add("two", cost_cache.Measurement(2.0, None))
    first.save()
    second.save()
    measurements = cost_cache.CostCache.load(device).measurements
    assert measurements == {"one": cost_cache.Measurement(1.0, 10), "two": cost_cache.Measurement(2.0, None)}


def test_inside_a_users_profiler_the_outputs_are_counted_and_the_profiler_goes_on(own_cache):
    nodes = calls(lambda tensor: tensor.exp(), torch.randn(10, 10))
    with profile(activities=[ProfilerActivity.CPU]) as users:
        with pytest.warns(UserWarning, match="a profiler is running"):
            cost = cost_of(aten.exp.default, nodes)
        torch.ones(3)
    assert cost.working_bytes == 400
    assert cost.seconds > 0
    assert "aten::ones" in {event.name for event in users.events()}
    (path,) = own_cache.iterdir()
    assert json.loads(path.read_text())["kernels"][call_signature(nodes[0])][1] is None


@torch.library.custom_op("lowtide_tests::of_sevens", mutates_args=())
def of_sevens(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Doubles a tensor of sevens. It accepts no other tensor, so it cannot be run on generated operands."""
    if not bool((tensor == 7).all()):
        raise ValueError("not all sevens")
    return tensor * 2


@of_sevens.register_fake
def _(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor)


def test_a_kernel_that_cannot_run_alone_is_named_and_bounded_from_above():
    operator = torch.ops.lowtide_tests.of_sevens.default
    nodes = calls(lambda tensor, mask: operator(tensor, mask), torch.full((4, 4), 7.0), torch.ones(4, 4).bool())
    with pytest.warns(UserWarning, match=r"of_sevens.* cannot be run alone \(ValueError: not all sevens\)"):
        cost = cost_of(operator, nodes)
    output, mask, places = 4 * 4 * 4, 4 * 4, 4 * 4 * 2 * 8
    assert cost.working_bytes == 2 * output + output + mask + places


def test_what_was_refused_on_made_up_operands_runs_on_fitting_ones():
    eye = torch.eye(4)
    nodes = calls(lambda tensor: aten.linalg_cholesky_ex(tensor, check_errors=True), eye)
    needed_bytes = lowtide.measure_peak(lambda: aten.linalg_cholesky_ex(eye, check_errors=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost_of(aten.linalg_cholesky_ex.default, nodes).working_bytes == needed_bytes


def test_the_users_tensors_and_modes_are_left_alone():
    weight = torch.randn(6, 6, requires_grad=True)
    before, version = weight.detach().clone(), weight._version
    nodes = calls(lambda tensor: tensor.mul_(2).add_(1), weight.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measure_costs(nodes, "cpu")
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(weight, before)
    assert weight._version == version


def test_progress_is_reported_kernel_by_kernel():
    nodes = calls(lambda a, b: (a @ b).exp(), torch.randn(4, 4), torch.randn(4, 4))
    reports = []
    measure_costs(nodes, "cpu", progress=lambda *report: reports.append(report))
    assert reports[-1][:2] == (2, 2)
    assert {name for *_, name in reports} == {"aten.mm.default", "aten.exp.default"}


def test_measured_costs_of_a_device_that_is_not_here_are_refused():
    nodes = calls(torch.mm, torch.randn(3, 2), torch.randn(2, 7))
    with pytest.raises(LowtideError, match="cannot run kernels for 'h200-141gb'"):
        measure_costs(nodes, "cpu", preset="h200-141gb")
    with pytest.raises(LowtideError, match="choose 'measured', 'roofline' or 'flops'"):
        measure_costs(nodes, "cpu", costs="guessed")


@pytest.mark.gpu
def test_on_cuda_a_product_holds_its_output():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    nodes = calls(torch.mm, torch.randn(64, 64, device="cuda"), torch.randn(64, 64, device="cuda"))
    cost = measure_costs(nodes, "cuda")[call_signature(nodes[0])]
    assert cost.working_bytes == 64 * 64 * 4
    assert cost.seconds > 0


def test_by_flops_what_moves_bytes_costs_next_to_nothing_but_not_nothing():
    # otherwise a loose budget would still run everything but matrix products again
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64), torch.nn.GELU()] * 4)
    batch = (torch.randn(512, 64),)
    loose = lowtide.plan(model, "100%", batch, costs="flops")
    runs = [instruction.op for instruction in loose.schedule.instructions if isinstance(instruction, Run)]
    assert len(runs) == len(set(runs))
    assert loose.extra_seconds == 0
    assert any(0 < plan.extra_share < 1e-3 for plan in lowtide.sweep(model, batch, costs="flops"))
