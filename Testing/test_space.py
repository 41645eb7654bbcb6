"""The common grid, resampling and coverage, on lattices of every kind."""

import os

import numpy as np
import pytest

from ASFEFusionLib import files, grids, machine, space
from ASFEFusionLib.__main__ import main
from ASFEFusionLib.coverage import coverage, overlap
from ASFEFusionLib.errors import Cancelled, FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume


def lattice(seed, size, spacing, left_handed=False):
    """A volume of random orientation whose value is a linear function of place, so that linear sampling is exact."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    if (np.linalg.det(q) < 0) != left_handed:
        q[:, 0] *= -1
    matrix = np.eye(4)
    matrix[:3, :3] = q * spacing
    # About the same centre, whatever the orientation.
    matrix[:3, 3] = np.array([5.0, -8.0, 12.0]) - matrix[:3, :3] @ ((np.array(size) - 1) / 2)
    return Volume(field(matrix, size), matrix)


def field(matrix, size):
    k, j, i = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    points = np.stack([i, j, k, np.ones_like(i)], -1) @ matrix.T
    return (points[..., :3] @ [2.0, -3.0, 1.5] + 100).astype(np.float32)


@pytest.mark.parametrize("left_handed", [False, True])
def test_resampling_is_right_in_space(left_handed):
    first = lattice(1, (20, 18, 16), (2.0, 1.5, 3.0))
    second = lattice(2, (60, 50, 60), (1.7, 1.9, 1.6), left_handed)
    grid = grids.grid_of(first)
    values = space.resample(second, grid)
    assert values.dtype == np.float32
    inside = coverage(second, grid).slab(0, grid.size[2]) == 1
    assert inside.mean() > 0.5
    # The two grids' spacings are alike, so no smoothing: linear sampling of a linear field is exact.
    assert np.abs(values - first.voxels)[inside].max() < 0.01


def test_own_grid_gives_the_very_voxels():
    volume = lattice(3, (7, 8, 9), (1.0, 2.0, 3.0))
    assert np.array_equal(space.resample(volume, grids.grid_of(volume)), volume.voxels)


def test_finest_keeps_axes_and_field_of_view():
    first, second = lattice(1, (10, 12, 6), (2.0, 2.0, 5.0)), lattice(1, (30, 30, 30), (1.0, 3.0, 1.5))
    grid = grids.choose_grid(first, second, "finest")
    assert np.allclose(grid.spacing, (1.0, 2.0, 1.5), atol=0.05)
    assert (grid.spacing <= (1.0 + 1e-9, 2.0 + 1e-9, 1.5 + 1e-9)).all()
    for face in (-0.5, 0.5):
        ends = [
            (m @ np.append(np.where(face < 0, -0.5, np.array(s) - 0.5), 1))[:3]
            for m, s in ((grid.matrix, grid.size), (first.ijk_to_physical, first.size_ijk))
        ]
        assert np.allclose(*ends, atol=1e-9)


def test_finest_of_permuted_axes_takes_each_spacing_where_it_runs():
    first = Volume(np.zeros((10, 10, 10), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, 0, 1.0], [0.5, 0, 0], [0, 3.0, 0]]  # i runs along y, j along z, k along x
    grid = grids.choose_grid(first, Volume(np.zeros((9, 9, 9), np.int16), matrix), "finest")
    assert np.allclose(grid.spacing, (1.0, 0.5, 2.0))


def test_finest_does_not_resample_for_the_last_decimals():
    first = Volume(np.zeros((4, 512, 512), np.int16), np.diag([0.9766, 0.9766, 2, 1.0]))
    second = Volume(np.zeros((4, 512, 512), np.int16), np.diag([0.9765, 0.9765, 2, 1.0]))
    assert grids.choose_grid(first, second, "finest").size == (512, 512, 4)


def test_a_grid_beyond_all_memory_is_refused():
    first = Volume(np.zeros((100, 100, 100), np.int16), np.diag([100.0, 100.0, 100.0, 1.0]))
    second = Volume(np.zeros((2, 2, 2), np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(FusionError) as caught:
        grids.check_size(grids.choose_grid(first, second, "finest"))
    assert caught.value.code == "grid_too_large"
    assert "10000 x 10000 x 10000 voxels would need about 10000 GB" in str(caught.value)


def test_a_grid_beyond_this_machines_memory_is_refused(monkeypatch):
    """With what it needs and what there is; and not where the machine does not say."""
    grid = grids.Grid((1000, 1000, 500), np.eye(4))
    assert grids.memory_needed(grid) == 10 * 500_000_000
    monkeypatch.setattr(machine, "memory", lambda: 4_900_000_000)
    with pytest.raises(FusionError) as caught:
        grids.check_size(grid)
    assert caught.value.code == "grid_memory"
    assert "1000 x 1000 x 500 voxels would need about 5.0 GB of memory and there are 4.9 GB" in str(caught.value)
    for there in (5_000_000_000, None):
        monkeypatch.setattr(machine, "memory", lambda there=there: there)
        grids.check_size(grid)


def test_the_memory_of_this_machine(monkeypatch):
    assert 500_000_000 < machine.memory() < 1e14

    def unknown(_):
        raise ValueError("unrecognized configuration name")

    if os.name != "nt":
        monkeypatch.setattr(os, "sysconf", unknown)
        assert machine.memory() is None


@pytest.mark.parametrize("known", [True, False])
def test_the_memory_of_a_windows_machine(monkeypatch, known):
    """The structure is that of the system: 64 bytes, the length first, the total after 8."""
    import ctypes
    from types import SimpleNamespace

    def status(pointer):
        held = ctypes.string_at(ctypes.addressof(pointer._obj), 64)
        assert int.from_bytes(held[:4], "little") == 64
        ctypes.memmove(ctypes.addressof(pointer._obj) + 8, (17 << 30).to_bytes(8, "little"), 8)
        return known

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert machine._windows() == (17 << 30 if known else None)


def test_a_large_grid_is_said(heads, monkeypatch):
    need = grids.memory_needed(grids.grid_of(heads["CT"]))
    monkeypatch.setattr(grids, "LARGE", need)
    _, report = fuse(heads["CT"], heads["MR"], FusionSettings(check=False))
    assert report.warnings == []
    monkeypatch.setattr(grids, "LARGE", need - 1)
    _, report = fuse(heads["CT"], heads["MR"], FusionSettings(check=False))
    assert [w.code for w in report.warnings] == ["grid_large"]
    size = " x ".join(map(str, heads["CT"].size_ijk))
    assert f"A grid of {size} voxels needs about {round(need / 1e9, 1)} GB" in str(report.warnings[0])


def test_a_large_grid_is_said_before_the_work(heads, tmp_path, monkeypatch, capsys):
    """Also where it fails afterwards; and once where it does not."""
    for modality in ("CT", "MR"):
        files.write(heads[modality], tmp_path / f"{modality}.nrrd")
    arguments = [str(tmp_path / name) for name in ("CT.nrrd", "MR.nrrd")]
    arguments = ["fuse", *arguments, "--output", str(tmp_path / "fused.nrrd"), "--no-check"]
    monkeypatch.setattr(grids, "LARGE", 1000)
    assert main([*arguments, "--weights", "nowhere.pt"]) == 1
    assert "GB of memory" in capsys.readouterr().err
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("GB of memory") == 1


def test_coverage_ends_at_the_outer_faces():
    first = Volume(np.zeros((1, 1, 40), np.int16), np.eye(4))
    second = Volume(np.zeros((1, 1, 20), np.int16), np.eye(4))
    cover = coverage(second, grids.grid_of(first))
    weight = cover.slab(0, 1)[0, 0]
    assert (weight[:15] == 1).all()  # nothing of the grid lies before the second: no ramp there
    assert 0 < weight[19] < weight[17] < 1
    assert (weight[20:] == 0).all()
    assert coverage(first, grids.grid_of(second)).full


def test_overlap_is_the_common_part_of_the_smaller():
    big = Volume(np.zeros((10, 10, 10), np.int16), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 5.0
    small = Volume(np.zeros((10, 10, 10), np.int16), shifted)
    grid = grids.grid_of(big)
    covers = coverage(big, grid), coverage(small, grid)
    assert overlap(big, small, covers) == pytest.approx(0.5)


def test_overlap_with_a_smaller_second():
    big = Volume(np.zeros((10, 10, 20), np.int16), np.eye(4))
    small = Volume(np.zeros((5, 10, 10), np.int16), np.eye(4))
    for pair in ((big, small), (small, big)):
        grid = grids.grid_of(pair[0])
        covers = tuple(coverage(v, grid) for v in pair)
        assert overlap(*pair, covers) == pytest.approx(1)


def test_a_thin_volume_does_not_fade_away_whole():
    thin = Volume(np.zeros((3, 10, 10), np.int16), np.eye(4))
    grid = grids.Grid(
        (10, 10, 20), np.diag([1.0, 1.0, 0.5, 1.0]) + np.array([[0, 0, 0, 0]] * 2 + [[0, 0, 0, -3]] + [[0] * 4])
    )
    weight = coverage(thin, grid).slab(0, 20)[:, 5, 5]
    assert weight.max() == 1


def test_grids_half_a_voxel_apart_are_not_the_same():
    grid = grids.Grid((9, 9, 9), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 0.2
    assert not grids.same_grid(grid, grids.Grid((9, 9, 9), moved))
    assert grids.same_grid(grid, grids.Grid((9, 9, 9), np.eye(4) * (1 + 1e-7)))


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0)])
def test_exchanged_axes_are_another_grid(order):
    """Origin and far corner agree, and no other voxel does."""
    one = grids.Grid((9, 9, 9), np.diag([2.0, 2.0, 2.0, 1.0]))
    other = grids.turned(one, order)
    assert not grids.same_grid(one, other)
    voxels = np.arange(729, dtype=np.float32).reshape(9, 9, 9)
    values = space.resample(Volume(voxels, other.matrix), one)
    axes = [2 - order.index(n) for n in range(3)]  # x of LPS lies along this axis of the array, and so on
    assert np.array_equal(values, voxels.transpose(axes[::-1]))


def test_smoothing_follows_the_axes_that_are_coarser():
    """A volume whose axes run otherwise than the grid's: only the axis along the coarse one is smoothed."""
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, 0, 1.0], [1.0, 0, 0], [0, 1.0, 0]]  # i along y, j along z, k along x
    stripes = np.zeros((64, 8, 64), np.float32)
    stripes[::2] = 100  # along k, that is x
    other = stripes.transpose(2, 1, 0).copy()  # along i, that is y
    coarse = grids.Grid((13, 64, 8), np.diag([4.7, 1.0, 1.0, 1.0]))
    along_x = space.resample(Volume(stripes, matrix), coarse)[:, :, 2:-2]
    assert np.abs(along_x - 50).max() < 5
    along_y = space.resample(Volume(other, matrix), coarse)
    assert np.ptp(along_y) > 99


