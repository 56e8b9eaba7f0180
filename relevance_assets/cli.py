"""The command line.

Belongs here: arguments, progress, what is printed. Does not belong here: deciding what to run (`assets/runner.py`),
what tables say (`report/terminal.py`).
"""

from __future__ import annotations

import errno
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from relevance_assets.assets.progress import progress
from relevance_assets.check_model import check_model
from relevance_assets.console import console, failure
from relevance_assets.home import Home

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Why did the network decide so? From a BIDS folder of MRI scans to relevance maps, statistics and SQL.\n\n"
    "Begin with [bold]relevance-assets demo[/bold]. Everything made lies below one folder, the home: "
    "$RELEVANCE_HOME, or .relevance here.",
)

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder for everything made. Default: $RELEVANCE_HOME, or .relevance."),
]


class Format(StrEnum):
    """How `query` answers."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def _home(path: Path | None) -> Home:
    home = Home(path.resolve()) if path else Home.from_environment()
    os.environ["RELEVANCE_HOME"] = str(home.root)
    return home


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise failure(f"--set {pair}: write it as key=value, for example --set training.epochs=10", 2)
        try:
            settings[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise failure(f"--set {pair}: the value is not valid YAML; quote the whole of it", 2) from error
    return settings


def _run(home: Home, study: str, *, synthetic: bool, retrain: bool = False) -> None:
    """Run a study, with progress; used by `run`, `import-subjects` and `demo`."""
    from relevance_assets.assets.runner import Failed, dagster_instance, run_study, run_synthetic
    from relevance_assets.assets.workspace import Workspace
    from relevance_assets.configuration import SettingsError, load_studies, read_settings

    try:
        studies = load_studies(home)
        if study not in studies:
            raise failure(f"no study {study!r}; there are: {', '.join(studies) or 'none'}", 2)
        workspace = Workspace(studies[study], home)
        with dagster_instance(home, alone=True) as instance, progress(console) as say:
            if home.settings(study).exists():
                kept = ", ".join(f"{name}={value}" for name, value in read_settings(home.settings(study)).items())
                say(Text(f"settings of this home ({home.settings(study)}): {kept}", style="dim"))
            made = synthetic and run_synthetic(home, instance)
            report = run_study(workspace, instance, retrain=retrain)
            for stage, reasons in report.failed.items():
                say(Text(f"{stage}: {len(reasons)} left out", style="yellow"))
                for reason in reasons[:5]:
                    say(Text(f"  {reason}", style="yellow"))
            if report.idle and not made:
                say(Text.assemble(("✓", "green"), f" {study}: everything is up to date, nothing to do"))
    except (Failed, SettingsError) as error:
        raise failure(error) from error
    except Exception as error:
        if not _disk_is_full(error):
            raise
        raise failure(f"{home.root}: the disk is full; make room and run again, what is done stays done") from error


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether that is at the bottom of an error, whoever met it first; sqlite has words of its own for it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "database or disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@app.command()
def demo(
    home: HomeOption = None,
    scans: Annotated[int | None, typer.Option(help="Synthetic scans. Default: 120.")] = None,
    effect: Annotated[float | None, typer.Option(help="Size of the planted effect, 0 for none. Default: 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the cohort. Default: 0.")] = None,
) -> None:
    """The main job on synthetic people: scans → models → relevance maps → statistics → results.duckdb.

    Three studies: why a network says that somebody is disabled, where whose lesions are, and which rules explain a
    network of tumours best. Takes minutes on two cores, with fewer inversions and a smaller sanity test than the YAML
    asks for, unless the home says otherwise; a second call finds everything done. All of it is synthetic: nothing here
    says anything about people.
    """
    from relevance_assets.cohort.synthetic import check_folder
    from relevance_assets.component import synthetic_settings
    from relevance_assets.configuration import remembered
    from relevance_assets.demo import STUDIES, cheaper_evidence, small_network
    from relevance_assets.report.terminal import study_summary

    place = _home(home)
    given = {"scans": scans, "effect": effect, "seed": seed}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        with (
            remembered(place, "synthetic_cohort", chosen),
            remembered(place, "disability", cheaper_evidence(place)),
            remembered(place, "lesion_profile", small_network(place)),
        ):
            check_folder(place.bids, **synthetic_settings(place).model_dump())
    except ValueError as error:
        raise failure(error, 2) from error
    for study in STUDIES:
        _run(place, study, synthetic=True)
    for study in STUDIES:
        for part in study_summary(place, study):
            console.print(part)


@app.command()
def synthesise(
    out: Annotated[Path, typer.Argument(help="Folder of the BIDS dataset to make, or to go on with.")],
    scans: Annotated[int, typer.Option(help="How many scans (sessions) in all.")] = 120,
    voxel_size_mm: Annotated[float, typer.Option(help="Isotropic voxel size, mm.")] = 6.0,
    seed: Annotated[int, typer.Option(help="One seed gives one dataset, bit for bit.")] = 0,
    effect: Annotated[float, typer.Option(help="Size of the planted effect of EDSS; 0 plants none.")] = 1.0,
) -> None:
    """Make a synthetic MS cohort as a valid BIDS dataset, with planted truth in derivatives/truth."""
    from relevance_assets.assets.stages import begin, tick
    from relevance_assets.cohort.synthetic import synthesise as make

    with progress(console):
        begin("synthesise", 0, scans)
        try:
            make(
                out,
                scans=scans,
                voxel_size_mm=voxel_size_mm,
                seed=seed,
                effect=effect,
                progress=lambda done, total: tick(float(done), "" if done == total else f"{done} of {total}"),
            )
        except ValueError as error:
            raise failure(error) from error
    console.print(f"[green]✓[/green] {out}")


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="The study's name, as in dagster_project/defs/*/defs.yaml.")],
    bids: Annotated[
        Path | None,
        typer.Option(
            help="Your BIDS folder, or a study's folder of slices. Without it: the one of the last call, at first the "
            "synthetic cohort."
        ),
    ] = None,
    home: HomeOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.epochs=10. May be repeated."),
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="YAML file of settings, by the keys that --set takes; --set goes over it."),
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Divide everybody anew, later scans too, and train every model again.")
    ] = False,
) -> None:
    """Bring one study up to date, through Dagster, in chunks.

    What is done is not done again; after an interruption the same command goes on. A scan that cannot be used is
    left out and listed by `status`; the others go on. --bids, --settings and --set are kept in HOME/studies/STUDY.yaml
    and hold for later calls, and in the web UI, until that file is changed or removed.
    """
    from relevance_assets.configuration import SettingsError, load_studies, read_settings, remembered
    from relevance_assets.report.terminal import study_summary

    place = _home(home)
    if settings_file is not None and not settings_file.is_file():
        raise failure(f"{settings_file}: no such file; --settings takes a YAML file", 2)
    try:
        wanted = (read_settings(settings_file) if settings_file else {}) | _settings(settings or [])
    except SettingsError as error:
        raise failure(error, 2) from error
    if bids is not None and not bids.is_dir():
        raise failure(f"{bids}: no such folder; --bids takes the root of a BIDS dataset, or a folder of slices", 2)
    synthetic = False
    try:
        studies = load_studies(place)
        if study in studies:
            if bids is not None:
                wanted["slices.folder" if studies[study].slices else "cohort.bids"] = str(bids.resolve())
            with remembered(place, study, wanted):
                made = load_studies(place)[study]
                synthetic = not (made.slices or made.cohort.bids or made.cohort.subjects)
    except SettingsError as error:
        raise failure(error, 2) from error
    _run(place, study, synthetic=synthetic, retrain=retrain)
    for part in study_summary(place, study):
        console.print(part)


@app.command("import-subjects")
def import_subjects(
    table: Annotated[Path, typer.Argument(metavar="FILE.csv", help="One row per person; see docs/lesions.md.")],
    study: Annotated[str, typer.Option(help="A study of lesions.")] = "lesion_profile",
    home: HomeOption = None,
) -> None:
    """Take a finished subject table in place of images, and make all statistics of it.

    Its path is kept in HOME/studies/STUDY.yaml as `cohort.subjects`; `run` reads it again. Rows of images leave the
    tables; `run STUDY --set cohort.subjects=null` brings them back.
    """
    from relevance_assets.cohort.subjects import SubjectTableError, read_subject_table
    from relevance_assets.configuration import SettingsError, load_studies, remembered
    from relevance_assets.report.terminal import study_summary

    place = _home(home)
    try:
        studies = load_studies(place)
        if study not in studies or studies[study].lesions is None:
            fitting = ", ".join(name for name, one in studies.items() if one.lesions) or "none"
            raise failure(f"no study of lesions {study!r}; there are: {fitting}", 2)
        groups = set(read_subject_table(table)["group"].drop_nulls())
        with remembered(place, study, {"cohort.subjects": str(table.resolve())}):
            load_studies(place)
    except (SubjectTableError, SettingsError) as error:
        raise failure(error, 2) from error
    if not {"HC", "MS"} <= groups:
        named = ", ".join(sorted(groups)) or "none"
        console.print(f"[yellow]![/yellow] groups in {table}: {named}; statistics are of people called HC and MS")
    _run(place, study, synthetic=False)
    for part in study_summary(place, study):
        console.print(part)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help='A .sql file, or SQL text such as "SELECT * FROM test_scores".')],
    output: Annotated[
        Format, typer.Option("--format", help="Parquet goes to --to, or to standard output.")
    ] = Format.table,
    to: Annotated[Path | None, typer.Option("--to", help="Write the answer to this file.")] = None,
    home: HomeOption = None,
) -> None:
    """Ask results.duckdb a question. Example questions are in sql/queries/."""
    from relevance_assets.configuration import SQL
    from relevance_assets.report.terminal import frame_table
    from relevance_assets.tables.query import QueryError, run_query

    place = _home(home)
    try:
        path = Path(sql)
        if path.suffix == ".sql" and not path.exists():  # also from outside the checkout
            path = SQL / "queries" / path.name
        frame = run_query(place.database, path if path.suffix == ".sql" else sql)
    except QueryError as error:
        raise failure(error) from error
    if output is Format.table:
        console.print(frame_table(frame))
        return
    if to:
        to.parent.mkdir(parents=True, exist_ok=True)
    target: Any = to or (sys.stdout.buffer if output is Format.parquet else None)
    if output is Format.parquet:
        frame.write_parquet(target)
        return
    text = frame.write_csv() if output is Format.csv else frame.write_json()
    if to:
        to.write_text(text)
    else:
        typer.echo(text, nl=not text.endswith("\n"))


app.command("check-model")(check_model)


@app.command()
def status(home: HomeOption = None) -> None:
    """Per study: scans known, done at each stage, failed and why."""
    from relevance_assets.report.terminal import status_parts

    try:
        for part in status_parts(_home(home)):
            console.print(part)
    except ValueError as error:
        raise failure(error) from error


@app.command()
def forget(
    person: Annotated[str, typer.Argument(help="sub-LABEL; all sessions go.")],
    home: HomeOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove everything that the home holds of a person, in all studies, and say what remains elsewhere.

    Remove the person's images and row of participants.tsv from the BIDS folder first, and stop the service.
    """
    from relevance_assets.assets.forgetting import check_forgettable, forget_person
    from relevance_assets.assets.runner import Failed

    place = _home(home)
    try:
        check_forgettable(place, person)
        if not yes:
            typer.confirm(f"Remove everything of {person} from {place.root}, for good?", abort=True)
        found = forget_person(place, person)
    except (ValueError, Failed) as error:
        raise failure(error) from error
    if not (found.files or found.rows or found.runs):
        console.print(f"[yellow]![/yellow] {person}: nothing below {place.root} names this person; is the label right?")
        raise typer.Exit(1)
    console.print(f"[green]✓[/green] {person}: {found.files} files, {found.rows} rows, {found.runs} runs removed")
    console.print(Text("What remains:", style="bold"))
    for line in found.remains:
        console.print(Text(f"  {line}"), soft_wrap=True)


@app.command()
def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 3000,
) -> None:
    """Open Dagster's web UI on this home: asset graph, partitions, checks, history. Stop it with Ctrl-C."""
    from relevance_assets.assets.runner import dagster_instance

    place = _home(home)
    with dagster_instance(place):
        pass
    root = Path(__file__).resolve().parents[1]
    console.print(f"Dagster on http://127.0.0.1:{port}/asset-groups (all runs: /runs), home {place.root}")
    command = ["dagster", "dev", "-w", str(root / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "dagster", *command[1:]])


if __name__ == "__main__":
    app()
