"""What a study does by itself: new scans are found, the right work is asked for, statistics come at night.

Belongs here: sensors, schedules and jobs of one study, and the sensor that reports failures. Does not belong here:
deciding what is due (`planning.py`), doing it (`stages.py`), the database's condition (`warehouse.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import dagster as dg

from relevance_assets.assets.alive import close_lost_runs
from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.checks import checks_of
from relevance_assets.assets.chunks import QUIET_TAG, asset_key, contiguous, others, range_tags
from relevance_assets.assets.cohort import MANY, SETTLED_BY
from relevance_assets.assets.planning import BACKOFF_S, Due, plan
from relevance_assets.assets.stages import ALL, Stage, below, remove_orphans
from relevance_assets.assets.warehouse import database_is_current, database_stamp, tables_changed_after_publishing
from relevance_assets.assets.workspace import Snapshot, Workspace
from relevance_assets.configuration import SettingsError, load_studies
from relevance_assets.files import fingerprint
from relevance_assets.home import Home
from relevance_assets.report.notices import Notice, announce

__all__ = [
    "failure_sensor",
    "look_around",
    "look_for_lost_work",
    "lost_work_sensor",
    "publishing_sensor",
    "study_automation",
]

EVERY_S = 30
AT_ONCE = 20  # runs asked for in one look; the rest comes with the next
TRUSTED_S = 3600  # how long an unchanged folder and unchanged records are taken to say that nothing is to be done
STUDY_TAG = "relevance/study"
REQUEST_TAG = "relevance/request"
LATER = "what failed is tried again later"
UNDER_WAY = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def study_automation(workspace: Workspace, stages: list[Stage]) -> dg.Definitions:
    """Sensor and schedules of one study.

    They are on from the start for a study with a BIDS folder of its own; one on the synthetic cohort waits to be
    switched on.
    """
    study = workspace.study
    own = (study.slices.folder if study.slices else study.cohort.bids) is not None
    keys = {stage.name: asset_key(workspace, stage.name) for stage in stages}
    statistics = dg.define_asset_job(
        f"{study.name}_statistics",
        selection=dg.AssetSelection.assets(*(keys[stage.name] for stage in stages if stage.group == "statistics")),
        description="Scores and statistics of the whole cohort, where anything changed.",
        tags={STUDY_TAG: study.name},
    )
    jobs = _jobs(workspace, stages)
    running, stopped = dg.DefaultScheduleStatus.RUNNING, dg.DefaultScheduleStatus.STOPPED
    found = dg.Definitions(
        jobs=[statistics, *jobs],
        sensors=[_new_scans(workspace, jobs, on=own)],
        schedules=[
            dg.ScheduleDefinition(
                name=f"{study.name}_nightly_statistics",
                job=statistics,
                cron_schedule=study.automation.statistics,
                default_status=running if own else stopped,
                description="Scores and statistics of all that came since; the database follows. On from the start "
                "where the study has a BIDS folder of its own.",
            ),
        ],
    )
    return dg.Definitions.merge(found, _retraining(workspace, keys["splits"])) if "splits" in keys else found


def _retraining(workspace: Workspace, splits: dg.AssetKey) -> dg.Definitions:
    """The weekly job that begins everything anew."""
    study = workspace.study
    job = dg.define_asset_job(
        f"{study.name}_retraining",
        selection=dg.AssetSelection.assets(splits),
        config={"ops": {f"{study.name}__splits": {"config": {"draw_again": True}}}},
        description=f"Divides everybody anew; models, maps and statistics follow by the sensor {study.name}_new_scans.",
        tags={STUDY_TAG: study.name},
    )
    schedule = dg.ScheduleDefinition(
        name=f"{study.name}_weekly_retraining",
        job=job,
        cron_schedule=study.automation.retraining,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Divides everybody anew and trains every model again. Off unless switched on: it changes every "
        "map.",
    )
    return dg.Definitions(jobs=[job], schedules=[schedule])


PARTS = {None: "cohort", "scan": "scans", "fold": "models"}
WHAT = {
    None: "What is made once for the whole cohort: participants, splits, scores, statistics.",
    "scan": "What each scan has: from its raw files to the masks of its maps.",
    "fold": "Training, a fold at a time.",
}


def _jobs(workspace: Workspace, stages: list[Stage]) -> list[dg.UnresolvedAssetJobDefinition]:
    """One job for every kind of partition: Dagster does not mix them. A run takes one asset of it."""
    study = workspace.study.name
    return [
        dg.define_asset_job(
            f"{study}_{part}",
            selection=dg.AssetSelection.assets(*(asset_key(workspace, s.name) for s in stages if s.partition == kind)),
            description=WHAT[kind],
            tags={STUDY_TAG: study},
        )
        for kind, part in PARTS.items()
        if any(stage.partition == kind for stage in stages)
    ]


def _new_scans(workspace: Workspace, jobs: list[dg.UnresolvedAssetJobDefinition], *, on: bool) -> dg.SensorDefinition:
    name = workspace.study.name

    @dg.sensor(
        name=f"{name}_new_scans",
        jobs=jobs,
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED,
        description="Finds new, changed and removed scans once their files are left alone, and asks for what is due, a "
        "stage at a time. Never trains again because of a scan. On from the start where the study has a BIDS folder of "
        "its own.",
    )
    def new_scans(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            study = load_studies(workspace.home).get(name, workspace.study)  # as it is set now
            return look_around(Snapshot(study, workspace.home), context.instance, context.cursor)
        except SettingsError as error:
            return dg.SkipReason(str(error))

    return new_scans


def look_around(
    snapshot: Snapshot, instance: dg.DagsterInstance, cursor: str | None, now: float | None = None
) -> dg.SensorResult | dg.SkipReason:
    """One look of the sensor: what is due, as run requests."""
    study, now = snapshot.study, time.time() if now is None else now
    under_way = instance.get_runs_count(dg.RunsFilter(tags={STUDY_TAG: study.name}, statuses=UNDER_WAY))
    if under_way:
        return dg.SkipReason(f"{under_way} runs of {study.name} are under way")
    settled_by = now - study.automation.quiet_seconds
    token = SETTLED_BY.set(settled_by)
    try:
        folder = snapshot.folder()
        gone = set(snapshot.known_scans()["scan"]) - set(folder.scans)
        known = snapshot.known_scans().height
        if known and len(gone) > max(1, MANY * known):
            return dg.SkipReason(
                f"{len(gone)} of {known} scans are gone from {snapshot.bids}: is its disk mounted? "
                f"If they are to go, `relevance-assets run {study.name}` takes them out"
            )
        settling = folder.changed_after(settled_by)
        if not folder.scans:
            return dg.SkipReason(f"no scan found in {snapshot.bids}")
        if not known and settling.issuperset(folder.scans):
            return dg.SkipReason(f"{len(settling)} scans are still being written to {snapshot.bids}")
        if folder.others_changed > settled_by:
            return dg.SkipReason(f"participants.tsv, or a file beside it, is still being written to {snapshot.bids}")
        stages = study_stages(snapshot)
        versions = [stage.settings_hash for stage in stages]
        hour = int(now // TRUSTED_S)
        stamp = fingerprint(folder.signature, _recorded_at(snapshot), study.model_dump(mode="json"), versions, hour)
        if cursor and cursor.startswith(stamp) and not settling:
            return dg.SkipReason(cursor.removeprefix(stamp).strip() or "nothing has changed")
        for stage in stages:
            remove_orphans(snapshot, stage)
        found = plan(snapshot, stages, now)
        due, stopped = _unstopped(snapshot, stages, found.due)
        requests, waits = _requests(snapshot, instance, due, settling, now)
    except (OSError, ValueError) as error:
        return dg.SkipReason(str(error))
    finally:
        SETTLED_BY.reset(token)
    if requests:
        return dg.SensorResult(run_requests=requests, cursor="")
    notes = [*stopped, *sorted(waits), *found.notes][:4]
    if settling:
        notes.append("some scans are still being written")
    if found.later:
        notes.append(f"single scans: {LATER}")
    said = "; ".join(notes)  # kept with the cursor: what waits for a person is said at every look
    again = found.later or waits or settling
    return dg.SensorResult(
        skip_reason=dg.SkipReason(said or "all is up to date"), cursor="" if again else f"{stamp} {said}"
    )


def _unstopped(snapshot: Snapshot, stages: list[Stage], due: list[Due]) -> tuple[list[Due], list[str]]:
    """What may go on, and which checks stop the rest: nothing is built on what failed one."""
    if not due:
        return due, []
    failed: dict[str, str] = {}
    for owner, name, _, check in checks_of(snapshot, stages):
        if owner not in failed and not check()[0]:
            failed[owner] = f"{owner}: check {name} failed; nothing is built on it"
    void = {stage.name for owner in failed for stage in below(stages, owner)}
    return [one for one in due if one.stage.name not in void], list(failed.values())


def _recorded_at(workspace: Workspace) -> int:
    """Changes whenever a record is written or taken away: each is a rename in this folder."""
    return workspace.store.changed("runs", workspace.study.name)


def _requests(
    snapshot: Snapshot, instance: dg.DagsterInstance, due: list[Due], settling: set[str], now: float
) -> tuple[list[dg.RunRequest], set[str]]:
    """Runs of at most a chunk, and what some wait for after runs that broke."""
    study = snapshot.study
    quiet = {QUIET_TAG: str(study.automation.quiet_seconds)}
    requests: list[dg.RunRequest] = []
    waits: set[str] = set()
    for one in due:
        key = asset_key(snapshot, one.stage.name)
        if one.stage.partition is None:
            chunks: Iterable[list[str]] = [[ALL]]
        elif one.stage.partition == "fold":
            chunks = [[item] for item in sorted(one.items)]
        else:
            keys = instance.get_dynamic_partitions(f"{study.name}_scans")
            allowed = one.allowed | others(one.stage, keys)
            chunks = contiguous(keys, set(one.items) - settling, allowed - settling)
        for chunk in chunks:
            request = fingerprint(study.name, one.stage.name, sorted((item, one.items.get(item)) for item in chunk))
            wait = _waits(instance, request, now)
            if wait is not None:
                waits.add(f"{one.stage.name}: {wait}")
                continue
            ranges = range_tags(chunk) if one.stage.partition else {}
            tags = {STUDY_TAG: study.name, REQUEST_TAG: request, **ranges, **quiet}
            job = f"{study.name}_{PARTS[one.stage.partition]}"
            requests.append(dg.RunRequest(job_name=job, asset_selection=[key], tags=tags))
            if len(requests) == AT_ONCE:
                return requests, waits
    return requests, waits


def _waits(instance: dg.DagsterInstance, request: str, now: float) -> str | None:
    """What the same work waits for, after runs that broke without a word about their items; None: it may be done."""
    broken = instance.get_run_records(
        dg.RunsFilter(
            tags={REQUEST_TAG: request}, statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
        ),
        limit=len(BACKOFF_S) + 1,
    )
    if not broken:
        return None
    if len(broken) > len(BACKOFF_S):
        return f"its run broke {len(broken)} times; run it by hand when that is mended"
    last = max(record.end_time or record.update_timestamp.timestamp() for record in broken)
    return None if now >= last + BACKOFF_S[len(broken) - 1] else LATER


def publishing_sensor() -> dg.SensorDefinition:
    """Evaluates the condition of the published database."""
    return dg.AutomationConditionSensorDefinition(
        "publishing",
        target=dg.AssetSelection.assets("results_database"),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVERY_S,
        description="Publishes results.duckdb when tables have changed and nothing is at work on them.",
    )


# ------------------------------------------------------------------------------------------------------- failures
def lost_work_sensor(home: Home) -> dg.SensorDefinition:
    """Closes runs whose process was killed, and asks for a publishing that was lost that way."""
    job = dg.define_asset_job(
        "publish",
        selection=dg.AssetSelection.assets("results_database"),
        description="Publishes results.duckdb.",
        tags={STUDY_TAG: "results"},
    )

    @dg.sensor(
        name="lost_work",
        job=job,
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Closes runs whose process was killed: their studies then ask for the work again. Asks for the "
        "database once more where publishing it was cut off, or where tables changed meanwhile.",
    )
    def lost_work(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return look_for_lost_work(home, context.instance)

    return lost_work


def look_for_lost_work(
    home: Home, instance: dg.DagsterInstance, now: float | None = None
) -> dg.RunRequest | dg.SkipReason:
    """One look of that sensor."""
    now = time.time() if now is None else now
    lost = close_lost_runs(home, instance, now)
    if lost:
        return dg.SkipReason(f"closed {len(lost)} runs whose process was killed")
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    latest = instance.get_run_records(dg.RunsFilter(statuses=[*UNDER_WAY, *ended]), limit=100)
    publishing = next(
        (one for one in latest if dg.AssetKey("results_database") in (one.dagster_run.asset_selection or ())), None
    )
    status = publishing.dagster_run.status if publishing else None
    if status is None or status in UNDER_WAY:
        return dg.SkipReason("no work was lost")
    if status == dg.DagsterRunStatus.SUCCESS and not _overtaken(home, instance, now):
        return dg.SkipReason("no work was lost")
    request = fingerprint("publish", database_stamp(home))
    if database_is_current(home) or _waits(instance, request, now) is not None:
        return dg.SkipReason("publishing failed; it is tried again when tables change, or later")
    return dg.RunRequest(asset_selection=[dg.AssetKey("results_database")], tags={REQUEST_TAG: request})


def _overtaken(home: Home, instance: dg.DagsterInstance, now: float) -> bool:
    """Whether tables changed while the database was made of them, and nobody has asked for it since.

    Such a change is older than the asset's materialisation, so Dagster's condition does not see it. Asset runs of a
    study that are under way will change tables again, and then the condition does.
    """
    changed = tables_changed_after_publishing(home)
    at_work = instance.get_runs_count(dg.RunsFilter(statuses=UNDER_WAY))
    return changed is not None and now - changed > 2 * EVERY_S and not at_work


def failure_sensor(home: Home) -> dg.SensorDefinition:
    """Writes down every run that failed and, if RELEVANCE_WEBHOOK is set, tells it to that address."""

    @dg.run_failure_sensor(
        name="failed_runs",
        monitor_all_code_locations=False,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Writes failed runs to status.json in the home folder; posts them if RELEVANCE_WEBHOOK is set.",
    )
    def failed_runs(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        keys = sorted(key.to_user_string() for key in run.asset_selection or ())
        announce(home, Notice(run.run_id, ", ".join(keys) or run.job_name, _why(context), time.time()))

    return failed_runs


def _why(context: dg.RunFailureSensorContext) -> str:
    """The first step's own account, else the run's."""
    for event in context.get_step_failure_events():
        data: Any = event.step_failure_data
        said = data.user_failure_data and data.user_failure_data.description
        error = data.error and (data.error.cause or data.error).message
        return " ".join(str(said or error or event.message).split())
    return " ".join(str(context.failure_event.message).split())
