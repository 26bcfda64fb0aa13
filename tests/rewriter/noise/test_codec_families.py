"""Families of approximate codes that users choose: rows sampled in other ways, and sketches of all of them."""

import copy
import math

import lowtide
import pytest
import torch
from lowtide.kernels.approximate_codecs import FAMILIES, METHODS, USUAL_FAMILIES
from lowtide.rewriter.measure.costs import NOMINAL_FLOPS_PER_SECOND
from lowtide.solvers.encoding.decode_order import encoded_schedule, with_codes
from lowtide.solvers.problem.encoded_problem import encodable
from lowtide.solvers.problem.liveness import trace_order
from lowtide.solvers.problem.schedule import Encode
from lowtide.solvers.problem.simulate import make_plan
from lowtide.solvers.recipes import Recipes
from step_problems import formulated
from torch import nn

OPTIONS = {"fidelity": "approximate", "costs": "flops", "error_budget": math.inf}
NAMES = {
    "groups": "-bit groups",
    "spread": "-bit groups, spread",
    "derivatives": "-bit gelu'",
    **{family: f" of rows, {method}" for family, method in METHODS.items()},
    **{kind: f" sketch, {kind}" for kind in ("gaussian", "rademacher", "hadamard", "dct")},
}


class Pairs(nn.Module):
    """Pairs of linear layers, between which backward reads what products alone do."""

    def __init__(self, pairs=2, width=32, inner=32):
        super().__init__()
        made = (nn.Sequential(nn.Linear(width, inner), nn.Linear(inner, width)) for _ in range(pairs))
        self.pairs = nn.ModuleList(made)

    def forward(self, x, y):
        """The loss."""
        for pair in self.pairs:
            x = torch.sin(2 * pair(x))
        return {"loss": (x - y).square().mean()}


def case(width=32, rows=32, **sizes):
    """A model with a batch."""
    torch.manual_seed(0)
    return Pairs(width=width, **sizes), {"x": torch.randn(8, rows, width), "y": torch.randn(8, rows, width)}


def coded(model, batch, family, order_of=trace_order, only=None):
    """Return the model rewritten so that all possible values, or only some, are kept in codes of a family."""
    options = {**OPTIONS, "codecs": (family,)}
    problem = formulated(model, (), batch, **options).mapping.problem
    choice = tuple((value, 1) for value in encodable(problem) if only is None or value in only)
    order = with_codes(problem, choice, order_of(problem))
    plan = make_plan(problem, encoded_schedule(problem, choice, order), solver="by hand")
    return lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (), batch, plan=plan, **options)


def step(model, batch, seed=None):
    """The loss and all gradients of a step, the inputs' last; they are taken away afterwards."""
    if seed is not None:
        torch.manual_seed(seed)
    loss = model(**batch)["loss"]
    loss.backward()
    leaves = [leaf for leaf in (*model.parameters(), *batch.values()) if leaf.requires_grad]
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return loss.detach(), gradients


def flat(gradients):
    """One vector, float64."""
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def check_noise(model, small, batch, draws):
    """Assert that noise has no mean and the predicted variance, within a quarter."""
    exact_loss, exact = step(model, batch)
    noise = []
    for seed in range(draws):
        loss, noisy = step(small, batch, seed)
        assert torch.equal(loss, exact_loss)
        noise.append(flat(noisy) - flat(exact))
    noise = torch.stack(noise)
    variance = float(noise.square().sum(1).mean())
    predicted = small.lowtide.planned.noise_energy
    assert predicted == pytest.approx(variance, rel=0.25)
    # of independent noise the mean over n draws keeps an n-th of the energy
    assert float(noise.mean(0).square().sum()) < 1.5 * variance / draws


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_by_its_name_is_all_that_values_are_kept_in(family):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Linear(64, 64))
    options = {"fidelity": "approximate", "costs": "flops", "codecs": (family,)}
    mapping = formulated(model, (torch.randn(128, 64),), {}, **options).mapping
    names = {encoding.name for value in mapping.problem.values for encoding in value.encodings}
    assert names and all(name.endswith(NAMES[family]) for name in names)


def test_products_with_a_sketch_s_matrix_count_as_operations():
    model, batch = case()
    plan = lowtide.plan(model, "100%", (), batch, **OPTIONS, codecs=["gaussian", "dct"])
    encodings = {encoding.name: encoding for value in plan.problem.values for encoding in value.encodings}
    seconds = 2 * 256 * 32 * 128 / NOMINAL_FLOPS_PER_SECOND  # of 256 rows 128 are kept
    for name in ("encode_seconds", "decode_seconds"):
        by_matrix, by_transform = (getattr(encodings[f"0.5 sketch, {kind}"], name) for kind in ("gaussian", "dct"))
        assert by_matrix - by_transform == pytest.approx(seconds)


