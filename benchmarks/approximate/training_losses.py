"""The loss at which training ends with approximate gradients, compared with exact ones, over several seeds.

    python -m benchmarks.approximate.training_losses [--names gpt2 roberta llama] [--steps 120] [--seeds 3]
        [--error-budget 0.01] [--json FILE]

The models of `kept_bytes.py` (4 layers, d 256) have the dropout of their configurations. They train on the standard
library's sources, in batches of 4 × 128 tokens without overlap. GPT-2 and Llama predict the next token, RoBERTa (built
as RobertaForMaskedLM) the 15 % that are masked. The optimizer is AdamW. Its learning rate rises to 5e-4 over the first
quarter, and gradients are clipped to a norm of 1. With 1e-3 from the first step on, exact losses of two seeds differ by
half a nat. Exact is eager. Approximate is lowtide with the plan that keeps least within the error budget and runs no
matrix product twice. That plan is made once, at the first seed's start. A seed sets the weights and each step's random
numbers, the same for both. All seeds see the same batches in the same order. The loss is the mean over the last fifth
of the steps.

"added" is the variance that codes add to the gradient, as a share of its variance from batch to batch: predicted at the
start, measured there on some of the batches, and measured where exact training ended. "of an element" is the share of a
single element's variance that is noise of codes, in the mean. AdamW divides each element by its own size, so this is
what it sees. A sum over all parameters hides it where some have much smaller gradients than others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from lowtide.rewriter.models.batches import sample_batch
from torch import Tensor

from benchmarks.approximate.kept_bytes import MODELS, built, least_kept, products_again
from benchmarks.eager_baseline import clear_gradients, step_of

_ROWS, _TOKENS, _RATE, _LONGEST = 4, 128, 5e-4, 1.0
_COMPARED = 12  # batches on which the added variance is measured
_LEAST_STEPS = 20
Batches = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Report:
    """The last losses of each seed of one model, what is encoded, and what that adds (shares of the own variance).

    measured: at the start and at the end, of all together and of single elements.
    """

    name: str
    steps: int
    exact: list[float]
    approximate: list[float]
    encoded: int
    kept_ratio: float
    products_again: int
    predicted: float
    measured: list[tuple[float, float]]

    @property
    def deviation(self) -> float:
        """The standard deviation of exact losses over seeds."""
        return statistics.stdev(self.exact)

    @property
    def difference(self) -> float:
        """The mean approximate loss less the mean exact one."""
        return statistics.fmean(self.approximate) - statistics.fmean(self.exact)

    @property
    def is_within(self) -> bool:
        """Return whether the means differ by at most one standard deviation of the exact losses."""
        return abs(self.difference) <= self.deviation


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print a table."""
    options = _options(arguments)
    reports = []
    for name in options.names:
        reports.append(report_of(name, options.steps, options.seeds, options.error_budget))
        print(format_report(reports[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(report) for report in reports], indent=1) + "\n")
    held = sum(report.is_within for report in reports)
    print(f"within one standard deviation of exact: {held} of {len(reports)}; torch {torch.__version__}")


def report_of(name: str, steps: int, seeds: int, error_budget: float) -> Report:
    """Train one model with each seed, exactly and approximately. seeds: at least 2."""
    model: Any = built(name)
    batches = batches_of(model, steps)
    small = least_kept(model, batches[0], "approximate", error_budget=error_budget)
    measured = [added_variance(model, small, batches[-_COMPARED:])]
    losses: dict[str, list[float]] = {"exact": [], "approximate": []}
    ended: dict[str, Tensor] = {}
    for seed in range(seeds):
        start = built(name, seed).state_dict()
        for method, trained_model in (("exact", model), ("approximate", small)):
            trained_model.load_state_dict(start)
            losses[method].append(last_loss(trained_model, batches, seed))
            if method == "exact":
                ended = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            print(f"  {name}, seed {seed}, {method}: {losses[method][-1]:.4f}", file=sys.stderr, flush=True)
    model.load_state_dict(ended)
    small.load_state_dict(ended)
    measured.append(added_variance(model, small, batches[-_COMPARED:]))
    plan = small.plan
    return Report(
        name,
        steps,
        **losses,
        encoded=len(plan.encoded),
        kept_ratio=plan.packed_bytes / plan.original_bytes if plan.encoded else 1.0,
        products_again=products_again(plan),
        predicted=plan.encoding_error,
        measured=measured,
    )


