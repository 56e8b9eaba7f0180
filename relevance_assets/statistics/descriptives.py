"""What a subject table's measures are like in each stratum: as MS-DeepBrain-Study printed it, and soundly.

Belongs here: means, medians, quartiles with their intervals. Does not belong here: comparisons (`groups.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.groups import FEWEST, Draw
from relevance_assets.statistics.lesion_profile import AREAS, BANDS, RATIOS, ZONES, band_summary, detailed
from relevance_assets.statistics.people import BY_BAND, BY_SEX, EVERYBODY, People, frame_of, group_is, with_lesions
from relevance_assets.statistics.resampling import percentile_interval

__all__ = ["COLUMNS", "descriptives", "mean_interval", "median_interval"]

COLUMNS = (
    *("analysis", "recipe", "variant", "measure", "stratum", "statistic", "filter", "value", "ci_low", "ci_high", "n"),
)
MEASURES = ("age", *AREAS, *RATIOS)
# measures whose tables print -/+ half an SD around the median as quartiles
FAKE_QUARTILES = ("ventricle_area", "ventricle_ratio", "lesion_area", "lesion_ratio")
MANY = 200  # people of whom the mean is as good as normal: the bootstrap would say the same as t
_OF_SEX = {1: ("male", "sex = 1"), 0: ("female", "sex = 0")}
_GROUPS = ("HC", "MS")
Row = dict[str, Any]


def descriptives(variants: Mapping[str, People], draw: Draw) -> pl.DataFrame:
    """Every descriptive number of the subject table.

    As published: `bands_by_sex` (with the fake quartiles `iqr_25_as_published`, `iqr_75_as_published`), `zones_by_band`
    (patients, who has no lesion counted as 0 %), `zones_over_bands` (unweighted mean of the bands' means, median of
    their medians, ranges), `table_1` (ages and Table 1's other measures by group, linear quartiles). Sound: `people`
    (by group; by group and sex, band, or both): mean with Student's interval, which may reach below 0 where the measure
    cannot; of 5 to 200 people `mean_bootstrap`, the same mean with a percentile interval, which cannot but is too
    narrow in few; SD, quartiles, median with the exact interval of order statistics, range; shares only of people with
    lesions, and `share_with_lesions` with Wilson's interval.

    Parameters
    ----------
    variants : people by variant, as `people.variants` gives them.
    draw : as `groups.draws` gives it.

    Returns
    -------
    analysis, recipe, variant, measure, stratum, statistic, filter, value, ci_low, ci_high (95 %), n.
    """
    rows: list[Row] = []
    for variant, people in variants.items():
        rows += [{"variant": variant} | row for row in itertools.chain(_published(people), _sound(people, draw))]
    return frame_of(rows, COLUMNS)


def mean_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 % interval of the mean by Student's t; None of fewer than two."""
    if values.size < 2:
        return None, None
    reach = stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean() - reach), float(values.mean() + reach)


def median_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """The narrowest symmetric pair of order statistics that holds the median with 95 % or more, whatever the law.

    None of fewer than six: then even the range holds it less often (Conover 1999, 3.2).
    """
    below = int(stats.binom.ppf(0.025, values.size, 0.5))
    if stats.binom.cdf(below - 1, values.size, 0.5) > 0.025 or below < 1:
        return None, None
    ordered = np.sort(values)
    return float(ordered[below - 1]), float(ordered[values.size - below])


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    sd = values.std(ddof=1) if values.size > 1 else float("nan")
    found = {"mean": values.mean(), "sd": sd, "minimum": values.min(), "lower_quartile": low}
    return {
        k: float(v) for k, v in (found | {"median": middle, "upper_quartile": high, "maximum": values.max()}).items()
    }


def _rows(about: Row, found: Mapping[str, float]) -> Iterator[Row]:
    for statistic, value in found.items():
        yield about | {"statistic": statistic, "value": value}


