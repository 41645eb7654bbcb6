"""How good a blend can be at all: the fused slices themselves are changed until a loss is least, without a network.

    python -m ASFEFusionLib.research.frontier DATA [--peers FILE [--ranks [--at-least METHOD]]] [--loss ours]
        [--weights '{"cc": 10}']

What comes out is what a network under the same loss can reach at most, within minutes instead of hours: it shows which
loss is worth a training, and how far a trained network is from its loss's best (Testing/benchmarks/training_runs.md).
With `--ranks` the loss is the sum of the ranks themselves, smoothed; its slopes say what each metric is worth in each
task, which is where `losses.WEIGHTS` come from: with `--steps 0` where the network stands. `--at-least` asks for one
peer's values of `HELD` too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import trange

from ..network.decoder import RESIDUAL, blend
from . import metrics
from .data import TASKS, Pairs, read_pairs
from .losses import INVENTED, LOSSES, Loss, deviation, differences, frequency, stronger, total
from .validate import RANKED, Fuse, ranks_among, ranks_text, validate

Value = Callable[[torch.Tensor, int], torch.Tensor]
# Of the two sources and the start.
Make = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Value]
Means = dict[str, float]
# First and last rate of Adam on the logits of the weight and of the residual.
RATE, LAST = 0.15, 0.005
# Where the sources differ by less, the weight says nothing.
ALIKE = 0.02
# A difference in each metric that a reader of the tables would call small; the ranks are smoothed by multiples of it.
SMALL = {
    "SD": 0.8,
    "SF": 0.5,
    "VIF": 0.03,
    "CC": 0.004,
    "SCD": 0.03,
    "Qabf": 0.01,
    "Nabf": 0.001,
    "SSIM": 0.001,
    "MEFSSIM": 0.002,
}
# The multiples, from the first step to the last: far off methods draw at first, in the end only the nearest ones.
SMOOTH = (4.0, 0.5)
# Weights of the terms that keep bone white, and a lattice of pixels away, beside ranks.
BRIGHT, LATTICE = 100.0, 9000.0
# In what `--at-least` asks not to fall behind a peer, and how many ranks it costs to lie a small difference behind it.
HELD, SHORT = ("VIF", "Qabf", "SSIM", "MEFSSIM"), 2.0


def best_blend(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor, value: Value, steps: int) -> torch.Tensor:
    """The fused slices of least `value`, or nearly, that the network's head could make of a and b.

    a, b (N, 1, H, W) in [0, 1]. From `start` (N, 1, H, W) by `steps` steps of Adam, with the weight and residual of
    each pixel free. `value`: of the fused slices and the number of the step.
    """
    if not steps:
        return start
    apart = (a - b).abs() > ALIKE
    weight = torch.where(apart, (start - b) / torch.where(apart, a - b, 1.0), 0.5).clamp(0.03, 0.97)
    logit = torch.logit(weight).requires_grad_()
    residual = torch.zeros_like(a).requires_grad_()
    optimiser = torch.optim.Adam([logit, residual], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, LAST)

    def picture() -> torch.Tensor:
        return blend(a, b, torch.sigmoid(logit), RESIDUAL * torch.tanh(residual))

    for step in trange(steps, leave=False):
        optimiser.zero_grad()
        value(picture(), step).backward()
        optimiser.step()
        schedule.step()
    return picture().detach()


@dataclass
class SmoothRanks:
    """The ranks of fused slices among peers, summed over the metrics of `SMALL`, as a value with a gradient.

    Bone that turns grey and pixels that alternate count beside them: else ranks would be had at their cost.
    As some slices differ from the mean of all, what counts is how far they are from those of `start`: that much is
    added to `means`, which the start has over all left-out slices.
    """

    a: torch.Tensor  # (N, 1, H, W) in [0, 1], as b and start
    b: torch.Tensor
    start: torch.Tensor
    means: Means
    peers: list[Means]  # of the same task
    steps: int  # over which `SMOOTH` goes
    least: Means = field(default_factory=dict)  # what falls short of these costs `SHORT`

    def __post_init__(self) -> None:
        self._values = {name: torch.tensor([peer[name] for peer in self.peers]) for name in SMALL}
        self._brighter = torch.maximum(self.a, self.b)
        with torch.no_grad():
            self._first = self._metrics(self.start)

    def _metrics(self, f: torch.Tensor) -> dict[str, torch.Tensor]:
        a, b = self.a, self.b
        soft = metrics.nabf(a, b, f, INVENTED)  # gives the gradient, not the value
        found = {
            "SD": 255 * deviation(f),
            "SF": 255 * frequency(differences(f)),
            "VIF": metrics.vif_pair(a, b, f),
            "CC": metrics.cc(a, b, f),
            "SCD": metrics.scd(a, b, f),
            "Qabf": metrics.qabf(a, b, f),
            "Nabf": metrics.nabf(a, b, f).detach() + soft - soft.detach(),
            "SSIM": metrics.ssim_pair(a, b, f),
            "MEFSSIM": metrics.mef_ssim(a, b, f),
        }
        return {name: values.mean() for name, values in found.items()}

    def _ranks(self, f: torch.Tensor, smooth: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """{metric: (its mean, how many peers are better, and what it costs to fall short of `least`)}."""
        result = {}
        for name, value in self._metrics(f).items():
            sign = -1 if name in metrics.LOWER else 1
            now = self.means[name] + value - self._first[name]
            count = torch.sigmoid(sign * (self._values[name] - now) / (SMALL[name] * smooth)).sum()
            if name in self.least:
                short = sign * (self.least[name] - now) / SMALL[name]
                count = count + SHORT * F.softplus(short, beta=3)
            result[name] = value, count
        return result

    def __call__(self, f: torch.Tensor, step: int) -> torch.Tensor:
        first, last = SMOOTH
        smooth = first * (last / first) ** (step / max(1, self.steps - 1))
        dark = (self._brighter**4 * torch.relu(self._brighter - f)).mean()
        held = BRIGHT * dark + LATTICE * metrics.lattice(self.a, self.b, f).mean()
        return sum(rank for _, rank in self._ranks(f, smooth).values()) + held

    def slopes(self, f: torch.Tensor, smooth: float = 1.0) -> Means:
        """How much less the fused slices f count for a unit of each metric; SD and SF as parts of the sources' own."""
        strongest = stronger(differences(self.a), differences(self.b))
        units = {"SD": 255 * deviation(self._brighter).mean(), "SF": 255 * frequency(strongest).mean()}
        f = f.detach().requires_grad_()
        return {
            name: float(torch.autograd.grad(rank, value, retain_graph=True)[0].abs() * units.get(name, 1.0))
            for name, (value, rank) in self._ranks(f, smooth).items()
        }


