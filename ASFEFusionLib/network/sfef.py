"""SFEF, spatial and frequency experts fusion: a soft mixture of experts over all pixels (Puigcerver et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configs import NetworkConfig


class RMSNorm(nn.Module):
    """t / max(||t||, 1e-12) * sqrt(D) * gamma over the last dimension D."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), gain))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return F.normalize(t, dim=-1) * (t.shape[-1] ** 0.5 * self.gamma)


class SFEF(nn.Module):
    """(N, C, H, W) spatial and frequency features -> (N, 2 C, H, W), each pixel a mixture of the experts' answers.

    Dispatch (softmax over pixels) and combination (softmax over slots) are two attentions with unscaled logits, so no
    pixel-by-slot array is held. `expert_residual` adds the experts' answer to the features themselves.
    """

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        width = 2 * channels
        self.residual = config.expert_residual
        # Small logits at the start keep the softmax soft in a network that we train; a loaded one brings its own.
        self.norm = RMSNorm(width, 1.0)
        self.slot_norm = RMSNorm(width, width**-0.5)
        self.slots = nn.Parameter(torch.randn(config.experts, config.slots, width))
        hidden = config.expansion * width
        self.weight1 = nn.Parameter(torch.randn(config.experts, width, hidden) * width**-0.5)
        self.bias1 = nn.Parameter(torch.zeros(config.experts, 1, hidden))
        self.weight2 = nn.Parameter(torch.randn(config.experts, hidden, width) * hidden**-0.5)
        self.bias2 = nn.Parameter(torch.zeros(config.experts, 1, width))

    def forward(self, spatial: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
        features = torch.cat([spatial, frequency], 1)
        n, width, height, columns = features.shape
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        slots = self.slot_norm(self.slots).flatten(0, 1).to(tokens.dtype).expand(n, -1, -1)
        inputs = F.scaled_dot_product_attention(slots, tokens, tokens, scale=1.0)
        experts = inputs.view(n, *self.slots.shape).transpose(0, 1).flatten(1, 2)  # (experts, N * slots, width)
        hidden = F.gelu(torch.baddbmm(self.bias1.to(experts.dtype), experts, self.weight1.to(experts.dtype)))
        answers = torch.baddbmm(self.bias2.to(experts.dtype), hidden, self.weight2.to(experts.dtype))
        answers = answers.unflatten(1, (n, -1)).transpose(0, 1).flatten(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, slots, answers, scale=1.0)
        mixed = mixed.transpose(1, 2).reshape(n, width, height, columns)
        return features + mixed if self.residual else mixed
