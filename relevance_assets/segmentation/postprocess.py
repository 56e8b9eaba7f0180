"""Small objects and thin threads out of labels: as published in 2D, or in millimetres in 3D.

Belongs here: morphology of finished labels. Does not belong here: lesions as objects with properties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

__all__ = ["INFERENCE_RADII", "as_published", "ball", "disk", "in_millimetres", "remove_small", "structure"]

INFERENCE_RADII = {2: 1}  # of the study's inference script: lesions only
NEIGHBOURS = {4: (2, 1), 8: (2, 2), 6: (3, 1), 18: (3, 2), 26: (3, 3)}


def structure(connectivity: int) -> np.ndarray:
    """Which neighbours belong together: 4 or 8 in a slice, 6, 18 or 26 in a volume."""
    if connectivity not in NEIGHBOURS:
        raise ValueError(f"connectivity {connectivity} is not known; choose 4, 8, 6, 18 or 26")
    return ndimage.generate_binary_structure(*NEIGHBOURS[connectivity])


def remove_small(mask: np.ndarray, minimum: float, connectivity: int) -> np.ndarray:
    """The mask without components of fewer than `minimum` voxels."""
    found, _ = ndimage.label(mask, structure(connectivity))
    kept = np.bincount(found.ravel()) >= minimum
    kept[0] = False
    return kept[found]


def disk(radius: int) -> np.ndarray:
    """Pixels whose distance from the middle is at most `radius` (scikit-image's disk)."""
    return ball(radius, (1.0, 1.0))


def ball(radius_mm: float, voxel_size_mm: Sequence[float]) -> np.ndarray:
    """Voxels whose distance from the middle is at most `radius_mm`; the middle one at least."""
    size = np.asarray(voxel_size_mm, dtype=np.float64)
    reach = np.floor(radius_mm / size + 1e-9).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1)
    return ((steps * size) ** 2).sum(axis=-1) <= radius_mm**2 * (1 + 1e-9)


def as_published(labels: np.ndarray, *, minimum_pixels: int = 5, radii: Mapping[int, int] | None = None) -> np.ndarray:
    """MS-DeepBrain-Study's evaluation: slice by slice, for each class, small objects removed, then an opening.

    Parameters
    ----------
    labels : (x, y, z)
        Slices along the third axis; 0 is background.
    minimum_pixels
        4-connected objects with fewer are removed.
    radii
        Radius in pixels of the disk for the opening, per class; {1: 2, 2: 2} where None. The study's inference opens
        with `INFERENCE_RADII`. A class that is not named is not opened.

    Returns
    -------
    (x, y, z), the labels' type
    """
    chosen = {1: 2, 2: 2} if radii is None else radii
    kept = np.zeros_like(labels)
    for label in _classes(labels):
        for z in range(labels.shape[2]):
            mask = remove_small(labels[:, :, z] == label, minimum_pixels, 4)
            kept[:, :, z][_open(mask, disk(chosen.get(label, 0)))] = label
    return kept


def in_millimetres(
    labels: np.ndarray,
    voxel_size_mm: Sequence[float],
    *,
    minimum_mm3: Mapping[int, float] | None = None,
    radii_mm: Mapping[int, float] | None = None,
    connectivity: int = 26,
) -> np.ndarray:
    """In three dimensions: for each class an opening by a ball, then components below a volume removed.

    The opening comes first here, so that no remainder of it is smaller than what may stay.

    Parameters
    ----------
    labels : (x, y, z)
    voxel_size_mm : (3,)
    minimum_mm3, radii_mm
        Least volume and the ball's radius per class; a class that is not named is left as it is.
    connectivity
        6, 18 or 26.
    """
    if connectivity not in (6, 18, 26):
        raise ValueError(f"connectivity {connectivity} is none of a volume; choose 6, 18 or 26")
    voxel_mm3 = float(np.prod(np.asarray(voxel_size_mm, dtype=np.float64)))
    kept = np.zeros_like(labels)
    for label in _classes(labels):
        mask = _open(labels == label, ball((radii_mm or {}).get(label, 0.0), voxel_size_mm))
        least = (minimum_mm3 or {}).get(label, 0.0) / voxel_mm3 * (1 - 1e-9)  # a volume met exactly is enough
        kept[remove_small(mask, least, connectivity)] = label
    return kept


def _open(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Opening, for which the outside of the grid neither erodes nor is filled (as in scikit-image)."""
    if element.sum() == 1:
        return mask
    eroded = ndimage.binary_erosion(mask, element, border_value=1)
    return ndimage.binary_dilation(eroded, element)


def _classes(labels: np.ndarray) -> list[int]:
    if labels.ndim != 3:
        raise ValueError(f"labels must have three axes, not shape {labels.shape}")
    return [int(label) for label in np.unique(labels) if label]
