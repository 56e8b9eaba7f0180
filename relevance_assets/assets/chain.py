"""The chain of a study: all its stages, in order.

Belongs here: the list. Does not belong here: any stage, Dagster (worker processes open a chain without it).
"""

from __future__ import annotations

from relevance_assets.assets.class_models import class_model_stages
from relevance_assets.assets.cohort import cohort_stages
from relevance_assets.assets.heat_maps import heat_map_stages
from relevance_assets.assets.inversion import inversion_stages
from relevance_assets.assets.lesion_statistics import lesion_statistics_stages
from relevance_assets.assets.lesions import lesion_stages
from relevance_assets.assets.localisation import localisation_stages
from relevance_assets.assets.mask_agreement import mask_agreement_stages
from relevance_assets.assets.models import model_stages, trained_models
from relevance_assets.assets.published import published_stages
from relevance_assets.assets.relevance import relevance_stages
from relevance_assets.assets.rule_grid import rule_grid_stages
from relevance_assets.assets.sanity import sanity_stages
from relevance_assets.assets.segmentation import segmentation_stages
from relevance_assets.assets.slices import slice_stages
from relevance_assets.assets.stages import Stage
from relevance_assets.assets.statistics import statistics_stages
from relevance_assets.assets.subjects import subject_stages
from relevance_assets.assets.workspace import Workspace

__all__ = ["study_stages"]


def study_stages(workspace: Workspace) -> list[Stage]:
    """The study's stages, each after what it needs."""
    stages: list[Stage]
    if workspace.study.slices:
        stages = [
            *slice_stages(workspace),
            trained_models(workspace),
            *class_model_stages(workspace),
            *rule_grid_stages(workspace),
        ]
        return _in_order(stages)
    imported = workspace.study.cohort.subjects is not None  # a finished table: in place of images
    stages = [] if imported else cohort_stages(workspace)
    if workspace.study.model:
        stages += [
            *model_stages(workspace),
            *relevance_stages(workspace),
            *localisation_stages(workspace),
            *inversion_stages(workspace),
            *heat_map_stages(workspace),
            *sanity_stages(workspace),
            *statistics_stages(workspace),
        ]
    if workspace.study.lesions:
        if not imported:
            stages += [
                *segmentation_stages(workspace),
                *lesion_stages(workspace),
                *mask_agreement_stages(workspace),
            ]
        stages += [
            *subject_stages(workspace),
            *lesion_statistics_stages(workspace),
        ]
    return _in_order([*stages, *published_stages(workspace, stages)])


def _in_order(stages: list[Stage]) -> list[Stage]:
    """The same stages; RuntimeError where one stands before what it needs."""
    seen: set[str] = set()
    for stage in stages:
        if not seen.issuperset(stage.needs):
            raise RuntimeError(f"stage {stage.name} stands before what it needs: {set(stage.needs) - seen}")
        seen.add(stage.name)
    return stages
