"""All geometries through the whole of fuse(), against values that are known at every point of space.

Both volumes are linear in space and the network is a mean, so that the fused value at a point is that of a formula.
"""

from itertools import permutations

import numpy as np
import pytest

from ASFEFusionLib import engine, grids, space
from ASFEFusionLib.coverage import FEATHER, coverage
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume

WINDOW = (-400.0, 600.0)
SLOPES = np.array([[0.9, -1.3, 0.7], [-0.6, 0.8, 1.1]])
MIDDLES = np.array([60.0, 140.0])
CENTRE = np.array([12.0, -30.0, 55.0])
ORDERS = list(permutations(range(3)))


@pytest.fixture(autouse=True)
def mean(monkeypatch):
    """In place of the network."""
    monkeypatch.setattr(engine.Engine, "fuse", lambda self, a, b, beat: (a + b) / 2)


def field(which, points):
    return MIDDLES[which] + (points - CENTRE) @ SLOPES[which]


def random_turn(rng, degrees):
    """A turn by so many degrees about a random axis (Rodrigues)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def lattice(spacing, length, directions, offset=(0, 0, 0)):
    """Size and matrix of voxels of `spacing` that fill about `length` mm about the centre, moved by `offset` mm."""
    size = np.maximum(1, np.rint(np.array(length) / spacing)).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing
    matrix[:3, 3] = CENTRE + offset - matrix[:3, :3] @ ((size - 1) / 2)
    return tuple(int(n) for n in size), matrix


def points_of(size, matrix):
    k, j, i = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    return (np.stack([i, j, k, np.ones_like(i)], -1) @ matrix.T)[..., :3]


def volume(which, size, matrix):
    voxels = field(which, points_of(size, matrix)).astype(np.float32)
    return Volume(voxels, matrix, modality="MR", name=f"field {which}")


def depth(points, size, matrix):
    """How far (mm) each point lies within the box of all voxels, along each axis; negative outside."""
    index = (points - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    return np.minimum(index + 0.5, np.array(size) - 0.5 - index) * spacing


def well_inside(points, size, matrix, grid):
    """Where smoothing, cubics and the fade, which reach some way in from the faces, leave a volume as it is."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    steps = np.abs(np.linalg.inv(matrix[:3, :3] / spacing) @ grid[:3, :3]).max(1)
    return (depth(points, size, matrix) > np.maximum(FEATHER, 2 * np.maximum(steps, spacing))).all(-1)


def outside(points, size, matrix):
    return (depth(points, size, matrix) < -0.01).any(-1)


PERMUTED = np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]])
CASES = {
    "plain": ((1.5, 1.5, 3), (2, 2, 2), np.eye(3), np.eye(3)),
    "permuted": ((1.5, 1.5, 3), (2, 2, 2), np.eye(3), PERMUTED),
    "both permuted": ((1.5, 2.5, 1.5), (2, 2, 3), PERMUTED.T, PERMUTED),
    "left-handed": ((1.5, 1.5, 3), (2, 2, 2), np.diag([1.0, 1, -1]), np.diag([-1.0, 1, 1])),
    "all negative": ((1.5, 1.5, 3), (2, 2, 2), -np.eye(3), np.diag([-1.0, -1, 1])),
    "oblique": ((1.5, 1.5, 3), (2, 2, 2), random_turn(np.random.default_rng(1), 35), np.eye(3)),
    "both oblique": (
        (2, 1.5, 3),
        (2, 2.4, 2),
        random_turn(np.random.default_rng(2), 40),
        -random_turn(np.random.default_rng(3), 140),
    ),
    "0.5 x 0.5 x 8": ((0.5, 0.5, 8), (1.6, 1.6, 1.6), np.eye(3), random_turn(np.random.default_rng(4), 10)),
    "0.5 x 0.5 x 8 second": ((1.6, 1.6, 1.6), (0.5, 0.5, 8), random_turn(np.random.default_rng(4), 10), np.eye(3)),
    "sagittal 8 mm": ((0.7, 0.7, 8), (1.6, 1.6, 3), PERMUTED, random_turn(np.random.default_rng(5), 8)),
    "0.4 against 5 mm": ((0.4, 0.4, 2), (5, 5, 5), np.eye(3), random_turn(np.random.default_rng(6), 20)),
    "5 against 0.4 mm": ((5, 5, 5), (0.4, 0.4, 2), random_turn(np.random.default_rng(6), 20), np.eye(3)),
}


