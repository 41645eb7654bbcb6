"""A test host for scripted modules: real MRML (slicer-core) and real Qt (PySide6) behind the habits of Slicer.

    host.start()                              # then `import slicer, qt, ctk, vtk` work as in Slicer
    widget = host.openModule(host.loadModule("ASFEFusion/ASFEFusion.py"))
    assert not host.problems

It shows nothing and renders nothing. What a module asks for and the host lacks raises AttributeError.
"""

import os
import sys
from pathlib import Path

problems = []  # what Slicer would have refused, and what escaped a slot or an observer, in the order it happened
messages = []  # (kind, text, keywords) of all that would have been shown to the user
texts = set()  # all that went through tr() or translate()
answer = True  # what the user says to a question


def start():
    """Starts the one application of this process; -> slicer.app."""
    running = getattr(sys.modules.get("slicer"), "app", None)
    if running is not None:
        return running
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")  # no display needed, on Linux
    from . import pythonqt

    qt = pythonqt.install()
    from . import slicerside, uiloader
    from .application import Application

    uiloader.install(qt)
    application = Application(["Slicer"])
    application.setQuitOnLastWindowClosed(False)
    slicerside.complete()
    application.build()
    slicerside.addScripted()
    _pythonSlicer(Path(application.temporaryPath))
    return application


def _pythonSlicer(folder):
    """Slicer's launcher of Python, for modules that start child processes."""
    script = folder / "PythonSlicer"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def loadModule(path):
    """Loads a scripted module as Slicer does at its start; -> the module, also at slicer.modules.<name>."""
    application = start()
    import slicer

    module = slicer.qSlicerScriptedLoadableModule()
    module.setPythonSource(str(Path(path).resolve()))
    application.moduleManager().add(module)
    application.startupCompleted.emit()
    application.startupCompleted.disconnect()  # it comes once
    return module


def openModule(module):
    """Opens the panel of a module; -> its widget object, set up and entered."""
    panel = module.widgetRepresentation()
    panel.enter()
    return panel.self()


def closeModule(module):
    """Leaves and takes down the panel, if there is one, as Slicer does when it quits."""
    panel = module._panel
    if panel is not None and panel.isEntered:
        panel.exit()
    start().moduleManager().remove(module)
    if panel is not None:
        panel.deleteLater()
