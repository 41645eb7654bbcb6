"""A synthetic head: one anatomy, defined at every point of physical space, sampled as CT, MR or PET on unlike grids.

Frame: LPS, mm (x to the left, y to the back, z up). Inside this file points are float32 arrays x, y, z in the head's
own frame, which is LPS moved by HEAD_CENTRE. Shapes are signed distances (mm, negative inside), only nearly exact far
from a surface; later layers are painted over earlier ones, and edges are blended over about one voxel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .volume import Volume

HEAD_CENTRE = (2.0, -15.0, 40.0)
LESION_RADIUS = 11.0

# Tissue: CT (HU), MR (T1-like with contrast agent, arbitrary), PET (FDG-like, SUV).
_VALUES = {
    "air": (-1000, 0, 0.0),
    "skin": (60, 420, 1.0),
    "fat": (-95, 880, 0.5),
    "muscle": (55, 360, 1.1),
    "bone": (1350, 25, 0.7),
    "marrow": (720, 260, 0.7),
    "csf": (8, 110, 0.5),
    "grey": (39, 430, 8.0),
    "white": (28, 640, 3.0),
    "nuclei": (38, 500, 8.0),
    "dura": (65, 300, 1.0),
    "eye": (12, 120, 0.6),
    "lens": (95, 330, 0.6),
    "calcification": (320, 60, 0.6),
    "oedema": (16, 330, 2.2),
    "lesion": (58, 850, 14.0),
}
TISSUES = tuple(_VALUES)
MODALITIES = ("CT", "MR", "PET")


def _lps(x: float, y: float, z: float) -> tuple[float, float, float]:
    return (x + HEAD_CENTRE[0], y + HEAD_CENTRE[1], z + HEAD_CENTRE[2])


# Points well inside their structure, in the head's own frame, and the tissue found there.
_LANDMARKS = {
    "lesion": ("lesion", (-32, 24, 34)),
    "eye_left": ("eye", (32, -66, -38)),
    "eye_right": ("eye", (-32, -66, -38)),
    "front_horn_left": ("csf", (11, -20, 15)),
    "front_horn_right": ("csf", (-12, -20, 15)),
    "atrium_left": ("csf", (27, 36, 9)),
    "atrium_right": ("csf", (-26, 36, 9)),
    "thalamus_left": ("nuclei", (11, 8, 1)),
    "thalamus_right": ("nuclei", (-11, 8, 1)),
    "petrous_left": ("bone", (42, 14, -44)),
    "petrous_right": ("bone", (-42, 14, -44)),
    "pons": ("white", (0, 10, -29)),
    "sphenoid_sinus": ("air", (-1, -31, -52)),
}
LANDMARKS = {name: _lps(*at) for name, (_, at) in _LANDMARKS.items()}  # LPS, mm
LANDMARK_TISSUES = {name: label for name, (label, _) in _LANDMARKS.items()}
_LESION = _LANDMARKS["lesion"][1]
LESION_CENTRE = LANDMARKS["lesion"]


Points = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Blob(NamedTuple):
    """An ellipsoid. `pair`: on both sides, the centre given for the left. `yaw`: degrees about z, front end inwards.
    `bend`: how far x and z go with the square of y (1/mm). `cells`: air cells with septa between.
    `wall`: thickness of the bone around it (mm)."""

    tissue: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    pair: bool = True
    yaw: float = 0.0
    bend: tuple[float, float] = (0.0, 0.0)
    cells: bool = False
    wall: float = 0.0


_BLOBS = (
    # Skull base and face.
    _Blob("bone", (39, 14, -44), (9, 30, 9.5), yaw=52),
    _Blob("bone", (59, 26, -50), (13, 16, 20)),
    _Blob("air", (60, 27, -52), (9, 12, 15), cells=True),
    _Blob("air", (68, 14, -46), (14, 3, 3)),
    _Blob("air", (0, -31, -52), (14, 12, 9), pair=False, wall=2.5),
    _Blob("bone", (0, 1, -56), (12, 9, 20), pair=False),
    _Blob("bone", (29, -62, -38), (19.5, 27, 17.5), yaw=-20),  # its front is open, so no wall
    _Blob("fat", (29.5, -65, -38), (17.5, 27.5, 15.5), yaw=-20),
    _Blob("muscle", (39.5, -61, -38), (2.2, 18, 4.5), yaw=-32),
    _Blob("muscle", (20, -57, -38), (2.2, 18, 4.5), yaw=-8),
    _Blob("muscle", (27, -58, -27), (4.5, 18, 2), yaw=-20),
    _Blob("muscle", (27, -58, -49), (4.5, 18, 2), yaw=-20),
    _Blob("muscle", (24, -50, -38), (2.6, 22, 2.6), yaw=-20),
    _Blob("muscle", (32, -67, -38), (12.6, 12.6, 12.6)),
    _Blob("eye", (32, -67, -38), (11.6, 11.6, 11.6)),
    _Blob("lens", (32.5, -75.5, -38), (4.6, 2.2, 4.6)),
    _Blob("air", (27, -62, -70), (15, 17, 14), wall=1.8),
    _Blob("air", (0, -57, -41), (11, 24, 15), pair=False, cells=True, wall=1.0),
    _Blob("air", (5.5, -70, -68), (4.5, 36, 17)),
    _Blob("muscle", (6.5, -66, -72), (2, 22, 7)),
    _Blob("air", (9, -89.5, -11), (8.5, 4.8, 9.5), wall=1.6),
    _Blob("bone", (49, -58, -60), (6, 20, 9), yaw=25),
    _Blob("air", (0, -24, -86), (12, 9, 30), pair=False),
    _Blob("bone", (52, -30, -98), (5, 32, 22), yaw=-32),
    _Blob("bone", (0, -72, -112), (24, 9, 14), pair=False),
    _Blob("bone", (0, 24, -120), (22, 24, 40), pair=False),
    _Blob("marrow", (0, 12, -120), (10, 9, 38), pair=False),
    # Brain stem and cord, in their cistern.
    _Blob("csf", (0, 31, -110), (8.5, 8.5, 60), pair=False),
    _Blob("white", (0, 31, -110), (6, 6, 60), pair=False),
    _Blob("white", (0, 14, -20), (13, 11, 22), pair=False),
    _Blob("white", (0, 11, -31), (17, 13, 13), pair=False),
    _Blob("white", (0, 21, -52), (9, 9, 22), pair=False),
    _Blob("csf", (0, 28, -35), (6, 4, 9), pair=False),
    # Deep nuclei and ventricles.
    _Blob("grey", (0, -6, 15), (1.8, 27, 8), pair=False, bend=(0, -0.009)),  # septum under the callosum
    _Blob("nuclei", (12, -20, 10), (9, 12, 11)),
    _Blob("nuclei", (26, -6, 1), (7, 20, 11), yaw=-14),
    _Blob("nuclei", (11, 9, 2), (9.5, 15, 10), yaw=-15),
    _Blob("csf", (8.5, -4, 17), (6, 34, 7.5), bend=(0.006, -0.009)),
    _Blob("csf", (26, 32, 5), (6.5, 20, 11), yaw=-16, bend=(0.004, -0.01)),
    _Blob("csf", (34, 4, -20), (3.5, 22, 4), yaw=8),
    _Blob("csf", (0, 4, -3), (2, 14, 9), pair=False),
    _Blob("calcification", (27, 31, 3), (3, 4.5, 3)),
    _Blob("calcification", (1, 24, -1), (3, 3.5, 3), pair=False),
)


def _ellipsoid(points: Points, centre: tuple, radii: tuple) -> np.ndarray:
    x, y, z = ((v - c) / r for v, c, r in zip(points, centre, radii, strict=True))
    level = np.sqrt(x * x + y * y + z * z + 1e-8)
    x, y, z = (v / r for v, r in zip((x, y, z), radii, strict=True))
    steepness = np.sqrt(x * x + y * y + z * z + 1e-8 / min(radii) ** 2)  # the small terms: -radius at the centre
    return level * (level - 1) / steepness


def _join(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union of two distances, the crease rounded over `blend` mm."""
    h = np.maximum(blend - np.abs(a - b), 0) * (1 / blend)
    return np.minimum(a, b) - h * h * (0.25 * blend)


