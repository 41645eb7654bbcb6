"""Alignments as nodes over real MRML: the transform's direction, what it begins with, what became of the volumes."""

import json

import numpy as np
import pytest
import slicer
import vtk

from ASFEFusionLib import aligned, scene
from ASFEFusionLib.alignment import place, pose
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.volume import Volume

pytestmark = pytest.mark.judged
AWAY = pose.about(np.array([0, -20, 50.0]), pose.rotation(np.radians([5, -8, 10])), np.array([12, -9, 15.0]))
LPS = np.diag([-1.0, -1, 1, 1])


def linear(matrix, parent=None):
    """A transform node of a 4 x 4 (RAS, mm)."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    vtk_matrix = vtk.vtkMatrix4x4()
    vtk_matrix.DeepCopy(np.asarray(matrix, float).ravel())
    node.SetMatrixTransformToParent(vtk_matrix)
    node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
    return node


def to_world(node):
    """4 x 4 from the volume node's own space to the world (RAS)."""
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(node.GetParentTransformNode(), None, matrix)
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def own(node):
    return scene.read_volume(node).ijk_to_physical


def voxels(node):
    return scene.read_volume(node).voxels.astype(int)


def markups(points, name="F"):
    """A markups node with points (n, 3) of the world, RAS."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for point in points:
        node.AddControlPoint(vtk.vtkVector3d(*map(float, point)))
    return node


@pytest.fixture
def pair(stage, heads):
    """CT, and the MR with its geometry turned away by `AWAY`; each under a parent transform of its own."""
    ct = stage.add(heads["CT"], "CT", "CT")
    mr = heads["MR"]
    moved = stage.add(Volume(mr.voxels, AWAY @ mr.ijk_to_physical), "MR", "MR")
    rng = np.random.default_rng(2)
    patient = pose.about(np.zeros(3), pose.rotation(rng.normal(size=3)), rng.normal(size=3) * 40)
    ct.SetAndObserveTransformNodeID(linear(patient).GetID())
    # Between the two there is nothing left of that one, and a shift of its own beside `AWAY`.
    small = pose.about(np.zeros(3), pose.rotation(np.radians([3, 0, 0])), np.array([0, 4.0, 0]))
    moved.SetAndObserveTransformNodeID(linear(patient @ small).GetID())
    return ct, moved


def error(ct, mr):
    """Mean distance (mm) of where the MR's own anatomy lies in the world from where the CT's does."""
    body = np.random.default_rng(1).uniform(-70, 70, (80, 3)) + np.array([0, 0, 50])
    return pose.mean_distance(to_world(mr) @ LPS @ AWAY, to_world(ct) @ LPS, body)


def test_the_transform_lays_the_second_on_the_first(stage, pair, heads):
    ct, mr = pair
    before = own(ct), own(mr), to_world(ct), to_world(mr), voxels(mr)
    assert error(ct, mr) > 20
    fused = stage.logic.fuse(ct, mr, alignment="rigid")
    node = fused.GetNodeReference(aligned.TRANSFORM)
    assert node.GetClassName() == "vtkMRMLLinearTransformNode"
    assert "MR to CT" in node.GetName()
    found = aligned.alignment_of(node)
    assert found["trusted"]
    assert scene.report_of(fused)["alignment"]["trusted"]
    # Nothing was moved yet, and the fused one is what its inputs make.
    for value, now in zip(before, (own(ct), own(mr), to_world(ct), to_world(mr), voxels(mr)), strict=True):
        assert np.array_equal(value, now)
    assert scene.out_of_date(fused) is None
    above = mr.GetParentTransformNode()
    stage.logic.applyAlignment(node)
    assert mr.GetParentTransformNode() is node
    assert error(ct, mr) < 0.7
    assert np.array_equal(own(mr), before[1])
    assert np.array_equal(voxels(mr), before[4])
    assert scene.out_of_date(fused) is None
    # It follows the first one's parent, as in navigation.
    moved = vtk.vtkMatrix4x4()
    moved.SetElement(0, 3, 33.0)
    ct.GetParentTransformNode().SetMatrixTransformToParent(moved)
    assert error(ct, mr) < 0.7
    assert scene.out_of_date(fused) is None
    stage.logic.applyAlignment(node)  # once more: nothing
    stage.logic.removeAlignment(node)
    assert mr.GetParentTransformNode() is above
    assert scene.out_of_date(fused) == "transform_changed"
    right = stage.logic.fuse(ct, stage.add(heads["MR"], "there", "MR"))
    assert scene.out_of_date(right) is None


def test_the_fused_voxels_are_those_of_the_right_place(stage, pair, heads):
    ct, mr = pair
    fused = stage.logic.fuse(ct, mr, alignment="rigid")
    there = stage.add(heads["MR"], "there", "MR")
    there.SetAndObserveTransformNodeID(ct.GetTransformNodeID())
    right = stage.logic.fuse(ct, there)
    assert np.abs(voxels(fused) - voxels(right)).mean() < 15
    assert fused.GetTransformNodeID() == ct.GetTransformNodeID()
    assert scene.report_of(right)["alignment"]["trusted"]
    assert fused.GetNodeReference(aligned.TRANSFORM)
    assert not right.GetNodeReference(aligned.TRANSFORM)
    wrong = stage.logic.fuse(ct, mr)
    report = scene.report_of(wrong)
    assert "align_shifted" in [w["code"] for w in report["warnings"]]
    assert np.abs(voxels(wrong) - voxels(right)).mean() > 40


@pytest.mark.parametrize("kind", ["linear", "bent"])
def test_a_start_lays_the_second_as_if_it_were_its_parent(stage, pair, kind):
    """Used as it is; the second's own parent stays, and putting it under the start makes nothing out of date."""
    ct, mr = pair
    if kind == "linear":
        start = linear(LPS @ np.linalg.inv(AWAY) @ LPS, ct.GetParentTransformNode())
    else:
        spline = vtk.vtkThinPlateSplineTransform()
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for point in np.random.default_rng(4).uniform(-110, 110, (16, 3)):
            source.InsertNextPoint(point)
            target.InsertNextPoint(point + [4.0, -3, 2] * np.sin(point[::-1] / 60))
        spline.SetSourceLandmarks(source)
        spline.SetTargetLandmarks(target)
        spline.SetBasisToR()
        start = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
        start.SetAndObserveTransformToParent(spline)
        start.SetAndObserveTransformNodeID(ct.GetTransformNodeID())
    above = mr.GetTransformNodeID()
    fused = stage.logic.fuse(ct, mr, start=start)
    assert mr.GetTransformNodeID() == above
    assert scene.out_of_date(fused) is None
    assert (scene.report_of(fused)["displacement"] is None) == (kind == "linear")
    mr.SetAndObserveTransformNodeID(start.GetID())
    assert scene.out_of_date(fused) is None
    again = stage.logic.fuse(ct, mr)
    assert np.array_equal(voxels(again), voxels(fused))
    if kind == "bent":
        with pytest.raises(FusionError) as caught:
            stage.logic.fuse(ct, mr, alignment="near")
        assert caught.value.code == "align_bent"
    else:
        assert scene.report_of(fused)["alignment"]["trusted"]


