"""Fuse CT + MR and PET + MR of the synthetic head, and make one picture of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .. import phantom
from ..engine import Engine
from ..errors import FusionError
from ..files import write
from ..fusion import fuse
from ..intensity import Window
from ..preview import preview
from ..settings import FusionSettings
from ..volume import Volume
from .terminal import add_engine_arguments, progress_bar, say_warnings, together

VOLUMES = ("phantom_CT", "phantom_MR", "phantom_PET", "fused_CT_MR", "fused_MR_PET")
OUTPUTS = (*(f"{name}.nrrd" for name in VOLUMES), "demo.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder, made if missing")
    add_engine_arguments(parser)


def run(options: argparse.Namespace) -> None:
    folder = options.output
    Engine(options.weights, options.device)  # so that bad options are heard of before the work
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FusionError("output_not_writable", path=folder) from error
    paths = [folder / name for name in OUTPUTS]
    with together(*paths) as parts:
        _make(options, dict(zip(OUTPUTS, parts, strict=True)))
    print(f"Volumes and the picture are in {folder}; look at {folder / 'demo.png'}.")


def _make(options: argparse.Namespace, files: dict[str, Path]) -> None:
    """Writes all `OUTPUTS` under the names given for them."""
    common = {"device": options.device, "weights": options.weights, "threads": options.threads}
    with progress_bar("Making the head") as progress:
        volumes = {}
        for n, modality in enumerate(("CT", "MR", "PET")):
            progress(n / 3, modality)
            volumes[modality] = phantom.head(modality)
            write(volumes[modality], files[f"phantom_{modality}.nrrd"])
        progress(1.0, "Done")
    fused = {}
    for first, second, settings in (
        ("CT", "MR", FusionSettings(**common)),
        ("MR", "PET", FusionSettings(colour="hot", **common)),
    ):
        with progress_bar(f"Fusing {first} + {second}") as progress:
            volume, report = fuse(volumes[first], volumes[second], settings, progress)
        write(volume, files[f"fused_{first}_{second}.nrrd"])
        say_warnings(report.warnings)
        fused[first, second] = volume, report
    write(Volume(_picture(volumes, fused)[None], np.eye(4), two_d=True), files["demo.png"])


def _picture(volumes: dict[str, Volume], fused: dict) -> np.ndarray:
    """CT, MR, fused, PET, fused in three planes through the lesion."""

    def window(pair: tuple[str, str], place: str) -> Window:
        used = fused[pair][1].windows[place]
        return Window(used["low"], used["high"], "")

    columns = [
        ("CT", volumes["CT"], window(("CT", "MR"), "first")),
        ("MR", volumes["MR"], window(("CT", "MR"), "second")),
        ("CT + MR fused", fused["CT", "MR"][0], Window(0, 1000, "")),
        ("PET", volumes["PET"], window(("MR", "PET"), "second")),
        ("MR + PET fused", fused["MR", "PET"][0], Window(0, 255, "")),
    ]
    return preview(columns, grid=volumes["CT"], at=np.array(phantom.LESION_CENTRE))
