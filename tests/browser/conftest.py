"""A finished small study behind the web UI, and Chromium to look at it with.

Opt-in (`make test-browser`): needs Chromium and Playwright, and takes minutes. Belongs here: when to skip, the home,
the browser. Does not belong here: what a page must show (`test_web_ui.py`).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from served import served
from small_study import SMALL, run

from relevance_assets.configuration import remember
from relevance_assets.home import Home

OPT_IN = "RELEVANCE_TEST_BROWSER"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
PATIENCE_MS = 60_000  # a run waits for the daemon, and this machine may be busy


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; skipped where there is none, or nobody asked."""
    if not os.environ.get(OPT_IN):
        pytest.skip("opt-in: make test-browser")
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[browser]'")
    program = os.environ.get("RELEVANCE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("Chromium is missing: apt-get install chromium, or name one in RELEVANCE_CHROMIUM")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def home(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The small study, finished, on the synthetic cohort of its own home: there sensors wait to be switched on."""
    place = Home(tmp_path_factory.mktemp("browser") / "home")
    remember(place, "synthetic_cohort", {"scans": 30, "voxel_size_mm": 9.0, "seed": 3})
    remember(place, "disability", SMALL)
    run("run", "disability", home=place.root)
    return place


@pytest.fixture(scope="session")
def address(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(home, tmp_path_factory.mktemp("served") / "log") as found:
        yield found


@pytest.fixture
def page(browser: Any, address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of the web UI. Its last state is kept as a picture: in RELEVANCE_SCREENSHOTS, if that names a folder."""
    context = browser.new_context(base_url=address, viewport={"width": 1500, "height": 950})
    context.set_default_timeout(PATIENCE_MS)
    shown = context.new_page()
    asked: list[str] = []
    shown.on("request", lambda one: asked.append(one.url))
    yield shown
    folder = Path(os.environ.get("RELEVANCE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    shown.screenshot(path=folder / f"{request.node.name}.png")
    context.close()
    elsewhere = {urlsplit(url).hostname for url in asked if url.startswith("http")} - {"127.0.0.1"}
    assert not elsewhere, f"the web UI asks other machines: {sorted(map(str, elsewhere))}"