def test_a_search_begins_at_the_start(stage, pair):
    ct, mr = pair
    near = pose.about(np.array([0, 0, 50.0]), pose.rotation(np.radians([2, 0, -2])), np.array([1, -2, 1.0]))
    start = linear(LPS @ near @ np.linalg.inv(AWAY) @ LPS, ct.GetParentTransformNode())
    node = stage.logic.align(ct, mr, "near", start=start)
    stage.logic.applyAlignment(node)
    assert error(ct, mr) < 0.7
    assert aligned.alignment_of(node)["degrees"] < 4


def test_landmarks_where_they_are_seen(stage, pair):
    """Placed in the world, on volumes under transforms."""
    ct, mr = pair
    body = np.random.default_rng(5).uniform(-60, 60, (4, 3)) + np.array([0, 0, 50])
    homogeneous = np.c_[body, np.ones(4)]
    first = markups((homogeneous @ (to_world(ct) @ LPS).T)[:, :3], "first")
    second = markups((homogeneous @ (to_world(mr) @ LPS @ AWAY).T)[:, :3], "second")
    fused = stage.logic.fuse(ct, mr, firstLandmarks=first, secondLandmarks=second)
    assert scene.report_of(fused)["alignment"]["trusted"]
    assert scene.out_of_date(fused) is None
    node = stage.logic.align(ct, mr, "near", firstLandmarks=first, secondLandmarks=second)
    assert aligned.alignment_of(node)["moved"] < 1
    stage.logic.applyAlignment(node)
    assert error(ct, mr) < 0.7
    stage.logic.removeAlignment(node)
    # A point that was begun and not placed takes its partner out, and no other.
    second.UnsetNthControlPointPosition(1)
    again = stage.logic.align(ct, mr, "near", firstLandmarks=first, secondLandmarks=second)
    assert aligned.alignment_of(again)["moved"] < 1
    first.UnsetNthControlPointPosition(2)
    for code, points in (("landmarks_few", (first, second)), ("landmarks_one", (first, None))):
        with pytest.raises(FusionError) as caught:
            stage.logic.fuse(ct, mr, firstLandmarks=points[0], secondLandmarks=points[1])
        assert caught.value.code == code
    second.RemoveNthControlPoint(1)
    with pytest.raises(FusionError) as caught:
        stage.logic.fuse(ct, mr, firstLandmarks=first, secondLandmarks=second)
    assert caught.value.code == "landmarks_unpaired"


