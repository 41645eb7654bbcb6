"""Automatic rigid alignment of one volume to another, over all modalities, by normalised mutual information.

Coarse to fine from thousands of starts (see `search`, `starts`); Maes et al., IEEE Transactions on Medical Imaging 16
(1997), and Studholme et al. (1999) for the measure, Jenkinson and Smith, Medical Image Analysis 5 (2001), for the
search over a grid of turns. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FusionError
from ..progress import Progress, Run, Tick
from ..settings import Notice, Step
from ..volume import Volume, check_geometry, check_voxels
from .levels import SPACINGS, Level, levels
from .pose import invert, is_rigid, nearest_rigid, rotation_angle
from .search import KEPT, Comparison, Found, best_starts, distinct, no_limit, turn_limit
from .starts import MOST_TURN, all_turns, near_header
from .verdict import NEARBY, Verdict, doubt_motion, judge

# What is searched: within 30 degrees of the start; all orientations; near the start alone; nothing (judged only).
SEARCHES = ("rigid", "rigid-any", "near", "as-is")
# First step and tolerance (mm) of the refinement at each level.
STEPS, TOLERANCES = (6.0, 3.0, 2.0, 1.0), (1.5, 0.8, 0.4, 0.2)
# A result that agrees better by less than this part has not gained.
HARDLY_BETTER = 0.02
# All orientations: so many times the starts go on.
MORE = 2


@dataclass
class Alignment:
    """The result of `align`.

    `matrix`: 4 x 4, takes points of the fixed (first) volume to points of the moving (second) one, LPS mm, as
    SimpleITK.Resample(moving, fixed, transform) wants it. `centre`: (3,) LPS mm, centre of the fixed body, about which
    the transform is best written. `start`: the 4 x 4 the search began with. `moved`: mean distance (mm) over the body
    between the two. `similarity`: of start and result, 0 (none) to 1. `seconds`: by stage.
    """

    matrix: np.ndarray
    centre: np.ndarray
    search: str
    verdict: Verdict
    start: np.ndarray
    moved: float = 0.0
    similarity: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def degrees(self) -> float:
        """How far the result turns."""
        return float(np.degrees(rotation_angle(self.matrix)))

    @property
    def shift(self) -> np.ndarray:
        """(3,) How far it moves the centre (mm)."""
        return self.matrix[:3, :3] @ self.centre + self.matrix[:3, 3] - self.centre

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `trusted`, `confidence` and `reasons` stand at the top."""
        verdict = self.verdict.to_dict()
        return {
            "trusted": verdict.pop("trusted"),
            "confidence": verdict.pop("confidence"),
            "reasons": verdict.pop("reasons"),
            "search": self.search,
            "matrix": self.matrix.tolist(),
            "convention": "takes points of the fixed volume to points of the moving one, LPS, mm",
            "centre": self.centre.tolist(),
            "degrees": round(self.degrees, 3),
            "shift": self.shift.round(3).tolist(),
            "start": self.start.tolist(),
            "moved": round(self.moved, 3),
            "similarity": self.similarity,
            "verdict": verdict,
            "seconds": self.seconds,
        }


