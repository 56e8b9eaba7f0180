"""What inverting voxels does to a model's AUC: curves over the top N %, the areas under them, the planted region.

Belongs here: statistics over scans whose outputs after inversion are known. Does not belong here: which voxels are
inverted (`evidence/inversion.py`), running the network.

The table of outputs has one row per inversion of a scan by a fold's model: `scan`, `participant_id`, `fold`, `set` (the
scan's role for that model), `target` (0 or 1), `method`, `map`, `control`, `top_percent`, `draw`, `output`,
`share_of_brain`. Rows whose set is 'validation' or 'test' count: model k is judged on its own validation scans and on
all test scans.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from relevance_assets.statistics.resampling import draw_weights, percentile_interval

__all__ = ["inversion_areas", "inversion_curves"]

Curve = tuple[str, str, str]  # of `_CURVE`

_CURVE = ("method", "map", "control")
_POINT = (*_CURVE, "top_percent", "draw")
_NEEDED = ("scan", "participant_id", "fold", "set", "target", *_POINT, "output", "share_of_brain")
_PLANTED = ("planted", "combined", "planted")
_PLANTED_CHANCE = ("planted", "combined", "random_planted")
_TEXTS = ("scan", "participant_id", "fold", *_CURVE)
# controls of the planted region's size: one point, which counts as a whole curve
_POINTS = ("planted", "random_planted", "matched_planted")
_SHARES = ("share_of_brain", "share_of_brain_lower", "share_of_brain_upper")
# a difference of 0 must count as 0, whatever the order of summation
_TIE = 1e-12
_AREA_SCHEMA = {
    **dict.fromkeys((*_CURVE, "against", "percents"), pl.String),
    **dict.fromkeys(("value", "ci_low", "ci_high", "p"), pl.Float64),
    **dict.fromkeys(("n", "resamples"), pl.Int64),
}


def inversion_curves(outputs: pl.DataFrame) -> pl.DataFrame:
    """AUC after each inversion, per fold and over folds (ties count half).

    Outputs of different models are not on one scale, so the AUC is each model's own; then the mean.

    Returns
    -------
    method, map, control, top_percent, draw, fold ('0', ... or 'mean'), auc, low, high, n, n_positive, share_of_brain
    (mean over scans), share_of_brain_lower and share_of_brain_upper (over the scans of one class). A fold's AUC is null
    for want of one class. 'mean' has the mean over the folds that have an AUC and their range, low and high (null for
    single folds); its n and n_positive count each scan once.

    Raises
    ------
    ValueError
        Columns that lack, a scan twice in one point of a fold, targets other than 0 and 1, outputs that are not
        finite, or no validation and test scans.
    """
    outputs = _judged(outputs)
    # one curve at a time: in order, rows take several times as much memory
    curves = [_curve(_in_order(outputs.filter(_of(curve)))) for curve in _curves(outputs)]
    texts, numbers = (*_CURVE, "fold"), ("top_percent", "draw", "n", "n_positive")
    both = pl.concat(curves).with_columns(pl.col(texts).cast(pl.String), pl.col(numbers).cast(pl.Int64))
    return both.sort(*_POINT, "fold")


def _curve(outputs: pl.DataFrame) -> pl.DataFrame:
    """Points of one curve: of every fold, and of 'mean'."""
    positive, share = pl.col("target") == 1, pl.col("share_of_brain")
    ones, zeros = positive.sum(), (~positive).sum()
    # Mann-Whitney: ranks of the positives less the least they could be
    above = pl.col("output").rank("average").filter(positive).sum() - ones * (ones + 1) / 2
    folds = (
        outputs.group_by(*_POINT, "fold", maintain_order=True)
        .agg(
            pl.when((ones > 0) & (zeros > 0)).then(above / (ones * zeros)).alias("auc"),
            n=pl.len(),
            n_positive=ones,
            share_of_brain=share.mean(),
            share_of_brain_lower=share.filter(~positive).mean(),
            share_of_brain_upper=share.filter(positive).mean(),
        )
        .with_columns(pl.col("fold").cast(pl.String))
    )
    auc = pl.col("auc")
    means = folds.group_by(_POINT, maintain_order=True).agg(
        auc.mean(), pl.col(_SHARES).mean(), low=auc.min(), high=auc.max(), fold=pl.lit("mean")
    )
    counts = outputs.unique([*_POINT, "scan"]).group_by(_POINT).agg(n=pl.len(), n_positive=ones)
    both = pl.concat([folds, means.join(counts, on=list(_POINT))], how="diagonal")
    columns = (*_POINT, "fold", "auc", "low", "high", "n", "n_positive", *_SHARES)
    return both.select(columns)


def inversion_areas(
    outputs: pl.DataFrame,
    *,
    reference: tuple[str, str],
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Area under each curve of AUC over N, what the reference scenario's is less than the others', and planted regions.

    The area is by trapezoids between the values of N that there are, as a share of their range, so that a flat AUC of
    0.9 has area 0.9. The planted region, random masks of its size ('random_planted') and each scenario's mask of its
    size ('matched_planted') are one point: their AUC stands in place of the area. Less is better: what was inverted
    mattered more. It is the mean over the folds that have both classes, and of a random control also over its draws.
    The interval is the percentile bootstrap over people: a person is drawn with all their scans, the same people in all
    folds and all curves, so that differences are paired. Resamples in which a fold lacks one class are left out. p is
    two-sided, by inverting that interval: twice the smaller of the shares of differences at most and at least 0, each
    (b + 1) / (B + 1). It is not corrected for the number of differences.

    Returns
    -------
    method, map, control, against, percents (the values of N, '0, 40, 100'; null for the planted region's size), value,
    ci_low, ci_high, p, n (people), resamples.

    - `against` null: the curve's area, or the point's AUC; no p.
    - `against` '<method> <map>': the area of `reference` less that scenario's, both with this control, 'own' or
      'matched'; method and map are the reference's.
    - `against` 'random': the area of a scenario's own masks less that of random masks of their sizes; control 'random'.
    - `against` 'random_planted': the AUC of the planted region (control 'planted'), or of a scenario's mask of its size
      ('matched_planted'), less that of random masks of its size.
    - control 'planted', `against` '<method> <map>': the AUC of the planted region less that of the scenario's mask.

    Value, interval and p are null where no fold has both classes.

    Raises
    ------
    ValueError
        As `inversion_curves`; also curves of one fold that differ in scans, curves of fewer than two values of N, a
        scan of two people or with two targets, or a scenario to compare with that is not there.
    """
    outputs = _judged(outputs)
    curves = _curves(outputs)
    if reference not in [(method, map_) for method, map_, _ in curves]:
        raise ValueError(f"areas: reference {' '.join(reference)} has no outputs")
    scans = outputs.select("scan", "participant_id").unique(maintain_order=True).sort("scan")
    if scans["scan"].n_unique() < len(scans):
        raise ValueError("areas: a scan belongs to two people")
    people = scans["participant_id"].to_list()
    weights = draw_weights(people, len(scans), bootstrap, np.random.default_rng(seed))
    # the data as they are come first: every scan once
    weights = np.concatenate([np.ones((1, len(scans))), weights])
    row_of = {scan: i for i, scan in enumerate(scans["scan"])}

    areas: list[np.ndarray] = []
    for fold in outputs["fold"].unique().sort():
        of_fold = _fold_areas(_in_order(outputs.filter(pl.col("fold") == fold)), curves, row_of, weights)
        if np.isfinite(of_fold[:, 0]).any():
            areas.append(of_fold)
    drawn = np.mean(areas, axis=0) if areas else np.full((len(curves), len(weights)), np.nan)
    by_curve = dict(zip(curves, drawn, strict=True))

    count = len(set(people))
    rows = [_row(curve, None, area, confidence, count) for curve, area in by_curve.items()]
    for key, against, minuend, subtrahend in _differences(curves, reference):
        if minuend not in by_curve:
            raise ValueError(f"areas: '{against}' is to be compared with {' '.join(minuend)}, which has no outputs")
        rows.append(_row(key, against, by_curve[minuend] - by_curve[subtrahend], confidence, count))
    sizes = outputs.select("control", "top_percent").unique().iter_rows()
    numbers = ", ".join(map(str, sorted({percent for control, percent in sizes if control not in _POINTS})))
    percents = pl.when(~pl.col("control").is_in(_POINTS)).then(pl.lit(numbers))
    return pl.DataFrame(rows, schema=_AREA_SCHEMA).with_columns(percents=percents)


