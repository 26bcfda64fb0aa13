"""Makes the labels of models of transformers, by the task that they are trained for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .inputs import CHOICES, ROWS, Inputs, field_of, placeholder_id

_IGNORED = -100  # torch's cross-entropy ignores this label
Kwargs = dict[str, Any]


def no_labels(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    """Return no labels, for tasks whose models compute no loss."""
    return {}


def _next_token(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    ids = kwargs.get("input_ids")
    if ids is None:
        return {"labels": inputs.ids(seed=1)}
    labels = ids.clone()
    if inputs.shape.placeholders:
        labels[ids == placeholder_id(inputs)] = _IGNORED
    return {"labels": labels}


def _masked(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    ids = kwargs["input_ids"].clone()
    hidden = torch.rand(ids.shape, generator=inputs.draw) < 0.3
    hidden[:, 0] = True
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.shape == ids.shape:
        hidden &= mask == 1
    kwargs["input_ids"] = ids.masked_fill(hidden, inputs.number("mask_token_id", default=4))
    return {
        "labels": ids.masked_fill(~hidden, _IGNORED),
        "next_sentence_label": inputs.below(2, ROWS),
        "sentence_order_label": inputs.below(2, ROWS),
    }


def _text_to_text(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    labels = inputs.ids(seed=2)
    labels[1, -2:] = _IGNORED
    return {"labels": labels}


def _row_class(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    return {"labels": inputs.below(inputs.config.num_labels, ROWS)}


def _token_class(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    ids = kwargs.get("input_ids")
    size = ids.shape if ids is not None else (ROWS, inputs.tokens)
    return {"labels": inputs.below(inputs.config.num_labels, *size)}


def _answer(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    start = inputs.below(inputs.tokens // 2, ROWS)
    return {"start_positions": start, "end_positions": start + 2}


def _choice(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    return {"labels": inputs.below(CHOICES, ROWS)}


def _pixel_class(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    side = kwargs["pixel_values"].shape[-1]
    return {"labels": inputs.below(inputs.config.num_labels, ROWS, side, side)}


def _boxes(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    side = kwargs["pixel_values"].shape[-1]
    labels = []
    for _ in range(ROWS):
        boxes = torch.rand(3, 4, generator=inputs.draw) * 0.3 + 0.3
        masks = (torch.rand(3, side, side, generator=inputs.draw) > 0.5).float()
        labels.append({"class_labels": inputs.below(inputs.config.num_labels, 3), "boxes": boxes, "masks": masks})
    return {"labels": labels}


def _masks(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    side = kwargs["pixel_values"].shape[-1]
    masks = [(torch.rand(2, side, side, generator=inputs.draw) > 0.5).float() for _ in range(ROWS)]
    classes = [inputs.below(inputs.config.num_labels, 2) for _ in range(ROWS)]
    return {"mask_labels": masks, "class_labels": classes}


def _characters(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    size = field_of(inputs.text, "vocab_size") or 30
    return {"labels": 1 + inputs.below(min(size, 30) - 2, ROWS, 2)}


def _future(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    past = kwargs["past_values"]
    length = inputs.number("prediction_length", "horizon_length", default=8)
    future = inputs.floats(ROWS, length, *past.shape[2:])
    arguments: Kwargs = {"future_values": future.abs(), "past_observed_mask": torch.ones_like(past)}
    features = inputs.number("num_time_features", default=0) + inputs.number("num_dynamic_real_features", default=0)
    arguments["past_time_features"] = inputs.floats(ROWS, past.shape[1], features)
    arguments["future_time_features"] = inputs.floats(ROWS, length, features)
    return arguments


LABELS: dict[str, Callable[[Inputs, Kwargs], Kwargs]] = {
    "next token": _next_token,
    "picture and text": _next_token,
    "masked text": _masked,
    "text to text": _text_to_text,
    "speech to text": _text_to_text,
    "text class": _row_class,
    "token class": _token_class,
    "answer": _answer,
    "multiple choice": _choice,
    "next sentence": _choice,
    "picture class": _row_class,
    "video class": _row_class,
    "pixel class": _pixel_class,
    "boxes": _boxes,
    "masks": _masks,
    "sound class": _row_class,
    "speaker": _row_class,
    "sound to characters": _characters,
    "time series": _future,
}
