"""Overlapping windows of fixed size: what a pixel becomes does not depend on how far the slice goes on elsewhere."""

from __future__ import annotations

import math

import torch


def starts(length: int, window: int, overlap: int) -> list[int]:
    """First positions of windows that cover `length` evenly and overlap by `overlap` or more."""
    if length <= window:
        return [0]
    count = math.ceil((length - overlap) / (window - overlap))
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def ramps(length: int, window: int, firsts: list[int], like: torch.Tensor) -> torch.Tensor:
    """(windows, min(window, length)) weights that sum to one at each position: linear from window to window."""
    size = min(window, length)
    weights = torch.zeros(len(firsts), length, dtype=torch.float32)
    inside = torch.arange(size) + 0.5
    for row, first in enumerate(firsts):
        # The slice's own ends need no ramp: nothing lies beyond.
        left = inside if first > 0 else torch.full((size,), float(size))
        right = size - inside if first + size < length else torch.full((size,), float(size))
        weights[row, first : first + size] = torch.minimum(left, right)
    weights /= weights.sum(0, keepdim=True)
    return torch.stack([w[f : f + size] for w, f in zip(weights, firsts, strict=True)]).to(like)


class Windows:
    """Cuts (N, C, H, W) into a batch of windows, and blends what comes back, (N, C', H, W)."""

    def __init__(self, x: torch.Tensor, window: int) -> None:
        self.shape, self.window = x.shape, window
        height, width = x.shape[-2:]
        overlap = window // 4
        self.rows, self.columns = starts(height, window, overlap), starts(width, window, overlap)
        self.single = len(self.rows) == len(self.columns) == 1

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (windows * N, C, h, w), h and w the window or the smaller side."""
        if self.single:
            return x
        w = self.window
        return torch.cat([x[:, :, r : r + w, c : c + w] for r in self.rows for c in self.columns])

    def merge(self, parts: torch.Tensor) -> torch.Tensor:
        """Inverse of `split`: overlaps cross-fade."""
        if self.single:
            return parts
        n, _, height, width = self.shape
        down = ramps(height, self.window, self.rows, parts)
        across = ramps(width, self.window, self.columns, parts)
        merged = parts.new_zeros(n, parts.shape[1], height, width)
        h, w = parts.shape[-2:]
        each = iter(parts.split(n))
        for r, fade_r in zip(self.rows, down, strict=True):
            for c, fade_c in zip(self.columns, across, strict=True):
                merged[:, :, r : r + h, c : c + w] += next(each) * (fade_r[:, None] * fade_c)
        return merged
