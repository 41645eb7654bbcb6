"""An alignment as nodes of a scene: its transform, the points that it began with, the markers of right and left.

Like `scene`, but for nodes alone: nothing here imports Slicer. Slicer's frame is RAS, the library's LPS.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import vtk

from .alignment import landmarks
from .errors import STALE, FusionError
from .scene import FIRST, LPS, SECOND, Relation, is_fused, matrix_between, read_volume, report_of, set_report
from .settings import Notice

# Attribute of a transform node that came out of an alignment; reference from the fused volume to it.
ALIGNMENT, TRANSFORM = "ASFEFusion.Alignment", "ASFEFusion.Transform"
# Reference from a transform that was put to use to the one that was above the second volume before.
BEFORE = "ASFEFusion.Before"
# How far from the middle to the side of a volume's box its markers lie.
ASIDE = 0.8


def landmark_matrix(first: Any, second: Any, points: tuple[Any, Any]) -> tuple[np.ndarray, list[Notice]]:
    """4 x 4, the second volume node's own space to the first's (LPS mm), from a markups node placed on each; doubts.

    The points are where they are seen, with the transforms of today. FusionError "landmarks_few",
    "landmarks_unpaired", "landmarks_bent" (a volume is under a transform that bends).
    """
    placed = []
    for volume, markups in zip((first, second), points, strict=True):
        to_own = matrix_between(None, volume.GetParentTransformNode())
        if to_own is None:
            raise FusionError("landmarks_bent", name=volume.GetName())
        found = []
        for n in range(markups.GetNumberOfControlPoints()):
            point = [0.0] * 3
            markups.GetNthControlPointPositionWorld(n, point)
            there = markups.GetNthControlPointPositionStatus(n) == markups.PositionDefined
            found.append((LPS @ to_own @ [*point, 1.0])[:3] if there else [np.nan] * 3)
        placed.append(np.array(found).reshape(-1, 3))
    matrix, left = landmarks.rigid(*placed)
    doubt = landmarks.doubt(left)
    return np.linalg.inv(matrix), [doubt] if doubt else []


def write_transform(
    first: Any, second: Any, relation: Relation, alignment: dict[str, Any], inputs: list | None = None
) -> Any:
    """A new linear transform node: above the second volume, it lays it on the first one.

    It lies under the first one's parent transform, so that it follows the first one too. `relation`: how the two lay
    when `alignment` (`Alignment.to_dict()`) was found. `inputs`: plain values, to know again of what it is.
    """
    scene = first.GetScene()
    name = scene.GenerateUniqueName(f"{second.GetName()} to {first.GetName()}")
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy((LPS @ laid(relation, alignment) @ LPS).ravel())
    node.SetMatrixTransformToParent(matrix)
    node.SetAndObserveTransformNodeID(relation.parent if scene.GetNodeByID(relation.parent or "") else None)
    node.SetNodeReferenceID(FIRST, first.GetID())
    node.SetNodeReferenceID(SECOND, second.GetID())
    places = {"first": relation.first_matrix, "second": relation.second_matrix, "node": _matrix(node)}
    state = {name: place.round(4).tolist() for name, place in places.items()}
    node.SetAttribute(ALIGNMENT, json.dumps({**alignment, "inputs": inputs, "places": state}))
    return node


def _matrix(node: Any) -> np.ndarray:
    """4 x 4 of a linear transform node, to its parent (RAS mm)."""
    matrix = vtk.vtkMatrix4x4()
    node.GetMatrixTransformToParent(matrix)
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def outdated(node: Any) -> str | None:
    """Why the transform no longer lays the second volume where the alignment found it: a key of `errors.STALE`."""
    first, second = pair_of(node)
    if first is None or second is None:
        return "input_gone"
    known = alignment_of(node).get("places", {})
    now = {"node": _matrix(node), "first": _place(first), "second": _place(second)}
    for name, why in (("node", "transform_edited"), ("first", "geometry_changed"), ("second", "geometry_changed")):
        if name not in known or now[name] is None or np.abs(np.array(known[name]) - now[name]).max() > 1e-3:
            return why
    return None


def _place(node: Any) -> np.ndarray | None:
    try:
        return read_volume(node).ijk_to_physical
    except FusionError:
        return None


def laid(relation: Relation, alignment: dict[str, Any]) -> np.ndarray:
    """4 x 4, the second's own space to the first's (LPS mm), with the alignment."""
    return np.linalg.inv(np.array(alignment["matrix"])) @ relation.matrix


def apply(node: Any) -> None:
    """Puts the second volume of the alignment under its transform, and that under what is above the first one now.

    FusionError "node_gone", "alignment_old" (a volume was hardened or changed since, or the transform edited).
    """
    first, second = pair_of(node)
    if first is None or second is None:
        raise FusionError("node_gone")
    why = outdated(node)
    if why:
        raise FusionError("alignment_old", name=node.GetName(), why=STALE[why])
    if first.GetTransformNodeID() != node.GetID():
        node.SetAndObserveTransformNodeID(first.GetTransformNodeID())
    before = second.GetTransformNodeID()
    if before != node.GetID():
        node.SetNodeReferenceID(BEFORE, before)
        second.SetAndObserveTransformNodeID(node.GetID())


def remove(node: Any) -> None:
    """Puts it back under the transform that was above it before. FusionError "node_gone"."""
    second = node.GetNodeReference(SECOND)
    if second is None:
        raise FusionError("node_gone")
    if is_applied(node):
        second.SetAndObserveTransformNodeID(node.GetNodeReferenceID(BEFORE))


def pair_of(node: Any) -> tuple[Any, Any]:
    """First and second volume of the alignment; None for one that is gone."""
    return node.GetNodeReference(FIRST), node.GetNodeReference(SECOND)


def is_applied(node: Any) -> bool:
    """The second volume of the alignment lies under its transform."""
    second = node and node.GetNodeReference(SECOND)
    return second is not None and second.GetTransformNodeID() == node.GetID()


def alignment_of(node: Any) -> dict[str, Any]:
    """What was found when the transform node was made; empty if it is not from an alignment."""
    try:
        found = json.loads((node and node.GetAttribute(ALIGNMENT)) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def confirmed(alignment: dict[str, Any]) -> dict[str, Any]:
    """The same, after a person has seen that right is right: trusted, if that was the only doubt."""
    others = [reason for reason in alignment["reasons"] if reason["code"] != "align_any"]
    return {**alignment, "confirmed": True, "reasons": others, "trusted": not others}


def to_confirm(alignment: dict[str, Any]) -> bool:
    """All orientations were searched, and nobody has confirmed the result yet."""
    return any(reason["code"] == "align_any" for reason in alignment.get("reasons", []))


def unconfirmed_above(node: Any) -> bool:
    """A transform that still waits to be confirmed is this node or above it."""
    while node is not None:
        if to_confirm(alignment_of(node)):
            return True
        node = node.GetParentTransformNode()
    return False


def doubted(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the doubt that a search of all orientations leaves, if it has it not yet."""
    found, doubt = report.get("alignment"), Notice("align_any")
    if to_confirm(found or {}):
        return report
    plain = {"code": doubt.code, "facts": {}, "text": str(doubt)}
    if found:
        found = {**found, "trusted": False, "reasons": [*found["reasons"], plain]}
    return {**report, "alignment": found, "warnings": [*report.get("warnings", []), plain]}


