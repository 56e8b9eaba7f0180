"""Where the command line writes: answers, and why it gives up.

Belongs here: both consoles, and the one way to end with an error. Does not belong here: commands (`cli.py`,
`check_model.py`).
"""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.text import Text

__all__ = ["complaints", "console", "failure"]

WIDTH = 110  # of what goes to a file or a pipe: rich would take 80
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)
complaints = Console(stderr=True)


def failure(message: object, code: int = 1) -> typer.Exit:
    """Say what is wrong; what the command raises to end."""
    complaints.print(Text.assemble(("error", "bold red"), f" {message}"), highlight=False, soft_wrap=True)
    return typer.Exit(code)
