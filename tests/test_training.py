"""Trains a small language model for three hundred steps on the standard library's sources, in eager and rewritten."""

from __future__ import annotations

import copy
from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.models.corpus import hashed, sample_words

_STEPS, _BATCH, _TOKENS, _VOCABULARY = 300, 4, 32, 200
_SIZES = {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": _TOKENS, "vocab_size": _VOCABULARY}


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    """Token ids [steps, batch, tokens]."""
    words = sample_words(_STEPS * _BATCH * _TOKENS)
    return torch.tensor(hashed(words, _VOCABULARY)).view(_STEPS, _BATCH, _TOKENS)


@pytest.fixture(scope="module")
def model() -> Any:
    """GPT-2 with its dropout; no run changes it."""
    torch.manual_seed(0)
    return build_model("gpt2", overrides=_SIZES).train()


def losses(model: Any, text: torch.Tensor, rewrite: dict[str, Any] | None = None) -> torch.Tensor:
    """Return the loss of every step; the random numbers are the same each time."""
    trained = copy.deepcopy(model)
    trained.config.use_cache = False
    if rewrite is not None:
        batch = {"input_ids": text[0], "labels": text[0]}
        trained = lowtide.rewrite(trained, kwargs=batch, outputs=["loss"], costs="flops", **rewrite)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-4)
    torch.manual_seed(1)
    seen = []
    for ids in text:
        loss = trained(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.detach())
    return torch.stack(seen)


@pytest.fixture(scope="module")
def eager(model, text) -> torch.Tensor:
    """Eager's losses, which fall."""
    seen = losses(model, text)
    assert seen[-20:].mean() < seen[:20].mean() - 0.3
    return seen


def test_bitwise_passes_leave_every_loss_as_it_was(model, text, eager):
    assert torch.equal(losses(model, text, {"budget": "60%", "solver": "rotor"}), eager)


def test_rounding_passes_leave_the_loss_curve_within_a_thousandth(model, text, eager):
    rewritten_losses = losses(model, text, {"budget": "60%", "fidelity": "rounding"})
    assert not torch.equal(rewritten_losses, eager)
    assert (rewritten_losses - eager).abs().max() < 1e-3
