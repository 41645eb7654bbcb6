"""A transform that bends space, as VTK has it, becomes a lattice of displacements that the resampling can follow."""

from __future__ import annotations

import zlib
from itertools import product

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .grids import Grid
from .space import Displacement

# Steps of the lattice (mm), from the first on until it errs by no more than MOST_ERROR or the next has too many points.
STEPS = (8.0, 4.0, 2.0, 1.0)
MOST_ERROR, MOST_POINTS = 0.25, 2_000_000
FLIP = np.array([-1.0, -1.0, 1.0])  # RAS <-> LPS


def sample(transform: vtk.vtkAbstractTransform, grid: Grid) -> tuple[Displacement, float]:
    """The transform (of points, RAS mm) on a lattice over the grid's box; and by how much (mm) linear reading errs.

    Each lattice is compared with the one of half its step at all points of that, so that no local bend is passed over;
    the finer one is taken, and errs by about a quarter of what was found.
    """
    corners = np.array([[*corner, 1.0] for corner in product(*((-0.5, n - 0.5) for n in grid.size))])
    points = (corners @ grid.matrix.T)[:, :3] * FLIP
    low, extent = points.min(0), np.ptp(points, axis=0)
    cells = np.ceil(extent / STEPS[0]).astype(int)
    step, vectors, error = STEPS[0], _evaluate(transform, low, STEPS[0], cells + 1), np.inf
    for finer in STEPS[1:]:
        counts = cells * round(STEPS[0] / finer) + 1
        if error <= MOST_ERROR or (np.isfinite(error) and np.prod(counts, dtype=float) > MOST_POINTS):
            break
        fine = _evaluate(transform, low, finer, counts)
        error = float(np.sqrt(((fine - _doubled(vectors)) ** 2).sum(-1)).max()) / 4
        step, vectors = finer, fine
    matrix = np.diag([-step, -step, step, 1.0])
    matrix[:3, 3] = FLIP * low
    return Displacement(vectors * FLIP.astype(np.float32), matrix), error


def _doubled(vectors: np.ndarray) -> np.ndarray:
    """The lattice read linearly at half its step."""
    for axis in range(3):
        middle = (
            vectors.take(range(vectors.shape[axis] - 1), axis) + vectors.take(range(1, vectors.shape[axis]), axis)
        ) / 2
        shape = list(vectors.shape)
        shape[axis] = 2 * shape[axis] - 1
        doubled = np.empty(shape, np.float32)
        at = [slice(None)] * 4
        at[axis] = slice(0, None, 2)
        doubled[tuple(at)] = vectors
        at[axis] = slice(1, None, 2)
        doubled[tuple(at)] = middle
        vectors = doubled
    return vectors


def content(transform: vtk.vtkAbstractTransform | None) -> list[int]:
    """Checksums of what makes a bent transform: displacements, coefficients or landmarks, to a micrometre."""
    if transform is None:
        return []
    if transform.IsA("vtkGeneralTransform"):
        parts = [transform.GetConcatenatedTransform(n) for n in range(transform.GetNumberOfConcatenatedTransforms())]
        return [number for part in parts for number in content(part)]
    transform.Update()  # an inverse has nothing of its own before
    arrays = []
    for name in ("GetDisplacementGrid", "GetCoefficientData"):
        image = getattr(transform, name, lambda: None)()
        if image is not None:
            arrays.append(image.GetPointData().GetScalars())
    for name in ("GetSourceLandmarks", "GetTargetLandmarks"):
        points = getattr(transform, name, lambda: None)()
        if points is not None:
            arrays.append(points.GetData())
    values = [np.rint(vtk_to_numpy(array) * 1000.0).astype(np.int64) for array in arrays if array is not None]
    return [zlib.crc32(np.ascontiguousarray(value)) for value in values]


def _evaluate(transform: vtk.vtkAbstractTransform, low: np.ndarray, step: float, counts: np.ndarray) -> np.ndarray:
    """Displacements (k, j, i, 3), RAS mm, at low + step * (i, j, k)."""
    sampler = vtk.vtkTransformToGrid()
    sampler.SetInput(transform)
    sampler.SetGridOrigin(*low)
    sampler.SetGridSpacing(step, step, step)
    sampler.SetGridExtent(0, int(counts[0]) - 1, 0, int(counts[1]) - 1, 0, int(counts[2]) - 1)
    sampler.SetGridScalarTypeToFloat()
    sampler.Update()
    values = vtk_to_numpy(sampler.GetOutput().GetPointData().GetScalars())
    # A rounding on the lattice is no displacement; what cannot be inverted is none that could be followed.
    return np.nan_to_num(values.reshape(*counts[::-1], 3).astype(np.float32), posinf=0.0, neginf=0.0)
