"""What is seen: the pair under an opacity slider, Compare Volumes and back, the fused volume in slices and in 3D."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

from ASFEFusionLib import scene
from ASFEFusionLib.fusion import SCALE


class Layout:
    """Shows pairs in the slice views; remembers layout and layers, so that one click brings them back."""

    def __init__(self) -> None:
        self._former: dict[str, Any] | None = None

    @property
    def canRestore(self) -> bool:
        return self._former is not None

    def remember(self) -> None:
        """Keeps what the views show now, unless something is kept already."""
        if self._former is None:
            manager = slicer.app.layoutManager()
            self._former = {"layout": manager.layout, "layers": {n: _layers(c) for n, c in _composites().items()}}

    def restore(self) -> None:
        """Layout and layers as they were."""
        former, self._former = self._former, None
        if former is None:
            return
        slicer.app.layoutManager().setLayout(former["layout"])
        composites = _composites()
        for name, (background, foreground, opacity) in former["layers"].items():
            if name in composites:
                composites[name].SetBackgroundVolumeID(_existing(background))
                composites[name].SetForegroundVolumeID(_existing(foreground))
                composites[name].SetForegroundOpacity(opacity)

    def forget(self) -> None:
        """After the scene was closed there is nothing to go back to."""
        self._former = None

    def showPair(self, first: Any, second: Any, opacity: float) -> None:
        """The first volume behind, the second in front of it with this opacity (0 to 1), in all slice views."""
        self.remember()
        for composite in _composites().values():
            composite.SetBackgroundVolumeID(first.GetID())
            composite.SetForegroundVolumeID(second.GetID())
            composite.SetForegroundOpacity(opacity)

    def compare(self, first: Any, second: Any) -> bool:
        """Both volumes side by side in Slicer's Compare Volumes; False if that module is not there."""
        if not hasattr(slicer.modules, "comparevolumes"):
            return False
        self.remember()
        from CompareVolumes import CompareVolumesLogic

        slicer.util.selectModule("CompareVolumes")
        # With the first behind both: fade, flicker and the reveal cursor work on the foreground.
        CompareVolumesLogic().viewersPerVolume(volumeNodes=[first, second], background=first, opacity=0.5)
        for composite in _composites().values():
            composite.SetLinkedControl(True)
        slicer.app.layoutManager().resetSliceViews()
        return True


def _composites() -> dict[str, Any]:
    manager = slicer.app.layoutManager()
    return {name: manager.sliceWidget(name).mrmlSliceCompositeNode() for name in manager.sliceViewNames()}


def _layers(composite: Any) -> tuple[str | None, str | None, float]:
    return composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()


def _existing(nodeID: str | None) -> str | None:
    return nodeID if nodeID and slicer.mrmlScene.GetNodeByID(nodeID) else None


def volumesInView() -> list[Any]:
    """The scalar volumes that the slice views show, background before foreground."""
    found: list[Any] = []
    composites = list(_composites().values()) if slicer.app.layoutManager() else []
    for layer in ("GetBackgroundVolumeID", "GetForegroundVolumeID"):
        for composite in composites:
            node = slicer.mrmlScene.GetNodeByID(getattr(composite, layer)() or "")
            if node is not None and node not in found:
                found.append(node)
    return found


def showFused(node: Any) -> None:
    """The fused volume alone in all slice views, which turn to its own place."""
    for composite in _composites().values():
        composite.SetBackgroundVolumeID(node.GetID())
        composite.SetForegroundVolumeID(None)
    slicer.app.layoutManager().resetSliceViews()


def showIn3D(node: Any, layout: Layout) -> Any:
    """Volume rendering of the fused volume with a preset that fits its values. Returns its display node."""
    logic = slicer.modules.volumerendering.logic()
    display = logic.GetFirstVolumeRenderingDisplayNode(node)
    if display is None:
        # Not CreateDefaultVolumeRenderingNodes: it would take any volume of 8 bits for an ultrasound.
        display = logic.CreateVolumeRenderingDisplayNode()
        display.UnRegister(logic)
        slicer.mrmlScene.AddNode(display)
        node.AddAndObserveDisplayNodeID(display.GetID())
        logic.UpdateDisplayNodeFromVolumeNode(display, node, None, None, False)
        _fillPreset(display.GetVolumePropertyNode(), node)
    display.SetVisibility(True)
    manager = slicer.app.layoutManager()
    shown = manager.layoutLogic().GetViewNodes()
    if not any(shown.GetItemAsObject(n).IsA("vtkMRMLViewNode") for n in range(shown.GetNumberOfItems())):
        layout.remember()
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    for index in range(manager.threeDViewCount):
        manager.threeDWidget(index).threeDView().resetFocalPoint()
    return display


