"""Values in between coarse voxels: cubic B-splines, held between the least and the greatest of the voxels around.

Where the axes of grid and volume run along each other, the splines of three dimensions are those of one, one after the
other: a few products of small matrices. Else ITK goes through the 64 neighbours of each point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .itk import execute
from .progress import Tick

if TYPE_CHECKING:
    import SimpleITK as sitk

# The volume goes on beyond its faces by so many voxels as it ends there; beyond that ITK's splines mirror it.
FRAME = 2
# A voxel's part in the spline falls by this factor from one neighbour to the next; after REACH it is below 1e-9.
POLE = np.sqrt(3) - 2
REACH = 16
# Points of the grid along an axis that are computed in one product of matrices.
BLOCK = 64
# Axes that leave their neighbours by less (voxels, over the whole grid) run along them.
ALONG = 1e-5


def along(to_index: np.ndarray, size: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Which axis of the volume runs along i, j, k of the grid; None: not each along one.

    `to_index`: 4 x 4 from the grid's (i, j, k) to the volume's; `size` of the grid.
    """
    drift = np.abs(to_index[:3, :3]) * np.maximum(np.array(size) - 1, 0)
    axes = np.abs(to_index[:3, :3]).argmax(0)
    if len(set(axes)) < 3:
        return None
    drift[axes, range(3)] = 0
    return None if drift.max() > ALONG else tuple(int(n) for n in axes)


class Separable:
    """Held cubics on a grid whose axes run along the volume's."""

    def __init__(self, voxels: np.ndarray, to_index: np.ndarray, size: tuple[int, int, int]) -> None:
        """`voxels` (k, j, i) float32; `to_index` and `size` as in `along`, which must find axes for them."""
        axes = along(to_index, size)
        # The volume's axes in the order of the grid's.
        self.voxels = np.ascontiguousarray(voxels.transpose([2 - axes[n] for n in (2, 1, 0)]))
        self.places = [to_index[axes[n], n] * np.arange(size[n]) + to_index[axes[n], 3] for n in (2, 1, 0)]
        self.weights = [weights(at, n) for at, n in zip(self.places, self.voxels.shape, strict=True)]
        self.around = [neighbours(at, n) for at, n in zip(self.places, self.voxels.shape, strict=True)]

    def read(self, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start, j, i) of the grid's slices from `start` to before `stop`."""
        depth, height, width = stop - start, len(self.places[1]), len(self.places[2])
        _, rows, columns = self.voxels.shape
        part = np.zeros((depth, rows, columns), np.float32)
        for out, inner, block in _blocks(self.weights[0][start:stop]):
            part[out] = np.tensordot(block, self.voxels[inner], 1)
        tall = np.empty((depth, height, columns), np.float32)
        for out, inner, block in _blocks(self.weights[1]):
            tall[:, out] = block @ part[:, inner]
        values = np.empty((depth, height, width), np.float32)
        for out, inner, block in _blocks(self.weights[2]):
            values[:, :, out] = (tall[:, :, inner].reshape(-1, block.shape[1]) @ block.T).reshape(depth, height, -1)
        cell, bounds = None, ()
        below, above = (side[start:stop].tolist() for side in self.around[0])
        for plane, low, high in zip(values, below, above, strict=True):
            if (low, high) != cell:
                cell, bounds = (low, high), [self._bound(choose, low, high) for choose in (np.minimum, np.maximum)]
            np.maximum(plane, bounds[0], out=plane)
            np.minimum(plane, bounds[1], out=plane)
        return values

    def _bound(self, choose: np.ufunc, low: int, high: int) -> np.ndarray:
        """(j, i): the least or greatest of the eight voxels around each point between the planes `low` and `high`."""
        bound = choose(self.voxels[low], self.voxels[high])
        for axis in (0, 1):
            bound = choose(*(bound.take(side, axis) for side in self.around[1 + axis]))
        return bound


