"""Limits of what a prepared scan is known by: which are passed, in words.

Belongs here: comparing measures with limits. Does not belong here: the measures (`quality.py`), what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relevance_assets.imaging.volumes import ScanError
from relevance_assets.study import Limits

__all__ = ["beyond", "check"]


def beyond(row: Mapping[str, Any], limits: Limits) -> list[str]:
    """What of a row of table `volumes` is outside the limits.

    A measure at its limit is within it, except for the Jacobian, which must lie between its two. A measure that is null
    is not looked at; one that is NaN is beyond every limit.
    """
    found = []
    native = row.get("native_brain_mm3")
    brain = (row["brain_volume_mm3"] if native is None else native) / 1000
    if limits.brain_ml and not limits.brain_ml[0] <= brain <= limits.brain_ml[1]:
        found.append(f"brain of {brain:.0f} ml, not {limits.brain_ml[0]:g} to {limits.brain_ml[1]:g}")
    for name, value in (("template_overlap", row.get("template_overlap")), ("similarity", row.get("similarity_after"))):
        limit = getattr(limits, name)
        # a contrast may be the template's negative; `not >=` holds for NaN, `<` would not
        if limit is not None and value is not None and not abs(value) >= limit:
            found.append(f"{name.replace('_', ' ')} {abs(value):.3f}, below {limit:g}")
    low, high = row.get("jacobian_minimum"), row.get("jacobian_maximum")
    if limits.jacobian and low is not None and high is not None:
        least, greatest = limits.jacobian
        if not least < low <= high < greatest:
            found.append(f"Jacobian from {low:.3g} to {high:.3g}, not within {least:g} and {greatest:g}")
    for name in ("share_clipped", "share_cropped"):
        limit, value = getattr(limits, name), row.get(name)
        if limit is not None and value is not None and not value <= limit:
            found.append(f"{name.replace('_', ' ')} {value:.1%}, above {limit:.1%}")
    return found


def check(rows: Sequence[Mapping[str, Any]], limits: Limits, path: Path) -> None:
    """Raise ScanError, in one line, where a scan is outside the limits."""
    found = list(dict.fromkeys(words for row in rows for words in beyond(row, limits)))
    if found:
        raise ScanError(f"{path}: {'; '.join(found)}; look at its figure, mend the image or the study's quality.fail")
