"""DICOM series: what is read, in its place and units, and what is refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from volumes import TOLERANCE, assert_refused, assert_same_voxels, corner_error, real, rotation

from ASFEFusionLib import files


def write_series(folder, count=7, uid="1.2.3.4", **change):
    """A series of (count, 6, 5) slices, oblique, 2.5 mm apart; returns its voxels as they should be read, its matrix.

    `change`: `tags`, more tags; `shift(n)`, mm along the normal added to slice n; `tilt`, mm per slice along the rows;
    `slope(n)`, the rescale slope of slice n; `skip`, slices left out; `packed`, lossless JPEG.
    """
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 1000, (count, 6, 5)).astype(np.int16)
    direction, spacing, origin = rotation(rng), np.array([1.5, 0.75, 2.5]), np.array([-20.0, 31.5, 700.25])
    slope = change.get("slope", lambda n: 1)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(change.get("packed", False))
    writer.SetCompressor("JPEG" if change.get("packed") else "")  # JPEG 2000 aborts on so small a picture
    for n in range(count):
        if n in change.get("skip", ()):
            continue
        place = origin + direction[:, 2] * (2.5 * n + change.get("shift", lambda n: 0)(n))
        place = place + direction[:, 0] * change.get("tilt", 0) * n
        values = raw[n : n + 1] if slope(n) == 1 else raw[n : n + 1] * slope(n)  # GDCM divides by the slope
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(spacing.tolist())
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{n + 1}",
            "0020|0013": str(count - n),  # against the order of the places
            "0020|0032": "\\".join(f"{x:.10g}" for x in place),
            "0020|0037": "\\".join(f"{x:.10g}" for x in direction[:, :2].T.ravel()),
            "0028|1053": f"{slope(n):.8g}",
            "0028|1052": "0",
            **dict(zip(("0028|0100", "0028|0101", "0028|0102", "0028|0103"), ("16", "16", "15", "1"), strict=True)),
            **change.get("tags", {}),
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{(n * 5) % 11:03}.dcm"))
        writer.Execute(image)
    matrix = np.eye(4)
    matrix[:3, :3] = direction * spacing
    matrix[:3, 3] = origin
    return raw, matrix


@pytest.mark.parametrize(("count", "packed"), [(7, False), (2, False), (1, False), (7, True)])
def test_dicom_series(tmp_path, count, packed):
    raw, matrix = write_series(tmp_path / "ct", count, packed=packed)
    volume = files.read(tmp_path / "ct")
    assert_same_voxels(raw, volume.voxels)
    if count == 1:
        volume.ijk_to_physical[:3, 2] = matrix[:3, 2]  # one slice does not tell how far the next would be
    assert corner_error(matrix, volume.ijk_to_physical, volume.size_ijk) < 1e-4
    assert (volume.modality, volume.units, volume.name, volume.two_d) == ("CT", "HU", "ct", False)


@pytest.mark.parametrize(
    ("modality", "tag", "expected"),
    [
        ("MR", "", ("MR", None)),
        ("NM", "", ("SPECT", None)),
        ("PT", "GML", ("PET", "SUV")),
        ("PT", "BQML", ("PET", "Bq/mL")),
        ("PT", "CNTS", ("PET", None)),
        ("OT", "GML", (None, None)),
    ],
)
def test_dicom_modality(tmp_path, modality, tag, expected):
    write_series(tmp_path, tags={"0008|0060": modality} | ({"0054|1001": tag} if tag else {}))
    volume = files.read(tmp_path)
    assert (volume.modality, volume.units) == expected


def test_dicom_slopes_of_each_slice(tmp_path):
    def slope(n):
        return 1 if n == 0 else 0.25 * n + 0.1  # the first alone would make the series one of whole numbers

    raw, _ = write_series(tmp_path, slope=slope)
    volume = files.read(tmp_path)
    slopes = np.array([slope(n) for n in range(len(raw))])[:, None, None]
    assert volume.voxels.dtype == np.float32
    assert np.allclose(volume.voxels, raw * slopes, rtol=1e-6, atol=0)
    assert np.array_equal(volume.voxels[0], raw[0])


def test_dicom_spacing_is_that_of_the_places(tmp_path):
    """A thickness that is not the distance, and shifts within the tolerance."""
    _, matrix = write_series(tmp_path, tags={"0018|0050": "5", "0018|0088": "4"}, shift=lambda n: 0.01 * (n % 2))
    volume = files.read(tmp_path)
    assert np.allclose(volume.spacing, (1.5, 0.75, 2.5), rtol=0, atol=1e-6)
    assert corner_error(matrix, volume.ijk_to_physical, volume.size_ijk) < 1e-4


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("dicom_uneven", {"skip": (3,)}),
        ("dicom_uneven", {"shift": lambda n: 0.03 * (n == 3)}),
        ("dicom_uneven", {"shift": lambda n: -2.5 * (n == 3)}),
        ("dicom_tilted", {"tilt": 0.05}),
    ],
)
def test_dicom_places_that_are_refused(tmp_path, code, change):
    write_series(tmp_path, **change)
    assert_refused(code, tmp_path, files.read, tmp_path)


@pytest.mark.parametrize("tag", [b"\x20\x00\x32\x00", b"\x20\x00\x37\x00"])
def test_dicom_without_places_is_refused(tmp_path, tag):
    write_series(tmp_path)
    for file in tmp_path.iterdir():  # the writer always puts them in: make them another tag
        assert file.read_bytes().count(tag) == 1
        file.write_bytes(file.read_bytes().replace(tag, tag[:2] + bytes([tag[2] - 1]) + tag[3:]))
    assert_refused("dicom_no_position", tmp_path, files.read, tmp_path)


def test_dicom_small_tilt_is_read(tmp_path):
    _, matrix = write_series(tmp_path, tilt=0.01)
    assert corner_error(matrix, files.read(tmp_path).ijk_to_physical, (5, 6, 7)) < 1e-3


def test_dicom_folders_that_are_refused(tmp_path):
    assert_refused("dicom_none", tmp_path, files.read, tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert_refused("dicom_none", tmp_path, files.read, tmp_path)
    write_series(tmp_path)
    files.read(tmp_path)
    write_series(tmp_path, uid="1.2.3.5")
    assert "2 DICOM series" in str(assert_refused("dicom_several", tmp_path, files.read, tmp_path))
    one = next(tmp_path.glob("*.dcm"))
    assert_refused("dicom_file", one, files.read, one)
    one = one.rename(tmp_path / "IM0001")
    assert_refused("dicom_file", one, files.read, one)


def test_dicom_many_frames_are_refused(tmp_path):
    image = sitk.Image([5, 6, 4], sitk.sitkUInt8)
    image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.7.2")
    sitk.WriteImage(image, tmp_path / "a.dcm")
    assert_refused("dicom_frames", tmp_path, files.read, tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_dicom_cut_slice_is_refused(tmp_path, packed):
    write_series(tmp_path, packed=packed)
    last = max(tmp_path.glob("*.dcm"))
    last.write_bytes(last.read_bytes()[:-20])
    assert_refused("file_cut", last, files.read, tmp_path)


@pytest.mark.parametrize(
    ("series", "kind", "limits"),
    [
        ("CT", ("CT", "HU", "int16"), (-1000, 1521)),
        ("MR_T1", ("MR", None, "int16"), (0, 1479)),
        ("PET", ("PET", "SUV", "float32"), (0, 29.9858)),
    ],
)
def test_real_dicom_equals_its_nifti(tmp_path, series, kind, limits):
    dicom, nifti = real("dicom_sts014_ct_mr_pet"), real("sts014_ct_mr_pet")
    if dicom is None or nifti is None:
        return
    volume, same = files.read(dicom / series), files.read(nifti / f"{series}_image.nii.gz")
    assert (volume.modality, volume.units, volume.voxels.dtype.name) == kind
    assert (volume.voxels.min(), volume.voxels.max()) == pytest.approx(limits, abs=5e-5)
    assert volume.size_ijk == same.size_ijk
    assert corner_error(volume.ijk_to_physical, same.ijk_to_physical, same.size_ijk) < 0.03
    assert np.allclose(volume.voxels, same.voxels, rtol=1e-5, atol=1e-4)
    for ext, tolerance in TOLERANCE.items():
        files.write(volume, tmp_path / f"a{ext}")
        back = files.read(tmp_path / f"a{ext}")
        assert_same_voxels(volume.voxels, back.voxels)
        assert corner_error(volume.ijk_to_physical, back.ijk_to_physical, back.size_ijk) < tolerance


def test_real_folder_above_the_series_is_refused():
    folder = real("dicom_sts014_ct_mr_pet")
    if folder is not None:
        assert_refused("dicom_none", folder, files.read, folder)
