"""The volume type and SimpleITK images: each voxel keeps its place."""

import numpy as np
import pytest
from volumes import assert_refused, assert_same_voxels, geometries, some_voxels, volume_of

from ASFEFusionLib.volume import Volume, from_sitk, to_sitk


@pytest.mark.parametrize("matrix", list(geometries()))
def test_sitk_places_voxels_alike(matrix):
    volume = volume_of(matrix=matrix)
    image = to_sitk(volume)
    index = (28, 3, 4)
    assert np.allclose(image.TransformIndexToPhysicalPoint(index), (matrix @ (*index, 1))[:3], rtol=0, atol=1e-9)
    assert image[index] == volume.voxels[4, 3, 28]
    back = from_sitk(image, modality="MR", name="x")
    assert np.allclose(back.ijk_to_physical, matrix, rtol=0, atol=1e-12)
    assert (back.modality, back.name, back.two_d) == ("MR", "x", False)
    del image
    assert_same_voxels(volume.voxels, back.voxels)
    assert back.voxels.flags.writeable


def test_to_sitk_takes_awkward_arrays():
    voxels = some_voxels("int16")
    for awkward in (voxels[:, ::-1, ::2], np.asfortranarray(voxels), voxels.astype(">i2")):
        back = from_sitk(to_sitk(Volume(awkward, np.eye(4)))).voxels
        assert np.array_equal(back, awkward)
    mask = voxels > 0
    assert np.array_equal(from_sitk(to_sitk(Volume(mask, np.eye(4)))).voxels, mask.astype(np.uint8))
    assert to_sitk(Volume(voxels[:1], np.eye(4), two_d=True)).GetDimension() == 3


def test_to_sitk_refuses():
    sheared, flat, lost = np.eye(4), np.eye(4), np.eye(4)
    sheared[0, 1], flat[:3, 2], lost[0, 3] = 0.01, (1, 0, 0), np.nan
    assert_refused("geometry_sheared", "x", to_sitk, volume_of(matrix=sheared, name="x"))
    for matrix in (flat, lost, np.zeros((4, 4))):
        assert_refused("geometry_unusable", "x", to_sitk, volume_of(matrix=matrix, name="x"))
    for shape, dtype in [((5, 4), "u1"), ((0, 4, 4), "u1"), ((3, 4, 4, 2), "u1"), ((3, 4, 4, 3), "i2")]:
        assert_refused("voxels_unusable", "x", to_sitk, Volume(np.zeros(shape, dtype), np.eye(4), name="x"))
    for dtype in ("complex64", "float16"):
        assert_refused("voxels_unusable", "x", to_sitk, Volume(np.zeros((3, 4, 4), dtype), np.eye(4), name="x"))
