"""Takes a person out of a home: files, rows, the database, and what Dagster remembers of them.

Belongs here: removing everything that a home holds of one person in all studies, and saying what stays elsewhere.
Does not belong here: scans that left the BIDS folder (`stages.retire` sets their files aside), the raw images, which
are never touched.
"""

from __future__ import annotations

import mmap
import re
import shutil
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dagster as dg
import polars as pl

from relevance_assets.assets.automation import UNDER_WAY
from relevance_assets.assets.runner import dagster_instance
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.subjects import read_subject_table
from relevance_assets.configuration import SQL, load_studies
from relevance_assets.files import write_json
from relevance_assets.home import SCAN_PATTERN, Home
from relevance_assets.report.notices import notices
from relevance_assets.tables.database import PublishError, publish
from relevance_assets.tables.schema import TABLES
from relevance_assets.tables.store import Store

__all__ = ["Forgotten", "NotForgotten", "check_forgettable", "forget_person", "traces"]

SOMEBODY = "sub-removed"  # what stands in messages about others where the person was named
ALIVE_S = 45  # the daemon writes down every 30 s that it is there
WITHOUT_WORDS = {".gz", ".parquet", ".pt"}  # compressed, or numbers: nothing in them can be found by searching
# Runs that wait do so until a daemon is there; those that name the person are removed like the others.
AT_WORK = [one for one in UNDER_WAY if one not in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)]
NO_RUN = ""  # events that somebody reported belong to no run; Dagster keeps them under this name


class NotForgotten(ValueError):
    """The person cannot be taken out now; the message says what to do first."""


@dataclass
class Forgotten:
    """What was taken out, and what stays.

    Attributes
    ----------
    trained
        Study to the folds whose models the person took part in choosing or training.
    remains
        One line each, for the operator.
    """

    person: str
    files: int = 0
    rows: int = 0
    runs: int = 0
    trained: dict[str, list[str]] = field(default_factory=dict)
    remains: list[str] = field(default_factory=list)


def check_forgettable(home: Home, person: str) -> None:
    """Raise NotForgotten where the name is none, or where a BIDS folder would bring the person back."""
    if not SCAN_PATTERN.fullmatch(person) or "_" in person:
        raise NotForgotten(f"{person!r} is not a person: sub-<label>, letters and digits, without a session")
    for study in load_studies(home).values():
        bids = Workspace(study, home).bids
        if (bids / person).exists():
            raise NotForgotten(f"{bids / person} is still there: remove it first, or the next run brings it back")
        people = bids / "participants.tsv"
        if people.exists() and _word(person).search(people.read_text(errors="replace")):
            raise NotForgotten(f"{people} still names {person}: remove the row first, or the next run brings it back")
        table = study.cohort.subjects
        if table and table.exists() and person in read_subject_table(table)["participant_id"]:
            raise NotForgotten(f"{table} still names {person}: remove the row first, or the next run brings it back")


def forget_person(home: Home, person: str) -> Forgotten:
    """Remove everything that the home holds of a person. May be called again after an interruption.

    Raises
    ------
    NotForgotten
        The person's images are still in a BIDS folder, or somebody is at work on this home.
    runner.Failed
        Another command line is.
    """
    check_forgettable(home, person)
    found = Forgotten(person)
    with dagster_instance(home, alone=True) as instance:
        _refuse_at_work(home, instance)
        store = Store(home.tables)
        found.trained = _trained_on(store, person)
        _take_rows(store, person, found)
        _take_files(home, person, found)
        _take_history(home, instance, person, found)
        _take_notices(home, person)
        unpublished = _publish(home)
    found.remains = [*unpublished, *_what_remains(home, found)]
    return found


def _word(person: str) -> re.Pattern[str]:
    """The name itself: `sub-1` is not in `sub-10`, but in `sub-1_ses-2`."""
    return re.compile(rf"(?<![A-Za-z0-9]){person}(?![A-Za-z0-9])")


def _in_text(person: str) -> str:
    """The same for polars, whose patterns cannot look around."""
    return rf"(^|[^A-Za-z0-9]){person}($|[^A-Za-z0-9])"


def _refuse_at_work(home: Home, instance: dg.DagsterInstance) -> None:
    latest = max((beat.timestamp for beat in instance.get_daemon_heartbeats().values()), default=0.0)
    if time.time() - latest < ALIVE_S:
        raise NotForgotten(f"dagster-daemon is at work on {home.root}: stop the service, wait {ALIVE_S} s, try again")
    under_way = instance.get_runs_count(dg.RunsFilter(statuses=AT_WORK))
    if under_way:
        raise NotForgotten(f"{under_way} runs are under way on {home.root}: wait for them, or terminate them in the UI")