def _gyroid(x: np.ndarray, y: np.ndarray, z: np.ndarray, k: float) -> np.ndarray:
    """About the distance (mm) to a winding sheet of period 2 pi / k."""
    x, y, z = k * x, k * y, k * z
    return np.abs(np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)) * (0.75 / k)


def _brain(points: Points, depth: np.ndarray) -> tuple[np.ndarray, ...]:
    """Depth below the cortex of the cerebrum and of the cerebellum, and distance to the dural sheets (mm).

    `depth`: below the inner table of the skull.
    """
    x, y, z = points
    side = np.abs(x)
    core = _ellipsoid((x, y, z), (0, 2, -3), (40, 42, 31))  # where the halves are joined
    hind = _join(
        _ellipsoid((side, y, z), (20, 44, -41), (33, 33, 24)), _ellipsoid((x, y, z), (0, 38, -36), (16, 26, 22)), 8
    )
    cleft = np.maximum(side - 1.6, -core)
    # The brain stem lies free in its cistern, and the temporal lobes stand apart from it.
    cistern = _ellipsoid((x, y, z), (0, 8, -32), (18.5, 20, 23))
    hull = np.minimum(np.minimum(depth - 2.2, hind - 3.2), cistern)
    hull = np.minimum(hull, cleft)
    # Sulci stand upright on the surface: the folding pattern is read mostly by direction from the centre.
    radius = np.sqrt((x / 69) ** 2 + (y / 88) ** 2 + (z / 68) ** 2)
    out = 0.6 + 0.4 / np.maximum(radius, 0.55)
    px, py, pz = x * out, y * out, z * out
    px, py, pz = (
        px + 5 * np.sin(py * 0.071 + 1) + 3 * np.sin(pz * 0.11),
        py + 5 * np.sin(pz * 0.063 + 2) + 3 * np.sin(px * 0.09),
        pz + 5 * np.sin(px * 0.067 + 3) + 3 * np.sin(py * 0.10),
    )
    reach = 14 + 5 * np.sin(px * 0.06 + py * 0.05)
    sulcus = _gyroid(px, py, pz, 0.235) - 1.1 + 0.06 * hull + 0.8 * np.maximum(hull - reach, 0)
    sulcus += np.maximum(6 - core, 0)  # no folds in the depth of the brain
    valley = z + 4 - 0.4 * y + 4 * np.sin(side * 0.13) + 2.5 * np.sin(y * 0.16)
    fissure = np.maximum(np.maximum(np.abs(valley) * 0.85 - 0.9, 39 - side), np.abs(y + 8) - 30)
    cerebrum = _join(_join(hull, sulcus, 2), fissure, 2)
    # Folia fan out from the fourth ventricle.
    ry, rz = y - 27 + 0.006 * x * x, z + 38
    fan = np.abs(np.sin(9 * np.arctan2(rz, ry) + 0.15 * side)) * np.sqrt(ry * ry + rz * rz) / 9
    inner = np.minimum(-hind, depth - 1.5)
    cerebellum = np.minimum(inner, fan - 0.5 + 0.05 * inner + 0.8 * np.maximum(inner - 15, 0))
    falx = np.maximum(side - 0.8, 7 - core)
    tent = np.maximum(np.maximum(np.abs(hind - 1.6) - 0.7, -38 - z), 8 - cistern)
    return cerebrum, cerebellum, np.maximum(np.minimum(falx, tent), -depth), core


