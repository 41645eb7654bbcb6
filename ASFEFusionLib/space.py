"""One space for both volumes: the common grid, resampling onto it, and who covers what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from .errors import FusionError
from .volume import Volume, to_sitk

# Progress of a stage from 0 to 1; raises Cancelled to stop it.
Tick = Callable[[float], None]
# Where a volume ends inside the other, the fusion fades over this length (mm).
FEATHER = 4.0
# More voxels than this in the result are refused: its arrays would need over 20 GB.
MOST_VOXELS = 1_500_000_000
# Spacings that differ by less are taken as one: nothing is gained by resampling for the last decimals.
ALIKE = 0.98
# Spacing of the grid over that of the volume from which on the volume is smoothed first, lest it alias.
COARSER = 1.2


@dataclass(frozen=True)
class Grid:
    """A lattice of voxel centres: `size` (i, j, k), `matrix` 4 x 4 from (i, j, k, 1) to LPS, mm."""

    size: tuple[int, int, int]
    matrix: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """mm along i, j, k."""
        return np.linalg.norm(self.matrix[:3, :3], axis=0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, j, i)."""
        return self.size[::-1]

    @property
    def extent(self) -> float:
        """Volume of the box of all voxels (mm3)."""
        return float(np.prod(self.size) * abs(np.linalg.det(self.matrix[:3, :3])))


def grid_of(volume: Volume) -> Grid:
    """The volume's own grid."""
    return Grid(volume.size_ijk, np.asarray(volume.ijk_to_physical, float))


def choose_grid(first: Volume, second: Volume, choice: str) -> Grid:
    """The common grid: "first", "second" or "finest". Raises FusionError "grid_too_large"."""
    grid = grid_of(second if choice == "second" else first)
    if choice == "finest":
        grid = finest(grid, grid_of(second))
    if np.prod(grid.size, dtype=float) > MOST_VOXELS:
        needed = np.prod(grid.size, dtype=float) * 14 / 1e9
        raise FusionError("grid_too_large", size=" x ".join(map(str, grid.size)), gigabytes=round(needed))
    return grid


def finest(first: Grid, second: Grid) -> Grid:
    """The first's axes and field of view, along each axis at the smaller of the two spacings."""
    axes = first.matrix[:3, :3] / first.spacing
    other = second.matrix[:3, :3] / second.spacing
    # Along each of the first's axes: the spacing of that axis of the second that runs most nearly along it.
    theirs = second.spacing[np.abs(axes.T @ other).argmax(axis=1)]
    length = first.spacing * first.size
    finer = theirs < ALIKE * first.spacing
    size = np.where(finer, np.ceil(length / theirs - 1e-3), first.size).astype(int)
    spacing = length / size
    matrix = first.matrix.copy()
    matrix[:3, :3] = axes * spacing
    # The outer faces stay where they are, so the first voxel's centre moves.
    matrix[:3, 3] += axes @ ((spacing - first.spacing) / 2)
    return Grid(tuple(int(n) for n in size), matrix)


def same_grid(a: Grid, b: Grid) -> bool:
    """True if all voxel centres of the two agree to a thousandth of a voxel."""
    if a.size != b.size:
        return False
    corner = np.array([*a.size, 1.0])
    tolerance = 1e-3 * min(a.spacing.min(), b.spacing.min())
    difference = a.matrix - b.matrix
    return bool(np.abs(difference[:3, :3] @ corner[:3]).max() + np.abs(difference[:3, 3]).max() < tolerance)


def resample(volume: Volume, grid: Grid, tick: Tick = lambda _: None) -> np.ndarray:
    """The volume's values at the grid's points, float32 (k, j, i), linear; outside the volume those of its faces.

    Where the grid is coarser than the volume, the volume is smoothed first. What lies outside, `coverage` tells.
    Raises Cancelled if `tick` does, FusionError "geometry_sheared".
    """
    if same_grid(grid_of(volume), grid):
        tick(1.0)
        return volume.voxels.astype(np.float32)
    import SimpleITK as sitk

    volume = _crop(volume, grid)
    image = sitk.Cast(to_sitk(volume), sitk.sitkFloat32)
    image = _smooth(image, volume, grid, tick)
    reference = to_sitk(Volume(np.zeros((1, 1, 1), np.uint8), grid.matrix, name="The chosen grid"))
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetSize(grid.size)
    resampler.SetOutputOrigin(reference.GetOrigin())
    resampler.SetOutputSpacing(reference.GetSpacing())
    resampler.SetOutputDirection(reference.GetDirection())
    # A point on the outer face, or a rounding beyond it, takes the face's value and not a default one.
    resampler.SetUseNearestNeighborExtrapolator(True)
    return sitk.GetArrayFromImage(_execute(resampler, image, tick))


def _execute(image_filter: object, image: object, tick: Tick) -> object:
    """Runs a SimpleITK filter with its progress told to `tick`, and stopped when that raises."""
    import SimpleITK as sitk

    stopped: list[BaseException] = []

    def report() -> None:
        # An exception cannot pass through ITK's C++: keep it, stop the filter, raise it afterwards.
        try:
            tick(image_filter.GetProgress())
        except BaseException as error:
            stopped.append(error)
            image_filter.Abort()

    image_filter.AddCommand(sitk.sitkProgressEvent, report)
    try:
        result = image_filter.Execute(image)
    except RuntimeError as error:
        raise (stopped[0] if stopped else error) from None
    if stopped:
        raise stopped[0]
    return result


