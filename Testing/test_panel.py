"""The panel over real Qt: what it chooses, offers, says and refuses; clicked, without any run."""

import numpy as np
import pytest
import slicer

from ASFEFusionLib import scene


def items(combo):
    return [combo.itemData(n) for n in range(combo.count)]


def choose(combo, data):
    combo.currentIndex = combo.findData(data)
    assert combo.currentData == data


def test_an_empty_scene(stage):
    assert not stage.ui.applyButton.enabled
    assert "load or choose" in stage.ui.applyButton.toolTip
    assert not stage.ui.quickLookButton.enabled
    assert stage.ui.resultLabel.text == ""
    stage.ui.swapButton.click()
    stage.settle()
    assert not stage.messages


def test_two_volumes_are_chosen_when_it_is_opened(stage, heads):
    ct, mr, pet = (stage.add(heads[m], m, m) for m in ("CT", "MR", "PET"))
    fused = stage.add(heads["CT"], "old")
    fused.SetAttribute(scene.MARK, "1")
    slicer.util.setSliceViewerLayers(background=fused, foreground=pet)
    stage.widget.exit()
    stage.widget.enter()
    stage.settle()
    assert stage.ui.firstSelector.currentNode() is pet  # in view
    assert stage.ui.secondSelector.currentNode() is ct
    assert stage.ui.applyButton.enabled
    # What was chosen stays.
    stage.parameters.secondVolume = mr
    stage.widget.exit()
    stage.widget.enter()
    assert stage.ui.secondSelector.currentNode() is mr


def test_never_the_same_twice(stage, heads):
    ct, mr = stage.pair(heads)
    stage.ui.firstSelector.setCurrentNode(mr)
    assert (stage.parameters.firstVolume, stage.parameters.secondVolume) == (mr, ct)
    stage.ui.secondSelector.setCurrentNode(mr)
    assert (stage.parameters.firstVolume, stage.parameters.secondVolume) == (ct, mr)
    assert stage.ui.firstSelector.currentNode() is ct
    one = stage.add(heads["PET"], "PET")
    stage.parameters.secondVolume = None
    stage.ui.secondSelector.setCurrentNode(one)
    stage.ui.firstSelector.setCurrentNode(one)
    assert (stage.parameters.firstVolume, stage.parameters.secondVolume) == (one, ct)


def test_swap_takes_the_choices_along(stage, heads):
    ct, mr = stage.pair(heads)
    choose(stage.ui.firstWindowCombo, "ct-brain")
    choose(stage.ui.secondModalityCombo, "PET")
    choose(stage.ui.functionalCombo, "second")
    stage.ui.swapButton.click()
    stage.settle()
    p = stage.parameters
    assert (p.firstVolume, p.secondVolume) == (mr, ct)
    assert (p.firstModality, p.secondModality) == ("PET", "automatic")
    assert (p.firstWindow, p.secondWindow, p.functional) == ("automatic", "ct-brain", "first")
    assert stage.ui.secondWindowCombo.currentData == "ct-brain"


def test_what_each_volume_is(stage, heads):
    stage.add(heads["CT"], "by values")
    us = stage.add(heads["MR"], "by DICOM", "US")
    stage.widget.initializeParameterNode()
    stage.settle()
    assert "CT" in stage.ui.firstModalityCombo.currentText
    assert "HU" in stage.ui.firstInfoLabel.text
    assert "Ultrasound" in stage.ui.secondModalityCombo.currentText
    assert "not trained" in stage.ui.secondInfoLabel.text
    choose(stage.ui.secondModalityCombo, "MR")
    assert "not trained" not in stage.ui.secondInfoLabel.text
    stage.parameters.secondModality = "automatic"
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    hierarchy.SetItemAttribute(hierarchy.GetItemByDataNode(us), "DICOM.Modality", "")
    us.Modified()
    stage.settle()
    assert "unknown" in stage.ui.secondModalityCombo.currentText
    assert "choose it" in stage.ui.secondInfoLabel.text


