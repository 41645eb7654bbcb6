"""The one kind of error that a user can cause: a code, the facts, and a sentence made of both."""

from __future__ import annotations

# One sentence each: what is wrong, and what to do. The Slicer module translates them by their code.
MESSAGES = {
    "file_missing": "{path} does not exist: check the path.",
    "file_empty": "{path} is an empty file: copy or export it again.",
    "file_cut": "{path} is cut short or damaged: copy or export it again.",
    "file_unreadable": "{path} cannot be read as an image: check that it is whole, is an image, and may be opened.",
    "file_unsupported": "{path} is of a kind that is not read: give one of {supported}, or the folder of a DICOM series.",
    "image_empty": "{path} holds an image without voxels: export it again.",
    "image_4d": "{path} holds several volumes ({size}): save one of them as a file of its own and give that.",
    "image_vector": "{path} holds {components} values of type {type} per voxel: give a grey image, or RGB of 8 bits.",
    "picture_pages": "{path} holds {pages} pages: save one of them as a file of its own and give that.",
    "voxels_unusable": "{path} holds voxels of a kind that is not handled ({type}): convert it to grey or to RGB of 8 bits.",
    "geometry_unusable": "{path} has axes that span no space: correct its origin, spacing and directions.",
    "geometry_sheared": "{path} is on a sheared grid, which image files cannot hold: resample it to right angles first.",
    "dicom_file": "{path} is a single DICOM file: give the folder that holds the whole series, and no other.",
    "dicom_none": "{path} is a folder without DICOM images: give the folder of one series.",
    "dicom_several": "{path} holds {count} DICOM series: give a folder that holds one of them alone.",
    "dicom_frames": "{path} holds many frames in one DICOM file, which is not read: save it as NRRD or NIfTI first.",
    "dicom_no_position": "{path} holds DICOM slices that do not say where they lie: save them as NRRD or NIfTI first.",
    "dicom_uneven": "{path} has slices that are missing, doubled or unevenly spaced: export the whole series again.",
    "dicom_tilted": "{path} was scanned with a tilted gantry: save it as NRRD or NIfTI on a straight grid first.",
    "output_extension": "{path} is of a kind that is not written: use one of {supported}.",
    "output_two_files": "{path} would be two files, of which one may go astray: use {other}.",
    "output_folder_missing": "{path} cannot be written, for the folder {folder} does not exist: make it or choose another.",
    "output_not_writable": "{path} may not be written: choose another folder, or change the permissions.",
    "output_is_folder": "{path} is a folder: give the name of a file.",
    "output_is_input": "{path} is one of the inputs: choose another name, so that the input stays as it is.",
    "output_picture_slices": "{path} holds one slice only and the volume has {slices}: use .nii.gz, .nrrd or .mha.",
    "output_type": "{path} cannot hold voxels of type {type}: use .nii.gz, .nrrd or .mha.",
    "output_geometry": "{path} cannot hold the place of this volume: use .nrrd or .mha.",
    "output_failed": "{path} could not be written: check the free space and the permissions, then try again.",
    "weights_missing": "There are no weights {path}: give a file of weights or one of the shipped names ({known}).",
    "weights_damaged": "The weights file {path} is damaged: get it again, or leave the option out for the shipped one.",
    "weights_other": "{path} holds no weights of a network known here: give a file written by the train command.",
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
