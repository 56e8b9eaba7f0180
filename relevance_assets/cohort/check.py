"""Is a raw image sound, and what does its header say: one row of the table `raw_scans`.

Belongs here: the check of one file. Does not belong here: finding it (`bids.py`), changing it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relevance_assets.files import sha256
from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.quality import grid_columns
from relevance_assets.imaging.volumes import ScanError, read_image

__all__ = ["ScanError", "check_image"]


def check_image(path: Path) -> dict[str, Any]:
    """Read the whole image and describe it.

    Returns
    -------
    dict
        path, sha256, bytes, shape_x … shape_z, voxel_x_mm … voxel_z_mm, orientation, and unit and sidecar,
        which are None: they are not in the image but in its sidecar.

    Raises
    ------
    ScanError
        One line: all that `read_image` refuses, and an image whose voxels are all equal.
    """
    image = read_image(path)
    low, high = float(image.data.min()), float(image.data.max())
    if low == high:
        raise ScanError(f"{path}: all voxels are {low:g}, so nothing is to be seen; export it again")
    return {
        "path": str(path),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        **grid_columns(Grid(image.data.shape, image.affine)),
        "unit": None,
        "sidecar": None,
    }
