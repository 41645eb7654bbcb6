"""The test host itself: it must run a module as Slicer does, and refuse what Slicer refuses."""

import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("slicer_core", reason="the host needs the wheels of the extra 'slicer'")
pytest.importorskip("PySide6")

import host

MODULE = """
from typing import Annotated

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


@parameterNodeWrapper
class ToyParameterNode:
    first: slicer.vtkMRMLScalarVolumeNode
    steps: Annotated[int, WithinRange(1, 9)] = 3
    invert: bool = False
    window: str = "auto"
    weight: float = 0.5


class Toy(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Toy")
        self.parent.categories = ["Examples"]
        slicer.app.connect("startupCompleted()", self.started)
        self.starts = 0

    def started(self):
        self.starts += 1


class ToyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.presses = []
        self.changes = self.cleaned = 0

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/Toy.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ScriptedLoadableModuleLogic()
        self.logic.moduleName = "Toy"
        self.ui.runButton.connect("clicked(bool)", self.onRun)
        self.parameterNode = ToyParameterNode(self.logic.getParameterNode())
        self.tag = self.parameterNode.connectGui(self.ui)
        self.addObserver(self.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onChanged)

    def onRun(self):
        self.presses.append(self.parameterNode.first)

    def onChanged(self, caller, event):
        self.changes += 1

    def cleanup(self):
        self.cleaned += 1
        self.removeObservers()
        self.parameterNode.disconnectGui(self.tag)
"""

UI = """<ui version="4.0"><class>Toy</class>
<widget class="qMRMLWidget" name="Toy"><layout class="QVBoxLayout">
<item><widget class="ctkCollapsibleButton" name="inputs"><property name="text"><string>Inputs</string></property>
<layout class="QFormLayout">
<item row="0" column="1"><widget class="qMRMLNodeComboBox" name="firstSelector">
<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
<property name="noneEnabled"><bool>true</bool></property>
<property name="SlicerParameterName" stdset="0"><string>first</string></property></widget></item>
<item row="1" column="1"><widget class="QSpinBox" name="stepsBox">
<property name="SlicerParameterName" stdset="0"><string>steps</string></property></widget></item>
<item row="2" column="1"><widget class="QCheckBox" name="invertBox">
<property name="SlicerParameterName" stdset="0"><string>invert</string></property></widget></item>
</layout></widget></item>
<item><widget class="QPushButton" name="runButton"><property name="text"><string>Run</string></property></widget></item>
</layout></widget>
<customwidgets>
<customwidget><class>qMRMLWidget</class><extends>QWidget</extends><container>1</container></customwidget>
<customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends></customwidget>
<customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><container>1</container></customwidget>
</customwidgets>
<connections><connection><sender>Toy</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>firstSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>
"""


@pytest.fixture(autouse=True)
def slicer():
    host.start()
    import slicer

    host.problems.clear()
    host.messages.clear()
    host.answer = True
    yield slicer
    slicer.mrmlScene.Clear(0)
    assert not host.problems


@pytest.fixture
def qt(slicer):
    import qt

    return qt


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    (tmp_path / "Resources" / "UI" / "Toy.ui").write_text(UI)
    (tmp_path / "Toy.py").write_text(MODULE)
    module = host.loadModule(tmp_path / "Toy.py")
    yield module
    host.closeModule(module)
    sys.path.remove(str(tmp_path))


def volume(slicer, name, shape=(4, 6, 8)):
    node = slicer.util.addVolumeFromArray(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), name=name)
    node.CreateDefaultDisplayNodes()
    return node


def taken():
    """The problems so far, which the test expected."""
    found = list(host.problems)
    host.problems.clear()
    return found


# What PythonQt gives and refuses


def test_properties_are_attributes_and_methods_stay_methods(qt):
    combo, button = qt.QComboBox(), qt.QPushButton("Go")
    combo.addItem("a", "x")
    combo.addItem("b", 7)
    combo.currentIndex = 1
    assert (combo.count, combo.currentData, combo.currentText) == (2, 7, "b")
    assert (combo.findData(7), combo.itemData(0)) == (1, "x")
    button.enabled, button.toolTip, button.name = False, "tip", "go"
    assert not button.enabled and button.toolTip == "tip" and button.objectName == "go"
    button.setVisible(True)
    assert button.visible


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("colour", 1), ("text", 5), ("text", None), ("enabled", None), ("enabled", "yes"), ("setText", 1), ("clicked", 1)],
)
def test_an_attribute_slicer_would_refuse_is_refused(qt, attribute, value):
    with pytest.raises(AttributeError):
        setattr(qt.QPushButton(), attribute, value)


