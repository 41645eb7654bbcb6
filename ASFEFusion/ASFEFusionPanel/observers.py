"""Observers of nodes that let go of them: Slicer's mixin keeps every node that it ever observed, with its voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class Observers:
    """A set of (object, event) -> function that is removed as a whole."""

    def __init__(self) -> None:
        self._tags: list[tuple[Any, int]] = []

    def add(self, observed: Any, event: int | str, function: Callable) -> None:
        self._tags.append((observed, observed.AddObserver(event, function)))

    def replace(self, objects: Iterable[Any], events: Iterable[int | str], function: Callable) -> None:
        """Observes these objects, once each, and nothing else any more."""
        self.clear()
        events = list(events)
        seen: list[Any] = []
        for one in objects:
            if one is not None and one not in seen:
                seen.append(one)
                for event in events:
                    self.add(one, event, function)

    def clear(self) -> None:
        """Observes nothing, and holds no object any more."""
        tags, self._tags = self._tags, []
        for observed, tag in tags:
            observed.RemoveObserver(tag)
