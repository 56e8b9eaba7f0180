"""A finished subject table is read whole, or refused in one line that says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from relevance_assets.cohort.subjects import ALSO, SUBJECTS, SubjectTableError, read_subject_table

DATA = Path(__file__).parents[3] / "shared" / "data" / "ms-deepbrain-tables" / "subjects.csv"
OWN = ",".join(SUBJECTS)
THEIRS = ",".join(ALSO.values())
PERSON = "101,44.0,0,MS,1000,50,18,10,5,3"


def written(folder: Path, *lines: str, ends: str = "\n", coded: str = "utf-8") -> Path:
    path = folder / "subjects.csv"
    path.write_bytes(ends.join(lines).encode(coded))
    return path


@pytest.mark.parametrize("header", [OWN, THEIRS])
@pytest.mark.parametrize(("ends", "coded"), [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_both_sets_of_names_and_what_spreadsheets_write(tmp_path: Path, header: str, ends: str, coded: str) -> None:
    other = "sub-A2,,male,,900,40.5,0,0,0,0"
    frame = read_subject_table(written(tmp_path, header, PERSON, "", other, "", ends=ends, coded=coded))
    assert frame.columns == list(SUBJECTS)
    assert frame.rows() == [
        ("sub-101", 44.0, "F", "MS", 1000.0, 50.0, 18.0, 10.0, 5.0, 3.0),
        ("sub-A2", None, "M", None, 900.0, 40.5, 0.0, 0.0, 0.0, 0.0),
    ]


def test_columns_in_any_order_and_further_ones(tmp_path: Path) -> None:
    names = ["note", *reversed(SUBJECTS)]
    cells = ["x, y", *reversed(PERSON.split(","))]
    path = written(tmp_path, ",".join(names), ",".join(f'"{cell}"' for cell in cells))
    assert read_subject_table(path)["participant_id"].to_list() == ["sub-101"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "lists nobody"),
        ([PERSON, PERSON], "sub-101 is listed more than once"),
        ([PERSON.replace("101,", "sub-101,"), PERSON], "sub-101 is listed more than once"),
        (["../x,44,0,MS,1000,50,18,10,5,3"], "line 2: participant_id '../x' is not letters and digits"),
        ([PERSON, "102,44,2,MS,1000,50,18,10,5,3"], "line 3: sex '2' is none of"),
        (['102,"44,5",0,MS,1000,50,18,10,5,3'], "line 2: age is '44,5', not a number of 0 or more; write a point"),
        (["102,44,0,MS,,50,18,10,5,3"], "intracranial is '', not a number"),
        (["102,44,0,MS,1000,-1,18,10,5,3"], "ventricle is '-1', not a number of 0 or more"),
        (["102,44,0,MS,inf,50,18,10,5,3"], "intracranial is 'inf'"),
        (["102,44,0,MS,1000,50,18,10,5,9"], "the three zones sum to 24, lesion is 18"),
        (["102,44,0,MS,1,0.05,0.3,0,0.1,0"], "the three zones sum to 0.1, lesion is 0.3"),
        (["102,44,0,MS,0,0,0,0,0,0"], "ventricle is 0, intracranial only 0"),
        (["102,44,0,MS,10,5,1000,1000,0,0"], "lesion is 1000, intracranial only 10"),
        (["102,900,0,MS,1000,50,18,10,5,3"], "age is 900 years"),
        (["102,44,0,MS,1000,50,18,10,5"], "line 2 has 9 cells, the header 10"),
        (["?,44,0,MS,1000,50,18,10,5,3"] * 5, "and 3 more"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: list[str], said: str) -> None:
    path = written(tmp_path, OWN, *rows)
    with pytest.raises(SubjectTableError) as caught:
        read_subject_table(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (OWN.replace("lesion,", ""), "no column lesion (TotalWMHArea)"),
        (OWN + ",PatientAge", "more than one column age (PatientAge)"),
        ("", "no column participant_id"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(SubjectTableError) as caught:
        read_subject_table(written(tmp_path, header, PERSON))
    assert said in str(caught.value)


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(f"{OWN}\n101,44,0,\xe9".encode("latin-1"))
    with pytest.raises(SubjectTableError, match="no such file; import the table again"):
        read_subject_table(tmp_path / "absent.csv")
    for name in ("latin.csv", "."):
        with pytest.raises(SubjectTableError, match="cannot be read"):
            read_subject_table(tmp_path / name)


@pytest.mark.skipif(not DATA.exists(), reason="real data are not here")
def test_the_published_table(tmp_path: Path) -> None:
    frame = read_subject_table(DATA)
    assert frame.height == 1380
    assert frame["age"].null_count() == 9
    assert dict(frame.group_by("group").len().iter_rows()) == {"HC": 999, "MS": 381}
    assert dict(frame.filter(group="MS").group_by("sex").len().iter_rows()) == {"F": 273, "M": 108}
