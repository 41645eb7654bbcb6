"""The command line: outputs that are complete or absent, one sentence for bad input."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ASFEFusionLib import files
from ASFEFusionLib.__main__ import main
from ASFEFusionLib.volume import Volume


@pytest.fixture
def folder(heads, tmp_path):
    """A folder with the phantom's volumes as files."""
    for modality, volume in heads.items():
        files.write(volume, tmp_path / f"{modality}.nrrd")
    return tmp_path


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_fuse_writes_volume_report_and_preview(folder, capsys):
    out, report, preview = folder / "fused.nii.gz", folder / "report.json", folder / "preview.png"
    arguments = ["--output", out, "--report", report, "--preview", preview, "--colour", "hot", "--grid", "second"]
    arguments += ["--modality-second", "PET", "--window-first=-1000,2000"]
    assert main(["fuse", *map(str, [folder / "CT.nrrd", folder / "PET.nrrd", *arguments])]) == 0
    fused, chosen = files.read(out), files.read(folder / "PET.nrrd")
    assert fused.rgb
    assert fused.size_ijk == chosen.size_ijk
    corner = np.array([*fused.size_ijk, 1.0])
    assert np.abs((fused.ijk_to_physical - chosen.ijk_to_physical) @ corner).max() < 1e-4
    values = json.loads(report.read_text(encoding="utf-8"))
    assert values["windows"]["first"]["low"] == -1000
    assert values["grid"]["name"] == "second"
    picture = files.read(preview)
    assert picture.rgb
    assert min(picture.size_ijk[:2]) > 300
    assert np.ptp(picture.voxels[0, :, -200:].astype(int), axis=-1).max() > 40  # the fused column is coloured
    assert "not for quantitation" in capsys.readouterr().out
    assert len(listing(folder)) == 6


def test_the_file_itself_says_what_it_is(folder):
    import SimpleITK as sitk

    for name in ("fused.nii.gz", "fused.nrrd", "fused.mha"):
        assert main(["fuse", str(folder / "CT.nrrd"), str(folder / "MR.nrrd"), "--output", str(folder / name)]) == 0
        image = sitk.ReadImage(str(folder / name))
        assert any("not for quantitation" in image.GetMetaData(key) for key in image.GetMetaDataKeys()), name


