"""A module's own checkpoints are plain calls: what runs again is planned by lowtide."""

import threading
from functools import partial

import lowtide
import pytest
import torch
from lowtide.rewriter.capture.torch_internals import checkpoints_passed
from lowtide.rewriter.errors import LowtideWarning
from side_by_side import assert_trains_alike, rewritten
from small_models import small_model
from small_networks import Called
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SAID = "the module's own checkpoints are plain calls"


def rows() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


def saved(_context, operation, *_args, **_kwargs):
    return CheckpointPolicy.MUST_SAVE if operation is torch.ops.aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE


def without_early_stop(m, x):
    with set_checkpoint_early_stop(False):
        return checkpoint(m.net, m.first(x), use_reentrant=False)


def in_half(m, x):
    contexts = lambda: (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.bfloat16))  # noqa: E731
    return checkpoint(m.net, m.first(x), use_reentrant=False, context_fn=contexts).float()


selective = partial(create_selective_checkpoint_contexts, saved)
VARIANTS = {
    "reentrant": lambda m, x: checkpoint(m.net, m.first(x), use_reentrant=True),
    "not reentrant": lambda m, x: checkpoint(m.net, m.first(x), use_reentrant=False),
    "in turn": lambda m, x: checkpoint_sequential(m.net, 2, m.first(x), use_reentrant=False),
    "in turn, reentrant": lambda m, x: checkpoint_sequential(m.net, 2, m.first(x), use_reentrant=True),
    "selective": lambda m, x: checkpoint(m.net, m.first(x), use_reentrant=False, context_fn=selective),
    "without early stop": without_early_stop,
    "in half precision": in_half,
    "nested": lambda m, x: checkpoint(lambda y: checkpoint(m.net, y, use_reentrant=False), x, use_reentrant=False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_ways_to_checkpoint_train_alike(variant):
    small = assert_trains_alike(Called(VARIANTS[variant], net=net(), first=nn.Linear(4, 4)), rows(), budget="1MiB")
    assert any(SAID in note for note in small.plan.problem.notes)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_no_gradient_passes_a_reentrant_checkpoint_whose_arguments_need_none():
    model = Called(lambda m, x: m.last(checkpoint(m.net, x, use_reentrant=True)), net=net(), last=nn.Linear(4, 4))
    small = assert_trains_alike(model, rows(), budget="1MiB")
    assert small.net[0].weight.grad is None and small.last.weight.grad is not None


def test_composable_checkpoints_train_alike():
    composable = pytest.importorskip("torch.distributed._composable")
    model = nn.Sequential(nn.Linear(4, 4), net())
    composable.checkpoint(model[1])
    # The hooks of an inner module are captured, which is said, and leave nothing to do at each step.
    with pytest.warns(lowtide.LowtideWarning, match="hooks on inner modules"):
        assert_trains_alike(model, rows(), budget="1MiB")


@pytest.mark.parametrize("reentrant", [True, False])
def test_statistics_are_updated_once_which_is_said_and_no_failure(reentrant):
    model = Called(
        lambda m, x: checkpoint(m.norm, m.first(x), use_reentrant=reentrant),
        first=nn.Linear(4, 4),
        norm=nn.BatchNorm1d(4),
    )
    report = lowtide.verify(model, "100%", (rows(),), costs="flops")
    assert report.ok and any(SAID in note and "updates them twice" in note for note in report.notes), report
    small = rewritten(model, rows(), budget="1MiB")
    for module in (model, small):
        module(rows()).sum().backward()
    assert (model.norm.num_batches_tracked, small.norm.num_batches_tracked) == (2, 1)


def test_a_real_difference_is_found_despite_checkpoints(monkeypatch):
    from lowtide.rewriter.run.tape import Tape

    plain = Tape.run

    def wrong(self, binding):
        returned = plain(self, binding)
        return tuple(r * 2 if binding.gradients and r is not None else r for r in returned)

    monkeypatch.setattr(Tape, "run", wrong)
    model = Called(VARIANTS["not reentrant"], net=net(), first=nn.Linear(4, 4))
    assert not lowtide.verify(model, "100%", (rows(),), costs="flops", steps=1).same_results


def test_checkpointing_of_transformers_is_verified():
    model, kwargs = small_model("gpt2", layers=2)
    model.gradient_checkpointing_enable()
    with pytest.warns(LowtideWarning, match="hooks on inner modules do not fire .*: transformer.wte"):
        report = lowtide.verify(
            model, "90%", (), {**kwargs, "use_cache": False}, costs="flops", steps=1, solver="rotor"
        )
    assert report.ok and any(SAID in note for note in report.notes), report


def test_other_threads_go_on_checkpointing():
    runs = []

    def counted(x):
        runs.append(threading.current_thread().name)
        return x.sin()

    def train():
        checkpoint(counted, torch.ones(3, requires_grad=True), use_reentrant=False).sum().backward()

    with checkpoints_passed() as passed:
        other = threading.Thread(target=train, name="other")
        other.start()
        other.join()
        assert runs == ["other", "other"] and not passed
        train()
        assert len(runs) == 3 and len(passed) == 1
    train()
    assert len(runs) == 5
