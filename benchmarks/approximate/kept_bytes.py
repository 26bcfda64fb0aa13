"""The bytes kept for backward: in eager, in lowtide with no matrix product run twice, and the least possible.

    python -m benchmarks.approximate.kept_bytes [NAME ...] [--rounds 9] [--json FILE]

gpt2, roberta (eager attention, default dropout) and llama (fused attention, intermediate 688): 4 layers, d 256, 8
heads, vocabulary 2500, batch 8 × 256. Counted are storages alive between forward and backward, parameters, buffers and
inputs excluded: for eager what `saved_tensors_hooks` sees, for lowtide what lies on its tape. lowtide is planned with
`outputs=["loss"]` to keep as little as it can with no matrix product, convolution or attention run twice. Those are
marked as not repeatable, and enough bytes are added at the boundary between forward and backward to make it the peak.
Times are medians over rounds, all in turn, of a step's time divided by eager's in the same round.

The ceiling is arithmetic: each value that backward needs once, among the results of matrix products and attention and
the streams between layers. Masks are drawn again. A normalization needs its input or its output. The logits need not be
returned, so only the gradients of the last product's operands count for them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lowtide
import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.plan.options import Options
from lowtide.rewriter.plan.planner import StepPlanner
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.plan import Plan
from lowtide.solvers.problem.problem import Problem
from lowtide.solvers.problem.schedule import Run
from lowtide.solvers.problem.simulate import baseline_of, make_plan

from benchmarks.eager_baseline import error_text, gradient_error, ratio_text, rounds_text, time_ratios

_TOKENS, _WIDTH, _HEADS, _LAYERS, _VOCABULARY = 8 * 256, 256, 8, 4, 2500
_ENCODER = {"num_hidden_layers": _LAYERS, "hidden_size": _WIDTH, "num_attention_heads": _HEADS}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": _LAYERS, "n_embd": _WIDTH, "n_head": _HEADS, "attn_implementation": "eager"},
    "roberta": {**_ENCODER, "intermediate_size": 4 * _WIDTH, "attn_implementation": "eager"},
    "llama": {**_ENCODER, "num_key_value_heads": _HEADS, "intermediate_size": 688, "attn_implementation": "sdpa"},
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(MODELS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds in which each runs once, in turn")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"there is no model {unknown[0]!r}: choose among {', '.join(MODELS)}")
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds} has no quartiles: pass 2 at least")
    print(f"{'':<22} {'kept, MB':>9} {'eager /':>8} {'products again':>15} {'step time / eager':>24}  gradients")
    reports = {name: _rows(name, options.rounds) for name in options.names or MODELS}
    print(rounds_text(options.rounds))
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")


def _rows(name: str, rounds: int) -> list[dict[str, Any]]:
    model = built(name)
    batch = sample_batch(model, 8, 256)
    runners: dict[str, Any] = {"eager": model}
    kept = {"eager": eager_kept_bytes(model, batch)}
    again = {"eager": 0}
    for fidelity in ("bitwise", "rounding", "approximate"):
        small = least_kept(model, batch, fidelity)
        runners[fidelity], again[fidelity] = small, products_again(small.plan)
        kept[fidelity] = kept_bytes(small.plan)
    ratios = time_ratios(runners, batch, rounds)
    rows = []
    for runner in runners:
        error = gradient_error(model, runners[runner], batch)
        rows.append(
            {
                "model": name,
                "name": runner,
                "kept_bytes": kept[runner],
                "ratio": kept["eager"] / kept[runner],
                "products_again": again[runner],
                "time_ratio": statistics.median(ratios[runner]),
                "time_ratio_quartiles": statistics.quantiles(ratios[runner], n=4)[::2],
                "gradient_error": error,
            }
        )
        print(
            f"{name + ', ' + runner:<22} {kept[runner] / 1e6:>9.1f} {kept['eager'] / kept[runner]:>8.2f} "
            f"{again[runner]:>15} {ratio_text(ratios[runner]):>24}  {error_text(error)}",
            flush=True,
        )
    least = ceiling_bytes(name)
    rows.append({"model": name, "name": "ceiling", "kept_bytes": least, "ratio": kept["eager"] / least})
    print(f"{name + ', ceiling':<22} {least / 1e6:>9.1f} {kept['eager'] / least:>8.2f}")
    return rows


def eager_kept_bytes(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Return the bytes of the distinct storages that autograd saves in a forward, without what is there before it."""
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *batch.values())}
    seen: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in given:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch).loss
    del loss
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def kept_bytes(plan: Plan) -> int:
    """Return the bytes that a plan keeps between forward and backward, beyond those before the step."""
    return plan.live_bytes[plan.schedule.forward_length - 1] - plan.problem.resident_bytes


def products_again(plan: Plan) -> int:
    """Count the recomputed matrix products, convolutions and attentions."""
    runs = Counter(instruction.op for instruction in plan.schedule.instructions if isinstance(instruction, Run))
    return sum(count - 1 for op, count in runs.items() if plan.problem.ops[op].compute_intensive)


def built(name: str, seed: int = 0) -> torch.nn.Module:
    """Build one of `MODELS` with random weights, in training mode."""
    model: Any = build_model(name, overrides={**MODELS[name], "vocab_size": _VOCABULARY}, seed=seed).train()
    model.config.use_cache = False
    return model


def least_kept(model: torch.nn.Module, batch: dict[str, torch.Tensor], fidelity: str, **overrides: Any) -> Any:
    """Rewrite the model for the plan that keeps least without a product run twice.

    overrides: options of `rewrite`.
    """
    options = {"fidelity": fidelity, "outputs": ("loss",), **overrides}
    planner, present = StepPlanner.of(model, (), batch, Options(**options))
    plan = min((least_kept_plan(variant.problem) for variant in planner.variants(present)), key=kept_bytes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (), batch, plan=plan, **options)


def least_kept_plan(problem: Problem) -> Plan:
    """Return the plan that keeps least without a product run twice."""
    boundary, room = problem.forward_length, baseline_of(problem).peak_bytes
    ops = tuple(
        replace(
            op,
            repeatable=op.repeatable and not op.compute_intensive,
            working_bytes=op.working_bytes + room * (index == boundary),
        )
        for index, op in enumerate(problem.ops)
    )
    restricted = replace(problem, ops=ops)
    schedule = Portfolio(cache=None).frontier(restricted, 2)[-1].schedule
    return make_plan(problem, schedule, solver="least kept")


def ceiling_bytes(name: str) -> int:
    """Compute the least bytes that backward needs with every product run once."""
    stream = 4 * _TOKENS * _WIDTH
    scores = 4 * _TOKENS * 256 * _HEADS
    wide = 688 if name == "llama" else 4 * _WIDTH
    if name == "llama":  # two streams that are normalized; queries, keys, values; attention's result; gate and up
        layer = 6 * stream + 2 * 4 * _TOKENS * wide
    else:  # the same but for probabilities, and one wide value
        layer = 6 * stream + scores + 4 * _TOKENS * wide
    # the last normalization, less the first stream, which is embeddings; gradients of the last product's operands
    head = stream + 4 * _VOCABULARY * _WIDTH
    return _LAYERS * layer + head


if __name__ == "__main__":
    main()
