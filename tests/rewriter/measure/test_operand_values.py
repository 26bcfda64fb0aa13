"""Made-up operands fit what a call makes of them: what is measured on them is what the real ones take, or more."""

import warnings

import lowtide
import pytest
import torch
from lowtide.passes.calls import call_signature
from lowtide.rewriter.measure.costs import measure_costs
from side_by_side import assert_exact_everywhere
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def measured(operator, *arguments, **named) -> int:
    """The bytes that a call is said to need; a warning is an error."""
    leaves, structure = tree_flatten((arguments, named))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def function(*given):
        rest = iter(given)
        filled = [next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        positional, by_name = tree_unflatten(filled, structure)
        return operator(*positional, **by_name)

    graph = make_fx(function, tracing_mode="real")(*tensors)
    (node,) = (node for node in graph.graph.nodes if node.target is operator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return measure_costs([node], "cpu", "flops")[call_signature(node)].working_bytes


def needed(operator, *arguments, **named) -> int:
    """The bytes that it needs."""
    return lowtide.measure_peak(lambda: operator(*arguments, **named))


def every(count: int, total: int = 96) -> torch.Tensor:
    """A mask with `count` elements that are true."""
    return torch.arange(total) % (total // count) == 0


MATRICES = torch.rand(3, 6, 6) + 6 * torch.eye(6)
LU, PIVOTS = torch.linalg.lu_factor(MATRICES)
LABELS = (torch.rand(9, 2, 5).log_softmax(-1), torch.randint(1, 5, (2, 4)), torch.tensor([9, 8]), torch.tensor([4, 2]))
INDICES, OFFSETS = torch.randint(20, (64,)), torch.arange(0, 64, 8)

EXACT = {
    aten.masked_scatter.default: (torch.rand(96, 4), every(12)[:, None], torch.rand(12, 4)),
    aten.masked_scatter_backward.default: (torch.rand(96, 4), every(12)[:, None], [12, 4]),
    aten.masked_select.default: (torch.rand(96), every(24)),
    aten.nonzero.default: (every(24).float(),),
    aten.index_put.default: (torch.rand(96, 4), [every(12)], torch.rand(12, 4)),
    aten._unique2.default: (torch.arange(96) % 7, True, True, True),
    aten.unique_consecutive.default: (torch.arange(96) // 5, True, True),
    aten.unique_dim.default: ((torch.arange(96) % 7).view(48, 2), 0, True, True, True),
    aten.bincount.default: (torch.arange(50) % 9,),
    aten.repeat_interleave.Tensor: (torch.tensor([3, 0, 2, 5]),),
    aten.searchsorted.Tensor: (torch.arange(20.0), torch.rand(30)),
    aten.bucketize.Tensor: (torch.rand(30), torch.arange(20.0)),
    aten._ctc_loss.Tensor: LABELS,
    aten.lu_unpack.default: (LU, PIVOTS),
    aten.linalg_lu_solve.default: (LU, PIVOTS, torch.rand(3, 6, 2)),
    aten.linalg_cholesky_ex.default: (torch.eye(6) * 2,),
    aten._embedding_bag.default: (torch.rand(20, 5), INDICES, OFFSETS, False, 2),
    aten.histc.default: (torch.rand(96), 10),
    aten.multinomial.default: (torch.rand(6, 8), 3),
}


@pytest.mark.parametrize("operator", EXACT, ids=str)
def test_a_kernel_is_measured_on_operands_like_the_real_ones(operator):
    assert measured(operator, *EXACT[operator]) == needed(operator, *EXACT[operator])


def test_operands_by_name_fit_too():
    named = {"lengths": torch.tensor([2, 3, 5])}
    data = torch.rand(10, 3)
    measured_bytes = measured(aten.segment_reduce.default, data, "sum", **named)
    assert measured_bytes == needed(aten.segment_reduce.default, data, "sum", **named)


def test_sequences_of_any_lengths_need_no_more_to_be_packed_than_is_said():
    arguments = (torch.rand(7, 3, 4), torch.tensor([7, 4, 2]), False)
    said = measured(aten._pack_padded_sequence.default, *arguments)
    assert needed(aten._pack_padded_sequence.default, *arguments) <= said


@pytest.mark.parametrize("norm", [1e-8, 1e-4, 1e-2, 0.3, 1.0, 2.5, 10.0, 300.0, None])
def test_an_exponential_of_matrices_of_any_norms_needs_no_more_than_is_said(norm):
    norms = torch.tensor([norm] * 6) if norm else torch.tensor([1e-8, 1e-2, 1.0, 3.0, 10.0, 1000.0])
    matrices = torch.rand(6, 8, 8)
    matrices *= (norms / matrices.abs().sum(-2).amax(-1)).view(6, 1, 1)
    said = measured(aten.linalg_matrix_exp.default, matrices)
    assert needed(aten.linalg_matrix_exp.default, matrices) <= said
    if norm == 10.0:
        assert said <= 1.5 * needed(aten.linalg_matrix_exp.default, matrices)


@pytest.mark.parametrize("count", [0, 1, 40, 95, 96])
def test_whatever_part_of_a_source_was_scattered_backward_needs_no_more_than_is_said(count):
    arguments = (torch.rand(96, 4), (torch.arange(96) < count)[:, None], [96, 4])
    said = measured(aten.masked_scatter_backward.default, *arguments)
    assert needed(aten.masked_scatter_backward.default, *arguments) <= said


def test_results_whose_sizes_follow_from_values_have_different_signatures():
    signatures = set()
    for count in (12, 24):
        graph = make_fx(aten.nonzero.default, tracing_mode="real")(every(count))
        signatures |= {call_signature(node) for node in graph.graph.nodes if node.op == "call_function"}
    assert len(signatures) == 2


def test_what_is_conjugated_or_negated_when_it_is_read_is_measured_so():
    left, right = torch.rand(8, 6, dtype=torch.cfloat), torch.rand(6, 4, dtype=torch.cfloat)
    calls = {
        "plain": (aten.mm.default, lambda left, right: (left, right)),
        "conjugated": (aten.mm.default, lambda left, right: (left.conj(), right)),
        "negated": (aten.exp.default, lambda left, right: (right.conj().imag,)),
    }
    measured_bytes = {}
    for name, (operator, changed) in calls.items():
        with FakeTensorMode() as mode:
            fakes = changed(mode.from_tensor(left), mode.from_tensor(right))
            made = operator(*fakes)
        graph = fx.Graph()
        operands = [graph.placeholder(f"operand_{place}") for place in range(len(fakes))]
        node = graph.call_function(operator, tuple(operands))
        for graph_node, fake in zip((*operands, node), (*fakes, made), strict=True):
            graph_node.meta["val"] = fake
        measured_bytes[name] = measure_costs([node], "cpu", "flops")[call_signature(node)].working_bytes
        assert measured_bytes[name] == needed(operator, *changed(left, right))
    assert measured_bytes["conjugated"] > measured_bytes["plain"]


class Complex(nn.Module):
    """Linear layers over complex numbers, and a function of their results."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16, dtype=torch.cfloat), nn.Linear(16, 8, dtype=torch.cfloat)
        self.function = function

    def forward(self, x):
        return self.function(self.second(self.first(x))).abs().pow(2).mean()


COMPLEX = {
    "as it is": lambda y: y,
    "with itself": lambda y: y.mH @ y,
    "element by element": lambda y: y.conj() * y,
    "imaginary part": lambda y: y.conj().imag @ y.real.T,
    "transformed": lambda y: torch.fft.fft(y.conj()),
    "summed up": lambda y: torch.einsum("ij,kj->ik", y.conj(), y),
    "expanded": lambda y: y.conj()[:, None].expand(20, 3, 8) * 2,
}


@pytest.mark.parametrize("name", COMPLEX)
def test_peaks_of_complex_products_are_predicted(name):
    torch.manual_seed(0)
    assert_exact_everywhere(Complex(COMPLEX[name]), torch.randn(20, 8, dtype=torch.cfloat))


def test_inputs_that_are_conjugated_when_they_are_read_have_a_plan_of_their_own():
    torch.manual_seed(0)
    model, x = Complex(lambda y: y), torch.randn(20, 8, dtype=torch.cfloat)
    small = lowtide.rewrite(model, "100%", (x.conj(),), costs="flops")
    for argument in (x.conj(), x, x.conj().clone()):
        model.zero_grad()
        loss = model(argument)
        loss.backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        planned = small(argument)
        measured_bytes = lowtide.measure_peak(lambda argument=argument: small(argument).backward())
        assert measured_bytes + small.plan.problem.resident_bytes == small.plan.peak_bytes
        model.zero_grad()
        small(argument).backward()
        assert torch.equal(planned, loss)
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


class Placed(nn.Module):
    """Image features in the places of tokens, as in models of vision and language."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x, features, mask):
        return self.layer(x.masked_scatter(mask[..., None], self.layer(features))).pow(2).mean()


class Bags(nn.Module):
    """The largest of each bag of embeddings; some bags are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.EmbeddingBag(20, 16, mode="max"), nn.Linear(16, 4)

    def forward(self, indices, offsets):
        return self.layer(self.table(indices, offsets)).pow(2).mean()


class Selected(nn.Module):
    """Rows selected by a mask, and elements by another mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 64)

    def forward(self, x, rows, mask):
        y = self.layer(x)
        return y[rows].pow(2).sum() + (y.sum() * functional.softplus(x.masked_select(mask))).sum()


MASK = torch.arange(64).view(2, 32) % 8 == 0
BY_VALUES = {
    "scattered": (Placed, (torch.randn(2, 32, 16), torch.randn(8, 16), MASK)),
    "bags": (Bags, (INDICES, OFFSETS)),
    "selected": (Selected, (torch.randn(32, 16), every(8, 32), torch.rand(32, 16) > 0.7)),
}


@pytest.mark.parametrize("name", BY_VALUES)
def test_peaks_of_what_depends_on_values_are_predicted(name):
    torch.manual_seed(0)
    network, arguments = BY_VALUES[name]
    assert_exact_everywhere(network(), *arguments)


def test_other_values_stay_below_what_is_predicted():
    torch.manual_seed(0)
    model = Placed()
    x, features, mask = BY_VALUES["scattered"][1]
    small = lowtide.rewrite(model, "100%", (x, features, mask), costs="flops")
    peak_bytes = small.plan.peak_bytes - small.plan.problem.resident_bytes
    for count in (0, 1, 3, 8):
        model.zero_grad()
        some = torch.arange(64).view(2, 32) < count
        assert lowtide.measure_peak(lambda some=some: small(x, features, some).backward()) <= peak_bytes
