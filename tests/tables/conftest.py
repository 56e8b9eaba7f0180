"""A small store with plausible rows in every table, for two studies, and the database made from it.

Twelve people: sub-01..sub-09 in three folds, sub-10..sub-12 held out; sub-01 came twice; sub-13 failed. In the study
`disability` sub-14 and sub-15 came after the split; sub-15 is not predicted yet.
"""

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from relevance_assets.tables.database import publish
from relevance_assets.tables.store import Store

SQL = Path(__file__).parents[2] / "sql"
CONTRASTS = ("qT1", "MWF", "NDI")
SCANS = ["sub-01_ses-1", "sub-01_ses-2", *(f"sub-{i:02d}_ses-1" for i in range(2, 13))]
EDSS = dict(zip(SCANS, [2.0, 2.5, 6.0, 1.0, 5.0, 3.0, 6.5, 2.0, 5.5, 1.5, 7.0, 2.0, 5.0], strict=True))
# log odds of EDSS >= 5 by the models that never saw the scan; sub-05 and sub-12 are wrong
LOGIT = dict(zip(SCANS, [-2, -1.5, 2, -3, 1, 3, 2.5, -1, 1.5, -2, 2, -1, -0.5], strict=True))


def person(scan: str) -> str:
    return scan.split("_")[0]


def number(scan: str) -> int:
    return int(scan[4:6])


def split_of(scan: str) -> tuple[str, int | None]:
    return ("test", None) if number(scan) >= 10 else ("train", number(scan) % 3)


def age(scan: str) -> float:
    return 30.0 + 3 * number(scan) + (2 if scan.endswith("ses-2") else 0)


def _cohort(store: Store, study: str, target: str) -> None:
    known = [
        {
            "scan": s,
            "participant_id": person(s),
            "session": s.split("_")[1],
            "age": age(s),
            "sex": "FM"[number(s) % 2],
            "group": "MS",
            "ms_type": "RRMS",
            "edss": EDSS[s],
            "other": '{"site": "A"}',
            "target": EDSS[s] if target == "edss" else age(s),
            "status": "ok",
            "reason": None,
        }
        for s in SCANS
    ]
    failed = {
        "scan": "sub-13",
        "participant_id": "sub-13",
        "status": "failed",
        "reason": "NaN in sub-13_T1w.nii.gz",
    }
    people = pl.DataFrame(known).unique("participant_id", keep="first", maintain_order=True)
    store.write("participants", study, "all", people.select("participant_id", "age", "sex", "group", "edss"))
    store.write("scans", study, "all", pl.DataFrame([*known, failed], infer_schema_length=None))
    rows = [{"scan": s, "participant_id": person(s), "set": split_of(s)[0], "fold": split_of(s)[1]} for s in SCANS]
    store.write("splits", study, "all", pl.DataFrame(rows))


def _images(store: Store, study: str, images: tuple[str, ...]) -> None:
    grid = {f"shape_{axis}": 32 for axis in "xyz"} | {f"voxel_{axis}_mm": 6.0 for axis in "xyz"}
    for scan in SCANS:
        rows = [
            {
                "scan": scan,
                "image": i,
                "path": f"{scan}_{i}.nii.gz",
                "sha256": "0" * 64,
                "orientation": "RAS",
                **grid,
            }
            for i in images
        ]
        raw = pl.DataFrame([{**r, "bytes": 1000, "unit": "mm", "sidecar": "{}"} for r in rows])
        # sub-07 has half a brain
        volume = 1.2e6 + 1000 * number(scan) * (-1) ** number(scan) - (6e5 if number(scan) == 7 else 0)
        quality = {
            "resampled": False,
            "brain_voxels": int(volume / 216),
            "brain_volume_mm3": volume,
            "minimum": 0.0,
            "maximum": 1.0,
            "mean": 0.4 + 0.001 * number(scan),
            "standard_deviation": 0.1,
            "share_clipped": 0.0,
        }
        store.write("raw_scans", study, scan, raw)
        store.write("volumes", study, scan, pl.DataFrame([{**r, **quality} for r in rows]))
        step = {
            "step": "scale",
            "done": True,
            "note": "T1w by range",
            "seconds": 0.1,
            "cpu_seconds": 0.1,
            "peak_mb": 9.0,
        }
        store.write("preparation_steps", study, scan, pl.DataFrame([{"scan": scan, "place": 1} | step]))
    spread = {"image": images[0], "measure": "signal_to_noise", "n": len(SCANS)}
    spread |= dict.fromkeys(("minimum", "lower_quartile", "median", "upper_quartile", "maximum"), 30.0)
    store.write("preparation_overview", study, "all", pl.DataFrame([spread]))


