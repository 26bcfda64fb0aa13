"""The values that may be kept approximately, and the reports about them."""

import json
from math import inf

import lowtide
import pytest
import torch
import torch.nn.functional as F
from lowtide.rewriter.display.memory_timeline import peak_of
from lowtide.rewriter.display.tables import plan_text
from lowtide.rewriter.text.byte_sizes import format_bytes
from lowtide.solvers.problem.schedule import Decode, Encode
from rich.console import Console
from small_networks import Called
from step_problems import formulated, variants_of
from torch import nn


def codecs_of(model, *args):
    """The names of all codecs that values of a step have."""
    mapping = formulated(model, args, {}, fidelity="approximate", costs="flops").mapping
    return {encoding.name for value in mapping.problem.values for encoding in value.encodings}


class Activated(nn.Module):
    """Two layers with an activation between them, and a loss."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.activation, self.second = nn.Linear(64, 64), activation, nn.Linear(64, 64)

    def forward(self, x):
        """The loss."""
        return self.second(self.activation(self.first(x))).square().mean()


@pytest.mark.parametrize(
    ("activation", "name"),
    [(nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.SiLU(), "silu"), (nn.Mish(), "mish")],
)
def test_what_only_an_activation_s_backward_reads_has_codes_of_its_derivative(activation, name):
    assert f"3-bit {name}'" in codecs_of(Activated(activation), torch.randn(512, 64))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardtanh(), nn.LeakyReLU(), nn.ELU()])
def test_what_is_compared_with_a_threshold_is_not_rounded(activation):
    model = nn.Sequential(nn.Linear(64, 64), activation)  # the last layer's input is what backward compares
    assert not any("groups" in name for name in codecs_of(model, torch.randn(512, 64)))


class Attending(nn.Module):
    """One layer of attention, and how sharp it is."""

    def __init__(self, sharpness=1.0, width=64):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.sharpness = sharpness

    def forward(self, x):
        """The mean of squares."""
        heads = [part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        heads[0] = self.sharpness * heads[0]
        return F.scaled_dot_product_attention(*heads, is_causal=True).square().mean()


def test_what_attention_exponentiates_has_codes_of_many_bits_only():
    options = {"fidelity": "approximate", "costs": "flops", "codecs": ("groups",)}
    mapping = formulated(Attending(), (torch.randn(8, 64, 64),), {}, **options).mapping
    of_attention = {
        v for op in mapping.problem.ops if "attention" in op.name and "backward" in op.name for v in op.reads
    }
    values = [mapping.problem.values[value] for value in of_attention if mapping.problem.values[value].encodings]
    bits = sorted({min(int(encoding.name[0]) for encoding in value.encodings) for value in values})
    assert bits == [2, 6] and len(values) >= 4
    exponentiated = [value for value in values if min(int(encoding.name[0]) for encoding in value.encodings) == 6]
    assert len(exponentiated) == 3  # queries, keys, and the logarithms of sums


@pytest.mark.parametrize("function", [torch.exp, torch.expm1, lambda h: torch.log_softmax(h, -1)])
def test_what_a_formula_exponentiates_has_codes_of_many_bits_only(function):
    def product(module, x):
        h = module.first(x)
        return module.second(function(h) * h).square().mean()

    model = Called(product, first=nn.Linear(64, 64), second=nn.Linear(64, 64))
    options = {"fidelity": "approximate", "costs": "flops", "codecs": ("groups",)}
    encodings = []
    for variant in variants_of(model, (torch.randn(512, 64),), {}, **options):
        problem = variant.mapping.problem
        exponentials = (op for op in problem.ops[problem.forward_length :] if op.name.startswith(("exp", "_log_")))
        encodings += [problem.values[value].encodings for op in exponentials for value in op.reads]
    assert any(encodings)
    assert all(int(encoding.name[0]) >= 6 for of_value in encodings for encoding in of_value)


@pytest.mark.parametrize(
    ("function", "read"),
    [
        (torch.log, "add"),
        (torch.sqrt, "sqrt"),  # of which its backward takes twice the result for a denominator
        (lambda v: v**1.5, "add"),
        (lambda v: v**-2.0, "add"),
    ],
)
def test_what_backward_divides_by_or_takes_a_root_of_is_kept_without_noise(function, read):
    def divided(module, x):
        h = module.first(x)
        return module.second(function(h * h + 0.5)).square().mean()

    model = Called(divided, first=nn.Linear(64, 64), second=nn.Linear(64, 64))
    for variant in variants_of(model, (torch.randn(512, 64),), {}, fidelity="approximate", costs="flops"):
        problem = variant.mapping.problem
        kept = [
            problem.values[value]
            for value, maker in enumerate(problem.maker)
            if 0 <= maker < problem.forward_length and max(problem.readers[value], default=0) >= problem.forward_length
        ]
        has_encodings = {
            value.name.split("_")[0]: bool(value.encodings) for value in kept if value.size_bytes >= 512 * 64 * 4
        }
        assert has_encodings[read] is False and has_encodings["addmm"] is True


TARGET = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
CLASSES = TARGET.argmax(1)


def sampled(h):
    """Return a sampled image; image and places are both made of a layer's result."""
    image, places = h.exp().reshape(1, 8, 64, 64), torch.tanh(h).reshape(1, 256, 64, 2)
    return F.grid_sample(image, places, align_corners=False).mean()


