"""The rules in three dimensions on lesions whose zone is known, since they were planted there."""

from __future__ import annotations

import numpy as np
import pytest

from relevance_assets.cohort.synthetic.bids import fullest_voxels
from relevance_assets.cohort.synthetic.lesions import ZONES
from relevance_assets.cohort.synthetic.people import draw_visits
from relevance_assets.cohort.synthetic.scan import make_scan
from relevance_assets.lesions.burden import LESION_RULE, VOXEL_RULE, measure, zone_maps
from relevance_assets.lesions.components import label_lesions
from relevance_assets.lesions.zones_3d import ZoneThresholds

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
PUBLISHED_MM, CORTEX_MM = 6.0, 3.0  # from fluid; from cortex, a cortex's thickness nearer


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str], np.ndarray]:
    """Voxels of four people by zone planted and zone found; of each rule, with a mask of cortex and without."""
    found: dict[tuple[str, str], np.ndarray] = {}
    people = [visit for visit in draw_visits(11, 16) if visit.person.group == "MS" and visit.session == 1][:4]
    for visit in people:
        parts = make_scan(visit, voxel_size_mm=2.0, seed=11, effect=1.0).fractions
        inside = parts["brain"] >= 0.5
        zones = np.stack([parts[name] * inside for name in ZONES])
        lesion = fullest_voxels(zones.sum(axis=0))
        labels = label_lesions(lesion, AFFINE, connectivity=26, minimum_mm3=0)
        for name, cortex, limit in (
            ("cortex", parts["cortex"] >= 0.5, CORTEX_MM),
            ("rim", ~inside, PUBLISHED_MM),
        ):
            measured = measure(labels, AFFINE, ventricles=parts["ventricle"] >= 0.5, cortex=cortex, brain=inside)
            for rule, codes in zone_maps(measured, ZoneThresholds(cortex_edge_mm=limit)).items():
                table = found.setdefault((name, rule), np.zeros((3, 4), int))
                np.add.at(table, (zones.argmax(axis=0)[lesion], codes[lesion]), 1)
    return found


@pytest.mark.parametrize("rule", [LESION_RULE, VOXEL_RULE])
def test_planted_zones_are_found_where_the_cortex_is_known(
    counts: dict[tuple[str, str], np.ndarray], rule: str
) -> None:
    table = counts["cortex", rule]
    assert table.sum() > 300
    assert not table[:, 0].any()
    right = table[:, 1:].diagonal()
    assert right.sum() / table.sum() > 0.9
    assert (right / table.sum(axis=1) > 0.6).all()


def test_without_the_cortex_lesions_at_sulci_are_not_juxtacortical(
    counts: dict[tuple[str, str], np.ndarray],
) -> None:
    """The rim of the brain mask leaves sulci inside; the guide says so."""
    table = counts["rim", LESION_RULE]
    assert table[2, 3] < 0.5 * table[2].sum()
    assert table[0, 1] / table[0].sum() > 0.9  # the ventricles are the same
