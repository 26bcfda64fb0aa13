"""Models of diffusers: U-Nets, transformers and autoencoders with small configurations, on noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from .case import Call, Case, NotBuilt, Subject

_TIMES, _CLASSES = 1000, 8


@dataclass(frozen=True)
class _Made:
    """An argument that is not drawn from the normal distribution. make: takes the generator."""

    make: Callable[[torch.Generator], Any]


def _times(rows: int) -> _Made:
    return _Made(lambda draw: torch.randint(_TIMES, (rows,), generator=draw))


def _shares(rows: int) -> _Made:
    return _Made(lambda draw: torch.rand(rows, generator=draw))


def _below(end: int, *size: int) -> _Made:
    return _Made(lambda draw: torch.randint(end, size, generator=draw))


def _given(value: Any) -> _Made:
    return _Made(lambda draw: value.clone() if isinstance(value, Tensor) else value)


def _ones(*size: int, dtype: torch.dtype = torch.float32) -> _Made:
    return _given(torch.ones(size, dtype=dtype))


def _several(count: int, *size: int) -> _Made:
    return _Made(lambda draw: [torch.randn(*size, generator=draw) for _ in range(count)])


def _sizes(rows: int) -> dict[str, _Made]:
    """Return the sizes of pictures that CogView takes as arguments."""
    return {name: _given(torch.tensor([[64, 64]] * rows)) for name in ("original_size", "target_size")} | {
        "crop_coords": _given(torch.tensor([[0, 0]] * rows))
    }


def _places(height: int, width: int, axes: int) -> _Made:
    """Return the position of each patch [height · width, axes]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.zeros(height * width, axes)
    ids[:, 1], ids[:, 2] = rows.flatten(), columns.flatten()
    return _given(ids)


