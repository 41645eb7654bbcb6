"""The library speaks in codes and facts; here they become sentences in the language of the application."""

from __future__ import annotations

from slicer.i18n import tr as _

from ASFEFusionLib import errors


def _errorTexts() -> dict[str, str]:
    return {
        "node_missing": _("There are not two volumes: load or choose them first."),
        "node_same": _("{name} is chosen twice: choose two different volumes."),
        "node_kind": _("{name} is a {kind}, which cannot be fused: choose a scalar volume."),
        "node_empty": _("{name} has no voxels: load it again, or choose another volume."),
        "node_gone": _("A volume of this run was removed from the scene, so the run was stopped."),
        "node_is_input": _("{name} is one of the two inputs: choose another output volume."),
        "output_class": _("{name} cannot hold a {kind} volume: choose a new volume as output."),
        "transform_singular": _("The transforms of {first} and {second} have no inverse: correct them in Transforms."),
        "resample_failed": _("{name} could not be brought onto the grid: its voxels are far smaller or larger."),
        "region_empty": _("The region of interest {name} has no size: place it in the views, or choose None."),
        "region_outside": _("The region of interest lies beyond {name}: move it there, or choose None."),
        "plane_outside": _("The slice in view does not touch {name}: scroll to it, then press Quick look again."),
        "plane_bent": _("{name} is under a non-linear transform, which one slice cannot show: press Apply instead."),
        "units_unknown": _("{preset} is meant for {units} and {name} does not say its units: choose another window."),
        "no_overlap": _("{first} and {second} do not meet in space: check their transforms, or align them first."),
        "geometry_unusable": _("{path} has axes that span no space: correct its geometry in Volumes."),
        "geometry_sheared": _("{path} lies on a sheared grid: choose the grid of the other volume, or resample it."),
        "voxels_unusable": _("{path} holds voxels of a kind that is not handled ({type}): convert it first."),
        "align_bent": _("{name} is under a non-linear transform: choose As loaded, or remove it to align."),
        "align_flat": _("{name} has too few slices, rows or columns to be aligned: align it by hand."),
        "align_apart": _("{first} and {second} could not be brought over each other: begin with landmarks."),
        "landmarks_few": _("{count} pairs of landmarks do not fix a pose: place three or more, not on one line."),
        "landmarks_unpaired": _("There are {first} and {second} landmarks: place them in pairs, in the same order."),
        "landmarks_one": _("Landmarks are needed on both volumes: choose two lists of points, one for each."),
        "alignment_old": _("{name} no longer fits the volumes as they are: align them again."),
        "landmarks_bent": _("{name} is under a non-linear transform: landmarks do not lay it."),
        "transform_not_rigid": _("{path} does more than turn and shift: choose As loaded to use it as it is."),
        "volume_constant": _("{name} has the same value in every voxel: choose a volume that shows something."),
        "volume_nan": _("{name} holds no number in any voxel: load it again."),
        "grid_too_large": _("A result of {size} voxels would need {gigabytes} GB: choose another grid or a region."),
        "grid_memory": _(
            "A result of {size} voxels would need {gigabytes} GB of {there} GB there are: choose a grid or region."
        ),
        "grid_bent": _("{name} is under a non-linear transform, so its grid is bent: choose the first one's grid."),
        "window_units": _("{preset} is meant for {units}, and {name} has {has}: choose another window."),
        "window_empty": _("A window from {low} to {high} is empty: set the window of the display again."),
        "window_unknown": _("{value} is no window: choose one of {choices}."),
        "colour_unknown": _("{value} is no colour map: choose another one."),
        "setting_unknown": _("{name} cannot be {value}: choose one of {choices}."),
        "torch_missing": _("PyTorch is not installed: press Apply, and it is installed through the PyTorch extension."),
        "torch_old": _(
            "PyTorch {version} is too old: update it to {needed} in the PyTorch Utils module, then restart."
        ),
        "torch_numpy": _(
            "PyTorch {torch} does not fit numpy {numpy}: uninstall it in PyTorch Utils, restart, press Apply again."
        ),
        "torch_install": _("PyTorch could not be installed ({why}): see to the network and the free space."),
        "torch_broken": _(
            "PyTorch cannot be loaded ({why}): uninstall it in PyTorch Utils, restart, press Apply again."
        ),
        "device_missing": _("This computer has no {device} device: choose Automatic or CPU."),
        "memory_out": _("The memory of {device} does not suffice: choose a region, another grid, or the CPU."),
        "weights_missing": _("The network's weights are missing ({path}): install the extension again."),
        "weights_damaged": _("The network's weights are damaged ({path}): install the extension again."),
        "weights_other": _("{path} holds no weights for this network: choose other ones."),
        "weights_incomplete": _("{path} lacks {count} parts of the network ({names}): get the whole file."),
        "exchange_failed": _("Volumes could not be handed over through {path}: free some space on that disk."),
        "run_busy": _("A run is under way: wait for it, or cancel it."),
        "child_died": _("The process that fuses has ended by itself (code {code}): try a region, or the CPU."),
        "child_missing": _("{program} could not be started: repair the installation of Slicer."),
        "run_failed": _("The fusion failed ({why}): the details tell more."),
    }


