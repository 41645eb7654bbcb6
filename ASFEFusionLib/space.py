"""One space for both volumes: the common grid, resampling onto it, and who covers what."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np

from . import machine
from .errors import FusionError
from .volume import Volume, to_sitk

# Progress of a stage from 0 to 1; raises Cancelled to stop it.
Tick = Callable[[float], None]
# Where a volume ends inside the other, the fusion fades over this length (mm).
FEATHER = 4.0
# More voxels than this in the result are refused: its arrays would need over 20 GB.
MOST_VOXELS = 1_500_000_000
# What a fusion takes at its peak for each voxel of the grid, beside the volumes themselves: the values of both in
# float32, ITK's own copy of one of them, and a mask. Measured: 13.4, grey or colour, whatever the plane.
BYTES_A_VOXEL = 14
# From so many bytes on the need of a grid is said.
LARGE = 4_000_000_000
# Spacings that differ by less are taken as one: nothing is gained by resampling for the last decimals.
ALIKE = 0.98
# Spacing of the grid over that of the volume from which on the volume is smoothed first, lest it alias.
COARSER = 1.2
# And from which on neighbouring voxels are averaged before that.
BINNED = 16
# Spacing of the volume over that of the grid from which on its values are joined by cubics: straight lines show its
# lattice.
FINER = 2.0
# Voxels around the grid that such a cubic still feels (to 1e-4), and that are put around the volume for it.
REACH, FRAME = 8, 2
# Points of the grid that are interpolated at a time in that way.
SLAB_POINTS = 1 << 23


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


@dataclass(frozen=True)
class Displacement:
    """A bent transform: a point p of the first volume's space is found at p + u(p) in the second's.

    `vectors`: u at the points of a lattice, (k, j, i, 3) LPS mm, linear in between, zero beyond it; `matrix`: 4 x 4
    from the lattice's (i, j, k, 1) to LPS mm (axes at right angles).
    """

    vectors: np.ndarray
    matrix: np.ndarray

    @property
    def greatest(self) -> float:
        """Length of the longest vector (mm)."""
        return float(np.sqrt((self.vectors.astype(np.float32) ** 2).sum(-1)).max())

    def transform(self) -> object:
        """As a SimpleITK transform of points. Raises FusionError "geometry_sheared"."""
        import SimpleITK as sitk

        field = sitk.GetImageFromArray(self.vectors.astype(np.float64), isVector=True)
        reference = to_sitk(Volume(np.zeros((1, 1, 1), np.uint8), self.matrix, name="The displacement"))
        field.SetOrigin(reference.GetOrigin())
        field.SetSpacing(reference.GetSpacing())
        field.SetDirection(reference.GetDirection())
        return sitk.DisplacementFieldTransform(field)

    def at(self, grid: Grid) -> np.ndarray:
        """u at the grid's points, float32 (k, j, i, 3)."""
        import SimpleITK as sitk

        reference = to_sitk(Volume(np.zeros((1, 1, 1), np.uint8), grid.matrix, name="The chosen grid"))
        geometry = reference.GetOrigin(), reference.GetSpacing(), reference.GetDirection()
        field = sitk.TransformToDisplacementField(self.transform(), sitk.sitkVectorFloat32, grid.size, *geometry)
        return sitk.GetArrayFromImage(field)


def grid_of(volume: Volume) -> Grid:
    """The volume's own grid."""
    return Grid(volume.size_ijk, np.asarray(volume.ijk_to_physical, float))


def choose_grid(first: Volume, second: Volume, choice: str) -> Grid:
    """The common grid: "first", "second" or "finest"."""
    grid = grid_of(second if choice == "second" else first)
    return finest(grid, grid_of(second)) if choice == "finest" else grid


def memory_needed(grid: Grid) -> int:
    """Bytes that a fusion on the grid takes at its peak, beside the two volumes and the programs themselves."""
    return BYTES_A_VOXEL * math.prod(grid.size)


def memory_facts(grid: Grid) -> dict[str, str | float]:
    """The `size` of the grid in words, and the `gigabytes` that it needs, for a sentence."""
    needed = memory_needed(grid) / 1e9
    return {"size": " x ".join(map(str, grid.size)), "gigabytes": round(needed, 1) if needed < 10 else round(needed)}


