"""Minimum cuts, compared with networkx."""

import networkx
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.blocks.minimum_cut import FlowGraph
from pytest import approx

edges = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 9)), max_size=30)


@settings(max_examples=100, deadline=None)
@given(edges)
def test_value_and_side_of_the_cut_agree_with_networkx(edges):
    ours, theirs = FlowGraph(8), networkx.DiGraph()
    theirs.add_nodes_from(range(8))
    for tail, head, capacity in edges:
        if tail == head:
            continue
        ours.connect(tail, head, capacity)
        before = theirs.get_edge_data(tail, head, {"capacity": 0})["capacity"]
        theirs.add_edge(tail, head, capacity=before + capacity)
    value, side = ours.cut()
    assert value == approx(networkx.minimum_cut_value(theirs, 0, 1))
    assert 0 in side
    assert 1 not in side
    crossing = sum(
        capacity for tail, head, capacity in theirs.edges(data="capacity") if tail in side and head not in side
    )
    assert crossing == approx(value)
