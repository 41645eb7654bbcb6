"""What a user chooses for a fusion, and what is reported of it: plain dataclasses that turn into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from .colour import check_colour
from .errors import STEPS, WARNINGS, FusionError
from .intensity import check_window
from .volume import Volume

GRIDS = ("first", "second", "finest")
# How the second volume is laid on the first: as it is, or searched; see `alignment.align` for the words of a search.
AS_LOADED = "as-loaded"
ALIGNMENTS = (AS_LOADED, "rigid", "rigid-any", "near")
# The slices that the network sees; the first: as suits grid and volumes, see `planes.slice_axis`.
PLANES = ("automatic", "axial", "coronal", "sagittal")
DEVICES = ("auto", "cpu", "cuda", "mps")
# What the shipped weights were trained on; and what is fused too, but with a warning: ultrasound, X-ray angiography and
# cone-beam CT (whose grey values are not HU).
TRAINED = ("CT", "MR", "PET", "SPECT")
MODALITIES = (*TRAINED, "US", "XA", "CBCT")


@dataclass
class FusionSettings:
    """Choices for `fusion.fuse`; values are checked when made. Raises FusionError "setting_unknown" and the like.

    `grid`: voxel grid of the result: "first" or "second" volume's own, or "finest": the first's axes and field of view
    at the smaller spacing of the two.
    `window_first`, `window_second`: (low, high) in the volume's own units (HU, SUV, Bq/mL, or arbitrary), the name of a
    preset (`intensity.PRESETS`), or None: a rule for the modality (see `intensity.automatic_window`).
    `modality_first`, `modality_second`: one of `MODALITIES` where the file does not say; None: as it says.
    `colour`: name of a colour map (`colour.MAPS`) or an (n, 3) table of RGB in [0, 1] for the functional volume, which
    makes the result RGB; None: the result is grey.
    `functional`: which volume takes the colour: "first", "second", or None: the one that is PET or SPECT, else the
    second.
    `device`: "auto" takes CUDA, then Apple's MPS, then the CPU.
    `weights`: name of shipped weights or path of a file; None: the default.
    `threads`: CPU threads for torch; None: as torch has them.
    `allow_blank`: 8-bit pictures of one value are fused too (the empty slices of a stack) and not refused.
    `region`: (n, 3) points in LPS mm of the first volume's space: the result is the part of the grid that their
    bounding box along the grid's axes covers; None: all of it.
    `align`: "as-loaded" (the volumes lie as they should), or a search for the rigid pose of the second volume: "rigid"
    (within 30 degrees of how it lies), "rigid-any" (all orientations; never trusted by itself), "near" (refines how it
    lies). `check`: volumes as loaded are judged, and a warning says if they look misaligned.
    `plane`: the slices in which the network sees the volumes: "axial", "coronal", "sagittal" (as near as the grid's own
    axes come to it), or "automatic": see `planes.slice_axis`. The result's grid is the same in any case.
    `lattice`: a grid of its own instead of `grid`: (size (i, j, k), 4 x 4 matrix from (i, j, k, 1) to LPS mm); None.
    """

    grid: str = "first"
    window_first: str | tuple[float, float] | None = None
    window_second: str | tuple[float, float] | None = None
    modality_first: str | None = None
    modality_second: str | None = None
    colour: Any = None
    functional: str | None = None
    device: str = "auto"
    weights: str | None = None
    threads: int | None = None
    allow_blank: bool = False
    region: Any = None
    lattice: Any = None
    align: str = AS_LOADED
    check: bool = True
    plane: str = "automatic"

    def __post_init__(self) -> None:
        _choice("grid", self.grid, GRIDS)
        _choice("device", self.device, DEVICES)
        _choice("plane", self.plane, PLANES)
        _choice("align", self.align, ALIGNMENTS)
        _choice("functional", self.functional, ("first", "second", None))
        for name in ("modality_first", "modality_second"):
            _choice(name, getattr(self, name), (*MODALITIES, None))
        self.window_first = check_window(self.window_first)
        self.window_second = check_window(self.window_second)
        self.colour = check_colour(self.colour)
        self.weights = None if self.weights is None else str(self.weights)
        if self.threads is not None and not (isinstance(self.threads, Integral) and int(self.threads) > 0):
            raise FusionError("setting_not_positive", name="threads", value=self.threads)
        self.region = _check_region(self.region)
        self.lattice = _check_lattice(self.lattice)


def _choice(name: str, value: object, choices: tuple) -> None:
    if not (value is None or isinstance(value, str)) or value not in choices:
        names = ", ".join(str(c) for c in choices if c is not None)
        raise FusionError("setting_unknown", name=name, value=value, choices=names)


def _check_region(region: object) -> list[list[float]] | None:
    if region is None:
        return None
    points = _numbers(region)
    if points is None or points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise FusionError("setting_unknown", name="region", value=region, choices="(n, 3) points in LPS mm")
    return points.tolist()


def _check_lattice(lattice: object) -> tuple[tuple[int, int, int], list[list[float]]] | None:
    if lattice is None:
        return None
    try:
        size, matrix = lattice
        size = tuple(int(n) for n in size)
        matrix = _numbers(matrix)
    except (TypeError, ValueError):
        size, matrix = (), None
    if len(size) != 3 or min(size) < 1 or matrix is None or matrix.shape != (4, 4):
        raise FusionError("setting_unknown", name="lattice", value=lattice, choices="(size, 4 x 4 matrix)")
    return size, matrix.tolist()


def _numbers(values: object) -> np.ndarray | None:
    """The values as finite float64, or None."""
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError):
        return None
    return array if np.isfinite(array).all() else None


@dataclass
class Step:
    """What a run is at: a key of `errors.STEPS` and the facts of its words; `str()` gives them in English."""

    code: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return STEPS[self.code].format(**self.facts)


@dataclass
class Notice:
    """A warning: a key of `errors.WARNINGS`, the facts of its sentence; `str()` gives it in English."""

    code: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return WARNINGS[self.code].format(**self.facts)


def remarks(volume: Volume) -> list[Notice]:
    """What is to be said of how the volume was read."""
    return [Notice(code, {"name": volume.name, **facts}) for code, facts in volume.notices]


@dataclass
class FusionReport:
    """What was done.

    `grid`: name, size (i, j, k), spacing (mm), ijk_to_physical (LPS, mm), the anatomical plane nearest to the slices
    that the network saw (`plane`) and the grid's axis across them (`slice_axis`: "i", "j" or "k"). `windows`: for
    "first" and "second" the low and high value (the volume's units) and where they come from. `overlap`: common volume
    in space over that of the smaller of the two. `seconds`: by stage; `slice_seconds`: of the network until the first
    batch of slices ("first"), and for each slice after it ("later"). `device`: where the network ran at last.
    `colour`: the map (name or table) and which
    volume has it, or None.
    `alignment`: `alignment.Alignment.to_dict()`, of which volumes that were judged as loaded have `search`, `matrix`
    (identity), `trusted`, `confidence`, `reasons` and `verdict`; None: not judged. Its matrix takes points of the first
    volume to points of the second as it was given, LPS mm.
    """

    grid: dict[str, Any] = field(default_factory=dict)
    windows: dict[str, dict[str, Any]] = field(default_factory=dict)
    modalities: dict[str, str | None] = field(default_factory=dict)
    overlap: float = 0.0
    device: str = ""
    weights_name: str = ""
    weights_sha256: str = ""
    colour: dict[str, Any] | None = None
    alignment: dict[str, Any] | None = None
    displacement: float | None = None
    checksums: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    slice_seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[Notice] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    note: str = "Fused voxels are derived: not for quantitation, not clinically validated."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; each warning as its code, facts and sentence."""
        values = asdict(self)
        values["warnings"] = [{"code": w.code, "facts": w.facts, "text": str(w)} for w in self.warnings]
        return values
