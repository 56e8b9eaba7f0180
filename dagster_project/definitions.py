"""Everything below `defs/`: one folder per study, one YAML per folder."""

from pathlib import Path

import dagster as dg

from relevance_assets.assets.execution import executor_of
from relevance_assets.home import Home


@dg.definitions
def defs() -> dg.Definitions:
    # One process per run, here or on a cluster: a step process of its own would import torch again.
    return dg.Definitions.merge(
        dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
        dg.Definitions(executor=executor_of(Home.from_environment())),
    )
