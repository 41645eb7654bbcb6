"""One picture a person can judge: first, second and fused in three planes through one point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .coverage import coverage
from .grids import Grid, grid_of
from .intensity import Window
from .space import resample
from .volume import Volume

GAP = 6  # pixels between the pictures
CAPTION = 18  # pixels above each column
LARGEST = 320  # pixels of a picture's longer side


def _upright(grid: Grid) -> Grid:
    """The same lattice, its axes turned and flipped so that i runs most nearly to left, j to back, k to head (LPS)."""
    axes = grid.matrix[:3, :3] / grid.spacing
    order, left = [], [0, 1, 2]
    for row in range(3):
        best = max(left, key=lambda n: abs(axes[row, n]))
        left.remove(best)
        order.append(best)
    matrix = grid.matrix.copy()
    matrix[:3, :3] = grid.matrix[:3, order]
    size = [grid.size[n] for n in order]
    for n in range(3):
        if matrix[n, n] < 0:
            matrix[:3, 3] += matrix[:3, n] * (size[n] - 1)
            matrix[:3, n] *= -1
    return Grid(tuple(size), matrix)


def _plane(grid: Grid, axis: int, at: np.ndarray) -> Grid:
    """The plane of an upright grid across `axis` through the point `at` (LPS, mm), in square pixels."""
    index = np.linalg.inv(grid.matrix) @ np.append(at, 1)
    step = max(grid.spacing[n] * grid.size[n] for n in range(3)) / LARGEST
    matrix, size = grid.matrix.copy(), list(grid.size)
    place = float(np.clip(round(index[axis]), 0, grid.size[axis] - 1))
    matrix[:3, 3] += grid.matrix[:3, axis] * place
    size[axis] = 1
    for n in range(3):
        if n != axis:
            size[n] = max(1, int(grid.spacing[n] * grid.size[n] / step))
            scale = step / grid.spacing[n]
            matrix[:3, n] *= scale
            matrix[:3, 3] += grid.matrix[:3, n] * ((scale - 1) / 2)
    return Grid(tuple(size), matrix)


def _picture(volume: Volume, window: Window, plane: Grid, axis: int) -> np.ndarray:
    """(rows, columns, 3) uint8: head up, and the patient's left at the right, as radiologists look."""
    channels = [volume.voxels[..., c] for c in range(3)] if volume.rgb else [volume.voxels]
    shown = [resample(Volume(channel, volume.ijk_to_physical), plane) for channel in channels]
    shown = [np.nan_to_num(window.apply(channel), copy=False) for channel in shown]
    values = np.stack(shown * (3 // len(shown)), -1)
    values[coverage(volume, plane).slab(0, plane.size[2]) == 0] = 0
    pixels = (np.clip(values, 0, 1) * 255).round().astype(np.uint8).squeeze(2 - axis)
    return pixels if axis == 2 else pixels[::-1]


def preview(
    columns: list[tuple[str, Volume, Window]],
    grid: Volume | None = None,
    at: np.ndarray | None = None,
    rights: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """(rows, columns, 3) uint8 RGB: one column a (caption, volume, window), one row a plane; of RGB 0 to 255 is shown.

    `grid`: the volume whose lattice and field of view are shown (default: the last column's). `at`: the point (LPS, mm)
    through which the planes go; default: the middle of what is bright in the last column. 2-D pictures: one row.
    `rights`: for each column the direction (3,) LPS to the right of the patient by the volume's own header, which is
    marked with an R, and the other side with an L.
    """
    shown = grid or columns[-1][1]
    upright = _upright(grid_of(shown))
    if at is None:
        at = _middle(columns[-1][1])
    two_d = shown.size_ijk[2] == 1
    if two_d:
        upright = grid_of(shown)
    rows = []
    for axis in [2] if two_d else [2, 1, 0]:
        plane = _plane(upright, axis, at)
        rows.append([_picture(volume, window, plane, axis) for _, volume, window in columns])
    # Which way the patient's right is in the picture: 1 to its right edge, -1 to its left, 0 neither.
    across = upright.matrix[:3, 0] / upright.spacing[0]
    sides = [int(np.rint(np.clip(right @ across, -1, 1))) for right in rights]
    return _montage(rows, [caption for caption, _, _ in columns], [] if two_d else sides)


def _middle(volume: Volume) -> np.ndarray:
    """Centre (LPS, mm) of the voxels, weighted by their value above the least."""
    values = volume.voxels.max(-1) if volume.rgb else volume.voxels
    least = float(values.min())
    centre = []
    for axis in (2, 1, 0):
        others = tuple(n for n in range(3) if n != axis)
        profile = values.mean(others, dtype=np.float64) - least  # no copy of the volume
        centre.append(float((profile * np.arange(len(profile))).sum() / (profile.sum() or 1.0)))
    return (volume.ijk_to_physical @ [*centre, 1])[:3]


def _montage(rows: list[list[np.ndarray]], captions: list[str], sides: list[int]) -> np.ndarray:
    width = max(p.shape[1] for row in rows for p in row)
    heights = [max(p.shape[0] for p in row) for row in rows]
    canvas = np.full((CAPTION + sum(heights) + GAP * len(rows), (width + GAP) * len(captions) + GAP, 3), 30, np.uint8)
    top, marks = CAPTION, []
    for n_row, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for n, picture in enumerate(row):
            left = GAP + n * (width + GAP) + (width - picture.shape[1]) // 2
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            if n_row < 2 and n < len(sides) and sides[n]:  # the last row looks from the side
                ends = [(left + 4, top + 4), (left + picture.shape[1] - 10, top + 4)][:: sides[n]]
                marks += [(*ends[0], "L"), (*ends[1], "R")]
        top += height + GAP
    marks += [(GAP + n * (width + GAP), 3, caption) for n, caption in enumerate(captions)]
    _write(canvas, marks)
    return canvas


def _write(canvas: np.ndarray, texts: list[tuple[int, int, str]]) -> None:
    """Draws texts (column, row, text) where Pillow is there; Slicer may lack it, the picture is whole without."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for left, top, text in texts:
        draw.text((left, top), text, fill=(230, 230, 230))
    canvas[:] = np.asarray(image)
