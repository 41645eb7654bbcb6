"""What several commands share: the progress bar, options of a fusion, outputs that appear together or not at all."""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import FusionError
from ..files import extension
from ..settings import DEVICES, GRIDS, MODALITIES, PLANES, FusionSettings


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, object], None]]:
    """A bar on stderr, as a `progress(fraction, step)`. Slicer's Python lacks tqdm: there it stays silent."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda fraction, step: None
        return
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
    with tqdm(total=1.0, desc=title, bar_format=form, file=sys.stderr, mininterval=0.1, miniters=0) as bar:

        def progress(fraction: float, step: object) -> None:
            bar.set_postfix_str(str(step), refresh=False)
            bar.update(max(0.0, fraction - bar.n))

        yield progress


def add_fusion_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that become `FusionSettings`."""
    parser.add_argument("--grid", choices=GRIDS, default="first", help="voxel grid of the result (default: first)")
    parser.add_argument(
        "--plane", choices=PLANES, default=PLANES[0], help="of the slices that the network sees (default: as suits)"
    )
    for place in ("first", "second"):
        parser.add_argument(
            f"--window-{place}",
            type=window,
            metavar="LOW,HIGH|PRESET",
            help="in the volume's units, e.g. -160,240, or a preset; default: by modality",
        )
        parser.add_argument(f"--modality-{place}", choices=MODALITIES, help="where the file does not say it")
    parser.add_argument("--colour", help="colour map for the functional volume: the result is RGB")
    parser.add_argument("--functional", choices=("first", "second"), help="which volume takes the colour map")
    add_engine_arguments(parser)


def add_series_argument(parser: argparse.ArgumentParser, option: str, letter: str) -> None:
    """The series to read of a DICOM folder with several."""
    parser.add_argument(option, metavar="N", help=f"number or UID of the series to read in the DICOM folder {letter}")


def add_landmarks_argument(parser: argparse._ActionsContainer) -> None:
    """Two files of markups points."""
    parser.add_argument(
        "--landmarks",
        type=Path,
        nargs=2,
        metavar=("FIRST", "SECOND"),
        help="begin with three or more pairs of markups points (.mrk.json, .fcsv), one file for each volume",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, weights and threads."""
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--weights", help="file of weights, or name of shipped ones")
    parser.add_argument("--threads", type=positive, help="CPU threads for the network")


def window(text: str) -> str | tuple[float, ...]:
    """LOW,HIGH as two numbers, anything else as the name of a preset (checked by the settings)."""
    parts = text.replace(":", ",").split(",")
    try:
        return tuple(float(part) for part in parts) if len(parts) == 2 else text
    except ValueError:
        return text


def fusion_settings(options: argparse.Namespace) -> FusionSettings:
    """Settings of the parsed options. Raises FusionError."""
    names = FusionSettings.__dataclass_fields__
    return FusionSettings(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def check_plain_output(path: Path | None, inputs: list[Path], kinds: tuple[str, ...]) -> None:
    """Raise FusionError unless the file `path` (no volume: a report or picture) can be written."""
    if path is None:
        return
    if path.is_dir():
        raise FusionError("output_is_folder", path=path)
    if extension(path) not in kinds:
        raise FusionError("output_extension", path=path, supported=", ".join(kinds))
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FusionError("output_folder_missing", path=path, folder=folder)
    if not os.access(folder, os.W_OK):
        raise FusionError("output_not_writable", path=path)
    if any(path.resolve() == given.resolve() for given in inputs):
        raise FusionError("output_is_input", path=path)


@contextmanager
def together(*paths: Path | None) -> Iterator[list[Path | None]]:
    """Stand-in names beside `paths`; when the block ends well all take their places, else none is left.

    Raises FusionError "outputs_same", "output_failed"; one from inside the block that names a stand-in names the path.
    """
    mark = uuid.uuid4().hex
    parts = [None if p is None else p.resolve().with_name(f".{mark}-{n}{extension(p)}") for n, p in enumerate(paths)]
    wanted = [p.resolve() for p in paths if p is not None]
    for path in wanted:
        if wanted.count(path) > 1:
            raise FusionError("outputs_same", path=path)
        if path.is_dir():
            raise FusionError("output_is_folder", path=path)
    try:
        with say_instead({str(part): path for part, path in zip(parts, paths, strict=True) if part}):
            yield parts
        for part, path in zip(parts, paths, strict=True):
            if part is not None:
                os.replace(part, path.resolve())
    except OSError as error:
        raise FusionError("output_failed", path=error.filename2 or error.filename or paths[0]) from error
    finally:
        for part in parts:
            if part is not None:
                part.unlink(missing_ok=True)


@contextmanager
def results(folder: Path, inputs: list[Path], names: tuple[str, ...]) -> Iterator[dict[str, Path]]:
    """Stand-ins for the files `names` in `folder`, by name; all take their places when the block ends well, else none.

    The folder is made if its parent exists, and goes again if nothing comes of it. Raises FusionError as `together`
    does, and "output_folder_missing", "folder_missing", "output_is_input", "output_not_writable".
    """
    check_folder(folder, inputs)
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        with together(*(folder / name for name in names)) as parts:
            yield dict(zip(names, parts, strict=True))
    finally:
        if made:
            with suppress(OSError):  # it holds the results, unless nothing came of it
                folder.rmdir()


def check_folder(output: Path, inputs: list[Path]) -> None:
    """Raise FusionError unless `output` is, or can become, a writable folder that is none of the inputs."""
    parent = output.resolve().parent
    if not parent.is_dir():
        raise FusionError("output_folder_missing", path=output, folder=parent)
    if output.exists() and not output.is_dir():
        raise FusionError("folder_missing", path=output)
    if any(output.resolve() == folder.resolve() for folder in inputs):
        raise FusionError("output_is_input", path=output)
    # The work is done beside the folder, so the parent must be writable too.
    if not os.access(parent, os.W_OK) or (output.is_dir() and not os.access(output, os.W_OK)):
        raise FusionError("output_not_writable", path=output)


@contextmanager
def say_instead(names: dict[str, object]) -> Iterator[None]:
    """A FusionError about a stand-in path becomes one about the path that the user knows."""
    try:
        yield
    except FusionError as error:
        known = names.get(str(error.facts.get("path")))
        if known is None:
            raise
        raise FusionError(error.code, **{**error.facts, "path": known}) from error


def join_negative(arguments: list[str]) -> list[str]:
    """`--window-first -160,240` as `--window-first=-160,240`: argparse takes a leading minus for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--window-") and "=" not in joined[-1] and argument[:1] == "-":
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def say_warnings(warnings: list) -> None:
    """Each warning on a line of stderr."""
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)
