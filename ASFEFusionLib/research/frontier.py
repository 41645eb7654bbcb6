"""How good a blend can be at all: the fused slices themselves are changed until a loss is least, without a network.

    python -m ASFEFusionLib.research.frontier DATA [--peers FILE] [--loss ours] [--weights '{"cc": 10}']

What comes out is what a network under the same loss can reach at most, within minutes instead of hours: it shows which
loss is worth a training, and how far a trained network is from its loss's best (Testing/benchmarks/training_runs.md).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import trange

from ..network.decoder import RESIDUAL, blend
from . import metrics
from .data import TASKS, Pairs, read_pairs
from .losses import LOSSES, Loss, total
from .validate import RANKED, Fuse, ranks_among, ranks_text

# First and last rate of Adam on the logits of the weight and of the residual.
RATE, LAST = 0.15, 0.01
# Where the sources differ by less, the weight says nothing.
ALIKE = 0.02


def best_blend(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor, loss: Loss, steps: int) -> torch.Tensor:
    """The fused slices of least loss, or nearly, that the network's head could make of a and b (N, 1, H, W) in [0, 1].

    From `start` (N, 1, H, W) by `steps` steps of Adam, with the weight and residual of each pixel free.
    """
    apart = (a - b).abs() > ALIKE
    weight = torch.where(apart, (start - b) / torch.where(apart, a - b, 1.0), 0.5).clamp(0.03, 0.97)
    logit = torch.logit(weight).requires_grad_()
    residual = torch.zeros_like(a).requires_grad_()
    optimiser = torch.optim.Adam([logit, residual], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, LAST)

    def picture() -> torch.Tensor:
        return blend(a, b, torch.sigmoid(logit), RESIDUAL * torch.tanh(residual))

    for step in trange(steps, leave=False):
        value = total(loss.terms(a, b, picture(), step), loss.weights)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
    return picture().detach()


def frontier(fuse: Fuse, pairs: Pairs, loss: Loss, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Mean of each ranked metric of `fuse`, and of the best blend that starts there, rounded to 8 bits."""
    a, b = pairs.tensors()
    with torch.no_grad():
        start = fuse(a, b)
    best = best_blend(a, b, start, loss, steps)
    rounded = (x.clamp(0, 1).mul(255).round().div(255) for x in (start, best))
    return tuple({n: float(v.mean()) for n, v in metrics.score(a, b, x, RANKED).items()} for x in rounded)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ASFEFusionLib.research.frontier", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI, SPECT-MRI")
    parser.add_argument("--network", help="file or name of weights to start from (default: the shipped ones)")
    parser.add_argument("--loss", choices=LOSSES, default="ours")
    parser.add_argument("--weights", type=json.loads, default={}, help="JSON of weights that differ from the loss's")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--count", type=int, default=6, help="pairs a task, evenly from the left-out ones")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--peers", type=Path, help="as of research.validate; ranks of a few pairs: a rough guide")
    options = parser.parse_args()
    from ..network import load

    net, loss = load(options.network), LOSSES[options.loss]
    loss = loss._replace(weights=loss.weights | options.weights)
    found = {"start": {}, "best": {}}
    for task in read_pairs(options.data, left_out=True, tasks=options.tasks):
        count = min(options.count, len(task.names))
        chosen = [int((i + 0.5) * len(task.names) / count) for i in range(count)]
        some = replace(
            task, names=[task.names[i] for i in chosen], **{n: getattr(task, n)[chosen] for n in ("a", "b", "rgb")}
        )
        found["start"][task.task], found["best"][task.task] = frontier(net, some, loss, options.steps)
    for name, means in found.items():
        print(name)
        for task, values in means.items():
            print(task, " ".join(f"{metric} {value:.3f}" for metric, value in values.items()))
        if options.peers:
            print(ranks_text(ranks_among(means, json.loads(options.peers.read_text(encoding="utf-8"))["scores"])))


if __name__ == "__main__":
    main()