def _models(store: Store, study: str, name: str, unseen: dict[str, float], binary: bool) -> None:
    for fold in "012":
        store.write(
            "models",
            study,
            fold,
            pl.DataFrame(
                [
                    {
                        "model": name,
                        "fold": fold,
                        "path": f"derivatives/{study}/models/fold-{fold}/model.pt",
                        "sha256": "1" * 64,
                        "parameters": 54831,
                        "device": "cpu",
                        "seconds": 60.0,
                        "seed": 0,
                        "best_epoch": 1,
                    }
                ]
            ),
        )
        store.write(
            "training_epochs",
            study,
            fold,
            pl.DataFrame(
                [
                    {
                        "model": name,
                        "fold": fold,
                        "epoch": e,
                        "loss": 1.0 / (e + 1),
                        "validation_loss": [0.9, 0.5, 0.7][e],
                        "validation_metric": 0.8,
                        "seconds": 20.0,
                    }
                    for e in range(3)
                ]
            ),
        )
        learnt = [
            {"scan": s, "set": "validation" if split_of(s)[1] == int(fold) else "train", "participant_id": person(s)}
            for s in SCANS
            if split_of(s)[0] == "train"
        ]
        of_model = pl.DataFrame(learnt).with_columns(model=pl.lit(name), fold=pl.lit(fold))
        store.write("training_scans", study, fold, of_model)
    rows = []
    for scan in SCANS:
        of, own = split_of(scan)
        truth = float(EDSS[scan] >= 5) if binary else age(scan)
        for k in range(3):
            role = "test" if of == "test" else "validation" if k == own else "train"
            # the three folds' models differ by -1, 0, 1 on a test scan: their mean is the unseen output
            output = unseen[scan] + (k - 1 if of == "test" else 0) + (9 if role == "train" else 0)
            rows.append(
                {
                    "model": name,
                    "fold": str(k),
                    "scan": scan,
                    "set": role,
                    "target": truth,
                    "output": float(output),
                    "probability": 1 / (1 + math.exp(-output)) if binary else None,
                }
            )
        if of == "test":
            rows.append(
                {
                    "model": "mean",
                    "fold": "ensemble",
                    "scan": scan,
                    "set": "test",
                    "target": truth,
                    "output": 0.0 if binary else 45.0,
                    "probability": 0.5 if binary else None,
                }
            )
    store.write("predictions", study, "all", pl.DataFrame(rows, infer_schema_length=None))


def _scores(store: Store, study: str, rows: list[tuple[str, str, str, float | None]]) -> None:
    store.write(
        "scores",
        study,
        "all",
        pl.DataFrame(
            [
                {
                    "model": model,
                    "set": "test",
                    "fold": fold,
                    "metric": metric,
                    "value": value,
                    "ci_low": value,
                    "ci_high": value,
                    "n": 3,
                }
                for model, fold, metric, value in rows
            ],
            infer_schema_length=None,
        ),
    )


