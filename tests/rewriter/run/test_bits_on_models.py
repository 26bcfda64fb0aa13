"""Small models of every kind: bits equal to eager's, peaks predicted to the byte, at budgets from all to the least."""

import copy
import functools
import itertools
from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import LowtideWarning
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from side_by_side import differences, trained
from small_models import SMALL, small_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Shapes at which activations outweigh parameters, so that budgets have room: (batch, sequence).
ROOM = {"gpt2": (8, 32), "llama": (8, 64), "bert": (8, 40), "roberta": (8, 38), "vit": (8, 32), "qwen3": (8, 64)}


# RoBERTa and Qwen 3 are planned like BERT and Llama; `benchmarks.models` trains them with hundreds of others.
KINDS = [name for name in SMALL if name not in ("roberta", "qwen3")]


@functools.cache
def case(name: str) -> tuple[Any, dict[str, Any], list[Any]]:
    """A small model, the arguments of a call, and plans from the fastest to the smallest."""
    model, kwargs = small_model(name)
    if name in ROOM:
        kwargs = sample_batch(model, *ROOM[name])
    return model, kwargs, lowtide.sweep(model, (), kwargs, costs="flops", count=24)


def budgets(plans: list[Any]) -> list[int]:
    """100 %, 60 % and the smallest feasible; a share below the smallest is the smallest."""
    baseline, smallest = plans[0].baseline_peak_bytes, plans[-1].peak_bytes
    return sorted({max(int(share * baseline), smallest) for share in (1.0, 0.6, 0.0)}, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_three_steps_are_equal_to_the_bit_and_peak_where_predicted(name):
    model, kwargs, plans = case(name)
    for budget in budgets(plans):
        # The sweep has solved the step already.
        report = lowtide.verify(model, budget, (), kwargs, costs="flops", plan=_fitting(plans, budget))
        assert report.same_bits and not report.unstable, report
        assert report.measured_peak_bytes == report.plan.peak_bytes, report
        assert max(report.measured_peak_bytes, report.dropped_peak_bytes) <= budget, report


@pytest.mark.parametrize("name", KINDS)
def test_a_smaller_budget_never_peaks_higher_nor_runs_faster(name):
    _, _, plans = case(name)
    largest, smallest = plans[0].baseline_peak_bytes, plans[-1].peak_bytes
    budgets = [smallest + (largest - smallest) * step // 11 for step in range(12)]
    fitting_plans = [plan for plan in (_fitting(plans, budget) for budget in budgets) if plan is not None]
    assert len(fitting_plans) >= 10
    for tight, loose in itertools.pairwise(fitting_plans):
        assert tight.peak_bytes <= loose.peak_bytes and tight.extra_seconds >= loose.extra_seconds


def _fitting(plans: list[Any], budget: int) -> Any:
    return next((plan for plan in plans if plan.peak_bytes <= budget), None)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_transformers_have_room_below_half_of_everything_kept(name):
    _, _, plans = case(name)
    assert plans[-1].peak_bytes <= 0.5 * plans[-1].baseline_peak_bytes


@pytest.mark.parametrize("costs", ["measured", "roofline"])
def test_other_cost_tables_change_the_choice_and_not_the_bits(costs):
    model, _ = small_model("gpt2", layers=1)
    report = lowtide.verify(model, "70%", (), sample_batch(model, *ROOM["gpt2"]), costs=costs, steps=1)
    assert report.ok, report


# In the tests below any plan that recomputes will do, and this solver is quick.
QUICK = {"costs": "flops", "solver": "rotor"}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_padded_batch_after_a_full_one_is_another_program_and_both_stay_right(name):
    model, _ = small_model(name, layers=1)
    full, padded = (sample_batch(model, 4, 24, padded=padded) for padded in (False, True))
    full["attention_mask"] = torch.ones_like(full["input_ids"])
    assert not padded["attention_mask"].all()
    full["use_cache"] = padded["use_cache"] = False

    def step(module: Any) -> list[torch.Tensor]:
        losses = []
        for kwargs in (full, padded, full, padded):
            losses.append(module(**kwargs).loss)
            losses[-1].backward()
        return losses

    small = lowtide.rewrite(copy.deepcopy(model), "1GiB", (), full, **QUICK)
    assert differences(trained(model, step, 2), trained(small, step, 2)) == []
    guards = [step.measured.captured.guard for step in small.lowtide.steps]
    assert len(guards) == 2 and None not in guards


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_padded_batch_peaks_where_predicted(name):
    model, _ = small_model(name)
    report = lowtide.verify(model, "90%", (), sample_batch(model, 4, 16, padded=True), steps=1, **QUICK)
    assert report.ok, report


@pytest.mark.parametrize("heads", [1, 2])
def test_grouped_queries_keep_their_fused_kernel(heads):
    model = build_model("llama", overrides={**SMALL["llama"], "num_key_value_heads": heads, "num_hidden_layers": 2})
    report = lowtide.verify(model, "60%", (), sample_batch(model, *ROOM["llama"]), **QUICK)
    assert report.ok, report
    assert "repeat" not in "".join(op.kind for op in report.plan.problem.ops)


@pytest.mark.parametrize(("name", "layers"), [("gpt2", 1), ("resnet", None)])
def test_autocast_to_bfloat16_is_followed(name, layers):
    model, kwargs = small_model(name, layers=layers)
    with torch.autocast("cpu", torch.bfloat16):
        plans = lowtide.sweep(model, (), kwargs, costs="flops", count=2)
        for budget, plan in (("100%", plans[0]), (plans[-1].peak_bytes, plans[-1])):
            report = lowtide.verify(model, budget, (), kwargs, costs="flops", plan=plan)
            assert report.ok, report
    assert "bf16" in "".join(op.kind for op in report.plan.problem.ops)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_other_dtypes_are_equal_to_the_bit(name, dtype):
    model, kwargs = small_model(name, dtype=dtype, layers=1)
    assert lowtide.verify(model, "90%", (), kwargs, **QUICK).ok


def test_attention_written_out_is_equal_to_the_bit():
    model, kwargs = small_model("gpt2", layers=1)
    model.set_attn_implementation("eager")
    smallest = lowtide.sweep(model, (), kwargs, costs="flops", count=2)[-1]
    report = lowtide.verify(model, smallest.peak_bytes, (), kwargs, costs="flops", plan=smallest)
    assert report.ok, report


def test_gradient_checkpointing_of_the_model_is_passed_over():
    model, _ = small_model("gpt2", layers=2)
    kwargs = sample_batch(model, *ROOM["gpt2"])
    model.config.use_cache = False  # as transformers sets it for checkpoints
    plan = lowtide.plan(model, "60%", (), kwargs, **QUICK)
    model.gradient_checkpointing_enable()
    with pytest.warns(LowtideWarning, match="hooks on inner modules do not fire .*: transformer.wte"):
        report = lowtide.verify(model, "60%", (), kwargs, **QUICK)
    assert report.ok and report.plan.problem.ops == plan.problem.ops, report
    assert (report.plan.baseline_peak_bytes, report.plan.peak_bytes) == (plan.baseline_peak_bytes, plan.peak_bytes)


def test_fewer_outputs_make_a_smaller_step():
    model, kwargs = small_model("gpt2", layers=1)
    options = {"costs": "flops", "solver": "keep_all"}
    whole = lowtide.plan(model, "100%", (), kwargs, **options)
    report = lowtide.verify(model, "100%", (), kwargs, outputs=["loss"], steps=1, **options)
    assert report.measured_peak_bytes == report.plan.peak_bytes < whole.peak_bytes


def test_two_threads_are_planned_for_and_measured_alike():
    torch.set_num_threads(2)
    model, _ = small_model("gpt2", layers=1)
    report = lowtide.verify(model, "80%", (), sample_batch(model, *ROOM["gpt2"]), steps=1, **QUICK)
    assert report.measured_peak_bytes == report.plan.peak_bytes and report.within_budget, report
