"""Linear models of a subject table with robust errors: group, age and sex together; shares by sex; age's curve.

Belongs here: estimates adjusted for covariates. Does not belong here: two groups without covariates (`groups.py`),
rank correlations (`profile_correlations.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from relevance_assets.statistics.lesion_profile import RATIOS, ZONES, age_burden
from relevance_assets.statistics.people import PANELS, People, correct, frame_of, group_is, in_panel

__all__ = ["COLUMNS", "OFFSET", "regressions", "robust_fit"]

COLUMNS = (
    *("analysis", "recipe", "variant", "stratum", "outcome", "term", "model", "filter", "estimate", "estimate_name"),
    *("ci_low", "ci_high", "p", "p_corrected", "p_fdr", "correction", "n"),
)
FAMILY = ("analysis", "variant", "term")
OFFSET = 0.001  # per cent, added to a ratio so that nobody's logarithm is infinite
CONSTANT = "constant"
_MEASURES = RATIOS[:2]
_ZONES_OF = {
    "MS, no lesion as 0 %": (),
    "MS with lesions": ("lesion_area > 0",),
    "MS with 25 px of lesions": ("lesion_area >= 25",),
}
Row = dict[str, Any]


def regressions(variants: Mapping[str, People]) -> pl.DataFrame:
    """Every model of the subject table.

    Sound, all by ordinary least squares with HC3 errors: `adjusted_group` (log(ratio + 0.001) on group, age, sex: the
    estimate is the factor of ratio + 0.001), `group_by_age` (the same with their product), `share_by_sex` (zone's share
    in percentage points on sex and age, of patients; of all with 0 % for who has no lesion, of those with lesions, of
    those with 25 px), `age_quadratic` (ratio on standardised age and its square, with R²). As published:
    `age_quadratic` without errors, and with the square of Pearson's r that the study prints as R².

    Returns
    -------
    analysis, recipe, variant, stratum, outcome, term, model, filter, estimate, estimate_name, ci_low, ci_high (95 %),
    p, p_corrected, p_fdr, correction, n. Corrected are families of one term; the constant is in none. A covariate that
    does not vary is left out of the model; a model without its first term, or more terms than people, has no rows.
    """
    rows: list[Row] = []
    for variant, people in variants.items():
        found = [*_adjusted(people), *_shares(people), *_curves(people), *_published(people)]
        rows += [{"variant": variant} | row for row in found]
    correct([row for row in rows if row["term"] != CONSTANT], FAMILY)
    return frame_of(rows, COLUMNS)


def robust_fit(outcome: np.ndarray, terms: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float, float, float]]:
    """Estimate, 95 % interval and p of the constant and every term, with HC3 errors and t with n - k degrees.

    HC3: (X'X)^-1 X' diag(e² / (1 - h)²) X (X'X)^-1 (MacKinnon and White 1985). A term that does not vary is left out.

    Returns
    -------
    By term; nothing where the first does not vary, or where people are too few or terms depend on each other.
    """
    import statsmodels.api as sm

    kept = {name: values for name, values in terms.items() if values.size and np.ptp(values) > 0}
    design = np.column_stack([np.ones(outcome.size), *kept.values()])
    if next(iter(terms)) not in kept or outcome.size <= design.shape[1]:
        return {}
    if np.linalg.matrix_rank(design / np.abs(design).max(axis=0)) < design.shape[1]:
        return {}
    with np.errstate(all="ignore"):  # who alone has some value has leverage 1: no error is known of that model
        fit = sm.OLS(outcome, design).fit(cov_type="HC3", use_t=True)
        ends = fit.conf_int(0.05)
        values = zip(fit.params, *ends.T, fit.pvalues, strict=True)
    return {name: (*map(float, row),) for name, row in zip((CONSTANT, *kept), values, strict=True)}  # type: ignore[misc]


def _fit(about: Row, people: People, outcome: np.ndarray, left: str, terms: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """The rows of one model; of a logarithm's model the estimates are factors."""
    log = left.startswith("log")
    found = robust_fit(outcome, terms)
    about = about | {"recipe": "sound", "filter": people.filter, "n": outcome.size}
    about["model"] = f"{left} ~ {' + '.join(name for name in found if name != CONSTANT)}"
    for term, (estimate, low, high, p) in found.items():
        with np.errstate(over="ignore"):  # of very few people an end is infinite, which tables leave out
            values = np.exp([estimate, low, high]) if log else (estimate, low, high)
        row = dict(zip(("estimate", "ci_low", "ci_high"), map(float, values), strict=True))
        name = f"factor of {left[4:-1]}" if log else "percentage points"
        yield about | row | {"term": term, "p": p, "estimate_name": name}


def _is(people: People, condition: str) -> np.ndarray:
    return people.frame.select(pl.sql_expr(condition)).to_series().cast(pl.Float64).to_numpy()


def _adjusted(people: People) -> Iterator[Row]:
    for measure in _MEASURES:
        some = people.where(group_is("HC", "MS")).known(measure, "age", "sex")
        outcome = np.log(some.frame[measure].to_numpy() + OFFSET)
        group, age, sex = _is(some, group_is("MS")), some.frame["age"].to_numpy(), some.frame["sex"].to_numpy()
        left = f"log({measure} + {OFFSET})"
        about = {"stratum": "all", "outcome": measure}
        terms = {"group: MS": group, "age": age, "sex: male": sex}
        yield from _fit(about | {"analysis": "adjusted_group"}, some, outcome, left, terms)
        terms = {"group: MS x age": group * age} | terms
        yield from _fit(about | {"analysis": "group_by_age"}, some, outcome, left, terms)


def _shares(people: People) -> Iterator[Row]:
    for stratum, conditions in _ZONES_OF.items():
        for zone in ZONES:
            measure = f"{zone}_ratio"
            some = people.where(group_is("MS"), *conditions).known(measure, "age", "sex")
            about = {"analysis": "share_by_sex", "stratum": stratum, "outcome": measure}
            terms = {"sex: male": some.frame["sex"].to_numpy(), "age": some.frame["age"].to_numpy()}
            yield from _fit(about, some, some.frame[measure].to_numpy(), measure, terms)


def _curves(people: People) -> Iterator[Row]:
    for panel in PANELS:
        for group in ("HC", "MS"):
            stratum, measure, some = in_panel(people, panel, group)
            age, values = some.frame["age"].to_numpy(), some.frame[measure].to_numpy()
            if np.unique(age).size < 3:
                continue
            z = (age - age.mean()) / age.std(ddof=1)
            about = {"analysis": "age_quadratic", "stratum": stratum, "outcome": measure}
            yield from (rows := list(_fit(about, some, values, measure, {"age (z)": z, "age (z) squared": z**2})))
            if rows and np.ptp(values) > 0:
                rest = np.polyval(np.polyfit(z, values, 2), z) - values
                r_squared = 1 - float((rest**2).sum() / ((values - values.mean()) ** 2).sum())
                no_error = dict.fromkeys(("ci_low", "ci_high", "p"))
                yield rows[0] | no_error | {"term": "r_squared", "estimate": r_squared, "estimate_name": "R²"}


def _published(people: People) -> Iterator[Row]:
    """The study's quadratic; `r_squared_as_published` is Pearson's r squared, which says nothing of a quadratic."""
    names = {"c0": CONSTANT, "c1": "age (z)", "c2": "age (z) squared", "r_squared": "r_squared_as_published"}
    for row in age_burden(people.frame).iter_rows(named=True):
        stratum, measure, some = in_panel(people, row["panel"], row["group"])
        about = {"analysis": "age_quadratic", "recipe": "as_published", "stratum": stratum, "outcome": measure}
        about |= {"model": f"{measure} ~ age (z) + age (z) squared", "filter": some.filter, "n": row["n"]}
        for column, term in names.items():
            name = "Pearson's r squared" if column == "r_squared" else "percentage points"
            yield about | {"term": term, "estimate": row[column], "estimate_name": name}
