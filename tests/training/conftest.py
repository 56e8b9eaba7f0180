"""A small cohort on disk: noise, with the target in a corner's brightness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from relevance_assets.imaging.volumes import save_volume
from relevance_assets.training.data import Samples

MakeSamples = Callable[..., Samples]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait for their threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_samples(tmp_path: Path) -> MakeSamples:
    return lambda *args, **settings: write_samples(tmp_path / "images", *args, **settings)


def write_samples(
    folder: Path,
    n: int,
    *,
    first: int = 0,
    contrasts: int = 1,
    shape: tuple[int, int, int] = (8, 8, 8),
    kind: str = "regression",
) -> Samples:
    scans, images, targets = [], [], []
    for number in range(first, first + n):
        random = np.random.default_rng(number)
        target = float(number % 2) if kind == "binary" else 30.0 + 40 * random.random()
        paths = []
        for contrast in range(contrasts):
            volume = 0.3 * random.random(shape)
            volume[: shape[0] // 2, :, : shape[2] // 2] += 0.6 * (target if kind == "binary" else target / 80)
            volume[-1] = 0
            paths.append(folder / f"sub-{number:03d}_{contrast}.nii.gz")
            save_volume(paths[-1], volume, np.diag([4.0, 4.0, 4.0, 1.0]))
        scans.append(f"sub-{number:03d}")
        images.append(tuple(paths))
        targets.append(target)
    random = np.random.default_rng(first)
    return Samples(tuple(scans), tuple(images), random.random((n, 1)), np.array(targets), np.ones(n))
