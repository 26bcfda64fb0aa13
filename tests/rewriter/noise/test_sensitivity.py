"""The effect of noise in a value on the gradient: predictions from one step compared with measurements."""

import functools
import gc
import statistics
from dataclasses import replace

import lowtide
import pytest
import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.noise.replay import Replay
from lowtide.rewriter.noise.sensitivity import MEASURE_SEED
from lowtide.rewriter.plan.options import Options
from lowtide.rewriter.plan.planner import StepPlanner
from lowtide.rewriter.plan.step_problem import formulate_step
from lowtide.solvers.problem.liveness import schedule_of, trace_order
from lowtide.solvers.problem.simulate import simulate
from small_networks import Called
from step_problems import formulated
from torch import nn

DRAWS = 5
MODELS = {
    "gpt2": ({"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 500}, 8, 64),
    "llama": (
        {
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "intermediate_size": 172,
            "vocab_size": 500,
        },
        8,
        32,
    ),
}


WITHOUT_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}


class Steps:
    """A small model's step, with which values of forward can be replaced by what a codec gives back."""

    def __init__(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
        options = Options(fidelity="approximate", outputs=("loss",), costs="flops")
        planner, present = StepPlanner.of(model, (), batch, options)
        self.sensitivity, self.tensors = planner.measured.sensitivity, present.tensors
        unencoded = formulate_step(replace(planner.measured, codec_sites={}), present)
        self.step, self.mapping = unencoded.measured.step, unencoded.mapping
        self.schedule = schedule_of(self.mapping.problem, trace_order(self.mapping.problem))

    def kind_of(self, storage):
        """Return the operation that makes a value, and its shape."""
        base = self.step.storages[storage].base
        return base.target, tuple(base.meta["val"].shape)

    def gradients(self, *coded, seed=0):
        """Return all gradients.

        coded: storages, each with the codec site that encodes and decodes its value before backward.
        """
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(MEASURE_SEED)
            replay = Replay(self.step, self.mapping, self.tensors, torch.device("cpu"))
            parts = []
            for kernel, _ in replay.run(self.schedule):
                for storage, site in coded if kernel.role == "tangent" else ():
                    (node,) = [n for n in replay.made if self.step.storage_of[n] == storage]
                    replay.made[node] = site.round_trip(replay.made[node], seed)
                if kernel.role == "accumulate":
                    parts.append(replay.value(kernel.gradient).double().flatten())
            return torch.cat(parts)


@functools.cache
def steps_of(name: str, trained_steps: int = 0) -> Steps:
    """Return the measured steps of one of `MODELS` after a number of steps of AdamW."""
    overrides, batch, length = MODELS[name]
    torch.manual_seed(0)
    model = build_model(name, overrides=overrides).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(1, trained_steps + 1):
        model(**sample_batch(model, batch, length, seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Steps(model, sample_batch(model, batch, length))


def in_four_bits(codec_sites):
    """Return the number and the codec site of groups in 4 bits, or in the fewest bits above 4."""
    bits = [int(site.codec.name[0]) if site.codec.family == "groups" else 0 for site in codec_sites]
    number = bits.index(min(site for site in bits if site >= 4))
    return number, codec_sites[number]


@pytest.mark.parametrize("name", list(MODELS))
def test_what_codes_add_is_predicted_within_a_quarter_each_and_15_percent_in_all(name):
    steps = steps_of(name)
    exact = steps.gradients()
    assert float(exact.square().sum()) == pytest.approx(steps.sensitivity.squared_gradient, rel=1e-6)
    predicted, measured, uncertain, ratios = [], [], [], []
    for storage, codec_sites in steps.sensitivity.codec_sites.items():
        number, site = in_four_bits(codec_sites)
        seeds = range(storage, storage + 1000 * DRAWS, 1000)
        drawn = [float((steps.gradients((storage, site), seed=seed) - exact).square().sum()) for seed in seeds]
        measured.append(sum(drawn) / DRAWS)
        uncertain.append(2 * statistics.stdev(drawn) / DRAWS**0.5)  # few tokens may have most of a value's noise
        predicted.append(steps.sensitivity.added[storage][number])
        ratios.append(predicted[-1] / measured[-1])
        assert site.error >= predicted[-1] / steps.sensitivity.own_variance * (1 - 1e-9)
    matters = [row for row in zip(predicted, measured, uncertain, strict=True) if row[1] > 1e-3 * sum(measured)]
    assert len(matters) > 4
    assert all(abs(p - m) <= 0.25 * m + error for p, m, error in matters), matters
    assert all(0.5 <= ratio <= 2 for ratio in ratios), ratios
    assert sum(predicted) == pytest.approx(sum(measured), rel=0.15)


def test_in_a_trained_model_noise_of_each_class_of_values_is_predicted_though_it_is_not_white():
    steps = steps_of("gpt2", trained_steps=60)
    exact = steps.gradients()
    classes: dict[tuple, list[float]] = {}
    for storage, codec_sites in steps.sensitivity.codec_sites.items():
        number, site = in_four_bits(codec_sites)
        totals = classes.setdefault(steps.kind_of(storage), [0.0, 0.0, 0.0])
        seeds = range(storage, storage + 1000 * DRAWS, 1000)
        drawn = [float((steps.gradients((storage, site), seed=seed) - exact).square().sum()) for seed in seeds]
        totals[0] += steps.sensitivity.added[storage][number]
        totals[1] += sum(drawn) / DRAWS
        totals[2] += statistics.variance(drawn) * (1 + 1 / DRAWS)  # of this mean, and of the one draw of a prediction
    predicted, measured = (sum(totals[i] for totals in classes.values()) for i in (0, 1))
    assert predicted == pytest.approx(measured, rel=0.15)
    matters = [totals for totals in classes.values() if totals[1] > 0.02 * measured]
    assert len(matters) > 3
    assert all(abs(p - m) <= 0.25 * m + 2 * variance**0.5 for p, m, variance in matters), matters


def test_noise_counts_against_the_variance_of_the_parameter_that_it_reaches():
    """Queries and keys have tiny gradients at random weights: noise in them alone is little in the sum."""
    steps = steps_of("llama")
    own = steps.sensitivity.own_variance
    larger = {}
    for storage, codec_sites in steps.sensitivity.codec_sites.items():
        shares = [
            site.error * own / added for site, added in zip(codec_sites, steps.sensitivity.added[storage], strict=True)
        ]
        readers = [k.calls[-1] for k in steps.step.backward_readers(storage)]
        attends = all("attention" in str(call.target) for call in readers)
        larger.setdefault(attends, []).extend(shares)
    assert min(larger[True]) > 3
    assert min(larger[False]) == pytest.approx(1)


@pytest.mark.parametrize("bits", [2, 4])
def test_what_levels_of_derivatives_add_together_is_predicted_though_they_are_biased(bits):
    steps = steps_of("gpt2")
    coded, predicted = [], 0.0
    for storage, codec_sites in steps.sensitivity.codec_sites.items():
        for number, site in enumerate(codec_sites):
            if site.codec.name == f"{bits}-bit gelu_tanh'":
                coded.append((storage, site))
                predicted += steps.sensitivity.added[storage][number]
    assert len(coded) == 2
    measured = float((steps.gradients(*coded) - steps.gradients()).square().sum())
    assert 0.8 * measured <= predicted <= 1.5 * measured


class Gated(nn.Module):
    """A stream to which a branch is added, times a number: the only one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(32, 32).requires_grad_(False), nn.Linear(32, 5).requires_grad_(False)
        self.gate = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, y):
        """The loss."""
        stream = x + self.gate * torch.tanh(self.branch(x))
        return {"loss": nn.functional.cross_entropy(self.head(stream), y)}


@pytest.mark.parametrize("seed", range(4))
def test_noise_of_a_single_number_is_predicted_within_twice(seed):
    """One draw of it would be the square of one normal number."""
    torch.manual_seed(seed)
    steps = Steps(Gated(), {"x": torch.randn(256, 32), "y": torch.randint(5, (256,))})
    (storage,) = [s for s in steps.sensitivity.codec_sites if steps.kind_of(s)[0] == torch.ops.aten.tanh.default]
    exact = steps.gradients()
    assert exact.numel() == 1
    for number, site in enumerate(steps.sensitivity.codec_sites[storage]):
        if site.codec.family == "groups":
            drawn = [float((steps.gradients((storage, site), seed=draw) - exact).square()) for draw in range(60)]
            ratio = steps.sensitivity.added[storage][number] / statistics.mean(drawn)
            assert 0.5 < ratio < 2, site.codec.name


class Perceptron(nn.Module):
    """Two layers on independent samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 64), nn.Linear(64, 10)

    def forward(self, x, y):
        """The loss."""
        return {"loss": nn.functional.cross_entropy(self.second(torch.tanh(self.first(x))), y)}


def test_the_gradient_s_own_variance_is_what_other_batches_show():
    torch.manual_seed(0)
    model = Perceptron()

    def batch():
        x = torch.randn(256, 40)
        return {"x": x, "y": (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()}

    def gradient(given):
        model.zero_grad()
        model(**given)["loss"].backward()
        flat_gradient = torch.cat([p.grad.flatten().double() for p in model.parameters()])
        model.zero_grad()
        return flat_gradient

    drawn = torch.stack([gradient(batch()) for _ in range(60)])
    actual = float(drawn.var(0).sum())
    options = {"fidelity": "approximate", "costs": "flops"}
    predicted = [formulated(model, (), batch(), **options).measured.sensitivity.own_variance for _ in range(4)]
    assert sum(predicted) / len(predicted) == pytest.approx(actual, rel=0.2)


@pytest.mark.parametrize("name", list(MODELS))
def test_each_gradient_s_own_variance_is_what_its_samples_show(name):
    """Signs on samples reach every layer, through all that adds gradients up."""
    torch.manual_seed(0)
    overrides, samples, length = MODELS[name]
    model = build_model(name, overrides={**overrides, **WITHOUT_DROPOUT.get(name, {})}).train()
    model.config.use_cache = False
    batch = sample_batch(model, samples, length)
    options = {"fidelity": "approximate", "outputs": ("loss",), "costs": "flops"}
    predicted = formulated(model, (), batch, **options).measured.sensitivity.own
    gradients = []
    for sample in range(samples):
        model(**{key: tensor[sample : sample + 1] for key, tensor in batch.items()}).loss.backward()
        gradients.append({name: p.grad / samples for name, p in model.named_parameters()})
        model.zero_grad()
    ratios = []
    for source, variance in predicted.items():
        each = torch.stack([gradient[source.name] for gradient in gradients])
        ratios.append(variance / float((each - each.mean(0)).square().sum() * samples / (samples - 1)))
    assert len(ratios) == len(list(model.parameters()))
    assert all(0.4 < ratio < 2.5 for ratio in ratios), ratios
    assert statistics.median(ratios) == pytest.approx(1, abs=0.2)


def test_measuring_frees_what_the_schedule_frees_without_waiting_for_garbage():
    steps = steps_of("gpt2")
    problem, device = steps.mapping.problem, torch.device("cpu")
    allowed_bytes = simulate(problem, steps.schedule).peak_bytes - problem.resident_bytes

    def replay() -> None:
        with torch.no_grad():
            for _ in Replay(steps.step, steps.mapping, steps.tensors, device).run(steps.schedule):
                pass

    gc.disable()
    try:
        assert lowtide.measure_peak(replay) <= 1.02 * allowed_bytes
    finally:
        gc.enable()


def test_with_one_sample_tokens_count_as_samples():
    torch.manual_seed(0)
    model = build_model("gpt2", overrides={"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 100}).train()
    model.config.use_cache = False
    options = {"fidelity": "approximate", "outputs": ("loss",), "costs": "flops"}
    sensitivity = formulated(model, (), sample_batch(model, 1, 64), **options).measured.sensitivity
    assert sensitivity.own_variance > 0


def test_one_picture_shows_no_variance_so_nothing_is_kept_approximately():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.GELU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    step_problem = formulated(model, (torch.randn(1, 8, 16, 16),), {}, fidelity="approximate", costs="flops")
    assert step_problem.measured.sensitivity.own_variance == 0
    assert any("no finite variance" in note for note in step_problem.mapping.problem.notes)


def test_measuring_leaves_the_model_its_buffers_and_the_generator_alone():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(), nn.Flatten())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    step_problem = formulated(model, (torch.randn(4, 3, 16, 16),), {}, fidelity="approximate", costs="flops")
    torch.manual_seed(3)
    assert step_problem.measured.sensitivity is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_a_penalty_of_parameters_is_no_variance_between_samples(penalty):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))

    def loss(module, x, weight):
        return module.net(x).square().mean() + weight * sum(p.square().sum() for p in module.net.parameters())

    def own_variance(weight):
        model = Called(lambda module, x: loss(module, x, weight), net=net)
        options = {"fidelity": "approximate", "costs": "flops"}
        return formulated(model, (torch.ones(32, 16).cumsum(0).sin(),), {}, **options).measured.sensitivity.own_variance

    assert own_variance(penalty) == pytest.approx(own_variance(0.0), rel=0.05)
