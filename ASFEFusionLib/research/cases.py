"""What is judged: pairs of pictures or volumes, by name from folders, as slices of 8 bits; and what was fused of them.

Pictures are taken as they are. Volumes go through their windows and onto one grid as in a fusion, see `Reading`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import grids, intensity, planes, space
from ..alignment import transforms
from ..coverage import coverage
from ..errors import FusionError
from ..files import READABLE, extension, read
from ..fusion import SCALE
from ..settings import PLANES
from ..volume import Volume
from .data import luminance

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True)
class Reading:
    """How volumes become slices of 8 bits; pictures need none of it.

    Windows and modalities as in `FusionSettings`. `window_fused`: (low, high) of fused volumes; None: 0 to 255 of
    bytes, 0 to 1000 of whole numbers in that range (as `fuse` writes them), else least to greatest. `plane`: of the
    slices. `transform`: takes points of the first volume to points of the second.
    """

    window_first: str | tuple[float, float] | None = None
    window_second: str | tuple[float, float] | None = None
    window_fused: tuple[float, float] | None = None
    modality_first: str | None = None
    modality_second: str | None = None
    plane: str = PLANES[0]
    transform: sitk.Transform | None = None

    def __post_init__(self) -> None:
        """Raises FusionError "window_unknown", "window_empty"."""
        for name in ("window_first", "window_second", "window_fused"):
            object.__setattr__(self, name, intensity.check_window(getattr(self, name)))


@dataclass
class Case:
    """A pair of sources: `a`, `b` uint8 (n, h, w), `rgb` (n, h, w, 3) of a first picture in colour.

    A picture has one slice. Of a volume `grid` is where its voxels lie, `order` which of the grid's axes the slices'
    are, and `both` the numbers of the slices on which both sources show something: the others are no fusion.
    """

    name: str
    a: np.ndarray
    b: np.ndarray
    both: list[int]
    rgb: np.ndarray | None = None
    grid: grids.Grid | None = None
    order: tuple[int, int, int] = (0, 1, 2)

    @property
    def picture(self) -> bool:
        return self.grid is None

    def label(self, index: int) -> str:
        """What one of its slices is called."""
        return self.name if self.picture else f"{self.name} [{index}]"

    def sources(self, index: int) -> list[np.ndarray]:
        """Pictures of one slice: first (in colour if it has any) and second."""
        return [(self.a if self.rgb is None else self.rgb)[index], self.b[index]]


def match(places: list[Path], only: list[str] | None = None) -> list[tuple[str, list[Path]]]:
    """The images that belong together: (name without its kind, their files in the order of `places`), sorted by name.

    Files are one case of their own, whatever they are called; so is the folder of a DICOM series beside a file. Of
    folders all images are taken, or those that fit one of the patterns `only` (as in a shell; with or without kind).

    Raises FusionError: "file_missing", "folder_missing", "folder_empty", "folder_lacks", "names_alike".
    """
    if any(place.is_file() for place in places):
        for place in places:
            if not place.exists():
                raise FusionError("file_missing", path=place)
        return [(stem(places[0]), places)]
    found = [_images(place, only) for place in places]
    names = sorted(set().union(*found))
    for place, files in zip(places, found, strict=True):
        lacking = [name for name in names if name not in files]
        if lacking:
            listed = ", ".join(lacking[:10]) + (", ..." if len(lacking) > 10 else "")
            raise FusionError("folder_lacks", path=place, count=len(lacking), names=listed)
    return [(name, [files[name] for files in found]) for name in names]


def thinned(matched: list[tuple[str, list[Path]]], every: int) -> tuple[list[tuple[str, list[Path]]], int]:
    """Each `every`-th of matched pictures, or all volumes; and the step in which slices are judged: 1, or `every`."""
    if load(matched[0][1][0]).two_d:
        return matched[::every], 1
    return matched, every


def stem(path: Path) -> str:
    """The file's name without its kind."""
    return path.name[: len(path.name) - len(extension(path))]


def title(place: Path) -> str:
    """A short name of a file or folder."""
    return stem(place) if place.is_file() else place.resolve().name


def _images(folder: Path, only: list[str] | None) -> dict[str, Path]:
    if not folder.is_dir():
        raise FusionError("folder_missing", path=folder)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if extension(path) not in READABLE or path.name.startswith(".") or not path.is_file():
            continue
        name = stem(path)
        if only and not any(fnmatchcase(path.name, pattern) or fnmatchcase(name, pattern) for pattern in only):
            continue
        if name in found:
            raise FusionError("names_alike", first=found[name], second=path)
        found[name] = path
    if not found:
        raise FusionError("folder_empty", path=folder)
    return found


def load(path: Path) -> Volume:
    """The file's volume, with the path as its name: files of one name are told apart by it. Raises FusionError."""
    volume = read(path)
    volume.name = str(path)
    if volume.two_d and volume.voxels.dtype != np.uint8:
        raise FusionError("picture_bits", path=path, type=volume.voxels.dtype.name)
    return volume


