"""`fuse` with a search, a given transform or landmarks, from the command line."""

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk

from ASFEFusionLib import files
from ASFEFusionLib.__main__ import main
from ASFEFusionLib.alignment import pose, transforms
from ASFEFusionLib.volume import to_sitk

pytestmark = pytest.mark.judged
AWAY = pose.about(np.array([0, -20, 50.0]), pose.rotation(np.radians([5, -8, 10])), np.array([12, -9, 15.0]))


@pytest.fixture(scope="module")
def folder(heads, tmp_path_factory):
    """CT, MR, and the MR where `AWAY` takes its points."""
    path = tmp_path_factory.mktemp("align")
    files.write(heads["CT"], path / "ct.nrrd")
    files.write(heads["MR"], path / "mr.nrrd")
    files.write(transforms.moved(heads["MR"], np.linalg.inv(AWAY)), path / "away.nrrd")
    return path


def fuse(folder, second, *options):
    """-> the fused volume and the report."""
    names = ("--output", folder / "out.nrrd", "--report", folder / "out.json")
    arguments = ("fuse", folder / "ct.nrrd", folder / second, *names, "--modality-second", "MR", *options)
    assert main([str(a) for a in arguments]) == 0
    return files.read(folder / "out.nrrd").voxels.astype(int), json.loads(
        (folder / "out.json").read_text(encoding="utf-8")
    )


def test_align_finds_says_and_saves_the_pose(folder, heads, capsys):
    right, _ = fuse(folder, "mr.nrrd")
    wrong, report = fuse(folder, "away.nrrd")
    said = capsys.readouterr()
    assert "shifted" in said.err
    assert "NOT TRUSTED" in said.out
    assert not report["alignment"]["trusted"]
    fused, report = fuse(folder, "away.nrrd", "--align", "rigid", "--save-transform", folder / "pose.tfm")
    said = capsys.readouterr()
    degrees = float(re.search(r"turned ([\d.]+) degrees", said.out)[1])
    assert degrees == pytest.approx(np.degrees(pose.rotation_angle(AWAY)), abs=0.3)
    assert " trusted, confidence" in said.out
    assert report["alignment"]["trusted"]
    assert np.abs(fused - right).mean() < 20 < np.abs(wrong - right).mean()
    # SimpleITK itself brings the second home by the file.
    fixed, moving = (sitk.Cast(to_sitk(files.read(folder / f"{n}.nrrd")), sitk.sitkFloat32) for n in ("ct", "away"))
    home = sitk.Resample(moving, fixed, sitk.ReadTransform(str(folder / "pose.tfm")))
    there = sitk.Resample(sitk.Cast(to_sitk(heads["MR"]), sitk.sitkFloat32), fixed)
    values = [sitk.GetArrayFromImage(image).ravel() for image in (home, there)]
    assert np.corrcoef(*values)[0, 1] > 0.98


def test_a_given_transform_is_used_as_it_is(folder):
    transforms.write(AWAY, np.zeros(3), folder / "given.tfm")
    right, _ = fuse(folder, "mr.nrrd")
    options = ("--transform", folder / "given.tfm", "--save-transform", folder / "saved.tfm")
    fused, report = fuse(folder, "away.nrrd", *options, "--preview", folder / "out.png")
    assert np.abs(fused - right).max() <= 1
    assert report["alignment"]["trusted"]
    assert np.allclose(transforms.linear(transforms.read(folder / "saved.tfm")), AWAY)
    given, searched = files.read(folder / "out.png").voxels, (folder / "second.png")
    fuse(folder, "mr.nrrd", "--preview", searched)
    second = files.read(searched).voxels
    assert np.abs(given.astype(int) - second)[:, 20:].mean() < 1  # the second is shown where it was laid


def test_a_given_transform_is_where_the_search_begins(folder):
    """The saved pose holds both, the file's and what the search added to it."""
    near = pose.about(np.array([0, -20, 50.0]), pose.rotation(np.radians([2, 2, -2])), np.array([2, -3, 1.0])) @ AWAY
    transforms.write(near, np.zeros(3), folder / "near.h5")
    options = ("--transform", folder / "near.h5", "--align", "near", "--save-transform", folder / "refined.txt")
    _, report = fuse(folder, "away.nrrd", *options)
    found = transforms.linear(transforms.read(folder / "refined.txt"))
    assert np.allclose(report["transform_first_to_second"], found)
    grid = files.read(folder / "ct.nrrd")
    points = np.random.default_rng(0).uniform(-70, 70, (50, 3)) + grid.ijk_to_physical[:3] @ [38, 38, 21, 1]
    assert pose.mean_distance(found, AWAY, points) < 0.8
    assert pose.mean_distance(near, AWAY, points) > 3
    assert report["alignment"]["degrees"] < 6


