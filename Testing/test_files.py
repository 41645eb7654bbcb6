"""Volumes through files: what goes in comes out, in its place; what cannot is said in one sentence."""

import gzip
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from volumes import (
    ROOT,
    TOLERANCE,
    assert_refused,
    assert_same_voxels,
    corner_error,
    geometries,
    real,
    rotation,
    some_voxels,
    volume_of,
)

from ASFEFusionLib import files
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.volume import Volume, from_sitk, to_sitk


def test_import_brings_no_simpleitk():
    code = "import sys, ASFEFusionLib.volume, ASFEFusionLib.files; sys.exit('SimpleITK' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("matrix", list(geometries()))
@pytest.mark.parametrize("ext", TOLERANCE)
def test_round_trip_geometry(tmp_path, ext, matrix):
    volume = volume_of(matrix=matrix)
    path = tmp_path / f"a.b{ext}"
    files.write(volume, path)
    back = files.read(path)
    assert_same_voxels(volume.voxels, back.voxels)
    assert corner_error(matrix, back.ijk_to_physical, volume.size_ijk) < TOLERANCE[ext]
    assert (back.modality, back.units, back.name, back.two_d) == (None, None, "a.b", False)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "rgb"])
@pytest.mark.parametrize("ext", TOLERANCE)
def test_round_trip_types(tmp_path, ext, dtype):
    volume = volume_of(dtype, next(geometries()).values[0])
    files.write(volume, tmp_path / f"a{ext}")
    back = files.read(tmp_path / f"a{ext}")
    assert_same_voxels(volume.voxels, back.voxels)
    assert back.rgb == (dtype == "rgb")


def test_compressed(tmp_path):
    volume = Volume(np.zeros((50, 50, 50), np.int16), np.eye(4))
    for ext in (".nii.gz", ".nrrd", ".mha"):
        files.write(volume, tmp_path / f"a{ext}")
        assert (tmp_path / f"a{ext}").stat().st_size < volume.voxels.nbytes / 50


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
@pytest.mark.parametrize("ext", TOLERANCE)
def test_64_bits_become_float32(tmp_path, ext, dtype):
    volume = volume_of(dtype)
    files.write(volume, tmp_path / f"a{ext}")
    assert_same_voxels(volume.voxels.astype(np.float32), files.read(tmp_path / f"a{ext}").voxels)


def test_nifti_precision(tmp_path):
    """The largest geometry that the promise is made for: 500 mm, 1 m from the origin; headers alone matter."""
    rng = np.random.default_rng(11)
    worst = 0.0
    for _ in range(50):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(rng) * rng.uniform(200, 500, 3) / 7
        matrix[:3, 3] = rng.uniform(-300, 300, 3)
        matrix[2, 3] = rng.uniform(-1000, 1000)
        files.write(volume_of(matrix=matrix, shape=(8, 8, 8)), tmp_path / "a.nii")
        back = files.read(tmp_path / "a.nii").ijk_to_physical
        worst = max(worst, corner_error(matrix, back, (8, 8, 8)))
    assert worst < 1e-4


@pytest.mark.parametrize("ext", TOLERANCE)
def test_one_slice_stays_a_volume(tmp_path, ext):
    matrix = next(geometries()).values[0]
    volume = volume_of("float32", matrix, (1, 17, 29))
    files.write(volume, tmp_path / f"a{ext}")
    back = files.read(tmp_path / f"a{ext}")
    assert not back.two_d
    assert_same_voxels(volume.voxels, back.voxels)
    assert corner_error(matrix, back.ijk_to_physical, volume.size_ijk) < TOLERANCE[ext]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "rgb"])
@pytest.mark.parametrize("ext", TOLERANCE)
def test_two_d_in_volume_formats(tmp_path, ext, dtype):
    matrix = np.eye(4)
    matrix[:2, :2] = np.array([[0.8, -0.6], [0.6, 0.8]]) * (0.7, 0.9)
    matrix[:2, 3] = -31.5, 80.25
    volume = volume_of(dtype, matrix, (1, 17, 29), two_d=True)
    files.write(volume, tmp_path / f"a{ext}")
    back = files.read(tmp_path / f"a{ext}")
    assert back.two_d
    assert_same_voxels(volume.voxels, back.voxels)
    assert corner_error(matrix, back.ijk_to_physical, volume.size_ijk) < TOLERANCE[ext]


