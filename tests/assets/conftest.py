from __future__ import annotations

from pathlib import Path

import pytest

from relevance_assets.assets.workspace import Workspace
from relevance_assets.configuration import load_studies
from relevance_assets.home import Home


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    home = Home(tmp_path / "home")
    return Workspace(load_studies(home)["disability"], home)
