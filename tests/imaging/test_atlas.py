"""Atlases: files with every fault, built-in regions against known anatomy and the planted truth, tables by hand."""

import nibabel as nib
import numpy as np
import pytest

from relevance_assets.imaging.atlas import APPROXIMATE, Atlas, approximate_atlas, load_atlas, region_table
from relevance_assets.imaging.regions import REGIONS, Box, Ellipsoid

AFFINE = np.array([[2.0, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (99, 117, 95)  # nilearn's template at 2 mm
DEEP = {"thalamus", "internal_capsule", "caudate", "pallidum", "putamen", "corticospinal_tract", "hippocampus"}


@pytest.fixture(scope="module")
def built_in():
    return approximate_atlas(SHAPE, AFFINE)


@pytest.fixture
def files(tmp_path):
    """Write a label image and a table; returns their paths."""

    def make(labels, table, affine=AFFINE):
        image, tsv = tmp_path / "my_dseg.nii.gz", tmp_path / "my_dseg.tsv"
        nib.save(nib.Nifti1Image(np.asarray(labels), affine), image)
        if table is not None:
            tsv.write_text(table)
        return image, tsv

    return make


def volume(values=(0, 1, 2, 0)):
    return np.array(values, dtype=np.int16).reshape(4, 1, 1)


def at(atlas, x, y, z):
    """Name of the region at a point in mm."""
    index = np.rint(np.linalg.solve(atlas.affine[:3, :3], np.array([x, y, z]) - atlas.affine[:3, 3])).astype(int)
    return atlas.names.get(int(atlas.labels[tuple(index)]))


# Centroids that were measured on the ICBM-DTI-81 labels and on AAL, to the millimetre, and cortical landmarks.
@pytest.mark.parametrize(
    ("point", "region"),
    [
        ((13, -18, 8), "thalamus"),
        ((15, 12, 9), "caudate"),
        ((28, 4, 2), "putamen"),
        ((21, -2, 0), "pallidum"),
        ((29, -20, -10), "hippocampus"),
        ((20.5, -13, 8), "internal_capsule"),
        ((18, 8, 8), "internal_capsule"),
        ((13, -18, -12), "corticospinal_tract"),
        ((26, -20, 30), "corticospinal_tract"),
        ((8, -85, 6), "occipital_lobe"),
        ((50, 18, 18), "frontal_lobe"),
        ((56, -36, 6), "temporal_lobe"),
        ((6, -60, 46), "parietal_lobe"),
        ((16, -58, -36), "cerebellum"),
    ],
)
def test_landmarks(built_in, point, region):
    x, y, z = point
    assert at(built_in, x, y, z) == f"{region}_right"
    assert at(built_in, -x, y, z) == f"{region}_left"


def test_midline_landmarks(built_in):
    for point in ((0, 26, 7), (0, -5, 27), (0, -40, 18)):
        assert at(built_in, *point) == "corpus_callosum"
    assert at(built_in, 0, -26, -32) == at(built_in, 0, -28, -14) == "brainstem"
    assert at(built_in, 0, 90, 80) is None


def test_left_is_negative_and_pairs_mirror_each_other(built_in):
    number = {name: label for label, name in built_in.names.items()}
    for region in REGIONS:
        if not region.paired:
            assert region.name in number
            continue
        left, right = (built_in.labels == number[f"{region.name}_{side}"] for side in ("left", "right"))
        assert left.sum() > 50
        assert (np.argwhere(left)[:, 0] * 2 - 98 < 0).all()
        np.testing.assert_array_equal(left[::-1], right)


def test_deep_regions_have_the_size_of_their_structures(built_in):
    """Within a factor of about two of the textbook's volume, ml per side."""
    textbook = {"thalamus": 7.0, "caudate": 3.7, "putamen": 4.5, "pallidum": 1.5, "hippocampus": 3.5}
    number = {name: label for label, name in built_in.names.items()}
    for region, ml in textbook.items():
        found = (built_in.labels == number[f"{region}_right"]).sum() * 8e-3
        assert ml / 2 < found < ml * 1.6, (region, found)


def test_regions_are_inside_the_brain(built_in):
    from nilearn import datasets

    brain = datasets.load_mni152_brain_mask(resolution=2).get_fdata() > 0
    assert not (built_in.labels[~brain] > 0).any()
    assert (built_in.labels[brain] > 0).mean() > 0.85


def test_deep_shapes_lie_in_the_brain_before_they_are_cut_to_it():
    from nilearn import datasets

    mask = datasets.load_mni152_brain_mask(resolution=2)
    brain = mask.get_fdata().ravel() > 0
    points = np.argwhere(np.ones(mask.shape, bool)) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    for region in REGIONS:
        if region.name in DEEP:
            inside = np.any([shape.contains(points) for shape in region.shapes], axis=0)
            assert brain[inside].mean() > 0.97, region.name


def test_the_first_region_wins_where_shapes_meet(built_in):
    """Each voxel again, by itself: the first region of the list that holds it."""
    from nilearn import datasets

    white = datasets.load_mni152_wm_template(resolution=2).get_fdata()
    picked = np.random.default_rng(0).permutation(np.argwhere(built_in.labels > 0))[:300]
    for index in picked:
        point = AFFINE[:3, :3] @ index + AFFINE[:3, 3]
        side = "" if point[0] == 0 else "_left" if point[0] < 0 else "_right"
        for region in REGIONS:
            seen = point * (abs(point[0]) / point[0], 1, 1) if region.paired and point[0] else point
            cut = region.tissue == "white" and white[tuple(index)] < 0.3
            if not cut and any(shape.contains(seen[None])[0] for shape in region.shapes):
                expected = region.name + (side if region.paired else "")
                break
        assert built_in.names[int(built_in.labels[tuple(index)])] == expected


def test_the_planted_region_is_where_it_should_be(built_in):
    """Most of the synthetic cohort's disability region is tract, capsule or thalamus, and none of its decoy."""
    from relevance_assets.cohort.synthetic.template import load_template

    template = load_template(2)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = template.grid.origin_mm
    on_grid = built_in.on_grid(template.grid.shape, affine)
    share = {}
    for planted in ("disability", "decoy"):
        weight = template.channel(planted)
        mass = np.bincount(on_grid.labels.ravel(), weight, minlength=len(on_grid.names) + 1) / weight.sum()
        share[planted] = sum(
            mass[label]
            for label, name in on_grid.names.items()
            if name.startswith(("thalamus", "internal_capsule", "corticospinal_tract"))
        )
    assert share["disability"] > 0.5
    assert share["decoy"] < 0.02


def test_shapes_by_hand():
    points = np.array([[0.0, 0, 0], [2.9, 0, 0], [3.1, 0, 0], [0, 1.9, 0], [0, 2.1, 0], [0, 0, 0.9], [0, 0, 1.1]])
    inside = [True, True, False, True, False, True, False]
    assert Ellipsoid((0, 0, 0), (3, 2, 1)).contains(points).tolist() == inside
    turned = points[:, [1, 0, 2]]  # the long axis along y
    assert Ellipsoid((0, 0, 0), (3, 2, 1), (0, 5, 0)).contains(turned).tolist() == inside
    upright = points[:, [2, 1, 0]]  # the long axis along z; across it is y
    assert Ellipsoid((0, 0, 0), (3, 2, 1), (0, 0, 2)).contains(upright).tolist() == inside
    assert Box((0, 0, 0), (3, 0, 0)).contains(points).tolist() == [True, True, False, False, False, False, False]


def test_another_grid(built_in):
    """6 mm voxels whose centres are voxel centres of the 2 mm grid."""
    coarse = AFFINE @ np.diag([3.0, 3.0, 3.0, 1.0])
    moved = built_in.on_grid((33, 39, 31), coarse)
    np.testing.assert_array_equal(moved.labels, built_in.labels[::3, ::3, ::3][:33, :39, :31])
    assert moved.names == built_in.names
    direct = approximate_atlas((33, 39, 31), coarse)
    # white matter is smoothed before it is reduced, so borders of tracts may differ
    assert (direct.labels == moved.labels).mean() > 0.97


def test_a_users_atlas(files):
    image, table = files(volume((0, 7, 3, 0)), "index\tname\tcolor\n0\tbackground\t#000\n7\tA\t\n3\tB \t\n9\tC\t\n")
    atlas = load_atlas(image, table)
    assert (atlas.name, atlas.names) == ("my_dseg", {7: "A", 3: "B", 9: "C"})
    assert atlas.labels.ravel().tolist() == [0, 7, 3, 0]
    np.testing.assert_array_equal(atlas.affine, AFFINE)
    assert load_atlas(image, table, "mine").name == "mine"


@pytest.mark.parametrize(
    ("labels", "table", "message"),
    [
        (volume(), None, "no such file; an atlas needs a TSV"),
        (volume(), "", "needs rows under the tab-separated columns index and name"),
        (volume(), "index,name\n1,A\n", "needs rows under the tab-separated columns"),
        (volume(), "index\tname\n1\tA\n", "no name for labels 2 of my_dseg.nii.gz"),
        (volume(), "index\tname\n1\tA\n1\tB\n", "line 3: index 1 is there twice"),
        (volume(), "index\tname\n1\tA\n2\tA\n", "line 3: name 'A' is there twice"),
        (volume(), "index\tname\n1\tA\n2\t\n", "line 3: name '' is empty"),
        (volume(), "index\tname\n1.5\tA\n2\tB\n", "line 2: index '1.5' must be a whole number"),
        (volume(), "index\tname\n1\tA\n2\n", "line 3: name '' is empty"),
        (volume((0, 0, 0, 0)), "index\tname\n1\tA\n", "no label above 0"),
        (volume((0, -1, 0, 0)), "index\tname\n1\tA\n", "labels must be between 0"),
        (volume().astype(np.float32) / 2, "index\tname\n1\tA\n", "labels must be whole numbers"),
        (volume().astype(np.int32) * (1 << 24), "index\tname\n1\tA\n", "labels must be between 0"),
    ],
)
def test_faults_of_an_atlas_are_told_in_one_line(files, labels, table, message):
    with pytest.raises(ValueError, match=message) as error:
        load_atlas(*files(labels, table))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [("Tract_L", "Tract_R"), ("left thalamus", "right thalamus"), ("Area (L)", "Area (R)"), ("lh-insula", "rh-insula")],
)
def test_exchanged_sides_are_found(files, first, second):
    good, bad = f"index\tname\n1\t{first}\n2\t{second}\n", f"index\tname\n1\t{second}\n2\t{first}\n"
    assert len(load_atlas(*files(volume(), good)).names) == 2
    with pytest.raises(ValueError, match="left and right seem exchanged"):
        load_atlas(*files(volume(), bad))
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    with pytest.raises(ValueError, match="left and right seem exchanged"):
        load_atlas(*files(volume(), good, flipped))


def test_names_without_sides_or_partners_are_no_pairs(files):
    names = "index\tname\n1\tTract_R\n2\tlateral ventricle\n"
    assert len(load_atlas(*files(volume(), names)).names) == 2
    assert len(load_atlas(*files(volume(), "index\tname\n1\tlobar_r\n2\tfrontal_l\n")).names) == 2


def test_table_by_hand():
    labels = np.array([0, 1, 1, 2, 1, 0]).reshape(6, 1, 1)
    atlas = Atlas("mine", labels, np.diag([2.0, 1.0, 1.5, 1.0]), {2: "B", 1: "A", 5: "absent"})
    maps = {"mild": np.array([9, 0.1, 0.4, 0.3, 0.4, 9]), "severe - mild": np.array([9, -0.5, 0.2, 0, 0.2, 9])}
    table = region_table({name: m.reshape(labels.shape) for name, m in maps.items()}, atlas, 0.3)
    assert table.height == 6
    rows = {(row["group"], row["region"]): row for row in table.iter_rows(named=True)}
    found = rows["mild", "A"]
    assert (found["atlas"], found["voxels"]) == ("mine", 3)
    assert found["volume_mm3"] == pytest.approx(9)
    assert found["mean"] == pytest.approx(0.3)
    assert (found["peak"], found["peak_x_mm"], found["peak_y_mm"]) == (0.4, 4.0, 0.0)
    assert found["share_above"] == pytest.approx(2 / 3)
    assert rows["severe - mild", "A"]["peak"] == -0.5
    assert rows["severe - mild", "A"]["mean"] == pytest.approx(-0.1 / 3)
    assert rows["severe - mild", "A"]["share_above"] == pytest.approx(1 / 3)
    assert rows["severe - mild", "B"]["mean"] == 0
    assert (rows["mild", "absent"]["voxels"], rows["mild", "absent"]["mean"]) == (0, None)


def test_table_of_the_built_in_regions(built_in):
    x = np.broadcast_to(np.arange(SHAPE[0])[:, None, None] * 2 - 98, SHAPE)
    table = region_table({"right": (x > 0).astype(np.float32)}, built_in, 0.5)
    assert table["atlas"].unique().to_list() == [APPROXIMATE]
    means = dict(zip(table["region"], table["mean"], strict=True))
    assert means["thalamus_right"] == 1
    assert means["thalamus_left"] == 0
    assert 0.3 < means["brainstem"] < 0.5


def test_errors_of_the_table(built_in):
    with pytest.raises(ValueError, match=r"map mild .* is not on the atlas's grid"):
        region_table({"mild": np.zeros((2, 2, 2))}, built_in, 0.5)
    with pytest.raises(ValueError, match="map mild holds NaN"):
        region_table({"mild": np.full(SHAPE, np.nan)}, built_in, 0.5)
