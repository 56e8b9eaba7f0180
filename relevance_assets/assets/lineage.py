"""Columns of the tables, for Dagster: what they are, and which columns they come from.

Belongs here: schema and lineage as Dagster's metadata. Does not belong here: the schemas (`tables/schema.py`).
"""

from __future__ import annotations

import dagster as dg

from relevance_assets.assets.owners import ASSET_OF
from relevance_assets.tables.schema import TABLES

__all__ = ["column_lineage", "column_schema"]

# (table, column) -> columns of other tables that its values are computed from. Keys are left out: they carry over.
SOURCES: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("volumes", "path"): [("raw_scans", "path")],
    ("volumes", "sha256"): [("raw_scans", "sha256")],
    ("splits", "set"): [("scans", "target"), ("scans", "participant_id")],
    ("splits", "fold"): [("scans", "target"), ("scans", "participant_id")],
    ("models", "sha256"): [("volumes", "sha256"), ("training_scans", "set"), ("scans", "target")],
    ("scores", "value"): [("predictions", "output"), ("predictions", "target"), ("splits", "set")],
    ("scores", "ci_low"): [("predictions", "output"), ("scans", "participant_id")],
    ("scores", "ci_high"): [("predictions", "output"), ("scans", "participant_id")],
    ("relevance_maps", "path"): [("volumes", "path"), ("models", "path")],
    ("relevance_maps", "start"): [("attention_weights", "weight"), ("predictions", "output")],
    ("relevance_maps", "total"): [("volumes", "path"), ("models", "sha256")],
    ("quantile_masks", "threshold"): [("relevance_maps", "path")],
    ("quantile_masks", "voxels"): [("relevance_maps", "path")],
    ("localisation", "value"): [("relevance_maps", "path")],
    ("correlations", "value"): [("mask_measures", "mean"), ("scans", "edss")],
    ("correlations", "p_permutation"): [("mask_measures", "mean"), ("scans", "edss")],
}


def column_schema(table: str) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type=str(column.dtype),
                description=column.description.replace("<", "\\<"),  # markdown: <label> would vanish
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in TABLES[table].columns
        ]
    )


def column_lineage(study: str, table: str) -> dg.TableColumnLineage | None:
    deps = {
        column: [dg.TableColumnDep(dg.AssetKey([study, ASSET_OF[source]]), name) for source, name in sources]
        for (owner, column), sources in SOURCES.items()
        if owner == table
    }
    return dg.TableColumnLineage(deps) if deps else None
