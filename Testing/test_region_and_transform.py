"""A part of the grid, a grid of one's own, and a second volume that a bent or sheared transform lays on the first."""

from dataclasses import replace

import numpy as np
import pytest

from ASFEFusionLib import grids, space
from ASFEFusionLib.coverage import coverage
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume


def box(grid, low, high):
    """Corners, in LPS mm, of the box of voxels low to high (i, j, k; both counted)."""
    corners = np.array([[i, j, k, 1] for i in (low[0], high[0]) for j in (low[1], high[1]) for k in (low[2], high[2])])
    return (corners @ grid.matrix.T)[:, :3]


def test_a_region_is_cut_out_and_placed(heads):
    """The picture inside is that of the whole, to a few levels, and lies where it lay."""
    whole, _ = fuse(heads["CT"], heads["MR"])
    grid = grids.grid_of(heads["CT"])
    region = box(grid, (30, 20, 10), (55, 60, 14))
    part, report = fuse(heads["CT"], heads["MR"], FusionSettings(region=region))
    assert part.size_ijk == (26, 41, 5) == tuple(report.grid["size"])
    assert np.allclose(part.ijk_to_physical @ [0, 0, 0, 1], grid.matrix @ [30, 20, 10, 1])
    inside = whole.voxels[10:15, 20:61, 30:56]
    difference = np.abs(part.voxels.astype(int) - inside)
    assert np.percentile(difference, 99) < 30  # of 1000
    assert np.corrcoef(part.voxels.ravel(), inside.ravel())[0, 1] > 0.999


def test_a_region_limits_the_work(heads, monkeypatch):
    from ASFEFusionLib import engine

    seen = []
    fuse_slab = engine.Engine.fuse
    monkeypatch.setattr(engine.Engine, "fuse", lambda self, a, b, beat: seen.append(a.shape) or fuse_slab(self, a, b))
    fuse(heads["CT"], heads["MR"], FusionSettings(region=box(grids.grid_of(heads["CT"]), (30, 20, 10), (31, 21, 11))))
    assert sum(shape[0] for shape in seen) == 2
    assert seen[0][1:] == (2 + 20 + 32, 2 + 30 + 32)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ((2, 3, 4), (2, 3, 4), (1, 1, 1)),
        ((1.6, 3, 4), (2.4, 3, 4), (1, 1, 1)),
        ((1.4, 3, 4), (2.6, 3, 4), (3, 1, 1)),
        ((1.5, 3, 4), (2.5, 3, 4), (1, 1, 1)),
        ((-50, -50, -50), (50, 50, 50), (10, 9, 8)),
        ((-50, 8.4, 7), (-0.4, 50, 7), (1, 1, 1)),
        ((-50, 3, 4), (-0.6, 3, 4), None),
        ((9.6, 3, 4), (20, 3, 4), None),
    ],
)
def test_the_voxels_of_a_region(low, high, expected):
    rng = np.random.default_rng(3)
    direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix = np.eye(4)
    matrix[:3, :3] = direction * [0.5, 2.0, 3.0]
    matrix[:3, 3] = [10, -20, 30]
    grid = grids.Grid((10, 9, 8), matrix)
    part = grids.part_of(grid, box(grid, low, high))
    assert (None if part is None else grids.cut_out(grid, part).size) == expected


def test_region_warnings_and_refusals(heads):
    ct, mr = heads["CT"], heads["MR"]
    grid = grids.grid_of(ct)
    with pytest.raises(FusionError) as caught:
        fuse(ct, mr, FusionSettings(region=box(grid, (-50, 0, 0), (-20, 5, 5))))
    assert caught.value.code == "region_outside"
    alone = np.argwhere(coverage(mr, grid).slab(0, grid.size[2]) == 0)[0][::-1]
    _, report = fuse(ct, mr, FusionSettings(region=box(grid, alone, alone)))
    assert "region_alone" in [w.code for w in report.warnings]
    assert report.overlap > 0.5  # of the volumes, not of the region


def test_a_lattice_of_ones_own(heads):
    """The middle slice alone, and a sagittal plane."""
    ct, mr = heads["CT"], heads["MR"]
    whole, _ = fuse(ct, mr)
    grid = grids.grid_of(ct)
    part = (slice(20, 21), slice(0, grid.size[1]), slice(0, grid.size[0]))
    one = grids.cut_out(grid, part)
    slice_, report = fuse(ct, mr, FusionSettings(lattice=(one.size, one.matrix)))
    assert np.abs(slice_.voxels[0].astype(int) - whole.voxels[20]).max() <= 1
    assert report.overlap > 0.5
    sagittal = np.eye(4)
    sagittal[:3, 0], sagittal[:3, 1], sagittal[:3, 2] = [0, 3, 0], [0, 0, -3], [3, 0, 0]
    sagittal[:3, 3] = [0, -100, 120]
    plane, _ = fuse(ct, mr, FusionSettings(lattice=((60, 60, 1), sagittal)))
    assert plane.size_ijk == (60, 60, 1)
    assert plane.voxels.std() > 100


def bent(amplitude=6.0, step=3.0):
    """A smooth displacement over the phantom's head."""
    matrix = np.diag([step, step, step, 1.0])
    matrix[:3, 3] = [-130, -150, -120]
    _, j, i = np.meshgrid(*(np.arange(n) * step for n in (100, 100, 90)), indexing="ij")
    wave = amplitude * np.sin(i / 40) * np.cos(j / 50)
    return space.Displacement(np.stack([wave, 0.5 * wave, -wave], -1).astype(np.float32), matrix)


