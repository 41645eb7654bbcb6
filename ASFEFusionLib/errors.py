"""The one kind of error that a user can cause: a code, the facts, and a sentence made of both."""

from __future__ import annotations

# One sentence each: what is wrong, and what to do. The Slicer module translates them by their code.
MESSAGES = {
    "file_missing": "{path} does not exist: check the path.",
    "file_empty": "{path} is an empty file: copy or export it again.",
    "file_cut": "{path} is cut short or damaged: copy or export it again.",
    "file_unreadable": "{path} cannot be read as an image: check that it is whole, or save it anew as grey or RGB.",
    "file_unsupported": "{path} is of a kind that is not read: give one of {supported}, or a DICOM folder.",
    "image_empty": "{path} holds an image without voxels: export it again.",
    "image_4d": "{path} holds several volumes ({size}): save one of them as a file of its own and give that.",
    "image_vector": "{path} holds {components} values of type {type} per voxel: give a grey image, or RGB of 8 bits.",
    "picture_pages": "{path} holds {pages} pages: save one of them as a file of its own and give that.",
    "voxels_unusable": "{path} holds voxels of a kind not handled ({type}): convert it to grey, or to RGB of 8 bits.",
    "geometry_unusable": "{path} has axes that span no space: correct its origin, spacing and directions.",
    "geometry_sheared": "{path} is on a sheared grid, which images cannot hold: resample it to right angles first.",
    "dicom_file": "{path} is a single DICOM file: give the folder that holds the whole series, and no other.",
    "dicom_none": "{path} is a folder without DICOM images: give the folder of one series.",
    "dicom_several": "{path} holds {count} DICOM series: name the number of the one to read, of {series}.",
    "dicom_series": "{path} holds {count} series {wanted}: choose one of {series}.",
    "series_file": "{path} is a file, in which there is no series to choose: leave that out, or give a DICOM folder.",
    "dicom_capture": "{path} holds screenshots or pictures in colour, not slices: give the folder of the scan itself.",
    "dicom_mosaic": "{path} holds mosaics, many slices in one picture, which are not read: save it as NIfTI first.",
    "dicom_frames": "{path} holds many frames in one DICOM file, which is not read: save it as NRRD or NIfTI first.",
    "dicom_no_position": "{path} holds DICOM slices that do not say where they lie: save them as NRRD or NIfTI first.",
    "dicom_unlike": "{path} holds slices of different sizes or pixels in one series: give a folder of those of one.",
    "dicom_turned": "{path} holds slices of {count} orientations in one series: give a folder of those of one.",
    "dicom_times": "{path} holds {count} images of every slice (times, echoes or the like): give a folder of one each.",
    "dicom_doubled": "{path} holds {times} images at slice {number} (of {count}): remove what does not belong to it.",
    "dicom_uneven": "{path} lacks slices or is uneven: between slice {number} and {next} (of {count}) the distance is "
    "{distance} mm instead of {usual} mm: export the whole series again.",
    "dicom_tilted": "{path} has slices shifted sideways, and not as a tilted gantry does (slice {number} of {count} by "
    "{millimetres} mm): save it as NRRD or NIfTI on a straight grid first.",
    "output_extension": "{path} is of a kind that is not written: use one of {supported}.",
    "output_two_files": "{path} would be two files, of which one may go astray: use {other}.",
    "output_folder_missing": "{path} cannot be written, as there is no folder {folder}: make it or choose another.",
    "output_not_writable": "{path} may not be written: choose another folder, or change the permissions.",
    "output_is_folder": "{path} is a folder: give the name of a file.",
    "output_is_input": "{path} is one of the inputs: choose another name, so that the input stays as it is.",
    "output_picture_slices": "{path} holds one slice only and the volume has {slices}: use .nii.gz, .nrrd or .mha.",
    "output_type": "{path} cannot hold voxels of type {type}: use .nii.gz, .nrrd or .mha.",
    "output_geometry": "{path} cannot hold the place of this volume: use .nrrd or .mha.",
    "output_failed": "{path} could not be written: check the free space and the permissions, then try again.",
    "setting_unknown": "{name} cannot be {value}: choose one of {choices}.",
    "window_unknown": "{value} is no window: give LOW,HIGH in the volume's units or one of {choices}.",
    "window_empty": "A window from {low} to {high} is empty or too wide: give two finite values, the lower one first.",
    "window_units": "The window {preset} is meant for {units} and {name} has {has}: give LOW,HIGH instead.",
    "colour_unknown": "{value} is no colour map: choose one of {choices}, or give a table of RGB from 0 to 1.",
    "grid_too_large": "A grid of {size} voxels would need about {gigabytes} GB: choose another grid or crop the first.",
    "grid_memory": "A grid of {size} voxels would need about {gigabytes} GB of memory and there are {there} GB: choose "
    "another grid or crop the first.",
    "dimensions_differ": "{first} and {second} are a picture and a volume: give two pictures or two volumes.",
    "sizes_differ": "{first} is {size_first} pixels and {second} is {size_second}: give pictures of the same size.",
    "volume_colour": "{name} is a volume in colour: give the scalar volume that it was made from.",
    "volume_constant": "{name} has the same value in every voxel: choose a volume that shows something.",
    "volume_nan": "{name} holds no finite value: export it again.",
    "setting_not_positive": "{name} cannot be {value}: give a whole number above 0.",
    "picture_grid": "{name} is a picture in colour: choose the grid first, on which its colour lies.",
    "grid_bent": "The transform of {name} bends space, so that its grid is none: choose the grid of the other volume.",
    "node_missing": "There is no volume: choose two volumes.",
    "node_same": "{name} is chosen twice: choose two different volumes.",
    "node_kind": "{name} is a {kind}, which is not fused: choose a scalar volume.",
    "node_empty": "{name} has no voxels: load it again, or choose another volume.",
    "node_gone": "A volume of this run was removed: choose the volumes again.",
    "node_is_input": "{name} is one of the inputs: choose another output, so that the input stays as it is.",
    "output_class": "{name} cannot hold a {kind} volume: choose a new volume as output.",
    "transform_singular": "The transform between {first} and {second} has no inverse: correct or remove it.",
    "region_empty": "The region of interest {name} has no size: draw it, or leave it out.",
    "plane_outside": "The slice in view does not touch {name}: scroll to it, then look again.",
    "plane_bent": "{name} lies under a bent transform, which a single slice cannot show: fuse the volume.",
    "units_unknown": "The window {preset} is for {units} and {name} does not say its units: choose another window.",
    "resample_failed": "{name} could not be brought onto the grid: resample it to voxels of a like size first.",
    "region_outside": "The region of interest does not touch {name}: move it there, or leave it out.",
    "no_overlap": "{first} and {second} share no voxel of the grid: check that they are of one patient and aligned.",
    "picture_colour": "{name} is a picture in colour and keeps its own: leave the colour map out.",
    "outputs_same": "{path} is asked for twice: give each output a name of its own.",
    "folder_collision": "{first} and {second} would both be written as {path}: move one of them.",
    "resume_differs": "The run in {path} began with {name} {old}, not {new}: give the same, or add --fresh.",
    "run_damaged": "The checkpoint in {path} is damaged: remove it, or add --fresh to begin anew.",
    "extra_missing": "{package} is not there: install this project with its extra {extra}.",
    "torch_missing": "PyTorch is not there: install it (in Slicer through the PyTorch extension), then try again.",
    "torch_old": "PyTorch {version} is too old: update it to {needed} or newer, then start again.",
    "torch_numpy": "PyTorch {torch} does not work with numpy {numpy}: install a PyTorch that was built for it.",
    "torch_install": "PyTorch could not be installed ({why}): see to the network and the free space, then try again.",
    "torch_broken": "PyTorch is there and cannot be loaded ({why}): install it again.",
    "device_missing": "There is no {device} device here: choose auto or cpu.",
    "memory_out": "The memory of {device} does not suffice: close other programs, or choose another grid or device.",
    "exchange_failed": "{path} could not be written: free some space on that disk, then try again.",
    "run_busy": "A run is under way: wait for it, or cancel it first.",
    "child_died": "The process that fuses ended by itself (code {code}): try again, with a smaller grid or the CPU.",
    "child_missing": "{program} cannot be started: check the installation.",
    "run_failed": "The fusion failed ({why}): try again, and report it if it stays.",
    "folder_missing": "{path} is no folder: check the path.",
    "folder_unlike": "{first} and {second} have no names in common: give two folders of same-named images.",
    "folder_lonely": "{count} images stand in one of the two folders alone ({names}): add their partners or move them.",
    "data_missing": "{path} lacks training pairs ({why}): give the folder that holds CT-MRI, PET-MRI and SPECT-MRI.",
    "weights_missing": "There are no weights {path}: give a file of weights or one of the shipped names ({known}).",
    "weights_damaged": "The weights file {path} is damaged: get it again, or leave the option out for the shipped one.",
    "weights_incomplete": "{path} lacks {count} tensors of the published network or misshapes them ({names}): get all.",
    "weights_other": "{path} holds no weights of a network known here: give a file written by the train command.",
    "align_flat": "{name} has too few slices, rows or columns to be aligned: align it by hand.",
    "align_bent": "The transform of {name} bends space, on which nothing is aligned: fuse as loaded, or remove it.",
    "align_apart": "{first} and {second} could not be brought over each other: give a start from landmarks or a file.",
    "transform_unreadable": "{path} cannot be read as a transform: give a .tfm, .txt or .h5 file written by ITK.",
    "transform_not_rigid": "{path} does more than turn and shift, so that it is no start: use it as it is.",
    "transform_output": "{path} is of a kind that is not written: use one of .tfm, .txt, .h5.",
    "landmarks_few": "{count} pairs of landmarks do not fix a pose: place three or more, not on one line.",
    "landmarks_unpaired": "There are {first} and {second} landmarks: place them in pairs, in the same order.",
    "landmarks_one": "Landmarks are needed on both volumes: choose two lists of points, one placed on each.",
    "landmarks_bent": "{name} is under a transform that bends space: remove it, or fuse as loaded.",
    "landmarks_unreadable": "{path} cannot be read as markups points: give a .mrk.json or .fcsv file.",
}

