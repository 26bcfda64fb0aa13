"""Errors state what cannot be done, with the value, the limit and the remedy."""

import pickle

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import BudgetError, CaptureError, InfeasibleBudget
from side_by_side import assert_trains_alike
from small_models import small_model
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Deciding(nn.Module):
    """Computes with a function of the layer's result."""

    def __init__(self, decide) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.decide = decide

    def forward(self, x):
        return self.decide(self, self.layer(x))


def data(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))


def test_an_infeasible_budget_names_the_smallest_and_that_works():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(3)))
    x = torch.randn(64, 16)
    with pytest.raises(
        InfeasibleBudget, match=r"no schedule of Sequential fits 20.0 KiB: .*raise the budget"
    ) as caught:
        lowtide.rewrite(model, "20KiB", (x,), costs="flops")
    smallest = caught.value.smallest_bytes
    assert caught.value.budget_bytes == 20 * 1024 and smallest > 20 * 1024
    with pytest.raises(InfeasibleBudget) as repeated:
        lowtide.rewrite(model, smallest - 1, (x,), costs="flops")
    assert repeated.value.smallest_bytes == smallest
    report = lowtide.verify(model, smallest, (x,), costs="flops")
    assert report.ok and report.measured_peak_bytes == smallest
    assert pickle.loads(pickle.dumps(caught.value)).smallest_bytes == smallest


def test_returned_outputs_are_offered_as_a_way_to_save():
    model, kwargs = small_model("gpt2", layers=1)
    with pytest.raises(InfeasibleBudget, match=r'pass outputs=\["loss"\]') as caught:
        lowtide.rewrite(model, 1000, (), kwargs, costs="flops")
    with pytest.raises(InfeasibleBudget) as fewer:
        lowtide.rewrite(model, 1000, (), kwargs, costs="flops", outputs=["loss"])
    assert fewer.value.smallest_bytes < caught.value.smallest_bytes


@pytest.mark.parametrize("budget", [0, -5, "0", "-1GiB", "150%", "0%", "8 gigs", "", "GiB", True, 3.5, None, "nan"])
def test_a_budget_that_is_no_number_of_bytes_is_refused_at_once(budget):
    with pytest.raises(BudgetError, match=r"budget .*(bytes|above|whole)"):
        lowtide.rewrite(nn.Linear(4, 4), budget)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fidelity": "exact"}, r"fidelity='exact' is unknown; choose among bitwise"),
        ({"costs": "guess"}, r"costs='guess' is unknown; choose among measured"),
        ({"outputs": "loss"}, r'outputs=.loss. is one string; pass a list: outputs=\["loss"\]'),
        ({"solver": "magic"}, r"no solver 'magic': choose among auto"),
        ({"device": "abacus"}, r"abacus"),
    ],
)
def test_an_unknown_option_is_refused_by_name(options, named):
    with pytest.raises((ValueError, lowtide.LowtideError), match=named):
        lowtide.rewrite(nn.Linear(4, 4), "100%", (data(),), **{"costs": "flops", **options})


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (nn.Sequential(nn.GELU()), (data(),)),
        (nn.Linear(4, 4).requires_grad_(False), (data(),)),
        (Deciding(lambda m, y: y.argmax(-1)), (data(),)),
        (Deciding(lambda m, y: y.detach()), (data(),)),
        (Deciding(lambda m, y: None), (data(),)),
    ],
    ids=["no parameters", "all frozen", "integers", "detached", "nothing"],
)
def test_a_step_without_backward_says_so_and_runs_in_eager(model, args):
    with pytest.raises(CaptureError, match="no output requires a gradient"):
        lowtide.rewrite(model, "100%", args)
    small = lowtide.rewrite(model, "100%")
    result, expected = small(*args), model(*args)
    assert result is None or torch.equal(result, expected)


class Unknown:
    """An object that holds a tensor."""

    def __init__(self) -> None:
        self.tensor = torch.ones(4)


def test_an_argument_that_cannot_be_looked_into_is_named():
    model = Deciding(lambda m, y: y)
    with pytest.raises(lowtide.LowtideError, match=r"argument.*1.key is a Unknown, which lowtide cannot look into"):
        lowtide.rewrite(model, "100%", (data(),), {"key": Unknown()})
    with pytest.raises(lowtide.LowtideError, match=r"output.1 is a Unknown, which lowtide cannot look into"):
        lowtide.rewrite(Deciding(lambda m, y: (y, Unknown())), "100%", (data(),))


