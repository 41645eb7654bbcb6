"""The series of a DICOM folder as a volume: whole, in its place and in its units, or refused with a sentence.

What a series is, where its slices lie and what they show is read from their tags; pixels come through SimpleITK.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.integrity import check_whole
from ASFEFusionLib.volume import Volume, from_sitk, read_header

if TYPE_CHECKING:
    import SimpleITK as sitk

MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET", "NM": "SPECT"}
PET_UNITS = {"GML": "SUV", "BQML": "Bq/mL"}
TYPE, SOP_CLASS, MODALITY, DESCRIPTION = "0008|0008", "0008|0016", "0008|0060", "0008|103e"
NUMBER, POSITION, ORIENTATION = "0020|0011", "0020|0032", "0020|0037"
SAMPLES, FRAMES, UNITS = "0028|0002", "0028|0008", "0054|1001"
TAGS = (TYPE, SOP_CLASS, MODALITY, DESCRIPTION, NUMBER, POSITION, ORIENTATION, SAMPLES, FRAMES, UNITS)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
TURN_TOLERANCE = 1e-3  # between the orientations of two slices, each a number of six
STEP_TOLERANCE = 0.01  # between the distances of slices: of the distance, and mm
SAME_PLACE = 1e-4  # mm along the normal
TILT_TOLERANCE = 0.1  # mm, over the stack: less is rounding
# A tilted gantry shifts each slice by as much, to this; what is shifted otherwise is no tilt.
LINE_TOLERANCE = 0.5  # mm
STEEPEST = 45.0  # degrees


@dataclass
class Series:
    """One series of a folder: its UID, files, and the tags (of `TAGS`) and size of its first image."""

    uid: str
    files: list[str]
    tags: dict[str, str]

    @property
    def number(self) -> str:
        return self.tags.get(NUMBER, "")

    @property
    def frames(self) -> int:
        return _whole(self.tags.get(FRAMES))

    @property
    def capture(self) -> bool:
        """A screenshot, or pictures in colour: no values of a scan, and seldom a place."""
        placed = POSITION in self.tags and ORIENTATION in self.tags
        screen = self.tags.get(SOP_CLASS, "").startswith(SECONDARY_CAPTURE) and self.frames == 1 and not placed
        return screen or _whole(self.tags.get(SAMPLES)) > 1

    def __str__(self) -> str:
        kind = MODALITIES.get(self.tags.get(MODALITY), self.tags.get(MODALITY) or "unknown modality")
        slices = len(self.files) * self.frames
        name = self.tags.get(DESCRIPTION)
        facts = [kind, *([f'"{name}"'] if name else []), f"{slices} slice{'s' * (slices != 1)}"]
        return f"{self.number or self.uid} ({', '.join(facts)})"


def read(folder: Path, series: int | str | None = None) -> Volume:
    """The one series of images in the folder, or the one of that number or UID.

    A stack scanned with a tilted gantry comes on a straight grid, its slices shifted in their planes; its `notices` say
    so. FusionError: "dicom_none", "dicom_several", "dicom_series", "dicom_capture", "dicom_mosaic", "dicom_frames",
    "dicom_unlike", "file_cut", and those of places: "dicom_no_position", "dicom_turned", "dicom_times",
    "dicom_doubled", "dicom_uneven", "dicom_tilted".
    """
    import SimpleITK as sitk

    chosen, several = _choose(folder, series)
    if chosen.capture:
        raise FusionError("dicom_capture", path=folder)
    headers = [read_header(file) for file in chosen.files]
    tags = [_tags(header) for header in headers]
    if any("MOSAIC" in t.get(TYPE, "").upper().split("\\") for t in tags):
        raise FusionError("dicom_mosaic", path=folder)
    if any(_whole(t.get(FRAMES)) > 1 for t in tags):
        raise FusionError("dicom_frames", path=folder)
    places, axes = _places(folder, tags)
    if len({(h.GetSize(), *(f"{step:.5g}" for step in h.GetSpacing()[:2])) for h in headers}) > 1:
        raise FusionError("dicom_unlike", path=folder)
    normal = np.cross(*axes)
    normal /= np.linalg.norm(normal)
    order = np.argsort((places - places[0]) @ normal, kind="stable")
    places = places[order]
    step, aside = _steps(folder, places, normal)
    names = [chosen.files[n] for n in order]
    for file in names:
        check_whole(Path(file), ".dcm")

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    if len({header.GetPixelID() for header in headers}) > 1:
        # Slopes of their own per slice: the reader would take the type of the first slice and round the others to it.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    volume = from_sitk(reader.Execute(), name=str(folder), two_d=False)
    volume.name = folder.resolve().name
    if several:
        volume.name += f", {chosen.tags.get(DESCRIPTION) or chosen.number or chosen.uid}"
    if step is not None:  # true by the tags themselves, whatever ITK makes of them (5.4: the same)
        volume.ijk_to_physical[:3, 2] = step * normal
    if aside is not None:
        _straighten(volume, axes, places[0], aside, headers[0].GetSpacing())
    volume.modality = MODALITIES.get(chosen.tags.get(MODALITY))
    volume.units = {"CT": "HU", "PET": PET_UNITS.get(chosen.tags.get(UNITS))}.get(volume.modality)
    return volume


def list_series(folder: Path) -> list[Series]:
    """All series of images in the folder (not below it), by number; reports, structure sets and the like are none.

    Raises FusionError "file_cut" for a damaged file, which GDCM passes over in silence.
    """
    import SimpleITK as sitk

    found, listed = [], set()
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        listed.update(Path(file).name for file in files)
        with suppress(RuntimeError):
            found.append(Series(uid, list(files), _tags(read_header(files[0]))))
    for file in folder.iterdir():
        if file.is_file() and file.name not in listed and file.name.upper() != "DICOMDIR":
            with file.open("rb") as opened:
                if opened.read(132)[128:] == b"DICM":
                    raise FusionError("file_cut", path=file)
    return sorted(found, key=lambda s: (int(s.number) if s.number.lstrip("-").isdigit() else 0, s.uid))


def _choose(folder: Path, wanted: int | str | None) -> tuple[Series, bool]:
    """The series to read, and whether there are others."""
    found = list_series(folder)
    if not found:
        raise FusionError("dicom_none", path=folder)
    if wanted is None:
        # Screenshots beside a scan are not what is meant; alone, they are refused as what they are.
        scans = [one for one in found if not one.capture] or found[:1]
        if len(scans) > 1:
            raise FusionError("dicom_several", path=folder, count=len(scans), series="; ".join(map(str, scans)))
        return scans[0], len(found) > 1
    fitting = [one for one in found if str(wanted).strip() in (one.uid, one.tags.get(NUMBER))]
    if len(fitting) != 1:
        # Where numbers are given twice, the UIDs tell them apart.
        names = [f"{one} {one.uid}" if len(fitting) > 1 else str(one) for one in fitting or found]
        raise FusionError(
            "dicom_series", path=folder, wanted=wanted, count=len(fitting) or "no", series="; ".join(names)
        )
    return fitting[0], len(found) > 1


def _tags(header: sitk.ImageFileReader) -> dict[str, str]:
    found = {key: header.GetMetaData(key).strip(" \0") for key in TAGS if header.HasMetaDataKey(key)}
    return {key: value for key, value in found.items() if value}


def _whole(text: str | None) -> int:
    """The number that a tag holds; 1 if it is left out, or none."""
    return int(text) if text and text.isdigit() else 1


def _places(folder: Path, tags: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) LPS mm of each slice's first pixel; (2, 3) unit vectors along rows and columns, the same for all.

    FusionError: "dicom_no_position", "dicom_turned".
    """
    try:
        places = np.array([t[POSITION].split("\\") for t in tags], float).reshape(-1, 3)
        axes = np.array([t[ORIENTATION].split("\\") for t in tags], float).reshape(-1, 2, 3)
    except (KeyError, ValueError) as error:
        raise FusionError("dicom_no_position", path=folder) from error
    kinds: list[np.ndarray] = []
    for one in axes:
        if all(np.abs(one - other).max() > TURN_TOLERANCE for other in kinds):
            kinds.append(one)
    if len(kinds) > 1:
        raise FusionError("dicom_turned", path=folder, count=len(kinds))
    if not np.linalg.norm(np.cross(*axes[0])) > 0:
        raise FusionError("dicom_no_position", path=folder)
    return places, axes[0]


