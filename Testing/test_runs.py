"""Runs from the panel, in their own process: results, quick looks, cancel, and all that can go wrong meanwhile."""

import os
import signal
import time

import numpy as np
import pytest
import slicer
import vtk

from ASFEFusionLib import grids, scene
from ASFEFusionLib.volume import Volume


def voxels(node):
    return scene.read_volume(node).voxels if node.GetClassName() == "vtkMRMLScalarVolumeNode" else rgb(node)


def rgb(node):
    image = node.GetImageData()
    values = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return values.reshape(*image.GetDimensions()[::-1], -1)


@pytest.fixture
def large(stage):
    """A pair that takes some seconds, chosen in the panel."""
    rng = np.random.default_rng(0)
    pair = []
    for name in ("one", "two"):
        volume = Volume(rng.integers(0, 1000, (60, 256, 256)).astype(np.int16), np.eye(4), modality="MR", name=name)
        pair.append(stage.add(volume, name, "MR"))
    stage.parameters.firstVolume, stage.parameters.secondVolume = pair
    stage.settle()
    return pair


def test_apply_adds_one_fused_volume(stage, heads):
    ct, mr = stage.pair(heads)
    before = stage.nodes()
    stage.ui.applyButton.click()
    assert stage.ui.applyButton.text == "Cancel"
    assert not stage.ui.quickLookButton.enabled
    assert not stage.ui.progressBar.isHidden()
    seen = set()
    stage.spin(lambda: seen.add(stage.ui.stepLabel.text) or not stage.logic.busy)
    assert any(text.startswith("Slice") for text in seen)
    fused = stage.parameters.fusedVolume
    assert sorted({*stage.nodes()} - {*before}) == [fused.GetID()]
    assert stage.ui.applyButton.text == "Apply"
    assert stage.ui.resultLabel.text.startswith("Fused in ")
    assert "CPU" in stage.ui.resultLabel.text
    # The same as in this process.
    again = stage.logic.fuse(ct, mr)
    assert np.abs(voxels(fused).astype(int) - voxels(again)).max() <= 1
    # Shown, and said so.
    manager = slicer.app.layoutManager()
    for name in manager.sliceViewNames():
        composite = manager.sliceWidget(name).mrmlSliceCompositeNode()
        assert composite.GetBackgroundVolumeID() == fused.GetID()
    stage.settle()
    notes = stage.panel.logic and [actor.GetInput() for _r, actor in watch()._notes._actors.values()]
    assert notes == ["fused, not for quantitation"] * len(manager.sliceViewNames())


def watch():
    from ASFEFusionPanel import watch as module

    return module._watch


def test_the_second_run_uses_the_same_process(stage, heads):
    stage.pair(heads)
    pids = []
    for _ in range(2):
        stage.apply()
        [child] = stage.logic._runner._children
        pids.append(child.process.processId())
    assert pids[0] == pids[1]


def test_choices_reach_the_result(stage, heads):
    stage.pair(heads)
    pet = stage.add(heads["PET"], "PET", "PT", "{SUVbw}g/ml")
    stage.parameters.secondVolume = pet
    pet.GetDisplayNode().SetWindowLevelMinMax(1.0, 6.5)
    stage.ui.secondWindowCombo.currentIndex = stage.ui.secondWindowCombo.findData("displayed")
    stage.ui.firstWindowCombo.currentIndex = stage.ui.firstWindowCombo.findData("ct-brain")
    stage.ui.colourCombo.currentIndex = stage.ui.colourCombo.findData("hot")
    stage.ui.gridCombo.currentIndex = stage.ui.gridCombo.findData("second")
    stage.apply()
    fused = stage.parameters.fusedVolume
    report = scene.report_of(fused)
    assert fused.GetClassName() == "vtkMRMLVectorVolumeNode"
    assert fused.GetImageData().GetDimensions() == pet.GetImageData().GetDimensions()
    assert [report["windows"]["second"][end] for end in ("low", "high")] == pytest.approx([1.0, 6.5])
    assert (report["windows"]["first"]["low"], report["windows"]["first"]["high"]) == (0, 80)
    assert report["colour"] == {"map": "hot", "volume": "second"}
    assert report["modalities"] == {"first": "CT", "second": "PET"}
    assert rgb(fused).std() > 10