def _evidence(store: Store, study: str, contrasts: tuple[str, ...]) -> None:
    for scan in SCANS:
        of, own = split_of(scan)
        base = {"method": "lrp", "scan": scan}
        fold = "ensemble" if of == "test" else str(own)
        # sub-03 loses 2 %, all others 0.01 %, a fifth of it unaccounted for; combined maps have no start
        lost = 0.02 if number(scan) == 3 else 1e-4
        maps = [
            {
                **base,
                "fold": fold,
                "contrast": c,
                "path": f"{scan}_{c}.nii.gz",
                "native_path": None,
                "start": 0.5,
                "total": 0.5 * (1 - lost),
                "difference": 0.5 * lost,
                "lost": 0.4 * lost,
                "unexplained": 0.1 * lost,
                "share_outside_brain": 0.0,
                "share_positive": 0.9,
            }
            for c in contrasts
        ]
        combined = {**maps[0], "contrast": "combined", "start": None, "total": 0.3}
        combined |= {"difference": None, "lost": None, "unexplained": None}
        store.write("relevance_maps", study, scan, pl.DataFrame([*maps, combined], infer_schema_length=None))
        # conv1 loses 10 % of what is put in to its bias, dense 20 % the other way, pool nothing
        layers = [("conv1", "convolution", 0.1), ("pool", "max_pool", 0.0), ("dense", "linear", -0.2)]
        start = 0.5 * len(contrasts)
        ledger = [
            {
                **base,
                "fold": fold,
                "layer": layer,
                "place": place,
                "kind": kind,
                "rule": "epsilon",
                "relevance_in": start,
                "relevance_out": start * (1 - share),
                "bias": start * share,
                "stabiliser": 0.0,
                "dead": 0.0,
                "clamped": 0.0,
                "unexplained": 1e-12 * start if layer == "dense" else 0.0,
            }
            for place, (layer, kind, share) in enumerate(layers)
        ]
        store.write("relevance_ledger", study, scan, pl.DataFrame(ledger))
        masks = [
            {
                **base,
                "contrast": c,
                "sign": "positive",
                "top_percent": t,
                "threshold": 0.1,
                "voxels": 10 * t,
                "volume_mm3": 2160.0 * t,
            }
            for c in (*contrasts, "combined")
            for t in (10, 20)
        ]
        store.write("quantile_masks", study, scan, pl.DataFrame(masks))
        store.write(
            "mask_measures",
            study,
            scan,
            pl.DataFrame(
                [
                    {
                        **base,
                        "contrast": m["contrast"],
                        "sign": m["sign"],
                        "top_percent": m["top_percent"],
                        "image": i,
                        "mean": 0.5,
                        "median": 0.5,
                    }
                    for m in masks
                    for i in contrasts
                ]
            ),
        )
        # sub-02's lesion fits nowhere else in the brain; sub-04 has none
        regions: list[tuple[str, float | None, float | None]] = [("planted", 0.1 + 0.01 * number(scan), 0.05)]
        regions += [("decoy", 0.04, 0.05)]
        regions += [("lesion", 0.03, None)] if number(scan) == 2 else []
        regions += [("lesion", None, None)] if number(scan) == 4 else []
        store.write(
            "localisation",
            study,
            scan,
            pl.DataFrame(
                [
                    {
                        **base,
                        "contrast": "combined",
                        "region": region,
                        "metric": "share_of_positive",
                        "value": value,
                        "chance": chance,
                        "chance_even": 0.02,
                    }
                    for region, value, chance in regions
                ],
                infer_schema_length=None,
            ),
        )
        volumes = [{"scan": scan, "region": r, "volume_mm3": 0.0 if v is None else 4000.0} for r, v, _ in regions]
        store.write("region_volumes", study, scan, pl.DataFrame(volumes))
        if len(contrasts) > 1:
            weights = [0.5, 0.2, 0.3] if number(scan) != 4 else [0.1, 0.8, 0.1]
            store.write(
                "attention_weights",
                study,
                scan,
                pl.DataFrame(
                    [
                        {"model": "gated_attention", "fold": f, "scan": scan, "contrast": c, "weight": w}
                        for f in "012"
                        for c, w in zip(contrasts, weights, strict=True)
                    ]
                ),
            )
    for asset, seconds in (("prepared_volumes", 2.0), ("relevance_maps", 5.0)):
        store.write(
            "runs",
            study,
            asset,
            pl.DataFrame(
                [
                    {
                        "asset": asset,
                        "item": s,
                        "run_id": "r1",
                        "started": datetime(2026, 1, 1, 12),
                        "seconds": seconds + number(s),
                        "peak_mb": 500.0,
                        "outcome": "failed" if s == SCANS[5] and asset[0] == "r" else "ok",
                        "reason": "out of memory" if s == SCANS[5] and asset[0] == "r" else None,
                        "fingerprint": "f",
                    }
                    for s in SCANS
                ]
            ),
        )


