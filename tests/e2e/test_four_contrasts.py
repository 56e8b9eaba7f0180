"""A fourth contrast for study `disability`, as a new user gets it: by settings, without a line of code."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import polars as pl
import pytest
from small_study import ROOT, SMALL, run

from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.synthetic import synthesise
from relevance_assets.configuration import load_studies, read_settings, remember
from relevance_assets.home import Home
from relevance_assets.imaging.template import template

pytestmark = pytest.mark.slow

FOURTH = {"name": "FLAIR", "suffix": "FLAIR", "scale": {"rule": "percentile"}}
FOUR = ["qT1", "MWF", "NDI", "FLAIR"]
# Half of the small study's scans, a smaller network, and only the evidence that is looked at here.
FEWER = {key: value for key, value in SMALL.items() if not key.startswith(("sanity.", "heat_map."))} | {
    "split.folds": 2,
    "model.options.blocks": [1, 1],
    "training.epochs": 1,
    "masks.negative": False,
    "methods": {
        "lrp_attention": SMALL["methods"]["lrp_attention"] | {"template": True},  # by the planted warp
        "saliency_output": SMALL["methods"]["saliency_output"],
    },
    "sanity": None,
    "heat_map": None,
    "statistics.adjust_for": ["age"],
}
INDIVIDUAL = (pl.col("map") == "individual") & (pl.col("control") == "own")


def test_a_fourth_contrast_takes_part_in_everything(tmp_path: Path) -> None:
    synthesise(tmp_path / "bids", scans=16, voxel_size_mm=9.0, seed=3)
    home = Home(tmp_path / "home")
    remember(home, "disability", FEWER)
    study = read_settings(ROOT / "dagster_project" / "defs" / "disability" / "defs.yaml")["attributes"]
    contrasts = json.dumps([*study["contrasts"], FOURTH])
    run("run", "disability", "--bids", str(tmp_path / "bids"), "--set", f"contrasts={contrasts}", home=home.root)

    workspace = Workspace(load_studies(home)["disability"], home)
    scans = workspace.known_scans()["scan"].to_list()
    assert len(scans) > 10
    four_weights_sum_to_one(workspace, scans)
    maps_account_for_all_relevance(workspace)
    the_fourth_map_lies_on_its_scan(workspace, scans)
    masks_lie_on_their_maps(workspace, scans)
    individual_scenarios_invert_all_four(workspace, scans)
    the_family_has_the_fourth_image(workspace)


def four_weights_sum_to_one(workspace: Workspace, scans: list[str]) -> None:
    weights = workspace.read("attention_weights").group_by("scan", "fold").agg("contrast", pl.col("weight").sum())
    assert weights.height == 2 * len(scans)
    assert {tuple(sorted(names)) for names in weights["contrast"]} == {tuple(sorted(FOUR))}
    assert np.allclose(weights["weight"], 1)
    assert set(workspace.read("attention_summary")["contrast"]) == set(FOUR)


def maps_account_for_all_relevance(workspace: Workspace) -> None:
    """What starts at the four weights arrives in the four maps, or is known to be lost."""
    maps = workspace.read("relevance_maps").filter(pl.col("method") == "lrp_attention")
    assert maps["unexplained"].abs().max() < 1e-8
    assert workspace.read("relevance_ledger")["unexplained"].abs().max() < 1e-8
    single = maps.filter(pl.col("contrast").is_in(FOUR))
    assert np.allclose(single["start"], single["total"] + single["lost"] + single["unexplained"])
    weights = workspace.read("attention_weights").rename({"weight": "start"})
    begun = single.join(weights, on=["scan", "fold", "contrast"], suffix="_said")
    assert np.allclose(begun["start"], begun["start_said"], atol=1e-5), "relevance begins as the attention weight"
    sums = single.group_by("scan", "fold").agg(pl.col("start", "total").sum(), pl.len())
    whole = maps.filter(pl.col("contrast") == "all").join(sums, on=["scan", "fold"], suffix="_of_four")
    assert set(whole["len"]) == {4}
    assert np.allclose(whole["start_of_four"], 1)
    assert np.allclose(whole["total_of_four"], whole["total"])


def the_fourth_map_lies_on_its_scan(workspace: Workspace, scans: list[str]) -> None:
    """Its file holds what the table says, on both grids, and it counts in the combined map."""
    kept = (pl.col("method") == "lrp_attention") & (pl.col("contrast") == "FLAIR") & pl.col("path").is_not_null()
    fourth = workspace.read("relevance_maps").filter(kept)
    assert sorted(fourth["scan"]) == sorted(scans)
    for row in fourth.iter_rows(named=True):
        values = values_of(workspace.home.root / row["path"])
        assert values.any()
        assert np.isclose(values.sum(), row["total"], rtol=1e-4, atol=1e-4)
        raw = next((workspace.bids / row["scan"].replace("_", "/")).glob("anat/*_FLAIR.nii.gz"))
        assert nib.load(workspace.home.root / row["native_path"]).shape == nib.load(raw).shape
        there = nib.load(workspace.home.root / row["template_path"])
        assert there.shape == template().grid.shape
        assert np.isclose(values_of(workspace.home.root / row["template_path"]).sum(), row["template_total"], rtol=1e-3)
        assert abs(row["template_total"] - row["total"]) <= 0.01 * np.abs(values).sum(), "the sum is kept"
        each = values_of(*(workspace.map_path(row["scan"], "lrp_attention", name) for name in FOUR))
        combined = values_of(workspace.map_path(row["scan"], "lrp_attention", "combined"))
        weighted = (each * values_of(*workspace.prepared_paths(row["scan"]))).sum(axis=0)
        assert np.allclose(combined, weighted, rtol=1e-4, atol=1e-5 * np.abs(each).max())


def masks_lie_on_their_maps(workspace: Workspace, scans: list[str]) -> None:
    masks = workspace.read("quantile_masks").filter(pl.col("contrast") == "FLAIR")
    assert masks.height == len(scans) * 2 * 2, "methods, percents"
    for row in masks.iter_rows(named=True):
        levels = values_of(workspace.home.root / row["path"])
        assert ((levels > 0) & (levels <= row["top_percent"])).sum() == row["voxels"] > 0
        assert values_of(workspace.map_path(row["scan"], row["method"], "FLAIR"))[levels > 0].min() > 0
    images = workspace.read("mask_measures").group_by("method", "scan", "contrast", "top_percent").agg("image")
    assert {tuple(sorted(names)) for names in images["image"]} == {tuple(sorted(FOUR))}


def individual_scenarios_invert_all_four(workspace: Workspace, scans: list[str]) -> None:
    """As many pairs of voxel and contrast as the four masks have voxels; combined: four times its mask's."""
    inversions = workspace.read("inversions")
    assert set(inversions["scan"]) == set(scans)
    masks = workspace.read("quantile_masks")
    key = ["method", "scan", "top_percent"]
    of_four = masks.filter(pl.col("contrast").is_in(FOUR)).group_by(key).agg(pl.col("voxels").sum())
    found = inversions.filter(INDIVIDUAL).join(of_four, on=key)
    assert set(found["method"]) == {"lrp_attention", "saliency_output"}
    assert found["pairs"].equals(found["voxels"], check_names=False)
    both = inversions.filter((pl.col("map") == "combined") & (pl.col("control") == "own"))
    both = both.join(masks.filter(pl.col("contrast") == "combined"), on=key)
    assert (both["pairs"] == 4 * both["voxels"]).all()


def the_family_has_the_fourth_image(workspace: Workspace) -> None:
    correlations = workspace.read("correlations")
    families = (2 * 4 + 4) * 2  # images by their own map and the combined one, or by their own alone; percents
    assert correlations.height == families * 2 * 2  # all or first scans, adjusted or not
    fourth = correlations.filter(pl.col("x") == "FLAIR")
    assert fourth.height == correlations.height / 4
    assert set(fourth["stratum"].str.split(" ").list.first()) == {"FLAIR", "combined"}
    assert fourth["p_permutation"].null_count() == 0


def values_of(*paths: Path) -> np.ndarray:
    return np.stack([nib.load(path).get_fdata() for path in paths])
