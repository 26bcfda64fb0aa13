"""The solver that plans with encoded values: made from those at hand, with less work for each."""

from lowtide.solvers.encoding.choices import choices_of
from lowtide.solvers.encoding.encoded_candidates import encoded_of
from lowtide.solvers.greedy import Greedy
from lowtide.solvers.keep_all import KeepAll
from lowtide.solvers.recipes import Recipes
from lowtide.solvers.rockmate import Rockmate
from made_problems import chain_of_blocks, with_encodings


def test_encoded_problems_are_solved_by_the_slow_solver_with_less_work_or_by_the_last():
    problem = with_encodings(chain_of_blocks(1), 1)
    assert choices_of(problem)
    slow, quick = encoded_of(problem, (KeepAll(), Rockmate(), Greedy())), encoded_of(problem, (Recipes(), Greedy()))
    assert slow is not None and isinstance(slow.solver, Rockmate)
    assert slow.solver.visits < Rockmate().visits
    assert slow.solver.rotor.most_candidates < Rockmate().rotor.most_candidates
    assert slow.plain_solvers == (KeepAll(), Rockmate(), Greedy())
    assert quick is not None and quick.solver == Greedy()


def test_nothing_is_encoded_where_nothing_may_be_or_everything_is_kept():
    assert encoded_of(chain_of_blocks(1), (Rockmate(), Greedy())) is None
    assert encoded_of(with_encodings(chain_of_blocks(1), 1), (KeepAll(),)) is None
