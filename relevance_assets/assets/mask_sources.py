"""Masks of ventricles and lesions: who has some of a scan, and where.

Belongs here: files of the sources that a study names, and of its network; reading one beside its image. Does not belong
here: what is measured of masks (`lesions.py`), how the network makes them (`segmentation.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from relevance_assets.assets.spaces import geometry_of, stamp
from relevance_assets.assets.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    from relevance_assets.imaging.volumes import Image

__all__ = [
    "cortex_file",
    "has_masks",
    "load_labels",
    "load_mask",
    "mask_files",
    "native_image",
    "source_names",
    "stamps",
]


KINDS = ("lesions", "ventricles")


def source_names(workspace: Workspace) -> list[str]:
    """All sources of masks, the study's network the last."""
    lesions, network = workspace.study.lesions, workspace.study.segmentation
    return [*(lesions.sources if lesions else ()), *([network.name] if network else [])]


def mask_files(workspace: Workspace, scan: str, source: str) -> dict[str, Path]:
    """Where a source has its masks of a scan (`lesions`, `ventricles`), whether they are there or not."""
    lesions, network = workspace.study.lesions, workspace.study.segmentation
    assert lesions is not None
    if network and source == network.name:
        return {mask: workspace.segmented_path(scan, source, mask) for mask in KINDS}
    given = lesions.sources[source]
    return {mask: _below_bids(workspace, getattr(given, mask), scan) for mask in KINDS}


def cortex_file(workspace: Workspace, scan: str, source: str) -> Path | None:
    """The cortex that distances of a source's lesions are to; None for the rim of the brain mask."""
    lesions, network = workspace.study.lesions, workspace.study.segmentation
    assert lesions is not None
    text = lesions.sources[network.learn_from if network and source == network.name else source].cortex
    return _below_bids(workspace, text, scan) if text else None


def _below_bids(workspace: Workspace, text: str, scan: str) -> Path:
    return workspace.bids / text.format(folder=scan.replace("_", "/", 1), scan=scan)


def has_masks(workspace: Workspace, scan: str, source: str) -> bool:
    """Whether any of a source's masks of a scan is there; one that is then missing is an error of its scan."""
    return any(path.exists() for path in mask_files(workspace, scan, source).values())


def stamps(workspace: Workspace, scan: str, source: str) -> dict[str, Any] | None:
    """What a given source's masks of a scan are known by: place, size and time; None where it has none."""
    paths = mask_files(workspace, scan, source).values()
    found = {str(path.relative_to(workspace.bids)): stamp(path) if path.exists() else None for path in paths}
    return found if any(found.values()) else None


def native_image(workspace: Workspace, scan: str) -> tuple[Image, np.ndarray]:
    """The first contrast as found, and the brain on its grid."""
    from relevance_assets.imaging.geometry import to_native
    from relevance_assets.imaging.volumes import load_volume, read_image

    first = workspace.study.contrasts[0].name
    raw = workspace.read("raw_scans", scan)
    path = dict(raw.select("image", "path").iter_rows())[first]
    brain, _ = load_volume(workspace.mask_path(scan))
    native = to_native((brain > 0).astype("uint8"), geometry_of(workspace, scan), 0)
    return read_image(workspace.bids / path), native > 0


def load_mask(path: Path, image: Image) -> np.ndarray:
    """Voxels above 0 of a mask on the image's grid."""
    from relevance_assets.imaging.grid import Grid, same_grid
    from relevance_assets.imaging.volumes import ScanError, read_image

    if not path.exists():
        raise ScanError(f"{path}: no such file; add it, or correct lesions.sources")
    found = read_image(path)
    if not same_grid(Grid(image.data.shape, image.affine), Grid(found.data.shape, found.affine)):
        raise ScanError(f"{path}: not on the grid of the first contrast; resample it (nearest neighbour)")
    inside: np.ndarray = found.data > 0
    return inside


def load_labels(workspace: Workspace, scan: str, source: str, image: Image) -> np.ndarray:
    """A source's masks as labels, 1 ventricles and 2 lesions, which win where both are; on the image's grid."""
    from relevance_assets.segmentation.data import merge_masks

    paths = mask_files(workspace, scan, source)
    return merge_masks([load_mask(paths[mask], image) for mask in ("ventricles", "lesions")])
