"""The module on a stage for tests: opened over the test host, or inside a real Slicer, with the same handles."""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "ASFEFusion" / "ASFEFusion.py"
DISPLAYS = ("errorDisplay", "warningDisplay", "infoDisplay", "confirmOkCancelDisplay", "confirmYesNoDisplay")


def in_slicer():
    """True inside a real Slicer."""
    slicer = sys.modules.get("slicer")
    return "host" not in sys.modules and hasattr(slicer, "app") and hasattr(slicer.app, "mainApplicationName")


class Stage:
    """`widget`, `ui`, `logic` and `panel` of the opened module; `messages` are what a user would have been shown.

    `answer` is what the user says to a question.
    """

    def __init__(self, monkeypatch):
        if in_slicer():
            self.host = None
        else:
            import host

            host.start()
            host.problems.clear()
            self.host = host
        import slicer

        self.slicer = slicer
        self.messages, self.answer = [], True
        for name in DISPLAYS:
            monkeypatch.setattr(slicer.util, name, lambda text, *a, _n=name, **k: self._message(_n, text, k))
        slicer.mrmlScene.Clear(0)
        if self.host:
            self.module = self.host.loadModule(MODULE)
            self.widget = self.host.openModule(self.module)
        else:
            slicer.util.selectModule("ASFEFusion")
            self.widget = slicer.util.getModuleWidget("ASFEFusion")
        self.ui, self.logic, self.panel = self.widget.ui, self.widget.logic, self.widget.panel

    def _message(self, kind, text, keywords):
        self.messages.append((kind, text, keywords))
        return self.answer

    def close(self):
        if self.host:
            self.host.closeModule(self.module)
        else:
            self.logic.stop()
        self.slicer.mrmlScene.Clear(0)

    @property
    def parameters(self):
        return self.widget._parameterNode

    def add(self, volume, name=None, modality=None, units=None):
        """A volume as a node, with DICOM's modality and UCUM's units if given."""
        from ASFEFusionLib import scene

        slicer = self.slicer
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name or volume.name)
        scene.put_voxels(node, volume)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        if modality:
            hierarchy.SetItemAttribute(item, "DICOM.Modality", modality)
        if units:
            entry = slicer.vtkCodedEntry()
            entry.SetValueSchemeMeaning(units, "UCUM", "units")
            node.SetVoxelValueUnits(entry)
        return node

    def pair(self, heads):
        """CT and MR nodes, chosen as first and second."""
        nodes = self.add(heads["CT"], "CT", "CT"), self.add(heads["MR"], "MR", "MR")
        self.parameters.firstVolume, self.parameters.secondVolume = nodes
        self.settle()
        return nodes

    def settle(self):
        """The panel as it is once all timers have had their turn."""
        self.spin(seconds=0.5)

    def spin(self, until=lambda: False, seconds=60.0):
        """Lets the application run until something holds; -> seconds, longest turn of the loop (s)."""
        began = last = time.monotonic()
        longest = 0.0
        while not until() and time.monotonic() - began < seconds:
            self.slicer.app.processEvents()
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            time.sleep(0.002)
        return time.monotonic() - began, longest

    def wait(self, seconds=60.0):
        """Until the run has ended."""
        spent = self.spin(lambda: not self.logic.busy, seconds)
        assert not self.logic.busy, "the run did not end"
        return spent

    def apply(self, wait=True):
        """Presses Apply."""
        assert self.ui.applyButton.enabled, self.ui.applyButton.toolTip
        self.ui.applyButton.click()
        if wait:
            self.wait()

    def until_under_way(self):
        """A run that has begun to fuse slices, or at least to work."""
        self.spin(lambda: self.ui.progressBar.value > 0)
        assert self.logic.busy

    def nodes(self):
        """IDs of all nodes that are no helper of the application's own."""
        scene, kinds = self.slicer.mrmlScene, ("vtkMRMLVolumeNode", "vtkMRMLTransformNode", "vtkMRMLMarkupsNode")
        return sorted(
            scene.GetNthNodeByClass(n, kind).GetID()
            for kind in kinds
            for n in range(scene.GetNumberOfNodesByClass(kind))
        )

    def children(self):
        """Processes of the runner that are alive, and folders that it left."""
        runner = self.logic._runner
        folder = Path(self.slicer.app.temporaryPath)
        alive = [] if runner is None else [c for c in runner._children if c.alive]
        return alive, sorted(p.name for p in folder.glob("ASFEFusion-*"))
