"""Mean attention weights over correctly classified scans against plain loops and values made by hand."""

import numpy as np
import polars as pl
import pytest

from relevance_assets.statistics.attention import attention_summary

CONTRASTS = ("qT1", "MWF", "NDI")


def tables(people: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Two scans per person; folds 0-2 validate the first people, the last ones are test; 3 models say all."""
    random = np.random.default_rng(seed)
    weights: list[dict] = []
    predictions: list[dict] = []
    persons: list[dict] = []
    for person in range(people):
        for session in "AB":
            scan, target = f"sub-{person:02}_ses-{session}", float(random.integers(0, 2))
            persons.append({"scan": scan, "participant_id": f"sub-{person:02}", "age": 40.0})
            for fold in "012":
                role = "test" if person >= people * 2 // 3 else "validation" if person % 3 == int(fold) else "train"
                key = {"model": "gated", "fold": fold, "scan": scan}
                output = float(random.normal() + target - 0.5)
                predictions.append(key | {"set": role, "target": target, "output": output, "probability": None})
                share = random.dirichlet([3, 1, 2])
                weights += [key | {"contrast": c, "weight": w} for c, w in zip(CONTRASTS, share, strict=True)]
    return pl.DataFrame(weights), pl.DataFrame(predictions), pl.DataFrame(persons)


def expected(weights: pl.DataFrame, predictions: pl.DataFrame, set_: str, fold: str) -> dict[str, list[float]]:
    """Weights of the correctly classified scans, by loops over rows."""
    found: dict[str, list[float]] = {contrast: [] for contrast in CONTRASTS}
    rows = [row for row in predictions.rows(named=True) if row["set"] == set_ and fold in (row["fold"], "ensemble")]
    for scan in sorted({row["scan"] for row in rows}):
        said = [row for row in rows if row["scan"] == scan]
        output = sum(row["output"] for row in said) / len(said)
        if (1.0 if output >= 0 else 0.0) != said[0]["target"]:
            continue
        for contrast in CONTRASTS:
            of_scan = [
                row["weight"]
                for row in weights.rows(named=True)
                if row["scan"] == scan and row["contrast"] == contrast and row["fold"] in {r["fold"] for r in said}
            ]
            found[contrast].append(sum(of_scan) / len(of_scan))
    return found


def test_every_set_and_fold_is_the_mean_over_its_correct_scans() -> None:
    weights, predictions, people = tables(12, 0)
    frame = attention_summary(weights, predictions, people, bootstrap=200, seed=0)
    folds = [("test", "ensemble"), ("validation", "ensemble")]
    folds += [(name, fold) for name in ("test", "train", "validation") for fold in "012"]
    assert set(frame.select("set", "fold").rows()) == set(folds)
    assert frame.height == 3 * len(folds)
    for name, fold in folds:
        part = frame.filter(set=name, fold=fold)
        assert part["contrast"].to_list() == list(CONTRASTS)
        assert part["value"].sum() == pytest.approx(1)
        for row in part.rows(named=True):
            values = expected(weights, predictions, name, fold)[row["contrast"]]
            assert row["n"] == len(values) > 0
            assert row["value"] == pytest.approx(np.mean(values), rel=1e-12)
            assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_by_hand() -> None:
    """The ensemble is right where the mean output is, though one model is wrong; output 0 says 1, as the scores do."""
    outputs = {"a": (2.0, -1.0), "b": (-3.0, 1.0), "c": (0.0, 0.0)}  # mean 0.5, -1, 0
    rows = [
        {"model": "m", "fold": fold, "scan": scan, "set": "test", "target": 1.0, "output": both[int(fold)]}
        for scan, both in outputs.items()
        for fold in "01"
    ]
    share = {("a", "0"): 0.2, ("a", "1"): 0.4, ("b", "0"): 0.9, ("b", "1"): 0.5, ("c", "0"): 0.6, ("c", "1"): 0.8}
    weights = [
        {"model": "m", "fold": fold, "scan": scan, "contrast": contrast, "weight": value}
        for (scan, fold), first in share.items()
        for contrast, value in (("x", first), ("y", 1 - first))
    ]
    other = [row | {"model": "baseline", "output": 5.0} for row in rows]
    people = pl.DataFrame({"scan": list(outputs), "participant_id": list(outputs)})
    frame = attention_summary(pl.DataFrame(weights), pl.DataFrame(rows + other), people, bootstrap=50)
    found = {(row["fold"], row["contrast"]): (row["value"], row["n"]) for row in frame.rows(named=True)}
    assert found["0", "x"] == (pytest.approx((0.2 + 0.6) / 2), 2)
    assert found["1", "x"] == (pytest.approx((0.5 + 0.8) / 2), 2)
    assert found["ensemble", "x"] == (pytest.approx((0.3 + 0.7) / 2), 2)
    assert found["ensemble", "y"] == (pytest.approx((0.7 + 0.3) / 2), 2)


def test_the_interval_is_the_percentile_bootstrap_over_people() -> None:
    weights, predictions, people = tables(30, 3)
    frame = attention_summary(weights, predictions, people, bootstrap=4000, confidence=0.9, seed=1)
    row = frame.filter(set="test", fold="0", contrast="NDI").row(0, named=True)
    # by person: sum and number of the weights of the scans that are right
    right: dict[str, list[float]] = {}
    for said in predictions.filter(set="test", fold="0").rows(named=True):
        of_person = right.setdefault(said["scan"][:6], [])
        if (said["output"] >= 0) == (said["target"] == 1):
            of_person += weights.filter(scan=said["scan"], fold="0", contrast="NDI")["weight"].to_list()
    random, persons, drawn = np.random.default_rng(99), list(right.values()), []
    for _ in range(4000):
        chosen = [persons[i] for i in random.integers(0, len(persons), len(persons))]
        drawn.append(np.mean([value for of_person in chosen for value in of_person]))
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.01)


def test_no_scan_right_is_null_and_the_same_seed_the_same_bits() -> None:
    weights, predictions, people = tables(9, 1)
    wrong = predictions.with_columns(output=1 - 2 * pl.col("target"))
    frame = attention_summary(weights, wrong, people, bootstrap=20)
    assert frame["n"].to_list() == [0] * frame.height
    assert frame["value"].null_count() == frame["ci_low"].null_count() == frame.height
    a = attention_summary(weights, predictions, people, bootstrap=50, seed=2)
    assert a.equals(attention_summary(weights, predictions.reverse(), people.reverse(), bootstrap=50, seed=2))
    empty = attention_summary(weights.clear(), predictions, people, bootstrap=5)
    assert (empty.height, empty.columns) == (0, a.columns)


def test_what_does_not_fit_is_an_error() -> None:
    weights, predictions, people = tables(9, 1)
    two = pl.concat([weights, weights.with_columns(model=pl.lit("other"))])
    with pytest.raises(ValueError, match="2 models"):
        attention_summary(two, predictions, people)
    with pytest.raises(ValueError, match="sub-00_ses-A has no participant_id"):
        attention_summary(weights, predictions, people[1:])
    with pytest.raises(ValueError, match="sub-00_ses-A has no attention weight"):
        attention_summary(weights[3:], predictions, people)
    with pytest.raises(ValueError, match="sub-00_ses-A has weights but no prediction"):
        attention_summary(weights, predictions[1:], people)
    with pytest.raises(ValueError, match="classes are 0 and 1"):
        attention_summary(weights, predictions.with_columns(target=pl.lit(45.0)), people)
