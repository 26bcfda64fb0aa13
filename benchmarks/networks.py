"""The networks that the frontier is measured on, with the batch and the blocks of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from torch import nn

from benchmarks.frontier.models import Batch, llama_style, u_net


@dataclass(frozen=True)
class Network:
    """A model to measure.

    build: returns the model in training mode and the keyword arguments of its forward; asked to be quick, a small one.
    containers: names of the modules whose children are the blocks, in the order in which they run.
    chained: whether each block of a container takes the result of the block before it as its first argument. Then
        several in a row can be one checkpoint.
    """

    name: str
    description: str
    build: Callable[[bool], tuple[nn.Module, Batch]]
    containers: tuple[str, ...]
    chained: bool = True

    def blocks(self, model: nn.Module) -> list[str]:
        """Return the names of the blocks, in the order in which they run."""
        blocks = [f"{at}.{name}" for at in self.containers for name, _ in model.get_submodule(at).named_children()]
        if not blocks:
            raise ValueError(f"{self.name} has no blocks at {', '.join(self.containers)}")
        return blocks


def _from_transformers(
    name: str, batch: tuple[int, int], tokens: tuple[int, int], quick: Mapping[str, Any], **overrides: Any
) -> Callable[[bool], tuple[nn.Module, Batch]]:
    """Return a builder that takes the second of each pair, and the changes in `quick`, for a small network."""

    def build(is_quick: bool) -> tuple[nn.Module, Batch]:
        model: Any = build_model(name, overrides={**overrides, **(quick if is_quick else {})})
        for module in model.modules():  # T5's decoder has a configuration of its own
            if hasattr(getattr(module, "config", None), "use_cache"):
                module.config.use_cache = False  # it would keep keys and values that no training step reads
        return model, sample_batch(model, batch[is_quick], tokens[is_quick])

    return build


_BERT = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 8000}
_QUICK_BERT = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 256, "vocab_size": 512}
_QUICK_T5 = {"num_layers": 2, "num_decoder_layers": 2, "d_model": 64, "d_kv": 16, "d_ff": 256, "vocab_size": 512}
_T5 = {"d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 1024, "vocab_size": 8000}
_MAMBA = {"hidden_size": 128, "state_size": 16, "vocab_size": 2000}

NETWORKS = {
    network.name: network
    for network in (
        Network(
            "llama-style",
            "12 blocks, d 128, 4 heads, SwiGLU 4d, vocabulary 512, batch 4 × 256",
            lambda quick: llama_style(4, 64, 2, 64) if quick else llama_style(12, 128, 4, 256),
            ("blocks",),
        ),
        Network(
            "gpt2",
            "transformers' GPT-2, 6 layers, d 384, vocabulary 8000, batch 8 × 256, dropout 0.1",
            _from_transformers("gpt2-small-cpu", (8, 2), (256, 64), {"n_layer": 4, "n_embd": 96, "vocab_size": 512}),
            ("transformer.h",),
        ),
        Network(
            "bert",
            "transformers' BERT for masked text, 6 layers, d 256, vocabulary 8000, batch 8 × 128, dropout 0.1",
            _from_transformers("bert", (8, 2), (128, 64), _QUICK_BERT, num_hidden_layers=6, **_BERT),
            ("bert.encoder.layer",),
        ),
        Network(
            "resnet",
            "transformers' ResNet-50, pictures of 64 × 64, batch 8",
            _from_transformers(
                "resnet", (8, 2), (64, 32), {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 128, 256]}
            ),
            tuple(f"resnet.encoder.stages.{stage}.layers" for stage in range(4)),
        ),
        Network(
            "t5",
            "transformers' T5, 3 + 3 layers, d 256, vocabulary 8000, batch 8 × 128, dropout 0.1",
            _from_transformers("t5", (8, 2), (128, 32), _QUICK_T5, num_layers=3, **_T5),
            ("encoder.block", "decoder.block"),
            chained=False,
        ),
        Network(
            "u-net",
            "plain torch, four skips, 16 to 256 channels, pictures of 96 × 96, batch 4, dropout 0.1",
            lambda quick: u_net(4, 2, 32) if quick else u_net(16, 4, 96),
            (*(f"down.{level}" for level in range(4)), "lowest", *(f"up.{level}" for level in range(4))),
        ),
        Network(
            "mamba",
            "transformers' Mamba, 4 layers, d 128, state 16, vocabulary 2000, batch 4 × 32",
            _from_transformers("mamba", (4, 2), (32, 8), {"num_hidden_layers": 2}, num_hidden_layers=4, **_MAMBA),
            ("backbone.layers",),
        ),
    )
}
