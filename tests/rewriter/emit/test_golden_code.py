"""The generated code of three small models at a tight budget, as files to read: a change of it shows as a diff."""

import lowtide
import pytest
import torch
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")


class Gpt2(nn.Module):
    """Two layers of GPT-2 with the loss of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(64, 16), nn.Embedding(8, 16)
        self.layers = nn.ModuleList(Gpt2Layer() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 64, bias=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(8))
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Gpt2Layer(nn.Module):
    """Attention and a feed-forward network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.query_key_value, self.project = nn.Linear(16, 48), nn.Linear(16, 16)
        self.network = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.Dropout(0.1))

    def forward(self, x):
        parts = self.query_key_value(self.norm1(x)).split(16, -1)
        query, key, value = (part.view(4, 8, 2, 8).transpose(1, 2) for part in parts)
        attention = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(attention.transpose(1, 2).reshape(4, 8, 16))
        return x + self.network(self.norm2(x))


class Convolutions(nn.Module):
    """Residual blocks of convolutions, with batch normalization, before a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3))).logsumexp(-1).mean()


class LlamaLayer(nn.Module):
    """Rotary attention with two heads, and a gated network, both after RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(16), nn.RMSNorm(16)
        self.query, self.key, self.value, self.project = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(16, 48, bias=False), nn.Linear(16, 48, bias=False)
        self.down = nn.Linear(48, 16, bias=False)
        angles = torch.outer(torch.arange(8.0), 100.0 ** -(torch.arange(0, 8, 2) / 8)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rotated(self, x):
        left, right = x.chunk(2, -1)
        return x * self.cos + torch.cat([-right, left], -1) * self.sin

    def forward(self, x):
        normalized = self.norm1(x)
        query, key, value = (
            part(normalized).view(4, 8, 2, 8).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attention = functional.scaled_dot_product_attention(
            self.rotated(query), self.rotated(key), value, is_causal=True
        )
        x = x + self.project(attention.transpose(1, 2).reshape(4, 8, 16))
        normalized = self.norm2(x)
        return x + self.down(functional.silu(self.gate(normalized)) * self.up(normalized))


MODELS = {
    "gpt2": (Gpt2, lambda: torch.randint(64, (4, 8))),
    "convolutions": (Convolutions, lambda: torch.randn(4, 3, 8, 8)),
    "llama": (lambda: nn.Sequential(LlamaLayer(), LlamaLayer()), lambda: torch.randn(4, 8, 16)),
}


# How many bytes convolutions work in depends on the processor: those of a device that is not here are counted.
ELSEWHERE = {"device": "h200-141gb"}


@pytest.mark.parametrize(("name", "place"), [("gpt2", {}), ("convolutions", ELSEWHERE), ("llama", {})])
def test_the_code_is_the_one_that_was_read(name, place, golden):
    if place and torch.cuda.is_available():
        pytest.skip("a GPU that is here is measured")
    make_model, make_batch = MODELS[name]
    torch.manual_seed(0)
    model, batch = make_model(), make_batch()
    smallest = lowtide.sweep(model, (batch,), count=2, costs="flops", **place)[-1].peak_bytes
    golden(f"code/{name}", lowtide.rewrite(model, round(1.1 * smallest), (batch,), costs="flops", **place).code)