@pytest.mark.parametrize(
    ("modality", "units", "offered"),
    [
        ("PT", "{SUVbw}g/ml", ["pet-suv-5", "pet-suv-10", "pet-suv-15"]),
        ("PT", "Bq/ml", []),
        ("PT", None, []),
        ("CT", None, ["ct-brain", "ct-soft-tissue", "ct-bone", "ct-lung"]),
        ("MR", None, []),
    ],
)
def test_presets_only_for_known_units(stage, heads, modality, units, offered):
    stage.add(heads["MR"], "MR", "MR")
    stage.parameters.secondVolume = stage.add(heads["PET"], "other", modality, units)
    stage.settle()
    assert items(stage.ui.secondWindowCombo) == ["automatic", "displayed", *offered]


def test_a_preset_leaves_with_its_volume(stage, heads):
    stage.pair(heads)
    choose(stage.ui.firstWindowCombo, "ct-bone")
    stage.parameters.firstVolume = stage.add(heads["PET"], "PET", "PT")
    stage.settle()
    assert stage.parameters.firstWindow == "automatic"
    assert stage.ui.firstWindowCombo.currentData == "automatic"


def test_the_overlap_is_shown_and_warned_of(stage, heads):
    _, mr = stage.pair(heads)
    assert "WARNING" not in stage.ui.overlapLabel.text
    assert "%" in stage.ui.overlapLabel.text
    move(mr, 120)
    stage.settle()
    assert "WARNING" in stage.ui.overlapLabel.text
    move(mr, 5000)
    stage.settle()
    assert "only 0 %" in stage.ui.overlapLabel.text


def move(node, amount, scale=1.0):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, amount)
    matrix.SetElement(2, 2, scale)
    parent = node.GetParentTransformNode()
    if parent is None:
        parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        node.SetAndObserveTransformNodeID(parent.GetID())
    parent.SetMatrixTransformToParent(matrix)
    return parent


def test_a_singular_transform_is_said(stage, heads):
    _, mr = stage.pair(heads)
    move(mr, 0, scale=0.0)
    stage.settle()
    assert "no inverse" in stage.ui.overlapLabel.text
    assert not stage.ui.applyButton.enabled
    assert "no inverse" in stage.ui.applyButton.toolTip


def test_frames_of_reference_are_a_fact_and_no_alarm(stage, heads):
    nodes = stage.pair(heads)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    tag = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMFrameOfReferenceUIDAttributeName()
    assert "frame" not in stage.ui.overlapLabel.text
    for node, uid in zip(nodes, ("1.2", "1.3"), strict=True):
        hierarchy.SetItemAttribute(hierarchy.GetItemByDataNode(node), tag, uid)
    stage.panel.updateInfo()
    assert "frames of reference differ" in stage.ui.overlapLabel.text
    assert "WARNING" not in stage.ui.overlapLabel.text
    hierarchy.SetItemAttribute(hierarchy.GetItemByDataNode(nodes[1]), tag, "1.2")
    stage.panel.updateInfo()
    assert "same DICOM frame" in stage.ui.overlapLabel.text


def test_why_apply_is_disabled(stage, heads):
    ct, mr = stage.pair(heads)
    ui, p = stage.ui, stage.parameters
    assert ui.applyButton.enabled
    p.secondVolume = None
    assert "load or choose" in ui.applyButton.toolTip
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow")
    p.secondVolume = empty
    assert not ui.applyButton.enabled
    assert "hollow has no voxels" in ui.applyButton.toolTip
    p.secondVolume = mr
    assert ui.applyButton.enabled
    p.outputVolume = ct
    assert not ui.applyButton.enabled
    assert "CT is one of the two inputs" in ui.applyButton.toolTip
    assert ui.quickLookButton.enabled
    p.outputVolume = stage.add(heads["PET"], "mine")
    assert ui.applyButton.enabled
    assert "mine will be overwritten" in ui.outputNoteLabel.text
    choose(ui.colourCombo, "hot")
    assert not ui.applyButton.enabled
    assert "mine cannot hold a colour volume" in ui.applyButton.toolTip
    p.outputVolume = None
    assert ui.applyButton.enabled
    p.region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    assert not ui.applyButton.enabled
    assert "box has no size" in ui.applyButton.toolTip
    assert not stage.messages


