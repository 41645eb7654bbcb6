"""How well two volumes agree in a pose: normalised mutual information of tones at scattered points.

Studholme, Hill, Hawkes, "An overlap invariant entropy measure of 3D medical image alignment", Pattern Recognition 32
(1999): (H(A) + H(B)) / H(A, B), here less 1, so that 0 is no agreement and 1 the same picture. Within columns, as
`Similarity` can be asked for, all entropies are those that are left when the column is known; such regional mutual
information goes back to Studholme et al., IEEE TMI 25 (2006), and Klein et al., Medical Physics 35 (2008).
"""

from __future__ import annotations

import numpy as np

from .levels import Level

# Below this share of the points inside the other volume (of those that its field of view has room for) the similarity
# is taken down in proportion: few points in common agree by chance.
LEAST_SHARE = 0.4
# The sampled volume's columns: so many across, each way. They are laid out more than once, half a column apart, so that
# no border counts for much.
COLUMNS = 5
LAID = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))
# Poses that are compared in one go hold about this many points: more do not fit into the processor's cache.
AT_ONCE = 40_000


class Similarity:
    """The similarity of two levels as a function of the pose; higher is better.

    Points are taken from the `sampled` level: half of them evenly over the body and what is near it, half where its
    tones change; off the lattice, so that no pose falls in with it.

    `held`: a pose. Only the points that it takes into the other volume count, and these always: those that leave it by
    a little have the tones of its faces. Else a pose gains or loses by the points that it drops, which draws it along
    by millimetres where the pictures say little.

    `columns`: the tones are compared column by column, each through all slices of the sampled volume. What a tone of
    the one means in the other need not be the same everywhere: uptake differs from muscle to muscle, a tumour outshines
    what lies round it, a coil is nearer to one side. Compared all at once, a thigh's CT and PET come to lie 2 mm off.
    """

    def __init__(
        self,
        sampled: Level,
        other: Level,
        count: int,
        seed: int,
        bins: int = 32,
        *,
        held: np.ndarray | None = None,
        columns: bool = False,
    ) -> None:
        self.other, self.bins = other, bins
        rng = np.random.default_rng(seed)
        self.points = scatter(sampled, count, rng)
        self.held = held is not None
        if held is not None:
            moved = self.points @ held[:3, :3].T + held[:3, 3]
            inside = interpolate(other, moved[None])[1][0]
            self.points = self.points[inside] if inside.any() else self.points
        tones, _ = interpolate(sampled, self.points[None])
        rows = np.minimum((tones[0] * bins).astype(np.intp), bins - 1) * bins
        # Where in a joint histogram a point counts: by its tone, and by its column; once for each layout.
        self.columns = (COLUMNS + 1) ** 2 if columns else 1
        self.layouts = [rows + at * bins * bins for at in self._columns(sampled)] if columns else [rows]
        self.to_index = np.linalg.inv(other.matrix)
        # Coordinate by coordinate: each lies in one piece.
        self._rows_of_points = np.ascontiguousarray(self.points.T)
        self.least = LEAST_SHARE * min(1.0, other.field / max(sampled.extent, 1e-9))

    def _columns(self, sampled: Level) -> list[np.ndarray]:
        """In which column each point lies, for each layout."""
        across = []
        for axis in (0, 1):
            along = self.points @ (sampled.matrix[:3, axis] / sampled.spacing[axis]).astype(np.float32)
            # In order, so that each column holds about as many.
            across.append(COLUMNS * np.argsort(np.argsort(along)) / len(along))
        return [(across[0] + i).astype(np.intp) * (COLUMNS + 1) + (across[1] + j).astype(np.intp) for i, j in LAID]

    def __call__(self, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarity (n,) and share of the points inside the other volume (n,) for poses (n, 4, 4) or (4, 4).

        The poses take points of the sampled volume to points of the other one, LPS mm.
        """
        matrices = np.asarray(matrices, float).reshape(-1, 4, 4)
        at_once = max(1, AT_ONCE // len(self.points))
        parts = [self._some(matrices[n : n + at_once]) for n in range(0, len(matrices), at_once)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _some(self, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        to_index = self.to_index @ matrices
        index = to_index[:, :3, :3].astype(np.float32) @ self._rows_of_points
        index += to_index[:, :3, 3:].astype(np.float32)
        tones, inside = _sample(self.other.tones, index)
        if self.held:
            inside = np.ones_like(inside)
        n, cells = len(matrices), self.columns * self.bins * self.bins
        tones *= np.nextafter(np.float32(self.bins - 1), np.float32(0))
        cell = tones.astype(np.intp)
        upper = (tones - cell) * inside.astype(float)
        cell += (np.arange(n) * cells)[:, None]
        lower, upper = (inside - upper).ravel(), upper.ravel()
        scores = 0
        for rows in self.layouts:
            at = (cell + rows).ravel()
            joint = np.bincount(at, lower, n * cells)
            joint[1:] += np.bincount(at, upper, n * cells)[:-1]
            scores = scores + nmi(joint.reshape(n, self.columns, self.bins, self.bins))
        return scores / len(self.layouts), inside.mean(1)

    def guarded(self, matrices: np.ndarray) -> np.ndarray:
        """The similarity (n,), less where few points lie in both volumes."""
        score, share = self(matrices)
        return score * np.minimum(1, share / self.least)


def nmi(joint: np.ndarray) -> np.ndarray:
    """Normalised mutual information less 1 of joint histograms (n, regions, tones, tones); 0 for empty ones.

    Of several histograms, one a region, it is that of the tones if the region is known.
    """
    total = joint.sum((1, 2, 3), keepdims=True)
    p = joint / np.maximum(total, 1e-9)

    def entropy(q: np.ndarray) -> np.ndarray:
        q = q.reshape(len(q), -1)
        return -(q * np.log(np.maximum(q, 1e-12))).sum(1)

    first, second = p.sum(3), p.sum(2)
    region = entropy(first.sum(2))
    both = entropy(p) - region
    either = entropy(first) + entropy(second) - 2 * region
    return np.where(both > 1e-9, either / np.maximum(both, 1e-9) - 1, 0.0)


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


def interpolate(level: Level, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tones (p, n) at points (p, n, 3) LPS mm, linear, and whether they lie inside (bool); outside: of the faces."""
    to_index = np.linalg.inv(level.matrix).astype(np.float32)
    index = to_index[:3, :3] @ np.swapaxes(points.astype(np.float32), 1, 2)
    return _sample(level.tones, index + to_index[:3, 3:])


def _sample(tones: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`interpolate` at places in the lattice, (p, 3, n) float32 along i, j, k, which are overwritten.

    In steps that write where they read: this is most of what a search does, and new arrays would double its time.
    """
    base, outside, shares, stride = 0, 0, [], 1
    for axis, size in enumerate(tones.shape[::-1]):
        x = index[:, axis]
        # Short of the last voxel, so that the one before it is the lower neighbour there too.
        within = np.minimum(np.maximum(x, 0), np.nextafter(np.float32(size - 1), np.float32(0)))
        x -= within
        outside = np.maximum(np.abs(x, out=x), outside)
        low = within.astype(np.intp)
        within -= low
        shares.append(within)
        low *= stride
        base = base + low
        stride *= size
    flat, (fi, fj, fk) = tones.ravel(), shares
    nk, nj, ni = tones.shape
    planes = []
    for k in (0, nj * ni if nk > 1 else 0):
        rows = []
        for j in (0, ni if nj > 1 else 0):
            rows.append(flat[k + j :].take(base, mode="clip"))
            _mix(rows[-1], flat[k + j + (1 if ni > 1 else 0) :].take(base, mode="clip"), fi)
        planes.append(_mix(*rows, fj))
    return _mix(*planes, fk), outside <= 0.5


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """a + share (b - a), written into a; b is used up."""
    b -= a
    b *= share
    a += b
    return a
