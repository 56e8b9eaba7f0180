"""Where a scan's prepared grid lies: on its native grid, and in the template, by the transform that is there.

Belongs here: finding the file, and the mapping that it holds. Does not belong here: making one (`preparation.py`),
moving volumes along it (`imaging/transforms.py`, `evidence/heatmap.py`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import sidecar
from relevance_assets.home import TEMPLATE_SPACE, split_scan

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.imaging.geometry import Geometry
    from relevance_assets.imaging.grid import Grid

__all__ = ["density_in_template", "geometry_of", "stamp", "transform_file", "way_to_scan"]

KINDS = r"\.(nii|nii\.gz|txt|mat)"
TO_TEMPLATE = re.compile(rf"_from-[a-zA-Z0-9]+_to-{TEMPLATE_SPACE}_mode-image_xfm{KINDS}")
TO_SCAN = re.compile(rf"_from-{TEMPLATE_SPACE}_to-[a-zA-Z0-9]+_mode-image_xfm{KINDS}")
MATRICES = (".txt", ".mat")
INVERSE_MM = 6.0  # of the grid on which the inverse of a field is kept: warps are smooth


def geometry_of(workspace: Workspace, scan: str) -> Geometry:
    """How the prepared grid of a scan came from its native one, from the brain mask's sidecar."""
    from relevance_assets.imaging.geometry import Geometry

    mask = workspace.mask_path(scan)
    return Geometry.from_dict(json.loads(sidecar(mask).read_text())["Geometry"], mask.parent)


def density_in_template(
    workspace: Workspace, scan: str, values: np.ndarray, geometry: Geometry
) -> tuple[np.ndarray, Grid]:
    """A relevance map in the template, its sum kept, and the grid there: 2 mm, or the prepared one if it lies there.

    Raises
    ------
    ValueError
        No transform of the scan to the template is there.
    """
    from relevance_assets.imaging.template import template
    from relevance_assets.imaging.transforms import pull_density

    target = geometry.prepared if geometry.in_template else template().grid
    way = way_to_scan(workspace, scan, target)
    if way is None:
        raise ValueError(
            f"{scan}: no transform to {TEMPLATE_SPACE}, which maps with `template: true` need; add the step register"
        )
    return pull_density(values, geometry.prepared, target, way), target


def transform_file(workspace: Workspace, scan: str) -> Path | None:
    """The transform between the scan and the template; None where the scan is taken to lie there already.

    The first of: among the scan's derivatives (where `register` writes it), beside the raw images, in the truth of the
    synthetic cohort; in a folder the one to the template, else the one to the scan.
    """
    participant, session = split_scan(scan)
    raw = workspace.bids / participant / (session or "") / "anat"
    derived, truth = workspace.mask_path(scan).parent, workspace.truth_path(scan, "any").parent
    for folder in (derived, raw, truth):
        names = sorted(_names(folder))
        for direction in (TO_TEMPLATE, TO_SCAN):
            found = [name for name in names if _leads(name, scan, direction)]
            if len(found) > 1:
                raise ValueError(f"{folder / found[0]}: one of {len(found)} for {scan}; leave one there")
            if found:
                return folder / found[0]
    return None


def way_to_scan(workspace: Workspace, scan: str, grid: Grid) -> Callable[[np.ndarray], np.ndarray] | np.ndarray | None:
    """Where points of the template lie in the prepared scan; None where millimetres of both are taken for the same.

    Parameters
    ----------
    grid : Grid
        Over the template, on which a field of the other direction is inverted.
    """
    import numpy as np

    from relevance_assets.imaging.displacement import inverse, move, read_displacement
    from relevance_assets.imaging.grid import axis_aligned
    from relevance_assets.imaging.transforms import read_affine

    geometry = geometry_of(workspace, scan)
    if geometry.in_template:
        return np.eye(4)
    path = transform_file(workspace, scan)
    if path is None:
        return None
    turned = _leads(path.name, scan, TO_SCAN)
    if path.suffix in MATRICES:
        matrix = read_affine(path)
        return geometry.moved @ (np.linalg.inv(matrix) if turned else matrix)
    field = read_displacement(path)
    if turned:
        try:
            field = inverse(field, axis_aligned(grid, (INVERSE_MM, INVERSE_MM, INVERSE_MM)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return lambda points: move(geometry.moved, field(points))


def stamp(path: Path | None) -> tuple[str, int, int] | None:
    """What a raw file is known by: such fields are large, and asked about often."""
    if path is None:
        return None
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)  # noqa: PTH208  a pattern for each of thousands of scans takes seconds
    return []


def _leads(name: str, scan: str, direction: re.Pattern[str]) -> bool:
    return name.startswith(scan) and direction.fullmatch(name, len(scan)) is not None