def test_choices_survive_save_and_load(stage, heads, tmp_path):
    nodes = stage.pair(heads)
    ui = stage.ui
    choose(ui.gridCombo, "finest")
    choose(ui.colourCombo, "rainbow")
    choose(ui.functionalCombo, "first")
    choose(ui.deviceCombo, "cpu")
    choose(ui.firstWindowCombo, "ct-lung")
    choose(ui.secondModalityCombo, "SPECT")
    names = [node.GetName() for node in nodes]
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    stage.settle()
    assert stage.ui.gridCombo.currentData == "first"
    slicer.util.loadScene(path)
    stage.settle()
    p = stage.parameters
    assert [p.firstVolume.GetName(), p.secondVolume.GetName()] == names
    assert (p.grid, p.colour, p.functional, p.device) == ("finest", "rainbow", "first", "cpu")
    assert (p.firstWindow, p.secondModality) == ("ct-lung", "SPECT")
    assert ui.gridCombo.currentData == "finest"
    assert ui.firstSelector.currentNode().GetName() == names[0]
    assert ui.firstWindowCombo.currentData == "ct-lung"
    assert ui.applyButton.enabled


def composites():
    manager = slicer.app.layoutManager()
    return [manager.sliceWidget(name).mrmlSliceCompositeNode() for name in manager.sliceViewNames()]


def test_the_slider_shows_both_and_one_click_goes_back(stage, heads):
    ct, mr = stage.pair(heads)
    pet = stage.add(heads["PET"], "PET")
    slicer.util.setSliceViewerLayers(background=pet, foreground=None)
    layout = slicer.app.layoutManager().layout
    assert not stage.ui.formerLayoutButton.enabled
    stage.ui.opacitySlider.value = 30
    for composite in composites():
        assert composite.GetBackgroundVolumeID() == ct.GetID()
        assert composite.GetForegroundVolumeID() == mr.GetID()
        assert composite.GetForegroundOpacity() == pytest.approx(0.3)
    stage.ui.formerLayoutButton.click()
    assert {c.GetBackgroundVolumeID() for c in composites()} == {pet.GetID()}
    assert {c.GetForegroundVolumeID() for c in composites()} <= {None, ""}
    assert slicer.app.layoutManager().layout == layout
    assert not stage.ui.formerLayoutButton.enabled


def test_compare_volumes_and_back(stage, heads, monkeypatch):
    import sys
    import types

    ct, mr = stage.pair(heads)
    if stage.host:  # Slicer has the module; the host has not
        stage.ui.compareButton.click()
        assert "not part of this Slicer" in stage.ui.resultLabel.text
        shown, chosen = [], []
        fake = types.ModuleType("CompareVolumes")

        class CompareVolumesLogic:
            def viewersPerVolume(self, volumeNodes, background, opacity):  # noqa: N802, N803
                shown.extend([*volumeNodes, background])
                slicer.app.layoutManager().setLayout(500)

        fake.CompareVolumesLogic = CompareVolumesLogic
        monkeypatch.setitem(sys.modules, "CompareVolumes", fake)
        monkeypatch.setattr(slicer.modules, "comparevolumes", fake, raising=False)
        monkeypatch.setattr(slicer.util, "selectModule", chosen.append)
    layout = slicer.app.layoutManager().layout
    stage.ui.compareButton.click()
    if stage.host:
        assert (shown, chosen) == ([ct, mr, ct], ["CompareVolumes"])
    assert slicer.app.layoutManager().layout != layout
    stage.ui.formerLayoutButton.click()
    assert slicer.app.layoutManager().layout == layout


def test_every_word_can_be_translated(stage, heads, monkeypatch):
    """With a language that marks each text, no text set by the panel's code comes without the mark."""
    if not stage.host:
        return
    from ASFEFusionPanel import alignment, inputs, words
    from ASFEFusionPanel import panel as panel_module

    for module in (panel_module, alignment, inputs, words):
        monkeypatch.setattr(module, "_", lambda text: "§" + text)
    stage.pair(heads)
    stage.add(heads["PET"], "third")
    stage.panel._fillCombos()
    stage.parameters.outputVolume = stage.add(heads["PET"], "mine")
    stage.panel.updateInfo()
    combos = list(stage.panel._combos.values())
    texts = [c.itemText(n) for c in combos for n in range(c.count)]
    texts += [getattr(stage.ui, f"{name}Label").text for name in ("firstInfo", "secondInfo", "overlap", "outputNote")]
    texts += [stage.ui.applyButton.text, stage.ui.applyButton.toolTip, stage.ui.quickLookButton.toolTip]
    for button in (stage.ui.alignButton, stage.ui.applyTransformButton):
        texts.append(button.text)
    texts.append(alignment.verdict({"search": "rigid", "trusted": False, "confidence": 0.5}))
    assert len(texts) > 50
    assert [text for text in texts if not text.startswith("§")] == []
    codes = [*words._errorTexts().values(), *words._warningTexts().values(), *words._stepTexts().values()]
    assert all(text.startswith("§") for text in codes)


