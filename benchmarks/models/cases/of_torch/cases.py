"""Models written with nothing but torch: its own layers, and small networks of kinds that no package here has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from ...case import Call, Case, Subject
from .batches import clicks, floats, graph, images, pairs, speech, tokens, two, unit, waves
from .networks import (
    WIDTH,
    Autoencoder,
    Classifier,
    Ctc,
    DeepAndCross,
    Experts,
    GraphConvolution,
    Sequences,
    Siamese,
    Spectral,
    StateSpace,
    Translator,
    WaveNet,
)


def _perceptron(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 96), activation(), nn.Dropout(0.1), nn.Linear(96, 96), activation())


def _convolutions(norm: Callable[[int], nn.Module], activation: Callable[[], nn.Module]) -> nn.Module:
    first = [nn.Conv2d(3, 16, 3, padding=1), norm(16), activation(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(16, 32, 3, stride=2), norm(32), activation(), nn.Dropout2d(0.1))


_ENCODER = partial(nn.TransformerEncoderLayer, WIDTH, 4, 64, batch_first=True)
_IN_PLACE = partial(nn.ReLU, inplace=True)

_NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    **{
        f"perceptron-{kind.__name__}": (lambda kind=kind: Classifier(_perceptron(kind), 96), floats(64))
        for kind in (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Mish, nn.Hardswish, nn.RReLU, nn.Softplus, nn.PReLU)
    },
    **{
        f"convolutions-{name}": (lambda norm=norm, act=act: Classifier(_convolutions(norm, act), 32), images())
        for name, norm, act in (
            ("batch-norm", nn.BatchNorm2d, _IN_PLACE),
            ("group-norm", partial(nn.GroupNorm, 4), nn.SiLU),
            ("instance-norm", nn.InstanceNorm2d, nn.LeakyReLU),
            ("instance-norm-running", partial(nn.InstanceNorm2d, track_running_stats=True, affine=True), nn.ReLU),
            ("batch-norm-cumulative", partial(nn.BatchNorm2d, momentum=None), nn.ReLU),
            ("local-response", partial(nn.LocalResponseNorm), nn.ReLU6),
        )
    },
    "encoder": (lambda: Sequences(nn.TransformerEncoder(_ENCODER(), 2)), tokens),
    "encoder-norm-first": (
        lambda: Sequences(nn.TransformerEncoder(_ENCODER(norm_first=True, activation="gelu"), 2, nn.LayerNorm(WIDTH))),
        tokens,
    ),
    "translator": (Translator, pairs),
    "lstm": (lambda: Sequences(nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=0.1)), tokens),
    "gru": (lambda: Sequences(nn.GRU(WIDTH, WIDTH, batch_first=True)), tokens),
    "rnn": (lambda: Sequences(nn.RNN(WIDTH, WIDTH, batch_first=True)), tokens),
    "experts": (lambda: Sequences(Experts()), tokens),
    "spectral": (lambda: Sequences(Spectral()), tokens),
    "state-space": (lambda: Sequences(StateSpace()), tokens),
    "autoencoder": (Autoencoder, unit),
    "recommender": (DeepAndCross, clicks),
    "graph": (GraphConvolution, graph),
    "wavenet": (WaveNet, waves),
    "siamese": (Siamese, two),
    "ctc": (Ctc, speech),
    "weight-norm": (
        lambda: Classifier(nn.utils.parametrizations.weight_norm(nn.Linear(64, 96)), 96),
        floats(64),
    ),
    "spectral-norm": (
        lambda: Classifier(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 96)), 96),
        floats(64),
    ),
    "convolution-1d": (
        lambda: Classifier(nn.Sequential(nn.Conv1d(8, 32, 5), nn.BatchNorm1d(32), nn.GLU(1)), 16),
        floats(8, 40),
    ),
    "convolution-3d": (
        lambda: Classifier(nn.Sequential(nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AvgPool3d(2)), 8),
        floats(2, 8, 10, 10),
    ),
    "upsampling": (
        lambda: Classifier(
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.ConvTranspose2d(8, 8, 3)
            ),
            8,
        ),
        images(),
    ),
    "adaptive-pooling": (
        lambda: Classifier(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(5), nn.AdaptiveMaxPool2d(2)), 8),
        images(),
    ),
}


def cases() -> Iterator[Case]:
    """Yield all models."""
    for name, (make, batch) in _NETWORKS.items():
        yield Case(f"torch/{name}", "of torch alone", partial(_subject, make, batch))


def _subject(make: Callable[[], nn.Module], batch: Callable[[int], Call]) -> Subject:
    return Subject(make(), batch)
