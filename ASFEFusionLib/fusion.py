"""fuse(): two volumes in, one fused volume and a report out, through all the rooms on the way."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from . import __version__, colour, grids, intensity, planes, space
from .alignment.place import place_second
from .coverage import Coverage, coverage, overlap
from .engine import Engine, cpu_threads
from .errors import FusionError
from .progress import Progress, Run
from .settings import TRAINED, FusionReport, FusionSettings, Notice, Step, remarks
from .volume import Volume, check_geometry, check_voxels

PLACES = ("first", "second")
FUNCTIONAL = ("PET", "SPECT")
# Scalar results: 0..1000 without units, so that nobody takes them for HU.
SCALE = 1000
LITTLE_OVERLAP = 0.5
FILE_NOTE = f"ASFEFusion {__version__}: fused, derived, not for quantitation"
# Voxels around a region of interest that the network sees too, so that its ends are no ends of the picture.
HALO = 32
# Part of a run that is over when the first slice comes.
SLICES_FROM = 0.2


def fuse(
    first: Volume,
    second: Volume,
    settings: FusionSettings | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    displacement: space.Displacement | None = None,
) -> tuple[Volume, FusionReport]:
    """Two registered volumes of one patient -> the fused volume on the chosen grid, and what was done.

    `first`, `second`: scalar volumes (any spacing, orientation and field of view; LPS, mm), or two 2-D pictures, grey
    or RGB of 8 bits. They stay as they are. `settings`: see `FusionSettings`.
    The result is int16 from 0 to 1000 without units (derived: not for quantitation); uint8 RGB with a colour map;
    uint8 for two pictures of 8 or 16 bits, in the first one's own colour if it has one.
    The second volume is searched a place first if `settings.align` says so; else the two are judged as they lie, which
    takes a second or two, and a doubt is among the report's warnings.
    `progress(fraction, step)` is called at least once a second (`str(step)` says in English what it is at);
    `cancelled()` is asked as often, within a batch too. Both are called from the caller's own thread.
    `displacement`: where the points of the first volume's space lie in that of the second, if not at the same place.

    Raises FusionError (bad input, no overlap, weights, device, memory) and Cancelled.
    """
    settings = replace(settings) if settings else FusionSettings()  # checked once more: fields may have been set since
    try:
        return _fuse(first, second, settings, Run(progress, cancelled), displacement)
    except MemoryError as error:
        raise FusionError("memory_out", device="this machine") from error
    except RuntimeError as error:  # ITK's and torch's own ways to say so
        if "allocate memory" in str(error):
            raise FusionError("memory_out", device="this machine") from error
        raise


def _fuse(
    first: Volume, second: Volume, settings: FusionSettings, run: Run, displacement: space.Displacement | None
) -> tuple[Volume, FusionReport]:
    report = FusionReport(versions=versions())
    pair = _check_pair(first, second, settings)
    with run.stage("windows", 0.0, 0.04, Step("values")):
        for place, volume in zip(PLACES, pair, strict=True):
            named = getattr(settings, f"modality_{place}")
            modality = report.modalities[place] = named or intensity.guess_modality(volume)
            if modality not in (*TRAINED, None):
                report.warnings.append(Notice("not_trained", {"name": volume.name, "modality": modality}))
        sources = run.aside(
            lambda _: [_source(volume, place, settings, report) for volume, place in zip(pair, PLACES, strict=True)]
        )
        paint = _paint(sources, settings, report)
    with run.stage("network", 0.04, 0.08, Step("weights")):
        engine = run.aside(lambda _: Engine(settings.weights, settings.device))
    report.weights_name, report.weights_sha256 = engine.weights_name, engine.weights_hash
    moved = place_second(run, (sources[0].volume, sources[1].volume), settings, displacement, report)
    sources[1].volume, pair[1] = moved, replace(pair[1], ijk_to_physical=moved.ijk_to_physical)

    displacements = (None, displacement)
    with run.stage("space", 0.08, 0.1, Step("space")):
        ground = _ground(pair, settings, displacement, report)
        grid, inner = ground.seen, ground.inner
        covers = tuple(coverage(s.volume, ground.whole, d) for s, d in zip(sources, displacements, strict=True))
        report.overlap = overlap(sources[0].volume, sources[1].volume, covers, run.tick)
    if report.overlap == 0:
        raise FusionError("no_overlap", first=sources[0].name, second=sources[1].name)
    if report.overlap < LITTLE_OVERLAP:
        report.warnings.append(Notice("little_overlap", {"percent": round(100 * report.overlap)}))

    for n, source in enumerate(sources):
        start = 0.1 + 0.05 * n
        bent = displacements[n]
        with run.stage("resample", start, start + 0.05, Step("resample", {"name": source.name})):
            source.reader = run.aside(lambda tick, v=source.volume, d=bent: space.Reader(v, grid, tick, d))
            source.cover = coverage(source.volume, grid, bent)
    if inner is not None:
        part = grids.cut_out(grid, inner)
        covers = [coverage(s.volume, part, d) for s, d in zip(sources, displacements, strict=True)]
        if overlap(sources[0].volume, sources[1].volume, covers) == 0:
            report.warnings.append(Notice("region_alone"))
    with cpu_threads(settings.threads):
        voxels = _fuse_slices(run, engine, sources, paint, scalar_type=result_type(first, second), order=ground.order)
    report.device = engine.device  # at last: short memory changes it
    report.slice_seconds = {name: round(seconds, 4) for name, seconds in engine.slice_seconds.items()}
    report.warnings.extend(engine.notices)
    if inner is not None:
        voxels = voxels[inner]
    voxels = np.ascontiguousarray(grids.turned_voxels(voxels, np.argsort(ground.order)))
    report.seconds = {name: round(seconds, 4) for name, seconds in run.seconds.items()}
    name = f"{sources[0].name} + {sources[1].name} fused, not for quantitation"
    result = Volume(voxels, ground.result.matrix.copy(), name=name, two_d=first.two_d, note=FILE_NOTE)
    run.last(1.0, Step("done"))
    return result, report


@dataclass
class _Ground:
    """Where the work is done.

    `result`: the grid of the result. `whole`: the one on which the overlap is judged; it differs for a region of
    interest and for a lattice: what those leave out still tells how the volumes meet. `seen`: the one that the network
    works on, its slices along the last axis; `order`: which axes of the result's grid its axes are. `inner`: the part
    of it that is the result, or None for all.
    """

    result: grids.Grid
    whole: grids.Grid
    seen: grids.Grid
    order: tuple[int, int, int]
    inner: tuple[slice, slice, slice] | None = None


def _ground(
    pair: list[Volume], settings: FusionSettings, displacement: space.Displacement | None, report: FusionReport
) -> _Ground:
    """The grids of this run; that of the result goes into the report. Raises FusionError."""
    bent = displacement is not None
    if bent and settings.grid == "second" and settings.lattice is None:
        raise FusionError("grid_bent", name=pair[1].name)
    report.displacement = round(displacement.greatest, 3) if bent else None
    whole = grid = grids.choose_grid(pair[0], pair[1], settings.grid)
    name = settings.grid
    if settings.lattice is not None:
        size, matrix = settings.lattice
        grid, name = grids.Grid(size, np.array(matrix)), "lattice"
    axis = planes.slice_axis(grid, settings.plane, pair)
    doubt = planes.doubt(grid, axis, settings.plane)
    report.warnings.extend([doubt] if doubt else [])
    order = planes.order_of(grid, axis)
    grid = grids.turned(grid, order)
    inner = None
    result = grid
    if settings.region is not None:
        part = grids.part_of(grid, settings.region)
        if part is None:
            raise FusionError("region_outside", name=pair[0].name)
        around = grids.part_of(grid, settings.region, HALO)
        result, grid = grids.cut_out(grid, part), grids.cut_out(grid, around)
        inner = tuple(slice(p.start - a.start, p.stop - a.start) for p, a in zip(part, around, strict=True))
    grids.check_size(grid)
    report.warnings.extend(large(grid))
    check_geometry(grid.matrix, pair[0].name)
    if np.prod(whole.size, dtype=float) > grids.MOST_VOXELS:
        whole = grids.grid_of(pair[0])
    result = grids.turned(result, np.argsort(order))
    report.grid = {
        "name": name,
        "size": list(result.size),
        "spacing": result.spacing.tolist(),
        "ijk_to_physical": result.matrix.tolist(),
        "plane": planes.name_of(result, axis),
        "slice_axis": "ijk"[axis],
    }
    return _Ground(result, whole, grid, order, inner)


def result_type(first: Volume, second: Volume) -> type:
    """Voxel type of a grey result: uint8 for two pictures of whole numbers, else int16."""
    pictures = first.two_d and all(v.voxels.dtype in (np.uint8, np.uint16) for v in (first, second))
    return np.uint8 if pictures else np.int16


def large(grid: grids.Grid) -> list[Notice]:
    """A notice of what a fusion on the grid needs, if that is much; else none. To be said before the work begins."""
    if grids.memory_needed(grid) <= grids.LARGE:
        return []
    return [Notice("grid_large", grids.memory_facts(grid))]


def result_like(first: Volume, second: Volume, settings: FusionSettings) -> Volume:
    """A volume of the size, place and voxel type that the fused one will have, without memory of its own.

    For checks before the work. Raises FusionError "grid_too_large", "grid_memory".
    """
    grid = grids.choose_grid(first, second, settings.grid)
    grids.check_size(grid)
    in_colour = first.rgb or settings.colour is not None
    kind, shape = (np.uint8, (*grid.shape, 3)) if in_colour else (result_type(first, second), grid.shape)
    return Volume(np.broadcast_to(np.zeros((), kind), shape), grid.matrix, two_d=first.two_d)


@dataclass
class _Source:
    """One input, made ready: scalar, finite, with its window; `chroma` (j, i, 2) of an RGB picture.

    `reader` gives the volume's values on the common grid, and `cover` says where there are any. `ready` are those from
    slice `begin` on, windowed: so many that it pays, however few are asked for.
    """

    volume: Volume
    modality: str | None
    window: intensity.Window
    name: str
    chroma: np.ndarray | None = None
    eight_bit: bool = False
    reader: space.Reader | None = None
    cover: Coverage | None = None
    ready: np.ndarray | None = None
    begin: int = 0

    def slab(self, start: int, stop: int, run: Run) -> np.ndarray:
        """Windowed values, float32 (stop - start, j, i) in [0, 1]; slices are asked for in their order. Cancelled."""
        if self.ready is None or stop > self.begin + len(self.ready):
            end = min(self.cover.grid.size[2], max(stop, start + self.reader.thick))
            self.ready = None  # gone before the next ones come
            self.ready = self.window.apply(run.aside(lambda tick: self.reader.read(start, end, tick)))
            self.begin = start
        return self.ready[start - self.begin : stop - self.begin]


@dataclass
class _Paint:
    """The colour map's Y, Cb and Cr, and which source (0, 1) has it."""

    functional: int
    table: np.ndarray


