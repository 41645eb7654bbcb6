"""From what the panel or a script chooses to a job for the library; and what there is to choose for a volume."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ASFEFusionLib import colour, intensity, scene
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.exchange import Job
from ASFEFusionLib.settings import DEVICES, GRIDS, MODALITIES, FusionSettings
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
    `grid`: "first", "second", "finest". `region`: a markups ROI node or None. `device`, `weights`, `threads`: see
    `FusionSettings`.
    """

    firstModality: str = AUTOMATIC
    secondModality: str = AUTOMATIC
    firstWindow: Any = AUTOMATIC
    secondWindow: Any = AUTOMATIC
    colour: str = AUTOMATIC
    functional: str = AUTOMATIC
    grid: str = "first"
    region: Any = None
    device: str = "auto"
    weights: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _known("grid", self.grid, GRIDS)
        _known("device", self.device, DEVICES)
        _known("functional", self.functional, (AUTOMATIC, "first", "second"))
        _known("colour", self.colour, (AUTOMATIC, NONE, DISPLAYED, *colour.MAPS))
        for name in ("firstModality", "secondModality"):
            _known(name, getattr(self, name), (AUTOMATIC, *MODALITIES))
        for name in ("firstWindow", "secondWindow"):
            if isinstance(getattr(self, name), str):
                _known(name, getattr(self, name), (AUTOMATIC, DISPLAYED, *intensity.PRESETS))
        if self.region is not None and not (hasattr(self.region, "IsA") and self.region.IsA("vtkMRMLMarkupsROINode")):
            raise FusionError("setting_unknown", name="region", value=self.region, choices="a markups ROI node")


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


@dataclass
class Request:
    """A run: the job for the library and, by ID, the nodes that it is about."""

    job: Job
    relation: scene.Relation
    firstID: str
    secondID: str
    outputID: str | None

    @property
    def nodeIDs(self) -> list[str]:
        return [i for i in (self.firstID, self.secondID, self.outputID) if i]


def makeRequest(
    first: Any, second: Any, output: Any, choices: Choices, *, lattice: Any = None, copy: bool = False
) -> Request:
    """What is to be fused, as the scene is now. Raises FusionError for anything that forbids it.

    `lattice`: a function of the two volumes that gives `FusionSettings.lattice`, for a quick look. `copy`: the voxels
    are copied, for a run that goes on while the scene may change.
    """
    if first is None or second is None:
        raise FusionError("node_missing")
    if first is second:
        raise FusionError("node_same", name=first.GetName())
    volumes = scene.read_volume(first), scene.read_volume(second)
    relation = scene.relate(first, second)
    placed = relation.place(volumes[1])
    table, functional = colours((first, second), volumes, choices)
    scene.check_output(output, [first, second], table is not None)
    settings = FusionSettings(
        grid=choices.grid,
        window_first=window(first, volumes[0], choices.firstWindow),
        window_second=window(second, volumes[1], choices.secondWindow),
        modality_first=None if choices.firstModality == AUTOMATIC else choices.firstModality,
        modality_second=None if choices.secondModality == AUTOMATIC else choices.secondModality,
        colour=table,
        functional=functional,
        device=choices.device,
        weights=choices.weights,
        threads=choices.threads,
        region=None if choices.region is None else scene.region_points(choices.region, first),
        lattice=None if lattice is None else lattice(volumes[0], placed),
    )
    if copy:
        volumes, placed = (
            (replace(volumes[0], voxels=volumes[0].voxels.copy()),),
            replace(placed, voxels=placed.voxels.copy()),
        )
    job = Job(volumes[0], placed, settings, relation.displacement)
    return Request(job, relation, first.GetID(), second.GetID(), output.GetID() if output else None)


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
