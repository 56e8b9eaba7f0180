"""Where things lie below `$RELEVANCE_HOME`, by BIDS names where BIDS has a name for them.

Belongs here: paths, and the one pattern that a scan's name must match. Does not belong here: reading or
writing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Home", "SCAN_PATTERN", "TEMPLATE_SPACE", "check_scan", "split_scan"]

TEMPLATE_SPACE = "MNI152NLin2009aSym"  # the template that nilearn brings, as BIDS calls it
SCAN_PATTERN = re.compile(r"^sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?$")


def check_scan(scan: str) -> str:
    """Return `scan` if it is a safe scan name (`sub-<label>[_ses-<label>]`), else raise ValueError."""
    if not SCAN_PATTERN.fullmatch(scan):
        raise ValueError(f"{scan!r} is not a scan name: sub-<label> or sub-<label>_ses-<label>, letters and digits")
    return scan


def split_scan(scan: str) -> tuple[str, str | None]:
    """`sub-A_ses-1` -> (`sub-A`, `ses-1`); `sub-A` -> (`sub-A`, None)."""
    participant, _, session = check_scan(scan).partition("_")
    return participant, session or None


@dataclass(frozen=True)
class Home:
    """All outputs lie below one folder."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """`$RELEVANCE_HOME`, or `.relevance` in the working directory."""
        return cls(Path(os.environ.get("RELEVANCE_HOME") or ".relevance").resolve())

    @property
    def dagster(self) -> Path:
        return self.root / "dagster"

    def run_lock(self, run_id: str) -> Path:
        """Held by the process that works on a run."""
        return self.dagster / "locks" / f"{run_id}.lock"

    @property
    def bids(self) -> Path:
        """The synthetic cohort."""
        return self.root / "bids"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def database(self) -> Path:
        return self.root / "results.duckdb"

    @property
    def status(self) -> Path:
        """The latest failed runs."""
        return self.root / "status.json"

    def settings(self, study: str) -> Path:
        """What the user set for this study in this home (`run --bids`, `--set`)."""
        return self.root / "studies" / f"{study}.yaml"

    def derivatives(self, study: str) -> Path:
        return self.root / "derivatives" / study

    def removed(self, study: str) -> Path:
        """Derivatives of scans that are no longer there."""
        return self.root / "removed" / study

    def model(self, study: str, fold: int) -> Path:
        """Folder of one fold's model."""
        return self.derivatives(study) / "models" / f"fold-{fold}"

    def image(self, study: str, scan: str, name: str) -> Path:
        """A derivative image of a scan: `<study>/sub-A/ses-1/anat/sub-A_ses-1_<name>.nii.gz`."""
        participant, session = split_scan(scan)
        folder = self.derivatives(study) / participant
        if session:
            folder /= session
        return folder / "anat" / f"{scan}_{name}.nii.gz"
