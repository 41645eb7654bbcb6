"""How well two volumes agree in a pose: normalised mutual information of tones at scattered points.

Studholme, Hill, Hawkes, "An overlap invariant entropy measure of 3D medical image alignment", Pattern Recognition 32
(1999): (H(A) + H(B)) / H(A, B), here less 1, so that 0 is no agreement and 1 the same picture.
"""

from __future__ import annotations

import numpy as np

from .levels import Level

# Below this share of the points inside the other volume (of those that its field of view has room for) the similarity
# is taken down in proportion: few points in common agree by chance.
LEAST_SHARE = 0.4
# Poses that are compared in one go hold about this many points: more do not fit into the processor's cache.
AT_ONCE = 40_000


class Similarity:
    """The similarity of two levels as a function of the pose; higher is better.

    Points are taken from the `sampled` level: half of them evenly over the body and what is near it, half where its
    tones change; off the lattice, so that no pose falls in with it.

    `held`: a pose. Only the points that it takes into the other volume count, and these always: those that leave it by
    a little have the tones of its faces. Else a pose gains or loses by the points that it drops, which draws it along
    by millimetres where the pictures say little.
    """

    def __init__(
        self, sampled: Level, other: Level, count: int, seed: int, bins: int = 32, *, held: np.ndarray | None = None
    ) -> None:
        self.other, self.bins = other, bins
        rng = np.random.default_rng(seed)
        self.points = scatter(sampled, count, rng)
        self.held = held is not None
        if held is not None:
            moved = self.points @ held[:3, :3].T + held[:3, 3]
            inside = interpolate(other, moved[None].astype(np.float32))[1][0]
            self.points = self.points[inside] if inside.any() else self.points
        tones, _ = interpolate(sampled, self.points[None])
        self.rows = np.minimum((tones[0] * bins).astype(np.int64), bins - 1) * bins
        self.to_index = np.linalg.inv(other.matrix)
        self.least = LEAST_SHARE * min(1.0, other.field / max(sampled.extent, 1e-9))

    def __call__(self, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarity (n,) and share of the points inside the other volume (n,) for poses (n, 4, 4) or (4, 4).

        The poses take points of the sampled volume to points of the other one, LPS mm.
        """
        matrices = np.asarray(matrices, float).reshape(-1, 4, 4)
        at_once = max(1, AT_ONCE // len(self.points))
        parts = [self._some(matrices[n : n + at_once]) for n in range(0, len(matrices), at_once)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _some(self, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = self.points @ np.swapaxes(matrices[:, :3, :3], 1, 2).astype(np.float32)
        moved += matrices[:, None, :3, 3].astype(np.float32)
        tones, inside = interpolate(self.other, moved, self.to_index)
        if self.held:
            inside = np.ones_like(inside)
        cells = self.bins * self.bins
        tones *= self.bins - 1
        lower = np.minimum(tones.astype(np.int64), self.bins - 2)
        upper = (tones - lower) * inside
        cell = lower + self.rows + (np.arange(len(matrices)) * cells)[:, None]
        cell, upper, weight = cell.ravel(), upper.ravel(), inside.ravel().astype(np.float32)
        total = len(matrices) * cells
        joint = np.bincount(cell, weight - upper, total)
        joint += np.roll(np.bincount(cell, upper, total), 1)
        return nmi(joint.reshape(-1, self.bins, self.bins)), inside.mean(1)

    def guarded(self, matrices: np.ndarray) -> np.ndarray:
        """The similarity (n,), less where few points lie in both volumes."""
        score, share = self(matrices)
        return score * np.minimum(1, share / self.least)


def nmi(joint: np.ndarray) -> np.ndarray:
    """Normalised mutual information less 1 of joint histograms (n, rows, columns); 0 for empty ones."""
    total = joint.sum((1, 2), keepdims=True)
    p = joint / np.maximum(total, 1e-9)

    def entropy(q: np.ndarray) -> np.ndarray:
        q = q.reshape(len(q), -1)
        return -(q * np.log(np.maximum(q, 1e-12))).sum(1)

    both = entropy(p)
    return np.where(both > 1e-9, (entropy(p.sum(1)) + entropy(p.sum(2))) / np.maximum(both, 1e-9) - 1, 0.0)


def scatter(level: Level, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points (n, 3) float32 LPS mm where `level.near`: half evenly, half in proportion to the gradient."""
    at = np.flatnonzero(level.near)
    change = sum(np.square(np.gradient(level.tones, axis=a) / s) for a, s in enumerate(level.spacing[::-1]))
    change = np.sqrt(change.ravel()[at]).astype(float) + 1e-9
    chosen = []
    for weight in (np.ones(len(at)), change):
        edges = np.cumsum(weight)
        # One point in each of equal shares of the weight: even, and yet at random.
        marks = (np.arange(count // 2) + rng.random(count // 2)) * (edges[-1] / (count // 2))
        chosen.append(at[np.minimum(np.searchsorted(edges, marks), len(at) - 1)])
    k, j, i = np.unravel_index(np.concatenate(chosen), level.near.shape)
    index = np.stack([i, j, k], 1) + rng.uniform(-0.5, 0.5, (len(i), 3))
    return (index @ level.matrix[:3, :3].T + level.matrix[:3, 3]).astype(np.float32)


def interpolate(level: Level, points: np.ndarray, to_index: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Tones (p, n) at points (p, n, 3) LPS mm, linear, and whether they lie inside (bool); outside: of the faces."""
    to_index = np.linalg.inv(level.matrix) if to_index is None else to_index
    index = points @ to_index[:3, :3].T.astype(np.float32) + to_index[:3, 3].astype(np.float32)
    nk, nj, ni = level.tones.shape
    inside = None
    corner, share = [], []
    for axis, size in enumerate((ni, nj, nk)):
        x = index[..., axis]
        here = (x >= -0.5) & (x <= size - 0.5)
        inside = here if inside is None else inside & here
        x = np.clip(x, 0, size - 1)
        low = np.minimum(x.astype(np.int32), max(size - 2, 0))
        corner.append(low)
        share.append(x - low)
    flat = level.tones.ravel()
    base = (corner[2] * nj + corner[1]) * ni + corner[0]
    fi, fj, fk = share
    planes = []
    for k in (0, nj * ni if nk > 1 else 0):
        rows = []
        for j in (0, ni if nj > 1 else 0):
            a = flat.take(base + (k + j))
            a += fi * (flat.take(base + (k + j + (1 if ni > 1 else 0))) - a)
            rows.append(a)
        rows[0] += fj * (rows[1] - rows[0])
        planes.append(rows[0])
    planes[0] += fk * (planes[1] - planes[0])
    return planes[0], inside
