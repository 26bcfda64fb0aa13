"""Options are checked when they are given; earlier names of solvers are accepted with a warning."""

import warnings
from typing import Any

import lowtide
import pytest
from lowtide.rewriter.plan.options import Options
from lowtide.solvers.portfolio import SOLVER_NAMES


@pytest.mark.parametrize(("earlier", "current"), [("dp", "rotor"), ("hierarchical", "rockmate"), ("ilp", "checkmate")])
def test_an_earlier_name_of_a_solver_is_accepted_with_a_warning(earlier, current):
    with pytest.warns(lowtide.LowtideWarning, match=f"solver '{earlier}' is now called '{current}'"):
        options = Options(solver=earlier)
    assert options == Options(solver=current)


def test_names_of_solvers_are_accepted_without_a_warning_and_others_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [Options(solver=name).solver for name in SOLVER_NAMES] == list(SOLVER_NAMES)
    others: list[Any] = ["simplex", "", ["rotor"], None]
    for name in others:
        with pytest.raises(ValueError, match=r"there is no solver .*: choose among auto, keep_all"):
            Options(solver=name)
