"""The only file here that knows Slicer: node -> Volume, and the fused Volume -> a node in its place.

Slicer's frame is RAS; it is turned to LPS at this door. A volume's own space is that of its node before any parent
transform. The work is done in the first volume's own space, and the fused node hangs under the same parent: so it
follows the first one under a live image-to-patient transform, and nothing is ever hardened.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from . import bent
from .errors import FusionError
from .fusion import SCALE
from .grids import Grid, grid_of
from .settings import Notice
from .space import Displacement
from .volume import Volume, check_geometry

NOTE = "fused, not for quantitation"
EXPORT_NOTE = "Fused, not for quantitation. Do not export it as DICOM: it would be written as an original image in HU."
# Names of node attributes and of node references.
MARK, REPORT, RELATION, STALE = "ASFEFusion.Fused", "ASFEFusion.Report", "ASFEFusion.Relation", "ASFEFusion.OutOfDate"
FIRST, SECOND = "ASFEFusion.First", "ASFEFusion.Second"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# DICOM (0008,0060) to what the library calls it.
MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET", "NM": "SPECT", "US": "US", "IVUS": "US", "XA": "XA", "RF": "XA"}
# Cone-beam CT calls itself CT or XA; these words of its name, description or device give it away.
CONE_BEAM = re.compile(r"cbct|cone.?beam|o-?arm|dyna-?ct|xper-?ct|innova-?ct", re.IGNORECASE)
# UCUM codes of voxel values.
UNITS = {"[hnsf'U]": "HU", "Bq/ml": "Bq/mL", "Bq/mL": "Bq/mL"}
PET_UNITS = {"BQML": "Bq/mL", "GML": "SUV"}
# Probes that differ by less (voxels) are the same.
SAME = 0.02


# ---- what a node is ------------------------------------------------------------------------------------------------


def modality_of(node: slicer.vtkMRMLVolumeNode) -> str | None:
    """The library's name of the modality that the subject hierarchy's DICOM attributes give; None: they do not."""
    if node.GetAttribute(MARK):
        return None  # whatever it was before it was overwritten
    modality = MODALITIES.get(_hierarchy_attribute(node, _constants().GetDICOMSeriesModalityAttributeName()))
    known = (node.GetName() or "", *(_dicom_value(node, tag) for tag in ("0008,103e", "0008,1090")))
    if modality in ("CT", "XA", None) and any(CONE_BEAM.search(text) for text in known):
        return "CBCT"
    return modality


def units_of(node: slicer.vtkMRMLScalarVolumeNode) -> str | None:
    """ "HU", "SUV", "Bq/mL", or None if the node does not say (vtkMRMLScalarVolumeNode's units, else DICOM's)."""
    entry = node.GetVoxelValueUnits()
    code = (entry.GetCodeValue() or "") if entry else ""
    if code:
        return UNITS.get(code, "SUV" if "SUV" in code else None)
    if modality_of(node) == "PET":
        return PET_UNITS.get(_dicom_value(node, "0054,1001"))
    return None


def frame_of_reference(node: slicer.vtkMRMLVolumeNode) -> str | None:
    """The UID of the DICOM frame of reference, if the subject hierarchy or the DICOM database knows it."""
    name = _constants().GetDICOMFrameOfReferenceUIDAttributeName()
    return _hierarchy_attribute(node, name, ancestors=True) or _dicom_value(node, "0020,0052") or None


def window_shown(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[float, float] | None:
    """Low and high of the window in which the viewers show the node; None if it has no display."""
    display = slice_display(node)
    if display is None:
        return None
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    return (low, high) if low < high else None


def colour_shown(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[str, np.ndarray | None]:
    """Name of the display's colour table, and 256 x 3 RGB of it in [0, 1]; None for grey or one that begins bright.

    A table that begins bright would light up the empty background.
    """
    display = slice_display(node)
    colours = display.GetColorNode() if display else None
    function = colours.GetScalarsToColors() if colours else None
    if function is None:
        return ("", None)
    low, high = function.GetRange()
    table, rgb = np.zeros((256, 3)), [0.0] * 3
    for n, value in enumerate(np.linspace(low, high, 256)):
        function.GetColor(value, rgb)
        table[n] = rgb
    grey = np.ptp(table, axis=1).max() < 0.02
    return colours.GetName(), None if grey or table[0].max() > 0.1 else np.clip(table, 0, 1)


def read_volume(node: slicer.vtkMRMLScalarVolumeNode | None) -> Volume:
    """The node's voxels (its own memory, nothing copied: leave them as they are) in its own space.

    Raises FusionError "node_missing", "node_kind", "node_empty", "geometry_unusable".
    """
    if node is None:
        raise FusionError("node_missing")
    if not hasattr(node, "GetClassName"):
        raise FusionError("node_kind", name=str(node), kind=type(node).__name__)
    name = node.GetName() or node.GetID() or "The volume"
    if node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise FusionError("node_kind", name=name, kind=node.GetNodeTagName())
    image = node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image else None
    if scalars is None or not image.GetNumberOfPoints():
        raise FusionError("node_empty", name=name)
    if image.GetNumberOfScalarComponents() != 1:
        raise FusionError("node_kind", name=name, kind="vector volume")
    voxels = vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1])
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    check_geometry(_array(matrix), name, sheared=True)
    return Volume(voxels, LPS @ _array(matrix), modality=modality_of(node), units=units_of(node), name=name)


def _constants() -> type:
    return slicer.vtkMRMLSubjectHierarchyConstants


def _hierarchy_attribute(node: slicer.vtkMRMLNode, name: str, ancestors: bool = False) -> str:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene()) if node.GetScene() else None
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    while item:
        value = hierarchy.GetItemAttribute(item, name)
        if value or not ancestors:
            return value or ""
        item = hierarchy.GetItemParent(item)
    return ""


def _dicom_value(node: slicer.vtkMRMLNode, tag: str) -> str:
    """The tag's value in the first of the files that the node was loaded from; "" if there is none."""
    database = getattr(slicer, "dicomDatabase", None)
    uids = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
    if not uids or database is None or not database.isOpen:
        return ""
    return database.instanceValue(uids[0], tag) or ""


