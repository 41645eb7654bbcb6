"""The refinement as it runs: the same sums as `refinement` and `pulls` make, in fewer passes through memory.

A slice is kept as its four phases, the pixels of even and odd rows and columns apart, (N, C, 4, H / 2, W / 2): taking
means of 2 x 2 then is a sum of whole planes. What is large is made once and written over by each
step: fresh memory costs more than the sums. Nothing here carries a gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .pulls import (
    AGREE,
    FLAT,
    ORIENTATION,
    STRENGTH,
    STRONGER,
    WINDOW,
    Details,
    blurred,
    details,
    planes_of_pulls,
    steepest,
    stronger_edges,
    window_sums,
)
from .refinement import SIZES, WIDTH, Refinement, Step

# Makes of all that is not 0 more than 1; comparing takes longer.
LARGE = 1e9
# How far, in pixels, what a step does reaches; what is black stays black.
REACH = 12


def phases(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W), H and W even -> (N, C, 4, H / 2, W / 2)."""
    n, channels, height, width = x.shape
    return put_phases(x, x.new_empty(n, channels, 4, height // 2, width // 2))


def put_phases(x: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Writes the `phases` of x to `into`."""
    apart = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4)
    into.unflatten(2, (2, 2)).copy_(apart)
    return into


def quarters(x: torch.Tensor) -> torch.Tensor:
    """Means of the phases (N, C, 4, h, w): (N, C, h, w). Torch's own mean takes three times as long over so few."""
    x = x[:, :, :2] + x[:, :, 2:]
    return (x[:, :, 0] + x[:, :, 1]).mul_(0.25)


def whole(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `phases`."""
    return x.unflatten(2, (2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)


class FastEdges:
    """`edge_pulls` and `slope_pull` towards the same two sources again and again."""

    def __init__(self, sources: torch.Tensor) -> None:
        (self.strength, self.across, self.down), weakest = stronger_edges(sources)
        self.inverse = self.strength.reciprocal()
        self.strongest = self.strength * (1 / STRONGER)
        self.weakest = weakest.mul_(weakest.sqrt())
        self.steepest = steepest(sources)
        # Ways to go across and down, for the edges to keep and those to weaken, in a frame of a pixel.
        n, _, height, width = sources.shape
        self._ways = sources.new_zeros(2, n, 2, height + 2, width + 2)

    def pull(self, f: torch.Tensor, into: torch.Tensor) -> None:
        """Of f (N, 1, H, W) the two of `pulls.edge_pulls`, and `pulls.slope_pull`, in phases (N, 3, 4, h, w)."""
        padded = F.pad(f, (1, 1, 1, 1), mode="replicate")
        rows = padded[..., :-2, :] + padded[..., 2:, :]
        columns = padded[..., :-2] + padded[..., 2:]
        slopes = (rows[..., 1:-1] + columns[..., 1:-1, :]).sub_(f, alpha=4).sub_(self.steepest)
        rows.add_(padded[..., 1:-1, :], alpha=2)
        columns.add_(padded[..., 1:-1], alpha=2)
        across, down = rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]
        strength = across.square().addcmul_(down, down).add_(FLAT**2).sqrt_()
        inverse = strength.reciprocal()
        across.mul_(inverse)
        down.mul_(inverse)
        sine = (self.across * down).addcmul_(self.down, across, value=-1)
        cosine = (self.across * across).addcmul_(self.down, down)
        side = cosine.mul_(sine)
        side = side.div_(side.abs().add_(AGREE))
        gain, middle = ORIENTATION
        right = sine.abs_().mul_(-gain * 2 / math.pi).add_(gain * middle).sigmoid_()
        stronger, weaker = strength * self.inverse, self.strength * inverse
        ratio = torch.minimum(stronger, weaker)
        fades = stronger.sub_(1).mul_(LARGE).clamp_(0, 1)  # 1 where a stronger edge would be one too strong
        gain, middle = STRENGTH
        strong = (ratio * gain).sub_(gain * middle).sigmoid_()
        kept = strong * right
        growth = kept.addcmul(kept, strong, value=-1)
        # Times 1, or where it fades minus the square of the ratio.
        growth.addcmul_(growth * fades, ratio.square_().add_(1), value=-1)
        turn = kept.addcmul_(kept, right, value=-1).mul_(weaker).mul_(side)
        growth.mul_(STRENGTH[0])
        turn.mul_(ORIENTATION[0] * 2 / math.pi)
        shrink = strength.mul_(1 / STRONGER).sub_(self.strongest).sigmoid_().mul_(self.weakest).neg_()
        ways = self._ways[..., 1:-1, 1:-1]
        torch.mul(growth, across, out=ways[0, :, :1]).addcmul_(turn, down)
        torch.mul(growth, down, out=ways[1, :, :1]).addcmul_(turn, across, value=-1)
        torch.mul(shrink, across, out=ways[0, :, 1:])
        torch.mul(shrink, down, out=ways[1, :, 1:])
        put_phases(_gathered(*self._ways), into[:, :2])
        put_phases(slopes, into[:, 2:])


def _gathered(across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """As `pulls.gathered`, of fields in a frame of a pixel; the frame's corners are 0, as are its sides but these."""
    for outside, inside in ((0, 1), (-1, -2)):
        across[..., outside, 1:-1] = across[..., inside, 1:-1]
        down[..., 1:-1, outside] = down[..., 1:-1, inside]
    rows = (across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2)
    columns = (down[..., :-2] + down[..., 2:]).add_(down[..., 1:-1], alpha=2)
    return (rows[..., :-2] - rows[..., 2:]).add_(columns[..., :-2, :]).sub_(columns[..., 2:, :])


class FastDetails:
    """`detail_pulls` towards the same two sources again and again, in phases."""

    def __init__(self, sources: torch.Tensor, apart: torch.Tensor) -> None:
        """The sources (N, 2, H, W), and their phases."""
        self.of: Details = details(sources)
        self.apart = apart

    def pull(self, f: torch.Tensor, into: torch.Tensor) -> None:
        """`WINDOW` times `pulls.detail_pulls` of the phases (N, 1, 4, h, w) of f, to `into` (N, 3, 4, h, w)."""
        moments = torch.cat([quarters(x) for x in (f, f.square(), f * self.apart)], 1)
        # At full size each of a plane's values stands at four pixels: one in each phase.
        planes = window_sums(planes_of_pulls(self.of, blurred(moments))).unflatten(1, (3, 4)).unsqueeze(3)
        torch.mul(planes[:, :, 0], f, out=into).add_(planes[:, :, 1])
        for source in range(2):
            into.addcmul_(planes[:, :, 2 + source], self.apart[:, source : source + 1])


def shown(x: torch.Tensor) -> tuple[slice, slice]:
    """Rows and columns of (N, 1, H, W) that hold all that is not black, and `REACH` pixels about it; even ones."""
    found = []
    for most in (x.amax((0, 1, 3)), x.amax((0, 1, 2))):
        places = (most > 0).nonzero()
        first, last = (int(places[0]), int(places[-1])) if len(places) else (0, -1)
        found.append(slice(max(0, first - REACH) // 2 * 2, min(len(most), (last + REACH) // 2 * 2 + 2)))
    return tuple(found)


class FastStep(nn.Module):
    """`Step`: what it sees, with a plane of ones behind that brings the hidden values' bias along, to its moves."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.cat([step.hidden.weight, step.hidden.bias[:, None]], 1), requires_grad=False)
        self.out, self.bias = step.out.weight, nn.Parameter(step.out.bias[:, None], requires_grad=False)

    def forward(self, seen: torch.Tensor, hidden: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
        """(N, inputs + 1, pixels) -> `moves` (N, 2, pixels), by way of `hidden` (N, `WIDTH`, pixels)."""
        n = len(seen)
        torch.bmm(self.hidden.expand(n, -1, -1), seen, out=hidden).relu_()
        return torch.bmm(self.out.expand(n, -1, -1), hidden, out=moves).add_(self.bias)


class FastRefinement(nn.Module):
    """`Refinement`, with its values. Writes over the blend that it is given."""

    def __init__(self, refinement: Refinement) -> None:
        super().__init__()
        self.steps = nn.ModuleList(FastStep(step) for step in refinement.steps)
        sizes = torch.tensor(SIZES).T.reshape(len(SIZES[0]), 1, -1, 1, 1, 1)
        sizes[:, :, 3:] *= WINDOW  # as `FastDetails` has them
        self.register_buffer("sizes", sizes, persistent=False)

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, limits: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        if f.is_cpu:  # elsewhere to look would be to wait
            rows, columns = shown(limits[1])
            a, b, part, *limits = (x[..., rows, columns] for x in (a, b, f, *limits))
            if part.numel():
                f[..., rows, columns] = self._refined(a, b, part, limits)
            return f
        return self._refined(a, b, f, limits)

    def _refined(
        self, a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, limits: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        height, width = f.shape[-2:]
        if height % 2 or width % 2:
            a, b, f, *limits = (F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") for x in (a, b, f, *limits))
        sources = torch.cat([a, b], 1)
        apart = phases(sources)
        least, greatest = (phases(x) for x in limits)
        their_edges, their_details = FastEdges(sources), FastDetails(sources, apart)
        n, _, _, h, w = apart.shape
        seen = f.new_empty(n, self.steps[0].hidden.shape[1], 4, h, w)
        seen[:, -1] = 1
        torch.minimum(*apart.unbind(1), out=seen[:, 0])
        torch.maximum(*apart.unbind(1), out=seen[:, 1])
        difference = seen[:, 1:2] - seen[:, :1]
        pulls, strength, greater = f.new_empty(3, n, len(SIZES), 4, h, w)
        hidden, moves = (f.new_empty(n, count, 4 * h * w) for count in (WIDTH, 2))
        now = put_phases(f, seen[:, 2:3])
        for step in self.steps:
            their_edges.pull(f, pulls[:, :3])
            their_details.pull(now, pulls[:, 3:])
            torch.abs(pulls, out=strength)
            for place, sizes in enumerate(self.sizes):
                torch.add(strength, sizes, out=greater)
                torch.div(pulls, greater, out=seen[:, 3 + place : -1 : len(self.sizes)])
            share, grey = step(seen.flatten(2), hidden, moves).unflatten(2, (4, h, w)).split(1, 1)
            now.add_(grey).addcmul_(share, difference)
            torch.minimum(torch.maximum(now, least, out=now), greatest, out=now)
            f = whole(now)
        return f[..., :height, :width]
