"""Volumes from files and into files: NIfTI, NRRD, MetaImage, DICOM series (reading), pictures; all through SimpleITK.

SimpleITK comes in when something is read or written, not with the import of this module.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ASFEFusionLib import dicom
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.integrity import check_nifti, check_whole
from ASFEFusionLib.volume import (
    Volume,
    check_geometry,
    check_voxels,
    from_sitk,
    image_matrix,
    native,
    read_header,
    to_sitk,
)

if TYPE_CHECKING:
    import SimpleITK as sitk

NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
READABLE = (*NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd", *PICTURES)
# No .jpg, which loses; no .bmp, whose grey comes back as RGB and whose cut files ITK does not notice.
TIFF_TYPES = ("uint8", "uint16", "int16", "float32")
WRITABLE_PICTURES = {".png": ("uint8", "uint16"), ".tif": TIFF_TYPES, ".tiff": TIFF_TYPES}
WRITABLE = (*NIFTI, ".nrrd", ".mha", *WRITABLE_PICTURES)
TWO_FILES = {".nhdr": ".nrrd", ".mhd": ".mha"}

WRITTEN_TOLERANCE = 0.05  # mm; a geometry that a format cannot hold is off by far more, rounding by far less


def extension(path: str | os.PathLike) -> str:
    """The extension in lower case with its dot; ".nii.gz" counts as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def read(path: str | os.PathLike, series: int | str | None = None) -> Volume:
    """Read a volume file, a 2-D picture, or a DICOM folder: its one series, or the `series` of that number or UID.

    Voxels keep their type, but 64-bit ones become float32. A picture file (PNG, JPEG, BMP, TIFF) becomes (1, j, i) or
    (1, j, i, 3) with `two_d` True, alpha dropped, on the identity matrix: its dots per inch are not millimetres, and
    two pictures of one size shall lie on each other. An image of two dimensions in another format is `two_d` too; one
    of three dimensions with one slice is not. `modality` and `units` come from DICOM alone. `name` is the name of the
    file or folder without its extension.

    FusionError: a missing, empty, cut, damaged or unsupported file; what `volume.from_sitk` and `dicom.read` refuse: a
    folder with no series or several, with slices missing, unevenly spaced or of several volumes; "series_file".
    """
    path = Path(path)
    if not path.exists():
        raise FusionError("file_missing", path=path)
    try:
        with _quiet():
            if path.is_dir():
                return dicom.read(path, series)
            if series is not None:
                raise FusionError("series_file", path=path)
            return _read_file(path)
    except (RuntimeError, OSError) as error:
        raise FusionError("file_unreadable", path=path) from error


def write(volume: Volume, path: str | os.PathLike) -> None:
    """Write the volume as `path` says by its extension, compressed where the format can be (.nii.gz, .nrrd, .mha).

    The file is made under another name beside the target and takes its place when whole: a failure or interruption
    leaves nothing new and an old file as it was. A `two_d` volume that lies in the plane of x and y is written with two
    dimensions. A picture (.png, .tif) holds one slice without its place.

    The place survives to 1e-12 mm in NRRD and MetaImage. NIfTI holds it in float32: corner voxels move by some 3e-5 mm,
    under 1e-4 mm for fields of view to 500 mm within 1 m of the origin; ITK writes no finer form (NIfTI-2) of it.

    FusionError: what `check_output` refuses; "output_picture_slices", "output_type", "output_geometry" (the format
    cannot hold this volume), "voxels_unusable", "geometry_sheared", "geometry_unusable", "output_failed".
    """
    import SimpleITK as sitk

    check_output(path, like=volume)
    path = Path(path)
    ext = extension(path)
    check_voxels(volume, path)
    if ext in WRITABLE_PICTURES:
        _check_picture_type(volume, path, ext)
        image = sitk.GetImageFromArray(native(volume.voxels[0]), isVector=volume.rgb)
    else:
        image = to_sitk(volume)
        matrix = volume.ijk_to_physical
        if volume.two_d and not (matrix[2, :2].any() or matrix[:2, 2].any()):
            image = image[:, :, 0]

    if volume.note:
        image.SetMetaData("ITK_FileNotes", volume.note)  # NIfTI's descrip (80 characters), a field of NRRD and MHA

    target = path.resolve()  # through a link: the file behind it is replaced, not the link
    part = target.with_name(f".{uuid.uuid4().hex}{ext}")
    try:
        with _quiet():
            sitk.WriteImage(image, str(part), True)
            _check_written(part, image, path)
        os.replace(part, target)
    except (RuntimeError, OSError) as error:
        raise FusionError("output_failed", path=path) from error
    finally:  # also after KeyboardInterrupt; after the replacement there is none
        part.unlink(missing_ok=True)


