"""Builds models with random weights by name, with the head that trains on a loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

from ..errors import ModelError
from .resolve import choose_model


@dataclass(frozen=True)
class Head:
    """The training task of a model.

    task: the name of the task.
    auto_class: the auto class that builds the model.
    mapping: the name of the mapping from model types to classes.
    """

    task: str
    auto_class: str
    mapping: str

    @property
    def classes(self) -> Mapping[str, str]:
        """Return the class names of this head, by model type."""
        return getattr(modeling_auto, self.mapping)


# In order of preference: a type that has several heads (BERT, BART) gets the first one it was made for.
HEADS = (
    Head("speech to text", "AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
    Head("text to text", "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    Head("masked text", "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    Head("next token", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    Head("image class", "AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    Head("text class", "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
)


def build_model(
    name: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    meta: bool = False,
) -> torch.nn.Module:
    """Return the model that `name` stands for, with random weights, in training mode. No weights are downloaded.

    name: a preset, a model type, a local folder or `config.json`, or a hub name (see `choose_model`).
    overrides: changes of the configuration, with dotted names for nested ones; text gets the type of the present value.
    dtype: the dtype of the parameters; by default the preset's, else float32.
    seed: the seed of the weights. They are drawn on the CPU, and the caller's generators are left unchanged.
    meta: whether to build on the meta device: shapes only, nothing is allocated or initialized.

    Raises ModelError for an unknown name, option, dtype or device.
    """
    choice = choose_model(name, overrides)
    config = choice.config
    config.architectures = config.architectures or []  # None is refused where a type has several heads for a task
    head = head_of_config(config)
    number_type = _dtype(dtype or choice.dtype)
    auto_class = getattr(transformers, head.auto_class)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta") if meta else nullcontext():
            torch.default_generator.manual_seed(seed)
            model = auto_class.from_config(config, dtype=number_type)
    except (ValueError, RuntimeError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ModelError(f"{name} cannot be built with these options: {error}") from error
    _name_loss(model, head)
    try:
        return model.train() if meta else model.train().to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"{name} cannot be placed on device {device!r}: {error}") from error


def head_of_config(config: PreTrainedConfig) -> Head:
    """Return the head to train a configuration with: the one that its `architectures` name, else the first of `HEADS`.

    Raises ModelError if none of `HEADS` exists for this type of model.
    """
    kind = config.model_type
    candidates = [head for head in HEADS if kind in head.classes]
    for head in candidates:
        if _names(head.classes[kind]) & set(config.architectures or ()):
            return head
    if getattr(config, "is_decoder", False):
        candidates = [head for head in candidates if head.task != "masked text"]
    if not candidates:
        tasks = ", ".join(head.task for head in HEADS)
        raise ModelError(
            f"{kind} has none of the heads that lowtide can make a batch for ({tasks}); build it yourself "
            "and pass it to lowtide.rewrite(model, budget, args, kwargs)"
        )
    return candidates[0]


def head_of_model(model: torch.nn.Module) -> Head:
    """Return the head of `model`'s class. Raises ModelError if it is none of `HEADS`."""
    for kind in type(model).__mro__:
        for head in HEADS:
            if any(kind.__name__ in _names(name) for name in head.classes.values()):
                return head
    raise ModelError(f"lowtide cannot make a batch for {type(model).__name__}; pass inputs of your own")


def _names(name: str | tuple[str, ...]) -> set[str]:
    return {name} if isinstance(name, str) else set(name)


def _name_loss(model: torch.nn.Module, head: Head) -> None:
    """Set the loss where transformers would guess the same one and warn (GPT-2's head)."""
    if head.task == "next token" and getattr(model, "loss_type", "") is None:
        model.loss_type = "ForCausalLM"  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    config: Any = model.config
    if head.task == "text to text" and getattr(config, "decoder_start_token_id", None) is None:
        # T5's own default leaves it open; every published T5 starts with the padding token.
        config.decoder_start_token_id = config.pad_token_id or 0


def _dtype(name: str) -> torch.dtype:
    known = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float64": torch.float64,
    }
    if name not in known:
        raise ModelError(f"dtype {name!r} is not one of {', '.join(known)}")
    return known[name]
