"""Encoder: one slice to features at several sizes, the same weights for both sources."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configs import NetworkConfig


def activation(config: NetworkConfig) -> nn.Module:
    """The config's activation; the exact (erf) GELU, as published."""
    return nn.GELU() if config.activation == "gelu" else nn.ReLU(inplace=True)


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm: (N, inputs, H, W) -> (N, outputs, H, W).

    Ends without an activation where `activate_each` is off: its caller puts it after the resampling.
    """

    def __init__(self, config: NetworkConfig, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.each = activation(config) if config.activate_each else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.each(self.bn1(self.conv1(x)))
        return self.each(self.bn2(self.conv2(x)))


class BlurPool(nn.Module):
    """Maximum of 2 x 2, then a 4 x 4 binomial filter with stride 2 (Zhang 2019, as the published network has it)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("filt", (torch.outer(row, row) / 64).repeat(channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(x, 2, stride=1)
        return F.conv2d(F.pad(x, (1, 2, 1, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class MeanPool(nn.Module):
    """Mean of 2 x 2 of (N, C, H, W), H and W even; four times as fast as torch's own where channels are few."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, ::2] + x[:, :, 1::2]
        return (x[..., ::2] + x[..., 1::2]) * 0.25


class Encoder(nn.Module):
    """(N, 1, H, W) -> one feature map a level, (N, channels[level], H / 2^level, W / 2^level)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.activate_each = config.activate_each
        self.inlayer = nn.Conv2d(1, config.stem, 1) if config.stem else nn.Identity()
        inputs = [config.stem or 1, *config.channels[:-1]]
        self.blocks = nn.ModuleList(
            ConvBlock(config, *sizes) for sizes in zip(inputs, config.hidden, config.channels, strict=True)
        )
        self.pools = nn.ModuleList(BlurPool(c) if config.blur_pool else MeanPool() for c in inputs[1:])
        self.act = nn.Identity() if config.activate_each else activation(config)
        self.kept: nn.ParameterList | None = None

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = [self.act(self.blocks[0](self.inlayer(x)))]
        for pool, block in zip(self.pools, self.blocks[1:], strict=True):
            features.append(self.act(block(self.act(pool(features[-1])))))
        return features

    def black(self) -> list[torch.Tensor]:
        """What it makes of black: (1, channels[level], 1, 1) for each level."""
        if self.kept is not None:
            return list(self.kept)
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
        for module in norms:  # black alone has no variance
            module.eval()
        side = 8 << len(self.blocks)  # so large that in the middle its ends do not show
        features = self(next(self.parameters()).new_zeros(1, 1, side, side))
        for module in norms:
            module.train()
        return [x[:, :, x.shape[2] // 2, x.shape[3] // 2, None, None] for x in features]

    def keep_black(self) -> None:
        """From now on `black` is what it is now."""
        self.kept = nn.ParameterList(nn.Parameter(x, requires_grad=False) for x in self.black())
