"""Small scans with something to find: a bright square and a dark one in noise."""

from __future__ import annotations

import numpy as np

from relevance_assets.segmentation.data import LabelledScan


def squares(number: int, shape: tuple[int, int, int] = (20, 18, 4)) -> LabelledScan:
    """Brain 1 with noise 0.1; label 1 is darker, label 2 brighter."""
    random = np.random.default_rng(number)
    image, labels = np.zeros(shape), np.zeros(shape, dtype=np.uint8)
    image[1:-1, 1:-1] = 1
    x, y = random.integers(2, 6, size=2)
    labels[x : x + 5, y : y + 5, 1:] = 1
    labels[x + 7 : x + 11, y + 4 : y + 8, :-1] = 2
    image[labels == 1], image[labels == 2] = 0.5, 1.6
    image += 0.1 * random.standard_normal(shape) * (image > 0)
    return LabelledScan(f"sub-{number:02d}", f"sub-{number:02d}", np.clip(image, 0, None), labels)
