"""In which slices the network sees the volumes: chosen by the data or by name, and the same in any order of storage."""

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from ASFEFusionLib import engine, files, phantom, planes, space
from ASFEFusionLib.__main__ import main
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.grids import Grid, cut_out, grid_of
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume

ORDERS = list(permutations("ijk"))


def stored(volume, order):
    """The volume with its axes stored in another order, by hand: `order` "kij": the new i is the old k, and so on."""
    axes = ["ijk".index(letter) for letter in order]
    matrix = volume.ijk_to_physical.copy()
    for new, old in enumerate(axes):
        matrix[:, new] = volume.ijk_to_physical[:, old]
    i, j, k = axes
    voxels = np.moveaxis(volume.voxels, (2 - i, 2 - j, 2 - k), (2, 1, 0))
    return replace(volume, voxels=np.ascontiguousarray(voxels), ijk_to_physical=matrix)


def put_back(volume, order):
    back = ["ijk"[order.index(letter)] for letter in "ijk"]
    return stored(volume, "".join(back))


@pytest.fixture(scope="module")
def thick():
    """A sagittal MR of thick slices, as the scanner stores it (k across the slices), and a CT."""
    mr = phantom.head("MR", noise=False, spacing=(3.0, 3.0, 6.0))
    return mr, phantom.head("CT", noise=False, spacing=(3.0, 3.0, 4.0))


def upside_down(volume):
    """The same voxels, i running the other way: a left-handed matrix."""
    matrix = volume.ijk_to_physical.copy()
    matrix[:3, 3] += matrix[:3, 0] * (volume.size_ijk[0] - 1)
    matrix[:3, 0] *= -1
    return replace(volume, voxels=np.ascontiguousarray(volume.voxels[:, :, ::-1]), ijk_to_physical=matrix)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("colour", [None, "hot"])
def test_the_order_of_storage_changes_nothing(thick, left, colour):
    """Stored with k sagittal or as if it were axial: the same values at the same places, on the very grid."""
    mr, ct = thick
    mr = upside_down(mr) if left else mr
    settings = FusionSettings(colour=colour, functional="first" if colour else None, check=False)
    want, report = fuse(mr, ct, settings)
    assert (report.grid["plane"], report.grid["slice_axis"]) == ("sagittal", "k")
    for order in ORDERS:
        one = stored(mr, order)
        fused, report = fuse(one, ct, settings)
        assert (report.grid["plane"], report.grid["slice_axis"]) == ("sagittal", "ijk"[order.index("k")])
        assert fused.size_ijk == one.size_ijk == tuple(report.grid["size"])
        assert np.array_equal(fused.ijk_to_physical, one.ijk_to_physical)
        assert fused.voxels.flags.c_contiguous
        difference = np.abs(put_back(fused, order).voxels.astype(int) - want.voxels)
        if order == ("j", "i", "k"):  # what has its slices along k is fused as it is stored, rows for columns
            assert np.percentile(difference, 99) < 50
        else:
            assert difference.max() <= 1


def test_the_plane_of_the_first_on_the_grid_of_the_second(thick):
    """The grid of the second stays that of the second, in whatever order that is stored."""
    mr, ct = thick
    want, _ = fuse(ct, mr, FusionSettings(grid="second", check=False))
    for order in ORDERS[:-1]:
        one = stored(mr, order)
        fused, _ = fuse(ct, one, FusionSettings(grid="second", check=False))
        assert np.array_equal(fused.ijk_to_physical, one.ijk_to_physical)
        if order != ("j", "i", "k"):
            assert np.abs(put_back(fused, order).voxels.astype(int) - want.voxels).max() <= 1


@pytest.mark.parametrize("order", ["kij", "ikj"])
def test_a_region_in_its_own_plane(thick, order, monkeypatch):
    """Cut out where it lies, with the margins in the plane of the slices and none across them."""
    mr, ct = thick
    low, high = np.array([20, 12, 8]), np.array([29, 30, 10])
    points = (mr.ijk_to_physical @ np.c_[[low, high], [1, 1]].T)[:3].T
    want, _ = fuse(mr, ct, FusionSettings(region=points, check=False))
    seen = []
    fuse_slab = engine.Engine.fuse
    monkeypatch.setattr(engine.Engine, "fuse", lambda self, a, b, beat: seen.append(a.shape) or fuse_slab(self, a, b))
    fused, report = fuse(stored(mr, order), ct, FusionSettings(region=points, check=False))
    assert sum(shape[0] for shape in seen) == 3
    i, j, _ = mr.size_ijk
    assert seen[0][1:] == (min(j, 31 + 32), min(i, 30 + 32))
    sizes = dict(zip("ijk", high - low + 1, strict=True))
    assert fused.size_ijk == tuple(sizes[letter] for letter in order) == tuple(report.grid["size"])
    back = put_back(fused, order)
    assert np.allclose(back.ijk_to_physical, want.ijk_to_physical, rtol=0, atol=1e-9)
    assert np.abs(back.voxels.astype(int) - want.voxels).max() <= 1


