"""How far a long command is: bars on a terminal, lines elsewhere.

Belongs here: showing what stages say of themselves. Does not belong here: what they say (`assets/stages.py`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["Say", "progress"]

Say = Callable[[Text], None]


@contextmanager
def progress(console: Console) -> Iterator[Say]:
    """A bar per stage on a terminal, a line per stage elsewhere."""
    from relevance_assets.assets.stages import WATCHER  # polars: `--help` does not wait for it

    warnings.filterwarnings("ignore")
    shown = _bars(console) if console.is_terminal else _lines(console)
    with shown as watch:
        token = WATCHER.set(watch)
        try:
            yield console.print
        finally:
            WATCHER.reset(token)


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, float, int, str], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text="[green]✓[/green]"),
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[doing]}[/dim]"),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}
        finished: dict[str, float] = {}

        def watch(stage: str, done: float, total: int, doing: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=0, doing="")
                finished[stage] = 0.0
            base = finished[stage]  # earlier chunks of this stage
            bars.update(tasks[stage], completed=base + done, total=base + total, doing=doing)
            if done >= total and not doing:  # the chunk's end
                finished[stage] = base + total

        yield watch


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[str, float, int, str], None]]:
    started: dict[str, float] = {}
    named: set[str] = set()

    def watch(stage: str, done: float, total: int, doing: str) -> None:
        clock = time.monotonic()
        started.setdefault(stage, clock)
        if stage not in named:
            console.print(f"  {stage} …")
            named.add(stage)
        if done >= total and not doing:  # the chunk's end
            console.print(f"  {stage}: {total} in {clock - started.pop(stage):.0f} s")

    yield watch
