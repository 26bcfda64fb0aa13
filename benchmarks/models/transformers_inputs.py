"""Batches for transformers' models, made from the names of their arguments and of what they are trained for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lowtide.rewriter.models.batches import pictures
from lowtide.rewriter.models.corpus import hashed, sample_words
from torch import Tensor

from .case import Call
from .transformers_sizes import parts_of

ROWS, _TOKENS, _CHOICES, _IGNORED = 4, 32, 2, -100
_SAMPLES = 2400  # of sound
_PATCHES = 4  # along a side, where patches are given instead of pictures


@dataclass(frozen=True)
class Shape:
    """Choices between batches that a signature leaves open; those that eager runs on are taken.

    placeholders: how many tokens stand for each picture or sound.
    dimensions: of pictures.
    has_labels, has_mask: which optional arguments are given.
    frames_first: whether sound features are [rows, frames, features].
    has_wave_channel: whether sound is [rows, 1, samples].
    """

    placeholders: int = 0
    dimensions: int = 4
    has_labels: bool = True
    has_mask: bool = True
    frames_first: bool = False
    frames: int = 64
    side: int = 0
    has_wave_channel: bool = False


@dataclass
class Inputs:
    """Makes the batches of one model. task: the head's, in words of `of_transformers.HEADS`."""

    model: Any
    task: str
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        self.names = list(inspect.signature(self.model.forward).parameters)
        self.config = self.model.config
        self.text = self.config.get_text_config(decoder=True)
        positions = _value(self.text, "max_position_embeddings")
        self.tokens = min(_TOKENS, positions) if isinstance(positions, int) and positions > 4 else _TOKENS

    def __call__(self, number: int) -> Call:
        """Return the keyword arguments of step `number`."""
        self.seed = number
        self.draw = torch.Generator().manual_seed(1000 + number)
        kwargs = {name: make(self) for name, make in _MAKERS.items() if name in self.names and self._wants(name)}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if self.shape.has_labels:
            kwargs |= {k: v for k, v in _LABELS.get(self.task, _no_labels)(self, kwargs).items() if k in self.names}
        if "return_loss" in self.names:
            kwargs["return_loss"] = True
        return (), kwargs

    def _wants(self, name: str) -> bool:
        return self.shape.has_mask or name != "attention_mask"

    # The configuration.

    def number(self, *names: str, default: int = 0) -> int:
        """Return the first of these fields that is a whole number, in all parts of the configuration."""
        for config in parts_of(self.config):
            for name in names:
                value = _value(config, name)
                if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                    value = value[0]
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return default

    @property
    def side(self) -> int:
        """The side of pictures, in pixels."""
        return self.shape.side or min(self.number("image_size", "input_size", default=64), 384)

    # Tensors.

    def ids(self, rows: int = ROWS, seed: int = 0, vocabulary: int | None = None) -> Tensor:
        """Return running text without special tokens [rows, tokens]."""
        size = vocabulary or _value(self.text, "vocab_size") or self.number("vocab_size", default=100)
        special = {
            value
            for config in parts_of(self.config)
            for name, value in vars(config).items()
            if isinstance(value, int) and name.endswith(("_token_id", "_token_index", "_idx"))
        }
        words = sample_words(rows * self.tokens, self.seed + 10 * seed)
        return torch.tensor(hashed(words, min(size, 100), frozenset(special | {0, 1, 2, 3}))).view(rows, -1)

    def pictures(self, *front: int, channels: int | None = None) -> Tensor:
        """Return smooth pictures [*front, channels, side, side]."""
        channels = channels or self.number("num_channels", "in_channels", "in_chans", default=3)
        count = 1
        for size in front:
            count *= size
        return pictures(count, channels, self.side, self.side, self.seed).view(*front, channels, self.side, self.side)

    def floats(self, *size: int) -> Tensor:
        """Draw from the normal distribution."""
        return torch.randn(*size, generator=self.draw)

    def below(self, end: int, *size: int) -> Tensor:
        """Draw whole numbers from 0."""
        return torch.randint(max(end, 1), size, generator=self.draw)


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # an attribute that differs from layer to layer
        return None


def _input_ids(inputs: Inputs) -> Tensor | None:
    if {"input_values", "input_features"} & set(inputs.names) and inputs.task in (*_SOUND, "speech to text"):
        return None
    ids = inputs.ids()
    if inputs.task == "multiple choice":
        return torch.stack([ids, inputs.ids(seed=3)], 1)
    if inputs.task == "text class" and getattr(inputs.config, "is_encoder_decoder", False):
        ids[:, -1] = inputs.number("eos_token_id")  # these models read the class at this token
    if inputs.shape.placeholders:
        token = _placeholder_id(inputs)
        ids = torch.cat([ids[:, :2], torch.full((ROWS, inputs.shape.placeholders), token), ids[:, 2:]], 1)
    return ids


def _placeholder_id(inputs: Inputs) -> int:
    names = ("audio_token_id", "audio_token_index") if _has_sound(inputs) else ()
    return inputs.number(*names, "image_token_id", "image_token_index", "media_placeholder_token_id", "video_token_id")


def _has_sound(inputs: Inputs) -> bool:
    return (
        bool({"input_features", "input_audio_embeds", "input_values"} & set(inputs.names))
        and "pixel_values" not in inputs.names
    )


def _attention_mask(inputs: Inputs) -> Tensor | None:
    if "input_ids" not in inputs.names:
        return None
    tokens = inputs.tokens + inputs.shape.placeholders
    mask = torch.ones(ROWS, tokens, dtype=torch.long)
    if inputs.task == "multiple choice":
        return mask[:, None].repeat(1, _CHOICES, 1)
    is_whole = getattr(inputs.config, "is_encoder_decoder", False) and inputs.task == "text class"
    if inputs.task not in ("next token", "picture and text") and not is_whole:
        mask[1, -3:] = 0
    return mask