def _layers(points: Points, margin: float) -> Iterator[tuple]:
    """Painter's order: (tissue name, which points or a slice of all, their distance to its surface)."""
    x, y, z = points
    every = slice(None)
    x = x - 1.5 * np.sin(y * 0.03)  # no head is quite symmetric
    dome = _join(_ellipsoid((x, y, z), (0, 18, 6), (66, 71, 68)), _ellipsoid((x, y, z), (0, -24, 5), (58, 62, 62)), 24)
    face = _ellipsoid((x, y, z), (0, -36, -66), (64, 60, 66))
    neck = np.sqrt((x / 1.1) ** 2 + (y - 14 - 0.15 * z) ** 2) - 56
    skin = _join(_join(dome - 13, face, 25), np.maximum(neck, z + 30), 25)
    skin = _join(skin, _ellipsoid((x, y, z), (0, -97, -68), (11, 15, 24)), 12)
    skin = _join(skin, _ellipsoid((np.abs(x) - 0.45 * (y - 14), y, z), (73, 18, -36), (3.5, 15, 26)), 5)
    yield "skin", every, skin
    yield "fat", every, skin + 2.0
    # Fat between the muscles, in winding sheets.
    planes = _gyroid(x + 7 * np.sin(y * 0.06), y + 7 * np.sin(z * 0.05), 0.6 * z + 6 * np.sin(x * 0.07), 0.13)
    yield "muscle", every, np.maximum(skin + 6 + 2.5 * np.sin(z * 0.05), 0.55 - planes)
    floor = -30 - 13 * np.tanh((y + 40) * 0.14) + 9 * np.exp(-((x * 0.06) ** 2)) - z
    cavity = -_join(-dome, -0.85 * floor, 10)
    cavity = _join(cavity, _ellipsoid((x, y, z), (0, 42, -37), (58, 43, 34)), 18)
    wall = 6.3 + np.sin(y * 0.035 + 0.5) + 0.6 * np.sin(x * 0.06 + 1)
    yield "bone", every, cavity - wall
    yield "marrow", every, np.maximum(cavity - wall + 2.0, 1.9 - cavity)
    at = np.flatnonzero(cavity < margin)
    if at.size:
        depth = -cavity[at]
        cerebrum, cerebellum, dura, core = _brain((x[at], y[at], z[at]), depth)
        yield "csf", at, -depth
        yield "grey", at, -cerebrum
        yield "white", at, 2.9 - cerebrum
        yield "white", at, np.maximum(np.maximum(np.abs(core + 3) - 3, np.abs(x[at]) - 16), 2 - z[at])  # callosum
        yield "grey", at, -cerebellum
        yield "white", at, 1.4 - cerebellum
        yield "dura", at, dura
        swelling = _ellipsoid((x[at], y[at], z[at]), _LESION, (20, 24, 20)) + 2.5 * np.sin(0.3 * y[at] + 0.25 * z[at])
        yield "oedema", at, np.maximum(swelling, 2.9 - cerebrum)
    for blob in _BLOBS:
        for sign in (1, -1) if blob.pair else (1,):
            # The right side is a little smaller, so that a mirrored head is another head.
            yield from _blob(blob, (x * sign, y, z), 1.0 if sign > 0 else 0.93, margin)
    # In unbent coordinates, so that its centre is where LESION_CENTRE says.
    yield "lesion", every, _ellipsoid(points, _LESION, (LESION_RADIUS,) * 3)


