"""The stage `sanity`: whether the explanations deserve belief.

Belongs here: which scans and networks are put to the tests. Does not belong here: the tests (`evidence/`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.models import folds, model_hash, people, samples
from relevance_assets.assets.spaces import geometry_of
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import COMBINED, PLANTED, Workspace
from relevance_assets.files import fingerprint, sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from relevance_assets.evidence.verdicts import Verdict
    from relevance_assets.training.data import Samples

    Shown = tuple[np.ndarray, np.ndarray]  # images (C, X, Y, Z) and brain of one scan

__all__ = ["sanity_stages"]

FOLD = "0"  # whose model is tested, and on whose scans the two extra networks are trained


def sanity_stages(workspace: Workspace) -> list[Stage]:
    return [_sanity(workspace)] if workspace.study.sanity else []


def _sanity(workspace: Workspace) -> Stage:
    study = workspace.study
    settings = study.sanity
    assert settings is not None

    def inputs(_: str) -> Any:
        maps = workspace.results("relevance_maps")
        divided = {scan: side for scan, side in workspace.sides.items() if side[0] != "new"}
        if not maps or not divided:
            raise NotReady("no maps yet: relevance_maps")
        scans = sorted(divided)  # who came later is no reason to test again
        return [
            {fold: model_hash(workspace, fold) for fold in folds(workspace)},
            [(scan, divided[scan], maps.get(scan)) for scan in scans],
            people(workspace, scans).select("participant_id", "target", *_covariates(workspace)).rows(),
            _truth(workspace, [scan for scan in scans if divided[scan][0] == "test"]),
            {name: study.methods[name].decisive() for name in settings.methods},
            settings.model_dump(mode="json"),
        ]

    def make(_: str) -> Done:
        from relevance_assets.evidence.verdicts import verdict_table

        bench = _Bench(workspace)
        with tempfile.TemporaryDirectory() as folder:
            tick(0.05, "a network on scans with an artefact")
            confounded = bench.confounded(Path(folder) / "confounded")
            tick(0.35, "a network on permuted labels")
            permuted = bench.permuted(Path(folder) / "permuted")
        found = []
        for number, method in enumerate(settings.methods):
            tick(0.6 + 0.4 * number / len(settings.methods), method)
            verdicts = [*bench.randomisation(method), *bench.agreement(method), *confounded(method), *permuted(method)]
            found.append(verdict_table(verdicts).with_columns(method=pl.lit(method)))
        frame = pl.concat(found)
        return Done(
            tables={"sanity": frame},
            result=fingerprint(frame.rows()),
            metadata={
                "tests": frame.height,
                "failed": _named(frame.filter(~pl.col("passed"))),
                "could_not_be_tested": _named(frame.filter(pl.col("passed").is_null())),
            },
        )

    return Stage(
        name="sanity",
        version="2",
        description="Tests that an explanation must pass before anybody believes it: weights re-drawn, labels "
        "permuted, an artefact that gives the class away, agreement between folds. Thresholds were set beforehand.",
        tables=("sanity",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("relevance_maps", "trained_models"),
        kinds=frozenset({"pytorch"}),
        group="statistics",
        pool="gpu",
    )


def _named(frame: pl.DataFrame) -> str:
    return ", ".join(f"{test} ({method})" for test, method in frame.select("test", "method").rows()) or "none"


def _covariates(workspace: Workspace) -> list[str]:
    return sorted({covariate.column for covariate in workspace.study.cohort.covariates})


def _truth(workspace: Workspace, scans: list[str]) -> dict[str, str] | None:
    """Hashes of the planted regions, None where nothing is planted; NotReady where one is missing."""
    if PLANTED not in workspace.study.cohort.truth_regions:
        return None
    paths = {scan: workspace.truth_path(scan, PLANTED) for scan in scans}
    if missing := [scan for scan, path in paths.items() if not path.exists()]:
        raise NotReady(f"{missing[0]}: no planted truth; leave cohort.truth_regions out for real scans")
    return {scan: sha256(path) for scan, path in paths.items()}


class _Bench:
    """Scans and networks for the tests of one study."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.study = workspace, workspace.study
        assert self.study.sanity is not None
        self.settings = self.study.sanity
        self.path = workspace.home.model(self.study.name, int(FOLD)) / "model.pt"
        sides = workspace.sides
        fold = int(FOLD)
        learnt = sorted(scan for scan, (side, of) in sides.items() if side == "train" and of != fold)
        self.train = self._even(learnt, self.settings.training_scans)
        held = sorted(scan for scan, (side, of) in sides.items() if side == "train" and of == fold)
        self.validation = self._even(held, max(8, self.settings.training_scans // 2))
        self.test = sorted(scan for scan, (side, _) in sides.items() if side == "test")

    def _classes(self, scans: list[str]) -> dict[str, bool]:
        targets = samples(self.workspace, scans).targets
        return {scan: bool(target) for scan, target in zip(scans, targets, strict=True)}

    def _even(self, scans: list[str], count: int) -> list[str]:
        """At most `count` scans, of both classes as equally many as there are."""
        classes = self._classes(scans)
        severe = [scan for scan in scans if classes[scan]][: count // 2]
        mild = [scan for scan in scans if not classes[scan]][: count - len(severe)]
        return sorted([*severe, *mild])

    def _people(self, scans: list[str]) -> list[str]:
        return people(self.workspace, scans)["participant_id"].to_list()

    def _shown(self, scans: list[str]) -> list[Shown]:
        """Images and brain of each scan."""
        import numpy as np

        from relevance_assets.imaging.volumes import load_volume

        paths = [self.workspace.prepared_paths(scan) for scan in scans]
        images = [np.stack([load_volume(path)[0] for path in one]) for one in paths]
        return list(zip(images, self._brains(scans), strict=True))

    def _brains(self, scans: list[str]) -> list[np.ndarray]:
        from relevance_assets.imaging.volumes import load_volume

        return [load_volume(self.workspace.mask_path(scan))[0] > 0 for scan in scans]

    def _explain(self, method: str, scans: list[str], shown: list[Shown]) -> Callable[[nn.Module], list[np.ndarray]]:
        """Maps of these scans by a network."""
        from relevance_assets.precision import has_gpu, one_thread
        from relevance_assets.relevance.maps import ScanExplainer

        covariates = samples(self.workspace, scans).covariates

        def explain(network: nn.Module) -> list[np.ndarray]:
            explainer = ScanExplainer(network, self.study.methods[method], device="cuda" if has_gpu() else "cpu")
            with one_thread():
                return [explainer(one, row, brain).maps for (one, brain), row in zip(shown, covariates, strict=True)]

        return explain

    def _learn(self, train: Samples, validation: Samples, judged: Samples, folder: Path) -> tuple[nn.Module, float]:
        """A network that has learnt to tell `judged`'s classes apart, as far as the rounds suffice, and its AUC there.

        The tests need a network that has learnt what it was given, not a good one: a constant rate and no
        augmentation are the shortest way. Each round begins with the weights of the one before.
        """
        from relevance_assets.evidence.permutation import auc
        from relevance_assets.evidence.verdicts import LEARNT
        from relevance_assets.study import Augmentation
        from relevance_assets.training.checkpoint import load
        from relevance_assets.training.fit import fit
        from relevance_assets.training.predict import predict

        study, settings = self.study, self.settings
        quick = {"epochs": settings.epochs, "augmentation": Augmentation(), "schedule": "constant", "devices": 1}
        start, score = None, 0.0
        for number in range(settings.rounds):
            training = study.training.model_copy(update=quick | {"seed": study.training.seed + number})
            start = fit(
                study.network,
                training,
                study.target,
                train,
                validation,
                folder / f"round-{number}",
                fold=int(FOLD),
                start=start,
            ).checkpoint
            score = auc(predict(start, judged).outputs, judged.targets)
            if score >= LEARNT:
                break
        assert start is not None
        return load(start), score

    # ---------------------------------------------------------------------------------------------------- the tests
    def randomisation(self, method: str) -> list[Verdict]:
        import numpy as np
        import torch

        from relevance_assets.evidence.randomisation import measure_randomisation, randomisation_verdicts
        from relevance_assets.evidence.redrawing import stages
        from relevance_assets.training.checkpoint import describe, load
        from relevance_assets.training.predict import predict

        scans = self._even(self.test, self.settings.scans)
        chosen, shown = samples(self.workspace, scans), self._shown(scans)
        brains = [brain for _, brain in shown]
        model = load(self.path)
        shape = (1, len(self.study.contrasts), *brains[0].shape)
        ordered = stages(
            model, torch.zeros(shape), torch.zeros(1, chosen.covariates.shape[1]), count=self.settings.stages
        )
        measured = measure_randomisation(
            model,
            ordered,
            self._explain(method, scans, shown),
            brains,
            seeds=[self.settings.seed + number for number in range(self.settings.seeds)],
            build=describe(self.path).build,
            logits=lambda network: np.asarray(predict(network, chosen).outputs),
        )
        return randomisation_verdicts(measured, self._people(scans))

    def agreement(self, method: str) -> list[Verdict]:
        from relevance_assets.evidence.agreement import agreement_verdicts

        # of a method without a combined map every contrast counts
        combined = pl.col("contrast") == COMBINED
        pairs = self.workspace.read("fold_agreement").filter(
            (pl.col("method") == method)
            & (combined if self.study.has_combined(method) else ~combined)
            & pl.col("scan").is_in(self.test)
        )
        scans = sorted(set(pairs["scan"]))
        return agreement_verdicts(pairs, dict(zip(scans, self._people(scans), strict=True)))

    def confounded(self, folder: Path) -> Callable[[str], list[Verdict]]:
        """Train on scans with an artefact in those of the upper class; then judge methods."""
        from relevance_assets.evidence.confounder import (
            add_artefact,
            confounded_samples,
            confounder_verdicts,
            density,
        )
        from relevance_assets.training.checkpoint import load

        made = {}
        for name, scans in (("train", self.train), ("validation", self.validation)):
            brains = dict(zip(scans, self._brains(scans), strict=True))
            made[name] = confounded_samples(samples(self.workspace, scans), brains, folder / name)
        validation = made["validation"]
        network, score = self._learn(made["train"].samples, validation.samples, validation.samples, folder)
        scans = [scan for scan, there in validation.shown.items() if there][: self.settings.scans]
        shown = [add_artefact(images, brain)[:2] for images, brain in self._shown(scans)]
        honest = load(self.path)

        def verdicts(method: str) -> list[Verdict]:
            explain = self._explain(method, scans, shown)
            densities = [
                [density(maps, validation.where, brain) for maps, (_, brain) in zip(explain(one), shown, strict=True)]
                for one in (network, honest)
            ]
            return confounder_verdicts(densities[0], densities[1], score, self._people(scans))

        return verdicts

    def permuted(self, folder: Path) -> Callable[[str], list[Verdict]]:
        """Train on labels of other people; then judge methods, on test scans."""
        from relevance_assets.evidence.confounder import density
        from relevance_assets.evidence.permutation import CHANCE, permuted, permuted_auc, permuted_localisation
        from relevance_assets.evidence.verdicts import Verdict
        from relevance_assets.training.checkpoint import load
        from relevance_assets.training.predict import predict

        sets = (self.train, self.validation, self.test)
        dealt = permuted(
            [samples(self.workspace, scans) for scans in sets],
            [self._people(scans) for scans in sets],
            self.settings.seed,
        )
        if dealt is None:
            note = "no order of the people leaves both classes in every set"
            return lambda _: [Verdict("permuted_auc", None, "above", CHANCE, None, 0, note)]
        train, validation, test = dealt
        network, learnt = self._learn(train, validation, train, folder)
        known = permuted_auc(predict(network, test).outputs, test.targets, learnt, self._people(self.test))
        if PLANTED not in self.study.cohort.truth_regions:
            return lambda _: [known]
        scans = self._even(self.test, self.settings.scans)
        shown, regions = self._shown(scans), self._regions(scans)
        honest = load(self.path)

        def verdicts(method: str) -> list[Verdict]:
            explain = self._explain(method, scans, shown)
            densities = [
                [density(m, region, brain) for m, region, (_, brain) in zip(explain(one), regions, shown, strict=True)]
                for one in (honest, network)
            ]
            return [known, permuted_localisation(densities[0], densities[1], self._people(scans))]

        return verdicts

    def _regions(self, scans: list[str]) -> list[np.ndarray]:
        """Where the tissue changes with the target, on the prepared grid."""
        from relevance_assets.imaging.geometry import to_prepared_labels

        paths = {scan: self.workspace.truth_path(scan, PLANTED) for scan in scans}
        return [to_prepared_labels(path, geometry_of(self.workspace, scan)) > 0 for scan, path in paths.items()]