def test_the_displays_colour_table_is_taken(stage, heads):
    stage.pair(heads)
    pet = stage.add(heads["PET"], "PET", "PT")
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "greens")
    table.SetTypeToUser()
    table.SetNumberOfColors(256)
    for n in range(256):
        table.SetColor(n, str(n), 0.0, n / 255, 0.0)
    pet.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    stage.parameters.secondVolume = pet
    stage.apply()  # automatic: one of the two is PET, and not grey
    values = rgb(stage.parameters.fusedVolume).astype(int)
    assert (values[..., 1] - values[..., 0]).max() > 100
    assert (values[..., 0] - values[..., 1]).max() <= 1
    pet.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    stage.apply()
    assert stage.parameters.fusedVolume.GetClassName() == "vtkMRMLScalarVolumeNode"


def test_a_region_limits_the_output(stage, heads):
    ct, _ = stage.pair(heads)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    grid = grids.grid_of(scene.read_volume(ct))
    centre = scene.LPS @ grid.matrix @ [30, 30, 20, 1]
    roi.SetCenterWorld(*centre[:3])
    roi.SetSize(30, 30, 20)
    stage.parameters.region = roi
    stage.settle()
    stage.apply()
    fused = stage.parameters.fusedVolume
    size = np.array(fused.GetImageData().GetDimensions())
    assert (size < np.array(grid.size) / 2).all()
    matrix = vtk.vtkMatrix4x4()
    fused.GetIJKToRASMatrix(matrix)
    first = np.linalg.inv(grid.matrix) @ scene.LPS @ scene._array(matrix) @ [0, 0, 0, 1]
    assert np.abs(first - np.rint(first)).max() < 1e-6  # on voxels of the first
    assert np.allclose(first[:3] + (size - 1) / 2, [30, 30, 20], atol=1.0)


def test_an_overwritten_output_is_watched(stage, heads):
    """Its inputs are followed though no node came or went."""
    _, mr = stage.pair(heads)
    stage.parameters.outputVolume = stage.add(heads["PET"], "mine")
    stage.settle()
    stage.apply()
    stage.settle()
    slicer.util.arrayFromVolume(mr)[3, 3, 3] += 7
    slicer.util.arrayFromVolumeModified(mr)
    stage.settle()
    assert "an input was changed" in stage.ui.resultLabel.text


def test_a_quick_look_that_no_longer_fits(stage, heads):
    _, mr = stage.pair(heads)
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    slice_node = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
    slice_node.SetSliceOffset(40.0)
    stage.ui.quickLookButton.click()
    slice_node.SetSliceOffset(48.0)
    stage.wait()
    assert "moved on" in stage.ui.resultLabel.text
    assert not stage.panel.quickLook.shown
    stage.ui.quickLookButton.click()
    stage.wait()
    assert stage.panel.quickLook.shown
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    mr.SetAndObserveTransformNodeID(transform.GetID())
    assert stage.panel.quickLook.shown
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 5)
    transform.SetMatrixTransformToParent(matrix)
    assert not stage.panel.quickLook.shown
    assert not composite.GetForegroundVolumeID()


def test_the_colour_of_a_display_is_heard_of(stage, heads):
    """A grey output fits once the PET is shown in grey."""
    stage.pair(heads)
    pet = stage.add(heads["PET"], "PET", "PT")
    warm = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "warm")
    warm.SetTypeToUser()
    warm.SetNumberOfColors(256)
    for n in range(256):
        warm.SetColor(n, str(n), n / 255, n / 510, 0.0)
    pet.GetDisplayNode().SetAndObserveColorNodeID(warm.GetID())
    stage.parameters.secondVolume = pet
    stage.parameters.outputVolume = stage.add(heads["CT"], "mine")
    stage.settle()
    assert "cannot hold a colour volume" in stage.ui.applyButton.toolTip
    pet.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    stage.settle()
    assert stage.ui.applyButton.enabled


