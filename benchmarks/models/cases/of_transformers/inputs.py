"""What a batch for a model of transformers is made from: its signature, its configuration and random tensors."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from lowtide.rewriter.models.batches import pictures
from lowtide.rewriter.models.corpus import hashed, sample_words
from torch import Tensor

from .sizes import parts_of

ROWS, CHOICES = 4, 2
SOUND = ("sound class", "sound to characters", "frame class", "speaker")
_TOKENS = 32


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
    """What the batches of one model are made from: its signature, its configuration and random tensors.

    task: the head's, in words of `cases.heads`.
    """

    model: Any
    task: str
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        self.names = list(inspect.signature(self.model.forward).parameters)
        self.config = self.model.config
        self.text = self.config.get_text_config(decoder=True)
        positions = field_of(self.text, "max_position_embeddings")
        self.seed, self.draw = 0, torch.Generator()
        self.tokens = min(_TOKENS, positions) if isinstance(positions, int) and positions > 4 else _TOKENS

    # The configuration.

    def number(self, *names: str, default: int = 0) -> int:
        """Return the first of these fields that is a whole number, in all parts of the configuration."""
        for config in parts_of(self.config):
            for name in names:
                value = field_of(config, name)
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
        size = vocabulary or field_of(self.text, "vocab_size") or self.number("vocab_size", default=100)
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


def field_of(config: Any, name: str) -> Any:
    """Return a field of a configuration; None if it has none, or another one in each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # an attribute that differs from layer to layer
        return None


def placeholder_id(inputs: Inputs) -> int:
    """Return the token that stands for a picture or sound."""
    names = ("audio_token_id", "audio_token_index") if _has_sound(inputs) else ()
    return inputs.number(*names, "image_token_id", "image_token_index", "media_placeholder_token_id", "video_token_id")


def _has_sound(inputs: Inputs) -> bool:
    return (
        bool({"input_features", "input_audio_embeds", "input_values"} & set(inputs.names))
        and "pixel_values" not in inputs.names
    )
