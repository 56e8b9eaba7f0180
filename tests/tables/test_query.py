"""Each shipped query answers its question on the filled store, and mistakes are explained in one line."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from test_lesion_queries import LESION_QUERIES

from relevance_assets.tables.query import QueryError, run_query
from relevance_assets.tables.schema import TABLES

QUERIES = Path(__file__).parents[2] / "sql" / "queries"
NET = "gated_attention"


def answer(database: Path, name: str) -> pl.DataFrame:
    return run_query(database, QUERIES / f"{name}.sql")


def of(frame: pl.DataFrame, study: str, *columns: str) -> list[tuple]:
    return frame.filter(pl.col("study") == study).select(columns).rows()


def test_there_are_queries_and_each_begins_with_its_question() -> None:
    files = sorted(QUERIES.glob("*.sql"))
    assert len(files) >= 10
    for file in files:
        first = file.read_text().splitlines()[0]
        assert first.startswith("-- "), file
        assert "?" in file.read_text().split("SELECT")[0], file


def test_every_query_is_tested_and_answers(database: Path) -> None:
    tests = Path(__file__).read_text()
    for file in QUERIES.glob("*.sql"):
        if file.stem in LESION_QUERIES:
            continue  # of lesions and groups, which this database has not: test_lesion_queries.py
        assert answer(database, file.stem).height > 0
        assert f'"{file.stem}"' in tests


def test_failed_scans(database: Path) -> None:
    assert of(answer(database, "failed_scans"), "disability", "scan", "stage", "reason") == [
        ("sub-05_ses-1", "relevance_maps", "out of memory"),
        ("sub-13", "cohort", "NaN in sub-13_T1w.nii.gz"),
    ]


def test_scores_against_baselines(database: Path) -> None:
    frame = answer(database, "scores_against_baselines")
    rows = of(frame, "disability", "metric", "model", "value", "baseline", "better_by")
    assert [row[:4] for row in rows] == [("auc", NET, 0.8, "mean"), ("auc", NET, 0.8, "ridge")]
    assert [row[4] for row in rows] == pytest.approx([0.3, 0.2])
    assert of(frame, "brain_age", "metric", "baseline", "better_by") == [
        ("mae", "mean", 6.0),
        ("mae", "ridge", -0.5),
        ("r2", "mean", None),
    ]


def test_attention_by_contrast(database: Path) -> None:
    rows = of(answer(database, "attention_by_contrast"), "disability", "contrast", "first_in_scans", "scans")
    assert rows == [("qT1", 12, 13), ("NDI", 0, 13), ("MWF", 1, 13)]
    means = answer(database, "attention_by_contrast")["mean_weight"].to_list()
    assert means == pytest.approx([(12 * 0.5 + 0.1) / 13, (12 * 0.3 + 0.1) / 13, (12 * 0.2 + 0.8) / 13])


def test_relevance_in_planted_region(database: Path) -> None:
    rows = of(
        answer(database, "relevance_in_planted_region"), "disability", "region", "scans_above_chance",
        "scans", "mean_share", "mean_chance", "mean_even", "times_chance", "ci_low", "ci_high",
    )  # fmt: skip
    planted = 0.1 + 0.01 * (1 + 1 + sum(range(2, 13))) / 13
    # the one lesion that there is could not be shifted: no chance, and no summary
    assert [row[:3] for row in rows] == [("planted", 13, 13), ("decoy", 0, 13), ("lesion", 0, 1)]
    assert rows[0][3:] == pytest.approx((planted, 0.05, 0.02, planted / 0.05, 0.1, 0.12))
    assert rows[1][3:] == pytest.approx((0.04, 0.05, 0.02, 0.8, -0.02, 0.0))
    assert rows[2][3:] == (0.03, None, 0.02, None, None, None)


def test_most_information_per_voxel(database: Path) -> None:
    frame = answer(database, "most_information_per_voxel")
    assert frame.select("scenario", "method", "map", "auc_0", "area", "p", "own_area").rows() == [
        (3, "lrp", "combined", 0.8, 0.6, None, 0.6),
        (1, "lrp", "individual", 0.8, 0.65, 0.2, 0.5),  # its own masks do better: they are twice as large
        (9, "saliency", "individual", 0.8, 0.75, 0.01, 0.75),
        (None, "random", "combined", 0.8, 0.78, 0.01, None),
    ]
    assert frame["percent"].to_list() == pytest.approx([13.0] * 4)
    assert frame["own_percent"][:3].to_list() == pytest.approx([13.0, 26.0, 13.0])
    assert frame["drop_per_percent"].to_list() == pytest.approx([drop / 13 for drop in (0.2, 0.15, 0.05, 0.02)])
    assert frame["better_by"].to_list()[1:] == pytest.approx([-0.05, -0.15, -0.18])
    assert frame["better_by"][0] is None
    assert frame["better_by_low"].to_list()[1:] == pytest.approx([-0.15, -0.25, -0.28])
    assert frame["better_by_high"].to_list()[1:] == pytest.approx([0.05, -0.05, -0.08])
    assert set(frame["percents"]) == {"0, 20, 100"}


def test_more_than_lesion_volume(database: Path) -> None:
    frame = answer(database, "more_than_lesion_volume")
    assert set(frame["analysis"]) == {"lrp, all scans"}
    assert set(frame["adjusted_for"]) == {"age, sex, lesion"}
    columns = ("mask", "image", "rho", "p_corrected", "partial_rho", "partial_p_corrected", "n", "remains")
    assert of(frame, "disability", *columns) == [
        ("combined top 10 %", "NDI", -0.7, 0.005, -0.65, 0.02, 13, True),
        ("combined top 10 %", "qT1", 0.6, 0.01, 0.1, 0.8, 13, False),
        ("combined top 20 %", "qT1", 0.55, 0.04, None, None, 13, None),
    ]


def test_regions_mild_and_severe(database: Path) -> None:
    frame = answer(database, "regions_mild_and_severe")
    columns = ("region", "mild", "severe", "difference", "peak_difference", "x_mm", "p_corrected", "significant")
    assert of(frame, "disability", *columns) == [
        ("thalamus_left", 0.1, 0.5, 0.4, 0.75, -10.0, 0.01, True),
        ("cerebellum_left", 0.3, 0.2, -0.1, -0.5, -10.0, 0.6, False),
        ("pallidum_left", None, None, None, None, None, None, None),
    ]
    assert set(of(frame, "disability", "people", "warped")) == {(12, 11)}


def test_disagreement_between_folds(database: Path) -> None:
    frame = answer(database, "disagreement_between_folds")
    assert of(frame, "disability", "scan", "participant_id", "edss", "set", "correct", "worst_method") == [
        ("sub-12_ses-1", "sub-12", 5.0, "test", False, "saliency"),
        ("sub-10_ses-1", "sub-10", 7.0, "test", True, "saliency"),
        ("sub-11_ses-1", "sub-11", 2.0, "test", True, "saliency"),
    ]
    assert frame["spearman"].to_list() == pytest.approx([0.1, 0.45, 0.8])
    assert frame["worst"].to_list() == pytest.approx([0.0, 0.3, 0.7])
    assert frame["dice"].to_list() == pytest.approx([0.4] * 3)
    assert frame["dice_shifted"].to_list() == pytest.approx([0.25] * 3)


def test_explanations_to_doubt(database: Path) -> None:
    columns = ("method", "test", "verdict", "value", "passes_if", "threshold", "failed", "not_tested", "tests")
    assert of(answer(database, "explanations_to_doubt"), "disability", *columns) == [
        ("lrp", "confounder", "failed", 4.0, "above", 10.0, 1, 1, 3),
        ("lrp", "permuted_localisation", "could not be tested", None, "above", 0.0, 1, 1, 3),
        ("saliency", "randomisation_all", "failed", 0.9, "below", 0.5, 1, 0, 2),
    ]


def test_published_and_ours(database: Path) -> None:
    frame = answer(database, "published_and_ours")
    assert of(frame, "disability", "measure", "published", "ours", "verdict", "comparable", "note") == [
        ("AUC (test set)", 0.885, 0.8, "differs", True, "Table II"),
        ("rho of NDI (Table III)", -0.44, -0.7, "contradicts itself", True, "contradicted by Table IV"),
        ("accuracy (test set)", 0.854, 0.8541, "rounds to", True, "Table II"),
        ("rho of QSM", 0.2, None, "not measured", True, "Table III"),
        ("attention weight of qT1", 0.467, 0.5, "differs", False, "Table II; ours: synthetic people"),
    ]
    assert frame["difference"].drop_nulls().to_list() == pytest.approx([-0.085, -0.26, 0.0001, 0.033])


def test_later_scans(database: Path) -> None:
    columns = ("scan", "participant_id", "age", "edss", "target", "output", "lowest", "highest", "models")
    frame = answer(database, "later_scans")
    assert of(frame, "disability", *columns) == [
        ("sub-14_ses-1", "sub-14", 50.0, 6.0, 1.0, 2.0, 1.0, 3.0, 3),
        ("sub-15_ses-1", "sub-15", 60.0, None, None, None, None, None, 0),
    ]
    probability = 1 / (1 + math.exp(-2))
    assert frame["probability"][0] == pytest.approx(probability)
    assert frame["sureness"][0] == pytest.approx(2 * probability - 1)
    assert frame["sureness"][1] is None
    assert frame.height == 2


def test_strongest_correlations(database: Path) -> None:
    frame = answer(database, "strongest_correlations")
    assert of(frame, "disability", "stratum", "x", "rho", "significant") == [
        ("combined top 10 %", "NDI", -0.7, True),
        ("combined top 10 %", "qT1", 0.6, True),
        ("combined top 20 %", "qT1", 0.55, True),
        ("combined top 10 %", "MWF", 0.1, False),
    ]


def test_older_than_they_are(database: Path) -> None:
    rows = answer(database, "older_than_they_are").select("scan", "corrected_gap_years", "set").rows()
    assert rows[:3] == [
        ("sub-02_ses-1", 11.0, "validation"),
        ("sub-11_ses-1", 5.0, "test"),
        ("sub-01_ses-1", 0.0, "validation"),
    ]


def test_unexplained_maps(database: Path) -> None:
    frame = answer(database, "unexplained_maps")
    assert frame.height == 20
    assert set(frame["scan"][:4]) == {"sub-03_ses-1"}
    assert frame["share_lost"].to_list() == pytest.approx([0.02] * 4 + [1e-4] * 16)
    assert frame["share_unexplained"].to_list() == pytest.approx([0.004] * 4 + [2e-5] * 16)
    assert "combined" not in frame["contrast"].to_list()


def test_worst_layer(database: Path) -> None:
    frame = answer(database, "worst_layer")
    rows = of(frame, "disability", "layer", "kind", "median_share_lost", "bias", "greatest_unexplained")
    assert [row[:2] for row in rows] == [("dense", "linear"), ("conv1", "convolution"), ("pool", "max_pool")]
    assert [row[2:] for row in rows] == [pytest.approx(v) for v in ((0.2, 0.2, 1e-12), (0.1, 0.1, 0), (0, 0, 0))]


def test_repeat_visits(database: Path) -> None:
    frame = answer(database, "repeat_visits")
    assert of(frame, "disability", "participant_id", "scan_a", "scan_b", "years_between", "difference") == [
        ("sub-01", "sub-01_ses-1", "sub-01_ses-2", 2.0, 0.5)
    ]
    logit = [-2, -1.5, 2, -3, 1, 3, 2.5, -1, 1.5, -2, 2, -1, -0.5, 2]  # the last: sub-14, who came later
    apart = sorted(abs(a - b) for i, a in enumerate(logit) for b in logit[i + 1 :])
    apart.remove(0.5)  # the one pair of visits: not strangers
    middle = (apart[(len(apart) - 1) // 2] + apart[len(apart) // 2]) / 2
    assert of(frame, "disability", "spread", "of_spread") == [(middle, pytest.approx(0.5 / middle))]


def test_unusual_volumes(database: Path) -> None:
    rows = of(answer(database, "unusual_volumes"), "disability", "scan", "image", "measure", "value")
    assert rows == [("sub-07_ses-1", image, "brain_volume_ml", 593.0) for image in ("MWF", "NDI", "qT1")]
    numbers = [1, 1, *range(2, 13)]
    volumes = sorted(1200 + n * (-1) ** n - 600 * (n == 7) for n in numbers)
    deviations = sorted(abs(v - volumes[6]) for v in volumes)
    expected = (593 - volumes[6]) / (1.4826 * deviations[6])
    assert answer(database, "unusual_volumes")["robust_z"][0] == pytest.approx(expected)


def test_time_per_stage(database: Path) -> None:
    rows = of(
        answer(database, "time_per_stage"), "disability", "asset", "items", "failed", "median_seconds",
        "longest_seconds", "longest_item", "peak_mb",
    )  # fmt: skip
    assert rows == [
        ("relevance_maps", 13, 1, 11.0, 17.0, "sub-12_ses-1", 500.0),
        ("prepared_volumes", 13, 0, 8.0, 14.0, "sub-12_ses-1", 500.0),
    ]


def test_balance_of_sets(database: Path) -> None:
    rows = of(answer(database, "balance_of_sets"), "disability", "set", "fold", "scans", "people", "median_edss")
    assert rows == [
        ("train", 0, 3, 3, 1.5),
        ("train", 1, 4, 3, 2.25),
        ("train", 2, 3, 3, 5.5),
        ("test", None, 3, 3, 5.0),
        ("new", None, 2, 2, 6.0),
    ]


def test_course_of_training(database: Path) -> None:
    rows = of(
        answer(database, "course_of_training"), "brain_age", "fold", "best_epoch", "last_epoch", "best_loss",
        "best_validation_loss", "last_validation_loss",
    )  # fmt: skip
    assert rows == [(fold, 1, 2, 0.5, 0.5, 0.7) for fold in "012"]


def test_confident_mistakes(database: Path) -> None:
    frame = answer(database, "confident_mistakes")
    assert frame.select("scan", "set", "target").rows() == [
        ("sub-05_ses-1", "validation", 0.0),
        ("sub-12_ses-1", "test", 1.0),
    ]
    # sub-12 is held out: the mean of the folds' outputs (-1.5, -0.5, 0.5), not of their probabilities
    assert frame["probability"].to_list() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(0.5))])


def test_scan_overview_shows_every_scan_once(database: Path) -> None:
    frame = run_query(database, "FROM scan_overview WHERE study = 'disability' ORDER BY scan")
    assert frame.height == 16
    assert frame["scan"].is_unique().all()
    failed = frame.row(13, named=True)
    assert (failed["scan"], failed["status"], failed["set"], failed["output"]) == ("sub-13", "failed", None, None)
    assert frame.row(2, named=True)["brain_volume_ml"] == 1202.0


def test_test_scores_prefer_the_ensemble_and_best_model_knows_the_direction(database: Path) -> None:
    rows = run_query(database, "SELECT model, fold FROM test_scores WHERE metric = 'auc' ORDER BY model").rows()
    assert rows == [(NET, "ensemble"), ("mean", "ensemble"), ("ridge", "ensemble")]
    best = run_query(database, "SELECT study, metric, model FROM best_model ORDER BY ALL").rows()
    assert best == [("brain_age", "mae", "ridge"), ("brain_age", "r2", "mrinet"), ("disability", "auc", NET)]


def test_relevance_overview(database: Path) -> None:
    row = run_query(
        database, "FROM relevance_overview WHERE study = 'disability' AND contrast = 'qT1'"
    ).row(0, named=True)  # fmt: skip
    assert row["maps"] == 13
    assert row["greatest_share_lost"] == pytest.approx(0.02)
    assert row["median_share_lost"] == pytest.approx(1e-4)
    assert row["greatest_share_unexplained"] == pytest.approx(0.004)


# ------------------------------------------------------------------------------------------------- run_query
def test_a_query_is_text_or_a_file(database: Path, tmp_path: Path) -> None:
    file = tmp_path / "q.sql"
    file.write_text("-- How many?\nSELECT count(*) AS n FROM scans;\n")
    for query in (file, str(file), "SELECT count(*) AS n FROM scans", "SELECT count(*) AS n FROM scans;"):
        assert run_query(database, query).to_dict(as_series=False) == {"n": [32]}
    assert "scans" in run_query(database, "SHOW TABLES")["name"].to_list()
    assert run_query(database, "DESCRIBE scans").height == len(TABLES["scans"].columns)
    assert run_query(database, "EXPLAIN SELECT 1").height == 1
    assert run_query(database, "SELECT scan FROM scans WHERE false").schema == {"scan": pl.String}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT colour FROM scans", ["query", "colour"]),
        ("SELECT * FROM scanss", ["scanss", "Did you mean"]),
        ("SELEC 1", ["query", "syntax error"]),
        ("", ["one statement", "0"]),
        ("SELECT 1; SELECT 2", ["one statement", "2"]),
        ("DROP TABLE scans", ["DROP", "only SELECT"]),
        ("COPY (SELECT 1) TO 'there.csv'", ["COPY", "only SELECT"]),
        ("SELECT age::DATE FROM scans", ["query"]),
        ("nowhere/q.sql", ["nowhere/q.sql", "No such file"]),
    ],
)
def test_mistakes_are_explained_in_one_line(database: Path, query: str, words: list[str]) -> None:
    with pytest.raises(QueryError) as caught:
        run_query(database, query)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_without_a_database_the_command_that_makes_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"no results at .* yet; `relevance-assets demo`"):
        run_query(tmp_path / "results.duckdb", "SELECT 1")
    assert list(tmp_path.iterdir()) == []


HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


def test_a_database_held_for_writing_is_explained(database: Path, tmp_path: Path) -> None:
    copy = shutil.copy(database, tmp_path / "results.duckdb")
    command = [sys.executable, "-c", HOLD, str(copy)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(QueryError, match="open for writing in another program") as caught:
            run_query(Path(copy), "SELECT 1")
        holder.kill()
    assert "\n" not in str(caught.value)
    assert run_query(Path(copy), "SELECT 1 AS one").item() == 1


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.duckdb"
    file.write_text("not a database " * 1000)
    with pytest.raises(QueryError, match=r"results\.duckdb: .*not a valid DuckDB"):
        run_query(file, "SELECT 1")


def test_best_rules(database: Path) -> None:
    columns = ("gamma", "epsilon", "measure", "test", "chance", "ceiling", "slices", "published_cell")
    (row,) = of(answer(database, "best_rules"), "tumour", *columns)
    assert row == (-20, 0, "iou at 0.95", 0.3, 0.02, 0.5, 1, None)  # the role `published` has no row here


def test_rules_against_other_methods(database: Path) -> None:
    found = of(answer(database, "rules_against_other_methods"), "tumour", "map", "value", "difference")
    assert found == [("grad_cam", 0.3, None)]


def test_rules_by_class(database: Path) -> None:
    """The class is the tumour's, whichever class is explained: a meningioma that is called a glioma stays one."""
    columns = ("explained", "map", "class", "network_is_right", "slices", "value")
    assert of(answer(database, "rules_by_class"), "tumour", *columns) == [
        (explained, name, *rest)
        for explained in ("predicted", "true")
        for rest in (("glioma", True, 1, 0.3), ("meningioma", False, 1, 0.1))
        for name in ("gamma -20, epsilon 0", "grad_cam")
    ]
