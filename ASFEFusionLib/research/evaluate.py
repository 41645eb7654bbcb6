"""Scores of fused images: one row a slice, their mean and standard deviation, and a paired test of two methods."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..errors import FusionError
from . import metrics
from .cases import Case

FLICKER = "Flicker"
NAMES = (*metrics.METRICS, FLICKER)
# Slices that are scored at a time: few stay in the processor's cache.
BATCH = 4
# A row: "image", "slice" (a number, or "" of a picture), and the metrics (nan: not defined there).
Row = dict[str, object]
# {metric: one value for each image, or slice of a single volume}, in the same order for each method.
Units = dict[str, np.ndarray]


def choose_metrics(names: Iterable[str] | None) -> list[str]:
    """The metrics of these names in the usual order, in whatever case they are written; None: all.

    Raises FusionError "setting_unknown".
    """
    if names is None:
        return list(NAMES)
    known = {name.lower(): name for name in NAMES}
    for name in names:
        if name.lower() not in known:
            raise FusionError("setting_unknown", name="metrics", value=name, choices=", ".join(NAMES))
    chosen = {known[name.lower()] for name in names}
    return [name for name in NAMES if name in chosen]


def check_cases(cases: list[Case], names: list[str]) -> None:
    """Raise FusionError: "slices_small" for one of the metrics; "flicker_alone", of pictures or single slices."""
    if names == [FLICKER] and all(len(case.a) == 1 for case in cases):
        raise FusionError("flicker_alone")
    for case in cases:
        height, width = case.a.shape[1:3]
        for name in names:
            least = metrics.LEAST_SIDE.get(name, 2)
            if min(height, width) < least:
                raise FusionError("slices_small", path=case.name, size=f"{width} x {height}", metric=name, least=least)


def stack(slices: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w) -> float32 (n, 1, h, w) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(slices)).float().div(255).unsqueeze(1)


def score_case(
    case: Case, fused: np.ndarray, names: list[str], every: int = 1, beat: Callable[[], None] = lambda: None
) -> list[Row]:
    """The metrics of what was fused, uint8 (n, h, w): one row a slice. `beat` is called after every few slices.

    Of volumes only slices that show something of both sources are judged, of these each `every`-th, and the flicker is
    that of the step to the next slice; the last slice and pictures have none.
    """
    chosen = case.both[::every]
    plain = [name for name in names if name != FLICKER]
    rows: list[Row] = []
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        found = metrics.score(*(stack(x[part]) for x in (case.a, case.b, fused)), plain)
        for n, number in enumerate(part):
            row: Row = {"image": case.name, "slice": "" if case.picture else number}
            row |= {name: float(found[name][n]) for name in plain}
            if FLICKER in names:
                step = slice(number, number + 2)
                change = metrics.flicker(*(stack(x[step]).double() for x in (case.a, case.b, fused)))
                row[FLICKER] = float(change[0]) if len(change) else math.nan
            rows.append(row)
        beat()
    return rows


def units(rows: list[Row], names: list[str]) -> Units:
    """What statistics count: pictures, or volumes by the mean of their slices; the slices of a single volume."""
    images: dict[str, list[Row]] = {}
    for row in rows:
        images.setdefault(str(row["image"]), []).append(row)
    groups = list(images.values()) if len(images) > 1 else [[row] for row in rows]
    return {name: np.array([_mean([float(row[name]) for row in group]) for group in groups]) for name in names}


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def counted(rows: list[Row]) -> str:
    """What the statistics of these rows stand on, in words."""
    images = len({row["image"] for row in rows})
    if all(row["slice"] == "" for row in rows):
        return f"{images} pictures" if images > 1 else "1 picture"
    return f"{images} volumes, {len(rows)} slices" if images > 1 else f"{len(rows)} slices of one volume"


def defined(found: Units) -> list[str]:
    """The metrics that have a value at all: pictures have no flicker."""
    return [name for name, values in found.items() if not np.isnan(values).all()]


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) of `count` values; a single one has no deviation (nan)."""

    mean: float
    deviation: float
    count: int


def spread(values: np.ndarray) -> Spread:
    """Of the values that are not nan."""
    known = values[~np.isnan(values)]
    return Spread(float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else math.nan, len(known))


class Paired(NamedTuple):
    """Of two methods on the same images: the median of first less second, p, and p for all metrics together (Holm)."""

    median: float
    p: float
    holm: float


def paired_tests(first: Units, second: Units) -> dict[str, Paired]:
    """Wilcoxon's signed-rank test, two-sided, of each metric (scipy); Holm's correction for their number (Holm 1979).

    It takes the images for independent of each other. Slices of one person are not, and then p is too small.
    """
    from scipy.stats import wilcoxon

    medians, ps = {}, {}
    for name, values in first.items():
        difference = values - second[name]
        difference = difference[~np.isnan(difference)]
        medians[name] = float(np.median(difference))
        ps[name] = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    found, least = {}, 0.0
    for n, name in enumerate(sorted(ps, key=ps.get)):
        least = max(least, min(1.0, (len(ps) - n) * ps[name]))
        found[name] = Paired(medians[name], ps[name], least)
    return {name: found[name] for name in first}


def heading(name: str) -> str:
    """The metric with an arrow to its better side; none where it is no merit."""
    return name if name in metrics.UNRANKED else f"{name} {'↓' if name in metrics.LOWER else '↑'}"


def cell(value: float) -> str:
    """Three decimals; two from 10 on; nothing for nan."""
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def small(p: float) -> str:
    """A p of three digits."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def summary(found: dict[str, Units]) -> tuple[list[str], list[list[object]]]:
    """Head and rows of the table over all metrics: mean and deviation of one method, or two of them and the test."""
    head: list[str] = ["metric"]
    for name in found:
        head += [f"{name} mean", f"{name} SD"]
    names = defined(next(iter(found.values())))
    tests = {}
    if len(found) == 2:
        head += ["median difference", "p", "p (Holm)"]
        tests = paired_tests(*({name: values[name] for name in names} for values in found.values()))
    rows: list[list[object]] = []
    for name in names:
        row: list[object] = [name]
        for values in found.values():
            row += spread(values[name])[:2]
        rows.append([*row, *tests.get(name, ())])
    return head, rows


def summary_text(head: list[str], rows: list[list[object]]) -> str:
    """The summary as a Markdown table."""
    tested = "p" in head
    lines = []
    for name, *values in rows:
        shown = [cell(v) for v in (values[:-2] if tested else values)]
        lines.append([heading(str(name)), *shown, *(small(p) for p in (values[-2:] if tested else []))])
    return markdown(head, lines)


def write_csv(path: Path, head: list[str], rows: Iterable[Iterable[object]]) -> None:
    """A CSV file; numbers with six digits, nothing for nan."""

    def text(value: object) -> object:
        if isinstance(value, float):
            return "" if math.isnan(value) else f"{value:.6g}"
        return value

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows([text(value) for value in row] for row in rows)
