"""From what the panel or a script chooses to a job for the library; and what there is to choose for a volume."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ASFEFusionLib import aligned, colour, intensity, scene
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.exchange import Job
from ASFEFusionLib.settings import ALIGNMENTS, AS_LOADED, DEVICES, GRIDS, MODALITIES, PLANES, FusionSettings
from ASFEFusionLib.volume import Volume

AUTOMATIC, DISPLAYED, NONE = "automatic", "displayed", "none"
FUNCTIONAL = ("PET", "SPECT")


@dataclass
class Choices:
    """All that can be chosen for a fusion beside the two volumes; the defaults are the panel's.

    `firstModality`, `secondModality`: "automatic" (DICOM's word, else by the values) or one of `settings.MODALITIES`.
    `firstWindow`, `secondWindow`: "automatic", "displayed" (as the viewers show the volume), the name of a preset, or
    (low, high) in the volume's units. `colour`: "automatic" (as displayed if one volume is PET or SPECT and not grey),
    "none", "displayed", or the name of a map. `functional`: "automatic", "first" or "second": which takes the colour.
    `alignment`: "as-loaded" (the two lie as they should), "rigid" (within 30 degrees of how they lie), "rigid-any" (all
    orientations), "near" (close to how they lie). `start`: a transform node that lays the second volume in place of
    those above it; `firstLandmarks`, `secondLandmarks`: markups points on each volume that lay it instead.
    `grid`: "first", "second", "finest". `plane`: of the slices that the network sees, "automatic" (as the data suit),
    "axial", "coronal", "sagittal". `region`: a markups ROI node or None. `device`, `weights`, `threads`: see
    `FusionSettings`.
    """

    firstModality: str = AUTOMATIC
    secondModality: str = AUTOMATIC
    firstWindow: Any = AUTOMATIC
    secondWindow: Any = AUTOMATIC
    colour: str = AUTOMATIC
    functional: str = AUTOMATIC
    alignment: str = AS_LOADED
    start: Any = None
    firstLandmarks: Any = None
    secondLandmarks: Any = None
    grid: str = "first"
    plane: str = AUTOMATIC
    region: Any = None
    device: str = "auto"
    weights: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _known("alignment", self.alignment, ALIGNMENTS)
        _known("grid", self.grid, GRIDS)
        _known("plane", self.plane, PLANES)
        _known("device", self.device, DEVICES)
        _known("functional", self.functional, (AUTOMATIC, "first", "second"))
        _known("colour", self.colour, (AUTOMATIC, NONE, DISPLAYED, *colour.MAPS))
        for name in ("firstModality", "secondModality"):
            _known(name, getattr(self, name), (AUTOMATIC, *MODALITIES))
        for name in ("firstWindow", "secondWindow"):
            if isinstance(getattr(self, name), str):
                _known(name, getattr(self, name), (AUTOMATIC, DISPLAYED, *intensity.PRESETS))
        _isNode("region", self.region, "vtkMRMLMarkupsROINode", "a markups ROI node")
        _isNode("start", self.start, "vtkMRMLTransformNode", "a transform node")
        for name in ("firstLandmarks", "secondLandmarks"):
            _isNode(name, getattr(self, name), "vtkMRMLMarkupsNode", "a markups node with points")


def choicesFrom(values: dict[str, Any]) -> Choices:
    """Choices by name, as a script gives them. FusionError "setting_unknown" names what there is."""
    names = [f.name for f in fields(Choices)]
    for name in values:
        if name not in names:
            raise FusionError("setting_unknown", name="setting", value=name, choices=", ".join(names))
    return Choices(**values)


def _known(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise FusionError("setting_unknown", name=name, value=value, choices=", ".join(choices))


def _isNode(name: str, value: Any, kind: str, choices: str) -> None:
    if value is not None and not (hasattr(value, "IsA") and value.IsA(kind)):
        raise FusionError("setting_unknown", name=name, value=value, choices=choices)


@dataclass
class Request:
    """A run: the job for the library and, by ID, the nodes that it is about."""

    job: Job
    relation: scene.Relation
    firstID: str
    secondID: str
    outputID: str | None
    # What the alignment stands on; the transform node of an earlier one of the same, and what was found then.
    inputs: list
    knownID: str | None = None
    known: dict | None = None
    # The second lies by a search of all orientations that nobody has confirmed.
    unconfirmed: bool = False

    def complete(self, report: dict, transform: Any = None) -> dict:
        """A run's report with what was known before it: `transform` is the node of the known alignment, if it is there.

        What a person has confirmed meanwhile counts.
        """
        notices = [{"code": n.code, "facts": n.facts, "text": str(n)} for n in self.relation.notices]
        report = {**report, "warnings": notices + report.get("warnings", [])}
        known = self.known and (aligned.alignment_of(transform) or self.known)
        if known:
            found = {name: value for name, value in known.items() if name not in ("inputs", "places")}
            report |= {"alignment": found, "warnings": found["reasons"] + report["warnings"]}
        return aligned.doubted(report) if self.unconfirmed else report

    @property
    def nodeIDs(self) -> list[str]:
        return [i for i in (self.firstID, self.secondID, self.outputID) if i]


def makeRequest(
    first: Any,
    second: Any,
    output: Any,
    choices: Choices,
    *,
    lattice: Any = None,
    copy: bool = False,
    known: Any = None,
    fused: bool = True,
) -> Request:
    """What is to be fused, as the scene is now. Raises FusionError for anything that forbids it.

    `lattice`: a function of the two volumes that gives `FusionSettings.lattice`, for a quick look. `copy`: the voxels
    are copied, for a run that goes on while the scene may change. `known`: a transform node of an earlier alignment,
    which is taken if it is of the same inputs and the same search. `fused`: False for the alignment alone.
    """
    if first is None or second is None:
        raise FusionError("node_missing")
    if first is second:
        raise FusionError("node_same", name=first.GetName())
    volumes = scene.read_volume(first), scene.read_volume(second)
    relation = relate(first, second, choices)
    if choices.alignment != AS_LOADED and relation.matrix is None:
        raise FusionError("align_bent", name=second.GetName())
    inputs = _inputs(first, second, relation, choices)
    found = aligned.alignment_of(known) if known is not None and choices.alignment != AS_LOADED else {}
    same = bool(found) and aligned.pair_of(known) == (first, second) and found.get("inputs") == inputs
    if not same or aligned.outdated(known):
        known = found = None
    else:
        relation = scene.relate_anew(relation, first, aligned.laid(relation, found))
    placed = relation.place(volumes[1])
    table, functional = colours((first, second), volumes, choices)
    scene.check_output(output, [first, second], table is not None)
    settings = FusionSettings(
        grid=choices.grid,
        plane=choices.plane,
        window_first=window(first, volumes[0], choices.firstWindow),
        window_second=window(second, volumes[1], choices.secondWindow),
        modality_first=None if choices.firstModality == AUTOMATIC else choices.firstModality,
        modality_second=None if choices.secondModality == AUTOMATIC else choices.secondModality,
        colour=table,
        functional=functional,
        device=choices.device,
        weights=choices.weights,
        threads=choices.threads,
        align=AS_LOADED if known else choices.alignment,
        check=known is None,
        region=None if choices.region is None else scene.region_points(choices.region, first),
        lattice=None if lattice is None else lattice(volumes[0], placed),
    )
    if copy:
        volumes, placed = (
            (replace(volumes[0], voxels=volumes[0].voxels.copy()),),
            replace(placed, voxels=placed.voxels.copy()),
        )
    job = Job(volumes[0], placed, settings, relation.displacement, fused)
    nodeIDs = first.GetID(), second.GetID(), output.GetID() if output else None
    above = second.GetParentTransformNode() if choices.start is None else choices.start
    laid = choices.firstLandmarks is None and aligned.unconfirmed_above(above)
    return Request(job, relation, *nodeIDs, inputs, known and known.GetID(), found, unconfirmed=laid)


def _inputs(first: Any, second: Any, relation: scene.Relation, choices: Choices) -> list:
    """What an alignment stands on, as JSON holds it: the search, how the two lie before, and their voxels."""
    if choices.alignment == AS_LOADED:
        return []
    matrices = relation.matrix, relation.first_matrix, relation.second_matrix
    checksums = [scene.checksum(node) for node in (first, second)]
    return [choices.alignment, *(matrix.round(4).tolist() for matrix in matrices), checksums]


def relate(first: Any, second: Any, choices: Choices) -> scene.Relation:
    """How the second lies to the first: by the transforms above the two, or as the choices lay it. FusionError."""
    laid = landmarks(first, second, choices)
    if laid is None:
        return scene.relate(first, second, choices.start)
    relation = scene.relate_anew(scene.relate(first, second), first, laid[0])
    return replace(relation, notices=laid[1])


def landmarks(first: Any, second: Any, choices: Choices) -> Any:
    """See `aligned.landmark_matrix`; None: none are chosen. FusionError."""
    points = choices.firstLandmarks, choices.secondLandmarks
    if points == (None, None):
        return None
    if None in points or points[0] is points[1]:
        raise FusionError("landmarks_one")
    return aligned.landmark_matrix(first, second, points)


def checkPlace(first: Any, second: Any, choices: Choices) -> None:
    """Raise FusionError for what `relate` would refuse, or the search after it, without its work."""
    scene.check_transforms(first, second, choices.start)
    landmarks(first, second, choices)
    above = choices.start or second.GetParentTransformNode()
    if choices.alignment != AS_LOADED and scene.matrix_between(above, first.GetParentTransformNode()) is None:
        raise FusionError("align_bent", name=second.GetName())


# What volumes are by their values, by node and state of its voxels: that takes a look at two million of them.
_guessed: dict[str, tuple[tuple, str | None]] = {}


def modality(node: Any, volume: Volume, choice: str) -> str | None:
    """The volume's modality as chosen, as DICOM says, or by its values."""
    if choice != AUTOMATIC:
        return choice
    if volume.modality is not None:
        return volume.modality
    image = node.GetImageData()
    state = (image.GetMTime(), image.GetPointData().GetScalars().GetMTime())
    if _guessed.get(node.GetID(), ((),))[0] != state:
        _guessed[node.GetID()] = (state, intensity.guess_modality(volume))
    return _guessed[node.GetID()][1]


def windowsFor(volume: Volume, modality_: str | None) -> list[str]:
    """The windows to offer: presets of CT for HU, of SUV only where the units are known to be SUV."""
    units = volume.units or ("HU" if modality_ == "CT" else None)
    fitting = [name for name, (*_, meant) in intensity.PRESETS.items() if units == meant]
    allowed = {"HU": ("CT", "CBCT"), "SUV": ("PET",)}.get(units, ())
    return [AUTOMATIC, DISPLAYED, *(fitting if modality_ in allowed else [])]


def window(node: Any, volume: Volume, choice: Any) -> Any:
    """The choice as `FusionSettings` takes it."""
    if isinstance(choice, str) and choice in (AUTOMATIC, DISPLAYED):
        return None if choice == AUTOMATIC else scene.window_shown(node)
    unknown = volume.units is None and volume.modality in ("PET", None)
    if isinstance(choice, str) and intensity.PRESETS[choice][2] == "SUV" and unknown:
        raise FusionError("units_unknown", preset=choice, units="SUV", name=volume.name)
    return choice


def functionalPlace(modalities: tuple[str | None, str | None], choice: str) -> str | None:
    """Which of the two takes the colour: "first", "second", or None if that is not known."""
    if choice != AUTOMATIC:
        return choice
    known = [m in FUNCTIONAL for m in modalities]
    return ("first", "second")[known.index(True)] if sum(known) == 1 else None


def colours(nodes: tuple, volumes: tuple, choices: Choices) -> tuple[Any, str | None]:
    """Colour table (or name, or None for grey) and which volume takes it ("first", "second", None: not known)."""
    named = (choices.firstModality, choices.secondModality)
    found = tuple(modality(*each) for each in zip(nodes, volumes, named, strict=True))
    place = functionalPlace(found, choices.functional)
    if choices.colour == NONE or (choices.colour == AUTOMATIC and place is None):
        return None, None
    if choices.colour in colour.MAPS:
        return choices.colour, place
    _name, table = scene.colour_shown(nodes[0 if place == "first" else 1])
    return table, place if table is not None else None
