"""Reads a few hundred damaged files of `benchmarks.fuzz.files`, the same ones each time: none causes a failure."""

import pytest

from benchmarks.fuzz import files as fuzz_files
from benchmarks.fuzz.files import Report, Subject

pytestmark = pytest.mark.usefixtures("few_run")


@pytest.fixture
def few_run(monkeypatch, tmp_path):
    """Run only two of the plans that are accepted, and keep costs in a separate folder."""
    monkeypatch.setattr(fuzz_files, "_MOST_TRAINED", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["bitwise", "approximate"])
def subject(request):
    return Subject(request.param)


def counts_of(report: Report) -> dict[str, int]:
    assert not report.failures, report.failures[:5]
    return report.counts


def test_damaged_plans_are_refused_or_are_plans(subject, tmp_path):
    counts = counts_of(fuzz_files.fuzz_plans(subject, 200, 7, Report(), tmp_path))
    assert counts["PlanError"] > 200 and counts["plans taken"] > 5  # each file is read twice


def test_odd_schedules_are_refused_or_make_the_same_gradients_in_the_predicted_bytes(subject, tmp_path):
    counts = counts_of(fuzz_files.fuzz_schedules(subject, 25, 7, Report(), tmp_path))
    assert counts["PlanError"] > 10 and counts["plans run"] > 0


def test_damaged_costs_are_measured_again():
    counts = counts_of(fuzz_files.fuzz_costs(200, 7, Report()))
    assert counts["costs measured again"] > 100 and counts["costs read"] > 20


def test_from_damaged_entries_is_solved_what_is_solved_without(subject, tmp_path):
    counts = counts_of(fuzz_files.fuzz_entries(subject, 30, 7, Report(), tmp_path))
    assert counts["solved"] > 20


def test_a_damaged_library_is_never_taken():
    counts = counts_of(fuzz_files.fuzz_libraries(300, 7, Report()))
    assert counts["OSError"] > 290
