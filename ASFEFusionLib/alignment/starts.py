"""Where a search begins: poses over all that it may find, as matrices from the sampled to the other volume."""

from __future__ import annotations

from itertools import product

import numpy as np

from .levels import Level
from .pose import about, rotation, rotation_angle

# Steps of the grid of starts: the similarity at the coarsest level reaches farther than half of them.
TURN_STEP, SHIFT_STEP = 13.0, 18.0
# How far a search goes from the header's orientation (degrees) and from each of its centres (mm).
MOST_TURN, MOST_SHIFT = 30.0, 40.0


def ball(radius: float, step: float) -> np.ndarray:
    """Points (n, 3) of a body-centred cubic lattice within `radius`, the centre among them; neighbours by `step`."""
    edge = step * 2 / np.sqrt(3)
    n = int(np.ceil(radius / edge)) + 1
    corner = np.array(list(product(range(-n, n + 1), repeat=3)), float)
    points = np.concatenate([corner, corner + 0.5]) * edge
    return points[np.linalg.norm(points, axis=1) <= radius + 1e-9]


def centre_of(level: Level) -> np.ndarray:
    """Centre of the body (mm, LPS), or of the field of view if none was found."""
    points = level.points(level.body)
    return points.mean(0) if len(points) else middle_of(level)


def middle_of(level: Level) -> np.ndarray:
    """Centre of the field of view (mm, LPS)."""
    last = np.array(level.tones.shape[::-1]) - 1
    return level.matrix[:3, :3] @ (last / 2) + level.matrix[:3, 3]


def near_header(sampled: Level, other: Level, base: np.ndarray) -> np.ndarray:
    """Poses (n, 4, 4) within `MOST_TURN` of `base` (4 x 4), about each guess of the shift; `base` is the first."""
    turns = rotation(np.radians(ball(MOST_TURN, TURN_STEP))) @ base[:3, :3]
    return np.concatenate([base[None], *_shifted(sampled, other, base, turns, MOST_SHIFT)])


def all_turns(sampled: Level, other: Level, base: np.ndarray) -> np.ndarray:
    """Poses (n, 4, 4) over all orientations, with less choice of shifts."""
    turns = axis_turns()[:, None] @ rotation(np.radians(ball(40.0, 22.0)))
    turns = turns.reshape(-1, 3, 3) @ base[:3, :3]
    return np.concatenate([base[None], *_shifted(sampled, other, base, turns, 0.6 * MOST_SHIFT)])


def turned_round(sampled: Level, base: np.ndarray) -> np.ndarray:
    """Poses (n, 4, 4) turned by 180 degrees against `base` about each axis of the sampled volume's frame, or nearly."""
    centre = centre_of(sampled)
    turns = rotation(np.pi * np.eye(3))[:, None] @ rotation(np.radians(ball(MOST_TURN, 16.0)))
    turns = base[:3, :3] @ turns.reshape(-1, 3, 3)
    shift = base[:3, :3] @ centre + base[:3, 3] - centre
    return about(centre, turns[:, None], (shift + ball(0.6 * MOST_SHIFT, SHIFT_STEP))[None]).reshape(-1, 4, 4)


def axis_turns() -> np.ndarray:
    """The 24 turns (24, 3, 3) of a cube onto itself."""
    found = []
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in product((1, -1), repeat=3):
            turn = np.zeros((3, 3))
            turn[range(3), order] = signs
            if np.linalg.det(turn) > 0:
                found.append(turn)
    return np.array(sorted(found, key=rotation_angle))


def _shifted(sampled: Level, other: Level, base: np.ndarray, turns: np.ndarray, reach: float) -> list[np.ndarray]:
    """Poses about the header's shift, and about those that bring centres of body and field of view together."""
    centre = centre_of(sampled)
    given = base[:3, :3] @ centre + base[:3, 3] - centre
    guesses = [(given, reach)]
    here, there = middle_of(sampled), middle_of(other)
    for a, b in ((centre, centre_of(other)), (here, there)):
        shift = b - a
        # A guess that an earlier one's ball holds already adds nothing.
        if all(np.linalg.norm(shift - known) > r / 2 for known, r in guesses):
            guesses.append((shift, 0.75 * reach))
    return [
        about(centre, turns[:, None], (shift + ball(r, SHIFT_STEP))[None]).reshape(-1, 4, 4) for shift, r in guesses
    ]
