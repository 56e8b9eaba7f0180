"""Who takes part and with which values; what is wrong is told per dataset or per scan."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from relevance_assets.cohort.bids import DatasetError, ScanFiles, index_scans
from relevance_assets.cohort.participants import cohort_table, column_values, read_participants
from relevance_assets.home import split_scan
from relevance_assets.study import Study

Put = Callable[..., Path]
Make = Callable[..., Study]


def tsv(*rows: Sequence[object]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def files(*names: str) -> dict[str, ScanFiles]:
    return {name: ScanFiles(name, *split_scan(name)) for name in names}


def by_scan(frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["scan"]: row for row in frame.iter_rows(named=True)}


def test_values_types_and_other_columns(bids: Path, put: Put, make_study: Make) -> None:
    header = ("participant_id", "age", "sex", "group", "ms_type", "edss", "mmse", "site")
    put("participants.tsv", tsv(header, ("sub-A", 40.5, "F", "MS", "RRMS", 6, "n/a", "Basel")))
    row = by_scan(cohort_table(make_study(), files("sub-A"), read_participants(bids)))["sub-A"]
    assert (row["age"], row["sex"], row["group"], row["ms_type"], row["edss"]) == (40.5, "F", "MS", "RRMS", 6.0)
    assert json.loads(row["other"]) == {"mmse": None, "site": "Basel"}
    assert (row["target"], row["status"], row["reason"]) == (6.0, "ok", None)


def test_a_session_s_values_win(bids: Path, put: Put, make_study: Make) -> None:
    put("participants.tsv", tsv(("participant_id", "sex", "age", "edss"), ("sub-A", "F", 40, 2), ("sub-B", "M", 30, 3)))
    put(
        "sub-A/sub-A_sessions.tsv",
        tsv(
            ("session_id", "age", "edss", "dose"),
            ("ses-1", 40, 2, "low"),
            ("ses-2", 42, 6, "n/a"),
            ("ses-3", 43, "n/a", 1),
        ),
    )
    people = read_participants(bids)
    assert people[0].height == 5
    names = ("sub-A_ses-1", "sub-A_ses-2", "sub-A_ses-3", "sub-B_ses-1")
    rows = by_scan(cohort_table(make_study(), files(*names), people))
    assert [rows[name]["age"] for name in names] == [40, 42, 43, 30]
    assert [rows[name]["target"] for name in names] == [2, 6, None, 3]
    assert rows["sub-A_ses-2"]["sex"] == "F"
    assert rows["sub-A_ses-3"]["reason"] == "sub-A_ses-3: edss (target) is n/a"  # not the value of another time
    assert json.loads(rows["sub-A_ses-1"]["other"]) == {"dose": "low"}


def test_a_column_that_only_sessions_have(bids: Path, put: Put, make_study: Make) -> None:
    put("participants.tsv", tsv(("participant_id", "sex"), ("sub-A", "F")))
    put("sub-A/sub-A_sessions.tsv", tsv(("session_id", "edss"), ("ses-1", 5)))
    row = by_scan(cohort_table(make_study(), files("sub-A_ses-1"), read_participants(bids)))["sub-A_ses-1"]
    assert (row["edss"], row["status"], row["other"]) == (5.0, "ok", "{}")


def test_a_session_without_row(bids: Path, put: Put, make_study: Make) -> None:
    put("participants.tsv", tsv(("participant_id", "edss"), ("sub-A", 2)))
    put("sub-A/sub-A_sessions.tsv", tsv(("session_id", "edss"), ("ses-1", 5)))
    rows = by_scan(cohort_table(make_study(), files("sub-A_ses-1", "sub-A_ses-2"), read_participants(bids)))
    assert rows["sub-A_ses-1"]["status"] == "ok"
    assert rows["sub-A_ses-2"]["status"] == "failed"
    assert "sub-A_sessions.tsv has no row for ses-2" in rows["sub-A_ses-2"]["reason"]


def test_one_bad_person_leaves_the_others(bids: Path, put: Put, make_study: Make) -> None:
    rows = [
        ("sub-A", 1),
        ("sub-B", 2),
        ("sub-B", 3),
        ("sub-D", "n/a"),
        ("sub-E", "six"),
        ("sub-F", "NaN"),
        ("sub-G", 4),
    ]
    put("participants.tsv", tsv(("participant_id", "edss"), *rows))
    scans = files("sub-A", "sub-B", "sub-C", "sub-D", "sub-E", "sub-F", "sub-G")
    scans["sub-G"].problems.append("sub-G: contrast T1w (T1w) is missing; there are: FLAIR")
    found = by_scan(cohort_table(make_study(), scans, read_participants(bids)))
    assert [name for name, row in found.items() if row["status"] == "ok"] == ["sub-A"]
    assert "sub-B is listed 2 times in participants.tsv" in found["sub-B"]["reason"]
    assert "sub-C has images but no row in participants.tsv" in found["sub-C"]["reason"]
    assert found["sub-D"]["reason"] == "sub-D: edss (target) is n/a"
    assert "edss is 'six', not a number" in found["sub-E"]["reason"]
    assert "edss is 'NaN', not a number" in found["sub-F"]["reason"]
    assert "T1w (T1w) is missing" in found["sub-G"]["reason"]
    assert not any("\n" in (row["reason"] or "") for row in found.values())


def test_age_is_checked_though_no_one_asks_for_it(bids: Path, put: Put, make_study: Make) -> None:
    put("participants.tsv", tsv(("participant_id", "edss", "age"), ("sub-A", 1, "89+"), ("sub-B", 1, "n/a")))
    found = by_scan(cohort_table(make_study(), files("sub-A", "sub-B"), read_participants(bids)))
    assert found["sub-A"]["reason"] == "sub-A: age is '89+', not a number"
    assert found["sub-B"]["status"] == "ok"


def test_a_covariate_is_needed(bids: Path, put: Put, make_study: Make) -> None:
    put("participants.tsv", tsv(("participant_id", "edss", "age"), ("sub-A", 1, "n/a")))
    study = make_study(covariates=[{"column": "age", "divide_by": 100}])
    found = by_scan(cohort_table(study, files("sub-A"), read_participants(bids)))
    assert found["sub-A"]["reason"] == "sub-A: age (covariate) is n/a"


def test_include_chooses_by_text_and_by_number(bids: Path, put: Put, make_study: Make) -> None:
    rows = [("sub-A", 1, "MS", "0.0"), ("sub-B", 1, "HC", "0"), ("sub-C", "n/a", "MS", 0.5), ("sub-D", 1, "MS", "n/a")]
    put("participants.tsv", tsv(("participant_id", "edss", "group", "cdr"), *rows))
    study = make_study(include={"group": ["MS"], "cdr": [0]})
    found = by_scan(cohort_table(study, files("sub-A", "sub-B", "sub-C", "sub-D"), read_participants(bids)))
    assert [row["status"] for row in found.values()] == ["ok", "excluded", "excluded", "excluded"]
    assert [row["reason"] for row in found.values()] == [
        None,
        "group is HC; the study takes MS",
        "cdr is 0.5; the study takes 0",
        "cdr is n/a; the study takes 0",
    ]


@pytest.mark.parametrize(
    ("cohort", "said"),
    [
        ({"target": {"column": "EDSS", "kind": "regression"}}, r"'EDSS'.*target.*columns: participant_id, age, edss"),
        ({"covariates": [{"column": "bmi"}]}, r"'bmi'.*covariates.*columns: participant_id, age, edss"),
        ({"include": {"site": ["Basel"]}}, r"'site'.*include.*columns: participant_id, age, edss"),
    ],
)
def test_a_missing_column_is_named_with_those_that_exist(
    bids: Path, put: Put, make_study: Make, cohort: dict, said: str
) -> None:
    put("participants.tsv", tsv(("participant_id", "age", "edss"), ("sub-A", 30, 1)))
    with pytest.raises(DatasetError, match=said):
        cohort_table(make_study(**cohort), files("sub-A"), read_participants(bids))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column participant_id; columns: none"),
        ("subject\tage\nsub-A\t3\n", "no column participant_id; columns: subject, age"),
        ("participant_id\tage\n", "lists no participant"),
        ("participant_id\tage\nsub-A\n", "line 2 has 1 cells, the header 2"),
        ("participant_id\tage\tage\nsub-A\t1\t2\n", "occurs twice"),
        ("participant_id\tage\nn/a\t1\n", "line 2 has no participant_id"),
        ("participant_id\tsession_id\nsub-A\tses-1\n", "one row per person"),
        ("participant_id\tage\nA\t3\n", "must be sub-<label>"),
    ],
)
def test_a_malformed_table(bids: Path, put: Put, text: str, said: str) -> None:
    put("participants.tsv", text)
    with pytest.raises(DatasetError, match=said):
        read_participants(bids)


def test_a_malformed_row_fails_its_person_only(bids: Path, put: Put, make_study: Make) -> None:
    rows = [
        "participant_id\tedss\t",
        "sub-A\t1\t",
        "sub-B",
        "n/a\t2",
        'sub-C\t"3"',
        "../../x\t4",
        "sub-D\t1\t2\t3",
        "E\t1",
    ]
    put("participants.tsv", "\n".join(rows))
    found = by_scan(cohort_table(make_study(), files("sub-A", "sub-B", "sub-C", "sub-D"), read_participants(bids)))
    assert {name for name, row in found.items() if row["status"] == "ok"} == {"sub-A", "sub-C"}
    assert "line 3 has 1 cells, the header 2" in found["sub-B"]["reason"]
    assert "line 4 has no participant_id" in found["participants.tsv/line 4"]["reason"]
    assert "line 7 has 4 cells" in found["sub-D"]["reason"]
    assert "not sub-<label>" in found["../../x"]["reason"]
    assert "not sub-<label>" in found["E/"]["reason"]


def test_people_without_images_are_told_or_excluded(bids: Path, put: Put, make_study: Make) -> None:
    put(
        "participants.tsv",
        tsv(("participant_id", "edss", "group"), ("sub-A", 1, "MS"), ("sub-B", 2, "MS"), ("sub-C", 2, "HC")),
    )
    study = make_study(include={"group": ["MS"]})
    found = by_scan(cohort_table(study, files("sub-A"), read_participants(bids)))
    assert [(row["scan"], row["status"]) for row in found.values()] == [
        ("sub-A", "ok"),
        ("sub-B/", "failed"),
        ("sub-C/", "excluded"),
    ]
    assert found["sub-B/"]["reason"].startswith("sub-B is in participants.tsv and has no image")


def test_numbers_as_tables_have_them(bids: Path, put: Put, make_study: Make) -> None:
    put("participants.tsv", tsv(("participant_id", "edss"), ("sub-A", "1,5"), ("sub-B", "1_0"), ("sub-C", "1e0")))
    found = by_scan(cohort_table(make_study(), files("sub-A", "sub-B", "sub-C"), read_participants(bids)))
    assert found["sub-A"]["reason"] == "sub-A: edss is '1,5', not a number; write a point, not a comma"
    assert found["sub-B"]["reason"] == "sub-B: edss is '1_0', not a number"
    assert found["sub-C"]["edss"] == 1


def test_no_table(bids: Path) -> None:
    with pytest.raises(DatasetError, match=r"participants\.tsv: no such file"):
        read_participants(bids)


def test_byte_order_mark_line_ends_and_blank_lines(bids: Path) -> None:
    (bids / "participants.tsv").write_bytes("\ufeffparticipant_id\tage\r\nsub-A\tÄ\u2028\r\n\r\n".encode())
    frame, problems = read_participants(bids)
    assert frame.rows() == [("sub-A", None, "Ä")]
    assert problems == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("session\tedss\nses-1\t1\n", "no column session_id"),
        ("session_id\tedss\nses-1\t1\nses-1\t2\n", "ses-1 is listed more than once"),
    ],
)
def test_a_malformed_session_table_fails_its_person_only(
    bids: Path, put: Put, make_study: Make, text: str, said: str
) -> None:
    put("participants.tsv", tsv(("participant_id", "edss"), ("sub-A", 1), ("sub-B", 1)))
    put("sub-A/sub-A_sessions.tsv", text)
    found = by_scan(cohort_table(make_study(), files("sub-A_ses-1", "sub-B"), read_participants(bids)))
    assert said in found["sub-A_ses-1"]["reason"]
    assert found["sub-B"]["status"] == "ok"


def test_numbers_of_any_column(bids: Path, put: Put, make_study: Make) -> None:
    put("participants.tsv", tsv(("participant_id", "edss", "bmi"), ("sub-A", 1, 20.5), ("sub-B", 2, "n/a")))
    frame = cohort_table(make_study(), files("sub-A", "sub-B"), read_participants(bids))
    assert column_values(frame, "bmi").to_list() == [20.5, None]
    assert column_values(frame, "edss").to_list() == [1, 2]
    with pytest.raises(ValueError, match="no column 'height'; further columns: bmi"):
        column_values(frame, "height")


def test_a_real_cohort(data: Path, make_study: Make) -> None:
    study = make_study(target={"column": "age", "kind": "regression"}, include={"cdr": [0]})
    root = data / "oasis1"
    frame = cohort_table(study, index_scans(root, study.contrasts), read_participants(root))
    assert dict(frame.group_by("status").len().iter_rows()) == {"ok": 120, "excluded": 30}
    assert frame["target"].min() == 18
    assert column_values(frame, "mmse").null_count() > 0
