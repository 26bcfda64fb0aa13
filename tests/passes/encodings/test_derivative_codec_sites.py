"""Activations' derivatives kept in few bits: which values have such codes, and training with them."""

import ast
import copy
import itertools
from math import inf

import lowtide
import pytest
import torch
import torch.nn.functional as F
from encoded_plans import OPTIONS, with_all_encoded
from lowtide.rewriter.display.memory_timeline import peak_of
from small_networks import Called
from step_problems import formulated
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_peaks_are_predicted_however_many_borders_are_fitted(spread):
    torch.manual_seed(0)
    sizes = (32, 128, 32, 32, 128, 1)
    linear = [nn.Linear(*two) for two in itertools.pairwise(sizes)]
    network = nn.Sequential(linear[0], nn.GELU(), linear[1], linear[2], linear[3], nn.GELU(), linear[4])
    model, x = Called(lambda m, x: m.network(spread * x).square().mean(), network=network), torch.randn(512, 32)
    options = {"fidelity": "approximate", "error_budget": 0.05, "costs": "flops", "solver": "rotor"}
    report = lowtide.verify(model, "60%", (x,), steps=1, **options)
    values = report.plan.problem.values
    assert any("gelu'" in values[value].encodings[number].name for value, number in report.plan.encoded)
    assert report.ok and report.measured_peak_bytes == report.plan.peak_bytes, str(report)


def codes_of(activation):
    """Return by value the names of its codecs, of a layer and an activation whose sum is the loss."""
    model = Called(lambda m, x: activation(m.layer(x)).sum(), layer=nn.Linear(64, 64))
    x = torch.randn(512, 64)
    mapping = formulated(model, (x,), {}, fidelity="approximate", costs="flops").mapping
    return {value.name: {encoding.name for encoding in value.encodings} for value in mapping.problem.values}


@pytest.mark.parametrize(
    ("activation", "value", "name"),
    [
        (torch.sigmoid, "sigmoid_default", "sigmoid"),
        (torch.tanh, "tanh_default", "tanh"),
        (F.tanhshrink, "tanh_default", "tanh"),
        (F.hardswish, "addmm_default", "hardswish"),
        (lambda x: F.elu(x, 2.0), "addmm_default", "elu"),
        (lambda x: F.elu(x, inplace=True), "elu_default", "elu"),
        (F.selu, "addmm_default", "elu"),
        (F.celu, "addmm_default", "elu"),
        (lambda x: F.softplus(x, 2.0, 5.0), "addmm_default", "softplus"),
        (lambda x: F.softplus(x, 2.0, inf), "addmm_default", "softplus"),
        (F.logsigmoid, "getitem_1", "logsigmoid"),
    ],
)
def test_what_an_activation_s_backward_alone_reads_has_codes_of_its_derivative(activation, value, name):
    assert {f"{bits}-bit {name}'" for bits in (1, 2, 3, 4, 6, 8)} <= codes_of(activation)[value]


def test_the_sign_that_logsigmoid_keeps_too_is_exact_in_a_bit():
    assert codes_of(F.logsigmoid)["addmm_default"] == {"1-bit 0 ≤ x"}


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: torch.sigmoid(x).square(),
        lambda x: F.softplus(x) * F.silu(x),
        lambda x: F.softplus(x, 0.0),  # whose derivative is a half everywhere
        lambda x: F.softplus(x, inf),  # and here no number at 0
        lambda x: F.elu(x, inf),
        lambda x: torch.ops.aten.elu(x, 1.0, 0.0),
    ],
)
def test_what_is_read_otherwise_too_or_has_no_levels_has_none(activation):
    assert not any(name.endswith("'") for names in codes_of(activation).values() for name in names)


ACTIVATIONS = (F.gelu, F.elu, torch.tanh, torch.sigmoid, F.logsigmoid, lambda x: F.softplus(x, 2.0, 5.0), F.silu)