def test_pictures_by_fuse(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        files.write(Volume(rng.integers(0, 255, (1, 33, 47), np.uint8), np.eye(4), two_d=True), tmp_path / name)
    names = ("a.png", "b.png", "f.png", "p.png")
    first, second, output, preview = (str(tmp_path / name) for name in names)
    assert main(["fuse", first, second, "--output", output, "--preview", preview]) == 0
    assert files.read(tmp_path / "f.png").voxels.shape == (1, 33, 47)
    assert (tmp_path / "p.png").exists()


def picture_folders(root, coloured=True):
    rng = np.random.default_rng(1)
    for name in ("A", "B"):
        (root / name).mkdir()
        for n in range(3):
            shape = (1, 40 + n, 50, 3) if coloured and name == "A" else (1, 40 + n, 50)
            picture = Volume(rng.integers(0, 255, shape).astype(np.uint8), np.eye(4), two_d=True)
            files.write(picture, root / name / f"{n}.png")
    return [str(root / "A"), str(root / "B"), "--output", str(root / "out")]


@pytest.mark.parametrize("coloured", [True, False])
def test_fuse_folder(tmp_path, coloured):
    assert main(["fuse-folder", *picture_folders(tmp_path, coloured)]) == 0
    for n in range(3):
        fused, first = files.read(tmp_path / "out" / f"{n}.png"), files.read(tmp_path / "A" / f"{n}.png")
        assert fused.voxels.shape == first.voxels.shape
        assert fused.voxels.dtype == np.uint8
    assert listing(tmp_path / "out") == ["0.png", "1.png", "2.png"]


def test_fuse_folder_of_volumes(heads, tmp_path):
    for name, modality in (("A", "CT"), ("B", "MR")):
        (tmp_path / name).mkdir()
        files.write(heads[modality], tmp_path / name / "case.nii.gz")
    assert main(["fuse-folder", str(tmp_path / "A"), str(tmp_path / "B"), "--output", str(tmp_path / "out")]) == 0
    assert files.read(tmp_path / "out" / "case.nii.gz").size_ijk == heads["CT"].size_ijk


def test_fuse_folder_keeps_what_stood_there_and_leaves_nothing_half(tmp_path, capsys):
    arguments = picture_folders(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    (tmp_path / "B" / "2.png").write_bytes(b"no picture")
    before = listing(tmp_path)
    assert main(["fuse-folder", *arguments]) == 1
    assert "2.png" in capsys.readouterr().err
    assert listing(tmp_path) == before


def test_fuse_folder_names_that_do_not_match(tmp_path, capsys):
    arguments = picture_folders(tmp_path)
    (tmp_path / "B" / "2.png").rename(tmp_path / "B" / "7.png")
    assert main(["fuse-folder", *arguments]) == 1
    assert "2.png, 7.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    arguments[1] = str(tmp_path / "none")
    assert main(["fuse-folder", *arguments]) == 1


def make_bad_inputs(folder, heads):
    import SimpleITK as sitk

    mr = heads["MR"]
    (folder / "empty.nrrd").write_bytes(b"")
    (folder / "text.nrrd").write_text("this is no image")
    whole = (folder / "MR.nrrd").read_bytes()
    (folder / "cut.nrrd").write_bytes(whole[: len(whole) // 2])
    files.write(mr, folder / "whole.nii.gz")
    raw = gzip.decompress((folder / "whole.nii.gz").read_bytes())
    (folder / "cut.nii").write_bytes(raw[: len(raw) // 2])
    sitk.WriteImage(sitk.JoinSeries([sitk.Image(8, 8, 8, sitk.sitkInt16)] * 2), str(folder / "four.nrrd"))
    for name, value in (("constant", 3.0), ("nan", np.nan)):
        files.write(Volume(np.full(mr.voxels.shape, value, np.float32), mr.ijk_to_physical), folder / f"{name}.nrrd")
    away = mr.ijk_to_physical.copy()
    away[0, 3] += 3000
    files.write(Volume(mr.voxels, away), folder / "away.nrrd")
    files.write(Volume(np.zeros((1, 8, 8), np.uint8), np.eye(4), two_d=True), folder / "picture.png")
    (folder / "weights.pt").write_text("no weights")
    (folder / "nothing").mkdir()


BAD = {
    "missing file": ["none.nrrd"],
    "empty file": ["empty.nrrd"],
    "not an image": ["text.nrrd"],
    "truncated NRRD": ["cut.nrrd"],
    "truncated NIfTI": ["cut.nii"],
    "4-D": ["four.nrrd"],
    "constant": ["constant.nrrd"],
    "all NaN": ["nan.nrrd"],
    "no overlap": ["away.nrrd"],
    "other dimension": ["picture.png"],
    "folder without DICOM": ["nothing"],
    "weights missing": ["MR.nrrd", "--weights", "none.pt"],
    "weights damaged": ["MR.nrrd", "--weights", "weights.pt"],
    "window of other units": ["MR.nrrd", "--window-first", "pet-suv-5", "--modality-first", "CT"],
    "unknown window": ["MR.nrrd", "--window-first", "bright"],
    "unknown colour": ["MR.nrrd", "--colour", "mauve"],
    "output folder missing": ["MR.nrrd", "--output", "none/fused.nrrd"],
    "output is input": ["MR.nrrd", "--output", "MR.nrrd"],
    "output of unknown kind": ["MR.nrrd", "--output", "fused.xyz"],
    "volume into a picture": ["MR.nrrd", "--output", "fused.png"],
    "report folder missing": ["MR.nrrd", "--report", "none/report.json"],
    "report is input": ["MR.nrrd", "--report", "CT.nrrd"],
    "preview of unknown kind": ["MR.nrrd", "--preview", "preview.doc"],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(folder, heads, case, capsys, monkeypatch):
    make_bad_inputs(folder, heads)
    monkeypatch.chdir(folder)
    before = {name: (folder / name).stat().st_mtime_ns for name in listing(folder)}
    arguments = BAD[case] if "--output" in BAD[case] else [*BAD[case], "--output", "fused.nrrd"]
    assert main(["fuse", "CT.nrrd", *arguments]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("Fusing", "\rFusing"))]
    assert said[-1].startswith("Error: ")
    assert said[-1].endswith(".")
    assert "Traceback" not in "".join(said)
    assert {name: (folder / name).stat().st_mtime_ns for name in listing(folder)} == before


def test_cuda_asked_for_and_not_there(folder, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(folder)
    assert main(["fuse", "CT.nrrd", "MR.nrrd", "--output", "f.nrrd", "--device", "cuda"]) == 1
    assert "cuda" in capsys.readouterr().err
    assert not (folder / "f.nrrd").exists()


def test_a_folder_that_may_not_be_written(folder, monkeypatch, capsys):
    original = os.access
    closed = folder / "closed"
    closed.mkdir()
    # The tests may run as root, whom no permission stops: so the answer is changed, not the folder.
    monkeypatch.setattr(os, "access", lambda path, mode: original(path, mode) and not str(path).endswith("closed"))
    for option in ([], ["--report", str(closed / "r.json")]):
        output = folder / "f.nrrd" if option else closed / "f.nrrd"
        arguments = [str(folder / "CT.nrrd"), str(folder / "MR.nrrd"), "--output", str(output), *option]
        assert main(["fuse", *arguments]) == 1
        assert "permissions" in capsys.readouterr().err
    assert not (folder / "f.nrrd").exists()


def test_a_fault_after_the_volume_is_written_leaves_nothing(folder, monkeypatch):
    from ASFEFusionLib.commands import fuse as command

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "write_preview", broken)
    before = listing(folder)
    arguments = [folder / "CT.nrrd", folder / "MR.nrrd", "--output", folder / "f.nrrd", "--preview", folder / "p.png"]
    assert main(["fuse", *map(str, arguments)]) == 130
    assert listing(folder) == before


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(folder, kind):
    before = listing(folder)
    command = [sys.executable, "-m", "ASFEFusionLib", "fuse", "CT.nrrd", "MR.nrrd", "--output", "f.nrrd"]
    command += ["--grid", "finest", "--threads", "1"]

    def heeding():  # a test run in the background ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, preexec_fn=heeding)  # noqa: PLW1509
    said = b""
    deadline = time.monotonic() + 60
    while b"Slice" not in said and time.monotonic() < deadline:
        said += process.stderr.read1()
    process.send_signal(kind)
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert b"Traceback" not in said + rest
    assert listing(folder) == before


def test_bad_outputs_are_refused_before_anything_is_read(folder, monkeypatch):
    """A wrong name must not cost the minutes of a fusion."""
    from ASFEFusionLib.commands import fuse as command

    monkeypatch.setattr(command, "fuse", lambda *_: pytest.fail("the fusion ran"))
    monkeypatch.chdir(folder)
    for bad in (["--output", "f.png"], ["--output", "none/f.nrrd"], ["--output", "f.nrrd", "--preview", "p.doc"]):
        assert main(["fuse", "CT.nrrd", "MR.nrrd", *bad]) == 1
    monkeypatch.setattr(command, "read", lambda *_: pytest.fail("an input was read"))
    assert main(["fuse", "CT.nrrd", "MR.nrrd", "--output", "CT.nrrd"]) == 1
    assert main(["fuse", "CT.nrrd", "MR.nrrd", "--output", "f.nrrd", "--report", "MR.nrrd"]) == 1


def test_two_outputs_of_one_name(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        files.write(Volume(rng.integers(0, 255, (1, 33, 47), np.uint8), np.eye(4), two_d=True), tmp_path / name)
    out = str(tmp_path / "x.png")
    arguments = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--output", out, "--preview", out]
    assert main(["fuse", *arguments]) == 1
    assert "twice" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_messages_name_the_users_path(folder, monkeypatch, capsys):
    from ASFEFusionLib.commands import fuse as command
    from ASFEFusionLib.errors import FusionError

    def full(volume, path):
        raise FusionError("output_failed", path=path)

    monkeypatch.setattr(command, "write", full)
    monkeypatch.chdir(folder)
    assert main(["fuse", "CT.nrrd", "MR.nrrd", "--output", "f.nrrd"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: f.nrrd could not be written")


def test_names_that_no_disk_takes(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    long = "a" * 300 + ".nrrd"
    for arguments in ((long, "MR.nrrd", "--output", "f.nrrd"), ("CT.nrrd", "MR.nrrd", "--output", long)):
        assert main(["fuse", *arguments]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("Error: ")


def test_a_window_may_begin_with_a_minus(folder):
    report = folder / "r.json"
    arguments = ["--output", str(folder / "f.nrrd"), "--window-first", "-500,500", "--report", str(report)]
    assert main(["fuse", str(folder / "CT.nrrd"), str(folder / "MR.nrrd"), *arguments]) == 0
    assert json.loads(report.read_text(encoding="utf-8"))["windows"]["first"]["low"] == -500


def test_fuse_folder_takes_empty_slices_and_refuses_doubles(tmp_path, capsys):
    arguments = picture_folders(tmp_path)
    files.write(Volume(np.zeros((1, 40, 50), np.uint8), np.eye(4), two_d=True), tmp_path / "B" / "0.png")
    assert main(["fuse-folder", *arguments]) == 0
    for name in ("A", "B"):
        (tmp_path / name / "0.jpg").write_bytes(b"whatever")
    assert main(["fuse-folder", *arguments]) == 1
    assert "0.jpg and 0.png" in capsys.readouterr().err


def test_fuse_folder_output_that_cannot_be(tmp_path, capsys):
    arguments = picture_folders(tmp_path)
    (tmp_path / "blocked" / "1.png").mkdir(parents=True)
    for bad in (tmp_path / "none" / "out", tmp_path / "A", tmp_path / "A" / "0.png", tmp_path / "blocked"):
        before = listing(tmp_path)
        assert main(["fuse-folder", *arguments[:-1], str(bad)]) == 1
        assert capsys.readouterr().err.startswith("Error: ")
        assert listing(tmp_path) == before


def test_the_preview_is_upright_and_shows_the_windows(heads, tmp_path):
    """The skull's top is up in the lower rows, and the patient's left is at the right."""
    from ASFEFusionLib.intensity import Window
    from ASFEFusionLib.preview import CAPTION, preview

    ct = heads["CT"]
    marked = Volume(np.zeros_like(ct.voxels), ct.ijk_to_physical)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in ct.size_ijk), indexing="ij"), -1).reshape(-1, 3)
    lps = np.c_[places, np.ones(len(places))] @ ct.ijk_to_physical.T
    left_top = places[(lps[:, 0] > 10) & (lps[:, 2] > 60)]
    marked.voxels[left_top[:, 2], left_top[:, 1], left_top[:, 0]] = 100
    pixels = preview([("marked", marked, Window(0, 100, ""))], at=np.array([0.0, -15.0, 70.0]))[CAPTION:, 6:-6].mean(-1)
    axial, coronal = pixels[:300], pixels[330:]
    assert axial[:, 200:].mean() > 5 * axial[:, :120].mean()
    bright = np.argwhere(coronal[:, 200:] > 200)[:, 0]
    assert bright.min() < 60
    assert np.median(bright) < 130


def test_the_preview_of_large_volumes_is_quick(tmp_path):
    from ASFEFusionLib.intensity import Window
    from ASFEFusionLib.preview import preview

    volume = Volume(np.zeros((160, 512, 512), np.int16), np.diag([0.5, 0.5, 1.0, 1.0]))
    volume.voxels[60:90, 200:300, 200:300] = 50
    began = time.monotonic()
    preview([("one", volume, Window(0, 100, ""))] * 3)
    assert time.monotonic() - began < 12  # whole-volume smoothing took over a minute


def test_info(capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    for word in ("torch", "devices", "compact", "SHA-256", "parameters"):
        assert word in said


def test_a_demo_that_fails_leaves_nothing(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "demo"), "--weights", "nope"]) == 1
    assert listing(tmp_path) == []


def test_demo(tmp_path, monkeypatch, heads):
    from ASFEFusionLib import phantom

    monkeypatch.setattr(phantom, "head", lambda modality: heads[modality])
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    assert listing(tmp_path / "demo") == [
        "demo.png",
        "fused_CT_MR.nrrd",
        "fused_MR_PET.nrrd",
        "phantom_CT.nrrd",
        "phantom_MR.nrrd",
        "phantom_PET.nrrd",
    ]
