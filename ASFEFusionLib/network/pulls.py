"""Pulls: how each pixel of a fused slice must change to keep more of what its two sources show."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Added to the strength of an edge (Sobel of slices in [0, 1]): what is weaker has no direction.
FLAT = 1e-3
# Sine of an angle between two edges that is hardly one.
AGREE = 0.02
# The psychometric curves of Xydeas and Petrovic 2000 for strength and orientation, gain and middle, as Qabf has them;
# orientation in right angles.
STRENGTH, ORIENTATION = (15.0, 0.5), (22.0, 0.2)
# What the slopes across, and those both ways, count beside those down where two edges are compared: of whole grey
# levels many are equally strong.
UPRIGHT, SLANTED = 1.0037, 0.0023
# How gradually an edge counts as stronger than its sources' (Sobel of slices in [0, 1]).
STRONGER = 0.5 * 8 / 255
# Least deviation, variance of a blend, and variance of a source that is divided by.
TINY, FAINT, NOTHING = 5e-4, 1e-2, 1e-6
# What the windows weigh that means are taken in (`window_sums`).
WINDOW = 64
# Of the eye in VIF (grey levels of 255, squared), and what keeps SSIM's ratios finite (of 1, squared).
NOISE, C1, C2 = 2.0 / 255**2, 0.01**2, 0.03**2


def gradient(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sobel responses across and down of (N, C, H, W); a slice is continued by its end values."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = (x[..., :-2, :] + x[..., 2:, :]).add_(x[..., 1:-1, :], alpha=2)
    columns = (x[..., :-2] + x[..., 2:]).add_(x[..., 1:-1], alpha=2)
    return rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]


def gathered(across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The transpose of `gradient`, as if the slice went on with its end values."""
    across = F.pad(F.pad(across, (1, 1, 0, 0)), (0, 0, 1, 1), mode="replicate")
    down = F.pad(F.pad(down, (0, 0, 1, 1)), (1, 1, 0, 0), mode="replicate")
    rows = (across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2)
    columns = (down[..., :-2] + down[..., 2:]).add_(down[..., 1:-1], alpha=2)
    return rows[..., :-2] - rows[..., 2:] + columns[..., :-2, :] - columns[..., 2:, :]


class Edges(NamedTuple):
    """Of slices (N, C, H, W): strength of the edge at each pixel, and its direction as a vector of length 1."""

    strength: torch.Tensor
    across: torch.Tensor
    down: torch.Tensor


def edges(x: torch.Tensor) -> Edges:
    """Of slices in [0, 1]."""
    across, down = gradient(x)
    strength = (across.square() + down.square() + FLAT**2).sqrt()
    return Edges(strength, across / strength, down / strength)


def stronger_edges(sources: torch.Tensor) -> tuple[Edges, torch.Tensor]:
    """Of two sources (N, 2, H, W) in [0, 1] the stronger edge at each pixel, and the other's strength, (N, 1, H, W).

    Of two that are nearly as strong their directions choose: it does not matter which source is first.
    """
    across, down = gradient(sources)
    strength = (across.square() + down.square() + FLAT**2).sqrt()
    key = across * (UPRIGHT * across + SLANTED * down) + down.square()
    first = (key[:, :1] >= key[:, 1:]).to(key)
    # All of the one or all of the other, without rounding; `where` takes eight times as long.
    stronger, across, down = (torch.lerp(x[:, 1:], x[:, :1], first) for x in (strength, across, down))
    weaker = torch.lerp(strength[:, :1], strength[:, 1:], first)
    return Edges(stronger, across / stronger, down / stronger), weaker


