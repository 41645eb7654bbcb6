"""slicer.app: the scene, the logics and the module manager, put up as qSlicerCoreApplication does."""

import os
import tempfile

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from . import views

_LOGICS = {
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Models": "vtkSlicerModelsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
}


class ModuleManager(QtCore.QObject):
    moduleLoaded = QtCore.Signal(str)
    moduleAboutToBeUnloaded = QtCore.Signal(str)
    signatures = ()
    _modules = None

    def __init__(self):
        super().__init__()
        self._modules = {}

    def module(self, name):
        return self._modules.get(name)

    def modulesNames(self):
        return tuple(self._modules)

    def add(self, module):
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        setattr(slicer.moduleNames, module.name, module.name)
        self.moduleLoaded.emit(module.name)

    def remove(self, module):
        # Slicer's own start-up script listens first: these two are gone when the widget hears of it.
        for attribute in (f"{module.name}Instance", f"{module.name}Widget"):
            vars(slicer.modules).pop(attribute, None)
        self.moduleAboutToBeUnloaded.emit(module.name)
        del self._modules[module.name]
        vars(slicer.modules).pop(module.name.lower(), None)
        vars(slicer.moduleNames).pop(module.name, None)
        slicer.selfTests.pop(module.name, None)


class _LoadableModule(QtCore.QObject):
    """A module of C++, of which only the logic is here."""

    signatures = ()
    _name, _logic = "", None
    name = QtCore.Property(str, lambda self: self._name)

    def __init__(self, name, logic):
        super().__init__()
        self._name, self._logic = name, logic

    def logic(self):
        return self._logic


class IOManager:
    """Reads and writes what slicer.util asks for: scenes, and volumes through the Volumes logic."""

    __slots__ = ()

    def fileType(self, path):
        return "SceneFile" if str(path).lower().endswith((".mrml", ".mrb")) else "VolumeFile"

    def fileWriterFileType(self, node):
        return node.GetClassName()

    def loadNodes(self, kind, properties, loaded, errors):
        path = properties["fileName"]
        if not os.path.exists(path):
            errors.AddMessage(vtk.vtkCommand.ErrorEvent, f"no such file: {path}")
            return False
        if kind == "SceneFile":
            clear = bool(properties.get("clear", False))
            if path.lower().endswith(".mrb"):
                return bool(slicer.mrmlScene.ReadFromMRB(path, clear))
            slicer.mrmlScene.SetURL(path)
            return bool(slicer.mrmlScene.Connect() if clear else slicer.mrmlScene.Import())
        if kind != "VolumeFile":
            raise NotImplementedError(f"this host reads no {kind}")
        options = properties.get("labelmap", False) + 4 * properties.get("singleFile", False) + 8
        name = properties.get("name") or os.path.basename(path).split(".")[0]
        node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options)
        if node is None:
            return False
        loaded.AddItem(node)
        if properties.get("show", True):
            slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(node.GetID())
            slicer.app.applicationLogic().PropagateVolumeSelection()
        return True

    def saveNodes(self, kind, properties, errors):
        path = properties["fileName"]
        if kind == "SceneFile" and path.lower().endswith(".mrb"):
            return bool(slicer.mrmlScene.WriteToMRB(path, None, errors))
        if kind == "SceneFile" and path.lower().endswith(".mrml"):
            slicer.mrmlScene.SetURL(path)
            return bool(slicer.mrmlScene.Commit(path, errors))
        if kind == "SceneFile":
            return bool(slicer.mrmlScene.SaveSceneToSlicerDataBundleDirectory(path, None, errors))
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        storage.SetUseCompression(properties.get("useCompression", True))
        return bool(storage.WriteData(node))


class Application(QtWidgets.QApplication):
    startupCompleted = QtCore.Signal()
    signatures = ()
    _scene = _logic = _modules = _layout = _keep = _folder = None
    _temporary = ""
    temporaryPath = QtCore.Property(str, lambda self: self._temporary)

    def mrmlScene(self):
        return self._scene

    def applicationLogic(self):
        return self._logic

    def layoutManager(self):
        return self._layout

    def moduleManager(self):
        return self._modules

    def coreIOManager(self):
        return IOManager()

    ioManager = coreIOManager

    def testingEnabled(self):
        return False  # so that messages take the way they take before a user

    def settings(self):
        return QtCore.QSettings()

    userSettings = settings

    def build(self):
        """Scene, application logic, module logics and views, in the order of qSlicerCoreApplication."""
        self._folder = tempfile.TemporaryDirectory(prefix="asfe-host-")
        self._temporary = self._folder.name
        self.setApplicationName("Slicer")
        self.setOrganizationName("test host")
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.IniFormat)
        QtCore.QSettings.setPath(QtCore.QSettings.IniFormat, QtCore.QSettings.UserScope, self._temporary)
        self._scene, self._logic, self._modules = (
            slicer.vtkMRMLScene(),
            slicer.vtkSlicerApplicationLogic(),
            ModuleManager(),
        )
        slicer.app, slicer.mrmlScene = self, self._scene
        self._files()
        self._logic.SetTemporaryPath(self._temporary)
        self._logic.SetHomeDirectory(self._temporary)
        self._logic.SetShareDirectory(".")
        os.mkdir(os.path.join(self._temporary, "ColorFiles"))  # where the wheel, unlike Slicer, has nothing
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self._scene, True)
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self._scene.AddNode(crosshair)
        self._logic.SetMRMLScene(self._scene)
        colours = slicer.vtkSlicerColorLogic()
        self._logic.SetColorLogic(colours)
        self._add("Colors", colours)
        for name, logic in _LOGICS.items():
            self._add(name, getattr(slicer, logic)())
        self._layout = views.LayoutManager(self._scene, self._logic)
        self._scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, _subjectHierarchyItem)

    def _add(self, name, logic):
        logic.SetMRMLApplicationLogic(self._logic)
        self._logic.SetModuleLogic(name, logic)
        logic.SetMRMLScene(self._scene)
        self._modules.add(_LoadableModule(name, logic))

    def _files(self):
        """Without these two logics the scene reads and writes no data files."""
        remote, manager = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
        remote.GetCacheManager().SetRemoteCacheDirectory(self._temporary)
        manager.SetMRMLApplicationLogic(self._logic)
        manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
        remote.SetMRMLScene(self._scene)
        remote.AddDataIOToScene()
        manager.SetMRMLScene(self._scene)
        self._keep = remote, manager


@vtk.calldata_type(vtk.VTK_OBJECT)
def _subjectHierarchyItem(scene, event, node):
    """In Slicer a plugin on the Qt side gives each displayable node its item."""
    if node is None or scene.IsImporting() or node.GetHideFromEditors() or not node.IsA("vtkMRMLDisplayableNode"):
        return
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if tree and not tree.GetItemByDataNode(node):
        tree.CreateItem(tree.GetSceneItemID(), node, "Volumes" if node.IsA("vtkMRMLVolumeNode") else "")
