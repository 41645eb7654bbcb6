"""What the training rewards: `fusion_losses` are ours, `paper_losses` the published ones (Gu et al. 2024).

Ours are weighted in two ways: `FIRST_WEIGHTS` make a bright, sharp picture from nothing, `WEIGHTS` go on from there to
one that stands well in all metrics at once. Of these `steady` (`unsteady`) is the trainer's: how far a part of a slice,
fused alone, differs from the same part of the fused slice.

Ours: bright structures, edges, and the metrics of the field themselves, weighted for all tasks alike or by task. All
take slices (N, 1, H, W) in [0, 1], the fused one in float32 and perhaps beyond that range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import metrics

# The weight of each term: one for all tasks, or one each, in the order of `data.TASKS`.
Weights = dict[str, float | tuple[float, ...]]

# Found by small trials: the L1 to the maximum holds contrast and white bone against the metric losses.
FIRST_WEIGHTS: Weights = {
    "max": 10.0,
    "gradient": 12.0,
    "ssim": 1.0,
    "qabf": 2.0,
    "mef": 1.5,
    "scd": 0.4,
    "vif": 0.4,
    "nabf": 3.0,
}
# By task: from what a step in each metric is worth among the methods of the left-out table where the network stands
# (`frontier --ranks --at-least LTOFusion --steps 0`), and from what it then gave (Testing/benchmarks/training_runs.md).
WEIGHTS: Weights = {
    "max": (2.0, 14.0, 3.0),
    "bright": (300.0, 60.0, 30.0),
    "gradient": 6.0,
    "ssim": (24.0, 42.0, 86.0),
    "qabf": (63.0, 94.0, 47.0),
    "mef": (43.0, 43.0, 215.0),
    "cc": (46.0, 96.0, 76.0),
    "scd": (4.8, 6.5, 6.0),
    "sd": (19.0, 18.0, 20.0),
    "sf": (7.0, 19.0, 26.0),
    "vif": (26.0, 9.5, 58.0),
    "nabf": (122.0, 235.0, 110.0),
    "lattice": 1500.0,
    "steady": 150.0,
}
# Of the published terms, as published.
PAPER_WEIGHTS: Weights = {"content": 0.5, "structure": 0.5, "ssim": 1.0}
# Spatial frequency is rewarded up to this part of that of the stronger of the sources' differences.
FREQUENCY = 1.05
# An edge counts as invented by a sigmoid of this width (Sobel / 8, 0 to 255) around the sources' own strength: Nabf
# itself has no gradient there, and much of it is edges that are stronger by a hair.
INVENTED = 0.5
# Standard deviation is rewarded up to this multiple of the maximum's.
SPREAD = 1.1
# How much the square of a difference counts beside it: in a mean, single pixels that are far off count for nothing.
FAR = 50.0


def differences(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) -> (N, 2, H - 1, W - 1) forward differences down and across."""
    return torch.cat([x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]], 1)


def _mean(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N,)."""
    return x.flatten(1).mean(1)


def stronger(da: torch.Tensor, db: torch.Tensor) -> torch.Tensor:
    """Of two differences the one that is further from 0, pixel by pixel."""
    return torch.where(da.abs() >= db.abs(), da, db)


def deviation(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) -> (N,) standard deviation, with a gradient on flat slices too."""
    return (x.flatten(1).var(1, unbiased=False) + metrics.FLAT).sqrt()


def frequency(differences: torch.Tensor) -> torch.Tensor:
    """(N, 2, H, W) differences -> (N,) spatial frequency of the slice they are of."""
    return (differences.square().sum(1).mean((1, 2)) + metrics.FLAT).sqrt()


