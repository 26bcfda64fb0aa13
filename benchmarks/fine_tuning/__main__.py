"""Fine-tuning with approximate gradients compared with exact ones: accuracy, peak, step time, predicted variance.

    python -m benchmarks.fine_tuning [TASK ...] [--seeds 3] [--rounds 15] [--quick] [--json FILE] [--picture FILE.png]

In the form of "Few-bit Backward" (arXiv 2202.00441) and "Memory-Efficient Backpropagation through Large Linear Layers"
(arXiv 2201.13195): a TASK of benchmarks/fine_tuning/tasks.py is trained for some epochs with exact gradients. From
there it is trained with each setting of benchmarks/fine_tuning/settings.py, in the same order of samples. The optimizer
is AdamW with a learning rate that falls linearly to 0. Accuracy is that of the held-out samples after the last epoch.
"- exact" is the difference to exact gradients of the same seed. Loss is the mean over the last epoch's steps. All are
mean ± standard deviation over seeds (of weights, order and noise). "kept" is what lies between forward and backward.
Peaks are bytes above the start of the step, measured to the byte. Times are medians over rounds, all settings in turn
in one process, each divided by exact's in the same round. "exact" keeps everything and encodes nothing. "added" is the
predicted variance that the codes add to the gradient, as a share of its variance between batches, at the start of
fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.approximate.force_encoded import all_encoded
from benchmarks.approximate.kept_bytes import kept_bytes
from benchmarks.eager_baseline import peak_bytes, time_ratios
from benchmarks.fine_tuning.picture import draw
from benchmarks.fine_tuning.settings import SETTINGS, Setting
from benchmarks.fine_tuning.table import print_table
from benchmarks.fine_tuning.tasks import TASKS, Data, Task

_QUICK = ("exact", "derivatives, 2 bits", "rows, 0.1 kept", "all values, 2 bits")
_TEST_BATCH = 128
State = Mapping[str, Tensor]


@dataclass
class Row:
    """A line of the table.

    encoded: how many values have the code; 0, without a measurement, where none could.
    kept_bytes: what is kept when backward begins.
    kept_ratio, peak_ratio, time_ratio: relative to exact's.
    accuracies, losses: one for each seed.
    """

    name: str
    family: str
    amount: str
    encoded: int = 0
    kept_bytes: int = 0
    peak_bytes: int = 0
    kept_ratio: float = 0.0
    peak_ratio: float = 0.0
    time_ratio: float = 0.0
    added: float = 0.0
    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, print and save."""
    options = _options(arguments)
    reports = []
    for name in options.tasks or TASKS:
        started = time.perf_counter()
        task = TASKS[name]()
        settings = [setting for setting in SETTINGS if setting.name in _QUICK] if options.quick else SETTINGS
        report = fine_tuning(task, settings, seeds=options.seeds, rounds=options.rounds)
        print_table(report)
        print(f"{time.perf_counter() - started:.0f} s\n", flush=True)
        reports.append(report)
        if options.json:
            options.json.write_text(json.dumps(reports, indent=1) + "\n")
    if options.picture:
        draw(reports, options.picture)


def fine_tuning(task: Task, settings: Sequence[Setting], *, seeds: int, rounds: int) -> dict[str, Any]:
    """Measure everything about one task.

    settings: exact first. Each is planned once, at the first seed's start, and trained from each seed's start.
    """
    _show_progress(f"{task.name}: exact epochs")
    starts = [_start(task, seed) for seed in range(seeds)]
    model = task.build(0)
    model.load_state_dict(starts[0])
    batch = next(task.batches(0))
    rows, runners = [], {"eager": model}
    for setting in settings:
        _show_progress(f"{task.name}: {setting.name}")
        rows.append(Row(setting.name, setting.family, setting.amount))
        small = _planned(setting, model, batch, rows[-1])
        if small is not None:
            _train_from(starts, small, task, rows[-1])
            runners[setting.name] = small
    _show_progress(f"{task.name}: step times")
    eager = {"peak_ratio": peak_bytes(model, batch) / rows[0].peak_bytes}
    eager["time_ratio"] = _compare(rows, time_ratios(runners, batch, rounds))
    _show_progress("")
    return {
        "task": task.name,
        "description": task.description,
        "epochs": task.epochs,
        "samples": [len(task.train["labels"]), len(task.test["labels"])],
        "batch_size": task.batch_size,
        "learning_rate": task.learning_rate,
        "seeds": seeds,
        "rounds": rounds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "start": [_accuracy_at(task, start) for start in starts],
        "eager": eager,
        "rows": [asdict(row) for row in rows],
    }