def residual(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Layers whose activations nothing but their sum and their own backward reads."""
    for layer, activation in zip(m.layers, ACTIVATIONS, strict=True):
        x = x + activation(layer(x))
    return {"loss": x.square().mean()}


def test_a_step_with_codes_of_derivatives_is_as_far_from_eager_s_as_predicted():
    torch.manual_seed(0)
    model = Called(residual, layers=nn.ModuleList(nn.Linear(48, 48) for _ in ACTIVATIONS))
    derivatives = [f"{name}'" for name in ("elu", "tanh", "sigmoid", "softplus", "gelu")]
    batch = {"x": torch.randn(1024, 48)}
    plan = with_all_encoded(model, batch, [f"4-bit {derivative}" for derivative in derivatives])
    names = {plan.problem.values[value].encodings[number].name for value, number in plan.encoded}
    assert {name.partition(" ")[2] for name in names} == set(derivatives)
    report = lowtide.verify(model, plan.peak_bytes, (), batch, plan=plan, **OPTIONS, outputs=["loss"])
    assert report.ok, str(report)
    assert report.plan.encoding_error > 0
    assert report.measured_peak_bytes == report.plan.peak_bytes


def keywords_of(code, operation):
    """Return the arguments by name of the one call of an operation in generated code."""
    calls = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    (call,) = (node for node in calls if ast.unparse(node.func) == f"lowtide.{operation}.default")
    return {node.arg: ast.literal_eval(node.value) for node in call.keywords}


class Levels(torch.autograd.Function):
    """An activation whose derivative is constant between borders."""

    @staticmethod
    def forward(ctx, x, activation, borders, level_of_interval, levels):
        """The exact activation."""
        levels = torch.tensor(levels)[torch.tensor(level_of_interval)]
        ctx.save_for_backward(levels.to(x.dtype)[torch.bucketize(x.detach(), torch.tensor(borders), right=True)])
        return activation(x)

    @staticmethod
    def backward(ctx, gradient):
        """The gradient times levels."""
        return gradient * ctx.saved_tensors[0], None, None, None, None


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_backward_multiplies_with_the_levels_of_the_code_itself(activation):
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 96, "n_head": 2, "vocab_size": 61, "n_positions": 32}
    drops = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **drops, activation_function=activation))
    ids = torch.randint(61, (4, 32))
    batch = {"input_ids": ids, "labels": ids}
    plan = with_all_encoded(model, batch, ("3-bit gelu",))
    ((value, number),) = plan.encoded
    encoding = plan.problem.values[value].encodings[number]
    assert encoding.read_itself_bytes is not None
    small = lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (), batch, plan=plan, **OPTIONS, outputs=["loss"])
    code = small.code
    assert "decode_levels" not in code
    assert "gelu_backward.default" not in code

    borders = keywords_of(code, "encode_by_borders")
    levels = keywords_of(code, "multiply_levels")["levels"]
    original = model.transformer.h[0].mlp.act
    exact = model.transformer.h[0].mlp.act = Called(
        lambda m, x: Levels.apply(x, m.activation, borders["borders"], borders["level_of_interval"], levels),
        activation=original,
    )
    for module in (small, model):
        module(**batch)["loss"].backward()
    for (name, parameter), expected in zip(small.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, expected.grad, rtol=2e-5, atol=1e-7, msg=lambda message, n=name: f"{n}: {message}"
        )
    exact.activation = None
    model.transformer.h[0].mlp.act = original
    report = lowtide.verify(model, plan.peak_bytes, (), batch, plan=plan, **OPTIONS, outputs=["loss"])
    assert peak_of(plan).operation == "gelu_backward"
    assert report.measured_peak_bytes == plan.peak_bytes


@pytest.mark.parametrize(
    ("loss", "read_themselves"),
    [
        (lambda m, x: F.gelu(m.layer(x)).square().sum(), True),
        (lambda m, x: F.gelu(m.layer(x).view(8, 64, 64)).square().sum(), True),
        (lambda m, x: F.gelu(m.layer(x)).sum(), False),  # the gradient is one number for all elements
        (lambda m, x: F.gelu(m.layer(x)).t().contiguous().square().sum(), False),  # and here it lies in columns
        (lambda m, x: F.gelu(m.layer(x)[:, :32]).square().sum(), False),
        (lambda m, x: F.logsigmoid(m.layer(x)).square().sum(), False),  # the derivative is a function of the sign too
    ],
)
def test_codes_are_read_themselves_where_the_gradient_lies_in_memory_as_the_value_did(loss, read_themselves):
    model = Called(loss, layer=nn.Linear(64, 64))
    mapping = formulated(model, (torch.randn(512, 64),), {}, fidelity="approximate", costs="flops").mapping
    encodings = [
        encoding for value in mapping.problem.values for encoding in value.encodings if encoding.name.endswith("'")
    ]
    assert {encoding.is_read_itself for encoding in encodings} == {read_themselves}
