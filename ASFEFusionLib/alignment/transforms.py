"""Transforms between volumes: read from ITK's files, written as such, and put to use.

All of them take points of the fixed (first) volume to points of the moving (second) one, in LPS mm, as
SimpleITK.Resample(moving, fixed, transform) wants it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FusionError
from ..space import Displacement
from ..volume import Volume, image_matrix
from .pose import is_rigid, nearest_rigid

if TYPE_CHECKING:
    import SimpleITK as sitk

KINDS = (".tfm", ".txt", ".h5")
# A bent transform is followed on a lattice of this spacing (mm), over the fixed volume and so much (mm) beyond it.
LATTICE, BEYOND = 4.0, 8.0
# Lattices of more points are made coarser.
MOST_POINTS = 2_000_000
# A determinant of a linear part below this is none of a patient.
FLAT = 1e-6


def read(path: Path | str) -> sitk.Transform:
    """The transform in a .tfm, .txt or .h5 file of ITK, of any kind.

    FusionError: "file_missing", "transform_unreadable" (also for transforms that are not of 3-D points),
    "transform_flat" (a linear one that makes a plane or a speck of space).
    """
    import SimpleITK as sitk

    path = Path(path)
    if not path.is_file():
        raise FusionError("file_missing", path=path)
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise FusionError("transform_unreadable", path=path) from error
    if transform.GetDimension() != 3:
        raise FusionError("transform_unreadable", path=path)
    matrix = linear(transform)
    if matrix is not None and not (np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) > FLAT):
        raise FusionError("transform_flat", path=path)
    return transform


def linear(transform: sitk.Transform) -> np.ndarray | None:
    """4 x 4 float64 of a transform that is linear (rigid, affine, or a chain of such); None of any other."""
    if not transform.IsLinear():
        return None
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis, point in enumerate(np.eye(3) * 1000):  # far out, so that rounding is small against it
        matrix[:3, axis] = (np.array(transform.TransformPoint(point.tolist())) - origin) / 1000
    matrix[:3, 3] = origin
    return matrix


def rigid_start(transform: sitk.Transform, path: object) -> np.ndarray:
    """4 x 4 of a transform that turns and shifts only. FusionError "transform_not_rigid"; `path` is what it names."""
    matrix = linear(transform)
    if matrix is None or not is_rigid(matrix, 1e-3):
        raise FusionError("transform_not_rigid", path=path)
    return nearest_rigid(matrix)


def displacement(transform: sitk.Transform, fixed: Volume) -> Displacement:
    """A bent transform (B-spline, displacement field, a chain with such) on a lattice over the fixed volume.

    Off the lattice's points it is read linearly, so that bends of a few millimetres in width are lost.
    """
    import SimpleITK as sitk

    corners = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in fixed.size_ijk))).reshape(3, -1).T
    corners = corners @ fixed.ijk_to_physical[:3, :3].T + fixed.ijk_to_physical[:3, 3]
    low, high = corners.min(0) - BEYOND, corners.max(0) + BEYOND
    step = max(LATTICE, float(np.prod(high - low) / MOST_POINTS) ** (1 / 3))
    size = (np.ceil((high - low) / step).astype(int) + 1).tolist()
    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, size, low.tolist(), [step] * 3)
    return Displacement(sitk.GetArrayFromImage(field).astype(np.float32), image_matrix(field))


def euler(matrix: np.ndarray, centre: np.ndarray) -> sitk.Euler3DTransform:
    """A rigid 4 x 4 matrix as ITK's Euler3DTransform about `centre` (mm, LPS)."""
    import SimpleITK as sitk

    turn = nearest_rigid(matrix)[:3, :3]
    transform = sitk.Euler3DTransform()
    transform.SetCenter([float(v) for v in centre])
    transform.SetMatrix(turn.ravel().tolist(), 1e-6)
    transform.SetTranslation((turn @ centre + matrix[:3, 3] - centre).tolist())
    return transform


def affine(matrix: np.ndarray) -> sitk.AffineTransform:
    """A linear 4 x 4 matrix as ITK's AffineTransform."""
    import SimpleITK as sitk

    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def write(matrix: np.ndarray, centre: np.ndarray, path: Path | str) -> None:
    """A linear 4 x 4 matrix into a .tfm, .txt or .h5 file; a rigid one about `centre` (LPS, mm).

    FusionError "transform_output", "output_failed".
    """
    import SimpleITK as sitk

    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise FusionError("transform_output", path=path)
    try:
        sitk.WriteTransform(euler(matrix, centre) if is_rigid(matrix) else affine(matrix), str(path))
    except RuntimeError as error:
        raise FusionError("output_failed", path=path) from error


def moved(moving: Volume, matrix: np.ndarray) -> Volume:
    """The moving volume brought onto the fixed one: the same voxels under inverse(matrix) times its own geometry."""
    return replace(moving, ijk_to_physical=np.linalg.inv(matrix) @ moving.ijk_to_physical)
