"""What goes wrong stays where it is, is tried again where that can help, and is told."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator

import dagster as dg
import polars as pl
import pytest
from service import Service

from relevance_assets.assets.automation import LATER, REQUEST_TAG, failure_sensor
from relevance_assets.assets.chunks import partitions_of
from relevance_assets.assets.planning import BACKOFF_S, plan
from relevance_assets.assets.stages import Stage
from relevance_assets.assets.warehouse import PUBLISH
from relevance_assets.assets.workspace import Snapshot
from relevance_assets.report.notices import KEPT, Notice, announce, notices

BAD = ["sub-00003", "sub-00010"]  # of the class that has people to spare


def statuses(service: Service, asset: str) -> dict[str, str]:
    stage = next(one for one in chain(service) if one.name == asset)
    partitions = partitions_of(service.workspace, stage)
    keys = service.instance.get_dynamic_partitions("disability_scans")
    found = service.instance.get_status_by_partition(dg.AssetKey(["disability", asset]), keys, partitions)
    return {key: status.value if status else "MISSING" for key, status in (found or {}).items()}


def chain(service: Service) -> list[Stage]:
    from relevance_assets.assets import automation

    return automation.study_stages(Snapshot(service.study, service.home))


def test_exactly_the_bad_scans_of_a_chunk_are_marked_failed(service: Service) -> None:
    """Dagster by itself marks every scan of the range."""
    for scan in BAD:
        service.faults["raw_scans", scan] = ValueError(f"{scan}: not a NIfTI file")
    made = service.settle()
    found = statuses(service, "raw_scans")
    assert sorted(scan for scan, status in found.items() if status == "FAILED") == BAD
    assert [status for scan, status in found.items() if scan not in BAD] == ["MATERIALIZED"] * 10
    runs = service.workspace.read("runs").filter(pl.col("asset") == "raw_scans")
    assert dict(runs.filter(pl.col("outcome") == "failed").select("item", "reason").iter_rows()) == {
        scan: f"{scan}: not a NIfTI file" for scan in BAD
    }
    assert len([one for one in made if one[0] == "quantile_masks"]) == 10, "the neighbours went all the way"
    assert not service.look(later_s=10 * 24 * 3600), "what cannot succeed is not tried again"


def test_a_bad_scan_is_tried_again_when_its_file_changes(service: Service) -> None:
    service.faults["raw_scans", BAD[0]] = ValueError("not a NIfTI file")
    service.settle()
    del service.faults["raw_scans", BAD[0]]
    assert service.settle() == []
    (service.bids / BAD[0] / "anat" / f"{BAD[0]}_T1map.nii.gz").write_bytes(b"mended")
    assert {item for _, item in service.settle()} == {BAD[0]}


def test_what_may_pass_is_tried_again_later_and_later_then_a_person_is_asked(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relevance_assets.assets.stages.RETRY_AFTER_S", (0.0, 0.0))
    tries = []

    class Counted(OSError):
        def __init__(self) -> None:
            super().__init__(5, "Input/output error")

        def __str__(self) -> str:
            return "Input/output error"

    def fault(stage: str, item: str) -> None:
        if (stage, item) == ("raw_scans", BAD[0]):
            tries.append(item)
            raise Counted
        service.made.append((stage, item))

    service.fault = fault  # type: ignore[method-assign]
    service.settle()
    assert len(tries) == 3, "twice more at once: a moment's trouble of the disk"
    assert not service.look(later_s=BACKOFF_S[0] / 2)
    for number in range(1, len(BACKOFF_S) + 1):
        (request,) = service.look(later_s=BACKOFF_S[number - 1] + 5)
        service.run(request)
        assert len(tries) == 3 * (number + 1)
    assert not service.look(later_s=10 * 24 * 3600)
    assert "run it by hand" in service.said


def test_a_run_that_broke_without_a_word_is_asked_for_again_with_patience(service: Service) -> None:
    """Killed for memory, say: no record tells of it, and the same request would come with every look."""
    (request,) = service.look()
    for number in range(len(BACKOFF_S) + 1):
        run = service.instance.create_run_for_job(
            dg.Definitions(jobs=[nothing]).resolve_job_def("nothing"), tags={REQUEST_TAG: request.tags[REQUEST_TAG]}
        )
        service.instance.report_run_failed(run)
        assert not service.look(), f"at once after failure {number + 1}"
        by_hand = f"its run broke {number + 1} times; run it by hand when that is mended"
        assert service.said == f"participants: {LATER if number < len(BACKOFF_S) else by_hand}"
        if number < len(BACKOFF_S):
            assert service.look(later_s=BACKOFF_S[number] + 5)
    assert not service.look(later_s=10 * 24 * 3600)


@dg.job
def nothing() -> None: ...


def test_a_failed_check_stops_what_rests_on_it_and_nothing_else(service: Service) -> None:
    service.settle()
    volumes = service.workspace.read("volumes", BAD[0]).drop("study").with_columns(shape_x=pl.lit(7, pl.Int64))
    service.workspace.write("volumes", BAD[0], volumes)
    service.add(1, first=100)
    made = service.settle()
    assert made == [("raw_scans", "sub-00100"), ("prepared_volumes", "sub-00100")]
    assert "check one_grid failed" in service.said


def test_a_change_behind_more_than_a_hundred_scans_is_seen(service: Service) -> None:
    """Dagster drops staleness across an edge of 100 partitions or more; fingerprints do not."""
    workspace = service.workspace
    scans = [f"sub-{number:05d}" for number in range(150)]
    cohort = {"scan": scans, "participant_id": scans, "status": ["ok"] * 150}
    workspace.write("scans", "all", pl.DataFrame(cohort))

    def predicted(scan: str, result: str) -> None:
        row = {"asset": ["predictions"], "item": [scan], "outcome": ["ok"], "fingerprint": ["f"], "result": [result]}
        workspace.write("runs", f"predictions__{scan}", pl.DataFrame(row))

    def fingerprint() -> str:
        return next(stage for stage in chain(service) if stage.name == "scores").fingerprint("all")

    for scan in scans:
        predicted(scan, "said")
    before = fingerprint()
    assert fingerprint() == before
    predicted(scans[77], "said otherwise")
    assert fingerprint() != before


def test_one_missing_scan_does_not_hold_up_the_database() -> None:
    """With Dagster's eager() alone it would, for good."""
    scans = dg.DynamicPartitionsDefinition(name="scans")

    def requested(condition: dg.AutomationCondition) -> int:
        @dg.asset(partitions_def=scans)
        def maps() -> None: ...

        @dg.asset(deps=[maps], automation_condition=condition)
        def results_database() -> None: ...

        definitions = dg.Definitions(assets=[maps, results_database])
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("scans", ["sub-1", "sub-2"])
            cursor = None
            for made in (
                dg.AssetMaterialization("results_database"),
                dg.AssetMaterialization("maps", partition="sub-1"),
            ):
                cursor = dg.evaluate_automation_conditions(defs=definitions, instance=instance, cursor=cursor).cursor
                instance.report_runless_asset_event(made)
            return dg.evaluate_automation_conditions(defs=definitions, instance=instance, cursor=cursor).total_requested

    assert requested(dg.AutomationCondition.eager()) == 0, "the trap"
    assert requested(PUBLISH) == 1


