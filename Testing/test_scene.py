"""scene.py over real MRML: nodes to volumes, how they lie to each other, and the fused node in its place."""

import json
from dataclasses import replace

import numpy as np
import pytest
import slicer
import vtk

from ASFEFusionLib import bent, grids, scene
from ASFEFusionLib.errors import STALE, FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.volume import Volume


@pytest.fixture
def mrml():
    """A scene with a subject hierarchy and colours, as Slicer has it."""
    own = slicer.vtkMRMLScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(own)
    assert hierarchy is not None
    logic = slicer.vtkMRMLColorLogic()
    logic.SetMRMLScene(own)
    yield own
    logic.SetMRMLScene(None)
    own.Clear(True)


def add(mrml, volume, name=None):
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name or volume.name)
    scene.put_voxels(node, volume)
    return node


def transform(mrml, matrix, parent=None):
    """A linear transform node of a 4 x 4 (RAS, mm)."""
    node = mrml.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    vtk_matrix = vtk.vtkMatrix4x4()
    vtk_matrix.DeepCopy(np.asarray(matrix, float).ravel())
    node.SetMatrixTransformToParent(vtk_matrix)
    node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
    return node


def rigid(seed, shift=20.0):
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix[:3, :3] *= np.sign(np.linalg.det(matrix[:3, :3]))
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return matrix


def bend(mrml, amplitude=5.0):
    """A node with a smooth thin plate spline."""
    rng = np.random.default_rng(4)
    spline = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in rng.uniform(-110, 110, (16, 3)):
        source.InsertNextPoint(*point)
        target.InsertNextPoint(*(point + rng.normal(0, amplitude, 3)))
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    spline.SetBasisToR()
    node = mrml.AddNewNodeByClass("vtkMRMLTransformNode")
    node.SetAndObserveTransformToParent(spline)
    return node