def read_case(name: str, first: Volume, second: Volume, reading: Reading, like: Volume | None = None) -> Case:
    """The sources as slices; those of volumes on the grid of `like`, or of the first.

    Raises FusionError: "dimensions_differ", "sizes_differ", and of volumes "volume_colour", "volume_nan",
    "volume_constant", "window_units", "no_overlap".
    """
    if first.two_d != second.two_d:
        raise FusionError("dimensions_differ", first=first.name, second=second.name)
    if first.two_d:
        _check_sizes(first, second)
        return Case(name, _grey(first), _grey(second), [0], first.voxels if first.rgb else None)
    if like is not None and like.two_d:
        raise FusionError("dimensions_differ", first=first.name, second=like.name)
    grid = grids.grid_of(first if like is None else like)
    axis = planes.slice_axis(grid, reading.plane, (first, second))
    order = planes.order_of(grid, axis)
    a, b = _on_grid(first, second, reading, grids.turned(grid, order))
    both = [n for n in range(len(a)) if a[n].any() and b[n].any()]
    if not both:
        raise FusionError("no_overlap", first=first.name, second=second.name)
    return Case(name, a, b, both, grid=grid, order=order)


def _check_sizes(first: Volume, second: Volume) -> None:
    if first.size_ijk != second.size_ijk:
        sizes = (" x ".join(map(str, v.size_ijk[:2])) for v in (first, second))
        known = dict(zip(("size_first", "size_second"), sizes, strict=True))
        raise FusionError("sizes_differ", first=first.name, second=second.name, **known)


def _grey(picture: Volume) -> np.ndarray:
    return luminance(picture.voxels) if picture.rgb else picture.voxels


def _on_grid(first: Volume, second: Volume, reading: Reading, grid: grids.Grid) -> list[np.ndarray]:
    """Both volumes as uint8 (n, h, w) on the grid; black where they have no voxels."""
    bent = None
    if reading.transform is not None:
        matrix = transforms.linear(reading.transform)
        if matrix is None:
            bent = transforms.displacement(reading.transform, first)
        else:
            second = transforms.moved(second, matrix)
    named = (reading.modality_first, reading.modality_second)
    kinds = [name or intensity.guess_modality(volume) for name, volume in zip(named, (first, second), strict=True)]
    settings = (reading.window_first, reading.window_second)
    result = []
    for n, (volume, moved) in enumerate(((first, None), (second, bent))):
        if volume.rgb:
            raise FusionError("volume_colour", name=volume.name)
        volume = _finite(volume)  # noqa: PLW2901
        window = intensity.choose_window(volume, kinds[n], settings[n], kinds[1 - n])
        values = window.apply(space.resample(volume, grid, displacement=moved))
        values *= coverage(volume, grid, moved).slab(0, grid.size[2])
        result.append(np.rint(values * 255).astype(np.uint8))
    return result


def _finite(volume: Volume) -> Volume:
    """The volume with its least value for what is not finite. Raises FusionError "volume_nan", "volume_constant"."""
    finite = np.isfinite(volume.voxels)
    if not finite.any():
        raise FusionError("volume_nan", name=volume.name)
    least, most = volume.voxels[finite].min(), volume.voxels[finite].max()
    if least == most:
        raise FusionError("volume_constant", name=volume.name)
    return volume if finite.all() else replace(volume, voxels=np.where(finite, volume.voxels, least))


def read_fused(fused: Volume, case: Case, reading: Reading) -> tuple[np.ndarray, np.ndarray | None]:
    """What was fused of the case: uint8 (n, h, w) luminance as `case.a`, and RGB (n, h, w, 3) if it is in colour.

    Raises FusionError: "dimensions_differ", "sizes_differ", "grids_differ", "volume_nan", "volume_constant".
    """
    if fused.two_d != case.picture:
        raise FusionError("dimensions_differ", first=case.name, second=fused.name)
    if case.picture:
        like = Volume(case.a, np.eye(4), name=case.name, two_d=True)
        _check_sizes(like, fused)
    elif not grids.same_grid(grids.grid_of(fused), case.grid):
        raise FusionError("grids_differ", first=case.name, second=fused.name)
    if fused.rgb:
        rgb = grids.turned_voxels(fused.voxels, case.order)
        return luminance(rgb), rgb
    if case.picture:
        return fused.voxels, None
    fused = _finite(fused)
    values = _fused_window(fused, reading.window_fused).apply(fused.voxels.copy())
    return grids.turned_voxels(np.rint(values * 255).astype(np.uint8), case.order), None


def _fused_window(fused: Volume, given: tuple[float, float] | None) -> intensity.Window:
    if given is not None:
        return intensity.choose_window(fused, None, given)
    if fused.voxels.dtype == np.uint8:
        return intensity.EIGHT_BIT
    low, high = float(fused.voxels.min()), float(fused.voxels.max())
    if fused.voxels.dtype.kind in "iu" and low >= 0 and high <= SCALE:
        low, high = 0.0, float(SCALE)
    return intensity.Window(low, high, "of a fused volume")


def as_shown(fused: np.ndarray, a: np.ndarray, rgb: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The fused luminance as a picture file would hold it, and that picture if the first source has colour.

    uint8 (n, h, w) of `fused` and of the first source `a`, `rgb` (n, h, w, 3) its colours. The first one's chroma is
    put back and clipped to RGB; the luminance of that is what is scored: clipping takes light from bright colours, so
    that scoring the fused luminance itself would flatter.
    """
    if rgb is None:
        return fused, None
    change = fused.astype(np.int16) - a
    shown = np.clip(rgb.astype(np.int16) + change[..., None], 0, 255).astype(np.uint8)
    return luminance(shown), shown
