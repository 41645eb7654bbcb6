"""A transform that bends space, as VTK has it, becomes a lattice of displacements that the resampling can follow."""

from __future__ import annotations

from itertools import product

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .space import Displacement, Grid

# It is sampled until its lattice errs by no more than this (mm), or has so many points.
MOST_ERROR, MOST_POINTS = 0.25, 2_000_000
FLIP = np.array([-1.0, -1.0, 1.0])  # RAS <-> LPS


def sample(transform: vtk.vtkAbstractTransform, grid: Grid) -> tuple[Displacement, float]:
    """The transform (of points, RAS mm) on a lattice over the grid's box; and by how much (mm) linear reading errs."""
    corners = np.array([[*corner, 1.0] for corner in product(*((-0.5, n - 0.5) for n in grid.size))])
    points = (corners @ grid.matrix.T)[:, :3] * FLIP
    low, high = points.min(0), points.max(0)
    step = 16.0
    while True:
        counts = np.ceil((high - low) / step).astype(int) + 2
        vectors = _evaluate(transform, low, step, counts)
        error = _error(transform, vectors, low, step, np.random.default_rng(0).uniform(low, high, (500, 3)))
        # Each halving divides the error by about four.
        finer = step * float(np.clip(0.9 * np.sqrt(MOST_ERROR / max(error, 1e-6)), 0.25, 0.7))
        if error <= MOST_ERROR or np.prod(np.ceil((high - low) / finer) + 2) > MOST_POINTS:
            matrix = np.diag([-step, -step, step, 1.0])
            matrix[:3, 3] = FLIP * low
            return Displacement(vectors * FLIP.astype(np.float32), matrix), error
        step = finer


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


def _error(
    transform: vtk.vtkAbstractTransform, vectors: np.ndarray, low: np.ndarray, step: float, points: np.ndarray
) -> float:
    """Greatest distance (mm) between the transform and the lattice read linearly, at the points (RAS)."""
    at = (points - low) / step
    base = np.floor(at).astype(int)
    part = at - base
    read = np.zeros_like(points)
    for corner in product((0, 1), repeat=3):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        i, j, k = (base + corner).T
        read += weight[:, None] * vectors[k, j, i]
    exact = np.array([transform.TransformPoint(point) for point in points]) - points
    return float(np.linalg.norm(exact - read, axis=1).max())
