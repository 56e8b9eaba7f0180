"""The brain-age gap, and the same freed from the bias that every age regression has.

Belongs here: gap, linear correction, what dependence on age is left. Does not belong here: the prediction of
age, what the gap is related to.
"""

from __future__ import annotations

import numpy as np
import polars as pl

__all__ = ["age_dependence", "brain_age_gap"]


def brain_age_gap(predictions: pl.DataFrame) -> pl.DataFrame:
    """Predicted minus true age, as it is and corrected for age bias.

    A regression to the mean makes the young look older and the old look younger. With
    predicted = alpha * age + beta, fitted by least squares on the validation scans alone, the corrected
    prediction is predicted + (age - (alpha * age + beta)) (de Lange & Cole 2020, NeuroImage: Clinical
    26:102229), so the corrected gap is predicted - (alpha * age + beta): what is left of the prediction once that
    line is known. It uses the true age, so it must not be scored as a prediction (Butler et al. 2021, Human
    Brain Mapping 42:4092). Of the validation scans it is an in-sample residual.

    Parameters
    ----------
    predictions : scan, set ('validation' or 'test'), age, predicted_age; years; by models that never saw the
        scan.

    Returns
    -------
    scan, set, age, predicted_age, gap_years, corrected_gap_years; in the order given. The correction is null
    where fewer than three validation scans, or one age only, leave no line to fit.

    Raises
    ------
    ValueError
        A set other than 'validation', 'test' and 'new'.
    """
    strange = predictions.filter(~pl.col("set").is_in(["validation", "test", "new"]))
    if strange.height:
        raise ValueError(f"brain-age gap: scan {strange['scan'][0]} is of set {strange['set'][0]!r}")
    fitted = predictions.filter(pl.col("set") == "validation")
    line = pl.lit(None, dtype=pl.Float64)
    if fitted.height >= 3 and fitted["age"].n_unique() > 1:
        alpha, beta = _line(fitted["age"].to_numpy(), fitted["predicted_age"].to_numpy())
        line = alpha * pl.col("age") + beta
    return predictions.select(
        "scan",
        "set",
        pl.col("age").cast(pl.Float64),
        pl.col("predicted_age").cast(pl.Float64),
        gap_years=(pl.col("predicted_age") - pl.col("age")).cast(pl.Float64),
        corrected_gap_years=(pl.col("predicted_age") - line).cast(pl.Float64),
    )


def age_dependence(gaps: pl.DataFrame) -> pl.DataFrame:
    """Pearson's r of both gaps with age: set, r_gap, r_corrected_gap, n; null where undefined."""
    rows = []
    for (name,), group in gaps.sort("set").group_by("set", maintain_order=True):
        age = group["age"].to_numpy()
        values = [_correlation(age, group[column]) for column in ("gap_years", "corrected_gap_years")]
        rows.append((name, *values, group.height))
    schema = {"set": pl.String, "r_gap": pl.Float64, "r_corrected_gap": pl.Float64, "n": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept by least squares."""
    from_middle = x - x.mean()
    slope = float(from_middle @ y / (from_middle @ from_middle))
    return slope, float(y.mean() - slope * x.mean())


def _correlation(age: np.ndarray, gap: pl.Series) -> float | None:
    if gap.null_count() or len(gap) < 3 or np.ptp(age) == 0 or np.ptp(gap.to_numpy()) == 0:
        return None
    return float(np.corrcoef(age, gap.to_numpy())[0, 1])
