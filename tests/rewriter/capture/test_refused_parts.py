"""Parts that cannot be captured are refused by name, and the module does not change."""

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import CaptureError
from small_networks import Called
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")

# Of what is deprecated, and still in use.
warnings_ignored = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def rows() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))


def refused(model, *args, match) -> None:
    """Planning is refused, with and without sample arguments, and the model still trains."""
    for ask in (
        lambda: lowtide.plan(model, "1MiB", args),
        lambda: lowtide.rewrite(model, "1MiB", costs="flops")(*args),
    ):
        with pytest.raises(CaptureError, match=match) as caught:
            ask()
        assert len(str(caught.value)) > 60
    model(*args).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@warnings_ignored
@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, rows())])
def test_torchscript_is_named_by_its_part(make):
    model = nn.Sequential(nn.Linear(4, 4), make(nn.Linear(4, 2)))
    refused(model, rows(), match="part 1 is TorchScript .*; put the Python module that it was made of in its place")


@torch.jit.script
def gated(x):
    """An activation in TorchScript."""
    return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Called(lambda m, x: gated(m.net(x)), net=net()), "gated"),
        (Called(lambda m, x: m.activation(m.net(x)), net=net(), activation=gated), "activation"),
    ],
)
def test_a_function_in_torchscript_runs_and_is_reported(model, name):
    with pytest.warns(lowtide.LowtideWarning, match=rf"calls functions in TorchScript \({name}\).*in the last bit"):
        small = lowtide.rewrite(model, "1MiB", (rows(),), costs="flops")
    assert any("TorchScript" in note for note in small.plan.problem.notes)
    expected = torch.autograd.grad(model(rows()).sum(), list(model.parameters()))
    small(rows()).sum().backward()
    for gradient, parameter in zip(expected, small.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@warnings_ignored
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_buffers_are_named(layout):
    adjacent = torch.eye(8).to_sparse() if layout == "coo" else torch.eye(8).to_sparse_csr()
    model = Called(lambda m, x: torch.sparse.mm(m.graph, m.net(x)), net=net(), graph=adjacent)
    refused(model, rows(), match=f"buffer graph is not a dense tensor .*sparse_{layout}.*to_dense")


@warnings_ignored
def test_sparse_arguments_and_attributes_are_named():
    model = Called(lambda m, x, graph: torch.sparse.mm(graph, m.net(x)), net=net())
    refused(model, rows(), torch.eye(8).to_sparse(), match="argument 0.1 is not a dense tensor .*sparse_coo")
    model = Called(lambda m, x: torch.sparse.mm(m.graph[0], m.net(x)), net=net(), graph=[torch.eye(8).to_sparse()])
    refused(model, rows(), match="a tensor that forward reaches is not a dense tensor .*sparse_coo")


@warnings_ignored
def test_a_sparse_tensor_made_in_forward_is_distinguished_from_a_sparse_gradient():
    model = Called(lambda m, x: torch.sparse.mm(torch.eye(8).to_sparse(), m.net(x)), net=net())
    refused(model, rows(), match=r"_to_sparse.* makes a sparse tensor, in the root module \(.*its size depends on")
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4))
    refused(model, torch.arange(3), match="a sparse gradient comes from .*, in the backward of 0: .*sparse=False")


NESTED = {
    "strided": lambda m, x: torch.nested.nested_tensor([m.net(x)[:3], m.net(x)[:5]]).to_padded_tensor(0.0),
    "of tensors": lambda m, x: torch.nested.as_nested_tensor([m.net(x)[:3], m.net(x)[:5]]).to_padded_tensor(0.0),
    "jagged": lambda m, x: torch.nested.as_nested_tensor([m.net(x)[:3], m.net(x)], layout=torch.jagged).values(),
}


@warnings_ignored
@pytest.mark.parametrize("kind", NESTED)
def test_nested_tensors_are_named(kind):
    model = Called(NESTED[kind], net=net())
    with pytest.raises(CaptureError, match=r"nested tensor.*pad the sequences"):
        lowtide.plan(model, "1MiB", (rows(),))


@warnings_ignored
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_arguments_are_named(layout):
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)], layout=layout)
    for ask in (
        lambda: lowtide.plan(nn.Linear(4, 4), "1MiB", (nested,)),
        lambda: lowtide.rewrite(nn.Linear(4, 4), 1)(nested),
    ):
        with pytest.raises(CaptureError, match=r"argument 0.0 is a nested tensor.*pad the sequences"):
            ask()


@warnings_ignored
def test_an_encoder_that_nests_padded_sequences_is_refused_with_what_to_do():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval().requires_grad_(False)
    padding = torch.tensor([[False, False, True]] * 2)
    model = Called(lambda m, x: m.net(m.encoder(x, src_key_padding_mask=padding)), net=net(), encoder=encoder)
    with pytest.raises(CaptureError, match=r"in encoder .*enable_nested_tensor=False"):
        lowtide.plan(model, "1MiB", (torch.randn(2, 3, 4),))


