"""Who is held out for the test, and in which fold the others are validated.

Belongs here: dividing people into sets, and the check that nobody is on two sides. Does not belong here: which scans
can be used (`participants.py`), training on a fold.
"""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl

from relevance_assets.study import Split, Target

__all__ = ["NEW", "SplitError", "check_no_leakage", "extend_splits", "fold_people", "split_scans"]

NEW = "new"  # the set of people who came after the split


class SplitError(ValueError):
    """The people cannot be divided as the study asks; one line with the numbers and the remedy."""


def split_scans(frame: pl.DataFrame, target: Target, split: Split) -> pl.DataFrame:
    """Hold out test people and divide the rest into folds, both stratified by the target.

    A person's scans stay together. People are stratified for the test set by their label: binary, 1 if any of their
    scans is positive; regression, the quantile bin of their mean. The folds of the others are scikit-learn's
    `StratifiedGroupKFold`, grouped by person, by the label of each scan (binary) or the person's bin.
    The result depends on the seed and on the content of `frame`, not on the order of its rows.

    Parameters
    ----------
    frame : DataFrame
        Columns scan, participant_id, target (the value before any threshold, never null); others are ignored.

    Returns
    -------
    DataFrame, sorted by scan
        scan, participant_id, set (`train` or `test`), fold (0 … folds - 1, the fold in which the scan is validated;
        null in the test set).

    Raises
    ------
    SplitError
        Fewer people than folds, one class only, a class with too few people for each set, or a scan that is listed
        twice or without target.
    """
    scans = _checked(frame)
    people = scans["participant_id"].unique().sort().to_list()
    if len(people) < split.folds + 1:
        raise SplitError(
            f"{len(people)} people are too few for a test set and {split.folds} folds; add people or take fewer folds"
        )
    labels = _labels(scans, target, split)
    person_label = dict(labels.group_by("participant_id").agg(pl.col("label").max()).iter_rows())
    test = _test_people(people, person_label, target, split)
    rest = labels.filter(~pl.col("participant_id").is_in(list(test)))
    folds = _folds(rest, split)
    rows = []
    for scan, participant in scans.select("scan", "participant_id").iter_rows():
        held_out = participant in test
        fold = None if held_out else folds[participant]
        rows.append((scan, participant, "test" if held_out else "train", fold))
    schema = {"scan": pl.String, "participant_id": pl.String, "set": pl.String, "fold": pl.Int64}
    result = pl.DataFrame(rows, schema=schema, orient="row")
    _check_result(result, labels, target, split)
    return result


def fold_people(frame: pl.DataFrame, split: Split) -> pl.DataFrame:
    """Divide people into folds of nearly equal size by chance, nobody held out beside them.

    With as many folds as people each is left out once. The result depends on the seed and on who is there, not on the
    order of rows.

    Parameters
    ----------
    frame : DataFrame
        Columns scan, participant_id; others are ignored.

    Returns
    -------
    DataFrame, sorted by scan
        scan, participant_id, set (`train`), fold.

    Raises
    ------
    SplitError
        Fewer people than folds.
    """
    people = frame["participant_id"].unique().sort().to_list()
    if len(people) < split.folds:
        remedy = "set split.folds to their number" if len(people) > 1 else "do without the network (segmentation: null)"
        raise SplitError(f"people with masks: {len(people)}, too few for {split.folds} folds; add masks or {remedy}")
    order = np.random.default_rng(split.seed).permutation(len(people))
    sides = {person: int(place) % split.folds for person, place in zip(people, np.argsort(order), strict=True)}
    fold = pl.col("participant_id").replace_strict(sides, return_dtype=pl.Int64)
    scans = frame.select("scan", "participant_id").sort("scan")
    return scans.with_columns(pl.lit("train").alias("set"), fold.alias("fold"))


