"""The batches that the networks of torch alone train on, by the number of the step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...case import Call
from .networks import CLASSES

_ROWS, _TOKENS = 4, 12


def images(channels: int = 3, side: int = 24) -> Callable[[int], Call]:
    """Return a maker of images [rows, channels, side, side] with classes."""

    def batch(number: int) -> Call:
        draw = torch.Generator().manual_seed(100 + number)
        x = torch.randn(_ROWS, channels, side, side, generator=draw)
        return (x, torch.randint(CLASSES, (_ROWS,), generator=draw)), {}

    return batch


def floats(*shape: int, labels: int | None = CLASSES) -> Callable[[int], Call]:
    """Return a maker of tensors [rows, *shape] of the normal distribution, with classes unless `labels` is None."""

    def batch(number: int) -> Call:
        draw = torch.Generator().manual_seed(100 + number)
        x = torch.randn(_ROWS, *shape, generator=draw)
        return (x,) if labels is None else (x, torch.randint(labels, (_ROWS,), generator=draw)), {}

    return batch


def tokens(number: int) -> Call:
    """Return tokens [rows, tokens]."""
    draw = torch.Generator().manual_seed(100 + number)
    return (torch.randint(1, 100, (_ROWS, _TOKENS), generator=draw),), {}


def pairs(number: int) -> Call:
    """Return sources and targets [rows, tokens]; one source ends in padding, 0."""
    draw = torch.Generator().manual_seed(100 + number)
    source, target = torch.randint(1, 100, (2, _ROWS, _TOKENS), generator=draw)
    source[1, -3:] = 0
    return (source, target), {}


def clicks(number: int) -> Call:
    """Return ids, numbers and clicks, as `DeepAndCross` takes them."""
    draw = torch.Generator().manual_seed(100 + number)
    ids = torch.randint(50, (_ROWS, 3, 5), generator=draw)
    return (ids, torch.randn(_ROWS, 8, generator=draw), torch.randint(2, (_ROWS,), generator=draw).float()), {}


def graph(number: int) -> Call:
    """Return nodes, edges and labels, as `GraphConvolution` takes them."""
    draw = torch.Generator().manual_seed(100 + number)
    nodes, edges = torch.randn(20, 16, generator=draw), torch.randint(20, (2, 60), generator=draw)
    return (nodes, edges, torch.randint(4, (20,), generator=draw)), {}


def waves(number: int) -> Call:
    """Return samples of sound in [−1, 1]."""
    return (torch.rand(_ROWS, 64, generator=torch.Generator().manual_seed(100 + number)) * 2 - 1,), {}


def two(number: int) -> Call:
    """Return two tensors [8, 32]."""
    first, second = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(100 + number))
    return (first, second), {}


def unit(number: int) -> Call:
    """Return numbers in [0, 1], [rows, 64]."""
    return (torch.rand(_ROWS, 64, generator=torch.Generator().manual_seed(100 + number)),), {}


def speech(number: int) -> Call:
    """Return features, targets and their lengths, as `Ctc` takes them."""
    draw = torch.Generator().manual_seed(100 + number)
    targets = torch.randint(1, 20, (_ROWS, 5), generator=draw)
    return (torch.randn(_ROWS, 8, 24, generator=draw), targets, torch.tensor([5, 4, 3, 5])), {}
