"""Every switch of torch that decides which kernels run is part of the state, and reading it changes nothing."""

import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lowtide.kernels.backend import native
from lowtide.rewriter.capture.call.backend_state import backend_state, changed_switches
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def switched(setter, value, before):
    """A value that is set within, and set back after."""
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextmanager
def attribute(owner, name, value):
    """An attribute with another value within."""
    before = getattr(owner, name)
    with switched(lambda new: setattr(owner, name, new), value, before):
        yield


def other_engine() -> str:
    """A quantized engine that is not in use."""
    known = set(torch.backends.quantized.supported_engines) - {"none", torch.backends.quantized.engine}
    return min(known) if known else pytest.skip("one quantized engine only")


SWITCHES = {
    "threads": lambda: switched(torch.set_num_threads, torch.get_num_threads() + 1, torch.get_num_threads()),
    "default dtype": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: torch.device("meta"),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "deterministic, memory filled": lambda: attribute(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "oneDNN deterministic": lambda: torch.backends.mkldnn.flags(enabled=True, deterministic=True),
    "quantized engine": lambda: attribute(torch.backends.quantized, "engine", other_engine()),
    "denormals flushed": lambda: switched(torch.set_flush_denormal, True, False),
    "flash attention": lambda: sdpa_kernel([SDPBackend.MATH]),
    "fast path of nn.MultiheadAttention": lambda: switched(torch.backends.mha.set_fastpath_enabled, False, True),
    "plain attention in half precision": lambda: switched(
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp, True, False
    ),
    "get_nnpack_enabled": lambda: torch.backends.nnpack.flags(enabled=False),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_that_is_turned_shows_and_shows_no_more_when_it_is_turned_back(name):
    before = backend_state("cpu")
    assert before == backend_state("cpu") and hash(before) == hash(backend_state("cpu"))
    with SWITCHES[name]():
        assert name in changed_switches(before, backend_state("cpu"))
    assert backend_state("cpu") == before


def test_switches_of_a_gpu_do_not_show_on_a_cpu():
    before = backend_state("cpu"), backend_state("cuda")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=True):
        assert backend_state("cpu") == before[0]
        assert {"cuDNN benchmark", "cuDNN deterministic"} <= set(changed_switches(before[1], backend_state("cuda")))


def test_where_c_cannot_be_compiled_it_shows(monkeypatch):
    before = backend_state("cpu")
    monkeypatch.setattr(native, "_compiler", lambda: None)
    assert changed_switches(before, backend_state("cpu")) == ["kernels in C"]


PRECISIONS = """
import sys; sys.path[:0] = [sys.argv[1]]; import conftest
import torch
from lowtide.rewriter.capture.call.backend_state import backend_state, changed_switches
states = [backend_state("cpu")]
torch.set_float32_matmul_precision("medium")
states.append(backend_state("cpu"))
torch.set_float32_matmul_precision("highest")
torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # torch then refuses to tell one precision for all backends
states.append(backend_state("cpu"))
print(changed_switches(*states[:2]), changed_switches(states[0], states[2]), len(backend_state("cuda")) > 10)
"""


def test_precisions_show_however_they_are_set():
    # in a process of its own: what torch itself sets at its start cannot be set again
    command = [sys.executable, "-c", PRECISIONS, str(Path(__file__).parents[2])]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    products = "oneDNN precision of products"
    assert run.stdout.strip() == f"{['matmul precision', products]} {['matmul precision', products]} True"


def test_reading_the_state_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend_state("cpu"), backend_state("cuda")