def _required(inputs: Inputs) -> set[str]:
    parameters = inspect.signature(inputs.model.forward).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}


def _pixel_values(inputs: Inputs) -> Tensor | None:
    if "spatial_shapes" in inputs.names:
        patch = inputs.number("patch_size", default=16)
        return inputs.floats(ROWS, _PATCHES**2, inputs.number("num_channels", default=3) * patch**2)
    if "image_grid_thw" in inputs.names or "image_grid_hws" in inputs.names:
        merge = inputs.number("spatial_merge_size", "merge_size", default=2)
        patch = inputs.number("patch_size", default=14)
        temporal = inputs.number("temporal_patch_size", default=1)
        channels = inputs.number("in_channels", "in_chans", "num_channels", default=3)
        return inputs.floats(ROWS * (2 * merge) ** 2, channels * temporal * patch * patch)
    if inputs.shape.dimensions == 5:
        frames = inputs.number("num_frames", default=1) if "video" in inputs.task else 1
        return inputs.pictures(ROWS, max(frames, 1))
    return inputs.pictures(ROWS)


def _grid(inputs: Inputs) -> Tensor:
    merge = inputs.number("spatial_merge_size", "merge_size", default=2)
    return torch.tensor([[1, 2 * merge, 2 * merge]] * ROWS)


def _input_features(inputs: Inputs) -> Tensor:
    bins = inputs.number(
        "num_mel_bins",
        "feature_projection_input_dim",
        "input_feat_per_channel",
        "input_size",
        "input_feat_size",
        default=80,
    )
    frames = (
        2 * inputs.number("max_source_positions", default=0)
        if "Whisper" in type(inputs.model).__name__
        else inputs.shape.frames
    )
    size = (frames, bins) if inputs.shape.frames_first else (bins, frames)
    return inputs.floats(ROWS, *size)


def _input_values(inputs: Inputs) -> Tensor | None:
    class_name = type(inputs.model).__name__
    if class_name.startswith(("AST", "ASTFor")):
        return inputs.floats(ROWS, inputs.number("max_length"), inputs.number("num_mel_bins"))
    if "input_features" in inputs.names:
        return None
    return inputs.floats(ROWS, 1, _SAMPLES) if inputs.shape.has_wave_channel else inputs.floats(ROWS, _SAMPLES)


def _bbox(inputs: Inputs) -> Tensor:
    corner = inputs.below(400, ROWS, inputs.tokens, 2)
    return torch.cat([corner, corner + 1 + inputs.below(400, ROWS, inputs.tokens, 2)], -1)


def _past_values(inputs: Inputs) -> Tensor:
    config = inputs.config
    length = inputs.number("context_length", "sequence_length", default=32)
    lags = _value(config, "lags_sequence")
    channels = inputs.number("num_input_channels", default=0)
    if lags:
        length += max(lags)
        return inputs.floats(ROWS, length).abs()
    return inputs.floats(ROWS, length, channels) if channels else inputs.floats(ROWS, length)


def _film(inputs: Inputs) -> Tensor | None:
    if "pixel_values" in inputs.names:
        return None
    return inputs.pictures(ROWS, inputs.number("num_frames", "frames_per_clip", default=4))


_MAKERS: dict[str, Callable[[Inputs], Any]] = {
    "input_ids": _input_ids,
    "attention_mask": _attention_mask,
    "pixel_values": _pixel_values,
    "image_grid_thw": _grid,
    "image_grid_hws": lambda inputs: _grid(inputs)[:, 1:],
    "image_sizes": lambda inputs: torch.tensor([[inputs.side, inputs.side]] * ROWS),
    "input_features": _input_features,
    "input_values": _input_values,
    "bbox": _bbox,
    "pixel_values_videos": _film,
    "spatial_shapes": lambda inputs: torch.tensor([[_PATCHES, _PATCHES]] * ROWS),
    "pixel_attention_mask": lambda inputs: torch.ones(ROWS, _PATCHES**2) if "spatial_shapes" in inputs.names else None,
    "visual_feats": lambda inputs: inputs.floats(ROWS, 6, inputs.number("visual_feat_dim")),
    "visual_pos": lambda inputs: inputs.floats(ROWS, 6, 4),
    "visual_embeds": lambda inputs: inputs.floats(ROWS, 6, inputs.number("visual_embedding_dim")),
    "past_values": _past_values,
}


# Labels, by task.

Kwargs = dict[str, Any]


def _no_labels(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    return {}


def _next_token(inputs: Inputs, kwargs: Kwargs) -> Kwargs:
    ids = kwargs.get("input_ids")
    if ids is None:
        return {"labels": inputs.ids(seed=1)}
    labels = ids.clone()
    if inputs.shape.placeholders:
        labels[ids == _placeholder_id(inputs)] = _IGNORED
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
    return {"labels": inputs.below(_CHOICES, ROWS)}


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
    size = _value(inputs.text, "vocab_size") or 30
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


_SOUND = ("sound class", "sound to characters", "frame class", "speaker")
_LABELS: dict[str, Callable[[Inputs, Kwargs], Kwargs]] = {
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


def variants(task: str, names: list[str]) -> Iterator[Shape]:
    """Yield batches to try one after the other."""
    plain = Shape(dimensions=5 if "video" in task else 4)
    yield plain
    if "input_features" in names:
        yield replace(plain, frames_first=True)
    if "pixel_values" in names and "text" in task:
        yield replace(plain, dimensions=5)
    if "input_values" in names and "input_features" not in names:
        yield replace(plain, has_wave_channel=True)
    if _LABELS.get(task, _no_labels) is not _no_labels:
        yield replace(plain, has_labels=False)