def _steps(folder: Path, places: np.ndarray, normal: np.ndarray) -> tuple[float | None, np.ndarray | None]:
    """mm from each slice to the next along the normal (None for a single slice); and how far each is shifted in its
    plane against the first, (n, 3) mm, if it was scanned with a tilted gantry, else None.

    `places`: (n, 3), in the order along the normal. FusionError: "dicom_times", "dicom_doubled", "dicom_uneven",
    "dicom_tilted".
    """
    count = len(places)
    if count == 1:
        return None, None
    along = (places - places[0]) @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps[gaps > SAME_PLACE])) if gaps.max() > SAME_PLACE else 0.0
    least = min(STEP_TOLERANCE, usual / 10)
    levels = np.r_[0, np.cumsum(gaps > least)]  # slices at one place are one level
    each = np.bincount(levels)
    if each[0] > 1 and (each == each[0]).all():
        raise FusionError("dicom_times", path=folder, count=int(each[0]))
    if each.max() > 1:
        level = int(each.argmax())
        raise FusionError("dicom_doubled", path=folder, number=level + 1, count=len(each), times=int(each[level]))
    step = float(along[-1]) / (count - 1)
    tolerance = max(STEP_TOLERANCE * usual, least)
    # Against both: the mean, which is what the result has, and the usual one, which tells where it goes wrong.
    if np.abs(gaps - step).max() > tolerance:
        worst = int(np.abs(gaps - usual).round(3).argmax())
        facts = {"number": worst + 1, "next": worst + 2, "count": count}
        raise FusionError("dicom_uneven", path=folder, **facts, distance=f"{gaps[worst]:.4g}", usual=f"{usual:.4g}")
    aside = places - places[0] - along[:, None] * normal
    if np.linalg.norm(aside, axis=1).max() <= TILT_TOLERANCE:
        return step, None
    off = np.linalg.norm(aside - np.linspace(0, 1, count)[:, None] * aside[-1], axis=1)
    if off.max() > LINE_TOLERANCE or np.linalg.norm(aside[-1]) > np.tan(np.radians(STEEPEST)) * along[-1]:
        worst = int(off.argmax())
        millimetres = f"{max(off[worst], np.linalg.norm(aside[worst])):.4g}"
        raise FusionError("dicom_tilted", path=folder, number=worst + 1, count=count, millimetres=millimetres)
    return step, aside


