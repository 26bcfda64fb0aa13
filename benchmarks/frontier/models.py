"""The two networks of the frontier that are written in plain torch: one like Llama, and a U-Net."""

from __future__ import annotations

import torch
from lowtide.rewriter.models.batches import pictures
from lowtide.rewriter.models.corpus import hashed, sample_words
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Tensor]


class RootMeanSquareNorm(nn.Module):
    """RMSNorm, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last dimension to a root mean square of 1, then by the weight."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class LlamaBlock(nn.Module):
    """Causal attention with queries, keys and values from one product, then SwiGLU; no biases, no rotation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = RootMeanSquareNorm(width), RootMeanSquareNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 4 * width, bias=False), nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to the same shape."""
        batch, tokens, width = x.shape
        together = self.query_key_value(self.before_attention(x)).view(batch, tokens, 3, self.heads, -1)
        query, key, value = together.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, width))
        y = self.before_mlp(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class LlamaStyle(nn.Module):
    """A language model of `LlamaBlock`s that returns nothing but its loss."""

    def __init__(self, blocks: int = 12, width: int = 128, heads: int = 4, vocabulary: int = 512) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads) for _ in range(blocks))
        self.norm, self.head = RootMeanSquareNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss for token ids and the ids that follow them, both [batch, tokens]."""
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return {"loss": functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())}


class UNet(nn.Module):
    """Stages of two convolutions each, four down and four up; each stage up is joined with a skip."""

    def __init__(self, channels: int = 16, levels: int = 4, classes: int = 5) -> None:
        super().__init__()
        sizes = [channels * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(_stage(a, b) for a, b in zip([1, *sizes[:-2]], sizes[:-1], strict=True))
        self.lowest = _stage(sizes[-2], sizes[-1])
        sizes_up = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in sizes_up)
        self.up = nn.ModuleList(_stage(2 * b, b) for _, b in sizes_up)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss for images [batch, 1, side, side] and classes [batch, side, side]."""
        skips = []
        for stage in self.down:
            skips.append(stage(image if not skips else functional.max_pool2d(skips[-1], 2)))
        x = self.lowest(functional.max_pool2d(skips[-1], 2))
        for widen, stage in zip(self.widen, self.up, strict=True):
            x = stage(torch.cat([widen(x), skips.pop()], 1))
        return {"loss": functional.cross_entropy(self.head(x), target)}


def _stage(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(_convolution(inside, outside), _convolution(outside, outside))


def _convolution(inside: int, outside: int) -> nn.Sequential:
    layers = (nn.GroupNorm(4, outside), nn.SiLU(), nn.Dropout2d(0.1))
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), *layers)


def llama_style(blocks: int, width: int, batch: int, tokens: int, vocabulary: int = 512) -> tuple[nn.Module, Batch]:
    """Build a Llama-style model with 4 heads, and text for it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = LlamaStyle(blocks, width, vocabulary=vocabulary)
    words = sample_words(batch * (tokens + 1))
    ids = torch.tensor(hashed(words, vocabulary)).view(batch, tokens + 1)
    return model.train(), {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}


def u_net(channels: int, batch: int, side: int) -> tuple[nn.Module, Batch]:
    """Build a U-Net with four skips, and pictures of text whose classes are five steps of brightness."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = UNet(channels)
    image = pictures(batch, 1, side, side, seed=0)
    return model.train(), {"image": image, "target": (image[:, 0] + 2.5).long().clamp(0, 4)}