def _later(store: Store, study: str, model: str) -> None:
    """Two people who came after the split: sub-14 is severe, of sub-15 neither EDSS nor prediction is known."""
    people = [
        {"scan": "sub-14_ses-1", "participant_id": "sub-14", "age": 50.0, "edss": 6.0, "target": 6.0},
        {"scan": "sub-15_ses-1", "participant_id": "sub-15", "age": 60.0, "edss": None, "target": None},
    ]
    frame = pl.DataFrame(people)
    store.write("participants", study, "later", frame.select("participant_id", "age", "edss"))
    store.write("scans", study, "later", frame.with_columns(session=pl.lit("ses-1"), status=pl.lit("ok")))
    store.write("splits", study, "later", frame.select("scan", "participant_id", set=pl.lit("new")))
    said = [(model, "0", 1.0), (model, "1", 3.0), (model, "2", 2.0), ("mean", "ensemble", 0.0)]
    rows = [
        {"model": name, "fold": fold, "scan": "sub-14_ses-1", "set": "new", "target": 1.0, "output": output}
        | {"probability": 1 / (1 + math.exp(-output))}
        for name, fold, output in said
    ]
    store.write("predictions", study, "later", pl.DataFrame(rows))


def _inversion(store: Store, study: str) -> None:
    """Three scenarios; the AUC without inversion is 0.8. lrp individual is best by its own, larger masks only."""
    scenarios = [("lrp", "combined", 3), ("lrp", "individual", 1), ("saliency", "individual", 9)]
    rows: list[dict[str, Any]] = [
        {"method": m, "map": use, "number": n, "start": "attention", "rules": m, "product": None, "passes": 1.0}
        | {"passes_together": 2.5}
        for m, use, n in scenarios
    ]
    store.write("scenarios", study, "all", pl.DataFrame(rows, schema_overrides={"product": pl.String}))
    areas = {
        ("lrp", "combined", "own"): 0.6,
        ("lrp", "individual", "own"): 0.5,
        ("saliency", "individual", "own"): 0.75,
        ("lrp", "combined", "matched"): 0.6,
        ("lrp", "individual", "matched"): 0.65,
        ("saliency", "individual", "matched"): 0.75,
        ("lrp", "combined", "random"): 0.78,
    }
    curves: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for curve, area in areas.items():
        key: dict[str, Any] = dict(zip(("method", "map", "control"), curve, strict=True))
        # half of the brain's tenth at N = 20, all of it at N = 100: (20 x 0.05 + 80 x 0.15) / 100 = 0.13
        larger = 2 if curve == ("lrp", "individual", "own") else 1
        curves += [
            {**key, "fold": fold, "top_percent": top, "draw": draw, "auc": auc, "low": auc - 0.1, "high": auc + 0.1}
            | {"n": 13, "n_positive": 6, "share_of_brain": larger * share}
            for draw in range(2 if key["control"] == "random" else 1)
            for fold, before in (("0", 0.9), ("mean", 0.8))
            for top, auc, share in ((0, before, 0.0), (20, area, 0.1), (100, area, 0.2))
        ]
        found.append({**key, "against": "nothing", "value": area, "ci_low": area - 0.1, "ci_high": area + 0.1})
        against = "random" if key["control"] == "random" else f"{key['method']} {key['map']}"
        if against != "lrp combined":  # the reference, which has its own masks where it is compared with random ones
            less = areas["lrp", "combined", "own"] - area
            found.append(
                {"method": "lrp", "map": "combined", "control": key["control"], "against": against, "value": less}
                | {"ci_low": less - 0.1, "ci_high": less + 0.1, "p": 0.2 if "lrp" in against else 0.01}
            )
    store.write("inversion_curves", study, "all", pl.DataFrame(curves))
    frame = pl.DataFrame(found, infer_schema_length=None).with_columns(
        n=pl.lit(12), resamples=pl.lit(100), percents=pl.lit("0, 20, 100")
    )
    store.write("inversion_areas", study, "all", frame.cast({"n": pl.Int64, "resamples": pl.Int64}))
    rows = [
        {"fold": "0", "scan": "sub-10_ses-1", "method": "lrp", "map": "combined", "control": "own", "draw": 0}
        | {"top_percent": top, "output": 1.0 - top / 100, "pairs": top, "share_of_brain": top / 500}
        for top in (0, 20, 100)
    ]
    store.write("inversions", study, "sub-10_ses-1", pl.DataFrame(rows))


