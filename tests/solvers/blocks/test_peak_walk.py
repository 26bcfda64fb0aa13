"""The walk through a part of a run order, held against the moments of the whole order."""

from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.blocks.peak_walk import PeakWalk
from lowtide.solvers.problem.liveness import forecast, lives_of, moments_of
from lowtide.solvers.recipes import Recipes
from made_problems import chain_of_blocks, with_changes


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from((0.0, 0.5)))
def test_the_walk_through_a_whole_step_has_the_moments_of_the_forecast(seed, share):
    problem = with_changes(chain_of_blocks(seed, randomness=0.0), seed, share)
    walk, stay = PeakWalk(problem), {v for v, value in enumerate(problem.values) if value.held or value.resident}
    for candidate in list(Recipes().candidates(problem))[::4]:
        runs, alive = [op for segment in candidate.order for op in segment], stay.copy()
        peaks, start_bytes = walk.peaks(runs, alive)
        moments = moments_of(problem, lives_of(problem, candidate.order))
        assert [problem.resident_bytes + peak - start_bytes for peak in reversed(peaks)] == moments.tolist()
        above_bytes = forecast(problem, candidate.order).peak_bytes - problem.resident_bytes
        assert walk.peak_above_start(runs, stay.copy()) == above_bytes
        assert alive == stay