def extend_splits(splits: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """The same split for another cohort: people stay where they are, and who was not there then is `new`.

    New people are in no fold: no model was trained on them, as on the test set, whose figures they leave alone.

    Parameters
    ----------
    splits : DataFrame
        As `split_scans` or this function returns it.
    frame : DataFrame
        Columns scan, participant_id: today's cohort.

    Returns
    -------
    DataFrame, sorted by scan
        scan, participant_id, set (`train`, `test` or `new`), fold.
    """
    sides = splits.select("participant_id", "set", "fold").unique("participant_id", keep="first", maintain_order=True)
    cohort = frame.select("scan", "participant_id").sort("scan")
    return cohort.join(sides, on="participant_id", how="left", maintain_order="left").with_columns(
        pl.col("set").fill_null(NEW)
    )


def check_no_leakage(splits: pl.DataFrame) -> list[str]:
    """People whose scans are in more than one set or fold, sorted; empty where all is well.

    Parameters
    ----------
    splits : DataFrame
        Columns participant_id, set, fold.
    """
    sides = splits.select("participant_id", "set", "fold").unique()
    offenders = sides.group_by("participant_id").len().filter(pl.col("len") > 1)
    return offenders["participant_id"].sort().to_list()


def _checked(frame: pl.DataFrame) -> pl.DataFrame:
    scans = frame.select("scan", "participant_id", pl.col("target").cast(pl.Float64)).sort("scan")
    doubled = scans.filter(pl.col("scan").is_duplicated())
    if not doubled.is_empty():
        raise SplitError(f"{doubled['scan'][0]} is listed more than once")
    without = scans.filter(pl.col("participant_id").is_null() | ~pl.col("target").is_finite().fill_null(False))
    if not without.is_empty():
        raise SplitError(f"{without['scan'][0]} has no person or no target; leave it out of the split")
    return scans


def _labels(scans: pl.DataFrame, target: Target, split: Split) -> pl.DataFrame:
    """scan, participant_id and the label to stratify by."""
    if target.kind == "binary":
        return scans.with_columns(label=(pl.col("target") >= target.threshold).cast(pl.Int64)).drop("target")
    means = scans.group_by("participant_id").agg(pl.col("target").mean()).sort("participant_id")
    values = means["target"].to_numpy()
    bins = max(1, min(split.strata, len(values) // (split.folds + 1)))
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    binned = means.select("participant_id", label=pl.Series(np.searchsorted(edges, values, side="right")))
    return scans.drop("target").join(binned, on="participant_id", how="left").sort("scan")


def _test_people(people: list[str], label: dict[str, int], target: Target, split: Split) -> set[str]:
    """Draw the test people: from each stratum its share, remainders to the strata that are owed most."""
    strata = sorted(set(label.values()))
    members = {stratum: [person for person in people if label[person] == stratum] for stratum in strata}
    if target.kind == "binary":
        _check_classes(members, target, split)
    wanted = min(max(1, round(len(people) * split.test_share)), len(people) - split.folds)
    exact = {stratum: wanted * len(members[stratum]) / len(people) for stratum in strata}
    take = {stratum: int(exact[stratum]) for stratum in strata}
    owed = sorted(strata, key=lambda stratum: (take[stratum] - exact[stratum], stratum))
    for stratum in owed[: wanted - sum(take.values())]:
        take[stratum] += 1
    if target.kind == "binary":  # both classes on both sides, and one of each per fold
        take = {s: min(max(1, take[s]), len(members[s]) - split.folds) for s in strata}
    generator = np.random.default_rng(split.seed)
    return {str(person) for stratum in strata for person in generator.permutation(members[stratum])[: take[stratum]]}


def _check_classes(members: dict[int, list[str]], target: Target, split: Split) -> None:
    asked = f"{target.column} >= {target.threshold:g}"
    counts = f"{len(members.get(1, []))} people with {asked}, {len(members.get(0, []))} without"
    if len(members) < 2:
        raise SplitError(f"one class only: {counts}; a binary study needs both: change the threshold or the cohort")
    if min(map(len, members.values())) < split.folds + 1:
        raise SplitError(
            f"{counts}: a test set and {split.folds} folds need {split.folds + 1} of each; "
            "add people or take fewer folds"
        )


def _folds(rest: pl.DataFrame, split: Split) -> dict[str, int]:
    """Person to fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(split.folds, shuffle=True, random_state=split.seed)
    people = rest["participant_id"].to_numpy()
    result: dict[str, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a bin with fewer people than folds is no fault
        divided = list(splitter.split(people, rest["label"].to_numpy(), people))
    for fold, (_, validation) in enumerate(divided):
        result |= dict.fromkeys(people[validation].tolist(), fold)
    return result


def _check_result(result: pl.DataFrame, labels: pl.DataFrame, target: Target, split: Split) -> None:
    """Nobody on two sides, no set empty, both classes in each set of a binary study."""
    offenders = check_no_leakage(result)
    assert not offenders, f"on two sides: {', '.join(offenders)}"
    parts = result.join(labels.select("scan", "label"), on="scan").group_by("set", "fold")
    counts = parts.agg(pl.col("label").n_unique())
    needed = 2 if target.kind == "binary" else 1
    if counts.height < split.folds + 1 or int(counts["label"].min()) < needed:  # type: ignore[arg-type]
        raise SplitError("a fold has no scan, or scans of one class only; take another seed or fewer folds")
