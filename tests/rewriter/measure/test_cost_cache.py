"""Measured costs on disk: bounded, sealed by a digest, of one state of the backends, and free of one-time work."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import lowtide
import pytest
import torch
from lowtide.kernels import dropout_masks
from lowtide.kernels.backend import native
from lowtide.kernels.packing.bits import multiply_bits
from lowtide.kernels.quantize.groups import encode_groups
from lowtide.rewriter.measure import cost_cache, time_kernels
from lowtide.rewriter.measure.cost_cache import CostCache, Measurement
from lowtide.rewriter.measure.costs import measure_costs
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lowtide"


def saved(**measurements: Measurement) -> Path:
    """A cache with these measurements, as a file."""
    cache = CostCache.load(CPU)
    for name, measurement in measurements.items():
        cache.add(name, measurement)
    cache.save()
    assert cache.path is not None
    return cache.path


def sealed(path: Path, text: str) -> None:
    """Writes the content of a cache with its digest."""
    rest = text.removeprefix("{").encode()
    path.write_bytes(b'{"digest": "' + hashlib.sha256(rest).hexdigest().encode() + b'", ' + rest)


def known() -> dict[str, Measurement]:
    return CostCache.load(CPU).measurements


def test_the_file_is_json_with_a_digest_and_only_this_user_may_read_it():
    path = saved(first=Measurement(1.5, 10), second=Measurement(None, 0))
    payload = json.loads(path.read_text())
    assert payload["kernels"] == {"first": [1.5, 10, None], "second": [None, 0, None]}
    assert path.stat().st_mode & 0o077 == 0 or os.name != "posix"
    assert known() == {"first": Measurement(1.5, 10), "second": Measurement(None, 0)}


@pytest.mark.parametrize("place", [0, 20, 80, 100, -30, -2])
def test_any_damage_has_all_measured_again(place):
    path = saved(first=Measurement(1.5, 10))
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    assert known() == {}
    saved(second=Measurement(2.0, 20))
    assert known() == {"second": Measurement(2.0, 20)}


ODD = ["Infinity", "-Infinity", "NaN", "1e999", "-1", "-0.5", "true", '"1"', "[]", "{}", "9" * 5000, "1e30"]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd[:10])
@pytest.mark.parametrize("entry", ["[%s, 10, null]", "[0.5, %s, null]", "[0.5, 10, %s]", "[0.5, 10, null, %s]", "%s"])
def test_odd_numbers_are_measured_again_though_the_digest_is_right(odd, entry):
    path = saved(first=Measurement(1.5, 10), second=Measurement(1e-3, 7))
    sealed(path, path.read_text().partition(", ")[2].replace("[1.5, 10, null]", entry % odd))
    measurements = known()
    assert "first" not in measurements and measurements in ({}, {"second": Measurement(1e-3, 7)})


def test_a_file_of_another_situation_is_not_taken():
    path = saved(first=Measurement(1.5, 10))
    payload = json.loads(path.read_text())
    payload["environment"]["threads"] = "1000"
    del payload["digest"]
    sealed(path, json.dumps(payload))
    assert known() == {}


@pytest.mark.parametrize("text", ["[" * 200_000, '{"kernels": ' * 5000, "", "null", "[]", '"kernels"'])
def test_what_is_no_cache_is_none_though_the_digest_is_right(text):
    path = saved(first=Measurement(1.5, 10))
    sealed(path, text)
    assert known() == {}


def test_the_file_and_the_number_of_kernels_are_bounded(monkeypatch):
    monkeypatch.setattr(cost_cache, "_MOST_KERNELS", 3)
    saved(**{f"k{n}": Measurement(float(n), n) for n in range(5)})
    assert [*known()] == ["k2", "k3", "k4"]  # the latest
    path = saved(k2=Measurement(None, 5))
    assert [*known()] == ["k3", "k4", "k2"] and known()["k2"] == Measurement(2.0, 5)
    monkeypatch.setattr(cost_cache, "_MOST_FILE_BYTES", path.stat().st_size - 60)
    assert known() == {}  # a file that is larger is not read
    monkeypatch.setattr(cost_cache, "_MOST_FILE_BYTES", path.stat().st_size + 2000)
    monkeypatch.setattr(cost_cache, "_MOST_KERNELS", 1000)
    path = saved(**{f"k{n}": Measurement(float(n), n) for n in range(300)})
    assert path.stat().st_size < cost_cache._MOST_FILE_BYTES and "k299" in known() and "k0" not in known()


def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(cost_cache, "cache_folder", lambda: None)
    cache = CostCache.load(CPU)
    cache.add("first", Measurement(1.0, 1))
    cache.save()
    assert known() == {}


def test_costs_of_one_state_are_not_those_of_another():
    saved(first=Measurement(1.0, 1))
    with torch.backends.mkldnn.flags(enabled=False):
        assert known() == {}
        saved(first=Measurement(2.0, 2))
        assert known() == {"first": Measurement(2.0, 2)}
    assert known() == {"first": Measurement(1.0, 1)}


def test_costs_of_compiled_kernels_are_not_those_of_plain_ones(monkeypatch):
    saved(first=Measurement(1.0, 1))
    monkeypatch.setattr(native, "_compiler", lambda: None)
    assert known() == {}


def test_what_was_measured_while_the_state_changed_is_not_kept(monkeypatch):
    cache = CostCache.load(CPU)
    cache.add("first", Measurement(1.0, 1))
    with monkeypatch.context() as changed:
        changed.setattr(native, "_failed", {*native._failed, "some C"})  # as where a kernel does not compile
        cache.save()
        assert known() == {}
    assert known() == {}


def test_a_convolution_measured_with_one_backend_is_planned_again_with_another():
    convolution = nn.Conv2d(3, 16, 3, padding=1)
    x = torch.randn(2, 3, 32, 32)

    def peaks() -> tuple[int, int]:
        """Return the measured and the predicted peak."""
        small = lowtide.rewrite(copy.deepcopy(convolution), "100%", (x,), costs="flops")
        held = sum(p.nbytes for p in small.parameters()) + x.nbytes
        measured = lowtide.measure_peak(lambda: small(x).backward(torch.ones(2, 16, 32, 32)))
        return measured + held, small.plan.peak_bytes

    usual = peaks()
    with torch.backends.mkldnn.flags(enabled=False):
        other = peaks()
    assert usual[0] == usual[1] and other[0] == other[1] and usual != other


def nodes_of(function, *arguments):
    graph = make_fx(function, tracing_mode="fake")(*arguments)
    return [node for node in graph.graph.nodes if node.op == "call_function"]


@pytest.fixture
def first_of_a_process(monkeypatch, tmp_path):
    """Clears everything that is done once per process, so that nothing is compiled."""
    monkeypatch.setattr(native, "kernels_folder", lambda: tmp_path / "kernels")
    for once in (native._library, dropout_masks.draws_alike):
        once.cache_clear()


def test_no_kernel_is_charged_for_what_a_process_does_once(first_of_a_process, monkeypatch, tmp_path):
    def step(x):
        bits = dropout_masks.draw_bits([37, 13], 0.7, torch.device("cpu"))
        return multiply_bits(x, bits, 1.4), encode_groups(x, 4, 256, True, True, 0)

    nodes = nodes_of(step, torch.randn(37, 13))
    first = measure_costs(nodes, "cpu")
    assert max(cost.seconds for cost in first.values()) < 0.05
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    repeated = measure_costs(nodes, "cpu")
    assert {text: cost.working_bytes for text, cost in first.items()} == {
        text: cost.working_bytes for text, cost in repeated.items()
    }


def test_what_a_process_does_once_is_done_before_the_step_though_its_costs_are_known(first_of_a_process):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    lowtide.plan(model, "100%", (torch.randn(4, 8),))
    dropout_masks.draws_alike.cache_clear()
    lowtide.plan(model, "100%", (torch.randn(4, 8),))
    assert dropout_masks.draws_alike.cache_info().currsize == 1


def test_a_kernel_whose_first_run_is_surprisingly_slow_is_run_again(monkeypatch):
    seconds = iter((0.5, *[1e-5] * 100))
    clock = [0.0]

    def call(self):
        clock[0] += next(seconds)

    monkeypatch.setattr(time_kernels.time, "perf_counter", lambda: clock[0])
    trial = time_kernels._Trial(lambda: call(None), (), {}, CPU)
    trial.plausible_seconds = 1e-4
    trial.run()
    assert trial.least_seconds() == pytest.approx(1e-5)


def test_a_kernel_that_is_slow_by_its_nature_is_run_once(monkeypatch):
    clock, runs = [0.0], []

    def call():
        runs.append(1)
        clock[0] += 0.5

    monkeypatch.setattr(time_kernels.time, "perf_counter", lambda: clock[0])
    trial = time_kernels._Trial(call, (), {}, CPU)
    trial.plausible_seconds = 0.3
    trial.run()
    assert trial.least_seconds() == 0.5 and len(runs) == 1


FIRST_DROPOUT = """
import sys; sys.path[:0] = [sys.argv[1]]; import conftest
import os; os.environ["XDG_CACHE_HOME"] = sys.argv[2]
import torch, lowtide
torch.set_num_threads(1)
model, x = torch.nn.Sequential(torch.nn.Linear(13, 13), torch.nn.Dropout(0.3)), torch.randn(7, 13)
small = lowtide.rewrite(model, "100%", (x,))
held = sum(p.nbytes for p in small.parameters()) + x.nbytes
print(lowtide.measure_peak(lambda: small(x).backward(torch.ones(7, 13))) + held, small.plan.peak_bytes)
"""


@pytest.mark.slow
def test_the_first_step_of_each_process_takes_what_was_predicted(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FIRST_DROPOUT, str(Path(__file__).parents[2]), str(tmp_path)]
    runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(2)]  # with and without known costs
    for run in runs:
        measured, predicted = map(int, run.stdout.split())
        assert measured == predicted, run.stderr[-300:]
