"""U-Nets of diffusers, small."""

from __future__ import annotations

import torch

from .arguments import IMAGE, TIMES, Made, Models, given, times

_U_NET = {"in_channels": 4, "out_channels": 4, "layers_per_block": 1, "sample_size": 16}
_DOWN_UP = (("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D"))

MODELS: Models = {
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
        {"sample": (4, 14, 16), "timestep": times(4)},
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
        {"sample": IMAGE, "timestep": times(4)},
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
        {"sample": IMAGE, "timestep": Made(lambda draw: torch.randint(1, TIMES, (4,), generator=draw))},
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
        {"sample": (4, 4, 16, 16), "timestep": times(4), "encoder_hidden_states": (4, 5, 8)},
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
        {"sample": (2, 4, 4, 16, 16), "timestep": times(2), "encoder_hidden_states": (2, 4, 8)},
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
        {"sample": (2, 4, 4, 16, 16), "timestep": times(2), "encoder_hidden_states": (8, 4, 16)},
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
            "timestep": times(1),
            "encoder_hidden_states": (2, 1, 32),
            "added_time_ids": given(torch.tensor([[6, 127, 0.02]] * 2)),
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
            "timestep": times(2),
            "encoder_hidden_states": (2, 5, 8),
            "controlnet_cond": (2, 3, 32, 32),
        },
    ),
}
"""By name: class, configuration and arguments."""