def test_read_only_and_unknown_attributes_are_refused(qt):
    with pytest.raises(AttributeError):
        qt.QComboBox().count = 3
    with pytest.raises(AttributeError):
        _ = qt.QLabel().caption
    with pytest.raises(AttributeError):
        _ = qt.Signal
    with pytest.raises(TypeError):
        qt.QLabel().text()


def test_dynamic_properties_and_python_subclasses_take_attributes(qt):
    class Dialog(qt.QDialog):
        def __init__(self):
            super().__init__()
            self.mine = 1
            self.windowTitle = "title"

    label, dialog = qt.QLabel(), Dialog()
    label.setProperty("SlicerParameterName", "x")
    label.SlicerParameterName = "y"
    assert label.property("SlicerParameterName") == "y"
    assert (dialog.mine, dialog.windowTitle, qt.QWidget.windowTitle(dialog)) == (1, "title", "title")


def test_signals_pass_what_the_callable_takes(qt):
    button, calls = qt.QPushButton(), []

    def both(*values):
        calls.append(values)

    assert button.connect("clicked(bool)", both)
    assert button.connect("clicked(bool)", lambda: calls.append("none"))
    assert button.connect("clicked()", lambda *values: calls.append(values))
    button.click()
    assert calls == [(False,), "none", ()]
    assert button.disconnect("clicked(bool)", both)
    assert not button.disconnect("clicked(bool)", both)
    button.click()
    assert len(calls) == 5


def test_unknown_signals_and_slots_are_problems(qt, slicer):
    button = qt.QPushButton()
    assert not button.connect("clicked(int)", print)
    assert not button.connect("pushed()", print)
    assert not button.connect("clicked()", button, "explode()")
    assert not slicer.qMRMLNodeComboBox().connect("currentNodeChanged(vtkMRMLVolumeNode*)", print)
    assert not slicer.app.connect("startupFinished()", print)
    assert len(taken()) == 5


def test_what_escapes_a_slot_an_observer_or_a_timer_is_a_problem(qt, slicer, capfd):
    def fail(*_):
        raise ValueError("escaped")

    button, timer = qt.QPushButton(), qt.QTimer()
    button.connect("clicked()", fail)
    button.clicked.connect(fail)
    button.click()
    timer.singleShot = True
    assert timer.connect("timeout()", fail)
    timer.start(0)
    qt.QTimer.singleShot(0, fail)
    for _ in range(5):
        slicer.app.processEvents()
    node = slicer.vtkMRMLTextNode()
    node.AddObserver("ModifiedEvent", fail)
    node.Modified()
    assert ["ValueError: escaped" in p for p in taken()] == [True] * 5


def test_a_child_process_speaks_through_signals(qt, slicer):
    process, said, ended = qt.QProcess(), [], []
    assert process.connect("readyReadStandardOutput()", lambda: said.append(process.readAllStandardOutput().data()))
    assert process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ended.append((code, status)))
    assert process.connect("errorOccurred(QProcess::ProcessError)", ended.append)
    process.start(shutil.which("PythonSlicer"), ["-c", "print(input().upper())"])
    process.write(b"hello\n")
    assert process.waitForFinished(20000)
    slicer.app.processEvents()
    assert b"".join(said).strip() == b"HELLO"
    assert ended == [(0, qt.QProcess.NormalExit)] and process.state() == qt.QProcess.NotRunning
    process.start("/nowhere", [])
    slicer.app.processEvents()
    assert ended[1:] == [qt.QProcess.FailedToStart]


# The combo box of nodes


@pytest.fixture
def selector(slicer):
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLVolumeNode"]
    selector.setProperty("calls", 0)
    selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda n: selector.setProperty("calls", selector.calls + 1))
    return selector


def test_the_selector_follows_the_scene(slicer, qt, selector):
    assert not selector.enabled
    first = volume(slicer, "first")
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.enabled and selector.currentNode() is first
    second = volume(slicer, "second")
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "label")
    assert selector.nodeCount() == 3 and selector.currentNode() is first
    selector.hideChildNodeTypes = ["vtkMRMLLabelMapVolumeNode"]
    assert selector.nodeCount() == 2
    second.SetName("renamed")
    assert selector.findChild(qt.QComboBox).itemText(1) == "renamed"
    slicer.mrmlScene.RemoveNode(first)
    assert selector.currentNode() is second  # without "None" the last one follows
    second.SetHideFromEditors(True)
    assert selector.currentNode() is None and selector.nodeCount() == 0
    second.SetHideFromEditors(False)
    assert selector.nodeCount() == 1
    slicer.mrmlScene.RemoveNode(label)


