"""Trains a small GPT-2 in other libraries' trainers, in eager and rewritten, and compares the losses of all steps.

    python -m benchmarks.trainers [NAME ...]

It needs accelerate, and Lightning for its rows; a library that is not installed is left out. One process, on the CPU.
Exits with 1 if a loss differs in a bit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import lowtide
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

_BATCH, _TOKENS, _VOCABULARY, _BATCHES = 8, 64, 256, 12
Train = Callable[[nn.Module, list[dict[str, torch.Tensor]]], list[float]]


def with_trainer(module: nn.Module, samples: list[dict[str, torch.Tensor]], **options: Any) -> list[float]:
    """Return the losses of transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        fixed: dict[str, Any] = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=_BATCH, max_steps=6, logging_steps=1, seed=3, **fixed, **options
        )
        trainer = Trainer(model=module, args=arguments, train_dataset=samples)  # pyright: ignore[reportArgumentType]
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def with_accelerator(module: nn.Module, samples: list[dict[str, torch.Tensor]]) -> list[float]:
    """Return the losses of a loop with accelerate's Accelerator: two batches accumulated, gradients clipped."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module, optimizer, loader = accelerator.prepare(module, optimizer, DataLoader(samples, batch_size=_BATCH))  # type: ignore
    losses = []
    for batch in loader:
        with accelerator.accumulate(module):
            loss = module(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def with_lightning(module: nn.Module, samples: list[dict[str, torch.Tensor]]) -> list[float]:
    """Return the losses of Lightning's Trainer: two batches accumulated, gradients clipped."""
    import lightning

    losses: list[float] = []

    class Whole(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            loss = self.inner(**batch).loss
            losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.inner.parameters(), lr=1e-3)

    quiet = {f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")}
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, gradient_clip_val=1.0, accumulate_grad_batches=2, **quiet
    )
    trainer.fit(Whole(), DataLoader(samples, batch_size=_BATCH))  # pyright: ignore[reportArgumentType]
    return losses


# Each with the library that it needs.
TRAINERS: dict[str, tuple[str, Train]] = {
    "transformers": ("accelerate", with_trainer),
    "transformers, accumulation of 2": ("accelerate", partial(with_trainer, gradient_accumulation_steps=2)),
    "transformers, bf16": ("accelerate", partial(with_trainer, bf16=True)),
    "transformers, max_grad_norm 0.1": ("accelerate", partial(with_trainer, max_grad_norm=0.1)),
    "accelerate": ("accelerate", with_accelerator),
    "lightning": ("lightning", with_lightning),
}


def losses_of(train: Train, rewritten: bool) -> list[float]:
    """Return the losses of a new model, eager or rewritten, with the same random numbers each time."""
    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": _VOCABULARY, "n_positions": _TOKENS}
    model: Any = GPT2LMHeadModel(GPT2Config(**size, use_cache=False)).train()
    ids = torch.randint(0, _VOCABULARY, (_BATCHES * _BATCH, _TOKENS))
    samples = [{"input_ids": row, "labels": row} for row in ids]
    if rewritten:
        model = lowtide.rewrite(model, "60%", costs="flops")
    torch.manual_seed(1)
    return train(model, samples)


def main(names: list[str]) -> int:
    """Print a line for each trainer and return the status to exit with."""
    different = 0
    for name, (library, train) in TRAINERS.items():
        if names and name.partition(",")[0] not in names:
            continue
        if find_spec(library) is None:
            print(f"{name:<34} {library} is not installed")
            continue
        eager, small = losses_of(train, rewritten=False), losses_of(train, rewritten=True)
        different += eager != small
        verdict = "equal" if eager == small else "DIFFERENT"
        print(f"{name:<34} {verdict}: {len(eager)} losses, {library} {version(library)}", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
