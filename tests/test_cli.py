"""The command line: errors are one clear line, help teaches, answers come in every format."""

from __future__ import annotations

import errno
import json
import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from typer.testing import CliRunner

from relevance_assets.cli import app
from relevance_assets.cohort.subjects import SUBJECTS
from relevance_assets.configuration import load_studies, read_settings, remember
from relevance_assets.home import Home
from relevance_assets.report.terminal import frame_table

runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("RELEVANCE_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


def ask(*words: str, code: int = 0) -> str:
    result = runner.invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result.output


def test_help_names_every_command() -> None:
    text = ask("--help")
    for command in ("demo", "synthesise", "run", "query", "check-model", "status", "ui"):
        assert command in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "nothing"), "no study 'nothing'; there are: brain_age, disability"),
        (("run", "brain_age", "--bids", "/does/not/exist"), "no such folder"),
        (("run", "brain_age", "--set", "training.epochs"), "write it as key=value"),
        (("run", "brain_age", "--set", "masks.top_percents=[1,"), "not valid YAML"),
        (("demo", "--effect", "-1"), "synthetic cohort: effect"),
        (("run", "brain_age", "--set", "training.epoch=3"), "training.epoch: Extra inputs are not permitted"),
    ],
)
def test_wrong_words_are_answered_in_one_line(home: Home, words: tuple[str, ...], message: str) -> None:
    text = ask(*words, code=2)
    assert message in text
    assert "Traceback" not in text
    for name in ("brain_age", "disability", "synthetic_cohort"):
        assert not home.settings(name).exists(), "a refused setting must not be remembered"


@pytest.mark.parametrize(
    "said",
    [{}, {"training.epochs": 3}, {"inversion.top_percents": [50]}, {"inversion": None}, {"sanity.training_scans": 50}],
)
def test_the_demo_asks_for_less_evidence_unless_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    """Kept as --set keeps it: a second call, and the web UI, see the same study."""
    monkeypatch.setattr("relevance_assets.cli._run", lambda *words, **options: None)
    remember(home, "disability", said)
    cheaper = {"inversion.top_percents": [20, 100], "inversion.random_draws": 10, "sanity.training_scans": 40}
    added = {name: value for name, value in cheaper.items() if name not in said and name.split(".")[0] not in said}
    for _ in range(2):
        ask("demo")
        assert read_settings(home.settings("disability")) == said | added
    study, given = load_studies(home)["disability"], said | added
    assert (study.inversion.top_percents if study.inversion else None) == given.get("inversion.top_percents")
    assert (study.inversion.random_draws if study.inversion else None) == given.get("inversion.random_draws")
    assert study.sanity is not None
    assert study.sanity.training_scans == given["sanity.training_scans"]


def test_everybody_else_inverts_at_ten_quantiles(home: Home) -> None:
    study = load_studies(home)["disability"]
    assert study.inversion is not None
    assert study.inversion.top_percents == list(range(10, 101, 10))


def test_a_refused_setting_leaves_the_earlier_ones(home: Home) -> None:
    home.settings("brain_age").parent.mkdir(parents=True)
    home.settings("brain_age").write_text("training.epochs: 7\n")
    ask("run", "brain_age", "--set", "split.folds=0", code=2)
    assert read_settings(home.settings("brain_age")) == {"training.epochs": 7}


def test_a_folder_without_scans_stops_with_the_reason(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = ask("run", "brain_age", "--bids", str(tmp_path / "empty"), code=1)
    assert "no sub-* folders" in text


def test_query_before_anything_ran_says_what_to_do(home: Home) -> None:
    assert "relevance-assets" in ask("query", "SELECT 1", code=1)


def test_query_answers_in_every_format(home: Home, tmp_path: Path) -> None:
    home.root.mkdir()
    with duckdb.connect(str(home.database)) as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT * FROM (VALUES (1, 'a', 0.00001::DOUBLE), (2, NULL, 1234.5)) AS v(n, s, x)"
        )
    question = "SELECT * FROM t ORDER BY n"
    table = ask("query", question)
    assert "1.0e-05" in table
    assert "–" in table
    assert ask("query", question, "--format", "csv").splitlines()[0] == "n,s,x"
    assert json.loads(ask("query", question, "--format", "json"))[1] == {"n": 2, "s": None, "x": 1234.5}
    path = tmp_path / "q.sql"
    path.write_text(question)
    ask("query", str(path), "--format", "parquet", "--to", str(tmp_path / "answer.parquet"))
    assert pl.read_parquet(tmp_path / "answer.parquet").height == 2
    ask("query", str(path), "--format", "csv", "--to", str(tmp_path / "answer.csv"))
    assert (tmp_path / "answer.csv").read_text().startswith("n,s,x")
    assert "[/tmp/x] age [years]" in ask("query", "SELECT '[/tmp/x] age [years]' AS s")
    assert "no_such" in ask("query", "SELECT no_such FROM t", code=1)


def test_long_answers_say_how_much_is_hidden() -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(frame_table(pl.DataFrame({"n": range(120)})))
    assert "20 more rows" in console.export_text()


def test_status_of_an_empty_home(home: Home) -> None:
    text = ask("status")
    assert "disability  not run yet" in text


def test_synthesise_makes_a_cohort_and_refuses_another_in_its_place(home: Home, tmp_path: Path) -> None:
    out = str(tmp_path / "bids")
    ask("synthesise", out, "--scans", "1", "--voxel-size-mm", "12")
    assert (tmp_path / "bids" / "participants.tsv").exists()
    text = ask("synthesise", out, "--scans", "1", "--voxel-size-mm", "12", "--seed", "5", code=1)
    assert "other settings" in text


def test_a_full_disk_is_recognised_whoever_met_it_first() -> None:
    from relevance_assets.cli import _disk_is_full

    def behind(error: Exception) -> Exception:
        try:
            try:
                raise error
            except Exception as first:
                raise RuntimeError("the run failed") from first
        except RuntimeError as second:
            return second

    assert _disk_is_full(behind(OSError(errno.ENOSPC, "No space left on device")))
    assert _disk_is_full(behind(sqlite3.OperationalError("database or disk is full")))
    assert not _disk_is_full(behind(OSError(errno.ENOENT, "No such file")))
    assert not _disk_is_full(behind(ValueError("wrong")))


def test_a_finished_subject_table_is_taken_in_place_of_images(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    rows = [f"{n},{20 + n % 40},{'FM'[n % 2]},{'MS' if n % 3 else 'HC'},1000,50,{3 * n},{n},{n},{n}" for n in range(40)]
    path.write_text("\n".join([",".join(SUBJECTS), *rows]))
    remember(home, "lesion_profile", {"statistics.bootstrap": 100})
    assert "MS against HC" in ask("import-subjects", str(path))
    assert f"peopleof{path}" in "".join(ask("status").split())  # a long path is folded
    assert "everything is up to date" in ask("run", "lesion_profile")
    assert not (home.bids / "participants.tsv").exists()  # nor is the synthetic cohort made
    answer = json.loads(ask("query", "SELECT count(*) AS n FROM subjects", "--format", "json"))
    assert answer == [{"n": 40}]
    path.write_text(path.read_text().replace("MS", "patients"))
    assert "groups in" in ask("import-subjects", str(path))
    path.unlink()
    assert "no such file; import the table again" in ask("run", "lesion_profile", code=1)
    assert "no study of lesions 'disability'; there are: lesion_profile" in ask(
        "import-subjects", str(path), "--study", "disability", code=2
    )
