"""Classical fusions to compare with: mean, maximum, Laplacian pyramid. Slices (N, 1, H, W) in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROW = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def average(a: Tensor, b: Tensor) -> Tensor:
    """(a + b) / 2."""
    return (a + b) / 2


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """The brighter of the two at each pixel."""
    return torch.maximum(a, b)


def _blur(x: Tensor) -> Tensor:
    row = _ROW.to(x)
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="replicate"), row.view(1, 1, 1, 5))
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="replicate"), row.view(1, 1, 5, 1))


def _expand(x: Tensor, like: Tensor) -> Tensor:
    return _blur(F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False))


def laplacian_pyramid(a: Tensor, b: Tensor, levels: int = 4) -> Tensor:
    """Detail of greater magnitude at each level, mean of the coarsest (Burt and Adelson 1983; Burt 1984)."""
    details = []
    for _ in range(levels):
        small_a, small_b = _blur(a)[..., ::2, ::2], _blur(b)[..., ::2, ::2]
        detail_a, detail_b = a - _expand(small_a, a), b - _expand(small_b, b)
        details.append(torch.where(detail_a.abs() >= detail_b.abs(), detail_a, detail_b))
        a, b = small_a, small_b
    fused = (a + b) / 2
    for detail in reversed(details):
        fused = detail + _expand(fused, detail)
    return fused.clamp(0, 1)


BASELINES = {"AVG": average, "MAX": maximum, "LP": laplacian_pyramid}
