"""DICOM series: what is read, in its place and units, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from volumes import TOLERANCE, assert_refused, assert_same_voxels, corner_error, real, rotation

from ASFEFusionLib import files
from ASFEFusionLib.__main__ import main
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.settings import FusionSettings


def write_series(folder, count=7, uid="1.2.3.4", **change):
    """A series of (count, 6, 5) slices, oblique, 2.5 mm apart; returns its voxels as they should be read, its matrix.

    `change`: `tags`, more tags; `shift(n)`, mm along the normal added to slice n; `tilt`, mm per slice along the rows;
    `aside(n)`, mm along rows and columns; `slope(n)`, the rescale slope of slice n; `skip`, slices left out; `packed`,
    lossless JPEG; `voxels`, these instead; `times(n)`, so many images of slice n; `turn(n)`, 3 x 3 before the
    directions of slice n.
    """
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 1000, (count, 6, 5)).astype(np.int16)
    raw = change.get("voxels", raw)
    direction, spacing, origin = rotation(rng), np.array([1.5, 0.75, 2.5]), np.array([-20.0, 31.5, 700.25])
    slope = change.get("slope", lambda n: 1)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(change.get("packed", False))
    writer.SetCompressor("JPEG" if change.get("packed") else "")  # JPEG 2000 aborts on so small a picture
    times = change.get("times", lambda n: 1)
    for n, time in [(one, time) for one in range(count) for time in range(times(one))]:
        if n in change.get("skip", ()):
            continue
        place = origin + direction[:, 2] * (2.5 * n + change.get("shift", lambda n: 0)(n))
        place = place + direction[:, 0] * change.get("tilt", 0) * n
        place = place + direction[:, :2] @ np.array(change.get("aside", lambda n: (0, 0))(n))
        turned = change.get("turn", lambda n: np.eye(3))(n) @ direction
        values = raw[n : n + 1] if slope(n) == 1 else raw[n : n + 1] * slope(n)  # GDCM divides by the slope
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(spacing.tolist())
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{n + 1}.{time}",
            "0020|0013": str(count - n),  # against the order of the places
            "0020|0032": "\\".join(f"{x:.10g}" for x in place),
            "0020|0037": "\\".join(f"{x:.10g}" for x in turned[:, :2].T.ravel()),
            "0028|1053": f"{slope(n):.8g}",
            "0028|1052": "0",
            **dict(zip(("0028|0100", "0028|0101", "0028|0102", "0028|0103"), ("16", "16", "15", "1"), strict=True)),
            **change.get("tags", {}),
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{(n * 5) % 11:03}_{n}_{time}.dcm"))
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


def about_x(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize(
    ("code", "words", "change"),
    [
        ("dicom_uneven", "between slice 3 and 4 (of 6) the distance is 5 mm instead of 2.5 mm", {"skip": (3,)}),
        ("dicom_uneven", "between slice 1 and 2 (of 4) the distance is 7.5 mm", {"skip": (1, 2, 6)}),
        ("dicom_uneven", "2.53 mm instead of 2.5", {"shift": lambda n: 0.03 * (n == 3)}),
        ("dicom_uneven", "between slice 3 and 4", {"shift": lambda n: 7 * (n > 2)}),
        ("dicom_doubled", "2 images at slice 3 (of 6)", {"shift": lambda n: -2.5 * (n == 3)}),
        ("dicom_doubled", "3 images at slice 5 (of 7)", {"times": lambda n: 3 if n == 4 else 1}),
        ("dicom_times", "3 images of every slice", {"times": lambda n: 3}),
        ("dicom_times", "7 images of every slice", {"shift": lambda n: -2.5 * n}),
        ("dicom_turned", "2 orientations", {"turn": lambda n: about_x(90 * (n == 0))}),
        ("dicom_turned", "7 orientations", {"turn": lambda n: about_x(5 * n)}),
        ("dicom_tilted", "slice 4 of 7 by 1.5 mm", {"aside": lambda n: (1.5 * (n == 3), 0)}),
        ("dicom_tilted", "of 7", {"tilt": 2.6}),
        ("dicom_mosaic", "mosaics", {"tags": {"0008|0008": "ORIGINAL\\PRIMARY\\M\\MOSAIC"}}),
    ],
)
def test_dicom_places_that_are_refused(tmp_path, code, words, change):
    write_series(tmp_path, **change)
    error = assert_refused(code, tmp_path, files.read, tmp_path)
    assert words in str(error)


@pytest.mark.parametrize("kind", ["size", "spacing"])
def test_dicom_slices_that_differ_are_refused(tmp_path, kind):
    write_series(tmp_path, 4)
    path = str(max(tmp_path.glob("*_3_0.dcm")))
    image = sitk.ReadImage(path)
    tags = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    image = image[:4] if kind == "size" else image
    image.SetSpacing((1.6, 0.75, 2.5) if kind == "spacing" else (1.5, 0.75, 2.5))
    for key, value in tags.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(path)
    writer.Execute(image)
    assert_refused("dicom_unlike", tmp_path, files.read, tmp_path)


@pytest.mark.parametrize(("i", "j"), [(0, 0.9), (0, -0.9), (0.4, 0), (-0.31, 0.57), (0, 2.4), (0.05, 0.0)])
@pytest.mark.parametrize("sloped", [False, True])
def test_a_tilted_stack_is_laid_straight(tmp_path, i, j, sloped):
    """Values that are linear in space: each voxel of the straight grid has the value of its place, if a slice reaches
    there, and else the least of all; and no pixel of a slice is lost."""
    count, height, width = 9, 14, 12
    _, matrix = write_series(tmp_path / "away", count)
    direction = matrix[:3, :3] / (1.5, 0.75, 2.5)

    def field(points):
        return 400 + (points - matrix[:3, 3]) @ (direction @ [11.37, -7.13, 5.71])

    def place(n, rows, columns):
        aside = np.array([i, j, 2.5]) * n
        inside = np.stack(np.broadcast_arrays(1.5 * columns, 0.75 * rows, 0.0), -1)
        return matrix[:3, 3] + (inside + aside) @ direction.T

    rows, columns = np.mgrid[:height, :width]
    raw = np.stack([np.rint(field(place(n, rows, columns))) for n in range(count)]).astype(np.int16)
    change = {"slope": lambda n: 1 if n == 0 else 0.25} if sloped else {}
    write_series(tmp_path / "ct", count, voxels=raw, aside=lambda n: (i * n, j * n), **change)
    slopes = [change.get("slope", lambda n: 1)(n) for n in range(count)]
    volume = files.read(tmp_path / "ct")
    assert volume.voxels.dtype == (np.float32 if sloped else np.int16)
    assert np.allclose(volume.spacing, (1.5, 0.75, 2.5), rtol=0, atol=1e-6)
    assert np.allclose(volume.ijk_to_physical[:3, :3], matrix[:3, :3], rtol=0, atol=1e-5)  # axes at right angles
    [[code, facts]] = volume.notices
    assert code == "dicom_straightened"
    assert facts["degrees"] == pytest.approx(np.degrees(np.arctan(np.hypot(i, j) / 2.5)), abs=0.051)
    least = min(s * r.min() for s, r in zip(slopes, raw, strict=True))
    assert least > 20
    grid_rows, grid_columns = np.mgrid[: volume.size_ijk[1], : volume.size_ijk[0]]
    reached, wrong = 0, []
    for n in range(count):
        index = np.stack([grid_columns, grid_rows, np.full(grid_rows.shape, n), np.ones(grid_rows.shape)], -1)
        points = (index @ volume.ijk_to_physical.T)[..., :3]
        at = (points - place(n, 0, 0)) @ direction / (1.5, 0.75, 1)  # columns and rows of the slice, mm off its plane
        assert np.abs(at[..., 2]).max() < 1e-3
        within = ((at[..., :2] > -1e-3) & (at[..., :2] < np.array([width, height]) - 1 + 1e-3)).all(-1)
        wrong.extend((volume.voxels[n] - slopes[n] * field(points))[within])
        beyond = ((at[..., :2] < -0.501) | (at[..., :2] > np.array([width, height]) - 0.499)).any(-1)
        assert (volume.voxels[n][beyond] == least).all()
        assert (~beyond).sum() >= height * width  # all its pixels
        reached += beyond.sum()
    assert reached > 0
    assert np.abs(wrong).max() < 1.3
    assert abs(np.mean(wrong)) < 0.1  # rounded and not cut off


def test_the_tilt_is_in_the_report(heads, tmp_path):
    head = heads["CT"].voxels[10:22].astype(np.int16)
    write_series(tmp_path, len(head), voxels=head, tilt=0.6)
    volume = files.read(tmp_path)
    partner = replace(volume, notices=[], voxels=volume.voxels[:, ::-1].copy())
    fused, report = fuse(volume, partner, FusionSettings(check=False))
    assert [w.code for w in report.warnings] == ["dicom_straightened"]
    assert "13.5 degrees" in str(report.warnings[0])
    assert volume.name in str(report.warnings[0])
    assert np.array_equal(fused.ijk_to_physical, volume.ijk_to_physical)


def test_slices_a_hundredth_of_a_millimetre_apart(tmp_path):
    """Of micro-CT: no slice is taken for another one's double."""
    raw, _ = write_series(tmp_path, 7, shift=lambda n: -2.49 * n)
    volume = files.read(tmp_path)
    assert_same_voxels(raw, volume.voxels)
    assert volume.spacing[2] == pytest.approx(0.01, rel=1e-4)
    write_series(tmp_path, 7, shift=lambda n: -2.49 * n + 0.002 * (n == 3))
    assert_refused("dicom_uneven", tmp_path, files.read, tmp_path)


