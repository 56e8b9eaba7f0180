"""Template, regions, warp and lesions against plain re-implementations and the published shares."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from relevance_assets.cohort.synthetic import lesions, regions, scan, warp
from relevance_assets.cohort.synthetic.bids import fullest_voxels
from relevance_assets.cohort.synthetic.people import Visit, draw_visits
from relevance_assets.cohort.synthetic.template import CHANNELS, Grid, Template, load_template, sample

PEOPLE = list(draw_visits(11, 120))


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template(2)


def test_template_volumes(template: Template) -> None:
    """Brain 1,883 ml as nilearn's mask; lateral ventricles about 15 ml; each person's fractions at most 1."""
    litres = dict(zip(CHANNELS, template.table.sum(axis=0) * 8e-6, strict=True))
    assert litres["brain"] == pytest.approx(1.883, abs=0.001)
    assert 0.012 < litres["ventricle"] < 0.022
    assert litres["decoy"] == pytest.approx(litres["disability"], rel=0.1)
    tissue = np.sum([template.channel(name) for name in ("white", "grey", "deep_grey")], axis=0)
    assert tissue.max() <= 1 + 1e-5
    assert not np.any(template.channel("disability") * template.channel("decoy"))


def test_regions_lie_on_both_sides_and_apart(template: Template) -> None:
    everywhere = template.grid.points(np.arange(np.prod(template.grid.shape)))
    disability, decoy = (everywhere[template.channel(name) > 0.5] for name in ("disability", "decoy"))
    for points in (disability, decoy):
        assert np.mean(points[:, 0] > 0) == pytest.approx(0.5, abs=0.03)
    assert cKDTree(disability).query(decoy)[0].min() > 8.0


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ((20.5, -13, 8), True),  # posterior limb
        ((-11, -19, 7), True),  # thalamus
        ((7, -25, -33), True),  # tract in the pons
        ((-28, -25, 45), True),  # tract below the cortex
        ((24, 34, 14), False),  # decoy
        ((0, 26, 7), False),  # genu of the corpus callosum
        ((18, 8, 8), False),  # anterior limb
    ],
)
def test_disability_region_at_known_places(point: tuple[float, float, float], inside: bool) -> None:
    members = regions.disability_membership(np.array([point], dtype=float), np.ones(1), 2.0)
    assert (members[0] > 0.5) == inside


def test_sample_is_trilinear() -> None:
    rng = np.random.default_rng(0)
    grid = Grid((6, 7, 8), np.array([-3.0, 4.0, 1.0]), 1.5)
    table = rng.random((6 * 7 * 8, 2), dtype=np.float32)
    points = grid.origin_mm + rng.uniform(-3, 14, (500, 3))
    place = np.clip((points - grid.origin_mm) / 1.5, 0, np.array(grid.shape) - 1).T
    expected = [map_coordinates(table[:, c].reshape(grid.shape), place, order=1, mode="nearest") for c in (0, 1)]
    (got,) = sample(grid, points, table)
    np.testing.assert_allclose(got, np.stack(expected, axis=1), atol=2e-3)


def test_jacobian_of_a_linear_field() -> None:
    matrix = np.array([[0.1, 0.2, 0.0], [-0.1, 0.3, 0.1], [0.0, 0.05, -0.2]])
    grid = np.stack(np.meshgrid(*[4.0 * np.arange(5)] * 3, indexing="ij"))
    field = np.einsum("ij,jxyz->ixyz", matrix, grid)
    determinants = warp.jacobian_determinants(field, 4.0)
    np.testing.assert_allclose(determinants, np.linalg.det(np.eye(3) + matrix))


def test_jacobian_finds_a_fold() -> None:
    field = np.zeros((3, 5, 5, 5))
    field[0, 2] = 6.0  # more than the spacing: the next cell is turned over
    assert warp.jacobian_determinants(field, 4.0).min() == pytest.approx(-0.5)


def test_warps_do_not_fold_and_differ(template: Template) -> None:
    drawn = [warp.draw_warp(template, 11, visit) for visit in PEOPLE[:20]]
    assert min(one.jacobian_minimum for one in drawn) > 0
    assert not np.array_equal(drawn[0].displacement, drawn[1].displacement)


def test_age_widens_ventricles() -> None:
    ages = np.array([visit.age for visit in PEOPLE])
    widths = np.array([warp.ventricle_widening_mm(visit) for visit in PEOPLE])
    assert widths[ages > 60].mean() > widths[ages < 35].mean() + 0.8


def test_lesion_zone_shares_and_numbers(template: Template) -> None:
    """Published mean shares by volume: 58, 21 and 18 % in MS; healthy people mostly periventricular."""
    volumes = {"MS": np.zeros(3), "HC": np.zeros(3)}
    numbers: dict[str, list[int]] = {"MS": [], "HC": []}
    for visit in draw_visits(3, 300):
        found = lesions.draw_lesions(template, 3, visit)
        group = visit.person.group
        numbers[group].append(len(found))
        for one in found:
            volumes[group][lesions.ZONES.index(one.zone)] += one.volume_mm3
    np.testing.assert_allclose(volumes["MS"] / volumes["MS"].sum(), np.array([58, 21, 18]) / 97, atol=0.06)
    assert volumes["HC"][0] / volumes["HC"].sum() > 0.8
    assert np.mean(numbers["MS"]) > 6 * np.mean(numbers["HC"])


def test_lesions_lie_in_their_zone(template: Template) -> None:
    """The published rule by distances in the template: edge 7.5 mm or centre 15 mm from the ventricle."""
    for visit in PEOPLE[:40]:
        for one in lesions.draw_lesions(template, 11, visit):
            place = np.rint((one.centre_mm - template.grid.origin_mm) / 2.0).astype(int)
            ventricle = template.to_ventricle_mm.reshape(template.grid.shape)[tuple(place)]
            if one.zone == "periventricular":
                assert ventricle <= 15.0
            else:
                assert ventricle > 15.0
            if one.zone == "juxtacortical":
                assert one.volume_mm3 <= 4 / 3 * np.pi * 3**3


def test_second_visit_keeps_the_lesions_of_the_first(template: Template) -> None:
    pairs = [(a, b) for a, b in pairwise(PEOPLE) if a.person == b.person]
    assert pairs
    for first, second in pairs:
        before, after = (lesions.draw_lesions(template, 11, visit) for visit in (first, second))
        centres = {tuple(one.centre_mm) for one in after}
        assert {tuple(one.centre_mm) for one in before} <= centres
        assert len(lesions.draw_vessels(template, 11, first)) <= len(lesions.draw_vessels(template, 11, second))


def test_rendered_volume_of_a_lesion_and_a_vessel(template: Template) -> None:
    """Deep in white matter, a lesion of 14 mm and a thin tube keep their volume on the 2 mm grid."""
    centre = np.array([27.0, 28.0, 18.0])
    lesion = lesions.Lesion("paraventricular", centre, np.eye(3), np.array([4.0, 3.5, 3.0]))
    drawn = lesions.render_lesions(template, [lesion])
    assert drawn[:, 1].sum() * 8 == pytest.approx(lesion.volume_mm3, rel=0.15)
    assert not drawn[:, [0, 2]].any()
    vessel = lesions.Vessel(centre, centre + np.array([0.0, 2.0, 9.0]), 0.8)
    assert lesions.render_vessels(template, [vessel]).sum() * 8 == pytest.approx(vessel.volume_mm3, rel=0.01)


def test_regions_move_with_the_anatomy() -> None:
    """Voxels of the planted region, moved by the stored warp, lie in the region as it is defined."""
    made = scan.make_scan(PEOPLE[0], voxel_size_mm=4.0, seed=11, effect=1.0)
    inside = np.flatnonzero(made.fractions["disability"] >= 0.5)
    there = made.grid.points(inside) + made.displacement_mm.reshape(-1, 3)[inside]
    members = regions.disability_membership(there, np.ones(len(there)), 2.0)
    assert np.mean(members > 0) > 0.95


@pytest.mark.parametrize(
    ("size", "shape"), [(1.0, (192, 224, 192)), (2.0, (96, 112, 96)), (3.5, (55, 64, 55)), (6.0, (32, 38, 32))]
)
def test_grid_covers_the_field_of_view(size: float, shape: tuple[int, int, int]) -> None:
    grid = scan.scan_grid(size)
    assert grid.shape == shape
    middle = grid.origin_mm + size * (np.array(shape) - 1) / 2
    np.testing.assert_allclose(middle, scan.CENTRE_MM)
    assert scan.template_spacing_mm(size) == (1 if size < 2 else 2)


def test_uneven_voxel_size() -> None:
    made = scan.make_scan(PEOPLE[0], voxel_size_mm=3.5, seed=11, effect=1.0)
    other = scan.make_scan(PEOPLE[0], voxel_size_mm=7.0, seed=11, effect=1.0)
    brain = [one.fractions["brain"].sum() * one.grid.spacing_mm**3 for one in (made, other)]
    assert brain[0] == pytest.approx(brain[1], rel=0.005)


def test_fullest_voxels_keep_the_volume() -> None:
    fraction = np.array([[[0.9, 0.1, 0.0], [0.4, 0.4, 0.4]]])
    np.testing.assert_array_equal(fullest_voxels(fraction), [[[True, False, False], [True, False, False]]])
    assert not fullest_voxels(np.zeros((2, 2, 2))).any()


def test_visits_are_a_prefix_of_a_larger_cohort() -> None:
    few: list[Visit] = list(draw_visits(11, 50))
    assert [visit.scan for visit in few] == [visit.scan for visit in PEOPLE[:50]]
    assert [visit.edss for visit in few] == [visit.edss for visit in PEOPLE[:50]]