def _blob(blob: _Blob, points: Points, scale: float, margin: float) -> Iterator[tuple]:
    x, y, z = points
    (cx, cy, cz), longest = blob.centre, max(blob.radii) + blob.wall + margin
    at = np.flatnonzero(np.abs(z - cz) < (longest if blob.bend[1] else blob.radii[2] + blob.wall + margin))
    at = at[np.abs(y[at] - cy) < longest]
    at = at[np.abs(x[at] - cx) < longest]
    if not at.size:
        return
    c, s = np.cos(np.radians(blob.yaw)).item(), np.sin(np.radians(blob.yaw)).item()
    dx, dy, dz = x[at] - cx, y[at] - cy, z[at] - cz
    dx, dy = c * dx + s * dy, c * dy - s * dx
    dx, dz = dx - blob.bend[0] * dy * dy, dz - blob.bend[1] * dy * dy
    distance = _ellipsoid((dx, dy, dz), (0, 0, 0), tuple(scale * r for r in blob.radii))
    if blob.wall:
        yield "bone", at, distance - blob.wall
    if blob.cells:
        distance = np.maximum(distance, 0.6 - _gyroid(dx + 2 * np.sin(dy * 0.3), dy, dz + 2 * np.sin(dx * 0.4), 0.42))
    yield blob.tissue, at, distance


