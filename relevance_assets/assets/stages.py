"""Stages: pieces of work that know their inputs, so that what is done is not done again.

A stage makes items (scans, folds, or one item `all`). An item's *fingerprint* hashes what goes in: the results of
earlier stages, the settings, the stage's version. Its *result* hashes what came out. A later stage's fingerprint uses
results, so a change that leaves a result as it was stops there.

Belongs here: deciding, doing, recording, isolating errors. Does not belong here: science, Dagster.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from relevance_assets.assets.owners import ASSET_OF
from relevance_assets.assets.workspace import ALL, Workspace
from relevance_assets.files import fingerprint
from relevance_assets.usage import keep_memory, peak_mb

__all__ = [
    "ALL",
    "Done",
    "NotReady",
    "Outcome",
    "Stage",
    "State",
    "WATCHER",
    "begin",
    "below",
    "each",
    "examine",
    "forget",
    "lost",
    "remove_orphans",
    "retire",
    "run_item",
    "run_items",
    "state_of",
    "tick",
    "workers",
]

log = logging.getLogger(__name__)
RETRY_AFTER_S = (1.0, 4.0)
WORTH_A_PROCESS = 8  # items; starting one takes about as long as these

# Called as (stage, items done, items, what is going on); the command line shows it as a progress bar.
WATCHER: ContextVar[Callable[[str, float, int, str], None] | None] = ContextVar("watcher", default=None)
_PLACE: ContextVar[tuple[str, int, int]] = ContextVar("place", default=("", 0, 1))


def begin(stage: str, number: int, total: int, text: str = "…") -> None:
    """Say which item of which stage comes next."""
    _PLACE.set((stage, number, total))
    tick(0.0, text)


def tick(fraction: float, text: str) -> None:
    """Say how far the item at hand is (0 to 1); for items that take long."""
    watcher = WATCHER.get()
    if watcher:
        stage, number, total = _PLACE.get()
        watcher(stage, number + fraction, total, text)


class NotReady(ValueError):
    """An input of this item is missing because an earlier stage failed or did not run."""


@dataclass(frozen=True)
class Done:
    """What an item came to: rows per table, the hash of its outcome, and what to show of it."""

    tables: dict[str, pl.DataFrame]
    result: str
    metadata: dict[str, Any] = field(default_factory=dict)


Work = Callable[[str], Done]


@dataclass(frozen=True)
class Stage:
    """One step of a study's chain.

    Attributes
    ----------
    name, version, description
        The asset's name, its code version (changed by hand, when results change), and its sentence in the UI.
    tables
        The tables of which each item owns one partition; the first is the main one.
    items
        Which items there should be now.
    inputs
        Item -> whatever its fingerprint is made of. Raises NotReady where an input is missing.
    work
        Opens what all items of a chunk share (models) and gives the function that makes one item.
    outputs
        Item -> files that must exist for the item to count as done.
    partition, needs, kinds, group, pool
        How Dagster sees it. `needs` names stages of the same study; `external` full asset keys elsewhere.
    settings
        The part of what goes in that a person sets: a change of it is wanted, where one of the inputs just happens.
    resets
        Reads the present result from the tables; another one makes everything below void at once, so that no table
        mixes old and new. None where a stage does not do so.
    parallel
        Items of a chunk may be made by several processes.
    selects
        Items are some of the scans, chosen among those that could be: a run may pass over the others.
    lasting
        Rows of the last success stay where a later try fails: what rests on them is still true of its scans.
    """

    name: str
    version: str
    description: str
    tables: tuple[str, ...]
    items: Callable[[], list[str]]
    inputs: Callable[[str], Any]
    work: Callable[[], AbstractContextManager[Work]]
    outputs: Callable[[str], list[Path]] = lambda item: []
    partition: Literal["scan", "fold"] | None = None
    needs: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset({"python"})
    group: str = "cohort"
    pool: str | None = None
    settings: Any = None
    resets: Callable[[], str | None] | None = None
    parallel: bool = False
    selects: bool = False
    lasting: bool = False

    def fingerprint(self, item: str) -> str:
        """Hash of settings, then hash of inputs."""
        return f"{self.settings_hash}{fingerprint(self.inputs(item))[:12]}"

    @cached_property
    def settings_hash(self) -> str:
        return fingerprint(self.name, self.version, self.settings)[:12]


@dataclass(frozen=True)
class Outcome:
    """What happened to one item."""

    item: str
    outcome: Literal["ok", "failed"]
    reason: str | None = None
    skipped: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


def each(function: Work) -> Callable[[], AbstractContextManager[Work]]:
    """`work` of a stage whose items share nothing."""

    @contextmanager
    def opened() -> Iterator[Work]:
        yield function

    return opened


State = Literal["current", "failed", "stale", "waiting"]


def state_of(workspace: Workspace, stage: Stage, item: str) -> State:
    """Whether an item has to be made; see `examine`."""
    return examine(workspace, stage, item)[0]


def examine(workspace: Workspace, stage: Stage, item: str) -> tuple[State, str]:
    """Whether an item has to be made, and its fingerprint today ('' where that cannot be said).

    `current`: made from exactly today's inputs and still there. `failed`: these very inputs cannot succeed. `waiting`:
    what it needs is not there yet. `stale`: the rest.
    """
    known = workspace.known(stage.name, item)
    try:
        today = stage.fingerprint(item)
    except NotReady:
        return "waiting", ""
    except (ValueError, OSError):  # an input is gone or unreadable: making the item will say which
        return "stale", ""
    if known is None or known.fingerprint != today:
        return "stale", today
    if known.outcome != "ok":
        return "failed", today
    there = workspace.has(stage.tables[0], item) and all(path.exists() for path in stage.outputs(item))
    return ("current" if there else "stale"), today


def forget(workspace: Workspace, asset: str, items: set[str], tables: Iterable[str]) -> None:
    """Take items' rows and records out of the tables."""
    for item in items:
        for table in tables:
            workspace.delete(table, item)
        workspace.delete("runs", f"{asset}__{item}")


