"""Fields of small configurations that cannot be inferred from names alone, by model type."""

from __future__ import annotations

from typing import Any

_EFFICIENT = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.2,
    "hidden_dim": 320,
    "in_channels": (32, 16, 24, 40, 80, 112, 192),
    "out_channels": (16, 24, 40, 80, 112, 192, 320),
    "image_size": 64,
}
_MIXED_LAYERS = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}

FIELDS: dict[str, dict[str, Any]] = {
    "efficientnet": _EFFICIENT,
    "align": {"vision_config": _EFFICIENT},
    "jamba": _MIXED_LAYERS,
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
}