def _array(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


# ---- how two nodes lie to each other ---------------------------------------------------------------------------------


@dataclass
class Relation:
    """Where the second node's space lies in the first's, at one moment.

    `matrix`: 4 x 4, points of the second's own space to the first's (LPS mm); None if the transform is bent.
    `probe`: see `probe_between`. `first_size`, `first_matrix`, `second_matrix`: the first node's (i, j, k) and the own
    4 x 4 of both (ijk to LPS mm). `parent`: the ID of the first one's parent transform, under which the fused one
    belongs. `bent`: see `_bent_content`. `displacement`: for a bent transform, see `space.Displacement`. `notices`:
    what is doubtful. `others`: more places of the second in which the fused one is not out of date, each a probe and
    what is bent: where a given transform or an alignment lays it.
    """

    matrix: np.ndarray | None
    probe: np.ndarray
    first_size: tuple[int, int, int]
    first_matrix: np.ndarray
    second_matrix: np.ndarray
    parent: str | None
    bent: list[int]
    displacement: Displacement | None = None
    notices: list[Notice] = field(default_factory=list)
    others: list[tuple[np.ndarray, list[int]]] = field(default_factory=list)

    def place(self, second: Volume) -> Volume:
        """The second volume, placed in the first one's space (as it is for a bent transform: `displacement` says)."""
        if self.matrix is None:
            return second
        return Volume(**{**vars(second), "ijk_to_physical": self.matrix @ second.ijk_to_physical})


def relate(
    first: slicer.vtkMRMLVolumeNode,
    second: slicer.vtkMRMLVolumeNode,
    given: slicer.vtkMRMLTransformNode | None = None,
) -> Relation:
    """The transform between the two nodes' parents as it is now; `given`: a node to take for the second's parent.

    Raises FusionError "transform_singular".
    """
    check_transforms(first, second, given)
    parents = given or second.GetParentTransformNode(), first.GetParentTransformNode()
    box = read_volume(first)
    sizes = box.size_ijk, box.ijk_to_physical, read_volume(second).ijk_to_physical
    moment = probe_between(first, second), *sizes, first.GetTransformNodeID(), _bent_content(first, second)
    others = []
    if given is not None:
        others.append((probe_between(first, second, parent=given), _bent_content(first, None, given)))
    matrix = matrix_between(*parents)
    if matrix is not None:
        return Relation(LPS @ matrix @ LPS, *moment, others=others)
    displacement, error = bent.sample(_between(parents[1], parents[0]), grid_of(box))
    notices = [Notice("transform_rough", {"millimetres": round(error, 1)})] if error > 2 * bent.MOST_ERROR else []
    return Relation(None, *moment, displacement, notices, others)


def relate_anew(relation: Relation, first: slicer.vtkMRMLVolumeNode, matrix: np.ndarray) -> Relation:
    """The relation with the second laid by `matrix` (4 x 4, its own space to the first's, LPS mm) instead."""
    to_index = np.linalg.inv(matrix @ relation.second_matrix)
    probe = _probe_points(relation.first_size) @ (to_index @ relation.first_matrix).T
    # It is then under the first one's parent too.
    place = probe[:, :3], _bent_content(first, first)
    return replace(relation, matrix=matrix, displacement=None, notices=[], others=[place])


def probe_between(
    source: slicer.vtkMRMLVolumeNode,
    target: slicer.vtkMRMLVolumeNode,
    flip_source: bool = False,
    flip_target: bool = False,
    parent: slicer.vtkMRMLTransformNode | None = None,
) -> np.ndarray:
    """(64, 3): where points all over the source's voxels lie among the target's, in the target's (i, j, k).

    It changes with the transforms between the two and with either's own geometry, and with nothing that moves both.
    `flip_source`, `flip_target`: its slices are counted from the other end (see `_left_handed`). `parent`: taken for
    that of the target.
    """
    image = source.GetImageData()
    size = image.GetDimensions() if image else (1, 1, 1)
    index = _probe_points(size)
    if flip_source:
        index[:, 2] = size[2] - 1 - index[:, 2]
    own, other = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    source.GetIJKToRASMatrix(own)
    target.GetRASToIJKMatrix(other)
    points = (index @ _array(own).T)[:, :3]
    between = _between(source.GetParentTransformNode(), parent or target.GetParentTransformNode())
    moved = np.array([[*between.TransformPoint(point), 1.0] for point in points])
    found = (moved @ _array(other).T)[:, :3]
    if flip_target and target.GetImageData() is not None:
        found[:, 2] = target.GetImageData().GetDimensions()[2] - 1 - found[:, 2]
    return found


def _probe_points(size: tuple[int, int, int]) -> np.ndarray:
    """(64, 4): homogeneous indices (i, j, k) all over a volume of this size."""
    return np.array([[*point, 1.0] for point in product(*(np.linspace(0, max(n - 1, 1), 4) for n in size))])


def _bent_content(
    first: slicer.vtkMRMLVolumeNode,
    second: slicer.vtkMRMLVolumeNode | None,
    parent: slicer.vtkMRMLTransformNode | None = None,
) -> list[int]:
    """Checksums of what bends the space of the two: a local change may pass between the points of a probe.

    `parent`: that of the second, if it is not given.
    """
    found = []
    for above in (first.GetParentTransformNode(), second.GetParentTransformNode() if second else parent):
        node = above
        while node is not None:
            if not node.IsLinear():
                found += bent.content(node.GetTransformToParent())
            node = node.GetParentTransformNode()
    return found


def check_transforms(
    first: slicer.vtkMRMLVolumeNode,
    second: slicer.vtkMRMLVolumeNode,
    given: slicer.vtkMRMLTransformNode | None = None,
) -> None:
    """Raise FusionError "transform_singular" if a transform above one of the two, or `given`, flattens space."""
    parents = first.GetParentTransformNode(), given or second.GetParentTransformNode()
    if not all(_invertible(node) for node in parents):
        raise FusionError("transform_singular", first=first.GetName(), second=second.GetName())


def overlap_share(first: slicer.vtkMRMLVolumeNode, second: slicer.vtkMRMLVolumeNode) -> float:
    """Roughly the space common to both over that of the smaller one, 0 to 1, from some thousand points of the first.

    Raises FusionError "transform_singular".
    """
    check_transforms(first, second)
    boxes = [grid_of(read_volume(node)) for node in (first, second)]
    parents = first.GetParentTransformNode(), second.GetParentTransformNode()
    straight = _linear(*parents)
    counts = [min(n, 24 if straight else 10) for n in boxes[0].size]
    axes = [(np.arange(m) + 0.5) / m * n - 0.5 for m, n in zip(counts, boxes[0].size, strict=True)]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    points = index @ boxes[0].matrix[:3, :3].T + boxes[0].matrix[:3, 3]
    extent = boxes[1].extent
    if straight:
        to_first = relate(first, second).matrix
        points = (np.c_[points, np.ones(len(points))] @ np.linalg.inv(to_first).T)[:, :3]
        extent *= abs(np.linalg.det(to_first[:3, :3]))
    else:
        between, flip = _between(*parents), LPS[:3, :3]
        points = np.array([between.TransformPoint(point) for point in points @ flip]) @ flip
    found = (np.c_[points, np.ones(len(points))] @ np.linalg.inv(boxes[1].matrix).T)[:, :3]
    inside = ((found > -0.5) & (found < np.array(boxes[1].size) - 0.5)).all(1)
    return float(min(1.0, inside.mean() * boxes[0].extent / min(boxes[0].extent, extent)))


def matrix_between(source: Any, target: Any) -> np.ndarray | None:
    """4 x 4, points under the transform node `source` to those under `target` (RAS mm; None: world); None: bent."""
    if not _linear(source, target):
        return None
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, matrix)
    return _array(matrix)