# Said beside a result: what is doubtful about it, and what to do.
WARNINGS = {
    "not_finite": "{count} voxels of {name} are not finite and were taken as background.",
    "little_overlap": "The two volumes share only {percent} % of the smaller one's space: check their alignment.",
    "modality_unknown": "The modality of {name} is not known: its window follows its values; name it to be sure.",
    "transform_rough": "The bent transform between the volumes is followed to {millimetres} mm only.",
    "not_trained": "{name} is of a kind ({modality}) that the network was not trained on: look twice at the result.",
    "region_alone": "The region of interest holds one of the two volumes alone: the result shows no other there.",
    "dicom_straightened": "The gantry was tilted by {degrees} degrees for {name}: its slices were laid straight.",
    "grid_large": "A grid of {size} voxels needs about {gigabytes} GB of memory: close other programs.",
    "plane_oblique": "The grid is oblique: the {plane} slices that were fused lie {degrees} degrees off that plane.",
    "functional_guess": "Neither or both volumes are known as PET or SPECT: the second took the colour map.",
    "align_shifted": "The two volumes look shifted by about {millimetres} mm against each other: align them.",
    "align_rival": "Another pose, {millimetres} mm away, fits as well or better: look at both, or place landmarks.",
    "align_round": "Turned round by 180 degrees the two fit as well: one may lie head to foot or front to back.",
    "align_weak": "The two volumes have too little in common to tell whether they lie right: look at them yourself.",
    "align_little": "Only {percent} % of the smaller body lies inside the other volume: check the alignment.",
    "align_turned": "The result is turned by {degrees} degrees against the headers: check that it is right.",
    "align_any": "All orientations were searched, and left may have become right: confirm the result by eye.",
    "align_no_better": "The alignment moved the volume by {millimetres} mm and fits hardly better than before.",
    "align_unjudged": "{name} shows too little to tell whether the two lie right: look at them yourself.",
}

# Why a fused volume in a scene no longer shows its inputs as they are.
STALE = {
    "input_gone": "an input was removed",
    "transform_changed": "the inputs were moved against each other",
    "fused_moved": "it was moved against the first input",
    "voxels_changed": "an input's voxels have changed",
}
# What a run is at.
STEPS = {
    "values": "Reading the values",
    "weights": "Loading the weights",
    "space": "Comparing the two in space",
    "resample": "Resampling {name}",
    "slices": "Slice {number} of {count}",
    "done": "Done",
    "align_ready": "Making {name} ready",
    "align_search": "Searching the pose",
    "align_refine": "Refining the pose at {spacing} mm",
    "align_check": "Judging the pose",
}


class FusionError(Exception):
    """Something that the user can mend.

    `code` is a key of `MESSAGES`, `facts` are the values of its sentence; `str()` gives the English sentence, and a
    translated one is `translation[error.code].format(**error.facts)`.
    """

    def __init__(self, code: str, **facts: object) -> None:
        self.code = code
        self.facts = facts
        super().__init__(MESSAGES[code].format(**facts))


class Cancelled(Exception):  # noqa: N818 - not an error: the caller asked for it
    """The caller's `cancelled()` said so; nothing was written."""
