"""Makes the arguments of models of transformers, except labels, by the arguments' names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .inputs import CHOICES, ROWS, SOUND, Inputs, field_of, placeholder_id

_SAMPLES = 2400  # of sound
_PATCHES = 4  # along a side, where patches are given instead of pictures


def _input_ids(inputs: Inputs) -> Tensor | None:
    if {"input_values", "input_features"} & set(inputs.names) and inputs.task in (*SOUND, "speech to text"):
        return None
    ids = inputs.ids()
    if inputs.task == "multiple choice":
        return torch.stack([ids, inputs.ids(seed=3)], 1)
    if inputs.task == "text class" and getattr(inputs.config, "is_encoder_decoder", False):
        ids[:, -1] = inputs.number("eos_token_id")  # these models read the class at this token
    if inputs.shape.placeholders:
        token = placeholder_id(inputs)
        ids = torch.cat([ids[:, :2], torch.full((ROWS, inputs.shape.placeholders), token), ids[:, 2:]], 1)
    return ids


def _attention_mask(inputs: Inputs) -> Tensor | None:
    if "input_ids" not in inputs.names:
        return None
    tokens = inputs.tokens + inputs.shape.placeholders
    mask = torch.ones(ROWS, tokens, dtype=torch.long)
    if inputs.task == "multiple choice":
        return mask[:, None].repeat(1, CHOICES, 1)
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
    lags = field_of(config, "lags_sequence")
    channels = inputs.number("num_input_channels", default=0)
    if lags:
        length += max(lags)
        return inputs.floats(ROWS, length).abs()
    return inputs.floats(ROWS, length, channels) if channels else inputs.floats(ROWS, length)


def _film(inputs: Inputs) -> Tensor | None:
    if "pixel_values" in inputs.names:
        return None
    return inputs.pictures(ROWS, inputs.number("num_frames", "frames_per_clip", default=4))


MAKERS: dict[str, Callable[[Inputs], Any]] = {
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