def test_the_selector_with_none_falls_back_to_none(slicer, selector):
    selector.noneEnabled = True
    selector.setMRMLScene(slicer.mrmlScene)
    node = volume(slicer, "volume")
    assert selector.currentNode() is None and selector.currentNodeID == ""
    selector.setCurrentNode(node)
    selector.setCurrentNodeID(node.GetID())
    assert selector.currentNode() is node and selector.calls == 1
    assert selector.connect("currentNodeChanged(bool)", lambda valid: selector.setProperty("valid", valid))
    slicer.mrmlScene.RemoveNode(node)
    assert selector.currentNode() is None and selector.calls == 2 and selector.valid is False


def test_a_node_asked_for_before_the_scene_is_taken_with_it(slicer, selector):
    volume(slicer, "first")
    second = volume(slicer, "second")
    selector.setCurrentNode(second)
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.currentNode() is second


def test_a_selector_without_actions_takes_the_first_node(slicer, selector):
    added = []
    selector.addEnabled = selector.removeEnabled = False
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.connect("nodeAdded(vtkMRMLNode*)", added.append)
    first, second = volume(slicer, "first"), volume(slicer, "second")
    assert selector.currentNode() is first and added == [first, second]


def test_the_selector_makes_nodes(slicer, selector):
    made = []
    selector.nodeTypes, selector.baseName = ["vtkMRMLScalarVolumeNode"], "Output"
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.connect("nodeAddedByUser(vtkMRMLNode*)", made.append)
    node = selector.addNode()
    assert node.GetName() == "Output" and selector.currentNode() is node and made == [node]


def test_a_deleted_selector_observes_nothing(slicer, selector):
    selector.setMRMLScene(slicer.mrmlScene)
    selector.deleteLater()
    slicer.app.sendPostedEvents(None, 52)  # DeferredDelete, which processEvents() leaves
    volume(slicer, "later")


def test_a_collapsed_button_hides_its_children(qt):
    import ctk

    button, changes = ctk.ctkCollapsibleButton(), []
    layout, shown, hidden = qt.QVBoxLayout(button), qt.QLabel("a"), qt.QLabel("b")
    layout.addWidget(shown)
    layout.addWidget(hidden)
    hidden.setVisible(False)
    button.show()
    assert button.connect("contentsCollapsed(bool)", changes.append)
    button.collapsed = True
    assert not shown.visible
    button.click()
    assert shown.visible and not hidden.visible and changes == [True, False] and not button.collapsed


# A module, from the file to the click


def test_a_module_opens_and_is_clicked(slicer, toy):
    widget = host.openModule(toy)
    node = volume(slicer, "volume")
    assert slicer.modules.toy is toy and slicer.modules.ToyWidget is widget and "Toy" in host.texts
    assert slicer.modules.ToyInstance.starts == 1
    assert toy.title == "Toy" and slicer.util.modulePath("Toy") == toy.path
    widget.ui.firstSelector.setCurrentNode(node)
    widget.ui.runButton.click()
    assert widget.presses == [node]
    widget.ui.stepsBox.value = 7
    widget.ui.invertBox.click()
    assert (widget.parameterNode.steps, widget.parameterNode.invert) == (7, True)
    widget.parameterNode.steps = 4
    assert widget.ui.stepsBox.value == 4 and widget.changes >= 4


def test_a_module_reloads(slicer, toy):
    old = host.openModule(toy)
    slicer.util.reloadScriptedModule("Toy")
    new = slicer.modules.ToyWidget
    assert old.cleaned == 1 and new is not old and toy.widgetRepresentation().self() is new
    new.ui.stepsBox.value = 6
    assert new.parameterNode.steps == 6 and old.changes == 0


def test_the_parent_of_a_module_takes_no_new_attributes(toy):
    with pytest.raises(AttributeError):
        toy.author = "me"
    with pytest.raises(AttributeError):
        toy.categories = 3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("noneEnabled", "noneAllowed", "noneAllowed"),
        ("mrmlSceneChanged(", "sceneChanged(", "sceneChanged"),
        ("setMRMLScene(", "setScene(", "setScene"),
        ("<receiver>firstSelector", "<receiver>secondSelector", "secondSelector"),
    ],
)
def test_a_ui_file_with_a_slip_is_a_problem(slicer, tmp_path, old, new, says):
    assert old in UI
    (tmp_path / "slip.ui").write_text(UI.replace(old, new))
    slicer.util.loadUI(str(tmp_path / "slip.ui"))
    (problem,) = taken()
    assert says in problem


def test_a_ui_file_with_an_unknown_class_is_refused(slicer, tmp_path):
    (tmp_path / "unknown.ui").write_text(UI.replace("qMRMLNodeComboBox", "qMRMLNodeChooser"))
    with pytest.raises(RuntimeError, match="qMRMLNodeChooser"):
        slicer.util.loadUI(str(tmp_path / "unknown.ui"))


# Parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("steps", value) for value in ("3", 2.5, True, 10, None)],
        *[("first", "id"), ("invert", 1), ("window", 3), ("window", None), ("weight", "1")],
    ],
)
def test_a_parameter_of_a_wrong_type_is_refused(toy, name, value):
    with pytest.raises((TypeError, ValueError)):
        setattr(host.openModule(toy).parameterNode, name, value)


@pytest.mark.parametrize("suffix", ["mrb", "mrml"])
def test_parameters_survive_save_and_load(slicer, toy, tmp_path, suffix):
    parameters = host.openModule(toy).parameterNode
    node = volume(slicer, "kept")
    assert slicer.util.saveNode(node, str(tmp_path / "kept.nrrd"))
    parameters.first, parameters.steps, parameters.invert = node, 8, True
    parameters.window, parameters.weight = "low", 0.25
    assert parameters.parameterNode.GetNodeReference("first") is node
    assert slicer.util.saveScene(str(tmp_path / f"scene.{suffix}"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / f"scene.{suffix}"))
    loaded = sys.modules["Toy"].ToyParameterNode(slicer.modules.ToyWidget.logic.getParameterNode())
    assert loaded.first.GetName() == "kept"
    assert (loaded.steps, loaded.invert, loaded.window, loaded.weight) == (8, True, "low", 0.25)


# The application


def test_slice_logics_show_volumes(slicer):
    node = volume(slicer, "shown", (20, 30, 40))
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    manager = slicer.app.layoutManager()
    assert manager.sliceViewNames()[:3] == ("Red", "Green", "Yellow")
    for name in manager.sliceViewNames():
        connection = manager.sliceWidget(name).sliceLogic().GetImageDataConnection()
        connection.GetProducer().Update()
        shown = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
        assert shown.GetScalarRange()[1] > 0
    layouts, seen = slicer.vtkMRMLLayoutNode, []
    manager.connect("layoutChanged(int)", seen.append)
    manager.setLayout(layouts.SlicerLayoutOneUpRedSliceView)
    manager.setLayout(layouts.SlicerLayoutFourUpView)
    assert seen == [layouts.SlicerLayoutOneUpRedSliceView, layouts.SlicerLayoutFourUpView]
    own = '<layout type="horizontal"><item><view class="vtkMRMLSliceNode" singletontag="Own"/></item></layout>'
    manager.layoutLogic().GetLayoutNode().AddLayoutDescription(987, own)
    manager.setLayout(987)
    assert "Own" in manager.sliceViewNames() and manager.sliceWidget("Own").mrmlSliceCompositeNode()
    manager.setLayout(layouts.SlicerLayoutFourUpView)
    renderers = manager.sliceWidget("Red").sliceView().renderWindow().GetRenderers()
    assert renderers.GetFirstRenderer().GetViewProps().GetNumberOfItems() == 0


def test_modules_of_slicer_are_there_or_absent(slicer):
    node = volume(slicer, "rendered")
    display = slicer.modules.volumerendering.logic().CreateDefaultVolumeRenderingNodes(node)
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert display.IsA("vtkMRMLVolumeRenderingDisplayNode") and tree.GetItemByDataNode(node)
    assert not hasattr(slicer.modules, "comparevolumes") and not hasattr(slicer, "getNode")
    assert slicer.util.mainWindow() is None


def test_messages_are_kept_and_questions_answered(slicer):
    host.answer = False
    assert not slicer.util.confirmOkCancelDisplay("go on?")
    with pytest.raises(KeyError), slicer.util.tryWithErrorDisplay("failed"):
        raise KeyError("x")
    assert [(kind, text[:6]) for kind, text, _ in host.messages] == [("confirmOkCancel", "go on?"), ("error", "failed")]


def test_sample_data_are_registered(slicer):
    import SampleData

    given = {"sampleName": "s", "uris": "file:///x", "fileNames": "x", "nodeNames": "x", "checksums": None}
    for _ in range(2):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(category="Toy", **given)
    (source,) = slicer.modules.sampleDataSources["Toy"]
    assert source.uris == ["file:///x"]
    with pytest.raises(TypeError):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(category="Toy", url="x")


def test_a_process_of_its_own_ends_well():
    """Qt, VTK and Python take each other down at the end of a process."""
    code = """
        import host
        host.start()
        import slicer, qt
        box = slicer.qMRMLNodeComboBox()
        box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        box.setMRMLScene(slicer.mrmlScene)
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        box.show()
        assert not host.problems
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "Error" not in run.stderr and "rror:" not in run.stderr
