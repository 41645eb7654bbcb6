"""Fuse two registered volumes (files or DICOM folders) into one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ..errors import FusionError
from ..files import check_output, read, write
from ..fusion import SCALE, fuse, result_like
from ..intensity import Window
from ..preview import preview
from ..settings import FusionReport
from ..volume import Volume
from .terminal import (
    add_fusion_arguments,
    check_plain_output,
    fusion_settings,
    progress_bar,
    say_warnings,
    together,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A", help="volume file, DICOM folder, or 2-D picture")
    parser.add_argument("second", type=Path, metavar="B", help="the same, brought onto the grid")
    parser.add_argument("--output", type=Path, required=True, help=".nii.gz, .nrrd, .mha; .png for two pictures")
    parser.add_argument("--report", type=Path, help="JSON file of what was done")
    parser.add_argument("--preview", type=Path, help="PNG of first, second and fused in three planes")
    add_fusion_arguments(parser)


def run(options: argparse.Namespace) -> None:
    settings = fusion_settings(options)
    inputs = [options.first, options.second]
    check_output(options.output, inputs)
    check_plain_output(options.report, inputs, (".json",))
    check_plain_output(options.preview, inputs, (".png",))
    for other in (options.report, options.preview):
        if other is not None and other.resolve() == options.output.resolve():
            raise FusionError("outputs_same", path=other)
    with progress_bar("Fusing") as progress:
        progress(0.0, f"Reading {options.first.name}")
        first = read(options.first)
        progress(0.05, f"Reading {options.second.name}")
        second = read(options.second)
        check_output(options.output, inputs, like=result_like(first, second, settings))
        fused, report = fuse(first, second, settings, lambda done, message: progress(0.1 + 0.8 * done, message))
        with together(options.output, options.report, options.preview) as (output, report_part, preview_part):
            progress(0.9, f"Writing {options.output.name}")
            write(fused, output)
            if report_part:
                report_part.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
            if preview_part:
                write_preview(preview_part, first, second, fused, report)
        progress(1.0, "Done")
    say_warnings(report.warnings)
    seconds = sum(report.seconds.values())
    size = " x ".join(map(str, fused.size_ijk))
    print(f"{options.output}: {size} voxels in {seconds:.1f} s on {report.device}. {report.note}")


def write_preview(path: Path, first: Volume, second: Volume, fused: Volume, report: FusionReport) -> None:
    """The three-plane picture of a fusion, with the windows that it used."""
    top = 255 if fused.voxels.dtype == np.uint8 else SCALE
    windows = [Window(w["low"], w["high"], "") for w in (report.windows["first"], report.windows["second"])]
    columns = [
        (f"first: {first.name}", first, windows[0]),
        (f"second: {second.name}", second, windows[1]),
        ("fused, not for quantitation", fused, Window(0, top, "")),
    ]
    write(Volume(preview(columns)[None], np.eye(4), two_d=True), path)