def test_points_on_the_outer_face_take_its_value():
    volume = Volume(np.arange(10, dtype=np.float32).reshape(10, 1, 1) + 5, np.diag([1.0, 1.0, 2.0, 1.0]))
    matrix = np.eye(4)
    matrix[2, 3] = -1.0
    values = space.resample(volume, grids.Grid((1, 1, 21), matrix)).ravel()
    assert values[[0, 1, 2, 19, 20]].tolist() == [5, 5, 5.5, 14, 14]


def test_only_the_needed_part_is_resampled_and_it_is_the_same():
    big = lattice(5, (60, 50, 40), (1.0, 1.2, 1.5))
    small = lattice(6, (12, 10, 8), (1.1, 1.0, 1.3))
    grid = grids.grid_of(small)
    assert space._crop(big, grid, 0.0).voxels.size < 0.3 * big.voxels.size
    assert np.abs(space.resample(big, grid) - small.voxels).max() < 0.01


def test_no_aliasing_on_a_coarser_grid():
    """Stripes finer than the coarse grid can show become grey, not other stripes."""
    voxels = np.zeros((4, 64, 64), np.float32)
    voxels[:, :, ::2] = 100
    fine = Volume(voxels, np.eye(4))
    coarse = grids.Grid((13, 13, 4), np.diag([4.7, 4.7, 1.0, 1.0]))
    middle = space.resample(fine, coarse)[:, 2:-2, 2:-2]
    assert np.abs(middle - 50).max() < 5


