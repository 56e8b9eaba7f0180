"""What a person sees of an asset in the Dagster UI: schemas, lineage, small pictures.

Belongs here: turning rows and arrays into metadata. Does not belong here: figures for reports (`report/`).
Pictures live in the event log, so each stays below 30 kB.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["Picture", "overlay_mosaic", "picture", "thumbnail"]

MAX_BYTES = 30_000
PANEL = 128  # pixels on a side


class Picture(str):
    """Markdown with an embedded PNG; `dagster_metadata` shows it as markdown, not as text."""


def overlay_mosaic(image: np.ndarray, maps: np.ndarray, names: Sequence[str]) -> Picture:
    """Relevance (red positive, blue negative, share of its 99.5th percentile) over one image, a column per map."""
    columns = []
    for values in maps:
        top = np.percentile(np.abs(values[values != 0]), 99.5) if np.any(values) else 1.0
        planes = zip(_planes(image), _planes(values / top), strict=True)
        columns.append(np.concatenate([_coloured(grey, value) for grey, value in planes], axis=0))
    return _png(np.concatenate(columns, axis=1), f"relevance, red for and blue against: {', '.join(names)}")


def _planes(volume: np.ndarray) -> list[np.ndarray]:
    """The middle axial, coronal and sagittal plane of a RAS volume, seen with the top of the head up."""
    x, y, z = (size // 2 for size in volume.shape)
    return [_square(plane.T[::-1]) for plane in (volume[:, :, z], volume[:, y, :], volume[x])]


def _square(plane: np.ndarray) -> np.ndarray:
    """To PANEL x PANEL pixels by nearest neighbour, aspect kept, zeros around."""
    factor = PANEL / max(plane.shape)
    height, width = (max(1, round(size * factor)) for size in plane.shape)
    rows = (np.arange(height) / factor).astype(int).clip(0, plane.shape[0] - 1)
    columns = (np.arange(width) / factor).astype(int).clip(0, plane.shape[1] - 1)
    out = np.zeros((PANEL, PANEL), dtype=float)
    top, left = (PANEL - height) // 2, (PANEL - width) // 2
    out[top : top + height, left : left + width] = plane[np.ix_(rows, columns)]
    return out


def _grey(plane: np.ndarray) -> np.ndarray:
    return np.repeat((plane.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _coloured(plane: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    strength = np.abs(relevance).clip(0, 1)[..., None]
    colour = np.where(relevance[..., None] > 0, [255, 60, 30], [40, 110, 255])
    return (_grey(plane) * 0.8 * (1 - strength) + colour * strength).astype(np.uint8)


def _png(pixels: np.ndarray, caption: str) -> Picture:
    from PIL import Image

    image = Image.fromarray(pixels)
    for colours in (64, 32, 16, 8, 8, 8):
        file = io.BytesIO()
        image.quantize(colours).save(file, "PNG", optimize=True)
        if file.tell() * 4 / 3 < MAX_BYTES - 200:  # base64, and room for the caption
            break
        if colours == 8:
            image = image.resize((image.width // 2, image.height // 2))
    return picture(file.getvalue(), caption)


def thumbnail(figure: Path) -> Picture:
    """Of a scan's figure of its preparation: the mosaic beside it, a few kB.

    The figure itself, made small enough, could not be read, and would be most of the event log of a large cohort.
    """
    from relevance_assets.report.figures_preparation import mosaic_path

    caption = f"axial, coronal, sagittal, with the outline of the brain mask; more in {figure.name}"
    return picture(mosaic_path(figure).read_bytes(), caption)


def picture(png: bytes, caption: str) -> Picture:
    """A PNG as metadata."""
    data = base64.b64encode(png).decode()
    return Picture(f"![{caption}](data:image/png;base64,{data})\n\n{caption}")
