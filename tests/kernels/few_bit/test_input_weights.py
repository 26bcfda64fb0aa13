"""Weights over inputs are read from text or made of samples, and what cannot be one is refused."""

import math

import numpy as np
import pytest
import torch
from lowtide.kernels.few_bit.input_weights import Histogram, Normal, Uniform, read_weight


def total(weight) -> float:
    """The integral of a density over the support, by the midpoint rule."""
    low, high = weight.support
    x = low + (high - low) * (np.arange(200_000) + 0.5) / 200_000
    return float(weight.density(x).mean() * (high - low))


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("uniform:-10,10", Uniform(-10, 10)),
        (" uniform: 0 , 1e3 ", Uniform(0, 1000)),
        ("normal:0,1", Normal(0, 1)),
        ("normal:-2.5,.5", Normal(-2.5, 0.5)),
    ],
)
def test_weights_are_read_from_text(text, weight):
    assert read_weight(text) == weight
    assert read_weight(str(weight)) == weight


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma:1,2", r"'gamma:1,2' cannot be read: write uniform:LOW,HIGH or normal:MEAN,STD"),
        ("", "cannot be read"),
        ("uniform:1", r"needs two numbers: write uniform:LOW,HIGH"),
        ("normal:1,2,3", r"needs two numbers: write normal:MEAN,STD"),
        ("normal:a,b", "a part that is not a number"),
        ("uniform:3,3", "is empty: LOW must be below HIGH"),
        ("uniform:4,3", "is empty: LOW must be below HIGH"),
        ("normal:0,0", "STD must be above 0"),
        ("normal:0,-1", "STD must be above 0"),
        ("normal:nan,1", "has nan in it"),
        ("uniform:0,inf", "has inf in it"),
        ("normal:1,1e-12", "too few of which float64 distinguishes"),
        ("uniform:-1e308,1e308", "too few of which float64 distinguishes"),
    ],
)
def test_what_is_no_weight_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_weight(text)


def test_uniform_weights_are_integrals_and_the_others_expectations():
    assert total(Uniform(-10, 10)) == pytest.approx(20)
    assert total(Normal(3, 2)) == pytest.approx(1)
    assert total(Histogram((0, 1, 3), (2, 6))) == pytest.approx(1)


def test_a_histogram_lies_as_its_counts():
    weight = Histogram((0, 1, 3, 4), (2, 6, 0))
    assert weight.support == (0, 3) and weight.edges == (1,)
    assert weight.density(np.array([0.5, 1.0, 2.9])).tolist() == [0.25, 0.375, 0.375]


def test_samples_make_a_histogram_near_their_distribution():
    samples = torch.randn(40_000, generator=torch.Generator().manual_seed(1))
    weight = Histogram.of_samples(samples.view(200, 200))
    low, high = weight.support
    assert (low, high) == (samples.min().item(), samples.max().item())
    x = np.linspace(-2, 2, 41)
    smooth = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    assert np.abs(weight.density(x) - smooth).mean() < 0.04


def test_samples_that_many_share_stay_a_histogram():
    weight = Histogram.of_samples(torch.relu(torch.randn(1000, generator=torch.Generator().manual_seed(1))))
    assert weight.support[0] == 0 and total(weight) == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Histogram((0, 1), (1, 2)), "2 counts needs 3 edges, not 2"),
        (lambda: Histogram((0, 1, 1), (1, 2)), "each above the one before"),
        (lambda: Histogram((0, 1, math.inf), (1, 2)), "finite numbers"),
        (lambda: Histogram((0, 1, 2), (1, -2)), "none negative"),
        (lambda: Histogram((0, 1, 2), (0, 0)), "one above 0"),
        (lambda: Histogram.of_samples(torch.tensor([1.0, math.nan])), "must be finite"),
        (lambda: Histogram.of_samples(torch.empty(0)), "0 samples cannot make a histogram"),
        (lambda: Histogram.of_samples(torch.full((5,), 2.0)), "all 5 samples are 2"),
    ],
)
def test_what_is_no_histogram_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
