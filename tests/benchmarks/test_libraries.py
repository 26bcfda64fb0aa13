"""The comparison with libraries: all cut the same, and a planted pickle is noticed."""

import networkx
import pytest

from benchmarks.libraries import Graph, networkx_cut, own_cut, runs_planted_code, scipy_cut

# Two cuts are equally cheap: at the source, and behind node 2.
GRAPH = Graph(5, ((0, 2, 3.0), (2, 3, 3.0), (3, 4, float("inf")), (4, 1, 9.0), (0, 4, 1.0)))


@pytest.mark.parametrize("algorithm", [networkx.algorithms.flow.dinitz, networkx.algorithms.flow.boykov_kolmogorov])
def test_networkx_and_lowtide_cut_the_same(algorithm):
    assert own_cut(GRAPH) == networkx_cut(GRAPH, algorithm) == (4.0, {0})


def test_scipy_cuts_the_same():
    pytest.importorskip("scipy")
    value, side = scipy_cut(GRAPH)
    assert value == pytest.approx(4.0) and side == {0}


def test_json_of_diskcache_runs_a_planted_pickle(tmp_path):
    assert runs_planted_code(pytest.importorskip("diskcache"), tmp_path)
