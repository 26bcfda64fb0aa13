"""Makes token ids, masks and labels for models that read or write text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .corpus import hashed, sample_words

MASKED_SHARE = 0.15  # of tokens hidden from a masked language model, as in BERT's paper (arXiv 1810.04805)
IGNORED = -100  # a label that transformers' losses leave out


@dataclass(frozen=True)
class TextRequest:
    """A request for a batch of text.

    model: the model that reads the batch.
    batch: the number of rows.
    sequence: the number of tokens in a row.
    seed: the seed of the text.
    padded: whether rows end early.
    """

    model: torch.nn.Module
    batch: int
    sequence: int
    seed: int = 0
    padded: bool = False

    @property
    def config(self) -> Any:
        """Return the model's whole configuration."""
        return self.model.config

    @property
    def text_config(self) -> Any:
        """Return the part of the configuration that the vocabulary belongs to."""
        return self.config.get_text_config(decoder=True)

    def special(self, name: str) -> int:
        """Return the id of a special token; 0 if the configuration leaves it open."""
        for config in (self.config, self.text_config):
            value = getattr(config, name, None)
            if isinstance(value, int):
                return value
        return 0

    def mask(self) -> Tensor:
        """Return 1 for each token of a row [batch, sequence]: all tokens, or with padding all, 3/4 and 1/2 of them in
        turn.
        """
        missing = [row % 3 * self.sequence // 4 if self.padded else 0 for row in range(self.batch)]
        return (torch.arange(self.sequence)[None] < self.sequence - torch.tensor(missing)[:, None]).long()

    def tokens(self, seed: int) -> Tensor:
        """Return ids of running text [batch, sequence], none special; the padding id after the end of a row."""
        fields = self.config.to_dict() | self.text_config.to_dict()
        ids = (value for name, value in fields.items() if name.endswith("_token_id"))
        special = frozenset(value for value in ids if isinstance(value, int))
        words = sample_words(self.batch * self.sequence, seed)
        tokens = torch.tensor(hashed(words, self.text_config.vocab_size, special))
        tokens = tokens.view(self.batch, self.sequence)
        return tokens.masked_fill(self.mask() == 0, self.special("pad_token_id"))


def next_token(request: TextRequest) -> dict[str, Tensor]:
    """Return a batch in which each token is predicted from those before it; without padding there is no mask."""
    tokens, mask = request.tokens(request.seed), request.mask()
    labels = tokens.masked_fill(mask == 0, IGNORED)
    return {"input_ids": tokens, **({"attention_mask": mask} if request.padded else {}), "labels": labels}


def masked_text(request: TextRequest) -> dict[str, Tensor]:
    """Return a batch in which a share of the tokens is hidden and predicted from the others."""
    tokens, mask = request.tokens(request.seed), request.mask()
    draw = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(request.seed))
    hidden = (draw < MASKED_SHARE) & (mask == 1)
    hidden[:, 0] = True  # never a row without a label
    mask_token = request.text_config.vocab_size - 2  # configurations do not say which id is the mask
    return {
        "input_ids": tokens.masked_fill(hidden, mask_token),
        "attention_mask": mask,
        "labels": tokens.masked_fill(~hidden, IGNORED),
    }


def text_to_text(request: TextRequest) -> dict[str, Tensor]:
    """Return a batch in which one text is turned into another."""
    return {
        "input_ids": request.tokens(request.seed),
        "attention_mask": request.mask(),
        **decoder_inputs(request),
    }


def text_class(request: TextRequest) -> dict[str, Tensor]:
    """Return a batch in which each row has one class, which follows from its first word."""
    tokens = request.tokens(request.seed)
    return {
        "input_ids": tokens,
        "attention_mask": request.mask(),
        "labels": tokens[:, 0] % request.config.num_labels,
    }


def decoder_inputs(request: TextRequest) -> dict[str, Tensor]:
    """Return the labels of the decoder, and its inputs: the same shifted right by one, as in transformers."""
    tokens = request.tokens(request.seed + 1)
    start = torch.full((request.batch, 1), request.special("decoder_start_token_id"))
    labels = tokens.masked_fill(request.mask() == 0, IGNORED)
    return {"decoder_input_ids": torch.cat([start, tokens[:, :-1]], 1), "labels": labels}


def most_positions(model: torch.nn.Module) -> int | None:
    """Return the most tokens that a model with learned positions takes; None if positions are computed."""
    config = TextRequest(model, 1, 1).text_config
    if getattr(config, "max_target_positions", None):
        return config.max_target_positions
    if getattr(config, "rope_parameters", None) or not getattr(config, "max_position_embeddings", None):
        return None
    used = 0
    for name, module in model.named_modules():
        # RoBERTa counts positions from the padding id on.
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            used = 0 if module.padding_idx is None else module.padding_idx + 1
    # XLNet has -1 if there is no limit.
    return config.max_position_embeddings - used if config.max_position_embeddings > 0 else None


def refuse_long(model: torch.nn.Module, sequence: int) -> None:
    """Raise ModelError if `model` has fewer learned positions than `sequence` tokens need."""
    most = most_positions(model)
    if most is not None and sequence > most:
        config = TextRequest(model, 1, 1).text_config
        field = "max_target_positions" if getattr(config, "max_target_positions", None) else "max_position_embeddings"
        raise ModelError(
            f"{config.model_type} has positions for {most} tokens, got a sequence of {sequence}; "
            f"shorten it, or give the model more: --set {field}={getattr(config, field) + sequence - most}"
        )
