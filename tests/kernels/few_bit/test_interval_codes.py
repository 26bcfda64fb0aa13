"""Interval codes are the optimum: of the reference, of brute force, and never worse than published tables."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.kernels.few_bit.activations import Activation, activation_of
from lowtide.kernels.few_bit.derivative_moments import slope_moments, squared_error
from lowtide.kernels.few_bit.input_weights import Histogram, Normal, Uniform, read_weight
from lowtide.kernels.few_bit.interval_codes import interval_codes
from lowtide.kernels.few_bit.optimal_partitions import Grid, best_on_grid

TABLES = json.loads(Path(__file__).with_name("gelu_optima.json").read_text(encoding="utf-8"))["tables"]
WEIGHTS = {"uniform[-10,10]": Uniform(-10, 10), "normal(0,1)": Normal(0, 1)}
KNOWN = [(name, bits) for name, table in TABLES.items() for bits in map(int, table)]


def stairs(heights: list[float]) -> Activation:
    """A derivative that is heights[i] between i and i + 1."""
    steps = torch.tensor(heights, dtype=torch.float64)
    derivative = lambda x: steps[x.long().clamp(0, len(heights) - 1)]  # noqa: E731
    return Activation("stairs", torch.relu, derivative, tuple(map(float, range(1, len(heights)))))


def error_of_stairs(heights: np.ndarray, weights: np.ndarray, cuts: tuple[int, ...]) -> float:
    """The weighted squared error of one level per run of stairs between cuts."""
    total = 0.0
    for part, weight in zip(np.split(heights, cuts), np.split(weights, cuts), strict=True):
        mean = (part * weight).sum() / max(weight.sum(), 1e-300)
        total += float((weight * (part - mean) ** 2).sum())
    return total


@pytest.mark.parametrize(("name", "bits"), KNOWN)
def test_gelu_is_the_reference(name, bits):
    known, codes = TABLES[name][str(bits)], interval_codes(activation_of("gelu"), bits, WEIGHTS[name])
    assert codes.error == pytest.approx(known["interval_err"], rel=1e-6)
    sides = [(codes.borders, codes.levels), (-codes.borders[::-1], 1 - codes.levels[::-1])]
    nearest = min(sides, key=lambda side: np.abs(side[1] - known["interval_levels"]).max())
    assert np.abs(nearest[0] - known["interval_borders"]).max() < 2e-4
    assert np.abs(nearest[1] - known["interval_levels"]).max() < 2e-4


@pytest.mark.parametrize(("name", "bits"), KNOWN)
def test_the_error_is_not_above_published_tables(name, bits):
    known = TABLES[name][str(bits)]
    error = interval_codes(activation_of("gelu"), bits, WEIGHTS[name]).error
    assert error <= known["fewbit_err"] and error <= known["fewbit_borders_optlevels_err"]


@pytest.mark.parametrize("weight", ["uniform:-10,10", "normal:0.3,1.2"])
@pytest.mark.parametrize("name", ["silu", "mish", "sigmoid", "selu", "tanhshrink"])
def test_at_the_optimum_each_border_is_as_far_from_both_levels(name, weight):
    activation = activation_of(name)
    codes = interval_codes(activation, 4, read_weight(weight))
    smooth = ~np.isin(codes.borders, activation.breakpoints)
    middles = 0.5 * (codes.levels[:-1] + codes.levels[1:])
    assert np.abs(activation.slopes(codes.borders) - middles)[smooth].max() < 1e-6


@pytest.mark.parametrize("name", ["gelu", "hardswish"])
def test_the_error_is_that_of_the_step_function(name):
    activation = activation_of(name)
    codes = interval_codes(activation, 3, Normal(0, 1))
    x = np.linspace(-10, 10, 2_000_001)
    squares = Normal(0, 1).density(x) * (activation.slopes(x) - codes(x)) ** 2
    assert codes.error == pytest.approx(np.trapezoid(squares, x), rel=1e-5)


def test_eight_bits_are_no_worse_than_a_fine_grids_optimum_and_a_quarter_of_seven():
    seven, eight = (interval_codes(activation_of("gelu"), bits, Uniform(-10, 10)).error for bits in (7, 8))
    assert eight < 1.37025e-5 and 0.24 < eight / seven < 0.26


@given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=8),
    st.lists(st.integers(0, 3), min_size=8, max_size=8),
    st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_stairs_are_cut_as_brute_force_cuts_them(heights, counts, bits):
    counts = [counts[0] + 1, *counts[1 : len(heights)]]
    weight = Histogram(tuple(map(float, range(len(heights) + 1))), tuple(map(float, counts)))
    codes = interval_codes(stairs(list(map(float, heights))), bits, weight)
    cuts = range(1, len(heights))
    most = min(2**bits - 1, len(cuts))
    shares = np.array(counts) / sum(counts)
    best = min(error_of_stairs(np.array(heights), shares, chosen) for chosen in combinations(cuts, most))
    assert codes.error == pytest.approx(best, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("cells", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["gelu", "tanh"])
def test_the_dynamic_program_finds_what_trying_all_finds(name, cells):
    moments = slope_moments(activation_of(name), Normal(0.5, 1))
    places = np.linspace(-4, 4, 15)
    places[[0, -1]] = moments.weight.support

    class Cost:
        rounding = 0.0
        sums = staticmethod(moments.up_to)
        cost = staticmethod(lambda low, high, below, above: squared_error(above - below))

    grid = Grid(Cost(), places, moments.up_to(places))
    tried = (np.array([0, *chosen, 14]) for chosen in combinations(range(1, 14), cells - 1))
    best = min(grid.total(chosen) for chosen in tried)
    assert grid.total(best_on_grid(grid, cells)) == pytest.approx(best, rel=1e-12)


def test_exact_derivatives_need_no_more_levels_than_they_take():
    codes = interval_codes(activation_of("relu6"), 4, Uniform(-3, 8))
    assert codes.borders == pytest.approx([0, 6]) and codes.levels == pytest.approx([0, 1, 0])
    assert codes.error < 1e-20


def test_a_jump_at_an_unknown_place_is_found():
    codes = interval_codes(activation_of(lambda x: torch.where(x > 0.7310585, 3 * x, x)), 1, Normal(0, 1))
    assert codes.borders == pytest.approx([0.7310585], abs=1e-9) and codes.levels == pytest.approx([1, 3])


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_outside_of_1_to_8_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits {bits} is outside of 1 to 8"):
        interval_codes(activation_of("gelu"), bits, Normal(0, 1))


def test_a_derivative_too_rough_to_integrate_is_refused():
    rough = Activation("noise", torch.relu, lambda x: (x * 1e9).sin())
    with pytest.raises(ValueError, match="the derivative of noise is too rough under normal:0,1"):
        interval_codes(rough, 1, Normal(0, 1))
