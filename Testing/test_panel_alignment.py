"""The alignment part of the panel, clicked: check, search, put to use and back, confirm, begin with what is given."""

import re

import numpy as np
import pytest
import slicer
from test_aligned import AWAY, linear, markups, voxels

from ASFEFusionLib import aligned, scene
from ASFEFusionLib.alignment import pose
from ASFEFusionLib.volume import Volume

LPS = np.diag([-1.0, -1, 1, 1])


def choose(combo, data):
    combo.currentIndex = combo.findData(data)
    assert combo.currentData == data


@pytest.fixture
def pair(stage, heads):
    """CT, and the MR turned away, chosen."""
    ct = stage.add(heads["CT"], "CT", "CT")
    mr = stage.add(Volume(heads["MR"].voxels, AWAY @ heads["MR"].ijk_to_physical), "MR", "MR")
    stage.parameters.firstVolume, stage.parameters.secondVolume = ct, mr
    stage.settle()
    return ct, mr


def align(stage):
    assert stage.ui.alignButton.enabled, stage.ui.alignButton.toolTip
    stage.ui.alignButton.click()
    stage.wait()
    stage.settle()


def test_check_says_how_the_two_lie(stage, pair):
    assert stage.ui.alignButton.text == "Check"
    before = stage.nodes()
    align(stage)
    assert "NOT TRUSTED" in stage.ui.resultLabel.text
    assert "shifted by about" in stage.ui.resultLabel.text
    assert stage.nodes() == before
    assert not stage.ui.applyTransformButton.enabled
    stage.parameters.secondVolume.SetAndObserveTransformNodeID(linear(LPS @ np.linalg.inv(AWAY) @ LPS).GetID())
    align(stage)
    assert "trusted, confidence" in stage.ui.resultLabel.text
    assert "NOT" not in stage.ui.resultLabel.text


def test_apply_warns_of_volumes_that_lie_wrong(stage, pair):
    stage.apply()
    assert "NOT TRUSTED" in stage.ui.resultLabel.text
    assert "Warning: The two volumes look shifted" in stage.ui.resultLabel.text


def test_align_then_apply_uses_what_was_found(stage, pair):
    mr = pair[1]
    choose(stage.ui.alignmentCombo, "rigid")
    stage.settle()
    assert stage.ui.alignButton.text == "Align only"
    steps = set()
    stage.ui.alignButton.click()
    assert stage.ui.applyButton.text == "Cancel"
    assert not stage.ui.alignButton.enabled
    stage.spin(lambda: steps.add(stage.ui.stepLabel.text) or not stage.logic.busy)
    stage.settle()
    assert any("pose" in step for step in steps)
    node = stage.parameters.alignmentTransform
    assert aligned.alignment_of(node)["trusted"]
    degrees = float(re.search(r"turned by ([\d.]+) degrees", stage.ui.alignmentResultLabel.text)[1])
    assert degrees == pytest.approx(np.degrees(pose.rotation_angle(AWAY)), abs=0.3)
    assert mr.GetParentTransformNode() is None
    assert stage.ui.confirmButton.isHidden()
    steps.clear()
    stage.ui.applyButton.click()
    stage.spin(lambda: steps.add(stage.ui.stepLabel.text) or not stage.logic.busy)
    stage.settle()
    assert not any("pose" in step for step in steps)  # not searched again
    fused = stage.parameters.fusedVolume
    assert fused.GetNodeReference(aligned.TRANSFORM) is node
    assert stage.parameters.alignmentTransform is node
    assert "turned by" in stage.ui.resultLabel.text
    # Put to use, and back.
    assert stage.ui.applyTransformButton.text == "Apply to second volume"
    stage.ui.applyTransformButton.click()
    stage.settle()
    assert mr.GetParentTransformNode() is node
    assert stage.ui.applyTransformButton.text == "Put second volume back"
    assert scene.out_of_date(fused) is None
    stage.ui.applyTransformButton.click()
    stage.settle()
    assert mr.GetParentTransformNode() is None
    # Other volumes: the last alignment is not theirs.
    stage.ui.swapButton.click()
    stage.settle()
    assert not stage.ui.applyTransformButton.enabled
    assert stage.ui.alignmentResultLabel.text == ""


def test_apply_alone_aligns_too(stage, pair, heads):
    choose(stage.ui.alignmentCombo, "near")
    stage.apply()
    stage.settle()
    fused = stage.parameters.fusedVolume
    assert stage.parameters.alignmentTransform is fused.GetNodeReference(aligned.TRANSFORM)
    there = stage.add(heads["MR"], "there", "MR")
    right = stage.logic.fuse(stage.parameters.firstVolume, there)
    assert np.abs(voxels(fused) - voxels(right)).mean() < 15
    stage.settle()
    assert "OUT OF DATE" not in stage.ui.resultLabel.text


def test_all_orientations_wait_for_a_person(stage, pair):
    choose(stage.ui.alignmentCombo, "rigid-any")
    align(stage)
    node = stage.parameters.alignmentTransform
    assert "NOT TRUSTED" in stage.ui.alignmentResultLabel.text
    assert "left may have become right" in stage.ui.resultLabel.text
    assert not stage.ui.confirmButton.isHidden()
    markers = stage.parameters.sideMarkers
    assert markers.GetNumberOfControlPoints() == 4
    stage.answer = False
    stage.ui.confirmButton.click()
    assert not aligned.alignment_of(node)["trusted"]
    stage.answer = True
    stage.ui.confirmButton.click()
    stage.settle()
    assert [m[0] for m in stage.messages] == ["confirmOkCancelDisplay"] * 2
    assert aligned.alignment_of(node)["trusted"]
    assert stage.ui.confirmButton.isHidden()
    assert "NOT" not in stage.ui.alignmentResultLabel.text
    assert stage.parameters.sideMarkers is None
    assert markers.GetScene() is None
    stage.apply()
    stage.settle()
    fused = stage.parameters.fusedVolume
    assert fused.GetNodeReference(aligned.TRANSFORM) is node  # the confirmed pose, no other
    assert scene.report_of(fused)["alignment"]["trusted"]
    assert "Warning" not in stage.ui.resultLabel.text