def test_a_plane_by_name(thick, monkeypatch):
    """Each name takes its axis, and the grid stays as it is."""
    ct = phantom.head("CT", noise=False, spacing=(4.0, 4.0, 4.0))
    shapes = []
    monkeypatch.setattr(engine.Engine, "fuse", lambda self, a, b, beat: shapes.append(a.shape[1:]) or np.maximum(a, b))
    i, j, k = ct.size_ijk
    fused = {}
    for plane, axis, shape in (("axial", "k", (j, i)), ("coronal", "j", (k, i)), ("sagittal", "i", (k, j))):
        shapes.clear()
        fused[plane], report = fuse(ct, thick[0], FusionSettings(plane=plane, check=False))
        assert (report.grid["plane"], report.grid["slice_axis"]) == (plane, axis)
        assert set(shapes) == {shape}
        assert np.array_equal(fused[plane].ijk_to_physical, ct.ijk_to_physical)
        assert report.warnings == []
    # With a fusion of single voxels in place of the network, the plane makes no difference to any voxel.
    assert fused["axial"].voxels.std() > 100
    for plane in ("coronal", "sagittal"):
        assert np.abs(fused[plane].voxels.astype(int) - fused["axial"].voxels).max() <= 1


def grid(spacing, size=(40, 50, 60), turn=0.0):
    """Of axes x, y, z, turned about x by `turn` degrees."""
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) * spacing
    return Grid(size, matrix)


@pytest.mark.parametrize(
    ("spacing", "size", "axis"),
    [
        ((0.5, 0.5, 8), (40, 50, 60), 2),
        ((8, 0.5, 0.5), (40, 50, 60), 0),
        ((0.5, 8, 0.5), (40, 50, 60), 1),
        ((1, 1, 1), (40, 50, 60), 2),
        ((1.19, 1, 1), (40, 50, 60), 2),
        ((1.21, 1, 1), (40, 50, 60), 0),
        ((1.21, 1, 1.1), (40, 50, 60), 2),  # not over 1.2 times each of the others
        ((8, 8, 0.5), (40, 50, 60), 2),  # two thick axes
        ((0.5, 0.5, 8), (1, 50, 60), 0),  # slices of one pixel in width would be none
        ((8, 0.5, 0.5), (40, 50, 1), 2),
        ((8, 0.5, 0.5), (1, 50, 1), 2),
        ((1, 1, 1), (7, 50, 60), 0),
        ((1, 1, 1), (8, 50, 60), 2),
        ((1, 1, 3), (40, 2, 60), 1),
        ((3, 1, 1), (60, 50, 2), 2),
        ((1, 1, 1), (5, 6, 5), 2),
    ],
)
def test_the_axis_by_the_grid(spacing, size, axis):
    assert planes.slice_axis(grid(spacing, size), "automatic") == axis
    if 1 in size:
        assert {planes.slice_axis(grid(spacing, size), plane) for plane in ("axial", "coronal", "sagittal")} == {axis}


def volume(spacing, size=(20, 20, 20), turn=0.0):
    lattice = grid(spacing, size, turn)
    return Volume(np.zeros(lattice.shape, np.int16), lattice.matrix)


@pytest.mark.parametrize(
    ("first", "second", "axis"),
    [
        (volume((1, 1, 1)), volume((5, 1, 1)), 0),
        (volume((1, 1, 1)), volume((1, 5, 1)), 1),
        (volume((1, 1, 1)), volume((1, 1.1, 1)), 2),
        (volume((1, 4, 1)), volume((5, 1, 1)), 0),  # the thicker of the two
        (volume((1, 5.0, 1)), volume((5.1, 1, 1)), 1),  # alike: the first one's
        (volume((5, 1, 1)), volume((1, 1, 1)), 0),
        (volume((1, 1, 1)), volume((1, 1, 1), (20, 1, 20)), 1),  # one slice
        (volume((1, 1, 1)), volume((1, 1, 5), turn=60), 1),  # nearest
        (volume((1, 1, 1)), volume((1, 1, 5), turn=30), 2),
    ],
)
def test_the_axis_by_the_volumes(first, second, axis):
    """On a grid of even spacing the thick slices of a volume count; on one of thick slices they do not."""
    assert planes.slice_axis(grid((1, 1, 1)), "automatic", (first, second)) == axis
    assert planes.slice_axis(grid((1, 1, 2)), "automatic", (first, second)) == 2


def test_few_slices_of_an_even_grid_stay_slices():
    """Thick sagittal slices of the second make no strips of a slab of 3 axial ones."""
    assert planes.slice_axis(grid((1, 1, 1), (50, 50, 3)), "automatic", [volume((5, 1, 1))]) == 2
    assert planes.slice_axis(grid((1, 1, 1), (50, 50, 3)), "sagittal") == 0


