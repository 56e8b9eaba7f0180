"""The template that scans are compared with: MNI152NLin2009aSym, brain only, as nilearn brings it along.

Belongs here: its images on one grid. Does not belong here: what is done with them, regions (`regions.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from relevance_assets.imaging.grid import Grid, resample
from relevance_assets.imaging.volumes import Image

__all__ = ["Template", "moved_by", "template"]


@dataclass(frozen=True, eq=False)
class Template:
    """T1w image, brain and white matter of the template.

    Attributes
    ----------
    t1w : ndarray (x, y, z), float32
        0 outside the brain.
    brain : ndarray (x, y, z), bool
        1,883 ml, with the fluid around the brain.
    white : ndarray (x, y, z), float32
        Share of white matter, 0 to 1.
    grid : Grid
    """

    t1w: np.ndarray
    brain: np.ndarray
    white: np.ndarray
    grid: Grid

    @property
    def image(self) -> Image:
        """The T1w image with its affine."""
        return Image(self.t1w, self.grid.affine)


@cache
def template(resolution_mm: int = 2) -> Template:
    """The template on its own RAS+ grid of this voxel size; read from nilearn's package, nothing is downloaded."""
    from nilearn import datasets

    t1w = datasets.load_mni152_template(resolution=resolution_mm)
    brain = datasets.load_mni152_brain_mask(resolution=resolution_mm)
    white = datasets.load_mni152_wm_template(resolution=resolution_mm)
    inside = np.asarray(brain.dataobj) > 0
    return Template(
        np.where(
            inside, np.asarray(t1w.dataobj, dtype=np.float32), np.float32(0)
        ),  # nilearn's interpolation leaves some
        inside,
        np.asarray(white.dataobj, dtype=np.float32),
        Grid(t1w.shape, np.asarray(t1w.affine, dtype=np.float64)),
    )


def moved_by(values: np.ndarray, source: Grid, matrix: np.ndarray, target: Grid) -> np.ndarray:
    """Values of a template's grid on a scan's grid, linearly; 0 outside the template's field of view.

    Parameters
    ----------
    values : ndarray, `source.shape`
    matrix : ndarray (4, 4)
        Points of the template to points of the scan, mm.

    Returns
    -------
    ndarray, `target.shape`, float32
    """
    return resample(values, Grid(source.shape, matrix @ source.affine), target, smooth=False)