_IMAGE, _FILM = (4, 3, 32, 32), (2, 3, 9, 16, 16)
_U_NET = {"in_channels": 4, "out_channels": 4, "layers_per_block": 1, "sample_size": 16}
_ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4}
_FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": [4, 4, 8],
}
_FLUX_INPUTS = {
    "hidden_states": (2, 16, 4),
    "encoder_hidden_states": (2, 12, 32),
    "timestep": _shares(2),
    "img_ids": _places(4, 4, 3),
    "txt_ids": _given(torch.zeros(12, 3)),
}
_VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4}
_AUTOENCODER = {
    **_VAE,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
_DOWN_UP = (("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D"))

# Class, configuration, and arguments: a tuple is the size of a tensor drawn from the normal distribution.
_MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "unet-1d": (
        "UNet1DModel",
        {
            "block_out_channels": (8, 8, 16, 16),
            "in_channels": 14,
            "out_channels": 14,
            "act_fn": "swish",
            "time_embedding_type": "positional",
            "use_timestep_embedding": True,
            "freq_shift": 1.0,
            "out_block_type": "OutConv1DBlock",
            "mid_block_type": "MidResTemporalBlock1D",
            "down_block_types": ("DownResnetBlock1D",) * 4,
            "up_block_types": ("UpResnetBlock1D",) * 3,
        },
        {"sample": (4, 14, 16), "timestep": _times(4)},
    ),
    "unet-2d": (
        "UNet2DModel",
        {
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "sample_size": 32,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "layers_per_block": 2,
            "dropout": 0.1,
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "in_channels": 3,
            "out_channels": 3,
        },
        {"sample": _IMAGE, "timestep": _times(4)},
    ),
    "unet-2d-ncsn++": (
        "UNet2DModel",
        {
            "block_out_channels": [32, 64, 64],
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 1,
            "time_embedding_type": "fourier",
            "norm_eps": 1e-6,
            "mid_block_scale_factor": 2**0.5,
            "norm_num_groups": None,
            "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
            "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
        },
        {"sample": _IMAGE, "timestep": _Made(lambda draw: torch.randint(1, _TIMES, (4,), generator=draw))},
    ),
    "unet-2d-condition": (
        "UNet2DConditionModel",
        {
            **_U_NET,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
            "attention_head_dim": 2,
            "down_block_types": _DOWN_UP[0],
            "up_block_types": _DOWN_UP[1],
        },
        {"sample": (4, 4, 16, 16), "timestep": _times(4), "encoder_hidden_states": (4, 5, 8)},
    ),
    "unet-3d-condition": (
        "UNet3DConditionModel",
        {
            **_U_NET,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
            "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        {"sample": (2, 4, 4, 16, 16), "timestep": _times(2), "encoder_hidden_states": (2, 4, 8)},
    ),
    "unet-motion": (
        "UNetMotionModel",
        {
            **_U_NET,
            "block_out_channels": (16, 32),
            "norm_num_groups": 16,
            "cross_attention_dim": 16,
            "num_attention_heads": 2,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        },
        {"sample": (2, 4, 4, 16, 16), "timestep": _times(2), "encoder_hidden_states": (8, 4, 16)},
    ),
    "unet-spatio-temporal": (
        "UNetSpatioTemporalConditionModel",
        {
            **_U_NET,
            "block_out_channels": (32, 64),
            "cross_attention_dim": 32,
            "num_attention_heads": 8,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "projection_class_embeddings_input_dim": 24,
            "addition_time_embed_dim": 8,
        },
        {
            "sample": (2, 2, 4, 16, 16),
            "timestep": _times(1),
            "encoder_hidden_states": (2, 1, 32),
            "added_time_ids": _given(torch.tensor([[6, 127, 0.02]] * 2)),
        },
    ),
    "controlnet": (
        "ControlNetModel",
        {
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "in_channels": 4,
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "cross_attention_dim": 8,
            "conditioning_embedding_out_channels": (8, 16),
        },
        {
            "sample": (2, 4, 16, 16),
            "timestep": _times(2),
            "encoder_hidden_states": (2, 5, 8),
            "controlnet_cond": (2, 3, 32, 32),
        },
    ),
    "transformer-2d": (
        "Transformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 32, "num_layers": 2, "dropout": 0.1},
        {"hidden_states": (2, 32, 8, 8)},
    ),
    "transformer-temporal": (
        "TransformerTemporalModel",
        {"num_attention_heads": 4, "attention_head_dim": 4, "in_channels": 4, "num_layers": 1, "norm_num_groups": 1},
        {"hidden_states": (2, 4, 16, 16), "timestep": _times(2)},
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "norm_type": "ada_norm_zero",
            "num_embeds_ada_norm": _CLASSES,
            "patch_size": 2,
            "sample_size": 8,
            "activation_fn": "gelu-approximate",
            "dropout": 0.1,
        },
        {"hidden_states": (4, 4, 8, 8), "timestep": _times(4), "class_labels": _below(4, 4)},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 2,
            "patch_size": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "in_channels": 4,
            "cross_attention_dim": 8,
            "out_channels": 8,
            "num_embeds_ada_norm": 8,
            "use_additional_conditions": False,
            "caption_channels": None,
        },
        {
            "hidden_states": (4, 4, 8, 8),
            "timestep": _times(4),
            "encoder_hidden_states": (4, 8, 8),
            "added_cond_kwargs": _given({"aspect_ratio": None, "resolution": None}),
        },
    ),
    "prior": (
        "PriorTransformer",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_layers": 2,
            "embedding_dim": 8,
            "num_embeddings": 7,
            "additional_embeddings": 4,
        },
        {
            "hidden_states": (4, 8),
            "timestep": _times(4),
            "proj_embedding": (4, 8),
            "encoder_hidden_states": (4, 7, 8),
        },
    ),
    "allegro": (
        "AllegroTransformer3DModel",
        {
            **_ATTENTION,
            "num_layers": 1,
            "cross_attention_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 8,
            "caption_channels": 8,
        },
        {"hidden_states": (2, 4, 2, 8, 8), "encoder_hidden_states": (2, 16, 8), "timestep": _times(2)},
    ),
    "aura-flow": (
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": 32,
            "out_channels": 4,
            "pos_embed_max_size": 64,
        },
        {"hidden_states": (2, 4, 16, 16), "encoder_hidden_states": (2, 16, 32), "timestep": _times(2)},
    ),
    "bria": (
        "BriaTransformer2DModel",
        {**_FLUX, "attention_head_dim": 8, "pooled_projection_dim": None, "axes_dims_rope": [0, 4, 4]},
        _FLUX_INPUTS,
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        {**_FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        _FLUX_INPUTS,
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {
            **_ATTENTION,
            "time_embed_dim": 2,
            "text_embed_dim": 8,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 8,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": 8,
        },
        {"hidden_states": (2, 1, 4, 8, 8), "encoder_hidden_states": (2, 8, 8), "timestep": _times(2)},
    ),
    "cogview3+": (
        "CogView3PlusTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 2,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        {
            "hidden_states": (2, 4, 8, 8),
            "encoder_hidden_states": (2, 8, 8),
            "timestep": _times(2),
            **_sizes(2),
        },
    ),
    "cogview4": (
        "CogView4Transformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 4,
            "out_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 4,
        },
        {
            "hidden_states": (2, 4, 8, 8),
            "encoder_hidden_states": (2, 8, 8),
            "timestep": _times(2),
            **_sizes(2),
        },
    ),
    "cosmos": (
        "CosmosTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "mlp_ratio": 2,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 32, 32),
            "patch_size": (1, 2, 2),
            "rope_scale": (2.0, 1.0, 1.0),
            "extra_pos_embed_type": "learnable",
        },
        {
            "hidden_states": (1, 4, 1, 16, 16),
            "timestep": _times(1),
            "encoder_hidden_states": (1, 12, 16),
            "attention_mask": _ones(1, 12),
            "fps": _given(30),
            "padding_mask": _given(torch.zeros(1, 1, 16, 16)),
        },
    ),
    "easyanimate": (
        "EasyAnimateTransformer3DModel",
        {
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "mmdit_layers": 2,
            "num_layers": 2,
            "out_channels": 4,
            "patch_size": 2,
            "sample_height": 60,
            "sample_width": 90,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "time_position_encoding_type": "3d_rope",
        },
        {"hidden_states": (2, 4, 2, 16, 16), "timestep": _times(2), "encoder_hidden_states": (2, 16, 16)},
    ),
    "flux": (
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 32},
        {**_FLUX_INPUTS, "pooled_projections": (2, 32)},
    ),
    "flux-guided": (
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 32, "guidance_embeds": True},
        {**_FLUX_INPUTS, "pooled_projections": (2, 32), "guidance": _shares(2)},
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {**_FLUX, "axes_dims_rope": [4, 4, 4, 4]},
        {
            "hidden_states": (2, 16, 4),
            "encoder_hidden_states": (2, 12, 32),
            "timestep": _shares(2),
            "img_ids": _places(4, 4, 4),
            "txt_ids": _given(torch.zeros(12, 4)),
            "guidance": _shares(2),
        },
    ),
    "hunyuan-video": (
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 1,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (2, 4, 4),
            "image_condition_type": None,
        },
        {
            "hidden_states": (2, 4, 1, 8, 8),
            "timestep": _times(2),
            "encoder_hidden_states": (2, 12, 16),
            "pooled_projections": (2, 8),
            "encoder_attention_mask": _ones(2, 12),
            "guidance": _shares(2),
        },
    ),
    "latte": (
        "LatteTransformer3DModel",
        {
            "sample_size": 8,
            "num_layers": 1,
            "patch_size": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "caption_channels": 8,
            "in_channels": 4,
            "cross_attention_dim": 8,
            "out_channels": 8,
            "attention_bias": True,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "activation_fn": "gelu-approximate",
        },
        {"hidden_states": (2, 4, 1, 8, 8), "encoder_hidden_states": (2, 8, 8), "timestep": _times(2)},
    ),
    "ltx-video": (
        "LTXVideoTransformer3DModel",
        {**_ATTENTION, "cross_attention_dim": 16, "num_layers": 1, "caption_channels": 16},
        {
            "hidden_states": (2, 2 * 64, 4),
            "encoder_hidden_states": (2, 16, 16),
            "timestep": _times(2),
            "encoder_attention_mask": _ones(2, 16, dtype=torch.bool),
            "num_frames": _given(2),
            "height": _given(8),
            "width": _given(8),
        },
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (128, 128, 128),
            "cap_feat_dim": 32,
        },
        {
            "hidden_states": (2, 4, 16, 16),
            "encoder_hidden_states": (2, 16, 32),
            "timestep": _shares(2),
            "encoder_attention_mask": _ones(2, 16, dtype=torch.bool),
        },
    ),
    "mochi": (
        "MochiTransformer3DModel",
        {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": 16,
        },
        {
            "hidden_states": (2, 4, 2, 8, 8),
            "encoder_hidden_states": (2, 16, 16),
            "timestep": _times(2),
            "encoder_attention_mask": _ones(2, 16, dtype=torch.bool),
        },
    ),
    "prx": (
        "PRXTransformer2DModel",
        {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 32,
            "hidden_size": 64,
            "num_heads": 4,
            "depth": 2,
            "axes_dim": [8, 8],
        },
        {"hidden_states": (2, 4, 8, 8), "encoder_hidden_states": (2, 16, 32), "timestep": _shares(2)},
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 4, 4),
        },
        {
            "hidden_states": (2, 16, 16),
            "encoder_hidden_states": (2, 8, 16),
            "timestep": _shares(2),
            "encoder_hidden_states_mask": _ones(2, 8, dtype=torch.long),
            "img_shapes": _given([(1, 4, 4)] * 2),
        },
    ),
    "sana": (
        "SanaTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": 8,
            "sample_size": 16,
        },
        {"hidden_states": (2, 4, 16, 16), "encoder_hidden_states": (2, 8, 8), "timestep": _times(2)},
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "patch_size": 1,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 64,
            "out_channels": 4,
            "pos_embed_max_size": 32,
            "qk_norm": "rms_norm",
        },
        {
            "hidden_states": (2, 4, 16, 16),
            "encoder_hidden_states": (2, 20, 32),
            "timestep": _times(2),
            "pooled_projections": (2, 64),
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            "patch_size": (1, 2, 2),
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 64,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        {"hidden_states": (2, 4, 2, 8, 8), "encoder_hidden_states": (2, 12, 16), "timestep": _times(2)},
    ),
    "z-image": (
        "ZImageTransformer2DModel",
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 32,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [8, 4, 4],
            "axes_lens": [256, 32, 32],
        },
        {"x": _several(2, 4, 1, 8, 8), "cap_feats": _several(2, 16, 16), "t": _shares(2)},
    ),
    "vae": ("AutoencoderKL", _AUTOENCODER, {"sample": _IMAGE, "sample_posterior": _given(True)}),
    "vae-asymmetric": (
        "AsymmetricAutoencoderKL",
        {
            **_VAE,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "down_block_out_channels": [8, 16],
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "up_block_out_channels": [8, 16],
            "norm_num_groups": 4,
        },
        {"sample": _IMAGE, "mask": _ones(4, 1, 32, 32), "sample_posterior": _given(True)},
    ),
    "vae-temporal": (
        "AutoencoderKLTemporalDecoder",
        {
            "block_out_channels": [32, 64],
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "layers_per_block": 1,
        },
        {"sample": (2, 3, 16, 16), "num_frames": _given(2), "sample_posterior": _given(True)},
    ),
    "vae-tiny": (
        "AutoencoderTiny",
        {
            "in_channels": 3,
            "out_channels": 3,
            "encoder_block_out_channels": [16, 16],
            "decoder_block_out_channels": [16, 16],
            "num_encoder_blocks": [1, 1],
            "num_decoder_blocks": [1, 1],
        },
        {"sample": _IMAGE},
    ),
    "vq": ("VQModel", {**_AUTOENCODER, "latent_channels": 3}, {"sample": _IMAGE}),
    "vae-cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            **_VAE,
            "down_block_types": ("CogVideoXDownBlock3D",) * 4,
            "up_block_types": ("CogVideoXUpBlock3D",) * 4,
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 2,
        },
        {"sample": (2, 3, 8, 16, 16), "sample_posterior": _given(True)},
    ),
    "vae-cosmos": (
        "AutoencoderKLCosmos",
        {
            **_VAE,
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "attention_resolutions": (8,),
            "resolution": 64,
            "num_layers": 1,
            "patch_size": 4,
            "scaling_factor": 1.0,
            "spatial_compression_ratio": 4,
            "temporal_compression_ratio": 4,
        },
        {"sample": (2, 3, 9, 32, 32)},
    ),
    "vae-dc": (
        "AutoencoderDC",
        {
            "in_channels": 3,
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_out_channels": (8, 8),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": [1, 1],
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
        },
        {"sample": _IMAGE},
    ),
    "vae-hunyuan-video": (
        "AutoencoderKLHunyuanVideo",
        {
            **_VAE,
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        {"sample": _FILM},
    ),
    "vae-ltx-video": (
        "AutoencoderKLLTXVideo",
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
            "patch_size": 1,
            "decoder_inject_noise": (False,) * 5,
            "upsample_residual": (False,) * 4,
            "upsample_factor": (1,) * 4,
            "timestep_conditioning": False,
            "patch_size_t": 1,
        },
        {"sample": _FILM},
    ),
    "vae-magvit": (
        "AutoencoderKLMagvit",
        {
            **_VAE,
            "block_out_channels": [8, 8, 8, 8],
            "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
            "up_block_types": ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "spatial_group_norm": True,
        },
        {"sample": _FILM},
    ),
    "vae-oobleck": (
        "AutoencoderOobleck",
        {
            "encoder_hidden_size": 12,
            "decoder_channels": 12,
            "decoder_input_channels": 6,
            "audio_channels": 2,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
        },
        {"sample": (4, 2, 64), "sample_posterior": _given(True)},
    ),
    "vae-wan": (
        "AutoencoderKLWan",
        {
            "base_dim": 4,
            "z_dim": 16,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
        },
        {"sample": _FILM},
    ),
}


def cases() -> Iterator[Case]:
    """Yield all models."""
    for name, (class_name, _, _) in _MODELS.items():
        yield Case(f"diffusers/{name}/{class_name}", "noise", partial(_build, name))


def _build(name: str) -> Subject:
    class_name, config, arguments = _MODELS[name]
    if not hasattr(diffusers, class_name):
        raise NotBuilt(f"diffusers has no {class_name}")
    return Subject(getattr(diffusers, class_name)(**config), partial(_batch, arguments))


def _batch(arguments: dict[str, Any], number: int) -> Call:
    draw = torch.Generator().manual_seed(number)
    return (), {
        name: argument.make(draw) if isinstance(argument, _Made) else torch.randn(*argument, generator=draw)
        for name, argument in arguments.items()
    }
