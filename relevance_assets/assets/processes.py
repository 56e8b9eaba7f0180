"""Items of a chunk in several processes, for stages whose work is the CPU's.

Belongs here: starting, feeding and burying workers. Does not belong here: what an item is (`stages.py`).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import util
from typing import Any

from relevance_assets.assets.stages import Outcome, Stage, Work, begin, lost, run_item
from relevance_assets.assets.workspace import Workspace
from relevance_assets.home import Home
from relevance_assets.study import Study
from relevance_assets.usage import keep_memory

__all__ = ["run_in_processes"]

CONTEXT = multiprocessing.get_context("spawn")  # a fork would share torch's threads and DuckDB's locks
_OPENED: dict[str, Any] = {}  # of this worker: workspace, stages, and the opened work of the call that it serves
_KEPT: dict[tuple[str, str], ProcessPoolExecutor] = {}  # of the parent; at most one: workers load torch, once
_CALLS = itertools.count()


def run_in_processes(
    workspace: Workspace, stage: Stage, items: list[str], run_id: str, processes: int
) -> list[Outcome]:
    """Make items, several at a time; a worker that dies takes one item with it.

    When workers die (too little memory, a crash in a library), what they left undone is made one by one, each in a
    process of its own; the item whose process dies again is the one to blame.
    """
    outcomes: dict[str, Outcome] = {}
    call = (stage.name, next(_CALLS))
    begin(stage.name, 0, len(items), items[0])
    try:
        futures = _submit(workspace, processes, call, items, run_id)
        for future in as_completed(futures):
            outcome = future.result()
            outcomes[outcome.item] = outcome
            begin(stage.name, len(outcomes), len(items), outcome.item)
    except BrokenProcessPool:
        _KEPT.clear()
        for item in (item for item in items if item not in outcomes):
            try:
                with _pool(workspace, 1) as pool:
                    outcomes[item] = pool.submit(_make, call, item, run_id).result()
            except BrokenProcessPool:
                outcomes[item] = lost(workspace, stage, item, run_id)
            begin(stage.name, len(outcomes), len(items), item)
    except BaseException:  # somebody ended the run: what was not begun is not begun any more
        _end_workers()
        raise
    return list(outcomes.values())


def _submit(
    workspace: Workspace, processes: int, call: tuple[str, int], items: list[str], run_id: str
) -> list[Future[Outcome]]:
    """Give the items to the workers that served before, if they are this study's; to new ones if one of those died."""
    key = (workspace.study.model_dump_json(), str(workspace.home.root))
    if key not in _KEPT:
        _end_workers()
        _KEPT[key] = _pool(workspace, processes)
        # A run's process joins its children before pools end: it would wait for workers that wait for it, for ever.
        util.Finalize(None, _end_workers, exitpriority=100)
    try:
        return [_KEPT[key].submit(_make, call, item, run_id) for item in items]
    except BrokenProcessPool:  # known before anything of this call was begun
        _KEPT[key] = _pool(workspace, processes)
        return [_KEPT[key].submit(_make, call, item, run_id) for item in items]


def _end_workers() -> None:
    for pool in _KEPT.values():
        pool.shutdown(cancel_futures=True)
    _KEPT.clear()


def _pool(workspace: Workspace, processes: int) -> ProcessPoolExecutor:
    study = workspace.study.model_dump_json()
    return ProcessPoolExecutor(
        processes, mp_context=CONTEXT, initializer=_open, initargs=(study, str(workspace.home.root), os.getpid())
    )


def _open(study: str, home: str, parent: int) -> None:
    from pathlib import Path

    from relevance_assets.assets.chain import study_stages

    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's, which ends us
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    workspace = Workspace(Study.model_validate_json(study), Home(Path(home)))
    _OPENED["workspace"] = workspace
    _OPENED["stages"] = {stage.name: stage for stage in study_stages(workspace)}


def _leave_with(parent: int) -> None:
    """End this process soon after its parent was killed: nobody else would."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _make(call: tuple[str, int], item: str, run_id: str) -> Outcome:
    stage: Stage = _OPENED["stages"][call[0]]
    if _OPENED.get("call") != call:  # what the last call opened may be another model's by now
        if "open" in _OPENED:
            _OPENED["open"].close()
        _OPENED["open"] = ExitStack()
        _OPENED["make"] = _OPENED["open"].enter_context(stage.work())
        _OPENED["call"] = call
    make: Work = _OPENED["make"]
    return run_item(_OPENED["workspace"], stage, make, item, run_id)