def _linear(source: Any, target: Any) -> bool:
    for node in (source, target):
        if node is not None and not node.IsTransformToWorldLinear():
            # Two nodes under one bent parent still lie straight to each other.
            return source is target
    return True


def _invertible(node: Any) -> bool:
    """False if a linear transform node, or one above it, flattens space: VTK would give some inverse all the same."""
    while node is not None:
        if node.IsLinear():
            matrix = vtk.vtkMatrix4x4()
            node.GetMatrixTransformToParent(matrix)
            own = _array(matrix)
            if not np.isfinite(own).all() or abs(np.linalg.det(own[:3, :3])) < 1e-9:
                return False
        node = node.GetParentTransformNode()
    return True


def _between(source: Any, target: Any) -> vtk.vtkGeneralTransform:
    """Points of the source's space to the target's (RAS mm)."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    return transform


def region_points(roi: Any, first: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """(27, 3): corners, middles of edges and faces, and centre of a markups ROI in the first's own space (LPS mm).

    Raises FusionError "region_empty".
    """
    size = np.array(roi.GetSize())
    if not (size > 0).all() or roi.GetNumberOfControlPoints() == 0:
        raise FusionError("region_empty", name=roi.GetName())
    local = np.array([[*point, 1.0] for point in product(*((-n / 2, 0, n / 2) for n in size))])
    world = local @ _array(roi.GetObjectToWorldMatrix()).T
    to_first = _between(None, first.GetParentTransformNode())
    return np.array([to_first.TransformPoint(point) for point in world[:, :3]]) @ LPS[:3, :3]


def slice_lattice(
    slice_node: slicer.vtkMRMLSliceNode, first: slicer.vtkMRMLVolumeNode, grid: Grid
) -> tuple[tuple[int, int, int], np.ndarray]:
    """One slice for a quick look, as `FusionSettings.lattice`: that of the grid which the view shows, if the view is
    along its slices; else the view's own plane through the first volume, at the grid's least spacing.

    Raises FusionError "plane_outside" (the view is beyond the first volume), "plane_bent" (under a bent transform).
    """
    parent = first.GetParentTransformNode()
    if not _linear(parent, None):
        raise FusionError("plane_bent", name=first.GetName())
    to_first = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(None, parent, to_first)
    plane = LPS @ _array(to_first) @ _array(slice_node.GetSliceToRAS())
    axes = plane[:3, :3] / np.linalg.norm(plane[:3, :3], axis=0)
    normal = np.cross(axes[:, 0], axes[:, 1])
    index = np.linalg.inv(grid.matrix) @ plane[:, 3]
    along_k = grid.matrix[:3, 2] / grid.spacing[2]
    if abs(along_k @ normal) > 0.9999:
        k = int(np.rint(index[2]))
        if not 0 <= k < grid.size[2]:
            raise FusionError("plane_outside", name=first.GetName())
        matrix = grid.matrix.copy()
        matrix[:3, 3] += k * matrix[:3, 2]
        return (grid.size[0], grid.size[1], 1), matrix
    corners = np.array([[*corner, 1.0] for corner in product(*((-0.5, n - 0.5) for n in grid.size))])
    local = ((corners @ grid.matrix.T)[:, :3] - plane[:3, 3]) @ np.stack([axes[:, 0], axes[:, 1], normal], 1)
    if local[:, 2].min() > 0 or local[:, 2].max() < 0:
        raise FusionError("plane_outside", name=first.GetName())
    low, high = local[:, :2].min(0), local[:, :2].max(0)
    step = max(float(grid.spacing.min()), float((high - low).max()) / 1024)
    size = np.ceil((high - low) / step).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([axes[:, 0], axes[:, 1], normal], 1) * step
    matrix[:3, 3] = plane[:3, 3] + axes[:, :2] @ (low + step / 2)
    return (int(size[0]), int(size[1]), 1), matrix


# ---- the fused node --------------------------------------------------------------------------------------------------


def node_class(rgb: bool) -> str:
    """Class of the node that holds a fused volume."""
    return "vtkMRMLVectorVolumeNode" if rgb else "vtkMRMLScalarVolumeNode"


def check_output(output: Any, inputs: list[Any], rgb: bool) -> None:
    """Raise FusionError "node_is_input" or "output_class" unless the fused volume can go into the node."""
    if output is None:
        return
    if output in inputs:
        raise FusionError("node_is_input", name=output.GetName())
    if output.GetClassName() != node_class(rgb):
        raise FusionError("output_class", name=output.GetName(), kind="colour" if rgb else "grey")


def put_voxels(node: slicer.vtkMRMLVolumeNode, volume: Volume) -> None:
    """The volume's voxels (copied once) and place into the node, with fitting type, units and display."""
    voxels = np.ascontiguousarray(volume.voxels)
    image = vtk.vtkImageData()
    image.SetDimensions(*volume.size_ijk)
    scalars = numpy_to_vtk(voxels.reshape(-1, 3) if volume.rgb else voxels.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    display = slice_display(node, make=True)
    # All that may fail is done: from here on the node changes.
    modified = node.StartModify()
    matrix = LPS @ volume.ijk_to_physical
    vtk_matrix = vtk.vtkMatrix4x4()
    vtk_matrix.DeepCopy(matrix.ravel())
    node.SetIJKToRASMatrix(vtk_matrix)
    node.SetAndObserveImageData(image)
    kind = slicer.vtkMRMLVolumeNode
    node.SetVoxelVectorType(kind.VoxelVectorTypeColorRGB if volume.rgb else kind.VoxelVectorTypeUndefined)
    node.SetVoxelValueUnits(None)
    node.SetVoxelValueQuantity(None)
    node.EndModify(modified)
    display.AutoWindowLevelOff()
    # An automatic window spoils the colours of RGB; a grey one is what the network meant from 0 to SCALE.
    window, level = (255, 127.5) if volume.rgb else (SCALE, SCALE / 2)
    display.SetWindowLevel(window, level)


def slice_display(node: slicer.vtkMRMLVolumeNode, make: bool = False) -> Any:
    """The node's display in slice views, which need not be its first; None if it has none and not to `make` one."""
    for n in range(node.GetNumberOfDisplayNodes()):
        display = node.GetNthDisplayNode(n)
        if display is not None and display.IsA("vtkMRMLScalarVolumeDisplayNode"):
            return display
    if not make:
        return None
    if node.GetNumberOfDisplayNodes() == 0:
        node.CreateDefaultDisplayNodes()
        return node.GetDisplayNode()
    kind = "Vector" if node.IsA("vtkMRMLVectorVolumeNode") else "Scalar"
    display = node.GetScene().AddNewNodeByClass(f"vtkMRML{kind}VolumeDisplayNode")
    node.AddAndObserveDisplayNodeID(display.GetID())
    return display


def write_fused(
    volume: Volume,
    report: dict[str, Any],
    first: slicer.vtkMRMLVolumeNode,
    second: slicer.vtkMRMLVolumeNode,
    relation: Relation,
    *,
    output: slicer.vtkMRMLVolumeNode | None = None,
) -> slicer.vtkMRMLVolumeNode:
    """The fused volume as a node under the first one's parent transform, patient and study; `output` is overwritten.

    `report`: `FusionReport.to_dict()`. Raises FusionError "node_is_input", "output_class".
    """
    check_output(output, [first, second], volume.rgb)
    scene = first.GetScene()
    node = output
    if node is None:
        name = scene.GenerateUniqueName(f"{first.GetName()} + {second.GetName()} {NOTE}")
        node = scene.AddNewNodeByClass(node_class(volume.rgb), name)
    try:
        put_voxels(node, volume)
    except BaseException:
        if output is None:
            scene.RemoveNode(node)
        raise
    if output is not None:
        if NOTE not in node.GetName():
            node.SetName(f"{node.GetName()}, {NOTE}")
        _forget_origin(node)
        _plain_display(slice_display(node), volume.rgb)
    # As it was at the start: the first one may have been moved or hardened since.
    node.SetAndObserveTransformNodeID(relation.parent if scene.GetNodeByID(relation.parent or "") else None)
    node.SetNodeReferenceID(FIRST, first.GetID())
    node.SetNodeReferenceID(SECOND, second.GetID())
    inputs = {"first": first.GetName(), "second": second.GetName()}
    node.SetAttribute(MARK, "1")
    set_report(node, {**report, "inputs": inputs})
    index = np.linalg.inv(relation.first_matrix) @ volume.ijk_to_physical
    places = [(relation.probe, relation.bent), *relation.others]
    state = {
        "first": np.round((_probe_points(volume.size_ijk) @ index.T)[:, :3], 4).tolist(),
        "second": [{"probe": np.round(probe, 4).tolist(), "bent": found} for probe, found in places],
    }
    state["left_handed"] = {"first": _left_handed(first), "second": _left_handed(second), "fused": _left_handed(node)}
    node.SetAttribute(RELATION, json.dumps(state))
    node.SetDescription(EXPORT_NOTE)
    node.RemoveAttribute(STALE)
    _place_in_hierarchy(node, first)
    return node


def _forget_origin(node: slicer.vtkMRMLVolumeNode) -> None:
    """An overwritten volume is no longer the series that it was loaded from, nor does it belong into that file."""
    names = vtk.vtkStringArray()
    node.GetAttributeNames(names)
    for name in [names.GetValue(n) for n in range(names.GetNumberOfValues())]:
        if name.startswith("DICOM."):
            node.RemoveAttribute(name)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    if item:
        for name in hierarchy.GetItemAttributeNames(item):
            if name.startswith("DICOM."):
                hierarchy.RemoveItemAttribute(item, name)
        hierarchy.SetItemUID(item, _constants().GetDICOMUIDName(), "")
    storage = node.GetStorageNode()
    if storage is not None:
        node.SetAndObserveStorageNodeID(None)
        node.GetScene().RemoveNode(storage)


def _plain_display(display: slicer.vtkMRMLVolumeDisplayNode, rgb: bool) -> None:
    """An overwritten volume's colours, threshold and inversion are not the fused one's."""
    if not rgb:
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    display.SetApplyThreshold(False)
    if hasattr(display, "SetInvertDisplayScalarRange"):
        display.SetInvertDisplayScalarRange(False)


def _place_in_hierarchy(node: slicer.vtkMRMLNode, first: slicer.vtkMRMLNode) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    if hierarchy is None:
        return
    item, beside = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(first)
    if not item:
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    if beside:
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(beside))


