"""Models of transformers: each type with the heads that it has, small enough to train in a moment."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from ...case import Case, NotBuilt, Subject
from ...steps import run_step, seed_all
from .batches import Batches, variants
from .fields import FIELDS
from .inputs import ROWS, Shape
from .sizes import Shrinking, Size

transformers.logging.set_verbosity_error()

# The mappings of each group of similar tasks, in order. A type is tried with its first head in each group only.
_GROUPS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("text to text", "SEQ_TO_SEQ_CAUSAL_LM"),
        ("next token", "CAUSAL_LM"),
        ("picture and text", "IMAGE_TEXT_TO_TEXT"),
        ("picture and text", "MULTIMODAL_LM"),
    ),
    (("masked text", "MASKED_LM"), ("masked text", "PRETRAINING")),
    (("speech to text", "SPEECH_SEQ_2_SEQ"), ("sound to characters", "CTC"), ("sound", "RNNT"), ("sound", "TDT")),
    (("text class", "SEQUENCE_CLASSIFICATION"),),
    (("token class", "TOKEN_CLASSIFICATION"),),
    (("answer", "QUESTION_ANSWERING"), ("answer", "DOCUMENT_QUESTION_ANSWERING")),
    (("multiple choice", "MULTIPLE_CHOICE"), ("next sentence", "NEXT_SENTENCE_PREDICTION")),
    (("picture class", "IMAGE_CLASSIFICATION"), ("video class", "VIDEO_CLASSIFICATION")),
    (("boxes", "OBJECT_DETECTION"), ("boxes and text", "ZERO_SHOT_OBJECT_DETECTION")),
    (
        ("pixel class", "SEMANTIC_SEGMENTATION"),
        ("masks", "UNIVERSAL_SEGMENTATION"),
        ("masks", "INSTANCE_SEGMENTATION"),
        ("boxes", "IMAGE_SEGMENTATION"),
    ),
    (("depth", "DEPTH_ESTIMATION"), ("normals", "NORMAL_ESTIMATION"), ("pose", "POSE_ESTIMATION")),
    (
        ("masked picture", "MASKED_IMAGE_MODELING"),
        ("picture to picture", "IMAGE_TO_IMAGE"),
        ("matting", "IMAGE_MATTING"),
    ),
    (
        ("sound class", "AUDIO_CLASSIFICATION"),
        ("frame class", "AUDIO_FRAME_CLASSIFICATION"),
        ("speaker", "AUDIO_XVECTOR"),
    ),
    (
        ("time series", "TIME_SERIES_PREDICTION"),
        ("time series", "TIME_SERIES_REGRESSION"),
        ("time series", "TIME_SERIES_CLASSIFICATION"),
    ),
    (("picture and text", "ZERO_SHOT_IMAGE_CLASSIFICATION"), ("picture and text", "VISUAL_QUESTION_ANSWERING")),
    (
        ("reading", "TEXT_RECOGNITION"),
        ("reading", "TABLE_RECOGNITION"),
        ("keypoints", "KEYPOINT_DETECTION"),
        ("keypoints", "KEYPOINT_MATCHING"),
    ),
    (("spectrogram", "TEXT_TO_SPECTROGRAM"), ("wave", "TEXT_TO_WAVEFORM"), ("mask", "MASK_GENERATION")),
    (("retrieval", "RETRIEVAL"), ("text", "TEXT_ENCODING"), ("causal picture", "CAUSAL_IMAGE_MODELING")),
)
# Types that transformers' mappings know as bare models only, although they have a head with a loss.
_UNMAPPED = {
    "autoformer": ("time series", "AutoformerForPrediction"),
    "informer": ("time series", "InformerForPrediction"),
    "time_series_transformer": ("time series", "TimeSeriesTransformerForPrediction"),
    "mgp-str": ("reading", "MgpstrForSceneTextRecognition"),
    "bridgetower": ("masked text", "BridgeTowerForMaskedLM"),
}
_MOST_PARAMETERS = 40_000_000
_MOST_SECONDS = 4.0  # of a step in eager
_PATIENCE_SECONDS = 40.0
_SIZES = (
    Size(32),
    Size(16),
    Size(8),
    Size(4),
    Size(2),
    Size(8, images=None),
    Size(4, images=4),
    Size(16, has_dropout=False),
    Size(2, images=None),
    Size(1, images=None),
)


@dataclass(frozen=True)
class Head:
    """A class of a model type, and what it is trained for."""

    model_type: str
    task: str
    class_name: str


def heads() -> list[Head]:
    """Return all that are tried: first each type with one head, then the other heads, then types without any."""
    first: list[Head] = []
    others: list[Head] = []
    seen: set[str] = set()
    for group in _GROUPS:
        for task, mapping in group:
            names = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {})
            for model_type, class_name in names.items():
                class_name = class_name if isinstance(class_name, str) else class_name[0]
                if class_name not in seen:
                    seen.add(class_name)
                    head = Head(model_type, task, class_name)
                    (others if any(known.model_type == model_type for known in first) else first).append(head)
    typed = {head.model_type for head in first}
    first += [Head(kind, *fields) for kind, fields in _UNMAPPED.items() if kind not in typed]
    typed |= set(_UNMAPPED)
    bare = []
    for model_type, class_name in modeling_auto.MODEL_MAPPING_NAMES.items():
        class_name = class_name if isinstance(class_name, str) else class_name[0]
        if model_type not in typed and class_name not in seen:
            seen.add(class_name)
            bare.append(Head(model_type, "bare", class_name))
    return first + others + bare


def cases() -> Iterator[Case]:
    """Yield each head as a case."""
    for head in heads():
        name = f"transformers/{head.model_type}/{head.class_name}"
        yield Case(name, head.task, partial(build, head))


def build(head: Head) -> Subject:
    """Return the first of a few small sizes and batches that trains in eager. Raises NotBuilt if none does."""
    if not hasattr(transformers, head.class_name):
        raise NotBuilt(f"transformers has no {head.class_name}")
    started = time.monotonic()
    reasons: list[str] = []
    for size in _SIZES[0 if _is_wide(head) else 1 :]:
        try:
            model = _model(head, size)
        except Exception as error:
            reasons.append(f"{size.divisor}: {type(error).__name__}: {error}")
            if "requires the" in str(error) or "requires backends" in str(error):
                raise NotBuilt(reasons[-1]) from error
        else:
            subject = _trainable(model, head, reasons, size)
            if subject is not None:
                return subject
        if time.monotonic() - started > _PATIENCE_SECONDS:
            break
    raise NotBuilt(" | ".join(reason.replace("\n", " ")[:160] for reason in dict.fromkeys(reasons)))


def _is_wide(head: Head) -> bool:
    config = CONFIG_MAPPING[head.model_type]()
    widths = (getattr(part, "hidden_size", 0) for part in (config, config.get_text_config(decoder=True)))
    return any(isinstance(width, int) and width >= 2048 for width in widths)


def _model(head: Head, size: Size) -> nn.Module:
    kind = CONFIG_MAPPING[head.model_type]
    config = Shrinking(size).shrink(kind(), FIELDS.get(head.model_type))
    _complete(config, head)
    kind = getattr(transformers, head.class_name)
    with torch.device("meta"):
        try:
            count = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
        except Exception:
            count = 0  # some cannot be built without data
    if count > _MOST_PARAMETERS:
        raise NotBuilt(f"{count:,} parameters")
    seed_all(0)
    return kind(config).train()


def _complete(config: Any, head: Head) -> None:
    """Set the fields that training needs and defaults leave open."""
    if head.task == "sound to characters" and getattr(config, "vocab_size", 0) is None:
        config.vocab_size = 32
    text = config.get_text_config(decoder=True)
    for part in (config, text):
        if getattr(part, "pad_token_id", None) is None and head.task in (
            "text class",
            "text to text",
            "speech to text",
        ):
            part.pad_token_id = 0
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0


def _trainable(model: nn.Module, head: Head, reasons: list[str], size: Size) -> Subject | None:
    """Return the model with the first batch that eager trains on."""
    batches = Batches(model, head.task)
    waiting = list(variants(head.task, batches.names))
    tried: set[Shape] = set()
    while waiting:
        shape = waiting.pop(0)
        if shape in tried:
            continue
        tried.add(shape)
        batches = Batches(model, head.task, shape)
        copied = copy.deepcopy(model)
        try:
            seed_all(0)
            started = time.process_time()
            run_step(copied, batches(0))
            seconds = time.process_time() - started
            if seconds > _MOST_SECONDS:
                raise NotBuilt(f"a step takes {seconds:.0f} s")
            if any(p.grad is not None for p in copied.parameters()):
                return Subject(model, batches)
            reasons.append("no parameter gets a gradient")
        except Exception as error:
            reasons.append(f"{size.divisor} {shape}: {type(error).__name__}: {error}")
            larger = _with_placeholders(shape, str(error))
            if larger is not None:
                waiting.insert(0, larger)
    return None


def _with_placeholders(shape: Shape, message: str) -> Shape | None:
    """Return another batch, if the message says how many tokens must stand for a picture."""
    counts = re.search(r"tokens:?\s*(\d+)\D+(?:features|embeddings)\D*(\d+)", message)
    if counts is None or shape.placeholders:
        return None
    return replace(shape, placeholders=-(-int(counts[2]) // ROWS))
