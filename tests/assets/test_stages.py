"""Stages do what is stale and nothing else; an error stays with its item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from relevance_assets.assets.chunks import contiguous
from relevance_assets.assets.stages import (
    ALL,
    Done,
    NotReady,
    Stage,
    each,
    remove_orphans,
    run_items,
    state_of,
)
from relevance_assets.assets.workspace import Workspace, camel


class Bench:
    """A stage over table `splits` whose inputs and faults the test sets."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.inputs = {"sub-1": 1, "sub-2": 2, "sub-3": 3}
        self.faults: dict[str, BaseException] = {}
        self.made: list[str] = []
        self.stage = Stage(
            name="splits",
            version="1",
            description="",
            tables=("splits",),
            items=lambda: sorted(self.inputs),
            inputs=self.read,
            work=each(self.make),
            outputs=lambda item: [self.file(item)],
        )

    def file(self, item: str) -> Path:
        return self.workspace.home.root / f"{item}.out"

    def read(self, item: str) -> int:
        if isinstance(self.inputs[item], Exception):
            raise self.inputs[item]
        return self.inputs[item]

    def make(self, item: str) -> Done:
        if item in self.faults:
            raise self.faults[item]
        self.made.append(item)
        self.file(item).write_text("made")
        frame = pl.DataFrame({"scan": [item], "set": ["train"], "fold": [0], "participant_id": [item]})
        return Done({"splits": frame}, result=str(self.inputs[item]))

    def run(self) -> dict[str, str]:
        outcomes = run_items(self.workspace, self.stage, self.stage.items())
        return {o.item: "skipped" if o.skipped else o.outcome for o in outcomes}

    def states(self) -> list[str]:
        return [state_of(self.workspace, self.stage, item) for item in self.stage.items()]


@pytest.fixture
def bench(workspace: Workspace) -> Bench:
    return Bench(workspace)


def test_what_is_done_is_not_done_again(bench: Bench) -> None:
    assert bench.states() == ["stale"] * 3
    assert bench.run() == {"sub-1": "ok", "sub-2": "ok", "sub-3": "ok"}
    assert bench.states() == ["current"] * 3
    assert bench.run() == {"sub-1": "skipped", "sub-2": "skipped", "sub-3": "skipped"}
    assert bench.made == ["sub-1", "sub-2", "sub-3"]


def test_only_what_changed_is_made(bench: Bench) -> None:
    bench.run()
    bench.inputs["sub-2"] = 20
    bench.file("sub-3").unlink()
    bench.made.clear()
    assert bench.run() == {"sub-1": "skipped", "sub-2": "ok", "sub-3": "ok"}
    assert bench.made == ["sub-2", "sub-3"]


def test_a_new_version_makes_all_again(bench: Bench) -> None:
    bench.run()
    bench.stage = replace(bench.stage, version="2")
    assert bench.states() == ["stale"] * 3


def test_an_error_stays_with_its_item_and_takes_its_old_rows(bench: Bench) -> None:
    bench.run()
    bench.inputs["sub-2"] = 20
    bench.faults["sub-2"] = ValueError("sub-2: truncated\nfile")
    assert bench.run() == {"sub-1": "skipped", "sub-2": "failed", "sub-3": "skipped"}
    assert bench.workspace.read("splits")["scan"].to_list() == ["sub-1", "sub-3"]
    assert not bench.file("sub-2").exists()
    assert bench.workspace.record("splits", "sub-2")["reason"] == "sub-2: truncated file"
    assert bench.states() == ["current", "failed", "current"]
    bench.inputs["sub-2"] = 21  # the file was replaced
    assert bench.states()[1] == "stale"


@pytest.mark.parametrize("error", [OSError("disk full"), MemoryError("too large"), NotReady("upstream failed")])
def test_what_may_succeed_another_time_is_tried_again(bench: Bench, error: Exception) -> None:
    bench.faults["sub-1"] = error
    bench.run()
    assert bench.states() == ["stale", "current", "current"]
    reason = bench.workspace.record("splits", "sub-1")["reason"]
    assert str(error) in reason


def test_an_interrupt_is_no_failed_scan(bench: Bench) -> None:
    bench.faults["sub-2"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert bench.states() == ["current", "stale", "stale"]


def test_rows_of_items_that_are_gone_leave_the_tables(bench: Bench) -> None:
    bench.run()
    del bench.inputs["sub-3"]
    assert remove_orphans(bench.workspace, bench.stage) == ["sub-3"]
    assert bench.workspace.read("splits")["scan"].to_list() == ["sub-1", "sub-2"]
    assert bench.workspace.recorded("splits") == {"sub-1", "sub-2"}


def test_a_stage_may_not_write_tables_of_others(bench: Bench) -> None:
    bench.stage = replace(
        bench.stage,
        items=lambda: [ALL],
        inputs=lambda _: 1,
        work=each(lambda _: Done({"models": pl.DataFrame()}, "")),
    )
    assert bench.run() == {ALL: "failed"}
    assert "does not own" in bench.workspace.record("splits", ALL)["reason"]


def test_results_are_those_of_finished_items(bench: Bench) -> None:
    bench.faults["sub-1"] = ValueError("bad")
    bench.run()
    assert bench.workspace.results("splits") == {"sub-2": "2", "sub-3": "3"}


def test_chunks_span_current_items_but_never_bad_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = list("abcdefgh")
    assert contiguous(keys, set("ace"), set(keys)) == [list("abcde")]
    assert contiguous(keys, set("ace"), set(keys) - {"d"}) == [list("abc"), ["e"]]
    assert contiguous(keys, set(), set(keys)) == []
    monkeypatch.setattr("relevance_assets.assets.chunks.CHUNK", 2)
    assert contiguous(keys, set("abdgh"), set(keys)) == [list("ab"), list("defg"), ["h"]]
    assert contiguous(keys, set(keys), set(keys)) == [list("ab"), list("cd"), list("ef"), list("gh")]
    monkeypatch.setattr("relevance_assets.assets.chunks.SPAN", 3)
    assert contiguous(keys, set("ae"), set(keys)) == [list("abcde")]
    assert contiguous(keys, set("af"), set(keys)) == [["a"], ["f"]]


def test_labels_have_letters_and_digits_only() -> None:
    assert camel("lrp_attention", "qT1") == "lrpAttentionQT1"
