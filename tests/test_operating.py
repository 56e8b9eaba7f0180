"""docs/operating.md names what there is, and what it promises holds.

Belongs here: names in the guide, `forget`, moving and restoring a home. Does not belong here: what the service does by
itself (`automation/`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import pytest
import yaml
from dagster._daemon.types import DaemonHeartbeat
from typer.testing import CliRunner

from relevance_assets.assets.automation import AT_ONCE, EVERY_S
from relevance_assets.assets.chunks import CHUNK, partitions_of
from relevance_assets.assets.forgetting import ALIVE_S, NotForgotten, check_forgettable, forget_person, traces
from relevance_assets.assets.planning import BACKOFF_S
from relevance_assets.assets.runner import dagster_instance, run_study
from relevance_assets.assets.stages import RETRY_AFTER_S, Stage
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cli import app
from relevance_assets.configuration import load_studies, overridden, remember
from relevance_assets.home import Home
from relevance_assets.report.notices import KEPT, Notice, announce, notices
from relevance_assets.study import Automation
from relevance_assets.tables.schema import TABLES

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from stand_in import make_cohort, stand_in, write_people  # noqa: E402

PERSON, NEIGHBOUR = "sub-00003", "sub-000031"
NAMED = r"sub-00003(?![0-9])"
GUIDE = (ROOT / "docs" / "operating.md").read_text()


def add(bids: Path, person: str, session: str | None = None) -> None:
    folder = bids / person / (session or "") / "anat"
    folder.mkdir(parents=True)
    name = f"{person}_{session}" if session else person
    (folder / f"{name}_T1map.nii.gz").write_bytes(name.encode())


class Small:
    """A study of the stand-in in a home of its own, brought up to date as the command line does it."""

    def __init__(self, folder: Path) -> None:
        self.home, self.bids = Home(folder / "home"), folder / "bids"
        self.made: list[tuple[str, str]] = []

    @property
    def workspace(self) -> Workspace:
        return Workspace(load_studies(self.home)["disability"], self.home)

    def chain(self, workspace: Workspace) -> list[Stage]:
        return stand_in(workspace, 0.0, lambda *place: self.made.append(place))

    def run(self) -> list[tuple[str, str]]:
        """What was really made."""
        self.made.clear()
        with pytest.MonkeyPatch.context() as patch, dagster_instance(self.home, alone=True) as instance:
            for module in ("component", "assets.runner"):
                patch.setattr(f"relevance_assets.{module}.study_stages", self.chain)
            run_study(self.workspace, instance)
        return list(self.made)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort and a home that is up to date, made once."""
    folder = tmp_path_factory.mktemp("finished")
    found = Small(folder)
    make_cohort(found.bids, 12, ("T1map",))
    shutil.rmtree(found.bids / PERSON / "anat")
    for session in ("ses-1", "ses-2"):
        add(found.bids, PERSON, session)
    add(found.bids, NEIGHBOUR)
    write_people(found.bids)
    place(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELEVANCE_HOME", "")
        patch.setenv("DAGSTER_HOME", "")
        found.run()
    return folder


def place(small: Small) -> None:
    """Say where the cohort is, as `run --bids` does."""
    contrasts = [{"name": "qT1", "suffix": "T1map"}]
    settings = {"cohort.bids": str(small.bids), "cohort.truth_regions": [], "contrasts": contrasts}
    settings |= dict.fromkeys(("inversion", "heat_map", "sanity")) | {"statistics.adjust_for": ["age"]}
    remember(small.home, "disability", settings)


@pytest.fixture
def small(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "copy")
    found = Small(tmp_path / "copy")
    monkeypatch.setenv("RELEVANCE_HOME", str(found.home.root))
    monkeypatch.setenv("DAGSTER_HOME", str(found.home.dagster))
    place(found)
    return found


def contents(database: Path) -> str:
    with duckdb.connect(str(database), read_only=True) as connection:
        tables = [name for (name,) in connection.sql("SELECT table_name FROM duckdb_tables()").fetchall()]
        assert set(tables) == set(TABLES)
        return "\n".join(str(connection.sql(f'SELECT * FROM "{table}"').fetchall()) for table in tables)


def leave(small: Small, person: str) -> None:
    """As an operator removes somebody's raw data."""
    shutil.rmtree(small.bids / person)
    write_people(small.bids)


@pytest.fixture
def known(small: Small) -> Small:
    """A home that knows the person in every way there is."""
    home, store = small.home, small.workspace.store
    for study in ("disability", "brain_age"):
        image = home.image(study, f"{PERSON}_ses-1", "desc-lrp_relmap")
        image.parent.mkdir(parents=True)
        image.write_bytes(b"a map")
        away = home.removed(study) / f"{PERSON}_ses-2" / "old.nii.gz"
        away.parent.mkdir(parents=True)
        away.write_bytes(b"an older map")
    row = {"participant_id": [PERSON, "sub-1"], "age": [40.0, 50.0]}
    store.write("participants", "brain_age", "all", pl.DataFrame(row))
    record = {"asset": ["splits"], "item": ["all"], "outcome": ["failed"], "reason": [f"{PERSON}: no age"]}
    store.write("runs", "brain_age", "splits__all", pl.DataFrame(record))
    announce(home, Notice("1", "disability/raw_scans", f"{PERSON}_ses-1: not a NIfTI file", 0.0))
    announce(home, Notice("2", "disability/raw_scans", "sub-00005: not a NIfTI file", 0.0))
    return small


def test_after_forgetting_nothing_below_the_home_names_the_person(known: Small) -> None:
    home = known.home
    before = {table: known.workspace.read(table) for table in TABLES}
    assert PERSON in contents(home.database)
    assert len(traces(home, PERSON)) > 20
    leave(known, PERSON)
    found = forget_person(home, PERSON)
    assert traces(home, PERSON) == []
    assert not re.search(NAMED, contents(home.database))
    assert not re.search(NAMED.encode(), home.database.read_bytes())
    for table, frame in before.items():
        rest = known.workspace.read(table)
        kept = frame
        for column in {"scan", "participant_id", "item"} & set(frame.columns):
            kept = kept.filter(~pl.col(column).str.contains(rf"^{PERSON}($|_)"))
        assert rest.equals(kept), f"{table}: the others' rows are as they were"
    assert NEIGHBOUR in contents(home.database)
    assert [notice.why for notice in notices(home)] == ["sub-00005: not a NIfTI file"]
    (record,) = known.workspace.store.read("runs", "brain_age").iter_rows(named=True)
    assert record["reason"] == "sub-removed: no age"
    assert found.files == 4
    assert found.runs > 0


def test_after_forgetting_dagster_still_knows_the_others(known: Small) -> None:
    leave(known, PERSON)
    forget_person(known.home, PERSON)
    stage = next(one for one in known.chain(known.workspace) if one.name == "relevance_maps")
    with dagster_instance(known.home) as instance:
        keys = instance.get_dynamic_partitions("disability_scans")
        assert len(keys) == 12
        assert not [key for key in keys if key.startswith(f"{PERSON}_")]
        key = dg.AssetKey(["disability", "relevance_maps"])
        found = instance.get_status_by_partition(key, keys, partitions_of(known.workspace, stage))
        assert {status.value for status in (found or {}).values() if status} == {"MATERIALIZED"}
        made = instance.get_latest_materialization_event(key)
        assert made is not None
        assert made.asset_materialization is not None
        assert "dagster/row_count" in made.asset_materialization.metadata, "figures of the others are kept"
        for name in ("participants", "splits", "scores"):
            assert instance.get_latest_materialization_event(dg.AssetKey(["disability", name])), name


def test_the_next_run_brings_nobody_back_and_trains_without_them(known: Small) -> None:
    side, _ = known.workspace.sides[f"{PERSON}_ses-1"]
    leave(known, PERSON)
    found = forget_person(known.home, PERSON)
    learnt = side == "train"
    assert found.trained == ({"disability": ["0", "1", "2"]} if learnt else {})
    assert any("--retrain" in line for line in found.remains) == learnt
    made = {stage for stage, _ in known.run()}
    assert not {"raw_scans", "prepared_volumes"} & made
    assert ("trained_models" in made) == learnt
    assert traces(known.home, PERSON) == []
    assert known.run() == []


def test_a_backup_restored_in_another_place_is_up_to_date(small: Small, tmp_path: Path) -> None:
    """By the guide's own commands: without the database, and without Dagster's history."""
    before = contents(small.home.database)
    (save,) = [text for text in re.findall(r"(?m)^tar -C .* derivatives$", GUIDE) if "-czf" in text]
    (load,) = re.findall(r"(?m)^tar -C \S+ -xzf \S+$", GUIDE)
    other = Small(tmp_path / "other")
    other.home.root.mkdir(parents=True)
    for command, home in ((save, small.home), (load, other.home)):
        text = command.replace("/data/relevance", str(home.root)).replace(
            "relevance.tar.gz", str(tmp_path / "b.tar.gz")
        )
        subprocess.run(["bash", "-c", text], check=True)
    shutil.move(small.bids, other.bids)
    assert not other.home.database.exists()
    assert not other.home.dagster.exists()
    place(other)
    assert other.run() == []
    assert contents(other.home.database) == before
    stage = next(one for one in other.chain(other.workspace) if one.name == "quantile_masks")
    with dagster_instance(other.home) as instance:
        keys = instance.get_dynamic_partitions("disability_scans")
        key = dg.AssetKey(["disability", stage.name])
        found = instance.get_status_by_partition(key, keys, partitions_of(other.workspace, stage))
        assert len(found or {}) == 14
        assert {status.value for status in (found or {}).values() if status} == {"MATERIALIZED"}


def test_a_stage_without_its_records_is_done_again_for_all(small: Small) -> None:
    for path in (small.home.tables / "runs" / "disability").glob("relevance_maps__*.parquet"):
        path.unlink()
    made = small.run()
    assert len(made) == 14
    assert {stage for stage, _ in made} == {"relevance_maps"}, "what came out is the same: nothing below is due"


def test_forgetting_again_or_somebody_unknown_harms_nobody(known: Small) -> None:
    leave(known, PERSON)
    forget_person(known.home, PERSON)
    before = contents(known.home.database)
    found = forget_person(known.home, PERSON)
    assert (found.files, found.rows, found.runs) == (0, 0, 0)
    assert contents(known.home.database) == before
    leave(known, NEIGHBOUR)
    forget_person(known.home, NEIGHBOUR)
    assert traces(known.home, NEIGHBOUR) == [], "also where an earlier call told Dagster anew"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("forget", PERSON), f"{PERSON} is still there: remove it first, or the next run brings it back"),
        (("forget", "sub-00004_ses-1"), "is not a person"),
        (("forget", "../sub-1"), "is not a person"),
    ],
)
def test_what_would_not_last_is_refused_in_one_line(small: Small, words: tuple[str, ...], message: str) -> None:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*words, "--yes", "--home", str(small.home.root)])
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1


