"""An audit measures what each code does to its value and to the gradient, and finds codes that are wrong."""

import gc
import json
from math import inf, nan

import lowtide
import pytest
import torch
from encoded_plans import OPTIONS, with_all_encoded
from lowtide.passes.encodings.codec_sites import CodecSite
from lowtide.rewriter.display.tables import show, verify_text
from lowtide.rewriter.noise.replay import Replay
from lowtide.rewriter.noise.sensitivity import MEASURE_SEED, Sensitivity
from lowtide.rewriter.plan.situation import tensors_of
from lowtide.rewriter.run import tape
from lowtide.rewriter.verify.codec_audit import audit_of, value_deviations
from lowtide.rewriter.verify.noise_check import NoisyGradient
from lowtide.solvers.problem.liveness import schedule_of, trace_order
from small_models import small_model
from small_networks import Called
from step_problems import formulated
from torch import nn

CPU = torch.device("cpu")


class Perceptron(nn.Module):
    """Layers with a norm and smooth activations between them."""

    def __init__(self) -> None:
        super().__init__()
        parts = [nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Tanh()) for _ in range(2)]
        self.layers, self.last = nn.Sequential(*parts), nn.Linear(64, 10)

    def forward(self, x, labels):
        """The loss."""
        return {"loss": nn.functional.cross_entropy(self.last(self.layers(x)), labels)}


def network(name: str, dtype: str = "float32"):
    """A small model and a batch."""
    torch.manual_seed(0)
    if name != "perceptron":
        return small_model(name, dtype=dtype, layers=None if name == "resnet" else 1)
    x, number_type = torch.randn(256, 64), getattr(torch, dtype)
    labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    return Perceptron().to(number_type), {"x": x.to(number_type), "labels": labels}


def verified(model, batch, plan):
    """The report on a plan."""
    options = {**OPTIONS, "outputs": ["loss"], "steps": 1, "plan": plan}
    return lowtide.verify(model, plan.peak_bytes, (), batch, **options)


def site_of(family: str, layer: nn.Module, x: torch.Tensor, families: tuple[str, ...]):
    """The first codec site of a family for the value that a layer reads, and a value for it."""
    torch.manual_seed(0)
    scale = nn.Parameter(torch.ones(x.shape[-1], dtype=x.dtype))
    model = Called(lambda m, x: m.layer(x * m.scale).square().sum(), layer=layer, scale=scale)
    mapping = formulated(model, (x,), {}, fidelity="approximate", costs="flops", codecs=families).mapping
    codec_sites = (site for sites in mapping.codec_sites.values() for site in sites if site.codec.family == family)
    return next(codec_sites), x


@pytest.fixture(scope="module")
def coded():
    """A network, a batch and a plan with codes."""
    model, batch = network("perceptron")
    return model, batch, with_all_encoded(model, batch)


@pytest.fixture(scope="module")
def case(coded):
    """A planned step, and the tensors that it starts from."""
    model, batch, plan = coded
    small = lowtide.rewrite(model, plan.peak_bytes, (), batch, plan=plan, outputs=["loss"], **OPTIONS)
    planned = small.lowtide.planned
    return planned, tensors_of(small, (), batch) | planned.measured.captured.held


@pytest.fixture(scope="module")
def audit(case):
    return audit_of(*case)


def test_all_values_are_audited_if_they_are_few(case, audit):
    planned, _ = case
    plan = planned.plan
    assert len(audit.values) == audit.encoded == len(plan.encoded) > 4
    for audited, (value, number) in zip(audit.values, sorted(plan.encoded), strict=True):
        encoding, sensitivity = plan.problem.values[value].encodings[number], planned.measured.sensitivity
        assert (audited.codec, audited.packed_bytes) == (encoding.name, encoding.size_bytes)
        added = sensitivity.added[planned.mapping.storages[value]][number]
        assert audited.predicted == added / sensitivity.own_variance <= encoding.error * (1 + 1e-9)
        assert audited.original_bytes == plan.problem.values[value].size_bytes
        assert audited.module in {op.module for op in plan.problem.ops}
        if "bit groups" in audited.codec:
            assert audited.bits == pytest.approx(int(audited.codec[0]) + 32 / 256, rel=0.01)
    assert audit.description == f"all {audit.encoded} values that are kept approximately"


def test_what_is_measured_is_what_was_predicted_in_all_and_the_value_s_error_its_own(case, audit):
    planned, _ = case
    assert sum(value.measured for value in audit.values) == pytest.approx(planned.plan.encoding_error, rel=1.0)
    for value in audit.values:
        low, high = {"8": (1e-6, 1e-3), "4": (1e-3, 0.1), "3": (0.01, 0.3), "2": (0.02, 1.5)}[value.codec[0]]
        assert low < value.value_error < high, value


