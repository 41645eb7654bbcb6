"""Which slices the network sees: along which axis of the grid they are stacked."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .grids import Grid, grid_of
from .settings import PLANES, Notice
from .volume import Volume

# An axis whose spacing is over so many times each of the others' is the slice axis of an acquisition.
THICK = 1.2
# Of two volumes as thick as this within a factor, the first one's plane is taken.
ALIKE = 1.05
# Slices with fewer pixels than this along a side are no pictures; others are taken if there are any.
NARROW = 8
# Slices of a chosen plane that lie further off it than this are said so: at 45 degrees the choice is one of chance.
OBLIQUE = 30.0  # degrees
# The anatomical plane whose slices are stacked along x, y, z of LPS.
NAMES = ("sagittal", "coronal", "axial")


def slice_axis(grid: Grid, plane: str, volumes: Iterable[Volume] = ()) -> int:
    """The axis (0, 1, 2 for i, j, k) of the grid along which the slices that the network sees are stacked.

    A grid of one slice is fused in that slice, whatever the plane. `plane` "axial", "coronal" or "sagittal": the axis
    that lies nearest to S, A or R; of axes that lie equally near, the one of the larger spacing, then the later one.
    "automatic": the grid's thick axis, if it has one; else the axis nearest to the slice axis of that of the `volumes`
    whose slices are the thickest for their pixels, so that a volume of thick slices is fused in its own plane on a grid
    of even spacing too; else k, in whose plane the volume is stored. Where such slices would be a few pixels wide only,
    the axis of the fewest voxels.
    """
    flat = [axis for axis in (2, 1, 0) if grid.size[axis] == 1]
    if flat:
        return flat[0]
    if plane != PLANES[0]:
        return _nearest(grid, np.eye(3)[NAMES.index(plane)])
    axis = _suiting(grid, volumes)
    if min(np.delete(grid.size, axis)) >= NARROW:
        return axis
    return min((2, 1, 0), key=lambda n: grid.size[n])


def _suiting(grid: Grid, volumes: Iterable[Volume]) -> int:
    """The axis across the slices that suit the data, however many pixels they have."""
    axis, _ = thickest(grid)
    if axis is not None:
        return axis
    normal, most = np.array([]), 1.0
    for volume in volumes:
        axis, ratio = thickest(grid_of(volume))
        if axis is not None and ratio > most * ALIKE:
            # Across the slices, and not along the axis from one to the next: the two differ in a sheared volume.
            normal, most = np.linalg.inv(volume.ijk_to_physical[:3, :3])[axis], ratio
    return _nearest(grid, normal / np.linalg.norm(normal)) if normal.size else 2


def thickest(grid: Grid) -> tuple[int | None, float]:
    """The grid's slice axis, and the slices' distance over the pixels' larger side; (None, 1.0) where it is not clear.

    A grid of a single slice has it for its plane, as thick as can be.
    """
    if grid.size.count(1) == 1:
        return grid.size.index(1), np.inf
    axis = int(grid.spacing.argmax())
    ratio = float(grid.spacing[axis] / np.delete(grid.spacing, axis).max())
    return (axis, ratio) if ratio > THICK else (None, 1.0)


def name_of(grid: Grid, axis: int) -> str:
    """The anatomical plane nearest to the grid's slices along `axis`."""
    return NAMES[int(np.abs(grid.matrix[:3, axis]).argmax())]


def doubt(grid: Grid, axis: int, plane: str) -> Notice | None:
    """What is to be said if slices along `axis` are not much like the `plane` that was asked for."""
    if plane == PLANES[0] or min(grid.size) == 1:
        return None
    along = abs(grid.matrix[:3, axis] @ np.eye(3)[NAMES.index(plane)]) / grid.spacing[axis]
    degrees = float(np.degrees(np.arccos(min(1.0, along))))
    return Notice("plane_oblique", {"plane": plane, "degrees": round(degrees)}) if degrees > OBLIQUE else None


def order_of(grid: Grid, axis: int) -> tuple[int, int, int]:
    """The order of the grid's axes in which `axis` comes last, for `grids.turned`.

    The other two follow each other as they do in images that come so from a scanner, x before y before z: the network
    sees the same picture in whatever order the axes are stored. With k as slice axis nothing is turned.
    """
    if axis == 2:
        return (0, 1, 2)
    one, other = (n for n in range(3) if n != axis)
    along = np.abs(grid.matrix[:3, :3] / grid.spacing)
    # Which of the two lies more along the earlier of the two directions of the plane.
    early, late = (n for n in range(3) if n != along[:, axis].argmax())
    if along[early, one] + along[late, other] >= along[early, other] + along[late, one]:
        return (one, other, axis)
    return (other, one, axis)


def _nearest(grid: Grid, direction: np.ndarray) -> int:
    """The grid's axis nearest to the line along `direction` (unit, LPS); see `slice_axis` for ties."""
    along = np.abs(direction @ (grid.matrix[:3, :3] / grid.spacing))
    near = [n for n in range(3) if along[n] > along.max() - 1e-3]
    return max(near, key=lambda n: (round(grid.spacing[n] / grid.spacing.max(), 3), n))