def test_back_is_open_after_a_run(stage, heads):
    ct, _ = stage.pair(heads)
    slicer.util.setSliceViewerLayers(background=ct, foreground=None)
    stage.apply()
    stage.ui.formerLayoutButton.click()
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == ct.GetID()


def test_no_second_run_while_pytorch_installs(stage, heads, monkeypatch):
    from ASFEFusionPanel import panel

    stage.pair(heads)
    calls = []

    def install():
        calls.append(stage.ui.applyButton.enabled)
        stage.panel.updateInfo()
        stage.ui.applyButton.click()
        stage.ui.quickLookButton.click()
        return False

    monkeypatch.setattr(panel, "ensureTorch", install)
    stage.ui.applyButton.click()
    assert calls == [False]
    assert stage.ui.applyButton.enabled


def test_whatever_else_fails_ends_the_run(stage, heads, monkeypatch):
    stage.pair(heads)

    def full(*_arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(stage.logic, "finish", full)
    fails(stage, "no room")
    assert stage.ui.progressBar.isHidden()


def test_an_output_is_overwritten_after_saying_so(stage, heads):
    stage.pair(heads)
    mine = stage.add(heads["PET"], "mine")
    kept = voxels(mine).copy()
    stage.ui.outputSelector.setCurrentNode(mine)
    stage.settle()
    assert "mine will be overwritten" in stage.ui.outputNoteLabel.text
    stage.answer = False
    stage.ui.applyButton.click()
    assert not stage.logic.busy
    assert "not a fused volume" in stage.messages[-1][1]
    assert np.array_equal(voxels(mine), kept)
    stage.answer = True
    stage.apply()
    assert stage.parameters.fusedVolume is mine
    assert len(stage.messages) == 2
    stage.apply()  # it is a fused one now: said in the panel, not asked
    assert len(stage.messages) == 2
    assert stage.parameters.fusedVolume is mine


def test_a_quick_look_fuses_the_slice_in_view(stage, heads):
    straight = Volume(heads["CT"].voxels, np.diag([-2.0, -2.0, 3.0, 1.0]), "CT", "HU", "CT")
    ct = stage.add(straight, "CT", "CT")
    stage.parameters.firstVolume = ct
    stage.parameters.secondVolume = stage.add(Volume(heads["CT"].voxels, straight.ijk_to_physical, "MR"), "MR", "MR")
    slicer.util.setSliceViewerLayers(background=ct, foreground=None, fit=True)
    stage.settle()
    before = stage.nodes()
    combo = stage.ui.quickLookViewCombo
    for name in ("Red", "Yellow"):
        combo.currentIndex = combo.findData(name)
        stage.ui.quickLookButton.click()
        stage.wait()
        assert stage.ui.resultLabel.text.startswith(f"Quick look in {name}")
        composite = slicer.app.layoutManager().sliceWidget(name).mrmlSliceCompositeNode()
        node = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID())
        assert node.GetImageData().GetDimensions()[2] == 1
        assert node.GetHideFromEditors()
        assert not node.GetSaveWithScene()
        assert composite.GetForegroundOpacity() == 1
        assert voxels(node).std() > 50
        stage.settle()
        assert "not for quantitation" in watch()._notes._actors[name][1].GetInput()
        slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode().SetSliceOffset(12.3)
        assert not composite.GetForegroundVolumeID()
        assert stage.nodes() == before
    whole = stage.logic.fuse(ct, stage.parameters.secondVolume)
    combo.currentIndex = combo.findData("Red")
    stage.ui.quickLookButton.click()
    stage.wait()
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    node = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID())
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    k = int(np.rint((np.linalg.inv(scene.LPS @ straight.ijk_to_physical) @ scene._array(matrix))[2, 3]))
    assert np.abs(voxels(node)[0].astype(int) - voxels(whole)[k]).max() <= 1


def test_cancel_takes_less_than_a_second(stage, large):
    before = stage.nodes()
    for moment in (0.0, 0.02, 2.0):
        stage.apply(wait=False)
        stage.spin(lambda: False, moment)
        assert stage.logic.busy
        stage.ui.applyButton.click()
        seconds, _ = stage.wait()
        assert seconds < 1.2
        assert "Cancelled" in stage.ui.resultLabel.text
        assert stage.nodes() == before
        assert stage.ui.applyButton.text == "Apply"
        assert stage.ui.applyButton.enabled