# ----------------------------------------------------------------------------------------------------- tables, files
def _trained_on(store: Store, person: str) -> dict[str, list[str]]:
    frame = store.read("training_scans").filter(pl.col("participant_id") == person).sort("study", "fold")
    grouped = frame.group_by("study", maintain_order=True).agg(pl.col("fold").unique(maintain_order=True))
    return dict(grouped.iter_rows())


def _take_rows(store: Store, person: str, found: Forgotten) -> None:
    """Remove the person's partitions; rewrite those of a whole cohort without them."""
    shutil.rmtree(store.root / ".cache", ignore_errors=True)
    store.clean(older_than_s=0)  # nobody is writing
    word = _word(person)
    for table in TABLES:
        for study in store.studies():
            for path in store.files(table, study):
                if word.search(path.stem):
                    found.rows += store.read(table, study, path.stem).height
                    path.unlink()
            if _naming(store.read(table, study), person).any():
                for partition in store.partitions(table, study):
                    found.rows += _rewrite(store, table, study, partition, person)
    shutil.rmtree(store.root / ".cache", ignore_errors=True)


def _rewrite(store: Store, table: str, study: str, partition: str, person: str) -> int:
    """Drop the rows about the person, and their name from what is said of others; the number dropped."""
    frame = store.read(table, study, partition)
    if not _naming(frame, person).any():
        return 0
    about = [name for name in ("participant_id", "scan", "item") if name in frame.columns]
    rest = frame.filter(~_naming(frame.select(about), person)) if about else frame
    rest = rest.with_columns(pl.col(pl.String).str.replace_all(_in_text(person), f"${{1}}{SOMEBODY}${{2}}"))
    store.write(table, study, partition, rest.drop("study"))
    return frame.height - rest.height


def _naming(frame: pl.DataFrame, person: str) -> pl.Series:
    """Which rows name the person in any of their texts."""
    texts = [
        pl.col(name).str.contains(_in_text(person)).fill_null(value=False)
        for name in frame.select(pl.col(pl.String)).columns
    ]
    return (
        frame.select(pl.any_horizontal(texts).alias("named"))["named"] if texts else pl.Series("named", [], pl.Boolean)
    )


def _take_files(home: Home, person: str, found: Forgotten) -> None:
    """Derivatives, and what was set aside when the scans were removed."""
    set_aside = [path for path in home.root.glob("removed/*/*") if _word(person).search(path.name)]
    for folder in [*home.root.glob(f"derivatives/*/{person}"), *set_aside]:
        found.files += sum(path.is_file() for path in folder.rglob("*"))
        shutil.rmtree(folder)


def _take_notices(home: Home, person: str) -> None:
    kept = [notice for notice in notices(home) if not _word(person).search(f"{notice.what} {notice.why}")]
    if home.status.exists():
        write_json(home.status, {"failures": [asdict(notice) for notice in kept]})


