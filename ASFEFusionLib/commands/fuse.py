"""Fuse two registered volumes (files or DICOM folders) into one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ..alignment import landmarks, transforms
from ..errors import FusionError
from ..files import check_output, read, write
from ..fusion import SCALE, fuse, large, result_like
from ..grids import grid_of
from ..intensity import Window
from ..preview import preview
from ..settings import ALIGNMENTS, AS_LOADED, FusionReport, Notice
from ..space import Displacement, resample
from ..volume import Volume
from .terminal import (
    add_fusion_arguments,
    add_landmarks_argument,
    add_series_argument,
    check_plain_output,
    fusion_settings,
    progress_bar,
    say_warnings,
    together,
)

# LPS.
RIGHT = np.array([-1.0, 0.0, 0.0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A", help="volume file, DICOM folder, or 2-D picture")
    parser.add_argument("second", type=Path, metavar="B", help="the same, brought onto the grid")
    for place, letter in (("first", "A"), ("second", "B")):
        add_series_argument(parser, f"--series-{place}", letter)
    parser.add_argument("--output", type=Path, required=True, help=".nii.gz, .nrrd, .mha; .png for two pictures")
    parser.add_argument("--report", type=Path, help="JSON file of what was done")
    parser.add_argument("--preview", type=Path, help="PNG of first, second and fused in three planes")
    parser.add_argument(
        "--align",
        choices=ALIGNMENTS,
        default=AS_LOADED,
        help="search the rigid pose of B on A: within 30 degrees of how it lies, in all orientations, or close by",
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--transform",
        type=Path,
        help="ITK transform of any kind (.tfm, .txt, .h5) that takes points of A to points of B: used, or begun with",
    )
    add_landmarks_argument(given)
    parser.add_argument("--save-transform", type=Path, metavar="FILE", help="the pose that was used, for A to B")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not judge how the two lie")
    add_fusion_arguments(parser)


def run(options: argparse.Namespace) -> None:
    settings = fusion_settings(options)
    given = [options.transform] if options.transform else options.landmarks or []
    inputs = [options.first, options.second, *given]
    check_output(options.output, inputs)
    check_plain_output(options.save_transform, inputs, transforms.KINDS)
    check_plain_output(options.report, inputs, (".json",))
    check_plain_output(options.preview, inputs, (".png",))
    start, doubts = _given(options)
    for other in (options.report, options.preview):
        if other is not None and other.resolve() == options.output.resolve():
            raise FusionError("outputs_same", path=other)
    with progress_bar("Fusing") as progress:
        progress(0.0, f"Reading {options.first.name}")
        first = read(options.first, options.series_first)
        progress(0.05, f"Reading {options.second.name}")
        second = read(options.second, options.series_second)
        if first.two_d and (start is not None or options.save_transform):
            raise FusionError("picture_transform", name=first.name)
        second, displacement, before = _placed(first, second, start)
        if displacement is not None and options.save_transform:
            raise FusionError("align_bent", name=second.name)
        like = result_like(first, second, settings)
        check_output(options.output, inputs, like=like)
        said = large(grid_of(like))
        say_warnings(said)  # before the memory is taken, and not once more at the end
        fused, report = fuse(
            first,
            second,
            settings,
            lambda done, message: progress(0.1 + 0.8 * done, message),
            displacement=displacement,
        )
        found = np.eye(4) if report.alignment is None else np.array(report.alignment["matrix"])
        second = transforms.moved(second, found)
        outputs = (options.output, options.report, options.preview, options.save_transform)
        with together(*outputs) as (output, report_part, preview_part, transform_part):
            progress(0.9, f"Writing {options.output.name}")
            write(fused, output)
            if report_part:
                # Of the file itself, given transform and search together.
                whole = None if displacement is not None else (before @ found).tolist()
                values = report.to_dict() | {"transform_first_to_second": whole}
                report_part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            if preview_part:
                right = np.linalg.inv(before @ found)[:3, :3] @ RIGHT
                shown = first, _bent(second, displacement, fused), fused
                write_preview(preview_part, shown, report, right)
            if transform_part:
                transforms.write(before @ found, first.ijk_to_physical[:3] @ _middle(first), transform_part)
        progress(1.0, "Done")
    say_warnings(doubts + [warning for warning in report.warnings if warning not in said])
    seconds = sum(report.seconds.values())
    size = " x ".join(map(str, fused.size_ijk))
    say_alignment(report)
    print(f"{options.output}: {size} voxels in {seconds:.1f} s on {report.device}. {report.note}")


def _given(options: argparse.Namespace) -> tuple[object, list[Notice]]:
    """The transform or 4 x 4 matrix that the options name, which takes points of A to those of B, or None; doubts."""
    if options.transform:
        return transforms.read(options.transform), []
    if options.landmarks:
        matrix, left = landmarks.rigid(*(landmarks.read(path) for path in options.landmarks))
        doubt = landmarks.doubt(left)
        return matrix, [doubt] if doubt else []
    return None, []


def _placed(first: Volume, second: Volume, start: object) -> tuple[Volume, Displacement | None, np.ndarray]:
    """The second volume as the given transform lays it; the displacement, if that bends; and its matrix, if not."""
    if start is None or isinstance(start, np.ndarray):
        matrix = np.eye(4) if start is None else start
    else:
        matrix = transforms.linear(start)
        if matrix is None:
            return second, transforms.displacement(start, first), np.eye(4)
    return transforms.moved(second, matrix), None, matrix


def _bent(second: Volume, displacement: Displacement | None, fused: Volume) -> Volume:
    """The second volume as a picture of the result must show it."""
    if displacement is None:
        return second
    grid = grid_of(fused)
    return Volume(resample(second, grid, displacement=displacement), grid.matrix, name=second.name)


def _middle(volume: Volume) -> np.ndarray:
    return np.array([*((n - 1) / 2 for n in volume.size_ijk), 1.0])


def say_alignment(report: FusionReport) -> None:
    """How far the second volume was moved, and whether its place is to be trusted."""
    found = report.alignment
    if found is None:
        return
    word = "trusted" if found["trusted"] else "NOT TRUSTED"
    if found["search"] == AS_LOADED:
        print(f"Alignment, not searched: {word}, confidence {found['confidence']:.2f}.")
        return
    x, y, z = found["shift"]
    print(
        f"Aligned: turned {found['degrees']:.1f} degrees, shifted {x:.1f}, {y:.1f}, {z:.1f} mm (LPS); {word}, "
        f"confidence {found['confidence']:.2f}. Look at both volumes before you rely on it."
    )


def write_preview(
    path: Path, volumes: tuple[Volume, Volume, Volume], report: FusionReport, right: np.ndarray = RIGHT
) -> None:
    """The three-plane picture of a fusion (first, second, fused), with the windows that it used.

    `right`: where the second volume's own header says that the patient's right is, after it was laid on the first.
    """
    first, second, fused = volumes
    top = 255 if fused.voxels.dtype == np.uint8 else SCALE
    windows = [Window(w["low"], w["high"], "") for w in (report.windows["first"], report.windows["second"])]
    columns = [
        (f"first: {first.name}", first, windows[0]),
        (f"second: {second.name}", second, windows[1]),
        ("fused, not for quantitation", fused, Window(0, top, "")),
    ]
    write(Volume(preview(columns, rights=[RIGHT, right, RIGHT])[None], np.eye(4), two_d=True), path)
