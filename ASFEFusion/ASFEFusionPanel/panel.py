"""The panel's behaviour: what its widgets offer, show and start."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ASFEFusionLib import aligned, scene
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.grids import choose_grid
from ASFEFusionLib.settings import ALIGNMENTS, DEVICES, GRIDS, MODALITIES, PLANES

from . import choices, words
from .alignment import AlignmentPart, verdict
from .choices import AUTOMATIC, makeRequest
from .inputs import PLACES, Inputs
from .labels import setText
from .observers import Observers
from .pytorch import ensureTorch
from .views import Layout, QuickLook, showFused, showIn3D, sliceMatrix, volumesInView

# Milliseconds in which many changes of the inputs make one look at them.
PATIENCE = 150


class Panel:
    """Widgets <-> parameter node <-> logic. `isOpen` tells whether the module is the one that is shown."""

    def __init__(self, ui: Any, logic: Any, isOpen: Callable[[], bool]) -> None:
        self.ui, self.logic, self.isOpen = ui, logic, isOpen
        self.parameters = None
        self.layout, self.quickLook = Layout(), QuickLook()
        self.inputs = Inputs()
        self.alignment = AlignmentPart(ui, logic, self._say)
        self._request = None
        self._began = 0.0
        self._details = self._result = ""
        self._updating = False
        self._selected: tuple[Any, Any] = (None, None)
        self._scene, self._inputs = Observers(), Observers()
        self._installing = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self.updateInfo)
        # A timer of its own: Slicer never frees what QTimer.singleShot holds.
        self._removalTimer = qt.QTimer()
        self._removalTimer.setSingleShot(True)
        self._removalTimer.connect("timeout()", self._checkNodes)
        self._combos = {
            "firstModality": ui.firstModalityCombo,
            "secondModality": ui.secondModalityCombo,
            "firstWindow": ui.firstWindowCombo,
            "secondWindow": ui.secondWindowCombo,
            "alignment": ui.alignmentCombo,
            "grid": ui.gridCombo,
            "plane": ui.planeCombo,
            "colour": ui.colourCombo,
            "functional": ui.functionalCombo,
            "device": ui.deviceCombo,
        }
        self._fillCombos()
        for name, combo in self._combos.items():
            combo.connect("currentIndexChanged(int)", lambda index, n=name: self._onCombo(n, index))
        # Of two classes, which the parameter node's own connection cannot tell.
        ui.outputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onOutput)
        ui.swapButton.connect("clicked(bool)", self.onSwap)
        ui.opacitySlider.connect("valueChanged(int)", self.onOpacity)
        ui.compareButton.connect("clicked(bool)", self.onCompare)
        ui.formerLayoutButton.connect("clicked(bool)", self.onFormerLayout)
        ui.alignButton.connect("clicked(bool)", self.onAlign)
        ui.quickLookButton.connect("clicked(bool)", self.onQuickLook)
        ui.applyButton.connect("clicked(bool)", self.onApply)
        ui.showButton.connect("clicked(bool)", self.onShow)
        ui.renderButton.connect("clicked(bool)", self.onRender)
        ui.detailsButton.connect("clicked(bool)", self.onDetails)
        ui.regionSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onRegionAdded)
        self._scene.add(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self._onNodeRemoved)

    def cleanup(self) -> None:
        """No observer, no timer, no quick look is left."""
        self._timer.stop()
        self._removalTimer.stop()
        self._scene.clear()
        self._inputs.clear()
        self.quickLook.clear()
        self._request = None

    def onSceneClosed(self) -> None:
        """The run was stopped, what was shown is gone."""
        self.quickLook.clear()
        self.layout.forget()
        self._request = None
        self._details = self._result = ""
        self._running(False)
        self.ui.resultLabel.text = ""

    # ---- what there is to choose -------------------------------------------------------------------------------------

    def _fillCombos(self) -> None:
        self._fill("alignment", [(name, words.alignmentName(name)) for name in ALIGNMENTS])
        self._fill("grid", [(name, words.gridName(name)) for name in GRIDS])
        self._fill("plane", [(name, words.planeName(name)) for name in PLANES])
        names = (AUTOMATIC, choices.NONE, choices.DISPLAYED, *choices.colour.MAPS)
        self._fill("colour", [(name, words.colourName(name)) for name in names])
        self._fill("functional", [(name, words.placeName(name)) for name in (AUTOMATIC, *PLACES)])
        self._fill("device", [(name, words.deviceName(name)) for name in DEVICES])
        self.fillViews()

    def fillViews(self) -> None:
        """The slice views that there are, the usual three first."""
        manager, combo = slicer.app.layoutManager(), self.ui.quickLookViewCombo
        there = sorted(manager.sliceViewNames() if manager else ())
        usual = [name for name in ("Red", "Green", "Yellow") if name in there]
        names = [*usual, *(name for name in there if name not in usual)]
        if [combo.itemData(n) for n in range(combo.count)] != names:
            combo.clear()
            for name in names:
                combo.addItem(name, name)

    def _fill(self, name: str, items: list[tuple[str, str]]) -> None:
        """Items (data, text) of a combo, with the parameter's one chosen if it is among them."""
        combo = self._combos[name]
        shown = [(combo.itemData(n), combo.itemText(n)) for n in range(combo.count)]
        self._updating, before = True, self._updating
        if shown != items:
            combo.clear()
            for data, text in items:
                combo.addItem(text, data)
        if self.parameters:
            combo.currentIndex = max(0, combo.findData(getattr(self.parameters, name)))
        self._updating = before

    def _onCombo(self, name: str, index: int) -> None:
        if self.parameters and not self._updating and index >= 0:
            setattr(self.parameters, name, self._combos[name].itemData(index))

    def _onRegionAdded(self, node: Any = None) -> None:
        """A new region is the first volume's box: to be dragged smaller in the views."""
        first = self.inputs.node("first") if self.parameters else None
        if node is None or first is None:
            return
        bounds = [0.0] * 6
        first.GetRASBounds(bounds)
        node.SetCenterWorld(*((bounds[n] + bounds[n + 1]) / 2 for n in (0, 2, 4)))
        node.SetSize(*(bounds[n + 1] - bounds[n] for n in (0, 2, 4)))

    def _onOutput(self, node: Any = None) -> None:
        if self.parameters and not self._updating:
            self.parameters.outputVolume = node

    def setParameterNode(self, parameters: Any) -> None:
        self.parameters = self.inputs.parameters = self.alignment.parameters = parameters
        self._selected = (parameters.firstVolume, parameters.secondVolume) if parameters else (None, None)

    def chooseVolumes(self) -> None:
        """Two volumes, if nothing is chosen yet: those in view, else the first ones; no fused ones, none twice."""
        parameters = self.parameters
        if parameters.firstVolume and parameters.secondVolume:
            return
        collection = slicer.mrmlScene.GetNodesByClass("vtkMRMLScalarVolumeNode")
        collection.UnRegister(None)
        found = [*volumesInView(), *(collection.GetItemAsObject(n) for n in range(collection.GetNumberOfItems()))]
        fit = [
            node
            for node in found
            if node.GetClassName() == "vtkMRMLScalarVolumeNode"
            and not node.GetHideFromEditors()
            and not node.GetAttribute(scene.MARK)
        ]
        taken = [parameters.firstVolume, parameters.secondVolume]
        for place in (0, 1):
            if taken[place] is None:
                taken[place] = next((node for node in fit if node not in taken), None)
        self._selected = tuple(taken)
        parameters.firstVolume, parameters.secondVolume = taken

    # ---- from the parameter node to the widgets ----------------------------------------------------------------------

    def update(self) -> None:
        """All widgets as the parameter node says. The same volume twice becomes the two exchanged."""
        if not self.parameters or self._updating or slicer.mrmlScene.IsImporting():
            return
        self._separate()
        self._updating = True
        for name in ("alignment", "grid", "plane", "colour", "functional", "device"):
            combo = self._combos[name]
            combo.currentIndex = max(0, combo.findData(getattr(self.parameters, name)))
        self.ui.outputSelector.setCurrentNode(self.parameters.outputVolume)
        self._updating = False
        self._observeInputs()
        self.updateInfo()

    def _separate(self) -> None:
        first, second = self.parameters.firstVolume, self.parameters.secondVolume
        if first is not None and first is second:
            # Whichever was chosen last stays; the other place takes what this one had.
            if self._selected[0] is not first:
                second = self._selected[0]
                self.parameters.secondVolume = second
            else:
                first = self._selected[1]
                self.parameters.firstVolume = first
        if (first, second) != self._selected:
            self.quickLook.clear()
        self._selected = (first, second)

    def _observeInputs(self) -> None:
        events = (
            slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
            slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent,
            slicer.vtkMRMLMarkupsNode.PointModifiedEvent,
            slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent,
            slicer.vtkMRMLMarkupsNode.PointRemovedEvent,
            vtk.vtkCommand.ModifiedEvent,
        )
        p = self.parameters
        others = p.region, p.startTransform, p.firstLandmarks, p.secondLandmarks, p.alignmentTransform
        self._inputs.replace([*self._selected, *others], events, self._onInput)

    def _onInput(self, caller: Any, event: str) -> None:
        self._leaveQuickLook()
        # A live transform may move the inputs while another module is open: there is nothing to show then.
        if self.isOpen() and not self._timer.isActive():
            self._timer.start(PATIENCE)

    def _leaveQuickLook(self) -> None:
        """A slice of how the two lay before says nothing any more."""
        probe = self.quickLook.probe
        if probe is None:
            return
        try:
            same = np.abs(scene.probe_between(*self._selected) - probe).max() <= scene.SAME
        except (AttributeError, TypeError, ValueError):  # a volume is gone, or has another size
            same = False
        if not same:
            self.quickLook.clear()

    def updateInfo(self) -> None:
        """What each volume is, how they meet, and whether there is anything to fuse."""
        self._timer.stop()
        if not self.parameters or slicer.mrmlScene.IsImporting():  # half a scene tells nothing
            return
        with self.inputs.readOnce():
            for place in PLACES:
                self._describe(place)
            self._describeOverlap()
            self.alignment.update()
            setText(self.ui.outputNoteLabel, self.inputs.output())
            self._checkCanApply()
        self.ui.formerLayoutButton.enabled = self.layout.canRestore
        self.updateResult()

    def _describe(self, place: str) -> None:
        volume, modality = self.inputs.volume(place) or (None, None)
        automatic = _("Automatic")
        if volume is not None and getattr(self.parameters, f"{place}Modality") == AUTOMATIC:
            automatic = _("Automatic ({modality})").format(modality=words.modalityName(modality))
        names = [(AUTOMATIC, automatic), *((name, words.modalityName(name)) for name in MODALITIES)]
        self._fill(f"{place}Modality", names)
        windows = choices.windowsFor(volume, modality) if volume else [AUTOMATIC, choices.DISPLAYED]
        if volume and getattr(self.parameters, f"{place}Window") not in windows:
            setattr(self.parameters, f"{place}Window", AUTOMATIC)  # a preset of another kind of volume
        self._fill(f"{place}Window", [(name, words.windowName(name)) for name in windows])
        setText(getattr(self.ui, f"{place}InfoLabel"), self.inputs.info(place))

    def _describeOverlap(self) -> None:
        there, text, little = self.inputs.there, "", False
        for widget in (self.ui.opacitySlider, self.ui.compareButton):
            widget.enabled = there
        try:
            if there and self.alignment.given:
                text = _("The second volume is laid by the chosen start or landmarks, not as the views show it.")
            elif there:
                text, little = self.inputs.overlap()
        except FusionError as error:
            text = words.errorText(error.code, error.facts)
        self.ui.overlapLabel.styleSheet = "font-weight: bold" if little else ""
        setText(self.ui.overlapLabel, text)

    def _checkCanApply(self) -> None:
        ui = self.ui
        if self._installing:
            for button in (ui.applyButton, ui.quickLookButton, ui.alignButton):
                button.enabled = False
                button.toolTip = _("PyTorch is being installed")
            return
        if self.logic.busy:
            ui.applyButton.text, ui.applyButton.enabled = _("Cancel"), True
            ui.applyButton.toolTip = _("Stop this run; nothing of it is kept")
            for button in (ui.quickLookButton, ui.alignButton):
                button.enabled = False
                button.toolTip = _("A run is under way")
            return
        ui.applyButton.text = _("Apply")
        reason = self.inputs.reason(self.parameters.outputVolume)
        ui.applyButton.enabled = reason is None
        ui.applyButton.toolTip = reason or _("Fuse the two volumes into one")
        reason = self.inputs.reason(None)
        ui.quickLookButton.enabled = reason is None and bool(ui.quickLookViewCombo.count)
        ui.quickLookButton.toolTip = reason or _("Fuse only the slice in this view")
        ui.alignButton.enabled = reason is None
        if reason:
            ui.alignButton.toolTip = reason

    # ---- looking before fusing ---------------------------------------------------------------------------------------

    def onSwap(self, checked: bool = False) -> None:
        """The two volumes exchanged, with what was chosen for each."""
        p = self.parameters
        self._updating = True  # half exchanged, a window would not fit its volume
        try:
            p.firstVolume, p.secondVolume, self._selected = p.secondVolume, p.firstVolume, self._selected[::-1]
            p.firstModality, p.secondModality = p.secondModality, p.firstModality
            p.firstWindow, p.secondWindow = p.secondWindow, p.firstWindow
            p.functional = {"first": "second", "second": "first"}.get(p.functional, p.functional)
            p.firstLandmarks, p.secondLandmarks = p.secondLandmarks, p.firstLandmarks
            start, p.startTransform = p.startTransform, None
        finally:
            self._updating = False
        self.update()
        if start is not None:
            self._say(_("{name} lays the other volume: Start was set back.").format(name=start.GetName()))

    def onOpacity(self, value: int = 0) -> None:
        self.layout.showPair(self.inputs.node("first"), self.inputs.node("second"), self.ui.opacitySlider.value / 100)
        self.ui.formerLayoutButton.enabled = True

    def onCompare(self, checked: bool = False) -> None:
        with self._shown():
            if not self.layout.compare(self.inputs.node("first"), self.inputs.node("second")):
                self._say(
                    _("Compare Volumes is not part of this Slicer: use the slider to see one volume over the other.")
                )

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Something is shown; what fails in it is said, and the way back is open."""
        try:
            yield
        except Exception as error:
            self._onError("run_failed", {"why": str(error) or repr(error)}, traceback.format_exc())
        self.ui.formerLayoutButton.enabled = self.layout.canRestore

    def onFormerLayout(self, checked: bool = False) -> None:
        self.layout.restore()
        self.ui.formerLayoutButton.enabled = False

    # ---- runs --------------------------------------------------------------------------------------------------------

    def onQuickLook(self, checked: bool = False) -> None:
        """The slice in view alone, through the same run."""
        name = self.ui.quickLookViewCombo.currentData
        sliceNode = slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode()
        first = self.inputs.node("first")

        def lattice(volume: Any, placed: Any) -> Any:
            return scene.slice_lattice(sliceNode, first, choose_grid(volume, placed, self.parameters.grid))

        clicked = sliceMatrix(sliceNode)

        def show(volume: Any, report: dict) -> None:
            request = self._request
            chosen = [node and node.GetID() for node in self._selected]
            there = scene.relate(*(slicer.mrmlScene.GetNodeByID(i) for i in chosen)) if all(chosen) else None
            if (
                chosen != [request.firstID, request.secondID]
                or not self.isOpen()
                or sliceMatrix(sliceNode) != clicked
                or np.abs(there.probe - request.relation.probe).max() > scene.SAME
            ):
                self._ended(_("The view or the volumes have moved on: press Quick look again."), {})
                return
            self.quickLook.show(volume, request.relation.parent, name)
            self.quickLook.probe = request.relation.probe
            report = request.complete(report, self.alignment.node)
            self._ended(_("Quick look in {view}: scroll to leave it.").format(view=name), report)

        self._start(lambda: self._makeRequest(None, lattice=lattice, known=self.alignment.node), show)

    def _makeRequest(self, output: Any, **options: Any) -> Any:
        return makeRequest(*self.inputs.nodes, output, self.inputs.choices(), copy=True, **options)

    def onAlign(self, checked: bool = False) -> None:
        """The alignment alone: searched, or judged as it is."""

        def show(volume: Any, report: dict) -> None:
            report = self._request.complete(report)
            node = self.logic.finishAlignment(self._request, report)
            if node is not None:
                self.alignment.show(node)
            self._ended(verdict(report["alignment"]), report)

        self._start(lambda: self._makeRequest(None, fused=False), show, torch=False)

    def onApply(self, checked: bool = False) -> None:
        """Starts a run; or, during one, cancels it."""
        if self.logic.busy:
            self.ui.applyButton.enabled = False
            self.ui.applyButton.toolTip = _("The run is being cancelled")
            self.logic.cancel()
            return
        output = self.parameters.outputVolume
        if output is not None and not scene.is_fused(output):
            question = _("{name} is not a fused volume. Overwrite it?").format(name=output.GetName())
            if not slicer.util.confirmOkCancelDisplay(question, windowTitle=_("Overwrite a volume")):
                return

        def show(volume: Any, report: dict) -> None:
            fused = self.logic.finish(self._request, volume, report)
            self.parameters.fusedVolume = fused
            transform = fused.GetNodeReference(aligned.TRANSFORM)
            if transform is not None and transform is not self.alignment.node:
                self.alignment.show(transform)
            self._ended(self._summary(scene.report_of(fused)), scene.report_of(fused))
            if self.isOpen():
                self._showFused(fused)
            else:
                slicer.util.showStatusMessage(_("{name} is done.").format(name=fused.GetName()), 5000)

        self._start(lambda: self._makeRequest(output, known=self.alignment.node), show)

    def _start(self, make: Callable[[], Any], show: Callable[[Any, dict], None], torch: bool = True) -> None:
        self.quickLook.clear()
        self._details = ""
        try:
            if (torch and not self._torch()) or not self.parameters:
                self._say(_("Nothing was fused: PyTorch is needed."))
                return
            request = make()
            self._began = time.monotonic()
            self._request = request
            self.logic.start(request, self._onProgress, self._guarded(show), self._onError, self._onCancelled)
        except FusionError as error:
            self._onError(error.code, error.facts, "")
            return
        except Exception as error:
            self._onError("run_failed", {"why": str(error) or repr(error)}, traceback.format_exc())
            return
        self._say("")
        self._running(True)

    def _torch(self) -> bool:
        """See `ensureTorch`; while that installs, Slicer takes clicks, and none may start another."""
        self._installing = True
        self._checkCanApply()
        try:
            return ensureTorch()
        finally:
            self._installing = False
            if self.parameters:
                self._checkCanApply()

    def _guarded(self, show: Callable[[Any, dict], None]) -> Callable[[Any, dict], None]:
        """What comes with the result may still fail: its nodes may be gone, memory short."""

        def done(volume: Any, report: dict) -> None:
            try:
                show(volume, report)
            except FusionError as error:
                self._onError(error.code, error.facts, "")
            except Exception as error:
                self._onError("run_failed", {"why": str(error) or repr(error)}, traceback.format_exc())

        return done

    def _onProgress(self, fraction: float, code: str, facts: dict, secondsLeft: float | None) -> None:
        text = words.stepText(code, facts)
        if secondsLeft is not None:
            text = _("{step}, {time} left").format(step=text, time=words.duration(secondsLeft))
        self.ui.progressBar.value = int(1000 * fraction)
        self.ui.stepLabel.text = text

    def _onError(self, code: str, facts: dict, details: str) -> None:
        if code.startswith("torch"):
            self.logic.stop()  # a process that holds PyTorch's files would hinder its removal
        text = words.errorText(code, facts)
        logging.error(f"ASFEFusion: {text}\n{details}" if details else f"ASFEFusion: {text}")
        self._details = details
        self._running(False)
        self._say(text)

    def _onCancelled(self) -> None:
        self._running(False)
        self._say(_("Cancelled: nothing was changed."))

    def _onNodeRemoved(self, caller: Any, event: str) -> None:
        # Which node is going is not told to Python in all versions: look after the event.
        if self._request is not None and self.logic.busy:
            self._removalTimer.start(0)

    def _checkNodes(self) -> None:
        request = self._request
        if request is None or not self.logic.busy:
            return
        if any(slicer.mrmlScene.GetNodeByID(nodeID) is None for nodeID in request.nodeIDs):
            self.logic.stop()
            self._onError("node_gone", {}, "")

    def _running(self, running: bool) -> None:
        if not running:
            self._request = None
            self.ui.stepLabel.text = ""
        self.ui.progressBar.visible = running
        self.ui.progressBar.value = 0
        self.ui.detailsButton.enabled = bool(self._details)
        if self.parameters:
            self._checkCanApply()

    def _ended(self, text: str, report: dict) -> None:
        warnings = [words.warningText(w["code"], w["facts"]) for w in report.get("warnings", [])]
        self._details = "\n".join(f"{key}: {value}" for key, value in report.items() if key != "warnings")
        self._running(False)
        self._say("\n".join([text, *(_("Warning: {text}").format(text=w) for w in warnings)]))

    def _summary(self, report: dict) -> str:
        seconds = time.monotonic() - self._began
        device = words.deviceName(report.get("device", ""))
        text = _("Fused in {seconds} s on the {device}.").format(seconds=f"{seconds:.1f}", device=device)
        return text + " " + verdict(report["alignment"]) if report.get("alignment") else text

    def _say(self, text: str) -> None:
        self._result = text
        self.updateResult()

    def updateResult(self) -> None:
        """The result line, and whether the last fused volume still shows its inputs as they are."""
        fused = self.parameters.fusedVolume if self.parameters else None
        lines = [self._result] if self._result else []
        stale = fused.GetAttribute(scene.STALE) if fused else None
        if stale:
            text = _("{name} is OUT OF DATE: {reason}.")
            lines.append(text.format(name=fused.GetName(), reason=words.staleText(stale)))
        setText(self.ui.resultLabel, "\n".join(lines))
        for button in (self.ui.showButton, self.ui.renderButton):
            button.enabled = fused is not None

    # ---- looking at the result ---------------------------------------------------------------------------------------

    def _showFused(self, fused: Any) -> None:
        with self._shown():
            self.layout.remember()
            showFused(fused)

    def onShow(self, checked: bool = False) -> None:
        self._showFused(self.parameters.fusedVolume)

    def onRender(self, checked: bool = False) -> None:
        with self._shown():
            showIn3D(self.parameters.fusedVolume, self.layout)

    def onDetails(self, checked: bool = False) -> None:
        slicer.util.infoDisplay(_("Details of the last run"), detailedText=self._details)