def exact_values(loss):
    """The names of the values that two layers and a loss do not keep in groups of a few bits."""
    model = Called(
        lambda m, x: loss(m.second(torch.tanh(m.first(x)))), first=nn.Linear(64, 64), second=nn.Linear(64, 64)
    )
    mapping = formulated(model, (TARGET,), {}, fidelity="approximate", costs="flops").mapping
    encoded = {
        value.name for value in mapping.problem.values if any("groups" in encoding.name for encoding in value.encodings)
    }
    assert "tanh_default" in encoded  # which a product reads, and tanh's backward
    return {value.name for value in mapping.problem.values} - encoded


@pytest.mark.parametrize(
    "loss",
    [
        lambda h: F.smooth_l1_loss(h, TARGET),
        lambda h: F.huber_loss(h, TARGET, delta=0.1),
        lambda h: F.multi_margin_loss(h, CLASSES),
        lambda h: torch.cdist(h, TARGET[:32], p=1).mean(),
        lambda h: torch.cdist(h, TARGET[:32], p=inf).mean(),
        lambda h: F.pdist(h, p=1).mean(),
        lambda h: F.softplus(h, 1.0, 0.0).mean(),
        lambda h: h.renorm(2, 0, 1.0).mean(),  # whose backward makes norms, and compares them
    ],
)
def test_what_backward_compares_in_any_way_is_not_rounded(loss):
    assert "addmm_default_1" in exact_values(loss)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda h: torch.logit(torch.sigmoid(h), 0.1).mean(), "sigmoid_default"),
        (lambda h: F.binary_cross_entropy(torch.sigmoid(h), TARGET.sigmoid()), "sigmoid_default"),
        (lambda h: torch.remainder(TARGET, h.exp()).mean(), "exp_default"),
        (sampled, "tanh_default_1"),
    ],
)
def test_nor_is_what_an_activation_made(loss, value):
    assert value in exact_values(loss)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda h: torch.cdist(h, TARGET[:32], p=3.0).mean(), "addmm_default_1"),
        (lambda h: F.softplus(h).mean(), "addmm_default_1"),
        (sampled, "exp_default"),
    ],
)
def test_what_the_same_kernels_read_without_comparing_it_may_be(loss, value):
    assert value not in exact_values(loss)