@pytest.mark.parametrize("tag", [b"\x20\x00\x32\x00", b"\x20\x00\x37\x00"])
def test_dicom_without_places_is_refused(tmp_path, tag):
    write_series(tmp_path)
    for file in tmp_path.iterdir():  # the writer always puts them in: make them another tag
        assert file.read_bytes().count(tag) == 1
        file.write_bytes(file.read_bytes().replace(tag, tag[:2] + bytes([tag[2] - 1]) + tag[3:]))
    assert_refused("dicom_no_position", tmp_path, files.read, tmp_path)


def test_dicom_small_tilt_is_read(tmp_path):
    _, matrix = write_series(tmp_path, tilt=0.01)
    volume = files.read(tmp_path)
    assert corner_error(matrix, volume.ijk_to_physical, (5, 6, 7)) < 1e-3
    assert (volume.size_ijk, volume.notices) == ((5, 6, 7), [])


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


def two_series(folder):
    """A CT and a PET of one study; their voxels."""
    ct, _ = write_series(folder, 5, "1.2.3.4", tags={"0020|0011": "4", "0008|103e": "Abdomen 3.0"})
    tags = {"0020|0011": "12", "0008|103e": "PET AC", "0008|0060": "PT", "0054|1001": "BQML"}
    pet, _ = write_series(folder, 4, "1.2.3.5", tags=tags)
    return ct, pet


