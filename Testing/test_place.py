"""The second volume laid on the first within a fusion: searched, given or judged, and what is said about it."""

from dataclasses import replace

import numpy as np
import pytest

from ASFEFusionLib.alignment import place, pose, transforms
from ASFEFusionLib.errors import Cancelled, FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.settings import ALIGNMENTS, FusionSettings
from ASFEFusionLib.space import Displacement
from ASFEFusionLib.volume import Volume

pytestmark = pytest.mark.judged


@pytest.fixture(scope="module")
def away():
    """Where the second volume's points are moved to: 14 degrees and 21 mm."""
    return pose.about(np.array([0, -20, 50.0]), pose.rotation(np.radians([5, -8, 10])), np.array([12, -9, 15.0]))


def points(volume):
    """Some points of the body (n, 3)."""
    index = np.argwhere(volume.voxels > np.percentile(volume.voxels, 70))[::500, ::-1]
    return index @ volume.ijk_to_physical[:3, :3].T + volume.ijk_to_physical[:3, 3]


def codes(report):
    return [warning.code for warning in report.warnings]


def test_a_search_brings_the_second_home(heads, away):
    ct, mr = heads["CT"], heads["MR"]
    moved = transforms.moved(mr, np.linalg.inv(away))
    kept = moved.voxels.copy(), moved.ijk_to_physical.copy()
    right, _ = fuse(ct, mr)
    said = []
    fused, report = fuse(ct, moved, FusionSettings(align="rigid"), lambda part, step: said.append((part, step.code)))
    found = report.alignment
    assert found["trusted"]
    assert found["search"] == "rigid"
    assert codes(report) == []
    assert pose.mean_distance(np.array(found["matrix"]), away, points(ct)) < 0.6
    assert np.abs(fused.voxels.astype(int) - right.voxels).mean() < 0.02 * 1000
    assert np.array_equal(fused.ijk_to_physical, ct.ijk_to_physical)
    # The inputs are as they were; all parts of the run are told, in their order.
    assert np.array_equal(moved.voxels, kept[0])
    assert np.array_equal(moved.ijk_to_physical, kept[1])
    parts = [part for part, _ in said]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    steps = list(dict.fromkeys(code for _, code in said))
    assert steps.index("align_search") < steps.index("align_refine") < steps.index("slices")
    assert report.seconds["alignment"] > 0


def test_the_grid_of_a_second_that_was_aligned_moves_with_it(heads, away):
    """It is not resampled at all: its own voxels, where they belong."""
    moved = transforms.moved(heads["MR"], np.linalg.inv(away))
    fused, report = fuse(heads["CT"], moved, FusionSettings(align="near", grid="second"))
    expected = np.linalg.inv(np.array(report.alignment["matrix"])) @ moved.ijk_to_physical
    assert np.allclose(fused.ijk_to_physical, expected)
    assert fused.size_ijk == moved.size_ijk


def test_volumes_as_loaded_are_judged(heads, away):
    right = fuse(heads["CT"], heads["MR"])[1]
    assert right.alignment["trusted"]
    assert right.alignment["search"] == "as-loaded"
    assert np.array_equal(right.alignment["matrix"], np.eye(4))
    assert codes(right) == []
    for shift in ([0, 0, 8.0], [6.0, 0, 0]):
        moved = transforms.moved(heads["MR"], pose.about(np.zeros(3), np.eye(3), np.array(shift)))
        report = fuse(heads["CT"], moved)[1]
        assert not report.alignment["trusted"]
        assert "align_shifted" in codes(report)
        said = next(w for w in report.warnings if w.code == "align_shifted")
        assert abs(said.facts["millimetres"] - np.linalg.norm(shift)) < 2


def test_what_is_not_judged(heads, away, monkeypatch):
    """Pictures, single slices, and where nobody wants it."""

    def no(*_, **__):
        raise AssertionError

    monkeypatch.setattr(place, "check", no)
    moved = transforms.moved(heads["MR"], away)
    assert fuse(heads["CT"], moved, FusionSettings(check=False))[1].alignment is None
    grid = heads["CT"]
    lattice = ((grid.size_ijk[0], grid.size_ijk[1], 1), grid.ijk_to_physical)
    assert fuse(heads["CT"], heads["MR"], FusionSettings(lattice=lattice))[1].alignment is None
    rng = np.random.default_rng(0)
    pictures = [Volume(rng.integers(0, 255, (1, 40, 40)).astype(np.uint8), np.eye(4), two_d=True) for _ in range(2)]
    assert fuse(*pictures)[1].alignment is None


def test_volumes_too_flat_to_judge_say_so(heads):
    thin = replace(heads["CT"], voxels=heads["CT"].voxels[20:22])
    thin.ijk_to_physical = heads["CT"].ijk_to_physical.copy()
    thin.ijk_to_physical[:3, 3] = (heads["CT"].ijk_to_physical @ [0, 0, 20, 1])[:3]
    report = fuse(thin, heads["MR"])[1]
    assert codes(report) == ["align_unjudged"]
    with pytest.raises(FusionError) as caught:
        fuse(thin, heads["MR"], FusionSettings(align="rigid"))
    assert caught.value.code == "align_flat"


