"""Scores of a fusion on the left-out cases; `python -m ASFEFusionLib.research.validate DATA` prints the table.

The classical fusions in that table need the `evaluate` extra, what training uses of this does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from . import metrics
from .baselines import BASELINES
from .cases import as_shown
from .data import Pairs, read_pairs

Fuse = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# By which the fields' methods are ranked against each other here.
RANKED = ("SD", "SF", "MI", "VIF", "CC", "SCD", "Qabf", "Nabf", "SSIM", "MEFSSIM")
SHOWN = ("SD", "SF", "AG", "MI", "VIF", "CC", "SCD", "PSNR", "Qabf", "Nabf", "SSIM", "MEFSSIM")


@torch.no_grad()
def validate(fuse: Fuse, pairs: list[Pairs], batch: int = 4, bar: bool = False) -> dict[str, dict[str, float]]:
    """Mean of each metric by task, of the fused slices as a picture file would hold them.

    That is: rounded to 8 bits, and the luminance of `cases.as_shown`.
    """
    result = {}
    for task in pairs:
        rows = []
        starts = range(0, len(task.names), batch)
        for start in tqdm(starts, desc=f"Judging {task.task}", leave=False, disable=not bar):
            a, b = task.tensors(slice(start, start + batch))
            f = fuse(a, b).clamp(0, 1).mul(255).round().squeeze(1).numpy().astype(np.uint8)
            shown, _ = as_shown(f, task.a[start : start + batch], task.rgb[start : start + batch])
            rows.append(metrics.score(a, b, torch.from_numpy(shown).float().div(255).unsqueeze(1)))
        result[task.task] = {name: float(torch.cat([row[name] for row in rows]).mean()) for name in rows[0]}
    return result


@torch.no_grad()
def whiteness(fuse: Fuse, pairs: Pairs) -> tuple[float, float]:
    """Of the pixels where a is 250 or more (bone in CT): the mean of the fused (0 to 255), and the part below 200."""
    values = []
    for start in range(0, len(pairs.names), 4):
        a, b = pairs.tensors(slice(start, start + 4))
        values.append(fuse(a, b)[a >= 250 / 255])
    values = torch.cat(values) * 255
    return float(values.mean()), float((values < 200).float().mean())


@torch.no_grad()
def end_effect(fuse: Fuse, pairs: Pairs, side: int = 128, margin: int = 32) -> tuple[float, float]:
    """What it changes (0 to 255) that a slice ends in the body: 99th percentile and greatest difference.

    The middle `side` x `side` of each slice is fused as it is, and continued by its own end values.
    """
    values = []
    for index in range(len(pairs.names)):
        top, left = ((n - side) // 2 for n in pairs.a.shape[1:])
        a, b = (x[..., top : top + side, left : left + side] for x in pairs.tensors([index]))
        on = fuse(*(F.pad(x, (margin,) * 4, mode="replicate") for x in (a, b)))[..., margin:-margin, margin:-margin]
        values.append((fuse(a, b) - on).abs().flatten() * 255)
    values = torch.cat(values)
    return float(np.quantile(values.numpy(), 0.99)), float(values.max())


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown of {method: {task: {metric: mean}}}, one table a task."""
    lines = []
    for task in next(iter(results.values())):
        lines += [f"### {task}", f"| method | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 1) + "|"]
        for method, scores in results.items():
            cells = " | ".join(f"{scores[task][name]:.3f}" for name in SHOWN)
            lines.append(f"| {method} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def ranks_among(
    ours: dict[str, dict[str, float]], peers: dict[str, dict[str, dict[str, float]]]
) -> dict[str, dict[str, int]]:
    """{task: {metric: 1 + how many peers are better}}.

    `ours`: {task: {metric: mean}} as of `validate`; `peers`: {method: the same}, a method may lack a task.
    """
    places = {}
    for task, means in ours.items():
        others = [scores[task] for scores in peers.values() if task in scores]
        sign = {name: -1 if name in metrics.LOWER else 1 for name in RANKED}
        places[task] = {
            name: 1 + sum(sign[name] * other[name] > sign[name] * means[name] for other in others) for name in RANKED
        }
    return places


def ranks_text(places: dict[str, dict[str, int]]) -> str:
    """Markdown: the mean of the ranks of each task and of all, and each metric's."""
    means = {task: sum(row.values()) / len(row) for task, row in places.items()}
    lines = [f"| task | mean rank | {' | '.join(RANKED)} |", "|---" * (len(RANKED) + 2) + "|"]
    for task, row in places.items():
        lines.append(f"| {task} | {means[task]:.1f} | {' | '.join(str(row[name]) for name in RANKED)} |")
    lines.append(f"\nMean rank {sum(means.values()) / len(means):.2f}")
    return "\n".join(lines)


@torch.no_grad()
def sample_picture(fuse: Fuse, pairs: list[Pairs], path: Path, count: int = 2) -> None:
    """A PNG of `count` pairs a task: a, b and fused side by side."""
    rows = []
    for task in pairs:
        chosen = [(i + 1) * len(task.names) // (count + 1) for i in range(count)]
        a, b = task.tensors(chosen)
        rows.extend(torch.cat([a, b, fuse(a, b).clamp(0, 1)], -1)[:, 0])
    Image.fromarray((torch.cat(rows).numpy() * 255).round().astype(np.uint8)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ASFEFusionLib.research.validate", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI, SPECT-MRI")
    parser.add_argument("--weights", help="file or name of weights (default: the shipped ones)")
    parser.add_argument("--every", type=int, default=1, help="take each n-th slice of PET-MRI and SPECT-MRI")
    parser.add_argument("--picture", type=Path, help="PNG of some pairs")
    parser.add_argument("--peers", type=Path, help='JSON {"scores": {method: {task: {metric: mean}}}} to rank among')
    options = parser.parse_args()
    from ..network import load

    net = load(options.weights)
    pairs = [p for p in read_pairs(options.data, left_out=True) if p.task == "CT-MRI"]
    pairs += [p for p in read_pairs(options.data, left_out=True, every=options.every) if p.task != "CT-MRI"]
    methods = {"ours": net, **BASELINES}
    results = {name: validate(fuse, pairs, bar=True) for name, fuse in methods.items()}
    print(f"{net.weights_name} {net.weights_hash}\n{table(results)}")
    if options.peers:
        peers = json.loads(options.peers.read_text(encoding="utf-8"))["scores"]
        print(ranks_text(ranks_among(results["ours"], peers)))
    for task in pairs:
        if task.task == "CT-MRI":
            print("CT of 250 and more: mean {:.1f}, part below 200 {:.4f}".format(*whiteness(net, task)))
        print(
            task.task, "cut at 128 pixels: 99 % within {:.1f}, all within {:.1f} levels".format(*end_effect(net, task))
        )
    if options.picture:
        sample_picture(net, pairs, options.picture)


if __name__ == "__main__":
    main()