class Attention(nn.Module):
    """Attention, whose operands its own backward alone reads, and a linear layer before it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 96)

    def forward(self, x):
        """The loss."""
        query, key, value = self.layer(torch.tanh(x)).view(4, 64, 3, 2, 16).permute(2, 0, 3, 1, 4).contiguous()
        return nn.functional.scaled_dot_product_attention(query, key, value).square().mean()


def test_rows_are_left_out_of_linear_layers_inputs_alone():
    mapping = formulated(Attention(), (torch.randn(4, 64, 32),), {}, fidelity="approximate", costs="flops").mapping
    sampled = {v.name for v in mapping.problem.values if any("of rows" in e.name for e in v.encodings)}
    assert sampled == {"tanh_default"}


class Mixed(nn.Module):
    """A linear layer whose result is read by a convolution, a linear layer or both, or as a convolution's weight."""

    def __init__(self, readers):
        super().__init__()
        self.readers = readers
        self.first, self.second, self.convolution = nn.Linear(8, 16), nn.Linear(16, 4), nn.Conv1d(16, 4, 1)

    def forward(self, x):
        """The loss."""
        h = self.first(x)  # [samples, places, 16]
        results = []
        if "linear" in self.readers:
            results.append(self.second(h))
        if "convolution" in self.readers:
            results.append(self.convolution(h.transpose(1, 2)))
        if "weight" in self.readers:
            results.append(nn.functional.conv1d(nn.functional.pad(x, (0, 16)), h))
        return torch.cat([result.square().mean()[None] for result in results]).sum()


def sites_of_mixed(readers):
    """Return the codec sites of the linear layer's result, 4 × 32 places with 16 features each."""
    options = {"fidelity": "approximate", "costs": "flops", "codecs": ("rows",)}
    measured = formulated(Mixed(readers), (torch.randn(4, 32, 8, requires_grad=True),), {}, **options).measured
    made = {number: storage.base.meta["val"].shape for number, storage in enumerate(measured.step.storages)}
    return [site for storage, sites in measured.codec_sites.items() if made[storage][-1] == 16 for site in sites]


@pytest.mark.parametrize("readers", ["linear", "convolution", "linear and convolution"])
def test_rows_are_places_whoever_reads_their_features(readers):
    sites = sites_of_mixed(readers)
    assert [site.codec.encode_options[1] for site in sites] == [64, 26, 13]
    assert all(site.encode.kwargs.get("dim", -1) == -1 for site in sites)


def test_of_a_convolution_s_weight_no_rows_are_left_out():
    assert not sites_of_mixed("linear and weight")


class Chosen(nn.Module):
    """Truth values that backward reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        """The loss."""
        h = self.a(x)
        return torch.where(h > 0, self.b(h), h.exp()).square().mean()


def test_truth_values_next_to_approximate_ones_are_exact():
    assert "bits" in codecs_of(Chosen(), torch.randn(512, 64))


def test_a_sample_without_variance_leaves_everything_exact_and_says_so():
    model = Activated(nn.GELU())
    x = torch.zeros(512, 64)
    plan = lowtide.plan(model, "100%", (x,), fidelity="approximate", costs="flops")
    assert plan.encoding_error == 0


def coded_plans():
    """Plans of a small step, many of them with codes."""
    torch.manual_seed(0)
    layers = (layer for _ in range(4) for layer in (nn.GELU(), nn.Linear(64, 64)))
    model = nn.Sequential(nn.Linear(64, 64), *layers)
    x = torch.randn(1024, 64)
    return lowtide.sweep(model, (x,), fidelity="approximate", costs="flops", error_budget=10.0, count=40)


def test_a_plan_reports_what_is_encoded_and_what_it_adds():
    plan = next(plan for plan in coded_plans() if plan.encoding_error)
    console = Console(width=100, record=True)
    console.print(plan_text("case", plan))
    text = " ".join(console.export_text().split())
    assert "variance added" in text and "to the gradient's variance" in text
    assert format_bytes(plan.peak_bytes) in text


def test_the_place_of_a_peak_is_reported_also_while_something_is_encoded():
    plans = [plan for plan in coded_plans() if plan.peak_instruction >= 0]
    for plan in plans:
        peak = peak_of(plan)
        assert peak.operation
        parts = (
            peak.resident_bytes,
            peak.gradients_bytes,
            peak.returned_bytes,
            peak.activation_bytes,
            peak.running_bytes,
        )
        assert sum(parts) == plan.peak_bytes
        fullest = plan.schedule.instructions[plan.peak_instruction]
        assert isinstance(fullest, (Encode, Decode)) == peak.operation.startswith(("encoding", "decoding"))
        assert json.dumps(peak.to_dict())