def test_closing_the_scene_empties_the_panel(stage, heads):
    stage.pair(heads)
    slicer.mrmlScene.Clear(0)
    stage.settle()
    assert stage.ui.firstSelector.currentNode() is None
    assert not stage.ui.applyButton.enabled
    assert stage.ui.firstInfoLabel.text == ""
    stage.pair(heads)
    assert stage.ui.applyButton.enabled


def test_the_panel_reads_a_large_volume_once(stage, heads, monkeypatch):
    """Its modality by values takes a look at 2 million voxels: not at every move of a transform."""
    from ASFEFusionLib import intensity

    _, mr = stage.pair(heads)
    calls = []
    guess = intensity.guess_modality
    monkeypatch.setattr(intensity, "guess_modality", lambda v: calls.append(v) or guess(v))
    for n in range(5):
        move(mr, n)
        stage.spin(seconds=0.2)
    assert len(calls) <= 2
    assert np.isfinite(scene.overlap_share(*stage.panel._selected))


def test_a_new_region_is_the_first_volumes_box(stage, heads):
    ct, _ = stage.pair(heads)
    roi = stage.ui.regionSelector.addNode()
    if stage.host:
        stage.ui.regionSelector.nodeAddedByUser.emit(roi) if not any(roi.GetSize()) else None
    stage.settle()
    bounds = [0.0] * 6
    ct.GetRASBounds(bounds)
    assert roi.GetSize() == pytest.approx([bounds[1] - bounds[0], bounds[3] - bounds[2], bounds[5] - bounds[4]])
    assert stage.parameters.region is roi
    assert stage.ui.applyButton.enabled


def test_a_hidden_panel_rests(stage, heads, monkeypatch):
    """A live transform while another module is open costs nothing."""
    _, mr = stage.pair(heads)
    monkeypatch.setattr(stage.panel, "isOpen", lambda: False)
    calls = []
    monkeypatch.setattr(stage.panel, "_describe", calls.append)
    for n in range(5):
        move(mr, n)
        stage.spin(seconds=0.2)
    assert calls == []


def test_slicer_quits_after_the_panel_was_open(stage, heads):
    """Slicer takes its own names of the module away first."""
    stage.pair(heads)
    if stage.host:
        stage.host.closeModule(stage.module)
        stage.module = stage.host.loadModule(stage_path())
        stage.widget = stage.host.openModule(stage.module)
        stage.ui, stage.logic, stage.panel = stage.widget.ui, stage.widget.logic, stage.widget.panel
        assert not stage.host.problems


def stage_path():
    from stage import MODULE

    return MODULE


def test_the_plane_of_the_slices_is_chosen(stage, heads):
    from ASFEFusionPanel.choices import makeRequest

    nodes = stage.pair(heads)
    assert items(stage.ui.planeCombo) == ["automatic", "axial", "coronal", "sagittal"]
    choose(stage.ui.planeCombo, "coronal")
    assert stage.parameters.plane == "coronal"
    assert makeRequest(*nodes, None, stage.panel.inputs.choices()).job.settings.plane == "coronal"


def test_a_large_grid_says_what_memory_it_needs(stage, heads):
    coarse, fine = heads["CT"], heads["MR"]
    stage.parameters.firstVolume = stage.add(coarse, "CT", "CT")
    matrix = fine.ijk_to_physical.copy()
    matrix[:3, :3] *= 0.07
    stage.parameters.secondVolume = stage.add(type(fine)(fine.voxels, matrix), "fine", "MR")
    stage.settle()
    assert stage.ui.outputNoteLabel.text == ""
    choose(stage.ui.gridCombo, "finest")
    stage.settle()
    assert "GB of memory" in stage.ui.outputNoteLabel.text