def _agreement(store: Store, study: str) -> None:
    """Agreement of the folds' models on test scans, by two methods."""
    pairs = [("0", "1"), ("0", "2"), ("1", "2")]
    agreement: dict[tuple[str, str, str], list[float | None]] = {
        # sub-12, which is classified wrongly, is explained by each fold in another way
        ("sub-10_ses-1", "lrp", "combined"): [0.5, 0.7, 0.6],
        ("sub-10_ses-1", "saliency", "qT1"): [0.2, 0.4, 0.3],
        ("sub-11_ses-1", "lrp", "combined"): [0.9, 0.9, 0.9],
        ("sub-11_ses-1", "saliency", "qT1"): [0.8, 0.6, 0.7],
        ("sub-12_ses-1", "lrp", "combined"): [0.1, None, 0.3],
        ("sub-12_ses-1", "saliency", "qT1"): [-0.1, 0.0, 0.1],
    }
    for scan in SCANS[-3:]:
        rows = [
            {"scan": scan, "method": method, "contrast": contrast, "fold_a": a, "fold_b": b, "spearman": rho}
            | {"dice": 0.5 if method == "lrp" else 0.3, "dice_chance": 0.2, "dice_shifted": 0.25}
            for (of, method, contrast), values in agreement.items()
            if of == scan
            for (a, b), rho in zip(pairs, values, strict=True)
        ]
        store.write("fold_agreement", study, scan, pl.DataFrame(rows, infer_schema_length=None))


def _findings(store: Store, study: str) -> None:
    """Sanity, regions, published numbers, and the summaries of attention and localisation."""
    tests = [
        ("lrp", "agreement_dice", 0.2, "above", 0.0, True, "Dice less that of shifted masks"),
        ("lrp", "confounder", 4.0, "above", 10.0, False, "relevance per voxel in the artefact"),
        ("lrp", "permuted_localisation", None, "above", 0.0, None, "no region of the truth"),
        ("saliency", "randomisation_all", 0.9, "below", 0.5, False, "Spearman with everything re-drawn"),
        (
            "saliency",
            "randomisation_cascade",
            0.1,
            "below",
            0.5,
            True,
            "Spearman with all but the first re-drawn",
        ),
    ]
    columns = ["method", "test", "value", "passes_if", "threshold", "passed", "note"]
    frame = pl.DataFrame(tests, schema=columns, orient="row", infer_schema_length=None)
    store.write("sanity", study, "all", frame.with_columns(n=pl.lit(3, pl.Int64)))
    regions = {
        # mean of mild, severe, their difference, its peak and p; the last has no voxel of the grid
        "cerebellum_left": (0.3, 0.2, -0.1, -0.5, 0.6),
        "thalamus_left": (0.1, 0.5, 0.4, 0.75, 0.01),
        "pallidum_left": (None, None, None, None, None),
    }
    rows: list[dict[str, Any]] = []
    for region, (mild, severe, difference, peak, p) in regions.items():
        voxels = 0 if mild is None else 100
        about = {"atlas": "approximate", "region": region, "voxels": voxels, "volume_mm3": 8.0 * voxels}
        about |= {f"peak_{axis}_mm": None if mild is None else -10.0 for axis in "xyz"}
        rows += [
            about
            | {"group": group, "mean": mean, "peak": top, "share_above": mean, "p_corrected": corrected}
            | {"n": n, "n_warped": n - 1}
            for group, mean, top, corrected, n in (
                ("mild", mild, mild, None, 5),
                ("severe", severe, severe, None, 7),
                ("severe - mild", difference, peak, p, 12),
            )
        ]
    store.write("region_frequencies", study, "all", pl.DataFrame(rows, infer_schema_length=None))
    published = [
        ("AUC (test set)", 0.885, 0.8, 3, 41, "differs", True, "Table II"),
        ("accuracy (test set)", 0.854, 0.8541, 3, 41, "rounds to", True, "Table II"),
        ("rho of NDI (Table III)", -0.440, -0.7, 13, 232, "contradicts itself", True, "contradicted by Table IV"),
        ("rho of QSM", 0.2, None, None, 232, "not measured", True, "Table III"),
        ("attention weight of qT1", 0.467, 0.5, 3, 35, "differs", False, "Table II; ours: synthetic people"),
    ]
    columns = ["measure", "published", "ours", "n", "n_published", "verdict", "comparable", "note"]
    frame = pl.DataFrame(published, schema=columns, orient="row", infer_schema_length=None)
    store.write("published_comparison", study, "all", frame.with_columns(unit=pl.lit("1")))
    rows = [
        {"set": "test", "fold": "ensemble", "contrast": c, "value": w, "ci_low": w - 0.1, "ci_high": w + 0.1, "n": 2}
        for c, w in zip(CONTRASTS, (0.5, 0.2, 0.3), strict=True)
    ]
    store.write("attention_summary", study, "all", pl.DataFrame(rows))
    rows = [
        {"method": "lrp", "contrast": "combined", "region": region, "metric": "share_of_positive", "value": value}
        | {"chance": 0.05, "difference": value - 0.05, "ci_low": value - 0.06, "ci_high": value - 0.04}
        | {"n": 13, "people": 12, "resamples": 100}
        for region, value in (("planted", 0.16), ("decoy", 0.04))
    ]
    store.write("localisation_summary", study, "all", pl.DataFrame(rows))


