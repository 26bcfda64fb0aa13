"""Compares plans of real blocks with the optimum of one integer program for the whole step."""

from __future__ import annotations

import pytest

from benchmarks.checkmate_gap import STEPS, problem_of, rows_of


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_step_of_three_blocks_takes_hardly_more_than_the_integer_programs_optimum(name):
    rows = rows_of(problem_of(*STEPS[name]()), shares=(0.2,) if name == "resnet" else (0.8, 0.6, 0.4))
    above = [row.rockmate - row.optimum for row in rows]
    assert all(row.proven == pytest.approx(row.optimum, abs=1e-4) for row in rows)
    assert sum(above) / len(above) < 0.01
    assert max(above) < 0.03
    assert rows[-1].optimum > 0.01
    for row in rows:
        assert row.bound - 1e-9 <= row.optimum
        assert row.portfolio <= row.rockmate
