"""Tests the sweep over models on a few: its comparisons, its records of failures, and its processes."""

import copy
import json
import os
import random
import sys

import lowtide
import pytest
import torch
from torch import nn

from benchmarks.models.__main__ import main
from benchmarks.models.case import Case, NotBuilt, Subject
from benchmarks.models.record import VERDICTS, Record, kind_of
from benchmarks.models.selection import FAMILIES, matching
from benchmarks.models.steps import differences, run_step, trained
from benchmarks.models.tables import markdown, planned_whole, summary
from benchmarks.models.trial import Limits, Trial
from benchmarks.models.worker import Bounds, Worker


def batch(number):
    return (torch.randn(4, 8, generator=torch.Generator().manual_seed(number)),), {}


def perceptron():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


def tried(build, **limits):
    stages = []
    trial = Trial(Case("torch/made", "made", lambda: Subject(build(), batch)), Limits(**limits), stages.append)
    record = trial.run()
    assert record.stage == stages[-1]
    return record


@pytest.fixture(scope="module")
def exact():
    return tried(perceptron)


def test_a_model_is_planned_whole(exact):
    assert exact.verdict == "exact" and exact.text == exact.kind == "" and exact.different_count == 0
    assert exact.measured_peak_bytes == exact.predicted_peak_bytes <= exact.budget_bytes
    assert exact.parameters == 8 * 16 + 16 + 16 * 4 + 4 and exact.tensors == exact.tensors_with_gradient == 4
    assert exact.operations > 0 and exact.eager_peak_bytes > 4 * exact.parameters
    assert set(exact.seconds) == {"building", "eager", "planning", "running", "measuring"}


def test_only_eager_runs_where_that_is_asked_for():
    record = tried(perceptron, is_eager_only=True)
    assert record.verdict == "exact" and set(record.seconds) == {"building", "eager"}


def test_a_refusal_is_lowtides_own_error():
    class Drawing(nn.Linear):
        def forward(self, x):
            return super().forward(x) * random.random()

    record = tried(lambda: Drawing(8, 8))
    assert record.verdict == "refused" and record.text.startswith("CaptureError: ") and record.stage == "planning"


def test_any_other_exception_is_a_crash(monkeypatch):
    def fail(*_args, **_kwargs):
        raise KeyError("source")

    monkeypatch.setattr(lowtide, "rewrite", fail)
    record = tried(perceptron)
    assert record.verdict == "crashed" and "KeyError" in record.text
    assert record.kind == "KeyError: '…' in test_models.py fail" and record.where.startswith("test_models")


@pytest.mark.parametrize(
    ("error", "kind"), [(1e-6, "gradient: as by rounding"), (0.1, "buffer, gradient, output: wrong")]
)
def test_a_wrong_gradient_is_seen(monkeypatch, error, kind):
    rewrite = lowtide.rewrite

    class WithBuffer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.norm = perceptron(), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.layers(x))

    def nudged(model, *args, **kwargs):
        small = rewrite(model, *args, **kwargs)
        small.layers[0].weight.register_hook(lambda gradient: gradient * (1 + error))
        return small

    monkeypatch.setattr(lowtide, "rewrite", nudged)
    record = tried(WithBuffer)
    assert record.verdict == "different" and record.different_count > 0
    # Its effects in the second step, on buffers and outputs, are reported as well.
    assert record.kind.split(":")[1] == kind.split(":")[1] and "gradient" in record.kind
    assert record.differences[0][:2] == (0, "gradient of layers.0.weight")
    assert record.differences[0][2] == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize(("more_bytes", "verdict"), [(1, "over prediction"), (10**6, "over budget")])
def test_a_peak_above_prediction_or_budget_is_seen(monkeypatch, more_bytes, verdict):
    from benchmarks.models import trial

    measure = trial.peak_above_start
    monkeypatch.setattr(trial, "peak_above_start", lambda *args: measure(*args) + more_bytes)
    record = tried(perceptron, budget="100%")
    # With everything kept and no bytes to spare, the budget is the peak.
    assert record.verdict == ("over budget" if record.budget_bytes == record.predicted_peak_bytes else verdict)
    assert record.measured_peak_bytes == record.predicted_peak_bytes + more_bytes


def test_eager_that_varies_is_recognized():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x) * Counting.calls

    record = tried(lambda: Counting(8, 8))
    assert record.verdict in ("eager varies", "different") and "gradient of weight" in record.varying


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: nn.Linear(8, 8).requires_grad_(False), "no output requires a gradient"),
        (lambda: nn.Linear(7, 8), "shapes cannot be multiplied"),
        (lambda: (_ for _ in ()).throw(NotBuilt("too large")), "too large"),
    ],
)
def test_what_eager_cannot_do_does_not_count(build, text):
    record = tried(build)
    assert record.verdict == "not built" and text in record.text and not record.is_counted


def test_differences_are_to_the_bit():
    subject = Subject(perceptron(), batch)
    left, right = (trained(copy.deepcopy(subject.model), subject) for _ in range(2))
    assert differences(left, right) == []
    right[1]["buffer lost"] = torch.ones(2)
    gradient = right[0]["gradient of 0.bias"]
    gradient[0] = torch.nextafter(gradient[0], torch.tensor(9.0))
    errors = {(difference.step, difference.what): difference.error for difference in differences(left, right)}
    assert set(errors) == {(0, "gradient of 0.bias"), (1, "buffer lost")} and errors[1, "buffer lost"] == float("inf")
    assert 0 < errors[0, "gradient of 0.bias"] < 1e-6


