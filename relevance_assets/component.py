"""From a study's YAML to Dagster definitions.

Belongs here: the three components that a `defs.yaml` may name, and `study_definitions`, which tests and the command
line use without YAML. Does not belong here: stages, science.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import BaseModel, ValidationError

from relevance_assets.assets.automation import (
    failure_sensor,
    lost_work_sensor,
    publishing_sensor,
    study_automation,
)
from relevance_assets.assets.chain import study_stages
from relevance_assets.assets.checks import study_checks
from relevance_assets.assets.chunks import asset_key, stage_asset
from relevance_assets.assets.warehouse import SyntheticCohort, database_asset, synthetic_asset
from relevance_assets.assets.workspace import Workspace
from relevance_assets.configuration import (
    DEFINITIONS,
    SettingsError,
    load_studies,
    overridden,
    read_settings,
    study_from,
)
from relevance_assets.home import Home
from relevance_assets.study import Settings, Study

__all__ = [
    "ResultsDatabaseComponent",
    "StudyComponent",
    "SyntheticCohortComponent",
    "study_definitions",
    "synthetic_settings",
]


def study_definitions(study: Study, home: Home) -> dg.Definitions:
    """Assets, checks, sensor and schedules of one study in one home."""
    workspace = Workspace(study, home)
    stages = study_stages(workspace)
    by_name = {stage.name: stage for stage in stages}
    return dg.Definitions.merge(
        dg.Definitions(
            assets=[stage_asset(workspace, stage, by_name) for stage in stages],
            asset_checks=study_checks(workspace, stages),
        ),
        study_automation(workspace, stages),
    )


def synthetic_settings(home: Home, attributes: Mapping[str, Any] | None = None) -> SyntheticCohort:
    """Settings of the synthetic cohort, with what was set for this home over them."""
    remembered = read_settings(home.settings("synthetic_cohort"))
    if attributes is None:
        attributes = read_settings(DEFINITIONS / "synthetic_cohort" / "defs.yaml").get("attributes") or {}
    try:
        return SyntheticCohort.model_validate(overridden(dict(attributes), remembered))
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"synthetic cohort: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class StudyComponent(dg.Component):
    """A study: its attributes are those of `relevance_assets.study.Study`."""

    def __init__(self, study: Study) -> None:
        self.study = study

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return Study

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> StudyComponent:
        if attributes is None:
            raise ValueError(f"{context.path}: a study needs attributes")
        given = attributes.model_dump(mode="json", exclude_unset=True)
        return cls(study_from(given, Home.from_environment(), str(context.path / "defs.yaml")))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return study_definitions(self.study, Home.from_environment())


class SyntheticCohortComponent(dg.Component):
    """The synthetic cohort below the home folder."""

    def __init__(self, settings: SyntheticCohort) -> None:
        self.settings = settings

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return SyntheticCohort

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> SyntheticCohortComponent:
        given = attributes.model_dump(exclude_unset=True) if attributes else {}
        return cls(synthetic_settings(Home.from_environment(), given))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(assets=[synthetic_asset(self.settings, Home.from_environment())])


class _NoSettings(Settings):
    """The database has nothing to set."""


class ResultsDatabaseComponent(dg.Component):
    """`results.duckdb`, after the last asset of every study, and what watches over all of them."""

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return _NoSettings

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> ResultsDatabaseComponent:
        return cls()

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        home = Home.from_environment()
        return dg.Definitions(
            assets=[database_asset(home, database_inputs(home, load_studies(home)))],
            sensors=[failure_sensor(home), publishing_sensor(), lost_work_sensor(home)],
        )


def database_inputs(home: Home, studies: Mapping[str, Study]) -> list[dg.AssetKey]:
    """The assets whose tables the database holds: all of every study."""
    workspaces = [Workspace(study, home) for study in studies.values()]
    return [asset_key(workspace, stage.name) for workspace in workspaces for stage in study_stages(workspace)]
