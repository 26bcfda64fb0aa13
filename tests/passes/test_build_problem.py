"""The problem of a step: what is held or resident, whose bytes count, and what operations cost."""

import torch
from lowtide.passes.build_problem import build_problem, find_held_storages
from lowtide.passes.pipeline import run_passes
from lowtide.passes.step_kernels import GradAccumulate
from pass_checks import captured_graph
from torch import nn


def step_of():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))
    return run_passes(captured_graph(model, torch.randn(4, 8)))[1]


def mapping_of(step, **options):
    """The problem of a step whose calls all take a second and ten bytes."""
    return build_problem(step, lambda call: (1.0, 10), resident_bytes=100, **options)


def test_outputs_tangents_and_new_gradients_are_held():
    step = step_of()
    held = {step.storages[storage].name for storage in find_held_storages(step, frozenset())}
    accumulations = [kernel for kernel in step.kernels if isinstance(kernel, GradAccumulate)]
    assert len(held) == 2 + len(accumulations)  # the output and the gradient that arrives for it
    present = frozenset(kernel.target.meta["source"] for kernel in accumulations)
    assert len(find_held_storages(step, present)) == 2


def test_values_are_the_storages_that_kernels_touch():
    step = step_of()
    mapping = mapping_of(step)
    values = [mapping.problem.values[mapping.value_of[storage]] for storage in mapping.storages]
    assert [value.name for value in values] == [step.storages[storage].name for storage in mapping.storages]
    given = {value.name for value in values if value.resident}
    kinds = {storage.kind for storage in step.storages if storage.name in given}
    assert kinds == {"parameter", "input"} and mapping.problem.resident_bytes == 100


def test_bytes_are_rounded_as_the_allocator_rounds_them():
    sizes = [value.size_bytes for value in mapping_of(step_of(), rounding_bytes=512).problem.values]
    assert sizes and all(size % 512 == 0 for size in sizes)


def test_only_kernels_that_compute_cost_time():
    step = step_of()
    mapping = mapping_of(step)
    computing = {kernel.name for kernel in step.compute_kernels}
    for op in mapping.problem.ops:
        assert (op.seconds > 0) == (op.name in computing)
        assert op.working_bytes >= sum(mapping.problem.values[value].size_bytes for value in op.makes)
    kinds = {op.kind.split(" > ")[0] for op in mapping.problem.ops}
    assert kinds == {"compute", "tangent", "accumulate"}