def test_backward_starts_at_the_loss_or_at_all_outputs():
    class Two(nn.Linear):
        def forward(self, x, has_loss):
            y = super().forward(x)
            return {"loss": y.square().mean(), "logits": y} if has_loss else (y, [y * 2])

    model = Two(8, 8)
    assert set(run_step(model, ((torch.ones(4, 8), True), {}))) == {"loss", "logits"}
    loss_alone, model.weight.grad = model.weight.grad, None
    assert set(run_step(model, ((torch.ones(4, 8), False), {}))) == {"[0]", "[1][0]"}
    assert loss_alone is not None and not torch.equal(loss_alone, model.weight.grad)


def test_kinds_leave_out_what_is_particular():
    first = "CaptureError: decides by encoder.layers.3.weight, in bert.encoder (/a/modeling_bert.py:12: if x[3] > 0.5:)"
    second = "CaptureError: decides by h.0.weight, in gpt.h (/b/c.py:7: if y:)"
    assert kind_of(first) == kind_of(second)
    assert kind_of("KeyError: 'source'") == "KeyError: '…'"


# Processes. The far end is a script that follows the protocol or breaks it.

_FAR_END = """
import json, os, signal, sys, time
for name in sys.stdin:
    name = name.strip()
    print(json.dumps({"stage": "building"}), flush=True)
    if name == "early": os.kill(os.getpid(), signal.SIGSEGV)
    print(json.dumps({"stage": "planning"}), flush=True)
    if name == "late": os.kill(os.getpid(), signal.SIGSEGV)
    while name == "busy": pass
    print(json.dumps({"name": name, "verdict": "exact", "text": str(os.getpid())}), flush=True)
"""


@pytest.fixture
def worker():
    worker = Worker([sys.executable, "-c", _FAR_END], Bounds(seconds=0.3, models=2), dict(os.environ))
    yield worker
    worker.close()


def test_a_process_that_dies_ends_one_trial(worker):
    assert worker.attempt("early").verdict == "not built"  # before lowtide has run
    lost = worker.attempt("late")
    assert (lost.verdict, lost.stage, lost.text) == ("crashed", "planning", "the process ended with SIGSEGV")
    assert worker.attempt("fine").verdict == "exact"


def test_a_process_that_hangs_is_ended(worker):
    hung = worker.attempt("busy")
    assert (hung.verdict, hung.stage) == ("crashed", "planning") and "0.3 s" in hung.text
    assert worker.attempt("fine").verdict == "exact"


def test_a_process_is_replaced_after_some_models(worker):
    first, second, third = (worker.attempt(name).text for name in "abc")
    assert first == second != third


# The whole sweep.


def records():
    """Return a record of each verdict."""
    return [Record(f"torch/{n}", verdict=verdict, text="a | b", kind="k") for n, verdict in enumerate(VERDICTS)]


def test_only_models_that_train_in_eager_count():
    assert planned_whole(records()) == (1, len(VERDICTS) - 2)
    text = summary([*records(), Record("timm/a", verdict="exact")])
    assert "planned whole: 2 of 8" in text and "all" in text


def test_the_page_has_a_row_for_each_model():
    page = markdown(records())
    assert page.count("| torch/0 |") == 1 and r"| torch/1 | refused | a \| b |" in page
    assert "| torch | 9 |" in page


def test_models_are_picked_by_pattern():
    assert [case.name for case in matching(["torch"], ["torch/perceptron-G*"])] == ["torch/perceptron-GELU"]
    assert len(matching(["torch"], ["perceptron"])) > 5 and len(matching(["torch"], None)) > 30
    assert set(FAMILIES) >= {"torch", "transformers", "timm", "torchvision", "diffusers"}


def test_a_sweep_is_written_and_taken_up_again(tmp_path, capsys):
    out, page = tmp_path / "out.jsonl", tmp_path / "page.md"
    assert main(["--only", "torch/perceptron-ReLU", "--family", "torch", "--out", str(out), "--table", str(page)]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (
        row["verdict"] == "exact" and row["torch"] == torch.__version__ and "torch/perceptron-ReLU" in page.read_text()
    )
    row["verdict"] = "different"
    out.write_text(json.dumps(row) + "\n")
    # Nothing is left to try: the file does not change, and says that the promise is broken.
    assert main(["--only", "torch/perceptron-ReLU", "--family", "torch", "--resume", str(out)]) == 1
    assert "planned whole: 0 of 1" in capsys.readouterr().out


def test_configurations_become_small():
    transformers = pytest.importorskip("transformers")
    from benchmarks.models.cases.of_transformers.sizes import Shrinking, Size

    rotation = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text_config = {"rope_parameters": rotation, "num_key_value_heads": 8}
    small = Shrinking(Size(16)).shrink(transformers.Qwen2VLConfig(text_config=text_config))
    text, vision = small.text_config, small.vision_config
    assert text.hidden_size <= 1024 and text.num_hidden_layers == vision.depth == 2
    assert 2 * sum(text.rope_parameters["mrope_section"]) == text.hidden_size // text.num_attention_heads
    ids = [small.image_token_id, small.video_token_id, small.vision_start_token_id, small.vision_end_token_id]
    assert len(set(ids)) == 4 and max(ids) < text.vocab_size


def test_a_batch_follows_the_signature():
    from benchmarks.models.cases.of_transformers.cases import Head, build

    subject = build(Head("bert", "token class", "BertForTokenClassification"))
    (args, first), (_, again), (_, other) = subject.batch(0), subject.batch(0), subject.batch(1)
    assert not args and set(first) == {"input_ids", "attention_mask", "labels"}
    assert (
        first["labels"].shape == first["input_ids"].shape and first["attention_mask"].sum() < first["input_ids"].numel()
    )
    assert torch.equal(first["input_ids"], again["input_ids"]) and not torch.equal(first["labels"], other["labels"])