def _fillPreset(propertyNode: Any, node: Any) -> None:
    """Air clear, soft tissue a veil, bone, contrast and uptake solid: fused values from 0 to `SCALE` (RGB: 255).

    Through the node, which observes its functions: they can be edited in Volume Rendering.
    """
    rgb = node.IsA("vtkMRMLVectorVolumeNode")
    top = 255.0 if rgb else float(SCALE)
    opacity = vtk.vtkPiecewiseFunction()
    for part, value in ((0, 0.0), (0.3, 0.0), (0.5, 0.02), (0.8, 0.06), (0.92, 0.25), (0.98, 0.9), (1, 0.95)):
        opacity.AddPoint(part * top, value)
    propertyNode.SetScalarOpacity(opacity)
    if not rgb:
        colours = vtk.vtkColorTransferFunction()
        for part, shade in ((0, (0, 0, 0)), (0.35, (0.55, 0.42, 0.36)), (0.7, (0.9, 0.82, 0.72)), (1, (1, 1, 1))):
            colours.AddRGBPoint(part * top, *shade)
        propertyNode.SetColor(colours)
    gradient = vtk.vtkPiecewiseFunction()
    for value, strength in ((0, 0.3), (0.1 * top, 1.0)):
        gradient.AddPoint(value, strength)
    propertyNode.SetGradientOpacity(gradient)
    volumeProperty = propertyNode.GetVolumeProperty()
    # The colours of RGB are its own; its opacity goes by its luminance.
    volumeProperty.SetIndependentComponents(not rgb)
    volumeProperty.ShadeOn()
    volumeProperty.SetAmbient(0.2)
    volumeProperty.SetDiffuse(0.9)
    volumeProperty.SetSpecular(0.2)
    volumeProperty.SetInterpolationTypeToLinear()


class QuickLook:
    """One fused slice in one view, shown until the view moves on; a hidden node that is not saved with the scene."""

    NAME = f"Quick look ({scene.NOTE})"

    def __init__(self) -> None:
        self.probe: Any = None  # how the two volumes lay to each other
        self._nodeID: str | None = None
        self._viewName: str | None = None
        self._former: tuple | None = None
        self._observed: tuple[Any, int] | None = None

    def show(self, volume: Any, parentTransformID: str | None, viewName: str) -> Any:
        """Puts the slice under the first volume's parent and in front of the view. Returns its node."""
        self.clear()
        node = slicer.mrmlScene.CreateNodeByClass(scene.node_class(volume.rgb))
        node.UnRegister(None)
        node.SetName(self.NAME)
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node = slicer.mrmlScene.AddNode(node)
        scene.put_voxels(node, volume)
        node.GetDisplayNode().SetSaveWithScene(False)
        node.GetDisplayNode().SetInterpolate(True)
        node.SetAndObserveTransformNodeID(parentTransformID)
        node.SetAttribute(scene.MARK, "slice")
        composite = _composites()[viewName]
        self._nodeID, self._viewName, self._former = node.GetID(), viewName, _layers(composite)
        composite.SetForegroundVolumeID(node.GetID())
        composite.SetForegroundOpacity(1.0)
        sliceNode = slicer.app.layoutManager().sliceWidget(viewName).mrmlSliceNode()
        at = sliceMatrix(sliceNode)
        self._observed = (
            sliceNode,
            sliceNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda n, e: self._moved(n, at)),
        )
        return node

    def _moved(self, sliceNode: Any, at: list[float]) -> None:
        if max(abs(a - b) for a, b in zip(sliceMatrix(sliceNode), at, strict=True)) > 1e-3:
            self.clear()

    @property
    def shown(self) -> bool:
        return self._nodeID is not None

    def clear(self) -> None:
        """The view as it was, and the slice gone."""
        if self._observed is not None:
            self._observed[0].RemoveObserver(self._observed[1])
            self._observed = None
        self.probe = None
        nodeID, self._nodeID = self._nodeID, None
        node = slicer.mrmlScene.GetNodeByID(nodeID) if nodeID else None
        if node is None:
            return
        composite = _composites().get(self._viewName)
        if composite is not None and composite.GetForegroundVolumeID() == nodeID:
            _, foreground, opacity = self._former
            composite.SetForegroundVolumeID(_existing(foreground))
            composite.SetForegroundOpacity(opacity)
        for extra in (node.GetDisplayNode(), node):
            if extra is not None:
                slicer.mrmlScene.RemoveNode(extra)


def sliceMatrix(sliceNode: Any) -> list[float]:
    """The 16 numbers of where a slice view is."""
    matrix = sliceNode.GetSliceToRAS()
    return [matrix.GetElement(r, c) for r in range(4) for c in range(4)]
