"""The step graph of a joint graph: storages that views share, kernels by role, and which of them may be recomputed."""

import torch
from lowtide.passes.step_kernels import Anchor, BufferUpdate, ComputeKernel, GradAccumulate, TangentArrival
from pass_checks import captured_step
from small_networks import Called
from torch import nn
from torch.nn import functional


def test_views_share_the_storage_of_their_base():
    step = captured_step(Called(lambda m, x: m.layer(x).view(2, 2, 8).sin(), layer=nn.Linear(8, 8)), torch.randn(4, 8))
    (view,) = (node for node in step.storage_of if "view" in node.name and node.meta["phase"] == "forward")
    storage = step.storages[step.storage_of[view]]
    assert storage.base is view.args[0] and storage.kind == "activation" and storage.size_bytes == 4 * 8 * 4
    assert not any(kernel.name == view.name for kernel in step.kernels)


def test_gradients_arrive_between_forward_and_backward():
    step = captured_step(nn.Linear(8, 8), torch.randn(4, 8))
    arrival = step.kernels[step.forward_length]
    assert isinstance(arrival, TangentArrival) and [step.storages[s].kind for s in arrival.makes] == ["tangent"]
    assert {kernel.phase for kernel in step.kernels[: step.forward_length]} == {"forward"}
    assert {target.meta["source"].name for target in step.gradients} == {"weight", "bias"}
    assert not any(isinstance(kernel, GradAccumulate) for kernel in step.kernels)


def test_a_buffer_is_updated_after_its_old_value_was_read():
    def counted(m, x):
        y = x * m.count
        m.count += 1
        return m.layer(y) * m.count

    step = captured_step(Called(counted, layer=nn.Linear(8, 8), count=torch.ones(8)), torch.randn(4, 8))
    (update,) = (kernel for kernel in step.kernels if isinstance(kernel, BufferUpdate))
    assert update.target.meta["source"].name == "count" and not update.makes and not update.repeatable
    old = step.storage_of[update.target]
    readers = [kernel for kernel in step.kernels[: step.forward_length] if old in kernel.reads]
    assert readers[-1] is update and len(readers) > 1


def test_what_updates_statistics_runs_in_forward_and_may_be_recomputed():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    step = captured_step(model, torch.randn(4, 8))
    norm = next(kernel for kernel in step.compute_kernels if kernel.updates)
    assert {node.meta["source"].name for node in norm.updates} == {"1.running_mean", "1.running_var"}
    anchor = step.kernels[step.kernels.index(norm) + 1]
    assert isinstance(anchor, Anchor) and anchor.reads == norm.makes[-1:] and norm.repeatable


def test_kernels_of_gradients_and_sums_without_an_order_run_once():
    def function(m, x):
        return torch.zeros(4, 8).index_add(0, torch.tensor([0, 0, 1, 2]), functional.gelu(m.layer(x)))

    step = captured_step(Called(function, layer=nn.Linear(8, 8)), torch.randn(4, 8))
    repeatable = {kernel.name.split("_default")[0]: kernel.repeatable for kernel in step.compute_kernels}
    assert repeatable["gelu"] and not repeatable["index_add"] and not repeatable["gelu_backward"]


def test_kernels_that_are_equal_up_to_names_are_of_one_kind():
    step = captured_step(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), torch.randn(4, 8))
    kinds = [kernel.kind for kernel in step.kernels[: step.forward_length]]
    assert len(kinds) == 3 and len(set(kinds)) == 1 and kinds[0].startswith("compute > aten.addmm.default(")
    assert {kernel.kind for kernel in step.kernels if not isinstance(kernel, ComputeKernel)} == {"tangent"}
