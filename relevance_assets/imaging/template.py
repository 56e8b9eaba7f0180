"""The template MNI152NLin2009aSym as nilearn brings it: brain, mask and white matter on one grid.

Belongs here: loading it, offline. Does not belong here: where a scan lies in it (`alignment.py`), its regions
(`regions.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from relevance_assets.imaging.grid import Grid
from relevance_assets.imaging.volumes import Image

__all__ = ["Template", "load_template"]


@dataclass(frozen=True, eq=False)
class Template:
    """The template on a grid of one voxel size.

    Attributes
    ----------
    brain : Image
        T1w, only brain; 0 elsewhere.
    mask : (x, y, z) bool
    white : (x, y, z) float32
        Probability of white matter.
    """

    brain: Image
    mask: np.ndarray
    white: np.ndarray

    @property
    def grid(self) -> Grid:
        return Grid(self.mask.shape, self.brain.affine)


@cache
def load_template(voxel_size_mm: int = 2) -> Template:
    """The template at 1 mm or a multiple of it."""
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=voxel_size_mm)
    mask = np.asarray(datasets.load_mni152_brain_mask(resolution=voxel_size_mm).dataobj) > 0
    white = np.asarray(datasets.load_mni152_wm_template(resolution=voxel_size_mm).dataobj, dtype=np.float32)
    values = np.where(mask, np.asarray(image.dataobj, dtype=np.float32), np.float32(0))
    return Template(Image(values, np.asarray(image.affine, dtype=np.float64)), mask, white)
