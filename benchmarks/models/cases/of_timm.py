"""Image classifiers of timm: the smallest of each of its files, at the lowest resolution that they take."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
from lowtide.rewriter.models.batches import pictures
from torch import nn

from ..case import Call, Case, NotBuilt, Subject
from ..steps import run_step, seed_all

_SIZES = (64, 96, 128, 224, 256)
_ROWS, _CLASSES = 2, 10
_OF_EACH = 2
_MOST_PARAMETERS = 40_000_000
# Marks of small variants in names, the smallest first.
_SMALL = (
    *(
        "test_",
        "zepto",
        "atto",
        "femto",
        "pico",
        "nano",
        "xxs",
        "xxt",
        "xtiny",
        "xt",
        "tiny",
        "_xs",
        "_ti",
        "_t_",
        "_t\\d",
    ),
    *("050", "s050", "_m0", "_s0", "_b0", "_f0", "_002", "_t$", "micro", "mini", "small", "_s_", "_s$", "_s\\d", "_a$"),
    *("_100", "18", "_l1", "_d1", "_m1", "_12", "26", "_19", "11", "xxsmall", "base", "_b"),
)


def cases() -> Iterator[Case]:
    """Yield the models, file by file."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        by_file[timm.model_entrypoint(name).__module__.split(".")[-1]].append(name)
    for file in sorted(by_file):
        for name in sorted(by_file[file], key=_smallness)[:_OF_EACH]:
            yield Case(f"timm/{name}", "picture class", partial(_build, name))


def _smallness(name: str) -> tuple[int, int, str]:
    ranks = [rank for rank, mark in enumerate(_SMALL) if re.search(mark, name)]
    return min(ranks, default=len(_SMALL)), len(name), name


def _build(name: str) -> Subject:
    reasons = []
    for side in _SIZES:
        for options in _options(side):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = _model(name, options)
                    subject = Subject(model, partial(_batch, side, model.default_cfg["input_size"][0]))
                    seed_all(0)
                    run_step(_model(name, options), subject.batch(0))
                return subject
            except NotBuilt:
                raise
            except Exception as error:
                reasons.append(f"{side}: {type(error).__name__}: {error}"[:120])
    raise NotBuilt(" | ".join(dict.fromkeys(reasons)))


def _options(side: int) -> Iterator[dict[str, Any]]:
    """Yield options: dropout and random depth if the model takes them, the pictures' size if it requires it."""
    dropout = {"drop_rate": 0.1, "drop_path_rate": 0.1}
    yield {"img_size": side, **dropout}
    yield {"img_size": side}
    yield dropout
    yield {}


def _model(name: str, options: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        try:
            count = sum(p.numel() for p in timm.create_model(name, num_classes=_CLASSES, **options).parameters())
        except (RuntimeError, NotImplementedError):
            count = 0  # some cannot be built without data
    if count > _MOST_PARAMETERS:
        raise NotBuilt(f"{count:,} parameters")
    seed_all(0)
    return timm.create_model(name, num_classes=_CLASSES, **options).train()


def _batch(side: int, channels: int, number: int) -> Call:
    return (pictures(_ROWS, channels, side, side, number),), {}
