"""A study whose science is a pause of no length, driven as the daemon would drive it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from stand_in import make_cohort, write_people

from relevance_assets.assets.automation import look_around
from relevance_assets.assets.workspace import Snapshot, Workspace
from relevance_assets.component import study_definitions
from relevance_assets.home import Home
from relevance_assets.study import Study


@dataclass
class Service:
    """The sensor and the runs it asks for, without a daemon.

    `made` lists what was really made (stage, item), in order; `faults` what is to go wrong.
    """

    study: Study
    home: Home
    instance: dg.DagsterInstance
    made: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], Exception] = field(default_factory=dict)
    cursor: str | None = None
    said: str = ""
    runs: int = 0

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.study, self.home)

    @property
    def bids(self) -> Path:
        return self.workspace.bids

    def fault(self, stage: str, item: str) -> None:
        if (stage, item) in self.faults:
            raise self.faults[stage, item]
        self.made.append((stage, item))

    def look(self, later_s: float = 0.0) -> list[dg.RunRequest]:
        """One look, now or later."""
        snapshot = Snapshot(self.study, self.home)
        result = look_around(snapshot, self.instance, self.cursor, time.time() + later_s)
        if isinstance(result, dg.SkipReason):
            self.said = result.skip_message or ""
            return []
        self.cursor = result.cursor
        self.said = (result.skip_reason.skip_message or "") if result.skip_reason else ""
        return list(result.run_requests or [])

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        self.runs += 1
        job = study_definitions(self.study, self.home).resolve_job_def(request.job_name or "")
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=request.asset_selection,
            tags=dict(request.tags or {}),
            raise_on_error=False,
        )

    def settle(self, looks: int = 30) -> list[tuple[str, str]]:
        """Look and run until nothing is asked for; what was made meanwhile."""
        self.made.clear()
        for _ in range(looks):
            requests = self.look()
            if not requests:
                return list(self.made)
            for request in requests:
                self.run(request)
        raise AssertionError(f"still asking after {looks} looks: {[r.tags for r in requests]}")

    def stages_of(self, item: str) -> list[str]:
        return [stage for stage, made in self.made if made == item]

    def add(self, count: int, first: int) -> list[str]:
        names = make_cohort(self.bids, count, ("T1map",), first=first)
        write_people(self.bids)
        return names
