"""Volumes of many kinds for the tests of what holds, reads and writes them; and the real ones, if they are there."""

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TOLERANCE = {".nii": 1e-4, ".nii.gz": 1e-4, ".nrrd": 1e-12, ".mha": 1e-12}  # mm at the corners


def rotation(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def geometries():
    rng = np.random.default_rng(5)
    permuted = np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]])
    directions = {"identity": np.eye(3), "permuted": permuted, "left": np.diag([1.0, 1, -1])}
    directions |= {f"oblique{n}": rotation(rng) for n in range(3)}
    directions |= {f"oblique_left{n}": -rotation(rng) for n in range(3)}
    for name, direction in directions.items():
        matrix = np.eye(4)
        # 0.5 to 5 mm on 5 to 29 voxels is a small field of view: test_nifti_precision has the large one.
        matrix[:3, :3] = direction * rng.uniform(0.5, 5, 3)
        matrix[:3, 3] = rng.uniform(-600, 600, 3)
        yield pytest.param(matrix, id=name)


def some_voxels(dtype, shape=(5, 17, 29)):
    rng = np.random.default_rng(7)
    if dtype == "rgb":
        return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def volume_of(dtype="int16", matrix=None, shape=(5, 17, 29), **kw):
    return Volume(some_voxels(dtype, shape), np.eye(4) if matrix is None else matrix, **kw)


def corner_error(a, b, size_ijk):
    corners = np.array([(*c, 1) for c in product(*((0, n - 1) for n in size_ijk))])
    return np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max()


def assert_same_voxels(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert np.array_equal(a, b)


def assert_refused(code, path, call, *args, **kw):
    with pytest.raises(FusionError) as caught:
        call(*args, **kw)
    assert caught.value.code == code, caught.value
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(".")
    return caught.value


def real(name):
    folder = SHARED / "data" / "volumes"
    if not (folder / name).exists():
        warnings.warn(f"real volumes not beside the checkout: {folder / name}", stacklevel=2)
        return None
    return folder / name
