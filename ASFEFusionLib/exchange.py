"""Volumes, choices and results between two processes, through the files of a folder; voxels are memory-mapped.

A job: job.json, and one .npy file an array. A result: result.json, and its voxels. The JSON comes last and whole: where
it is, all the rest is.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FusionError
from .settings import FusionReport, FusionSettings
from .space import Displacement
from .volume import Volume

# Exchange folders begin so; no other folder is ever removed.
PREFIX = "ASFEFusion-"
# Bytes written at a time: some milliseconds, for a caller who has an event loop to serve in between.
PIECE = 8 << 20
# Smaller arrays (a matrix, a table of colours) stand in the JSON itself, digit for digit.
INLINE = 4096
# How the JSON marks an array: in a file of its own, or inline.
FILE, DTYPE = "array in file", "array of type"
# Windows does not let go of a file that is mapped, also when Slicer has crashed: there it is read instead.
MAPPED = None if os.name == "nt" else "r"


@dataclass
class Job:
    """What `fusion.fuse` is called with; or, with `fused` False, `alignment.place.look`, for the alignment alone."""

    first: Volume
    second: Volume
    settings: FusionSettings
    displacement: Displacement | None = None
    fused: bool = True


def make_folder(parent: str | os.PathLike) -> str:
    """A new exchange folder in `parent`. Raises FusionError "exchange_failed"."""
    try:
        return tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    except OSError as error:
        raise FusionError("exchange_failed", path=str(parent)) from error


def remove_folder(folder: str | os.PathLike, patience: float = 0.0) -> None:
    """Removes an exchange folder, or the folder of a run within one; what is not one stays.

    Tries for `patience` seconds (at least once) where another process still writes into it. Raises nothing.
    """
    folder = Path(folder)
    if not (folder.name.startswith(PREFIX) or folder.parent.name.startswith(PREFIX)):
        return
    until = time.monotonic() + patience
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() >= until:
            return
        time.sleep(0.02)


def send(job: Job, folder: str | os.PathLike) -> Iterator[int]:
    """Writes the job into `folder`, which is made, piece by piece; yields the bytes of each piece. Nothing is written
    until the first `next`, and the job is whole only after the last.

    Voxels may be views of any layout. Raises FusionError "exchange_failed" (disk full, not writable), "voxels_unusable"
    (Python objects); what is written by then stays, to be removed with the folder.
    """
    yield from _write(Path(folder), "job", {field.name: getattr(job, field.name) for field in fields(job)})


def receive(folder: str | os.PathLike) -> Job:
    """The job in `folder`; its voxels are read-only.

    Raises FusionError for settings that are refused; OSError, ValueError, KeyError or TypeError for damaged files.
    """
    parts = _read(Path(folder), "job")
    bent = parts["displacement"]
    return Job(
        Volume(**parts["first"]),
        Volume(**parts["second"]),
        FusionSettings(**parts["settings"]),
        None if bent is None else Displacement(**bent),
        parts["fused"],
    )


def send_result(folder: str | os.PathLike, volume: Volume | None, report: FusionReport) -> Iterator[int]:
    """Writes a result into `folder`, piece by piece as `send` does, and raises the same."""
    yield from _write(Path(folder), "result", {"volume": volume, "report": report.to_dict()})


def receive_result(folder: str | os.PathLike) -> tuple[Volume | None, dict[str, Any]]:
    """The fused volume (None: nothing was fused), its voxels read-only, and `FusionReport.to_dict()`.

    The files may be removed at once: the voxels stay. Raises OSError, ValueError, KeyError or TypeError for damaged
    files.
    """
    parts = _read(Path(folder), "result")
    return parts["volume"] and Volume(**parts["volume"]), parts["report"]


def plain(value: object) -> Any:
    """What JSON holds, of whatever it does not: numpy's numbers and arrays as Python's, all else as text."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def _write(folder: Path, name: str, parts: dict[str, object]) -> Iterator[int]:
    """`parts` are dataclasses, or values that JSON holds."""
    try:
        folder.mkdir(exist_ok=True)  # without its parents: an exchange folder that was removed stays so
        content = {}
        for key, part in parts.items():
            if not hasattr(part, "__dataclass_fields__"):
                content[key] = part
                continue
            content[key] = {}
            for field in fields(part):
                value = getattr(part, field.name)
                if isinstance(value, np.ndarray):
                    file = f"{name}.{key}.{field.name}.npy"
                    if value.dtype.hasobject:
                        raise FusionError("voxels_unusable", path=key, type=f"{value.dtype.name} {value.shape}")
                    if value.nbytes > INLINE:
                        yield from _write_array(folder / file, value)
                        value = {FILE: file}
                    else:
                        value = {DTYPE: value.dtype.str, "shape": value.shape, "values": value.ravel().tolist()}
                content[key][field.name] = value
        beside = folder / f"{name}.part"
        yield beside.write_text(json.dumps(content, default=plain), encoding="ascii")
        os.replace(beside, folder / f"{name}.json")
    except OSError as error:
        raise FusionError("exchange_failed", path=str(folder)) from error


def _write_array(path: Path, array: np.ndarray) -> Iterator[int]:
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with open(path, "wb", buffering=0) as file:  # not buffered: a full disk is told here and not on closing
        np.lib.format.write_array_header_1_0(file, header)
        for piece in _pieces(array):
            left = memoryview(piece.tobytes())
            while left:  # a write to a disk that is nearly full may be a short one
                left = left[file.write(left) :]
            yield piece.nbytes


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of at most `PIECE` bytes (but whole values), in C order."""
    if array.nbytes <= PIECE:
        yield array
        return
    rows = PIECE * len(array) // array.nbytes
    for start in range(0, len(array), max(1, rows)):
        yield from _pieces(array[start : start + rows]) if rows else _pieces(array[start])


def _read(folder: Path, name: str) -> dict[str, Any]:
    content = json.loads((folder / f"{name}.json").read_text(encoding="ascii"))
    for part in content.values():
        for key, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, dict) and FILE in value:
                part[key] = np.asarray(np.load(folder / Path(value[FILE]).name, mmap_mode=MAPPED))
            elif isinstance(value, dict) and DTYPE in value:
                part[key] = np.array(value["values"], np.dtype(value[DTYPE])).reshape(value["shape"])
    return content
