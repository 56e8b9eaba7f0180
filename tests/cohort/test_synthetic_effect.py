"""What is planted is there, and nothing else goes with EDSS: people, signal, and the ceiling of the effect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from relevance_assets.cohort.synthetic import people, scan, signal
from relevance_assets.cohort.synthetic.people import draw_person, draw_visits, severity

QUANTITIES = {"T1map": 1, "MWFmap": -1, "dwimap": -1}  # and the sign of their correlation with EDSS


def test_shares_of_the_cohort() -> None:
    for seed in (0, 1):
        visits = list(draw_visits(seed, 150))
        ms = [visit for visit in visits if visit.person.group == "MS"]
        assert len(visits) == 150
        assert len(ms) / 150 == pytest.approx(0.85, abs=0.03)
        edss = np.array([visit.edss for visit in ms], dtype=float)
        assert 0.28 < np.mean(edss >= 5) < 0.37
        assert set(edss) <= set(people.EDSS_PERCENT)
        subjects = {visit.person.subject: visit.person.sessions for visit in ms}
        assert np.mean([n == 2 for n in subjects.values()]) == pytest.approx(0.25, abs=0.05)
        progressive = np.array([visit.person.ms_type == "PMS" for visit in ms])
        assert edss[progressive].mean() > edss[~progressive].mean() + 2


def test_edss_is_unrelated_to_everything_else() -> None:
    drawn = [draw_person(7, subject) for subject in range(1, 3001)]
    ms = [person for person in drawn if person.group == "MS"]
    edss = [person.edss for person in ms]
    for name in (
        "age", "decoy_severity", "severity_scatter", "t1_scatter", "mwf_scatter", "ndi_scatter",
        "ventricle_scatter_mm", "thinning_scatter", "sessions",
    ):  # fmt: skip
        assert abs(spearmanr([getattr(person, name) for person in ms], edss).statistic) < 0.06, name
    assert abs(spearmanr([person.sex == "F" for person in ms], edss).statistic) < 0.06
    group = [person.group == "MS" for person in drawn]
    assert abs(spearmanr([person.age for person in drawn], group).statistic) < 0.06


def test_severity() -> None:
    assert [severity(edss) for edss in (None, 0.0, 2.0, 5.0, 8.0)] == [0.0, 0.0, 0.0, 0.5, 1.0]


def pure(tissue: str, **changes: float) -> signal.Properties:
    parts = dict.fromkeys(("white", "grey", "deep_grey", "fluid", "lesion", "vessel", "damage"), 0.0)
    contents = signal.Contents(**{name: np.array([v]) for name, v in {**parts, tissue: 1.0, **changes}.items()})
    return signal.mix(contents, 1.0, 1.0, 1.0)


def test_tissue_constants_come_out() -> None:
    white = pure("white")
    assert 1 / white.mean_r1[0] == pytest.approx(838.0)
    assert (white.mwf[0], white.ndi[0]) == pytest.approx((0.12, 0.60))
    assert 1 / pure("fluid").mean_r1[0] == pytest.approx(4200.0, rel=1e-5)
    damaged = pure("white", damage=1.0)
    assert 1 / damaged.mean_r1[0] == pytest.approx(838.0 * 1.25)
    assert (damaged.mwf[0], damaged.ndi[0]) == pytest.approx((0.12 * 0.65, 0.60 * 0.75))
    lesion = pure("white", lesion=1.0)
    assert lesion.mwf[0] == pytest.approx(0.12 * 0.52)


def test_contrast_of_the_weighted_images() -> None:
    t1w = {name: signal.t1w(pure(name))[0] for name in ("white", "deep_grey", "grey", "fluid")}
    assert t1w["white"] > t1w["deep_grey"] > t1w["grey"] > 3 * t1w["fluid"]
    flair = {name: signal.flair(pure(name))[0] for name in ("white", "grey", "fluid")}
    lesion = pure("white", lesion=1.0)
    assert signal.flair(lesion)[0] > 1.3 * flair["grey"] > 1.3 * flair["white"] > 5 * flair["fluid"]
    assert t1w["grey"] < signal.t1w(lesion)[0] < 0.75 * t1w["white"]
    # Half fluid is between tissue and fluid, never brighter than tissue.
    assert signal.flair(pure("white", fluid=1.0))[0] == pytest.approx((flair["white"] + flair["fluid"]) / 2)


def test_rician_noise() -> None:
    """Without signal: Rayleigh, mean sd sqrt(pi / 2); with signal A: mean square A2 + 2 sd2."""
    rng = np.random.default_rng(0)
    background = signal.add_rician_noise(np.zeros(200_000), 3.0, rng)
    assert background.mean() == pytest.approx(3.0 * np.sqrt(np.pi / 2), rel=0.01)
    bright = signal.add_rician_noise(np.full(200_000, 10.0), 3.0, rng)
    assert np.mean(bright**2) == pytest.approx(100 + 2 * 9, rel=0.01)


def test_effect_changes_the_region_only() -> None:
    """With and without effect, noise and anatomy are the same: the ratio is the planted change, elsewhere 1."""
    visit = next(visit for visit in draw_visits(2, 60) if (visit.edss or 0) >= 6)
    made = [scan.make_scan(visit, voxel_size_mm=6.0, seed=2, effect=effect) for effect in (1.0, 0.0)]
    outside = (made[0].fractions["disability"] == 0) & (made[0].fractions["brain"] >= 0.5)
    for name in scan.IMAGES:
        np.testing.assert_array_equal(made[0].images[name][outside], made[1].images[name][outside])
    # Where all is white matter, and neither noise nor fluid interferes.
    deep = made[0].fractions["disability"] > 0.99
    ratio = np.median(made[0].images["T1map"][deep] / made[1].images["T1map"][deep])
    assert ratio == pytest.approx(1 + signal.PLANTED["t1"] * visit.severity, rel=0.02)
    ratio = np.median(made[0].images["dwimap"][deep]) / np.median(made[1].images["dwimap"][deep])
    assert ratio == pytest.approx(1 + signal.PLANTED["ndi"] * visit.severity, rel=0.03)


def test_effect_scales_with_its_setting() -> None:
    visit = next(visit for visit in draw_visits(2, 60) if (visit.edss or 0) >= 6)
    made = [scan.make_scan(visit, voxel_size_mm=8.0, seed=2, effect=effect) for effect in (0.0, 0.5, 1.0)]
    inside = made[0].fractions["disability"] > 0.5
    means = [one.images["T1map"][inside].mean() for one in made]
    assert means[0] < means[1] < means[2]
    assert means[1] - means[0] == pytest.approx(means[2] - means[1], rel=0.1)


def test_the_decoy_follows_its_own_draw() -> None:
    visit = next(draw_visits(2, 1))
    made = []
    for damage in (0.0, 1.0):
        person = replace(visit.person, decoy_severity=damage)
        made.append(scan.make_scan(replace(visit, person=person), voxel_size_mm=8.0, seed=2, effect=1.0))
    decoy = made[0].fractions["decoy"] > 0.5
    assert made[1].images["T1map"][decoy].mean() > 1.1 * made[0].images["T1map"][decoy].mean()


def region_means(visits: list[people.Visit], effect: float) -> dict[tuple[str, str], np.ndarray]:
    """Mean of each map in each region, one value per visit."""
    found: dict[tuple[str, str], list[float]] = {}
    for visit in visits:
        made = scan.make_scan(visit, voxel_size_mm=6.0, seed=1, effect=effect)
        for region in ("disability", "decoy"):
            inside = made.fractions[region] >= 0.5
            for name in QUANTITIES:
                found.setdefault((region, name), []).append(float(made.images[name][inside].mean()))
    return {key: np.array(values) for key, values in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("effect", [1.0, 0.0])
def test_ceiling(effect: float) -> None:
    """60 scans of people with MS: region means go with EDSS where planted, and nowhere else."""
    visits = [visit for visit in draw_visits(1, 90) if visit.person.group == "MS"][:60]
    edss = [visit.edss for visit in visits]
    means = region_means(visits, effect)
    for name, sign in QUANTITIES.items():
        planted = spearmanr(means["disability", name], edss)
        if effect:
            assert sign * planted.statistic > 0.7
        else:
            assert planted.pvalue > 0.01
        assert spearmanr(means["decoy", name], edss).pvalue > 0.01
    # The decoy varies as much as the planted region does.
    if effect:
        spread = {region: means[region, "T1map"].std() for region in ("disability", "decoy")}
        assert 0.6 < spread["decoy"] / spread["disability"] < 1.7
