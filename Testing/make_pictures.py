"""Makes the README's pictures of panel and views, over the test host: python Testing/make_pictures.py [FOLDER]

The panel is real Qt, the slices are what Slicer's slice logic makes of the nodes, the volume rendering is VTK's with
the properties that the module's own button set.
"""

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT)]
SIZE = 300
VIEWS = ("Red", "Green", "Yellow")


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "Resources" / "Screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    import host

    application = host.start()
    widget = host.openModule(host.loadModule(ROOT / "ASFEFusion" / "ASFEFusion.py"))
    import slicer

    from ASFEFusionPanel.samples import loadSample

    ct, mr = loadSample("ASFEFusionHeadCTMR")
    widget.initializeParameterNode()
    fused = run(widget, application)
    panel = widget.parent
    panel.resize(440, 720)
    panel.show()
    for _ in range(20):
        application.processEvents()
        time.sleep(0.02)
    panel.grab().save(str(folder / "panel.png"))
    loadSample("ASFEFusionHeadMRPET")
    pet = slicer.util.getNode("HeadPET")
    widget._parameterNode.firstVolume, widget._parameterNode.secondVolume = mr, pet
    widget._parameterNode.secondWindow = "displayed"
    coloured = run(widget, application)
    rows = [(ct, "CT"), (mr, "MR"), (fused, "CT + MR fused"), (pet, "PET"), (coloured, "MR + PET fused")]
    columns = [[label(slice_of(node, view), name) for view in VIEWS] for node, name in rows]
    columns[2].append(rendering(widget, fused))
    columns[4].append(rendering(widget, coloured))
    empty = np.zeros((SIZE, SIZE, 3), np.uint8)
    columns = [[*column, *[empty] * (4 - len(column))] for column in columns]
    picture = np.concatenate([np.concatenate(column) for column in columns], axis=1)
    Image.fromarray(picture).quantize(256).save(folder / "views.png", optimize=True)
    widget.cleanup()
    assert not host.problems, host.problems


def run(widget, application):
    """The fused node of what is chosen."""
    widget.panel.update()
    widget.ui.applyButton.click()
    while widget.logic.busy:
        application.processEvents()
        time.sleep(0.01)
    application.processEvents()
    print(widget.ui.resultLabel.text)
    return widget._parameterNode.fusedVolume


def slice_of(node, view):
    """The node in a slice view through the middle of the lesion, (SIZE, SIZE, 3) uint8."""
    import slicer
    from vtk.util.numpy_support import vtk_to_numpy

    from ASFEFusionLib import phantom

    slice_widget = slicer.app.layoutManager().sliceWidget(view)
    logic, slice_node = slice_widget.sliceLogic(), slice_widget.mrmlSliceNode()
    composite = slice_widget.mrmlSliceCompositeNode()
    composite.SetBackgroundVolumeID(node.GetID())
    composite.SetForegroundVolumeID(None)
    logic.ResizeSliceNode(SIZE, SIZE)
    slice_node.SetFieldOfView(235, 235, 1)
    x, y, z = phantom.LESION_CENTRE
    slice_node.JumpSlice(-x, -y, z)
    slice_node.JumpSliceByCentering(-2.0, 5.0, 40.0) if view == "Red" else slice_node.JumpSliceByCentering(-2, 10, 25)
    slice_node.JumpSlice(-x, -y, z)
    logic.UpdatePipeline()
    connection = logic.GetImageDataConnection()
    connection.GetProducer().Update()
    image = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
    width, height, _ = image.GetDimensions()
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    values = values.astype(np.uint16)
    if values.shape[2] == 4:  # where there is no volume, the view's black shows through
        values = values[..., :3] * values[..., 3:] // 255
    return np.ascontiguousarray(values[::-1, :, :3].astype(np.uint8))


def label(picture, text):
    """The picture with a line at its top."""
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((8, 6), text, fill=(255, 220, 90), font_size=15)
    return np.asarray(image)


def rendering(widget, node):
    """The volume rendering of the node from the front right, (SIZE, SIZE, 3) uint8."""
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    widget._parameterNode.fusedVolume = node
    widget.ui.renderButton.click()
    display = slicer.modules.volumerendering.logic().GetFirstVolumeRenderingDisplayNode(node)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    mapper = vtk.vtkGPUVolumeRayCastMapper()
    image = node.GetImageData()
    if image.GetNumberOfScalarComponents() == 3:  # as Slicer does: the luminance is the opacity
        grey = vtk.vtkImageLuminance()
        grey.SetInputData(image)
        merge = vtk.vtkImageAppendComponents()
        merge.AddInputData(image)
        merge.AddInputConnection(grey.GetOutputPort())
        merge.Update()
        image = merge.GetOutput()
    mapper.SetInputData(image)
    volume = vtk.vtkVolume()
    volume.SetMapper(mapper)
    volume.SetUserMatrix(matrix)
    properties = vtk.vtkVolumeProperty()
    properties.DeepCopy(display.GetVolumePropertyNode().GetVolumeProperty())
    if image.GetNumberOfScalarComponents() == 4:
        properties.IndependentComponentsOff()
    volume.SetProperty(properties)
    renderer = vtk.vtkRenderer()
    renderer.AddVolume(volume)
    camera = renderer.GetActiveCamera()
    camera.SetPosition(-0.7, 1.0, 0.25)
    camera.SetFocalPoint(0, 0, 0)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Zoom(1.5)
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetSize(SIZE, SIZE)
    window.AddRenderer(renderer)
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.Update()
    values = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(SIZE, SIZE, 3)
    return np.ascontiguousarray(values[::-1])


if __name__ == "__main__":
    main()