def test_a_row_of_participants_would_bring_the_person_back(small: Small) -> None:
    shutil.rmtree(small.bids / PERSON)
    with pytest.raises(NotForgotten, match=r"participants.tsv still names"):
        check_forgettable(small.home, PERSON)
    write_people(small.bids)
    check_forgettable(small.home, PERSON)


def test_nobody_is_forgotten_while_somebody_is_at_work(small: Small) -> None:
    leave(small, PERSON)
    with dagster_instance(small.home) as instance:

        @dg.job
        def busy() -> None: ...

        instance.create_run_for_job(busy, status=dg.DagsterRunStatus.NOT_STARTED, tags={"range": f"{PERSON}_ses-1"})
        run = instance.create_run_for_job(busy, status=dg.DagsterRunStatus.STARTED)
        with pytest.raises(NotForgotten, match="1 runs are under way"):
            forget_person(small.home, PERSON)
        instance.report_run_failed(run)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 10, "SENSOR", "1"))
        with pytest.raises(NotForgotten, match="stop the service"):
            forget_person(small.home, PERSON)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - ALIVE_S - 10, "SENSOR", "1"))
    forget_person(small.home, PERSON)
    assert traces(small.home, PERSON) == [], "the run that waited is gone too"


def test_forgetting_asks_first(known: Small) -> None:
    leave(known, PERSON)
    answer = CliRunner().invoke(app, ["forget", PERSON, "--home", str(known.home.root)], input="n\n")
    assert answer.exit_code == 1
    assert PERSON in contents(known.home.database)
    answer = CliRunner().invoke(app, ["forget", PERSON, "--home", str(known.home.root)], input="y\n")
    assert answer.exit_code == 0, answer.output
    assert "What remains:" in answer.output
    assert not re.search(NAMED, contents(known.home.database))


