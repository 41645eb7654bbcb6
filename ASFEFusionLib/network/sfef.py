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

    def gain(self) -> torch.Tensor:
        """(D,), for what has been normalised."""
        return len(self.gamma) ** 0.5 * self.gamma

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return F.normalize(t, dim=-1) * self.gain()


class SFEF(nn.Module):
    """(N, 2 C, H, W) spatial and frequency features -> the same shape, each pixel a mixture of the experts' answers.

    Dispatch (softmax over pixels) and combination (softmax over slots) are two attentions with unscaled logits, so no
    pixel-by-slot array is held, see `attend`. `expert_residual` adds the experts' answer to the features themselves.
    """

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        width = 2 * channels
        self.residual = config.expert_residual
        self.whole = False  # logits held whole: faster for few pixels and slots, see `inference`
        # Small logits at the start keep the softmax soft in a network that we train; a loaded one brings its own.
        self.norm = RMSNorm(width, 1.0)
        self.slot_norm = RMSNorm(width, width**-0.5)
        self.slots = nn.Parameter(normal(config.experts, config.slots, width))
        hidden = config.expansion * width
        self.experts = None
        if config.experts_apart:
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
                for _ in range(config.experts)
            )
        else:
            self.weight1 = nn.Parameter(normal(config.experts, width, hidden, scale=width**-0.5))
            self.bias1 = nn.Parameter(torch.zeros(config.experts, 1, hidden))
            self.weight2 = nn.Parameter(normal(config.experts, hidden, width, scale=hidden**-0.5))
            self.bias2 = nn.Parameter(torch.zeros(config.experts, 1, width))

    def _answers(self, inputs: torch.Tensor) -> torch.Tensor:
        """Slot inputs (N, experts, slots, width) -> each expert's answers to its own slots, the same shape."""
        if self.experts is not None:
            return torch.stack([expert(inputs[:, e]) for e, expert in enumerate(self.experts)], 1)
        n, kind = inputs.shape[0], inputs.dtype
        rows = inputs.transpose(0, 1).flatten(1, 2)  # (experts, N * slots, width)
        hidden = F.gelu(torch.baddbmm(self.bias1.to(kind), rows, self.weight1.to(kind)))
        answers = torch.baddbmm(self.bias2.to(kind), hidden, self.weight2.to(kind))
        return answers.unflatten(1, (n, -1)).transpose(0, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        n, width, height, columns = features.shape
        pixels = features.flatten(2).transpose(1, 2).contiguous()
        slots = self.slot_norm(self.slots).flatten(0, 1)
        if self.whole:
            tokens = F.normalize(pixels, dim=-1)
            gain = self.norm.gain()  # of the slots it is taken, not of the many more pixels
            logits = torch.matmul(tokens, (slots * gain).T)
            inputs = torch.bmm(logits.softmax(1).transpose(1, 2), tokens) * gain
        else:
            tokens = self.norm(pixels)
            slots = slots.to(tokens.dtype).expand(n, -1, -1)
            inputs = attend(slots, tokens, tokens)
        answers = self._answers(inputs.view(n, *self.slots.shape)).flatten(1, 2)
        if self.whole:
            mixed = torch.baddbmm(pixels, logits.softmax(2), answers, beta=int(self.residual))
        else:
            mixed = attend(tokens, slots, answers)
            mixed = pixels + mixed if self.residual else mixed
        return mixed.transpose(1, 2).reshape(n, width, height, columns)


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal values times `scale`; on the meta device none, for which torch would load its compiler: that takes 1 s."""
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_().mul_(scale)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """softmax(queries . keys) values with unscaled logits; (N, rows, width) each, rows of keys and values alike.

    The logits are never held whole: torch's fused attention goes through them in blocks (Dao et al. 2022,
    "FlashAttention"). It serves tensors of four dimensions, hence one head: those of three torch holds whole. And it
    wants rows that lie together in memory, or it takes as much again for copies.
    """
    heads = (x.contiguous().unsqueeze(1) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(*heads, scale=1.0).squeeze(1)
