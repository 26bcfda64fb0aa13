"""Random small modules: what is emitted equals the original to the bit at random budgets, and peaks where predicted."""

from typing import Any

import lowtide
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from side_by_side import plans
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 8
KINDS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "wide": lambda: nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH)),
    "dropout": lambda: nn.Dropout(0.3),
    "gelu": nn.GELU,
    "in_place_relu": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "softmax": lambda: nn.Softmax(-1),
    "layer_norm": lambda: nn.LayerNorm(WIDTH),
    "batch_norm": lambda: nn.BatchNorm1d(WIDTH),
    "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
    "alpha_dropout": lambda: nn.AlphaDropout(0.2),
    "embedding": lambda: Looked(),
}


class Looked(nn.Module):
    """Adds the row of a table that the largest number of each row points at."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(x.argmax(-1))


class RandomGraph(nn.Module):
    """Layers of which each reads the sum, product or difference of earlier results; some layers stand in many places.

    wiring: for each place (number of its layer, places it reads, how it joins them).
    """

    def __init__(self, kinds: list[str], wiring: list[tuple[int, list[int], str]], outputs: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(KINDS[kind]() for kind in kinds)
        self.wiring, self.outputs = wiring, outputs

    def forward(self, x: Tensor) -> Any:
        results = [x]
        for layer, places, join in self.wiring:
            parts = [results[place % len(results)] for place in places]
            joined = parts[0].clone()
            for part in parts[1:]:
                joined = joined + part if join == "sum" else joined * part if join == "product" else joined - part
            results.append(self.layers[layer](joined))
        return tuple(results[-1 - place % (len(results) - 1)] for place in self.outputs)


@st.composite
def random_graphs(draw: Any) -> tuple[nn.Module, Tensor]:
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=7))
    place = st.tuples(
        st.integers(0, len(kinds) - 1),
        st.lists(st.integers(0, 8), min_size=1, max_size=3),
        st.sampled_from(["sum", "product", "difference"]),
    )
    wiring = draw(st.lists(place, min_size=2, max_size=9))
    outputs = [0, *draw(st.lists(st.integers(0, 8), max_size=2))]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw(st.integers(0, 3)))
        # A layer at the head, so that there is always something to train.
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), RandomGraph(kinds, wiring, outputs))
        x = torch.randn(draw(st.sampled_from([2, 16, 65])), WIDTH, requires_grad=draw(st.booleans()))
    return model, x


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.floats(0, 1))
def test_random_modules_are_equal_to_the_bit_and_peak_where_predicted(graph, share):
    model, x = graph
    candidates = plans(model, x, count=8)
    for tight, loose in zip(candidates[1:], candidates, strict=False):
        assert tight.peak_bytes < loose.peak_bytes and tight.extra_seconds >= loose.extra_seconds
    lowest, highest = candidates[-1].peak_bytes, max(candidates[0].baseline_peak_bytes, candidates[0].peak_bytes)
    budget = lowest + int(share * (highest - lowest))
    report = lowtide.verify(model, budget, (x,), costs="flops", steps=2)
    assert report.differences == (), str(report)
    assert report.measured_peak_bytes == report.plan.peak_bytes, str(report)
    assert report.measured_peak_bytes <= budget and report.dropped_peak_bytes <= budget, str(report)