def _check_pair(first: Volume, second: Volume, settings: FusionSettings) -> list[Volume]:
    """Both volumes with a name. Raises FusionError unless they can be compared at all."""
    first = replace(first, name=first.name or "The first volume")
    second = replace(second, name=second.name or "The second volume")
    names = {"first": first.name, "second": second.name}
    for volume in (first, second):
        check_voxels(volume, volume.name)
        # Only the volume that lends its grid need have axes at right angles.
        lends = volume is first if settings.grid != "second" else volume is second
        check_geometry(volume.ijk_to_physical, volume.name, sheared=not lends)
        if volume.rgb and not volume.two_d:
            raise FusionError("volume_colour", name=volume.name)
    if first.two_d != second.two_d:
        raise FusionError("dimensions_differ", **names)
    if first.two_d and any(np.array_equal(v.ijk_to_physical, np.eye(4)) for v in (first, second)):
        # A picture has no place of its own: it lies on the other, pixel by pixel.
        if first.size_ijk != second.size_ijk:
            sizes = (" x ".join(map(str, v.size_ijk[:2])) for v in (first, second))
            raise FusionError("sizes_differ", **names, **dict(zip(("size_first", "size_second"), sizes, strict=True)))
        second = replace(second, ijk_to_physical=first.ijk_to_physical)
    if first.rgb and settings.grid != "first":
        raise FusionError("picture_grid", name=first.name)
    if first.rgb and settings.colour is not None:
        raise FusionError("picture_colour", name=first.name)
    return [first, second]