def edge_pulls(sources: Edges, weakest: torch.Tensor, f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How a fused slice f (N, 1, H, W) must change to keep more of its two sources' edges, and to invent less of them.

    `sources`, `weakest`: of `stronger_edges`. The first, (N, 1, H, W) as the second: the gradient, by f, of what the
    edges of f keep of the stronger edge of the two at each pixel: of the numerator of Qabf (Xydeas and Petrovic 2000,
    doi 10.1049/el:20000267) the larger part, with the sine of the angle between two edges for the angle. The second
    makes edges weaker that are stronger than both sources', as Nabf counts them (Shreyamsha Kumar 2013, doi
    10.1007/s11760-012-0361-x): all of them, as its own gradient would only those that hardly are.
    """
    own = edges(f)
    sine = sources.across * own.down - sources.down * own.across
    cosine = sources.across * own.across + sources.down * own.down
    stronger = own.strength / sources.strength
    weaker = sources.strength / own.strength
    ratio = torch.minimum(stronger, weaker)
    of_strength = torch.sigmoid(STRENGTH[0] * (ratio - STRENGTH[1]))
    of_orientation = torch.sigmoid(ORIENTATION[0] * (ORIENTATION[1] - sine.abs() * (2 / math.pi)))
    kept = of_strength * of_orientation
    # To which side: of edges that agree to a degree it is rounding that would tell.
    side = sine * cosine
    side = side / (side.abs() + AGREE)
    # Along the edge's own direction an edge gets stronger, across it turns.
    growth = STRENGTH[0] * kept * (1 - of_strength) * torch.where(stronger < 1, 1.0, -ratio.square())
    turn = ORIENTATION[0] * (2 / math.pi) * kept * (1 - of_orientation) * weaker * side
    beyond = own.strength - sources.strength
    shrink = -torch.sigmoid(beyond / STRONGER) * weakest * weakest.sqrt()  # the power by which edges count in Nabf
    across = torch.cat([growth * own.across + turn * own.down, shrink * own.across], 1)
    down = torch.cat([growth * own.down - turn * own.across, shrink * own.down], 1)
    return gathered(across, down).split(1, 1)


def steepest(sources: torch.Tensor) -> torch.Tensor:
    """Of two sources (N, 2, H, W) the divergence (N, 1, H, W) of their steeper differences from pixel to pixel."""
    flow = 0
    for dim, before, after in ((-2, (0, 0, 1, 0), (0, 0, 0, 1)), (-1, (1, 0), (0, 1))):
        one, other = sources.diff(dim=dim).split(1, 1)
        total, difference = one + other, one - other
        # Of two that are alike steep neither: it shall not matter which source is first.
        steeper = (total + torch.sign(total * difference) * difference) / 2
        flow = flow + F.pad(steeper, after) - F.pad(steeper, before)
    return flow


def slope_pull(steepest: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """How f (N, 1, H, W) must change to be as steep as the steeper of its sources: the gradient of least squares.

    `steepest`: of the sources. Source: Perez, Gangnet and Blake 2003, doi 10.1145/882262.882269.
    """
    padded = F.pad(f, (1, 1, 1, 1), mode="replicate")
    around = padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2] + padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1]
    return around - 4 * f - steepest


def halved(x: torch.Tensor) -> torch.Tensor:
    """Mean of 2 x 2 of (N, C, H, W), H and W even."""
    x = x[..., ::2, :] + x[..., 1::2, :]
    return (x[..., ::2] + x[..., 1::2]) * 0.25


def window_sums(x: torch.Tensor) -> torch.Tensor:
    """Of a window of 5 x 5, nearly Gaussian (1 2 2 2 1 each way), of `WINDOW` in all; continued by the end values."""
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    for step in (1, 1, 2):
        x = x[..., :-step] + x[..., step:]
        x = x[..., :-step, :] + x[..., step:, :]
    return x


def blurred(x: torch.Tensor) -> torch.Tensor:
    """The means in those windows."""
    return window_sums(x) / WINDOW


def summed(x: torch.Tensor) -> torch.Tensor:
    """(N, 2, H, W) -> (N, 1, H, W); torch's own sum takes three times as long over so few."""
    return x[:, :1] + x[:, 1:]


class Details(NamedTuple):
    """Of two sources x (N, 2, H, W), in windows, at half their side: what a fused slice is compared with."""

    x: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    strongest: torch.Tensor  # (N, 1, H, W), the greater variance
    share: torch.Tensor  # of each source in the best blend of their two patches, as MEF-SSIM has it


