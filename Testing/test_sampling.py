"""Volumes read on a grid in slabs, cubics one axis after the other, coverage where it changes: as if plainly."""

from dataclasses import replace

import numpy as np
import pytest

from ASFEFusionLib import cubic, grids, space
from ASFEFusionLib.coverage import coverage
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.volume import Volume


def turn(degrees):
    """4 x 4: a turn about z and half of it about x."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(about_z) @ about_x
    return matrix


def noise(size, spacing, matrix=None, kind=np.float32):
    """A volume of noise, its middle at the origin."""
    voxels = (1000 * np.random.default_rng(1).standard_normal(size[::-1])).astype(kind)
    matrix = (np.eye(4) if matrix is None else matrix) @ np.diag([*spacing, 1.0])
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(size) - 1) / 2)
    return Volume(voxels, matrix)


def grid(size, spacing, matrix=None):
    return grids.grid_of(noise(size, spacing, matrix))


# Volume and grid of every way to read: their own voxels in another order, linear, smoothed, cubic by ITK, cubic apart.
WAYS = {
    "own": (noise((9, 8, 7), (1, 2, 3)), grids.turned(grid((9, 8, 7), (1, 2, 3)), (2, 0, 1))),
    "linear": (noise((30, 28, 26), (1.1, 1, 1.2), turn(10)), grid((24, 30, 20), (1, 1.2, 1.3))),
    "smoothed": (noise((60, 60, 40), (0.5, 0.5, 1), turn(4)), grid((20, 22, 24), (1.4, 1.3, 1))),
    "cubic": (noise((9, 8, 7), (5, 4, 3), turn(8)), grid((30, 34, 25), (1.1, 0.9, 1))),
    "apart": (noise((9, 8, 7), (5, 4, 3)), grid((30, 34, 25), (1.1, 0.9, 1))),
}


@pytest.mark.parametrize("way", WAYS)
def test_slabs_are_parts_of_the_whole(way):
    volume, lattice = WAYS[way]
    reader = space.Reader(volume, lattice)
    assert (reader.own is not None, reader.separable is not None) == (way == "own", way == "apart")
    assert (reader.oblique is not None) == (way == "cubic")
    whole = space.resample(volume, lattice)
    assert whole.shape == lattice.shape
    for thick in (1, 7):
        parts = [reader.read(k, min(k + thick, len(whole))) for k in range(0, len(whole), thick)]
        # Places are rounded in float64 from each slab's own first point; sums of float32 in an order of their own.
        assert np.abs(np.concatenate(parts) - whole).max() < 1e-5 * np.ptp(volume.voxels)


def test_what_is_read_is_the_callers_own():
    """Windows work in place: not on the volume itself, whatever its type."""
    volume, lattice = WAYS["own"]
    before = volume.voxels.copy()
    values = space.Reader(volume, lattice).read(0, 3)
    values[:] = 0
    assert np.array_equal(volume.voxels, before)


def flipped(order, flips):
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[:, list(order)] * flips
    return matrix


@pytest.mark.parametrize(
    "order, flips, size, spacing",
    [
        ((0, 1, 2), (1, 1, 1), (9, 8, 7), (5, 4, 3)),
        ((2, 0, 1), (1, -1, 1), (9, 8, 7), (5, 4, 3)),
        ((1, 0, 2), (-1, -1, -1), (20, 18, 6), (1.3, 1.0, 6)),  # thick slices only
        ((0, 1, 2), (1, 1, 1), (6, 1, 2), (6, 30, 20)),
        ((0, 1, 2), (1, 1, -1), (200, 5, 4), (0.15, 6, 8)),  # smoothed along one axis, cubic along the others
    ],
)
def test_cubics_one_axis_after_the_other_are_those_of_itk(monkeypatch, order, flips, size, spacing):
    """Wherever a point lies inside the volume or in the frame around it; of noise, to the rounding of float32."""
    volume = noise(size, spacing, flipped(order, flips))
    lattice = grid((41, 37, 33), (0.9, 1.1, 1.0))
    lattice.matrix[:3, 3] += (0.0123, 0.0217, 0.0319)  # on a plane of voxels the eight around are a matter of rounding
    assert space.Reader(volume, lattice).separable is not None
    found = space.resample(volume, lattice)
    monkeypatch.setattr(cubic, "along", lambda *_: None)
    assert space.Reader(volume, lattice).oblique is not None
    plain = space.resample(volume, lattice)
    points = np.stack([*np.meshgrid(*map(np.arange, lattice.size), indexing="ij"), np.ones(lattice.size)], -1)
    index = (points @ (np.linalg.inv(volume.ijk_to_physical) @ lattice.matrix).T)[..., :3].transpose(2, 1, 0, 3)
    near = ((index > -1.9) & (index < np.array(size) + 0.9)).all(-1)
    assert near.mean() > 0.3
    assert np.abs(found - plain)[near].max() < 1e-5 * np.ptp(volume.voxels)


def test_a_slight_turn_is_not_taken_for_none():
    """A thousandth of a voxel at the far end of the grid is followed."""
    coarse, lattice = noise((20, 20, 20), (5, 5, 5)), grid((90, 90, 90), (1, 1, 1))
    assert space.Reader(coarse, lattice).separable is not None
    turned = replace(coarse, ijk_to_physical=turn(0.003) @ coarse.ijk_to_physical)
    assert space.Reader(turned, lattice).oblique is not None


def plain_coverage(cover):
    """All six ramps at all points."""
    points = np.stack([*np.meshgrid(*map(np.arange, cover.grid.size), indexing="ij"), np.ones(cover.grid.size)], -1)
    index = (points @ cover.to_index.T)[..., :3].transpose(2, 1, 0, 3)
    low, high = (index + 0.5) / cover.ramp, (np.array(cover.size) - 0.5 - index) / cover.ramp
    ramps = np.minimum(np.where(cover.passed[:, 0], low, 1), np.where(cover.passed[:, 1], high, 1))
    return ramps.min(-1).clip(0, 1)


@pytest.mark.parametrize("degrees", [0, 3, 40])
@pytest.mark.parametrize("size", [(60, 50, 40), (30, 70, 12), (3, 80, 80)])
def test_coverage_is_computed_where_it_changes(degrees, size):
    volume, lattice = noise(size, (1.1, 0.8, 1.0), turn(degrees)), grid((50, 44, 36), (1.0, 1.1, 0.9))
    cover = coverage(volume, lattice)
    plain = plain_coverage(cover)
    assert plain.min() == 0
    for thick in (1, 5, 36):
        found = np.concatenate([cover.slab(k, min(k + thick, 36)) for k in range(0, 36, thick)])
        assert np.abs(found - plain).max() < 1e-4  # indices are rounded to float32


def test_what_is_not_finite_on_the_grid_is_refused(monkeypatch):
    volume, lattice = WAYS["linear"]
    broken = replace(volume, voxels=np.full_like(volume.voxels, np.nan), name="MR")
    with pytest.raises(FusionError) as caught:
        space.Reader(broken, lattice).read(3, 5)
    assert caught.value.code == "resample_failed"
    assert "MR" in str(caught.value)