def _published(people: People) -> Iterator[Row]:
    for measure in FAKE_QUARTILES:
        for row in detailed(people.frame.drop_nulls(measure), measure).iter_rows(named=True):
            sex, condition = _OF_SEX[row["sex"]]
            some = people.where(group_is(row["group"]), *BY_BAND[row["band"]], condition).known(measure)
            about: Row = {
                "analysis": "bands_by_sex",
                "recipe": "as_published",
                "measure": measure,
                "filter": some.filter,
            }
            about |= {"stratum": f"{row['group']} {row['band']} {sex}", "n": row["n"]}
            found = {name: row[name] for name in ("mean", "sd", "minimum", "maximum", "median")}
            yield from _rows(about, found | {"iqr_25_as_published": row["low"], "iqr_75_as_published": row["high"]})
    patients = people.where(group_is("MS"))
    zones = tuple(f"{zone}_{kind}" for zone in ZONES for kind in ("area", "ratio"))
    for (sex, one), (band, other) in itertools.product((EVERYBODY | BY_SEX).items(), BY_BAND.items()):
        stratum = f"MS {band}" if sex == "all" else f"MS {band} {sex}"
        for measure in zones:
            yield from _plain("zones_by_band", stratum, measure, patients.where(*one, *other))
    for row in band_summary(people.frame).iter_rows(named=True):
        conditions = (EVERYBODY | BY_SEX)[row["subgroup"].lower()]
        some = patients.where("band IS NOT NULL", *conditions)
        about = {"analysis": "zones_over_bands", "recipe": "as_published", "measure": f"{row['zone']}_ratio"}
        about |= {"stratum": "MS" if not conditions else f"MS {row['subgroup'].lower()}", "n": row["n"]}
        found = {k: v for k, v in row.items() if k not in ("subgroup", "zone", "n")}
        yield from _rows(about | {"filter": some.filter}, found)
    for group, (sex, conditions) in itertools.product(_GROUPS, (EVERYBODY | BY_SEX).items()):
        some = people.where(group_is(group), *conditions)
        for measure in ("age", "intracranial_area", *RATIOS):
            yield from _plain("table_1", group if sex == "all" else f"{group} {sex}", measure, some)


def _plain(analysis: str, stratum: str, measure: str, people: People) -> Iterator[Row]:
    some = people.known(measure)
    if some.frame.height:
        about: Row = {"analysis": analysis, "recipe": "as_published", "measure": measure, "stratum": stratum}
        about |= {"filter": some.filter, "n": some.frame.height}
        yield from _rows(about, _spread(some.frame[measure].to_numpy()))


def _sound(people: People, draw: Draw) -> Iterator[Row]:
    both = {f"{b} {s}": (*BY_BAND[b], *BY_SEX[s]) for b in BANDS for s in BY_SEX}
    for group, (name, conditions) in itertools.product(_GROUPS, (EVERYBODY | BY_SEX | BY_BAND | both).items()):
        stratum = group if name == "all" else f"{group} {name}"
        some = people.where(group_is(group), *conditions)
        about = {"analysis": "people", "recipe": "sound", "stratum": stratum}
        for measure in MEASURES:
            known = some.where(*with_lesions(measure)).known(measure)
            if known.frame.height:
                of = about | {"measure": measure, "filter": known.filter, "n": known.frame.height}
                yield from _estimates(of, known.frame[measure].to_numpy(), draw)
        known = some.known("lesion_area")
        if n := known.frame.height:
            count = int((known.frame["lesion_area"] > 0).sum())
            interval = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
            row = {"measure": "lesion_area", "statistic": "share_with_lesions", "filter": known.filter, "n": n}
            yield about | row | {"value": count / n, "ci_low": interval.low, "ci_high": interval.high}


def _estimates(about: Row, values: np.ndarray, draw: Draw) -> Iterator[Row]:
    intervals = {"mean": mean_interval(values), "median": median_interval(values)}
    found = _spread(values)
    if FEWEST <= values.size <= MANY:
        means = draw(values.size, 0) @ values.astype(np.float32) / values.size
        intervals["mean_bootstrap"] = percentile_interval(means, 0.95)[:2]
        found["mean_bootstrap"] = found["mean"]
    for row in _rows(about, found):
        low, high = intervals.get(row["statistic"], (None, None))
        yield row | {"ci_low": low, "ci_high": high}