def test_a_displacement_is_followed():
    """Voxels of a ramp tell where each point was found."""
    ramp = np.broadcast_to(np.arange(100, dtype=np.float32)[None, None], (80, 90, 100)).copy()
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = [-100, -90, -80]
    volume = Volume(ramp, matrix)
    grid = grids.Grid((40, 40, 40), np.array([[3.0, 0, 0, -60], [0, 3, 0, -60], [0, 0, 3, -60], [0, 0, 0, 1]]))
    displacement = bent()
    at = displacement.at(grid)
    values = space.resample(volume, grid, displacement=displacement)
    x = (np.arange(40) * 3 - 60)[None, None] + at[..., 0]
    assert np.abs(values - np.clip((x + 100) / 2, 0, 99)).max() < 0.01
    assert np.ptp(at) > 8
    assert displacement.greatest == pytest.approx(np.linalg.norm(displacement.vectors, axis=-1).max(), rel=1e-5)


def test_a_bent_second_volume_comes_out_straight(heads):
    """MR moved by u and fused with u given equals the fusion of the MR as it was, where both know the values."""
    ct, mr = heads["CT"], heads["MR"]
    shift = np.array([12.0, -8.0, 4.0])
    matrix = np.diag([50.0, 50.0, 50.0, 1.0])
    matrix[:3, 3] = -300
    even = space.Displacement(np.broadcast_to(shift, (14, 14, 14, 3)).astype(np.float32), matrix)
    moved = mr.ijk_to_physical.copy()
    moved[:3, 3] += shift
    plain, _ = fuse(ct, mr, FusionSettings(window_second=(0, 900)))
    back, report = fuse(
        ct, replace(mr, ijk_to_physical=moved), FusionSettings(window_second=(0, 900)), displacement=even
    )
    inside = coverage(mr, grids.grid_of(ct)).slab(0, ct.size_ijk[2]) == 1
    assert np.abs(plain.voxels.astype(int) - back.voxels)[inside].max() <= 20
    assert np.abs(plain.voxels.astype(int) - back.voxels)[inside].mean() < 0.5
    assert report.displacement == pytest.approx(np.linalg.norm(shift), abs=0.01)
    assert report.overlap > 0.5
    with pytest.raises(FusionError) as caught:
        fuse(ct, mr, FusionSettings(grid="second"), displacement=even)
    assert caught.value.code == "grid_bent"


def test_coverage_follows_the_displacement(heads):
    mr, grid = heads["MR"], grids.grid_of(heads["CT"])
    displacement = bent()
    cover = coverage(mr, grid, displacement).slab(0, grid.size[2])
    index = np.moveaxis(np.indices(grid.shape)[::-1], 0, -1).reshape(-1, 3)
    points = index @ grid.matrix[:3, :3].T + grid.matrix[:3, 3] + displacement.at(grid).reshape(-1, 3)
    inverse = np.linalg.inv(mr.ijk_to_physical)
    found = points @ inverse[:3, :3].T + inverse[:3, 3]
    inside = ((found > -0.5) & (found < np.array(mr.size_ijk) - 0.5)).all(1).reshape(grid.shape)
    assert ((cover > 0) != inside).mean() < 1e-4


def test_a_sheared_second_volume(heads):
    """An affine transform in the scene may shear: the second is resampled all the same, the first is refused."""
    ct, mr = heads["CT"], heads["MR"]
    shear = np.eye(4)
    shear[0, 1], shear[2, 0] = 0.2, 0.1
    voxels = space.resample(mr, grids.grid_of(mr))
    sheared = replace(mr, ijk_to_physical=shear @ mr.ijk_to_physical)
    grid = grids.grid_of(ct)
    values = space.resample(sheared, grid)
    # The value at a point lies among those around the unsheared point in the plain volume.
    rng = np.random.default_rng(1)
    index = rng.integers(5, np.array(grid.size) - 5, (200, 3))
    points = np.linalg.inv(shear) @ grid.matrix @ np.c_[index, np.ones(200)].T
    at = np.linalg.inv(mr.ijk_to_physical) @ points
    near = np.rint(at[:3]).astype(int)
    inside = ((near >= 1) & (near < np.array(mr.size_ijk)[:, None] - 1)).all(0)
    low = [voxels[n[2] - 1 : n[2] + 2, n[1] - 1 : n[1] + 2, n[0] - 1 : n[0] + 2] for n in near.T[inside]]
    found = values[tuple(index[inside].T[::-1])]
    assert inside.sum() > 50
    assert all(block.min() - 1 <= v <= block.max() + 1 for block, v in zip(low, found, strict=True))
    fused, report = fuse(ct, sheared)
    assert fused.size_ijk == ct.size_ijk
    assert report.overlap > 0.3
    for pair, settings in (((sheared, ct), None), ((ct, sheared), FusionSettings(grid="second"))):
        with pytest.raises(FusionError) as caught:
            fuse(*pair, settings)
        assert caught.value.code == "geometry_sheared"


@pytest.mark.parametrize("modality", ["US", "XA", "CBCT"])
def test_what_it_was_not_trained_on_is_named(heads, modality):
    _, report = fuse(heads["CT"], heads["MR"], FusionSettings(modality_second=modality))
    [notice] = [w for w in report.warnings if w.code == "not_trained"]
    assert modality in str(notice)
    _, report = fuse(heads["CT"], heads["PET"])
    assert not [w for w in report.warnings if w.code == "not_trained"]