def _differences(curves: list[Curve], reference: tuple[str, str]) -> Iterator[tuple[Curve, str, Curve, Curve]]:
    """The row's key and what it is against; the curve, and the curve that is taken from it."""
    for curve in curves:
        method, map_, control = curve
        name = f"{method} {map_}"
        if control == "random":
            yield curve, control, (method, map_, "own"), curve
        elif control not in _POINTS and (method, map_) != reference:
            yield (*reference, control), name, (*reference, control), curve
        elif control == "matched_planted":
            yield _PLANTED, name, _PLANTED, curve
        if control in ("planted", "matched_planted") and _PLANTED_CHANCE in curves:
            yield curve, "random_planted", curve, _PLANTED_CHANCE


def _judged(outputs: pl.DataFrame) -> pl.DataFrame:
    """The rows that count, checked, in no particular order, and as small as they can be: there are millions."""
    if missing := [name for name in _NEEDED if name not in outputs.columns]:
        raise ValueError(f"inversion: the outputs lack the columns {missing}")
    outputs = outputs.filter(pl.col("set").is_in(["validation", "test"])).select(_NEEDED).drop("set")
    if outputs.is_empty():
        raise ValueError("inversion: no outputs of validation or test scans")
    if not outputs["target"].is_in([0, 1]).all() or outputs["target"].null_count():
        raise ValueError("inversion: targets must be 0 or 1")
    if not outputs["output"].is_finite().all() or outputs["output"].null_count():
        raise ValueError("inversion: an output is not finite")
    numbers = [pl.col("target").cast(pl.Int8), pl.col("top_percent", "draw").cast(pl.Int32)]
    return outputs.with_columns(*numbers, *(_numbered(outputs[name]) for name in _TEXTS))