def check_size(grid: Grid) -> None:
    """Raise FusionError "grid_too_large", or "grid_memory" if a result on the grid needs more than this machine has."""
    if math.prod(grid.size) > MOST_VOXELS:
        raise FusionError("grid_too_large", **memory_facts(grid))
    there = machine.memory()
    if there is not None and memory_needed(grid) > there:
        raise FusionError("grid_memory", **memory_facts(grid), there=round(there / 1e9, 1))


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


def turned(grid: Grid, order: Sequence[int]) -> Grid:
    """The same voxel centres with the grid's axes in another order: axis n of the result is axis order[n] of `grid`."""
    matrix = grid.matrix.copy()
    matrix[:3, :3] = grid.matrix[:3, list(order)]
    return Grid(tuple(grid.size[n] for n in order), matrix)


def turned_voxels(voxels: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Voxels (k, j, i) or (k, j, i, 3) of a grid as those of `turned(grid, order)`: a view."""
    return voxels.transpose([2 - order[2 - n] for n in range(3)] + list(range(3, voxels.ndim)))


def part_of(grid: Grid, points: np.ndarray, halo: int = 0) -> tuple[slice, slice, slice] | None:
    """The voxels (k, j, i) of the grid whose boxes the bounding box of the points touches; None if there are none.

    `points`: (n, 3) LPS mm. `halo`: so many voxels more on either side along j and i, as far as the grid goes.
    """
    points = np.asarray(points, float)
    index = np.linalg.inv(grid.matrix) @ np.c_[points, np.ones(len(points))].T
    low, high = index[:3].min(1), index[:3].max(1)
    # From the voxel whose box holds one end to the one that holds the other; an end on a face takes no voxel more.
    low, high = np.floor(low + 0.5 + 1e-6).astype(int), np.ceil(high + 0.5 - 1e-6).astype(int)
    high = np.maximum(high, low + 1)
    size = np.array(grid.size)
    if (high <= 0).any() or (low >= size).any():
        return None
    more = np.array([halo, halo, 0])
    low, high = np.maximum(low - more, 0), np.minimum(high + more, size)
    return tuple(slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))


def cut_out(grid: Grid, part: tuple[slice, slice, slice]) -> Grid:
    """The grid of a part (k, j, i) of the grid's voxels."""
    start = [s.start for s in part[::-1]]
    matrix = grid.matrix.copy()
    matrix[:3, 3] += matrix[:3, :3] @ start
    return Grid(tuple(s.stop - s.start for s in part[::-1]), matrix)


def same_grid(a: Grid, b: Grid) -> bool:
    """True if all voxel centres of the two agree to a thousandth of a voxel."""
    if a.size != b.size:
        return False
    corner = np.array([*a.size, 1.0])
    tolerance = 1e-3 * min(a.spacing.min(), b.spacing.min())
    difference = np.abs(a.matrix - b.matrix)  # each axis for itself: those of exchanged axes cancel at the far corner
    return bool((difference[:3, :3] @ corner[:3]).max() + difference[:3, 3].max() < tolerance)


def resample(
    volume: Volume, grid: Grid, tick: Tick = lambda _: None, displacement: Displacement | None = None
) -> np.ndarray:
    """The volume's values at the grid's points, float32 (k, j, i); outside the volume those of its faces.

    Linear in between voxels; where the volume's are over twice as far apart as the grid's, cubic, but never beyond the
    values of the eight voxels around, so that no edge rings. Where the grid is coarser than the volume, the volume is
    smoothed first; one thinner than a step of the grid, see `_thickened`. What lies outside, `coverage` tells.
    The volume's axes may be at any angles; those of the grid are at right ones. `displacement`: see `Displacement`.
    Raises Cancelled if `tick` does, FusionError "geometry_sheared".
    """
    for order in permutations(range(3)) if displacement is None else ():
        if same_grid(turned(grid_of(volume), order), grid):
            tick(1.0)
            return turned_voxels(volume.voxels, order).astype(np.float32, order="C")
    import SimpleITK as sitk

    volume = _crop(_thickened(volume, grid), grid, displacement.greatest if displacement else 0.0)
    # ITK's images have axes at right angles; the volume in a frame of its own always has.
    own = np.diag([*volume.spacing, 1.0])
    image = sitk.Cast(to_sitk(replace(volume, ijk_to_physical=own)), sitk.sitkFloat32)
    image = _smooth(image, volume, grid, tick)
    to_own = own @ np.linalg.inv(volume.ijk_to_physical)
    transform = sitk.AffineTransform(to_own[:3, :3].ravel().tolist(), to_own[:3, 3].tolist())
    if displacement is not None:  # the last one added comes first
        transform = sitk.CompositeTransform([transform, displacement.transform()])
    reference = to_sitk(Volume(np.zeros((1, 1, 1), np.uint8), grid.matrix, name="The chosen grid"))
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetTransform(transform)
    resampler.SetSize(grid.size)
    resampler.SetOutputOrigin(reference.GetOrigin())
    resampler.SetOutputSpacing(reference.GetSpacing())
    resampler.SetOutputDirection(reference.GetDirection())
    # A point on the outer face, or a rounding beyond it, takes the face's value and not a default one.
    resampler.SetUseNearestNeighborExtrapolator(True)
    if _is_coarse(volume, grid):
        values = _cubic(resampler, image, grid, tick)
    else:
        values = sitk.GetArrayFromImage(_execute(resampler, image, tick))
    if not np.isfinite(values).all():
        raise FusionError("resample_failed", name=volume.name or "the volume")
    return values


def _cubic(resampler: object, image: object, grid: Grid, tick: Tick) -> np.ndarray:
    """Values by cubic B-splines, held between the least and the greatest of the eight voxels around each point.

    `resampler`: ready but for its interpolator; `image`: float32, its axes along those of its space. In slabs of the
    grid: bounds and values of all of it at a time would be much.
    """
    import SimpleITK as sitk

    # Faces continue outwards as they are, and there are voxels enough for a cubic along each axis.
    image = sitk.ZeroFluxNeumannPad(image, [FRAME] * 3, [FRAME] * 3)
    voxels = sitk.GetArrayViewFromImage(image)
    bounds = []
    for choose in (np.minimum, np.maximum):
        bound = voxels
        for axis in range(3):
            both = [bound.take(range(start, bound.shape[axis] - 1 + start), axis) for start in (0, 1)]
            bound = choose(*both)
        bound = sitk.GetImageFromArray(bound)
        bound.SetSpacing(image.GetSpacing())
        bound.SetOrigin([o + s / 2 for o, s in zip(image.GetOrigin(), image.GetSpacing(), strict=True)])
        bounds.append(bound)
    i, j, count = grid.size
    values = np.empty(grid.shape, np.float32)
    thick = max(1, SLAB_POINTS // (i * j))
    for start in range(0, count, thick):
        stop = min(count, start + thick)
        resampler.SetSize((i, j, stop - start))
        resampler.SetOutputOrigin((grid.matrix @ [0, 0, start, 1])[:3].tolist())
        slab = values[start:stop]
        resampler.SetInterpolator(sitk.sitkBSpline)
        # A view does not keep its image: that has a name while it is read.
        part = _execute(resampler, image, lambda done, a=start, b=stop: tick((a + 0.9 * (b - a) * done) / count))
        slab[:] = sitk.GetArrayViewFromImage(part)
        resampler.SetInterpolator(sitk.sitkNearestNeighbor)
        for bound, hold in zip(bounds, (np.maximum, np.minimum), strict=True):
            part = resampler.Execute(bound)
            hold(slab, sitk.GetArrayViewFromImage(part), out=slab)
        tick(stop / count)
    return values


def _thickened(volume: Volume, grid: Grid) -> Volume:
    """The volume, if it is thinner than a step of the grid as thick as two, about the same middle.

    It would else lie between two of the grid's planes and be on none. So it shows fully in the nearest plane, and in
    the next as much as it lies near to that.
    """
    steps = _coarse_steps(volume, grid)
    length = volume.spacing * volume.size_ijk
    stretch = np.where(length < steps, 2 * steps / length, 1.0)
    if (stretch == 1).all():
        return volume
    matrix = volume.ijk_to_physical.copy()
    matrix[:3, :3] *= stretch
    middle = np.append((np.array(volume.size_ijk) - 1) / 2, 1)
    matrix[:3, 3] += ((volume.ijk_to_physical - matrix) @ middle)[:3]
    return replace(volume, ijk_to_physical=matrix)


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


def _is_coarse(volume: Volume, grid: Grid) -> bool:
    """True if straight lines between the volume's values would show its lattice on the grid."""
    return bool((volume.spacing > FINER * _coarse_steps(volume, grid)).any())


def _crop(volume: Volume, grid: Grid, reach: float) -> Volume:
    """The part of the volume that the grid's points, moved by `reach` mm at most, and the smoothing reach (a view)."""
    index = _corners(grid) @ (np.linalg.inv(volume.ijk_to_physical) @ grid.matrix)[:3].T
    # A displacement of r mm moves an index by at most r times the length of that row of the inverse.
    moved = reach * np.linalg.norm(np.linalg.inv(volume.ijk_to_physical[:3, :3]), axis=1)
    margin = np.ceil(3 * _coarse_steps(volume, grid) / volume.spacing + moved)
    margin += REACH if _is_coarse(volume, grid) else 2
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

    wanted = _coarse_steps(volume, grid)
    # A kernel of hundreds of voxels is beyond the filter, which then gives NaN: average neighbours before.
    ratio = wanted / volume.spacing
    bins = np.where(ratio > BINNED, np.minimum(2 * ratio / BINNED, image.GetSize()), 1).astype(int)
    if bins.max() > 1:
        image = sitk.BinShrink(image, bins.tolist())
    for axis, (step, own, count) in enumerate(zip(wanted, image.GetSpacing(), image.GetSize(), strict=True)):
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

    Kept as the volume's index along its three axes, each affine in (i, j, k) but for a displacement; `slab` gives the
    values.
    """

    grid: Grid
    size: tuple[int, int, int]
    to_index: np.ndarray
    ramp: np.ndarray  # per axis, in the volume's voxels
    passed: np.ndarray  # (3, 2) the grid goes on beyond the low, high face of the volume
    displacement: Displacement | None = None
    from_physical: np.ndarray | None = None  # 4 x 4, LPS mm to the volume's index, for the displacement

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
        moved = None
        if self.displacement is not None:
            part = (slice(start, stop), slice(0, j), slice(0, i))
            moved = self.displacement.at(cut_out(self.grid, part)) @ self.from_physical[:3, :3].T.astype(np.float32)
        for axis in range(3):
            row = self.to_index[axis]
            index = sum((row[n] * points[n] for n in range(3)), row[3]).astype(np.float32)
            if moved is not None:
                index = index + moved[..., axis]
            for passed, depth in zip(self.passed[axis], (index + 0.5, self.size[axis] - 0.5 - index), strict=True):
                if passed:
                    np.minimum(weight, np.clip(depth / self.ramp[axis], 0, 1), out=weight)
        return weight


def coverage(volume: Volume, grid: Grid, displacement: Displacement | None = None) -> Coverage:
    """Coverage of the grid by the volume's voxels, each taken to its outer faces (half a voxel beyond its centre).

    A volume thinner than a step of the grid counts as thicker, see `_thickened`.
    """
    volume = _thickened(volume, grid)
    from_physical = np.linalg.inv(volume.ijk_to_physical)
    to_index = from_physical @ grid.matrix
    index = _corners(grid) @ to_index[:3].T
    last = np.array(volume.size_ijk) - 0.5
    passed = np.stack([index.min(0) < -0.5 - 1e-3, index.max(0) > last + 1e-3], 1)
    if displacement is not None:  # where the bent grid ends is not worth knowing
        passed[:] = True
    # A volume of few slices must not fade away whole.
    ramp = np.minimum(FEATHER / volume.spacing, np.array(volume.size_ijk) / 4)
    return Coverage(grid, volume.size_ijk, to_index, np.maximum(ramp, 1e-3), passed, displacement, from_physical)


def overlap(first: Volume, second: Volume, covers: Sequence[Coverage], tick: Tick = lambda _: None) -> float:
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