def is_fused(node: Any) -> bool:
    """True for a node made by `write_fused`."""
    return node is not None and node.GetAttribute(MARK) == "1"


def fused_nodes(scene: slicer.vtkMRMLScene) -> list[slicer.vtkMRMLVolumeNode]:
    """All fused volumes of the scene."""
    nodes = scene.GetNodesByClass("vtkMRMLVolumeNode")
    nodes.UnRegister(None)
    found = [nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())]
    return [node for node in found if is_fused(node)]


def report_of(node: slicer.vtkMRMLVolumeNode) -> dict[str, Any]:
    """What was reported of the fusion that made the node; empty if it does not say."""
    try:
        report = json.loads(node.GetAttribute(REPORT) or "{}")
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def set_report(node: slicer.vtkMRMLVolumeNode, report: dict[str, Any]) -> None:
    """What `report_of` is to give."""
    node.SetAttribute(REPORT, json.dumps(report))


# Checksums of voxels by node: counting 100 MB anew takes a tenth of a second.
_checksums: dict[str, tuple[tuple, int]] = {}


def checksum(node: slicer.vtkMRMLVolumeNode, flip: bool = False) -> int | None:
    """CRC-32 of the node's voxels as `fusion.fuse` reports it; None: no voxels. `flip`: slices from the other end."""
    image = node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image else None
    if scalars is None:
        return None
    # The array changes with arrayFromVolumeModified, the image when it is replaced.
    state = (image.GetMTime(), scalars.GetMTime(), flip)
    known = _checksums.get(node.GetID())
    if known is None or known[0] != state:
        voxels = vtk_to_numpy(scalars).reshape(image.GetDimensions()[2], -1)
        voxels = np.ascontiguousarray(voxels[::-1] if flip else voxels)
        known = _checksums[node.GetID()] = (state, zlib.crc32(voxels))
    return known[1]