@pytest.mark.parametrize(
    "kind", ["png uint8", "png uint16", "png rgb", "tif uint8", "tif uint16", "tif int16", "tiff float32", "tiff rgb"]
)
def test_pictures(tmp_path, kind):
    ext, dtype = kind.split()
    volume = volume_of(dtype, np.diag([0.5, 0.7, 3, 1]), (1, 17, 29))
    path = tmp_path / f"A.{ext.upper()}"
    files.write(volume, path)
    back = files.read(path)
    assert back.two_d
    assert_same_voxels(volume.voxels, back.voxels)
    assert np.array_equal(back.ijk_to_physical, np.eye(4))


def test_picture_without_alpha(tmp_path):
    path = tmp_path / "a.png"
    values = np.random.default_rng(2).integers(0, 256, (9, 8, 4)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), path)
    assert_same_voxels(values[None, ..., :3], files.read(path).voxels)
    sitk.WriteImage(sitk.GetImageFromArray(values[..., :2], isVector=True), path)  # SimpleITK cannot read its own
    assert_refused("file_unreadable", path, files.read, path)


@pytest.mark.parametrize("dtype", ["uint8", "rgb"])
def test_bmp_and_jpeg(tmp_path, dtype):
    picture = some_voxels(dtype, (17, 29))
    for name in ("a.bmp", "a.jpg"):
        sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=dtype == "rgb"), tmp_path / name)
        back = files.read(tmp_path / name)
        assert back.two_d
        assert back.voxels.shape == (1, *picture.shape)
        assert name != "a.bmp" or np.array_equal(back.voxels[0], picture)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "rgb"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.mha", "a.nrrd", "a.nii"])
def test_packed_or_not_is_whole(tmp_path, name, packed, dtype):
    volume = volume_of(dtype)
    sitk.WriteImage(to_sitk(volume), tmp_path / name, packed)
    assert_same_voxels(volume.voxels, files.read(tmp_path / name).voxels)


def test_whole_in_spite_of_oddities(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(some_voxels("uint8", (17, 29))), tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"a trailer of the camera's own")
    assert files.read(tmp_path / "a.jpg").voxels.shape == (1, 17, 29)
    files.write(volume_of(), tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())  # its name says more than it does
    assert_same_voxels(some_voxels("int16"), files.read(tmp_path / "b.nii.gz").voxels)
    text = "ObjectType = Image\nNDims = 3\nBinaryData = False\nDimSize = 2 2 1\nElementType = MET_INT\n"
    (tmp_path / "a.mha").write_text(text + "ElementDataFile = LOCAL\n1 2 3 4\n")
    assert files.read(tmp_path / "a.mha").voxels.ravel().tolist() == [1, 2, 3, 4]


def test_nifti_twins_are_told_apart(tmp_path):
    """ITK alone reads the voxels of a.nii for a.nii.gz."""
    for name, value in (("a.nii", 1), ("a.nii.gz", 2)):
        files.write(Volume(np.full((3, 4, 5), value, np.uint8), np.eye(4)), tmp_path / name)
    assert files.read(tmp_path / "a.nii.gz").voxels.max() == 2
    assert files.read(tmp_path / "a.nii").voxels.max() == 1


@pytest.mark.parametrize("ext", TOLERANCE)
def test_four_d(tmp_path, ext):
    steps = [to_sitk(volume_of(matrix=next(geometries()).values[0]))] * 2
    path = tmp_path / f"a{ext}"
    sitk.WriteImage(sitk.JoinSeries(steps), path)
    assert_refused("image_4d", path, files.read, path)
    one = sitk.JoinSeries(steps[:1])
    sitk.WriteImage(one, path)
    for back in (files.read(path), from_sitk(one)):
        assert_same_voxels(some_voxels("int16"), back.voxels)
        assert corner_error(next(geometries()).values[0], back.ijk_to_physical, (29, 17, 5)) < TOLERANCE[ext]


@pytest.mark.parametrize(
    ("dtype", "components"), [("uint8", 2), ("uint8", 4), ("float32", 3), ("uint16", 3), ("float32", 7)]
)
def test_vectors_are_refused(tmp_path, dtype, components):
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5, components), dtype), isVector=True)
    sitk.WriteImage(image, tmp_path / "a.nrrd")
    assert_refused("image_vector", tmp_path / "a.nrrd", files.read, tmp_path / "a.nrrd")


def test_complex_is_refused(tmp_path):
    image = sitk.Image([4, 5, 6], sitk.sitkComplexFloat32)
    assert_refused("voxels_unusable", "x", from_sitk, image, name="x")
    sitk.WriteImage(image, tmp_path / "a.mha")  # comes back as vectors of two
    assert_refused("image_vector", tmp_path / "a.mha", files.read, tmp_path / "a.mha")