def test_a_quick_look_says_the_doubts_of_what_it_uses(stage, pair):
    choose(stage.ui.alignmentCombo, "rigid-any")
    align(stage)
    stage.ui.quickLookButton.click()
    stage.wait()
    assert "Quick look in" in stage.ui.resultLabel.text
    assert "left may have become right" in stage.ui.resultLabel.text
    # Searched once more, it is searched: what was found before does not stand for a check.
    before = stage.parameters.alignmentTransform
    align(stage)
    assert stage.parameters.alignmentTransform is not before
    assert "NOT TRUSTED" in stage.ui.resultLabel.text
    # Volumes that are gone leave nothing to confirm.
    slicer.mrmlScene.RemoveNode(pair[1])
    stage.settle()
    assert stage.ui.confirmButton.isHidden()
    assert not stage.ui.applyTransformButton.enabled
    assert stage.parameters.sideMarkers is None


def test_an_edited_transform_is_out_of_date(stage, pair):
    import vtk

    choose(stage.ui.alignmentCombo, "near")
    align(stage)
    node = stage.parameters.alignmentTransform
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 7.0)
    node.SetMatrixTransformToParent(matrix)
    stage.settle()
    assert "OUT OF DATE: the transform was changed by hand" in stage.ui.alignmentResultLabel.text
    assert not stage.ui.applyTransformButton.enabled


def test_swap_takes_landmarks_along_and_leaves_the_start(stage, pair):
    first, second = markups(np.zeros((3, 3)), "on CT"), markups(np.zeros((3, 3)), "on MR")
    stage.parameters.firstLandmarks, stage.parameters.secondLandmarks = first, second
    stage.parameters.startTransform = linear(np.eye(4))
    stage.settle()
    stage.ui.swapButton.click()
    stage.settle()
    assert (stage.parameters.firstLandmarks, stage.parameters.secondLandmarks) == (second, first)
    assert stage.parameters.startTransform is None
    assert "Start was set back" in stage.ui.resultLabel.text


def test_a_search_is_cancelled(stage, pair):
    choose(stage.ui.alignmentCombo, "rigid-any")
    before = stage.nodes()
    stage.ui.alignButton.click()
    stage.spin(lambda: "pose" in stage.ui.stepLabel.text)
    stage.ui.applyButton.click()
    seconds, _ = stage.wait()
    assert seconds < 2
    assert "Cancelled" in stage.ui.resultLabel.text
    assert stage.nodes() == before
    assert stage.ui.alignButton.enabled


def test_start_and_landmarks(stage, pair):
    start = linear(LPS @ np.linalg.inv(AWAY) @ LPS)
    stage.ui.startSelector.setCurrentNode(start)
    stage.settle()
    assert stage.parameters.startTransform is start
    assert "laid by" in stage.ui.overlapLabel.text
    align(stage)
    assert "NOT" not in stage.ui.resultLabel.text
    stage.ui.startSelector.setCurrentNode(None)
    points = np.random.default_rng(5).uniform(-60, 60, (3, 3))
    first = markups(points @ LPS[:3, :3], "on CT")
    second = markups((np.c_[points, np.ones(3)] @ (LPS @ AWAY).T)[:, :3], "on MR")
    stage.ui.firstLandmarksSelector.setCurrentNode(first)
    stage.settle()
    assert not stage.ui.applyButton.enabled
    assert "both volumes" in stage.ui.applyButton.toolTip
    stage.ui.secondLandmarksSelector.setCurrentNode(second)
    stage.settle()
    align(stage)
    assert "NOT" not in stage.ui.resultLabel.text
    second.SetNthControlPointPosition(0, 500.0, 0.0, 0.0)
    stage.settle()
    align(stage)
    assert "NOT TRUSTED" in stage.ui.resultLabel.text
    second.RemoveNthControlPoint(0)
    stage.settle()
    assert not stage.ui.alignButton.enabled
    assert "pairs" in stage.ui.alignButton.toolTip


def test_what_cannot_be_aligned_is_said_before(stage, pair):
    bent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    import vtk

    spline = vtk.vtkThinPlateSplineTransform()
    bent.SetAndObserveTransformToParent(spline)
    assert not bent.IsLinear()
    pair[1].SetAndObserveTransformNodeID(bent.GetID())
    choose(stage.ui.alignmentCombo, "rigid")
    stage.settle()
    for button in (stage.ui.alignButton, stage.ui.applyButton):
        assert not button.enabled
        assert "non-linear" in button.toolTip
    choose(stage.ui.alignmentCombo, "as-loaded")
    stage.settle()
    assert stage.ui.applyButton.enabled


def test_choices_are_saved_with_the_scene(stage, pair, tmp_path):
    choose(stage.ui.alignmentCombo, "near")
    align(stage)
    name = stage.parameters.alignmentTransform.GetName()
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    stage.settle()
    assert stage.ui.alignmentCombo.currentData == "near"
    node = stage.parameters.alignmentTransform
    assert node.GetName() == name
    assert stage.ui.applyTransformButton.enabled
    stage.ui.applyTransformButton.click()
    assert stage.parameters.secondVolume.GetParentTransformNode() is node
    stage.ui.applyTransformButton.click()
    stage.apply()
    assert stage.parameters.fusedVolume.GetNodeReference(aligned.TRANSFORM) is node
