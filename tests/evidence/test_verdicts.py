"""The interval of a mean over people, and the table of verdicts."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.evidence.verdicts import Verdict, mean_interval, shown, verdict_table


def test_interval_of_a_mean_is_the_normal_one_for_many():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    mean, low, high, n = mean_interval(values)
    half = stats.norm.ppf(0.975) * values.std() / 20
    assert (mean, n) == (pytest.approx(values.mean()), 400)
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)


def test_scans_of_a_person_are_drawn_together():
    """Ten copies of every person say no more than one."""
    values = np.random.default_rng(0).normal(size=30)
    alone, copied = mean_interval(values), mean_interval(np.repeat(values, 10), np.repeat(np.arange(30), 10).tolist())
    assert copied[:3] == pytest.approx(alone[:3])
    assert copied[3] == 300


def test_what_is_missing_is_left_out():
    assert mean_interval([1.0, None, float("nan"), 3.0], ["a", "b", "c", "d"]) == mean_interval([1.0, 3.0])
    assert mean_interval([None, None]) == (None, None, None, 0)
    assert mean_interval([]) == (None, None, None, 0)
    assert mean_interval([1.0, 2.0], ["a", "a"]) == (1.5, None, None, 2)
    assert mean_interval([2.0] * 5) == (2.0, 2.0, 2.0, 5)
    with pytest.raises(ValueError, match="2 people for 3 values"):
        mean_interval([1.0, 2.0, 3.0], ["a", "b"])


def test_table():
    frame = verdict_table([Verdict("a", None, 0.5, False, 0, "nothing"), Verdict("b", 1.0, 0.5, True, 3, "")])
    assert frame.columns == ["test", "value", "threshold", "passed", "n", "note"]
    assert frame.dtypes == [pl.String, pl.Float64, pl.Float64, pl.Boolean, pl.Int64, pl.String]
    assert verdict_table([]).schema == frame.schema


def test_interval_in_a_note():
    assert shown(0.12345, 2) == ", 95 % interval 0.123 to 2"
    assert shown(None, None) == ""