def _coarse_steps(volume: Volume, grid: Grid) -> np.ndarray:
    """Along each of the volume's axes: the grid's spacing on that axis of the grid that runs most nearly along it."""
    axes = volume.ijk_to_physical[:3, :3] / volume.spacing
    return grid.spacing[np.abs(axes.T @ (grid.matrix[:3, :3] / grid.spacing)).argmax(axis=1)]


def _crop(volume: Volume, grid: Grid) -> Volume:
    """The part of the volume that the grid's points and the smoothing reach (a view, nothing copied)."""
    index = _corners(grid) @ (np.linalg.inv(volume.ijk_to_physical) @ grid.matrix)[:3].T
    margin = np.ceil(3 * _coarse_steps(volume, grid) / volume.spacing) + 2
    size = np.array(volume.size_ijk)
    low = np.clip(np.floor(index.min(0) - margin), 0, size - 1).astype(int)
    high = np.clip(np.ceil(index.max(0) + margin) + 1, low + 1, size).astype(int)
    matrix = volume.ijk_to_physical.copy()
    matrix[:3, 3] += matrix[:3, :3] @ low
    (i0, j0, k0), (i1, j1, k1) = low, high
    return replace(volume, voxels=volume.voxels[k0:k1, j0:j1, i0:i1], ijk_to_physical=matrix)


def _smooth(image: object, volume: Volume, grid: Grid, tick: Tick) -> object:
    """Blur along the axes that the grid samples more coarsely than the volume does."""
    import SimpleITK as sitk

    steps = zip(_coarse_steps(volume, grid), volume.spacing, image.GetSize(), strict=True)
    for axis, (step, own, count) in enumerate(steps):
        if step > COARSER * own and count > 1:
            # Both samplings as Gaussians with the spacing as full width at half maximum.
            sigma = np.sqrt(step**2 - own**2) / 2.355
            variance = [0.0] * 3
            variance[axis] = float(sigma**2)
            gaussian = sitk.DiscreteGaussianImageFilter()
            gaussian.SetVariance(variance)
            gaussian.SetMaximumKernelWidth(int(8 * sigma / own) + 3)
            gaussian.SetMaximumError(0.001)
            gaussian.SetUseImageSpacing(True)
            image = _execute(gaussian, image, lambda part: tick(part / 2))
    return image


def _corners(grid: Grid) -> np.ndarray:
    """(8, 4): homogeneous indices of the grid's corner voxels."""
    return np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in grid.size))])


@dataclass(frozen=True)
class Coverage:
    """How far each point of a grid lies inside a volume: 0 outside, 1 inside, a ramp at ends that the grid passes.

    Kept as the volume's index along its three axes, each affine in (i, j, k); `slab` gives the values.
    """

    grid: Grid
    size: tuple[int, int, int]
    to_index: np.ndarray
    ramp: np.ndarray  # per axis, in the volume's voxels
    passed: np.ndarray  # (3, 2) the grid goes on beyond the low, high face of the volume

    @property
    def full(self) -> bool:
        """Every point of the grid lies inside the volume."""
        return not self.passed.any()

    def slab(self, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start, j, i) in [0, 1]."""
        i, j, _ = self.grid.size
        weight = np.ones((stop - start, j, i), np.float32)
        if self.full:
            return weight
        points = np.arange(i), np.arange(j)[:, None], np.arange(start, stop)[:, None, None]
        for axis in range(3):
            row = self.to_index[axis]
            index = sum((row[n] * points[n] for n in range(3)), row[3]).astype(np.float32)
            for passed, depth in zip(self.passed[axis], (index + 0.5, self.size[axis] - 0.5 - index), strict=True):
                if passed:
                    np.minimum(weight, np.clip(depth / self.ramp[axis], 0, 1), out=weight)
        return weight


def coverage(volume: Volume, grid: Grid) -> Coverage:
    """Coverage of the grid by the volume's voxels, each taken to its outer faces (half a voxel beyond its centre)."""
    to_index = np.linalg.inv(volume.ijk_to_physical) @ grid.matrix
    index = _corners(grid) @ to_index[:3].T
    last = np.array(volume.size_ijk) - 0.5
    passed = np.stack([index.min(0) < -0.5 - 1e-3, index.max(0) > last + 1e-3], 1)
    # A volume of few slices must not fade away whole.
    ramp = np.minimum(FEATHER / volume.spacing, np.array(volume.size_ijk) / 4)
    return Coverage(grid, volume.size_ijk, to_index, np.maximum(ramp, 1e-3), passed)


def overlap(first: Volume, second: Volume, covers: tuple[Coverage, Coverage], tick: Tick = lambda _: None) -> float:
    """Space common to both volumes over that of the smaller one, 0 to 1, counted on the grid."""
    grid = covers[0].grid
    if covers[0].full and covers[1].full:
        common = grid.extent
    else:
        both = 0
        for k in range(grid.size[2]):
            both += int(((covers[0].slab(k, k + 1) > 0) & (covers[1].slab(k, k + 1) > 0)).sum())
            tick(k / grid.size[2])
        common = both * grid.extent / np.prod(grid.size)
    return min(1.0, common / min(grid_of(first).extent, grid_of(second).extent))
