"""Autoencoders of diffusers, small."""

from __future__ import annotations

from .arguments import FILM, IMAGE, Models, given, ones

_VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4}
_AUTOENCODER = {
    **_VAE,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}

MODELS: Models = {
    "vae": ("AutoencoderKL", _AUTOENCODER, {"sample": IMAGE, "sample_posterior": given(True)}),
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
        {"sample": IMAGE, "mask": ones(4, 1, 32, 32), "sample_posterior": given(True)},
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
        {"sample": (2, 3, 16, 16), "num_frames": given(2), "sample_posterior": given(True)},
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
        {"sample": IMAGE},
    ),
    "vq": ("VQModel", {**_AUTOENCODER, "latent_channels": 3}, {"sample": IMAGE}),
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
        {"sample": (2, 3, 8, 16, 16), "sample_posterior": given(True)},
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
        {"sample": IMAGE},
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
        {"sample": FILM},
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
        {"sample": FILM},
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
        {"sample": FILM},
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
        {"sample": (4, 2, 64), "sample_posterior": given(True)},
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
        {"sample": FILM},
    ),
}
"""By name: class, configuration and arguments."""
