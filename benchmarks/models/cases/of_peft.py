"""Models of transformers with peft's adapters: most parameters are frozen, a few are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import peft
from peft import TaskType
from torch import nn

from ..case import Case, NotBuilt, Subject
from .of_transformers.cases import Head, build

_GPT2 = Head("gpt2", "next token", "GPT2LMHeadModel")
_LLAMA = Head("llama", "next token", "LlamaForCausalLM")
_BERT = Head("bert", "text class", "BertForSequenceClassification")
_T5 = Head("t5", "text to text", "T5ForConditionalGeneration")
_VIT = Head("vit", "picture class", "ViTForImageClassification")
_WHISPER = Head("whisper", "speech to text", "WhisperForConditionalGeneration")
_ATTENTION = ["q_proj", "v_proj"]
_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _config(kind: str, **fields: Any) -> Callable[[], Any]:
    """Return a function that makes the configuration when it is needed, because peft's versions differ."""

    def make() -> Any:
        if not hasattr(peft, kind):
            raise NotBuilt(f"peft has no {kind}")
        return getattr(peft, kind)(**fields)

    return make


_CAUSAL = {"task_type": TaskType.CAUSAL_LM}
_LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
_VARIANTS: dict[str, tuple[Head, Callable[[], Any]]] = {
    "lora": (_LLAMA, _config("LoraConfig", **_CAUSAL, **_LORA, target_modules=_ATTENTION)),
    "lora-everywhere": (_LLAMA, _config("LoraConfig", **_CAUSAL, **_LORA, target_modules=_ALL)),
    "rslora-bias": (
        _LLAMA,
        _config("LoraConfig", **_CAUSAL, **_LORA, target_modules=_ALL, use_rslora=True, bias="all"),
    ),
    "dora": (_LLAMA, _config("LoraConfig", **_CAUSAL, **_LORA, target_modules=_ATTENTION, use_dora=True)),
    "lora-conv1d": (_GPT2, _config("LoraConfig", **_CAUSAL, **_LORA, target_modules=["c_attn"], fan_in_fan_out=True)),
    "lora-class": (
        _BERT,
        _config("LoraConfig", task_type=TaskType.SEQ_CLS, **_LORA, target_modules=["query", "value"]),
    ),
    "lora-seq2seq": (_T5, _config("LoraConfig", task_type=TaskType.SEQ_2_SEQ_LM, **_LORA, target_modules=["q", "v"])),
    "lora-pictures": (
        _VIT,
        _config("LoraConfig", **_LORA, target_modules="all-linear", modules_to_save=["classifier"]),
    ),
    "lora-speech": (_WHISPER, _config("LoraConfig", **_LORA, target_modules=_ATTENTION)),
    "ia3": (
        _LLAMA,
        _config("IA3Config", **_CAUSAL, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "loha": (_LLAMA, _config("LoHaConfig", **_CAUSAL, r=4, target_modules=_ATTENTION, module_dropout=0.0)),
    "lokr": (_LLAMA, _config("LoKrConfig", **_CAUSAL, r=4, target_modules=_ATTENTION)),
    "vera": (_LLAMA, _config("VeraConfig", **_CAUSAL, r=4, target_modules=["q_proj"], vera_dropout=0.1)),
    "oft": (_LLAMA, _config("OFTConfig", **_CAUSAL, r=0, oft_block_size=4, target_modules=_ATTENTION)),
    "boft": (_LLAMA, _config("BOFTConfig", **_CAUSAL, boft_block_size=4, target_modules=_ATTENTION)),
    "hra": (_LLAMA, _config("HRAConfig", **_CAUSAL, r=4, target_modules=_ATTENTION)),
    "fourier": (_LLAMA, _config("FourierFTConfig", **_CAUSAL, n_frequency=20, target_modules=_ATTENTION)),
    "layer-norms": (_LLAMA, _config("LNTuningConfig", **_CAUSAL, target_modules=["input_layernorm"])),
    "prompt": (_LLAMA, _config("PromptTuningConfig", **_CAUSAL, num_virtual_tokens=4)),
    "prefix": (_LLAMA, _config("PrefixTuningConfig", **_CAUSAL, num_virtual_tokens=4)),
    "p-tuning": (_LLAMA, _config("PromptEncoderConfig", **_CAUSAL, num_virtual_tokens=4, encoder_hidden_size=16)),
}


def cases() -> Iterator[Case]:
    """Yield each adapter on a model that it is made for."""
    for name, (head, config) in _VARIANTS.items():
        yield Case(f"peft/{name}/{head.class_name}", head.task, partial(_build, head, config))


def _build(head: Head, config: Callable[[], Any]) -> Subject:
    subject = build(head)
    model: nn.Module = peft.get_peft_model(subject.model, config())  # pyright: ignore
    return Subject(model, subject.batch)