def tissue(points: np.ndarray) -> np.ndarray:
    """Index into TISSUES at `points`, (..., 3) LPS mm; an int array (...)."""
    points = np.asarray(points, np.float64)
    x, y, z = (points.reshape(-1, 3) - HEAD_CENTRE).T.astype(np.float32)
    labels = np.zeros(len(x), np.int64)
    for name, at, distance in _layers((x, y, z), 0.0):
        labels[at] = np.where(distance < 0, TISSUES.index(name), labels[at])
    return labels.reshape(points.shape[:-1])


def _sample(matrix: np.ndarray, size: tuple, spacing: np.ndarray, modality: str) -> np.ndarray:
    """Tissue values, without noise, on a grid: float32 (k, j, i)."""
    value = {name: float(v[MODALITIES.index(modality)]) for name, v in _VALUES.items()}
    out = np.full(size[::-1], value["air"], np.float32)
    width = float(1.1 * np.prod(spacing) ** (1 / 3))  # edges are as soft as a voxel is wide
    i, j = np.arange(size[0]), np.arange(size[1])[:, None]
    for k in range(size[2]):  # slice by slice: little memory, and it stays in the cache
        start = matrix[:3, 3] + k * matrix[:3, 2] - HEAD_CENTRE
        x, y, z = ((start[a] + i * matrix[a, 0] + j * matrix[a, 1]).astype(np.float32).ravel() for a in range(3))
        at = np.flatnonzero((np.abs(x) < 98) & (np.abs(y + 5) < 118) & (z < 96))
        if not at.size:
            continue
        x, y, z = x[at], y[at], z[at]
        part = np.full(at.size, value["air"], np.float32)
        for name, where, distance in _layers((x, y, z), width):
            share = np.clip(0.5 - distance / width, 0, 1)
            part[where] += share * (value[name] - part[where])
        if modality == "MR":  # the coil is nearer to the back and the top
            part *= 1 + 0.0009 * y + 0.0007 * z + 0.05 * np.sin(0.02 * x + 0.5)
        out[k].reshape(-1)[at] = part
    return out


