"""Integers that are indices of something of known size are kept in fewer bytes, and training stays exact."""

import lowtide
import pytest
import torch
from lowtide.passes.encodings.index_bounds import codecs_that_narrow
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.plan.measured_step import measure_step
from lowtide.rewriter.plan.options import Options
from small_networks import Called
from torch import nn
from torch.nn import functional

ROWS = 700


def narrowed(function, *args, **parts):
    """Return the possible codecs of each int64 tensor that forward makes and backward reads."""
    model = Called(function, **parts)
    step = measure_step(model, args, {}, Options(costs="flops")).step
    read = {s for kernel in step.kernels if kernel.phase == "backward" for s in kernel.reads}
    made = {s for kernel in step.kernels if kernel.phase == "forward" for s in kernel.makes}
    integers = [s for s in sorted(made & read) if step.storages[s].base.meta["val"].dtype == torch.int64]
    return [[codec.name for codec in codecs_that_narrow(step, storage)] for storage in integers]


def places(x, count):
    """Indices that depend on data."""
    return (x.abs() * 1000).long() % count


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda m, x: m.table(places(x, 32)), ["uint8"]),
        (lambda m, x: m.table.weight[places(x, 32) - 32], ["int8"]),
        (lambda m, x: m.table.weight.index_select(0, places(x[:, 0], 32)), ["uint8"]),
        (lambda m, x: m.layer(x).gather(1, places(x, 300)), ["int16"]),
        (lambda m, x: torch.zeros(ROWS, 300).scatter_add(1, places(x, 300), m.layer(x)[:, :8]), ["int16"]),
        (lambda m, x: torch.zeros(ROWS, 300).scatter(1, places(x, 300), m.layer(x)[:, :8]), ["int16"]),
        (lambda m, x: m.layer(x).topk(5).values, ["int16"]),
        (lambda m, x: m.layer(x).sort(1).values, ["int16"]),
        (lambda m, x: m.layer(x).max(1).values, ["int16"]),
        (lambda m, x: functional.cross_entropy(m.layer(x), places(x[:, 0], 300)), ["int16"]),
        (lambda m, x: functional.cross_entropy(m.layer(x), places(x[:, 0], 300), ignore_index=1 << 20), ["int32"]),
        # looked up in a part only: the others may be anything
        (lambda m, x: (i := places(x, 32), m.table(i[:, :4]).sum() + (m.table.weight.sum() * i).sum())[1], [[]]),
        (lambda m, x: m.layer(x).sum() * places(x, 32), [[]]),  # numbers and no indices
    ],
)
def test_bounds_are_those_of_what_is_indexed(function, names):
    parts = {"table": nn.Embedding(32, 4), "layer": nn.Linear(8, 300)}
    codec_names = narrowed(function, torch.randn(ROWS, 8), **parts)
    assert codec_names == [[name] if name else [] for name in names]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: functional.embedding(i, x),
        lambda x, i: x.gather(0, i.view(-1, 1)),
        lambda x, i: x.scatter(0, i.view(-1, 1), 1.0),
        lambda x, i: x.scatter_add(0, i.view(-1, 1), x),
        lambda x, i: x.scatter_reduce(0, i.view(-1, 1), x, "sum"),
        lambda x, i: x.index_select(0, i),
        lambda x, i: x.index_add(0, i, x[: len(i)]),
        lambda x, i: functional.nll_loss(x.t().expand(len(i), -1), i),
    ],
)
def test_eager_raises_where_bounds_are_taken_from_what_is_indexed(function):
    x, index = torch.randn(8, 1), torch.tensor([0, 7, 3])
    function(x, index)
    for wrong in (-1, 8):
        index[1] = wrong
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            function(x, index)


def tightest_narrowed(model, *args, **kwargs):
    """The plan of the smallest peak that keeps integers narrow."""
    plans = lowtide.sweep(model, args, kwargs, count=60, costs="flops")
    narrowed_plans = [plan for plan in plans if any("int" in name for name in codes(plan))]
    assert narrowed_plans, "nothing is narrowed at any budget"
    return narrowed_plans[-1]


def codes(plan):
    """The names of the codes that a plan keeps."""
    return {plan.problem.values[value].encodings[number].name for value, number in plan.encoded}


def test_the_buckets_of_t5_take_a_byte_each_and_training_is_exact():
    sizes = {"vocab_size": 200, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = build_model("t5", overrides=sizes)
    batch = sample_batch(model, 1, 64)
    plan = tightest_narrowed(model, **batch)
    small = lowtide.rewrite(model, plan.peak_bytes, (), batch, costs="flops", plan=plan)
    assert "lowtide.narrow_to_uint8.default(" in small.code and "lowtide.widen_integers.default(" in small.code
    report = lowtide.verify(model, plan.peak_bytes, (), batch, costs="flops", plan=plan)
    assert report.ok and report.same_bits, str(report)


def sorted_layers(m, x):
    """Layers between which rows change places by what they hold."""
    for layer in m.layers:
        y = layer(x)
        x = x.gather(1, y.argsort(dim=1)).square() + torch.relu(y)
    return x.square().mean()


def test_indices_computed_in_forward_are_kept_narrow_and_training_is_exact():
    torch.manual_seed(0)
    model, x = Called(sorted_layers, layers=nn.ModuleList(nn.Linear(64, 64) for _ in range(4))), torch.randn(128, 64)
    plan = tightest_narrowed(model, x)
    assert codes(plan) >= {"uint8"}
    report = lowtide.verify(model, plan.peak_bytes, (x,), costs="flops", plan=plan)
    assert report.ok and report.same_bits, str(report)


def test_an_index_out_of_bounds_raises_as_in_eager():
    model = Called(lambda m, x, i: m.table(i + 0).square().mean() + x.mean(), table=nn.Embedding(32, 4))
    x, index = torch.randn(4, requires_grad=True), torch.randint(32, (2000,))
    small = lowtide.rewrite(model, "100%", (x, index), costs="flops")
    for module in (model, small):
        with pytest.raises(IndexError):
            module(x, index + 32)
