"""fuse(): two volumes in, one fused volume and a report out, through all the rooms on the way."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from . import __version__, colour, intensity, space
from .engine import Engine, cpu_threads
from .errors import Cancelled, FusionError
from .settings import FusionReport, FusionSettings, Notice
from .volume import Volume

Progress = Callable[[float, str], None]
T = TypeVar("T")
FUNCTIONAL = ("PET", "SPECT")
# Scalar results: 0..1000 without units, so that nobody takes them for HU.
SCALE = 1000
LITTLE_OVERLAP = 0.5
FILE_NOTE = f"ASFEFusion {__version__}: fused, derived, not for quantitation"
# Seconds between two calls of the caller's progress.
INTERVAL = 0.1


def fuse(
    first: Volume,
    second: Volume,
    settings: FusionSettings | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Volume, FusionReport]:
    """Two registered volumes of one patient -> the fused volume on the chosen grid, and what was done.

    `first`, `second`: scalar volumes (any spacing, orientation and field of view; LPS, mm), or two 2-D pictures, grey
    or RGB of 8 bits. They stay as they are. `settings`: see `FusionSettings`.
    The result is int16 from 0 to 1000 without units (derived: not for quantitation); uint8 RGB with a colour map;
    uint8 for two 8-bit pictures, in the first one's own colour if it has one.
    `progress(fraction, message)` is called at least once a second; `cancelled()` is asked as often, within a batch too.

    Raises FusionError (bad input, no overlap, weights, device, memory) and Cancelled.
    """
    settings = settings or FusionSettings()
    run = _Run(progress, cancelled)
    report = FusionReport(versions=versions())
    pair = _check_pair(first, second)
    with run.stage("windows", 0.0, 0.04, "Reading the values"):
        sources = [
            _source(volume, modality, window, report, name)
            for volume, modality, window, name in zip(
                pair,
                (settings.modality_first, settings.modality_second),
                (settings.window_first, settings.window_second),
                ("first", "second"),
                strict=True,
            )
        ]
        paint = _paint(sources, settings, report)
    with run.stage("network", 0.04, 0.08, "Loading the weights"):
        engine = run.aside(lambda _: Engine(settings.weights, settings.device))
    report.device, report.weights_name, report.weights_sha256 = engine.device, engine.weights_name, engine.weights_hash

    with run.stage("space", 0.08, 0.1, "Comparing the two in space"):
        grid = space.choose_grid(sources[0].volume, sources[1].volume, settings.grid)
        covers = tuple(space.coverage(s.volume, grid) for s in sources)
        report.overlap = space.overlap(sources[0].volume, sources[1].volume, covers)
        report.grid = {
            "name": settings.grid,
            "size": list(grid.size),
            "spacing": grid.spacing.tolist(),
            "ijk_to_physical": grid.matrix.tolist(),
        }
    if report.overlap == 0:
        raise FusionError("no_overlap", first=sources[0].name, second=sources[1].name)
    if report.overlap < LITTLE_OVERLAP:
        report.warnings.append(Notice("little_overlap", {"percent": round(100 * report.overlap)}))

    for n, source in enumerate(sources):
        start = 0.1 + 0.1 * n
        with run.stage("resample", start, start + 0.1, f"Resampling {source.name}"):
            source.values = run.aside(lambda tick, source=source: space.resample(source.volume, grid, tick))
            source.cover = covers[n]
    with cpu_threads(settings.threads):
        voxels = _fuse_slices(run, engine, grid, sources, paint)
    report.seconds = {name: round(seconds, 4) for name, seconds in run.seconds.items()}
    name = f"{sources[0].name} + {sources[1].name} fused, not for quantitation"
    result = Volume(voxels, grid.matrix.copy(), name=name, two_d=first.two_d, note=FILE_NOTE)
    run.last(1.0, "Done")
    return result, report


@dataclass
class _Source:
    """One input, made ready: scalar, finite, with its window; `chroma` (j, i, 2) of an RGB picture.

    `values` (k, j, i) are the volume's on the common grid, and `cover` says where there are any.
    """

    volume: Volume
    modality: str | None
    window: intensity.Window
    name: str
    chroma: np.ndarray | None = None
    eight_bit: bool = False
    values: np.ndarray | None = None
    cover: space.Coverage | None = None


@dataclass
class _Paint:
    """The colour map's chroma, and which source (0, 1) has it."""

    functional: int
    table: np.ndarray


