"""Parts in evaluation take the fused kernels that they take in eager."""

import pytest
import torch
from side_by_side import assert_trains_alike
from small_networks import Called
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


def encoder(**options) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def attention() -> nn.Module:
    return nn.MultiheadAttention(8, 2, batch_first=True).eval()


def frozen(m, x, **options):
    with torch.no_grad():
        hidden = m.part(x, **options)
    return m.head(hidden)


def attended(m, x, **options):
    with torch.no_grad():
        hidden = m.part(x, x + 1, x, **options)[0]
    return m.head(hidden)


PADDING = torch.tensor([[False, False, False, True, True], [False] * 5])
CASES = {
    "encoder": (frozen, encoder, {}, "_transformer_encoder_layer_fwd"),
    "norm first": (frozen, lambda: encoder(activation="gelu", norm_first=True), {}, "_transformer_encoder_layer_fwd"),
    "causal": (
        frozen,
        encoder,
        {"mask": nn.Transformer.generate_square_subsequent_mask(5)},
        "_transformer_encoder_layer_fwd",
    ),
    "padding": (frozen, encoder, {"src_key_padding_mask": PADDING}, "_transformer_encoder_layer_fwd"),
    "attention": (lambda m, x: frozen(m, x), lambda: Attending(attention()), {}, "_native_multi_head_attention"),
    "attention, padding": (
        lambda m, x: frozen(m, x, key_padding_mask=PADDING, need_weights=False),
        lambda: Attending(attention()),
        {},
        "_native_multi_head_attention",
    ),
    "cross-attention": (attended, attention, {}, "bmm"),
}


class Attending(nn.Module):
    """Has each token look at all."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x, **options):
        return self.attention(x, x, x, **options)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_part_runs_as_in_eager(case):
    forward, part, options, kernel = CASES[case]
    model = Called(lambda m, x: forward(m, x, **options), head=head(), part=part())
    small = assert_trains_alike(model, tokens(), budget="1MiB")
    assert kernel in small.code


def test_a_part_in_evaluation_with_gradients_takes_the_ordinary_path():
    model = Called(lambda m, x: m.head(m.part(x)), head=head(), part=encoder())
    small = assert_trains_alike(model, tokens(), budget="1MiB")
    assert "_transformer_encoder_layer_fwd" not in small.code
