"""Makes a batch of inputs with labels for each kind of model, from real text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .build import head_of_model
from .corpus import sample_bytes
from .text_batches import (
    TextRequest,
    decoder_inputs,
    masked_text,
    most_positions,
    next_token,
    refuse_long,
    text_class,
    text_to_text,
)

IMAGE_SIDE_PIXELS = 224
SEQUENCE_TOKENS = 512


def default_sequence(model: torch.nn.Module) -> int:
    """Return the default sequence length: 512 tokens, or fewer if the model has fewer positions.

    For images it is their side in pixels, which is 224 if the configuration does not fix it.
    """
    if head_of_model(model).task == "image class":
        return max(_image_size(model, IMAGE_SIDE_PIXELS))
    return min(SEQUENCE_TOKENS, most_positions(model) or SEQUENCE_TOKENS)


def sample_batch(
    model: torch.nn.Module,
    batch: int,
    seq: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    padded: bool = False,
) -> dict[str, Tensor]:
    """Return keyword arguments of `model`'s forward, labels included; deterministic for one Python version and seed.

    seq: tokens. For images the side in pixels if the configuration does not fix it; for speech the tokens of the
        transcript. None means `default_sequence`.
    device: by default that of the parameters (on meta: tensors without data).
    padded: whether text rows end at different lengths, with an attention mask.

    Raises ModelError if the kind of the model is not known here, or it has no positions for `seq` tokens.
    """
    if batch < 1 or (seq is not None and seq < 2):
        raise ModelError(f"a batch needs at least 1 row and 2 positions, got batch {batch}, sequence {seq}")
    task = head_of_model(model).task
    seq = seq or default_sequence(model)
    if task == "image class":
        inputs = _images(model, batch, seq, seed)
    else:
        refuse_long(model, seq)
        inputs = _MAKERS[task](TextRequest(model, batch, seq, seed, padded))
    parameter = next(model.parameters())
    target = torch.device(device or parameter.device)
    if target.type == "meta" and not padded:
        # Models look at the mask's values (`if mask.all():`); without data only its absence says "all ones".
        inputs.pop("attention_mask", None)
    return {
        name: tensor.to(target, parameter.dtype) if tensor.is_floating_point() else tensor.to(target)
        for name, tensor in inputs.items()
    }


def _speech(request: TextRequest) -> dict[str, Tensor]:
    config = request.config
    if not hasattr(config, "num_mel_bins") or not hasattr(config, "max_source_positions"):
        raise ModelError(f"lowtide cannot make speech for {config.model_type}; pass inputs of your own")
    # The encoder's second convolution has stride 2, so twice as many frames as positions.
    size = (config.num_mel_bins, 2 * config.max_source_positions)
    features = pictures(request.batch, 1, *size, request.seed)[:, 0]
    return {"input_features": features, **decoder_inputs(request)}


_MAKERS = {
    "next token": next_token,
    "masked text": masked_text,
    "text to text": text_to_text,
    "speech to text": _speech,
    "text class": text_class,
}


def _images(model: torch.nn.Module, batch: int, side: int, seed: int) -> dict[str, Tensor]:
    config: Any = model.config
    image_config: Any = getattr(config, "vision_config", config)
    height, width = _image_size(model, side)
    images = pictures(batch, getattr(image_config, "num_channels", 3), height, width, seed)
    labels = (images.mean((1, 2, 3)).abs() * 1e4).long() % config.num_labels
    return {"pixel_values": images, "labels": labels}


def _image_size(model: torch.nn.Module, side: int) -> tuple[int, int]:
    """Return height and width of images; (side, side) if the configuration does not fix them."""
    config: Any = model.config
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or side
    return (size, size) if isinstance(size, int) else tuple(size)


def pictures(batch: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """Return text as brightness [batch, channels, height, width], with mean 0 and deviation 1.

    The result is smooth over four pixels, like photographs and spectrograms and unlike noise.
    """
    rows, columns = -(-height // 4), -(-width // 4)
    data = bytearray(sample_bytes(batch * channels * rows * columns, seed))
    coarse = torch.frombuffer(data, dtype=torch.uint8).float().view(batch, channels, rows, columns)
    size = (height, width)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return (fine - fine.mean()) / fine.std().clamp_min(1e-3)