def test_cancel_stops_the_resampling():
    first, second = lattice(1, (60, 60, 60), (1.0, 1.0, 1.0)), lattice(2, (60, 60, 60), (1.0, 1.0, 1.0))

    def stop(_):
        raise Cancelled

    with pytest.raises(Cancelled):
        space.resample(second, grids.grid_of(first), stop)


@pytest.mark.parametrize("ratio", [10, 40, 100, 250])
def test_far_smaller_voxels_become_their_mean(ratio):
    """Micro-CT beside a clinical grid: averaged, and never NaN."""
    rng = np.random.default_rng(1)
    step = 10.0 / ratio
    voxels = (100 + 20 * rng.standard_normal((3, 40, 40))).astype(np.float32)
    voxels[:, :, 20:] += 100
    fine = Volume(np.repeat(np.repeat(voxels, 8, 1), 8, 2), np.diag([step, step, 1.0, 1.0]))
    grid = grids.Grid((4, 4, 3), np.diag([10.0, 10.0, 1.0, 1.0]))
    values = space.resample(fine, grid)
    assert np.isfinite(values).all()
    assert 60 < values.min() <= values.max() < 260


def blobs(step, size, origin, fwhm=9.0):
    """A few smooth spots, as PET sees them, at the voxels of a lattice along the axes."""
    rng = np.random.default_rng(0)
    axes = [o + s * np.arange(n) for o, s, n in zip(origin, (step,) * 3, size, strict=True)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    values = np.full(x.shape, 0.2)
    for centre, height in zip(rng.uniform(15, 65, (25, 3)), rng.uniform(1, 10, 25), strict=True):
        squares = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        values += height * np.exp(-squares / (2 * (fwhm / 2.355) ** 2))
    matrix = np.diag([step, step, step, 1.0])
    matrix[:3, 3] = origin
    return Volume(values.astype(np.float32), matrix)


def test_coarse_voxels_do_not_show_their_lattice(monkeypatch):
    """PET of 5 mm on a grid of 0.8 mm: nearer to the truth than straight lines, and smooth as the truth is."""
    pet = blobs(5.0, (16, 16, 16), (2.5, 2.5, 2.5))
    truth = blobs(0.8, (80, 75, 70), (8.1, 8.1, 8.1))
    values = space.resample(pet, grids.grid_of(truth))
    monkeypatch.setattr(space, "FINER", 100)
    straight = space.resample(pet, grids.grid_of(truth))
    error, straight_error = (np.sqrt(np.mean((v - truth.voxels) ** 2)) for v in (values, straight))
    assert error < 0.5 * straight_error
    bend, true_bend = (np.percentile(np.abs(np.diff(v, 2, axis=2)), 99.9) for v in (values, truth.voxels))
    assert bend < 1.4 * true_bend
    assert np.percentile(np.abs(np.diff(straight, 2, axis=2)), 99.9) > 2 * true_bend


def bounds_of(voxels, index):
    """Least and greatest of the voxels around points (n, 3) of indices i, j, k, which go on beyond the faces."""
    low = np.floor(index).astype(int)
    around = [
        voxels[tuple(np.clip(low[:, n] + corner[n], 0, voxels.shape[2 - n] - 1) for n in (2, 1, 0))]
        for corner in np.ndindex(2, 2, 2)
    ]
    return np.min(around, 0), np.max(around, 0)


@pytest.mark.parametrize("slab", [1, 1 << 23])
@pytest.mark.parametrize("size", [(7, 6, 5), (9, 8, 1), (1, 2, 3)])
def test_cubics_stay_between_their_neighbours(monkeypatch, slab, size):
    """Of noise, oblique and left-handed, through its faces and beyond; in slabs of one slice or in one."""
    monkeypatch.setattr(space, "SLAB_POINTS", slab)
    coarse = lattice(4, size, (5.0, 6.0, 8.0), left_handed=True)
    coarse.voxels = np.random.default_rng(1).normal(0, 1000, size[::-1]).astype(np.float32)
    fine = lattice(9, (40, 36, 30), (1.1, 1.2, 1.3))
    grid = grids.grid_of(fine)
    values = space.resample(coarse, grid)
    k, j, i = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    to_index = np.linalg.inv(coarse.ijk_to_physical) @ grid.matrix
    index = (np.stack([i, j, k, np.ones_like(i)], -1).reshape(-1, 4) @ to_index.T)[:, :3]
    inside = ((index > -0.49) & (index < np.array(size) - 0.51)).all(1)
    assert inside.sum() > 100
    low, high = bounds_of(coarse.voxels, index)
    found = values.ravel()
    assert (found >= low - 0.1)[inside].all()
    assert (found <= high + 0.1)[inside].all()
    assert (inside & (index < 0).any(1)).any()


def test_an_edge_of_thick_slices_does_not_ring():
    """Bone beside air, 5 mm thick: flat on both sides and rising in between."""
    voxels = np.full((16, 8, 8), -1000, np.int16)
    voxels[8:] = 1500
    matrix = np.diag([1.0, 1.0, 5.0, 1.0])
    values = space.resample(Volume(voxels, matrix), grids.Grid((8, 8, 300), np.diag([1.0, 1.0, 0.25, 1.0])))
    line = values[:, 4, 4]
    assert (line[: 7 * 20 + 1] == -1000).all()
    assert (line[8 * 20 :] == 1500).all()
    assert (np.diff(line) >= 0).all()
    assert line[150] == pytest.approx(250, abs=5)


def test_cubics_need_no_more_of_the_volume_than_is_taken():
    """A small grid within a large volume of coarse voxels: as if nothing had been cut off."""
    rng = np.random.default_rng(3)
    coarse = Volume(rng.normal(0, 1000, (40, 40, 40)).astype(np.float32), np.diag([5.0, 5.0, 5.0, 1.0]))
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    matrix[:3, 3] = 97.3
    small = grids.Grid((6, 6, 6), matrix)
    assert space._crop(coarse, small, 0.0).voxels.size < 0.3 * coarse.voxels.size
    matrix = matrix.copy()
    matrix[:3, 3] -= 60
    large = space.resample(coarse, grids.Grid((126, 126, 126), matrix))[60:66, 60:66, 60:66]
    assert np.abs(space.resample(coarse, small) - large).max() < 1


def test_cancel_stops_the_cubics(monkeypatch):
    monkeypatch.setattr(space, "SLAB_POINTS", 40 * 40)
    coarse = Volume(np.random.default_rng(0).random((10, 10, 10), np.float32), np.diag([5.0, 5.0, 5.0, 1.0]))
    done = []

    def stop(part):
        done.append(part)
        if part > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        space.resample(coarse, grids.Grid((40, 40, 40), np.diag([1.2, 1.2, 1.2, 1.0])), stop)
    assert max(done) < 0.6
