"""What the command line prints of results: the ranking of scenarios, tables in narrow windows."""

from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from relevance_assets.configuration import load_studies
from relevance_assets.home import Home
from relevance_assets.report.tables import table
from relevance_assets.report.terminal import study_summary
from relevance_assets.tables.store import Store

SCENARIOS = [("lrp", "combined", 3), ("lrp", "individual", 1), ("saliency", "individual", 9)]
MATCHED = {("lrp", "combined"): 0.6, ("lrp", "individual"): 0.65, ("saliency", "individual"): 0.55}
OWN = {("lrp", "combined"): 0.61, ("lrp", "individual"): 0.4, ("saliency", "individual"): 0.75}


def write(store: Store) -> None:
    rows = [
        {"method": method, "map": use, "number": number, "start": "output", "rules": "x", "passes": 1.5}
        for method, use, number in SCENARIOS
    ]
    together = pl.DataFrame(rows).with_columns(passes_together=pl.lit(4.25), product=pl.lit(None, pl.String))
    store.write("scenarios", "disability", "all", together)
    areas = []

    def add(method: str, use: str, control: str, against: str, value: float) -> None:
        row = {"method": method, "map": use, "control": control, "against": against, "value": value, "n": 12}
        areas.append(row | {"ci_low": value - 0.1, "ci_high": value + 0.1, "p": None, "resamples": 100})

    for key, value in MATCHED.items():
        add(*key, "matched", "nothing", value)
        add(*key, "own", "nothing", OWN[key])
        if key != ("lrp", "combined"):
            add("lrp", "combined", "matched", " ".join(key), MATCHED["lrp", "combined"] - value)
            add("lrp", "combined", "own", " ".join(key), OWN["lrp", "combined"] - OWN[key])
    add("planted", "combined", "planted", "nothing", 0.31)
    schema = {"p": pl.Float64, "n": pl.Int64, "resamples": pl.Int64}
    store.write("inversion_areas", "disability", "all", pl.DataFrame(areas, schema_overrides=schema))


def test_scenarios_are_ranked_by_equal_areas_beside_the_paired_difference(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert "disability" in load_studies(home)
    write(Store(home.tables))
    console = Console(width=160, color_system=None)
    with console.capture() as said:
        for part in study_summary(home, "disability"):
            console.print(part)
    lines = said.get().splitlines()
    start = next(number for number, line in enumerate(lines) if "best first" in line)
    assert "planted region 0.310" in lines[start]
    rows = [" ".join(line.split()) for line in lines[start + 2 : start + 5]]
    # number, method, maps, AUC and interval, better by and interval, own masks, of the planted size, cost
    assert rows == [
        "9 saliency individual 0.550 0.45 … 0.65 0.050 -0.05 … 0.15 0.750 – 1.500",
        "3 lrp combined 0.600 0.50 … 0.70 – – 0.610 – 1.500",
        "1 lrp individual 0.650 0.55 … 0.75 -0.050 -0.15 … 0.05 0.400 – 1.500",
    ]
    assert "all together: 4.250 forward + backward passes" in said.get()


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [(60, ["name", "value", "spread", "cost"], []), (30, ["name", "value", "spread"], ["cost"]),
     (24, ["name", "value"], ["spread", "cost"]), (14, ["name", "value"], ["spread", "cost"])],
)  # fmt: skip
def test_a_narrow_window_does_without_columns_and_never_folds_numbers(
    width: int, shown: list[str], left_out: list[str]
) -> None:
    console = Console(width=width, color_system=None)
    with console.capture() as said:
        console.print(
            table("", ["name", "value", "spread", "cost"], [["a method", 0.25, "0.10 … 0.40", 3]], 1, optional=(3, 2))
        )
    lines = said.get().splitlines()
    assert lines[0].split() == shown
    assert "0.250" in said.get()
    assert ("0.10 … 0.40" in said.get()) == ("spread" in shown)
    notice = " ".join(said.get().split()).partition("not shown in so narrow a window: ")[2]
    assert notice == ", ".join(left_out)
