"""One space for both volumes: resampling onto the common grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from . import cubic
from .coverage import coarse_steps, thickened
from .errors import FusionError
from .grids import Grid, corners, grid_of, same_grid, turned, turned_voxels
from .itk import execute
from .progress import Tick
from .volume import Volume, image_matrix, to_sitk

# Spacing of the grid over that of the volume from which on the volume is smoothed first, lest it alias.
COARSER = 1.2
# And from which on neighbouring voxels are averaged before that.
BINNED = 16
# Spacing of the volume over that of the grid from which on its values are joined by cubics: straight lines show its
# lattice.
FINER = 2.0
# Voxels around the grid that such a cubic still feels (to 1e-4).
REACH = 8
# Points of the grid that are resampled at a time.
SLAB_POINTS = 1 << 21


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


def resample(
    volume: Volume, grid: Grid, tick: Tick = lambda _: None, displacement: Displacement | None = None
) -> np.ndarray:
    """The volume's values at all of the grid's points, float32 (k, j, i): what `Reader` reads.

    Raises Cancelled if `tick` does, FusionError "geometry_sheared", "resample_failed".
    """
    reader = Reader(volume, grid, tick, displacement)
    values = np.empty(grid.shape, np.float32)
    count = grid.size[2]
    for start in range(0, count, reader.thick):
        stop = min(count, start + reader.thick)
        values[start:stop] = reader.read(start, stop, lambda part, a=start, b=stop: tick((a + (b - a) * part) / count))
    return values


class Reader:
    """A volume made ready to be read at a grid's points, some of the grid's slices at a time.

    Linear in between voxels; where the volume's are over twice as far apart as the grid's, cubic, but never beyond the
    values of the eight voxels around, so that no edge rings. Where the grid is coarser than the volume, the volume is
    smoothed first; one thinner than a step of the grid, see `thickened`. Outside the volume are the values of its
    faces; `coverage` tells where that is. The volume's axes may be at any angles; those of the grid are at right ones.
    What is kept is the volume's part within the grid in float32, and nothing of the grid's size. `thick`: slices that
    are well read at a time.
    """

    def __init__(
        self,
        volume: Volume,
        grid: Grid,
        tick: Tick = lambda _: None,
        displacement: Displacement | None = None,
    ) -> None:
        """`displacement`: see `Displacement`. Raises Cancelled if `tick` does, FusionError "geometry_sheared"."""
        self.grid, self.name = grid, volume.name or "the volume"
        self.thick = max(1, SLAB_POINTS // (grid.size[0] * grid.size[1]))
        self.own = self.separable = self.oblique = None
        for order in permutations(range(3)) if displacement is None else ():
            if same_grid(turned(grid_of(volume), order), grid):
                self.own = turned_voxels(volume.voxels, order)
                return
        import SimpleITK as sitk

        volume = _crop(thickened(volume, grid), grid, displacement.greatest if displacement else 0.0)
        # ITK's images have axes at right angles; the volume in a frame of its own always has.
        own = np.diag([*volume.spacing, 1.0])
        self.image = sitk.Cast(to_sitk(replace(volume, ijk_to_physical=own)), sitk.sitkFloat32)
        self.image = _smooth(self.image, volume, grid, tick)
        to_own = own @ np.linalg.inv(volume.ijk_to_physical)
        coarse = _is_coarse(volume, grid)
        if coarse and displacement is None:
            to_index = np.linalg.inv(image_matrix(self.image)) @ to_own @ grid.matrix
            if cubic.along(to_index, grid.size) is not None:
                # A view of the image's memory, which stays as long as this.
                self.separable = cubic.Separable(sitk.GetArrayViewFromImage(self.image), to_index, grid.size)
                return
        transform = sitk.AffineTransform(to_own[:3, :3].ravel().tolist(), to_own[:3, 3].tolist())
        if displacement is not None:  # the last one added comes first
            transform = sitk.CompositeTransform([transform, displacement.transform()])
        reference = to_sitk(Volume(np.zeros((1, 1, 1), np.uint8), grid.matrix, name="The chosen grid"))
        self.resampler = sitk.ResampleImageFilter()
        self.resampler.SetInterpolator(sitk.sitkLinear)
        self.resampler.SetTransform(transform)
        self.resampler.SetOutputSpacing(reference.GetSpacing())
        self.resampler.SetOutputDirection(reference.GetDirection())
        # A point on the outer face, or a rounding beyond it, takes the face's value and not a default one.
        self.resampler.SetUseNearestNeighborExtrapolator(True)
        if coarse:
            self.oblique, self.image = cubic.Oblique(self.resampler, self.image), None

    def read(self, start: int, stop: int, tick: Tick = lambda _: None) -> np.ndarray:
        """float32 (stop - start, j, i) of the grid's slices from `start` to before `stop`, the caller's own.

        Raises Cancelled if `tick` does, FusionError "resample_failed".
        """
        if self.own is not None:
            tick(1.0)
            return self.own[start:stop].astype(np.float32, order="C")
        if self.separable is not None:
            values = self.separable.read(start, stop)
            tick(1.0)
        else:
            values = self._by_itk(start, stop, tick)
        if not np.isfinite(values).all():
            raise FusionError("resample_failed", name=self.name)
        return values

    def _by_itk(self, start: int, stop: int, tick: Tick) -> np.ndarray:
        import SimpleITK as sitk

        self.resampler.SetSize((*self.grid.size[:2], stop - start))
        self.resampler.SetOutputOrigin((self.grid.matrix @ [0, 0, start, 1])[:3].tolist())
        if self.oblique is not None:
            return self.oblique.read(tick)
        return sitk.GetArrayFromImage(execute(self.resampler, self.image, tick))


def _is_coarse(volume: Volume, grid: Grid) -> bool:
    """True if straight lines between the volume's values would show its lattice on the grid."""
    return bool((volume.spacing > FINER * coarse_steps(volume, grid)).any())


def _crop(volume: Volume, grid: Grid, reach: float) -> Volume:
    """The part of the volume that the grid's points, moved by `reach` mm at most, and the smoothing reach (a view)."""
    index = corners(grid) @ (np.linalg.inv(volume.ijk_to_physical) @ grid.matrix)[:3].T
    # A displacement of r mm moves an index by at most r times the length of that row of the inverse.
    moved = reach * np.linalg.norm(np.linalg.inv(volume.ijk_to_physical[:3, :3]), axis=1)
    margin = np.ceil(3 * coarse_steps(volume, grid) / volume.spacing + moved)
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

    wanted = coarse_steps(volume, grid)
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
            image = execute(gaussian, image, lambda part: tick(part / 2))
    return image