def test_what_one_value_adds_is_what_the_step_itself_gives_with_it(case, audit):
    planned, tensors = case
    problem = planned.plan.problem
    schedule = schedule_of(problem, trace_order(problem))
    index = max(range(len(audit.values)), key=lambda number: audit.values[number].measured)
    value, number = sorted(planned.plan.encoded)[index]
    storage = planned.mapping.storages[value]

    def gradients(coded: bool) -> torch.Tensor:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(MEASURE_SEED)
            replay, parts = Replay(planned.step, planned.mapping, tensors, CPU), []
            for kernel, _ in replay.run(schedule):
                if kernel.role == "tangent" and coded:
                    (node,) = [n for n in replay.made if planned.step.storage_of[n] == storage]
                    site = planned.mapping.codec_sites[storage][number]
                    replay.made[node] = site.round_trip(replay.made[node], 77)
                if kernel.role == "accumulate":
                    parts.append(replay.value(kernel.gradient).double().flatten())
            return torch.cat(parts)

    squares = float((gradients(True) - gradients(False)).square().sum())
    own = planned.measured.sensitivity.own_variance
    assert audit.values[index].measured == pytest.approx(squares / own, rel=0.3)


def test_a_sample_has_every_codec_and_the_largest(case, audit):
    planned, tensors = case
    codecs = {value.codec for value in audit.values}
    few = audit_of(planned, tensors, len(codecs))
    assert {value.codec for value in few.values} == codecs and len(few.values) == len(codecs) < few.encoded
    assert max(value.predicted for value in audit.values) == max(value.predicted for value in few.values)
    assert few.description.startswith(f"{len(few.values)} of {few.encoded} values")
    assert audit_of(planned, tensors, 0).values == ()


def test_an_audit_frees_what_it_makes():
    model, batch = network("llama")
    plan = with_all_encoded(model, batch)
    small = lowtide.rewrite(model, plan.peak_bytes, (), batch, plan=plan, outputs=["loss"], **OPTIONS)
    planned = small.lowtide.planned
    tensors = tensors_of(small, (), batch) | planned.measured.captured.held
    schedule = schedule_of(plan.problem, trace_order(plan.problem))

    def replay() -> None:
        with torch.no_grad():
            for _ in Replay(planned.step, planned.mapping, tensors, CPU).run(schedule):
                pass

    gc.disable()
    try:
        assert lowtide.measure_peak(lambda: audit_of(planned, tensors)) <= 1.25 * lowtide.measure_peak(replay)
    finally:
        gc.enable()


def test_an_audit_leaves_the_generator_alone(case):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    audit_of(*case, 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["perceptron", "gpt2", "llama", "bert", "resnet"])
def test_a_right_plan_passes_and_its_report_shows_what_was_audited(name, capsys):
    model, batch = network(name)
    report = verified(model, batch, with_all_encoded(model, batch))
    assert report.ok and report.faults == () and report.audit.values, "\n".join((str(report), *report.faults))
    assert report.noise.together.measured == pytest.approx(report.plan.encoding_error, rel=1.0)
    assert report.noise.bias < report.noise.bias_limit
    payload = json.loads(json.dumps(report.to_dict()))
    assert len(payload["audit"]["values"]) == len(report.audit.values) and payload["faults"] == []
    show(verify_text("case", report))
    text = capsys.readouterr().out
    assert report.audit.description in " ".join(text.split()) and "measured over draws" in text
    assert max(map(len, text.splitlines())) <= 100


def test_in_bfloat16_the_rounding_of_the_dtype_is_added_to_what_codes_add():
    model, batch = network("perceptron", "bfloat16")
    plain = lowtide.verify(model, "100%", (), batch, fidelity="rounding", outputs=["loss"], costs="flops", steps=1)
    coded = verified(model, batch, with_all_encoded(model, batch, ("8-bit groups",)))
    rounding, predicted = plain.errors[0].relative ** 2, coded.predicted_error**2
    measured = predicted * coded.noise.together.measured / coded.noise.together.predicted
    assert rounding > 0.2 * predicted  # so that it matters
    assert measured == pytest.approx(predicted + rounding, rel=0.3)
    finer = verified(model, batch, with_all_encoded(model, batch, ("4-bit groups",)))
    assert finer.ok and finer.noise.together.measured == pytest.approx(finer.plan.encoding_error, rel=0.3)


