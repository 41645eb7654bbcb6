"""Lattices of voxel centres in space: the common grid of a fusion, its parts, and what a result on it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from . import machine
from .errors import FusionError
from .volume import Volume

# More voxels than this in the result are refused.
MOST_VOXELS = 1_500_000_000
# What a fusion takes at its peak for each voxel of the grid, beside the volumes themselves: the result, ITK's copy of
# one of them in float32, and of the result when it is written. Measured: 6.2 grey, 9.5 in colour; thick slices at an
# angle to the grid take up to 12.
BYTES_A_VOXEL = 10
# From so many bytes on the need of a grid is said.
LARGE = 4_000_000_000
# Spacings that differ by less are taken as one: nothing is gained by resampling for the last decimals.
ALIKE = 0.98


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


def corners(grid: Grid) -> np.ndarray:
    """(8, 4): homogeneous indices of the grid's corner voxels."""
    return np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in grid.size))])
