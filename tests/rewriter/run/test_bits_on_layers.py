"""Kinds of layers and wirings, each trained rewritten at the smallest budget, bit for bit and predicted to the byte."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowtide.rewriter.errors import CaptureError
from lowtide.rewriter.measure.costs import MeasureWarning
from side_by_side import assert_exact_everywhere, rewritten
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

pytestmark = pytest.mark.usefixtures("one_thread")


class Called(nn.Module):
    """Parts under names, and a function of the parts and the arguments as forward."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def seeded(make: Callable[[], Any]) -> Any:
    """Return the module made by `make` from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make()


def mlp(*between: nn.Module, width: int = 12) -> nn.Sequential:
    """Two linear layers with something between."""
    return nn.Sequential(nn.Linear(8, width), *between, nn.Linear(width, 4))


def attention() -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True)
    return Called(lambda m, x: m.layer(x, x, x, need_weights=False)[0], layer=layer), (torch.randn(2, 10, 16),)


def attention_with_weights() -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True)
    return Called(lambda m, x: m.layer(x, x, x), layer=layer), (torch.randn(2, 10, 16),)


def encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), (torch.randn(2, 10, 16),)


def recurrent(kind: type[nn.Module]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = kind(8, 12, num_layers=2, batch_first=True, dropout=0.1)
    return Called(lambda m, x: m.head(m.layer(x)[0]), layer=layer, head=nn.Linear(12, 4)), (torch.randn(3, 6, 8),)


def batch_norm() -> tuple[nn.Module, tuple[Tensor, ...]]:
    parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    return nn.Sequential(*parts, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 16, 4)), (torch.randn(4, 3, 8, 8),)


def channels_last() -> tuple[nn.Module, tuple[Tensor, ...]]:
    parts = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.GroupNorm(2, 4)
    model = nn.Sequential(*parts).to(memory_format=torch.channels_last)
    return model, (torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last),)


def shared_depth() -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1))
    return nn.Sequential(layer, layer, nn.LayerNorm(8), layer), (torch.randn(5, 8),)


def shared_normalization() -> tuple[nn.Module, tuple[Tensor, ...]]:
    norm = nn.BatchNorm1d(8)
    return nn.Sequential(nn.Linear(8, 8), norm, nn.ReLU(), nn.Linear(8, 8), norm), (torch.randn(5, 8),)


def reweighted(how: Callable[..., nn.Module]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(how(nn.Linear(8, 12)), nn.Tanh(), how(nn.Linear(12, 4))), (torch.randn(5, 8),)


def padded_embedding() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(nn.Embedding(20, 8, padding_idx=0), mlp(nn.GELU())), (torch.randint(0, 20, (3, 7)),)


def no_parameters() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = Called(lambda m, x, y: functional.dropout((x.exp() * y).sin(), 0.2).cumsum(0).cos())
    return model, (torch.randn(6, 8, requires_grad=True), torch.randn(6, 8))


def complex_numbers() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def forward(m: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(m.layer(x))
        return torch.fft.irfft(spectrum * spectrum.conj() * torch.polar(m.scale(x)[..., :5], x[..., :5]), n=8).relu()

    return Called(forward, layer=nn.Linear(8, 8), scale=nn.Linear(8, 8)), (torch.randn(3, 8),)


def complex_output() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Called(lambda m, x: torch.fft.fft(m.layer(x).tanh()), layer=nn.Linear(8, 8)), (torch.randn(3, 8),)


def double() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return mlp(nn.GELU(), nn.Dropout(0.3)).double(), (torch.randn(5, 8, dtype=torch.float64),)


def pooling() -> tuple[nn.Module, tuple[Tensor, ...]]:
    parts = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ELU(), nn.AvgPool2d(2)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(8, 4)), (torch.randn(2, 3, 8, 8),)


def scatter() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def forward(m: Any, x: Tensor, index: Tensor) -> Tensor:
        gathered = m.first(x)[index].relu()
        return torch.zeros(4, 12).index_add(0, index % 4, gathered) @ m.first.weight

    return Called(forward, first=nn.Linear(8, 12)), (torch.randn(5, 8), torch.randint(0, 5, (9,)))


def sliced_writes() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def forward(m: Any, x: Tensor) -> Tensor:
        joined = torch.zeros(5, 12)
        joined[:, :4] = m.layer(x)
        joined[:, 4:8].copy_(m.layer(x).tanh())
        joined[:, 8:] += m.layer(x).sigmoid()
        return joined.mul_(2).exp_()

    return Called(forward, layer=nn.Linear(8, 4)), (torch.randn(5, 8),)


def noise() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.first(x)
        hidden = hidden + torch.randn_like(hidden) * torch.rand(()) + torch.randint(0, 3, (12,))
        hidden = functional.rrelu(functional.alpha_dropout(hidden, 0.2, True), training=True)
        return m.second(hidden + torch.normal(0.0, 1.0, hidden.shape).uniform_() + hidden.new_empty(12).normal_())

    return Called(forward, first=nn.Linear(8, 12), second=nn.Linear(12, 4)), (torch.randn(5, 8),)


KINDS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "attention": attention,
    "attention_with_weights": attention_with_weights,
    "encoder": encoder,
    "recurrent": lambda: recurrent(nn.RNN),
    "batch_norm_and_in_place_relu": batch_norm,
    "channels_last": channels_last,
    "one_module_used_thrice": shared_depth,
    "one_batch_norm_used_twice": shared_normalization,
    "weight_norm": lambda: reweighted(parametrizations.weight_norm),
    "spectral_norm": lambda: reweighted(parametrizations.spectral_norm),
    "orthogonal": lambda: reweighted(parametrizations.orthogonal),
    "padded_embedding": padded_embedding,
    "no_parameters": no_parameters,
    "complex_numbers": complex_numbers,
    "complex_output": complex_output,
    "double": double,
    "pooling": pooling,
    "scatter": scatter,
    "sliced_writes": sliced_writes,
    "noise": noise,
    "feature_dropout": lambda: (mlp(nn.Dropout1d(0.2), nn.GELU()), (torch.randn(3, 5, 8),)),
    "softmax_and_normalization": lambda: (mlp(nn.LayerNorm(12), nn.Softmax(-1), nn.RMSNorm(12)), (torch.randn(5, 8),)),
    "instance_norm": lambda: (
        nn.Sequential(nn.Conv1d(2, 6, 3), nn.InstanceNorm1d(6), nn.PReLU()),
        (torch.randn(2, 2, 9),),
    ),
    "bilinear": lambda: (nn.Bilinear(8, 8, 3), (torch.randn(5, 8), torch.randn(5, 8))),
    "empty_batch": lambda: (mlp(nn.GELU(), nn.Dropout(0.1)), (torch.randn(0, 8),)),
    "one_row": lambda: (mlp(nn.GELU(), nn.Dropout(0.1)), (torch.randn(1, 8),)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_rewritten_bit_for_bit_and_predicted_to_the_byte(kind):
    model, args = seeded(KINDS[kind])
    assert_exact_everywhere(model, *args)


LOSSES = [
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
    functional.soft_margin_loss,
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.kl_div,
    functional.cross_entropy,
    functional.multilabel_soft_margin_loss,
    functional.cosine_similarity,
]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")  # of kl_div
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_losses_are_predicted_to_the_byte(loss):
    model = Called(lambda m, x, y: {"loss": loss(m.net(x).sigmoid(), y).mean()}, net=seeded(lambda: mlp(nn.GELU())))
    assert_exact_everywhere(model, torch.rand(40, 8), torch.rand(40, 4))


NORMALIZATIONS = {
    "layer": lambda: nn.LayerNorm(64),
    "batch": lambda: nn.BatchNorm1d(64),
    "group": lambda: nn.GroupNorm(4, 64),
    "root mean square": lambda: nn.RMSNorm(64),
}


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's, of RMSNorm
@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_normalizations_of_half_precision_with_single_precision_parameters(kind):
    parts = [part for _ in range(4) for part in (nn.Linear(64, 64, bias=False), NORMALIZATIONS[kind]())]
    # Many rows of few numbers, so that statistics count.
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error", MeasureWarning)
        assert_exact_everywhere(nn.Sequential(*parts), torch.randn(300, 64))


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_layers_whose_cells_work_in_place_are_refused_by_name(layer):
    model = nn.Sequential(nn.Linear(8, 8), layer(8, 12))
    with pytest.raises(CaptureError, match=r"cannot be rewritten, in 1: it is what recurrent layers"):
        rewritten(model, torch.randn(6, 8), budget="100%")
