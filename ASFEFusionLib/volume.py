"""A volume: voxels, and where they lie in the patient; and the same as a SimpleITK image.

Reading and writing live in `files`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ASFEFusionLib.errors import FusionError

if TYPE_CHECKING:
    import SimpleITK as sitk

# How far the axes may be from right angles (cosine): the decimals of DICOM orientations make about 1e-4 of it.
SHEAR_TOLERANCE = 1e-4


@dataclass
class Volume:
    """Voxels and their place.

    `voxels`: (k, j, i) scalars, or (k, j, i, 3) uint8 RGB; k is the slice axis, i runs fastest in memory.
    `ijk_to_physical`: 4 x 4 float64, takes (i, j, k, 1) to physical (x, y, z, 1) in LPS, mm, at voxel centres.
    `modality`: "CT", "MR", "PET", "SPECT", or None if not known.
    `units`: "HU", "SUV", "Bq/mL", or None if arbitrary or not known.
    `two_d`: True for a single 2-D picture (one k, its place along k has no meaning).
    `note`: a sentence that is written into the header of a file whose format has room for it.
    `notices`: what was done to the voxels when they were read: [code of `errors.WARNINGS`, facts but for the name]
    each; a fusion says them in its report.
    """

    voxels: np.ndarray
    ijk_to_physical: np.ndarray
    modality: str | None = None
    units: str | None = None
    name: str = ""
    two_d: bool = False
    note: str = ""
    notices: list = field(default_factory=list)

    @property
    def rgb(self) -> bool:
        return self.voxels.ndim == 4

    @property
    def size_ijk(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        return tuple(int(n) for n in self.voxels.shape[2::-1])

    @property
    def spacing(self) -> np.ndarray:
        """Distance between neighbouring voxel centres along i, j, k (mm)."""
        return np.linalg.norm(self.ijk_to_physical[:3, :3], axis=0)


def check_geometry(matrix: np.ndarray, path: object, sheared: bool = False) -> None:
    """Raise unless ITK can hold the 4 x 4 `matrix` (ijk to LPS, mm).

    FusionError: "geometry_unusable" (not finite, an axis of no length, axes in one plane), "geometry_sheared" (not at
    right angles, unless `sheared` allows that; left-handed, oblique and permuted axes are all fine). `path` is what the
    sentence names.
    """
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if not (np.isfinite(matrix).all() and (spacing > 0).all()):
        raise FusionError("geometry_unusable", path=path)
    direction = matrix[:3, :3] / spacing
    if abs(np.linalg.det(direction)) < 1e-6:
        raise FusionError("geometry_unusable", path=path)
    if not sheared and np.abs(direction.T @ direction - np.eye(3)).max() > SHEAR_TOLERANCE:
        raise FusionError("geometry_sheared", path=path)


def to_sitk(volume: Volume) -> sitk.Image:
    """The volume as a 3-D SimpleITK image in LPS mm (also for a 2-D picture: then of one slice), vector if RGB.

    SimpleITK cannot borrow numpy memory: the voxels are copied once, into the image; only voxels that are not
    contiguous, not in the machine's byte order, or bool are copied once more on the way.

    FusionError: see `check_geometry`; "voxels_unusable" (a type or shape that ITK has no image for, or no voxels).
    """
    import SimpleITK as sitk

    path = volume.name or "The volume"
    check_voxels(volume, path)
    check_geometry(volume.ijk_to_physical, path)
    image = sitk.GetImageFromArray(native(volume.voxels), isVector=volume.rgb)
    spacing = volume.spacing
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(volume.ijk_to_physical[:3, 3].tolist())
    image.SetDirection((volume.ijk_to_physical[:3, :3] / spacing).ravel().tolist())
    return image


def from_sitk(image: sitk.Image, **kw: Any) -> Volume:
    """A volume with its own copy of the image's voxels; `kw` are further fields of Volume (modality, name...).

    A 2-D image becomes one slice in the plane z = 0 with `two_d` True, unless `kw` says otherwise. Last axes of size 1
    beyond the third are dropped. Voxels keep their type, but 64-bit ones become float32 (PET series whose slices have
    slopes of their own arrive as float64), in one pass.

    FusionError: "image_empty", "image_4d", "image_vector" (neither scalar nor RGB of 8 bits), "voxels_unusable"
    (complex and the like), "geometry_unusable".
    """
    import SimpleITK as sitk

    path = kw.get("name") or "The image"
    size = image.GetSize()
    if min(size) == 0:
        raise FusionError("image_empty", path=path)
    if any(n > 1 for n in size[3:]):
        raise FusionError("image_4d", path=path, size=" x ".join(map(str, size)))
    components = image.GetNumberOfComponentsPerPixel()
    view = sitk.GetArrayViewFromImage(image)
    vector = components > 1
    if vector and not (components == 3 and view.dtype == np.uint8):
        raise FusionError("image_vector", path=path, components=components, type=view.dtype.name)
    if view.dtype.kind not in "iuf":
        raise FusionError("voxels_unusable", path=path, type=view.dtype.name)
    matrix = image_matrix(image)
    if not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        raise FusionError("geometry_unusable", path=path)

    # The view lies in ITK's memory, which goes with the image: the one copy made here is the volume's own.
    voxels = np.array(view, dtype=np.float32 if view.dtype.itemsize == 8 else view.dtype, order="C")
    axes = voxels.ndim - vector
    voxels = voxels[None] if axes == 2 else voxels.reshape(voxels.shape[axes - 3 :])
    return Volume(voxels, matrix, **{"two_d": image.GetDimension() == 2, **kw})


def image_matrix(image: sitk.Image) -> np.ndarray:
    """4 x 4 float64, ijk to LPS mm, of an image (or reader with the header read) of 2 or more dimensions."""
    dimension = image.GetDimension()
    n = min(dimension, 3)
    direction = np.reshape(image.GetDirection(), (dimension, dimension))
    matrix = np.eye(4)
    matrix[:n, :n] = direction[:n, :n] * np.asarray(image.GetSpacing())[:n]
    matrix[:n, 3] = image.GetOrigin()[:n]
    return matrix


def read_header(file: str | os.PathLike) -> sitk.ImageFileReader:
    """A reader of the image file with its header read: size, place and tags. Raises RuntimeError."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader


def check_voxels(volume: Volume, path: object) -> None:
    """Raise FusionError "voxels_unusable" unless there is an ITK image for voxels of this type and shape."""
    voxels = volume.voxels
    shape = voxels.ndim == 3 or (voxels.ndim == 4 and voxels.shape[3] == 3 and voxels.dtype == np.uint8)
    kind = voxels.dtype.kind in "iub" or voxels.dtype in (np.float32, np.float64)
    if not (shape and kind and voxels.size):
        raise FusionError("voxels_unusable", path=path, type=f"{voxels.dtype.name} {voxels.shape}")


def native(voxels: np.ndarray) -> np.ndarray:
    """The voxels as ITK wants them: contiguous, this machine's byte order, bool as uint8; itself where it can be."""
    if voxels.dtype == bool:
        voxels = voxels.view(np.uint8)
    return np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("="))
