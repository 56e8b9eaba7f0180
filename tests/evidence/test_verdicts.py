"""The interval of a mean over people, which side of a threshold it lies on, and the table of verdicts."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.evidence.verdicts import (
    Interval,
    Verdict,
    differences,
    judged,
    mean_interval,
    shown,
    verdict_table,
)


@pytest.mark.parametrize("n", [2, 4, 30])
def test_one_value_per_person_is_students_interval(n):
    values = np.random.default_rng(0).normal(3, 2, size=n)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == (pytest.approx(values.mean()), *map(pytest.approx, wanted), n)


def test_people_against_the_sandwich_of_a_regression():
    """A mean is a regression on nothing: its cluster-robust error, from another package."""
    from statsmodels.regression.linear_model import OLS

    random = np.random.default_rng(1)
    people = random.integers(7, size=40)
    values = random.normal(size=40) + random.normal(size=7)[people]
    options = {"groups": people, "use_correction": False}
    error = OLS(values, np.ones(40)).fit(cov_type="cluster", cov_kwds=options).bse[0] * (7 / 6) ** 0.5
    half = stats.t.ppf(0.975, 6) * error
    found = mean_interval(values, people.tolist())
    assert found == tuple(map(pytest.approx, (values.mean(), values.mean() - half, values.mean() + half, 40)))


def test_copies_of_people_say_no_more():
    values = np.random.default_rng(0).normal(size=30)
    alone, copied = mean_interval(values), mean_interval(np.repeat(values, 10), np.repeat(np.arange(30), 10).tolist())
    assert copied[:3] == pytest.approx(alone[:3])
    assert copied.n == 300


TRIALS = 2000


@pytest.mark.parametrize("people", [4, 8])
@pytest.mark.parametrize("scans", [1, 3])
def test_intervals_of_few_people_hold_the_truth_as_often_as_they_say(people, scans):
    """Three scans of a person are alike; the bound is what 95 % give in 2,000 trials, but for 1 in 1,000."""
    random = np.random.default_rng(people + scans)
    persons = np.repeat(np.arange(people), scans).tolist()
    hits = 0
    for _ in range(TRIALS):
        values = np.repeat(random.normal(size=people), scans) + (random.normal(size=people * scans) if scans > 1 else 0)
        found = mean_interval(values, persons)
        hits += found.low <= 0 <= found.high
    low, high = stats.binom.interval(0.999, TRIALS, 0.95)
    assert low <= hits <= high


def test_what_is_missing_is_left_out():
    assert mean_interval([1.0, None, float("nan"), 3.0], ["a", "b", "c", "d"]) == mean_interval([1.0, 3.0])
    assert mean_interval([None, None]) == (None, None, None, 0)
    assert mean_interval([]) == (None, None, None, 0)
    assert mean_interval([1.0, 2.0], ["a", "a"]) == (1.5, None, None, 2)
    assert mean_interval([2.0] * 5) == (2.0, 2.0, 2.0, 5)
    with pytest.raises(ValueError, match="2 people for 3 values"):
        mean_interval([1.0, 2.0, 3.0], ["a", "b"])


def test_the_whole_interval_must_lie_on_the_right_side():
    found = Interval(2.0, 1.0, 3.0, 5)
    assert judged(found, "above", 0.9)
    assert judged(found, "above", 1.0) is False
    assert judged(found, "below", 3.1)
    assert judged(found, "below", 3.0) is False
    assert judged(Interval(2.0, None, None, 1), "above", 0) is None
    assert judged(Interval(None, None, None, 0), "below", 0) is None


def test_differences():
    assert differences([3.0, None, 1.0], [1.0, 1.0, None]) == [2.0, None, None]
    with pytest.raises(ValueError, match="explain the same scans"):
        differences([1.0], [1.0, 2.0])


def test_table():
    verdicts = [Verdict("a", None, "below", 0.5, None, 0, "nothing"), Verdict("b", 1.0, "above", 0.5, True, 3, "")]
    frame = verdict_table(verdicts)
    assert frame.columns == ["test", "value", "passes_if", "threshold", "passed", "n", "note"]
    assert frame.dtypes == [pl.String, pl.Float64, pl.String, pl.Float64, pl.Boolean, pl.Int64, pl.String]
    assert frame["passed"].to_list() == [None, True]
    assert verdict_table([]).schema == frame.schema


def test_interval_in_a_note():
    assert shown(Interval(1.0, 0.12345, 2, 3)) == ", 95 % interval 0.123 to 2"
    assert shown(Interval(1.0, None, None, 3)) == ""