def _warningTexts() -> dict[str, str]:
    return {
        "not_finite": _("{count} voxels of {name} are no numbers and were taken as background."),
        "little_overlap": _("The two volumes share only {percent} % of the smaller one's space: check the alignment."),
        "modality_unknown": _("The modality of {name} is not known: choose it, so that its window fits."),
        "functional_guess": _("It is not known which of the two is PET or SPECT: the second took the colours."),
        "not_trained": _("{name} is {modality}, on which the network was not trained: look twice at the result."),
        "grid_large": _("A result of {size} voxels needs about {gigabytes} GB of memory: close other programs."),
        "memory_batch": _("The memory of {device} was short (slices at a time: {count}): close other programs."),
        "memory_cpu": _("The memory of {device} did not suffice, so the CPU fused: close other programs."),
        "plane_oblique": _("The grid is oblique: its {plane} slices lie {degrees} degrees off that plane."),
        "region_alone": _("The region holds voxels of one of the two volumes only."),
        "align_shifted": _("The two volumes look shifted by about {millimetres} mm against each other: align them."),
        "align_rival": _("Another pose, {millimetres} mm away, fits as well or better: look at both volumes."),
        "align_round": _("Turned round by 180 degrees the two fit as well: one may lie head to foot or front to back."),
        "landmarks_apart": _("The pairs of landmarks lie {millimetres} mm apart after all: check order and places."),
        "align_mirrored": _("Mirrored the two fit as well or better: check right and left of both volumes."),
        "align_stretched": _("The two fit better with one stretched by about {percent} %: check their spacings."),
        "align_thin": _("What both volumes show is only {millimetres} mm thick, too little to be sure of a tilt."),
        "align_weak": _("The two volumes have too little in common to tell whether they lie right: look at them."),
        "align_little": _("Only {percent} % of the smaller body lies inside the other volume: check the alignment."),
        "align_turned": _("The result is turned by {degrees} degrees against how it lay: check that it is right."),
        "align_any": _("All orientations were searched, and left may have become right: look, then confirm."),
        "align_no_better": _("The alignment moved the volume by {millimetres} mm and fits hardly better than before."),
        "align_unjudged": _("{name} shows too little to tell whether the two lie right: look at them."),
        "transform_rough": _("The non-linear transform could be followed to {millimetres} mm only."),
    }


def _stepTexts() -> dict[str, str]:
    return {
        "sending": _("Handing the volumes over"),
        "starting": _("Starting"),
        "values": _("Reading the values"),
        "weights": _("Loading the network"),
        "space": _("Comparing the two in space"),
        "resample": _("Resampling {name}"),
        "slices": _("Slice {number} of {count}"),
        "align_ready": _("Making {name} ready"),
        "align_search": _("Searching the pose"),
        "align_refine": _("Refining the pose at {spacing} mm"),
        "align_check": _("Judging the pose"),
        "done": _("Done"),
    }


