"""fuse() on real volumes, where they stand beside the checkout (the fixture warns where they do not)."""

import numpy as np
import pytest

from ASFEFusionLib import files
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.grids import finest, grid_of
from ASFEFusionLib.intensity import Window
from ASFEFusionLib.settings import FusionSettings


def check_geometry(fused, matrix, size):
    assert fused.size_ijk == tuple(size)
    for corner in np.ndindex(2, 2, 2):
        index = np.array([*(np.array(corner) * (np.array(size) - 1)), 1.0])
        assert np.abs((fused.ijk_to_physical - matrix) @ index).max() < 1e-4


def round_trip(volume, path):
    files.write(volume, path)
    return files.read(path)


@pytest.mark.parametrize("choice", ["first", "second", "finest"])
@pytest.mark.parametrize("second", ["MR_T1", "PET"])
def test_sarcoma(real_volumes, tmp_path, choice, second):
    if real_volumes is None:
        return
    folder = real_volumes / "sts014_ct_mr_pet"
    ct, other = files.read(folder / "CT_image.nii.gz"), files.read(folder / f"{second}_image.nii.gz")
    # Few slices serve here; the grids differ in all else.
    ct.voxels, other.voxels = ct.voxels[20:40], other.voxels[20:40]
    for volume in (ct, other):
        volume.ijk_to_physical[:3, 3] += 20 * volume.ijk_to_physical[:3, 2]
    settings = FusionSettings(grid=choice, modality_second=second[:2] if second == "MR_T1" else "PET")
    settings.colour = "hot" if second == "PET" else None
    fused, report = fuse(ct, other, settings)
    grids = {"first": grid_of(ct), "second": grid_of(other)}
    grid = grids.get(choice) or finest(*grids.values())
    check_geometry(fused, grid.matrix, grid.size)
    check_geometry(round_trip(fused, tmp_path / "f.nii.gz"), grid.matrix, grid.size)
    assert report.modalities["first"] == "CT"
    assert report.overlap > 0.8
    assert report.warnings == []
    assert fused.rgb == (second == "PET")
    assert fused.voxels.std() > 20


def test_multiple_sclerosis_on_one_grid(real_volumes):
    if real_volumes is None:
        return
    t1, t2 = (files.read(real_volumes / "ms07_t1_t2" / f"{n}.nii.gz") for n in ("T1", "T2"))
    background = (t1.voxels == 0) & (t2.voxels == 0)
    fused, report = fuse(t1, t2, FusionSettings(modality_first="MR", modality_second="MR"))
    check_geometry(fused, t1.ijk_to_physical, t1.size_ijk)
    assert report.overlap == pytest.approx(1)
    assert fused.voxels[background].max() < 60  # the windows begin a little below zero, at the least values
    # Faithful: nothing brighter or darker than the two sources but for the allowance.
    windows = [Window(w["low"], w["high"], "") for w in report.windows.values()]
    scaled = [window.apply(volume.voxels.copy()) for window, volume in zip(windows, (t1, t2), strict=True)]
    assert (fused.voxels / 1000 < np.maximum(*scaled) + 0.022).all()
    assert (fused.voxels / 1000 > np.minimum(*scaled) - 0.022).all()


def test_dicom_folders(real_volumes):
    """PET slopes differ by slice: the hottest voxel must be as hot as the README of the data says."""
    if real_volumes is None:
        return
    folder = real_volumes / "dicom_sts014_ct_mr_pet"
    ct, mr, pet = (files.read(folder / name) for name in ("CT", "MR_T1", "PET"))
    assert (ct.modality, mr.modality, pet.modality) == ("CT", "MR", "PET")
    assert (ct.units, pet.units) == ("HU", "SUV")
    assert pet.voxels.max() == pytest.approx(29.9858, abs=1e-3)
    fused, report = fuse(ct, pet, FusionSettings(colour="hot", window_second="pet-suv-10"))
    check_geometry(fused, ct.ijk_to_physical, ct.size_ijk)
    assert report.colour == {"map": "hot", "volume": "second"}
    # The tumour's hottest voxel is red or white on the CT's grid too.
    k, j, i = np.unravel_index(pet.voxels.argmax(), pet.voxels.shape)
    place = pet.ijk_to_physical @ [i, j, k, 1]
    i, j, k, _ = np.rint(np.linalg.inv(fused.ijk_to_physical) @ place).astype(int)
    red, _, blue = fused.voxels[k, j, i].astype(int)
    assert red > 150
    assert red >= blue
    fused, report = fuse(ct, mr)
    check_geometry(fused, ct.ijk_to_physical, ct.size_ijk)
    assert report.warnings == []


def test_odd_ones(real_volumes):
    if real_volumes is None:
        return
    folder = real_volumes / "odd"
    ct, mr = (files.read(folder / f"one_slice_sts014_{n}.nii.gz") for n in ("CT", "MR_T1"))
    fused, _ = fuse(ct, mr)
    check_geometry(fused, ct.ijk_to_physical, ct.size_ijk)
    pet = files.read(folder / "nan_outside_body_sts014_PET.nrrd")
    whole = files.read(real_volumes / "sts014_ct_mr_pet" / "CT_image.nii.gz")
    fused, report = fuse(whole, pet, FusionSettings(modality_second="PET"))
    assert [w.code for w in report.warnings] == ["not_finite"]
    check_geometry(fused, whole.ijk_to_physical, whole.size_ijk)