def test_the_slices_of_a_sheared_volume():
    """Its planes are spanned by i and j, and where k goes is not across them."""
    sheared = volume((1, 1, 5))
    sheared.ijk_to_physical[1, 2] = 8
    assert planes.slice_axis(grid((1, 1, 1)), "automatic", [sheared]) == 2


def test_thick_slices_on_an_even_grid_are_fused_in_their_plane(thick):
    ct = phantom.head("CT", noise=False, spacing=(4.0, 4.0, 4.0))
    _, report = fuse(ct, thick[0], FusionSettings(check=False))
    assert (report.grid["plane"], report.grid["slice_axis"]) == ("sagittal", "i")


def test_an_oblique_grid_is_told():
    assert planes.doubt(grid((1, 1, 1), turn=29), 2, "axial") is None
    for turn in (31, 45, 59):
        oblique = grid((1, 1, 1), turn=turn)
        axis = planes.slice_axis(oblique, "axial")
        assert axis == (2 if turn <= 45 else 1)
        notice = planes.doubt(oblique, axis, "axial")
        assert notice.facts == {"plane": "axial", "degrees": min(turn, 90 - turn)}
        assert planes.doubt(oblique, axis, "automatic") is None
    # At 45 degrees the two are equally near: the thicker one, and else the later.
    assert planes.slice_axis(grid((1, 2, 1), turn=45), "axial") == 1
    assert planes.slice_axis(grid((1, 1, 2), turn=45), "coronal") == 2


def test_the_oblique_plane_is_in_the_report(heads):
    lattice = grid((4.0, 4.0, 4.0), (40, 40, 40), turn=45)
    matrix = lattice.matrix.copy()
    matrix[:3, 3] = np.array([0, -20, 60]) - matrix[:3, :3] @ (20, 20, 20)
    settings = FusionSettings(lattice=(lattice.size, matrix), plane="coronal", check=False)
    _, report = fuse(heads["CT"], heads["MR"], settings)
    assert [w.code for w in report.warnings] == ["plane_oblique"]
    assert "45 degrees" in str(report.warnings[0])


def test_one_slice_is_fused_in_itself(heads):
    """Whatever the plane, and whichever axis it is stored along."""
    ct, mr = heads["CT"], heads["MR"]
    middle = cut_out(grid_of(ct), (slice(20, 21), slice(0, ct.size_ijk[1]), slice(0, ct.size_ijk[0])))
    one = replace(ct, voxels=ct.voxels[20:21], ijk_to_physical=middle.matrix)
    want, report = fuse(one, mr, FusionSettings(check=False))
    assert report.grid["slice_axis"] == "k"
    for order, axis, plane in (("kij", "i", "automatic"), ("ikj", "j", "sagittal"), ("ijk", "k", "coronal")):
        fused, report = fuse(stored(one, order), mr, FusionSettings(plane=plane, check=False))
        assert (report.grid["slice_axis"], report.grid["plane"], report.warnings) == (axis, "axial", [])
        assert np.abs(put_back(fused, order).voxels.astype(int) - want.voxels).max() <= 1
    lattice = FusionSettings(lattice=(middle.size, middle.matrix), plane="sagittal", check=False)
    _, report = fuse(ct, mr, lattice)
    assert report.grid["slice_axis"] == "k"


def test_pictures_are_fused_as_they_are():
    rng = np.random.default_rng(0)
    pair = [Volume(rng.integers(0, 255, (1, 40, 50), np.uint8), np.eye(4), two_d=True) for _ in range(2)]
    want, report = fuse(*pair)
    assert report.grid["slice_axis"] == "k"
    for plane in ("coronal", "sagittal"):
        assert np.array_equal(fuse(*pair, FusionSettings(plane=plane))[0].voxels, want.voxels)


def test_the_plane_on_the_command_line(heads, tmp_path):
    for modality in ("CT", "MR"):
        files.write(heads[modality], tmp_path / f"{modality}.nrrd")
    names = ("CT.nrrd", "MR.nrrd", "fused.nrrd", "report.json")
    first, second, output, report = (str(tmp_path / name) for name in names)
    assert main(["fuse", first, second, "--output", output, "--report", report, "--plane", "coronal"]) == 0
    grid_said = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["grid"]
    assert (grid_said["plane"], grid_said["slice_axis"]) == ("coronal", "j")
    assert files.read(output).size_ijk == heads["CT"].size_ijk


@pytest.mark.parametrize("bad", [None, "oblique", 2])
def test_unknown_planes_are_refused(bad):
    with pytest.raises(FusionError) as caught:
        FusionSettings(plane=bad)
    assert caught.value.code == "setting_unknown"


def test_the_grids_own_voxels_in_any_order_are_taken_as_they_are():
    rng = np.random.default_rng(2)
    one = Volume(rng.normal(size=(5, 6, 7)).astype(np.float32), grid((1, 2, 3), (7, 6, 5), 20).matrix)
    for order in ORDERS:
        other = stored(one, order)
        values = space.resample(other, grid_of(one))
        assert np.array_equal(values, one.voxels)
        assert values.flags.c_contiguous
