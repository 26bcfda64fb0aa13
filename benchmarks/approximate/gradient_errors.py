"""The distance of approximate gradients from exact ones, for each kind of code alone, predicted and measured.

    python -m benchmarks.approximate.gradient_errors [--steps 300] [--learning-rate 1e-3] [--batch 16] [--only TEXT ...]
        [--json FILE]

A byte-level language model (GPT-2's architecture, 4 layers, d 128) is trained for 300 steps on the sources of the
standard library. Then ‖ĝ − g‖² / ‖g‖² over all gradients is measured on 6 batches that it has not seen. Every value
that has the code is encoded, and nothing else. "predicted" comes from one step on the first of them
(`rewriter/noise/sensitivity.py`). "added" is what counts for the error budget: the same as a share of the gradient's
variance between batches, or of its elements' in the mean, whichever is more. Rows of "levels" are GELU's derivative in
levels that fit no data (`peer_levels.py`), put into eager: nothing is planned or predicted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.models.corpus import sample_bytes

from benchmarks.approximate.force_encoded import Batch, EncodingPicker, all_encoded, named
from benchmarks.approximate.kept_bytes import kept_bytes
from benchmarks.approximate.peer_levels import Levels, peers, with_levels
from benchmarks.eager_baseline import gradient_error

_TOKENS, _BATCH, _HELD_OUT = 128, 16, 6
_SIZES = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": _TOKENS, "vocab_size": 256}
GELUS: Mapping[str, tuple[EncodingPicker, ...]] = {
    "nothing": (),
    **{f"GELU's derivative, {bits} bits": (named(f"{bits}-bit gelu_tanh'"),) for bits in (1, 2, 3, 4)},
}
OTHERS: Mapping[str, tuple[EncodingPicker, ...]] = {
    **{f"inputs of products, {bits} bits": (named(f"{bits}-bit groups", only_products=True),) for bits in (8, 4, 3, 2)},
    **{f"the same, spread, {bits} bits": (named(f"{bits}-bit groups, spread", only_products=True),) for bits in (4, 2)},
    **{f"everything, {bits} bits": (named(f"{bits}-bit groups"),) for bits in (8, 4, 2)},
    **{f"{share:g} of rows": (named(f"{share:g} of rows, without_replacement"),) for share in (0.5, 0.2, 0.1)},
}


def main() -> None:
    """Train, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training before gradients are compared")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of training: wider activations if larger")
    parser.add_argument("--batch", type=int, default=_BATCH, help="sequences of each batch that gradients are of")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="only rows that have one in their name")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    options = parser.parse_args()
    if options.batch < 1:
        parser.error(f"--batch {options.batch} is less than 1: a gradient needs a sequence")
    training, held_out = byte_batches(options.steps, options.batch)
    model = trained(training, options.learning_rate)
    print(f"{'':<32} {'kept, MB':>9} {'error²':>9} {'predicted':>10} {'added':>9}")
    row_makers: dict[str, Callable[[str], dict[str, Any]]] = {
        **{name: partial(row, model, held_out, kinds=kinds) for name, kinds in GELUS.items()},
        **{name: partial(peer_row, model, held_out, levels=levels) for name, levels in peers().items()},
        **{name: partial(row, model, held_out, kinds=kinds) for name, kinds in OTHERS.items()},
    }
    rows = [make_row(name) for name, make_row in row_makers.items() if any(text in name for text in options.only)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def byte_batches(steps: int, batch: int) -> tuple[list[Batch], list[Batch]]:
    """Return bytes of the standard library's sources without overlap, to train on and to test on."""
    count = steps * _BATCH + _HELD_OUT * batch
    text = bytearray(sample_bytes(count * _TOKENS))
    ids = torch.frombuffer(text, dtype=torch.uint8).long().view(-1, _TOKENS)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    training, held_out = ids.split([steps * _BATCH, _HELD_OUT * batch])
    return _as_batches(training, _BATCH), _as_batches(held_out, batch)


def _as_batches(ids: torch.Tensor, size: int) -> list[Batch]:
    return [{"input_ids": part, "labels": part} for part in ids.split(size)]


def trained(batches: Sequence[Batch], learning_rate: float) -> Any:
    """Return the model after a step of AdamW on each batch, in eager."""
    torch.manual_seed(0)
    model: Any = build_model("gpt2", overrides=_SIZES).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def row(model: Any, batches: Sequence[Batch], name: str, kinds: Sequence[EncodingPicker]) -> dict[str, Any]:
    """Print and return one line of the table, for all values that one of the kinds encodes."""
    small, plan = all_encoded(model, batches[0], *kinds)
    sensitivity = small.lowtide.planned.measured.sensitivity
    return printed(
        {
            "name": name,
            "kept_bytes": kept_bytes(plan),
            "values": len(plan.encoded),
            "squared_error": mean_error(model, small, batches),
            "predicted": small.lowtide.planned.noise_energy / sensitivity.squared_gradient,
            "added": plan.encoding_error,
        }
    )


def peer_row(model: Any, batches: Sequence[Batch], name: str, levels: Levels) -> dict[str, Any]:
    """Print and return one line of the table, for GELU's derivative in levels known beforehand."""
    return printed({"name": name, "squared_error": mean_error(model, with_levels(model, levels), batches)})


def mean_error(model: Any, other: Any, batches: Sequence[Batch]) -> float:
    """Return the mean over batches of ‖ĝ − g‖² / ‖g‖²."""
    return statistics.fmean(gradient_error(model, other, batch, seed) ** 2 for seed, batch in enumerate(batches))


def printed(figures: dict[str, Any]) -> dict[str, Any]:
    """Print a line of the table and return its figures."""
    kept, predicted, added = "–", "–", "–"
    if "kept_bytes" in figures:
        kept, predicted = f"{figures['kept_bytes'] / 1e6:.1f}", f"{figures['predicted']:.1e}"
        added = f"{figures['added']:.2%}"
    print(f"{figures['name']:<32} {kept:>9} {figures['squared_error']:>9.1e} {predicted:>10} {added:>9}", flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(main())
