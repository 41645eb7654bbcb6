"""The evaluate command: pictures and volumes, tables, the paired test. What compare shares with it is tested here."""

import csv
import importlib.util

import numpy as np
import pytest
import scipy.stats
import SimpleITK as sitk
import torch
from PIL import Image

from ASFEFusionLib import files
from ASFEFusionLib.__main__ import main
from ASFEFusionLib.alignment import transforms
from ASFEFusionLib.grids import grid_of
from ASFEFusionLib.research import cases, evaluate, figures, metrics
from ASFEFusionLib.volume import Volume

OUTPUTS = ["scores.csv", "scores.png", "summary.csv", "summary.md"]


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def picture(seed, height=48, width=56):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 56
    inside = (x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.16
    waves = np.sin(rng.uniform(8, 20) * x) * np.cos(rng.uniform(8, 20) * y)
    return (inside * np.clip(110 + 90 * waves + rng.normal(0, 4, x.shape), 1, 255)).astype(np.uint8)


def save(array, path):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Folders A, B (the first picture of A in colour), F (their mean), G (their maximum), of 6 pictures each."""
    for n in range(6):
        a, b = picture(n), picture(100 + n)
        save(a if n else np.stack([a, a // 2, a // 3], -1), tmp_path / "A" / f"{n}.png")
        save(b, tmp_path / "B" / f"{n}.png")
        grey = np.asarray(Image.open(tmp_path / "A" / f"{n}.png").convert("RGB")) @ np.array([0.299, 0.587, 0.114])
        save(((np.rint(grey) + b) / 2).astype(np.uint8), tmp_path / "F" / f"{n}.png")
        save(np.maximum(np.rint(grey), b).astype(np.uint8), tmp_path / "G" / f"{n}.tif")
    return tmp_path


def run(folder, *arguments, command="evaluate", output="out"):
    given = [str(folder / a) if (folder / str(a)).exists() else str(a) for a in arguments]
    return main([command, *given, "--output", str(folder / output), "--threads", "1"])


def table(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tensors(*arrays):
    return [torch.tensor(x[None, None] / 255) for x in arrays]


def test_pictures(pictures, capsys):
    assert run(pictures, "A", "B", "F") == 0
    assert listing(pictures / "out") == OUTPUTS
    rows = table(pictures / "out" / "scores.csv")
    assert [(row["method"], row["image"], row["slice"]) for row in rows] == [("F", str(n), "") for n in range(6)]
    assert list(rows[0])[3:] == [*metrics.METRICS, "Flicker"]
    assert {row["Flicker"] for row in rows} == {""}
    read = [np.asarray(Image.open(pictures / folder / "3.png")) for folder in "ABF"]
    for name, value in metrics.score(*tensors(*read)).items():
        assert float(rows[3][name]) == pytest.approx(value.item(), rel=2e-5, abs=1e-6), name
    summary = {row["metric"]: row for row in table(pictures / "out" / "summary.csv")}
    assert list(summary) == list(metrics.METRICS)
    for name in ("EN", "Qabf"):
        values = [float(row[name]) for row in rows]
        assert float(summary[name]["F mean"]) == pytest.approx(np.mean(values), rel=1e-4)
        assert float(summary[name]["F SD"]) == pytest.approx(np.std(values, ddof=1), rel=1e-4)
    said = capsys.readouterr().out
    text = (pictures / "out" / "summary.md").read_text(encoding="utf-8")
    assert text in said
    assert "6 pictures" in text
    for line in ("| EN |", "| Qabf ↑ |", "| Nabf ↓ |", "| metric | F mean | F SD |"):
        assert line in text
    plot = np.asarray(Image.open(pictures / "out" / "scores.png").convert("L"))
    assert np.ptp(plot) > 100


def test_the_luminance_of_colour_is_scored(pictures):
    assert run(pictures, "A", "B", "F", "--metrics", "psnr", "--only", "0") == 0
    (row,) = table(pictures / "out" / "scores.csv")
    rgb = np.asarray(Image.open(pictures / "A" / "0.png"))
    grey = np.rint(rgb @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    b, f = (np.asarray(Image.open(pictures / folder / "0.png")) for folder in "BF")
    assert float(row["PSNR"]) == pytest.approx(metrics.psnr(*tensors(grey, b, f)).item(), rel=1e-5)


def test_some_metrics_and_some_pictures(pictures):
    options = ["--metrics", "qabf", "EN", "--only", "[1-4]", "--every", "2"]
    assert run(pictures, "A", "B", "F", *options) == 0
    rows = table(pictures / "out" / "scores.csv")
    assert [row["image"] for row in rows] == ["1", "3"]
    assert list(rows[0]) == ["method", "image", "slice", "EN", "Qabf"]


def test_against_another_method(pictures, capsys):
    assert run(pictures, "A", "B", "F", "--against", pictures / "G", "--metrics", "CC", "SD", "--names", "mean") == 0
    rows = {row["metric"]: row for row in table(pictures / "out" / "summary.csv")}
    # All six pictures speak for the mean in one, and for the maximum in the other: 2 of 2 ** 6 signs are so alike.
    assert float(rows["CC"]["median difference"]) > 0 > float(rows["SD"]["median difference"])
    for row in rows.values():
        assert float(row["p"]) == pytest.approx(2 / 64)
        assert float(row["p (Holm)"]) == pytest.approx(4 / 64)
        assert {"mean mean", "mean SD", "G mean", "G SD"} < set(row)
    assert {row["method"] for row in table(pictures / "out" / "scores.csv")} == {"mean", "G"}
    assert "0.062" in capsys.readouterr().out


def test_paired_tests_by_hand(monkeypatch):
    original = scipy.stats.wilcoxon

    def older(values):
        """As before scipy 1.13, which refuses differences that are all zero."""
        if not values.any():
            raise ValueError("all zero")
        return original(values)

    monkeypatch.setattr(scipy.stats, "wilcoxon", older)
    low = np.arange(1.0, 7)
    first = {"A": low, "B": low, "C": low, "D": low + np.array([0.5, 0.1, -0.2, 0.3, 0.4, 0.6])}
    second = {"A": low + 1, "B": low, "C": low - [1, 2, 3, 4, 5, np.nan], "D": low}
    found = evaluate.paired_tests(first, second)
    assert list(found) == ["A", "B", "C", "D"]
    assert found["A"].median == -1
    assert found["B"] == (0, 1, 1)
    # C: five differences of one sign. D: the second smallest of six is negative, so that W is 2.
    assert [found[n].p for n in "ACD"] == pytest.approx([2 / 64, 2 / 32, 6 / 64])
    assert [found[n].holm for n in "ACD"] == pytest.approx([4 * 2 / 64, 3 * 2 / 32, 2 * 6 / 64])


def test_two_methods_that_are_one(pictures):
    assert run(pictures, "A", "B", "F", "--against", pictures / "F", "--names", "one", "two", "--metrics", "CC") == 0
    assert table(pictures / "out" / "summary.csv")[0]["p"] == "1"


@pytest.fixture
def volumes(heads, tmp_path):
    """CT and MR on grids of their own, and on the CT's grid: fused, the same with each other slice dimmed."""
    files.write(heads["CT"], tmp_path / "CT.nrrd")
    files.write(heads["MR"], tmp_path / "MR.nrrd")
    names = [str(tmp_path / name) for name in ("CT.nrrd", "MR.nrrd", "fused.nrrd")]
    assert main(["fuse", *names[:2], "--output", names[2], "--threads", "1"]) == 0
    fused = files.read(names[2])
    dimmed = fused.voxels.copy()
    dimmed[::2] = np.rint(dimmed[::2] * 0.8)
    files.write(Volume(dimmed, fused.ijk_to_physical), tmp_path / "dimmed.nrrd")
    return tmp_path


def test_volumes_as_they_entered_the_fusion(volumes, heads):
    """Scores of a volume are those of its slices in the fusion's own windows, on its own grid."""
    arguments = ["CT.nrrd", "MR.nrrd", "fused.nrrd", "--metrics", "MI", "SSIM", "flicker"]
    assert run(volumes, *arguments) == 0
    rows = table(volumes / "out" / "scores.csv")
    from ASFEFusionLib.space import resample

    ct, mr = heads["CT"], heads["MR"]
    on_grid = resample(mr, grid_of(ct))
    a = intensity_levels(ct.voxels, -450, 1050)
    body = mr.voxels[mr.voxels > mr.voxels.mean()]
    b = intensity_levels(on_grid, np.percentile(mr.voxels, 0.5), np.percentile(body, 99.5))
    f = intensity_levels(files.read(volumes / "fused.nrrd").voxels, 0, 1000)
    number = len(a) // 2
    row = next(row for row in rows if row["slice"] == str(number))
    wanted = metrics.score(*tensors(a[number], b[number], f[number]), ["MI", "SSIM"])
    for name, value in wanted.items():
        assert float(row[name]) == pytest.approx(value.item(), rel=2e-3), name
    steps = [torch.tensor(x[number : number + 2, None] / 255) for x in (a, b, f)]
    assert float(row["Flicker"]) == pytest.approx(metrics.flicker(*steps).item(), rel=0.02)


def intensity_levels(values, low, high):
    return np.rint(np.clip((values.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def test_flicker_tells_a_dimmed_slice(volumes, capsys):
    arguments = ["CT.nrrd", "MR.nrrd", "fused.nrrd", "--against", volumes / "dimmed.nrrd", "--metrics", "Flicker"]
    assert run(volumes, *arguments) == 0
    (row,) = table(volumes / "out" / "summary.csv")
    assert float(row["dimmed mean"]) > 4 * float(row["fused mean"])
    assert float(row["p"]) < 1e-3
    assert "slices of one volume" in capsys.readouterr().out
    last = table(volumes / "out" / "scores.csv")[-1]
    assert last["Flicker"] == "" or int(last["slice"]) + 1 < files.read(volumes / "fused.nrrd").size_ijk[2]


def test_the_slices_follow_the_plane(volumes):
    for plane, axis in (("axial", 2), ("sagittal", 0)):
        arguments = ["CT.nrrd", "MR.nrrd", "fused.nrrd", "--plane", plane, "--metrics", "SD", "--every", "5"]
        assert run(volumes, *arguments, output=plane) == 0
        numbers = [int(row["slice"]) for row in table(volumes / plane / "scores.csv")]
        assert set(np.diff(numbers)) == {5}
        assert numbers[-1] > 0.6 * files.read(volumes / "fused.nrrd").size_ijk[axis]


def test_a_fused_volume_on_the_second_ones_grid(volumes, heads):
    mr = heads["MR"]
    fused = np.clip(mr.voxels / mr.voxels.max() * 1000, 0, 1000).astype(np.int16)
    files.write(Volume(fused, mr.ijk_to_physical), volumes / "onMR.nrrd")
    assert run(volumes, "CT.nrrd", "MR.nrrd", "onMR.nrrd", "--metrics", "SD") == 0
    rows = table(volumes / "out" / "scores.csv")
    number = int(rows[-1]["slice"])
    levels = intensity_levels(fused[number], 0, 1000)
    assert float(rows[-1]["SD"]) == pytest.approx(levels.std(), rel=1e-3)


def test_a_transform_and_windows(volumes, heads):
    """A second volume that lies elsewhere, with the transform that the fusion had, scores as the one in its place."""
    away = np.eye(4)
    away[:3, 3] = 12, -7, 20
    moved = Volume(heads["MR"].voxels, away @ heads["MR"].ijk_to_physical)
    files.write(moved, volumes / "moved.nrrd")
    transforms.write(away, np.zeros(3), volumes / "pose.tfm")
    options = ["--metrics", "MI", "--window-first=-100,300"]
    assert run(volumes, "CT.nrrd", "MR.nrrd", "fused.nrrd", *options) == 0
    assert run(volumes, "CT.nrrd", "moved.nrrd", "fused.nrrd", "--transform", "pose.tfm", *options, output="two") == 0
    assert run(volumes, "CT.nrrd", "MR.nrrd", "fused.nrrd", "--metrics", "MI", output="three") == 0
    one, two, three = (
        np.array([float(row["MI"]) for row in table(volumes / name / "scores.csv")]) for name in ("out", "two", "three")
    )
    assert np.abs(one - two).max() < 0.01
    assert np.abs(one - three).max() > 0.1


def test_a_bent_transform(heads):
    """A field of one shift everywhere is no linear transform to ITK, and moves the volume as that shift does."""
    size, spacing, origin = [30, 30, 30], [10.0] * 3, [-150.0, -150.0, -100.0]
    field = sitk.Image(size, sitk.sitkVectorFloat64, 3)
    field.SetSpacing(spacing)
    field.SetOrigin(origin)
    shift = (12.0, -7.0, 20.0)
    constant = sitk.Compose([field_of(value, field) for value in shift])
    ct, mr = heads["CT"], heads["MR"]
    bent = cases.Reading(transform=sitk.DisplacementFieldTransform(constant))
    straight = cases.Reading(transform=sitk.TranslationTransform(3, shift))
    found, wanted, plain = (
        cases.read_case("x", ct, mr, how).b.astype(float) for how in (bent, straight, cases.Reading())
    )
    inside = np.s_[8:-8, 15:-15, 15:-15]
    assert np.abs(found - wanted)[inside].mean() < 0.5
    assert np.abs(plain - wanted)[inside].mean() > 10


def field_of(value, like):
    image = sitk.Image(like.GetSize(), sitk.sitkFloat64) + value
    image.CopyInformation(like)
    return image


def test_volumes_are_counted_by_their_means(volumes, capsys):
    for name in ("CT", "MR", "fused"):
        (volumes / f"{name}s").mkdir()
        for n in range(2):
            source = "dimmed" if name == "fused" and n else name
            (volumes / f"{name}s" / f"case{n}.nrrd").write_bytes((volumes / f"{source}.nrrd").read_bytes())
    assert run(volumes, "CTs", "MRs", "fuseds", "--metrics", "SD", "--every", "4") == 0
    rows = table(volumes / "out" / "scores.csv")
    means = [np.mean([float(r["SD"]) for r in rows if r["image"] == f"case{n}"]) for n in range(2)]
    (summary,) = table(volumes / "out" / "summary.csv")
    assert float(summary["fuseds SD"]) == pytest.approx(np.std(means, ddof=1), rel=1e-3)
    assert "2 volumes" in capsys.readouterr().out


def test_where_a_volume_has_no_voxels_it_is_black_and_its_slices_are_not_judged(heads):
    ct = heads["CT"]
    from_slice = len(ct.voxels) // 2
    half = Volume(ct.voxels[from_slice:], ct.ijk_to_physical.copy(), name="half")
    half.ijk_to_physical[:3, 3] += from_slice * ct.ijk_to_physical[:3, 2]
    case = cases.read_case("x", ct, half, cases.Reading())
    assert abs(min(case.both) - from_slice) <= 1
    assert not case.b[: from_slice - 1].any()
    assert case.a[: from_slice - 1].any()
    coloured = Volume(np.repeat(case.a[..., None], 3, -1), ct.ijk_to_physical, name="rgb")
    grey, rgb = cases.read_fused(coloured, case, cases.Reading())
    assert np.array_equal(grey, case.a)
    assert rgb.shape == (*case.a.shape, 3)


@pytest.mark.parametrize(
    ("voxels", "given", "wanted"),
    [
        (np.array([0, 500, 900], np.int16), None, [0, 128, 230]),
        (np.array([0, 100, 200], np.uint8), None, [0, 100, 200]),
        (np.array([-1.0, 0, 1], np.float32), None, [0, 128, 255]),
        (np.array([0, 500, 2000], np.int16), None, [0, 64, 255]),
        (np.array([0, 500, 900], np.int16), (0, 500), [0, 255, 255]),
        (np.array([0, np.nan, 2], np.float32), None, [0, 0, 255]),
    ],
)
def test_windows_of_fused_volumes(voxels, given, wanted):
    volume = Volume(np.tile(voxels, (2, 3, 1)), np.eye(4), name="f")
    case = cases.Case("x", np.zeros(volume.voxels.shape, np.uint8), None, [0], grid=grid_of(volume))
    levels, _ = cases.read_fused(volume, case, cases.Reading(window_fused=given))
    assert levels[1, 2].tolist() == wanted


def empty_folder(root):
    (root / "none").mkdir()
    return ["A", "B", "none"]


def lacking(root):
    for n in (2, 4):
        (root / "F" / f"{n}.png").unlink()
    return ["A", "B", "F"]


def other_size(root):
    save(picture(0, 50, 56), root / "B" / "3.png")
    return ["A", "B", "F"]


def fused_size(root):
    save(picture(0, 50, 56), root / "F" / "3.png")
    return ["A", "B", "F"]


def sixteen_bits(root):
    Image.fromarray(np.full((48, 56), 900, np.uint16)).save(root / "F" / "3.png")
    return ["A", "B", "F"]


def too_small(root):
    for folder in "ABF":
        save(picture(0, 40, 56), root / folder / "5.png")
    return ["A", "B", "F"]


def alike(root):
    save(picture(0), root / "A" / "3.bmp")
    return ["A", "B", "F"]


def damaged(root):
    (root / "F" / "3.png").write_bytes(b"no picture")
    return ["A", "B", "F"]


def volume_and_picture(root):
    files.write(Volume(np.zeros((3, 48, 56), np.int16), np.eye(4)), root / "v.nrrd")
    return ["A/1.png", "v.nrrd", "F/1.png"]


BAD = {
    "empty folder": (empty_folder, "none holds no images"),
    "no such folder": (lambda root: ["A", "B", "nowhere"], "nowhere is no folder"),
    "names that do not match": (lacking, "F lacks 2 of the images (2, 4)"),
    "pattern that fits nothing": (lambda root: ["A", "B", "F", "--only", "x*"], "A holds no images"),
    "sources of different size": (other_size, "A/3.png is 56 x 48 pixels and"),
    "fused of different size": (fused_size, "F/3.png is 56 x 50"),
    "16 bits": (sixteen_bits, "3.png has values of type uint16"),
    "too small for VIF": (too_small, "5 has slices of 56 x 40 pixels, and VIF needs 41"),
    "two kinds of one name": (alike, "3.bmp and"),
    "damaged": (damaged, "3.png"),
    "picture and volume": (volume_and_picture, "a picture and a volume"),
    "unknown metric": (
        lambda root: ["A", "B", "F", "--metrics", "SSIN"],
        "metrics cannot be SSIN: choose one of EN, SD",
    ),
    "flicker of pictures": (
        lambda root: ["A", "B", "F", "--metrics", "Flicker"],
        "Flicker is a matter of neighbouring",
    ),
    "one name for two": (lambda root: ["A", "B", "F", "--against", root / "G", "--names", "x", "x"], "called x"),
    "more names than methods": (lambda root: ["A", "B", "F", "--names", "x", "y"], "--names cannot be x y"),
    "unknown window": (lambda root: ["A", "B", "F", "--window-first", "bright"], "bright is no window"),
    "transform missing": (lambda root: ["A", "B", "F", "--transform", "no.tfm"], "no.tfm does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(pictures, case, capsys):
    make, sentence = BAD[case]
    arguments = make(pictures)
    before = listing(pictures)
    assert run(pictures, *arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("Error: ")
    assert said.endswith(".")
    assert sentence in said
    assert listing(pictures) == before


def test_volumes_that_cannot_be_judged(volumes, heads, capsys):
    ct = heads["CT"]
    away = ct.ijk_to_physical.copy()
    away[0, 3] += 2000
    odd = {
        "away": (Volume(heads["MR"].voxels, away), "share no voxel"),
        "colour": (Volume(np.zeros((*ct.voxels.shape, 3), np.uint8), ct.ijk_to_physical), "volume in colour"),
        "flat": (Volume(np.zeros_like(ct.voxels), ct.ijk_to_physical), "same value in every voxel"),
        "nan": (Volume(np.full(ct.voxels.shape, np.nan, np.float32), ct.ijk_to_physical), "no finite value"),
    }
    for name, (volume, sentence) in odd.items():
        files.write(volume, volumes / f"{name}.nrrd")
        assert run(volumes, "CT.nrrd", f"{name}.nrrd", "fused.nrrd") == 1
        assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert run(volumes, "CT.nrrd", "MR.nrrd", "fused.nrrd", "--against", volumes / "MR.nrrd") == 1
    assert "different grids" in capsys.readouterr().err.splitlines()[-1]
    assert not (volumes / "out").exists()


def test_outputs_are_complete_or_absent(pictures, monkeypatch, capsys):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "plot_scores", broken)
    before = listing(pictures)
    assert run(pictures, "A", "B", "F", "--metrics", "EN") == 130
    assert listing(pictures) == before
    (pictures / "out").mkdir()
    (pictures / "out" / "scores.csv").write_text("old")
    before = listing(pictures)
    assert run(pictures, "A", "B", "F", "--metrics", "EN") == 130
    assert listing(pictures) == before
    assert (pictures / "out" / "scores.csv").read_text(encoding="utf-8") == "old"


def test_bad_outputs_are_refused_before_the_work(pictures, monkeypatch, capsys):
    monkeypatch.setattr(cases, "match", lambda *_: pytest.fail("the work began"))
    (pictures / "file").write_text("")
    for bad in ("none/out", "file", "A"):
        assert run(pictures, "A", "B", "F", output=bad) == 1
        assert capsys.readouterr().err.startswith("Error: ")


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_the_extra_that_is_not_there(pictures, monkeypatch, capsys, command):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pywt" else original(name))
    assert run(pictures, *("A", "B", "F")[: 3 if command == "evaluate" else 2], command=command) == 1
    assert "extra evaluate" in capsys.readouterr().err
