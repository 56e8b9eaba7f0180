"""A small store with plausible rows in every table, for two studies, and the database made from it.

Twelve people: sub-01..sub-09 in three folds, sub-10..sub-12 held out; sub-01 came twice; sub-13 failed.
"""

import math
from datetime import datetime
from pathlib import Path

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
        for fold in range(3):
            role = "test" if of == "test" else "validation" if fold == own else "train"
            # the three folds' models differ by -1, 0, 1 on a test scan: their mean is the unseen output
            output = unseen[scan] + (fold - 1 if of == "test" else 0) + (9 if role == "train" else 0)
            rows.append(
                {
                    "model": name,
                    "fold": str(fold),
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
                        "chance": 0.05,
                    }
                    for region, value in (("planted", 0.1 + 0.01 * number(scan)), ("decoy", 0.04))
                ]
            ),
        )
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
    row = {"analysis": "lrp", "y": "edss", "statistic": "spearman", "n": 13, "correction": "max-statistic"}
    rows = [
        {**row, "x": image, "stratum": f"combined top {top} %", "value": r, "ci_low": r - 0.1, "ci_high": r + 0.1}
        | {"p": p, "p_permutation": p, "p_corrected": min(1.0, 10 * p)}
        for top, image, r, p in rho
    ]
    store.write("correlations", "disability", "all", pl.DataFrame(rows))

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
    return store


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
