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
from relevance_assets.assets.relevance import geometry_of
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import COMBINED, PLANTED, Workspace
from relevance_assets.files import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from relevance_assets.evidence.verdicts import Verdict
    from relevance_assets.training.data import Samples

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
        return [
            {fold: model_hash(workspace, fold) for fold in folds(workspace)},
            {scan: maps.get(scan) for scan in sorted(divided)},  # who came later is no reason to test again
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
        failed = frame.filter(~pl.col("passed"))
        return Done(
            tables={"sanity": frame},
            result=fingerprint(frame.rows()),
            metadata={
                "tests": frame.height,
                "failed": ", ".join(f"{row['test']} ({row['method']})" for row in failed.iter_rows(named=True))
                or "none",
            },
        )

    return Stage(
        name="sanity",
        version="1",
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

    def _brains(self, scans: list[str]) -> list[np.ndarray]:
        from relevance_assets.imaging.volumes import load_volume

        return [load_volume(self.workspace.mask_path(scan))[0] > 0 for scan in scans]

    def _explain(
        self, method: str, chosen: Samples, brains: list[np.ndarray]
    ) -> Callable[[nn.Module], list[np.ndarray]]:
        """Maps of these scans by a network."""
        import numpy as np

        from relevance_assets.imaging.volumes import load_volume
        from relevance_assets.precision import has_gpu, one_thread
        from relevance_assets.relevance.maps import ScanExplainer

        def explain(network: nn.Module) -> list[np.ndarray]:
            explainer = ScanExplainer(network, self.study.methods[method], device="cuda" if has_gpu() else "cpu")
            found = []
            with one_thread():
                for paths, covariates, brain in zip(chosen.images, chosen.covariates, brains, strict=True):
                    images = np.stack([load_volume(path)[0] for path in paths])
                    found.append(explainer(images, covariates, brain).maps)
            return found

        return explain

    def _fit(self, train: Samples, validation: Samples, folder: Path) -> nn.Module:
        from relevance_assets.study import Augmentation
        from relevance_assets.training.checkpoint import load
        from relevance_assets.training.fit import fit

        quick = {"epochs": self.settings.epochs, "augmentation": Augmentation(), "schedule": "constant", "devices": 1}
        training = self.study.training.model_copy(update=quick)
        fitted = fit(self.study.model, training, self.study.cohort.target, train, validation, folder, fold=int(FOLD))
        return load(fitted.checkpoint)

    # ---------------------------------------------------------------------------------------------------- the tests
    def randomisation(self, method: str) -> list[Verdict]:
        import numpy as np
        import torch

        from relevance_assets.evidence.randomisation import measure_randomisation, randomisation_verdicts
        from relevance_assets.evidence.redrawing import stages
        from relevance_assets.training.checkpoint import describe, load
        from relevance_assets.training.predict import predict

        scans = self._even(self.test, self.settings.scans)
        chosen, brains = samples(self.workspace, scans), self._brains(scans)
        model = load(self.path)
        shape = (1, len(self.study.contrasts), *brains[0].shape)
        ordered = stages(
            model, torch.zeros(shape), torch.zeros(1, chosen.covariates.shape[1]), count=self.settings.stages
        )
        measured = measure_randomisation(
            model,
            ordered,
            self._explain(method, chosen, brains),
            brains,
            seeds=[self.settings.seed + number for number in range(self.settings.seeds)],
            build=describe(self.path).build,
            logits=lambda network: np.asarray(predict(network, chosen).outputs),
        )
        return randomisation_verdicts(measured, self._people(scans))

    def agreement(self, method: str) -> list[Verdict]:
        from relevance_assets.evidence.agreement import agreement_verdicts

        contrast = COMBINED if self.study.has_combined(method) else self.study.contrasts[0].name
        pairs = self.workspace.read("fold_agreement").filter(
            (pl.col("method") == method) & (pl.col("contrast") == contrast) & pl.col("scan").is_in(self.test)
        )
        scans = sorted(set(pairs["scan"]))
        return agreement_verdicts(pairs, dict(zip(scans, self._people(scans), strict=True)))

    def confounded(self, folder: Path) -> Callable[[str], list[Verdict]]:
        """Train on scans with an artefact in those of the upper class; then judge methods."""
        import numpy as np

        from relevance_assets.evidence.confounder import (
            add_artefact,
            artefact_density,
            auc,
            confounded_samples,
            confounder_verdicts,
        )
        from relevance_assets.training.checkpoint import load
        from relevance_assets.training.predict import predict

        made = {}
        for name, scans in (("train", self.train), ("validation", self.validation)):
            brains = dict(zip(scans, self._brains(scans), strict=True))
            made[name] = confounded_samples(samples(self.workspace, scans), brains, folder / name)
        network = self._fit(made["train"].samples, made["validation"].samples, folder)
        judged = made["validation"].samples
        score = auc(predict(network, judged).outputs, judged.targets)
        shown = [scan for scan, there in made["validation"].shown.items() if there][: self.settings.scans]
        honest, where = load(self.path), made["validation"].where
        images = self._changed(shown, add_artefact)

        def verdicts(method: str) -> list[Verdict]:
            from relevance_assets.precision import has_gpu, one_thread
            from relevance_assets.relevance.maps import ScanExplainer

            covariates = samples(self.workspace, shown).covariates
            densities: list[list[float | None]] = []
            for model in (network, honest):
                explainer = ScanExplainer(model, self.study.methods[method], device="cuda" if has_gpu() else "cpu")
                with one_thread():
                    maps = [explainer(one, c, b).maps for (one, b), c in zip(images, covariates, strict=True)]
                densities.append([artefact_density(m, where, b) for m, (_, b) in zip(maps, images, strict=True)])
            return confounder_verdicts(densities[0], densities[1], score, self._people(shown))

        assert np.isfinite(score)
        return verdicts

    def _changed(self, scans: list[str], add: Callable[..., Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Images and brain of scans with the artefact."""
        import numpy as np

        from relevance_assets.imaging.volumes import load_volume

        found = []
        for scan, brain in zip(scans, self._brains(scans), strict=True):
            images = np.stack([load_volume(path)[0] for path in self.workspace.prepared_paths(scan)])
            found.append(add(images, brain)[:2])
        return found

    def permuted(self, folder: Path) -> Callable[[str], list[Verdict]]:
        """Train on labels of other people; then judge methods, on test scans."""
        from relevance_assets.evidence.confounder import permuted, permuted_verdicts
        from relevance_assets.evidence.localisation import share_of_positive
        from relevance_assets.imaging.recipe import to_prepared_labels
        from relevance_assets.training.predict import predict

        sets = [
            permuted(samples(self.workspace, scans), self._people(scans), self.settings.seed)
            for scans in (self.train, self.validation)
        ]
        network = self._fit(sets[0], sets[1], folder)
        test = samples(self.workspace, self.test)
        outputs = predict(network, test).outputs

        def verdicts(method: str) -> list[Verdict]:
            shares: list[tuple[float | None, float | None]] = [(None, None)] * len(self.test)
            if PLANTED in self.study.cohort.truth_regions:
                scans = self._even(self.test, 2 * self.settings.scans)
                brains = self._brains(scans)
                maps = self._explain(method, samples(self.workspace, scans), brains)(network)
                for scan, found, brain in zip(scans, maps, brains, strict=True):
                    region = to_prepared_labels(
                        self.workspace.truth_path(scan, PLANTED), geometry_of(self.workspace, scan)
                    )
                    shares[self.test.index(scan)] = share_of_positive(found.sum(axis=0), region > 0, brain)
            both = permuted_verdicts(outputs, test.targets, shares, self._people(self.test))
            return both if PLANTED in self.study.cohort.truth_regions else both[:1]

        return verdicts