@pytest.mark.parametrize(
    ("decide", "named"),
    [
        (lambda m, y: y * 2 if y.sum().item() > 0 else y, r"looks at the values of a parameter \(layer.weight\)"),
        (lambda m, y: y * float(m.layer.weight.max()), r"looks at the values of a parameter \(layer.weight\)"),
        (lambda m, y: y * y.detach().numpy().max(), r"forward calls numpy, which takes data out of torch, in the root"),
        (lambda m, y: y * sum(y.detach()[0].tolist()), r"looks at the values of a parameter \(layer.weight\)"),
        (lambda m, y: y * torch.rand(()).item(), r"decides by a random number .* in the root module"),
        (lambda m, y: y[torch.rand(3) > 0.5], r"decides by a random number .* in the root module"),
        (lambda m, y: y * torch.rand(4, generator=torch.Generator()), r"given its own generator"),
        (lambda m, y: y + 1 / 0, r"forward of Deciding could not be captured: ZeroDivisionError.*test_errors.py:\d+"),
    ],
    ids=["branch", "float", "numpy", "tolist", "random float", "random mask", "own generator", "bug"],
)
def test_a_forward_that_cannot_be_captured_is_named_with_its_line(decide, named):
    model = Deciding(decide)
    before = dict(model.layer._parameters)
    with pytest.raises(CaptureError, match=named) as caught:
        lowtide.rewrite(model, "100%", (data(),))
    assert "test_errors.py:" in str(caught.value)
    assert all(model.layer._parameters[name] is value for name, value in before.items())


def test_an_inner_module_at_fault_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Deciding(lambda m, y: y if y.sum().item() > 0 else -y)))
    with pytest.raises(CaptureError, match=r"in 1.0 \(.*test_errors.py:\d+: .*y.sum\(\).item\(\) > 0"):
        lowtide.rewrite(model, "100%", (data(),))


class OutOfOrder(nn.Module):
    """Computes with its parameters in another order than the one in which it registers them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.ones(4) for _ in range(9))

    def forward(self, x):
        for place in (5, 7, 0, 1, 8, 2, 3, 6, 4):
            x = x * self.parts[place]
        return x * x.detach().max().item()


def test_of_many_parameters_behind_a_value_the_first_that_is_used_is_named():
    with pytest.raises(CaptureError, match=r"looks at the values of a parameter \(parts.5\)"):
        lowtide.rewrite(OutOfOrder(), "100%", (data(),))


def test_sparse_gradients_are_refused_with_what_to_do():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4))
    with pytest.raises(CaptureError, match=r"sparse gradient.*sparse=False"):
        lowtide.rewrite(model, "100%", (torch.randint(0, 10, (3,)),))


def test_layers_dropped_at_random_are_refused_and_kept_ones_are_not():
    model, kwargs = small_model("whisper")
    model.model.encoder.layerdrop = 0.5
    with pytest.raises(CaptureError, match=r"decides by a random number.*model.encoder.*layerdrop=0"):
        lowtide.rewrite(model, "100%", (), kwargs)
    model.model.encoder.layerdrop = 0.0
    assert lowtide.verify(model, "100%", (), kwargs, costs="flops", steps=1, solver="keep_all").ok


def test_names_of_outputs_that_do_not_exist_are_listed_with_those_that_do():
    model, kwargs = small_model("gpt2", layers=1)
    with pytest.raises(CaptureError, match=r"outputs names 'los', which the module does not return; .*'loss'"):
        lowtide.rewrite(model, "100%", (), kwargs, outputs=["los"])


@pytest.mark.parametrize("rows", [0, 1])
def test_unusual_batches_are_planned_for(rows):
    assert_trains_alike(Deciding(lambda m, y: y.relu()), data(rows))


def test_an_exported_name_for_every_error():
    for name in ("BudgetError", "CaptureError", "InfeasibleBudget", "PlanError"):
        assert issubclass(getattr(lowtide, name), lowtide.LowtideError)