def fill(root: Path) -> Store:
    """Write all tables of both studies."""
    store = Store(root)
    _cohort(store, "disability", "edss")
    _images(store, "disability", CONTRASTS)
    _models(store, "disability", "gated_attention", LOGIT, binary=True)
    _scores(
        store,
        "disability",
        [
            ("gated_attention", "0", "auc", 0.7),
            ("gated_attention", "mean", "auc", 0.75),
            ("gated_attention", "ensemble", "auc", 0.8),
            ("mean", "ensemble", "auc", 0.5),
            ("ridge", "ensemble", "auc", 0.6),
        ],
    )
    _evidence(store, "disability", CONTRASTS)
    rho = [(10, "qT1", 0.6, 0.001), (20, "qT1", 0.55, 0.004), (10, "NDI", -0.7, 0.0005), (10, "MWF", 0.1, 0.9)]
    # what lesion volume leaves: of NDI nearly all, of qT1 in the smaller mask little, in the larger it is undefined
    partial = [(10, "qT1", 0.1, 0.08), (20, "qT1", None, None), (10, "NDI", -0.65, 0.002)]
    row = {"y": "edss", "n": 13, "correction": "max-statistic"}
    rows = [
        row
        | {"analysis": analysis, "statistic": statistic, "x": image, "stratum": f"combined top {top} %", "value": r}
        | {"ci_low": None if r is None else r - 0.1, "ci_high": None if r is None else r + 0.1}
        | {"p": p, "p_permutation": p, "p_corrected": None if p is None else min(1.0, 10 * p), "p_fdr": p}
        for analysis, statistic, found in (
            ("lrp, all scans", "spearman_rho", rho),
            ("lrp, all scans, adjusted for age, sex, lesion", "partial_spearman_rho", partial),
            # held fixed without lesion volume: says nothing about it, however the column is called
            ("lrp, all scans, adjusted for age, sex", "partial_spearman_rho", rho),
            ("lrp, all scans, adjusted for lesion_count", "partial_spearman_rho", rho),
        )
        for top, image, r, p in found
    ]
    store.write("correlations", "disability", "all", pl.DataFrame(rows, infer_schema_length=None))
    _later(store, "disability", "gated_attention")
    _inversion(store, "disability")
    _agreement(store, "disability")
    _findings(store, "disability")

    _cohort(store, "brain_age", "age")
    _images(store, "brain_age", ("T1w",))
    predicted = {s: age(s) + (6.0 if number(s) == 11 else 12.0 if number(s) == 2 else 1.0) for s in SCANS}
    _models(store, "brain_age", "mrinet", predicted, binary=False)
    _scores(
        store,
        "brain_age",
        [
            ("mrinet", "ensemble", "mae", 3.0),
            ("mrinet", "ensemble", "r2", 0.5),
            ("mean", "ensemble", "mae", 9.0),
            ("ridge", "ensemble", "mae", 2.5),
            ("mean", "ensemble", "r2", None),
        ],
    )
    _evidence(store, "brain_age", ("T1w",))
    store.write(
        "brain_age_gap",
        "brain_age",
        "all",
        pl.DataFrame(
            [
                {
                    "scan": s,
                    "set": "test" if number(s) >= 10 else "validation",
                    "age": age(s),
                    "predicted_age": predicted[s],
                    "gap_years": predicted[s] - age(s),
                    "corrected_gap_years": predicted[s] - age(s) - 1,
                }
                for s in SCANS
            ]
        ),
    )
    _lesions(store, "lesion_profile")
    _slices(store, "tumour")
    return store


