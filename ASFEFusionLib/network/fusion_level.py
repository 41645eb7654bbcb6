"""The fusion at one size: CASF and AFF, mixed by SFEF, or a plain merge where that is enough."""

from __future__ import annotations

import torch
from torch import nn

from .aff import AFF
from .casf import CASF
from .configs import NetworkConfig
from .encoder import activation
from .sfef import SFEF
from .windows import Windows


class ExpertFusion(nn.Module):
    """Features x, y (N, C, H, W) of the two sources -> (N, 2 C, H, W), in windows if the config asks for them."""

    def __init__(self, config: NetworkConfig, level: int) -> None:
        super().__init__()
        channels = config.channels[level]
        self.window = config.window >> level
        self.casf = CASF(config, channels, config.patches[level])
        self.aff = AFF(config, channels)
        self.sfef = SFEF(config, channels)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not self.window:
            return self._fuse(x, y)
        windows = Windows(x, self.window)
        return windows.merge(self._fuse(windows.split(x), windows.split(y)))

    def _fuse(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # In one expression, so that the two parts are gone when the experts begin: at full size each is 29 MB.
        return self.sfef(torch.cat([self.casf(x, y), self.aff(x, y)], 1))


class PlainMerge(nn.Module):
    """Sum and maximum of the two sources' features through a 1 x 1 convolution: (N, C, H, W) twice -> once."""

    def __init__(self, config: NetworkConfig, level: int) -> None:
        super().__init__()
        channels = config.channels[level]
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.act = activation(config)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.act(self.mix(torch.cat([x + y, torch.maximum(x, y)], 1)))
