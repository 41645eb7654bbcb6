"""Rigid poses: turns, 4 x 4 matrices, and how far apart two of them bring a body.

Frame: LPS, mm. Matrices are 4 x 4 float64 and take points (x, y, z, 1). A pose as six numbers is always "about a
centre": a rotation vector (axis times angle, radians) about it, and a translation (mm) after that.
"""

from __future__ import annotations

import numpy as np


def rotation(vectors: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotation matrices of rotation vectors (..., 3), radians (Rodrigues' formula)."""
    vectors = np.asarray(vectors, float)
    # Not less than what the formula's quotients bear; so small an angle turns nothing.
    angle = np.sqrt(np.maximum(np.square(vectors).sum(-1), 1e-24))
    first, second = np.sin(angle) / angle, 2 * (np.sin(angle / 2) / angle) ** 2
    cross = np.zeros((*angle.shape, 3, 3))
    for axis, (row, column) in enumerate(((2, 1), (0, 2), (1, 0))):
        cross[..., row, column] = vectors[..., axis]
        cross[..., column, row] = -vectors[..., axis]
    return np.eye(3) + first[..., None, None] * cross + second[..., None, None] * (cross @ cross)


def rotation_angle(matrices: np.ndarray) -> np.ndarray:
    """Angle (radians, 0 to pi) of rotation matrices (..., 3, 3) or of the upper left part of (..., 4, 4) ones."""
    trace = np.trace(np.asarray(matrices)[..., :3, :3], axis1=-2, axis2=-1)
    return np.arccos(np.clip((trace - 1) / 2, -1, 1))


def about(centre: np.ndarray, turns: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(..., 4, 4): p -> turn (p - centre) + centre + shift. `turns` (..., 3, 3), `shifts` (..., 3) in mm."""
    turns, shifts = np.asarray(turns, float), np.asarray(shifts, float)
    shape = np.broadcast_shapes(turns.shape[:-2], shifts.shape[:-1])
    out = np.zeros((*shape, 4, 4))
    out[..., :3, :3] = turns
    out[..., :3, 3] = centre + shifts - turns @ np.asarray(centre, float)
    out[..., 3, 3] = 1
    return out


def reflection(centre: np.ndarray, axis: int) -> np.ndarray:
    """4 x 4: the mirror image about the plane through `centre` across the axis (0, 1, 2 for x, y, z)."""
    mirror = np.eye(3)
    mirror[axis, axis] = -1
    return about(centre, mirror, np.zeros(3))


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverse of rigid matrices (..., 4, 4), exactly rigid again."""
    out = np.zeros_like(matrix)
    out[..., :3, :3] = np.swapaxes(matrix[..., :3, :3], -1, -2)
    out[..., :3, 3] = -(out[..., :3, :3] @ matrix[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1
    return out


def is_rigid(matrix: np.ndarray, tolerance: float = 1e-4) -> bool:
    """True if the 4 x 4 matrix turns and shifts only (neither mirrors, scales nor shears)."""
    turn = matrix[:3, :3]
    return bool(np.abs(turn.T @ turn - np.eye(3)).max() < tolerance and np.linalg.det(turn) > 0)


def nearest_rigid(matrix: np.ndarray) -> np.ndarray:
    """The matrix with its 3 x 3 part replaced by the nearest rotation (polar decomposition)."""
    u, _, v = np.linalg.svd(matrix[:3, :3])
    out = np.array(matrix, float)
    out[:3, :3] = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v
    return out


def mean_distance(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Mean over `points` (n, 3) of the distance (mm) between where `a` and `b` (..., 4, 4) take them."""
    difference = np.asarray(a) - np.asarray(b)
    moved = difference[..., :3, :3] @ np.asarray(points).T + difference[..., :3, 3:]
    return np.sqrt(np.square(moved, out=moved).sum(-2)).mean(-1)
