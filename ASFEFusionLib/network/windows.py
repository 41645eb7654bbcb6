"""Overlapping windows of fixed size: what a pixel becomes does not depend on how far the slice goes on elsewhere."""

from __future__ import annotations

import functools
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


@functools.lru_cache(maxsize=16)
def fades(height: int, width: int, window: int, kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """(windows, 1, 1, h, w) weights of a slice's windows, which sum to one at each pixel; kept for the next slice."""
    with torch.inference_mode(False):  # what is kept may serve training, too
        like = torch.empty(0, dtype=kind, device=device)
        down, across = (ramps(n, window, starts(n, window, window // 4), like) for n in (height, width))
        return (down[:, None, :, None] * across[None, :, None, :]).flatten(0, 1)[:, None, None]


class Windows:
    """Cuts the features of both sources, (2 N, C, H, W), into a batch of windows; blends what is made of a pair."""

    def __init__(self, both: torch.Tensor, window: int) -> None:
        self.window = window
        self.height, self.width = both.shape[-2:]
        overlap = window // 4
        self.rows, self.columns = starts(self.height, window, overlap), starts(self.width, window, overlap)
        self.corners = [(row, column) for row in self.rows for column in self.columns]

    def split(self, both: torch.Tensor) -> torch.Tensor:
        """(2 N, C, H, W) -> (2 * windows * N, C, h, w), the first source's windows first; h, w: at most the window."""
        if len(self.corners) == 1:
            return both
        w = self.window
        return torch.cat([x[:, :, r : r + w, c : c + w] for x in both.chunk(2) for r, c in self.corners])

    def merge(self, parts: torch.Tensor) -> torch.Tensor:
        """(windows * N, C', h, w) -> (N, C', H, W): overlaps cross-fade."""
        if len(self.corners) == 1:
            return parts
        weights = fades(self.height, self.width, self.window, parts.dtype, parts.device)
        parts = parts.unflatten(0, (len(self.corners), -1)) * weights
        _, n, channels, h, w = parts.shape
        merged = parts.new_zeros(n, self.height, self.width, channels).permute(0, 3, 1, 2)
        for part, (r, c) in zip(parts, self.corners, strict=True):
            merged[:, :, r : r + h, c : c + w] += part
        return merged
