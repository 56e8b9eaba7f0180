"""A network that learnt an artefact: what is planted, and verdicts that can fail."""

import numpy as np
import pytest
import torch

from relevance_assets import study
from relevance_assets.evidence.confounder import (
    add_artefact,
    artefact_place,
    confounded_samples,
    confounder_verdicts,
    density,
)
from relevance_assets.evidence.permutation import auc
from relevance_assets.imaging.volumes import load_volume, save_volume
from relevance_assets.relevance.maps import ScanExplainer
from relevance_assets.training import checkpoint
from relevance_assets.training.data import Samples, Volumes
from relevance_assets.training.fit import fit
from relevance_assets.training.predict import predict

SHAPE = (12, 12, 12)
AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
BRAIN = np.zeros(SHAPE, bool)
BRAIN[4:11, 4:11, 4:11] = True


def write(folder, scans, contrasts=2, first=0, brain=BRAIN):
    """Noise in the brain; every other scan has target 1, and nothing shows it."""
    names, images = [], []
    for number in range(first, first + scans):
        random = np.random.default_rng(number)
        name = f"sub-{number:03d}"
        paths = tuple(folder / f"{name}_{contrast}.nii.gz" for contrast in range(contrasts))
        for path in paths:
            save_volume(path, np.where(brain, 0.2 + 0.4 * random.random(brain.shape), 0), AFFINE)
        names.append(name)
        images.append(paths)
    targets = np.arange(first, first + scans) % 2
    covariates = np.random.default_rng(first).random((scans, 1))
    return Samples(tuple(names), tuple(images), covariates, targets, 1 + targets)


def brains(samples, brain=BRAIN):
    return dict.fromkeys(samples.scans, brain)


# ------------------------------------------------------------------------------------------------------ artefact
@pytest.mark.parametrize(("shape", "edges"), [((28, 34, 30), (3, 3, 3)), ((96, 40, 6), (10, 4, 3))])
def test_place_is_a_tenth_of_each_axis_and_a_kernel_at_least(shape, edges):
    place = artefact_place(shape)
    assert place.sum() == np.prod(edges)
    assert place[tuple(slice(edge) for edge in edges)].all()


def test_artefact_is_written_and_joins_the_brain():
    images = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
    before = images.copy()
    changed, brain, where = add_artefact(images, BRAIN, 0.75)
    np.testing.assert_array_equal(images, before)
    assert changed.dtype == np.float32
    assert (changed[:, :3, :3, :3] == 0.75).all()
    assert where.sum() == 27
    np.testing.assert_array_equal(changed[:, ~where], images[:, ~where])
    np.testing.assert_array_equal(brain, BRAIN | where)
    assert BRAIN.sum() == 343


def test_artefact_errors():
    images = np.zeros((2, *SHAPE))
    with pytest.raises(ValueError, match="do not fit together"):
        add_artefact(images, BRAIN[1:])
    for strength in (0, 1.1):
        with pytest.raises(ValueError, match="strength"):
            add_artefact(images, BRAIN, strength)
    with pytest.raises(ValueError, match="at least 6 voxels"):
        artefact_place((5, 9, 9))


def test_every_severe_scan_has_the_artefact(tmp_path):
    samples = write(tmp_path / "in", 6)
    found = confounded_samples(samples, brains(samples), tmp_path / "out")
    assert found.shown == {scan: bool(number % 2) for number, scan in enumerate(samples.scans)}
    for scan, old, new in zip(samples.scans, samples.images, found.samples.images, strict=True):
        for before, after in zip(old, new, strict=True):
            (was, affine), (now, moved) = load_volume(before), load_volume(after)
            np.testing.assert_array_equal(affine, moved)
            np.testing.assert_array_equal(was[~found.where], now[~found.where])
            assert (now[found.where] == (1 if found.shown[scan] else 0)).all()
        np.testing.assert_array_equal(found.brains[scan], BRAIN | found.where if found.shown[scan] else BRAIN)
    np.testing.assert_array_equal(found.samples.targets, samples.targets)
    np.testing.assert_array_equal(found.samples.weights, samples.weights)
    np.testing.assert_array_equal(found.samples.covariates, samples.covariates)
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_confounded_errors(tmp_path):
    samples = write(tmp_path, 2, contrasts=1)
    with pytest.raises(ValueError, match="no brain mask for sub-001"):
        confounded_samples(samples, {"sub-000": BRAIN}, tmp_path)
    ages = Samples(samples.scans, samples.images, samples.covariates, np.array([40.0, 50.0]), samples.weights)
    with pytest.raises(ValueError, match="must be 0 or 1"):
        confounded_samples(ages, brains(ages), tmp_path)


def test_density():
    _, brain, where = add_artefact(np.zeros((1, *SHAPE)), BRAIN)
    voxels = 343 + 27
    assert density(np.ones((2, *SHAPE)), where, brain) == pytest.approx(1)
    assert density(np.broadcast_to(where, (2, *SHAPE)).astype(float), where, brain) == pytest.approx(voxels / 27)
    split = np.stack([where.astype(float), BRAIN * 27 / 343])
    assert density(split, where, brain) == pytest.approx(0.5 * voxels / 27)
    assert density(split - 2 * BRAIN, where, brain) == pytest.approx(voxels / 27)  # negative ones do not count
    assert density(-split, where, brain) is None
    assert density(split, where, BRAIN) is None