def _publish(home: Home) -> list[str]:
    """Build the database anew; what has the person in it does not stay where that fails."""
    if not home.database.exists():
        return []
    for path in home.root.glob(f"{home.database.name}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    try:
        publish(home.tables, home.database, SQL)
    except PublishError as error:
        return [f"{home.database} was removed and could not be built again, the next run does: {error}"]
    return []


# -------------------------------------------------------------------------------------------------- Dagster's history
def _take_history(home: Home, instance: dg.DagsterInstance, person: str, found: Forgotten) -> None:
    """Remove the partitions and runs that name the person; what else those runs made is told to Dagster anew.

    A run takes a chunk of scans, and Dagster removes whole runs only.
    """
    word = _word(person)
    for study in {*load_studies(home), *Store(home.tables).studies()}:
        for key in instance.get_dynamic_partitions(f"{study}_scans"):
            if word.search(key):
                instance.delete_dynamic_partition(f"{study}_scans", key)
    others: dict[tuple[dg.AssetKey, str | None], dg.AssetMaterialization] = {}
    touched: set[dg.AssetKey] = set()
    for run_id, tags in [(NO_RUN, {}), *((run.run_id, run.tags) for run in reversed(instance.get_runs()))]:
        events = instance.all_logs(run_id)
        if not any(word.search(text) for text in (*tags.values(), *map(dg.serialize_value, events))):
            continue
        for event in events:
            made = event.asset_materialization
            if made:
                touched.add(made.asset_key)
                if not word.search(dg.serialize_value(made)):
                    others[made.asset_key, made.partition] = made
        naming = {key: SOMEBODY for key, value in tags.items() if word.search(value)}
        if naming:  # the tags of a run outlive it in sqlite: nothing removes them, so they are overwritten
            instance.add_run_tags(run_id, naming)
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        found.runs += run_id != NO_RUN
    _tell_again(instance, others, touched, word)
    said = _take_check_results(instance, person, word)
    _purge_ticks(instance, word)
    if found.runs or said:
        _compact(home.dagster.rglob("*.db"))


def _tell_again(
    instance: dg.DagsterInstance,
    others: dict[tuple[dg.AssetKey, str | None], dg.AssetMaterialization],
    touched: set[dg.AssetKey],
    word: re.Pattern[str],
) -> None:
    """Report what is no longer known to be made, and leave no asset's latest event to be the person's."""
    known = {key: instance.get_materialized_partitions(key) for key in touched}
    for (key, partition), made in others.items():
        lost = partition not in known[key] if partition else not _latest(instance, key)
        if lost:
            instance.report_runless_asset_event(made)
    for key in touched:
        instance.wipe_asset_cached_status([key])
        latest = instance.get_latest_materialization_event(key)
        if latest and word.search(dg.serialize_value(latest)):
            rest = _latest(instance, key)
            if rest:
                instance.report_runless_asset_event(rest)
            else:
                instance.wipe_assets([key])


def _latest(instance: dg.DagsterInstance, key: dg.AssetKey) -> dg.AssetMaterialization | None:
    """The latest event that is really there."""
    records = instance.fetch_materializations(key, limit=1).records
    return records[0].asset_materialization if records else None


def _take_check_results(instance: dg.DagsterInstance, person: str, word: re.Pattern[str]) -> int:
    """Remove what checks said of the person: it outlives the run, and Dagster has no call for it."""
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
    from sqlalchemy import delete, select

    columns = AssetCheckExecutionsTable.c
    naming = select(columns.id, columns.evaluation_event).where(
        columns.evaluation_event.contains(person, autoescape=True)
    )
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        taken = [row for row, said in connection.execute(naming) if word.search(said)]
        for row in taken:
            connection.execute(delete(AssetCheckExecutionsTable).where(columns.id == row))
    return len(taken)


def _purge_ticks(instance: dg.DagsterInstance, word: re.Pattern[str]) -> None:
    """Remove what sensors said, where one of them named the person."""
    now = time.time()
    for state in instance.all_instigator_state():
        place = state.instigator_origin_id, state.selector_id
        if any(word.search(dg.serialize_value(tick.tick_data)) for tick in instance.get_ticks(*place)):
            instance.purge_ticks(*place, before=now)
    if instance.schedule_storage:
        instance.schedule_storage.purge_asset_evaluations(before=now)


def _compact(databases: Iterable[Path]) -> None:
    """What is deleted in sqlite stays in the file until it is written anew."""
    for path in databases:
        connection = sqlite3.connect(path, timeout=10)
        try:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            raise NotForgotten(f"{path}: {error}; stop what has it open (dagster-webserver), try again") from error
        finally:
            connection.close()


# ----------------------------------------------------------------------------------------------------- what remains
def traces(home: Home, person: str) -> list[Path]:
    """Files below the home that name the person, in their name or in text; compressed ones by their name alone."""
    word, raw = _word(person), re.compile(_word(person).pattern.encode())
    found = []
    for path in sorted(home.root.rglob("*")):
        if word.search(path.name):
            found.append(path)
        elif path.is_file() and path.suffix not in WITHOUT_WORDS and path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if raw.search(content):
                    found.append(path)
    return found


def _what_remains(home: Home, found: Forgotten) -> list[str]:
    lines = [
        f"{path}: still names {found.person}"
        + ("; docs/operating.md says how to begin Dagster's history anew" if home.dagster in path.parents else "")
        for path in traces(home, found.person)
    ]
    for name, folds in found.trained.items():
        lines.append(
            f"{name}: the models of fold {', '.join(folds)} learnt from {found.person}, and maps and predictions of "
            f"others come from them; train anew: relevance-assets run {name} --retrain"
        )
    for study in load_studies(home).values():
        bids = Workspace(study, home).bids
        if study.cohort.bids and not bids.is_dir():
            lines.append(f"{bids} is not there now: if it holds {found.person}, the next run brings the person back")
        elif (bids / "derivatives").is_dir() and any((bids / "derivatives").glob(f"*/{found.person}")):
            lines.append(f"{bids / 'derivatives'}: has a folder of {found.person}")
    return [
        *dict.fromkeys(lines),
        "statistics of the cohort (scores, correlations) until they are made again: tonight, or with the next run",
        "outside this home: the raw data, backups, copies that analysts made, open sessions on the old database, the "
        "service's log (journal), messages that went to RELEVANCE_WEBHOOK",
    ]