def test_all_orientations_are_confirmed_by_a_person(stage, pair, monkeypatch):
    ct, mr = pair
    node = stage.logic.align(ct, mr, "rigid-any")
    assert not aligned.alignment_of(node)["trusted"]
    assert aligned.to_confirm(aligned.alignment_of(node))
    fused = stage.logic.fuse(ct, mr, alignment="near")
    fused.SetNodeReferenceID(aligned.TRANSFORM, node.GetID())
    report = scene.report_of(fused)
    report["alignment"] = {k: v for k, v in aligned.alignment_of(node).items() if k != "inputs"}
    report["warnings"] = report["alignment"]["reasons"] + [{"code": "little_overlap", "facts": {}, "text": ""}]
    scene.set_report(fused, report)
    aligned.confirm(node)
    found = aligned.alignment_of(node)
    assert found["confirmed"]
    assert found["trusted"]
    assert not aligned.to_confirm(found)
    report = scene.report_of(fused)
    assert report["alignment"]["trusted"]
    assert [w["code"] for w in report["warnings"]] == ["little_overlap"]
    # Another doubt stays one.
    node.SetAttribute(
        aligned.ALIGNMENT, json.dumps({**found, "reasons": [{"code": "align_any"}, {"code": "align_weak"}]})
    )
    aligned.confirm(node)
    assert not aligned.alignment_of(node)["trusted"]


def test_sides_are_marked_by_each_volumes_own_header(stage, pair):
    """Laid right, the two agree; a volume turned round has its right on the other side."""
    ct, mr = pair
    for turned in (False, True):
        lay = LPS @ np.linalg.inv(AWAY) @ LPS
        if turned:
            lay = lay @ pose.about(np.array([0, 0, 50.0]), pose.rotation([0, 0, np.pi]), np.zeros(3))
        node = linear(lay, ct.GetParentTransformNode())
        markers = aligned.mark_sides(ct, mr, node, ("R", "L"))
        named = {}
        for n in range(markers.GetNumberOfControlPoints()):
            point = [0.0] * 3
            markers.GetNthControlPointPositionWorld(n, point)
            named[markers.GetNthControlPointLabel(n)] = np.array(point)
        assert sorted(named) == ["L CT", "L MR", "R CT", "R MR"]
        to_right = to_world(ct)[:3, :3] @ [1.0, 0, 0]  # RAS
        assert (named["R CT"] - named["L CT"]) @ to_right > 60
        assert ((named["R MR"] - named["L MR"]) @ to_right > 60) == (not turned)
        assert markers.GetLocked()


