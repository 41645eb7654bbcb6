"""The `qt` module: PySide6 with the habits of PythonQt, and with its refusals."""

import contextlib
import inspect
import sys
import traceback
import types

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from . import problems

_MODULES = QtCore, QtGui, QtWidgets
_QObject = QtCore.QObject
_NONE = object()
_connections = {}  # address of the sender -> [(signature, callable, bound signal, connected function)]


class _Property:
    """A Qt property as an attribute; asked of the class, it stays the C++ function of that name."""

    def __init__(self, cls, meta):
        self.name, self.type, self.writable = meta.name(), meta.typeName(), meta.isWritable()
        capital = self.name[0].upper() + self.name[1:]
        self.original = vars(cls).get(self.name)
        getters = self.original, vars(cls).get("is" + capital)
        self.getter = next((g for g in getters if isinstance(g, types.MethodDescriptorType)), None)
        self.setter = getattr(cls, "set" + capital, None)

    def __get__(self, obj, cls):
        if obj is None:
            return self if self.original is None else self.original.__get__(None, cls)
        return self.getter(obj) if self.getter else _QObject.property(obj, self.name)

    def __set__(self, obj, value):
        where = f"property '{self.name}' of {obj.metaObject().className()}"
        if not self.writable:
            raise AttributeError(f"{where} is not writable")
        try:
            done = self.setter(obj, value) is None if self.setter else _QObject.setProperty(obj, self.name, value)
        except TypeError:
            done = False
        if not done or value is None:  # where PySide takes None for an empty text, PythonQt writes "None"
            raise AttributeError(f"{where} of type {self.type} does not accept {value!r}")


def _isPython(cls):
    """Whether Slicer would see `cls` as a class of Python, so that its objects take new attributes."""
    return not cls.__module__.startswith("PySide6") and "signatures" not in vars(cls)  # which every stand-in has


def _setattr(self, name, value):
    cls = type(self)
    found = inspect.getattr_static(cls, name, _NONE)
    where = f"'{name}' of {cls.__name__}"
    if isinstance(found, QtCore.Property):  # of a stand-in; PySide gives it no __set__
        value = list(value) if isinstance(value, tuple) else value
        if value is None or not _QObject.setProperty(self, name, value):
            raise AttributeError(f"property {where} does not accept {value!r}")
    elif hasattr(type(found), "__set__"):
        found.__set__(self, value)
    elif name.startswith("__") or isinstance(value, QtCore.SignalInstance):
        self.__dict__[name] = value  # PySide keeps so its meta object and signals
    elif _isPython(cls) or (found is not _NONE and name.startswith("_")):
        self.__dict__[name] = value
    elif found is not _NONE:
        raise AttributeError(f"slot or signal {where} cannot be overwritten")
    elif name in [bytes(n).decode() for n in self.dynamicPropertyNames()]:
        _QObject.setProperty(self, name, value)
    elif not (isinstance(value, _QObject) and value.objectName == name):  # PySide's QUiLoader writes named children so
        raise AttributeError(f"{where} does not exist, and objects of C++ take no new attributes")


def _getattr(self, name):
    value = None if name.startswith("__") else _QObject.property(self, name)
    if value is None:
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
    return value


def _signal(obj, text):
    """-> (bound signal, number of its arguments), or (None, 0) where the class has no such signal."""
    text = bytes(QtCore.QMetaObject.normalizedSignature(text)).decode()
    name, _, arguments = text.rstrip(")").partition("(")
    declared = any(text in vars(c).get("signatures", ()) for c in type(obj).__mro__)
    if not declared and obj.metaObject().indexOfSignal(text) < 0:
        return None, 0
    bound = getattr(obj, name)
    if arguments:
        with contextlib.suppress(IndexError, KeyError, TypeError):  # PySide indexes only signals that are overloaded
            bound = bound[arguments]
    return bound, len(arguments.split(",")) if arguments else 0


def _takes(function):
    """How many positional arguments `function` can be given."""
    try:
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return None
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)


def _refuse(text):
    problems.append(text)
    return False


