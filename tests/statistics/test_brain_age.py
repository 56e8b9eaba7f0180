"""The gap and its correction: de Lange & Cole's formula, fitted on validation scans, applied to test scans."""

import numpy as np
import polars as pl
import pytest

from relevance_assets.statistics.brain_age import age_dependence, brain_age_gap


def predictions(n: int = 200, seed: int = 0) -> pl.DataFrame:
    """A prediction that regresses to the mean of 50 years: slope 0.6."""
    random = np.random.default_rng(seed)
    age = random.uniform(20, 80, n)
    return pl.DataFrame(
        {
            "scan": [f"sub-{i}" for i in range(n)],
            "set": ["test" if i % 4 == 0 else "validation" for i in range(n)],
            "age": age,
            "predicted_age": 0.6 * age + 20 + random.normal(size=n) * 5,
        }
    )


def test_the_correction_is_the_published_formula_with_validation_coefficients() -> None:
    frame = predictions()
    fitted = frame.filter(pl.col("set") == "validation")
    alpha, beta = np.polyfit(fitted["age"], fitted["predicted_age"], 1)
    result = brain_age_gap(frame)
    assert result.columns == ["scan", "set", "age", "predicted_age", "gap_years", "corrected_gap_years"]
    assert result["scan"].to_list() == frame["scan"].to_list()
    age, said = frame["age"].to_numpy(), frame["predicted_age"].to_numpy()
    corrected_prediction = said + (age - (alpha * age + beta))
    assert result["gap_years"].to_numpy() == pytest.approx(said - age)
    assert result["corrected_gap_years"].to_numpy() == pytest.approx(corrected_prediction - age, abs=1e-9)


def test_test_scans_do_not_shape_the_correction() -> None:
    frame = predictions()
    shifted = frame.with_columns(
        predicted_age=pl.when(pl.col("set") == "test").then(pl.col("predicted_age") + 100).otherwise("predicted_age")
    )
    before, after = brain_age_gap(frame), brain_age_gap(shifted)
    validation = before["set"] == "validation"
    assert before.filter(validation).equals(after.filter(validation))
    moved = after.filter(~validation)["corrected_gap_years"] - before.filter(~validation)["corrected_gap_years"]
    assert moved.to_numpy() == pytest.approx(100)


def test_the_dependence_on_age_goes() -> None:
    left = age_dependence(brain_age_gap(predictions()))
    assert left["set"].to_list() == ["test", "validation"]
    assert left["n"].to_list() == [50, 150]
    assert (left["r_gap"] < -0.7).all()
    assert abs(left["r_corrected_gap"][0]) < 0.35, "out of sample: small"
    assert abs(left["r_corrected_gap"][1]) < 1e-9, "in sample: none"


def test_too_little_to_fit_leaves_the_correction_null() -> None:
    few = predictions(3)
    assert brain_age_gap(few)["corrected_gap_years"].null_count() == 3
    assert brain_age_gap(few)["gap_years"].null_count() == 0
    one_age = predictions(20).with_columns(age=pl.lit(50.0))
    assert brain_age_gap(one_age)["corrected_gap_years"].null_count() == 20
    left = age_dependence(brain_age_gap(one_age))
    assert left["r_gap"].null_count() == left["r_corrected_gap"].null_count() == 2


def test_a_training_scan_has_no_gap() -> None:
    frame = predictions(8).with_columns(set=pl.lit("train"))
    with pytest.raises(ValueError, match="scan sub-0 is of set 'train'"):
        brain_age_gap(frame)
