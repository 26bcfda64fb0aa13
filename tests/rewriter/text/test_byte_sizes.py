"""Budgets are read as people write them, and refused with what was given and what is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowtide.rewriter.errors import BudgetError
from lowtide.rewriter.text.byte_sizes import Share, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (1, 1),
        (8_000_000_000, 8_000_000_000),
        ("8GiB", 8 * 1024**3),
        ("8GB", 8 * 1000**3),
        (" 1.5 gib ", 3 * 2**29),
        ("512 KiB", 512 * 1024),
        ("2TiB", 2 * 1024**4),
        ("7B", 7),
        ("1_000", 1000),
        ("0.1KiB", 102),
    ],
)
def test_a_number_of_bytes_is_read_with_or_without_a_unit(budget, count):
    assert parse_bytes(budget) == count


@pytest.mark.parametrize(("budget", "fraction"), [("60%", 0.6), ("100 %", 1.0), ("0.5%", 0.005)])
def test_a_share_of_the_baseline_is_read(budget, fraction):
    assert parse_bytes(budget) == Share(fraction)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, r"budget 0 is not above 0 bytes: a budget is a number of bytes"),
        (-5, r"budget -5 is not above 0 bytes"),
        (True, r"budget True is not above 0 bytes"),
        (1.5, r"budget 1\.5 is a float"),
        (None, r"budget None is a NoneType"),
        ("-2GiB", r"budget '-2GiB' is not above 0 bytes"),
        ("0.0001B", r"budget '0\.0001B' is not above 0 bytes"),
        ("0%", r"budget '0%' is not above 0 % and at most 100 %"),
        ("101%", r"budget '101%' is not above 0 % and at most 100 %"),
        ("8G", r"budget '8G' has the unknown unit 'G': .*\"8GiB\" is 8·1024³"),
        ("8 pounds", r"budget '8 pounds' has the unknown unit 'pounds'"),
        ("", r"budget '' cannot be read"),
        ("nan", r"budget 'nan' cannot be read"),
        ("8GiB!", r"budget '8GiB!' cannot be read"),
    ],
)
def test_what_is_no_budget_is_refused_with_what_is_accepted(budget, message):
    with pytest.raises(BudgetError, match=message):
        parse_bytes(budget)


@given(st.integers(1, 10**15))
def test_any_positive_integer_is_itself_as_number_and_as_text(count):
    assert parse_bytes(count) == count == parse_bytes(str(count)) == parse_bytes(f"{count} B")


@given(st.integers(0, 10**15))
def test_what_is_printed_reads_back_to_within_its_last_digit(count):
    shown = format_bytes(count)
    if count > 0 and not shown.startswith("0"):
        assert parse_bytes(shown.replace("bytes", "B")) == pytest.approx(count, rel=0.06)
