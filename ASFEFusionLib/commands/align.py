"""Find where the second volume belongs on the first; write an ITK transform and say whether it can be trusted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ..alignment import Alignment, align, landmarks, transforms
from ..files import read
from ..settings import remarks
from .terminal import (
    add_landmarks_argument,
    add_series_argument,
    check_plain_output,
    progress_bar,
    say_warnings,
    together,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fixed", type=Path, metavar="FIXED", help="volume file or DICOM folder")
    parser.add_argument("moving", type=Path, metavar="MOVING", help="the same, to be brought onto it")
    add_series_argument(parser, "--series-fixed", "FIXED")
    add_series_argument(parser, "--series-moving", "MOVING")
    parser.add_argument(
        "--output", type=Path, required=True, help=".tfm, .txt or .h5: takes fixed points to moving ones"
    )
    parser.add_argument("--report", type=Path, help="JSON file: transform, confidence, trusted or not, and why")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--any", action="store_true", help="search all orientations; the result is never trusted by itself"
    )
    how.add_argument("--near", action="store_true", help="refine the start only")
    how.add_argument("--as-is", action="store_true", help="take the start as it is, and judge it")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--start", type=Path, help="begin with this rigid transform (.tfm, .txt, .h5)")
    add_landmarks_argument(start)


def run(options: argparse.Namespace) -> None:
    inputs = [options.fixed, options.moving, *([options.start] if options.start else options.landmarks or [])]
    check_plain_output(options.output, inputs, transforms.KINDS)
    check_plain_output(options.report, inputs, (".json",))
    search = "rigid-any" if options.any else "near" if options.near else "as-is" if options.as_is else "rigid"
    start, residuals = _start(options)
    with progress_bar("Aligning") as progress:
        progress(0.0, f"Reading {options.fixed.name}")
        fixed = read(options.fixed, options.series_fixed)
        progress(0.05, f"Reading {options.moving.name}")
        moving = read(options.moving, options.series_moving)
        found = align(fixed, moving, search, lambda done, step: progress(0.1 + 0.85 * done, step), start=start)
        with together(options.output, options.report) as (output, report):
            transforms.write(found.matrix, found.centre, output)
            if report:
                values = found.to_dict() | {"fixed": str(options.fixed), "moving": str(options.moving)}
                values["landmark_residuals"] = residuals
                report.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        progress(1.0, "Done")
    say_warnings([*remarks(fixed), *remarks(moving)])
    say(options.output, found)


def _start(options: argparse.Namespace) -> tuple[np.ndarray | None, list[float] | None]:
    """The 4 x 4 to begin with, or None; and what is left of each pair of landmarks (mm)."""
    if options.start:
        return transforms.rigid_start(transforms.read(options.start), options.start), None
    if options.landmarks:
        matrix, left = landmarks.rigid(*(landmarks.read(path) for path in options.landmarks))
        say_warnings([doubt] if (doubt := landmarks.doubt(left)) else [])
        return matrix, left.round(3).tolist()
    return None, None


def say(output: Path, found: Alignment) -> None:
    """The result on stdout, its doubts on stderr."""
    say_warnings(found.verdict.reasons)
    word = "trusted" if found.verdict.trusted else "NOT TRUSTED"
    seconds = sum(found.seconds.values())
    x, y, z = found.shift
    print(
        f"{output}: turned {found.degrees:.1f} degrees, shifted {x:.1f}, {y:.1f}, {z:.1f} mm (LPS) in {seconds:.1f} s; "
        f"{word}, confidence {found.verdict.confidence:.2f}. Look at both volumes before you rely on it."
    )
