"""Trades and options of a block: the curve is the true minimum, and the options' estimates are exact."""

from itertools import product

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lowtide.solvers.blocks.block_values import forward_values
from lowtide.solvers.blocks.lifetime_options import OptionEvaluator, options_of
from lowtide.solvers.blocks.rematerialize import Lifetime, run_order
from lowtide.solvers.blocks.tradeoff import SINK, SOURCE, curve_of, trade_of
from lowtide.solvers.problem.liveness import forecast
from made_problems import chain_of_blocks, llama
from pytest import approx


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 10_000), shares=st.booleans())
def test_the_curve_is_the_least_cost_over_all_trades(seed, shares):
    trade = trade_of(chain_of_blocks(seed, blocks=2, width=4), 1, shares)
    assume(len(trade.seconds) <= 12)
    curve = curve_of(trade, 100.0)
    for price, worth in zip(curve.price, curve.worth, strict=True):
        if price:
            assert worth == approx(cheapest_by_trying(trade, price), abs=1e-6)


def cheapest_by_trying(trade, price):
    """Return the least of seconds + price · bytes over all sets of recomputed operations."""
    best = float("inf")
    for recomputed in product((False, True), repeat=len(trade.seconds)):
        runs = {SOURCE: False, SINK: True} | dict(enumerate(recomputed, 2))
        cost = sum(
            seconds + price * state_bytes
            for seconds, state_bytes, repeated in zip(trade.seconds, trade.state_bytes, recomputed, strict=True)
            if repeated
        )
        for stake in trade.stakes:
            if runs[stake.maker]:
                cost -= price * stake.missing_bytes
            elif any(runs[consumer] for consumer in stake.consumers):
                cost += price * (stake.kept_bytes - stake.missing_bytes)
            else:  # kept only for other blocks that rely on it, or missing: both cost nothing in sum
                cost += price * min(stake.kept_bytes - stake.missing_bytes, 0)
        best = min(best, cost)
    return best


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), choice=st.integers(0, 4**9))
def test_an_option_takes_the_seconds_that_the_whole_step_takes_with_it(seed, choice):
    problem = chain_of_blocks(seed, blocks=3)
    values = forward_values(problem)[2]
    lives = (Lifetime.STEP, Lifetime.SEGMENT, Lifetime.READING, Lifetime.MOMENT)
    evaluator = OptionEvaluator(problem, 2)
    option = evaluator.try_out(bytes(lives[choice >> 2 * i & 3] for i in range(len(values))))
    assert evaluator.schedule(option.lifetimes).seconds == approx(option.seconds)
    lifetimes = bytearray(len(problem.values))
    for value, life in zip(values, option.lifetimes, strict=True):
        lifetimes[value] = life
    assert forecast(problem, run_order(problem, lifetimes)).seconds - problem.seconds == approx(option.seconds)


def test_options_of_a_layer_go_from_keeping_everything_to_keeping_nothing_and_none_beats_another():
    options = options_of(llama(), 6)
    assert options[0].seconds == approx(0)
    assert options[-1].kept_bytes == 0
    for left, right in product(options, options):
        if left is not right:
            better = (left.kept_bytes <= right.kept_bytes, left.peak_above_start_bytes <= right.peak_above_start_bytes)
            assert not (all(better) and left.seconds <= right.seconds)
