"""Texts of several lines in labels of the panel."""

from __future__ import annotations

from typing import Any

# Before a panel is laid out its labels have no width of their own (pixels).
USUAL_WIDTH = 300


def setText(label: Any, text: str) -> None:
    """The text in full: where the panel is higher than the window, Qt would squeeze a wrapped label to a line."""
    label.text = text
    label.minimumHeight = max(0, label.heightForWidth(max(label.width, USUAL_WIDTH))) if text else 0