def _staleTexts() -> dict[str, str]:
    return {
        "input_gone": _("an input was removed"),
        "transform_changed": _("the inputs were moved against each other"),
        "fused_moved": _("it was moved against the first input"),
        "voxels_changed": _("an input was changed"),
        "transform_edited": _("the transform was changed by hand"),
        "geometry_changed": _("a volume was hardened or changed since"),
    }


def errorText(code: str, facts: dict) -> str:
    """The sentence of an error; for a code that the panel has no words for, the library's own."""
    return _fill(_errorTexts().get(code) or errors.MESSAGES.get(code) or code, facts)


def warningText(code: str, facts: dict) -> str:
    """The sentence of a warning."""
    return _fill(_warningTexts().get(code) or errors.WARNINGS.get(code) or code, facts)


def stepText(code: str, facts: dict) -> str:
    """What a run is at."""
    return _fill(_stepTexts().get(code) or errors.STEPS.get(code) or code, facts)


def staleText(code: str) -> str:
    """Why a fused volume is out of date."""
    return _staleTexts().get(code) or errors.STALE.get(code) or code


def _fill(text: str, facts: dict) -> str:
    named = {key: modalityName(value) if key == "modality" else value for key, value in facts.items()}
    try:
        return text.format(**named)
    except (KeyError, IndexError):
        return text


def modalityName(modality: str | None) -> str:
    """The modality as clinicians write it."""
    return {
        "CT": _("CT"),
        "MR": _("MR"),
        "PET": _("PET"),
        "SPECT": _("SPECT"),
        "US": _("Ultrasound"),
        "XA": _("Angiography"),
        "CBCT": _("Cone-beam CT"),
        None: _("unknown"),
    }.get(modality, str(modality))


def windowName(window: str) -> str:
    """Name of a window as the panel offers it."""
    return {
        "automatic": _("Automatic window"),
        "displayed": _("Window as displayed"),
        "ct-brain": _("CT brain (0 to 80 HU)"),
        "ct-soft-tissue": _("CT soft tissue (-160 to 240 HU)"),
        "ct-bone": _("CT bone (-450 to 1050 HU)"),
        "ct-lung": _("CT lung (-1350 to 150 HU)"),
        "pet-suv-5": _("PET 0 to 5 SUV"),
        "pet-suv-10": _("PET 0 to 10 SUV"),
        "pet-suv-15": _("PET 0 to 15 SUV"),
    }.get(window, window)


def colourName(colour: str) -> str:
    """Name of a choice of colour."""
    return {
        "automatic": _("Automatic"),
        "none": _("None (gray)"),
        "displayed": _("As displayed"),
        "hot": _("Hot"),
        "heat": _("Heat"),
        "rainbow": _("Rainbow"),
        "cool": _("Cool"),
        "green": _("Green"),
    }.get(colour, colour)


def alignmentName(alignment: str) -> str:
    """Name of a choice of alignment."""
    return {
        "as-loaded": _("As loaded, following transforms"),
        "rigid": _("Rigid, within 30° of how they lie"),
        "rigid-any": _("Rigid, all orientations (confirm)"),
        "near": _("Rigid, close to how they lie"),
    }.get(alignment, alignment)


def deviceName(device: str) -> str:
    """Name of a device."""
    return {
        "auto": _("Automatic"),
        "cpu": _("CPU"),
        "cuda": _("NVIDIA GPU (CUDA)"),
        "mps": _("Apple GPU (Metal)"),
    }.get(device, device)


def gridName(grid: str) -> str:
    """Name of a choice of grid."""
    return {
        "first": _("Of the first volume"),
        "second": _("Of the second volume"),
        "finest": _("Finest of the two, in the first one's box"),
    }.get(grid, grid)


def planeName(plane: str) -> str:
    """Name of a choice of slices."""
    return {
        "automatic": _("As suits the volumes"),
        "axial": _("Axial"),
        "coronal": _("Coronal"),
        "sagittal": _("Sagittal"),
    }.get(plane, plane)


def placeName(place: str) -> str:
    """Name of one of the two volumes."""
    return {"automatic": _("PET or SPECT"), "first": _("First volume"), "second": _("Second volume")}.get(place, place)


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 90:
        return _("{seconds} s").format(seconds=max(1, round(seconds)))
    return _("{minutes} min").format(minutes=round(seconds / 60))