@pytest.mark.parametrize("shift", [0.0, 9.0])
def test_a_bent_second_is_judged_where_the_bend_lays_it(heads, shift):
    """The displacement undoes how the second was moved, but for `shift` mm."""
    moved = transforms.moved(heads["MR"], pose.about(np.zeros(3), np.eye(3), np.array([0, 25.0, 0])))
    vectors = np.zeros((3, 3, 3, 3), np.float32)
    vectors[..., 1] = shift - 25  # where a point of the first is found in the second
    matrix = np.diag([200.0, 200, 200, 1])
    matrix[:3, 3] = -200
    report = fuse(heads["CT"], moved, displacement=Displacement(vectors, matrix))[1]
    assert report.alignment["trusted"] == (shift == 0), report.alignment
    with pytest.raises(FusionError) as caught:
        fuse(heads["CT"], moved, FusionSettings(align="near"), displacement=Displacement(vectors, matrix))
    assert caught.value.code == "align_bent"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_second_that_is_turned_round_is_not_trusted(heads, axis):
    """By 180 degrees, which a search near the header's orientation cannot undo; a head fits in outline all the same."""
    turn = pose.rotation(np.pi * np.eye(3)[axis])
    turned = transforms.moved(heads["MR"], pose.about(np.array([3, -21, 48.0]), turn, np.zeros(3)))
    report = fuse(heads["CT"], turned, FusionSettings(align="rigid"))[1]
    assert not report.alignment["trusted"]
    assert "align_round" in codes(report)
    if axis != 2:
        return  # once is enough for a test
    found = fuse(heads["CT"], turned, FusionSettings(align="rigid-any"))[1].alignment
    assert [reason["code"] for reason in found["reasons"]] == ["align_any"]
    right = pose.about(np.array([3, -21, 48.0]), turn, np.zeros(3))
    assert pose.mean_distance(np.array(found["matrix"]), right, points(heads["CT"])) < 1


def test_a_mirrored_or_stretched_second_is_not_trusted(heads):
    """What no rigid pose mends: a lost flip, a wrong distance of slices."""
    mr = heads["MR"]
    mirrored = replace(mr, voxels=mr.voxels[:, :, ::-1].copy())
    assert "align_mirrored" in codes(fuse(heads["CT"], mirrored, FusionSettings(align="near"))[1])
    longer = mr.ijk_to_physical.copy()
    longer[:3, 2] *= 1.15
    middle = (np.array(mr.size_ijk) - 1) / 2
    longer[:3, 3] += (mr.ijk_to_physical - longer)[:3, :3] @ middle
    report = fuse(heads["CT"], replace(mr, ijk_to_physical=longer), FusionSettings(align="near"))[1]
    assert "align_stretched" in codes(report)
    assert not report.alignment["trusted"]


def test_too_thin_to_be_sure(heads):
    """Slices over 42 mm at the top of the head, which is round there."""
    ct = heads["CT"]
    top = ct.ijk_to_physical.copy()
    top[:3, 3] = (ct.ijk_to_physical @ [0, 0, 28, 1])[:3]
    report = fuse(replace(ct, voxels=ct.voxels[28:38], ijk_to_physical=top), heads["MR"])[1]
    assert "align_thin" in codes(report)
    said = next(w for w in report.warnings if w.code == "align_thin")
    assert 30 <= said.facts["millimetres"] <= 42


def test_a_bent_second_with_holes_is_judged_too(heads):
    voxels = heads["MR"].voxels.astype(np.float32)
    voxels[:3] = np.nan
    bent = Displacement(np.zeros((3, 3, 3, 3), np.float32), np.diag([200.0, 200, 200, 1]))
    assert fuse(heads["CT"], replace(heads["MR"], voxels=voxels), displacement=bent)[1].alignment["trusted"]
    report = place.look(heads["CT"], replace(heads["MR"], voxels=voxels * np.nan), FusionSettings(), displacement=bent)[
        1
    ]
    assert codes(report) == ["align_unjudged"]


def test_a_search_is_cancelled(heads):
    steps = []

    def cancelled():
        return "align_search" in steps

    with pytest.raises(Cancelled):
        fuse(heads["CT"], heads["MR"], FusionSettings(align="rigid"), lambda _, s: steps.append(s.code), cancelled)
    assert "slices" not in steps


def test_the_alignment_alone(heads, away):
    moved = transforms.moved(heads["MR"], np.linalg.inv(away))
    said = []
    nothing, report = place.look(
        heads["CT"], moved, FusionSettings(align="rigid"), lambda part, step: said.append((part, step.code))
    )
    assert nothing is None
    assert pose.mean_distance(np.array(report.alignment["matrix"]), away, points(heads["CT"])) < 0.6
    assert [part for part, _ in said] == sorted(part for part, _ in said)
    assert said[-1] == (1.0, "done")
    judged = place.look(heads["CT"], moved, FusionSettings(check=False))[1]
    assert not judged.alignment["trusted"]
    assert judged.to_dict()["warnings"][0]["code"].startswith("align_")


def test_searches_by_name():
    for name in ALIGNMENTS:
        assert FusionSettings(align=name).align == name
    with pytest.raises(FusionError) as caught:
        FusionSettings(align="affine")
    assert caught.value.code == "setting_unknown"
    assert "rigid-any" in str(caught.value)