def test_the_plan_is_the_same_whoever_asks_and_however_often(service: Service) -> None:
    service.settle()
    service.add(3, first=100)
    plans = [plan(Snapshot(service.study, service.home), chain(service)) for _ in range(2)]
    assert [(due.stage.name, due.items) for due in plans[0].due] == [
        (due.stage.name, due.items) for due in plans[1].due
    ]


# ------------------------------------------------------------------------------------------------------- notices
@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict]]]:
    """An address on this machine, and what was posted to it."""
    received: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()


def test_a_failed_run_is_written_down_and_told(
    service: Service, listener: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = listener
    monkeypatch.setenv("RELEVANCE_WEBHOOK", address)
    service.faults["raw_scans", BAD[0]] = ValueError(f"{BAD[0]}: not a NIfTI file")
    for request in service.look():
        service.run(request)
    (request,) = service.look()
    result = service.run(request)
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_instance=service.instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    failure_sensor(service.home)(context)
    (notice,) = notices(service.home)
    assert notice.what == "disability/raw_scans"
    assert notice.why == f"raw_scans: 1 of 12 failed. {BAD[0]}: {BAD[0]}: not a NIfTI file"
    assert received == [
        {"text": f"{notice.what} failed: {notice.why}", "time": received[0]["time"], "run_id": result.run_id}
    ]


def test_notices_are_few_newest_first_and_once_each(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEVANCE_WEBHOOK", "http://127.0.0.1:9/")  # nobody listens: no reason to fail
    for number in range(KEPT + 5):
        announce(service.home, Notice(str(number % (KEPT + 3)), "a/b", "why", time.time()))
    found = notices(service.home)
    assert len(found) == KEPT
    assert [one.run_id for one in found[:3]] == ["1", "0", str(KEPT + 2)]
    service.home.status.write_text("not JSON")
    assert notices(service.home) == []
