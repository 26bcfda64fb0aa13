"""Compares plans of real blocks with the optimum of one integer program for the whole step."""

from __future__ import annotations

import pytest
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model

from benchmarks.checkmate_gap import problem_of, rows_of

STEPS = {
    "vit": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    | {"image_size": 64, "patch_size": 8},
    "resnet": {"depths": [1, 1], "hidden_sizes": [64, 128], "embedding_size": 32, "num_labels": 10},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:forward sets problem_type")  # of the configuration
@pytest.mark.parametrize(("name", "shares"), [("vit", (0.6, 0.4)), ("resnet", (0.2,))])
def test_a_step_of_few_blocks_takes_hardly_more_than_the_integer_programs_optimum(name, shares):
    model = build_model(name, overrides=STEPS[name])
    rows = rows_of(problem_of(model, sample_batch(model, 4, 64)), shares)
    above = [row.rockmate - row.optimum for row in rows]
    assert all(row.proven == pytest.approx(row.optimum, abs=1e-4) for row in rows)
    assert sum(above) / len(above) < 0.01
    assert max(above) < 0.03
    assert rows[-1].optimum > 0.01
    for row in rows:
        assert row.bound - 1e-9 <= row.optimum
        assert row.portfolio <= row.rockmate