def _blur(voxels: np.ndarray, fwhm: float, spacing: np.ndarray) -> np.ndarray:
    """(k, j, i) smoothed by a Gaussian of `fwhm` mm; `spacing` along i, j, k. Edges are repeated."""
    for axis, step in enumerate(spacing[::-1]):
        sigma = fwhm / 2.355 / step
        reach = int(np.ceil(3 * sigma))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        padded = np.pad(voxels, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        n = voxels.shape[axis]
        voxels = sum(
            float(w) * padded[(slice(None),) * axis + (slice(s, s + n),)] for s, w in enumerate(kernel / kernel.sum())
        )
    return voxels


def _rotation(x: float, y: float, z: float) -> np.ndarray:
    """Turns by degrees about x, then y, then z."""
    m = np.eye(3)
    for axis, angle in enumerate(np.radians((x, y, z))):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        m = turn @ m
    return m


class _Grid(NamedTuple):
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    directions: np.ndarray  # columns: unit vectors of i, j, k in LPS
    centre: tuple[float, float, float]


_GRIDS = {
    "CT": _Grid((256, 256, 84), (0.9, 0.9, 2.0), _rotation(-4, 1.5, 2), _lps(1, -6, 8)),
    # Sagittal: i to the back, j down, k to the right.
    "MR": _Grid(
        (220, 152, 144), (1, 1, 1.2), _rotation(7, -3, 4) @ [[0, 0, -1], [1, 0, 0], [0, -1, 0]], _lps(-1, -4, 19)
    ),
    "PET": _Grid((88, 88, 64), (4, 4, 4), _rotation(2, 0, -3) @ np.diag([1.0, 1, -1]), _lps(6, 3, -12)),
}


def head(modality: str, seed: int = 0, noise: bool = True, spacing: tuple | None = None) -> Volume:
    """The head as "CT" (int16, HU), "MR" (int16, arbitrary) or "PET" (float32, SUV): a Volume, voxels (k, j, i).

    Each modality has its own grid. `spacing`: mm along i, j, k, in place of the grid's own; field of view (to a voxel),
    directions and centre stay. `seed` changes the noise, never the anatomy.
    """
    grid = _GRIDS[modality]
    step = np.array(grid.spacing if spacing is None else spacing, np.float64)
    size = tuple(max(1, round(n * s / t)) for n, s, t in zip(grid.size, grid.spacing, step, strict=True))
    matrix = np.eye(4)
    matrix[:3, :3] = grid.directions * step
    matrix[:3, 3] = np.array(grid.centre) - matrix[:3, :3] @ (np.array(size) - 1) / 2
    rng = np.random.default_rng([seed, MODALITIES.index(modality)])

    def normal() -> np.ndarray:
        return rng.standard_normal(size[::-1], np.float32)

    if modality == "PET":
        fine = matrix.copy()  # eight samples a voxel, so that the blur acts on more than corners of the anatomy
        fine[:3, :3] /= 2
        fine[:3, 3] -= matrix[:3, :3].sum(axis=1) / 4
        voxels = _blur(_sample(fine, tuple(2 * n for n in size), step / 2, modality), 6.0, step / 2)
        voxels = voxels.reshape(size[2], 2, size[1], 2, size[0], 2).mean(axis=(1, 3, 5))
        if noise:  # variance follows activity, and reconstruction leaves neighbours alike
            grain = _blur(normal(), 5.0, step)
            voxels = np.maximum(voxels + 0.15 * np.sqrt(voxels + 0.01) * grain / grain.std(), 0)
        voxels = voxels.astype(np.float32)
    else:
        voxels = _sample(matrix, size, step, modality)
        if noise:
            voxels = voxels + 8 * normal() if modality == "CT" else np.hypot(voxels + 14 * normal(), 14 * normal())
        voxels = np.rint(np.clip(voxels, -1024, 3071)).astype(np.int16)
    units = {"CT": "HU", "MR": None, "PET": "SUV"}[modality]
    return Volume(voxels, matrix, modality, units, f"phantom {modality}")


def bright_voxel(volume: Volume, value: float) -> tuple[Volume, tuple[int, int, int], np.ndarray]:
    """A copy with the one voxel nearest to LESION_CENTRE set to `value`; its (i, j, k), and its centre in LPS mm."""
    where = np.linalg.solve(volume.ijk_to_physical, (*LESION_CENTRE, 1.0))[:3]
    ijk = tuple(int(n) for n in np.clip(np.rint(where), 0, np.array(volume.size_ijk) - 1))
    voxels = volume.voxels.copy()
    voxels[ijk[::-1]] = value
    copy = Volume(voxels, volume.ijk_to_physical.copy(), volume.modality, volume.units, volume.name, two_d=volume.two_d)
    return copy, ijk, (volume.ijk_to_physical @ (*ijk, 1.0))[:3]
