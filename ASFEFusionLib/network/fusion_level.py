"""The fusion at one size: CASF and AFF, mixed by SFEF, or a plain merge where that is enough."""

from __future__ import annotations

import torch
from torch import nn

from .aff import AFF
from .casf import CASF
from .configs import NetworkConfig
from .encoder import activation
from .frame import Frame
from .sfef import SFEF
from .windows import Windows


class ExpertFusion(nn.Module):
    """Features (2 N, C, H, W) of the two sources -> (N, 2 C, H, W), in windows if the config asks for them."""

    def __init__(self, config: NetworkConfig, level: int) -> None:
        super().__init__()
        channels = config.channels[level]
        self.level, self.margin = level, config.margin
        self.window = config.window >> level
        self.casf = CASF(config, channels, config.patches[level])
        self.aff = AFF(config, channels)
        self.sfef = SFEF(config, channels)

    def forward(self, both: torch.Tensor, frame: Frame, black: torch.Tensor | None) -> torch.Tensor:
        """`frame`: where the slices lie; `black`: features (1, C, 1, 1) of nothing, for windows."""
        if not self.window:
            return self._fuse(both)
        shown = [tuple(side.coarser(self.level) for side in sides) for sides in frame.shown]
        windows = Windows(both, self.window, shown, black, self.margin >> self.level)
        return windows.merge(self._fuse(windows.split(both)))

    def _fuse(self, both: torch.Tensor) -> torch.Tensor:
        # In one expression, so that the two parts are gone when the experts begin: at full size each is 29 MB. The
        # channels of a pixel are laid together: the experts take pixels as rows.
        parts = [part.permute(0, 2, 3, 1) for part in (self.casf(both), self.aff(both))]
        return self.sfef(torch.cat(parts, -1).permute(0, 3, 1, 2))


class PlainMerge(nn.Module):
    """Sum and maximum of the two sources' features through a 1 x 1 convolution: (2 N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, config: NetworkConfig, level: int) -> None:
        super().__init__()
        channels = config.channels[level]
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.act = activation(config)

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        x, y = both.chunk(2)
        return self.act(self.mix(torch.cat([x + y, torch.maximum(x, y)], 1)))