def _source(volume: Volume, place: str, settings: FusionSettings, report: FusionReport) -> _Source:
    """The volume at `place` ("first", "second") made ready; its window goes into the report."""
    modality = report.modalities[place]
    partner = report.modalities["second" if place == "first" else "first"]
    window = getattr(settings, f"window_{place}")
    eight_bit, chroma = intensity.eight_bit(volume), None
    report.warnings.extend(remarks(volume))
    report.checksums[place] = zlib.crc32(np.ascontiguousarray(volume.voxels))
    if volume.rgb:
        chroma = colour.chroma(volume.voxels[0] / np.float32(255))
        volume = replace(volume, voxels=colour.luminance(volume.voxels))
    volume = _finite(volume, report)
    if volume.voxels.min() == volume.voxels.max() and not (eight_bit and settings.allow_blank):
        raise FusionError("volume_constant", name=volume.name)
    if modality is None and window is None and not eight_bit:
        report.warnings.append(Notice("modality_unknown", {"name": volume.name}))
    as_it_is = eight_bit and window is None
    chosen = intensity.EIGHT_BIT if as_it_is else intensity.choose_window(volume, modality, window, partner)
    units = volume.units or ("HU" if modality == "CT" else None)
    report.windows[place] = {"low": chosen.low, "high": chosen.high, "source": chosen.source, "units": units}
    return _Source(volume, modality, chosen, volume.name, chroma, eight_bit)


