"""What the command `demo` runs, and what it asks for less of, so that two cores need minutes.

Belongs here: its studies and their settings. Does not belong here: running them, what is printed (`cli.py`).
"""

from __future__ import annotations

from typing import Any

from relevance_assets.configuration import DEFINITIONS, load_studies, read_settings
from relevance_assets.home import Home

__all__ = ["STUDIES", "cheaper_evidence", "small_network"]

STUDIES = ("disability", "lesion_profile", "tumour")


def cheaper_evidence(home: Home) -> dict[str, Any]:
    """Settings that make evidence cheaper, but for what the home says of it already."""
    said = [str(key) for key in read_settings(home.settings("disability"))]
    study = load_studies(home).get("disability")
    # Each N costs tens of predictions per scan and model, most of them of random masks: the YAML's ten would take the
    # demo beyond its 12 minutes on two cores. Two show its course over the same range.
    cheaper = {
        "inversion.top_percents": [20, 100],
        "inversion.random_draws": 10,
        "sanity.training_scans": 40,
    }
    return {
        name: value
        for name, value in cheaper.items()
        if getattr(study, block := name.split(".")[0], None) and not any(key in (block, name) for key in said)
    }


def small_network(home: Home) -> dict[str, Any]:
    """Settings of a network for the synthetic cohort's masks, unless the home has settings of its own already."""
    said = {str(key).split(".")[0] for key in read_settings(home.settings("lesion_profile"))}
    return (
        {}
        if said & {"segmentation", "lesions", "cohort"}
        else read_settings(DEFINITIONS / "lesion_profile" / "synthetic.yaml")
    )
