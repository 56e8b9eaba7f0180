"""What a study has to do next, by fingerprints alone.

The command line and the service ask the same question and get the same answer, with one difference: by itself the
service never trains again because a scan came, changed or went.

Belongs here: which items of which stages are due. Does not belong here: launching them (`runner.py`,
`automation.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from relevance_assets.assets.stages import ALL, Stage, examine
from relevance_assets.assets.workspace import Workspace

__all__ = ["BACKOFF_S", "Due", "Plan", "plan"]

# Seconds to wait after the first, second, ... failure that may pass by itself; then a person has to look.
BACKOFF_S = (60.0, 300.0, 1500.0, 7200.0, 28800.0)


@dataclass(frozen=True)
class Due:
    """Items of a stage that can be made now.

    Attributes
    ----------
    items
        Item to its fingerprint, or '' where that cannot be said before the item is made.
    allowed
        All items that a stretch of partitions may pass over at no cost.
    """

    stage: Stage
    items: dict[str, str]
    allowed: set[str]


@dataclass
class Plan:
    """What is due, in the order of the chain, and what else is open.

    Attributes
    ----------
    later
        Whether something will be due when time has passed, though nothing changes.
    notes
        What waits for a person or for more scans, one line each.
    """

    due: list[Due] = field(default_factory=list)
    later: bool = False
    notes: list[str] = field(default_factory=list)


def plan(workspace: Workspace, stages: list[Stage], now: float | None = None) -> Plan:
    """Items whose inputs are there and not about to change; statistics and models only where there are none.

    An item waits while something that it rests on is due in this very plan: the next plan will have it.
    """
    now = time.time() if now is None else now
    found = Plan()
    moving: dict[str, set[str]] = {}  # stage -> items that are due, or rest on some that are
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        above = [by_name[name] for name in stage.needs]
        shared = [one for one in above if one.partition == stage.partition == "scan"]
        if any(moving[one.name] for one in above if one not in shared):
            moving[stage.name] = {ALL} if stage.partition is None else set(stage.items())
            continue
        blocked = set().union(*(moving[one.name] for one in shared))
        items = [item for item in stage.items() if item not in blocked]
        if stage.group == "statistics":  # what was made once is the schedule's; to examine it looks at every scan
            items = [item for item in items if not _made(workspace, stage, item)]
        examined = {item: examine(workspace, stage, item) for item in items}
        stale = {item: today for item, (state, today) in examined.items() if state == "stale"}
        due = {}
        for item, today in stale.items():
            wait = _waits(workspace, stage, item, now)
            if wait is None:
                due[item] = today
            elif wait:
                found.notes.append(f"{stage.name} {item}: {wait}")
            else:
                found.later = True
        due, why = _permitted(workspace, stage, due)
        if why:
            found.notes.append(why)
        if due:
            allowed = {item for item, (state, _) in examined.items() if state in ("stale", "current")}
            found.due.append(Due(stage, due, allowed - (set(stale) - set(due))))
        moving[stage.name] = set(due) | blocked
    return found


def _waits(workspace: Workspace, stage: Stage, item: str, now: float) -> str | None:
    """None: try it. '': later. Else what a person is told."""
    record = workspace.record(stage.name, item)
    if record is None or record["outcome"] == "ok" or not record["attempts"]:
        return None
    if record["attempts"] > len(BACKOFF_S):
        return f"failed {record['attempts']} times: {record['reason']}; run it by hand when that is mended"
    started = record["started"].replace(tzinfo=UTC).timestamp()
    return None if now >= started + BACKOFF_S[record["attempts"] - 1] else ""


def _made(workspace: Workspace, stage: Stage, item: str) -> dict[str, Any] | None:
    """The record of an item that was made, whatever has changed since."""
    record = workspace.record(stage.name, item)
    return record if record and record["outcome"] == "ok" else None


def _permitted(workspace: Workspace, stage: Stage, due: dict[str, str]) -> tuple[dict[str, str], str | None]:
    """What may be done without being asked for, and what a person should know of the rest."""
    made = {item: record for item in due if (record := _made(workspace, stage, item))}
    if stage.name == "trained_models":
        # other scans are no reason to train again, other settings are
        kept = {
            item
            for item, record in made.items()
            if record["fingerprint"].startswith(stage.settings_hash)
            and all(path.exists() for path in stage.outputs(item))
        }
        note = (
            f"trained_models: fold {', '.join(sorted(kept))} was trained on other scans than today's; retrain to mend"
        )
        return {item: today for item, today in due.items() if item not in kept}, note if kept else None
    if stage.name == "splits" and due and not made:
        there, wanted = len(workspace.results("prepared_volumes")), workspace.study.automation.train_from_scans
        if there < wanted:
            return {}, f"splits: {there} of the {wanted} scans that the first training waits for"
    return due, None