# ------------------------------------------------------------------------------------------------------- the guide


def lines_of(language: str) -> list[str]:
    """Lines of the guide's fenced blocks in this language, comments taken off."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in found for line in block.splitlines() if line.strip()]


def test_every_command_of_the_guide_is_one() -> None:
    typed = [line for line in lines_of("(?:sh)?") if "relevance-assets " in line]
    typed += re.findall(r"`(relevance-assets [^`]+)`", GUIDE)
    assert len(typed) > 10
    for line in typed:
        words = line.partition("relevance-assets ")[2].split()
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [words[0], "--help"])
        assert result.exit_code == 0, line
        for option in re.findall(r"(--[a-z][a-z-]*)", " ".join(words[1:])):
            assert option in result.output, line


def test_programs_that_the_guide_starts_are_installed() -> None:
    folder = Path(sys.executable).parent
    started = set(re.findall(r"\.venv/bin/([a-z-]+)", GUIDE))
    assert started == {"dagster-daemon", "dagster-webserver", "dagster", "relevance-assets"}
    assert [name for name in sorted(started) if not (folder / name).exists()] == []


def test_files_and_tables_of_the_guide_exist() -> None:
    for name in re.findall(r"sql/queries/\w+\.sql|workspace\.yaml|CHANGELOG\.md", GUIDE):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target


def test_settings_of_the_guide_are_settings() -> None:
    named = set(re.findall(r"`automation\.(\w+)`", GUIDE))
    assert named == set(Automation.model_fields)
    defaults = Automation()
    assert f"`automation.quiet_seconds` ({defaults.quiet_seconds:g})" in GUIDE
    assert f"`automation.train_from_scans` ({defaults.train_from_scans})" in GUIDE
    assert (defaults.statistics, defaults.retraining) == ("0 2 * * *", "0 3 * * 0")
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    written = yaml.safe_load(block)
    assert overridden({"cohort": {}, "automation": {}}, written)["automation"]["quiet_seconds"] == 300


def test_numbers_of_the_guide_are_the_programs() -> None:
    assert BACKOFF_S == (60, 5 * 60, 25 * 60, 2 * 3600, 8 * 3600)
    assert "1 min, 5 min, 25 min, 2 h, 8 h" in GUIDE
    assert RETRY_AFTER_S == (1, 4)
    assert "again after 1 s and 4 s" in GUIDE
    assert f"looks every {EVERY_S} seconds" in GUIDE
    assert f"asks for {AT_ONCE} runs at most at once, of {CHUNK} scans" in " ".join(GUIDE.split())
    assert f"latest {KEPT} failed runs" in GUIDE
    assert f"wait {ALIVE_S} seconds" in GUIDE


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_the_units_are_units(tmp_path: Path) -> None:
    first, second = re.findall(r"```ini\n(.*?)```", GUIDE, re.DOTALL)
    unit = tmp_path / "relevance-daemon.service"
    lines = {line.split("=")[0]: line for line in second.splitlines() if line}
    for number, text in enumerate((first, re.sub("(?m)^(Description|ExecStart)=.*$", lambda m: lines[m[1]], first))):
        unit.write_text(text.replace("/srv/relevance-assets/.venv/bin", str(Path(sys.executable).parent)))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
        )
        assert str(unit) not in done.stderr, f"unit {number}: {done.stderr}"
        assert done.returncode == 0, f"unit {number}: {done.stderr}"
