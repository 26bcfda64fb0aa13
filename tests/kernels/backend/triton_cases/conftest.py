"""Has kernels in Triton serve in the cases of this folder, which `test_triton.py` runs."""

from importlib import import_module

import pytest
import torch
from lowtide.kernels.backend import triton_launch
from lowtide.kernels.exact_codes import threshold_bits, threshold_classes
from lowtide.kernels.few_bit import few_bit
from lowtide.kernels.loss import cross_entropy_rows
from lowtide.kernels.packing import bits, packed_codes
from lowtide.kernels.pooling import pooling
from lowtide.kernels.quantize import groups
from triton_device import INTERPRETED

LAUNCHING = ("packing.packed_codes", "pooling.pooling", "loss.cross_entropy_rows")
SERVED = (
    *(bits, packed_codes, few_bit, groups, threshold_bits, threshold_classes),
    *(pooling, cross_entropy_rows),
)


def conversions_of_torch(convert):
    """The interpreter's conversion, but between bfloat16 and float32 as processors do it: it rounds neither those that
    are halfway nor those below the smallest normal number as they do."""
    import triton.language as tl

    def converted(values, source, target, rounding):
        bits = torch.from_numpy(values.copy())
        if (source, target) == (tl.float32, tl.bfloat16):
            return bits.bfloat16().view(torch.uint16).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return bits.view(torch.bfloat16).float().view(torch.int32).numpy()
        return convert(values, source, target, rounding)

    return converted


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Has Triton's versions serve, on a CPU too; a test in which none was launched fails."""
    names: list[str] = []

    def counted(kernel, programs, *arguments, **constants):
        names.extend([kernel.__name__] * programs)
        triton_launch.launch(kernel, programs, *arguments, **constants)

    if INTERPRETED:
        interpreter = import_module("triton.runtime.interpreter")
        monkeypatch.setattr(interpreter, "_convert_float", conversions_of_torch(interpreter._convert_float))
    for name in LAUNCHING:
        monkeypatch.setattr(import_module(f"lowtide.kernels.{name}_triton"), "launch", counted)
    if INTERPRETED:
        for module in SERVED:
            monkeypatch.setattr(module, "triton_version", lambda name, _: import_module(f"{name}_triton"))
    torch.manual_seed(0)
    yield names
    assert names


@pytest.fixture(params=[False, True], ids=["int32", "int64"])
def either_width(request, monkeypatch):
    """Runs a test with places in 32 bits, and in 64 as if there were more elements."""
    if request.param:
        monkeypatch.setattr(triton_launch, "_INT32_ELEMENTS", 0)
