"""Several methods on the same pairs: fused, scored and ranked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import FusionError
from . import metrics
from .baselines import BASELINES
from .cases import Case, as_shown
from .evaluate import BATCH, Row, Units, cell, heading, markdown, score_case, spread, stack

OURS, PAPER = "ours", "paper"
# Method -> slices a, b (N, 1, H, W) in [0, 1] -> fused, the same.
Fuse = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def choose_methods(names: list[str] | None) -> list[str]:
    """Names of methods as they are known, in whatever case they are written; None: ours and all classical ones.

    Raises FusionError "setting_unknown".
    """
    known = {name.lower(): name for name in (OURS, *BASELINES)}
    if names is None:
        return list(known.values())
    for name in names:
        if name.lower() not in known:
            raise FusionError("setting_unknown", name="methods", value=name, choices=", ".join(known.values()))
    return list(dict.fromkeys(known[name.lower()] for name in names))


def network(weights: str | None, device: str, published: bool = False) -> tuple[Fuse, str]:
    """A network as a method, and its name with the first digits of its file's SHA-256.

    Raises FusionError: those of `engine.Engine`; "weights_network" if `published` and the file holds another network.
    """
    from ..engine import Engine
    from ..network import PAPER as PUBLISHED

    engine = Engine(weights, device)
    if published and engine.net.config.name != PUBLISHED.name:
        raise FusionError("weights_network", path=weights, name=engine.net.config.name)

    def fuse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(engine.fuse(a[:, 0].numpy(), b[:, 0].numpy()))[:, None]

    return fuse, f"{engine.weights_name} {engine.weights_hash[:12]}"


def fuse_case(
    fuse: Fuse, case: Case, beat: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray | None, float]:
    """All slices of a case: luminance, picture in colour or None (see `as_shown`), and the method's own seconds."""
    parts, seconds = [], 0.0
    for start in range(0, len(case.a), BATCH):
        a, b = (stack(x[start : start + BATCH]) for x in (case.a, case.b))
        began = time.perf_counter()
        fused = fuse(a, b)
        seconds += time.perf_counter() - began
        parts.append(fused.clamp(0, 1).mul(255).round().squeeze(1).numpy().astype(np.uint8))
        beat()
    return *as_shown(np.concatenate(parts), case.a, case.rgb), seconds


@dataclass
class Entry:
    """One method of a comparison: `fuse`, or `images`, one (luminance, colour or None) a case, made elsewhere.

    `rows` are its scores, `pictures` what it made of the cases that are shown (uint8, grey or RGB, of one slice),
    `seconds` of each slice that it fused here.
    """

    name: str
    fuse: Fuse | None = None
    images: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    seconds: float | None = None


def run(
    entries: list[Entry],
    cases: list[Case],
    names: list[str],
    *,
    every: int = 1,
    shown: list[tuple[int, int]] | None = None,
    progress: Callable[[float, str], None] = lambda fraction, step: None,
) -> None:
    """Fuses and scores: fills the entries' rows, pictures and seconds. `shown`: (case, slice) to keep pictures of."""
    for turn, entry in enumerate(entries):
        total, slices = 0.0, 0
        for number, case in enumerate(cases):
            done = (turn + number / len(cases)) / len(entries)

            def beat(done: float = done, case: Case = case, entry: Entry = entry) -> None:
                progress(done, f"{entry.name} {case.name}")

            beat()
            if entry.fuse is None:
                grey, rgb = entry.images[number]
            else:
                grey, rgb, seconds = fuse_case(entry.fuse, case, beat)
                total, slices = total + seconds, slices + len(grey)
            entry.rows += score_case(case, grey, names, every, beat)
            wanted = [index for which, index in shown or [] if which == number]
            entry.pictures += [(grey if rgb is None else rgb)[index] for index in wanted]
        entry.seconds = total / slices if slices else None


def mean_ranks(means: dict[str, dict[str, float]]) -> dict[str, float]:
    """{method: {metric: mean}} -> the mean of each method's ranks (1: best) over the metrics that tell merit.

    Methods that are equal share the mean of their ranks. EN is not ranked, see `metrics.UNRANKED`.
    """
    from scipy.stats import rankdata

    methods = list(means)
    ranks = []
    for name in next(iter(means.values())):
        if name in metrics.UNRANKED:
            continue
        values = np.array([means[method][name] for method in methods])
        ranks.append(rankdata(values if name in metrics.LOWER else -values))
    mean = np.mean(ranks, axis=0) if ranks else np.full(len(methods), np.nan)
    return {method: float(value) for method, value in zip(methods, mean, strict=True)}


def ranking(entries: list[Entry], found: dict[str, Units], names: list[str]) -> tuple[list[str], list[list[object]]]:
    """Head and rows of the table, the best first: rank, method, means, deviations, seconds a slice."""
    means = {method: {name: spread(values[name]).mean for name in names} for method, values in found.items()}
    ranks = mean_ranks(means)
    head = ["mean rank", "method", *names, *(f"{name} SD" for name in names), "seconds a slice"]
    rows = []
    for entry in sorted(entries, key=lambda e: ranks[e.name]):
        deviations = [spread(found[entry.name][name]).deviation for name in names]
        seconds = "" if entry.seconds is None else entry.seconds
        rows.append([ranks[entry.name], entry.name, *means[entry.name].values(), *deviations, seconds])
    return head, rows


def ranking_text(names: list[str], rows: list[list[object]]) -> str:
    """The ranking as a Markdown table of means."""
    count = len(names)
    lines = []
    for rank, method, *values in rows:
        seconds = values[-1] if isinstance(values[-1], float) else float("nan")
        lines.append(
            ["" if math.isnan(rank) else f"{rank:.2f}", str(method), *map(cell, values[:count]), cell(seconds)]
        )
    return markdown(["mean rank ↓", "method", *map(heading, names), "s a slice"], lines)