def neighbours(places: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The voxels, of `count`, below and above each of the `places` (indices); beyond the faces those there."""
    below = np.floor(places).astype(int)
    return np.clip(below, 0, count - 1), np.clip(below + 1, 0, count - 1)


def weights(places: np.ndarray, count: int) -> np.ndarray:
    """(places, count) float32: what each of `count` voxels on a line adds to the cubic at each place (an index).

    The spline goes through all voxels (Unser 1999, "Splines"): its coefficients are the voxels filtered by
    sqrt(3) POLE^|distance|, its values four coefficients weighted by the cubic B-spline.
    """
    framed = count + 2 * FRAME
    at = np.clip(places + FRAME, 0, framed - 1)
    first = np.floor(at).astype(int) - 1
    distance = np.abs((at - first)[:, None] - np.arange(4))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
    taps = np.where(distance < 1, near, far)
    filtered = np.arange(-REACH, REACH + 1)
    parts = np.sqrt(3) * POLE ** np.abs(filtered)
    # (places, taps, filter): the framed voxel, mirrored at the frame's ends, and its part.
    voxel = first[:, None, None] + np.arange(4)[:, None] + filtered
    period = 2 * (framed - 1)
    voxel = framed - 1 - np.abs(framed - 1 - voxel % period)
    voxel = np.clip(voxel - FRAME, 0, count - 1)
    total = np.zeros((len(places), count))
    np.add.at(total, (np.arange(len(places))[:, None, None], voxel), taps[:, :, None] * parts)
    return total.astype(np.float32)


def _blocks(matrix: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The band of a matrix in parts: rows, columns, and what stands there; all else of it is zero."""
    for start in range(0, len(matrix), BLOCK):
        rows = slice(start, min(len(matrix), start + BLOCK))
        used = np.flatnonzero(matrix[rows].any(0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        yield rows, columns, np.ascontiguousarray(matrix[rows, columns])


class Oblique:
    """Held cubics on any grid, by ITK."""

    def __init__(self, resampler: sitk.ResampleImageFilter, image: sitk.Image) -> None:
        """`resampler`: ready but for its interpolator, size and origin; `image`: float32, axes along its space's."""
        import SimpleITK as sitk

        self.resampler = resampler
        # Faces continue outwards as they are, and there are voxels enough for a cubic along each axis.
        image = sitk.ZeroFluxNeumannPad(image, [FRAME] * 3, [FRAME] * 3)
        # Once: ITK's other interpolator would filter the whole volume anew for each part of the grid.
        self.coefficients = sitk.BSplineDecomposition(image)
        self.bounds = []
        for choose in (np.minimum, np.maximum):
            bound = sitk.GetArrayViewFromImage(image)
            for _ in range(3):  # the two neighbours along one axis, which then goes to the end
                bound = np.moveaxis(choose(bound[1:], bound[:-1]), 0, 2)
            bound = sitk.GetImageFromArray(bound)
            bound.SetSpacing(image.GetSpacing())
            bound.SetOrigin([o + step / 2 for o, step in zip(image.GetOrigin(), image.GetSpacing(), strict=True)])
            self.bounds.append(bound)

    def read(self, tick: Tick) -> np.ndarray:
        """float32 (k, j, i) of the part of the grid that the resampler is set to."""
        import SimpleITK as sitk

        self.resampler.SetInterpolator(sitk.sitkBSplineResampler)
        part = execute(self.resampler, self.coefficients, lambda done: tick(0.9 * done))
        values = sitk.GetArrayFromImage(part)
        self.resampler.SetInterpolator(sitk.sitkNearestNeighbor)
        for bound, hold in zip(self.bounds, (np.maximum, np.minimum), strict=True):
            # A view does not keep its image: that has a name while it is read.
            part = self.resampler.Execute(bound)
            hold(values, sitk.GetArrayViewFromImage(part), out=values)
        tick(1.0)
        return values
