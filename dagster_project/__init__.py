"""The code location: what Dagster loads. All science and all assets live in `relevance_assets`."""
