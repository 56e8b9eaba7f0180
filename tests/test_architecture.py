"""Imports run one way, Dagster stays at the top, and the code location loads without torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "relevance_assets"

# A module may import from its own layer or a layer to the left.
LAYERS = [
    {"study", "files", "home", "precision", "usage", "console"},
    {"configuration", "demo"},
    {"cohort", "imaging"},
    {"models"},
    {"training"},
    {"relevance"},
    {"evidence", "lesions", "segmentation", "vessels"},
    {"statistics"},
    {"tables"},
    {"report"},
    {"assets", "component", "check_model"},
    {"cli", "__main__"},
]
MAY_IMPORT_DAGSTER = {"assets", "component", "cli"}


def layer(part: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if part in names)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        words = name.split(".")
        if words[0] == "relevance_assets" and len(words) > 1:
            assert layer(words[1]) <= layer(part), f"{path.name} imports {name}, which stands above it"
        assert words[0] != "dagster_project", f"{path.name} imports the code location"
        assert words[0] != "dagster" or part in MAY_IMPORT_DAGSTER, f"{path.name} imports dagster"


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path.name
        for path in MODULES
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_code_location_loads_without_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys, dagster_project.definitions as d; "
        "graph = d.defs().resolve_asset_graph(); "
        "heavy = {'torch', 'monai', 'zennit', 'nilearn', 'SimpleITK', 'lightning', 'sklearn', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)), len(graph.get_all_asset_keys()))"
    )
    environment = os.environ | {"RELEVANCE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    loaded, count = done.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert loaded == "[]"
    assert int(count) >= 18
