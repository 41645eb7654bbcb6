"""Is a pose right? A judgement of its own, made from the voxels alone and without knowing where the pose is from.

Seven questions, of which each can raise a doubt: Does the best pose nearby lie where this one does? Does another one,
found anew over the whole range, fit better? Does one turned round, front to back or head to foot, fit as well, or a
mirrored one? Do the volumes fit better if one is stretched? Do they agree here more than they do anywhere by chance? Do
they overlap, and in a region thick enough to tell a tilt?
The limits were set on the pairs of Testing/benchmarks/alignment.py; its result says how often they err.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import FusionError
from ..progress import Tick
from ..settings import Notice
from ..volume import Volume
from .levels import levels
from .pose import about, reflection, rotation_angle
from .search import Comparison, Found, best_starts, distinct, no_limit, turn_limit
from .similarity import interpolate
from .starts import MOST_TURN, near_header, turned_round

# The best pose nearby may lie this far off (mm, mean over the body): about what jitter and optimiser leave.
NEARBY = 2.3
# Where voxels are coarser: so far (part of the voxel's size), if the agreement there is hardly better than here.
VOXEL_PART, HARDLY = 0.8, 0.045
# A pose elsewhere is a rival if it agrees better than this part of the agreement here.
RIVAL = 0.97
# Agreement here above that of poses all over the range, in standard deviations of those.
STANDS_OUT = 4.5
# Rivals that are looked into.
RIVALS = 8
# A pose turned round is looked into from so many starts, and is a rival from this part of the agreement here.
ROUND, ROUND_RIVAL = 4, 1.0
# Agreement of the mirrored pose over that here from which on it is a doubt. At right poses: to 1.02 (PET of a thigh).
MIRRORED = 1.06
# The same for stretched ones: 0.78 to 1.09 at right poses, 1.4 to 2 where a spacing is wrong by 10 %.
STRETCHED, STRETCHES = 1.2, (0.85, 0.92, 1.08, 1.18)
# What both volumes hold must be as thick as this (mm) in each direction: in less, a tilt changes the agreement little.
LEAST_DEPTH = 50.0


@dataclass
class Verdict:
    """What was found about a pose.

    `trusted`: no doubt was raised. `confidence`: 0 to 1, 0.5 at the limit of what weighs most; it is no probability.
    `reasons`: the doubts. `shift`: mean distance (mm) over the body from the pose to the best one known, None if not
    known. `better`: that pose, 4 x 4, fixed to moving. `facts`: the measured values.
    """

    trusted: bool
    confidence: float
    reasons: list[Notice] = field(default_factory=list)
    shift: float | None = None
    better: np.ndarray | None = None
    facts: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(replace(self, better=None, reasons=[]))
        values["better"] = None if self.better is None else np.asarray(self.better).tolist()
        values["reasons"] = [{"code": r.code, "facts": r.facts, "text": str(r)} for r in self.reasons]
        return values

    def doubt(self, notice: Notice, confidence: float = 0.0) -> None:
        """One more reason not to trust."""
        self.reasons.append(notice)
        self.trusted, self.confidence = False, min(self.confidence, confidence)


def check(fixed: Volume, moving: Volume, matrix: np.ndarray | None = None, tick: Tick = lambda _: None) -> Verdict:
    """The verdict on the 4 x 4 linear `matrix`, fixed to moving, LPS mm (None: as the volumes were loaded).

    Volumes that cannot be judged (pictures, a few slices, one value) are not trusted, for the reason
    "align_unjudged". Raises Cancelled if `tick` does.
    """
    try:
        with ThreadPoolExecutor(1) as aside:  # side by side: most of this lets other threads run
            other = aside.submit(levels, moving)
            made = levels(fixed, lambda p: tick(0.3 * p)), other.result()
    except FusionError as error:
        if error.code not in ("align_flat", "volume_constant", "volume_colour", "volume_nan"):
            raise
        verdict = Verdict(True, 1.0)
        verdict.doubt(Notice("align_unjudged", {"name": error.facts["name"]}))
        return verdict
    # Points of its own: what misled a search is not to mislead the verdict on it.
    return judge(Comparison(*made, seed=100), np.eye(4) if matrix is None else matrix, lambda p: tick(0.3 + 0.7 * p))


def judge(comparison: Comparison, matrix: np.ndarray, tick: Tick = lambda _: None, *, brief: bool = False) -> Verdict:
    """`check` for volumes whose levels are made; `matrix` fixed to moving.

    `brief`: a pose that is doubtful for what lies near it is looked into no further; `trusted` comes out the same.
    """
    matrix = np.asarray(matrix, float)
    pose = np.linalg.inv(matrix) if comparison.swapped else matrix
    last = comparison.last
    share = float(comparison.similarity(0)(pose)[1][0])
    verdict = Verdict(True, 1.0, facts={"inside": round(share, 3)})
    least = comparison.similarity(0).least
    if share < least:
        verdict.doubt(Notice("align_little", {"percent": round(100 * share)}), 0.5 * share / least)
    tick(0.02)

    near = _refined(comparison, pose, range(min(1, last), last + 1))
    here = float(comparison.similarity(last).guarded(pose)[0])
    deficit = 1 - here / max(near[last].score, 1e-9)
    verdict.shift = float(comparison.distance(pose, near[last].matrix))
    verdict.facts["deficit"] = round(deficit, 4)
    _doubt_shift(comparison, verdict, deficit)
    best = near[last].matrix
    tick(0.3)
    if verdict.trusted or not brief:
        best = _look_round(comparison, verdict, pose, near, tick)
    verdict.better = np.linalg.inv(best) if comparison.swapped else best
    verdict.shift = round(float(comparison.distance(pose, best)), 2)
    verdict.confidence = round(float(np.clip(verdict.confidence, 0, 1)), 3)
    tick(1.0)
    return verdict


def _look_round(
    comparison: Comparison, verdict: Verdict, pose: np.ndarray, near: dict[int, Found], tick: Tick
) -> np.ndarray:
    """The doubts that come from all other poses; the best pose known."""
    last, level = comparison.last, min(1, comparison.last)
    best = near[last].matrix
    poses = near_header(comparison.sampled[0], comparison.other[0], pose)
    starts, scores = best_starts(comparison, poses, RIVALS, lambda p: tick(0.3 + 0.4 * p))
    anchor = comparison.refine(best, 0, 3.0, 1.0, no_limit)
    far = scores[comparison.distance(poses, anchor.matrix) > 20]
    stands_out = float((anchor.score - far.mean()) / max(far.std(), 1e-6)) if len(far) else 0.0
    verdict.facts["stands_out"] = round(stands_out, 2)
    weight = stands_out / STANDS_OUT
    if weight < 1:
        verdict.doubt(Notice("align_weak"), 0.5 * max(weight, 0.0))
    else:
        verdict.confidence = min(verdict.confidence, 1 - 0.5 / weight**2)

    starts_round, _ = best_starts(comparison, turned_round(comparison.sampled[0], pose), ROUND, lambda _: None)
    mirrors = [near[level].matrix @ reflection(comparison.centre, axis) for axis in range(3)]
    for doubt, limit, others in (
        (Notice("align_round"), ROUND_RIVAL, [start.matrix for start in starts_round]),
        (Notice("align_mirrored"), MIRRORED, mirrors),
    ):
        ratio = _best_of(comparison, others, level).score / max(near[level].score, 1e-9)
        verdict.facts[doubt.code.removeprefix("align_")] = round(ratio, 3)
        if ratio > limit:
            verdict.doubt(doubt, 0.5 * min(1.0, limit / ratio) ** 4)
    _doubt_shape(comparison, verdict, near[level].matrix, level)

    rival = _rival(comparison, starts, near, pose, tick)
    if rival is None:
        return best
    away = float(comparison.distance(rival.matrix, best))
    ratio = rival.score / max(near[level].score, 1e-9)
    verdict.facts |= {"rival": round(ratio, 3), "rival_away": round(away, 1)}
    if ratio > RIVAL and away > 2 * NEARBY:
        verdict.doubt(Notice("align_rival", {"millimetres": round(away)}), 0.5 * min(1.0, RIVAL / ratio) ** 4)
    elif ratio <= RIVAL:
        verdict.confidence = min(verdict.confidence, 1 - 0.5 * (ratio / RIVAL) ** 4)
    return rival.matrix if ratio > 1 else best


def _best_of(comparison: Comparison, starts: list[np.ndarray], level: int) -> Found:
    """The best pose that is found from these, refined at `level`."""
    best = max((comparison.refine(start, 0, 6.0, 1.5, no_limit) for start in starts), key=lambda f: f.score)
    return comparison.refine(best.matrix, level, 3.0, 0.8, no_limit)


def _doubt_shape(comparison: Comparison, verdict: Verdict, pose: np.ndarray, level: int) -> None:
    """The doubts about volumes of which one is stretched, and about what is too thin to tell."""
    similarity, centre = comparison.similarity(level), comparison.centre
    # A wrong spacing stretches along a volume's own axes.
    axes = [made[level].matrix[:3, :3] / made[level].spacing for made in (comparison.sampled, comparison.other)]
    axes[1] = pose[:3, :3].T @ axes[1]
    lines = [np.outer(line, line) for frame in axes for line in frame.T] + [np.eye(3)]
    stretched = np.stack([pose @ about(centre, np.eye(3) + (s - 1) * p, np.zeros(3)) for p in lines for s in STRETCHES])
    scores = similarity.guarded(stretched)
    ratio = float(scores.max() / max(float(similarity.guarded(pose)[0]), 1e-9))
    verdict.facts["stretched"] = round(ratio, 3)
    if ratio > STRETCHED:
        percent = round(100 * abs(STRETCHES[int(scores.argmax()) % len(STRETCHES)] - 1))
        verdict.doubt(Notice("align_stretched", {"percent": percent}), 0.5 * STRETCHED / ratio)

    _, inside = interpolate(comparison.other[level], (similarity.points @ pose[:3, :3].T + pose[:3, 3])[None])
    both = similarity.points[inside[0]]
    depth = np.ptp(both @ axes[0], axis=0).min() if len(both) else 0.0
    verdict.facts["depth"] = round(float(depth), 1)
    if depth < LEAST_DEPTH:
        verdict.doubt(Notice("align_thin", {"millimetres": round(float(depth))}), 0.5 * depth / LEAST_DEPTH)


def _doubt_shift(comparison: Comparison, verdict: Verdict, deficit: float) -> None:
    """The doubt about a pose that lies beside the best one."""
    allowed = NEARBY
    if deficit < HARDLY:
        allowed = max(NEARBY, VOXEL_PART * comparison.voxel)
    part = verdict.shift / allowed
    if part > 1:
        millimetres = round(verdict.shift) if verdict.shift >= 3 else round(verdict.shift, 1)
        verdict.doubt(Notice("align_shifted", {"millimetres": millimetres}), 0.5 / part)
    else:
        verdict.confidence = min(verdict.confidence, 1 - 0.5 * part**2)


def _refined(comparison: Comparison, pose: np.ndarray, chosen: range) -> dict[int, Found]:
    """The best pose near `pose` at each of the levels, one after the other."""
    found: dict[int, Found] = {}
    for level in chosen:
        found[level] = comparison.refine(pose, level, (6, 3, 2, 1)[level], (1.5, 0.8, 0.4, 0.2)[level], no_limit)
        pose = found[level].matrix
    return found


def _rival(
    comparison: Comparison, starts: list[Found], near: dict[int, Found], pose: np.ndarray, tick: Tick
) -> Found | None:
    """The best pose that is not the one nearby, refined at the second level; None if all starts lead there."""
    limit, level = turn_limit(pose, MOST_TURN), min(1, comparison.last)
    found = []
    for n, start in enumerate(starts):
        found.append(comparison.refine(start.matrix, 0, 6.0, 1.5, limit))
        tick(0.7 + 0.2 * n / len(starts))
    elsewhere = max(2.5 * NEARBY, 1.5 * comparison.voxel)
    others = []
    for one in distinct(comparison, found, 4.0)[:3]:
        refined = comparison.refine(one.matrix, level, 3.0, 0.8, limit)
        if comparison.distance(refined.matrix, near[level].matrix) > elsewhere:
            others.append(refined)
    tick(0.95)
    return max(others, key=lambda f: f.score, default=None)


def doubt_motion(verdict: Verdict, base: np.ndarray, matrix: np.ndarray) -> None:
    """The doubt about a result that is turned further from its start than a search goes."""
    degrees = float(np.degrees(rotation_angle(matrix @ np.linalg.inv(base))))
    if degrees > MOST_TURN:
        verdict.doubt(Notice("align_turned", {"degrees": round(degrees)}), 0.4)