def _check_pair(first: Volume, second: Volume) -> list[Volume]:
    """Raises FusionError unless the two can be compared at all."""
    names = {"first": first.name or "The first volume", "second": second.name or "the second volume"}
    if first.two_d != second.two_d:
        raise FusionError("dimensions_differ", **names)
    placeless = any(np.array_equal(v.ijk_to_physical, np.eye(4)) for v in (first, second))
    if first.two_d and placeless and first.size_ijk != second.size_ijk:
        sizes = {f"size_{n}": " x ".join(map(str, v.size_ijk[:2])) for n, v in (("first", first), ("second", second))}
        raise FusionError("sizes_differ", **names, **sizes)
    for name, volume in zip(names.values(), (first, second), strict=True):
        if volume.rgb and not volume.two_d:
            raise FusionError("volume_colour", name=name)
    return [replace(v, name=v.name or n) for v, n in ((first, "The first volume"), (second, "The second volume"))]


def _source(
    volume: Volume, modality: str | None, window: str | tuple | None, report: FusionReport, place: str
) -> _Source:
    modality = modality or intensity.guess_modality(volume)
    eight_bit, chroma = volume.two_d and volume.voxels.dtype == np.uint8, None
    if volume.rgb:
        chroma = colour.chroma(volume.voxels[0] / np.float32(255))
        volume = replace(volume, voxels=colour.luminance(volume.voxels))
    volume = _finite(volume, report)
    if volume.voxels.min() == volume.voxels.max():
        raise FusionError("volume_constant", name=volume.name)
    if eight_bit and window is None:
        window = (0.0, 255.0)
    elif modality is None and window is None:
        report.warnings.append(Notice("modality_unknown", {"name": volume.name}))
    chosen = intensity.choose_window(volume, modality, window)
    units = volume.units or ("HU" if modality == "CT" else None)
    report.windows[place] = {"low": chosen.low, "high": chosen.high, "source": chosen.source, "units": units}
    report.modalities[place] = modality
    return _Source(volume, modality, chosen, volume.name, chroma, eight_bit)


def _finite(volume: Volume, report: FusionReport) -> Volume:
    """The volume with its NaN and infinite voxels at its least value, in a copy. Raises FusionError "volume_nan"."""
    if volume.voxels.dtype.kind != "f":
        return volume
    bad = ~np.isfinite(volume.voxels)
    count = int(bad.sum())
    if not count:
        return volume
    if count == bad.size:
        raise FusionError("volume_nan", name=volume.name)
    report.warnings.append(Notice("not_finite", {"count": count, "name": volume.name}))
    voxels = volume.voxels.copy()
    voxels[bad] = voxels[~bad].min()
    return replace(volume, voxels=voxels)


def _paint(sources: list[_Source], settings: FusionSettings, report: FusionReport) -> _Paint | None:
    """The colour map and the volume that takes it, or None for a grey result."""
    if settings.colour is None:
        return None
    known = [source.modality in FUNCTIONAL for source in sources]
    if settings.functional is not None:
        index = ("first", "second").index(settings.functional)
    else:
        index = 0 if known == [True, False] else 1
        if known[0] == known[1]:
            report.warnings.append(Notice("functional_guess"))
    name = settings.colour if isinstance(settings.colour, str) else "table"
    report.colour = {"map": name, "volume": ("first", "second")[index]}
    return _Paint(index, colour.chroma_table(settings.colour))


