"""Slicer's door to ASFE-Fusion: module, parameter node, panel, logic, test. The work is done in ASFEFusionLib."""

import importlib.util
import logging
import os
import sys

import qt
import slicer
import vtk
from slicer import (
    vtkMRMLLinearTransformNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLTransformNode,
    vtkMRMLVolumeNode,
)
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

# Installed, everything lies flat beside this file; in the source tree the library and resources lie one folder up.
MODULE_FOLDER = os.path.dirname(os.path.abspath(__file__))
ROOT = next(
    (f for f in (MODULE_FOLDER, os.path.dirname(MODULE_FOLDER)) if os.path.isdir(os.path.join(f, "ASFEFusionLib"))),
    MODULE_FOLDER,
)
for _folder in (ROOT, MODULE_FOLDER):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)
PACKAGES = ("ASFEFusionLib", "ASFEFusionPanel")


def resourcePath(name: str) -> str:
    """Full path of a file under Resources."""
    return os.path.join(ROOT, "Resources", name)


class ASFEFusion(ScriptedLoadableModule):
    """The module, as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("ASFE Image Fusion")
        parent.categories = ["IGT"]
        parent.dependencies = []
        parent.contributors = ["ASFEFusion contributors"]
        parent.helpText = _(
            "Fuses two aligned volumes of one patient (CT, MR, PET, SPECT) into one, with a compact network of the"
            " three parts of ASFE-Fusion."
            "<p><b>Fused voxels are derived: not for quantitation, not clinically validated.</b> Look at both volumes"
            " beside the result before you trust it.</p>"
            '<p>See the <a href="https://github.com/ASFEFusion/SlicerASFEFusion">documentation</a>.</p>'
        )
        parent.acknowledgementText = _(
            "Please cite: Gu X, Wang L, Deng Z, Cao Y, Huang X, Zhu Y. Adaptive spatial and frequency experts fusion"
            " network for medical image fusion. Biomedical Signal Processing and Control 96 (2024) 106478,"
            ' <a href="https://doi.org/10.1016/j.bspc.2024.106478">doi 10.1016/j.bspc.2024.106478</a>.'
        )
        parent.icon = qt.QIcon(self.resourcePath("Icons/ASFEFusion.png"))
        if slicer.mrmlScene is not None:
            slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, self._onSceneLoaded)
        slicer.app.connect("startupCompleted()", self._onStartup)

    def resourcePath(self, filename):
        return resourcePath(filename)

    def _onStartup(self):
        from ASFEFusionPanel.samples import registerSampleData

        registerSampleData(self.resourcePath("Icons"))

    def _onSceneLoaded(self, caller, event):
        """A scene with fused volumes says so in its views even if this module is never opened."""
        count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode")
        nodes = (slicer.mrmlScene.GetNthNodeByClass(n, "vtkMRMLVolumeNode") for n in range(count))
        if any(node.GetAttribute("ASFEFusion.Fused") for node in nodes):
            from ASFEFusionPanel.watch import theWatch

            theWatch()


@parameterNodeWrapper
class ASFEFusionParameterNode:
    """All choices of the panel; saved with the scene. See `ASFEFusionPanel.choices.Choices` for the words."""

    firstVolume: vtkMRMLScalarVolumeNode
    secondVolume: vtkMRMLScalarVolumeNode
    outputVolume: vtkMRMLVolumeNode
    region: vtkMRMLMarkupsROINode
    startTransform: vtkMRMLTransformNode
    firstLandmarks: vtkMRMLMarkupsFiducialNode
    secondLandmarks: vtkMRMLMarkupsFiducialNode
    # The last results.
    fusedVolume: vtkMRMLVolumeNode
    alignmentTransform: vtkMRMLLinearTransformNode
    sideMarkers: vtkMRMLMarkupsFiducialNode
    firstModality: str = "automatic"
    secondModality: str = "automatic"
    firstWindow: str = "automatic"
    secondWindow: str = "automatic"
    alignment: str = "as-loaded"
    grid: str = "first"
    plane: str = "automatic"
    colour: str = "automatic"
    functional: str = "automatic"
    device: str = "auto"


class ASFEFusionWidget(ScriptedLoadableModuleWidget):
    """The panel: its parts are in ASFEFusionPanel.panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.logic = None
        self.ui = None
        self.panel = None
        self._observers = None
        self._endWatch = None
        self._parameterNode = None
        self._parameterObservers = None
        self._guiTag = None

    def resourcePath(self, filename):
        return resourcePath(filename)

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        from ASFEFusionPanel.observers import Observers
        from ASFEFusionPanel.panel import Panel
        from ASFEFusionPanel.watch import endWatch, theWatch

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/ASFEFusion.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ASFEFusionLogic()
        self.panel = Panel(self.ui, self.logic, lambda: self.parent.isEntered)
        theWatch().changed.append(self.panel.updateResult)
        self._endWatch = endWatch
        self._observers, self._parameterObservers = Observers(), Observers()
        self._observers.add(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        for event in (slicer.mrmlScene.EndCloseEvent, slicer.mrmlScene.EndImportEvent):
            self._observers.add(slicer.mrmlScene, event, self.onSceneEndClose)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """The module is reloaded, or Slicer quits: a run ends, and nothing stays behind."""
        if self.panel is None:
            return
        self.setParameterNode(None)
        self._observers.clear()
        self.panel.cleanup()
        self.logic.cleanup()
        self._endWatch()
        if getattr(sys.modules.get("ASFEFusion"), "ASFEFusionWidget", None) is not type(self):
            # This file was read anew: so must be the library and the panel's parts, by the widget to come.
            for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
                del sys.modules[name]

    def enter(self) -> None:
        self.initializeParameterNode()

    def exit(self) -> None:
        """A run goes on while another module is open."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._guiTag)
            self._guiTag = None

    def onSceneStartClose(self, caller, event) -> None:
        if self.logic.busy:
            self.logic.stop()
        self.panel.onSceneClosed()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """A parameter node is there and observed, with two volumes chosen if there are two."""
        self.panel.fillViews()
        self.setParameterNode(self.logic.getParameterNode())
        self.panel.chooseVolumes()

    def setParameterNode(self, parameterNode) -> None:
        if self._parameterNode and self._guiTag is not None:
            self._parameterNode.disconnectGui(self._guiTag)
        self._parameterObservers.clear()
        self._parameterNode, self._guiTag = parameterNode, None
        self.panel.setParameterNode(parameterNode)
        if parameterNode:
            self._guiTag = parameterNode.connectGui(self.ui)
            self._parameterObservers.add(parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
            self.panel.update()

    def _onParametersModified(self, caller=None, event=None) -> None:
        self.panel.update()


class ASFEFusionLogic(ScriptedLoadableModuleLogic):
    """Fusion of volume nodes, from the console as from the panel; input nodes are never changed.

    ::

        logic = ASFEFusionLogic()
        fused = logic.fuse(ctNode, mrNode)
        fused = logic.fuse(mrNode, petNode, colour="displayed", secondWindow="displayed", grid="finest")
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._runner = None

    def getParameterNode(self):
        return ASFEFusionParameterNode(super().getParameterNode())

    def fuse(self, firstVolume, secondVolume, output=None, progress=None, **settings):
        """Fuses two scalar volume nodes in this process, blocking; returns the fused node.

        :param firstVolume: its space, parent transform, patient and study are the fused node's.
        :param secondVolume: brought onto the first through the transforms between the two, linear or not.
        :param output: node to overwrite (a vector volume for a result in colour); None: a new one.
        :param progress: called as progress(fraction, text).
        :param settings: see `ASFEFusionPanel.choices.Choices`: firstWindow, grid, colour, region, device...
        :raises ASFEFusionLib.errors.FusionError: its text says what is wrong and what to do; the scene is as before.
        """
        from ASFEFusionLib.fusion import fuse
        from ASFEFusionPanel.choices import choicesFrom, makeRequest

        request = makeRequest(firstVolume, secondVolume, output, choicesFrom(settings))
        job = request.job
        told = (lambda fraction, step: progress(fraction, str(step))) if progress else None
        volume, report = fuse(job.first, job.second, job.settings, told, displacement=job.displacement)
        return self.finish(request, volume, report.to_dict())

    def fusePairs(self, pairs, **settings):
        """Fuses each (first, second) of a list with the same settings; returns the fused nodes in the same order.

        A pair that fails is logged and gives None; the others are fused all the same.
        """
        from ASFEFusionLib.errors import FusionError
        from ASFEFusionPanel.choices import choicesFrom

        choicesFrom(settings)  # a wrong setting is wrong for all
        fused = []
        for number, pair in enumerate(pairs, start=1):
            try:
                firstVolume, secondVolume = pair
                fused.append(self.fuse(firstVolume, secondVolume, **settings))
            except (FusionError, TypeError, ValueError) as error:
                logging.error(f"ASFEFusion: pair {number} was not fused: {error}")
                fused.append(None)
        return fused

    def finish(self, request, volume, report):
        """The fused volume as a node in the scene. Raises FusionError "node_gone" if an input or the output is gone."""
        from ASFEFusionLib import aligned, scene
        from ASFEFusionLib.errors import FusionError
        from ASFEFusionLib.settings import AS_LOADED
        from ASFEFusionPanel.watch import theWatch

        nodes = [slicer.mrmlScene.GetNodeByID(nodeID) for nodeID in request.nodeIDs]
        if None in nodes:
            raise FusionError("node_gone")
        first, second = nodes[:2]
        relation, output = request.relation, nodes[2] if request.outputID else None
        transform = slicer.mrmlScene.GetNodeByID(request.knownID) if request.knownID else None
        report = request.complete(report, transform)
        found = report.get("alignment")
        searched = bool(found) and found["search"] != AS_LOADED and request.known is None
        if searched:
            relation = scene.relate_anew(relation, first, aligned.laid(relation, found))
        fused = scene.write_fused(volume, report, first, second, relation, output=output)
        if searched:
            transform = self._writeTransform(request, first, second, found)
        fused.SetNodeReferenceID(aligned.TRANSFORM, transform.GetID() if transform else None)
        theWatch().followAnew()
        return fused

    @staticmethod
    def _writeTransform(request, first, second, alignment):
        """The transform node of a search; None if there was none."""
        from ASFEFusionLib import aligned
        from ASFEFusionLib.settings import AS_LOADED

        if not alignment or alignment["search"] == AS_LOADED:
            return None
        return aligned.write_transform(first, second, request.relation, alignment, request.inputs)

    def align(self, firstVolume, secondVolume, alignment="rigid", progress=None, **settings):
        """Where the second volume belongs on the first, blocking; nothing is moved. Returns a linear transform node.

        `ASFEFusionLib.aligned.alignment_of(node)` says what was found: "trusted", "confidence", "reasons"...;
        `applyAlignment(node)` puts the second volume under it.

        :param alignment: "rigid" (within 30 degrees of how it lies), "rigid-any" (all orientations), "near".
        :param settings: start, firstLandmarks, secondLandmarks: see `ASFEFusionPanel.choices.Choices`.
        :raises ASFEFusionLib.errors.FusionError: the scene is as before.
        """
        request, report = self._look(firstVolume, secondVolume, progress, {**settings, "alignment": alignment})
        return self.finishAlignment(request, report)

    def checkAlignment(self, firstVolume, secondVolume, progress=None, **settings):
        """Do the two lie right as they are? A dict with "trusted", "confidence", "reasons" and "verdict"; blocking."""
        return self._look(firstVolume, secondVolume, progress, settings)[1]["alignment"]

    def _look(self, firstVolume, secondVolume, progress, settings):
        from ASFEFusionLib.alignment.place import look
        from ASFEFusionPanel.choices import choicesFrom, makeRequest

        request = makeRequest(firstVolume, secondVolume, None, choicesFrom(settings), fused=False)
        job = request.job
        told = (lambda fraction, step: progress(fraction, str(step))) if progress else None
        report = look(job.first, job.second, job.settings, told, displacement=job.displacement)[1]
        return request, request.complete(report.to_dict())

    def finishAlignment(self, request, report):
        """The transform node of a search; None where the volumes were only judged. Raises FusionError "node_gone".

        :param report: see `Request.complete`.
        """
        from ASFEFusionLib.errors import FusionError

        first, second = (slicer.mrmlScene.GetNodeByID(nodeID) for nodeID in (request.firstID, request.secondID))
        if first is None or second is None:
            raise FusionError("node_gone")
        return self._writeTransform(request, first, second, report["alignment"])

    def applyAlignment(self, transformNode):
        """Puts the second volume of an alignment under its transform; `removeAlignment` puts it back."""
        from ASFEFusionLib import aligned

        aligned.apply(transformNode)

    def removeAlignment(self, transformNode):
        """Puts the second volume of an alignment back under the transform that was above it before."""
        from ASFEFusionLib import aligned

        aligned.remove(transformNode)

    @property
    def runner(self):
        """Runs in a process of their own, kept from one run to the next."""
        if self._runner is None:
            from ASFEFusionPanel.runner import Runner

            self._runner = Runner(slicer.app.temporaryPath)
            slicer.app.connect("aboutToQuit()", self.stop)
        return self._runner

    @property
    def busy(self) -> bool:
        return self._runner is not None and self._runner.busy

    def start(self, request, onProgress, onDone, onError, onCancelled) -> None:
        """Fuses in a process of its own and returns at once; see `ASFEFusionPanel.runner.Runner.start`."""
        self.runner.start(request.job, onProgress, onDone, onError, onCancelled)

    def cancel(self) -> None:
        """Ends the run within a second."""
        if self._runner is not None:
            self._runner.cancel()

    def stop(self) -> None:
        """Ends the process, whatever it is at, and removes its files."""
        if self._runner is not None:
            self._runner.stop()

    def cleanup(self) -> None:
        """As `stop`; no further run."""
        if self._runner is not None:
            slicer.app.disconnect("aboutToQuit()", self.stop)
            self._runner.stop()
            self._runner = None


class ASFEFusionTest(ScriptedLoadableModuleTest):
    """The short self test of an installed module; the long ones are in Testing (see README)."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_Sample()
        if importlib.util.find_spec("torch") is None:
            self.delayDisplay("PyTorch is not there: the fusion itself was not tested.")
            return
        self.setUp()
        self.test_Fuse()

    def test_Sample(self):
        from ASFEFusionLib import scene
        from ASFEFusionPanel.samples import loadSample

        ct, mr = loadSample("ASFEFusionHeadCTMR")
        self.assertEqual((scene.modality_of(ct), scene.units_of(ct)), ("CT", "HU"))
        self.assertEqual(scene.modality_of(mr), "MR")

    def test_Fuse(self):
        from ASFEFusionLib import scene
        from ASFEFusionPanel.samples import loadSample

        ct, mr = loadSample("ASFEFusionHeadCTMR")
        fused = ASFEFusionLogic().fuse(ct, mr)
        self.assertEqual(fused.GetImageData().GetDimensions(), ct.GetImageData().GetDimensions())
        low, high = fused.GetImageData().GetScalarRange()
        self.assertTrue(low >= 0 and 800 < high <= 1000)
        self.assertIsNone(scene.out_of_date(fused))
        self.delayDisplay("Test passed")