def _slices(store: Store, study: str) -> None:
    """Two slices, one cell and one other method, and a row of each summary; a meningioma is called a glioma."""
    scans = {"sub-7_ses-12": ("glioma", "glioma", 0.3), "sub-8_ses-40": ("meningioma", "glioma", 0.1)}
    cell = {"map": "gamma -20, epsilon 0", "method": "lrp_grid", "gamma": -20.0, "epsilon": 0.0}
    other = {"map": "grad_cam", "method": "grad_cam", "gamma": None, "epsilon": None}
    region = {"region": "grid"}
    score = {"measure": "iou at 0.95", "score": "iou", "quantile": 0.95}
    mean = {"value": 0.3, "chance": 0.02, "ceiling": 0.5, "n": 1, "people": 1}
    account = {"start": 2.0, "total": 1.5, "sound": True, "forwards": 0.7}
    said = {"model": "vgg16", "fold": "0", "set": "test", "logit": 1.0, "probability": 0.7}
    who = [{"scan": scan, "participant_id": scan.split("_")[0]} for scan in scans]
    known = {"session": "ses-1", "target": 1.0, "status": "ok"}
    store.write("scans", study, "all", pl.DataFrame([one | known for one in who]))
    store.write("splits", study, "all", pl.DataFrame([one | {"set": "test"} for one in who]))
    picture = {"slice_id": "12", "class": "glioma", "patient": "7", "fold": 1, "image": "a.png", "mask": "b.png"}
    for scan, (true, predicted, value) in scans.items():
        explained = {"true": true, "predicted": predicted}
        of_scan = {
            "class_predictions": [
                said | {"class": kind, "is_true": kind == true, "is_predicted": kind == predicted}
                for kind in ("glioma", "meningioma")
            ],
            "rule_grid": [
                {"explained": which} | one | score | {"value": value, "truth_pixels": 9, "pixels": 99}
                for one in (cell, other)
                for which in explained
            ],
            "rule_maps": [
                {"explained": which, "class": kind} | one | account
                for one in (cell, other)
                for which, kind in explained.items()
            ],
        }
        for table, rows in of_scan.items():
            store.write(table, study, scan, pl.DataFrame(rows).with_columns(scan=pl.lit(scan)))
    whole = {
        "slices": [picture | {"scan": scan} for scan in scans],
        "confusion": [
            {"model": "vgg16", "fold": "0", "set": "test", "true_class": "a", "predicted_class": "b", "count": 2}
        ],
        "rule_cells": [
            region
            | {"explained": "true", "set": "test", "gamma": -20.0, "epsilon": 0.0, "is_chosen": True}
            | score
            | mean
        ],
        "rule_comparison": [
            region | {"explained": "true", "stratum_kind": "all", "stratum": "all", "role": role} | one | score | mean
            for role, one in (("chosen", cell), ("reference", other))
        ],
        "rule_means": [region | {"explained": "true", "set": "test", "form": "mean_over_images"} | cell | score | mean],
        "rule_answers": [region | {"explained": "true", "answer": "It cannot be told."} | score],
    }
    for table, rows in whole.items():
        store.write(table, study, "all", pl.DataFrame(rows))


