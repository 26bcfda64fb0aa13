"""Small networks of torch alone: its own layers with a loss, and kinds that no package here has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, CLASSES = 32, 10


class Classifier(nn.Module):
    """Any layers, the mean over all but rows and features, and a cross-entropy; returns loss and logits."""

    def __init__(self, layers: nn.Module, features: int, channels_last: bool = False) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(features, CLASSES)
        self.channels_last = channels_last

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return loss and logits. x: the input of the layers; labels [rows]."""
        y = self.layers(x)
        y = y[0] if isinstance(y, tuple) else y
        if y.dim() > 2:
            y = y.flatten(1, -2).mean(1) if self.channels_last else y.flatten(2).mean(2)
        logits = self.head(y)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Sequences(nn.Module):
    """A module on embedded tokens [rows, tokens, width], then a prediction of each next token."""

    def __init__(self, inner: nn.Module, width: int = WIDTH, vocabulary: int = 100) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(vocabulary, width), inner
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the loss of tokens [rows, tokens]."""
        y = self.inner(self.embed(tokens))
        y = y[0] if isinstance(y, tuple) else y
        return functional.cross_entropy(self.head(y[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


class Translator(nn.Module):
    """nn.Transformer with causal and padding masks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, WIDTH)
        self.inner = nn.Transformer(WIDTH, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(WIDTH, 100)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the loss of target given source, both [rows, tokens]; 0 is padding."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1] - 1)
        y = self.inner(
            self.embed(source),
            self.embed(target[:, :-1]),
            tgt_mask=mask,
            tgt_is_causal=True,
            src_key_padding_mask=source == 0,
            memory_key_padding_mask=source == 0,
        )
        return functional.cross_entropy(self.head(y).flatten(0, 1), target[:, 1:].flatten(), ignore_index=0)


class Autoencoder(nn.Module):
    """A variational autoencoder: draws in forward, and two losses summed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.decode = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the loss of x [rows, 64] in [0, 1]."""
        mean, log_variance = self.encode(x).chunk(2, -1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        built = self.decode(code)
        distance = functional.binary_cross_entropy_with_logits(built, x)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
        return {"loss": distance + 0.1 * divergence, "built": built.sigmoid()}


class DeepAndCross(nn.Module):
    """A recommender: bags of embeddings and numbers, crossed, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(50, 8, mode=mode) for mode in ("sum", "mean", "max"))
        self.cross = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1))

    def forward(self, ids: Tensor, numbers: Tensor, clicked: Tensor) -> Tensor:
        """Return the loss of ids [rows, 3, 5], numbers [rows, 8], clicked [rows]."""
        start = x = torch.cat([numbers, *(bag(ids[:, i]) for i, bag in enumerate(self.bags))], -1)
        for layer in self.cross:
            x = start * layer(x) + x
        return functional.binary_cross_entropy_with_logits(self.deep(x)[:, 0], clicked)


class GraphConvolution(nn.Module):
    """Two rounds of messages along edges, gathered with index_add and scatter_reduce."""

    def __init__(self) -> None:
        super().__init__()
        self.send = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, nodes: Tensor, edges: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of nodes [count, 16], edges [2, many], labels [count]."""
        sender, receiver = edges
        messages = self.send(nodes).relu()[sender]
        summed = torch.zeros(len(nodes), 32).index_add(0, receiver, messages)
        most = torch.zeros(len(nodes), 32).scatter_reduce(0, receiver[:, None].expand(-1, 32), messages, "amax")
        return functional.cross_entropy(self.head(summed + most), labels)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates and skips, on raw samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 16, 1)
        self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.last = nn.Conv1d(16, 32, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """Return the loss of wave [rows, samples] in [−1, 1]."""
        x, total = self.first(wave[:, None, :-1]), 0.0
        for i, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            left, right = gate(functional.pad(x, (2**i, 0))).chunk(2, 1)
            y = skip(left.tanh() * right.sigmoid())
            x, total = x + y, total + y
        levels = ((wave[:, 1:] + 1) * 15.5).long().clamp(0, 31)
        return functional.cross_entropy(self.last(functional.relu(total)), levels)


class Siamese(nn.Module):
    """One network on two inputs, and a contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.PReLU(), nn.Linear(64, 16))

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Return loss and embedding of two inputs [rows, 32]."""
        a, b = (functional.normalize(self.net(x), dim=-1) for x in (first, second))
        logits = a @ b.mT / 0.1
        targets = torch.arange(len(first))
        loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.mT, targets)) / 2
        return {"loss": loss, "embedding": a}


class Experts(nn.Module):
    """A mixture of experts with top-2 routing, tokens sorted by expert."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, tokens, width] to the same shape."""
        flat = x.flatten(0, 1)
        weights, chosen = self.route(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            out.index_add_(0, token, expert(flat[token]) * weights[token, place, None])
        return out.view_as(x)


class Spectral(nn.Module):
    """Mixing by a Fourier transform with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, WIDTH, dtype=torch.cfloat) * 0.3)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, 12, width] to the same shape."""
        return self.norm(x + torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.weight, n=x.shape[1], dim=1))


class StateSpace(nn.Module):
    """A linear recurrence written as a loop over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.enter = nn.Parameter(torch.rand(WIDTH)), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, tokens, width] to the same shape."""
        gate, value = self.enter(x).chunk(2, -1)
        state, states = torch.zeros_like(x[:, 0]), []
        for token in range(x.shape[1]):
            state = state * self.decay.sigmoid() + gate[:, token].sigmoid() * value[:, token]
            states.append(state)
        return torch.stack(states, 1)


class Ctc(nn.Module):
    """A recognizer trained with the connectionist loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(8, 32, 3, padding=1), nn.GELU(), nn.Conv1d(32, 20, 1))

    def forward(self, x: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the loss of x [rows, 8, frames], targets [rows, 5], target_lengths [rows]."""
        scores = self.net(x).permute(2, 0, 1).log_softmax(-1)
        frames = torch.full((x.shape[0],), x.shape[2])
        return functional.ctc_loss(scores, targets, frames, target_lengths)
