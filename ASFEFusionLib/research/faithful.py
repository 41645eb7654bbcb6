"""Does a fusion show only what its sources do? Figures on the left-out cases.

    python -m ASFEFusionLib.research.faithful DATA [--weights FILE] [--every 2] [--volumes FIRST SECOND ...]

Extremes: pixels that are brighter or darker than all eight neighbours, and at which the fused slice lies outside
[min(a, b), max(a, b)] by more than 2 % of the range. Edges in neither: of the fused slice's edges, those near which
neither source has half as strong a one. Lattice: pixels around which the fused slice alternates from one to the next,
by a grey level more than either source. All again with the second source shifted, as by a poor registration: how the
artefacts (Nabf) and the number of edges rise. The maximum of the sources stands beside it: it can invent nothing.

Flicker, of pairs of volumes: what the fused one changes from slice to slice, all voxels together, over the greater of
its sources' changes at each voxel. The mean, maximum or minimum of the sources have at most 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import metrics
from .baselines import maximum
from .cases import Case, Reading, load, read_case, stem
from .data import Pairs, read_pairs
from .validate import Fuse

# How far outside the sources' range (0 to 1) a value is an invention; rounding to 8 bits is none.
BEYOND = 0.02 + 0.5 / metrics.PEAK
# Sobel strength, in [0, 1], from which on there is an edge: that of a step of 20 grey levels.
EDGE = 4 * 20 / metrics.PEAK
SHIFTS = (1, 2)
# Amplitude of an alternation, in [0, 1], that counts as a lattice: a grey level.
LEVEL = 1 / metrics.PEAK
SHOWN = ("extremes outside (%)", "edges in neither (%)", "lattice (%)", "Nabf", "edges")


def extremes_outside(a: torch.Tensor, b: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """Part of the pixels at which f has an extreme outside the sources' range by more than `BEYOND`; (N,) of slices."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    padded = F.pad(f, (1, 1, 1, 1), mode="replicate")
    h, w = f.shape[-2:]
    around = [padded[..., y : y + h, x : x + w] for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    top, bottom = torch.stack(around).amax(0), torch.stack(around).amin(0)
    wrong = ((f > top) & (f > high + BEYOND)) | ((f < bottom) & (f < low - BEYOND))
    return wrong.flatten(1).float().mean(1)


def edges(f: torch.Tensor) -> torch.Tensor:
    """Where slices (N, 1, H, W) have an edge, bool."""
    return metrics.sobel(f)[2] > EDGE


def edges_in_neither(a: torch.Tensor, b: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """Part of the edge pixels of f within one pixel of which neither source has half that strength; (N,) of slices."""
    of_sources = torch.maximum(*(metrics.sobel(x)[2] for x in (a, b)))
    near = F.max_pool2d(of_sources, 3, stride=1, padding=1)
    alone = edges(f) & (near < 0.5 * metrics.sobel(f)[2])
    return alone.flatten(1).sum(1) / edges(f).flatten(1).sum(1).clamp(min=1)


def in_lattice(a: torch.Tensor, b: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """Part of the pixels at which f alternates beyond its sources by more than `LEVEL`; (N,) of slices."""
    return (metrics.lattice(a, b, f).amax(1) > LEVEL).flatten(1).float().mean(1)


def shifted(b: torch.Tensor, pixels: int) -> list[torch.Tensor]:
    """Slices moved by so many pixels across, and down; their end values follow."""
    height, width = b.shape[-2:]
    across = F.pad(b, (pixels, 0, 0, 0), mode="replicate")[..., :width]
    down = F.pad(b, (0, 0, pixels, 0), mode="replicate")[..., :height, :]
    return [across, down]


@torch.no_grad()
def judge(fuse: Fuse, pairs: Pairs, bar: bool = False) -> dict[int, dict[str, float]]:
    """{pixels of shift, 0 first: {figure: mean over the pairs}}; "edges" as a multiple of those without a shift."""
    rows: dict[int, list[list[float]]] = {shift: [] for shift in (0, *SHIFTS)}
    for index in tqdm(range(len(pairs.names)), desc=f"Judging {pairs.task}", leave=False, disable=not bar):
        a, b = pairs.tensors([index])
        for shift, some in rows.items():
            for second in shifted(b, shift) if shift else [b]:
                f = fuse(a, second).clamp(0, 1).mul(255).round().div(255)
                parts = [float(part(a, second, f)) for part in (extremes_outside, edges_in_neither, in_lattice)]
                some.append([100 * x for x in parts] + [float(metrics.nabf(a, second, f)), float(edges(f).sum())])
    means = {shift: torch.tensor(row).mean(0) for shift, row in rows.items()}
    still = means[0][-1].clamp(min=1).clone()
    for mean in means.values():
        mean[-1] /= still
    return {shift: dict(zip(SHOWN, mean.tolist(), strict=True)) for shift, mean in means.items()}


@torch.no_grad()
def flicker(fuse: Fuse, case: Case) -> tuple[float, float]:
    """Of a pair of volumes: fused change over that of the sources, and its part beyond theirs (`metrics.flicker`)."""
    change = sources = beyond = 0.0
    last = None
    for index in case.both:
        a, b = (torch.from_numpy(x[index]).float().div(255)[None, None] for x in (case.a, case.b))
        f = fuse(a, b).clamp(0, 1)
        if last is not None and last[0] == index - 1:
            da, db, df = ((now - before).abs() for now, before in zip((a, b, f), last[1], strict=True))
            greater = torch.maximum(da, db)
            change, sources = change + float(df.sum()), sources + float(greater.sum())
            beyond += float((df - greater).clamp(min=0).sum())
        last = index, (a, b, f)
    return change / max(sources, 1e-9), beyond / max(sources, 1e-9)


def flicker_table(found: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Markdown of {volumes: {method: `flicker`}}."""
    lines = ["| volumes | method | change over the sources' | beyond the sources' |", "|---" * 4 + "|"]
    for name, methods in found.items():
        lines += [f"| {name} | {method} | {whole:.3f} | {part:.3f} |" for method, (whole, part) in methods.items()]
    return "\n".join(lines)


def table(found: dict[str, dict[str, dict[int, dict[str, float]]]]) -> str:
    """Markdown of {task: {method: `judge`}}."""
    lines = [f"| task | method | shift (pixels) | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 3) + "|"]
    for task, methods in found.items():
        for method, shifts in methods.items():
            for shift, row in shifts.items():
                cells = " | ".join(f"{row[name]:.3f}" for name in SHOWN)
                lines.append(f"| {task} | {method} | {shift} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ASFEFusionLib.research.faithful", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI, SPECT-MRI")
    parser.add_argument("--weights", help="file or name of weights (default: the shipped ones)")
    parser.add_argument("--every", type=int, default=1, help="take each n-th slice")
    parser.add_argument("--volumes", nargs="+", type=Path, default=[], help="pairs of volumes for the flicker")
    options = parser.parse_args()
    from .. import network

    net = network.load(options.weights)
    methods = {"ours": net, "MAX": maximum}
    found = {
        task.task: {name: judge(fuse, task, bar=True) for name, fuse in methods.items()}
        for task in read_pairs(options.data, left_out=True, every=options.every)
    }
    print(f"{net.weights_name} {net.weights_hash}\n{table(found)}")
    flickers = {}
    for first, second in zip(options.volumes[::2], options.volumes[1::2], strict=True):
        case = read_case(f"{stem(first)}, {stem(second)}", load(first), load(second), Reading())
        flickers[case.name] = {name: flicker(fuse, case) for name, fuse in methods.items()}
    if flickers:
        print(flicker_table(flickers))


if __name__ == "__main__":
    main()
