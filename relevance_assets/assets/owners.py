"""Which asset writes each table."""

from __future__ import annotations

__all__ = ["ASSET_OF"]

ASSET_OF = {
    "participants": "participants",
    "scans": "participants",
    "raw_scans": "raw_scans",
    "volumes": "prepared_volumes",
    "preparation_steps": "prepared_volumes",
    "preparation_overview": "preparation_overview",
    "splits": "splits",
    "models": "trained_models",
    "training_epochs": "trained_models",
    "training_scans": "trained_models",
    "predictions": "predictions",
    "attention_weights": "predictions",
    "scores": "scores",
    "brain_age_gap": "scores",
    "relevance_maps": "relevance_maps",
    "relevance_ledger": "relevance_maps",
    "fold_agreement": "relevance_maps",
    "quantile_masks": "quantile_masks",
    "mask_measures": "quantile_masks",
    "localisation": "localisation",
    "region_volumes": "localisation",
    "localisation_summary": "localisation_summary",
    "inversions": "inversions",
    "inversion_curves": "inversion_curves",
    "inversion_areas": "inversion_curves",
    "scenarios": "inversion_curves",
    "attention_summary": "scores",
    "correlations": "correlations",
    "sanity": "sanity",
    "region_frequencies": "heat_maps",
    "published_comparison": "published_comparison",
}
