"""Which cell of a grid of rules explains best: chosen on validation images, reported on test images, without cheating.

Belongs here: means of the scores over images, the choice and how sure it is, comparisons with other methods on images
that had no part in it. Does not belong here: the scores and their chance (`evidence/mask_scores.py`), words
(`report/rule_text.py`), pictures (`report/figures_rules.py`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from relevance_assets.statistics.people import holm
from relevance_assets.statistics.resampling import draw_weights, percentile_interval
from relevance_assets.statistics.rule_images import (
    GRID,
    KEYS,
    TEST,
    VALIDATION,
    Column,
    Table,
    by_choice,
    column_means,
    known_or_none,
    summary,
)

__all__ = ["CELLS", "COMPARISON", "PARTS", "PUBLISHED", "Selection", "select_rule"]

PUBLISHED = (-20.0, 0.0)
#: All sign flips of this many people are tried, however few resamples are asked for: chance flips of so few repeat.
ALL_FLIPS = 10
#: Parts of the grid, by what gamma and epsilon are there.
PARTS: dict[str, Callable[[float, float], bool]] = {
    "best_gamma_negative": lambda gamma, epsilon: gamma < 0,
    "best_gamma_not_negative": lambda gamma, epsilon: gamma >= 0,
    "best_epsilon_negative": lambda gamma, epsilon: epsilon < 0,
    "best_epsilon_zero": lambda gamma, epsilon: epsilon == 0,
    "best_epsilon_positive": lambda gamma, epsilon: epsilon > 0,
}
_NUMBERS = dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64)
_COUNTS = dict.fromkeys(("n", "people"), pl.Int64)
_KEY = {"explained": pl.String, "score": pl.String, "quantile": pl.Float64}
_CELL = {"gamma": pl.Float64, "epsilon": pl.Float64}
CELLS = {**_KEY, "set": pl.String, **_CELL, **_NUMBERS, "chance": pl.Float64, "ceiling": pl.Float64, **_COUNTS} | {
    "wins": pl.Float64,
    "is_candidate": pl.Boolean,
    "is_chosen": pl.Boolean,
    "is_distinguishable": pl.Boolean,
}
COMPARISON = {
    **_KEY,
    **dict.fromkeys(("stratum_kind", "stratum", "role", "method"), pl.String),
    **_CELL,
    **_NUMBERS,
    **dict.fromkeys(("chance", "ceiling", "gain", "gain_low", "gain_high", "validation"), pl.Float64),
    **dict.fromkeys(("difference", "difference_low", "difference_high"), pl.Float64),
    **dict.fromkeys(("p", "p_corrected", "gain_p", "gain_p_corrected"), pl.Float64),
    "correction": pl.String,
    **_COUNTS,
    **dict.fromkeys(("n_pairs", "resamples"), pl.Int64),
}


class Selection(NamedTuple):
    """What `select_rule` found.

    Attributes
    ----------
    cells : frame, columns of `CELLS`
        Each cell on validation and on test images: mean with interval, whether it could be chosen, and (validation
        only, of those that could) `wins`, the share of resamples of validation people in which it would have been
        chosen, and `is_distinguishable`: whether it is surely worse than the chosen one.
    comparison : frame, columns of `COMPARISON`
        The chosen cell and all others on test images, `difference` = chosen - other on the same images.
    """

    cells: pl.DataFrame
    comparison: pl.DataFrame


def select_rule(
    rows: pl.DataFrame,
    *,
    published: tuple[float, float] | None = PUBLISHED,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    leaking: bool = False,
) -> Selection:
    """Choose a cell by its mean on validation images, and compare it with all else on test images.

    For each explained class, score and quantile on its own. Of equal means (to 12 digits) the cell with the smallest
    |epsilon| is chosen, then the smallest |gamma|, then the smaller number. What is undefined must not help: candidates
    all have a value on the same validation images, as many as any cell has; of several such sets of images the one that
    most cells have, then that of the cell which wins a tie.

    Roles in `comparison`: `chosen`; `published`; `worst`, the cell with the smallest mean on validation images;
    the best cell (on validation images) of each part of the grid, `PARTS`; `best_on_test`, which is cheating: chosen on
    the images that it is scored on, so its difference is the loss from honest choice and has neither interval nor p;
    `reference`, each other method. A method with rows for many cells, such as the grid of a network with random
    weights, is taken at the chosen cell. `validation` is the same row's mean on validation images, `gain` the mean of
    value - chance.

    Intervals: percentile bootstrap over people, the same resamples for all rows of a set. p, of each difference and of
    the chosen cell's gain: sign flips of people (all their differences together), two-sided; all flips of at most 10
    people, or where they are no more than `bootstrap`, else that many at random, (b + 1) / (B + 1). n people give no p
    below 2 / 2^n. Flips take it that without an effect a person's sum is as likely x as -x: where it is as skewed as an
    exponential, of single p some 8 % are below 0.05. Holm's correction over all these p of one choice (explained,
    score, quantile) and kind of stratum. Strata are classes (`class`), whether the prediction was right (`prediction`),
    or `all`; the choice is always over all.

    A cell is distinguishable from the chosen one where its p on validation images, corrected for all pairs of cells and
    so for the choice itself, is at most 1 - `confidence`: with d_g the sum of a person's differences between two cells,
    |sum of d_g| / sqrt(sum of d_g^2) is compared with the largest of any pair under the same sign flips of people
    (Westfall & Young's single step). Null for fewer than two people.

    Parameters
    ----------
    rows : frame
        scan, participant_id, set (`validation`, `test`), class, correct (bool), explained, method (`lrp_grid` for the
        grid), gamma, epsilon (null for methods without), score, value (null where undefined). Optional: quantile,
        chance, ceiling.
    published
        None: of a grid in which it does not lie.
    leaking
        Whether a person may be in both sets, as where single images were divided: the choice then has seen people that
        it is reported on, and all numbers are too good.

    Returns
    -------
    Selection

    Raises
    ------
    ValueError
        Columns that lack, a set of another name, a person in both sets unless `leaking`, an image twice or of two
        people, a value that is not finite, a choice without a value on any validation image.
    """
    cells: list[dict[str, Any]] = []
    out: list[dict[str, Any]] = []
    for key, columns, tables in by_choice(rows, leaking=leaking):
        draw = {
            name: draw_weights(table.people, len(table.people), bootstrap, np.random.default_rng(seed))
            for name, table in tables.items()
        }
        grid = _candidates(columns, tables[VALIDATION], key)
        means = column_means(tables[VALIDATION].value)[0]
        chosen = _best(grid, means)
        flips = {
            name: _flips(len(set(table.people)), bootstrap, np.random.default_rng([seed, 1]))
            for name, table in tables.items()
        }
        sure = _sureness(tables[VALIDATION], draw[VALIDATION], flips[VALIDATION], grid, chosen, confidence)
        cells += [key | row for row in _cell_rows(columns, tables, draw, grid, chosen, sure, confidence)]
        roles = _roles(columns, tables, grid, chosen, published)
        for kind, stratum, inside in _strata(tables[TEST]):
            part, weights = tables[TEST].only(inside), draw[TEST][:, inside]
            for role, number in roles:
                row = key | {"stratum_kind": kind, "stratum": stratum, "role": role}
                row |= columns[number]._asdict()
                row["validation"] = known_or_none(means[number]) if kind == "all" else None
                row |= summary(part, number, column_means(part.value[:, [number]], weights)[:, 0], confidence)
                row |= _gain(part, number, weights, flips[TEST] if role == "chosen" else None, confidence)
                if number != chosen:
                    row |= _compared(part, chosen, number, weights, flips[TEST], confidence, role != "best_on_test")
                out.append(row)
            if published and published not in [
                (column.gamma, column.epsilon) for column in columns if column.method == GRID
            ]:
                row = {"stratum_kind": kind, "stratum": stratum, "role": "published", "method": GRID}
                out.append(key | row | {"gamma": published[0], "epsilon": published[1], "n": 0, "people": 0})
    _holm(out)
    return Selection(pl.DataFrame(cells, schema=CELLS), pl.DataFrame(out, schema=COMPARISON))


def _gain(
    table: Table, number: int, weights: np.ndarray, flips: np.ndarray | None, confidence: float
) -> dict[str, Any]:
    """Mean of value - chance over the images that have both, with its interval and, given flips, its p."""
    gain = table.value[:, number] - table.chance[:, number]
    row: dict[str, Any] = {"gain": known_or_none(column_means(gain[:, None])[0, 0])}
    sums = _sums(gain, table.people)
    if len(sums) < 2:
        return row
    low, high, _ = percentile_interval(column_means(gain[:, None], weights)[:, 0], confidence)
    return row | {"gain_low": low, "gain_high": high, "gain_p": None if flips is None else _flip_p(sums, flips)}


def _compared(
    table: Table, chosen: int, other: int, weights: np.ndarray, flips: np.ndarray, confidence: float, honest: bool
) -> dict[str, Any]:
    """Chosen - other over the images that have both, and whether it is more than chance."""
    difference = table.value[:, chosen] - table.value[:, other]
    both = np.isfinite(difference)
    mean = known_or_none(column_means(difference[:, None])[0, 0])
    row: dict[str, Any] = {"difference": mean, "n_pairs": int(both.sum())}
    sums = _sums(difference, table.people)
    if not honest or len(sums) < 2:
        return row
    low, high, _ = percentile_interval(column_means(difference[:, None], weights)[:, 0], confidence)
    return row | {"difference_low": low, "difference_high": high, "p": _flip_p(sums, flips)}


def _sums(values: np.ndarray, people: Sequence[str]) -> np.ndarray:
    """Sum of what is known of each person of whom something is."""
    known = np.isfinite(values)
    persons = [person for person, there in zip(people, known, strict=True) if there]
    index = {person: number for number, person in enumerate(dict.fromkeys(persons))}
    return np.bincount([index[person] for person in persons], weights=values[known]) if index else np.zeros(0)


def _flips(people: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Signs (flips, people): all that there are where they are few, else random ones; nobody flipped comes first.

    As the data themselves are among the flips, the share of flips as extreme is the p: of all of them the exact one,
    of random ones (b + 1) / (B + 1).
    """
    if people <= ALL_FLIPS or 2**people <= draws:
        return np.array(list(itertools.product((1.0, -1.0), repeat=people)))
    return np.vstack([np.ones(people), random.choice([-1.0, 1.0], (draws, people))])


def _flip_p(sums: np.ndarray, flips: np.ndarray) -> float:
    """How often the sum over people is as far from 0 as it is; flips of more people than there are do no harm."""
    # rounding must not decide between what is equal
    extreme = np.abs(flips[:, : len(sums)] @ sums) >= abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    return float(extreme.mean())


def _candidates(columns: list[Column], table: Table, key: dict[str, Any]) -> list[int]:
    """The cells with most validation images, all with the same ones; those first that win a tie."""
    cells = [number for number, column in enumerate(columns) if column.method == GRID]
    known = np.isfinite(table.value)
    most = max((int(known[:, number].sum()) for number in cells), default=0)
    if not most:
        text = ", ".join(f"{name} {value}" for name, value in key.items() if value is not None)
        raise ValueError(f"rule selection: no cell of {GRID} has a value on a {VALIDATION} image ({text})")

    def plainness(number: int) -> tuple[float, ...]:
        gamma, epsilon = columns[number].gamma, columns[number].epsilon
        if gamma is None or epsilon is None:
            raise ValueError(f"rule selection: a row of {GRID} lacks gamma or epsilon")
        return abs(epsilon), abs(gamma), epsilon, gamma

    full = sorted((number for number in cells if known[:, number].sum() == most), key=plainness)
    images = Counter(known[:, number].tobytes() for number in full).most_common(1)[0][0]
    return [number for number in full if known[:, number].tobytes() == images]


def _best(cells: list[int], means: np.ndarray) -> int:
    """The first of the cells with the largest mean, to 12 digits."""
    return cells[int(np.nanargmax(np.round(means[cells], 12)))]


def _roles(
    columns: list[Column], tables: dict[str, Table], grid: list[int], chosen: int, published: tuple[float, float] | None
) -> list[tuple[str, int]]:
    means, on_test = (column_means(tables[name].value)[0] for name in (VALIDATION, TEST))
    roles = [("chosen", chosen)]
    place = {column: number for number, column in enumerate(columns)}
    if published and (theirs := Column(GRID, *published)) in place:
        roles.append(("published", place[theirs]))
    roles.append(("worst", _best(grid, -means)))
    if np.isfinite(on_test[grid]).any():
        roles.append(("best_on_test", _best(grid, on_test)))
    for role, belongs in PARTS.items():
        part = [n for n in grid if belongs(columns[n].gamma or 0.0, columns[n].epsilon or 0.0)]
        roles += [(role, _best(part, means))] if part else []
    for method in sorted({column.method for column in columns} - {GRID}):
        own = [column for column in columns if column.method == method]
        same = columns[chosen]._replace(method=method)
        plain = own[0] if len(own) == 1 else Column(method, None, None)
        if same not in own and plain not in own:
            raise ValueError(
                f"rule selection: {method} has no row for the chosen cell {same[1:]}; give all cells or one"
            )
        roles.append(("reference", place[same if same in own else plain]))
    return roles


def _strata(table: Table) -> Iterator[tuple[str, str, np.ndarray]]:
    yield "all", "all", np.ones(len(table.people), dtype=bool)
    for name in sorted({name for name in table.classes if name is not None}):
        yield "class", str(name), table.classes == name
    for name, right in (("correct", True), ("wrong", False)):
        if (inside := table.correct == right).any():
            yield "prediction", name, inside


def _cell_rows(
    columns: list[Column],
    tables: dict[str, Table],
    draw: dict[str, np.ndarray],
    grid: list[int],
    chosen: int,
    sure: tuple[dict[int, float], dict[int, bool]],
    confidence: float,
) -> Iterator[dict[str, Any]]:
    for name, table in tables.items():
        drawn = column_means(table.value, draw[name])
        wins, apart = sure if name == VALIDATION else ({}, {})
        for number, column in enumerate(columns):
            if column.method == GRID:
                row = {"set": name, "gamma": column.gamma, "epsilon": column.epsilon}
                row |= {"is_candidate": number in grid, "is_chosen": number == chosen}
                row |= {"wins": wins.get(number), "is_distinguishable": apart.get(number)}
                yield row | summary(table, number, drawn[:, number], confidence)


def _sureness(
    table: Table, weights: np.ndarray, flips: np.ndarray, grid: list[int], chosen: int, confidence: float
) -> tuple[dict[int, float], dict[int, bool]]:
    """Share of resamples in which each cell is chosen, and whether it is surely worse than the chosen one."""
    inside = np.isfinite(table.value[:, chosen])  # the same images for all candidates
    table, weights = table.only(inside), weights[:, inside]
    if len(set(table.people)) < 2:
        return {}, {}
    drawn = column_means(table.value[:, grid], weights)
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    won = np.bincount(np.round(drawn, 12).argmax(axis=1), minlength=len(grid)) / max(len(drawn), 1)
    index = {person: number for number, person in enumerate(dict.fromkeys(table.people))}
    sums = np.zeros((len(index), len(grid)))
    np.add.at(sums, [index[person] for person in table.people], table.value[:, grid])
    sums -= sums.mean(axis=1, keepdims=True)  # only differences between cells count
    shared = sums.T @ sums
    size = np.sqrt(np.clip(np.diag(shared)[:, None] + np.diag(shared) - 2 * shared, 0, None))
    scale = np.where(size > 1e-9, 1 / np.maximum(size, 1e-9), 0)  # else one cell is the other, but for rounding
    largest = [float((np.abs(flipped[:, None] - flipped) * scale).max()) for flipped in flips[:, : len(index)] @ sums]
    best, total = grid.index(chosen), sums.sum(axis=0)
    found = (total[best] - total) * scale[best]
    p = (np.array(largest)[:, None] >= found - 1e-9).mean(axis=0)
    apart = p <= 1 - confidence
    return dict(zip(grid, won.tolist(), strict=True)), dict(zip(grid, apart.tolist(), strict=True))


def _holm(rows: list[dict[str, Any]]) -> None:
    """Correct the p of differences and of gains within each choice and kind of stratum; a cell with several roles
    counts once."""
    families: dict[tuple[Any, ...], dict[tuple[Any, ...], list[tuple[dict[str, Any], str]]]] = {}
    for row in rows:
        family = families.setdefault(tuple(row[name] for name in (*KEYS, "stratum_kind")), {})
        for name in ("p", "gain_p"):
            if row.get(name) is not None:
                cell = tuple(row[part] for part in ("stratum", "method", "gamma", "epsilon"))
                family.setdefault((name, *cell), []).append((row, name))
    for family in families.values():
        p = np.array([row[name] for (row, name), *_ in family.values()])
        text = f"holm over {len(p)}: same {', '.join((*KEYS, 'stratum_kind'))}"
        for found, corrected in zip(family.values(), holm(p), strict=True):
            for row, name in found:
                row |= {f"{name}_corrected": float(corrected), "correction": text}
