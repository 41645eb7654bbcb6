"""The second volume laid on the first as the settings say, and what is to be said about how the two lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..coverage import coverage
from ..errors import FusionError
from ..grids import Grid, grid_of
from ..progress import Progress, Run
from ..settings import AS_LOADED, FusionReport, FusionSettings, Notice, Step
from ..space import Displacement, resample
from ..volume import Volume
from . import transforms
from .levels import SPACINGS
from .rigid import align
from .verdict import Verdict, check

# Parts of a whole run that the search and the check take, about.
SEARCHING, CHECKING = 0.3, 0.1


def place_second(
    run: Run,
    pair: tuple[Volume, Volume],
    settings: FusionSettings,
    displacement: Displacement | None,
    report: FusionReport,
) -> Volume:
    """The second volume where it belongs on the first: searched (`settings.align`), or as it is, and then judged.

    Only its geometry changes. What was found goes into `report.alignment`, its doubts into `report.warnings`. Pictures
    are neither searched nor judged, single slices (`settings.lattice`) and runs without `settings.check` not judged.

    FusionError: "align_bent" (there is a displacement, beside which nothing is searched), those of `align`. Raises
    Cancelled.
    """
    first, second = pair
    if settings.align != AS_LOADED:
        if displacement is not None:
            raise FusionError("align_bent", name=second.name)
        with run.inserted("alignment", SEARCHING) as progress:
            found = align(first, second, settings.align, progress, run.cancelled)
        report.alignment = found.to_dict()
        report.warnings += found.verdict.reasons
        return transforms.moved(second, found.matrix)
    if settings.check and settings.lattice is None and not first.two_d:
        with run.inserted("alignment", CHECKING) as progress:
            inner = Run(progress, run.cancelled)
            with inner.stage("check", 0.0, 1.0, Step("align_check")):
                verdict = inner.aside(lambda tick: _judged(first, second, displacement, tick))
        report.alignment = {"search": AS_LOADED, **_plain(verdict)}
        report.warnings += verdict.reasons
    return second


def look(
    first: Volume,
    second: Volume,
    settings: FusionSettings,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    displacement: Displacement | None = None,
) -> tuple[None, FusionReport]:
    """The alignment alone, as `fusion.fuse` would do it or judge it: no volume, and a report of `alignment`, `warnings`
    and `seconds`. FusionError as `place_second`; raises Cancelled.
    """
    share = CHECKING if settings.align == AS_LOADED else SEARCHING
    told = None if progress is None else lambda part, step: progress(min(1.0, part / share), step)
    run, report = Run(told, cancelled), FusionReport()
    pair = tuple(replace(v, name=v.name or n) for v, n in ((first, "The first volume"), (second, "The second volume")))
    place_second(run, pair, replace(settings, check=True, lattice=None), displacement, report)
    report.seconds = {name: round(seconds, 4) for name, seconds in run.seconds.items()}
    if progress is not None:
        progress(1.0, Step("done"))
    return None, report


def _judged(first: Volume, second: Volume, displacement: Displacement | None, tick: Any) -> Verdict:
    numbers = not (first.rgb or second.rgb) and np.isfinite(second.voxels)
    if displacement is None or not np.any(numbers):
        return check(first, second, tick=tick)
    if not np.all(numbers):
        second = replace(second, voxels=np.where(numbers, second.voxels, second.voxels[numbers].min()))
    grid = _coarse(grid_of(first))
    try:
        values = resample(second, grid, lambda part: tick(0.3 * part), displacement)
    except FusionError as error:
        if error.code not in ("geometry_sheared", "resample_failed"):
            raise
        verdict = Verdict(True, 1.0)
        verdict.doubt(Notice("align_unjudged", {"name": second.name}))
        return verdict
    outside = coverage(second, grid, displacement).slab(0, grid.size[2]) == 0
    values[outside] = values.min()
    bent = Volume(values, grid.matrix, name=second.name)
    return check(first, bent, tick=lambda part: tick(0.3 + 0.7 * part))


def _coarse(grid: Grid) -> Grid:
    """About the same box at the finest spacing that is compared; what is coarser stays."""
    steps = np.maximum(1, np.floor(SPACINGS[-1] / grid.spacing + 1e-6)).astype(int)
    steps = np.minimum(steps, np.array(grid.size))
    matrix = grid.matrix.copy()
    matrix[:3, :3] *= steps
    return Grid(tuple(int(-(-n // s)) for n, s in zip(grid.size, steps, strict=True)), matrix)


def _plain(verdict: Verdict) -> dict[str, Any]:
    """As `Alignment.to_dict` says it: trusted, confidence and reasons at the top."""
    values = verdict.to_dict()
    top = {name: values.pop(name) for name in ("trusted", "confidence", "reasons")}
    return {**top, "matrix": np.eye(4).tolist(), "verdict": values}
