"""What settings of all kinds share.

Belongs here: the base class, and types of single values. Does not belong here: any block of settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Label", "Name", "Percent", "Settings", "Shape", "Share", "Tissue", "need_both"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Percent = Annotated[int, Field(gt=0, le=100)]
Shape = tuple[int, int, int]
Tissue = Literal["ventricle", "wmh"]


class Settings(BaseModel):
    """Base of every block of settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def need_both(atlas: Path | None, names: Path | None, block: str) -> None:
    """Raise ValueError where an atlas lacks its names, or names their atlas."""
    if (atlas is None) != (names is None):
        absent = "atlas" if atlas is None else "atlas_names"
        raise ValueError(f"{block}.{absent}: an atlas needs both atlas (dseg.nii.gz) and atlas_names (dseg.tsv)")
