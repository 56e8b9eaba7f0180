"""Figures of lesions: the right colours at the right places, zeros shown, few people marked, nothing overlaps."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats
from test_figures import overlapping_texts, pixels

from relevance_assets.report.figures import save, thumbnail
from relevance_assets.report.figures_lesions import (
    GROUP_COLOURS,
    OVERLAP,
    PAPER_COLOURS,
    ZONES,
    _median,
    age_burden_figure,
    overlap_figure,
    zone_shares_figure,
    zones_over_flair_figure,
)

SHAPE = (40, 48, 12)
AFFINE = np.array([[4.0, 0, 0, -80], [0, 4, 0, -96], [0, 0, 7, -40], [0, 0, 0, 1]])


# ------------------------------------------------------------------------------------------------ zones over FLAIR
def head():
    flair = np.zeros(SHAPE)
    flair[6:34, 6:42] = 100
    return flair


def zoned(slices=(3, 5)):
    """A ventricle in the middle, a periventricular lesion on the right of it, a juxtacortical one on the left."""
    zones, ventricles = np.zeros(SHAPE, int), np.zeros(SHAPE, bool)
    ventricles[18:22, 20:28, 2:8] = True
    for z in slices:
        zones[24:28, 20:24, z], zones[8:12, 20:24, z] = 1, 3
    return zones, ventricles


def columns_of(shown, colour):
    return np.flatnonzero((np.abs(shown - np.array(colour)) < 30).all(axis=-1).any(axis=0))


def test_zones_have_the_publications_colours_on_the_right_side():
    zones, ventricles = zoned(slices=(3,))
    figure = zones_over_flair_figure(head(), zones, ventricles, AFFINE, "sub-1")
    cells = [axis for axis in figure.axes if axis.images]
    assert len(cells) == 1
    cells[0].texts[0].set_visible(False)
    shown = pixels(figure)[50 : int(80 * (figure.get_figheight() - 0.8)), : int(80 * 1.85)]
    blue, red, orange, yellow = (columns_of(shown, colour) for colour in PAPER_COLOURS.values())
    assert yellow.max() < blue.min() <= blue.max() < red.min()
    assert not len(orange)


def test_what_was_found_missed_and_made_up_have_colours_of_their_own():
    found, truth = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    truth[8:12, 20:24, 3] = 2  # on the left: missed
    truth[18:22, 20:24, 3] = found[18:22, 20:24, 3] = 2  # found
    found[26:30, 20:24, 3] = 2  # on the right: made up
    truth[18:22, 30:34, 3] = found[18:22, 30:34, 3] = 1
    figure = overlap_figure(head(), found, truth, AFFINE, "sub-1", head() > 0)
    shown = pixels(figure)[50 : int(80 * (figure.get_figheight() - 0.8)), : int(80 * 1.85)]
    blue, green, vermilion, yellow = (columns_of(shown, colour) for colour in OVERLAP.values())
    assert vermilion.max() < green.min() <= green.max() < yellow.min()
    assert len(blue)
    said = texts(figure)
    each = 4 * 4 * 4 * 4 * 7 / 1000
    for name in OVERLAP:
        assert f"{name} {each:.2f} ml" in said


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flip", [1, -1])
def test_the_files_axes_do_not_matter(axes, flip):
    zones, ventricles = zoned()
    expected = pixels(zones_over_flair_figure(head(), zones, ventricles, AFFINE, "sub-1"))
    moved = np.eye(4)
    moved[0, 0], moved[0, 3] = flip, SHAPE[0] - 1 if flip < 0 else 0
    order = np.eye(4)[:, [*axes, 3]]
    turned = [a[::flip].transpose(axes) for a in (head(), zones, ventricles)]
    shown = pixels(zones_over_flair_figure(*turned, AFFINE @ moved @ order, "sub-1"))
    np.testing.assert_array_equal(shown, expected)


def texts(figure):
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def test_the_legend_has_the_volumes_in_millilitres():
    zones, ventricles = zoned()
    angle = np.deg2rad(15)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    zones[20, 20, 3] = 1  # over the ventricle: a lesion
    said = texts(zones_over_flair_figure(head(), zones, ventricles, tilt @ AFFINE, "sub-1"))
    voxel_ml = 4 * 4 * 7 / 1000
    assert f"ventricles {(4 * 8 * 6 - 1) * voxel_ml:.2f} ml" in said
    assert f"periventricular {(2 * 16 + 1) * voxel_ml:.2f} ml" in said
    assert "paraventricular none" in said
    assert "the 2 slices with lesions; voxels 4.00 × 4.00 mm, slices 7.0 mm apart, tilted 15°" in said


def test_slices_without_lesions_or_anything():
    zones, ventricles = zoned()
    nothing = np.zeros_like(zones)
    assert "the 6 slices with ventricles; no lesion" in texts(
        zones_over_flair_figure(head(), nothing, ventricles, AFFINE, "x")
    )
    empty = zones_over_flair_figure(head() * 0, nothing, nothing > 0, AFFINE, "x")
    assert "the 4 slices in the middle; no lesion" in texts(empty)
    one = zones_over_flair_figure(head()[:, :, :1], nothing[:, :, :1], nothing[:, :, :1] > 0, AFFINE, "x")
    assert "the one slice in the middle" in texts(one)


def test_at_most_twelve_slices_from_first_to_last():
    flair = np.repeat(head()[:, :, :1], 40, axis=2)
    zones = np.zeros(flair.shape, int)
    zones[20, 20, 3:37] = 2
    figure = zones_over_flair_figure(flair, zones, zones < 0, AFFINE, "x")
    numbers = [int(axis.texts[0].get_text()) for axis in figure.axes if axis.images]
    assert len(numbers) == 12
    assert (numbers[0], numbers[-1]) == (4, 37)
    assert "12 of the 34 slices with lesions" in texts(figure)
    assert overlapping_texts(figure) == []


def test_a_brain_mask_narrows_the_view():
    zones, ventricles = zoned(slices=(3,))
    brain = np.zeros(SHAPE, bool)
    brain[8:28, 20:28] = True
    sizes = []
    for mask in (None, brain):
        figure = zones_over_flair_figure(head(), zones, ventricles, AFFINE, "x", mask)
        sizes.append(next(axis for axis in figure.axes if axis.images).images[0].get_array().shape)
    assert sizes == [(36 + 2, 28 + 2), (8 + 2, 20 + 2)]


def test_what_cannot_be_drawn_is_said():
    zones, ventricles = zoned()
    with pytest.raises(ValueError, match="resample the masks"):
        zones_over_flair_figure(head()[:-1], zones, ventricles, AFFINE, "x")
    with pytest.raises(ValueError, match="4 is no zone; 0 to 3 are"):
        zones_over_flair_figure(head(), zones + (zones == 3), ventricles, AFFINE, "x")


# ---------------------------------------------------------------------------------------------------- burden by age
def people(n=60, **changes):
    random = np.random.default_rng(3)
    table = {
        "age": random.uniform(18, 75, n),
        "sex": (np.arange(n) % 2).astype(float),
        "group": ["HC", "HC", "MS", "MS"] * (n // 4),
        "burden": np.where(np.arange(n) % 5 == 0, 0.0, random.lognormal(-3, 1, n)),
    }
    return pl.DataFrame(table | changes)


def offsets(axis):
    """Points of each scatter."""
    from matplotlib.collections import PathCollection

    return [np.asarray(dots.get_offsets()) for dots in axis.collections if isinstance(dots, PathCollection)]


def test_everybody_is_drawn_and_zeros_are_in_the_strip():
    table = people(age=[None, 30.0, 30.0, None, *np.linspace(19, 74, 56)])
    figure = age_burden_figure(table, "burden", "lesions, %")
    upper, strips = figure.axes[:2], figure.axes[2:4]
    aged = table.drop_nulls("age")
    for sex, (above, strip) in enumerate(zip(upper, strips, strict=True)):
        part = aged.filter(pl.col("sex") == sex)
        drawn = np.concatenate(offsets(above))
        wanted = part.filter(pl.col("burden") > 0).sort("group").select("age", "burden").to_numpy()
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(wanted, axis=0))
        none = np.concatenate(offsets(strip))
        assert len(none) == (part["burden"] == 0).sum()
        assert set(np.round(none[:, 1])) <= {0, 1}
        assert above.get_yscale() == "log"
    assert "not drawn: 2 without an age" in texts(figure)
    assert overlapping_texts(figure) == []


@pytest.mark.parametrize("n", [5, 6, 7, 10, 25, 131])
def test_the_interval_of_a_median_holds_it_often_enough(n):
    values = np.random.default_rng(0).permutation(np.arange(n, dtype=float))
    middle, low, high = _median(values)
    assert middle == np.median(values)
    if n < 6:
        assert low is None
        return
    assert low + high == n - 1
    # coverage: between `low` and `high` values are below the true median
    inside = sum(stats.binom.pmf(k, n, 0.5) for k in range(int(low) + 1, int(high) + 1))
    narrower = sum(stats.binom.pmf(k, n, 0.5) for k in range(int(low) + 2, int(high)))
    assert inside >= 0.95 > narrower


def test_the_medians_are_of_everybody_and_a_zero_median_is_in_the_strip():
    table = pl.DataFrame(
        {
            "age": [20.0] * 7 + [35.0] * 3,
            "sex": [0.0] * 10,
            "group": ["MS"] * 10,
            "burden": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0, 0.0, 0.9],
        }
    )
    figure = age_burden_figure(table, "burden", "lesions, %")
    points = [
        line.get_xydata()[0] for line in figure.axes[0].lines if line.get_marker() == "^" and len(line.get_xdata())
    ]
    np.testing.assert_allclose(points, [[24.7, 0.3]])
    assert [line.get_xdata()[0] for line in figure.axes[2].lines] == pytest.approx([35.7])
    spans = [
        line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "None" and line.get_color() == "black"
    ]
    assert max(spans[0]) == 0.6
    assert min(spans[0]) == figure.axes[0].get_ylim()[0]  # to the edge: the least of the seven has none
    assert overlapping_texts(figure) == []


def test_a_median_below_everybody_is_on_the_axis_and_hollow_where_few():
    table = pl.DataFrame({"age": [20.0, 25.0], "sex": [1.0, 1.0], "group": ["MS"] * 2, "burden": [0.0, 0.1]})
    figure = age_burden_figure(table, "burden", "lesions, %")
    (median,) = [line for line in figure.axes[1].lines if line.get_marker() == "^" and len(line.get_xdata())]
    assert median.get_ydata()[0] == 0.05 > figure.axes[1].get_ylim()[0]
    assert median.get_markerfacecolor() == "white"
    assert median.get_color() == GROUP_COLOURS[1]  # MS has its colour though there is no HC
    assert "hollow: fewer than 5 people" in texts(figure)
    assert "hollow" not in texts(age_burden_figure(people().with_columns(age=30.0), "burden", "x"))


@pytest.mark.parametrize(
    "table",
    [
        people(group=["MS"] * 60),
        people(burden=[0.0] * 60),
        people(sex=[1.0] * 60),
        people().head(1).with_columns(burden=0.2),
    ],
)
def test_one_group_one_sex_one_person_or_no_lesion(table):
    figure = age_burden_figure(table, "burden", "lesions, %")
    assert overlapping_texts(figure) == []
    assert len(pixels(figure))


def test_nobody_and_too_many_groups_are_refused():
    with pytest.raises(ValueError, match="nobody of HC, MS has an age"):
        age_burden_figure(people(age=pl.Series([None] * 60, dtype=pl.Float64)), "burden", "x")
    with pytest.raises(ValueError, match="at most 2"):
        age_burden_figure(people(), "burden", "x", groups=["a", "b", "c"])


# ----------------------------------------------------------------------------------------------------- shares by age
def shares(**of_band):
    rows = []
    for stratum in ("all", "men"):
        for band, n in of_band.items():
            for zone, share in zip(ZONES, (60.0, 30.0, 10.0), strict=True):
                rows.append({"stratum": stratum, "band": band, "zone": zone, "share": share, "n": n})
    return pl.DataFrame(rows)


def test_shares_are_stacked_and_few_people_are_hatched():
    figure = zone_shares_figure(shares(young=40, old=1), ["all", "men"], ["young", "old", "oldest"])
    for axis in figure.axes:
        bars = [(round(b.get_x() + 0.41), b.get_y(), b.get_height(), bool(b.get_hatch())) for b in axis.patches]
        for place, hatched in ((0, False), (1, True)):
            assert [b[1:] for b in bars if b[0] == place] == [
                (0, 60, hatched),
                (60, 30, hatched),
                (90, 10, hatched),
            ]
        assert [b[2] for b in bars if b[0] == 2] == [0, 0, 0]
    assert "fewer than 5 people" in texts(figure)
    assert {"40", "1", "0"} <= set(texts(figure).split(" | "))
    assert overlapping_texts(figure) == []
    assert "fewer" not in texts(zone_shares_figure(shares(young=5), ["all"], ["young"]))


def test_shares_of_nothing():
    figure = zone_shares_figure(shares(young=40).with_columns(share=None, n=0), ["all"], ["young"])
    assert overlapping_texts(figure) == []
    with pytest.raises(ValueError, match="no stratum or no band"):
        zone_shares_figure(shares(young=1), [], ["young"])


def test_the_groups_colours_are_not_the_same():
    assert len(set(GROUP_COLOURS)) == 2


def test_files_are_the_same_every_time_and_thumbnails_fit(tmp_path):
    files = [save(age_burden_figure(people(), "burden", "x"), tmp_path / name) for name in ("a.png", "b.png")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(thumbnail(files[0])) < 22_000
