"""The panel's part for alignment: what to begin with, the search alone, its result, and what becomes of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from ASFEFusionLib import aligned
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.settings import AS_LOADED

from . import words
from .labels import setText


class AlignmentPart:
    """The widgets between the choice of an alignment and its transform node.

    `say(text)` shows a line of result.
    """

    def __init__(self, ui: Any, logic: Any, say: Callable[[str], None]) -> None:
        self.ui, self.logic, self.say = ui, logic, say
        self.parameters = None
        ui.applyTransformButton.connect("clicked(bool)", self.onApplyTransform)
        ui.confirmButton.connect("clicked(bool)", self.onConfirm)

    @property
    def searching(self) -> bool:
        """A pose is searched, and not only judged."""
        return self.parameters.alignment != AS_LOADED

    @property
    def given(self) -> bool:
        """A transform or landmarks lay the second volume, and not the transforms above it."""
        p = self.parameters
        return any(node is not None for node in (p.startTransform, p.firstLandmarks, p.secondLandmarks))

    @property
    def node(self) -> Any:
        """The transform of the last alignment; None if there is none, or if it is of other volumes."""
        node = self.parameters.alignmentTransform
        pair = self.parameters.firstVolume, self.parameters.secondVolume
        if node is None or None in pair or not aligned.alignment_of(node) or aligned.pair_of(node) != pair:
            return None
        return node

    def show(self, node: Any) -> None:
        """A new result: its transform becomes the last one."""
        self._mark(None)
        self.parameters.alignmentTransform = node

    @staticmethod
    def _waits(node: Any) -> bool:
        """For a person to look at right and left."""
        return aligned.to_confirm(aligned.alignment_of(node)) and aligned.outdated(node) is None

    def _mark(self, node: Any) -> None:
        """Markers of the sides as long as a person has to look at them, and none else."""
        markers = self.parameters.sideMarkers
        wanted = node is not None and self._waits(node)
        if markers is None and wanted:
            first, second = aligned.pair_of(node)
            # Translators: one letter each, for the patient's right and left
            self.parameters.sideMarkers = aligned.mark_sides(first, second, node, (_("R"), _("L")))
        elif markers is not None and not wanted:
            self.parameters.sideMarkers = None
            slicer.mrmlScene.RemoveNode(markers)

    def update(self) -> None:
        """Button texts, and the verdict of the last alignment."""
        ui, node = self.ui, self.node
        self._mark(node)
        ui.alignButton.text = _("Align only") if self.searching else _("Check")
        ui.alignButton.toolTip = (
            _("Search the place of the second volume, without fusing")
            if self.searching
            else _("Judge whether the two volumes lie right, without fusing")
        )
        applied = node is not None and aligned.is_applied(node)
        ui.applyTransformButton.enabled = applied or (node is not None and aligned.outdated(node) is None)
        ui.applyTransformButton.text = _("Put second volume back") if applied else _("Apply to second volume")
        ui.confirmButton.visible = node is not None and self._waits(node)
        setText(ui.alignmentResultLabel, self._verdict(node) if node is not None else "")

    @staticmethod
    def _verdict(node: Any) -> str:
        why = aligned.outdated(node)
        if why:
            text = _("{name} is OUT OF DATE: {reason}.")
            return text.format(name=node.GetName(), reason=words.staleText(why))
        found = verdict(aligned.alignment_of(node))
        return _("{verdict} Transform: {name}.").format(name=node.GetName(), verdict=found)

    def onApplyTransform(self, checked: bool = False) -> None:
        """The second volume under the transform of the alignment; or, if it is, back to where it was."""
        node = self.node
        if node is None:
            return
        try:
            if aligned.is_applied(node):
                self.logic.removeAlignment(node)
            else:
                self.logic.applyAlignment(node)
        except FusionError as error:
            self.say(words.errorText(error.code, error.facts))
        self.update()

    def onConfirm(self, checked: bool = False) -> None:
        """A person has looked at right and left."""
        node = self.node
        if node is None:
            return
        question = _(
            "Have you looked at both volumes in the slice views, and does the right side of the patient lie at the same"
            " side in both? The markers say which side each volume itself calls right."
        )
        if slicer.util.confirmOkCancelDisplay(question, windowTitle=_("Confirm right and left")):
            aligned.confirm(node)
            self.update()


def verdict(alignment: dict) -> str:
    """An alignment in a sentence, without its doubts."""
    trusted = _("trusted") if alignment["trusted"] else _("NOT TRUSTED")
    if alignment["search"] == AS_LOADED:
        text = _("Alignment as it is: {trusted}, confidence {confidence}.")
    else:
        text = _("Aligned: turned by {degrees} degrees, moved by {moved} mm; {trusted}, confidence {confidence}.")
    return text.format(
        trusted=trusted,
        confidence=f"{alignment['confidence']:.2f}",
        degrees=f"{alignment.get('degrees', 0):.1f}",
        moved=f"{alignment.get('moved', 0):.1f}",
    )
