"""Refinement: the blended slice keeps more of its sources' edges and detail and invents less, by learned steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .pulls import detail_pulls, details, edge_pulls, slope_pull, steepest, stronger_edges

# Hidden values of a step at a pixel.
WIDTH = 12
# Of the pulls towards edges, against invented ones, towards slopes, information, structure and best patches what is a
# strong one and what a usual one. A step sees each pull by both measures, and never more than 1 of either.
SIZES = ((8.0, 1.0), (0.1, 0.005), (0.1, 0.01), (100.0, 10.0), (10.0, 1.0), (5.0, 0.5))


class Step(nn.Module):
    """How far each pixel goes, by its sources' and its own brightness and the pulls there. At first nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 + sum(map(len, SIZES)), WIDTH)
        self.out = nn.Linear(WIDTH, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, H, W) -> shares of the sources' difference, and grey values, to go by: (N, 1, H, W) each."""
        x = F.relu(self.hidden.weight @ seen.flatten(2) + self.hidden.bias[:, None])
        x = self.out.weight @ x + self.out.bias[:, None]
        return x.unflatten(2, seen.shape[2:]).split(1, 1)


class Refinement(nn.Module):
    """Steps from a blended slice on, each within the limits that the blend itself keeps to.

    What the metrics of fusion say of a pixel is their gradient there, which a small network finds hard to learn, with
    its directions of edges and ratios of variances, and which takes a millisecond to compute. So a step is given it,
    and learns how far to go. It does not matter which source is a and which is b. Source: learned gradient schemes
    (Adler and Oktem 2017, doi 10.1088/1361-6420/aa9581).
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Step() for _ in range(steps))

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, limits: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Sources a and b, their blend f, and its least and greatest values, all (N, 1, H, W) float32 in [0, 1]."""
        height, width = f.shape[-2:]
        if height % 2 or width % 2:  # windows are looked at in half the size
            a, b, f, *limits = (F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") for x in (a, b, f, *limits))
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        sources = torch.cat([a, b], 1)
        their_edges, their_slopes, their_details = stronger_edges(sources), steepest(sources), details(sources)
        for step in self.steps:
            pulls = *edge_pulls(*their_edges, f), slope_pull(their_slopes, f), *detail_pulls(their_details, f)
            seen = [F.softsign(pull / size) for pull, sizes in zip(pulls, SIZES, strict=True) for size in sizes]
            share, grey = step(torch.cat([low, high, f, *seen], 1))
            f = torch.minimum(torch.maximum(f + share * (high - low) + grey, limits[0]), limits[1])
        return f[..., :height, :width]
