"""What the command line prints of results: the ranking of scenarios."""

from pathlib import Path

import polars as pl
from rich.console import Console

from relevance_assets.configuration import load_studies
from relevance_assets.home import Home
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
