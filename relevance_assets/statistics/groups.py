"""Two groups of people compared in every measure: as MS-DeepBrain-Study published it, and soundly.

Belongs here: tests of two groups with their effect sizes. Does not belong here: covariates (`regressions.py`), shares
that sum to one (`compositions.py`), who is compared (conditions of `people.py`).

In every row b is compared with a: U counts the pairs in which b is the greater (ties half), differences are b minus a,
and a positive effect says that b has more.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.lesion_profile import AREAS, RATIOS, ZONES
from relevance_assets.statistics.people import (
    BY_BAND,
    BY_SEX,
    EVERYBODY,
    People,
    correct,
    frame_of,
    group_is,
    with_lesions,
)
from relevance_assets.statistics.resampling import percentile_interval

__all__ = ["COLUMNS", "Draw", "draws", "group_comparisons", "published_test", "sound_tests"]

COLUMNS = (
    *("analysis", "recipe", "variant", "measure", "stratum", "group_a", "group_b", "filter", "test", "statistic"),
    *("effect", "effect_name", "ci_low", "ci_high", "p", "p_corrected", "p_fdr", "correction", "n_a", "n_b"),
)
MEASURES = ("age", *AREAS, *RATIOS)
SHARES = tuple(f"{zone}_ratio" for zone in ZONES)
# what the two sexes are compared in as published: six tests, alpha 0.0083
OF_ZONES = tuple(f"{zone}_{kind}" for zone in ZONES for kind in ("area", "ratio"))
NUMBERS = ("statistic",)
FAMILY = ("analysis", "variant", "test")
FEWEST = 5  # people on either side for a bootstrap: of fewer it says nothing
_BLOCK = 1000
_CONFIDENCE = 0.95
_U = "mann_whitney"
Row = dict[str, Any]
Draw = Callable[[int, int], np.ndarray]
Test = Callable[[np.ndarray, np.ndarray], Row | Sequence[Row] | None]
Sides = tuple[str, str, str, str]  # a, its condition, b, its condition

GROUPS: Sides = ("HC", group_is("HC"), "MS", group_is("MS"))
SEXES: Sides = ("female", "sex = 0", "male", "sex = 1")


def group_comparisons(variants: Mapping[str, People], draw: Draw) -> pl.DataFrame:
    """Every comparison of controls with patients, and of women with men among the patients.

    Analyses as published: `groups_version_1` and `_2` (all measures by the gate of `published_test`), `sexes_version_1`
    and `_2` (zones, Bonferroni over six), `table_1` (Student's t of age, head and ventricles and Mann-Whitney of
    lesions, whatever the gate says; chi-squared of sex with Yates' correction), `table_3` (zones' shares by sex,
    Student's t beside Mann-Whitney). Sound: `groups`, `groups_by_sex`, `groups_by_band`, `sexes`, each with both tests
    of `sound_tests`; shares only of people with lesions; `sex_of_groups` (chi-squared, odds ratio).

    Parameters
    ----------
    variants : people by variant, as `people.variants` gives them.
    draw : as `draws` gives it.

    Returns
    -------
    analysis, recipe, variant, measure, stratum, group_a, group_b, filter, test, statistic, effect, effect_name, ci_low,
    ci_high (95 %), p, p_corrected, p_fdr, correction, n_a, n_b. `filter` is an SQL condition on the variant's subjects
    that gives n_a + n_b people. A comparison without anybody on one side has no row.
    """
    rows: list[Row] = []
    for variant, people in variants.items():
        found = [*_published(people), *_sound(people, draw)]
        rows += [{"variant": variant} | row for row in found]
    correct(rows, FAMILY)
    return frame_of(rows, COLUMNS, NUMBERS)


# ------------------------------------------------------------------------------------------------------- as published
def published_test(a: np.ndarray, b: np.ndarray, version: int) -> Row | None:
    """The study's test of two samples: its gate chooses Student's t with Cohen's d, or Mann-Whitney with r.

    Gate: in both Shapiro-Wilk p > 0.05 and |skewness| < 2, in version 2 |kurtosis| < 7 too. r = |z| / sqrt(N), with z
    the normal quantile of p / 2 in version 1, of 1 - p / 2 in version 2, which rounds to infinity below p of 1e-16;
    of p = 0 version 2 makes 0. An infinite r is kept as such: a table has null there.

    Returns
    -------
    test, statistic, p, effect, effect_name; None of fewer than three on a side, where the study does not test.
    """
    if min(a.size, b.size) < 3:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of samples that do not vary
        normal = all(
            stats.shapiro(x).pvalue > 0.05 and abs(stats.skew(x)) < 2 and (version == 1 or abs(stats.kurtosis(x)) < 7)
            for x in (a, b)
        )
        return _student(a, b) if normal else _published_rank(a, b, version)


def _student(a: np.ndarray, b: np.ndarray) -> Row | None:
    if min(a.size, b.size) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of samples that do not vary
        found = stats.ttest_ind(b, a)
    row = {"test": "student_t", "statistic": float(found.statistic), "p": float(found.pvalue)}
    return row | {"effect": _cohen(a, b), "effect_name": "Cohen's d"}


def _published_rank(a: np.ndarray, b: np.ndarray, version: int = 1) -> Row:
    found = stats.mannwhitneyu(b, a, alternative="two-sided")
    p = float(found.pvalue)
    if version == 1:
        z, name = abs(stats.norm.ppf(p / 2)), "r = |z(p / 2)| / sqrt(N)"
    else:
        z, name = stats.norm.ppf(1 - p / 2) if p > 0 else 0.0, "r = |z(1 - p / 2)| / sqrt(N)"
    r = float(abs(z) / np.sqrt(a.size + b.size))
    return {"test": _U, "statistic": float(found.statistic), "p": p, "effect": r, "effect_name": name}


def _cohen(a: np.ndarray, b: np.ndarray) -> float:
    """Difference of means over the pooled SD; NaN where neither side varies."""
    if np.ptp(a) == np.ptp(b) == 0:
        return float("nan")
    squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
    return float((b.mean() - a.mean()) / np.sqrt(squares / (a.size + b.size - 2)))


def _published(people: People) -> Iterator[Row]:
    patients = people.where(group_is("MS"))
    for version in (1, 2):
        gated = partial(published_test, version=version)
        for measure in MEASURES:
            yield from _pair(f"groups_version_{version}", people, GROUPS, "all", measure, gated)
        for measure in OF_ZONES:
            for row in _pair(f"sexes_version_{version}", patients, SEXES, "MS", measure, gated):
                yield row | _bonferroni(row["p"], len(OF_ZONES))
    for stratum, conditions in (EVERYBODY | BY_SEX).items():
        yield from _pair("table_1", people.where(*conditions), GROUPS, stratum, "age", _student)
    for measure in ("intracranial_area", "ventricle_ratio"):
        yield from _pair("table_1", people, GROUPS, "all", measure, _student)
    for measure in ("lesion_ratio", *SHARES):
        yield from _pair("table_1", people, GROUPS, "all", measure, _published_rank)
    yield from _chi_squared("table_1", "as_published", people)
    tests: tuple[Test, ...] = (_student, _published_rank)
    for measure, tested in itertools.product(SHARES, tests):
        yield from _pair("table_3", patients, SEXES, "MS", measure, tested)


def _bonferroni(p: float, tests: int) -> Row:
    return {"p_corrected": min(1.0, p * tests), "correction": f"bonferroni over {tests}, as published"}


def _pair(
    analysis: str,
    people: People,
    sides: Sides,
    stratum: str,
    measure: str,
    tested: Test,
    recipe: str = "as_published",
) -> Iterator[Row]:
    """Rows of one measure of the two sides' people; none where a side has nobody."""
    name_a, condition_a, name_b, condition_b = sides
    both = people.where(f"({condition_a} OR {condition_b})").known(measure)
    a, b = (both.where(condition).frame[measure].to_numpy() for condition in (condition_a, condition_b))
    if not (a.size and b.size):
        return
    about: Row = {"analysis": analysis, "recipe": recipe, "measure": measure, "stratum": stratum, "group_a": name_a}
    about |= {"group_b": name_b, "filter": both.filter, "n_a": a.size, "n_b": b.size}
    found = tested(a, b)
    for row in [found] if isinstance(found, dict) else found or ():
        yield about | row


def _chi_squared(analysis: str, recipe: str, people: People) -> Iterator[Row]:
    """Sexes of the two groups: chi-squared with Yates' correction as published; else without, and the odds ratio."""
    both = people.where(group_is("HC", "MS"), "sex IN (0, 1)")
    table = np.array([[both.where(g, s).frame.height for s in SEXES[1::2]] for g in GROUPS[1::2]], dtype=float)
    if not (table.sum(axis=0).all() and table.sum(axis=1).all()):
        return
    yates = recipe == "as_published"
    found = stats.chi2_contingency(table, correction=yates)
    row: Row = {
        "analysis": analysis,
        "recipe": recipe,
        "measure": "sex",
        "stratum": "all",
        "group_a": "HC",
        "group_b": "MS",
    }
    row |= {"filter": both.filter, "test": "chi_squared_yates" if yates else "chi_squared"}
    row |= {"statistic": float(found.statistic), "p": float(found.pvalue)}
    row |= {"n_a": int(table[0].sum()), "n_b": int(table[1].sum())}
    if not yates and table.all():  # Woolf's interval needs somebody in every cell
        log_odds = np.log(table[1, 1] * table[0, 0] / (table[1, 0] * table[0, 1]))
        reach = stats.norm.ppf((1 + _CONFIDENCE) / 2) * np.sqrt((1 / table).sum())
        row |= {"effect": float(np.exp(log_odds)), "effect_name": "odds ratio of being male"}
        row |= {"ci_low": float(np.exp(log_odds - reach)), "ci_high": float(np.exp(log_odds + reach))}
    yield row


# -------------------------------------------------------------------------------------------------------------- sound
def draws(resamples: int, seed: int) -> Draw:
    """Bootstrap weights by number of people and side (0 for a, 1 for b): (resamples, n) float32, whole numbers.

    People of a side are drawn with replacement, independently of the other side. The same number and side have the same
    weights whatever was drawn before; of all of them the last few are kept.
    """

    @lru_cache(maxsize=4)  # 40 MB for a thousand people and 10,000 resamples
    def draw(n: int, side: int) -> np.ndarray:
        random = np.random.default_rng([seed, side, n])
        weights = np.empty((resamples, n), dtype=np.float32)
        for start in range(0, resamples, 32):  # so few stay in the cache: five times as fast as a thousand
            block = weights[start : start + 32]
            who = random.integers(0, n, size=block.shape, dtype=np.int32) + n * np.arange(len(block))[:, None]
            block[:] = np.bincount(who.ravel(), minlength=block.size).reshape(block.shape)
        return weights

    return draw


def sound_tests(a: np.ndarray, b: np.ndarray, draw: Draw) -> list[Row]:
    """Mann-Whitney with the rank-biserial correlation, and Welch's t with Hedges' g; both with percentile intervals.

    Rank-biserial: 2 U / (n_a n_b) - 1, U with ties counted half (Kerby 2014). g: the difference of means over the
    pooled SD, times 1 - 3 / (4 (n_a + n_b) - 9) (Hedges 1981). In a resample U is w_a' K w_b, with w how often each
    person was drawn and K which of a pair is greater: whole and half numbers, exact in single precision.

    Parameters
    ----------
    a, b : (n,) finite values of the two sides, not empty.
    draw : as `draws` gives it.

    Returns
    -------
    Two rows of test, statistic, p, effect, effect_name, ci_low, ci_high. No interval where a side has fewer than five;
    no t where it has one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of samples that do not vary
        ranks, welch = stats.mannwhitneyu(b, a, alternative="two-sided"), None
        if min(a.size, b.size) > 1:
            welch = stats.ttest_ind(b, a, equal_var=False)
    pairs = a.size * b.size
    small = 1 - 3 / (4 * (a.size + b.size) - 9)
    row: Row = {"test": _U, "statistic": float(ranks.statistic), "p": float(ranks.pvalue)}
    row |= {"effect": float(2 * ranks.statistic / pairs - 1), "effect_name": "rank-biserial correlation"}
    rows = [row]
    if welch is not None:
        row = {"test": "welch_t", "statistic": float(welch.statistic), "p": float(welch.pvalue)}
        rows.append(row | {"effect": small * _cohen(a, b), "effect_name": "Hedges' g"})
    if min(a.size, b.size) >= FEWEST:
        wins, distances = _bootstrap(a, b, draw)
        for row, values in zip(rows, (2 * wins / pairs - 1, small * distances), strict=True):
            row["ci_low"], row["ci_high"], _ = percentile_interval(values, _CONFIDENCE)
    return rows


def _bootstrap(a: np.ndarray, b: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """U and Cohen's d in every resample, (resamples,) each; d is NaN where nothing varies."""
    both = np.concatenate([a, b])
    scale = both.std() or 1.0
    a_z, b_z = (a - both.mean()) / scale, (b - both.mean()) / scale  # so that squares do not cancel
    greater = (b > a[:, None]) + 0.5 * (b == a[:, None])
    of_a = np.column_stack([greater, a_z, a_z**2]).astype(np.float32)
    of_b = np.column_stack([b_z, b_z**2]).astype(np.float32)
    weights_a, weights_b = draw(a.size, 0), draw(b.size, 1)
    wins, distances = np.empty(len(weights_a)), np.empty(len(weights_a))
    for start in range(0, len(weights_a), _BLOCK):
        block = slice(start, start + _BLOCK)
        from_a = weights_a[block] @ of_a
        wins[block] = np.einsum("rb,rb->r", from_a[:, :-2], weights_b[block], dtype=np.float64)
        sum_a, square_a = from_a[:, -2:].T.astype(np.float64)
        sum_b, square_b = (weights_b[block] @ of_b).T.astype(np.float64)
        pooled = square_a - sum_a**2 / a.size + square_b - sum_b**2 / b.size
        varies = pooled > 1e-4  # of n_a + n_b; what single precision leaves of nothing is less
        spread = np.sqrt(np.where(varies, pooled, np.nan) / (both.size - 2))
        distances[block] = (sum_b / b.size - sum_a / a.size) / spread
    return wins, distances


def _sound(people: People, draw: Draw) -> Iterator[Row]:
    tested = partial(sound_tests, draw=draw)
    for analysis, strata in (("groups", EVERYBODY), ("groups_by_sex", BY_SEX), ("groups_by_band", BY_BAND)):
        for stratum, conditions in strata.items():
            for measure in MEASURES:
                some = people.where(*conditions, *with_lesions(measure))
                yield from _pair(analysis, some, GROUPS, stratum, measure, tested, "sound")
    for measure in MEASURES:
        patients = people.where(group_is("MS"), *with_lesions(measure))
        yield from _pair("sexes", patients, SEXES, "MS", measure, tested, "sound")
    yield from _chi_squared("sex_of_groups", "sound", people)
