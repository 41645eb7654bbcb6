"""Who covers what: how far each point of a grid lies inside a volume, and how much two volumes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .grids import Grid, corners, cut_out, grid_of
from .progress import Tick
from .volume import Volume

if TYPE_CHECKING:
    from .space import Displacement

# Where a volume ends inside the other, the fusion fades over this length (mm).
FEATHER = 4.0
# Slices that are looked at together when the overlap is counted.
TOGETHER = 8


def thickened(volume: Volume, grid: Grid) -> Volume:
    """The volume, if it is thinner than a step of the grid as thick as two, about the same middle.

    It would else lie between two of the grid's planes and be on none. So it shows fully in the nearest plane, and in
    the next as much as it lies near to that.
    """
    steps = coarse_steps(volume, grid)
    length = volume.spacing * volume.size_ijk
    stretch = np.where(length < steps, 2 * steps / length, 1.0)
    if (stretch == 1).all():
        return volume
    matrix = volume.ijk_to_physical.copy()
    matrix[:3, :3] *= stretch
    middle = np.append((np.array(volume.size_ijk) - 1) / 2, 1)
    matrix[:3, 3] += ((volume.ijk_to_physical - matrix) @ middle)[:3]
    return replace(volume, ijk_to_physical=matrix)


def coarse_steps(volume: Volume, grid: Grid) -> np.ndarray:
    """Along each of the volume's axes: the grid's spacing on that axis of the grid that runs most nearly along it."""
    axes = volume.ijk_to_physical[:3, :3] / volume.spacing
    return grid.spacing[np.abs(axes.T @ (grid.matrix[:3, :3] / grid.spacing)).argmax(axis=1)]


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
        """float32 (stop - start, j, i) in [0, 1] of the grid's slices from `start` to before `stop`."""
        i, j, _ = self.grid.size
        weight = np.ones((stop - start, j, i), np.float32)
        if self.full:
            return weight
        spans = (np.arange(i), np.arange(j), np.arange(start, stop))
        moved = None
        if self.displacement is not None:
            part = (slice(start, stop), slice(0, j), slice(0, i))
            moved = self.displacement.at(cut_out(self.grid, part)) @ self.from_physical[:3, :3].T.astype(np.float32)
        for axis in range(3):
            for face in np.flatnonzero(self.passed[axis]):
                box = (slice(None),) * 3 if moved is not None else self._touched(axis, face, spans)
                if box is None:
                    continue
                row = self.to_index[axis]
                x, y, z = (span[part] for span, part in zip(spans, box, strict=True))
                index = row[3] + row[0] * x + row[1] * y[:, None] + row[2] * z[:, None, None]
                index = index.astype(np.float32)
                if moved is not None:
                    index += moved[..., axis]
                depth = self.size[axis] - 0.5 - index if face else index + 0.5
                inside = weight[box[::-1]]
                np.minimum(inside, np.clip(depth / self.ramp[axis], 0, 1), out=inside)
        return weight

    def _touched(self, axis: int, face: int, spans: tuple[np.ndarray, ...]) -> tuple[slice, ...] | None:
        """The box (i, j, k) of the points `spans` in which the ramp of that face is below 1; None: there is none.

        Of an affine function the least value with one coordinate held lies in a corner of the others.
        """
        slope = self.to_index[axis] * (-1 if face else 1)
        slope[3] += self.size[axis] - 0.5 if face else 0.5
        ends = np.array([[span[0], span[-1]] for span in spans])
        least = (slope[:3, None] * ends).min(1)
        box = []
        for n, span in enumerate(spans):
            depth = slope[3] + least.sum() - least[n] + slope[n] * span
            low = np.flatnonzero(depth < self.ramp[axis] + 1e-2)  # a little more than needed: rounding
            if not low.size:
                return None
            box.append(slice(int(low[0]), int(low[-1]) + 1))
        return tuple(box)


def coverage(volume: Volume, grid: Grid, displacement: Displacement | None = None) -> Coverage:
    """Coverage of the grid by the volume's voxels, each taken to its outer faces (half a voxel beyond its centre).

    A volume thinner than a step of the grid counts as thicker, see `thickened`.
    """
    volume = thickened(volume, grid)
    from_physical = np.linalg.inv(volume.ijk_to_physical)
    to_index = from_physical @ grid.matrix
    index = corners(grid) @ to_index[:3].T
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
        both, count = 0, grid.size[2]
        for k in range(0, count, TOGETHER):
            one, other = (cover.slab(k, min(count, k + TOGETHER)) > 0 for cover in covers)
            both += int(np.count_nonzero(one & other))
            tick(k / count)
        common = both * grid.extent / np.prod(grid.size)
    return min(1.0, common / min(grid_of(first).extent, grid_of(second).extent))
