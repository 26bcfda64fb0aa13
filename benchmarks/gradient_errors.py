"""How far approximate gradients are from exact ones, for each kind of code by itself, predicted and measured.

    python -m benchmarks.gradient_errors [--steps 300] [--json FILE]

A byte-level language model (GPT-2's architecture, 4 layers, d 128) is trained for 300 steps on the sources of the
standard library; then, on 6 batches that it has not seen, ‖ĝ − g‖² / ‖g‖² over all gradients, with every value that has
the code encoded and nothing else. "predicted" is what one step on the first of them foretells
(`rewriter/sensitivity.py`), "added" what counts for the error budget: the same as a share of the variance that the
gradient has between batches, or its elements have in the mean, whichever is more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lowtide.rewriter.models import build_model
from lowtide.rewriter.sample_text import sample_bytes

from benchmarks.all_encoded import Wanted, all_encoded, named
from benchmarks.beside_eager import gradient_error
from benchmarks.kept_bytes import kept_bytes

_TOKENS, _BATCH, _HELD_OUT = 128, 16, 6
_SIZES = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": _TOKENS, "vocab_size": 256}
KINDS: Mapping[str, tuple[Wanted, ...]] = {
    "nothing": (),
    **{f"GELU's derivative, {bits} bits": (named(f"{bits}-bit gelu_tanh'"),) for bits in (1, 2, 3, 4)},
    **{f"inputs of products, {bits} bits": (named(f"{bits}-bit groups", only_products=True),) for bits in (8, 4, 3, 2)},
    **{f"the same, spread, {bits} bits": (named(f"{bits}-bit groups, spread", only_products=True),) for bits in (4, 2)},
    **{f"everything, {bits} bits": (named(f"{bits}-bit groups"),) for bits in (8, 4, 2)},
    **{f"{share:g} of rows": (named(f"{share:g} of rows, without_replacement"),) for share in (0.5, 0.2, 0.1)},
}


def main() -> None:
    """Trains, measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training before gradients are compared")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    options = parser.parse_args()
    batches = byte_batches(options.steps + _HELD_OUT)
    model = trained(batches[: options.steps])
    print(f"{'':<32} {'kept, MB':>9} {'error²':>9} {'predicted':>10} {'added':>9}")
    rows = [row(model, batches[options.steps :], name, kinds) for name, kinds in KINDS.items()]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def byte_batches(count: int) -> list[dict[str, torch.Tensor]]:
    """Bytes of the standard library's sources, in batches without overlap."""
    text = bytearray(sample_bytes(count * _BATCH * _TOKENS))
    ids = torch.frombuffer(text, dtype=torch.uint8).long().view(-1, _TOKENS)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))].view(count, _BATCH, _TOKENS)
    return [{"input_ids": one, "labels": one} for one in ids]


def trained(batches: Sequence[Mapping[str, torch.Tensor]]) -> Any:
    """The model after a step of AdamW on each batch, in eager."""
    torch.manual_seed(0)
    model: Any = build_model("gpt2", overrides=_SIZES).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def row(model: Any, batches: Sequence[dict[str, torch.Tensor]], name: str, kinds: Sequence[Wanted]) -> dict[str, Any]:
    """One line of the table, printed."""
    small, plan = all_encoded(model, batches[0], *kinds)
    sensitivity = small.lowtide.planned.costs.sensitivity
    predicted = small.lowtide.planned.noise_energy / sensitivity.squared_gradient
    errors = [gradient_error(model, small, batch, seed) ** 2 for seed, batch in enumerate(batches)]
    found = {
        "name": name,
        "kept_bytes": kept_bytes(plan),
        "values": len(plan.encoded),
        "squared_error": sum(errors) / len(errors),
        "predicted": predicted,
        "added": plan.encoding_error,
    }
    print(
        f"{name:<32} {found['kept_bytes'] / 1e6:>9.1f} {found['squared_error']:>9.1e} {predicted:>10.1e} "
        f"{plan.encoding_error:>9.2%}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
