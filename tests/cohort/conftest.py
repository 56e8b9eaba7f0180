"""Small BIDS folders and a study that reads them, shared by the tests of `relevance_assets.cohort`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from relevance_assets.study import Study

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def data() -> Path:
    """Real scans, where this checkout lies beside them."""
    if not DATA.is_dir():
        pytest.skip("real scans are not here")
    return DATA


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """An empty dataset."""
    root = tmp_path / "bids"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def put(bids: Path) -> Callable[..., Path]:
    """Write a file below the dataset: text as given, an image where there is none."""

    def make(name: str, text: str | None = None) -> Path:
        path = bids / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            nib.save(
                nib.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.diag([-2.0, 2.0, 2.5, 1.0])), path
            )
        else:
            path.write_text(text)
        return path

    return make


@pytest.fixture
def make_study() -> Callable[..., Study]:
    """A study of one contrast with this cohort block."""

    def make(**cohort: Any) -> Study:
        return Study.model_validate(
            {
                "name": "severity",
                "title": "t",
                "question": "q",
                "citation": "c",
                "contrasts": [{"name": "T1w", "suffix": "T1w"}],
                "cohort": {"target": {"column": "edss", "kind": "binary", "threshold": 5}} | cohort,
                "preparation": [{"step": "brain_mask"}, {"step": "scale"}],
                "model": {"name": "mrinet"},
                "methods": {"lrp": {"composite": "any"}},
            }
        )

    return make