def world(node, index):
    """Where a voxel lies in the world (RAS, mm)."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    point = np.array(matrix.MultiplyPoint([*index, 1.0]))[:3]
    parent = node.GetParentTransformNode()
    if parent is None:
        return point
    to_world = vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(to_world)
    return np.array(to_world.TransformPoint(point))


def fused_of(first, second, settings=None):
    relation = scene.relate(first, second)
    volume, report = fuse(
        scene.read_volume(first),
        relation.place(scene.read_volume(second)),
        settings,
        displacement=relation.displacement,
    )
    return scene.write_fused(volume, report.to_dict(), first, second, relation)


@pytest.fixture
def pair(mrml, heads):
    return add(mrml, heads["CT"]), add(mrml, heads["MR"])


def test_a_node_becomes_the_volume_that_it_was_made_of(mrml, heads):
    for seed, modality in enumerate(("CT", "MR", "PET")):
        tilted = heads[modality].ijk_to_physical.copy()
        tilted = rigid(seed) @ tilted @ np.diag([1, -1, 1, 1])  # left-handed
        volume = replace(heads[modality], ijk_to_physical=tilted)
        back = scene.read_volume(add(mrml, volume))
        assert np.array_equal(back.voxels, volume.voxels)
        assert np.abs(back.ijk_to_physical - tilted).max() < 1e-9
        assert back.name == volume.name


def test_reading_copies_nothing(pair):
    volume = scene.read_volume(pair[0])
    volume.voxels[0, 0, 0] = 1234
    assert pair[0].GetImageData().GetScalarComponentAsDouble(0, 0, 0, 0) == 1234


@pytest.mark.parametrize(
    "name", ["vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode", "vtkMRMLDiffusionTensorVolumeNode"]
)
def test_other_kinds_of_volume_are_refused(mrml, heads, name):
    node = mrml.AddNewNodeByClass(name, "odd one")
    node.SetAndObserveImageData(add(mrml, heads["CT"]).GetImageData())
    with pytest.raises(FusionError) as caught:
        scene.read_volume(node)
    assert caught.value.code == "node_kind"
    assert "odd one" in str(caught.value)


def test_no_node_and_no_voxels(mrml):
    empty = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    for node, code in ((None, "node_missing"), (empty, "node_empty")):
        with pytest.raises(FusionError) as caught:
            scene.read_volume(node)
        assert caught.value.code == code
    several = vtk.vtkImageData()
    several.SetDimensions(2, 2, 2)
    several.AllocateScalars(vtk.VTK_SHORT, 3)
    empty.SetAndObserveImageData(several)
    with pytest.raises(FusionError) as caught:
        scene.read_volume(empty)
    assert caught.value.code == "node_kind"


def tag(mrml, node, name, value):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    hierarchy.SetItemAttribute(item, name, value)


@pytest.mark.parametrize(
    ("dicom", "name", "expected"),
    [
        ("CT", "head", "CT"),
        ("MR", "head", "MR"),
        ("PT", "head", "PET"),
        ("NM", "head", "SPECT"),
        ("US", "head", "US"),
        ("XA", "head", "XA"),
        ("CT", "CBCT spine", "CBCT"),
        ("CT", "O-arm 3D", "CBCT"),
        ("", "head", None),
        ("SEG", "head", None),
        ("MR", "a cone beam of MR", "MR"),
    ],
)
def test_modality_comes_from_the_subject_hierarchy(mrml, heads, dicom, name, expected):
    node = add(mrml, heads["MR"], name)
    tag(mrml, node, "DICOM.Modality", dicom)
    assert scene.modality_of(node) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [("[hnsf'U]", "HU"), ("{SUVbw}g/ml", "SUV"), ("{SUVlbm}g/ml", "SUV"), ("Bq/ml", "Bq/mL"), ("mm", None), ("", None)],
)
def test_units_come_from_the_node(mrml, heads, code, expected):
    node = add(mrml, heads["PET"])
    if code:
        entry = slicer.vtkCodedEntry()
        entry.SetValueSchemeMeaning(code, "UCUM", "some units")
        node.SetVoxelValueUnits(entry)
    assert scene.units_of(node) == expected


class Database:
    """As slicer.dicomDatabase: what the file of an instance says."""

    isOpen = True  # noqa: N815 - as CTK names it

    def __init__(self, **tags):
        self.tags = {name.replace("_", ",")[1:]: value for name, value in tags.items()}

    def instanceValue(self, uid, name):  # noqa: N802
        return self.tags.get(name, "") if uid == "1.2.3" else ""


def test_the_dicom_database_tells_units_and_frame(mrml, heads, monkeypatch):
    node = add(mrml, heads["PET"])
    tag(mrml, node, "DICOM.Modality", "PT")
    node.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    monkeypatch.setattr(slicer, "dicomDatabase", Database(t0054_1001="BQML", t0020_0052="9.9"), raising=False)
    assert scene.units_of(node) == "Bq/mL"
    assert scene.frame_of_reference(node) == "9.9"
    monkeypatch.setattr(slicer, "dicomDatabase", Database(t0054_1001="GML"), raising=False)
    assert scene.units_of(node) == "SUV"
    assert scene.frame_of_reference(node) is None


def test_window_and_colours_as_shown(mrml, heads):
    node = add(mrml, heads["PET"])
    display = node.GetDisplayNode()
    display.SetWindowLevelMinMax(2.0, 9.0)
    assert scene.window_shown(node) == pytest.approx((2.0, 9.0))
    for name, usable in (("vtkMRMLColorTableNodeGrey", False), ("vtkMRMLColorTableNodeInvertedGrey", False)):
        display.SetAndObserveColorNodeID(name)
        assert (scene.colour_shown(node)[1] is not None) == usable
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileHotToColdRainbow.txt")
    warm = mrml.AddNewNodeByClass("vtkMRMLColorTableNode", "warm")
    warm.SetTypeToUser()
    warm.SetNumberOfColors(256)
    for n in range(256):
        warm.SetColor(n, str(n), n / 255, n / 510, 0.0)
    display.SetAndObserveColorNodeID(warm.GetID())
    name, table = scene.colour_shown(node)
    assert name == "warm"
    assert np.abs(table - np.linspace(0, 1, 256)[:, None] * [1, 0.5, 0]).max() < 0.01
    warm.SetColor(0, "bright", 1.0, 0.9, 0.8)
    assert scene.colour_shown(node)[1] is None


def test_the_relation_is_the_transform_between_the_parents(mrml, pair):
    ct, mr = pair
    outer = transform(mrml, rigid(1))
    ct.SetAndObserveTransformNodeID(transform(mrml, rigid(2), outer).GetID())
    mr.SetAndObserveTransformNodeID(transform(mrml, rigid(3), outer).GetID())
    relation = scene.relate(ct, mr)
    placed = relation.place(scene.read_volume(mr))
    # A voxel of the MR, seen from the CT's own space, lies where the world says.
    index = (10, 20, 5)
    in_ct = scene.LPS @ placed.ijk_to_physical @ [*index, 1.0]
    to_world = vtk.vtkMatrix4x4()
    ct.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    assert np.allclose(to_world.MultiplyPoint(in_ct)[:3], world(mr, index), atol=1e-6)
    assert relation.displacement is None


def test_a_bent_transform_becomes_a_displacement(mrml, pair):
    ct, mr = pair
    mr.SetAndObserveTransformNodeID(bend(mrml).GetID())
    ct.SetAndObserveTransformNodeID(transform(mrml, rigid(5, 5.0)).GetID())
    relation = scene.relate(ct, mr)
    assert relation.matrix is None
    grid = grids.grid_of(scene.read_volume(ct))
    at = relation.displacement.at(grid)
    rng = np.random.default_rng(2)
    between = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        ct.GetParentTransformNode(), mr.GetParentTransformNode(), between
    )
    for _ in range(50):
        i, j, k = (int(rng.integers(0, n)) for n in grid.size)
        point = (grid.matrix @ [i, j, k, 1.0])[:3]
        exact = np.array(between.TransformPoint(point * [-1, -1, 1])) * [-1, -1, 1]
        assert np.linalg.norm(point + at[k, j, i] - exact) < 0.6
    assert not relation.notices
    # Both under one bent parent lie straight to each other.
    ct.SetAndObserveTransformNodeID(mr.GetTransformNodeID())
    assert np.allclose(scene.relate(ct, mr).matrix, np.eye(4))


def test_a_transform_too_fine_to_follow_is_told(mrml, pair, monkeypatch):
    pair[1].SetAndObserveTransformNodeID(bend(mrml, 30.0).GetID())
    monkeypatch.setattr(bent, "STEPS", (32.0, 16.0))
    [notice] = scene.relate(*pair).notices
    assert notice.code == "transform_rough"


def test_a_transform_without_inverse_is_refused(mrml, pair):
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    for node in pair:
        node.SetAndObserveTransformNodeID(transform(mrml, flat).GetID())
        with pytest.raises(FusionError) as caught:
            scene.relate(*pair)
        assert caught.value.code == "transform_singular"
        node.SetAndObserveTransformNodeID(None)


def test_overlap_is_the_librarys_roughly(mrml, pair, heads):
    _, report = fuse(heads["CT"], heads["MR"])
    assert scene.overlap_share(*pair) == pytest.approx(report.overlap, abs=0.05)
    apart = np.eye(4)
    apart[0, 3] = 1000
    pair[1].SetAndObserveTransformNodeID(transform(mrml, apart).GetID())
    assert scene.overlap_share(*pair) == 0
    pair[1].SetAndObserveTransformNodeID(bend(mrml, 0.01).GetID())
    assert scene.overlap_share(*pair) == pytest.approx(report.overlap, abs=0.1)


def test_a_region_in_the_first_ones_space(mrml, pair):
    ct, _ = pair
    parent = transform(mrml, rigid(6))
    ct.SetAndObserveTransformNodeID(parent.GetID())
    roi = mrml.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    with pytest.raises(FusionError) as caught:
        scene.region_points(roi, ct)
    assert caught.value.code == "region_empty"
    centre = world(ct, (40, 30, 20))
    roi.SetCenterWorld(*centre)
    roi.SetSize(10, 20, 30)
    points = scene.region_points(roi, ct)
    inverse = np.linalg.inv(scene.read_volume(ct).ijk_to_physical)
    index = (np.c_[points, np.ones(27)] @ inverse.T)[:, :3]
    assert np.allclose(index.mean(0), (40, 30, 20), atol=1e-6)
    assert np.linalg.norm(points - points.mean(0), axis=1).max() == pytest.approx(np.sqrt(25 + 100 + 225))


def look(mrml, position, orientation="Axial"):
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(mrml, True)
    node = mrml.AddNewNodeByClass("vtkMRMLSliceNode")
    assert node.SetOrientation(orientation)
    node.JumpSlice(*position)
    return node


def test_a_quick_look_takes_the_grids_own_slice(mrml, heads):
    straight = np.diag([2.0, -2.0, 3.0, 1.0])
    ct = add(mrml, replace(heads["CT"], ijk_to_physical=straight))
    grid = grids.grid_of(scene.read_volume(ct))
    for k in (0, 7, grid.size[2] - 1):
        size, matrix = scene.slice_lattice(look(mrml, world(ct, (3, 4, k + 0.3))), ct, grid)
        assert size == (*grid.size[:2], 1)
        assert np.allclose(matrix @ [0, 0, 0, 1], grid.matrix @ [0, 0, k, 1])


def test_a_quick_look_in_another_plane(mrml, pair):
    ct, _ = pair
    ct.SetAndObserveTransformNodeID(transform(mrml, rigid(7)).GetID())
    grid = grids.grid_of(scene.read_volume(ct))
    at = world(ct, (40, 30, 20))
    node = look(mrml, at, "Sagittal")
    size, matrix = scene.slice_lattice(node, ct, grid)
    to_world = vtk.vtkMatrix4x4()
    ct.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    lattice = scene._array(to_world) @ scene.LPS @ matrix
    plane = np.linalg.inv(scene._array(node.GetSliceToRAS())) @ lattice
    assert abs(plane[2, 3]) < 1e-6  # in the plane of the view
    assert np.allclose(plane[2, :2], 0, atol=1e-6)
    found = np.linalg.inv(lattice) @ [*at, 1.0]
    assert (found[:2] > 0).all()
    assert (found[:2] < np.array(size[:2])).all()
    assert np.linalg.norm(matrix[:3, 0]) == pytest.approx(grid.spacing.min(), rel=0.01)


def test_quick_looks_that_cannot_be(mrml, pair):
    ct, _ = pair
    grid = grids.grid_of(scene.read_volume(ct))
    for node in (look(mrml, (0, 0, 900)), look(mrml, (900, 0, 0), "Sagittal")):
        with pytest.raises(FusionError) as caught:
            scene.slice_lattice(node, ct, grid)
        assert caught.value.code == "plane_outside"
    ct.SetAndObserveTransformNodeID(bend(mrml).GetID())
    with pytest.raises(FusionError) as caught:
        scene.slice_lattice(look(mrml, (0, 0, 0)), ct, grid)
    assert caught.value.code == "plane_bent"


# ---- the fused node --------------------------------------------------------------------------------------------------


def test_the_fused_node_lies_on_the_first_and_follows_it(mrml, pair):
    ct, mr = pair
    live = transform(mrml, rigid(8))
    ct.SetAndObserveTransformNodeID(live.GetID())
    mr.SetAndObserveTransformNodeID(live.GetID())
    fused = fused_of(ct, mr)
    for seed in (9, 10):
        moved = vtk.vtkMatrix4x4()
        moved.DeepCopy(rigid(seed).ravel())
        live.SetMatrixTransformToParent(moved)
        for index in ((0, 0, 0), (50, 40, 30)):
            assert np.allclose(world(fused, index), world(ct, index), atol=1e-6)
        assert scene.out_of_date(fused) is None
    assert fused.GetTransformNodeID() == live.GetID()


def test_class_units_display_and_notes_of_the_fused_node(mrml, heads, pair):
    from ASFEFusionLib.settings import FusionSettings

    ct, mr = pair
    grey = fused_of(ct, mr)
    assert grey.GetClassName() == "vtkMRMLScalarVolumeNode"
    assert grey.GetVoxelValueUnits() is None
    assert (grey.GetDisplayNode().GetWindow(), grey.GetDisplayNode().GetLevel()) == (1000, 500)
    coloured = fused_of(mr, add(mrml, heads["PET"]), FusionSettings(colour="hot"))
    assert coloured.GetClassName() == "vtkMRMLVectorVolumeNode"
    assert coloured.GetVoxelVectorType() == slicer.vtkMRMLVolumeNode.VoxelVectorTypeColorRGB
    assert (coloured.GetDisplayNode().GetWindow(), coloured.GetDisplayNode().GetLevel()) == (255, 127.5)
    for node in (grey, coloured):
        assert not node.GetDisplayNode().GetAutoWindowLevel()
        assert "fused, not for quantitation" in node.GetName()
        assert "DICOM" in node.GetDescription()
        report = scene.report_of(node)
        assert {"inputs", "windows", "versions", "weights_sha256", "warnings", "checksums", "note"} <= set(report)
    assert scene.report_of(grey)["inputs"] == {"first": ct.GetName(), "second": mr.GetName()}


def test_the_fused_node_is_beside_the_first_in_the_hierarchy(mrml, pair):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient")
    study = hierarchy.CreateStudyItem(patient, "Study")
    hierarchy.CreateItem(study, pair[0])
    fused = fused_of(*pair)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(fused)) == study


def state(node):
    """All of a volume node that a user could miss."""
    display, matrix = node.GetDisplayNode(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    names = vtk.vtkStringArray()
    node.GetAttributeNames(names)
    return (
        node.GetName(),
        node.GetTransformNodeID(),
        scene._array(matrix).tolist(),
        node.GetImageData().GetMTime(),
        scene.checksum(node),
        display.GetMTime(),
        [names.GetValue(n) for n in range(names.GetNumberOfValues())],
    )


def test_inputs_stay_as_they_are(mrml, pair):
    parents = [transform(mrml, rigid(n)) for n in (1, 2)]
    for node, parent in zip(pair, parents, strict=True):
        node.SetAndObserveTransformNodeID(parent.GetID())
    before, moments = [state(node) for node in pair], [parent.GetMTime() for parent in parents]
    fused_of(*pair)
    assert [state(node) for node in pair] == before
    assert [parent.GetMTime() for parent in parents] == moments


def test_an_output_is_overwritten_or_refused(mrml, heads, pair):
    ct, mr = pair
    fused = fused_of(ct, mr)
    relation = scene.relate(ct, mr)
    volume, report = fuse(heads["CT"], heads["MR"])
    again = scene.write_fused(
        replace(volume, voxels=volume.voxels + 1), report.to_dict(), ct, mr, relation, output=fused
    )
    assert again is fused
    assert scene.read_volume(fused).voxels[0, 0, 0] == volume.voxels[0, 0, 0] + 1
    other = add(mrml, heads["PET"], "mine")
    other.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeRainbow")
    other.GetDisplayNode().SetApplyThreshold(1)
    other.GetDisplayNode().SetInvertDisplayScalarRange(1)
    scene.write_fused(volume, report.to_dict(), ct, mr, relation, output=other)
    assert other.GetName() == "mine, fused, not for quantitation"
    display = other.GetDisplayNode()
    assert display.GetColorNodeID() == "vtkMRMLColorTableNodeGrey"
    assert not display.GetApplyThreshold()
    assert not display.GetInvertDisplayScalarRange()
    count = mrml.GetNumberOfNodes()
    rgb = Volume(np.zeros((2, 2, 2, 3), np.uint8), np.eye(4))
    for output, result, code in (
        (ct, volume, "node_is_input"),
        (mr, volume, "node_is_input"),
        (fused, rgb, "output_class"),
    ):
        with pytest.raises(FusionError) as caught:
            scene.write_fused(result, report.to_dict(), ct, mr, relation, output=output)
        assert caught.value.code == code
    assert mrml.GetNumberOfNodes() == count
    assert np.array_equal(scene.read_volume(ct).voxels, heads["CT"].voxels)


def shift(mrml, node, amount):
    matrix = np.eye(4)
    matrix[0, 3] = amount
    node.SetAndObserveTransformNodeID(transform(mrml, matrix).GetID())


def test_what_makes_a_fused_node_out_of_date(mrml, pair):
    ct, mr = pair
    fused = fused_of(ct, mr)
    assert scene.out_of_date(fused) is None
    shift(mrml, mr, 0.5)
    assert scene.out_of_date(fused) == "transform_changed"
    mr.SetAndObserveTransformNodeID(None)
    assert scene.out_of_date(fused) is None
    shift(mrml, fused, 0.5)
    assert scene.out_of_date(fused) == "fused_moved"
    fused.SetAndObserveTransformNodeID(None)
    voxels = scene.read_volume(mr).voxels
    voxels[5, 5, 5] += 1
    mr.GetImageData().GetPointData().GetScalars().Modified()
    mr.GetImageData().Modified()
    assert scene.out_of_date(fused) == "voxels_changed"
    voxels[5, 5, 5] -= 1
    mr.GetImageData().GetPointData().GetScalars().Modified()
    assert scene.out_of_date(fused) is None
    mr.SetSpacing(1.0, 1.0, 1.0)
    assert scene.out_of_date(fused) == "transform_changed"
    mrml.RemoveNode(mr)
    assert scene.out_of_date(fused) == "input_gone"
    of_alignments = {"transform_edited", "geometry_changed"}
    assert set(STALE) - of_alignments == {"transform_changed", "fused_moved", "voxels_changed", "input_gone"}


def test_a_bent_relation_is_watched_too(mrml, pair):
    ct, mr = pair
    node = bend(mrml)
    mr.SetAndObserveTransformNodeID(node.GetID())
    fused = fused_of(ct, mr)
    assert scene.out_of_date(fused) is None
    node.SetAndObserveTransformToParent(bend(mrml, 8.0).GetTransformToParent())
    assert scene.out_of_date(fused) == "transform_changed"


def test_a_scene_keeps_it_all(mrml, heads, pair, tmp_path):
    from ASFEFusionLib.settings import FusionSettings

    ct, mr = pair
    parent = transform(mrml, rigid(11))
    ct.SetAndObserveTransformNodeID(parent.GetID())
    mr.SetAndObserveTransformNodeID(parent.GetID())
    pet = add(mrml, heads["PET"])
    pet.SetAndObserveTransformNodeID(parent.GetID())
    nodes = [fused_of(ct, mr), fused_of(mr, pet, FusionSettings(colour="hot"))]
    kept = [(n.GetName(), n.GetClassName(), scene.report_of(n)) for n in nodes]
    voxels = [vtk.util.numpy_support.vtk_to_numpy(n.GetImageData().GetPointData().GetScalars()).copy() for n in nodes]
    for volume in (ct, mr, pet, *nodes):
        volume.AddDefaultStorageNode()
    (tmp_path / "saved").mkdir()
    assert mrml.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "saved"), None)
    again = slicer.vtkMRMLScene()
    [file] = (tmp_path / "saved").glob("*.mrml")
    again.SetURL(str(file))
    assert again.Connect()
    loaded = sorted(scene.fused_nodes(again), key=lambda n: n.GetClassName())
    assert [(n.GetName(), n.GetClassName(), scene.report_of(n)) for n in loaded] == kept
    for node, values in zip(loaded, voxels, strict=True):
        assert np.array_equal(
            vtk.util.numpy_support.vtk_to_numpy(node.GetImageData().GetPointData().GetScalars()), values
        )
        assert scene.out_of_date(node) is None
        assert json.loads(node.GetAttribute(scene.REPORT))
        assert node.GetParentTransformNode() is not None
    assert loaded[1].GetVoxelVectorType() == slicer.vtkMRMLVolumeNode.VoxelVectorTypeColorRGB
    assert loaded[1].GetDisplayNode().GetWindow() == 255
    matrix = np.eye(4)
    matrix[1, 3] = 3
    one = again.GetFirstNodeByName(mr.GetName())
    one.SetAndObserveTransformNodeID(transform(again, matrix).GetID())
    assert [scene.out_of_date(n) for n in loaded] == ["transform_changed"] * 2
    again.Clear(True)


def test_a_volume_whose_first_display_is_a_rendering(mrml, heads, pair):
    """It is overwritten all the same, and read without getting a display of its own."""
    other = add(mrml, heads["PET"], "rendered")
    mrml.RemoveNode(other.GetDisplayNode())
    assert scene.window_shown(other) is None
    assert scene.colour_shown(other) == ("", None)
    rendering = mrml.AddNode(slicer.vtkMRMLGPURayCastVolumeRenderingDisplayNode())
    other.AddAndObserveDisplayNodeID(rendering.GetID())
    assert scene.window_shown(other) is None
    assert other.GetNumberOfDisplayNodes() == 1
    ct, mr = pair
    volume, report = fuse(heads["CT"], heads["MR"])
    scene.write_fused(volume, report.to_dict(), ct, mr, scene.relate(ct, mr), output=other)
    assert scene.slice_display(other).GetWindow() == 1000
    assert rendering in [other.GetNthDisplayNode(n) for n in range(2)]


def test_nothing_half_written(mrml, heads, pair, monkeypatch):
    ct, mr = pair
    volume, report = fuse(heads["CT"], heads["MR"])
    relation = scene.relate(ct, mr)
    output = add(mrml, heads["PET"], "mine")
    before, count = state(output), mrml.GetNumberOfNodes()

    def full(*_arguments, **_settings):
        raise MemoryError

    monkeypatch.setattr(scene, "numpy_to_vtk", full)
    for node in (None, output):
        with pytest.raises(MemoryError):
            scene.write_fused(volume, report.to_dict(), ct, mr, relation, output=node)
    assert mrml.GetNumberOfNodes() == count
    assert state(output) == before


def bump(mrml, centre, size=8.0, radius=12.0):
    """A grid transform of 2 mm with one smooth local bend (RAS)."""
    counts, step = (110, 110, 90), 2.0
    origin = np.array([-110.0, -110.0, -60.0])
    k, j, i = np.meshgrid(*(np.arange(n) for n in counts[::-1]), indexing="ij")
    points = np.stack([i, j, k], -1) * step + origin
    weight = np.exp(-((points - centre) ** 2).sum(-1) / (2 * (radius / 2) ** 2))
    image = vtk.vtkImageData()
    image.SetDimensions(*counts)
    image.SetOrigin(*origin)
    image.SetSpacing(step, step, step)
    vectors = (weight[..., None] * [size, 0, 0]).astype(np.float64).reshape(-1, 3)
    image.GetPointData().SetScalars(vtk.util.numpy_support.numpy_to_vtk(vectors, deep=True))
    grid = slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(image)
    grid.SetInterpolationModeToCubic()
    node = mrml.AddNewNodeByClass("vtkMRMLGridTransformNode")
    node.SetAndObserveTransformFromParent(grid)
    return node


def test_a_local_bend_is_followed(mrml, pair):
    """No point of the lattice may be the only one that a bend of 12 mm touches."""
    ct, mr = pair
    for centre in ((0.0, 10.0, 30.0), (23.0, -14.0, 17.0), (-31.0, 5.0, 51.0)):
        node = bump(mrml, np.array(centre))
        mr.SetAndObserveTransformNodeID(node.GetID())
        relation = scene.relate(ct, mr)
        between = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, node, between)
        lattice = grids.Grid((13, 13, 13), np.diag([2.0, 2.0, 2.0, 1.0]))
        lattice.matrix[:3, 3] = np.array(centre) * [-1, -1, 1] - 12
        at = relation.displacement.at(lattice)
        index = np.moveaxis(np.indices((13, 13, 13))[::-1], 0, -1).reshape(-1, 3)
        points = index * 2.0 + lattice.matrix[:3, 3]
        exact = np.array([between.TransformPoint(p * [-1, -1, 1]) for p in points]) * [-1, -1, 1] - points
        assert np.linalg.norm(exact, axis=1).max() > 6
        assert np.linalg.norm(at.reshape(-1, 3) - exact, axis=1).max() < 0.6


def test_a_local_change_of_a_bend_is_seen(mrml, pair):
    ct, mr = pair
    node = bump(mrml, np.array([0.0, 10.0, 30.0]))
    mr.SetAndObserveTransformNodeID(node.GetID())
    fused = fused_of(ct, mr)
    assert scene.out_of_date(fused) is None
    other = bump(mrml, np.array([7.0, 3.0, 38.0]))
    node.SetAndObserveTransformFromParent(other.GetTransformFromParent())
    assert scene.out_of_date(fused) == "transform_changed"


def test_a_first_volume_hardened_meanwhile(mrml, pair):
    """The fused volume lies where the first one was at the start, and says nothing wrong."""
    ct, mr = pair
    live = transform(mrml, rigid(12))
    for node in pair:
        node.SetAndObserveTransformNodeID(live.GetID())
    relation = scene.relate(ct, mr)
    volume, report = fuse(scene.read_volume(ct), relation.place(scene.read_volume(mr)))
    before = world(ct, (50, 40, 30))
    ct.HardenTransform()
    assert np.allclose(world(ct, (50, 40, 30)), before)
    fused = scene.write_fused(volume, report.to_dict(), ct, mr, relation)
    assert np.allclose(world(fused, (50, 40, 30)), before)
    assert scene.out_of_date(fused) is None
    # And where the first one really moved, that is told.
    ct.SetSpacing(1.0, 1.0, 1.0)
    assert scene.out_of_date(fused) is not None


def test_an_overwritten_ct_is_one_no_more(mrml, heads, pair):
    ct, mr = pair
    old = add(mrml, heads["CT"], "old CT")
    tag(mrml, old, "DICOM.Modality", "CT")
    old.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    old.AddDefaultStorageNode()
    old.GetStorageNode().SetFileName("patient.nrrd")
    volume, report = fuse(heads["CT"], heads["MR"])
    scene.write_fused(volume, report.to_dict(), ct, mr, scene.relate(ct, mr), output=old)
    assert scene.modality_of(old) is None
    assert old.GetAttribute("DICOM.instanceUIDs") is None
    assert old.GetStorageNode() is None
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)
    assert not hierarchy.GetItemAttribute(hierarchy.GetItemByDataNode(old), "DICOM.Modality")


def test_axes_that_span_no_space(mrml, pair):
    flat = vtk.vtkMatrix4x4()
    flat.SetElement(2, 2, 0.0)
    pair[1].SetIJKToRASMatrix(flat)
    with pytest.raises(FusionError) as caught:
        scene.read_volume(pair[1])
    assert caught.value.code == "geometry_unusable"
