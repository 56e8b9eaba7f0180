"""Zones in three dimensions by hand, tables by counting, kappa by scikit-learn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest

from relevance_assets.lesions.burden import (
    BURDEN,
    LESION_RULE,
    LESIONS,
    VOXEL_RULE,
    burden,
    lesion_rows,
    measure,
    published_lesions,
    sensitivity,
    zone_maps,
)  # fmt: skip
from relevance_assets.lesions.components import label_lesions
from relevance_assets.lesions.distances import Plane
from relevance_assets.lesions.zones_2d import ZONES, published_zones
from relevance_assets.lesions.zones_3d import Agreement, ZoneThresholds, agreement, confluent_zones, lesion_zones

AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])
NAN = float("nan")


@pytest.mark.parametrize(
    ("edge", "centroid", "cortex", "volume", "zone"),
    [
        (7.5, 99, 99, 999, 1),
        (7.51, 15, 99, 999, 1),
        (7.51, 15.1, 6, 113.09, 3),
        (7.51, 15.1, 6.01, 1, 2),
        (7.51, 15.1, 1, 113.1, 2),  # larger than a sphere of 6 mm
        (1, 1, 1, 1, 1),  # near both
        (NAN, NAN, 1, 1, 0),  # no ventricle: open
        (NAN, NAN, NAN, 1, 0),
        (9, 20, NAN, 1, 0),  # small, and no cortex: open
        (9, 20, NAN, 999, 2),  # too large to be juxtacortical, wherever the cortex is
        (5, 20, NAN, 1, 1),
    ],
)
def test_the_rule_for_a_lesion(edge: float, centroid: float, cortex: float, volume: float, zone: int) -> None:
    assert lesion_zones([edge], [centroid], [cortex], [volume]).tolist() == [zone]


@pytest.mark.parametrize(
    ("ventricle", "cortex", "zone"),
    [(7.5, 1, 1), (7.6, 3, 3), (7.6, 3.1, 2), (NAN, 1, 0), (9, NAN, 0), (2, NAN, 1), (NAN, NAN, 0)],
)
def test_the_rule_for_a_voxel(ventricle: float, cortex: float, zone: int) -> None:
    assert confluent_zones([ventricle], [cortex]).tolist() == [zone]


def test_thresholds_are_checked_and_carry_the_published_ones_over() -> None:
    assert ZoneThresholds().juxtacortical_mm3 == pytest.approx(4 / 3 * math.pi * 3**3)
    assert lesion_zones([], [], [], []).size == 0
    assert lesion_zones([9], [20], [1], [1], ZoneThresholds(cortex_edge_mm=0.5)).tolist() == [2]
    for value in (-1.0, NAN):
        with pytest.raises(ValueError, match="voxel_cortex_mm"):
            ZoneThresholds(voxel_cortex_mm=value)


@pytest.mark.parametrize("size", [2.5, 1.5, 0.75])
def test_a_limit_is_met_whatever_the_rounding_of_a_turned_grid(size: float) -> None:
    a = np.deg2rad(21)
    affine = np.eye(4, dtype=np.float32)
    affine[:3, :3] = size * np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    steps = round(7.5 / size)
    labels = np.zeros((14, 3, 3), np.int32)
    labels[steps, 1, 1], labels[steps + 1, 0, 1] = 1, 2
    ventricle = np.zeros(labels.shape, bool)
    ventricle[0, :, 1] = True
    far = np.zeros(labels.shape, bool)
    far[13] = steps < 8
    found = measure(labels, affine, ventricles=ventricle, cortex=far)
    codes = zone_maps(found, ZoneThresholds(ventricle_centroid_mm=1, juxtacortical_mm3=0))
    for zones in codes.values():
        assert zones[steps, 1, 1] == 1
        assert zones[steps + 1, 0, 1] != 1


# ---------------------------------------------------------------------------------------------------- agreement
def test_kappa_is_scikit_learns() -> None:
    from sklearn.metrics import cohen_kappa_score

    random = np.random.default_rng(2)
    first = random.integers(0, 4, (20, 20, 5))
    second = np.where(random.random(first.shape) < 0.6, first, random.integers(0, 4, first.shape))
    both = (first > 0) & (second > 0)
    found = agreement(first.astype(np.uint8), second)
    assert found.kappa == pytest.approx(cohen_kappa_score(first[both], second[both]))
    assert found.equal == pytest.approx((first == second)[both].mean())
    assert found.voxels == both.sum()
    assert found.only_one == ((first > 0) != (second > 0)).sum()


def test_agreement_without_lesions_or_with_one_zone() -> None:
    nothing, one = np.zeros((3, 3), int), np.eye(3, dtype=int)
    assert agreement(nothing, nothing) == Agreement(0, 0, None, None)
    assert agreement(one, nothing) == Agreement(0, 3, None, None)
    assert agreement(one, one) == Agreement(3, 0, None, 1.0)
    assert agreement(one, 2 * one) == Agreement(3, 0, 0.0, 0.0)
    with pytest.raises(ValueError, match="grid"):
        agreement(one, one[:2])


# ------------------------------------------------------------------------------------------------------- a scan
def scene() -> dict[str, np.ndarray]:
    """A ventricle in the middle of 60 x 40 x 20 voxels, cortex at x = 55, and four lesions."""
    lesions, ventricles, cortex = (np.zeros((60, 40, 20), bool) for _ in range(3))
    ventricles[5:10, 10:30, 5:15] = True
    cortex[55:] = True
    lesions[12:14, 15:17, 8] = True  # periventricular
    lesions[35:37, 15:17, 8] = True  # paraventricular
    lesions[51:53, 15:17, 8] = True  # juxtacortical
    lesions[14:54, 20, 10] = True  # from ventricle to cortex
    return {"lesions": lesions, "ventricles": ventricles, "cortex": cortex}


def test_a_scan_by_all_rules() -> None:
    given = scene()
    labels = label_lesions(given["lesions"], AFFINE)
    plane = Plane(np.array([1.0, 0, 0]), -30.0)
    found = measure(labels, AFFINE, ventricles=given["ventricles"], cortex=given["cortex"], plane=plane)
    maps = zone_maps(found)
    assert [maps[LESION_RULE][at] for at in ((12, 15, 8), (35, 15, 8), (51, 15, 8), (30, 20, 10))] == [1, 2, 3, 1]
    # voxels 14 to 16 are within 7.5 mm of x = 9, 52 and 53 within 3 mm of x = 55
    assert maps[VOXEL_RULE][14:54, 20, 10].tolist() == [1] * 3 + [2] * 35 + [3] * 2
    assert all((zones > 0).tolist() == given["lesions"].tolist() for zones in maps.values())

    rows = lesion_rows(found)
    assert dict(rows.schema) == LESIONS
    whole, split = rows.filter(rule=LESION_RULE), rows.filter(rule=VOXEL_RULE)
    names = {
        number: ZONES[code - 1] for number, code in zip(labels[labels > 0], maps[LESION_RULE][labels > 0], strict=True)
    }
    assert dict(zip(whole["lesion"], whole["zone"], strict=True)) == names
    long = labels[30, 20, 10]
    assert split.filter(lesion=long)["zone"].item() == "paraventricular"  # most of its voxels
    assert whole.filter(lesion=long).select("ventricle_edge_mm", "cortex_edge_mm", "midplane_mm").row(0) == (5, 2, -3.5)
    assert rows["slice"].null_count() == rows["area_mm2"].null_count() == rows.height

    frame = burden(VOXEL_RULE, maps[VOXEL_RULE], labels, found.voxel_mm3, 1e6)
    assert dict(frame.schema) == BURDEN
    for code, row in enumerate(frame.to_dicts()):
        here = (maps[VOXEL_RULE] == code) if code else labels > 0
        assert row["zone"] == ("all", *ZONES)[code]
        assert row["volume_mm3"] == pytest.approx(2.0 * here.sum())
        assert row["count"] == len({int(number) for number in labels[here]})
        assert row["share"] == pytest.approx(here.sum() / (labels > 0).sum())
        assert row["share_of_intracranial"] == pytest.approx(2.0 * here.sum() / 1e6)
    # the confluent one counts in all three; of the one near the cortex, voxels at x = 51 are 4 mm off it
    assert frame["count"].to_list() == [4, 2, 3, 2]
    assert frame["share"][1:].sum() == pytest.approx(1)


def test_thresholds_change_what_they_should() -> None:
    given = scene()
    labels = label_lesions(given["lesions"], AFFINE)
    found = measure(labels, AFFINE, ventricles=given["ventricles"], cortex=given["cortex"])
    base = ZoneThresholds(ventricle_edge_mm=6.0)
    table = sensitivity(found, base)
    assert table.columns == ["rule", "threshold", "factor", "value", "zone", "volume_mm3", "count"]
    assert table.height == 6 * 3 * 4
    for (name, factor), rows in table.group_by("threshold", "factor"):
        given_value = getattr(base, str(name))
        changed = dataclasses.replace(base, **{str(name): given_value * factor})
        rule = VOXEL_RULE if str(name).startswith("voxel") else LESION_RULE
        expected = burden(rule, zone_maps(found, changed)[rule], labels, 2.0)
        assert rows["rule"].unique().to_list() == [rule]
        assert rows["value"].unique().to_list() == [given_value * factor]
        assert rows["volume_mm3"].to_list() == expected["volume_mm3"].to_list()
        assert rows["count"].to_list() == expected["count"].to_list()
    near = table.filter(pl.col("threshold") == "voxel_ventricle_mm", zone="periventricular").sort("factor")
    assert near["volume_mm3"].is_sorted()
    assert near["volume_mm3"].n_unique() == 3


@pytest.mark.parametrize("absent", ["ventricles", "cortex"])
def test_a_missing_target_leaves_zones_open(absent: str) -> None:
    given = scene() | {absent: None}
    labels = label_lesions(given["lesions"], AFFINE)
    found = measure(labels, AFFINE, ventricles=given["ventricles"], cortex=given["cortex"])
    maps, rows = zone_maps(found), lesion_rows(found)
    frame = burden(LESION_RULE, maps[LESION_RULE], labels, 2.0)
    assert frame["volume_mm3"][0] == 2.0 * given["lesions"].sum()
    assert frame["share_of_intracranial"].null_count() == 4
    if absent == "ventricles":
        assert not maps[LESION_RULE].any()
        assert not maps[VOXEL_RULE].any()
        assert rows["zone"].null_count() == rows.height
        assert rows["ventricle_edge_mm"].null_count() == rows.height
    else:
        assert maps[LESION_RULE][35, 15, 8] == 0
        assert maps[LESION_RULE][12, 15, 8] == 1
        assert rows.filter(rule=LESION_RULE)["zone"].null_count() == 2


def test_no_lesion_gives_volume_0_and_a_null_share() -> None:
    labels = np.zeros((5, 5, 5), np.int32)
    some = np.zeros((5, 5, 5), bool)
    some[0, 0, 0] = True
    found = measure(labels, AFFINE, ventricles=some, cortex=some, brain=~some)
    maps = zone_maps(found)
    frame = burden(VOXEL_RULE, maps[VOXEL_RULE], labels, 2.0, 1e6)
    assert lesion_rows(found).height == 0
    assert (
        frame["volume_mm3"].to_list() == frame["count"].to_list() == frame["share_of_intracranial"].to_list() == [0] * 4
    )
    assert frame["share"].null_count() == 4
    assert sensitivity(found)["volume_mm3"].sum() == 0
    with pytest.raises(ValueError, match="intracranial"):
        burden("a", labels, labels, 1.0, 0.0)
    with pytest.raises(ValueError, match="shape"):
        burden("a", labels, labels[:2], 1.0)


def test_the_published_rules_objects_as_rows() -> None:
    given = scene()
    found = published_zones(given["lesions"], given["ventricles"], given["cortex"])
    rows = published_lesions(found, AFFINE, Plane(np.array([1.0, 0, 0]), -30.0))
    assert dict(rows.schema) == LESIONS
    assert rows["slice"].to_list() == found.objects["slice"].to_list()
    assert sorted(rows["volume_mm3"]) == [8, 8, 8, 80]
    assert rows.filter(volume_mm3=80).select("centroid_x_mm", "midplane_mm", "area_mm2").row(0) == pytest.approx(
        (-33.5, -3.5, 32.4)
    )
    nothing = np.zeros((20, 20, 3))
    assert published_lesions(published_zones(nothing, nothing, nothing), AFFINE).height == 0