def of_ranks(means: Means, peers: list[Means], steps: int, least: Means) -> Make:
    """`SmoothRanks` of whichever slices."""
    return lambda a, b, start: SmoothRanks(a, b, start, means, peers, steps, least)


def of_loss(loss: Loss, task: str) -> Make:
    """A training's loss, as slices of `task` have it."""
    place = torch.tensor(list(TASKS).index(task))
    return lambda a, b, start: lambda f, step: total(loss.terms(a, b, f, step), loss.weights, place.expand(len(a)))


def frontier(fuse: Fuse, pairs: Pairs, value: Make, steps: int) -> tuple[Means, Means, torch.Tensor]:
    """Mean of each ranked metric of `fuse`, and of the best blend that starts there, rounded to 8 bits; that blend.

    `value` makes what the blend should have little of: `of_ranks`, `of_loss`.
    """
    a, b = pairs.tensors()
    with torch.no_grad():
        start = fuse(a, b)
    best = best_blend(a, b, start, value(a, b, start), steps)
    rounded = (x.clamp(0, 1).mul(255).round().div(255) for x in (start, best))
    first, last = ({n: float(v.mean()) for n, v in metrics.score(a, b, x, RANKED).items()} for x in rounded)
    return first, last, best


def some(pairs: Pairs, count: int) -> Pairs:
    """`count` pairs, or all if there are fewer, evenly from all."""
    count = min(count, len(pairs.names))
    chosen = [int((i + 0.5) * len(pairs.names) / count) for i in range(count)]
    taken = {name: getattr(pairs, name)[chosen] for name in ("a", "b", "rgb")}
    return replace(pairs, names=[pairs.names[i] for i in chosen], **taken)


def _line(name: str, task: str, values: Means) -> str:
    return f"{name} {task} " + " ".join(f"{metric} {value:.4g}" for metric, value in values.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ASFEFusionLib.research.frontier", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI, SPECT-MRI")
    parser.add_argument("--network", help="file or name of weights to start from (default: the shipped ones)")
    parser.add_argument("--loss", choices=LOSSES, default="ours")
    parser.add_argument("--weights", type=json.loads, default={}, help="JSON of weights that differ from the loss's")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--count", type=int, default=6, help="pairs a task, evenly from the left-out ones")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--peers", type=Path, help="as of research.validate")
    parser.add_argument("--ranks", action="store_true", help="the ranks as the loss, and what they are worth")
    parser.add_argument("--at-least", metavar="METHOD", help=f"with --ranks: this peer's {', '.join(HELD)} or better")
    options = parser.parse_args()
    from ..network import load

    if options.ranks and not options.peers:
        parser.error("--ranks needs --peers")
    net, loss = load(options.network), LOSSES[options.loss]
    loss = loss._replace(weights=loss.weights | options.weights)
    peers = json.loads(options.peers.read_text(encoding="utf-8"))["scores"] if options.peers else {}
    if options.at_least and not (options.ranks and options.at_least in peers):
        parser.error(f"--at-least needs --ranks and one of the peers: {', '.join(peers)}")
    for task in read_pairs(options.data, left_out=True, tasks=options.tasks):
        others = [scores[task.task] for scores in peers.values() if task.task in scores]
        means = validate(net, [task], bar=True)[task.task] if peers else {}
        held = peers.get(options.at_least, {}).get(task.task, {})  # some peers have some tasks only
        least = {name: held[name] for name in HELD if name in held}
        value = of_ranks(means, others, options.steps, least) if options.ranks else of_loss(loss, task.task)
        few = some(task, options.count)
        first, last, best = frontier(net, few, value, options.steps)
        print(_line("start", task.task, first))
        print(_line("best", task.task, last))
        if peers:
            # What was won on some slices, added to where the network stands over all.
            reached = {name: means[name] + last[name] - first[name] for name in RANKED}
            print(ranks_text(ranks_among({task.task: reached}, peers)))
        if options.ranks:
            a, b = few.tensors()
            print(_line("slopes", task.task, SmoothRanks(a, b, best, reached, others, 1, least).slopes(best)))


if __name__ == "__main__":
    main()