@pytest.mark.parametrize("offset", [(0, 0, 0), (18, -14, 11)], ids=["", "partial"])
@pytest.mark.parametrize("choice", ["first", "second", "finest"])
@pytest.mark.parametrize("case", CASES)
def test_every_point_has_its_value(case, choice, offset):
    one, other, *directions = CASES[case]
    boxes = [lattice(one, (72, 64, 64), directions[0]), lattice(other, (60, 72, 72), directions[1], offset)]
    pair = [volume(which, *box) for which, box in enumerate(boxes)]
    settings = FusionSettings(grid=choice, window_first=WINDOW, window_second=WINDOW, check=False)
    fused, report = fuse(*pair, settings)
    points = points_of(fused.size_ijk, fused.ijk_to_physical)
    if choice != "finest":
        assert np.array_equal(fused.ijk_to_physical, boxes[choice == "second"][1])
    assert tuple(report.grid["size"]) == fused.size_ijk
    want = [(field(which, points) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * 1000 for which in range(2)]
    within = [well_inside(points, *box, fused.ijk_to_physical) for box in boxes]
    beyond = [outside(points, *box) for box in boxes]
    both = within[0] & within[1]
    assert both.sum() > 50
    assert np.abs(fused.voxels - (want[0] + want[1]) / 2)[both].max() < 4
    alone = [within[which] & beyond[1 - which] for which in range(2)]
    for which in range(2):
        assert np.abs(fused.voxels - want[which])[alone[which]].max(initial=0) < 4
    assert (alone[0] | alone[1]).any() or not any(offset)
    assert (fused.voxels[beyond[0] & beyond[1]] == 0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_every_storage_of_thick_slices(order, flip):
    """0.5 x 0.5 x 8 mm in any order and sense of the axes, oblique."""
    turn = random_turn(np.random.default_rng(8), 12) * flip
    box = lattice(np.array([0.8, 0.8, 8])[list(order)], np.array([40, 36, 48])[list(order)], turn[:, list(order)])
    other = lattice((2, 2, 2), (60, 60, 60), np.eye(3))
    fused, report = fuse(
        volume(0, *box),
        volume(1, *other),
        FusionSettings(window_first=WINDOW, window_second=WINDOW, check=False),
    )
    assert report.grid["slice_axis"] == "ijk"[order.index(2)]
    assert np.array_equal(fused.ijk_to_physical, box[1])
    points = points_of(*box)
    want = sum((field(which, points) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * 500 for which in range(2))
    assert np.abs(fused.voxels - want).max() < 4


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_one_slice_against_a_volume(which, order):
    """As first and as second, on the grid of either, stored along any axis."""
    spacing, length = np.array([1.0, 1, 3])[list(order)], np.array([40, 44, 3])[list(order)]
    turn = random_turn(np.random.default_rng(9), 0 if which else 25)[:, list(order)]
    slices = lattice(spacing, length, turn)
    boxes = [slices, lattice((2, 2, 1), (60, 60, 60), np.eye(3))]
    pair = [volume(n, *box) for n, box in enumerate(boxes)]
    pair = pair[::-1] if which else pair
    for choice in ("first", "second"):
        settings = FusionSettings(grid=choice, window_first=WINDOW, window_second=WINDOW, check=False)
        fused, _ = fuse(*pair, settings)
        points = points_of(fused.size_ijk, fused.ijk_to_physical)
        inside = well_inside(points, *boxes[1], fused.ijk_to_physical)
        inside &= (np.delete(depth(points, *slices), order.index(2), -1) > 5).all(-1)
        # The slice has no values but its own plane's.
        normal = turn[:, order.index(2)]
        onto = points - ((points - CENTRE) @ normal)[..., None] * normal
        want = (field(0, onto) + field(1, points) - 2 * WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * 500
        inside &= np.abs((points - CENTRE) @ normal) < 0.7
        assert inside.sum() > 100
        assert np.abs(fused.voxels - want)[inside].max() < 8


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("off", [0.0, 0.2, 0.45, 0.5, 0.8])
def test_a_slab_between_the_planes_of_a_coarse_grid(count, off):
    """1 mm thick on planes 6 mm apart, `off` of a step beyond one: it shows in the nearest plane, and in both if it
    lies halfway; it shares space with the volume in any case."""
    coarse = lattice((2, 2, 6), (60, 60, 60), np.eye(3))
    plane = np.array(coarse[1][:3, 3]) + coarse[1][:3, :3] @ [15, 15, 4]
    thin = lattice((3, 3, 1 / count), (42, 42, 1), np.eye(3))
    thin[1][2, 3] = plane[2] + 6 * off - (count - 1) / 2 / count
    grid = grids.Grid(*coarse)
    slab = volume(1, *thin)
    cover = coverage(slab, grid).slab(0, grid.size[2])[:, 15, 15]
    assert set(np.flatnonzero(cover)) <= {3, 4, 5}
    assert cover[4 if off < 0.5 else 5] == 1
    if off == 0.5:
        assert cover[4] == 1
    if off == 0:
        assert np.flatnonzero(cover).tolist() == [4]
    values = space.resample(slab, grid)[np.flatnonzero(cover == 1)[0], 10:20, 10:20]
    points = points_of(*coarse)[4, 10:20, 10:20]
    points[..., 2] = plane[2] + 6 * off
    assert np.abs(values - field(1, points)).max() < 1
    _, report = fuse(volume(0, *coarse), slab, FusionSettings(check=False))
    assert report.overlap == pytest.approx(1)


def test_a_slab_as_thick_as_a_step_stays_as_it_is():
    coarse = lattice((2, 2, 6), (60, 60, 60), np.eye(3))
    for thick, planes in ((7, [4]), (16, [3, 4, 5])):
        slab = lattice((1, 1, 1), (40, 40, thick), np.eye(3))
        slab[1][2, 3] = coarse[1][2, 3] + 4 * 6 - (thick - 1) / 2
        cover = coverage(volume(1, *slab), grids.Grid(*coarse)).slab(0, 10)[:, 15, 15]
        assert np.flatnonzero(cover).tolist() == planes


def test_two_pictures_with_a_place():
    """2-D images with spacings of their own are laid on each other where they lie."""
    one, other = (
        lattice((0.8, 0.8, 1), (40, 44, 1), np.eye(3)),
        lattice((1.5, 1, 1), (30, 36, 1), np.diag([-1.0, 1, 1])),
    )
    pair = [volume(n, *box) for n, box in enumerate((one, other))]
    for picture in pair:
        picture.two_d = True
    fused, _ = fuse(*pair, FusionSettings(window_first=WINDOW, window_second=WINDOW))
    assert fused.two_d
    points = points_of(*one)
    both = np.logical_and(*((depth(points, *box)[..., :2] > 4).all(-1) for box in (one, other)))
    want = sum((field(which, points) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * 500 for which in range(2))
    assert both.sum() > 300
    assert np.abs(fused.voxels - want)[both].max() < 2
