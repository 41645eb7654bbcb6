"""Scripted modules: the four base classes, and the Qt objects that Slicer hands to them as `parent`."""

import importlib.util
import logging
import os
import sys
import unittest

import qt
import slicer
from PySide6 import QtCore

from .widgets import keptProperty, qMRMLWidget

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent, self.moduleName = parent, type(self).__name__
        for suffix in (".png", ".svg"):
            icon = self.resourcePath(f"Icons/{self.moduleName}{suffix}")
            if os.path.isfile(icon):
                parent.icon = qt.QIcon(icon)
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return f"<p>For more information, see the online documentation of {docPage or self.moduleName}.</p>"

    def runTest(self, msec=100, **kwargs):
        case = getattr(sys.modules[self.__module__], self.moduleName + "Test")()
        case.messageDelay = msec
        case.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        if parent is None:
            self.parent = slicer.qMRMLWidget()
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self):
        pass

    def cleanup(self):
        pass

    def onReload(self):
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, moduleName):
        if moduleName == self.moduleName:
            self.cleanup()
            manager = slicer.app.moduleManager()
            manager.disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getAllParameterNodes(self):
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [n for n in nodes if n.GetAttribute("ModuleName") == self.moduleName]

    def getParameterNode(self):
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node:
                node.SetAttribute("ModuleName", self.moduleName)  # closing the scene takes it away
        else:
            node = next(iter(self.getAllParameterNodes()), None)
        return node or slicer.mrmlScene.AddNode(self.createParameterNode())

    def createParameterNode(self):
        node = slicer.vtkMRMLScriptedModuleNode()
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    __test__ = False  # the module's tests run through runTest(), not as a find of pytest

    def runTest(self):
        for name in [n for n in dir(self) if n.startswith("test") and callable(getattr(self, n))]:
            self.setUp()
            logging.info("Running %s", name)
            getattr(self, name)()
            self.tearDown()

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        slicer.util.delayDisplay(message, 100)


class qSlicerScriptedLoadableModule(QtCore.QObject):
    """The `parent` of the module class; it takes the properties of the C++ class and nothing else."""

    signatures = ()
    _title = _path = _help = _acknowledgement = _name = ""
    _categories = _dependencies = _contributors = _types = ()
    _hidden, _index, _panel, _self, _logic = False, -1, None, None, None
    _icon = qt.QIcon()
    name, path, title = keptProperty(str, "_name"), keptProperty(str, "_path"), keptProperty(str, "_title")
    helpText, acknowledgementText = keptProperty(str, "_help"), keptProperty(str, "_acknowledgement")
    categories, dependencies = keptProperty("QStringList", "_categories"), keptProperty("QStringList", "_dependencies")
    contributors = keptProperty("QStringList", "_contributors")
    associatedNodeTypes = keptProperty("QStringList", "_types")
    hidden, index, icon = keptProperty(bool, "_hidden"), keptProperty(int, "_index"), keptProperty(qt.QIcon, "_icon")

    def setPythonSource(self, path):
        """Imports the file under its name and makes the module object, as qSlicerScriptedLoadableModule does."""
        self.path, self.name = path, os.path.splitext(os.path.basename(path))[0]
        if os.path.dirname(path) not in sys.path:
            sys.path.insert(0, os.path.dirname(path))
        spec = importlib.util.spec_from_file_location(self.name, path)
        sys.modules[self.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._self = getattr(module, self.name)(self)
        setattr(slicer.modules, f"{self.name}Instance", self._self)
        if hasattr(self._self, "setup"):
            self._self.setup()

    def self(self):
        return self._self

    def logic(self):
        if self._logic is None:
            self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic()
            self._logic.SetMRMLScene(slicer.mrmlScene)
        return self._logic

    def widgetRepresentation(self):
        if self._panel is None and hasattr(sys.modules[self.name], f"{self.name}Widget"):
            self._panel = qSlicerScriptedLoadableModuleWidget(self.name)
            self._panel.reload()
            self._panel.setMRMLScene(slicer.mrmlScene)  # after setup(), as in Slicer
        return self._panel


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The `parent` of the widget class."""

    signatures = ()
    _name, _self, _entered = "", None, False

    def __init__(self, name):
        super().__init__()
        self._name = name
        qt.QVBoxLayout(self)

    def reload(self):
        self._self = getattr(sys.modules[self._name], f"{self._name}Widget")(self)
        setattr(slicer.modules, f"{self._name}Widget", self._self)
        self._self.setup()

    def self(self):
        return self._self

    def enter(self):
        self._entered = True
        if hasattr(self._self, "enter"):
            self._self.enter()

    def exit(self):
        self._entered = False
        if hasattr(self._self, "exit"):
            self._self.exit()

    isEntered = QtCore.Property(bool, lambda self: self._entered)
