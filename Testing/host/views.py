"""The layout manager and its views: slice logics that really blend volumes, and windows that are never rendered."""

import vtk
from PySide6 import QtCore


class _View:
    """A window with a renderer, to hold props; it opens nothing, so no OpenGL is needed until someone renders."""

    __slots__ = ("_node", "_window")

    def __init__(self, node):
        self._node, self._window = node, vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(True)
        self._window.SetSize(400, 400)
        self._window.AddRenderer(vtk.vtkRenderer())

    def renderWindow(self):
        return self._window

    def scheduleRender(self):
        pass

    def mrmlSliceNode(self):
        return self._node

    mrmlViewNode = mrmlSliceNode


class _ThreeDView(_View):
    __slots__ = ()

    def resetFocalPoint(self):
        pass


class _SliceWidget:
    __slots__ = ("_logic", "_view")

    def __init__(self, logic):
        self._logic, self._view = logic, _View(logic.GetSliceNode())

    def sliceLogic(self):
        return self._logic

    def sliceView(self):
        return self._view

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()

    def fitSliceToBackground(self):
        self._logic.FitSliceToBackground()


class _ThreeDWidget:
    __slots__ = ("_view",)

    def __init__(self, node):
        self._view = _ThreeDView(node)

    def threeDView(self):
        return self._view

    def mrmlViewNode(self):
        return self._view.mrmlViewNode()


class LayoutManager(QtCore.QObject):
    """Follows the layout node as qMRMLLayoutManager does: the views of every layout shown so far stay."""

    layoutChanged = QtCore.Signal(int)
    signatures = ("layoutChanged(int)",)
    slots = ("setLayout(int)",)
    _scene = _applicationLogic = _logic = _slices = _threeD = _shown = None

    def __init__(self, scene, applicationLogic):
        import slicer

        super().__init__()
        self._scene, self._applicationLogic = scene, applicationLogic
        self._slices, self._threeD = {}, []
        applicationLogic.SetSliceLogics(vtk.vtkCollection())
        applicationLogic.SetViewLogics(vtk.vtkCollection())
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLApplicationLogic(applicationLogic)
        self._logic.SetMRMLScene(scene)
        self._logic.GetLayoutNode().AddObserver(vtk.vtkCommand.ModifiedEvent, self._follow)
        self._logic.GetLayoutNode().SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self._follow()

    def _follow(self, *_):
        """Makes the views that the layout names and do not yet exist."""
        import slicer

        nodes = self._logic.GetViewNodes()
        for node in [nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())]:
            if node.IsA("vtkMRMLSliceNode") and node.GetLayoutName() not in self._slices:
                logic = slicer.vtkMRMLSliceLogic()
                logic.SetMRMLApplicationLogic(self._applicationLogic)
                logic.SetMRMLScene(self._scene)
                logic.SetSliceNode(node)
                logic.ResizeSliceNode(400, 400)
                self._applicationLogic.GetSliceLogics().AddItem(logic)
                self._slices[node.GetLayoutName()] = _SliceWidget(logic)
            elif node.IsA("vtkMRMLViewNode") and node not in [w.mrmlViewNode() for w in self._threeD]:
                self._threeD.append(_ThreeDWidget(node))
        if self._shown != self.layout:
            self._shown = self.layout
            self.layoutChanged.emit(self._shown)

    def setLayout(self, number):
        import slicer

        node = self._logic.GetLayoutNode()
        known = node.IsLayoutDescription(number)
        node.SetViewArrangement(number if known else slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)

    layout = QtCore.Property(int, lambda self: self._logic.GetLayoutNode().GetViewArrangement(), setLayout)
    threeDViewCount = QtCore.Property(int, lambda self: len(self._threeD))

    def layoutLogic(self):
        return self._logic

    def sliceViewNames(self):
        return tuple(self._slices)

    def sliceWidget(self, name):
        return self._slices.get(name)

    def mrmlSliceLogics(self):
        return self._applicationLogic.GetSliceLogics()

    def threeDWidget(self, index):
        return self._threeD[index] if 0 <= index < len(self._threeD) else None

    def resetSliceViews(self):
        for widget in self._slices.values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self):
        for widget in self._threeD:
            widget.threeDView().resetFocalPoint()