def test_the_window_never_freezes(stage, large):
    stage.apply(wait=False)
    _, longest = stage.spin(lambda: stage.ui.progressBar.value > 400)
    assert longest < 0.5  # the target, 0.2 s, is measured by Testing/benchmarks/blocking.py
    stage.ui.applyButton.click()
    stage.wait()


@pytest.mark.parametrize("which", ["first", "second", "output"])
def test_a_node_is_removed_meanwhile(stage, large, which):
    output = stage.add(scene.read_volume(large[0]), "out")
    stage.parameters.outputVolume = output
    stage.apply(wait=False)
    stage.until_under_way()
    slicer.mrmlScene.RemoveNode({"first": large[0], "second": large[1], "output": output}[which])
    stage.wait(2)
    assert "was removed" in stage.ui.resultLabel.text
    assert stage.children()[0] == []


def test_the_scene_is_closed_meanwhile(stage, large, heads):
    stage.apply(wait=False)
    stage.until_under_way()
    [child] = stage.logic._runner._children
    pid = child.process.processId()
    slicer.mrmlScene.Clear(0)
    assert not stage.logic.busy
    stage.settle()
    assert not alive(pid)
    assert stage.ui.resultLabel.text == ""
    stage.pair(heads)
    stage.apply()
    assert stage.ui.resultLabel.text.startswith("Fused")


def alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def test_the_process_is_killed_meanwhile(stage, large, heads):
    before = stage.nodes()
    stage.apply(wait=False)
    stage.until_under_way()
    [child] = stage.logic._runner._children
    os.kill(child.process.processId(), signal.SIGKILL)
    stage.wait(5)
    assert "has ended by itself" in stage.ui.resultLabel.text
    assert not stage.messages
    assert stage.nodes() == before
    stage.pair(heads)
    stage.apply()
    assert stage.ui.resultLabel.text.startswith("Fused")


def test_leaving_the_module_does_not_stop_a_run(stage, heads):
    stage.pair(heads)
    stage.apply(wait=False)
    stage.widget.exit()
    if stage.host:
        stage.widget.parent._entered = False
    stage.wait()
    fused = stage.parameters.fusedVolume
    assert scene.is_fused(fused)
    stage.widget.enter()
    assert stage.ui.resultLabel.text.startswith("Fused")


def test_an_input_changes_during_the_run(stage, large):
    """What was taken at Apply is fused; what is there then is told to be newer."""
    stage.apply(wait=False)
    stage.until_under_way()
    scene.read_volume(large[1]).voxels[30] = 0
    slicer.util.arrayFromVolumeModified(large[1])
    stage.wait()
    stage.settle()
    assert stage.parameters.fusedVolume.GetAttribute(scene.STALE) == "voxels_changed"
    assert "OUT OF DATE" in stage.ui.resultLabel.text


def test_out_of_date_in_panel_and_views(stage, heads):
    _, mr = stage.pair(heads)
    stage.apply()
    stage.settle()
    assert "OUT OF DATE" not in stage.ui.resultLabel.text
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(1, 3, 4.0)
    transform.SetMatrixTransformToParent(matrix)
    mr.SetAndObserveTransformNodeID(transform.GetID())
    stage.settle()
    assert "OUT OF DATE: the inputs were moved" in stage.ui.resultLabel.text
    notes = [actor.GetInput() for _r, actor in watch()._notes._actors.values()]
    assert all("OUT OF DATE" in note for note in notes)
    mr.SetAndObserveTransformNodeID(None)
    stage.settle()
    assert "OUT OF DATE" not in stage.ui.resultLabel.text
    # A live transform above both is no change.
    for node in (stage.parameters.firstVolume, mr, stage.parameters.fusedVolume):
        node.SetAndObserveTransformNodeID(transform.GetID())
    for n in range(20):
        matrix.SetElement(0, 3, n)
        transform.SetMatrixTransformToParent(matrix)
        stage.spin(seconds=0.02)
    stage.settle()
    assert "OUT OF DATE" not in stage.ui.resultLabel.text
    slicer.mrmlScene.RemoveNode(mr)
    stage.settle()
    assert "an input was removed" in stage.ui.resultLabel.text


