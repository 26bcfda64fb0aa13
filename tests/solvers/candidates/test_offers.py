"""Candidates within a time limit: those found until then, remembered until there is more time."""

from lowtide.solvers.candidates.offers import Limit, Memory, rated_candidates
from lowtide.solvers.recipes import Recipes
from made_problems import chain_of_blocks


def test_a_solver_stopped_at_the_limit_is_asked_again_only_with_more_time():
    problem, memory, begun = chain_of_blocks(1), Memory(), []

    def candidates():
        begun.append(True)
        yield from rated_candidates(problem, Recipes())

    def offer(limit, must_begin=False):
        return memory.offer(None, problem, Recipes(), candidates(), limit, None, must_begin)

    late = offer(Limit(0.0))
    assert late.candidates == () and not begun
    assert [*late.describe_stop()] == ["recipes was stopped at the time limit of 0 s"]
    assert offer(Limit(0.0), must_begin=True) is late
    stopped = offer(Limit(1e-9), must_begin=True)
    assert 1 <= len(stopped.candidates) <= 2 and stopped.stopped_seconds == 1e-9
    whole = offer(Limit())
    assert len(whole.candidates) > 2 and not [*whole.describe_stop()]
    assert offer(Limit(5.0)) is whole and len(begun) == 2


def test_the_problems_solved_first_are_forgotten_first(monkeypatch):
    monkeypatch.setattr("lowtide.solvers.candidates.offers._MOST_REMEMBERED", 2)
    memory, problems = Memory(), [chain_of_blocks(seed) for seed in range(3)]

    def offer(problem):
        return memory.offer(None, problem, Recipes(), rated_candidates(problem, Recipes()), Limit(), None)

    first, second, third = map(offer, problems)
    assert offer(problems[2]) is third and offer(problems[1]) is second
    assert offer(problems[0]) is not first