def _lesions(store: Store, study: str) -> None:
    """Two people, one without a lesion, and a row of every statistic."""
    place = {"source": "manual", "rule": "lesion_3d"}
    sizes = {"intracranial": 1000.0, "ventricle": 50.0, "lesion": 8.0, "paraventricular": 0.0, "juxtacortical": 2.0}
    nothing = dict.fromkeys(("lesion", "paraventricular", "juxtacortical", "periventricular"), 0.0)
    people = [
        {"participant_id": "sub-1", "age": 44.0, "sex": "F", "group": "MS", "periventricular": 6.0} | sizes,
        {"participant_id": "sub-2", "age": 70.0, "sex": None, "group": "HC"} | sizes | nothing,
    ]
    store.write("subjects", study, "all", pl.DataFrame([row | {"unit": "mm³", "scan": None} for row in people]))
    lesion = {"lesion": 1, "zone": "periventricular", "voxels": 8, "volume_mm3": 8.0, "diameter_mm": 3.5}
    centroid = {f"centroid_{axis}_mm": 1.0 for axis in "xyz"}
    scans = {
        "segmentations": [
            {"class": "wmh", "path": "a.nii.gz", "sha256": "5", "voxels": 9, "volume_mm3": 9.0, "fold": "0"}
        ],
        "segmentation_scores": [{"class": "wmh", "metric": "dice", "value": 0.8, "fold": "0"}],
        "segmentation_counts": [
            {"class": "wmh", "both": 7, "predicted": 9, "true": 8, "slices": 3, "distance_pixels": 1.5}
        ],
        "lesions": [place | lesion | centroid],
        "lesion_burden": [place | {"zone": "all", "voxels": 8, "volume_mm3": 8.0, "count": 1, "share": 1.0}],
        "lesion_totals": [
            {"source": "manual", "intracranial_mm3": 1e6, "ventricle_mm3": 2e4, "lesion_mm3": 8.0, "lesions": 1}
        ],
        "lesion_changes": [
            {"source": "manual", "lesion": 1, "since": "sub-0", "state": "new", "lesions_before": 0, "lesions_after": 1}
            | {"volume_before_mm3": 0.0, "volume_after_mm3": 8.0, "change_mm3": 8.0, "overlap_mm3": 0.0}
        ],
        "zone_agreement": [
            {"source": "manual", "rule_a": "lesion_3d", "rule_b": "voxel_3d", "voxels": 8, "only_one": 0, "equal": 1.0}
        ],
        "zone_sensitivity": [
            place
            | {
                "threshold": "cortex_edge_mm",
                "factor": 0.75,
                "zone": "all",
                "value": 4.5,
                "volume_mm3": 8.0,
                "count": 1,
            }
        ],
    }
    for table, rows in scans.items():
        store.write(table, study, "sub-1", pl.DataFrame(rows).with_columns(scan=pl.lit("sub-1")))
    about = {"analysis": "groups", "recipe": "sound", "variant": "all", "stratum": "all", "filter": "age > 18"}
    whole = {
        "group_comparisons": {"measure": "lesion_ratio", "group_a": "HC", "group_b": "MS", "test": "welch_t"}
        | {"n_a": 9, "n_b": 8},
        "regressions": {
            "outcome": "lesion_ratio",
            "term": "age",
            "model": "y ~ age",
            "estimate_name": "factor",
            "n": 9,
        },
        "descriptives": {"measure": "lesion_ratio", "statistic": "mean", "n": 9},
    }
    for table, row in whole.items():
        store.write(table, study, "all", pl.DataFrame([about | row]))
    score = {"class": "wmh", "metric": "dice", "form": "pooled_as_published", "value": 0.8, "n": 1}
    store.write("segmentation_summary", study, "all", pl.DataFrame([score]))
    pair = {"source_a": "manual", "source_b": "network", "rule": "lesion_3d", "zone": "all", "n": 1}
    store.write("source_agreement", study, "all", pl.DataFrame([pair | {"difference_mm3": 1.0, "resamples": 0}]))
    odd = {"participant_id": "sub-1", "group": "MS", "band": "40-49", "flags": 3, "removed": True, "variables": "age"}
    store.write("outliers", study, "all", pl.DataFrame([odd | {"sex": "F", "filter": "band = '40-49'"}]))


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The filled store, for reading only."""
    return fill(tmp_path_factory.mktemp("filled") / "tables")


@pytest.fixture(scope="session")
def database(filled: Store) -> Path:
    """The database published from the filled store, for reading only."""
    path = filled.root.parent / "results.duckdb"
    publish(filled.root, path, SQL)
    return path