def dual(m, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(m.net(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


FORWARD_MODE = {
    "jvp": lambda m, x: torch.func.jvp(m.net, (x,), (x,))[1],
    "jacfwd": lambda m, x: torch.func.jacfwd(lambda y: m.net(y).sum(0))(x),
    "hessian": lambda m, x: torch.func.hessian(lambda y: m.net(y).sum())(x),
    "linearize": lambda m, x: torch.func.linearize(m.net, x)[1](x),
    "dual numbers": dual,
}


@pytest.mark.parametrize("kind", FORWARD_MODE)
def test_differentiation_in_forward_mode_is_named(kind):
    with pytest.raises(CaptureError, match=r"differentiates in forward mode \(torch.func.jvp.* in the root module"):
        lowtide.plan(Called(FORWARD_MODE[kind], net=net()), "1MiB", (rows(),))


def through_tensor(m, x):
    y = m.net(x)
    y.sum().backward(retain_graph=True)
    return y


def through_autograd(m, x):
    y = m.net(x)
    torch.autograd.backward([y.sum()], retain_graph=True)
    return y


@pytest.mark.parametrize("forward", [through_tensor, through_autograd])
def test_a_backward_within_forward_is_named(forward):
    model = Called(forward, net=net())
    with pytest.raises(CaptureError, match=r"forward calls backward, in the root module \(.*torch.autograd.grad"):
        lowtide.plan(model, "1MiB", (rows(),))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_tensor_in_a_layout_of_its_own_is_named():
    with pytest.raises(CaptureError, match="oneDNN's own layout"):
        lowtide.plan(Called(lambda m, x: m.net(x).to_mkldnn().to_dense(), net=net()), "1MiB", (rows(),))


class ReadsItsGradient(torch.autograd.Function):
    """Decides by the gradient that comes."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (3 if gradient.isnan().any() else 2)


def hooked(m, x):
    y = m.net(x)
    y.register_hook(lambda gradient: gradient * 2 if gradient.sum() > 0 else gradient)
    return y.sin()


@pytest.mark.parametrize(
    ("forward", "where"),
    [(lambda m, x: ReadsItsGradient.apply(m.net(x)), "gradient.isnan"), (hooked, "gradient.sum")],
)
def test_a_backward_that_decides_by_a_gradient_is_named_with_its_line(forward, where):
    with pytest.raises(
        CaptureError, match=rf"backward looks at the values of a gradient .* in the backward of .*{where}"
    ):
        lowtide.plan(Called(forward, net=net()), "1MiB", (rows(),))


@torch.library.custom_op("lowtide_tests::without_shapes", mutates_args=())
def without_shapes(x: torch.Tensor) -> torch.Tensor:
    """An operation that does not say which shapes it makes."""
    return x.clone()


def from_a_pointer(m, x):
    return m.net(x) + torch.FloatTensor([x[0, 0], 0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("forward", "named"),
    [
        (lambda m, x: m.net(x) + without_shapes(x), r"could not be captured: .*torch.library.register_fake"),
        (from_a_pointer, r"could not be captured: .*a legacy constructor such as torch.FloatTensor of tensors"),
        (lambda m, x: m.net(x) + x.data_ptr() % 2, r"forward calls data_ptr, which takes data out of torch"),
        (lambda m, x: m.net(x) @ torch.ones(5), r"size mismatch.*If the original raises this too, fix it there"),
        (lambda m, x: torch.cat(torch.unsafe_chunk(m.net(x), 2)), r"aten.unsafe_split.* is what recurrent layers"),
    ],
    ids=["shapes unknown", "memory", "pointer", "own mistake", "unsafe split"],
)
def test_each_cause_is_named_as_what_it_is(forward, named):
    with pytest.raises(CaptureError, match=named) as caught:
        lowtide.plan(Called(forward, net=net()), "1MiB", (rows(),))
    assert "test_refused_parts.py" in str(caught.value) and "real data" not in str(caught.value)


def test_a_layer_without_a_line_of_the_user_is_not_blamed_on_who_calls_lowtide():
    with pytest.raises(CaptureError, match="in 1: it is what recurrent layers") as caught:
        lowtide.plan(nn.Sequential(nn.Linear(4, 4), nn.GRUCell(4, 4)), "1MiB", (rows(),))
    assert "test_refused_parts.py" not in str(caught.value)


def test_changes_of_memory_that_is_shared_are_named():
    shared = torch.zeros(4)
    model = Called(lambda m, x: m.net(x) * m.part + m.whole.add_(1), net=net(), whole=shared, part=shared[:1])
    with pytest.raises(CaptureError, match="changes buffer whole in place, which shares memory with buffer part"):
        lowtide.plan(model, "1MiB", (rows(),))
    apart = Called(lambda m, x: functional.relu(m.net(x)) * m.first + m.second.add_(1), net=net(), first=shared[:1])
    apart.register_buffer("second", shared[1:2])
    lowtide.plan(apart, "1MiB", (rows(),))