def test_one_of_several_series(tmp_path):
    ct, pet = two_series(tmp_path)
    error = assert_refused("dicom_several", tmp_path, files.read, tmp_path)
    assert '4 (CT, "Abdomen 3.0", 5 slices); 12 (PET, "PET AC", 4 slices)' in str(error)
    for series in (4, "4", "1.2.3.4"):
        volume = files.read(tmp_path, series)
        assert_same_voxels(ct, volume.voxels)
        assert volume.name == f"{tmp_path.name}, Abdomen 3.0"
    volume = files.read(tmp_path, 12)
    assert_same_voxels(pet, volume.voxels)
    assert (volume.modality, volume.units) == ("PET", "Bq/mL")
    for series in (7, "1.2.3.6", "", "Abdomen 3.0"):
        error = assert_refused("dicom_series", tmp_path, files.read, tmp_path, series)
        assert "holds no series" in str(error)
        assert "Abdomen 3.0" in str(error)
    write_series(tmp_path, 3, "1.2.3.7", tags={"0020|0011": "4"})
    error = assert_refused("dicom_series", tmp_path, files.read, tmp_path, 4)
    assert "1.2.3.4" in str(error)
    assert "1.2.3.7" in str(error)
    assert files.read(tmp_path, "1.2.3.7").size_ijk[2] == 3


