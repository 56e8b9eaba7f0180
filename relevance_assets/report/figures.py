"""Figures as files: one look for all, PNG that is the same for the same input, thumbnails.

Belongs here: what every figure shares. Does not belong here: the figures (`figures_curves.py`, `figures_brain.py`),
or how a picture gets into the event log (`assets/metadata.py`).

matplotlib is imported inside functions, and never through pyplot: there is no global figure and no window.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relevance_assets.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

__all__ = ["COLOURS", "DPI", "THUMBNAIL_BYTES", "save", "style", "thumbnail"]

DPI = 150
#: As base64, with a caption, this stays below the 30 kB that metadata may take.
THUMBNAIL_BYTES = 22_000
THUMBNAIL_PIXELS = 900  # on the longer side, at most
#: Okabe & Ito (2008): told apart with any colour vision. Black is for what the others are compared with.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LOOK: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults and our look, whatever a user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK)
        yield


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write a figure as PNG, whole or not at all; equal figures give equal bytes (no date, no version)."""
    with style(), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})
    return path


def thumbnail(source: Figure | Path, max_bytes: int = THUMBNAIL_BYTES) -> bytes:
    """A small PNG of a figure, or of a PNG file: fewer colours first, then fewer pixels, until it fits.

    Raises
    ------
    ValueError
        It would have to be smaller than 100 pixels.
    """
    from PIL import Image

    if isinstance(source, Path):
        picture = Image.open(source).convert("RGB")
    else:
        file = io.BytesIO()
        with style():
            source.savefig(file, format="png", dpi=DPI)
        picture = Image.open(file).convert("RGB")
    width = round(picture.width * min(1, THUMBNAIL_PIXELS / max(picture.size)))
    while width >= 100:
        small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.BOX)
        for colours in (48, 32):
            data = _png(small, colours)
            if len(data) <= max_bytes:
                return data
        width = int(width * min(0.95, 0.97 * math.sqrt(max_bytes / len(data))))  # bytes go about as pixels do
    raise ValueError(f"thumbnail: does not fit into {max_bytes} bytes; allow more")


def _png(picture: Picture, colours: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    # by coverage, so that a colour map keeps both its ends though most of the picture is grey
    picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
    return file.getvalue()