def test_many_pages_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([5, 6, 3], sitk.sitkUInt8), tmp_path / "a.tif")
    assert_refused("picture_pages", tmp_path / "a.tif", files.read, tmp_path / "a.tif")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.png", "a.jpg", "a.bmp", "a.tif"])
def test_cut_files_are_refused(tmp_path, name, packed):
    path = tmp_path / name
    picture = np.arange(200 * 150).reshape(200, 150) % 251
    image = sitk.GetImageFromArray(picture.astype(np.uint8)) if files.extension(path) in files.PICTURES else None
    sitk.WriteImage(image or to_sitk(volume_of()), path, packed)
    whole = path.read_bytes()
    files.read(path)
    # The last bytes of NRRD are a checksum, those of TIFF the name of a program: without them the voxels are whole.
    ends = [16 if name == "a.nrrd" else 60 if name == "a.tif" else 1]
    for left in [50, 353, len(whole) // 3, len(whole) * 9 // 10] + [len(whole) - n for n in ends]:
        path.write_bytes(whole[:left])
        with pytest.raises(FusionError) as caught:
            files.read(path)
        assert caught.value.code in ("file_cut", "file_unreadable"), left
        assert caught.value.code == "file_cut" or isinstance(caught.value.__cause__, RuntimeError)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "code"), [("a.mhd", "file_cut"), ("a.nhdr", "file_unreadable")])
def test_cut_detached_data_are_refused(tmp_path, name, code):
    sitk.WriteImage(to_sitk(volume_of()), tmp_path / name)
    data = tmp_path / "a.raw"
    data.write_bytes(data.read_bytes()[:-1])
    assert_refused(code, tmp_path / name, files.read, tmp_path / name)
    data.unlink()
    assert_refused("file_unreadable", tmp_path / name, files.read, tmp_path / name)


def test_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    files.write(volume_of(), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert_refused("file_cut", path, files.read, path)
    files.write(volume_of(), tmp_path / "b.nii")
    path.write_bytes(gzip.compress((tmp_path / "b.nii").read_bytes()[:-1]))  # the package is whole, not what is in it
    assert_refused("file_cut", path, files.read, path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd", "a.png", "a.jpg", "a.bmp", "a.tif"])
def test_no_images_are_refused(tmp_path, name):
    path = tmp_path / name
    assert_refused("file_missing", path, files.read, path)
    path.touch()
    assert_refused("file_empty", path, files.read, path)
    path.write_bytes(b"this is no image\n" * 200)
    assert assert_refused("file_unreadable", path, files.read, path).__cause__ is not None


def test_other_kinds_are_refused(tmp_path):
    for name in ("a.txt", "a", "a.gz"):
        (tmp_path / name).write_text("x")
        assert_refused("file_unsupported", tmp_path / name, files.read, tmp_path / name)
    empty = "ObjectType = Image\nNDims = 3\nDimSize = 0 4 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_text(empty)
    assert_refused("image_empty", tmp_path / "a.mha", files.read, tmp_path / "a.mha")


def test_no_noise_and_no_lasting_silence(tmp_path, capfd):
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkInt16), path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 280, 0.5)  # sform and qform at odds: ITK warns
    path.write_bytes(data)
    files.read(path)
    assert capfd.readouterr().err == ""
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


def test_check_output(tmp_path):
    good = tmp_path / "out.nrrd"
    files.check_output(good)
    files.check_output(good, [tmp_path / "in.nii", tmp_path])
    for name in ("a.dcm", "a.jpg", "a.bmp", "a", "a.txt", "a.gz"):
        assert ".nii.gz" in str(
            assert_refused("output_extension", tmp_path / name, files.check_output, tmp_path / name)
        )
    for name, other in (("a.mhd", ".mha"), ("a.nhdr", ".nrrd")):
        assert other in str(assert_refused("output_two_files", tmp_path / name, files.check_output, tmp_path / name))
    lost = tmp_path / "no" / "a.nii"
    assert_refused("output_folder_missing", lost, files.check_output, lost)
    (tmp_path / "d.nii").mkdir()
    assert_refused("output_is_folder", tmp_path / "d.nii", files.check_output, tmp_path / "d.nii")
    assert os.listdir(tmp_path) == ["d.nii"]


def test_check_output_against_inputs(tmp_path, monkeypatch):
    source = tmp_path / "in.nii"
    files.write(volume_of(), source)
    (tmp_path / "soft.nii").symlink_to(source)
    os.link(source, tmp_path / "hard.nii")
    monkeypatch.chdir(tmp_path)
    for same in (source, tmp_path / "soft.nii", tmp_path / "hard.nii", Path("in.nii"), tmp_path / "." / "in.nii"):
        assert_refused("output_is_input", same, files.check_output, same, [tmp_path / "other.nii", source])
    files.check_output("other.nii", [source])


