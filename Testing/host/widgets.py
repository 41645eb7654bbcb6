"""Stand-ins for the widgets of CTK and qMRML, over the real scene."""

import functools

import vtk
from PySide6 import QtCore, QtGui, QtWidgets

# `signatures` are the signals of a stand-in as C++ writes them, and `slots` its slots.
_SCENE = "vtkMRMLScene*"


def keptProperty(kind, attribute, after=None):
    """A Qt property kept in `attribute`; `after` names the method that is called once it has changed."""

    def write(self, value):
        if value != getattr(self, attribute):
            setattr(self, attribute, value)
            if after:
                getattr(self, after)()

    return QtCore.Property(kind, lambda self: getattr(self, attribute), write)


class qMRMLWidget(QtWidgets.QWidget):
    mrmlSceneChanged = QtCore.Signal(object)
    signatures = (f"mrmlSceneChanged({_SCENE})",)
    slots = (f"setMRMLScene({_SCENE})",)
    _scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    contentsCollapsed = QtCore.Signal(bool)
    signatures = ("contentsCollapsed(bool)",)
    _header = 22

    def __init__(self, *arguments):
        super().__init__(next((a for a in arguments if isinstance(a, QtWidgets.QWidget)), None))
        self.setText(next((a for a in arguments if isinstance(a, str)), ""))
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, self._header, 0, 0)
        self.toggled.connect(self._show)

    collapsed = QtCore.Property(bool, lambda self: not self.isChecked(), lambda self, v: self.setChecked(not v))

    def _show(self, shown):
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                self._fold(child, shown)
        self.setMaximumHeight(16777215 if shown else self._header)
        self.contentsCollapsed.emit(not shown)

    def _fold(self, child, shown):
        """Shows again only what it hid itself; what the module had hidden stays so."""
        if child.isHidden() != shown or (shown and not child.property("folded")):
            return
        child.setProperty("folded", not shown)
        child.setVisible(shown)

    def childEvent(self, event):
        if event.added() and isinstance(event.child(), QtWidgets.QWidget) and not self.isChecked():
            self._fold(event.child(), False)

    def hitButton(self, position):
        return position.y() < self._header

    def paintEvent(self, event):
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._header)
        option.text = ("▼ " if self.isChecked() else "▶ ") + self.text
        self.style().drawControl(QtWidgets.QStyle.CE_PushButton, option, QtGui.QPainter(self), self)


