"""Stages of voxel inversion: what the models say without the most relevant voxels, and what that is worth.

Belongs here: the stages `inversions` and `inversion_curves`. Does not belong here: which voxels
(`evidence/inversion.py`), curves and their areas (`statistics/inversion.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.models import model_hash, models_for, predictors, role_of, samples
from relevance_assets.assets.relevance import read_maps
from relevance_assets.assets.spaces import geometry_of
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, Work, each, tick
from relevance_assets.assets.workspace import COMBINED, PLANTED, Workspace
from relevance_assets.files import fingerprint, sha256

if TYPE_CHECKING:
    from relevance_assets.training.predict import Predictor

__all__ = ["inversion_stages"]

BATCH = 4  # on a CPU faster than 8, whose activations leave its caches
NOTHING = "nothing"


def inversion_stages(workspace: Workspace) -> list[Stage]:
    return [_inversions(workspace), _inversion_curves(workspace)] if workspace.study.inversion else []


def scenarios(workspace: Workspace) -> list[tuple[str, str]]:
    """Method and use of its maps, in the order of the study."""
    found = []
    for method in workspace.study.methods:
        found.append((method, "individual"))
        if workspace.study.has_combined(method):
            found.append((method, COMBINED))
    return found


def judged(workspace: Workspace) -> set[str]:
    """Scans that an AUC is made of: all but those that came after the split."""
    return {scan for scan, (side, _) in workspace.sides.items() if side != "new"}


# ------------------------------------------------------------------------------------------------------ inversions
def _inversions(workspace: Workspace) -> Stage:
    study = workspace.study
    settings = study.inversion
    assert settings is not None
    planted = PLANTED in study.cohort.truth_regions
    asked = settings.model_dump(mode="json")

    def inputs(scan: str) -> Any:
        return [
            upstream(workspace, "relevance_maps", scan),
            {fold: model_hash(workspace, fold) for fold in models_for(workspace, scan)},
            sha256(workspace.truth_path(scan, PLANTED)) if planted else None,
            asked,
        ]

    @contextmanager
    def work() -> Iterator[Work]:
        with predictors(workspace) as model:
            yield lambda scan: make(scan, model)

    def make(scan: str, model: Callable[[str], Predictor]) -> Done:
        import numpy as np

        from relevance_assets.evidence.inversion import plan_inversions
        from relevance_assets.imaging.geometry import to_prepared_labels
        from relevance_assets.imaging.volumes import load_volume

        sample = samples(workspace, [scan])
        images = np.stack([load_volume(path)[0] for path in sample.images[0]])
        brain = load_volume(workspace.mask_path(scan))[0] > 0
        maps = {method: read_maps(workspace, scan, method) for method in study.methods}
        combined = {method: found.pop(COMBINED) for method, found in maps.items() if COMBINED in found}
        region = workspace.truth_path(scan, PLANTED)
        seed = [settings.seed, *fingerprint(scan).encode()]  # of the scan alone, whoever else is in the cohort
        plan = plan_inversions(
            {method: np.stack(list(found.values())) for method, found in maps.items()},
            combined,
            images,
            brain,
            percents=settings.top_percents,
            reference=(settings.reference.method, settings.reference.map),
            draws=settings.random_draws,
            random=np.random.default_rng(seed),
            planted=to_prepared_labels(region, geometry_of(workspace, scan)) > 0 if planted else None,
        )
        rows: list[dict[str, Any]] = []
        folds = models_for(workspace, scan)
        outputs = {fold: model(fold).outputs(plan.batches(BATCH), sample.covariates[0]) for fold in folds}
        for fold, values in outputs.items():
            for row in plan.rows:
                kept = {name: value for name, value in row.items() if name != "prediction"}
                rows.append({"fold": fold, "scan": scan} | kept | {"output": float(values[row["prediction"]])})
        frame = pl.DataFrame(rows)
        chosen = frame.filter(
            (pl.col("method") == settings.reference.method)
            & (pl.col("map") == settings.reference.map)
            & (pl.col("control") == "own")
        )
        lowest = chosen.group_by("top_percent").agg(pl.col("output").mean()).sort("top_percent")
        return Done(
            tables={"inversions": frame},
            result=fingerprint(frame.rows()),
            metadata={
                "inversions": plan.predictions,
                **{f"output_{percent}_percent": value for percent, value in lowest.iter_rows()},
            },
        )

    return Stage(
        name="inversions",
        version="2",
        description="What the models say when the most relevant voxels of a scan are inverted, q <- 1 - q: by every "
        "method's masks, by masks of equal area, by random masks, and by the planted region where there is one. Scans "
        "that came after the split are left out: no AUC is made of them.",
        tables=("inversions",),
        items=lambda: sorted(judged(workspace) & workspace.results("relevance_maps").keys()),
        inputs=inputs,
        work=work,
        partition="scan",
        parallel=True,
        needs=("relevance_maps", "trained_models"),
        kinds=frozenset({"pytorch", "numpy"}),
        group="relevance",
        pool="gpu",
    )


# ------------------------------------------------------------------------------------------------ inversion_curves
def _inversion_curves(workspace: Workspace) -> Stage:
    study = workspace.study
    settings = study.inversion
    assert settings is not None

    def inputs(_: str) -> Any:
        known = judged(workspace)
        results = {scan: result for scan, result in workspace.results("inversions").items() if scan in known}
        if not results:
            raise NotReady("no inversion yet: inversions")
        people = workspace.read("scans").filter(pl.col("scan").is_in(list(results)))
        numbers = {name: method.model_dump(mode="json") for name, method in study.methods.items()}
        return [
            results,
            people.select("scan", "participant_id", "target").rows(),
            numbers,
            study.statistics.model_dump(mode="json", include={"bootstrap", "confidence", "seed"}),
        ]

    def make(_: str) -> Done:
        from relevance_assets.assets.metadata import picture
        from relevance_assets.relevance.cost import TOGETHER
        from relevance_assets.report.figures import save, thumbnail
        from relevance_assets.report.figures_curves import inversion_curves_figure
        from relevance_assets.statistics.inversion import inversion_areas, inversion_curves

        reference = (settings.reference.method, settings.reference.map)
        outputs = _judged(workspace)
        tick(0.1, "curves")
        curves = inversion_curves(outputs)
        tick(0.3, "areas")
        areas = inversion_areas(
            outputs,
            reference=reference,
            bootstrap=study.statistics.bootstrap,
            confidence=study.statistics.confidence,
            seed=study.statistics.seed,
        ).with_columns(pl.col("against").fill_null(NOTHING))
        tick(0.7, "cost")
        costs = _costs(workspace)
        tick(0.8, "figure")
        path = workspace.figure_path("inversionCurves")
        figure = inversion_curves_figure(curves, *_panels(workspace))
        save(figure, path)
        best = areas.filter((pl.col("control") == "matched") & (pl.col("against") == NOTHING)).sort("value")
        return Done(
            tables={
                "inversion_curves": curves,
                "inversion_areas": areas,
                "scenarios": _scenario_table(workspace, costs),
            },
            result=fingerprint(curves.rows(), areas.rows(), sha256(path)),
            metadata={
                f"area_{number}_{method}_{use}": value
                for number, (method, use, value) in enumerate(
                    best.select("method", "map", "value").iter_rows(), start=1
                )
            }
            | {"passes_of_all_together": costs[TOGETHER], "figure": picture(thumbnail(path), "AUC after inversion")},
        )

    return Stage(
        name="inversion_curves",
        version="2",
        description="AUC after inversion of the top N % for every scenario and control, the area under each curve with "
        "a bootstrap interval over people, and paired differences from the reference scenario; the planted region "
        "beside random masks and each scenario's mask of its size.",
        tables=("inversion_curves", "inversion_areas", "scenarios"),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        outputs=lambda _: [workspace.figure_path("inversionCurves")],
        needs=("inversions",),
        kinds=frozenset({"polars", "matplotlib"}),
        group="statistics",
    )


def _judged(workspace: Workspace) -> pl.DataFrame:
    """Outputs with person, class and role of the scan for the model; texts are categories, a fraction of the memory."""
    threshold = workspace.study.target.threshold
    people = workspace.read("scans").select(
        "scan", "participant_id", (pl.col("target") >= threshold).cast(pl.Int64).alias("target")
    )
    needed = ("fold", "scan", "method", "map", "control", "top_percent", "draw", "output", "share_of_brain")

    def narrow(part: pl.DataFrame) -> pl.DataFrame:
        part = part.select(needed).join(people, on="scan")
        pairs = part.select("scan", "fold").unique()
        roles = [role_of(workspace, scan, fold) for scan, fold in pairs.iter_rows()]
        part = part.join(pairs.with_columns(pl.Series("set", roles, dtype=pl.String)), on=["scan", "fold"])
        return part.with_columns(pl.col(pl.String).cast(pl.Categorical))

    return pl.concat(narrow(part) for part in workspace.parts("inversions"))


def _panels(workspace: Workspace) -> tuple[Any, Any]:
    """Lines of the figure: a panel for every start and way, the reference in each."""
    from relevance_assets.relevance.others import is_baseline
    from relevance_assets.report.figures_curves import Line

    study = workspace.study
    assert study.inversion is not None

    def line(method: str, use: str) -> Line:
        number = study.methods[method].scenarios.get(use)  # type: ignore[call-overload]
        words = f"{method.replace('_', ' ')}, {use}"
        return Line(method, use, f"{number}: {words}" if number else words)

    panels: dict[str, list[Line]] = {}
    for method, use in scenarios(workspace):
        settings = study.methods[method]
        title = "Gradients" if is_baseline(settings.composite) else f"LRP from the {settings.start}"
        panels.setdefault(title, []).append(line(method, use))
    return panels, line(study.inversion.reference.method, study.inversion.reference.map)


def _scenario_table(workspace: Workspace, costs: dict[str, float]) -> pl.DataFrame:
    from relevance_assets.relevance.cost import TOGETHER
    from relevance_assets.relevance.others import is_baseline

    rows = []
    for name, use in scenarios(workspace):
        method = workspace.study.methods[name]
        rules = method.composite if isinstance(method.composite, str) else json.dumps(method.composite, sort_keys=True)
        rows.append(
            {
                "method": name,
                "map": use,
                "number": method.scenarios.get(use),  # type: ignore[call-overload]
                "start": method.start,
                "rules": rules,
                "product": None if is_baseline(method.composite) else method.product,
                "passes": costs.get(name),
                "passes_together": costs[TOGETHER],
            }
        )
    return pl.DataFrame(rows, schema_overrides={"number": pl.Int64, "product": pl.String, "passes": pl.Float64})


def _costs(workspace: Workspace) -> dict[str, float]:
    """FLOPs of each method's maps of one scan in units of one forward and backward pass of the network."""
    import numpy as np
    import torch

    from relevance_assets.imaging.volumes import load_volume
    from relevance_assets.precision import one_thread
    from relevance_assets.relevance.cost import passes
    from relevance_assets.training.checkpoint import load

    study = workspace.study
    model = load(workspace.home.model(study.name, 0) / "model.pt")
    # of a real scan only the mask: rules do more where it leaves something out
    brain = load_volume(workspace.mask_path(workspace.read("volumes")["scan"][0]))[0] > 0
    random = np.random.default_rng(0)
    images = random.random((len(study.contrasts), *brain.shape))
    covariates = random.random(len(study.cohort.covariates))
    # operations of so small a scan wait longer for a second thread than it saves
    with torch.random.fork_rng(devices=[]), one_thread():
        return passes(model, study.methods, images, covariates, brain)
