"""A volume made ready for comparison: grey values without units, its body, and coarser copies of it.

Values become tones in [0, 1] by a rule that no modality and no units enter: the logarithm of 1 + value above the
background over a part of that of the middle of the body. So bone in CT and hot spots in PET leave room for soft tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import FusionError
from ..progress import Tick
from ..volume import Volume

# Spacings (mm) of the levels, coarse to fine.
SPACINGS = (8.0, 5.0, 3.0, 2.0)
# Air this far round the body (mm) is compared too: the skin is an edge only beside it.
MARGIN = 25.0
# Blur (standard deviation) over spacing of a level: interpolation between smooth values has no steps.
BLUR = 0.5
# If less than this share of the field of view is found bright, that may be hot organs alone.
HOT = 0.2
# The logarithm bends at this part of the middle of the body: most of the tones go to the skin and what is faint.
BEND = 0.15
# Along an axis of fewer voxels there is nothing to align.
FEWEST = 4


@dataclass(frozen=True)
class Level:
    """`tones` float32 (k, j, i) in [0, 1]; `matrix` 4 x 4 from (i, j, k, 1) to LPS mm.

    `body`, `near`: bool (k, j, i), the body, and the body with the air within `MARGIN` of it.
    """

    tones: np.ndarray
    matrix: np.ndarray
    body: np.ndarray
    near: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """mm along i, j, k."""
        return np.linalg.norm(self.matrix[:3, :3], axis=0)

    def points(self, mask: np.ndarray) -> np.ndarray:
        """(n, 3) LPS mm of the voxel centres where the mask (k, j, i) is true."""
        index = np.argwhere(mask)[:, ::-1]
        return index @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    @property
    def extent(self) -> float:
        """Volume of the body and what is near it (mm3)."""
        return float(self.near.sum() * abs(np.linalg.det(self.matrix[:3, :3])))

    @property
    def field(self) -> float:
        """Volume of the field of view (mm3)."""
        return float(self.near.size * abs(np.linalg.det(self.matrix[:3, :3])))


def levels(volume: Volume, tick: Tick = lambda _: None, spacings: tuple[float, ...] = SPACINGS) -> list[Level]:
    """The volume at each of `spacings` (mm; an axis that is sampled more coarsely stays as it is).

    FusionError: "align_flat" (fewer than four slices, rows or columns), "volume_constant", "volume_nan",
    "volume_colour".
    """
    name = volume.name or "The volume"
    if volume.rgb:
        raise FusionError("volume_colour", name=name)
    if volume.two_d or min(volume.size_ijk) < FEWEST:
        raise FusionError("align_flat", name=name)
    tick(0.0)
    values, matrix = shrink(volume.voxels, volume.ijk_to_physical, min(spacings))
    values = _finite(values, name)
    tick(0.4)
    if not values.max() > values.min():
        raise FusionError("volume_constant", name=name)
    body = find_body(values)
    near = dilate(body, MARGIN, np.linalg.norm(matrix[:3, :3], axis=0))
    values = clip(values, body)
    tick(0.7)
    made = []
    for n, spacing in enumerate(sorted(spacings)):
        if n:
            values, wide = shrink(values, matrix, spacing)
            parts = [shrink(mask, matrix, spacing)[0] > 0.5 for mask in (body, near)]
            body, near, matrix = (*parts, wide)
        smooth = blur(values, BLUR * spacing, np.linalg.norm(matrix[:3, :3], axis=0))
        made.append(Level(tone(smooth, body), matrix, body, near))
        tick(0.7 + 0.3 * (n + 1) / len(spacings))
    return made[::-1]


def shrink(voxels: np.ndarray, matrix: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Means of blocks of as many voxels (k, j, i) as fit into `spacing` (mm), as float32, and the matrix of those."""
    own = np.linalg.norm(matrix[:3, :3], axis=0)
    factor = np.clip(np.floor(spacing / own + 0.25), 1, None).astype(int)
    size = np.array(voxels.shape[::-1])
    factor = np.minimum(factor, size // 2).clip(1)
    matrix = np.array(matrix, float)
    matrix[:3, 3] += matrix[:3, :3] @ ((factor - 1) / 2)
    matrix[:3, :3] *= factor
    if (factor == 1).all():
        return voxels.astype(np.float32), matrix
    fx, fy, fz = (int(f) for f in factor)
    # What is left over at the far faces is less than a block and is dropped.
    nx, ny, nz = (int(n) for n in size // factor)
    out = np.zeros((nz, ny, nx), np.float32)
    part = voxels[: nz * fz, : ny * fy, : nx * fx]
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(nz):
            slab = part[k * fz : (k + 1) * fz].sum(0, dtype=np.float32)
            out[k] = slab.reshape(ny, fy, nx, fx).sum(axis=(1, 3))
        out /= fx * fy * fz
    return out, matrix


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    """The values with what is not finite at the least of the others."""
    bad = ~np.isfinite(values)
    if bad.all():
        raise FusionError("volume_nan", name=name)
    return np.where(bad, values[~bad].min(), values) if bad.any() else values


def find_body(values: np.ndarray) -> np.ndarray:
    """Where there is more than background, bool (k, j, i).

    Otsu's threshold; once more below it where that leaves little: in PET the first one finds the hot organs alone.
    """
    low, high = np.percentile(values, (0.1, 99.9))
    # The root draws the body out of the shade of the hot organs.
    clipped = np.sqrt(np.clip(values, low, high) - low)
    threshold = otsu(clipped)
    below = clipped[clipped <= threshold]
    if below.size > (1 - HOT) * clipped.size:
        threshold = otsu(below)
    return clipped > threshold


def otsu(values: np.ndarray) -> float:
    """The threshold between two classes of least variance within (Otsu 1979), from 256 bins."""
    count, edges = np.histogram(values, 256)
    middle = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(count)
    rest = weight[-1] - weight
    total = np.cumsum(count * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = weight * rest * (total / weight - (total[-1] - total) / rest) ** 2
    return float(edges[1 + int(np.nanargmax(between))]) if np.isfinite(between).any() else float(edges[0])


def dilate(mask: np.ndarray, reach: float, spacing: np.ndarray) -> np.ndarray:
    """The mask (k, j, i) grown by a box of `reach` mm to either side; `spacing` along i, j, k."""
    for axis, step in enumerate(np.asarray(spacing)[::-1]):
        n = min(round(reach / step), mask.shape[axis] - 1)
        total = np.cumsum(mask, axis=axis, dtype=np.int32)
        last = mask.shape[axis] - 1
        at = np.arange(mask.shape[axis])
        upper = np.take(total, np.minimum(at + n, last), axis=axis)
        before = at - n - 1
        lower = np.take(total, np.maximum(before, 0), axis=axis)
        inside = before >= 0
        lower *= inside.reshape([-1 if a == axis else 1 for a in range(3)])
        mask = upper > lower
    return mask


def clip(values: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The values from the least that matters to the 99.5th percentile of the body: metal and hot spots end there."""
    high = float(np.percentile(values[body], 99.5)) if body.any() else float(values.max())
    low = float(np.percentile(values, 0.5))
    return np.clip(values, low, high) if low < high else values


def tone(values: np.ndarray, body: np.ndarray) -> np.ndarray:
    """float32 in [0, 1], see the top of this file; after the blur, so that noise is not made much of."""
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-12)
    middle = float(np.median(values[body])) - low if body.any() else span
    middle = BEND * max(middle, 1e-2 * span)
    return (np.log1p((values - low) / middle) / np.log1p(span / middle)).astype(np.float32)


def blur(values: np.ndarray, sigma: float, spacing: np.ndarray) -> np.ndarray:
    """Gaussian of standard deviation `sigma` mm on (k, j, i); edges are repeated. `spacing` along i, j, k."""
    for axis, step in enumerate(np.asarray(spacing)[::-1]):
        if sigma < 0.35 * step:
            continue
        reach = int(np.ceil(2.5 * sigma / step))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / sigma) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        n = values.shape[axis]
        out = np.zeros_like(values)
        for start, weight in enumerate(kernel):
            out += np.float32(weight) * padded[(slice(None),) * axis + (slice(start, start + n),)]
        values = out
    return values