def align(
    fixed: Volume,
    moving: Volume,
    search: str = "rigid",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    start: np.ndarray | None = None,
) -> Alignment:
    """Where the moving (second) volume belongs on the fixed (first) one, and whether that can be trusted.

    Both are 3-D scalar volumes of any modality, spacing, orientation and field of view (at least four voxels along each
    axis); they stay as they are. `search`: "rigid" (within 30 degrees of the start, 40 mm about the header's place, the
    centres of the bodies and of the fields of view), "rigid-any" (all orientations; never trusted until a person has
    confirmed it), "near" (from the start alone), "as-is" (the start itself, judged). `start`: 4 x 4 rigid matrix, fixed
    to moving, LPS mm; None: the place that the headers say.
    `progress(fraction, step)` and `cancelled()` as in `fusion.fuse`.

    FusionError: "setting_unknown", "align_flat", "align_apart", "volume_constant", "volume_nan", "volume_colour", and
    those of `check_voxels` and `check_geometry`. Raises Cancelled.
    """
    if search not in SEARCHES:
        raise FusionError("setting_unknown", name="search", value=search, choices=", ".join(SEARCHES))
    base = np.eye(4) if start is None else np.array(start, float)
    if base.shape != (4, 4) or not np.isfinite(base).all() or not is_rigid(base, 1e-3):
        raise FusionError("transform_not_rigid", path="The start")
    base = nearest_rigid(base)
    for volume, name in ((fixed, "The first volume"), (moving, "The second volume")):
        check_voxels(volume, volume.name or name)
        check_geometry(volume.ijk_to_physical, volume.name or name, sheared=True)
    run = Run(progress, cancelled)
    made = [_made(run, fixed, 0.0, "The first volume"), _made(run, moving, 0.1, "The second volume")]
    comparison = Comparison(*made)
    # A verdict with points of its own: what misled the search is not to mislead it.
    second = Comparison(*made, seed=100)
    from_base = invert(base) if comparison.swapped else base

    with run.stage("search", 0.2, 0.5, Step("align_search")):
        found = run.aside(lambda tick: _search(comparison, from_base, search, tick))
    limit = turn_limit(from_base, MOST_TURN + 1) if search == "rigid" else no_limit
    first = 0 if search in ("rigid", "rigid-any") else 1
    for level in range(min(first, comparison.last), comparison.last + 1) if search != "as-is" else ():
        part = 0.5 + 0.3 * level / len(SPACINGS)
        with run.stage(
            "refine", part, part + 0.3 / len(SPACINGS), Step("align_refine", {"spacing": f"{SPACINGS[level]:g}"})
        ):
            found = run.aside(lambda tick, n=level, f=found: _refine(comparison, f, n, limit, tick))
    pose = found[0].matrix
    if search != "as-is":
        with run.stage("settle", 0.78, 0.8, Step("align_refine", {"spacing": f"{SPACINGS[comparison.last]:g}"})):
            at = STEPS[comparison.last], TOLERANCES[comparison.last]
            pose = run.aside(lambda _: comparison.settle(pose, *at, limit).matrix)
    scores = comparison.similarity(comparison.last).guarded(np.stack([from_base, pose]))
    if search != "as-is" and scores[1] <= 0:
        raise FusionError("align_apart", first=fixed.name or "The first volume", second=moving.name or "the second")
    matrix = invert(pose) if comparison.swapped else pose
    with run.stage("check", 0.8, 1.0, Step("align_check")):
        verdict = run.aside(lambda tick: judge(second, matrix, tick))
    moved = float(comparison.distance(from_base, pose))
    if search == "rigid-any":
        verdict.doubt(Notice("align_any"), 0.4)
    elif search == "rigid":
        doubt_motion(verdict, base, matrix)
    if moved > 2 * NEARBY and scores[1] < (1 + HARDLY_BETTER) * scores[0]:
        verdict.doubt(Notice("align_no_better", {"millimetres": round(moved)}), 0.3)
    centre = made[0][0].points(made[0][0].body).mean(0) if made[0][0].body.any() else comparison.centre
    similarity = {"start": round(float(scores[0]), 4), "result": round(float(scores[1]), 4)}
    seconds = {name: round(value, 3) for name, value in run.seconds.items()}
    run.last(1.0, Step("done"))
    return Alignment(matrix, centre, search, verdict, base, moved, similarity, seconds)


def _made(run: Run, volume: Volume, start: float, name: str) -> list[Level]:
    with run.stage("values", start, start + 0.1, Step("align_ready", {"name": volume.name or name})):
        return run.aside(lambda tick: levels(volume, tick))


def _search(comparison: Comparison, base: np.ndarray, search: str, tick: Tick) -> list[Found]:
    """The poses to refine at the coarsest level, the start among them."""
    given = Found(base, float(comparison.similarity(0).guarded(base)[0]))
    if search in ("near", "as-is"):
        return [given]
    poses = (all_turns if search == "rigid-any" else near_header)(comparison.sampled[0], comparison.other[0], base)
    count = KEPT[0] * (MORE if search == "rigid-any" else 1)
    return [given, *best_starts(comparison, poses, count, tick)[0]]


def _refine(
    comparison: Comparison, found: list[Found], level: int, limit: Callable[[np.ndarray], float], tick: Tick
) -> list[Found]:
    """Each of the poses refined at a level, the best first; so many as go on to the next level."""
    refined = []
    for n, one in enumerate(found):
        refined.append(comparison.refine(one.matrix, level, STEPS[level], TOLERANCES[level], limit))
        tick((n + 1) / len(found))
    kept = KEPT[min(level + 1, len(KEPT) - 1)]
    return distinct(comparison, refined, 4.0)[:kept]
