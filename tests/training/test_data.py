"""Samples, the bounded memory of images, and the order of an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from relevance_assets.imaging.volumes import ScanError, save_volume
from relevance_assets.study import Augmentation
from relevance_assets.training import data
from relevance_assets.training.data import (
    Batches,
    Samples,
    TrainingError,
    Volumes,
    epoch_changes,
    epoch_order,
    seed_of,
)

MakeSamples = Callable[..., Samples]


def test_samples_refuse_what_does_not_fit() -> None:
    with pytest.raises(TrainingError, match="2 scans need as many"):
        Samples(("sub-1", "sub-2"), ((), ()), np.zeros((2, 0)), np.zeros(1), np.ones(2))
    with pytest.raises(TrainingError, match="covariates of sub-2 is missing"):
        Samples(("sub-1", "sub-2"), ((), ()), np.array([[1.0], [np.nan]]), np.zeros(2), np.ones(2))
    with pytest.raises(TrainingError, match="same number of contrasts"):
        Samples(("sub-1", "sub-2"), ((Path("a"),), ()), np.zeros((2, 0)), np.zeros(2), np.ones(2))


def test_images_are_read_once_while_they_fit(make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(6, contrasts=2)
    reads: Counter[Path] = Counter()
    original = data.load_volume

    def counting(path: Path) -> tuple[np.ndarray, np.ndarray]:
        reads[path] += 1
        return original(path)

    monkeypatch.setattr(data, "load_volume", counting)
    size = 2 * 8**3 * 4
    volumes = Volumes(2.5 * size / 2**30)
    for _ in range(3):
        for paths in samples.images:
            assert volumes(paths).shape == (2, 8, 8, 8)
            assert volumes.bytes_kept <= 2.5 * size
    assert [reads[paths[0]] for paths in samples.images] == [1, 1, 3, 3, 3, 3]


def test_another_shape_or_a_damaged_file_is_named(make_samples: MakeSamples, tmp_path: Path) -> None:
    samples = make_samples(1)
    volumes = Volumes(0)
    volumes(samples.images[0])
    save_volume(tmp_path / "other.nii.gz", np.ones((8, 8, 7)), np.eye(4))
    with pytest.raises(TrainingError, match=r"other\.nii\.gz: shape 8x8x7 differs .* 8x8x8; prepare"):
        volumes((tmp_path / "other.nii.gz",))
    (tmp_path / "broken.nii.gz").write_bytes(samples.images[0][0].read_bytes()[:300])
    with pytest.raises(ScanError, match=r"broken\.nii\.gz"):
        volumes((tmp_path / "broken.nii.gz",))


def test_batches_cover_the_order_in_nearly_equal_parts(make_samples: MakeSamples) -> None:
    samples = make_samples(9)
    order = np.random.default_rng(0).permutation(9)
    batches = list(Batches(samples, Volumes(1), 4, order))
    assert [len(batch.targets) for batch in batches] == [3, 3, 3]
    assert np.concatenate([batch.targets.numpy() for batch in batches]).tolist() == samples.targets[order].tolist()
    volume = Volumes(0)(samples.images[order[0]])
    assert np.array_equal(batches[0].images[0].numpy(), volume)
    assert len(Batches(samples, Volumes(1), 8)) == 2


def test_a_balanced_epoch_shows_both_classes_equally_often() -> None:
    targets = np.array([0] * 900 + [1] * 100, dtype=np.float32)
    order = epoch_order(targets, balanced=True, random=np.random.default_rng(0))
    assert len(order) == 1000
    assert targets[order].mean() == pytest.approx(0.5, abs=0.05)


def test_a_plain_epoch_shows_every_scan_once() -> None:
    order = epoch_order(np.zeros(50), balanced=False, random=np.random.default_rng(0))
    assert sorted(order) == list(range(50))
    assert list(order) != list(range(50))


def test_seeds_differ_in_every_part_and_fit_torch() -> None:
    seeds = {
        seed_of(seed, fold, epoch, purpose)
        for seed in range(3)
        for fold in range(3)
        for epoch in range(20)
        for purpose in data.PURPOSES
    }
    assert len(seeds) == 3 * 3 * 20 * 4
    assert max(seeds) < 2**63


def test_no_changes_are_drawn_where_none_are_set() -> None:
    assert epoch_changes(Augmentation(), 5, np.random.default_rng(0)) is None
    changes = epoch_changes(Augmentation(noise_sd=0.1), 5, np.random.default_rng(0))
    assert changes is not None
    assert len(changes) == 5
