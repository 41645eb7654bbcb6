"""The `slicer` package of the wheel, completed by what Slicer adds in Python: modules, i18n, messages."""

import sys
import types

import slicer
import slicer.util

from . import messages, texts, widgets


def _shows(kind, result):
    def show(text, windowTitle=None, parent=None, **keywords):
        messages.append((kind, text, {"windowTitle": windowTitle, **keywords}))
        return result()

    return show


def _answer():
    return sys.modules[__package__].answer


def _selectModule(module):
    module = module if isinstance(module, str) else module.name
    panel = slicer.util.getModule(module).widgetRepresentation()
    panel.enter()


def _tr(text):
    texts.add(text)
    return text


def _translate(context, text):
    return _tr(text)


def _package(name, **contents):
    sys.modules[f"slicer.{name}"] = module = types.ModuleType(f"slicer.{name}")
    vars(module).update(contents)
    setattr(slicer, name, module)


def complete():
    """Fills the package; the wheel has its own slicer.util, which is Slicer's, and puts it all at the top level too."""
    import qt

    util = slicer.util
    for name in [n for n in vars(slicer) if getattr(vars(slicer)[n], "__module__", "") == "slicer.util"]:
        delattr(slicer, name)
    slicer.selfTests = {}
    _package("modules")
    _package("moduleNames")
    _package("i18n", tr=_tr, translate=_translate)
    slicer.qMRMLWidget, slicer.qMRMLNodeComboBox = widgets.qMRMLWidget, widgets.qMRMLNodeComboBox
    for kind in ("info", "warning", "error"):
        setattr(util, f"{kind}Display", _shows(kind, lambda: None))
    for kind in ("confirmOkCancel", "confirmYesNo", "confirmRetryClose"):
        setattr(util, f"{kind}Display", _shows(kind, _answer))
    ok, cancel = qt.QMessageBox.Ok, qt.QMessageBox.Cancel
    util.messageBox = _shows("messageBox", lambda: ok if _answer() else cancel)
    util.delayDisplay = lambda message, autoCloseMsec=1000, **keywords: messages.append(("delay", message, keywords))
    util.showStatusMessage = lambda message, duration=0: messages.append(("status", message, {"duration": duration}))
    util.selectModule = _selectModule


def addScripted():
    """The parts written over `qt` and `slicer`, which can be imported only now."""
    from . import parameternode, sampledata, scripted

    for name, module in {"ScriptedLoadableModule": scripted, "parameterNodeWrapper": parameternode}.items():
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)
    sys.modules["SampleData"] = sampledata
    slicer.qSlicerScriptedLoadableModule = scripted.qSlicerScriptedLoadableModule
    slicer.qSlicerScriptedLoadableModuleWidget = scripted.qSlicerScriptedLoadableModuleWidget
