"""The search for a pose: many starts at the coarsest level, ever fewer of them at finer ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..progress import Tick
from .levels import SPACINGS, Level
from .optimise import Frame, climb
from .pose import mean_distance, rotation_angle
from .similarity import Similarity
from .starts import centre_of

# Points compared at each level, and how many of the best poses go on to the next.
COUNTS = (2500, 6000, 16000, 30000)
KEPT = (24, 6, 3, 1)
BINS = (20, 32, 32, 40)
# Columns have few points each, and bear fewer bins.
SETTLED_BINS = 20
# Two poses nearer to each other (mm, over the body) are one start.
APART = 9.0
# A body of this many times the volume of the other is the larger one, however coarse its voxels.
MUCH_LARGER = 3.0
# Turning on from here (degrees beyond the limit) costs as much as there is similarity.
SOFT = 4.0


@dataclass
class Found:
    """A pose (4 x 4, sampled to other) and its similarity at the level where it was last refined."""

    matrix: np.ndarray
    score: float


class Comparison:
    """Two volumes at all levels. Poses are from the one that is sampled to the other: `swapped` if that is the moving.

    Sampled is the volume of coarser voxels, unless its body is so much larger that most points would miss the other.
    `voxel` is the size of the coarser voxels (mm, cube root of their volume); `last` the finest level not much finer.
    """

    def __init__(self, fixed: list[Level], moving: list[Level], seed: int = 0) -> None:
        coarse = [np.prod(levels[-1].spacing) ** (1 / 3) for levels in (fixed, moving)]
        ratio = fixed[0].extent / max(moving[0].extent, 1.0)
        if 1 / MUCH_LARGER < ratio < MUCH_LARGER and abs(np.log(coarse[1] / coarse[0])) > 0.1:
            self.swapped = bool(coarse[1] > coarse[0])
        else:
            self.swapped = bool(ratio > 1)
        useful = [n for n, spacing in enumerate(SPACINGS) if spacing >= 0.8 * max(coarse)]
        self.last = useful[-1] if useful else 0
        self.voxel = float(max(coarse))
        self.sampled, self.other = (moving, fixed) if self.swapped else (fixed, moving)
        self.seed = seed
        body = self.sampled[0].points(self.sampled[0].body)
        self.body = body[:: max(1, len(body) // 400)] if len(body) else self.sampled[0].points(self.sampled[0].near)
        self.centre = centre_of(self.sampled[0])
        # Mean distance of the body from its centre: a turn by 1 / radius moves it by about 1 mm.
        self.radius = max(0.8 * float(np.linalg.norm(self.body - self.centre, axis=1).mean()), 5.0)
        self._made: dict[int, Similarity] = {}

    def similarity(self, level: int) -> Similarity:
        """The similarity at a level (0: the coarsest)."""
        if level not in self._made:
            self._made[level] = Similarity(
                self.sampled[level], self.other[level], COUNTS[level], self.seed + level, BINS[level]
            )
        return self._made[level]

    def settle(self, start: np.ndarray, step: float, tolerance: float, limit: Callable[[np.ndarray], float]) -> Found:
        """The last refinement, at the finest level: by columns, among the points that `start` has in both volumes."""
        level, made = self.last, (self.sampled[self.last], self.other[self.last])
        similarity = Similarity(*made, COUNTS[-1], self.seed + level, SETTLED_BINS, held=start, columns=True)
        return self._climb(similarity, start, step, tolerance, limit)

    def distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Mean distance (mm) over the body between where poses (..., 4, 4) take it."""
        return mean_distance(a, b, self.body)

    def refine(
        self, start: np.ndarray, level: int, step: float, tolerance: float, limit: Callable[[np.ndarray], float]
    ) -> Found:
        """The best pose near `start` at a level; `limit(matrix)` is a factor on its similarity."""
        return self._climb(self.similarity(level), start, step, tolerance, limit)

    def _climb(
        self,
        similarity: Similarity,
        start: np.ndarray,
        step: float,
        tolerance: float,
        limit: Callable[[np.ndarray], float],
    ) -> Found:
        frame = Frame(start, self.centre, self.radius)

        def score(numbers: np.ndarray) -> float:
            matrix = frame.matrix(numbers)
            return float(similarity.guarded(matrix)[0]) * limit(matrix)

        numbers, best = climb(score, step, tolerance)
        return Found(frame.matrix(numbers), best)


def turn_limit(base: np.ndarray, degrees: float) -> Callable[[np.ndarray], float]:
    """A factor on the similarity that falls from 1 beyond so many degrees from `base`."""

    def limit(matrix: np.ndarray) -> float:
        over = np.degrees(rotation_angle(matrix @ np.linalg.inv(base))) - degrees
        return float(np.clip(1 - over / SOFT, 0, 1))

    return limit


def no_limit(_: np.ndarray) -> float:
    """Any pose will do."""
    return 1.0


def best_starts(comparison: Comparison, poses: np.ndarray, count: int, tick: Tick) -> tuple[list[Found], np.ndarray]:
    """The `count` best of the poses (n, 4, 4) that are apart from each other; and the similarity of all (n,)."""
    similarity, scores = comparison.similarity(0), []
    for n in range(0, len(poses), 256):
        scores.append(similarity.guarded(poses[n : n + 256]))
        tick(n / len(poses))
    scores = np.concatenate(scores)
    kept: list[Found] = []
    for n in np.argsort(-scores)[: 20 * count]:
        if all(comparison.distance(poses[n], known.matrix) > APART for known in kept):
            kept.append(Found(poses[n], float(scores[n])))
        if len(kept) == count:
            break
    return kept, scores


def distinct(comparison: Comparison, found: list[Found], apart: float) -> list[Found]:
    """The found poses from best to worst, without those nearer than `apart` mm to a better one."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda f: -f.score):
        if all(comparison.distance(one.matrix, known.matrix) > apart for known in kept):
            kept.append(one)
    return kept