def out_of_date(node: slicer.vtkMRMLVolumeNode) -> str | None:
    """Why the fused node no longer shows its inputs as they are now: a key of `errors.STALE`; None if it does."""
    first, second = node.GetNodeReference(FIRST), node.GetNodeReference(SECOND)
    if first is None or second is None:
        return "input_gone"
    try:
        state = json.loads(node.GetAttribute(RELATION) or "{}")
        return _difference(node, first, second, state, report_of(node).get("checksums") or {})
    except (ValueError, KeyError, TypeError):  # not written by this version
        return "transform_changed"


def _difference(node: Any, first: Any, second: Any, state: dict, checksums: dict) -> str | None:
    """What differs from the state at the fusion."""
    volumes = {"first": first, "second": second, "fused": node}
    flips = {name: state["left_handed"][name] and not _left_handed(volume) for name, volume in volumes.items()}
    probe = probe_between(first, second, flips["first"], flips["second"])
    found = _bent_content(first, second)
    if all(_moved(place["probe"], probe) or place["bent"] != found for place in state["second"]):
        return "transform_changed"
    if _moved(state["first"], probe_between(node, first, flips["fused"], flips["first"])):
        return "fused_moved"
    if any(checksum(volumes[name], flips[name]) != known for name, known in checksums.items()):
        return "voxels_changed"
    return None


def _moved(known: list, probe: np.ndarray) -> bool:
    return not np.abs(np.array(known, float) - probe).max() < SAME


def _left_handed(node: slicer.vtkMRMLVolumeNode) -> bool:
    """Slicer's reader turns the slices of a left-handed volume round, so that it comes back right-handed."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return bool(np.linalg.det(_array(matrix)) < 0)
