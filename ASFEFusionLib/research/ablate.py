"""What CASF, AFF, SFEF and the refinement are worth, and cost: the network without each, trained on, beside all of it.

    python -m ASFEFusionLib.research.ablate DATA [--steps 500] [--peers FILE] [--only casf aff]

What stands in for a part has no values of its own: the sum of the two sources' features for CASF's attention, their
maximum for AFF, the features themselves for SFEF, the blend itself for the refinement. All begin with the same weights
and see the same batches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import trange

from ..network import ASFEFusion
from ..network.fusion_level import ExpertFusion
from ..network.weights import find
from .data import TASKS, read_pairs
from .train import Trainer, TrainSettings
from .validate import RANKED, ranks_among, validate

PUBLISHED = ("casf", "aff", "sfef")
PARTS = (*PUBLISHED, "refinement")
# Left out, by the name in the table.
VARIANTS = {
    "all parts": (),
    **{f"without {part.upper()}": (part,) for part in PUBLISHED},
    "without all three": PUBLISHED,
    "without refinement": ("refinement",),
}
RATE = 1e-3
SIDE, ROUNDS = 256, 9


class _Sum(nn.Module):
    """Features (2 N, C, H, W) of the two sources -> their sum (N, C, H, W)."""

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        x, y = both.chunk(2)
        return x + y


class _Maximum(nn.Module):
    """The same, the maximum."""

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        return torch.maximum(*both.chunk(2))


class _Blend(nn.Module):
    """Sources, their blend, its limits -> the blend."""

    def forward(self, a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, limits: tuple) -> torch.Tensor:
        return f


STAND_INS = {"casf": _Sum, "aff": _Maximum, "sfef": nn.Identity}


def leave_out(net: ASFEFusion, parts: tuple[str, ...]) -> None:
    """Puts the stand-ins in place of `parts` (keys of `STAND_INS`) at every level that has them, in place."""
    if "refinement" in parts:
        net.refinement = _Blend()
    for fusion in net.fusion:
        for part in set(parts) & set(STAND_INS) if isinstance(fusion, ExpertFusion) else ():
            setattr(fusion, part, STAND_INS[part]())


@torch.inference_mode()
def seconds(nets: dict[str, ASFEFusion]) -> dict[str, float]:
    """Seconds of a slice of `SIDE` pixels, the least of `ROUNDS`, of networks that take turns on one thread."""
    torch.set_num_threads(1)
    a, b = torch.rand(2, 1, 1, SIDE, SIDE)
    least = dict.fromkeys(nets, float("inf"))
    for _ in range(ROUNDS):
        for name, net in nets.items():
            began = time.perf_counter()
            net(a, b)
            least[name] = min(least[name], time.perf_counter() - began)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ASFEFusionLib.research.ablate", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI, SPECT-MRI")
    parser.add_argument("--initial", help="weights to begin with (default: the shipped ones)")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to leave out")
    parser.add_argument("--peers", type=Path, help="as of research.validate")
    options = parser.parse_args()
    pairs, left_out = (read_pairs(options.data, left_out=out, every=2 if out else 1, bar=True) for out in (False, True))
    peers = json.loads(options.peers.read_text(encoding="utf-8"))["scores"] if options.peers else None
    chosen = {name: parts for name, parts in VARIANTS.items() if len(parts) != 1 or parts[0] in options.only}
    nets, found = {}, {}
    for name, parts in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainSettings(str(options.data), folder, options.steps, RATE, initial=str(find(options.initial)))
            trainer = Trainer(settings, pairs, left_out, lambda net, parts=parts: leave_out(net, parts))
            for _ in trange(options.steps, desc=name, mininterval=5):
                trainer.one_step()
        nets[name] = trainer.averaged.module.eval()
        found[name] = validate(nets[name], left_out, bar=True)
    times = seconds(nets)
    print(f"| task | network | parameters | time | {'mean rank | ' if peers else ''}{' | '.join(RANKED)} |")
    print("|---" * (len(RANKED) + (5 if peers else 4)) + "|")
    for task in TASKS:
        for name, means in found.items():
            cells = [task, name, f"{sum(p.numel() for p in nets[name].parameters()):,}"]
            cells.append(f"{times[name] / times['all parts']:.2f}")
            if peers:
                places = ranks_among(means, peers)[task]
                cells.append(f"{sum(places.values()) / len(places):.1f}")
            print("| " + " | ".join(cells + [f"{means[task][metric]:.3f}" for metric in RANKED]) + " |")


if __name__ == "__main__":
    main()
