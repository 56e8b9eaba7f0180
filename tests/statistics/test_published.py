"""Published numbers beside ours: the list against the paper's tables, the verdicts, what is refused."""

import numpy as np
import polars as pl
import pytest

from relevance_assets.statistics.published import compare, published_numbers
from relevance_assets.tables.schema import TABLES

# Tables II to IV of arXiv:2308.07611, typed row by row
TABLE_II = """
0.864 0.809 0.839 0.718
0.885 0.854 0.844 0.889
0.188 0.309 0.503
0.164 0.369 0.467
"""
TABLE_III = """
-0.362 0.429
-0.371 0.440
-0.366 0.431
-0.269 0.337
-0.281 0.348
-0.277 0.345
"""
TABLE_IV = """
-0.362 0.429 0.298
0.001 0.0001 0.01
"""


def entry(**changes: object) -> dict:
    where = {"set": "test", "metric": "auc"}
    ours = {"table": "scores", "where": where, "column": "value"}
    given = {"study": "s", "measure": "AUC", "published": 0.885, "decimals": 3, "source": "Table II", "ours": ours}
    return given | changes


def scores(*values: float | None) -> pl.DataFrame:
    rows = [{"set": "test", "metric": "auc", "value": value, "n": 41} for value in values]
    other = [{"set": "train", "metric": "auc", "value": 1.0, "n": 99}]
    return pl.DataFrame(other + rows, schema_overrides={"value": pl.Float64})


def only(published: dict, frame: pl.DataFrame, note: str = "") -> dict:
    (row,) = compare([published], {"scores": frame}.__getitem__, True, note).rows(named=True)
    return row


@pytest.mark.parametrize(("source", "text"), [("Table II", TABLE_II), ("Table III", TABLE_III), ("Table IV", TABLE_IV)])
def test_the_list_has_every_number_of_the_paper(source: str, text: str) -> None:
    listed = [number["published"] for number in published_numbers("disability") if number["source"] == source]
    assert sorted(listed) == sorted(float(word) for word in text.split())


def test_a_few_numbers_are_where_the_paper_has_them() -> None:
    by_name = {number["measure"]: number for number in published_numbers("disability")}
    assert len(by_name) == 32
    assert by_name["sensitivity (test set)"]["published"] == 0.889
    assert by_name["attention weight of NDI (cross-validation)"]["published"] == 0.309
    row = by_name["rho of NDI with EDSS (scenario 4, top 50 %)"]
    assert row["published"] == 0.345
    assert row["ours"]["where"]["analysis"] == "lrp_attention_all, all scans"
    assert row["ours"]["where"]["stratum"] == "combined top 50 %"
    assert by_name["permutation p of MWF with EDSS (scenario 3, top 40 %)"]["ours"]["column"] == "p_permutation"


def test_addresses_are_whole_keys_of_our_tables_and_each_has_its_own() -> None:
    seen = set()
    for number in published_numbers("disability"):
        ours = number["ours"]
        if ours["table"] in TABLES:
            assert set(ours["where"]) | {"study"} == set(TABLES[ours["table"]].key), number["measure"]
            assert ours["column"] in TABLES[ours["table"]].schema
        else:
            assert (ours["table"], set(ours["where"])) == ("attention_summary", {"set", "fold", "contrast"})
        if not number.get("contradicts"):
            seen.add((ours["table"], ours["column"], *ours["where"].values()))
    assert len(seen) == 32 - 4


def test_tables_iii_and_iv_contradict_each_other_in_two_values_each() -> None:
    numbers = [number for number in published_numbers("disability") if number.get("contradicts")]
    assert {number["source"] for number in numbers} == {"Table III", "Table IV"}
    assert sorted(number["published"] for number in numbers) == [-0.371, -0.362, 0.429, 0.44]
    frame = compare(numbers, lambda _: pl.DataFrame(), False)
    assert set(frame["verdict"]) == {"contradicts itself"}
    assert all("contradicted by Table" in note for note in frame["note"])


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (255 / 288, "rounds to"),
        (0.8845, "rounds to"),
        (0.8855, "rounds to"),
        (0.88449, "differs"),
        (0.88551, "differs"),
        (-0.885, "differs"),
        (None, "not measured"),
        (np.nan, "not measured"),
    ],
)
def test_verdict(ours: float | None, verdict: str) -> None:
    row = only(entry(), scores(ours))
    assert row["verdict"] == verdict
    assert row["ours"] == (None if verdict == "not measured" else ours)


def test_decimals_say_how_closely_a_number_is_published() -> None:
    assert only(entry(published=0.44, decimals=2), scores(0.4351))["verdict"] == "rounds to"
    assert only(entry(published=0.44, decimals=3), scores(0.4351))["verdict"] == "differs"


def test_a_row_has_both_n_the_units_and_all_notes() -> None:
    row = only(entry(n=40, note="mean"), scores(0.9), note="synthetic cohort")
    assert row == {
        "study": "s",
        "measure": "AUC",
        "published": 0.885,
        "ours": 0.9,
        "unit": "1",
        "n": 41,
        "n_published": 40,
        "verdict": "differs",
        "comparable": True,
        "note": "Table II; mean; synthetic cohort",
    }
    contradicted = only(entry(contradicts="Table V", unit="mm"), scores(0.885))
    assert (contradicted["verdict"], contradicted["unit"], contradicted["ours"]) == ("contradicts itself", "mm", 0.885)
    assert contradicted["note"] == "Table II; contradicted by Table V"


def test_what_is_not_there_is_not_measured() -> None:
    for frame in (pl.DataFrame(), scores(), scores(0.9).clear()):
        row = only(entry(), frame)
        assert (row["ours"], row["n"], row["verdict"]) == (None, None, "not measured")
    assert compare([], lambda _: pl.DataFrame(), True).height == 0
    assert published_numbers("no such study") == ()


def test_the_whole_list_against_tables_that_are_empty() -> None:
    frame = compare(
        published_numbers("disability"), lambda name: TABLES[name].empty() if name in TABLES else pl.DataFrame(), False
    )
    assert frame.height == 32
    assert frame["measure"].n_unique() == 32
    assert frame["verdict"].value_counts().sort("verdict").rows() == [("contradicts itself", 4), ("not measured", 28)]


def test_several_rows_and_unknown_columns_are_errors() -> None:
    with pytest.raises(ValueError, match="2 rows of scores are 'AUC'"):
        only(entry(), scores(0.8, 0.9))
    with pytest.raises(ValueError, match=r"scores\.metric"):
        only(entry(), scores(0.8).drop("metric"))


def test_a_list_with_a_slip_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relevance_assets.statistics.published._LISTS", tmp_path)
    good = "{measure: a, published: 1, decimals: 1, source: b, ours: {table: t, where: {}, column: value}}"
    (tmp_path / "s.yaml").write_text(f"numbers: [{good}]")
    assert published_numbers("s")[0]["study"] == "s"
    (tmp_path / "s.yaml").write_text(f"numbers: [{good}, {good}]")
    with pytest.raises(ValueError, match="'a' is there twice"):
        published_numbers("s")
    (tmp_path / "s.yaml").write_text(f"numbers: [{good.replace('decimals', 'digits')}]")
    with pytest.raises(ValueError, match=r"number 1 lacks or does not know \['decimals', 'digits'\]"):
        published_numbers("s")
    (tmp_path / "s.yaml").write_text(f"numbers: [{good.replace('where: {}', 'were: {}')}]")
    with pytest.raises(ValueError, match="a part of ours"):
        published_numbers("s")
