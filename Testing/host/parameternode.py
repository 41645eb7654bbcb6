"""`slicer.parameterNodeWrapper`: annotated classes whose attributes live in a node, as Slicer keeps them."""

import typing
import weakref

import qt
import slicer
import vtk

__all__ = ["Choice", "Default", "Maximum", "Minimum", "WithinRange", "isParameterNodeWrapper", "parameterNodeWrapper"]


_VALUE = {bool: lambda text: text == "True", int: int, float: float, str: str}  # out of the text that str() made


class _Limit:
    """What an annotation allows."""

    def __init__(self, *given):
        self.given = given

    def validate(self, value):
        if not self.allows(value):
            raise ValueError(f"{value!r} is outside {type(self).__name__}{self.given}")


class WithinRange(_Limit):
    minimum, maximum = (property(lambda self, i=i: self.given[i]) for i in (0, 1))

    def allows(self, value):
        return self.minimum <= value <= self.maximum


class Minimum(_Limit):
    minimum = property(lambda self: self.given[0])

    def allows(self, value):
        return value >= self.minimum


class Maximum(_Limit):
    maximum = property(lambda self: self.given[0])

    def allows(self, value):
        return value <= self.maximum


class Choice(_Limit):
    choices = property(lambda self: self.given[0])

    def allows(self, value):
        return value in self.choices


class Default:
    def __init__(self, value):
        self.value = value


class _Parameter:
    """One attribute: text in the node, or a node reference beside an empty text of the same name."""

    def __init__(self, owner, name, annotated):
        self.name, self.annotated = name, annotated
        self.type, *notes = typing.get_args(typing.Annotated[annotated, None])[:-1]
        self.isNode = isinstance(self.type, type) and issubclass(self.type, slicer.vtkMRMLNode)
        if not self.isNode and self.type not in _VALUE:
            raise TypeError(f"{owner.__name__}.{name}: this host keeps no parameter of type {annotated}")
        self.limits = [n for n in notes if isinstance(n, _Limit)]
        given = [n.value for n in notes if isinstance(n, Default)]
        empty = None if self.isNode else self.type()
        self.default = vars(owner)[name] if name in vars(owner) else given[0] if given else empty

    def check(self, value):
        accepted = (int, float) if self.type is float else self.type
        if value is None and not self.isNode:
            raise ValueError(f"{self.name} must not be None")
        if value is not None and not isinstance(value, accepted):
            raise TypeError(f"{self.name} must be of type {self.type.__name__}, not {value!r}")
        if isinstance(value, bool) and self.type is int:
            raise TypeError(f"{self.name} is an int: Slicer writes {value} and then cannot read it")
        for limit in self.limits:
            limit.validate(value)

    def __get__(self, wrapper, owner=None):
        if wrapper is None:
            return self
        node = wrapper.parameterNode
        if not node.HasParameter(self.name):
            self.__set__(wrapper, self.default)
        return node.GetNodeReference(self.name) if self.isNode else _VALUE[self.type](node.GetParameter(self.name))

    def __set__(self, wrapper, value):
        self.check(value)
        node = wrapper.parameterNode
        with slicer.util.NodeModify(node):
            node.SetParameter(self.name, "" if self.isNode else str(value))
            if self.isNode:
                node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)


class _Link:
    """A parameter and the widget that shows it."""

    def __init__(self, wrapper, parameter, widget):
        self.wrapper, self.parameter, self.widget = weakref.ref(wrapper), parameter, widget
        bounds = [(n.minimum, n.maximum) for n in parameter.limits if isinstance(n, WithinRange)]
        if parameter.isNode and type(widget) is slicer.qMRMLNodeComboBox:
            widget.nodeTypes = [parameter.type().GetClassName()]
            self.signal, self.read, self.write = widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode
        elif parameter.type is bool and type(widget) is qt.QCheckBox:
            self.signal, self.read, self.write = widget.stateChanged, widget.isChecked, widget.setChecked
        elif parameter.type is int and (type(widget) is qt.QSpinBox or (type(widget) is qt.QSlider and bounds)):
            widget.setRange(*(bounds[0] if bounds else (-(2**31), 2**31 - 1)))
            self.signal, self.read, self.write = widget.valueChanged, lambda: widget.value, widget.setValue
        else:
            raise RuntimeError(f"no connector from {parameter.annotated} to a {type(widget).__name__} in this host")
        self.write(getattr(wrapper, parameter.name))
        self.signal.connect(self.changed)

    def changed(self, *_):
        wrapper = self.wrapper()
        if wrapper is not None and not wrapper._updating:
            setattr(wrapper, self.parameter.name, self.read())


class _Wrapper:
    """What Slicer adds to a class of parameters; the node's observers can be reached through it."""

    def __init__(self, parameterNode, prefix=None):
        if prefix:
            raise NotImplementedError("prefixes of parameter names are not in this host")
        self.parameterNode, self._updating, self._guis = parameterNode, False, {}
        for name in self.allParameters:
            getattr(self, name)  # writes the default of what the node lacks

    def default(self, name):
        return Default(self.allParameters[name].default)

    def dataType(self, name):
        return self.allParameters[name].annotated

    def getValue(self, name):
        return self.allParameters[name].__get__(self)

    def setValue(self, name, value):
        self.allParameters[name].__set__(self, value)

    def connectGui(self, gui):
        widgets = gui.findChildren(qt.QWidget) if isinstance(gui, qt.QWidget) else vars(gui).values()
        named = {w.property("SlicerParameterName"): w for w in widgets if w.property("SlicerParameterName")}
        unknown = set(named) - set(self.allParameters)
        if unknown:
            raise ValueError(f"widgets name parameters that do not exist: {unknown}")
        links = [_Link(self, self.allParameters[name], widget) for name, widget in named.items()]
        reference = weakref.ref(self)
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: reference()._update(links))
        self._guis[observer] = links
        return observer

    def disconnectGui(self, tag):
        for link in self._guis.pop(tag, ()):
            link.signal.disconnect(link.changed)
        self.RemoveObserver(tag)

    def _update(self, links):
        if self._updating:
            return
        self._updating = True
        try:
            for link in links:
                link.write(getattr(self, link.parameter.name))
        finally:
            self._updating = False

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified):
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        return self.parameterNode.RemoveObserver(tag)

    def Modified(self):
        return self.parameterNode.Modified()


def isParameterNodeWrapper(candidate):
    return issubclass(candidate if isinstance(candidate, type) else type(candidate), _Wrapper)


def parameterNodeWrapper(cls=None):
    """@parameterNodeWrapper, with or without brackets."""
    if cls is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: _Parameter(cls, name, annotated) for name, annotated in hints.items()}
    reserved = [name for name in parameters if hasattr(_Wrapper, name)]
    if reserved:
        raise ValueError(f"parameters cannot be named {reserved}")
    return type(
        cls.__name__, (_Wrapper, cls), {**parameters, "allParameters": parameters, "__module__": cls.__module__}
    )