def test_an_alignment_that_no_longer_fits_is_not_put_to_use(stage, pair):
    """A volume hardened since, or the transform edited; another parent of the first one is followed."""
    ct, mr = pair
    node = stage.logic.align(ct, mr, "near")
    assert aligned.outdated(node) is None
    other = linear(pose.about(np.zeros(3), pose.rotation(np.array([0.3, 0.2, 0.1])), np.array([50.0, 0, 0])))
    ct.SetAndObserveTransformNodeID(other.GetID())
    stage.logic.applyAlignment(node)
    assert error(ct, mr) < 0.7
    stage.logic.removeAlignment(node)
    edited = vtk.vtkMatrix4x4()
    node.GetMatrixTransformToParent(edited)
    kept = vtk.vtkMatrix4x4()
    kept.DeepCopy(edited)
    edited.SetElement(0, 3, edited.GetElement(0, 3) + 40)
    node.SetMatrixTransformToParent(edited)
    assert aligned.outdated(node) == "transform_edited"
    node.SetMatrixTransformToParent(kept)
    assert aligned.outdated(node) is None
    ct.HardenTransform()
    before = mr.GetTransformNodeID()
    assert aligned.outdated(node) == "geometry_changed"
    with pytest.raises(FusionError) as caught:
        stage.logic.applyAlignment(node)
    assert caught.value.code == "alignment_old"
    assert "hardened" in str(caught.value)
    assert mr.GetTransformNodeID() == before


def test_an_unconfirmed_pose_is_trusted_in_no_way(stage, pair):
    """Applied and checked, or taken for a start: the doubt stays until a person has looked."""
    ct, mr = pair
    node = stage.logic.align(ct, mr, "rigid-any")
    checks = [lambda: stage.logic.checkAlignment(ct, mr, start=node)]
    checks.append(lambda: aligned.alignment_of(stage.logic.align(ct, mr, "near", start=node)))
    checks.append(lambda: scene.report_of(stage.logic.fuse(ct, mr, start=node))["alignment"])
    for check in checks:
        found = check()
        assert not found["trusted"]
        assert "align_any" in [reason["code"] for reason in found["reasons"]]
    stage.logic.applyAlignment(node)
    fused = stage.logic.fuse(ct, mr)
    assert not scene.report_of(fused)["alignment"]["trusted"]
    assert "align_any" in [w["code"] for w in scene.report_of(fused)["warnings"]]
    aligned.confirm(node)
    assert stage.logic.checkAlignment(ct, mr)["trusted"]


def test_a_known_alignment_that_is_removed_leaves_its_verdict(stage, pair):
    from ASFEFusionLib.fusion import fuse
    from ASFEFusionPanel.choices import Choices, makeRequest

    ct, mr = pair
    node = stage.logic.align(ct, mr, "rigid-any")
    request = makeRequest(ct, mr, None, Choices(alignment="rigid-any"), known=node)
    volume, report = fuse(request.job.first, request.job.second, request.job.settings)
    slicer.mrmlScene.RemoveNode(node)
    fused = stage.logic.finish(request, volume, report.to_dict())
    assert not scene.report_of(fused)["alignment"]["trusted"]
    assert "align_any" in [w["code"] for w in scene.report_of(fused)["warnings"]]
    assert fused.GetNodeReference(aligned.TRANSFORM) is None


def test_an_edited_transform_is_not_taken_for_what_was_found(stage, pair):
    from ASFEFusionPanel.choices import Choices, makeRequest

    ct, mr = pair
    node = stage.logic.align(ct, mr, "near")
    assert makeRequest(ct, mr, None, Choices(alignment="near"), known=node).known
    moved = vtk.vtkMatrix4x4()
    node.GetMatrixTransformToParent(moved)
    moved.SetElement(1, 3, moved.GetElement(1, 3) + 5)
    node.SetMatrixTransformToParent(moved)
    assert not makeRequest(ct, mr, None, Choices(alignment="near"), known=node).known


