"""CASF, cross-attention spatial fusion: each source's self-similarity map applied to the other's values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configs import NetworkConfig


class Tokens(nn.Module):
    """Features -> patch tokens -> normalised queries, keys and values, (N, heads, tokens, width / heads) each."""

    def __init__(self, config: NetworkConfig, channels: int, patch: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.embed = nn.Conv2d(channels, config.token_width, patch, stride=patch)
        self.norm = nn.LayerNorm(config.token_width)
        self.qkv = nn.Linear(config.token_width, 3 * config.token_width, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        n, count, width = tokens.shape
        qkv = self.qkv(tokens).view(n, count, 3, self.heads, width // self.heads)
        return tuple(qkv.permute(2, 0, 3, 1, 4))


class CASF(nn.Module):
    """CASF(x, y) = x + y + (A_x v_y + A_y v_x) / 2 brought back to pixels, where A = softmax(q k^T / sqrt(width)).

    (2 N, C, H, W), x then y, sides multiples of `patch` -> (N, C, H, W). With `shared` weights CASF(x, y) = CASF(y, x).
    """

    def __init__(self, config: NetworkConfig, channels: int, patch: int) -> None:
        super().__init__()
        width = config.token_width
        self.patch, self.shared, self.smooth = patch, config.shared, config.smooth_patches
        self.tokens = nn.ModuleList(Tokens(config, channels, patch) for _ in range(1 if self.shared else 2))
        self.proj = nn.ModuleList(nn.Linear(width, width) for _ in range(1 if self.shared else 2))
        self.to_pixels = nn.Linear(width, channels if self.smooth else patch * patch * channels)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        x, y = both.chunk(2)
        n, channels, height, width = x.shape
        if self.shared:  # both sources in one batch: small calls cost more than the sums in them
            q, k, v = self.tokens[0](both)
            o = self._attend(q, k, v.roll(n, 0))  # rolled by half the batch: the other source's values
            o = self.proj[0]((o[:n] + o[n:]) / 2)
        else:
            qx, kx, vx = self.tokens[0](x)
            qy, ky, vy = self.tokens[1](y)
            o = (self.proj[0](self._attend(qx, kx, vy)) + self.proj[1](self._attend(qy, ky, vx))) / 2
        o = self.to_pixels(o)
        rows, columns = height // self.patch, width // self.patch
        if self.smooth:
            o = o.transpose(1, 2).reshape(n, channels, rows, columns)
            o = F.interpolate(o, size=(height, width), mode="bilinear", align_corners=False)
        else:  # a token's values lie as (row in patch, column in patch, channel)
            o = o.view(n, rows, columns, self.patch, self.patch, channels)
            o = o.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, height, width)
        return x + y + o