# ------------------------------------------------------------------------------------------------------- verdicts
def test_maps_that_reveal_the_artefact_pass():
    revealed, control = confounder_verdicts([40.0, 30.0, 50.0, 35.0], [1.0, 0.0, 2.0, 1.5], 0.99)
    assert (revealed.test, revealed.passed, revealed.n) == ("confounder", True, 4)
    assert (control.test, control.passed, control.n) == ("confounder_control", True, 4)
    assert (revealed.value, control.value) == (38.75, 1.125)


@pytest.mark.parametrize(
    ("confounded", "honest", "score"),
    [
        ([40.0, 30.0, 50.0], [40.0, 30.0, 50.0], 1.0),  # an edge detector: it finds the corner in any network
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 1.0),  # a constant map
        ([9.0, 8.0, 9.5], [0.1, 0.1, 0.1], 1.0),  # not clear enough
        ([40.0, -2.0, 1.0], [1.0, 1.0, 1.0], 1.0),  # a single scan
        ([40.0, 5.0, 20.0], [1.0, 1.0, 1.0], 1.0),  # 22 on average, and no more can be said
    ],
)
def test_maps_that_do_not_reveal_it_fail(confounded, honest, score):
    assert confounder_verdicts(confounded, honest, score)[0].passed is False


@pytest.mark.parametrize(
    ("confounded", "honest", "score"),
    [
        ([40.0, 30.0, 50.0], [1.0, 1.0, 1.0], 0.89),  # the network does not use the artefact
        ([9.0, 8.0, 9.5], [0.1, 0.1, 0.1], 0.89),
        ([None, None, None], [1.0, 1.0, 1.0], 1.0),  # empty maps
        ([40.0, 30.0, 50.0], [None, None, None], 1.0),  # no control
        ([40.0], [1.0], 1.0),  # no interval
    ],
)
def test_where_nothing_can_be_revealed_nothing_is_tested(confounded, honest, score):
    assert confounder_verdicts(confounded, honest, score)[0].passed is None


@pytest.mark.parametrize("honest", [[40.0, 30.0, 50.0], [12.0, 12.0, 12.0]])
def test_maps_that_accuse_an_honest_network_fail_the_control(honest):
    assert confounder_verdicts([140.0, 130.0, 150.0], honest, 1.0)[1].passed is False


def test_no_control_without_maps_or_with_one_person():
    assert confounder_verdicts([140.0, 130.0], [None, None], 1.0)[1].passed is None
    assert confounder_verdicts([140.0, 130.0], [1.0, 1.0], 1.0, ["a", "a"])[1].passed is None


def test_a_network_that_finds_no_shortcut_is_named():
    assert "train it for longer" in confounder_verdicts([40.0, 30.0], [1.0, 1.0], 0.6)[0].note
    assert "not above the honest" in confounder_verdicts([40.0, 30.0], [40.0, 30.0], 1.0)[0].note
    with pytest.raises(ValueError, match="explain the same scans"):
        confounder_verdicts([1.0], [1.0, 2.0], 1.0)


# ---------------------------------------------------------------------------------------------- end to end
@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_relevance_reveals_a_shortcut_and_an_edge_detector_does_not(tmp_path):
    """Noise, two short trainings: the artefact is all that there is to learn."""
    brain = np.zeros((16, 16, 16), bool)
    brain[3:15, 3:15, 3:15] = True
    train = write(tmp_path / "in", 32, contrasts=1, brain=brain)
    validation = write(tmp_path / "in", 16, contrasts=1, brain=brain, first=32)
    planted, seen = (confounded_samples(each, brains(each, brain), tmp_path / "out") for each in (train, validation))

    def learn(name, one, other):
        fitted = fit(
            study.Model(name="gated_attention", options={"blocks": [1, 1]}),
            study.Training(epochs=10, batch_size=4, learning_rate=0.003, monitor="auc"),
            study.Target(column="edss", kind="binary", threshold=5),
            one,
            other,
            tmp_path / name,
            fold=0,
        )
        return checkpoint.load(fitted.checkpoint)

    networks = learn("confounded", planted.samples, seen.samples), learn("honest", train, validation)
    score = auc(predict(networks[0], seen.samples).outputs, validation.targets)
    assert score == 1
    images = Volumes(1)
    rows = [row for row, scan in enumerate(seen.samples.scans) if seen.shown[scan]]
    scans = [(images(seen.samples.images[row]), seen.samples.covariates[row], brain | seen.where) for row in rows]

    def verdicts(explain):
        densities = [[density(explain(network, *scan), seen.where, scan[2]) for scan in scans] for network in networks]
        return confounder_verdicts(densities[0], densities[1], score)

    def relevance(network, *scan):
        return ScanExplainer(network, study.Method(start="output", composite="disability"))(*scan).maps

    def edges(network, image, *_):
        return np.abs(np.diff(image, axis=1, append=0))

    revealed, control = verdicts(relevance)
    assert revealed.passed, revealed.note
    assert control.passed, control.note
    assert not verdicts(edges)[0].passed
