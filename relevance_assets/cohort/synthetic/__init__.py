"""A synthetic MS cohort with planted truth, made offline from nilearn's MNI152 template.

Belongs here: who the people are, what their brains look like, what is planted, and the BIDS folder that
holds it. Does not belong here: reading a cohort (`relevance_assets.cohort`), or any analysis of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["check_folder", "is_complete", "synthesise"]


def synthesise(
    out: Path,
    *,
    scans: int = 150,
    voxel_size_mm: float = 6.0,
    seed: int = 0,
    effect: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a BIDS dataset of `scans` synthetic scans, with their truth, below `out`.

    A scan depends on the seed, its own label and the other settings only, so it is the same whichever
    scans were made before it. A folder with the same settings is continued: finished scans are kept,
    unfinished ones made anew, and more scans may be asked for than before.

    Parameters
    ----------
    out : Path
        Folder of the dataset; made when missing.
    scans : int
        Number of scans (sessions) in total; about a quarter of the people with MS have two.
    voxel_size_mm : float
        Edge of the cubic voxels; the field of view is 192 x 224 x 192 mm.
    seed : int
        0 or larger.
    effect : float
        Size of the planted effect of EDSS: 0 is none, 1 the physiological one of `signal.py`.
    progress : callable, optional
        Called with (scans there, scans in total) after each scan.

    Raises
    ------
    SyntheticCohortError
        A ValueError: a setting is out of range, or `out` holds something else.
    """
    from relevance_assets.cohort.synthetic import cohort

    cohort.synthesise(Path(out), scans=scans, voxel_size_mm=voxel_size_mm, seed=seed, effect=effect, progress=progress)


def is_complete(out: Path, *, scans: int, voxel_size_mm: float, seed: int, effect: float) -> bool:
    """Whether `out` holds this very cohort, all of it (participants.tsv is written last)."""
    from relevance_assets.cohort.synthetic import cohort

    return cohort.is_complete(Path(out), scans=scans, voxel_size_mm=voxel_size_mm, seed=seed, effect=effect)


def check_folder(out: Path, *, scans: int, voxel_size_mm: float, seed: int, effect: float) -> None:
    """Raise SyntheticCohortError if these settings are out of range or `out` holds something else."""
    from relevance_assets.cohort.synthetic import cohort

    cohort.check_folder(Path(out), scans=scans, voxel_size_mm=voxel_size_mm, seed=seed, effect=effect)