def _release(observed, keep=None):
    """Removes the observers of what is not `keep`; VTK would call them after Qt has deleted the widget."""
    for entry in [e for e in observed if e[0] is not keep]:
        entry[0].RemoveObserver(entry[1])
        observed.remove(entry)


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Offers the nodes of a scene; as in Slicer a combo box inside, disabled until there is a scene."""

    currentNodeChanged = QtCore.Signal((object,), (bool,))
    currentNodeIDChanged = QtCore.Signal(str)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    signatures = (
        "currentNodeChanged(vtkMRMLNode*)",
        "currentNodeChanged(bool)",
        "currentNodeIDChanged(QString)",
        "nodeAdded(vtkMRMLNode*)",
        "nodeAddedByUser(vtkMRMLNode*)",
    )
    slots = f"setMRMLScene({_SCENE})", "setCurrentNode(vtkMRMLNode*)", "setCurrentNodeID(QString)", "addNode()"
    _types, _hidden_types, _base = (), (), ""
    _children = _add = _remove = _select = True
    _none = _edit = _rename = _hidden = False
    _scene, _current, _wanted, _none_text = None, "", None, "None"

    def __init__(self, parent=None):
        super().__init__(parent)
        self._combo, self._observed = QtWidgets.QComboBox(), []
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.currentIndexChanged.connect(lambda row: self._choose(self._combo.itemData(row)))
        self.destroyed.connect(functools.partial(_release, self._observed))
        self.setEnabled(False)

    _combo = _observed = None
    nodeTypes = keptProperty("QStringList", "_types", "_refresh")
    hideChildNodeTypes = keptProperty("QStringList", "_hidden_types", "_refresh")
    showChildNodeTypes = keptProperty(bool, "_children", "_refresh")
    showHidden = keptProperty(bool, "_hidden", "_refresh")
    noneEnabled = keptProperty(bool, "_none", "_refresh")
    noneDisplay = keptProperty(str, "_none_text", "_refresh")
    addEnabled, removeEnabled = keptProperty(bool, "_add"), keptProperty(bool, "_remove")
    editEnabled, renameEnabled = keptProperty(bool, "_edit"), keptProperty(bool, "_rename")
    selectNodeUponCreation, baseName = keptProperty(bool, "_select"), keptProperty(str, "_base")
    currentNodeID = QtCore.Property(str, lambda self: self._current, lambda self, value: self.setCurrentNodeID(value))

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is self._scene:
            return
        _release(self._observed)
        self._scene = scene
        if scene:
            self._observe(scene, scene.NodeAddedEvent, self._nodeAdded)
            self._observe(scene, scene.NodeRemovedEvent, self._nodeRemoved)
            for event in (scene.EndCloseEvent, scene.EndImportEvent, scene.EndBatchProcessEvent, scene.EndRestoreEvent):
                self._observe(scene, event, lambda *_: self._refresh())
        # QComboBox takes the first row of a list that was empty; what was asked for meanwhile goes before.
        self._refresh()
        first = "" if self._none else self._combo.itemData(0)
        self._choose(self._wanted if self._wanted is not None else self._current or first)
        self._wanted = None
        self.setEnabled(scene is not None)

    def _observe(self, observed, event, function):
        self._observed.append((observed, observed.AddObserver(event, function)))

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _nodeAdded(self, scene, event, node):
        if node is None or scene.IsImporting() or not self._fits(node):
            return
        self._refresh()
        if not self._offers(node):
            return
        rows = self._none or self._add or self._remove or self._edit or self._rename
        if not rows and self.nodeCount() == 1:
            self.setCurrentNode(node)  # QComboBox takes the first row of a list that was empty
        self.nodeAdded.emit(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _nodeRemoved(self, scene, event, node):
        if node is not None and not scene.IsClosing() and self._fits(node):
            self._refresh()

    def _fits(self, node):
        if not any(node.IsA(t) if self._children else node.GetClassName() == t for t in self._types):
            return False
        return not (self._children and any(node.IsA(t) for t in self._hidden_types))

    def _offers(self, node):
        return self._fits(node) and (self._hidden or not node.GetHideFromEditors())

    def _nodes(self):
        nodes = self._scene.GetNodes() if self._scene else vtk.vtkCollection()
        return [n for n in (nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())) if self._fits(n)]

    def nodeCount(self):
        return sum(map(self._offers, self._nodes()))

    def currentNode(self):
        return self._scene.GetNodeByID(self._current) if self._scene and self._current else None

    def setCurrentNode(self, node):
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def setCurrentNodeID(self, nodeID):
        if self._scene is None:
            self._wanted = nodeID
        self._choose(nodeID)

    def addNode(self, nodeType=None):
        """What the row "Create new ..." of the list does."""
        node = self._scene.CreateNodeByClass(nodeType or self._types[0])
        node.UnRegister(None)
        node.SetName(self._scene.GetUniqueNameByString(self._base or node.GetDefaultNodeNamePrefix()))
        node = self._scene.AddNode(node)
        if self._select:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def _refresh(self):
        """Lists the nodes anew; where the current one is gone and "None" is not allowed, the last one follows it."""
        _release(self._observed, self._scene)
        self._combo.blockSignals(True)
        self._combo.clear()
        if self._none:
            self._combo.addItem(self._none_text, "")
        for node in self._nodes():
            self._observe(node, vtk.vtkCommand.ModifiedEvent, self._nodeModified)
            if self._offers(node):
                self._combo.addItem(node.GetName(), node.GetID())
        self._combo.blockSignals(False)
        gone = self._current and self._combo.findData(self._current) < 0
        last = "" if self._none else self._combo.itemData(self._combo.count - 1)
        self._choose(last if gone else self._current)

    def _nodeModified(self, node, event):
        row = self._combo.findData(node.GetID())
        if self._offers(node) != (row >= 0):  # hidden from editors, or no longer
            self._refresh()
        elif row >= 0 and self._combo.itemText(row) != node.GetName():
            self._combo.setItemText(row, node.GetName())
            if node.GetID() == self._current:
                self._announce()

    def _choose(self, nodeID):
        row = self._combo.findData(nodeID or "")
        row = row if row >= 0 else self._combo.findData("")
        self._combo.setCurrentIndex(row)
        current = (self._combo.itemData(row) or "") if row >= 0 else ""
        if current != self._current:
            self._current = current
            self._announce()

    def _announce(self):
        node = self.currentNode()
        self.currentNodeChanged.emit(node)
        self.currentNodeChanged[bool].emit(node is not None)
        self.currentNodeIDChanged.emit(self._current)


STANDINS = {c.__name__: c for c in (qMRMLWidget, qMRMLNodeComboBox, ctkCollapsibleButton)}
