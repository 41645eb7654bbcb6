"""The two volumes that are chosen: what they are, how they meet, and whether they can be fused; in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slicer.i18n import tr as _

from ASFEFusionLib import scene
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.fusion import LITTLE_OVERLAP
from ASFEFusionLib.grids import LARGE, choose_grid, memory_facts, memory_needed
from ASFEFusionLib.settings import TRAINED

from . import choices, words
from .choices import Choices

PLACES = ("first", "second")


class Inputs:
    """Both volumes as the parameter node `parameters` has them."""

    def __init__(self) -> None:
        self.parameters = None
        self._read: dict[str, Any] | None = None

    @contextmanager
    def readOnce(self) -> Iterator[None]:
        """Within it each volume is read once for all questions."""
        self._read = {}
        try:
            yield
        finally:
            self._read = None

    def node(self, place: str) -> Any:
        return getattr(self.parameters, f"{place}Volume")

    @property
    def nodes(self) -> tuple[Any, Any]:
        return self.node("first"), self.node("second")

    def volume(self, place: str) -> tuple[Any, str | None] | None:
        """The volume and its modality; None if there is none that could be fused."""
        if self._read is not None and place in self._read:
            return self._read[place]
        node = self.node(place)
        try:
            volume = scene.read_volume(node)
            known = volume, choices.modality(node, volume, getattr(self.parameters, f"{place}Modality"))
        except FusionError:
            known = None
        if self._read is not None:
            self._read[place] = known
        return known

    @property
    def there(self) -> bool:
        """Two different volumes that can be shown over each other."""
        first, second = self.nodes
        return first is not second and all(self.volume(place) is not None for place in PLACES)

    def choices(self) -> Choices:
        """All that the parameter node says, as a run takes it."""
        p = self.parameters
        return Choices(
            firstModality=p.firstModality,
            secondModality=p.secondModality,
            firstWindow=p.firstWindow,
            secondWindow=p.secondWindow,
            colour=p.colour,
            functional=p.functional,
            alignment=p.alignment,
            start=p.startTransform,
            firstLandmarks=p.firstLandmarks,
            secondLandmarks=p.secondLandmarks,
            grid=p.grid,
            plane=p.plane,
            region=p.region,
            device=p.device,
        )

    def info(self, place: str) -> str:
        """Size, spacing and units of a volume, and what is doubtful about it."""
        known = self.volume(place)
        if known is None:
            return ""
        volume, modality = known
        size = " x ".join(str(n) for n in volume.size_ijk)
        spacing = " x ".join(f"{s:.3g}" for s in volume.spacing)
        units = volume.units or ("HU" if modality == "CT" else None)
        text = _("{size}, {spacing} mm, {units}").format(size=size, spacing=spacing, units=units or _("no units"))
        if modality is None:
            text += "\n" + _("What it is could not be told: choose it above.")
        elif modality not in TRAINED:
            text += "\n" + _("The network was not trained on this: look twice at the result.")
        return text

    def overlap(self) -> tuple[str, bool]:
        """How much the two have in common, and whether that is little. Raises FusionError."""
        share = scene.overlap_share(*self.nodes)
        text = _("{percent} % of the smaller volume lies within the other.")
        if share < LITTLE_OVERLAP:
            text = _("WARNING: only {percent} % of the smaller volume lies within the other: check the alignment.")
        lines = [text.format(percent=round(100 * share))]
        frames = [scene.frame_of_reference(node) for node in self.nodes]
        if all(frames):
            same = _("Both have the same DICOM frame of reference.")
            differ = _("Their DICOM frames of reference differ, as those of two scanners do.")
            lines.append(same if frames[0] == frames[1] else differ)
        return "\n".join(lines), share < LITTLE_OVERLAP

    def output(self) -> str:
        """What becomes of the chosen output, and what a large result needs."""
        output, lines = self.parameters.outputVolume, []
        if output is not None:
            lines.append(_("{name} will be overwritten.").format(name=output.GetName()))
        known = [self.volume(place) for place in PLACES]
        if None not in known and self.parameters.region is None:
            grid = choose_grid(known[0][0], known[1][0], self.parameters.grid)
            if memory_needed(grid) > LARGE:
                text = _("A result of {size} voxels needs about {gigabytes} GB of memory.")
                lines.append(text.format(**memory_facts(grid)))
        return "\n".join(lines)

    def reason(self, output: Any) -> str | None:
        """Why these choices cannot be fused; None if they can."""
        first, second = self.nodes
        try:
            if first is None or second is None:
                raise FusionError("node_missing")
            if first is second:
                raise FusionError("node_same", name=first.GetName())
            for place, node in zip(PLACES, (first, second), strict=True):
                if self.volume(place) is None:
                    scene.read_volume(node)  # says why
            choices.checkPlace(first, second, self.choices())
            if self.parameters.region is not None:
                scene.region_points(self.parameters.region, first)
            scene.check_output(output, [first, second], self._inColour())
        except FusionError as error:
            return words.errorText(error.code, error.facts)
        return None

    def _inColour(self) -> bool:
        known = [self.volume(place) for place in PLACES]
        if None in known:
            return False
        return choices.colours(self.nodes, [volume for volume, _modality in known], self.choices())[0] is not None
