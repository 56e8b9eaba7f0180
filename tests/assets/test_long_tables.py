"""Statistics that read long tables part by part see the rows that are there, whatever the parts."""

from __future__ import annotations

import os
import time

import numpy as np
import polars as pl
import pytest

from relevance_assets.assets import inversion, statistics
from relevance_assets.assets.models import role_of
from relevance_assets.assets.workspace import ALL, COMBINED, Workspace
from relevance_assets.tables import cache, partitions, segments

SCANS = [f"sub-{number}" for number in range(7)]
PERCENTS = (100, 20)


@pytest.fixture(params=["file by file", "many parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many parts":
        monkeypatch.setattr(cache, "_FEW", 2)
        monkeypatch.setattr(cache, "_WORTH_WRITING", 2)
        monkeypatch.setattr(segments, "_PIECE_ROWS", 8)
        monkeypatch.setattr(partitions, "_FILES_AT_ONCE", 2)


@pytest.fixture
def cohort(workspace: Workspace, parts: None) -> Workspace:
    """Seven scans of six people; the last came after the split."""
    people = [f"sub-{number // 2 if number < 2 else number}" for number in range(7)]
    sides = [("train", 0), ("train", 0), ("train", 1), ("train", 2), ("test", None), ("test", None), ("new", None)]
    scans = pl.DataFrame({"scan": SCANS, "participant_id": people})
    targets = pl.Series("target", [float(number) for number in range(7)])
    workspace.write("scans", ALL, scans.with_columns(targets, status=pl.lit("ok")))
    split = pl.DataFrame(sides, schema={"set": pl.String, "fold": pl.Int64}, orient="row")
    workspace.write("splits", ALL, pl.concat([scans, split], how="horizontal"))
    return workspace


def fill(workspace: Workspace, table: str, rows: list[dict]) -> None:
    """A file for each scan, all but the last old enough to be remembered by the cache."""
    frame = pl.DataFrame(rows)
    for scan in SCANS:
        workspace.write(table, scan, frame.filter(pl.col("scan") == scan))
    hour_ago = time.time() - 3600
    for path in workspace.store.files(table)[:-1]:
        os.utime(path, (hour_ago, hour_ago))


def measures(methods: list[str]) -> list[dict]:
    random = np.random.default_rng(0)
    return [
        {"method": method, "scan": scan, "contrast": contrast, "sign": sign, "top_percent": percent, "image": image}
        | dict.fromkeys(("mean", "median"), None if random.random() < 0.2 else float(random.random()))
        for method in methods
        for scan in SCANS
        for contrast in ("qT1", "MWF", COMBINED)
        for sign in ("positive", "negative")
        for percent in PERCENTS
        for image in ("qT1", "MWF")
        if (scan == SCANS[-1]) <= (sign == "negative")  # a mask that only some have
    ]


def test_means_in_masks_by_scan_and_column(cohort: Workspace) -> None:
    methods = list(cohort.study.methods)[:2]
    rows = measures([*methods, "of another day"])
    fill(cohort, "mask_measures", rows)
    asked = [SCANS[3], SCANS[0], SCANS[6]]
    names, wide = statistics._measures(cohort, asked)
    expected = {
        (row["method"], row["image"], row["contrast"], row["sign"], row["top_percent"]): [np.nan] * len(asked)
        for row in rows
        if row["method"] in methods and row["contrast"] in (row["image"], COMBINED)
    }
    for row in rows:
        key = (row["method"], row["image"], row["contrast"], row["sign"], row["top_percent"])
        if key in expected and row["scan"] in asked and row["mean"] is not None:
            expected[key][asked.index(row["scan"])] = row["mean"]
    order = sorted(expected)
    np.testing.assert_array_equal(wide, np.array([expected[key] for key in order]).T)
    assert np.isnan(wide).any()
    assert names.rows() == [
        (method, image, f"{contrast}{' negative' if sign == 'negative' else ''} top {percent} %")
        for method, image, contrast, sign, percent in order
    ]


def test_localisation_comes_with_its_person(cohort: Workspace) -> None:
    random = np.random.default_rng(1)
    fill(
        cohort,
        "localisation",
        [
            {"method": method, "scan": scan, "contrast": "qT1", "region": "lesion", "metric": metric}
            | {"value": float(random.random()), "chance": None if random.random() < 0.2 else float(random.random())}
            for scan in SCANS
            for method in ("a", "b")
            for metric in ("auc", "iou")
        ],
    )
    found = statistics._localised(cohort).with_columns(pl.col(pl.Categorical).cast(pl.String))
    whole = cohort.read("localisation").join(cohort.read("scans").select("scan", "participant_id"), on="scan")
    key = ["scan", "method", "metric"]
    assert found.sort(key).equals(whole.select(found.columns).sort(key))


def test_outputs_come_with_person_class_and_role(cohort: Workspace) -> None:
    random = np.random.default_rng(2)
    fill(
        cohort,
        "inversions",
        [
            {"fold": fold, "scan": scan, "method": "a", "map": "combined", "control": "own", "top_percent": percent}
            | {"draw": 0, "output": float(random.normal()), "pairs": 1, "share_of_brain": percent / 300}
            for fold in ("0", "1", "2")
            for scan in SCANS
            for percent in PERCENTS
        ],
    )
    found = inversion._judged(cohort).with_columns(pl.col(pl.Categorical).cast(pl.String))
    threshold = cohort.study.cohort.target.threshold
    scans = cohort.read("scans").select("scan", "participant_id", (pl.col("target") >= threshold).cast(pl.Int64))
    whole = cohort.read("inversions").join(scans, on="scan")
    roles = [role_of(cohort, scan, fold) for scan, fold in whole.select("scan", "fold").iter_rows()]
    assert set(roles) == {"train", "validation", "test", "new"}
    key = ["scan", "fold", "top_percent"]
    whole = whole.with_columns(pl.Series("set", roles))
    assert found.sort(key).equals(whole.select(found.columns).sort(key))


def test_no_rows_have_columns_all_the_same(cohort: Workspace) -> None:
    names, wide = statistics._measures(cohort, SCANS)
    assert (names.columns, wide.shape) == (["method", "x", "stratum"], (7, 0))
    assert statistics._localised(cohort).is_empty()
    assert inversion._judged(cohort).is_empty()
