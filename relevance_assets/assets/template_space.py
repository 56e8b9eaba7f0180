"""How a scan's results come into template space: by which of the transforms that lie about, in which direction.

Belongs here: finding the file, and the mapping that it holds. Does not belong here: making one (`preparation.py`),
moving volumes along it (`imaging/transforms.py`, `evidence/heatmap.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from relevance_assets.assets.relevance import geometry_of
from relevance_assets.assets.workspace import Workspace
from relevance_assets.home import TEMPLATE_SPACE, split_scan

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.imaging.grid import Grid

__all__ = ["stamp", "transform_file", "way_to_scan"]

KINDS = r"\.(nii|nii\.gz|txt|mat)"
TO_TEMPLATE = re.compile(rf"_from-[a-zA-Z0-9]+_to-{TEMPLATE_SPACE}_mode-image_xfm{KINDS}")
TO_SCAN = re.compile(rf"_from-{TEMPLATE_SPACE}_to-[a-zA-Z0-9]+_mode-image_xfm{KINDS}")
MATRICES = (".txt", ".mat")
INVERSE_MM = 6.0  # of the grid on which the inverse of a field is kept: warps are smooth


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
