"""A pose from paired landmarks: the rigid transform that brings them together with the least squares.

Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Crystallographica A32 (1976).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from ..errors import FusionError
from ..settings import Notice

# Landmarks nearer to one line than this (mm, root mean square) do not say how the body is turned about it.
LEAST_SPREAD = 2.0
# More than this (mm, root mean square) is left where a pair is exchanged or a point misplaced.
MOST_APART = 5.0


def rigid(fixed: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 4 x 4 matrix that takes `fixed` (n, 3) to `moving` (n, 3), LPS mm, and what is left of each pair, mm.

    Points that are NaN were not placed; their pairs are left out, and have no rest.
    FusionError: "landmarks_unpaired", "landmarks_few" (fewer than three, or all near one line).
    """
    fixed, moving = (np.asarray(points, float).reshape(-1, 3) for points in (fixed, moving))
    if len(fixed) != len(moving):
        raise FusionError("landmarks_unpaired", first=len(fixed), second=len(moving))
    placed = np.isfinite(fixed).all(1) & np.isfinite(moving).all(1)
    fixed, moving = fixed[placed], moving[placed]
    count = len(fixed)
    if count < 3 or any(_spread(p) < LEAST_SPREAD for p in (fixed, moving)):
        raise FusionError("landmarks_few", count=count)
    here, there = fixed.mean(0), moving.mean(0)
    u, _, v = np.linalg.svd((fixed - here).T @ (moving - there))
    # Without the sign a plane of points could come out mirrored.
    turn = v.T @ np.diag([1, 1, np.sign(np.linalg.det(v.T @ u.T))]) @ u.T
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, there - turn @ here
    return matrix, np.linalg.norm(fixed @ turn.T + matrix[:3, 3] - moving, axis=1)


def doubt(left: np.ndarray) -> Notice | None:
    """What is to be said if the landmarks do not fit each other: `left` (n,) mm, of `rigid`."""
    apart = float(np.sqrt((np.asarray(left) ** 2).mean()))
    return Notice("landmarks_apart", {"millimetres": round(apart)}) if apart > MOST_APART else None


def _spread(points: np.ndarray) -> float:
    """Root mean square distance (mm) of the points from the line that fits them best."""
    values = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return float(np.sqrt((values[1:] ** 2).sum() / len(points)))


def read(path: Path | str) -> np.ndarray:
    """Points (n, 3), LPS mm, of a Slicer markups file (.mrk.json or .fcsv), in their order; NaN for those not placed.

    FusionError: "file_missing", "landmarks_unreadable".
    """
    path = Path(path)
    if not path.is_file():
        raise FusionError("file_missing", path=path)
    try:
        text = path.read_text(encoding="utf-8")
        points, frame = _json(text) if path.name.endswith(".json") else _fcsv(text)
        points = np.array(points, float)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise FusionError("landmarks_unreadable", path=path) from error
    if np.isinf(points).any():
        raise FusionError("landmarks_unreadable", path=path)
    return points if frame in ("LPS", "1") else points * [-1, -1, 1]


def _json(text: str) -> tuple[list, str]:
    markup = json.loads(text)["markups"][0]
    nowhere = [float("nan")] * 3
    placed = [
        p["position"] if p.get("positionStatus", "defined") == "defined" else nowhere for p in markup["controlPoints"]
    ]
    return placed, str(markup.get("coordinateSystem", "LPS"))


def _fcsv(text: str) -> tuple[list, str]:
    frame = "RAS"  # what Slicer's older files mean where they say nothing
    lines = text.splitlines()
    for line in lines:
        if line.startswith("#") and "CoordinateSystem" in line:
            frame = line.split("=")[1].strip()
    rows = csv.reader(line for line in lines if line.strip() and not line.startswith("#"))
    return [[float(v) for v in row[1:4]] for row in rows], frame.replace("0", "RAS")