def retire(workspace: Workspace, scan: str) -> None:
    """Take a scan's rows and records out of the tables, and set its files aside."""
    for asset, items in workspace.recorded_by_asset().items():
        if scan in items:
            forget(workspace, asset, {scan}, [table for table, owner in ASSET_OF.items() if owner == asset])
    workspace.set_aside(scan)


def remove_orphans(workspace: Workspace, stage: Stage) -> list[str]:
    """Take rows of items that should no longer be (a removed scan, a changed cohort) out of the tables."""
    recorded = workspace.recorded(stage.name)
    orphans = recorded - set(stage.items())
    forget(workspace, stage.name, orphans, stage.tables)
    return sorted(orphans)


def below(stages: list[Stage], name: str) -> list[Stage]:
    """The stages that rest on this one, directly or not."""
    found = {name}
    for stage in stages:
        if found & set(stage.needs):
            found.add(stage.name)
    return [stage for stage in stages if stage.name in found - {name}]


def run_items(
    workspace: Workspace, stage: Stage, items: list[str], *, run_id: str = "", lower: Iterable[Stage] = ()
) -> list[Outcome]:
    """Make the items that are not current; an error of one leaves the others alone.

    Each item's rows are written, then its record: a kill in between leaves the item undone, never half done.

    Parameters
    ----------
    lower
        The stages below, which a new result of a stage that `resets` makes void.
    """
    outcomes: list[Outcome] = []
    todo = []
    for item in items:
        if state_of(workspace, stage, item) == "current":
            outcomes.append(Outcome(item, "ok", skipped=True))
        else:
            todo.append(item)
    if not todo:
        return outcomes
    workspace.describe_dataset()
    keep_memory()
    watcher = WATCHER.get()
    if _on_cpus(stage) and min(workers(), len(todo) // WORTH_A_PROCESS) > 1:
        from relevance_assets.assets.processes import run_in_processes

        outcomes += run_in_processes(workspace, stage, todo, run_id, workers())
    else:
        with stage.work() as make:
            for number, item in enumerate(todo):
                begin(stage.name, number, len(todo), item)
                outcomes.append(run_item(workspace, stage, make, item, run_id, lower))
    if watcher:
        watcher(stage.name, len(todo), len(todo), "")
    return sorted(outcomes, key=lambda outcome: items.index(outcome.item))


def _on_cpus(stage: Stage) -> bool:
    """Whether the items of a stage may be made side by side: not where they would share a graphics card."""
    if stage.parallel and stage.pool == "gpu":
        from relevance_assets.precision import has_gpu

        return not has_gpu()
    return stage.parallel


def workers() -> int:
    """Processes that a stage of CPU work may use: RELEVANCE_WORKERS, or one per CPU."""
    given = os.environ.get("RELEVANCE_WORKERS", "")
    if given.isdecimal():
        return max(1, int(given))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_item(
    workspace: Workspace, stage: Stage, make: Work, item: str, run_id: str, lower: Iterable[Stage] = ()
) -> Outcome:
    """Make one item, write its rows and then its record, whatever comes of it."""
    started, clock = datetime.now(UTC), time.perf_counter()
    before = workspace.record(stage.name, item)
    record = {
        "asset": stage.name,
        "item": item,
        "run_id": run_id,
        "started": started,
        "reason": None,
        "fingerprint": None,
        "result": None,
        "attempts": None,
    }
    metadata: dict[str, Any] = {}
    # Without a record the item counts as undone: a kill from here on must not leave the old record beside new files.
    workspace.delete("runs", f"{stage.name}__{item}")
    try:
        record["fingerprint"] = stage.fingerprint(item)
        done = _patiently(lambda: make(item))
        unexpected = set(done.tables) - set(stage.tables)
        if unexpected:
            raise RuntimeError(f"stage {stage.name} wrote tables that it does not own: {sorted(unexpected)}")
        if stage.resets and stage.resets() != done.result:
            for one in lower:
                forget(workspace, one.name, workspace.recorded(one.name), one.tables)
        for table in stage.tables:
            if table in done.tables:
                workspace.write(table, item, done.tables[table])
            else:
                workspace.delete(table, item)
        record |= {"outcome": "ok", "result": done.result}
        metadata = done.metadata
    except Exception as error:
        # Whatever goes wrong with one scan must not stop its neighbours; its stale results must not survive it.
        if not stage.lasting:
            for table in stage.tables:
                workspace.delete(table, item)
            for path in stage.outputs(item):
                path.unlink(missing_ok=True)
        expected = isinstance(error, ValueError | OSError)
        if expected:
            log.info("%s %s: %s", stage.name, item, error)
        else:
            log.exception("%s %s", stage.name, item)
        text = " ".join(str(error).split()) or type(error).__name__
        record |= {"outcome": "failed", "reason": text if expected else f"{type(error).__name__}: {text}"}
        if not isinstance(error, ValueError) or isinstance(error, NotReady):
            record["fingerprint"] = None  # a full disk, a lost mount, too little memory: worth another try
        if record["fingerprint"] is None:
            record["attempts"] = 1 + ((before or {}).get("attempts") or 0)
    record["seconds"] = time.perf_counter() - clock
    record["peak_mb"] = peak_mb()
    workspace.write("runs", f"{stage.name}__{item}", pl.DataFrame([record], infer_schema_length=None))
    return Outcome(item, record["outcome"], record["reason"], metadata=metadata)  # type: ignore[arg-type]


def lost(workspace: Workspace, stage: Stage, item: str, run_id: str) -> Outcome:
    """The record of an item whose process died."""

    def make(_: str) -> Done:
        raise MemoryError("its process was killed: too little memory, or a fault in a library; see the run's log")

    return run_item(workspace, stage, make, item, run_id)


def _patiently(make: Callable[[], Done]) -> Done:
    """Try again after a moment, twice, where the disk or the network failed; never where the input is at fault."""
    for wait in RETRY_AFTER_S:
        try:
            return make()
        except OSError as error:
            if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError):
                raise  # these do not pass by themselves
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("%s; trying again in %g s", error, wait)
            time.sleep(wait)
    return make()