def test_a_start_that_was_not_used_makes_nothing_up_to_date(stage, pair):
    """With landmarks, or searched on from: lying under the start is not lying where it was fused."""
    ct, mr = pair
    near = pose.about(np.array([0, 0, 50.0]), pose.rotation(np.radians([2, 0, -2])), np.array([6, -2, 1.0]))
    start = linear(LPS @ near @ np.linalg.inv(AWAY) @ LPS, ct.GetParentTransformNode())
    fused = stage.logic.fuse(ct, mr, alignment="near", start=start)
    assert scene.out_of_date(fused) is None
    above = mr.GetTransformNodeID()
    mr.SetAndObserveTransformNodeID(start.GetID())
    assert scene.out_of_date(fused) == "transform_changed"
    mr.SetAndObserveTransformNodeID(above)
    assert scene.out_of_date(fused) is None


def test_a_volume_that_is_gone(stage, pair):
    ct, mr = pair
    node = stage.logic.align(ct, mr, "near")
    slicer.mrmlScene.RemoveNode(mr)
    for function in (stage.logic.applyAlignment, stage.logic.removeAlignment):
        with pytest.raises(FusionError) as caught:
            function(node)
        assert caught.value.code == "node_gone"
    assert not aligned.is_applied(node)


def test_the_check_alone_changes_nothing(stage, pair):
    ct, mr = pair
    before = stage.nodes()
    said = []
    found = stage.logic.checkAlignment(ct, mr, progress=lambda part, text: said.append(part))
    assert not found["trusted"]
    assert found["reasons"]
    assert said[-1] == 1.0
    assert stage.nodes() == before


def test_what_is_no_transform(stage, pair):
    ct, mr = pair
    for name in ("start", "firstLandmarks"):
        with pytest.raises(FusionError) as caught:
            stage.logic.fuse(ct, mr, **{name: mr})
        assert caught.value.code == "setting_unknown"
    flat = np.eye(4)
    flat[2, 2] = 0
    with pytest.raises(FusionError) as caught:
        stage.logic.fuse(ct, mr, start=linear(flat))
    assert caught.value.code == "transform_singular"


def test_a_known_alignment_is_taken_again(stage, pair, monkeypatch):
    """What was looked at, and perhaps confirmed, is what is fused; with other inputs or another search it is not."""
    from ASFEFusionPanel.choices import Choices, makeRequest

    ct, mr = pair
    node = stage.logic.align(ct, mr, "rigid")
    chosen = Choices(alignment="rigid")
    request = makeRequest(ct, mr, None, chosen, known=node)
    assert request.knownID == node.GetID()
    assert request.job.settings.align == "as-loaded"
    assert makeRequest(ct, mr, None, Choices(alignment="near"), known=node).knownID is None
    assert makeRequest(ct, mr, None, Choices(), known=node).job.settings.check
    assert makeRequest(mr, ct, None, chosen, known=node).knownID is None
    monkeypatch.setattr(place, "align", None)  # no search
    from ASFEFusionLib.fusion import fuse

    volume, report = fuse(request.job.first, request.job.second, request.job.settings)
    fused = stage.logic.finish(request, volume, report.to_dict())
    assert fused.GetNodeReference(aligned.TRANSFORM) is node
    assert scene.report_of(fused)["alignment"]["trusted"]
    assert scene.out_of_date(fused) is None
    stage.logic.applyAlignment(node)
    assert scene.out_of_date(fused) is None
    assert makeRequest(ct, mr, None, chosen, known=node).knownID is None  # it lies elsewhere now
    stage.logic.removeAlignment(node)
    assert makeRequest(ct, mr, None, chosen, known=node).knownID == node.GetID()
    slicer.util.arrayFromVolume(mr)[5] += 1
    slicer.util.arrayFromVolumeModified(mr)
    assert makeRequest(ct, mr, None, chosen, known=node).knownID is None
