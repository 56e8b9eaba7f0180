"""Segmentations against the truth, scan by scan.

Belongs here: drawing scores and volumes of many scans. Does not belong here: one scan's slices (`figures_lesions.py`),
computing scores (`segmentation/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from relevance_assets.report.figures import COLOURS, DPI, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["segmentation_figure"]

CLASSES = {"ventricle": ("ventricles", COLOURS[0], "o"), "wmh": ("lesions", COLOURS[1], "^")}
GREY = "#595959"


def segmentation_figure(scans: pl.DataFrame) -> Figure:
    """Volumes found against true ones, and the Dice of every scan against its true volume.

    Volumes are on logarithmic axes; a volume of 0 lies on the axis below the smallest one.

    Parameters
    ----------
    scans : DataFrame
        Columns class (`ventricle`, `wmh`), found_mm3, true_mm3, dice (null where both are empty): a row per scan and
        class.
    """
    from matplotlib.figure import Figure

    volumes = scans.select(pl.col("found_mm3", "true_mm3") / 1000).to_numpy()
    some = volumes[volumes > 0]
    least, most = (some.min(), some.max()) if some.size else (0.01, 1.0)
    floor = least / 2.5
    with style():
        figure = Figure(figsize=(9.6, 4.6), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([floor, most], [floor, most], color=GREY, linewidth=1, zorder=1)
        for name, (label, colour, marker) in CLASSES.items():
            rows = scans.filter(pl.col("class") == name)
            found, true = (rows[column].to_numpy() / 1000 for column in ("found_mm3", "true_mm3"))
            look: dict[str, Any] = {"color": colour, "marker": marker, "s": 22, "alpha": 0.7, "linewidths": 0}
            left.scatter(np.maximum(true, floor), np.maximum(found, floor), label=label, zorder=2, **look)
            known = rows["dice"].is_not_null().to_numpy()
            dice = rows["dice"].drop_nulls().to_numpy()
            mean = f"{label}, mean {dice.mean():.2f} of {len(dice)} scans" if len(dice) else f"{label}, none"
            right.scatter(np.maximum(true[known], floor), dice, label=mean, **look)
        for axis in (left, right):
            axis.set_xscale("log")
            axis.set_xlabel("true volume, ml" + (" (left edge: none)" if (volumes == 0).any() else ""))
            axis.set_xlim(floor / 1.3, most * 1.3)
        left.set_yscale("log")
        left.set_ylim(floor / 1.3, most * 1.3)
        left.set_ylabel("volume found, ml")
        right.set_ylim(-0.24, 1.03)  # the legend lies below what was missed altogether
        right.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        right.set_ylabel("Dice")
        for axis, title in ((left, "Volumes"), (right, "Overlap")):
            axis.set_title(title, loc="left")
            axis.legend(loc="lower right" if axis is right else "upper left", frameon=False)
    return figure