def details(x: torch.Tensor) -> Details:
    """Of sources (N, 2, H, W) in [0, 1], H and W even."""
    moments = blurred(halved(torch.cat([x, x.square(), x[:, :1] * x[:, 1:]], 1)))
    mean, square, product = moments.split([2, 2, 1], 1)
    variance = (square - mean.square()).clamp(min=0)
    shared = product - mean[:, :1] * mean[:, 1:]
    # As for MEF-SSIM: of patches that agree in structure the stronger one rules.
    deviation = variance.sqrt() + TINY
    of_sum = (summed(variance) + 2 * shared).clamp(min=0).sqrt()
    agreement = (of_sum / summed(deviation)).clamp(max=0.99)
    power = torch.tan(math.pi / 2 * agreement).clamp(max=10)
    ratio = (deviation[:, :1] / deviation[:, 1:]).log() * power
    share = torch.sigmoid(torch.cat([ratio, -ratio], 1)) / deviation
    of_blend = summed(share.square() * variance) + 2 * share[:, :1] * share[:, 1:] * shared
    greatest, strongest = (torch.maximum(*y.split(1, 1)) for y in (deviation, variance))
    return Details(x, mean, variance, strongest, share * greatest / of_blend.clamp(min=FAINT).sqrt())


def detail_pulls(sources: Details, f: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of a fused slice f (N, 1, H, W), H and W even, towards its sources' information, structure and best patches.

    The gradients, by f, of what VIF sums at its finest scale (Sheikh and Bovik 2006, doi 10.1109/TIP.2005.859378), of
    SSIM with each source (Wang et al. 2004, doi 10.1109/TIP.2003.819861) and of MEF-SSIM (Ma, Zeng and Wang 2015, doi
    10.1109/TIP.2015.2442920), all in windows of some 12 pixels.
    """
    moments = blurred(halved(torch.cat([f, f.square(), f * sources.x], 1)))
    planes = F.interpolate(blurred(planes_of_pulls(sources, moments)), scale_factor=2, mode="nearest")
    towards = planes.unflatten(1, (3, 4)) * torch.cat([f, torch.ones_like(f), sources.x], 1).unsqueeze(1)
    return towards.sum(2).split(1, 1)


def planes_of_pulls(sources: Details, moments: torch.Tensor) -> torch.Tensor:
    """What the three pulls are made of, at half a slice's side, not yet blurred: (N, 3 x 4, H / 2, W / 2).

    Each pull is a sum of the fused slice, one and the two sources, each times a plane. `moments`: means in windows of
    the fused slice, its square, and its products with the sources.
    """
    _, mean, variance, strongest, share = sources
    own, square, product = moments.split([1, 1, 2], 1)
    of_own = (square - own.square()).clamp(min=0)
    shared = product - own * mean
    # VIF: log(1 + kept / (lost + noise))
    positive = shared.clamp(min=0)
    gain = positive / (variance + NOTHING)
    left = 1 / (of_own - torch.minimum(gain * positive, of_own) + NOISE)
    information = 2 * summed(1 / (of_own + NOISE) - left), 2 * gain * left, None
    # SSIM: light x structure
    light = 1 / (mean.square() + own.square() + C1)
    bright = (2 * mean * own + C1) * light
    like = 1 / (variance + of_own + C2)
    alike = (2 * shared + C2) * like
    structure = -2 * summed(bright * alike * like), 2 * bright * like, 2 * alike * light * (mean - own * bright)
    # MEF-SSIM: structure alone, of the best patch, which is as strong as the stronger source's
    like = 1 / (strongest + of_own + C2)
    alike = (2 * summed(share * shared) + C2) * like
    patches = -2 * alike * like, 2 * share * like, None
    planes = []
    for by_own, by_shared, by_mean in (information, structure, patches):
        rest = torch.addcmul(summed(by_shared * mean), by_own, own)
        planes += [by_own, -rest if by_mean is None else summed(by_mean) - rest, by_shared]
    return torch.cat(planes, 1)
