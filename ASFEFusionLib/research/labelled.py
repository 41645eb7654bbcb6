"""A table of labelled image pairs, and the images it names.

A CSV file (UTF-8, with a header line) with the columns `patient`, `first`, `second`, `label`, in any order; others are
not looked at. A line is one pair: who it is of, the two picture files (relative to the table's folder, or whole paths),
and the class, any text. Pictures are of 8 bits (PNG and others that Pillow reads), all of one size; of coloured ones
the luminance counts. A file stands in the table once.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import FusionError
from .data import luminance

COLUMNS = ("patient", "first", "second", "label")
EIGHT_BITS = ("L", "LA", "P", "RGB", "RGBA")


@dataclass
class Labelled:
    """Pairs: `patients` and `names` (the first's file as written) a pair, `labels` numbers into `classes`, and the
    images `first`, `second`, uint8 (N, H, W)."""

    patients: list[str]
    names: list[str]
    labels: np.ndarray
    classes: list[str]
    first: np.ndarray
    second: np.ndarray


def read(path: Path, folds: int) -> Labelled:
    """The table and its images, fit to be split into `folds` by patient.

    Raises FusionError: "file_missing", "labels_unreadable", "labels_columns", "labels_gap", "labels_twice",
    "labels_image", "labels_one_class", "labels_few_patients", "labels_rare", and what `picture` and `same_size` refuse.
    """
    rows = _rows(path)
    counts = Counter(row["label"] for row in rows)
    if len(counts) < 2:
        raise FusionError("labels_one_class", path=path, label=next(iter(counts)))
    patients = {row["patient"] for row in rows}
    if len(patients) < folds:
        raise FusionError("labels_few_patients", path=path, count=len(patients), folds=folds)
    for label in counts:
        having = {row["patient"] for row in rows if row["label"] == label}
        if len(having) < 2:
            raise FusionError("labels_rare", path=path, label=label)
    classes = sorted(counts)
    files = [[path.parent / row[kind] for row in rows] for kind in ("first", "second")]
    for row, *pair in zip(rows, *files, strict=True):
        for file in pair:
            if not file.is_file():
                raise FusionError("labels_image", path=file, patient=row["patient"], line=row["line"], table=path)
    images = same_size([file for pair in zip(*files, strict=True) for file in pair])
    return Labelled(
        [row["patient"] for row in rows],
        [row["first"] for row in rows],
        np.array([classes.index(row["label"]) for row in rows]),
        classes,
        images[::2],
        images[1::2],
    )


def _rows(path: Path) -> list[dict[str, str]]:
    """The table's lines with their numbers, every needed cell filled and no file twice."""
    if not path.is_file():
        raise FusionError("file_missing", path=path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = [(name or "").strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FusionError("labels_unreadable", path=path) from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise FusionError("labels_columns", path=path, missing=", ".join(missing), columns=", ".join(COLUMNS))
    rows, seen = [], {}
    for line, cells in lines:
        row = {name: (cells[name] or "").strip() for name in COLUMNS} | {"line": str(line)}
        for name in COLUMNS:
            if not row[name]:
                raise FusionError("labels_gap", path=path, column=name, line=line)
        for kind in ("first", "second"):
            file = (path.parent / row[kind]).resolve()
            if file in seen:  # else an image could be learnt under one patient and judged under another
                raise FusionError("labels_twice", path=path, file=row[kind], line=seen[file], other=line)
            seen[file] = line
        rows.append(row)
    if not rows:
        raise FusionError("labels_unreadable", path=path)
    return rows


def picture(path: Path) -> np.ndarray:
    """A picture's luminance, uint8 (H, W). Raises FusionError "picture_bits", "file_unreadable"."""
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BITS:
                raise FusionError("picture_bits", path=path, type=image.mode)
            grey = image.mode == "L"
            values = np.asarray(image if grey else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FusionError("file_unreadable", path=path) from error
    return values.copy() if grey else luminance(values)


def same_size(files: Iterable[Path]) -> np.ndarray:
    """The pictures, uint8 (n, H, W). Raises FusionError "sizes_differ" and what `picture` refuses."""
    images, start = [], None
    for file in files:
        image = picture(file)
        start = start or (file, image.shape)
        if image.shape != start[1]:
            sizes = (f"{shape[1]} x {shape[0]}" for shape in (start[1], image.shape))
            facts = dict(zip(("size_first", "size_second"), sizes, strict=True))
            raise FusionError("sizes_differ", first=start[0], second=file, **facts)
        images.append(image)
    return np.stack(images)


def of_method(folder: Path, table: Labelled) -> np.ndarray:
    """The images that another method made of the pairs, uint8 (N, H, W), from `folder`.

    Each has the name of its pair's first picture: with its path as written in the table, or without, if no two are
    called alike; any extension serves that a .png in its place would. Raises FusionError "folder_missing",
    "folder_lacks", "sizes_differ" and what `picture` refuses.
    """
    if not folder.is_dir():
        raise FusionError("folder_missing", path=folder)
    bare = [Path(name).name for name in table.names]
    alike = len(set(bare)) < len(bare)
    files, lacking = [], []
    for name, last in zip(table.names, bare, strict=True):
        tries = [] if Path(name).is_absolute() else [folder / name]
        tries += [] if alike else [folder / last]
        tries += [file.with_suffix(".png") for file in tries]
        found = next((file for file in tries if file.is_file()), None)
        files.append(found)
        if found is None:
            lacking.append(name)
    if lacking:
        names = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise FusionError("folder_lacks", path=folder, count=len(lacking), names=names)
    images = same_size(files)
    if images.shape[1:] != table.first.shape[1:]:
        height, width = table.first.shape[1:]
        facts = {"size_first": f"{images.shape[2]} x {images.shape[1]}", "size_second": f"{width} x {height}"}
        raise FusionError("sizes_differ", first=files[0], second=table.names[0], **facts)
    return images
