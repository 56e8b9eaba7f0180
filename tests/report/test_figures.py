"""Figures: that they draw what they are given, the right way round, legibly, and the same every time."""

import io
import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from PIL import Image

from relevance_assets.report import figures
from relevance_assets.report.figures_brain import OverlayScan, heatmap_figure, scan_overlays_figure
from relevance_assets.report.figures_curves import Line, inversion_curves_figure

N = [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
REFERENCE = Line("lrp", "combined", "3 proposed, combined")
OTHERS = [Line("lrp", "individual", "1 proposed, individual"), Line("all", "combined", "4 LRP-all, combined")]
PANELS = {
    "From the attention weights": [*OTHERS, REFERENCE],
    "Gradients": [Line("saliency", "individual", "9 saliency")],
}
AFFINE = np.array([[4.0, 0, 0, -74], [0, 4, 0, -110], [0, 0, 4, -66], [0, 0, 0, 1]])
SHAPE = (38, 47, 38)


def rows(method, kind, control="own", folds=("0", "1", "mean"), shift=0.0, draw=None, low=None, high=None):
    out = []
    for fold in folds:
        move = {"0": -0.02, "1": 0.02}.get(fold, 0.0) + shift
        for n in N:
            row = {"method": method, "map": kind, "control": control, "fold": fold, "top_percent": n, "draw": draw}
            out.append(row | {"auc": 0.8 - 0.003 * n + move, "low": low, "high": high, "n": 40})
    return out


def curves(controls=True, **of_own):
    data = [row for line in (*OTHERS, REFERENCE, *PANELS["Gradients"]) for row in rows(line.method, line.map, **of_own)]
    if controls:
        for draw in range(5):
            data += rows("lrp", "combined", "random", ["mean"], 0.05 + draw / 100, draw, low=0.1, high=0.9)
        data += [row | {"auc": 0.41} for row in rows("lrp", "combined", "planted", ["0", "mean"])[-1:]]
        data += [row | {"auc": 0.77} for row in rows("lrp", "combined", "random_planted", ["mean"])[-1:]]
    return pl.DataFrame(data, infer_schema_length=None)


def brain():
    x, y, z = (
        AFFINE[i, 3] + 4 * np.arange(SHAPE[i]).reshape([-1 if i == j else 1 for j in range(3)]) for i in range(3)
    )
    return (x / 68) ** 2 + ((y + 18) / 84) ** 2 + ((z - 6) / 68) ** 2 < 1


def scan(title="Mild disability: EDSS 2.5"):
    inside = brain()
    random = np.random.default_rng(0)
    images = np.clip(random.normal(0.5, 0.1, (3, *SHAPE)), 0.01, 1) * inside
    maps = random.normal(size=(3, *SHAPE)) * inside
    return OverlayScan(title, images, maps, maps.sum(0), inside & (maps.sum(0) > 1), AFFINE)


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def overlapping_texts(figure):
    """Pairs of texts whose boxes meet, and texts that leave the page."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    hidden = set()  # ticks of axes without frame or beyond their ends are not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not axes.axison or not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    hidden |= {tick.label1, tick.label2}
    texts = [
        text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible() and text not in hidden
    ]
    boxes = [text.get_window_extent().padded(-1) for text in texts]
    page = figure.bbox.padded(1)
    bad = [
        (a.get_text(), b.get_text())
        for (a, m), (b, n) in itertools.combinations(zip(texts, boxes, strict=True), 2)
        if m.overlaps(n)
    ]
    return bad + [t.get_text() for t, b in zip(texts, boxes, strict=True) if not page.overlaps(b) or b.x1 > page.x1]


def red_and_blue(shown):
    """Columns of reddish and of bluish pixels."""
    red = (shown[..., 0] > 200) & (shown[..., 1] < 90) & (shown[..., 2] < 90)
    blue = (shown[..., 2] > 200) & (shown[..., 1] < 90) & (shown[..., 0] < 90)
    return np.flatnonzero(red.any(0)), np.flatnonzero(blue.any(0))


@pytest.fixture(scope="module")
def heat():
    """One blob on the right in severe scans, one on the left in mild ones."""
    mild, severe = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    mild[8:13, 20:26, 10:35] = 0.5
    severe[25:30, 20:26, 10:35] = 0.6
    return mild, severe, severe - mild, brain() * 0.7


def test_lines_are_the_tables_means():
    figure = inversion_curves_figure(curves(), PANELS, REFERENCE)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(PANELS)
    for axis, lines in zip(figure.axes, ([REFERENCE, *OTHERS], [REFERENCE, *PANELS["Gradients"]]), strict=True):
        drawn = {line.get_label(): line for line in axis.lines}
        for line in lines:
            np.testing.assert_array_equal(drawn[line.label].get_xdata(), N)
            np.testing.assert_allclose(drawn[line.label].get_ydata(), 0.8 - 0.003 * np.array(N))
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [line.label for line in lines]
        colours = [drawn[line.label].get_color() for line in lines]
        assert len(set(colours)) == len(colours)


def edges(axis):
    """Least and greatest y at N = 40 of each shaded band."""
    out = []
    for band in axis.collections:
        corners = band.get_paths()[0].vertices
        at = corners[np.isclose(corners[:, 0], 40), 1]
        out.append((at.min(), at.max()))
    return np.array(out)


def test_bands_are_the_range_over_folds_or_what_the_table_says():
    figure = inversion_curves_figure(curves(controls=False), PANELS, REFERENCE)
    np.testing.assert_allclose(edges(figure.axes[0]), [[0.66, 0.70]] * 3)
    figure = inversion_curves_figure(curves(controls=False, low=0.6, high=0.75), PANELS, REFERENCE)
    np.testing.assert_allclose(edges(figure.axes[0]), [[0.6, 0.75]] * 3)
    figure = inversion_curves_figure(curves(controls=False, folds=["mean"]), PANELS, REFERENCE)
    np.testing.assert_allclose(edges(figure.axes[0]), [[0.68, 0.68]] * 3)


def test_controls_are_drawn_behind():
    figure = inversion_curves_figure(curves(), PANELS, REFERENCE)
    for axis in figure.axes:
        np.testing.assert_allclose(edges(axis)[0], [0.73, 0.77])
        heights = {line.get_label(): line.get_ydata() for line in axis.lines}
        np.testing.assert_allclose(heights["mean of random masks"][2], 0.75)
        assert set(heights["planted region itself inverted"]) == {0.41}
        assert set(heights["random masks of the planted region's size"]) == {0.77}
    summary = pl.DataFrame(rows("lrp", "combined", "random", ["mean"], low=0.6, high=0.9), infer_schema_length=None)
    both = pl.concat([curves(controls=False), summary], how="diagonal_relaxed")
    np.testing.assert_allclose(edges(inversion_curves_figure(both, PANELS, REFERENCE).axes[0])[0], [0.6, 0.9])
    plain = inversion_curves_figure(curves(controls=False), PANELS, REFERENCE)
    assert len(plain.axes[0].collections) == 3


def test_below_chance_is_said_to_be_no_more_lost():
    def said(frame):
        figure = inversion_curves_figure(frame, PANELS, REFERENCE)
        return [text.get_text() for axis in figure.axes for text in axis.texts]

    assert said(curves()) == ["chance; below: decisions reversed, no more lost"]
    assert said(curves(controls=False).with_columns(auc=pl.col("auc") / 4 + 0.7)) == []


def test_overlays_show_the_person_the_right_way_round():
    one = scan()
    right = np.zeros(SHAPE)
    right[28:32, 20:24, 16:20], right[5:9, 20:24, 16:20] = 1.0, -1.0  # for on the right, against on the left
    plain = OverlayScan("x", one.images, np.stack([right] * 3), right, right > 0, AFFINE)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    flipped = OverlayScan("x", plain.images[:, ::-1], plain.maps[:, ::-1], right[::-1], right[::-1] > 0, AFFINE @ flip)
    shown = pixels(scan_overlays_figure([plain], "abc", "top 40 %"))
    red, blue = red_and_blue(shown[:, : int(2.4 * 80)])
    assert blue.min() < 100 < red.max()
    assert blue.max() < red.min()
    np.testing.assert_array_equal(shown, pixels(scan_overlays_figure([flipped], "abc", "top 40 %")))


def test_overlays_of_maps_with_nothing_in_them():
    one = scan()
    empty = np.zeros(SHAPE)
    blank = OverlayScan("nothing", one.images, np.zeros((3, *SHAPE)), empty, empty > 0, AFFINE)
    red, blue = red_and_blue(pixels(scan_overlays_figure([blank], "abc", "top 40 %"))[:, :760])
    assert not len(red)
    assert not len(blue)


def test_heat_map_is_the_right_way_round(heat):
    shown = pixels(heatmap_figure(*heat, AFFINE, z_mm=[0]))
    red, blue = red_and_blue(shown[:, : int(80 * 1.8)])
    assert blue.max() < red.min()


def test_heat_map_scales(heat):
    mild, severe, difference, template = heat
    figure = heatmap_figure(*heat, AFFINE)
    frequency, other = (axis for axis in figure.axes if axis.get_ylabel())
    assert frequency.get_ylim() == (0.0, 0.65)
    assert other.get_ylim() == pytest.approx((-0.6, 0.6))
    figure = heatmap_figure(mild, severe + 0.35 * (severe > 0), difference, template, AFFINE)
    assert next(axis for axis in figure.axes if axis.get_ylabel()).get_ylim() == pytest.approx((0, 0.95))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "z = −18 mm"  # the voxel nearest to -20, a tie that goes to the even index
    assert len(titles) == 9


def test_heat_map_outlines_what_is_significant(heat):
    plain, marked = (heatmap_figure(*heat, AFFINE, significant=s) for s in (None, heat[2] > 0.5))
    assert len(marked.legends) == 1
    assert not plain.legends
    contours = [sum(bool(axis.collections) for axis in figure.axes) for figure in (plain, marked)]
    assert contours[1] > contours[0]


NOTE = "First scans. 160 of 232 scans moved to MNI152NLin2009aSym along their warp, 72 taken to lie there already"


def test_heat_map_says_how_scans_came_into_template_space(heat):
    assert NOTE in [text.get_text() for text in heatmap_figure(*heat, AFFINE, note=NOTE).texts]


def test_no_text_overlaps_or_leaves_the_page(heat):
    long = [f"{title}, predicted probability of severe 0.08" for title in ("Mild: EDSS 2.5", "Severe: EDSS 6.5")]
    labels = ("mild, 160 scans", "severe, 72 scans", "severe − mild")
    for figure in (
        inversion_curves_figure(curves(), PANELS, REFERENCE),
        inversion_curves_figure(curves(), {"Gradients": PANELS["Gradients"]}, REFERENCE),
        scan_overlays_figure([scan(title) for title in long], ["qT1", "MWF", "NDI"], "top 40 % of the combined map"),
        heatmap_figure(*heat, AFFINE, labels=labels, significant=heat[2] > 0.5),
        heatmap_figure(*heat, AFFINE, labels=labels, significant=heat[2] > 0.5, note=NOTE),
    ):
        assert overlapping_texts(figure) == []


def test_files_are_small_and_the_same_every_time(tmp_path, heat):
    one, two = (
        figures.save(heatmap_figure(*heat, AFFINE), tmp_path / "new" / name).read_bytes() for name in ("a.png", "b.png")
    )
    assert one == two
    assert len(one) < 1_000_000
    assert b"Software" not in one
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"a.png", "b.png"}
    assert Image.open(io.BytesIO(one)).info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_a_users_matplotlibrc_changes_nothing():
    import matplotlib

    before = pixels(inversion_curves_figure(curves(), PANELS, REFERENCE))
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "yellow", "lines.linewidth": 9}):
        after = inversion_curves_figure(curves(), PANELS, REFERENCE)
    np.testing.assert_array_equal(before, pixels(after))
    assert matplotlib.rcParams["font.size"] == 10


def test_failed_writing_leaves_nothing(tmp_path, heat, monkeypatch):
    figure = heatmap_figure(*heat, AFFINE, z_mm=[0])
    monkeypatch.setattr(type(figure), "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.save(figure, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_thumbnails_fit_into_the_event_log(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    figure = inversion_curves_figure(curves(), {"Gradients": PANELS["Gradients"]}, REFERENCE)
    for source in (tmp_path / "noise.png", figure):
        data = figures.thumbnail(source)
        assert len(data) * 4 / 3 < 29_500
        assert Image.open(io.BytesIO(data)).format == "PNG"
    assert figures.thumbnail(figures.save(figure, tmp_path / "a.png")) == data  # drawn twice, the same
    with pytest.raises(ValueError, match="does not fit into 100 bytes"):
        figures.thumbnail(tmp_path / "noise.png", 100)


def test_errors(heat):
    with pytest.raises(ValueError, match="no column auc, map"):
        inversion_curves_figure(curves().drop("auc", "map"), PANELS, REFERENCE)
    with pytest.raises(ValueError, match="no rows of control own, fold mean for absent, combined"):
        inversion_curves_figure(curves(), {"x": [Line("absent", "combined", "x")]}, REFERENCE)
    many = [Line("lrp", "individual", str(i)) for i in range(7)]
    with pytest.raises(ValueError, match="panels of at most 6 lines"):
        inversion_curves_figure(curves(), {"x": many}, REFERENCE)
    with pytest.raises(ValueError, match="no scan to draw"):
        scan_overlays_figure([], "abc", "x")
    with pytest.raises(ValueError, match=r"Mild disability: EDSS 2\.5: .* do not fit 2 contrasts"):
        scan_overlays_figure([scan()], "ab", "x")
    mild, severe, difference, template = heat
    with pytest.raises(ValueError, match=r"severe .* must be finite and on the template's grid"):
        heatmap_figure(mild, severe[1:], difference, template, AFFINE)
    with pytest.raises(ValueError, match=r"mild .* must be finite"):
        heatmap_figure(mild * np.nan, severe, difference, template, AFFINE)
    with pytest.raises(ValueError, match="not all within the template"):
        heatmap_figure(*heat, AFFINE, z_mm=[0, 200])
    with pytest.raises(ValueError, match="template holds no voxel above 0"):
        heatmap_figure(mild, severe, difference, template * 0, AFFINE)
    with pytest.raises(ValueError, match=r"Mild disability: EDSS 2\.5: images or maps hold NaN"):
        scan_overlays_figure([replace(scan(), combined=np.full(SHAPE, np.nan))], "abc", "x")
    turned = AFFINE.copy()
    turned[0, 1] = 0.5
    with pytest.raises(ValueError, match="oblique"):
        heatmap_figure(*heat, turned)
