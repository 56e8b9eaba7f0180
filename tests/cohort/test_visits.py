"""A person's first scan: by age, else by the session's name as people read it."""

from __future__ import annotations

import polars as pl
import pytest

from relevance_assets.cohort.visits import first_scans

Visit = tuple[str, float | None, float | None]  # session, age, EDSS


def visits(**people: list[Visit]) -> pl.DataFrame:
    rows = [
        (f"{person}_{session}" if session else person, person, session or None, age, edss)
        for person, scans in people.items()
        for session, age, edss in scans
    ]
    schema = {"scan": pl.String, "participant_id": pl.String, "session": pl.String}
    return pl.DataFrame(rows, schema=schema | {"age": pl.Float64, "edss": pl.Float64}, orient="row").sort("scan")


@pytest.mark.parametrize(
    ("scans", "first"),
    [
        pytest.param([("M12", 41.0, 2.0), ("M6", 40.5, 2.0)], "M6", id="the younger"),
        pytest.param([("A", 41.0, 2.0), ("B", 40.0, 2.0)], "B", id="age says more than the name"),
        pytest.param([("M12", 40.0, 2.0), ("M6", 40.0, 2.0)], "M6", id="equal ages: numbers are numbers"),
        pytest.param([("2", None, 2.0), ("10", None, 2.0)], "2", id="no ages"),
        pytest.param([("2", None, 2.0), ("10", 40.0, 2.0)], "2", id="one age lacks: it could be the least"),
        pytest.param([("M12", 41.0, 2.0), ("M6", 40.5, None)], "M12", id="no outcome: not counted"),
        pytest.param([("M0", None, None), ("M6", 41.0, 2.0), ("a", 40.0, 2.0)], "a", id="nor is its missing age"),
        pytest.param([("01", None, 2.0), ("1", None, 2.0)], "01", id="the same number: by name"),
        pytest.param([("1a", None, 2.0), ("M1", None, 2.0), ("1", None, 2.0)], "1", id="numbers and letters mixed"),
    ],
)
def test_first_scan(scans: list[Visit], first: str) -> None:
    assert first_scans(visits(p=scans), "edss")["session"].to_list() == [first]
    assert first_scans(visits(p=scans[::-1]).reverse(), "edss")["session"].to_list() == [first]


def test_one_row_per_person_in_the_order_given() -> None:
    frame = visits(
        p=[("M12", 41.0, 2.0), ("M6", 40.5, 2.0)], q=[("", None, 3.0)], r=[("1", 50.0, None), ("2", 51.0, None)]
    )
    frame = frame.with_columns(anything=pl.col("scan")).reverse()
    assert first_scans(frame, "edss")["anything"].to_list() == ["q", "p_M6"], "nothing is known of r"
    assert first_scans(frame.clear(), "edss").is_empty()
    assert first_scans(frame, "edss").columns == frame.columns
