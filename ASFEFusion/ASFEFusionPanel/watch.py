"""Watches the scene's fused volumes: is each still what its inputs are? And says so, with the note, in the views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ASFEFusionLib import scene

from .observers import Observers
from .words import staleText

# A live transform changes many times a second: one look at the end of this time (ms) serves for all.
PATIENCE = 200


class FusedWatch:
    """One for the application: see `theWatch`. `changed` are called when a fused volume may have become out of date."""

    def __init__(self) -> None:
        self.changed: list[Callable[[], None]] = []
        self._scene, self._nodes = Observers(), Observers()
        self._followAnew = True
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self.look)
        self._notes = SliceNotes()
        theScene = slicer.mrmlScene
        for event in (
            theScene.NodeAddedEvent,
            theScene.NodeRemovedEvent,
            theScene.EndImportEvent,
            theScene.EndCloseEvent,
        ):
            self._scene.add(theScene, event, self._onScene)
        manager = slicer.app.layoutManager()
        if manager:
            manager.connect("layoutChanged(int)", self._onLayout)
        self.soon()

    def stop(self) -> None:
        """No observer and no text is left."""
        self._timer.stop()
        self._scene.clear()
        self._nodes.clear()
        manager = slicer.app.layoutManager()
        if manager:
            manager.disconnect("layoutChanged(int)", self._onLayout)
        self._notes.clear()
        self.changed.clear()

    def _onScene(self, caller: Any, event: str) -> None:
        if slicer.mrmlScene.IsClosing():
            self._nodes.clear()
        self.followAnew()

    def _onLayout(self, layout: int = 0) -> None:
        self.followAnew()

    def _follow(self) -> None:
        """Observes every fused volume, its inputs, and the views."""
        observed = []
        for node in scene.fused_nodes(slicer.mrmlScene):
            observed += [node, node.GetNodeReference(scene.FIRST), node.GetNodeReference(scene.SECOND)]
        events = (
            slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
            slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent,
            vtk.vtkCommand.ModifiedEvent,
        )
        self._nodes.replace([*observed, *self._notes.composites()], events, self._onChange)

    def _onChange(self, caller: Any, event: str) -> None:
        self.soon()

    def followAnew(self) -> None:
        """A fused volume may have got other inputs."""
        self._followAnew = True
        self.soon()

    def soon(self) -> None:
        """A look within `PATIENCE`, however many ask for it."""
        if not self._timer.isActive():
            self._timer.start(PATIENCE)

    def look(self) -> None:
        """Marks each fused volume that no longer shows its inputs as they are, and unmarks the others."""
        self._timer.stop()
        if slicer.mrmlScene.IsImporting() or slicer.mrmlScene.IsClosing():
            return
        if self._followAnew:
            self._followAnew = False
            self._follow()
        for node in scene.fused_nodes(slicer.mrmlScene):
            stale = scene.out_of_date(node)
            if stale != node.GetAttribute(scene.STALE):
                node.SetAttribute(scene.STALE, stale)
        self._notes.update()
        for function in list(self.changed):
            function()


_watch: FusedWatch | None = None


def theWatch() -> FusedWatch:
    """The one watch over the scene's fused volumes, begun when first asked for."""
    global _watch  # noqa: PLW0603 - one for the application, wherever it was begun
    if _watch is None:
        _watch = FusedWatch()
        slicer.app.connect("aboutToQuit()", endWatch)
    return _watch


def endWatch() -> None:
    """Ends the watch, if there is one."""
    global _watch  # noqa: PLW0603
    if _watch is not None:
        slicer.app.disconnect("aboutToQuit()", endWatch)
        _watch.stop()
        _watch = None


def noteOf(node: Any) -> str:
    """What the views say of a fused node."""
    note = _("fused, not for quantitation")
    stale = node.GetAttribute(scene.STALE)
    return _("{note}\nOUT OF DATE: {reason}").format(note=note, reason=staleText(stale)) if stale else note


class SliceNotes:
    """A line at the top of each slice view that shows a fused volume."""

    def __init__(self) -> None:
        self._actors: dict[str, tuple[Any, vtk.vtkTextActor]] = {}

    def composites(self) -> list[Any]:
        manager = slicer.app.layoutManager()
        names = manager.sliceViewNames() if manager else ()
        return [manager.sliceWidget(name).mrmlSliceCompositeNode() for name in names]

    def update(self) -> None:
        """The text of each view as it must be now."""
        manager = slicer.app.layoutManager()
        for name in manager.sliceViewNames() if manager else ():
            node = self._fusedIn(manager.sliceWidget(name).mrmlSliceCompositeNode())
            if node is None and name not in self._actors:
                continue
            view = manager.sliceWidget(name).sliceView()
            actor = self._actor(name, view)
            text = noteOf(node) if node is not None else ""
            stale = node is not None and bool(node.GetAttribute(scene.STALE))
            if actor.GetInput() != text:
                actor.SetInput(text)
                actor.GetTextProperty().SetColor((1.0, 0.3, 0.2) if stale else (1.0, 0.85, 0.3))
                view.scheduleRender()

    def clear(self) -> None:
        """No text in any view."""
        for renderer, actor in self._actors.values():
            renderer.RemoveViewProp(actor)
        self._actors.clear()

    def _fusedIn(self, composite: Any) -> Any:
        shown = [composite.GetBackgroundVolumeID()]
        if composite.GetForegroundOpacity() > 0:
            shown.append(composite.GetForegroundVolumeID())
        for nodeID in shown[::-1]:
            node = slicer.mrmlScene.GetNodeByID(nodeID) if nodeID else None
            if node is not None and node.GetAttribute(scene.MARK):
                return node
        return None

    def _actor(self, name: str, view: Any) -> vtk.vtkTextActor:
        renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
        known = self._actors.get(name)
        if known is not None and known[0] is renderer:
            return known[1]
        if known is not None:  # a view that was split or joined has other renderers
            known[0].RemoveViewProp(known[1])
        actor = vtk.vtkTextActor()
        actor.SetInput("")
        actor.SetTextScaleModeToNone()
        actor.GetPositionCoordinate().SetCoordinateSystemToNormalizedViewport()
        actor.SetPosition(0.5, 0.97)
        style = actor.GetTextProperty()
        style.SetFontSize(14)
        style.SetBold(True)
        style.SetShadow(True)
        style.SetJustificationToCentered()
        style.SetVerticalJustificationToTop()
        slicer.app.applicationLogic().UseCustomFontFile(style)  # VTK's own font lacks many languages
        renderer.AddViewProp(actor)
        self._actors[name] = (renderer, actor)
        return actor