def test_a_loaded_scene_is_watched(stage, heads, tmp_path):
    stage.pair(heads)
    stage.apply()
    name = stage.parameters.fusedVolume.GetName()
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    stage.settle()
    fused = stage.parameters.fusedVolume
    assert fused.GetName() == name
    assert fused.GetAttribute(scene.STALE) is None
    array = slicer.util.arrayFromVolume(stage.parameters.secondVolume)
    array[3, 3, 3] += 5
    slicer.util.arrayFromVolumeModified(stage.parameters.secondVolume)
    stage.settle()
    assert "an input was changed" in stage.ui.resultLabel.text
    stage.apply()
    stage.settle()
    assert "OUT OF DATE" not in stage.ui.resultLabel.text


def test_volume_rendering(stage, heads):
    stage.pair(heads)
    stage.apply()
    stage.ui.renderButton.click()
    logic = slicer.modules.volumerendering.logic()
    display = logic.GetFirstVolumeRenderingDisplayNode(stage.parameters.fusedVolume)
    assert display.GetVisibility()
    opacity = display.GetVolumePropertyNode().GetVolumeProperty().GetScalarOpacity()
    assert opacity.GetValue(0) == 0
    assert opacity.GetValue(1000) > 0.5
    stage.ui.renderButton.click()
    assert logic.GetFirstVolumeRenderingDisplayNode(stage.parameters.fusedVolume) is display


# ---- what can go wrong -----------------------------------------------------------------------------------------------


def fails(stage, text, before=None):
    before = stage.nodes() if before is None else before
    stage.ui.applyButton.click()
    stage.wait(60)
    assert text in stage.ui.resultLabel.text
    assert "Traceback" not in stage.ui.resultLabel.text
    assert not stage.messages or stage.messages[-1][0] != "errorDisplay"
    assert stage.nodes() == before
    assert stage.ui.applyButton.enabled
    assert stage.ui.applyButton.text == "Apply"


def test_no_overlap(stage, heads):
    _, mr = stage.pair(heads)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 3000)
    transform.SetMatrixTransformToParent(matrix)
    mr.SetAndObserveTransformNodeID(transform.GetID())
    fails(stage, "CT and MR do not meet in space")


def test_little_overlap_and_nan_are_warned_of(stage, heads):
    _, mr = stage.pair(heads)
    voxel = heads["MR"].voxels.astype(np.float32)
    voxel[5, 5, 5] = np.nan
    scene.put_voxels(mr, Volume(voxel, heads["MR"].ijk_to_physical))
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 130)
    transform.SetMatrixTransformToParent(matrix)
    mr.SetAndObserveTransformNodeID(transform.GetID())
    stage.apply()
    assert "1 voxels of MR are no numbers" in stage.ui.resultLabel.text
    assert "share only" in stage.ui.resultLabel.text
    said = [w["code"] for w in scene.report_of(stage.parameters.fusedVolume)["warnings"]]
    assert [code for code in said if not code.startswith("align_")] == ["not_finite", "little_overlap"]
    assert "align_shifted" in said or "align_little" in said


def test_nothing_but_nan(stage, heads):
    _, mr = stage.pair(heads)
    scene.put_voxels(mr, Volume(np.full((4, 5, 6), np.nan, np.float32), np.eye(4)))
    fails(stage, "MR holds no number in any voxel")


def test_no_such_device(stage, heads):
    stage.pair(heads)
    stage.ui.deviceCombo.currentIndex = stage.ui.deviceCombo.findData("mps")
    fails(stage, "has no mps device")


def test_damaged_weights(stage, heads, tmp_path, monkeypatch):
    from ASFEFusionPanel.choices import Choices

    stage.pair(heads)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no weights")
    monkeypatch.setattr(stage.panel.inputs, "choices", lambda: Choices(weights=str(damaged)))
    fails(stage, "weights are damaged")