def _straighten(
    volume: Volume, axes: np.ndarray, start: np.ndarray, aside: np.ndarray, spacing: tuple[float, ...]
) -> None:
    """Shifts each slice in its plane by `aside` (n, 3) mm, so that the volume's k runs along the normal.

    The pixels' spacing stays; the field of view grows so that nothing is cut. What no slice reaches has the least value
    of the volume. In between pixels: linear.
    """
    units = axes / np.linalg.norm(axes, axis=1)[:, None]
    shift = aside @ units.T / np.array(spacing[:2])  # pixels along i, j
    low, high = np.floor(shift.min(0) + 1e-6), np.ceil(shift.max(0) - 1e-6)
    count, height, width = volume.voxels.shape
    steep = np.arctan2(np.linalg.norm(aside[-1]), (count - 1) * np.linalg.norm(volume.ijk_to_physical[:3, 2]))
    wide, tall = (high - low).astype(int)
    voxels = np.full((count, height + tall, width + wide), volume.voxels.min(), volume.voxels.dtype)
    for source, target, (i, j) in zip(volume.voxels, voxels, np.maximum(shift - low, 0), strict=True):
        start_i, moved = _shifted(source, i, 1)
        start_j, moved = _shifted(moved, j, 0)
        if voxels.dtype.kind != "f":
            moved = np.rint(moved)
        target[start_j : start_j + height, start_i : start_i + width] = moved
    volume.voxels = voxels
    volume.ijk_to_physical[:3, :2] = (units * np.array(spacing[:2])[:, None]).T
    volume.ijk_to_physical[:3, 3] = start + volume.ijk_to_physical[:3, :2] @ low
    volume.notices.append(["dicom_straightened", {"degrees": round(float(np.degrees(steep)), 1)}])


def _shifted(picture: np.ndarray, by: float, axis: int) -> tuple[int, np.ndarray]:
    """Where it begins, in whole pixels, and the picture moved by `by` >= 0 pixels along the axis, as many as before."""
    whole = int(by + 1e-6)
    part = np.float32(max(0.0, by - whole))
    if part < 1e-6:
        return whole, picture
    padded = np.pad(picture.astype(np.float32), [(1, 1) if n == axis else (0, 0) for n in range(2)], mode="edge")
    size = picture.shape[axis]
    late = int(part > 0.5)  # the new pixels reach beyond the old ones by less than half a pixel at both ends
    here = np.take(padded, np.arange(size) + late + 1, axis)
    before = np.take(padded, np.arange(size) + late, axis)
    return whole + late, (1 - part) * here + part * before