def check_output(path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = (), like: Volume | None = None) -> None:
    """Raise unless a volume can be written to `path`; to be called before the work begins.

    `inputs`: files and folders that must not be overwritten (compared through links). `like`: a volume on the grid of
    the result, where known already, so that a format that cannot hold that grid is refused too.

    FusionError: "output_extension", "output_two_files", "output_folder_missing", "output_not_writable",
    "output_is_folder", "output_is_input", and with `like` "output_picture_slices", "output_type", "geometry_sheared",
    "geometry_unusable".
    """
    path = Path(path)
    ext = extension(path)
    if path.is_dir():
        raise FusionError("output_is_folder", path=path)
    if ext in TWO_FILES:
        raise FusionError("output_two_files", path=path, other=TWO_FILES[ext])
    if ext not in WRITABLE:
        raise FusionError("output_extension", path=path, supported=", ".join(WRITABLE))
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FusionError("output_folder_missing", path=path, folder=folder)
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise FusionError("output_not_writable", path=path)
    for given in map(Path, inputs):
        if path.exists() and given.exists() and path.samefile(given):
            raise FusionError("output_is_input", path=path)
    if like is not None:
        if ext in WRITABLE_PICTURES and like.voxels.shape[0] != 1:
            raise FusionError("output_picture_slices", path=path, slices=like.voxels.shape[0])
        _check_picture_type(like, path, ext)
        check_geometry(like.ijk_to_physical, path)


def _check_picture_type(volume: Volume, path: Path, ext: str) -> None:
    if not volume.rgb and volume.voxels.dtype.name not in WRITABLE_PICTURES.get(ext, [volume.voxels.dtype.name]):
        raise FusionError("output_type", path=path, type=volume.voxels.dtype.name)


def _read_file(path: Path) -> Volume:
    import SimpleITK as sitk

    ext = extension(path)
    with path.open("rb") as file:
        head = file.read(132)
    if not head:
        raise FusionError("file_empty", path=path)
    if ext == ".dcm" or head[128:] == b"DICM":
        raise FusionError("dicom_file", path=path)
    if ext not in READABLE:
        raise FusionError("file_unsupported", path=path, supported=", ".join(READABLE))

    picture = ext in PICTURES
    if ext in NIFTI:
        image = _read_nifti(path, ext)
    else:
        check_whole(path, ext)
        image = _read_picture(path, ext) if picture else sitk.ReadImage(str(path))
    volume = from_sitk(image, name=str(path), two_d=picture or image.GetDimension() == 2)
    volume.name = path.name[: -len(ext)]
    if picture:
        volume.ijk_to_physical = np.eye(4)
    return volume


def _read_picture(path: Path, ext: str) -> sitk.Image:
    """A picture as ITK reads it, without its alpha."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    if image.GetDimension() > 2 and image.GetSize()[2] > 1:
        raise FusionError("picture_pages", path=path, pages=image.GetSize()[2])
    components = image.GetNumberOfComponentsPerPixel()
    channels = [sitk.VectorIndexSelectionCast(image, n) for n in range(components)] if components > 1 else []
    if components == 4:
        return sitk.Compose(channels[:3])
    if ext == ".bmp" and components == 3:  # ITK reads grey BMP as RGB
        grey, *others = map(sitk.GetArrayViewFromImage, channels)
        return channels[0] if all(np.array_equal(grey, other) for other in others) else image
    return image


def _read_nifti(path: Path, ext: str) -> sitk.Image:
    """A NIfTI file, whole or refused.

    Where `a.nii` stands beside `a.nii.gz`, ITK reads the voxels of the former for the latter. So compressed files are
    unpacked here, which checks them too, and ITK gets the plain file, in a folder of its own.
    """
    import SimpleITK as sitk

    if ext == ".nii":
        check_whole(path, ext)
        return sitk.ReadImage(str(path))
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # some are not, in spite of their name
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.nii")
        with gzip.open(path) if packed else path.open("rb") as source, plain.open("w+b") as target:
            try:
                shutil.copyfileobj(source, target, 1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise FusionError("file_cut", path=path) from error
            target.seek(0)
            check_nifti(target, path)
        return sitk.ReadImage(str(plain))


def _check_written(part: Path, image: sitk.Image, path: Path) -> None:
    """Raise unless the file `part` holds the image: whole (ITK overlooks a full disk with NIfTI), and in its place."""
    ext = extension(part)
    if ext in WRITABLE_PICTURES:
        return
    try:
        check_whole(part, ext)
    except FusionError as error:
        raise OSError(f"{part} is not whole") from error
    header = read_header(part)
    moved = np.abs(image_matrix(header) - image_matrix(image)) @ (*image.GetSize(), 1, 1)[:4]  # no corner by more
    if header.GetSize() != image.GetSize() or moved.max() > WRITTEN_TOLERANCE:
        raise FusionError("output_geometry", path=path)


@contextmanager
def _quiet() -> Iterator[None]:
    """ITK's own warnings off, then as they were (MetaImage and libtiff print past them)."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
