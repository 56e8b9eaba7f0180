"""Small pictures for the event log: right way up, never above 30 kB."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relevance_assets.assets.metadata import MAX_BYTES, PANEL, Picture, overlay_mosaic, thumbnail


def pixels(picture: Picture) -> np.ndarray:
    data = picture.partition("base64,")[2].partition(")")[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_top_of_the_head_is_up() -> None:
    image = np.zeros((1, 20, 24, 16))
    image[:, :, :, 12:] = 1  # superior quarter
    shown = pixels(overlay_mosaic(image[0], np.zeros_like(image), ["T1w"]))
    assert shown.shape == (3 * PANEL, PANEL, 3)
    coronal = shown[PANEL : 2 * PANEL]
    assert coronal[: PANEL // 2].mean() > 50
    assert coronal[PANEL // 2 :].mean() < 5


def test_positive_is_red_negative_is_blue() -> None:
    image = np.full((8, 8, 8), 0.5)
    relevance = np.zeros((1, 8, 8, 8))
    relevance[0, :4] = 1
    relevance[0, 4:] = -1
    axial = pixels(overlay_mosaic(image, relevance, ["qT1"]))[:PANEL]
    left, right = axial[:, : PANEL // 2 - 4], axial[:, PANEL // 2 + 4 :]
    assert left[..., 0].mean() > left[..., 2].mean() + 100
    assert right[..., 2].mean() > right[..., 0].mean() + 100


@pytest.mark.parametrize("columns", [1, 4, 12])
def test_noise_stays_below_the_limit(columns: int) -> None:
    random = np.random.default_rng(0)
    maps = random.normal(size=(columns, 24, 30, 24))
    picture = overlay_mosaic(random.random((24, 30, 24)), maps, [str(i) for i in range(columns)])
    assert len(picture) < MAX_BYTES


def test_a_map_of_zeros_is_shown() -> None:
    shown = pixels(overlay_mosaic(np.ones((4, 4, 4)), np.zeros((1, 4, 4, 4)), ["none"]))
    assert shown.max() > 0


def test_the_thumbnail_of_a_preparation_is_the_mosaic_beside_its_figure(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 7, 3), 90, np.uint8)).save(tmp_path / "a_preparation_mosaic.png")
    shown = thumbnail(tmp_path / "a_preparation.png")
    assert pixels(shown).shape == (5, 7, 3)
    assert "a_preparation.png" in shown
