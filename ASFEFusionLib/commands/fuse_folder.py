"""Fuse same-named 2-D images or volumes of two folders."""

from __future__ import annotations

import argparse
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from ..errors import FusionError
from ..files import PICTURES, READABLE, WRITABLE, extension, read, write
from ..fusion import fuse
from ..volume import Volume
from .terminal import add_fusion_arguments, check_folder, fusion_settings, progress_bar, say_instead, say_warnings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="DIR_A", help="grey or RGB: an RGB image keeps its colour")
    parser.add_argument("second", type=Path, metavar="DIR_B", help="the same names")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="made if its parent folder exists")
    add_fusion_arguments(parser)


def run(options: argparse.Namespace) -> None:
    settings = replace(fusion_settings(options), allow_blank=True)
    names = matching_names(options.first, options.second)
    check_folder(options.output, [options.first, options.second])
    for name in names:
        if (options.output / output_name(name)).is_dir():
            raise FusionError("output_is_folder", path=options.output / output_name(name))
    # All results appear together: made in a folder beside, moved when the last one is whole.
    part = options.output.resolve().with_name(f".{uuid.uuid4().hex}")
    warnings: dict[str, int] = {}
    try:
        part.mkdir()
        with progress_bar("Fusing") as progress:
            for number, name in enumerate(names):
                fused, report = fuse(
                    _named(options.first / name),
                    _named(options.second / name),
                    settings,
                    lambda done, message, number=number, name=name: progress((number + done) / len(names), name),
                )
                target = part / output_name(name)
                with say_instead({str(target): options.output / target.name}):
                    write(fused, target)
                for warning in report.warnings:
                    warnings[str(warning)] = warnings.get(str(warning), 0) + 1
            progress(1.0, "Done")
        options.output.mkdir(exist_ok=True)
        for file in sorted(part.iterdir()):
            os.replace(file, options.output / file.name)
    except OSError as error:
        raise FusionError("output_failed", path=options.output) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    say_warnings(list(warnings))
    print(f"{options.output}: {len(names)} fused images on {report.device}. {report.note}")


def _is_image(path: Path) -> bool:
    return extension(path) in READABLE and not path.name.startswith(".") and path.is_file()


def _named(path: Path) -> Volume:
    """The file's volume under its folder's and file's name: in messages both files would have the same one."""
    volume = read(path)
    volume.name = f"{path.parent.name}/{path.name}"
    return volume


def matching_names(first: Path, second: Path) -> list[str]:
    """Image names that both folders hold, sorted.

    Raises FusionError if a name stands in one of them alone, or if two names would become one output.
    """
    found = []
    for folder in (first, second):
        if not folder.is_dir():
            raise FusionError("folder_missing", path=folder)
        found.append({p.name for p in folder.iterdir() if _is_image(p)})
    common, lonely = sorted(found[0] & found[1]), sorted(found[0] ^ found[1])
    if not common:
        raise FusionError("folder_unlike", first=first, second=second)
    if lonely:
        names = ", ".join(lonely[:5]) + (", ..." if len(lonely) > 5 else "")
        raise FusionError("folder_lonely", count=len(lonely), names=names)
    written: dict[str, str] = {}
    for name in common:
        other = written.setdefault(output_name(name), name)
        if other != name:
            raise FusionError("folder_collision", first=other, second=name, path=output_name(name))
    return common


def output_name(name: str) -> str:
    """The same name; as PNG or NRRD where its kind is read but not written."""
    ext = extension(name)
    if ext in WRITABLE:
        return name
    return name[: -len(ext)] + (".png" if ext in PICTURES else ".nrrd")
