"""Does a slice look the same in another frame? Grey levels of 255 by which left-out slices change.

    python -m ASFEFusionLib.research.framing DATA [--weights FILE] [--every 2]

Framed by black (256 to 512 pixels a side, and by one pixel at the top and left, as if it lay elsewhere), and cropped to
the body: the rows and columns in which either source has more than `BODY`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import metrics
from .data import Pairs, read_pairs
from .validate import Fuse

# Grey level, in [0, 1], above which a pixel is of the body.
BODY = 10 / metrics.PEAK
# A frame is black at the left, right, top and bottom (pixels).
FRAMES = {"black, 256 to 512": (128, 128, 128, 128), "black, a pixel": (1, 0, 1, 0)}
CROPPED = "cropped to the body"
# Grey levels: nearly all pixels shall be within the first, all within the second.
NEAR, FAR = 4, 16
SHOWN = ("most", "99 % within", f"within {NEAR} (%)", f"beyond {FAR} (pixels)")


def framed(fuse: Fuse, a: torch.Tensor, b: torch.Tensor, frame: tuple[int, int, int, int]) -> torch.Tensor:
    """Change (levels) of slices (N, 1, H, W) in [0, 1] at each pixel when so much black lies around them."""
    left, _, top, _ = frame
    inside = fuse(F.pad(a, frame), F.pad(b, frame))[..., top : top + a.shape[2], left : left + a.shape[3]]
    return (inside - fuse(a, b)).abs() * metrics.PEAK


def cropped(fuse: Fuse, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Change (levels) of a slice (1, 1, H, W) in [0, 1] at each pixel of the body's box when the rest is cut away."""
    body = (torch.maximum(a, b) > BODY)[0, 0]
    if not body.any():
        return torch.zeros(0)
    inside = [...]
    for lines in (body.any(1), body.any(0)):
        places = lines.nonzero()
        inside.append(slice(int(places[0]), int(places[-1]) + 1))
    inside = tuple(inside)
    return (fuse(a[inside].contiguous(), b[inside].contiguous()) - fuse(a, b)[inside]).abs() * metrics.PEAK


@torch.no_grad()
def judge(fuse: Fuse, pairs: Pairs, bar: bool = False) -> dict[str, tuple[float, ...]]:
    """{frame: figures named by `SHOWN`}, of all pixels of all slices."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in (*FRAMES, CROPPED)}
    for index in tqdm(range(len(pairs.names)), desc=f"Judging {pairs.task}", leave=False, disable=not bar):
        a, b = pairs.tensors([index])
        for name, frame in FRAMES.items():
            found[name].append(framed(fuse, a, b, frame).flatten())
        found[CROPPED].append(cropped(fuse, a, b).flatten())
    return {name: figures(torch.cat(changes)) for name, changes in found.items()}


def figures(changes: torch.Tensor) -> tuple[float, ...]:
    """Of all changes (levels): what `SHOWN` names."""
    rank = max(1, -(-99 * len(changes) // 100))  # `quantile` takes no more than 16 million values
    near, far = (changes <= NEAR).float().mean(), (changes > FAR).sum()
    return float(changes.max()), float(changes.kthvalue(rank).values), 100 * float(near), float(far)


def table(found: dict[str, dict[str, tuple[float, ...]]]) -> str:
    """Markdown of {task: `judge`}."""
    lines = [f"| task | frame | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 2) + "|"]
    for task, frames in found.items():
        for name, (most, usual, near, far) in frames.items():
            lines.append(f"| {task} | {name} | {most:.1f} | {usual:.2f} | {near:.3f} | {far:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ASFEFusionLib.research.framing", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI, SPECT-MRI")
    parser.add_argument("--weights", help="file or name of weights (default: the shipped ones)")
    parser.add_argument("--every", type=int, default=1, help="take each n-th slice")
    options = parser.parse_args()
    from .. import network

    net = network.load(options.weights)
    pairs = read_pairs(options.data, left_out=True, every=options.every)
    print(f"{net.weights_name} {net.weights_hash}\n{table({task.task: judge(net, task, bar=True) for task in pairs})}")


if __name__ == "__main__":
    main()