def _finite(volume: Volume, report: FusionReport) -> Volume:
    """The volume with its NaN and infinite voxels at its least value, in a copy. Raises FusionError "volume_nan"."""
    if volume.voxels.dtype.kind != "f":
        return volume
    if volume.voxels.dtype.itemsize > 4:  # what float32 cannot hold becomes infinite, and so is found below
        with np.errstate(over="ignore"):
            volume = replace(volume, voxels=volume.voxels.astype(np.float32))
    count = volume.voxels.size - sum(np.count_nonzero(np.isfinite(plane)) for plane in volume.voxels)
    if not count:
        return volume
    if count == volume.voxels.size:
        raise FusionError("volume_nan", name=volume.name)
    report.warnings.append(Notice("not_finite", {"count": count, "name": volume.name}))
    voxels = volume.voxels.copy()
    bad = ~np.isfinite(voxels)
    voxels[bad] = voxels[~bad].min()
    return replace(volume, voxels=voxels)


def _paint(sources: list[_Source], settings: FusionSettings, report: FusionReport) -> _Paint | None:
    """The colour map and the volume that takes it, or None for a grey result."""
    if settings.colour is None:
        return None
    known = [source.modality in FUNCTIONAL for source in sources]
    if settings.functional is not None:
        index = PLACES.index(settings.functional)
    else:
        index = 0 if known == [True, False] else 1
        if known[0] == known[1]:
            report.warnings.append(Notice("functional_guess"))
    report.colour = {"map": settings.colour, "volume": PLACES[index]}
    return _Paint(index, colour.map_table(settings.colour))


def _fuse_slices(
    run: Run,
    engine: Engine,
    sources: list[_Source],
    paint: _Paint | None,
    *,
    scalar_type: type,
    order: tuple[int, int, int],
) -> np.ndarray:
    """The volumes' values, batch by batch, through windows, network and colour into the result's voxels.

    Nothing but that result is ever held for the whole grid.
    They are a view (k, j, i) of the grid that the network works on; the memory is in the order of the result's axes, so
    that turning them back needs no copy.
    """
    grid = sources[0].cover.grid
    count, height, width = grid.shape
    in_colour = paint is not None or sources[0].chroma is not None
    shape = grids.turned(grid, np.argsort(order)).shape
    voxels = np.zeros((*shape, 3) if in_colour else shape, np.uint8 if in_colour else scalar_type)
    voxels = grids.turned_voxels(voxels, order)
    scale = 255 if scalar_type == np.uint8 else SCALE
    batch = engine.batch(height, width)
    for start in range(0, count, batch):
        stop = min(count, start + batch)
        message = Step("slices", {"number": start + 1, "count": count})
        done, then = (SLICES_FROM + (1 - SLICES_FROM) * n / count for n in (start, stop))
        with run.stage("resample", done, done, message):
            slabs = [source.slab(start, stop, run) for source in sources]
        with run.stage("cover", done, done, message):
            weights = [source.cover.slab(start, stop) for source in sources]
        if paint:
            with run.stage("colour", done, done, message):
                n = paint.functional
                uptake = slabs[n] * weights[n]
                slabs[n] = colour.map_luminance(slabs[n], paint.table)
        with run.stage("fuse", done, then, message):
            fused = _fuse_covered(engine, slabs, weights, run.beat)
        with run.stage("colour", then, then, message):
            if paint:
                voxels[start:stop] = colour.colourise(fused, uptake, paint.table)
            elif in_colour:
                voxels[start:stop] = np.rint(colour.put_back(fused, sources[0].chroma[None]) * 255)
            else:
                voxels[start:stop] = np.rint(fused * scale)
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
