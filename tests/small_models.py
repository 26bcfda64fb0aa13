"""Small configurations of many kinds of models, for tests: a few layers, a few dozen channels, dropout on."""

from typing import Any

BATCH = 2
DEFAULT_SEQUENCE = 24
# The sequence lengths or image sides of the models that have another one.
SEQUENCE = {"resnet": 32, "mamba": 16, "whisper": 16, "t5": 16, "small_unet": 32}

_LLAMA = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,
}
_BERT = {
    "vocab_size": 200,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}

# The models that lowtide is developed on.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 200, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 32},
    "llama": _LLAMA,
    "bert": _BERT,
    "roberta": _BERT,
    "t5": {"vocab_size": 200, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4},
    "vit": {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 32,
        "patch_size": 8,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "num_labels": 10,
    },
    "resnet": {
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 48, 64],
        "depths": [2, 2, 1, 1],
        "layer_type": "basic",
        "num_labels": 10,
    },
    "whisper": {
        "vocab_size": 200,
        "d_model": 48,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "num_mel_bins": 16,
        "max_source_positions": 24,
        "max_target_positions": 32,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "qwen3": {**_LLAMA, "head_dim": 16},
    "mamba": {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "time_step_rank": 4,
    },
    "mixtral": {**_LLAMA, "num_hidden_layers": 2, "num_local_experts": 4},
    "convnext": {
        "hidden_sizes": [16, 24, 32, 48],
        "depths": [1, 1, 2, 1],
        "image_size": 32,
        "drop_path_rate": 0.1,
        "num_labels": 10,
    },
}

# Models that lowtide is not developed on, so that nothing was tuned for them.
UNSEEN: dict[str, dict[str, Any]] = {
    "gemma3_text": {**_LLAMA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "deberta-v2": {
        **_BERT,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "num_labels": 10,
    },
    "opt": {
        "vocab_size": 200,
        "hidden_size": 48,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 48,
        "max_position_embeddings": 40,
        "attention_dropout": 0.1,
    },
    "gpt_neox": {
        "vocab_size": 200,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "electra": {**_BERT, "embedding_size": 32},
    "distilbert": {
        "vocab_size": 200,
        "dim": 48,
        "hidden_dim": 96,
        "n_layers": 3,
        "n_heads": 4,
        "max_position_embeddings": 40,
    },
    "small_unet": {},
}


def small_model(
    name: str, seed: int = 0, dtype: str = "float32", layers: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Build a model of `SMALL` or `UNSEEN` in training mode, and the keyword arguments of one call with labels.

    layers: for transformers with one stack, how many instead of the configured ones.
    """
    sequence = SEQUENCE.get(name, DEFAULT_SEQUENCE)
    if name == "small_unet":
        from small_unet import small_unet

        return small_unet(BATCH, sequence, seed)
    # Imported here so that tests without a model do not import transformers.
    from lowtide.rewriter.models.batches import sample_batch
    from lowtide.rewriter.models.build import build_model

    overrides = {**(SMALL[name] if name in SMALL else UNSEEN[name])}
    if layers is not None:
        (depth,) = overrides.keys() & {"n_layer", "n_layers", "num_hidden_layers"}
        overrides[depth] = layers
    model = build_model(name, overrides=overrides, dtype=dtype, seed=seed)
    if "num_labels" in overrides:  # otherwise the first forward sets it, and capture warns
        model.config.problem_type = "single_label_classification"
    return model, sample_batch(model, BATCH, sequence, seed)