def _fuse_slices(
    run: _Run, engine: Engine, grid: space.Grid, sources: list[_Source], paint: _Paint | None
) -> np.ndarray:
    """The resampled values, batch by batch, through windows, network and colour into the result's voxels."""
    picture = all(source.eight_bit for source in sources)
    in_colour = paint is not None or sources[0].chroma is not None
    shape = (*grid.shape, 3) if in_colour else grid.shape
    voxels = np.zeros(shape, np.uint8 if in_colour or picture else np.int16)
    count, height, width = grid.shape
    batch = engine.batch(height, width)
    for start in range(0, count, batch):
        stop = min(count, start + batch)
        message = f"Slice {start + 1} of {count}"
        with run.stage("fuse", 0.3 + 0.7 * start / count, 0.3 + 0.7 * stop / count, message):
            slabs = [source.window.apply(source.values[start:stop]) for source in sources]
            weights = [source.cover.slab(start, stop) for source in sources]
            uptake = slabs[paint.functional] * weights[paint.functional] if paint else None
            fused = _fuse_covered(engine, slabs, weights, run.beat)
        with run.stage("colour", 0.3 + 0.7 * stop / count, 0.3 + 0.7 * stop / count, message):
            if paint:
                voxels[start:stop] = colour.colourise(fused, uptake, paint.table)
            elif in_colour:
                voxels[start:stop] = np.rint(colour.put_back(fused, sources[0].chroma[None]) * 255)
            else:
                voxels[start:stop] = np.rint(fused * (255 if picture else SCALE))
    return voxels


def _fuse_covered(
    engine: Engine, slabs: list[np.ndarray], weights: list[np.ndarray], beat: Callable[[], None]
) -> np.ndarray:
    """Fused slab; where one volume ends the other takes its place, faded in, so that no edge of a box is seen.

    (n, j, i) float32 in [0, 1] each; a weight is how far a voxel lies inside its volume.
    """
    a, b = slabs
    wa, wb = weights
    if wa.min() == 1 and wb.min() == 1:
        return np.clip(engine.fuse(a, b, beat), 0, 1)
    # Each source, continued by the other beyond its end; outside both: black.
    a, b = (wa * a + (1 - wa) * wb * b), (wb * b + (1 - wb) * wa * a)
    both = np.minimum(wa, wb)
    alone = np.where(wa >= wb, a, b)
    if not both.any():
        return alone
    return np.clip(both * engine.fuse(a, b, beat) + (1 - both) * alone, 0, 1)


class _Run:
    """The caller's progress and cancel, and the seconds of each stage."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self.progress, self.cancelled = progress, cancelled
        self.seconds: dict[str, float] = {}
        self.said = 0.0
        self.span, self.message, self.part = (0.0, 0.0), "", 0.0

    @contextmanager
    def stage(self, name: str, start: float, stop: float, message: str) -> Iterator[None]:
        """From `start` to `stop` of the whole (0 to 1); seconds of stages of one name add up."""
        self.span, self.message, self.part = (start, stop), message, 0.0
        began = time.perf_counter()
        self.tick(0.0)
        yield
        self.tick(1.0)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def tick(self, part: float) -> None:
        """Part of the stage that is done (0 to 1). Raises Cancelled."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled
        self.part = part
        if self.progress is not None and time.monotonic() - self.said >= INTERVAL:
            self.last(self.span[0] + (self.span[1] - self.span[0]) * part, self.message)

    def aside(self, work: Callable[[space.Tick], T]) -> T:
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

        threading.Thread(target=target, daemon=True).start()
        try:
            while not done.wait(INTERVAL):
                self.tick(part[0])
        except BaseException:
            stop.set()
            raise
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]

    def beat(self) -> None:
        """A sign of life within the stage."""
        self.tick(self.part)

    def last(self, fraction: float, message: str) -> None:
        """Says so in any case."""
        self.said = time.monotonic()
        if self.progress is not None:
            self.progress(min(1.0, fraction), message)


def versions() -> dict[str, str]:
    """Of this package and of what it stands on."""
    found = {"ASFEFusion": __version__, "python": platform.python_version(), "numpy": np.__version__}
    from importlib.metadata import PackageNotFoundError, version

    for package in ("torch", "SimpleITK"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
