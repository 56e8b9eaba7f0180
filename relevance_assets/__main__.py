"""`python -m relevance_assets` is the command line."""

from relevance_assets.cli import app

app()
