"""The C that turns logits into the gradient of their cross-entropy computes as exactly as single precision allows."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import pytest
import torch
from lowtide.kernels.backend.native import native, pointer
from lowtide.kernels.loss.cross_entropy_rows import SOURCE


def test_the_exponential_of_the_c_is_within_a_unit_in_the_last_place():
    source = SOURCE + (
        "void exponentials_of(const float *x, float *y, int64_t n) {\n"
        "    for (int64_t i = 0; i < n; i++) y[i] = exponential(x[i]);\n}\n"
    )
    run = native(source, "exponentials_of", (c_void_p, c_void_p, c_int64))
    if run is None:
        pytest.skip("there is no C compiler")
    x = torch.cat([-torch.linspace(0, 87.33, 500_001), torch.tensor([-100.0, -torch.inf, torch.nan])])
    y = torch.empty_like(x)
    run(pointer(x), pointer(y), len(x))
    exact = x.double().exp()
    assert ((y.double() - exact) / exact)[:-3].abs().max() <= 2.0**-23
    assert y[0] == 1 and y[-3:-1].tolist() == [0, 0] and y[-1].isnan()