def fusion_losses(a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    """Loss terms, unweighted, each (N,): values that fall as the pictures f of a and b get better.

    bright: what falls short of the brighter source, by the fourth power of its brightness: bone stays white. sd, sf:
    standard deviation and spatial frequency, as far as they fall short of those that the maximum and the stronger
    differences have. lattice: what alternates from pixel to pixel, by which spatial frequency would be had cheaply.
    VIF, the dearest, comes every second step with double weight.
    """
    da, db, df = differences(a), differences(b), differences(f)
    strongest = stronger(da, db)
    brighter = torch.maximum(a, b)
    terms = {
        "max": _mean((f - brighter).abs()),
        "bright": _mean(brighter**4 * torch.relu(brighter - f)),
        "cc": -metrics.cc(a, b, f),
        "sd": -(deviation(f) / deviation(brighter).clamp(min=0.05)).clamp(max=SPREAD),
        "sf": torch.relu(FREQUENCY - frequency(df) / frequency(strongest).clamp(min=0.01)),
        "gradient": _mean((df - strongest).abs()),
        "ssim": 1 - metrics.ssim_pair(a, b, f),
        "qabf": 1 - metrics.qabf(a, b, f),
        "mef": 1 - metrics.mef_ssim(a, b, f),
        "scd": -metrics.scd(a, b, f),
        "nabf": metrics.nabf(a, b, f, INVENTED),
        "lattice": _mean(metrics.lattice(a, b, f)),
    }
    if step % 2 == 0:
        # Black crops have no visual information to keep, and their ratio no bound.
        terms["vif"] = -2 * metrics.vif_pair(a, b, f).clamp(max=2)
    return terms


def unsteady(again: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """How far a part of slices, fused alone, differs from that part of the fused slices: one number for both."""
    off = (again - f).abs()
    return (off + FAR * off.square()).mean()


def structure_tensor(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) -> (N, 4, H, W): dx dx, dx dy, dx dy, dy dy of forward differences, 0 beyond the last pixel."""
    dx = F.pad(x.diff(dim=-1), (0, 1))
    dy = F.pad(x.diff(dim=-2), (0, 0, 0, 1))
    return torch.cat([dx * dx, dx * dy, dx * dy, dy * dy], 1)


def padded_ssim(x: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity (Wang et al. 2004) of (N, 1, H, W) in [0, 1], one number for the batch.

    Gaussian 11 x 11, sigma 1.5, K 0.01 and 0.03, over all pixels with 5 pixels of zeros all round, as published;
    `metrics.ssim` looks at whole windows only.
    """
    c1, c2 = 0.01**2, 0.03**2
    offset = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    row = torch.exp(-(offset**2) / (2 * 1.5**2))
    row = row / row.sum()
    planes = torch.cat([x, f, x * x, f * f, x * f])
    planes = F.conv2d(planes, row.view(1, 1, 1, 11), padding=(0, 5))
    mx, mf, xx, ff, xf = F.conv2d(planes, row.view(1, 1, 11, 1), padding=(5, 0)).chunk(5)
    luminance = (2 * mx * mf + c1) / (mx * mx + mf * mf + c1)
    structure = (2 * (xf - mx * mf) + c2) / ((xx - mx * mx) + (ff - mf * mf) + c2)
    return (luminance * structure).mean()


def paper_losses(a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, step: int = 0) -> dict[str, torch.Tensor]:
    """The published terms, unweighted, each a scalar; a, b, f (N, 1, H, W). `step` is not looked at.

    content: the 2-norm of f - (a + b) / 2 over the whole batch, not a mean: it grows with pixels and batch.
    structure: log(1 + the Frobenius distance, over the batch, of the structure tensor of f and the sum of those of a
    and b) (`structure_tensor`; the sum, after Di Zenzo 1986, is how the description reads).
    ssim: (1 - SSIM(f, a)) + (1 - SSIM(f, b)).

    Source: Gu et al. 2024, doi 10.1016/j.bspc.2024.106478, and what its authors' public code does. One difference:
    there SSIM is computed on plain numbers, so that it adds to the printed loss and carries no gradient; here, as the
    paper says, the network learns from it. `ssim` detached gives their gradient.
    """
    pair = structure_tensor(a) + structure_tensor(b)
    return {
        "content": torch.linalg.vector_norm(f - (a + b) / 2),
        "structure": torch.log1p(torch.linalg.vector_norm(structure_tensor(f) - pair)),
        "ssim": (1 - padded_ssim(a, f)) + (1 - padded_ssim(b, f)),
    }


class Loss(NamedTuple):
    """Terms of (a, b, f, step) by name, and the weight of each."""

    terms: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], dict[str, torch.Tensor]]
    weights: Weights


LOSSES = {
    "first": Loss(fusion_losses, FIRST_WEIGHTS),
    "ours": Loss(fusion_losses, WEIGHTS),
    "paper": Loss(paper_losses, PAPER_WEIGHTS),
}


def total(terms: dict[str, torch.Tensor], weights: Weights, tasks: torch.Tensor | None = None) -> torch.Tensor:
    """Weighted sum of a loss's terms, the mean over the slices; one without a weight counts nothing.

    terms: each a scalar, or (N,). tasks: (N,) places of the slices' tasks in `data.TASKS`; None: of the first.
    """
    result = torch.zeros(())
    for name, value in terms.items():
        weight = weights.get(name, 0.0)
        if isinstance(weight, tuple):
            weight = weight[0] if tasks is None else value.new_tensor(weight)[tasks]
        result = result.to(value) + (weight * value).mean()
    return result
