"""`torch.func`, autograd, other modes and parametrizations inside of forward."""

import copy

import pytest
import torch
from side_by_side import assert_trains_alike
from small_networks import Called
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vjp, vmap
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

pytestmark = pytest.mark.usefixtures("one_thread")


def rows() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def changed_in_place(m, x):
    def doubled(row):
        row = row * 2
        row.add_(1)
        row[0] = 0
        return row

    return vmap(doubled)(m.net(x))


def attended(m, x):
    return vmap(lambda q: functional.scaled_dot_product_attention(q, q, q))(m.net(x).view(2, 2, 2, 4))


class Ensemble(nn.Module):
    """Runs several networks at once, over parameters stacked on each other."""

    def __init__(self) -> None:
        super().__init__()
        parts = [smooth() for _ in range(3)]
        stacked, _ = stack_module_state(parts)
        self.stacked = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(p) for name, p in stacked.items()})
        self.structure = [copy.deepcopy(parts[0]).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        def run(parameters: dict[str, Tensor]) -> Tensor:
            named = {name.replace("_", "."): parameter for name, parameter in parameters.items()}
            return functional_call(self.structure[0], named, (x,))

        return vmap(run)(dict(self.stacked))


MAPPED = {
    "function": lambda m, x: vmap(lambda row: functional.linear(row, m.weight).sin())(m.net(x)),
    "module": lambda m, x: vmap(m.net, randomness="different")(x),
    "one mask for all": lambda m, x: vmap(m.net, randomness="same")(x),
    "other dimensions": lambda m, x: m.net(vmap(lambda w: x @ w, in_dims=1, out_dims=1)(m.weight)),
    "nested": lambda m, x: vmap(lambda row: vmap(lambda number: (number * m.weight).sum())(row))(m.net(x)),
    "in chunks": lambda m, x: vmap(lambda row: row @ m.weight, chunk_size=3)(m.net(x)),
    "in place": changed_in_place,
    "attention": attended,
    "loss": lambda m, x: vmap(functional.cross_entropy)(m.net(x).view(2, 4, 4), torch.arange(8).view(2, 4) % 4).mean(),
}


@pytest.mark.parametrize("kind", MAPPED)
def test_vmap_runs_as_in_eager(kind):
    assert_trains_alike(Called(MAPPED[kind], net=net(), weight=nn.Parameter(torch.randn(4, 4))), rows(), budget="1MiB")


def test_an_ensemble_over_stacked_parameters_runs_as_in_eager():
    assert_trains_alike(Ensemble(), rows(), budget="1MiB")


def with_another_weight(m, x):
    return functional_call(m.layer, {"weight": m.weight.tanh(), "bias": m.layer.bias * 2}, (x,))


def with_its_own(m, x):
    return functional_call(m.net, dict(m.net.named_parameters()), (x,))


@pytest.mark.parametrize("forward", [with_another_weight, with_its_own])
def test_functional_call_runs_as_in_eager(forward):
    parts = {"net": net(), "layer": nn.Linear(4, 4), "weight": nn.Parameter(torch.randn(4, 4))}
    assert_trains_alike(Called(forward, **parts), rows(), budget="1MiB")


def inner_step(m, x):
    hidden = x * m.scale
    (gradient,) = torch.autograd.grad(m.net(hidden).square().sum(), hidden, create_graph=True)
    return m.net(hidden - 0.1 * gradient)


def of_parameters(m, x):
    gradients = grad(lambda p: functional_call(m.net, p, (x,)).square().sum())(dict(m.net.named_parameters()))
    return sum(gradient.square().sum() for gradient in gradients.values())


DIFFERENTIATED = {
    "grad": lambda m, x: grad(lambda y: m.net(y).square().sum())(x * m.scale),
    "vjp": lambda m, x: (lambda y, pull: y.sum() + pull(y)[0])(*vjp(m.net, x * m.scale)),
    "jacrev": lambda m, x: jacrev(lambda y: m.net(y).square().sum(0))(x * m.scale),
    "mapped": lambda m, x: vmap(grad(lambda row: m.net(row).sum().sin()))(x),
    "autograd": inner_step,
    "of parameters": of_parameters,
}


@pytest.mark.parametrize("kind", DIFFERENTIATED)
def test_gradients_taken_in_forward_are_those_of_eager(kind):
    model = Called(DIFFERENTIATED[kind], net=smooth(), scale=nn.Parameter(torch.tensor(0.7)))
    assert_trains_alike(model, rows(), budget="1MiB")


class Symmetric(nn.Module):
    """Makes a matrix symmetric."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def symmetric() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def cached(m, x):
    with parametrize.cached():
        return m.part(m.part(x))


PARAMETRIZED = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "symmetric": symmetric,
}


@pytest.mark.filterwarnings("ignore:hooks on inner modules", "ignore:forward sets weight", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_parametrized_weights_train_alike(kind):
    small = assert_trains_alike(nn.Sequential(PARAMETRIZED[kind](), nn.Tanh(), nn.Linear(4, 2)), rows())
    assert small.plan is not None


def test_a_parametrization_that_is_cached_trains_alike():
    assert_trains_alike(Called(cached, part=symmetric()), rows(), budget="1MiB")


class Complex(nn.Module):
    """Has complex parameters and a real result."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.layer = nn.Linear(4, 4, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(torch.complex64) @ self.weight).abs().sum()


def test_complex_parameters_train_alike():
    assert_trains_alike(Complex(), rows())


def compiled_part() -> nn.Module:
    return torch.compile(nn.Sequential(nn.Linear(4, 4), nn.GELU()), backend="eager")  # pyright: ignore


def test_a_compiled_part_runs_as_it_is_written():
    model = nn.Sequential(nn.Linear(4, 4), compiled_part(), nn.Linear(4, 2))
    assert_trains_alike(model, rows(), budget="1MiB")


def halved(m, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.to(torch.bfloat16), lambda t: t.float()):
        return m.net(m.net(x).exp())


def on_the_host(m, x):
    with torch.autograd.graph.save_on_cpu():
        return m.net(x)


@pytest.mark.parametrize("forward", [halved, on_the_host])
def test_what_is_done_with_saved_tensors_is_done(forward):
    assert_trains_alike(Called(forward, net=net()), rows(), budget="1MiB")


def teacher_without_gradients(m, x):
    with torch.no_grad():
        target = m.teacher(x)
    return functional.mse_loss(m.net(x), target)


def teacher_in_inference_mode(m, x):
    with torch.inference_mode():
        target = m.teacher(x)
    return m.net(x) * target.clone()


def teacher_that_follows(m, x):
    with torch.no_grad():
        for teacher_weight, weight in zip(m.teacher.parameters(), m.net.parameters(), strict=True):
            teacher_weight.mul_(0.9).add_(weight, alpha=0.1)
    return teacher_without_gradients(m, x)


@pytest.mark.parametrize("forward", [teacher_without_gradients, teacher_in_inference_mode, teacher_that_follows])
def test_a_teacher_inside_that_could_be_trained_trains_alike(forward):
    frozen = forward is teacher_that_follows
    assert_trains_alike(Called(forward, net=net(), teacher=net().requires_grad_(not frozen)), rows(), budget="1MiB")
