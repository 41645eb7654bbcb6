"""Powell's search for the best pose near a given one, without derivatives.

Powell, "An efficient method for finding the minimum of a function of several variables without calculating
derivatives", The Computer Journal 7 (1964). Six numbers, all in mm: a turn by one unit moves the body by about 1 mm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .pose import about, rotation

Score = Callable[[np.ndarray], float]
# Iterations at most; a search that still moves then is taken as it is.
ROUNDS = 12
# A search is begun anew where it ended, with the axes for directions, so often at most: one that has crept along a
# slanting ridge ends early, and goes on then.
ANEW = 2


class Frame:
    """Poses near `base` as six numbers (mm): turn about `centre` times `radius`, and shift."""

    def __init__(self, base: np.ndarray, centre: np.ndarray, radius: float) -> None:
        self.base, self.radius = base, radius
        # Turned about where the body comes to lie, so that turn and shift hardly depend on each other.
        self.centre = base[:3, :3] @ centre + base[:3, 3]

    def matrix(self, numbers: np.ndarray) -> np.ndarray:
        """(..., 4, 4) of (..., 6)."""
        numbers = np.asarray(numbers, float)
        return about(self.centre, rotation(numbers[..., :3] / self.radius), numbers[..., 3:]) @ self.base


def climb(score: Score, step: float, tolerance: float) -> tuple[np.ndarray, float]:
    """The six numbers near zero at which `score` is greatest, and that score.

    `step`: mm of the first steps; `tolerance`: mm of progress at which the search ends.
    """
    at = np.zeros(6)
    best = score(at)
    for _ in range(1 + ANEW):
        before = at
        at, best = _powell(score, at, best, step, tolerance)
        if np.linalg.norm(at - before) < tolerance:
            break
    return at, best


def _powell(score: Score, at: np.ndarray, best: float, step: float, tolerance: float) -> tuple[np.ndarray, float]:
    """Where rounds of steps along the axes and the ways they led end, and the score there."""
    directions = np.eye(6)
    for _ in range(ROUNDS):
        before, gains = at, []
        for direction in directions:
            at, gain = _line(score, at, direction, best, step)
            best += gain
            gains.append(gain)
        moved = at - before
        length = float(np.linalg.norm(moved))
        if length > 1e-9:
            at, gain = _line(score, at, moved / length, best, min(step, length))
            best += gain
            # The new direction in place of that which gained most, unless they would come to lie in one plane.
            changed = directions.copy()
            changed[int(np.argmax(gains))] = moved / length
            if abs(np.linalg.det(changed)) > 0.1:
                directions = changed
        if length < tolerance and step <= tolerance:
            break
        if length < step:
            step = max(0.5 * step, 0.5 * tolerance)
    return at, best


def _line(score: Score, at: np.ndarray, direction: np.ndarray, here: float, step: float) -> tuple[np.ndarray, float]:
    """The best found along a line, and how much better than `here` it is (0 or more)."""
    seen = {0.0: here}

    def look(t: float) -> float:
        if t not in seen:
            seen[t] = score(at + t * direction)
        return seen[t]

    if look(step) <= here and look(-step) > here:
        step = -step
    for _ in range(4):  # on, as long as it gets better
        top = max(seen, key=seen.get)
        if top == 0.0 or top != max(seen, key=lambda t: t * step):
            break
        look(top + 1.6 * step)
    if len(seen) < 3:
        look(-step)
    for _ in range(2):
        top = max(seen, key=seen.get)
        below = [t for t in seen if t < top]
        above = [t for t in seen if t > top]
        if not below or not above:
            break
        a, c = max(below), min(above)
        vertex = _vertex(a, top, c, seen)
        if vertex is None or abs(vertex - top) < 0.05 * abs(step):
            break
        look(vertex)
    top = max(seen, key=seen.get)
    return at + top * direction, seen[top] - here


def _vertex(a: float, b: float, c: float, seen: dict[float, float]) -> float | None:
    """Where the parabola through three points is greatest, inside them."""
    p, q = (b - a) * (seen[b] - seen[c]), (b - c) * (seen[b] - seen[a])
    if abs(p - q) < 1e-15:
        return None
    vertex = b - 0.5 * ((b - a) * p - (b - c) * q) / (p - q)
    return vertex if a < vertex < c else None
