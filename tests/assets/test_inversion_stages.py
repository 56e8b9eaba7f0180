"""Which scans are inverted: those that an AUC is made of."""

from __future__ import annotations

import polars as pl
import pytest

from relevance_assets.assets.inversion import inversion_stages
from relevance_assets.assets.stages import ALL, NotReady
from relevance_assets.assets.workspace import Workspace

SIDES = {"sub-1": ("train", 0), "sub-2": ("test", None), "sub-3": ("new", None)}


def came_to(workspace: Workspace, asset: str, scan: str, result: str = "x") -> None:
    row = {"asset": asset, "item": scan, "outcome": "ok", "result": result}
    workspace.write("runs", f"{asset}__{scan}", pl.DataFrame([row]))


@pytest.fixture
def divided(workspace: Workspace) -> Workspace:
    """Three scans with maps; one came after the split."""
    rows = [{"scan": scan, "set": side, "fold": fold, "participant_id": scan} for scan, (side, fold) in SIDES.items()]
    workspace.write("splits", ALL, pl.DataFrame(rows))
    people = [{"scan": scan, "participant_id": scan, "target": 2.0, "status": "ok"} for scan in SIDES]
    workspace.write("scans", ALL, pl.DataFrame(people))
    for scan in SIDES:
        came_to(workspace, "relevance_maps", scan)
    return workspace


def test_later_scans_are_not_inverted(divided: Workspace) -> None:
    inversions, _ = inversion_stages(divided)
    assert inversions.items() == ["sub-1", "sub-2"]


def test_later_scans_are_no_reason_to_make_the_curves_again(divided: Workspace) -> None:
    """Also where an older version has inverted them."""
    _, curves = inversion_stages(divided)
    came_to(divided, "inversions", "sub-3")
    with pytest.raises(NotReady):
        curves.inputs(ALL)
    came_to(divided, "inversions", "sub-1")
    before = curves.fingerprint(ALL)
    came_to(divided, "inversions", "sub-3", "another")
    assert curves.fingerprint(ALL) == before
    came_to(divided, "inversions", "sub-2")
    assert curves.fingerprint(ALL) != before
