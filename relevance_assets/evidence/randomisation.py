"""Do maps depend on what the network has learnt? Its parameters are drawn anew, and the maps compared.

Belongs here: similarity and complexity of maps, what becomes of them as a network forgets, verdicts. Does not belong
here: the networks that have forgotten (`redrawing.py`), how a map is made (`relevance/`), which scans are looked at.

Sources: Adebayo et al. 2018 (arXiv 1810.03292), model parameter randomisation; Hedström et al. 2023 (Sanity Checks
Revisited, arXiv 2401.06465), the efficient test (eMPRT); Sixt et al. 2020 (arXiv 1912.09818), rules whose maps do
not depend on later layers. The test has critics (Binder et al. 2023, arXiv 2211.12486): noise that is made of the
parameters passes it. It says what a map cannot show, never that a map is right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from relevance_assets.evidence.redrawing import Stage, cascade, redrawn
from relevance_assets.evidence.verdicts import Verdict, judged, mean_interval, shown

__all__ = ["bins_for", "complexity", "measure_randomisation", "randomisation_verdicts", "similarity"]

Array = NDArray[np.floating]
Explain = Callable[[nn.Module], Sequence[Array]]

# A quarter of the ranks' variance shared with a network that knows nothing. Set before this project's networks were
# looked at: on a toy DenseNet the rule that is known to survive (EpsilonPlusFlat) had 0.51, z+ 0.24, gamma and a2b1
# 0.02. Some likeness remains for every rule, since both maps are of one image.
SIMILARITY = 0.5
# An explanation of the same parameters must be the same map; rounding may exchange neighbouring ranks.
SAME = 0.99
FEWEST_BINS, MOST_BINS = 10, 200  # the authors' limits (Quantus)
UNTOUCHED, ALL = "none", "all"


# ------------------------------------------------------------------------------------------------------- measures
def similarity(before: Array, after: Array, brain: NDArray[np.bool_]) -> float | None:
    """Spearman's rho of the absolute relevance of two maps inside the brain, mean over contrasts.

    Absolute, because a re-drawn output layer may turn the sign of a whole map (Adebayo et al. report both).
    Contrast by contrast, because how much goes to each would else count as likeness.

    Parameters
    ----------
    before, after : (C, X, Y, Z)
    brain : (X, Y, Z)

    Returns
    -------
    None where no contrast has two maps that vary.

    Raises
    ------
    ValueError
        If shapes differ or a map is not finite inside the brain.
    """
    if before.shape != after.shape or before.ndim != 4 or before.shape[1:] != brain.shape:
        raise ValueError(f"maps {before.shape} and {after.shape} and brain mask {brain.shape} do not fit together")
    inside = brain.astype(bool)
    first, second = (np.abs(maps[:, inside].astype(np.float64)) for maps in (before, after))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("relevance maps hold NaN or infinite values inside the brain")
    found = [
        float(stats.spearmanr(one, other).statistic)
        for one, other in zip(first, second, strict=True)
        if one.size and np.ptp(one) > 0 and np.ptp(other) > 0
    ]
    return float(np.mean(found)) if found else None


def bins_for(maps: Sequence[Array], brains: Sequence[NDArray[np.bool_]]) -> int:
    """Bins of the histograms of these maps: Scott's rule for the median map, between 10 and 200.

    Width 3.49 s n^(-1/3) with s the standard deviation and n the number of values (Scott 1979). One number for
    all maps that are compared, since the entropy of a histogram grows with its bins. Not Freedman and Diaconis':
    the quartiles of a sparse map are equal.
    """
    counts = []
    for one, brain in zip(maps, brains, strict=True):
        values = one[:, brain.astype(bool)].astype(np.float64).ravel()
        if values.size and np.ptp(values) > 0:
            counts.append(np.ptp(values) / (3.49 * values.std() * values.size ** (-1 / 3)))
    return int(np.clip(np.ceil(np.median(counts)), FEWEST_BINS, MOST_BINS)) if counts else FEWEST_BINS


def complexity(maps: Array, brain: NDArray[np.bool_], bins: int) -> float:
    """Entropy, in nats, of the histogram of a map's signed values inside the brain, bins from least to greatest.

    A factor on the map changes nothing, so the normalisation that the authors put before has no part here. All
    contrasts count as one map. 0 for a constant map and for an empty brain.

    Parameters
    ----------
    maps : (C, X, Y, Z)
    brain : (X, Y, Z)
    """
    values = maps[:, brain.astype(bool)].astype(np.float64).ravel()
    if not values.size or np.ptp(values) == 0:
        return 0.0
    # by the greatest value, because numpy refuses bins narrower than the least number
    return float(stats.entropy(np.histogram(values / np.abs(values).max(), bins=bins)[0]))


def measure_randomisation(
    model: nn.Module,
    ordered: Sequence[Stage],
    explain: Explain,
    brains: Sequence[NDArray[np.bool_]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    build: Callable[[], nn.Module] | None = None,
    logits: Callable[[nn.Module], Array] | None = None,
) -> pl.DataFrame:
    """Explain the same scans by the trained network and by its re-drawn copies.

    Explanations made per scan: 2 + number of stages + number of seeds - 1.

    Parameters
    ----------
    model
        Trained; left as it is.
    ordered
        Of `stages`. The cascade is run with the first seed, the others re-draw everything at once.
    explain
        Maps (C, X, Y, Z) of n scans by a network.
    brains
        n brain masks.
    logits
        Outputs (n,) of a network with a binary target; None where the output is no class: then there is no output
        entropy. With one logit it is the entropy of (p, 1 - p), at most log 2.

    Returns
    -------
    One row per seed, step and scan (its index): `step` ('none' for an untouched copy; in the cascade the stage that
    was re-drawn last; 'all'), `redrawn` (stages re-drawn so far), `similarity` with the trained network's map,
    `complexity` and `complexity_trained`, `output_entropy` and `output_entropy_trained`.

    Raises
    ------
    ValueError
        As `similarity`; no stage, seed or scan.
    """
    if not ordered or not len(seeds) or not len(brains):
        raise ValueError("randomisation: at least one stage, one seed and one scan are needed")
    trained = explain(model)
    bins = bins_for(trained, brains)
    base = [complexity(one, brain, bins) for one, brain in zip(trained, brains, strict=True)]
    entropies = _output_entropy(model, logits, len(brains))
    rows = []

    def add(seed: int, step: str, redrawn_stages: int, network: nn.Module) -> None:
        said = _output_entropy(network, logits, len(brains))
        for scan, (one, before, brain) in enumerate(zip(explain(network), trained, brains, strict=True)):
            rows.append(
                {
                    "seed": seed,
                    "step": step,
                    "redrawn": redrawn_stages,
                    "scan": scan,
                    "similarity": similarity(before, one, brain),
                    "complexity": complexity(one, brain, bins),
                    "complexity_trained": base[scan],
                    "output_entropy": said[scan],
                    "output_entropy_trained": entropies[scan],
                }
            )

    add(seeds[0], UNTOUCHED, 0, copy.deepcopy(model))
    for number, (name, network) in enumerate(cascade(model, ordered, seeds[0], build), start=1):
        add(seeds[0], ALL if number == len(ordered) else name, number, network)
    for seed in seeds[1:]:
        add(seed, ALL, len(ordered), redrawn(model, seed, build))
    numbers = ("similarity", "complexity", "complexity_trained", "output_entropy", "output_entropy_trained")
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(numbers, pl.Float64))


def _output_entropy(
    network: nn.Module, logits: Callable[[nn.Module], Array] | None, scans: int
) -> Sequence[float | None]:
    if logits is None:
        return [None] * scans
    said = np.asarray(logits(network), dtype=np.float64)
    surprise = np.logaddexp(0, [-said, said])  # -log p and -log (1 - p), without loss of digits
    return [float(value) for value in (np.exp(-surprise) * surprise).sum(axis=0)]


# ------------------------------------------------------------------------------------------------------- verdicts
def randomisation_verdicts(measured: pl.DataFrame, people: Sequence[Hashable] | None = None) -> list[Verdict]:
    """What `measure_randomisation` found, as verdicts.

    randomisation_all
        Similarity of the trained map and the map of the network with everything re-drawn, mean over seeds and scans;
        the high end of its interval below 0.5. Fails for a map that is made of the image alone (an edge detector: 1)
        and for a map that differs when nothing has changed (noise); cannot be tested for a constant map.
    randomisation_cascade
        The same where all stages but the first are re-drawn. Fails, beside those, for a map that only the first
        layer makes, whatever the rest of the network has learnt. Left out with a single stage.
    randomisation_complexity (eMPRT)
        Relative rise of the map's entropy, mean over scans; the low end of its interval above 0. Fails for a map
        that is no more complex for a network that knows nothing. The note has the rank correlation of output entropy
        and map entropy along the cascade, mean over scans, where there are classes; it has no threshold, as the
        authors set none, and with one logit it is weak: its entropy is bounded by log 2, and networks that are sure
        of nothing all lie close to it.

    Parameters
    ----------
    measured
        Of one network, or of several folds' put together with different `scan` indices.
    people
        The person of each scan index; intervals are over people.

    Raises
    ------
    ValueError
        A scan index without a person.
    """
    scans = measured["scan"].unique().sort().to_list()
    if people is not None and max(scans) >= len(people):
        raise ValueError(f"randomisation: {max(scans) + 1} scans and {len(people)} people; give one for each")
    groups = None if people is None else [people[scan] for scan in scans]
    everything = measured.filter(pl.col("step") == ALL)
    first_kept = pl.col("redrawn") == pl.col("redrawn").max() - 1
    control = measured.filter(pl.col("step") == UNTOUCHED)["similarity"].to_list()
    found = [_similar("randomisation_all", everything, control, scans, groups, "everything re-drawn")]
    if everything["redrawn"].max() != 1:
        kept = measured.filter(first_kept)
        found.append(
            _similar("randomisation_cascade", kept, control, scans, groups, "all but the first stage re-drawn")
        )
    return [*found, _rise(everything, measured, scans, groups)]


def _per_scan(frame: pl.DataFrame, column: str, scans: Sequence[int]) -> list[float | None]:
    means = dict(frame.group_by("scan").agg(pl.col(column).mean()).iter_rows())
    return [means.get(scan) for scan in scans]


def _similar(
    test: str,
    frame: pl.DataFrame,
    control: Sequence[float | None],
    scans: Sequence[int],
    groups: Sequence[Hashable] | None,
    what: str,
) -> Verdict:
    found = mean_interval(_per_scan(frame, "similarity", scans), groups)
    note = f"Spearman of |relevance|, trained and {what}{shown(found)}"
    still = sum(value is None for value in control)
    differ = any(value is not None and value < SAME for value in control)
    if still:
        note += f"; {still} maps of the trained network do not vary"
    elif differ:
        note += "; maps of unchanged parameters differ"
    undefined = frame["similarity"].null_count()
    if undefined:
        note += f"; {undefined} of {frame.height} re-drawn maps do not vary and were left out"
    passed = judged(found, "below", SIMILARITY)
    if differ or (passed and still):
        passed = False
    return Verdict(test, found.mean, "below", SIMILARITY, passed, found.n, note)


def _rise(
    everything: pl.DataFrame, measured: pl.DataFrame, scans: Sequence[int], groups: Sequence[Hashable] | None
) -> Verdict:
    base = pl.col("complexity_trained")
    rise = pl.when(base > 0).then((pl.col("complexity") - base) / base).alias("rise")
    found = mean_interval(_per_scan(everything.with_columns(rise), "rise", scans), groups)
    note = f"relative rise of the map's entropy, trained to re-drawn{shown(found)}"
    # the cascade of the first seed, from the untouched network on
    path = measured.filter(pl.col("seed") == measured["seed"][0]).sort("redrawn")
    correlations = []
    for _, steps in path.group_by("scan", maintain_order=True):
        said, made = (steps[name].to_numpy() for name in ("output_entropy", "complexity"))
        if len(said) > 2 and np.isfinite(said.astype(float)).all() and np.ptp(said) > 0 and np.ptp(made) > 0:
            correlations.append(float(stats.spearmanr(said, made).statistic))
    if correlations:
        note += f"; correlation with the output's entropy along the cascade {np.mean(correlations):.2f}"
    passed = judged(found, "above", 0)
    return Verdict("randomisation_complexity", found.mean, "above", 0.0, passed, found.n, note)