def test_a_series_is_chosen_in_folders_alone(tmp_path):
    write_series(tmp_path / "ct", tags={"0020|0011": "4"})
    assert files.read(tmp_path / "ct", 4).name == "ct"
    assert_refused("dicom_series", tmp_path, files.read, tmp_path / "ct", 5)
    files.write(files.read(tmp_path / "ct"), tmp_path / "ct.nrrd")
    assert_refused("series_file", tmp_path / "ct.nrrd", files.read, tmp_path / "ct.nrrd", 4)


def test_two_series_of_one_folder_by_the_command_line(tmp_path, capsys):
    two_series(tmp_path / "study")
    arguments = ["fuse", *[str(tmp_path / "study")] * 2, "--output", str(tmp_path / "f.nrrd"), "--no-check"]
    assert main(arguments) == 1
    assert "Abdomen 3.0" in capsys.readouterr().err
    report = tmp_path / "r.json"
    assert main([*arguments, "--series-first", "4", "--series-second", "12", "--report", str(report)]) == 0
    assert json.loads(report.read_text(encoding="utf-8"))["modalities"] == {"first": "CT", "second": "PET"}
    assert files.read(tmp_path / "f.nrrd").size_ijk == (5, 6, 5)


CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def screenshot(folder, colour, placed=False, **tags):
    """One picture, with or without a place."""
    folder.mkdir(exist_ok=True)
    file = folder / f"shot{len(list(folder.iterdir()))}.dcm"
    image = sitk.GetImageFromArray(np.zeros((8, 9, 3) if colour else (8, 9), np.uint8), isVector=colour)
    named = {"0008|0016": CAPTURE, "0020|000e": "1.2.3.9", "0008|0060": "OT", "0020|000d": "1.2.3"} | tags
    for key, value in named.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(file))
    writer.Execute(image)
    for tag in (b"\x20\x00\x32\x00", b"\x20\x00\x37\x00"):  # the writer puts a place in
        if placed:
            break
        file.write_bytes(file.read_bytes().replace(tag, tag[:2] + bytes([tag[2] - 1]) + tag[3:]))


@pytest.mark.parametrize("colour", [True, False])
def test_screenshots_are_refused_and_do_not_count_beside_a_scan(tmp_path, colour):
    screenshot(tmp_path / "shots", colour)
    assert_refused("dicom_capture", tmp_path, files.read, tmp_path / "shots")
    screenshot(tmp_path / "shots", colour, **{"0020|000e": "1.2.3.8"})
    assert_refused("dicom_capture", tmp_path, files.read, tmp_path / "shots")
    raw, _ = write_series(tmp_path / "both")
    screenshot(tmp_path / "both", colour, **{"0020|0011": "99"})
    assert_same_voxels(raw, files.read(tmp_path / "both").voxels)
    assert_refused("dicom_capture", tmp_path, files.read, tmp_path / "both", 99)


def test_pictures_in_colour_are_no_slices(tmp_path):
    screenshot(tmp_path, True, True, **{"0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|0032": "0\\0\\0"})
    assert_refused("dicom_capture", tmp_path, files.read, tmp_path)


def test_slices_that_were_saved_as_captures_are_read(tmp_path):
    """As SimpleITK writes them by default: with their places."""
    raw, _ = write_series(tmp_path, tags={"0008|0016": CAPTURE})
    assert_same_voxels(raw, files.read(tmp_path).voxels)


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
