"""Value codes are the best levels there are, never worse than intervals; unbiased levels have the least variance."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from lowtide.kernels.few_bit.activations import ACTIVATIONS, Activation, activation_of
from lowtide.kernels.few_bit.input_weights import Histogram, Normal, Uniform
from lowtide.kernels.few_bit.interval_codes import interval_codes
from lowtide.kernels.few_bit.value_codes import unbiased_levels, value_codes

TABLES = json.loads(Path(__file__).with_name("gelu_optima.json").read_text(encoding="utf-8"))["tables"]
WEIGHTS = {"uniform[-10,10]": Uniform(-10, 10), "normal(0,1)": Normal(0, 1)}
KNOWN = [(name, bits) for name, table in TABLES.items() for bits in map(int, table)]
EVERY = pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
SOME = pytest.mark.parametrize(
    "activation",
    [activation_of(name) for name in ("gelu", "selu", "tanh", "relu6")],
    ids=lambda activation: activation.name,
)
LOPSIDED = Histogram((-6.0, -2.0, -0.5, 0.25, 3.0), (1.0, 4.0, 0.0, 3.0))


@pytest.mark.parametrize(("name", "bits"), KNOWN)
def test_gelu_is_the_reference(name, bits):
    known, codes = TABLES[name][str(bits)], value_codes(activation_of("gelu"), bits, WEIGHTS[name])
    assert codes.error == pytest.approx(known["value_err"], rel=1e-5)
    off = [np.abs(levels - known["value_levels"]).max() for levels in (codes.levels, 1 - codes.levels[::-1])]
    assert min(off) < 2e-4


@pytest.mark.parametrize(("name", "bits"), KNOWN)
def test_unbiased_levels_vary_no_more_than_the_reference(name, bits):
    # at 3 and 4 bits by up to 0.12 % less
    known, codes = TABLES[name][str(bits)], unbiased_levels(activation_of("gelu"), bits, WEIGHTS[name])
    assert 0.998 * known["unbiased_var"] < codes.variance < known["unbiased_var"] * (1 + 1e-6)
    assert codes.levels[[0, -1]] == pytest.approx([-0.1289041451, 1.1289041451], abs=1e-8)
    off = [np.abs(levels - known["unbiased_levels"]).max() for levels in (codes.levels, 1 - codes.levels[::-1])]
    assert min(off) < 1e-3


@EVERY
@pytest.mark.parametrize(("weight", "bits"), [(Normal(0, 1), 3), (LOPSIDED, 2)], ids=["normal", "histogram"])
def test_values_are_never_worse_than_intervals(activation, weight, bits):
    by_value, by_interval = (find(activation, bits, weight).error for find in (value_codes, interval_codes))
    assert by_value <= by_interval * (1 + 1e-9) + 1e-20


@EVERY
def test_each_input_gets_the_nearest_level_and_each_level_has_an_input(activation):
    codes = value_codes(activation, 3, Normal(0, 1))
    x = np.linspace(-9.9993, 9.9993, 20_000)
    slopes = activation.slopes(x)
    nearest = np.abs(slopes[:, None] - codes.levels).min(1)
    assert np.abs(np.abs(slopes - codes(x)) - nearest).max() < 1e-9
    assert (np.diff(codes.levels) > 0).all() and len(codes.level_of_interval) == len(codes.borders) + 1
    rounded = codes.representatives.astype(np.float32).astype(np.float64)
    for inputs in (codes.representatives, rounded):
        assert np.abs(activation.slopes(inputs) - codes.levels).max() < 1e-7


@SOME
def test_the_error_is_what_the_nearest_levels_make(activation):
    codes = value_codes(activation, 2, Uniform(-4, 5))
    x = -4 + 9 * (np.arange(400_000) + 0.5) / 400_000
    squares = np.abs(activation.slopes(x)[:, None] - codes.levels).min(1) ** 2
    assert codes.error == pytest.approx(9 * squares.mean(), rel=1e-4, abs=1e-9)


def test_levels_are_the_best_of_all_partitions_of_few_values():
    # f' takes nine values, by turns; equal ones lie apart
    heights = torch.tensor([0.0, 3.0, 1.0, 7.5, 3.0, 0.5, 9.0, 7.0, 1.0, 4.0], dtype=torch.float64)
    stairs = Activation("stairs", torch.relu, lambda x: heights[x.long().clamp(0, 9)], tuple(map(float, range(1, 10))))
    codes = value_codes(stairs, 2, Uniform(0, 10))
    values = np.sort(heights.numpy())
    parts = (np.split(values, cuts) for cuts in combinations(range(1, 10), 3))
    best = min(sum(((part - part.mean()) ** 2).sum() for part in split) for split in parts)
    assert codes.error == pytest.approx(best, rel=1e-9)


def test_piecewise_linear_functions_are_exact_in_one_bit():
    for name in ("relu", "relu6", "leaky_relu", "hardtanh", "hardshrink", "softshrink", "hardsigmoid"):
        codes = value_codes(activation_of(name), 1, Uniform(-10, 10))
        assert codes.error < 1e-20 and len(codes.levels) == 2, name


def test_a_constant_derivative_has_one_level():
    doubled = activation_of(lambda x: 2 * x)
    for find in (value_codes, unbiased_levels):
        assert find(doubled, 3, Normal(0, 1)).levels.tolist() == [2]


@SOME
def test_rounding_at_random_varies_as_predicted_and_no_less_than_the_nearest_level_errs(activation):
    codes = unbiased_levels(activation, 2, Uniform(-4, 5))
    x = -4 + 9 * (np.arange(400_000) + 0.5) / 400_000
    slopes = np.clip(activation.slopes(x), codes.levels[0], codes.levels[-1])
    above = np.clip(np.searchsorted(codes.levels, slopes), 1, len(codes.levels) - 1)
    varies = (slopes - codes.levels[above - 1]) * (codes.levels[above] - slopes)
    assert codes.variance == pytest.approx(9 * varies.mean(), rel=1e-4, abs=1e-9)
    assert codes.variance >= value_codes(activation, 2, Uniform(-4, 5)).error - 1e-12


@pytest.mark.parametrize("name", ["gelu", "tanh", "hardswish"])
def test_no_small_move_of_an_unbiased_level_lowers_the_variance(name):
    activation = activation_of(name)
    codes = unbiased_levels(activation, 2, Normal(0, 1))
    x = np.linspace(-10, 10, 400_001)
    density, slopes = Normal(0, 1).density(x) * (x[1] - x[0]), activation.slopes(x)

    def variance(levels: np.ndarray) -> float:
        above = np.clip(np.searchsorted(levels, slopes), 1, len(levels) - 1)
        return float((density * (slopes - levels[above - 1]) * (levels[above] - slopes)).sum())

    for level in (1, 2):
        for shift in (-0.02, 0.02):
            moved = codes.levels.copy()
            moved[level] += shift
            assert variance(moved) > variance(codes.levels)
