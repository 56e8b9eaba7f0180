"""The queries on lesions and groups answer on rows made for them."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from relevance_assets.cohort.subjects import PARTS
from relevance_assets.statistics.lesion_profile import with_ratios
from relevance_assets.statistics.lesion_statistics import lesion_statistics
from relevance_assets.tables.query import run_query
from relevance_assets.tables.schema import TABLES
from relevance_assets.tables.store import Store

QUERIES = Path(__file__).parents[2] / "sql" / "queries"
NAMES = (
    "scans",
    "lesions",
    "lesion_burden",
    "segmentations",
    "segmentation_scores",
    "group_comparisons",
    "regressions",
    "correlations",
    "published_comparison",
)
LESION_QUERIES = {
    "lesions_by_zone",
    "zone_rules_disagree",
    "lesion_burden_by_group",
    "groups_that_differ",
    "adjusted_effects",
    "correlations_of_groups",
    "refuted_numbers",
    "worst_segmentations",
}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "results.duckdb"
    with duckdb.connect(path) as connection:
        for table in NAMES:
            connection.register("empty", TABLES[table].empty().to_arrow())
            connection.execute(f"CREATE TABLE {table} AS SELECT * FROM empty")
            connection.unregister("empty")
    return path


def fill(database: Path, table: str, *rows: dict) -> None:
    with duckdb.connect(database) as connection:
        for row in rows:
            given = {"study": "s"} | row
            names = ", ".join(f'"{name}"' for name in given)
            marks = ", ".join("?" * len(given))
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(given.values()))


def answer(database: Path, name: str) -> pl.DataFrame:
    return run_query(database, QUERIES / f"{name}.sql")


@pytest.mark.parametrize("name", sorted(LESION_QUERIES))
def test_without_rows_there_is_no_answer_and_no_error(database: Path, name: str) -> None:
    assert answer(database, name).height == 0


def test_worst_segmentations(database: Path) -> None:
    for scan, dice, found, difference in (("a", 0.8, 900.0, -100.0), ("b", 0.1, 30.0, 10.0), ("c", None, 0.0, 0.0)):
        key = {"scan": scan, "class": "wmh", "fold": "1"}
        fill(database, "segmentations", key | {"volume_mm3": found})
        for metric, value in (("dice", dice), ("volume_difference_mm3", difference), ("lesion_f1", 0.5)):
            fill(database, "segmentation_scores", key | {"metric": metric, "value": value})
    found = answer(database, "worst_segmentations").select("scan", "dice", "true_mm3", "found_mm3", "lesion_f1").rows()
    assert found == [("b", 0.1, 20, 30, 0.5), ("a", 0.8, 1000, 900, 0.5)]


def test_lesions_by_zone(database: Path) -> None:
    for scan, zone, volume in (("a", "periventricular", 10.0), ("b", "periventricular", 30.0), ("a", None, 5.0)):
        common = {"scan": scan, "source": "manual", "rule": "lesion_3d", "zone": zone, "volume_mm3": volume}
        fill(database, "lesions", common | {"ventricle_edge_mm": volume / 10})
    found = answer(database, "lesions_by_zone").rows(named=True)
    assert [(row["zone"], row["lesions"], row["scans"]) for row in found] == [("periventricular", 2, 2), (None, 1, 1)]
    assert (found[0]["volume_median_mm3"], found[0]["volume_ml"]) == (20, 0.04)
    assert found[0]["ventricle_edge_median_mm"] == 2


def test_zone_rules_disagree(database: Path) -> None:
    for scan, rule, share in (("a", "published_2d", 0.5), ("a", "lesion_3d", 0.75), ("b", "lesion_3d", None)):
        for zone in ("periventricular", "all"):
            row = {"scan": scan, "source": "manual", "rule": rule, "zone": zone, "share": share}
            fill(database, "lesion_burden", row)
    (row,) = answer(database, "zone_rules_disagree").rows(named=True)
    assert (row["scan"], row["zone"], row["difference"]) == ("a", "periventricular", 0.25)
    assert (row["least_rule"], row["greatest_rule"]) == ("published_2d", "lesion_3d")


def test_lesion_burden_by_group(database: Path) -> None:
    for scan, group, volume, share in (("a", "MS", 3000.0, 0.5), ("b", "MS", 0.0, None), ("c", "HC", 0.0, None)):
        fill(database, "scans", {"scan": scan, "participant_id": f"sub-{scan}", "group": group})
        burden = {"scan": scan, "source": "manual", "rule": "lesion_3d", "zone": "juxtacortical", "share": share}
        fill(database, "lesion_burden", burden | {"volume_mm3": volume, "count": 0, "share_of_intracranial": 0.001})
    found = {row["group"]: row for row in answer(database, "lesion_burden_by_group").rows(named=True)}
    assert (found["MS"]["scans"], found["MS"]["scans_with_lesions"], found["MS"]["volume_mean_ml"]) == (2, 1, 1.5)
    assert (found["MS"]["share_mean_percent"], found["HC"]["share_mean_percent"]) == (50, None)
    assert found["HC"]["share_of_intracranial_mean_percent"] == pytest.approx(0.1)


def test_groups_that_differ(database: Path) -> None:
    row = {"variant": "all", "stratum": "all", "group_a": "HC", "group_b": "MS", "n_a": 999, "n_b": 381}
    for recipe, measure, test, p, corrected in (
        ("as_published", "ventricle_ratio", "mann_whitney", 0.006, None),
        ("sound", "ventricle_ratio", "welch_t", 0.38, 0.75),
        ("sound", "ventricle_ratio", "mann_whitney", 0.006, 0.02),
        ("sound", "lesion_ratio", "mann_whitney", 1e-70, 1e-69),
        ("sound", "age", "welch_t", None, None),
    ):
        made = {
            "analysis": recipe,
            "recipe": recipe,
            "measure": measure,
            "test": test,
            "p": p,
            "p_corrected": corrected,
        }
        fill(database, "group_comparisons", row | made)
    found = answer(database, "groups_that_differ").rows(named=True)
    assert [(r["measure"], r["test"], r["published_p"], r["turns"]) for r in found] == [
        ("lesion_ratio", "mann_whitney", None, None),
        ("ventricle_ratio", "mann_whitney", 0.006, False),
        ("ventricle_ratio", "welch_t", 0.006, True),
    ]


def test_adjusted_effects(database: Path) -> None:
    row = {"analysis": "adjusted_group", "variant": "all", "outcome": "lesion_ratio", "n": 1371, "p_corrected": None}
    for recipe, term, estimate, p in (
        ("sound", "group: MS", 8.7, 1e-80),
        ("sound", "sex: male", 1.1, 0.2),
        ("sound", "age", 1.0, 0.2),
        ("sound", "constant", 0.1, 0.2),
        ("as_published", "group: MS", 9.0, 0.2),
    ):
        fill(database, "regressions", row | {"recipe": recipe, "term": term, "estimate": estimate, "p": p})
    found = answer(database, "adjusted_effects").select("term", "estimate", "significant").rows()
    assert found == [("group: MS", 8.7, True), ("sex: male", 1.1, False)]


def test_correlations_of_groups(database: Path) -> None:
    row = {"statistic": "spearman", "analysis": "ranks", "recipe": "sound", "variant": "all", "y": "age"}
    for x, stratum, value, n in (
        ("lesion_ratio", "HC", -0.07, 991),
        ("lesion_ratio", "MS", 0.23, 380),
        ("ventricle_ratio", "HC", 0.25, 991),
        ("ventricle_ratio", "MS", 0.32, 380),
        ("age", "HC", 1.0, 991),
        ("age", "MS", 1.0, 380),
        ("sex", "HC", None, 991),
        ("sex", "MS", 0.2, 380),
    ):
        fill(database, "correlations", row | {"x": x, "stratum": stratum, "value": value, "n": n})
    found = answer(database, "correlations_of_groups").rows(named=True)
    assert [row["x"] for row in found] == ["lesion_ratio", "ventricle_ratio"]
    assert found[0]["difference"] == pytest.approx(0.3)
    z = (0.5 * math.log(1.23 / 0.77) - 0.5 * math.log(0.93 / 1.07)) / math.sqrt(1.06 / 377 + 1.06 / 988)
    assert found[0]["z"] == pytest.approx(z)


def test_refuted_numbers(database: Path) -> None:
    for verdict, published in (("exact", 1.0), ("contradicts itself", 2.0), ("not reproducible", 0.0)):
        row = {"measure": verdict, "published": published, "ours": 1.0, "verdict": verdict, "comparable": True}
        fill(database, "published_comparison", row)
        fill(database, "published_comparison", row | {"study": "of other people", "comparable": False})
    found = answer(database, "refuted_numbers").select("verdict", "ratio").rows()
    assert found == [("contradicts itself", 0.5), ("not reproducible", None)]


def test_filters_are_conditions_on_the_view(tmp_path: Path) -> None:
    """The view is what statistics were made of: every filter gives as many people as the row says."""
    random = np.random.default_rng(0)
    n = 240
    zones = random.poisson(3, (n, 3)) * (random.random((n, 1)) < 0.8)
    subjects = pl.DataFrame(
        {
            "participant_id": [f"sub-{row}" for row in range(n)],
            "age": [None if row % 40 == 0 else float(a) for row, a in enumerate(random.integers(17, 75, n))],
            "sex": ["FM"[row % 2] if row % 50 else None for row in range(n)],
            "group": ["MS" if row % 3 else "HC" for row in range(n)],
            "intracranial": random.normal(1000, 50, n),
            "ventricle": random.normal(40, 5, n),
            "lesion": zones.sum(axis=1).astype(float),
            **{name: zones[:, place].astype(float) for place, name in enumerate(PARTS[3:])},
            "unit": ["mm³"] * n,
        }
    )
    store = Store(tmp_path / "tables")
    store.write("subjects", "s", "all", subjects.with_columns(scan=pl.lit(None, pl.String)))
    view = (QUERIES.parent / "views" / "subject_measures.sql").read_text()
    with duckdb.connect() as connection:
        connection.register("subjects", store.read("subjects").to_arrow())
        connection.execute(f"CREATE VIEW subject_measures AS {view}")
        sex = pl.col("sex").replace_strict({"F": 0.0, "M": 1.0}, default=None, return_dtype=pl.Float64)
        sizes = (pl.col(part).alias(f"{part}_area") for part in PARTS)
        profile = with_ratios(subjects.select("participant_id", "age", sex, "group", *sizes))
        same = pl.DataFrame(connection.execute("SELECT * FROM subject_measures").to_arrow_table()).select(
            profile.columns
        )
        assert_frame_equal(same, profile, check_dtypes=False, check_exact=True, check_row_order=False)
        for table, frame in lesion_statistics(profile, resamples=100).items():
            rows = frame.filter(pl.col("variant") == "all") if "variant" in frame.columns else frame.head(0)
            for row in rows.unique("filter").iter_rows(named=True):
                people = row["n"] if row.get("n") is not None else row["n_a"] + row["n_b"]
                found = connection.execute(f"SELECT count(*) FROM subject_measures WHERE {row['filter'] or 'true'}")
                assert found.fetchone() == (people,), (table, row)
