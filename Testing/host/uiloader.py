"""The loader of .ui files, which knows the stand-ins and tells what Qt would pass over in silence."""

import sys
import types
from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import problems, pythonqt
from .widgets import STANDINS


class QUiLoader(QtUiTools.QUiLoader):
    """Refuses unknown classes; unknown properties and connections are problems."""

    def __init__(self, parent=None):
        super().__init__(parent)
        for cls in STANDINS.values():
            self.registerCustomWidget(cls)

    def load(self, file, parent=None):
        form = ElementTree.fromstring(bytes(file.readAll()))
        names = [w.get("class") for w in form.iter("widget")]
        unknown = {n for n in names if n not in STANDINS and n != "Line" and not hasattr(QtWidgets, n)}
        if unknown:
            raise RuntimeError(f"the .ui file uses {', '.join(sorted(unknown))}, which this host does not have")
        connections = form.findall("connections/connection")
        for element in form.findall("connections"):
            form.remove(element)  # Qt does not see the C++ signatures of the stand-ins
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(form))
        widget = super().load(buffer, parent)
        named = {o.objectName: o for o in [widget, *widget.findChildren(QtCore.QObject)]}
        for element in form.iter("widget"):
            meta = named[element.get("name")].metaObject()
            for entry in element.findall("property"):
                declared = meta.indexOfProperty(entry.get("name")) >= 0 or element.get("class") == "Line"
                if not declared and entry.get("stdset") != "0":
                    problems.append(f"the .ui file sets {entry.get('name')}, which {meta.className()} lacks")
        for c in connections:
            sender, receiver = named.get(c.findtext("sender")), named.get(c.findtext("receiver"))
            if sender is None or receiver is None:
                problems.append(f"the .ui file connects {c.findtext('sender')} to {c.findtext('receiver')}")
            else:
                pythonqt.connect(sender, c.findtext("signal"), receiver, c.findtext("slot"))
        return widget


def install(qt):
    """Puts the loader into `qt`, and makes `import ctk` work."""
    qt.QUiLoader = QUiLoader
    sys.modules["ctk"] = ctk = types.ModuleType("ctk")
    ctk.ctkCollapsibleButton = STANDINS["ctkCollapsibleButton"]
