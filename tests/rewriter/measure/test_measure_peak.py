"""Peaks of memory on CPU are exact to the byte, and a user's profiler is left alone."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import pytest
import torch
from lowtide.rewriter.errors import LowtideError
from lowtide.rewriter.measure.measure_peak import is_profiler_running, measure_allocations, measure_peak
from torch.profiler import ProfilerActivity, profile, schedule


def byte_tensor(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_the_peak_is_the_highest_sum_of_live_bytes_to_the_byte():
    def function():
        first = byte_tensor(1001)
        second = byte_tensor(2003)
        del first
        return second, byte_tensor(77)

    assert measure_peak(function) == 1001 + 2003


def test_what_the_function_returns_is_counted():
    assert measure_peak(lambda: [byte_tensor(5), byte_tensor(7)]) == 12


def test_a_function_that_allocates_nothing_has_a_peak_of_zero():
    assert measure_peak(lambda: None) == 0


def test_temporaries_inside_a_kernel_are_counted():
    values = torch.randn(1000, 100)
    values_and_indices = 1000 * 100 * (4 + 8)
    assert measure_peak(lambda: torch.sort(values, dim=0)) > values_and_indices
    sorted_copy = 1000 * 100 * (4 + 8)
    assert measure_peak(lambda: torch.quantile(values, 0.5)) > sorted_copy


def test_memory_from_before_the_start_that_is_freed_counts_as_negative():
    held = [byte_tensor(700)]

    def function():
        held.clear()
        return byte_tensor(1000)

    assert measure_peak(function) == 300


def test_a_gradient_that_nobody_looked_at_counts_when_it_is_freed():
    layer = torch.nn.Linear(100, 30)
    inputs = torch.randn(64, 100)
    layer(inputs).sum().backward()

    def step():
        layer.zero_grad(set_to_none=True)
        torch.softmax(layer(inputs), -1).sum().backward()

    gradients = (30 * 100 + 30) * 4
    without = torch.nn.Linear(100, 30)
    fresh = measure_peak(lambda: torch.softmax(without(inputs), -1).sum().backward())
    assert fresh == 3 * 64 * 30 * 4 + 2 * 4
    assert measure_peak(step) == fresh - gradients


def test_a_stale_address_from_an_earlier_session_does_not_distort_the_next():
    kept = []
    measure_peak(lambda: kept.append(byte_tensor(5000)))
    kept.clear()
    kept.append(byte_tensor(4999))  # most likely at the same address

    def function():
        kept.clear()
        return byte_tensor(6000)

    assert measure_peak(function) == 1001


def test_memory_borrowed_from_numpy_is_not_torchs_to_count():
    import numpy

    held = [torch.from_numpy(numpy.zeros(4096))]

    def function():
        held.clear()
        return byte_tensor(10)

    assert measure_peak(function) == 10


def test_a_training_step_of_autograd_has_the_peak_that_arithmetic_says():
    weight = torch.randn(50, 40, requires_grad=True)
    inputs = torch.randn(8, 50)

    def step():
        (inputs @ weight).relu().sum().backward()

    # Fullest when the weight's gradient is made: the product's gradient, the loss and its gradient live too.
    peak = (50 * 40 + 8 * 40 + 1 + 1) * 4
    assert measure_peak(step) == peak
    assert measure_peak(step) == peak  # now that `.grad` exists, the new gradient is added to it


def test_several_functions_share_one_session_and_what_lies_between_is_not_counted():
    def functions():
        for size in (100, 10, 1000):
            operand = byte_tensor(50_000)
            yield lambda size=size: byte_tensor(size)
            del operand
            byte_tensor(70_000)

    assert measure_allocations(functions()) == [100, 10, 1000]


def test_many_events_are_neither_lost_nor_slow():
    def function():
        kept = []
        for _ in range(20_000):
            byte_tensor(64)
        for _ in range(1000):
            kept.append(byte_tensor(10))
        return kept

    assert measure_peak(function) == 10_000


def test_a_running_profiler_is_refused_and_left_intact():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as users:
        torch.ones(3)
        assert is_profiler_running()
        with pytest.raises(LowtideError, match="inside a running profiler"):
            measure_peak(lambda: byte_tensor(10))
        torch.zeros(4)
    assert not is_profiler_running()
    names = {event.name for event in users.events()}
    assert {"aten::ones", "aten::zeros"} <= names


def test_a_profiler_that_is_still_warming_up_is_refused_too():
    recorded = []
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=1, active=1, repeat=1),
        on_trace_ready=lambda finished: recorded.extend(event.name for event in finished.events()),
    ) as users:
        with pytest.raises(LowtideError, match="one session at a time"):
            measure_peak(lambda: byte_tensor(10))
        users.step()
        torch.ones(3)
        users.step()
    assert "aten::ones" in recorded


def test_an_error_of_the_function_passes_through_and_ends_the_session():
    with pytest.raises(ZeroDivisionError):
        measure_peak(lambda: 1 // 0)
    assert measure_peak(lambda: byte_tensor(3)) == 3


def test_garbage_of_one_function_is_not_freed_in_the_middle_of_the_next():
    def functions():
        for _ in range(3):
            cycle: list[object] = [byte_tensor(1000)]
            cycle.append(cycle)
            del cycle
            # makes enough objects for a collection to begin
            yield lambda: ([[] for _ in range(100)], byte_tensor(40))

    thresholds = gc.get_threshold()
    try:
        gc.set_threshold(10, 1, 1)
        assert measure_allocations(functions(), watch_existing=False) == [40] * 3
    finally:
        gc.set_threshold(*thresholds)


def test_a_device_whose_memory_cannot_be_read_is_named():
    with pytest.raises(LowtideError, match="'meta' cannot be measured"):
        measure_peak(lambda: None, device="meta")


def test_nothing_is_printed():
    program = (
        "import torch; from lowtide.rewriter.measure.measure_peak import measure_peak as m; m(lambda: torch.ones(9))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert finished.stdout + finished.stderr == ""


@pytest.mark.gpu
def test_on_cuda_the_requested_bytes_are_counted():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert measure_peak(lambda: torch.empty(1000, dtype=torch.uint8, device="cuda"), "cuda") == 1000


def test_looking_for_profilers_lets_other_threads_build_tuples():
    """Python fails where a tuple is found, and so referred to, while its thread still fills it."""
    interval, failures, stopped = sys.getswitchinterval(), [], threading.Event()

    def unchanged(number: int) -> int:
        return number

    def build() -> None:
        while not (stopped.is_set() or failures):
            try:
                tuple(map(unchanged, range(40)))  # another thread may run in between
            except SystemError as error:
                failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(3)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(30):
            assert not is_profiler_running()
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert failures == []
