"""What a raw image's row says; what is refused is tried in `tests/imaging/test_volumes.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from relevance_assets.cohort.check import ScanError, check_image


def test_a_sound_image(put: Callable[..., Path]) -> None:
    path = put("sub-A/anat/sub-A_T1w.nii.gz")
    row = check_image(path)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row["bytes"] == len(path.read_bytes())
    assert [row[f"shape_{axis}"] for axis in "xyz"] == [2, 3, 4]
    assert [row[f"voxel_{axis}_mm"] for axis in "xyz"] == [2, 2, 2.5]
    assert row["orientation"] == "LAS"


def test_a_truncated_image_is_named(put: Callable[..., Path]) -> None:
    path = put("sub-A/anat/sub-A_T1w.nii.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ScanError, match=r"sub-A_T1w\.nii\.gz: truncated"):
        check_image(path)
