"""What a person finds in Dagster's web UI, seen through a real browser."""

from __future__ import annotations

import re
from typing import Any

import pytest

from relevance_assets.assets.automation import failure_sensor, publishing_sensor
from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.chunks import group_of
from relevance_assets.assets.workspace import Workspace
from relevance_assets.component import study_definitions
from relevance_assets.configuration import load_studies
from relevance_assets.home import Home
from relevance_assets.tables.store import Store

GROUP = "/locations/relevance_assets/asset-groups"


def workspace(home: Home, study: str = "disability") -> Workspace:
    return Workspace(load_studies(home)[study], home)


def scan(home: Home, number: int) -> str:
    return str(workspace(home).known_scans()["scan"][number])


def open_scan(page: Any, asset: str, name: str) -> None:
    """A scan's page, as a person gets there: the asset's partitions, then the scan in the list."""
    page.goto(f"/assets/disability/{asset}?view=partitions")
    page.get_by_text(name, exact=True).first.click()
    page.get_by_text("Latest materialization").wait_for()


def materialise(page: Any, asset: str, name: str) -> None:
    """Launch the run of one scan, and go to its page."""
    open_scan(page, asset, name)
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("1 partition", exact=True).wait_for()
    dialog.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text("Launched run").wait_for()
    page.get_by_role("button", name="View", exact=True).or_(page.get_by_role("link", name="View", exact=True)).click()
    page.wait_for_url(re.compile("/runs/"))


GROUPS = [
    study + part for study in ("disability", "brain_age", "lesion_profile", "tumour") for part in ("", "_statistics")
]


def test_the_groups_are_named(page: Any) -> None:
    page.goto("/")
    page.get_by_role("link", name=re.compile("Lineage$")).click()
    for group in ("synthetic", *GROUPS, "results"):
        page.get_by_text(group, exact=True).first.wait_for()


@pytest.mark.parametrize("group", GROUPS)
def test_the_graph_of_a_group_shows_all_its_assets(page: Any, home: Home, group: str) -> None:
    """Dagster fits the graph's width; a tall one is seen whole after zooming out a little, with its names legible."""
    place = workspace(home, group.removesuffix("_statistics"))
    names = [stage.name for stage in study_stages(place) if group_of(place, stage) == group]
    page.goto(f"{GROUP}/{group}/lineage")
    page.get_by_text(re.compile(rf"^({'|'.join(names)})$")).first.wait_for()
    for _ in range(20):
        outside = [name for name in names if not within(page, page.get_by_text(name, exact=True).first)]
        if not outside:
            break
        page.get_by_label("zoom_out").click()
        page.wait_for_timeout(200)
    assert not outside
    assert min(page.get_by_text(name, exact=True).first.bounding_box()["height"] for name in names) > 5


def within(page: Any, node: Any) -> bool:
    if not node.count():  # Dagster draws only what the window shows
        return False
    box, window = node.bounding_box(), page.viewport_size
    return 0 < box["x"] < window["width"] and 0 < box["y"] < window["height"]


@pytest.mark.parametrize("asset", ["prepared_volumes", "relevance_maps"])
def test_a_scans_page_shows_its_status_and_its_figure(page: Any, home: Home, asset: str) -> None:
    open_scan(page, asset, scan(home, 0))
    page.get_by_text("Materialized", exact=True).first.wait_for()
    page.get_by_text("[Show Markdown]").click()
    figure = page.get_by_role("dialog").locator("img")
    figure.wait_for()
    assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100, "not a picture"
    assert figure.bounding_box()["width"] > 100, "not to be seen"
    assert figure.get_attribute("alt")


def test_one_scan_is_materialised_from_the_page(page: Any, home: Home) -> None:
    name, store = scan(home, 1), Store(home.tables)
    before = store.read("volumes", "disability", name)
    store.delete("volumes", "disability", name)
    files = workspace(home).prepared_paths(name)
    for path in files:
        path.unlink()
    materialise(page, "prepared_volumes", name)
    page.get_by_text("Success", exact=True).first.wait_for()
    assert store.read("volumes", "disability", name).equals(before)
    assert all(path.exists() for path in files)
    open_scan(page, "prepared_volumes", name)
    page.get_by_text("View all historical events (2)").wait_for()


def test_a_failed_scan_says_why_in_one_line(page: Any, home: Home) -> None:
    name = scan(home, 2)
    found = workspace(home).read("raw_scans", name)["path"][0]
    path = workspace(home).bids / found
    path.write_bytes(path.read_bytes()[:200])
    materialise(page, "raw_scans", name)
    page.get_by_text("Failure", exact=True).first.wait_for()
    record = workspace(home).record("raw_scans", name)
    assert record is not None
    reason = record["reason"]
    assert path.name in reason
    assert "\n" not in reason
    page.get_by_text(f"raw_scans: 1 of 1 failed. {name}: {reason}").first.wait_for()
    open_scan(page, "raw_scans", name)
    page.get_by_text("Failed (1)").wait_for()
    page.get_by_text("failed, and did not materialize this asset").wait_for()


def test_sensors_and_schedules_say_what_they_do_and_whether_they_are_on(page: Any, home: Home) -> None:
    """Those of a study on the synthetic cohort wait to be switched on: nothing here runs by itself."""
    definitions = [study_definitions(study, home) for study in load_studies(home).values()]
    automations = [one for part in definitions for one in [*(part.sensors or []), *(part.schedules or [])]]
    automations += [failure_sensor(home), publishing_sensor()]
    page.goto("/automation")
    on = set()
    for one in automations:
        row = page.locator("[data-index]").filter(has=page.locator(f"a[href$='/{one.name}']"))
        row.get_by_text(one.name, exact=True).wait_for()
        row.get_by_label("info").hover()
        page.get_by_role("tooltip").get_by_text(one.description, exact=True).wait_for()
        if row.get_by_role("checkbox").last.is_checked():  # the first selects the row
            on.add(one.name)
    assert on == {"failed_runs", "publishing"}
