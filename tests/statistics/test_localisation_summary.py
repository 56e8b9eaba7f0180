"""Localisation over scans: means by hand, intervals by explicit resampling, and scans without a value."""

import numpy as np
import polars as pl
import pytest

from relevance_assets.statistics.localisation import localisation_summary

KEYS = ("method", "contrast", "region", "metric")


def _rows(seed=0, people=12, above=0.0):
    random = np.random.default_rng(seed)
    rows = []
    for person in range(people):
        for scan in range(1 + person % 3):
            for method in ("lrp", "gradient"):
                for metric in ("auc", "iou"):
                    has_lesions = random.random() < 0.8
                    rows.append(
                        {"scan": f"s{person}-{scan}", "participant_id": f"p{person}", "method": method}
                        | {"contrast": "qT1", "region": "lesions", "metric": metric}
                        | {"value": random.normal() + above if has_lesions else None}
                        | {"chance": random.random() / 2 if random.random() < 0.9 else None}
                    )
    return pl.DataFrame(rows)


def test_against_explicit_resamples():
    rows, resamples, seed = _rows(), 40, 7
    summary = localisation_summary(rows, bootstrap=resamples, confidence=0.9, seed=seed)
    owner = dict(sorted(set(rows.select("scan", "participant_id").iter_rows())))
    people = list(dict.fromkeys(owner.values()))
    counts = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), resamples)
    assert len(summary) == 4
    for row in summary.iter_rows(named=True):
        of_group = rows.filter(*(pl.col(key) == row[key] for key in KEYS)).drop_nulls()
        difference = (of_group["value"] - of_group["chance"]).to_list()
        assert row["value"] == pytest.approx(np.mean(of_group["value"].to_list()))
        assert row["chance"] == pytest.approx(np.mean(of_group["chance"].to_list()))
        assert row["difference"] == pytest.approx(np.mean(difference))
        assert (row["n"], row["people"]) == (len(of_group), of_group["participant_id"].n_unique())
        drawn = []
        for count in counts:
            times = [count[people.index(person)] for person in of_group["participant_id"]]
            values = [d for d, k in zip(difference, times, strict=True) for _ in range(k)]
            drawn += [np.mean(values)] if values else []
        assert row["resamples"] == len(drawn)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])))


def test_a_planted_difference_is_found_and_null_is_not():
    for above, found in ((1.0, True), (0.25, False)):  # mean chance is 0.25
        summary = localisation_summary(_rows(seed=1, people=150, above=above), bootstrap=400)
        assert (summary["ci_low"] > 0).to_list() == [found] * 4
        assert (summary["ci_high"] > 0).all()


def test_without_any_value():
    rows = _rows().with_columns(chance=pl.when(pl.col("metric") == "auc").then(None).otherwise(pl.col("chance")))
    summary = localisation_summary(rows, bootstrap=10)
    for row in summary.filter(pl.col("metric") == "auc").iter_rows(named=True):
        assert [row[name] for name in ("value", "chance", "difference", "ci_low", "ci_high")] == [None] * 5
        assert (row["n"], row["people"], row["resamples"]) == (0, 0, 0)
    assert (summary.filter(pl.col("metric") == "iou")["n"] > 0).all()
    assert localisation_summary(rows.clear()).is_empty()


def test_the_seed_decides_and_the_rows_order_does_not():
    rows = _rows()
    one = localisation_summary(rows, bootstrap=20, seed=1)
    shuffled = rows.sample(fraction=1, shuffle=True, seed=0)
    assert one.equals(localisation_summary(shuffled, bootstrap=20, seed=1))
    categories = shuffled.with_columns(pl.col(pl.String).cast(pl.Categorical))
    assert one.equals(localisation_summary(categories, bootstrap=20, seed=1))
    assert not one.equals(localisation_summary(rows, bootstrap=20, seed=2))


def test_errors():
    rows = _rows()
    for wrong, message in (
        (rows.drop("chance"), r"lack the columns \['chance'\]"),
        (pl.concat([rows, rows]), "two rows"),
        (rows.with_columns(participant_id=pl.col("method")), "two people"),
        (rows.with_columns(value=pl.lit(float("nan"))), "a value is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            localisation_summary(wrong)