def program(code):
    """The worker's program with some lines before it."""
    from ASFEFusionLib import worker

    lines, last = worker.PROGRAM.rsplit(";", 1)
    return f"{lines}\n{code}\n{last.strip()}"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import torch\ndef full(*a): raise torch.OutOfMemoryError('CUDA out of memory')", "memory of"),
        ("def full(*a): raise MemoryError", "memory of"),
        ("def full(*a): 1 / 0", "The fusion failed"),
        ("import os\ndef full(*a): os.abort()", "has ended by itself"),
    ],
)
def test_faults_within_the_process(stage, heads, monkeypatch, code, text):
    from ASFEFusionLib import worker

    stage.pair(heads)
    patch = f"{code}\nfrom ASFEFusionLib.network.asfe import ASFEFusion\nASFEFusion.forward = full"
    monkeypatch.setattr(worker, "PROGRAM", program(patch))
    fails(stage, text)
    if "1 / 0" in code:
        stage.ui.detailsButton.click()
        assert "ZeroDivisionError" in stage.messages[-1][2]["detailedText"]
    monkeypatch.undo()


def test_no_room_for_the_volumes(stage, heads, monkeypatch):
    from ASFEFusionLib import exchange
    from ASFEFusionLib.errors import FusionError

    def full(job, folder):
        yield 0
        raise FusionError("exchange_failed", path=folder)

    stage.pair(heads)
    monkeypatch.setattr(exchange, "send", full)
    fails(stage, "free some space on that disk")


def test_torch_missing(stage, heads, monkeypatch):
    import sys
    import types

    from ASFEFusionPanel import pytorch

    stage.pair(heads)
    monkeypatch.setattr(pytorch, "torchVersion", lambda: None)
    # No PyTorch extension: what to do.
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    fails(stage, "PyTorch is needed")
    kind, text, _ = stage.messages.pop()
    assert kind == "warningDisplay"
    assert "Extensions Manager" in text
    # The extension: asked once, saying what and from which version on.
    asked = []

    class Logic:
        result = object()

        def installTorch(self, **arguments):  # noqa: N802
            asked.append(arguments)
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = Logic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    stage.answer = False
    fails(stage, "PyTorch is needed")
    assert not asked
    kind, text, _ = stage.messages.pop()
    assert kind == "confirmOkCancelDisplay"
    assert "2.5" in text
    stage.answer = True
    stage.apply()
    assert asked == [{"askConfirmation": False, "torchVersionRequirement": ">=2.5"}]
    assert stage.ui.resultLabel.text.startswith("Fused")
    Logic.result = OSError("no route to host")
    fails(stage, "could not be installed (no route to host)")
    # There, but old.
    monkeypatch.setattr(pytorch, "torchVersion", lambda: "2.1.0")
    fails(stage, "PyTorch 2.1.0 is too old")


def test_torch_is_asked_for_without_importing_it():
    from ASFEFusionPanel import pytorch

    assert pytorch.torchVersion().startswith("2.")
    assert [pytorch.isOld(v) for v in ("2.4.1+cu118", "2.5.0", "3.0", "", "1.13")] == [True, False, False, False, True]


def test_two_runs_at_once(stage, large):
    from ASFEFusionLib.errors import FusionError
    from ASFEFusionPanel.choices import Choices, makeRequest

    stage.apply(wait=False)
    stage.until_under_way()
    with pytest.raises(FusionError) as caught:
        stage.logic.start(makeRequest(*large, None, Choices()), *[lambda *a: None] * 4)
    assert caught.value.code == "run_busy"
    assert stage.logic.busy
    stage.ui.applyButton.click()
    stage.wait()


def test_nothing_is_left_behind(stage, large):
    """A run in full swing, and the panel is taken down as at a reload or when Slicer quits."""
    stage.apply(wait=False)
    stage.until_under_way()
    [child] = stage.logic._runner._children
    pid = child.process.processId()
    began = time.monotonic()
    stage.widget.cleanup()
    assert time.monotonic() - began < 1.5
    assert not alive(pid)
    assert stage.children() == ([], [])
    assert watch() is None