def test_by_default_these_four_families_are_chosen_among():
    assert USUAL_FAMILIES == ("groups", "spread", "derivatives", "rows")
    model, batch = case()
    plans = [lowtide.plan(model, "60%", (), batch, **OPTIONS, codecs=c) for c in (None, USUAL_FAMILIES[::-1])]
    assert plans[0].problem == plans[1].problem and plans[0].schedule == plans[1].schedule
    names = {encoding.name for value in plans[0].problem.values for encoding in value.encodings}
    assert not any("sketch" in name for name in names) and any("rows, without_replacement" in name for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codecs": ["sparse"]}, "no approximate code is called 'sparse': choose among groups, spread, .*dct, uniform"),
        ({"codecs": ["groups", "Rows"]}, "no approximate code is called 'Rows'"),
        ({"codecs": []}, r"codecs=\(\) allows no code: choose among groups"),
        ({"codecs": 5}, r"codecs=5 is not a list of names: codecs=\[\"groups\"\]"),
        ({"error_budget": "0.1"}, r"error_budget='0.1' is not a number: pass a share of a variance, like 0.01"),
        ({"error_budget": True}, "error_budget=True is not a number"),
        ({"codecs": "rows"}, r"codecs='rows' is one string; pass a list: codecs=\[\"groups\"\]"),
        ({"codecs": ["rows"], "fidelity": "rounding"}, "codecs=.* is for fidelity=.approximate., and fidelity is"),
        ({"error_budget": 0.1, "fidelity": "bitwise"}, "error_budget=0.1 is for fidelity=.approximate."),
    ],
)
def test_what_cannot_be_chosen_is_refused(options, message):
    model, batch = case()
    arguments = {"fidelity": "approximate", **options}
    for call in (lowtide.rewrite, lowtide.plan, lowtide.verify):
        with pytest.raises(ValueError, match=message):
            call(model, "60%", (), batch, **arguments)
    with pytest.raises(ValueError, match=message):
        lowtide.sweep(model, (), batch, **arguments)


def test_a_planner_that_is_allowed_nothing_but_sketches_takes_them_where_they_save_time():
    model, batch = case(width=96, inner=96)
    plans = lowtide.sweep(model, (), batch, **OPTIONS, codecs=["gaussian"], count=20)
    best = max(plans, key=lambda plan: len(plan.encoded))
    assert len(best.encoded) > 1
    report = lowtide.verify(model, best.peak_bytes, (), batch, plan=best, **OPTIONS, codecs=["gaussian"])
    assert report.ok and report.measured_peak_bytes == best.peak_bytes
    small = lowtide.rewrite(model, best.peak_bytes, (), batch, plan=best, **OPTIONS, codecs=["gaussian"])
    assert "lowtide.sketch.default(" in small.code
    check_noise(model, small, batch, 200)


@pytest.mark.parametrize("family", METHODS)
def test_weights_alone_have_noise_without_bias_and_as_large_as_predicted(family):
    model, batch = case(width=64, inner=64)  # noise in fewer dimensions scatters more, and one draw of it predicts it
    batch["x"].requires_grad_()
    small = coded(model, batch, family)
    check_noise(model, small, batch, 40)
    names = [*(name for name, _ in model.named_parameters()), "x"]
    both = zip(names, step(model, batch)[1], step(small, batch)[1], strict=True)
    different = [name for name, exact, noisy in both if not torch.equal(exact, noisy)]
    assert different == ["pairs.0.1.weight", "pairs.1.0.weight", "pairs.1.1.weight"]


class EqualPairs(nn.Module):
    """The same pair of layers twice, with weights of their own that are equal."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
        self.second = copy.deepcopy(self.first)

    def forward(self, x):
        """The loss."""
        return {"loss": self.first(x).square().mean() + self.second(x).square().mean()}


@pytest.mark.parametrize("family", ["gaussian", "uniform"])
def test_draws_are_those_of_the_seed_and_others_in_each_step_and_for_each_value(family):
    torch.manual_seed(0)
    model, batch = EqualPairs(), {"x": torch.randn(256, 32)}
    _, exact = step(model, batch)
    assert torch.equal(exact[2], exact[6])
    small = coded(model, batch, family)
    (_, first), (_, second) = step(small, batch, 3), step(small, batch)
    assert not torch.equal(first[2], first[6])
    assert not torch.equal(first[2], second[2])
    torch.manual_seed(3)
    for expected in (first, second):
        assert all(map(torch.equal, step(small, batch)[1], expected))


@pytest.mark.parametrize("family", ["rademacher", "winner_take_all"])
def test_what_is_encoded_when_it_is_made_again_has_the_draws_of_the_first_time(family):
    model, batch = case(pairs=4, inner=64)

    def in_groups(problem):
        """Forward runs again group by group, and what it makes waits for its block's backward."""
        return next(
            item.order for item in Recipes().candidates(problem) if "every 2 blocks, group held" in item.description
        )

    grouped = coded(model, batch, family, in_groups)
    encoded = [item.value for item in grouped.plan.schedule.instructions if isinstance(item, Encode)]
    plain = coded(model, batch, family, only=encoded)
    early, late = (
        [item for item in plan.schedule.instructions[plan.schedule.forward_length :] if isinstance(item, Encode)]
        for plan in (plain.plan, grouped.plan)
    )
    assert late and not early
    for seed in (1, 2):
        assert all(map(torch.equal, step(plain, batch, seed)[1], step(grouped, batch, seed)[1]))


class Bottleneck(nn.Module):
    """Convolutions as a residual network's block has them: of a pixel, of its neighbours, of a pixel."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(48, 32, 1), nn.Conv2d(32, 48, 1)
        self.near = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x, y):
        """The loss."""
        residual = self.wide(nn.functional.silu(self.near(nn.functional.silu(self.narrow(x)))))
        return {"loss": (nn.functional.silu(x + residual) - y).square().mean()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("family", ["rows", "gaussian"])
def test_convolutions_read_some_pixels_or_sketches_of_them_without_bias(family, layout):
    torch.manual_seed(0)
    model = Bottleneck().to(memory_format=layout)
    x, y = (torch.randn(8, 48, 8, 8).to(memory_format=layout) for _ in range(2))
    small = coded(model, {"x": x, "y": y}, family)
    assert len(small.plan.encoded) == 2
    assert small.code.count("dim=1") == 4  # encoded and decoded
    check_noise(model, small, {"x": x, "y": y}, 40)
    above = lowtide.measure_peak(lambda: small(x=x, y=y)["loss"].backward())
    assert above + small.plan.problem.resident_bytes == small.plan.peak_bytes