def _numbered(texts: pl.Series) -> pl.Series:
    """Texts as numbers that sort as they do."""
    return texts.cast(pl.String).cast(pl.Enum(texts.unique().cast(pl.String).sort()))


def _in_order(outputs: pl.DataFrame) -> pl.DataFrame:
    """Sums in one order, so that the same rows give the same bits; checked for rows that are there twice."""
    key = (*_POINT, "fold", "scan")
    outputs = outputs.sort(key)
    if outputs.select(pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in key).any()).item():
        raise ValueError("inversion: a scan has two outputs for the same inversion and fold")
    return outputs


def _curves(outputs: pl.DataFrame) -> list[Curve]:
    return list(outputs.select(_CURVE).unique().sort(_CURVE).iter_rows())


def _of(curve: Curve) -> pl.Expr:
    return pl.all_horizontal(pl.col(name) == value for name, value in zip(_CURVE, curve, strict=True))


def _fold_areas(fold: pl.DataFrame, curves: list[Curve], row_of: dict[str, int], weights: np.ndarray) -> np.ndarray:
    """Each curve's area in every resample, (curves, resamples); NaN where one class lacks.

    A weighted AUC is linear in the pairwise comparisons, and the area in the AUCs: comparisons are summed over a
    curve first, so that its resamples cost one matrix product.
    """
    scans = fold.select("scan", "target").unique(maintain_order=True).sort("scan")
    if scans["scan"].n_unique() < len(scans):
        raise ValueError("areas: a scan has two targets")
    columns = np.array([row_of[scan] for scan in scans["scan"]])
    positive = scans["target"].to_numpy() == 1
    ones, zeros = weights[:, columns[positive]], weights[:, columns[~positive]]
    pairs = ones.sum(axis=1) * zeros.sum(axis=1)
    areas = np.full((len(curves), len(weights)), np.nan)
    by_curve = fold.partition_by(_CURVE, as_dict=True)
    for i, curve in enumerate(curves):
        if curve not in by_curve:
            raise ValueError(f"areas: fold {fold['fold'][0]} has no outputs of {' '.join(curve)}")
        compared = _compared(by_curve[curve], scans["scan"], positive)
        won = ((ones @ compared) * zeros).sum(axis=1)
        areas[i] = won / np.where(pairs > 0, pairs, np.nan)
    return areas


def _compared(curve: pl.DataFrame, scans: pl.Series, positive: np.ndarray) -> np.ndarray:
    """Share of the curve on which each positive scan is above each negative one, (positives, negatives)."""
    points = curve.partition_by("top_percent", "draw", as_dict=True)
    numbers = np.unique([top_percent for top_percent, _ in points])
    trapezoid = _trapezoid(numbers, curve["control"][0] in _POINTS)
    draws = {number: sum(top_percent == number for top_percent, _ in points) for number in numbers}
    total = np.zeros((int(positive.sum()), int((~positive).sum())))
    for (top_percent, _), point in points.items():
        if not point["scan"].equals(scans):
            raise ValueError(
                f"areas: top {top_percent} % of {' '.join(curve.select(_CURVE).row(0))} has other scans than the rest "
                "of its fold; predict what lacks"
            )
        output = point["output"].to_numpy()
        ahead = output[positive][:, None] - output[~positive]
        total += trapezoid[top_percent] / draws[top_percent] * ((ahead > 0) + (ahead == 0) / 2)
    return total


def _trapezoid(numbers: np.ndarray, one_point: bool) -> dict[int, float]:
    """Weight of each N in the mean over N."""
    if one_point and len(numbers) == 1:
        return {numbers[0]: 1.0}
    if one_point or len(numbers) < 2:
        raise ValueError("areas: a curve needs at least two values of top_percent, the planted region's size one")
    steps = np.diff(numbers) / (numbers[-1] - numbers[0])
    return dict(zip(numbers, (np.append(steps, 0) + np.append(0, steps)) / 2, strict=True))


def _row(curve: Curve, against: str | None, drawn: np.ndarray, confidence: float, people: int) -> dict:
    """One area or difference: the data as they are first in `drawn`, then the resamples."""
    low, high, used = percentile_interval(drawn[1:], confidence)
    row: dict[str, object] = {**dict(zip(_CURVE, curve, strict=True)), "against": against}
    row |= {"n": people, "resamples": used}
    if np.isfinite(drawn[0]):
        row |= {"value": float(drawn[0]), "ci_low": low, "ci_high": high}
        if against is not None and used:
            finite = drawn[1:][np.isfinite(drawn[1:])]
            smaller = min((finite <= _TIE).sum(), (finite >= -_TIE).sum())
            row["p"] = min(1.0, float(2 * (smaller + 1) / (used + 1)))
    return row
