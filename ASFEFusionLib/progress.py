"""The caller's progress and cancel along a run, and the seconds of each of its stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .errors import Cancelled
from .settings import Step

Progress = Callable[[float, Step], None]
# Progress of a stage from 0 to 1; raises Cancelled to stop it.
Tick = Callable[[float], None]
T = TypeVar("T")
# Seconds between two calls of the caller's progress.
INTERVAL = 0.1


class Run:
    """The caller's progress and cancel, and the seconds of each stage."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self.progress, self.cancelled = progress, cancelled
        self.seconds: dict[str, float] = {}
        self.said = 0.0
        self.span, self.message, self.part = (0.0, 0.0), Step("values"), 0.0
        self.gap = (0.0, 0.0)  # after so much of the whole, so much was inserted

    @contextmanager
    def stage(self, name: str, start: float, stop: float, message: Step) -> Iterator[None]:
        """From `start` to `stop` of the whole (0 to 1); seconds of stages of one name add up."""
        self.span, self.message, self.part = (start, stop), message, 0.0
        began = time.perf_counter()
        self.tick(0.0)
        yield
        self.tick(1.0)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @contextmanager
    def inserted(self, name: str, share: float) -> Iterator[Progress | None]:
        """A stage that takes `share` of the whole and reports for itself, 0 to 1; all that follows moves on by it."""
        start = self.span[1]
        began = time.perf_counter()
        yield None if self.progress is None else lambda part, step: self.progress(start + share * part, step)
        self.gap = (start, share)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def tick(self, part: float) -> None:
        """Part of the stage that is done (0 to 1). Raises Cancelled."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled
        self.part = part = max(self.part, part)
        if self.progress is not None and time.monotonic() - self.said >= INTERVAL:
            self.last(self.span[0] + (self.span[1] - self.span[0]) * part, self.message)

    def aside(self, work: Callable[[Tick], T]) -> T:
        """Result of `work(tick)`, done in a thread, so that progress and cancel go on while one call takes long.

        The caller's functions are called from the caller's own thread alone; `tick` only notes how far the work is, and
        raises Cancelled once the caller has cancelled.
        """
        stop, done, outcome = threading.Event(), threading.Event(), {}
        part = [0.0]

        def tick(value: float) -> None:
            part[0] = value
            if stop.is_set():
                raise Cancelled

        def target() -> None:
            try:
                outcome["value"] = work(tick)
            except BaseException as error:
                outcome["error"] = error
            done.set()

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        try:
            while not done.wait(INTERVAL):
                self.tick(part[0])
        finally:
            # Never left running: it would hold its memory, and Python could not end while it is in ITK.
            stop.set()
            thread.join()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]

    def beat(self) -> None:
        """A sign of life within the stage."""
        self.tick(self.part)

    def last(self, fraction: float, message: Step) -> None:
        """Says so in any case."""
        self.said = time.monotonic()
        start, share = self.gap
        if share:
            fraction = start + share + (1 - start - share) * (fraction - start) / (1 - start)
        if self.progress is not None:
            self.progress(min(1.0, fraction), message)
