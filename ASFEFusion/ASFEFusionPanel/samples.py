"""The synthetic head as sample data: made on the spot, so no network is needed."""

from __future__ import annotations

import os
from typing import Any

import slicer
from slicer.i18n import tr as _

CATEGORY = "ASFEFusion"
SAMPLES = {
    "ASFEFusionHeadCTMR": ("CT", "MR"),
    "ASFEFusionHeadMRPET": ("MR", "PET"),
}
UNITS = {"HU": ("[hnsf'U]", "Hounsfield unit"), "SUV": ("{SUVbw}g/ml", "Standardized Uptake Value body weight")}


def registerSampleData(icons: str) -> None:
    """Adds the samples to the Sample Data module. `icons`: folder of the thumbnails."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataCategory(CATEGORY, title=_("Image fusion (ASFE-Fusion)"))
    for name, modalities in SAMPLES.items():
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=name,
            # Nothing is downloaded: SampleData.downloadSample gives nothing either, see `loadSample`.
            nodeNames=[],
            fileNames=[],
            uris=[],
            thumbnailFileName=os.path.join(icons, f"{name}.png"),
            customDownloader=loadSample,
        )
        source = slicer.modules.sampleDataSources[CATEGORY][-1]
        source.sampleDescription = _("Synthetic head: {modalities}").format(modalities=" + ".join(modalities))


def loadSample(source: Any) -> list[Any]:
    """Makes the volumes of a sample; also called by the Sample Data module with the source of its button."""
    name = source if isinstance(source, str) else source.sampleName
    nodes = [makeHead(modality) for modality in SAMPLES[name]]
    slicer.util.setSliceViewerLayers(background=nodes[0], foreground=nodes[1], foregroundOpacity=0.5, fit=True)
    return nodes


def makeHead(modality: str) -> Any:
    """A volume node of the synthetic head as "CT", "MR" or "PET", with modality, units and window."""
    from ASFEFusionLib import intensity, phantom, scene

    volume = phantom.head(modality)
    node = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLScalarVolumeNode", slicer.mrmlScene.GenerateUniqueName(_nodeName(modality))
    )
    scene.put_voxels(node, volume)
    if volume.units in UNITS:
        code, meaning = UNITS[volume.units]
        entry = slicer.vtkCodedEntry()
        entry.SetValueSchemeMeaning(code, "UCUM", meaning)
        node.SetVoxelValueUnits(entry)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    tag = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    hierarchy.SetItemAttribute(item, tag, {"PET": "PT"}.get(modality, modality))
    display = node.GetDisplayNode()
    window = intensity.automatic_window(volume, modality, "MR")
    display.SetWindowLevelMinMax(window.low, window.high)
    if modality == "PET":
        display.SetWindowLevelMinMax(0.0, 15.0)  # SUV: the lesion is hotter than the brain, and must look so
        display.SetAndObserveColorNodeID(
            slicer.modules.colors.logic().GetPETColorNodeID(slicer.vtkMRMLPETProceduralColorNode.PETheat)
        )
    return node


def _nodeName(modality: str) -> str:
    return f"Head{modality}"