def test_chance_is_judged_by_what_a_codec_draws_at_once():
    """Whole pixels of an image are drawn or not. With few pixels, the deviations of two seeds are alike by chance."""
    site, value = site_of("rows, norms", nn.Conv2d(64, 64, 1), torch.randn(4, 64, 7, 7), ("norms",))
    cosines, limits = zip(*(value_deviations(site, value, (2 * n, 2 * n + 1))[1] for n in range(20)), strict=True)
    deviation = (sum(cosine**2 for cosine in cosines) / len(cosines)) ** 0.5
    assert sum(limits) / len(limits) - 0.1 == pytest.approx(5 * deviation, rel=0.5)


def test_a_vector_is_audited_element_by_element():
    site, value = site_of("groups", nn.Flatten(0), torch.randn(4096), ("groups",))
    deviation, (cosine, limit) = value_deviations(site, value, (1, 2))
    assert 0 < deviation < 0.1 and abs(cosine) <= limit
    assert limit == pytest.approx(0.1 + 5 / 64, rel=0.2)


@pytest.mark.parametrize("factor", [1.0, 0.98])
def test_a_bias_is_found_where_half_precision_has_no_squares_of_errors(factor, monkeypatch):
    right = CodecSite.round_trip
    monkeypatch.setattr(CodecSite, "round_trip", lambda self, value, seed: right(self, value, seed).mul_(factor))
    x = (2e-3 * torch.randn(256, 64, generator=torch.Generator().manual_seed(0))).half()
    site, value = site_of("groups", nn.Identity(), x, ("groups",))
    deviation, (cosine, limit) = value_deviations(site, value, (1, 2))
    assert 0 < (site.round_trip(value, 1) - value).abs().max() < 2**-12 and deviation > 0  # least of its numbers: 2⁻²⁴
    assert (cosine <= limit) == (factor == 1.0)


@pytest.mark.parametrize("factor", [1.0, 0.95])
def test_half_precision_s_rounding_is_no_bias_of_a_code_and_a_factor_is(factor, monkeypatch):
    right = CodecSite.round_trip
    monkeypatch.setattr(CodecSite, "round_trip", lambda self, value, seed: right(self, value, seed).mul_(factor))
    x = torch.sigmoid(0.4 * torch.randn(128, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    site, value = site_of("groups", nn.Identity(), x, ("groups",))
    _, (cosine, limit) = value_deviations(site, value, (1, 2))
    steps = torch.finfo(torch.bfloat16).eps * 256 * x.amax() / (x.amax() - x.amin())
    assert site.codec.name == "8-bit groups" and steps > 1  # of the code, finer than those of bfloat16
    assert (cosine <= limit) == (factor == 1.0)


def test_a_biased_codec_is_found_by_the_name_of_its_value(coded, monkeypatch):
    right = CodecSite.round_trip

    def scaled(self, value, seed):
        decoded = right(self, value, seed)
        return decoded * 0.9 if self.codec.name == "8-bit groups" else decoded

    monkeypatch.setattr(CodecSite, "round_trip", scaled)
    report = verified(*coded)
    assert not report.ok and "WRONG: 8-bit groups of " in str(report)
    assert all("8-bit groups of" in fault and "two seeds' errors are alike" in fault for fault in report.audit.faults)


def test_a_codec_that_draws_the_same_in_each_step_is_found(coded, monkeypatch):
    monkeypatch.setattr(tape, "_next_number", lambda: 12345)
    report = verified(*coded)
    assert not report.ok
    fault = report.faults[-1]
    assert "the mean over 5 draws does not come nearer to the gradient" in fault and "gradient of layers." in fault


def test_noise_that_was_not_predicted_is_found_by_the_name_of_its_gradient(coded, monkeypatch):
    right = Sensitivity.by_gradient
    monkeypatch.setattr(
        Sensitivity, "by_gradient", lambda self, chosen: {s: 0.01 * noise for s, noise in right(self, chosen).items()}
    )
    faults = verified(*coded).faults
    assert any(fault.startswith("all gradients together: codes add") for fault in faults)
    assert any(fault.startswith("gradient of layers.0") and "was predicted" in fault for fault in faults)


def test_the_gradient_with_most_of_what_it_may_have_is_the_one_beyond_a_limit_of_nothing():
    names = ("within", "beyond", "none", "no number", "far within")
    noise = [(0.5, 1.0), (1e-9, 0.0), (0.0, 0.0), (nan, 1.0), (0.1, 1.0)]
    gradients = [NoisyGradient(name, 0.0, *gradient) for name, gradient in zip(names, noise, strict=True)]
    assert [gradient.share_of_limit for gradient in gradients] == [0.5, inf, 0.0, inf, 0.1]
    for gradient in gradients:
        assert (gradient.share_of_limit <= 1) == gradient.is_within


def test_nothing_is_audited_where_nothing_is_approximate():
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    report = lowtide.verify(model, "100%", (torch.randn(8, 16),), steps=1, fidelity="approximate", costs="flops")
    assert report.ok and report.audit.values == () and report.noise is None
