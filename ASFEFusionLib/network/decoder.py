"""Decoder: the fused features of all sizes back to one slice, and the head that makes the picture of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configs import NetworkConfig
from .encoder import ConvBlock, activation
from .frame import Frame

# The residual of the blend, and how far a fused value may lie outside its two sources: both in units of [0, 1].
RESIDUAL = 0.1
ALLOWANCE = 0.02
# Below this brightness of both sources the allowance shrinks to nothing, so that black stays black.
DARK = 0.1


class UpPath(nn.Module):
    """Fused features, finest first, -> features at the finest size that is in the list.

    Each block takes [what came up, the fused features of its size]; all but the last end with a doubling of size. The
    list is used up on the way, so that no level outlives its block: the published ones are large.
    """

    def __init__(self, config: NetworkConfig, widths: list[int], blocks: list[tuple[int, int]], last_up: bool) -> None:
        super().__init__()
        self.last_up, self.corners = last_up, config.align_corners
        below = [out for _, out in blocks[1:]] + [0]
        self.blocks = nn.ModuleList(
            ConvBlock(config, width + under, hidden, out)
            for width, under, (hidden, out) in zip(widths, below, blocks, strict=True)
        )
        self.act = nn.Identity() if config.activate_each else activation(config)

    def forward(self, fused: list[torch.Tensor]) -> torch.Tensor:
        x = None
        for level in range(len(self.blocks) - 1, -1, -1):
            x = fused.pop() if x is None else torch.cat([x, fused.pop()], 1)
            x = self.blocks[level](x)
            if level > 0 or self.last_up:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.corners)
            x = self.act(x)
        return x


class DirectHead(nn.Module):
    """The published end: features (N, C, H, W) -> the fused slice (N, 1, H, W), unbounded."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.outlayer = nn.Conv2d(inputs, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outlayer(x)


class BlendHead(nn.Module):
    """Scores each source at each pixel by the same weights: f = w a + (1 - w) b + a small bounded residual.

    w = sigmoid(score of a - score of b), so exchanging the sources exchanges w and 1 - w, and the picture stays. The
    result keeps to [min(a, b), max(a, b)] but for `ALLOWANCE`: it cannot show what neither source has.
    """

    def __init__(self, config: NetworkConfig, inputs: int) -> None:
        super().__init__()
        self.corners = config.align_corners
        width = config.decoder[0][0]
        c1, c2, c3 = config.channels[:3]
        self.coarser = nn.ModuleList([nn.Conv2d(c2, c1, 1), nn.Conv2d(c3, c2, 1)])
        self.from_fused = nn.Conv2d(inputs, width, 3, padding=1)
        self.from_own = nn.Conv2d(c1, width, 3, padding=1, bias=False)
        self.act = activation(config)
        self.out = nn.Conv2d(width, 2, 1)

    def _up(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.corners)

    def forward(self, fused: torch.Tensor, own: list[torch.Tensor], frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
        """`fused` (N, C, H, W), `own` the encoder's features of both sources (2 N, ...) -> w, residual (N, 1, h, w).

        `frame`: where on the canvas the slices lie.
        """
        x = own[1] + self._up(self.coarser[1](own[2]))
        x = own[0] + self._up(self.coarser[0](x))
        x = self.from_own(x)
        n = fused.shape[0]
        x = self.act(x.unflatten(0, (2, n)) + self.from_fused(fused)).flatten(0, 1)
        scores = self.out(x).float()
        score, residual = frame.cut(
            torch.cat([scores[:n, :1] - scores[n:, :1], scores[:n, 1:] + scores[n:, 1:]], 1)
        ).split(1, 1)
        return torch.sigmoid(score), RESIDUAL * torch.tanh(residual)


def limits(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest fused value at each pixel of slices a, b (N, 1, H, W) in [0, 1]."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    allowance = ALLOWANCE * (high / DARK).clamp(max=1)
    return (low - allowance).clamp(min=0), (high + allowance).clamp(max=1)


def blend(
    a: torch.Tensor,
    b: torch.Tensor,
    w: torch.Tensor,
    residual: torch.Tensor,
    within: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """w a + (1 - w) b + residual, kept within the sources' range (`limits`, if not given); all (N, 1, H, W)."""
    low, high = within or limits(a, b)
    return torch.minimum(torch.maximum(b + w * (a - b) + residual, low), high)