def test_check_output_permissions(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    with monkeypatch.context() as patch:  # root may write anywhere: the answer of the system is made up
        patch.setattr(os, "access", lambda where, mode: Path(where) != tmp_path.resolve())
        assert_refused("output_not_writable", path, files.check_output, path)
    path.touch()
    monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != path)
    assert_refused("output_not_writable", path, files.check_output, path)


@pytest.mark.parametrize("call", ["write", "check"])
def test_formats_that_do_not_fit(tmp_path, call):
    def refused(code, name, volume):
        path = tmp_path / name
        if call == "write":
            assert_refused(code, path, files.write, volume, path)
        else:
            assert_refused(code, path, files.check_output, path, like=volume)
        assert os.listdir(tmp_path) == []

    sheared = np.eye(4)
    sheared[0, 1] = 0.01
    refused("geometry_sheared", "a.nrrd", volume_of(matrix=sheared))
    refused("geometry_unusable", "a.nii", volume_of(matrix=np.zeros((4, 4))))
    refused("output_picture_slices", "a.png", volume_of("uint8"))
    refused("output_picture_slices", "a.tif", volume_of("uint8"))
    if call == "write":
        refused("output_type", "a.png", volume_of("float32", shape=(1, 4, 5)))
        refused("output_type", "a.png", volume_of("int16", shape=(1, 4, 5)))
        refused("output_geometry", "a.nii", volume_of("rgb", shape=(1, 4, 5)))
        far = np.eye(4)
        far[0, 3] = 1e7 + 0.3
        refused("output_geometry", "a.nii", volume_of(matrix=far))
        refused("voxels_unusable", "a.nii", volume_of("float16"))


@pytest.mark.parametrize("ext", [*TOLERANCE, ".png", ".tif"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, ext, error):
    path = tmp_path / f"a{ext}"
    volume = volume_of("uint8", shape=(1, 8, 9))
    files.write(volume, path)
    before = path.read_bytes()
    original = sitk.WriteImage

    def breaks(image, name, *rest):
        original(image, name, *rest)
        assert Path(name).parent == tmp_path
        raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(sitk, "WriteImage", breaks)
        for target in (path, tmp_path / f"new{ext}"):
            with pytest.raises(error if error is KeyboardInterrupt else FusionError) as caught:
                files.write(volume, target)
            assert error is KeyboardInterrupt or caught.value.code == "output_failed"
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


FULL_DISK = """
import resource, signal, sys
import numpy as np
from ASFEFusionLib import files
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.volume import Volume
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
voxels = np.random.default_rng(0).integers(0, 60000, (1, 400, 400)).astype(np.uint16)
try:
    files.write(Volume(voxels, np.eye(4)), sys.argv[1])
except FusionError as error:
    print(error.code)
"""


@pytest.mark.parametrize("ext", [*TOLERANCE, ".png", ".tif"])
def test_full_disk(tmp_path, ext):
    """ITK writes NIfTI to a full disk without a word."""
    if sys.platform != "linux":
        warnings.warn("a full disk is made up on Linux alone", stacklevel=1)
        return
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / f"a{ext}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "output_failed"
    assert os.listdir(tmp_path) == []


def test_write_through_a_link(tmp_path):
    (tmp_path / "link.nii").symlink_to(tmp_path / "real.nii")
    for value in (1, 2):
        files.write(Volume(np.full((3, 4, 5), value, np.uint8), np.eye(4)), tmp_path / "link.nii")
        assert (tmp_path / "link.nii").is_symlink()
        assert files.read(tmp_path / "real.nii").voxels.max() == value


def test_real_odd_and_oblique():
    if (folder := real("odd")) is not None:
        one = files.read(folder / "one_slice_sts014_CT.nii.gz")
        assert (one.size_ijk, one.two_d, one.voxels.dtype.name) == ((197, 178, 1), False, "int16")
        pet = files.read(folder / "nan_outside_body_sts014_PET.nrrd")
        assert np.isnan(pet.voxels).any()
    if (folder := real("gt_ms07_t1_t2_5mm_oblique")) is not None:
        moving = files.read(folder / "moving_T2_5mm.nii.gz")
        assert moving.size_ijk == (176, 200, 26)
        assert np.allclose(moving.spacing, (1.2, 1.2, 5), atol=1e-5)
        assert np.allclose(moving.ijk_to_physical[:3, 3], (-115.1, -76.2, -56.8), atol=0.05)
        assert np.allclose(moving.ijk_to_physical[:3, 2] / 5, (-0.052, -0.208, 0.977), atol=1e-3)