def test_landmarks(folder):
    rng = np.random.default_rng(3)
    first = rng.uniform(-60, 60, (4, 3))
    second = first @ AWAY[:3, :3].T + AWAY[:3, 3]
    for name, points in (("first", first), ("second", second)):
        rows = [f"{n},{x},{y},{z},0,0,0,1,1,1,0,p,,\n" for n, (x, y, z) in enumerate(points)]
        (folder / f"{name}.fcsv").write_text("# CoordinateSystem = LPS\n" + "".join(rows), encoding="utf-8")
    right, _ = fuse(folder, "mr.nrrd")
    fused, _ = fuse(folder, "away.nrrd", "--landmarks", folder / "first.fcsv", folder / "second.fcsv")
    assert np.abs(fused - right).max() <= 1


def test_landmarks_that_do_not_fit_are_said(folder, capsys):
    points = np.random.default_rng(3).uniform(-60, 60, (4, 3))
    for name, order in (("good", [0, 1, 2, 3]), ("swapped", [1, 0, 2, 3])):
        rows = [f"{n},{x},{y},{z},0,0,0,1\n" for n, (x, y, z) in enumerate(points[order])]
        (folder / f"{name}.fcsv").write_text("# CoordinateSystem = LPS\n" + "".join(rows), encoding="utf-8")
    fuse(folder, "mr.nrrd", "--landmarks", folder / "good.fcsv", folder / "swapped.fcsv", "--no-check")
    assert "mm apart after all" in capsys.readouterr().err
    fuse(folder, "mr.nrrd", "--landmarks", folder / "good.fcsv", folder / "good.fcsv", "--no-check")
    assert "mm apart" not in capsys.readouterr().err


def test_a_picture_has_no_place_to_be_moved_from(folder, tmp_path, capsys):
    picture = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8))
    for name in ("a", "b"):
        sitk.WriteImage(picture, str(tmp_path / f"{name}.png"))
    transforms.write(AWAY, np.zeros(3), tmp_path / "given.tfm")
    common = ["fuse", *(str(tmp_path / n) for n in ("a.png", "b.png")), "--output", str(tmp_path / "out.png")]
    for more in (["--transform", "given.tfm"], ["--save-transform", "saved.tfm"]):
        assert main([*common, more[0], str(tmp_path / more[1])]) == 1
        assert "is a picture" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_bent_transform(folder, heads, capsys):
    """A B-spline that takes everything 9 mm aside."""
    spline = sitk.BSplineTransformInitializer(to_sitk(heads["CT"]), [4, 4, 4])
    spline.SetParameters(
        [9.0 if n < len(spline.GetParameters()) // 3 else 0.0 for n in range(len(spline.GetParameters()))]
    )
    sitk.WriteTransform(spline, str(folder / "bent.h5"))
    right, _ = fuse(folder, "mr.nrrd")
    aside, _ = fuse(folder, "mr.nrrd", "--no-check")
    assert np.array_equal(right, aside)
    fused, report = fuse(folder, "mr.nrrd", "--transform", folder / "bent.h5", "--preview", folder / "bent.png")
    assert report["displacement"] == pytest.approx(9, abs=0.1)
    assert not report["alignment"]["trusted"]
    transforms.write(pose.about(np.zeros(3), np.eye(3), np.array([9.0, 0, 0])), np.zeros(3), folder / "shift.tfm")
    straight, _ = fuse(folder, "mr.nrrd", "--transform", folder / "shift.tfm")
    assert np.abs(fused - straight).mean() < 5 < np.abs(right - straight).mean()
    capsys.readouterr()
    out = folder / "none.nrrd"
    common = ["fuse", str(folder / "ct.nrrd"), str(folder / "mr.nrrd"), "--output", str(out)]
    bent = ["--transform", str(folder / "bent.h5")]
    for more in (["--align", "rigid"], ["--save-transform", str(folder / "no.tfm")]):
        assert main([*common, *bent, *more]) == 1
        assert "bends space" in capsys.readouterr().err
    assert not out.exists()
    assert not (folder / "no.tfm").exists()


def test_all_orientations_are_never_trusted(folder, capsys):
    _, report = fuse(folder, "away.nrrd", "--align", "rigid-any")
    said = capsys.readouterr()
    assert "NOT TRUSTED" in said.out
    assert "confirm the result by eye" in said.err
    assert not report["alignment"]["trusted"]
    assert [reason["code"] for reason in report["alignment"]["reasons"]] == ["align_any"]
