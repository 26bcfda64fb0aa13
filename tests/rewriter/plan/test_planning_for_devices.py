"""Plans for a device that is not here, of models whose weights are nowhere."""

import lowtide
import pytest
import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model

SEQUENCE = 4096


def kinds(plan):
    return {op.kind.split("(")[0].removeprefix("compute > ") for op in plan.problem.ops}


@pytest.fixture(scope="module")
def two_layers_of_llama_70b():
    model = build_model("llama-70b", overrides={"num_hidden_layers": 2}, meta=True)
    return model, sample_batch(model, 1, SEQUENCE)


def test_attention_of_a_model_on_meta_is_planned_as_the_gpus_fused_kernel(two_layers_of_llama_70b):
    model, batch = two_layers_of_llama_70b
    plan = lowtide.plan(model, "100%", kwargs=batch, costs="roofline", device="h200-141gb")
    assert "aten._scaled_dot_product_flash_attention.default" in kinds(plan)
    heads = model.config.num_attention_heads
    made_bytes = [v.size_bytes for v in plan.problem.values if not v.resident]
    returned = SEQUENCE * model.config.vocab_size * 4  # logits, upcast for the loss
    assert sorted(made_bytes)[-1] <= max(returned, model.config.vocab_size * model.config.hidden_size * 2)
    assert all(size < heads * SEQUENCE * SEQUENCE for size in made_bytes if size not in (returned, returned // 2))


def test_a_plan_on_meta_counts_the_parameters_that_are_nowhere(two_layers_of_llama_70b):
    model, batch = two_layers_of_llama_70b
    plan = lowtide.plan(model, "100%", kwargs=batch, costs="roofline", device="h200-141gb")
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    assert parameters <= plan.problem.resident_bytes <= parameters * 1.001 + 2**20
    assert not torch.cuda.is_initialized()


def test_a_masked_batch_is_planned_with_the_gpus_memory_efficient_attention():
    model = build_model(
        "llama", overrides={"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 200}
    )
    batch = sample_batch(model, 2, 32, padded=True)
    plan = lowtide.plan(model, "100%", kwargs=batch, costs="roofline", device="a100-80gb")
    assert "aten._scaled_dot_product_efficient_attention.default" in kinds(plan)


def test_dropout_is_planned_as_the_gpus_fused_kernel():
    model = build_model("gpt2", overrides={"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 200})
    plan = lowtide.plan(model.train(), "100%", kwargs=sample_batch(model, 2, 16), costs="flops", device="rtx4090")
    assert "aten.native_dropout.default" in kinds(plan)
    assert not any("bernoulli" in kind for kind in kinds(plan))


def test_bytes_on_a_gpu_are_counted_in_the_allocators_steps():
    model = build_model("gpt2", overrides={"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 200})
    plan = lowtide.plan(model, "100%", kwargs=sample_batch(model, 2, 16), costs="roofline", device="h200-141gb")
    assert all(value.size_bytes % 512 == 0 for value in plan.problem.values)
    assert plan.problem.resident_bytes % 512 == 0


def test_a_module_rewritten_for_a_gpu_that_is_not_here_says_that_it_is_for_planning_only():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    inputs = (torch.randn(3, 4),)
    small = lowtide.rewrite(model, "100%", inputs, costs="roofline", device="h200-141gb")
    with pytest.raises(lowtide.LowtideError, match="planning only"):
        small(*inputs)
