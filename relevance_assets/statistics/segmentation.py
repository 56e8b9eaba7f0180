"""How good segmentations are over a cohort, and how well two sources of masks agree on burdens.

Belongs here: means over scans, agreement over scans. Does not belong here: measures of one scan
(`segmentation.metrics`, `lesions/`), groups of people (`groups.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from relevance_assets.segmentation.metrics import pooled
from relevance_assets.statistics.resampling import draw_weights, percentile_interval
from relevance_assets.study import Statistics

__all__ = ["AGREEMENT", "SUMMARY", "source_agreement", "summary"]

SUMMARY = {
    **dict.fromkeys(("class", "metric", "form"), pl.String),
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64),
    **dict.fromkeys(("n", "resamples"), pl.Int64),
}
AGREEMENT = {
    **dict.fromkeys(("source_a", "source_b", "rule", "zone"), pl.String),
    "n": pl.Int64,
    **dict.fromkeys(("pearson", "concordance", "ci_low", "ci_high", "difference_mm3"), pl.Float64),
    **dict.fromkeys(("limit_low_mm3", "limit_high_mm3"), pl.Float64),
    "resamples": pl.Int64,
}


def summary(scores: pl.DataFrame, counts: pl.DataFrame, settings: Statistics) -> pl.DataFrame:
    """Mean of every measure over scans, and what the publication's pooling makes of the same scans.

    Parameters
    ----------
    scores
        scan, class, metric, value (null where undefined, which is left out).
    counts
        Rows of `segmentation.metrics.pooled_counts` with their scan.
    settings
        Bootstrap over people, all scans of one together; percentile intervals.

    Returns
    -------
    DataFrame, columns of `SUMMARY`
        form: `mean_over_scans`, or `pooled_as_published`, which has no interval. n: scans.
    """
    rows: list[dict[str, Any]] = []
    for (name, metric), part in scores.drop_nulls("value").group_by("class", "metric", maintain_order=True):
        values = part["value"].to_numpy()
        seed = [settings.seed, zlib.crc32(f"{name} {metric}".encode())]
        means = _resampled(_persons(part), settings, seed, partial(_means, values))
        low, high, resamples = percentile_interval(means, settings.confidence)
        row = {"class": name, "metric": metric, "form": "mean_over_scans", "value": float(values.mean())}
        rows.append(row | {"ci_low": low, "ci_high": high, "n": len(values), "resamples": resamples})
    scans = counts["scan"].n_unique()
    rows += [row | {"form": "pooled_as_published", "n": scans} for row in pooled(counts).iter_rows(named=True)]
    return pl.DataFrame(rows, schema=SUMMARY)


def source_agreement(burdens: pl.DataFrame, settings: Statistics) -> pl.DataFrame:
    """How far two sources of masks find the same volumes in the same zones.

    Parameters
    ----------
    burdens
        scan, source, rule, zone, volume_mm3.
    settings
        Bootstrap over people, all scans of one together; percentile intervals.

    Returns
    -------
    DataFrame, columns of `AGREEMENT`
        Over the n scans that both sources have: Pearson's r; Lin's concordance 2 s_ab / (s_a^2 + s_b^2 + (m_a - m_b)^2)
        (Lin 1989, Biometrics 45:255) with its interval; mean difference b - a and limits of agreement, 1.96 standard
        deviations (n - 1) to both sides (Bland & Altman 1986). Null where undefined.
    """
    names = burdens["source"].unique().sort().to_list()
    rows = []
    for a, b in combinations(names, 2):
        pairs = burdens.filter(source=a).join(burdens.filter(source=b), on=["scan", "rule", "zone"], suffix="_b")
        for (rule, zone), part in pairs.sort("scan").group_by("rule", "zone", maintain_order=True):
            x, y = part["volume_mm3"].to_numpy(), part["volume_mm3_b"].to_numpy()
            seed = [settings.seed, zlib.crc32(f"{a} {b} {rule} {zone}".encode())]
            draws = _resampled(_persons(part), settings, seed, partial(_concordance, x, y))
            alike = np.ones((1, len(x)))
            pearson, concordance = (_known(measure(x, y, alike)[0]) for measure in (_pearson, _concordance))
            low, high, resamples = percentile_interval(draws, settings.confidence)
            difference = float((y - x).mean())
            reach = 1.96 * float((y - x).std(ddof=1)) if len(x) > 1 else None
            rows.append(
                {"source_a": a, "source_b": b, "rule": rule, "zone": zone, "n": len(x)}
                | {"pearson": pearson, "concordance": concordance, "ci_low": low, "ci_high": high}
                | {"difference_mm3": difference, "resamples": resamples}
                | {"limit_low_mm3": None if reach is None else difference - reach}
                | {"limit_high_mm3": None if reach is None else difference + reach}
            )
    return pl.DataFrame(rows, schema=AGREEMENT)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """In every resample: weights (resamples, n)."""
    found: np.ndarray = (weights @ values) / weights.sum(axis=1)
    return found


def _moments(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """In every resample: mean x - mean y, variances (n), covariance."""
    means = _means(x, weights), _means(y, weights)
    a, b = (values - mean[:, None] for values, mean in zip((x, y), means, strict=True))
    total = weights.sum(axis=1)
    return (means[0] - means[1], *((weights * product).sum(axis=1) / total for product in (a * a, b * b, a * b)))


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r in every resample; NaN where one does not vary."""
    _, spread_x, spread_y, shared = _moments(x, y, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = shared / np.sqrt(spread_x * spread_y)
    return found


def _concordance(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Lin's coefficient in every resample; NaN where all of both are one number."""
    apart, spread_x, spread_y, shared = _moments(x, y, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = 2 * shared / (spread_x + spread_y + apart**2)
    return found


def _resampled(
    persons: list[str], settings: Statistics, seed: list[int], measure: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A measure of the weights of every resample of people, some hundred resamples at a time."""
    random = np.random.default_rng(seed)
    weights = draw_weights(persons, len(persons), settings.bootstrap, random)
    return np.concatenate([measure(part) for part in np.array_split(weights, -(-len(weights) // 500))])


def _persons(frame: pl.DataFrame) -> list[str]:
    return frame["scan"].str.split("_").list.first().to_list()


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