def connect(self, signal, receiver, slot=None):
    """obj.connect("signal(type)", callable), or (..., receiver, "slot(type)"); False where either is unknown."""
    bound, given = _signal(self, signal)
    if bound is None:
        return _refuse(f"{type(self).__name__} '{self.objectName}' has no signal {signal}")
    function = receiver
    if slot is not None:
        slot = bytes(QtCore.QMetaObject.normalizedSignature(slot)).decode()
        name = slot.partition("(")[0]
        function = getattr(receiver, name, None)
        if receiver.metaObject().indexOfMethod(slot) < 0 and slot not in getattr(receiver, "slots", ()):
            return _refuse(f"{type(receiver).__name__} '{receiver.objectName}' has no slot {slot}")
        given = 0 if slot.endswith("()") else given
    if not callable(function):
        return _refuse(f"{signal} of {type(self).__name__} cannot be connected to {function!r}")
    taken = _takes(function)
    passed = given if taken is None else min(given, taken)

    def call(*values):
        return function(*values[:passed])

    bound.connect(call)
    address = shiboken6.getCppPointer(self)[0]
    if address not in _connections:
        _connections[address] = []
        self.destroyed.connect(lambda *_: _connections.pop(address, None))
    _connections[address].append((signal.replace(" ", ""), function, bound, call))
    return True


def disconnect(self, signal, receiver=None, slot=None):
    """Undoes connect(); False where nothing was connected so."""
    if _signal(self, signal)[0] is None:
        return _refuse(f"{type(self).__name__} '{self.objectName}' has no signal {signal}")
    function = receiver if slot is None else getattr(receiver, slot.partition("(")[0])
    made = _connections.get(shiboken6.getCppPointer(self)[0], [])
    ours = [c for c in made if c[0] == signal.replace(" ", "") and (function is None or c[1] == function)]
    for entry in ours:
        entry[2].disconnect(entry[3])
        made.remove(entry)
    return bool(ours)


def _intercept(original):
    """PySide looks up connect and disconnect past any replacement in the class; here ours come first."""
    ours = {"connect": connect, "disconnect": disconnect}

    def lookup(self, name):
        return types.MethodType(ours[name], self) if name in ours else original(self, name)

    return lookup


def _report(kind, error, trace):
    """What escapes a slot, an observer or a timer is printed by Slicer and lost; tests must see it."""
    problems.append("".join(traceback.format_exception(kind, error, trace)))
    sys.__excepthook__(kind, error, trace)


def _patch(cls):
    meta = cls.staticMetaObject
    for index in range(meta.propertyCount()):
        name = meta.property(index).name()
        if index >= meta.propertyOffset() or name in vars(cls):  # declared here, or its getter is declared anew
            setattr(cls, name, _Property(cls, meta.property(index)))
    cls.__setattr__ = _setattr
    if "__getattribute__" in vars(cls):
        cls.__getattribute__ = _intercept(vars(cls)["__getattribute__"])


def _singleShot(milliseconds, receiver, slot=None):
    """qt.QTimer.singleShot(ms, callable): Slicer's own, since PythonQt hides the function behind the property."""
    timer = QtCore.QTimer(QtCore.QCoreApplication.instance())
    timer.setSingleShot(True)
    connect(timer, "timeout()", receiver, slot)
    connect(timer, "timeout()", timer.deleteLater)
    timer.start(milliseconds)


class _Module(types.ModuleType):
    def __getattr__(self, name):
        for module in _MODULES:
            if name.startswith("Q") and hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module 'qt' has no attribute '{name}'")


def install():
    """Changes the classes of PySide6 in place, once a process, and makes `import qt` work."""
    found = [getattr(module, name) for module in _MODULES for name in dir(module)]
    for cls in dict.fromkeys(c for c in found if isinstance(c, type) and issubclass(c, _QObject)):
        _patch(cls)
    vars(QtCore.QTimer)["singleShot"].original = staticmethod(_singleShot)
    _QObject.__getattr__ = _getattr
    _QObject.name = vars(_QObject)["objectName"]  # PythonQt knows it under both names
    _QObject.className = lambda self: self.metaObject().className()
    sys.excepthook = _report
    sys.modules["qt"] = module = _Module("qt")
    return module
