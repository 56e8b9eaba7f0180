"""A study in a home of its own, whose stages a test runs without Dagster."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.stages import Outcome, run_items
from relevance_assets.assets.workspace import Workspace
from relevance_assets.configuration import load_studies
from relevance_assets.home import Home


@dataclass
class MadeStudy:
    home: Home
    study: str

    @property
    def workspace(self) -> Workspace:
        return Workspace(load_studies(self.home)[self.study], self.home)

    def run(self, *names: str) -> dict[str, Outcome]:
        """Stages from the beginning, or those named; outcomes of the last."""
        found: dict[str, Outcome] = {}
        for stage in study_stages(self.workspace):
            if not names or stage.name in names:
                found = {one.item: one for one in run_items(self.workspace, stage, stage.items())}
        return found

    def table(self, name: str) -> pl.DataFrame:
        return self.workspace.read(name)
