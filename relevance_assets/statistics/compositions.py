"""Shares of the zones as a composition: centred log-ratios, compared between groups and sexes, and with age.

Three shares that sum to one cannot vary by themselves: where one rises another must fall. Their centred log-ratios say
how a zone stands to the mean of all. Belongs here: that transform and the questions asked of it. Does not belong here:
the tests (`groups.py`, `profile_correlations.py`).

Source: Aitchison (1986); zeros by multiplicative replacement, Martin-Fernandez et al. (2003).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from relevance_assets.statistics import groups, profile_correlations
from relevance_assets.statistics.groups import GROUPS, SEXES, Draw, Sides, sound_tests
from relevance_assets.statistics.lesion_profile import ZONES
from relevance_assets.statistics.people import People, correct, frame_of, group_is
from relevance_assets.statistics.profile_correlations import rank_correlation

__all__ = ["DELTAS", "centred_log_ratio", "composition_comparisons", "composition_correlations"]

DELTAS = (0.001, 0.005, 0.02)  # what a zero is taken for: results that depend on it are none
_SUM = " + ".join(f"{zone}_area" for zone in ZONES)
Row = dict[str, Any]


def centred_log_ratio(parts: np.ndarray, delta: float) -> np.ndarray:
    """Log of each part's share less the mean log of all parts' shares, zeros replaced.

    Parameters
    ----------
    parts : (n, k) not negative, of any unit; each row sums to more than 0.
    delta : what a share of zero is taken for; the others shrink by 1 - delta times the number of zeros, so that their
        ratios stay.

    Returns
    -------
    (n, k), rows sum to 0.

    Raises
    ------
    ValueError
        A row without a positive sum, a part below 0, a delta that leaves the other parts nothing.
    """
    parts = np.asarray(parts, dtype=np.float64)
    total = parts.sum(axis=1, keepdims=True)
    if not (np.all(total > 0) and np.all(parts >= 0)):
        raise ValueError("composition: parts must not be negative and must sum to more than 0; leave such rows out")
    if not 0 < delta < 1 / max(parts.shape[1] - 1, 1):
        raise ValueError(f"composition: a zero cannot be taken for a share of {delta}; give a small positive one")
    shares, zero = parts / total, parts == 0
    logs = np.log(np.where(zero, delta, shares * (1 - delta * zero.sum(axis=1, keepdims=True))))
    return logs - logs.mean(axis=1, keepdims=True)


def _in(people: People, *conditions: str) -> People:
    return people.where(*conditions, f"{_SUM} > 0")


def _ratios(people: People, delta: float) -> dict[str, np.ndarray]:
    """Centred log-ratio by name of measure, (n,) each."""
    areas = people.frame.select(f"{zone}_area" for zone in ZONES).to_numpy()
    values = centred_log_ratio(areas, delta) if len(areas) else areas
    return {f"clr_{zone}": values[:, i] for i, zone in enumerate(ZONES)}


def composition_comparisons(variants: Mapping[str, People], draw: Draw) -> pl.DataFrame:
    """Groups, and sexes of the patients, compared in each zone's centred log-ratio; rows as in `group_comparisons`.

    The analyses are named by what zeros were taken for. Who has no lesion is left out: n_a and n_b say how many stay.
    """
    rows: list[Row] = []
    for variant, people in variants.items():
        for delta in DELTAS:
            for question, stratum, some, sides in (
                ("groups", "all", people, GROUPS),
                ("sexes", "MS", people.where(group_is("MS")), SEXES),
            ):
                about = {"analysis": f"composition_of_{question}_zeros_{delta:g}", "variant": variant}
                rows += [about | {"stratum": stratum} | row for row in _compare(some, sides, delta, draw)]
    correct(rows, groups.FAMILY)
    return frame_of(rows, groups.COLUMNS, groups.NUMBERS)


def _compare(people: People, sides: Sides, delta: float, draw: Draw) -> list[Row]:
    name_a, condition_a, name_b, condition_b = sides
    a, b = (_in(people, condition) for condition in (condition_a, condition_b))
    if not (a.frame.height and b.frame.height):
        return []
    about = {"recipe": "sound", "group_a": name_a, "group_b": name_b, "n_a": a.frame.height, "n_b": b.frame.height}
    about["filter"] = _in(people, f"({condition_a} OR {condition_b})").filter
    of_a, of_b = _ratios(a, delta), _ratios(b, delta)
    return [about | {"measure": name} | row for name in of_a for row in sound_tests(of_a[name], of_b[name], draw)]


def composition_correlations(variants: Mapping[str, People]) -> pl.DataFrame:
    """Spearman of age and each zone's centred log-ratio, alone and given sex; rows as in `correlations`."""
    rows: list[Row] = []
    for variant, people in variants.items():
        for delta in DELTAS:
            for group in ("HC", "MS"):
                some = _in(people, group_is(group)).known("age", "sex")
                age, sex = some.frame["age"].to_numpy(), some.frame["sex"].to_numpy()
                about = {"analysis": f"composition_zeros_{delta:g}", "recipe": "sound", "variant": variant}
                about |= {"stratum": group, "x": "age", "filter": some.filter}
                for name, values in _ratios(some, delta).items() if some.frame.height else ():
                    for method, given in (("spearman", []), ("partial spearman given sex", [sex])):
                        rows.append(about | {"y": name, "method": method} | rank_correlation(age, values, given))
    correct(rows, profile_correlations.FAMILY)
    return frame_of(rows, profile_correlations.COLUMNS)