def batches_of(model: Any, steps: int) -> list[dict[str, Tensor]]:
    """Return `steps` batches of running text without overlap, their rows in random order."""
    rows = sample_batch(model, _ROWS * steps, _TOKENS)
    order = torch.randperm(_ROWS * steps, generator=torch.Generator().manual_seed(0)).split(_ROWS)
    return [{name: tensor[some].contiguous() for name, tensor in rows.items()} for some in order]


def last_loss(model: Any, batches: Batches, seed: int) -> float:
    """Take a step of AdamW on each batch, each with its own random numbers; return the mean loss of the last fifth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, total_iters=max(len(batches) // 4, 1))
    losses = []
    for step, batch in enumerate(batches):
        torch.manual_seed(len(batches) * seed + step)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LONGEST)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return statistics.fmean(losses[-max(len(batches) // 5, 1) :])


def added_variance(model: Any, small: Any, batches: Batches) -> tuple[float, float]:
    """Compare the mean of ‖ĝ − g‖² over the batches with the variance of g from one batch to the next.

    Return their ratio for the whole gradient, and the share of both that is noise for single elements. The share is the
    mean over the elements that are not the same in all batches.
    """
    gradients, errors = [], []
    for seed, batch in enumerate(batches):
        exact, approximate = (_gradient(module, batch, seed) for module in (model, small))
        gradients.append(exact)
        errors.append((approximate - exact).square_())
    variance, error = torch.stack(gradients).var(0).double(), torch.stack(errors).mean(0).double()
    single = (error / (error + variance))[variance > 0]
    return float(error.sum() / variance.sum()), float(single.mean())


def _gradient(model: Any, batch: dict[str, Tensor], seed: int) -> Tensor:
    clear_gradients(model)
    torch.manual_seed(seed)
    step_of(model, batch)()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    clear_gradients(model)
    return gradient


def format_report(report: Report) -> str:
    """Return a line for each seed, and a summary."""
    at_start, at_end = (f"{whole:.2%} ({single:.0%} of an element)" for whole, single in report.measured)
    lines = [
        f"{report.name}: {report.steps} steps; {report.encoded} values in {report.kept_ratio:.2f} of their bytes, "
        f"{report.products_again} products again",
        f"{'':<9} added: {report.predicted:.2%} predicted; measured {at_start}, and {at_end} where exact ended",
        f"{'':<9} {'exact':>17} {'approximate':>17} {'difference':>11}",
    ]
    for seed, (exact, approximate) in enumerate(zip(report.exact, report.approximate, strict=True)):
        lines.append(f"{f'seed {seed}':<9} {exact:>17.4f} {approximate:>17.4f} {approximate - exact:>+11.4f}")
    exact, approximate = (
        f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}"
        for losses in (report.exact, report.approximate)
    )
    verdict = "within" if report.is_within else "NOT within"
    share = abs(report.difference) / report.deviation
    lines.append(
        f"{'mean ± sd':<9} {exact:>17} {approximate:>17} {report.difference:>+11.4f}  "
        f"{share:.2f} sd of exact: {verdict} one"
    )
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", metavar="NAME", default=list(MODELS), help=f"of: {', '.join(MODELS)}")
    parser.add_argument("--steps", type=int, default=120, help=f"of training, {_LEAST_STEPS} at least")
    parser.add_argument("--seeds", type=int, default=3, help="2 at least")
    parser.add_argument("--error-budget", type=float, default=0.01, help="as a share of the gradient's own variance")
    parser.add_argument("--json", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in MODELS]:
        parser.error(f"there is no model {unknown[0]!r}: choose among {', '.join(MODELS)}")
    if options.steps < _LEAST_STEPS or options.seeds < 2:
        parser.error(f"--steps must be {_LEAST_STEPS} and --seeds 2 at least, to have a last fifth and a deviation")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    return options


if __name__ == "__main__":
    sys.exit(main())