def confirm(node: Any) -> None:
    """Notes in the transform node, and in the fused volumes made with it, that a person has confirmed the sides."""
    node.SetAttribute(ALIGNMENT, json.dumps(confirmed(alignment_of(node))))
    nodes = node.GetScene().GetNodesByClass("vtkMRMLVolumeNode")
    nodes.UnRegister(None)
    for n in range(nodes.GetNumberOfItems()):
        fused = nodes.GetItemAsObject(n)
        if is_fused(fused) and fused.GetNodeReferenceID(TRANSFORM) == node.GetID():
            report = report_of(fused)
            if report.get("alignment", {}).get("reasons") is not None:
                report["alignment"] = confirmed(report["alignment"])
                report["warnings"] = [w for w in report["warnings"] if w["code"] != "align_any"]
                set_report(fused, report)


def mark_sides(first: Any, second: Any, node: Any, words: tuple[str, str]) -> Any:
    """A markups node with the right and left side of each volume, as their own headers have it, where they lie now.

    `node`: see `write_transform`; `words`: for right and left. A person compares them with
    the pictures: a near-symmetric head fits turned round, too.
    """
    scene = first.GetScene()
    markers = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", f"{words[0]}/{words[1]}: {node.GetName()}")
    for volume, to_first in ((first, np.eye(4)), (second, LPS @ _matrix(node) @ LPS)):
        box = read_volume(volume)
        corners = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in box.size_ijk))).reshape(3, -1)
        x, *_ = box.ijk_to_physical[:3] @ np.vstack([corners, np.ones(8)])
        middle = box.ijk_to_physical @ [*((n - 1) / 2 for n in box.size_ijk), 1.0]
        for word, side in zip(words, (-1, 1), strict=True):  # LPS: x grows to the patient's left
            point = middle + np.array([side * ASIDE * np.ptp(x) / 2, 0, 0, 0])
            markers.AddControlPoint(*(LPS @ to_first @ point)[:3].tolist(), f"{word} {volume.GetName()}")
    markers.SetLocked(True)
    markers.SetAndObserveTransformNodeID(first.GetTransformNodeID())
    markers.CreateDefaultDisplayNodes()
    display = markers.GetDisplayNode()
    if display is not None:
        display.SetSliceProjection(True)
        display.SetTextScale(3.0)
    return markers