def _planned(setting: Setting, model: nn.Module, batch: dict[str, Tensor], row: Row) -> Any:
    """Return the model with the setting's codes, or None if no value has them; write its bytes into the row."""
    try:
        small, plan = all_encoded(model, batch, *setting.kinds)
    except ValueError as error:
        if "no value of the step has such an encoding" not in str(error):
            raise
        return None
    row.encoded, row.added = len(plan.encoded), plan.encoding_error
    row.kept_bytes = kept_bytes(plan)
    row.peak_bytes = peak_bytes(small, batch)
    return small


def _train_from(starts: Sequence[State], small: Any, task: Task, row: Row) -> None:
    """Train from each start, and go back to the first."""
    for seed, start in enumerate(starts):
        small.load_state_dict(start)
        row.losses.append(train(small, task, range(task.epochs[0], sum(task.epochs)), seed, decays=True))
        row.accuracies.append(accuracy(small, task.test))
    small.load_state_dict(starts[0])


def train(model: Any, task: Task, epochs: range, seed: int, *, decays: bool) -> float:
    """Take a step of AdamW on each batch of these epochs; return the mean loss of the last epoch.

    decays: whether the learning rate falls linearly to 0.
    """
    model.train()
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate)
    last = 0.0 if decays else 1.0
    steps = len(epochs) * (len(task.train["labels"]) // task.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, total_iters=steps)
    losses: list[float] = []
    for epoch in epochs:
        losses = []
        for batch in task.batches(1000 * seed + epoch):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return statistics.fmean(losses)


def accuracy(model: Any, data: Data) -> float:
    """Return the share of samples whose class the model predicts, in evaluation mode."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(data["labels"]), _TEST_BATCH):
            part = {name: tensor[start : start + _TEST_BATCH] for name, tensor in data.items()}
            right += int((model(**part).logits.argmax(1) == part["labels"]).sum())
    model.train()
    return right / len(data["labels"])


def _start(task: Task, seed: int) -> State:
    """Return parameters and buffers after the exact epochs."""
    model = task.build(seed)
    train(model, task, range(task.epochs[0]), seed, decays=False)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _accuracy_at(task: Task, start: State) -> float:
    model = task.build(0)
    model.load_state_dict(start)
    return accuracy(model, task.test)


def _compare(rows: Sequence[Row], ratios: Mapping[str, Sequence[float]]) -> float:
    """Write each row's bytes and time relative to exact's; return eager's time relative to it."""
    exact = ratios[rows[0].name]
    for row in rows:
        if row.peak_bytes:
            row.kept_ratio = row.kept_bytes / rows[0].kept_bytes
            row.peak_ratio = row.peak_bytes / rows[0].peak_bytes
            row.time_ratio = statistics.median(map(float.__truediv__, ratios[row.name], exact))
    return statistics.median(1 / ratio for ratio in exact)


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="\n" if not text else "", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; by default all")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which a step of each is timed, in turn")
    parser.add_argument("--json", type=Path, help="where to write everything measured")
    parser.add_argument("--picture", type=Path, help="where to draw accuracy against peak")
    parser.add_argument(
        "--quick", action="store_true", help="one seed and a setting of each kind, to see that it works"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"no task is called {', '.join(sorted(unknown))}: name some of {', '.join(TASKS)}")
    if options.seeds < 1 or options.rounds < 1:
        parser.error("--seeds and --rounds must be at least 1")
    if options.quick:
        options.seeds, options.rounds = 1, min(options.rounds, 5)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    return options


if __name__ == "__main__":
    sys.exit(main())
