"""Overlapping windows of fixed size: what a pixel becomes does not depend on how far the slice goes on elsewhere."""

from __future__ import annotations

import functools

import torch

from .frame import Span, Spans

# Neighbours overlap by this part of a window.
OVERLAP = 8
# Values beyond what is shown that are looked at, too: the decoder brings them back into it.
BEYOND = 4


def starts(begin: int, end: int, window: int, middle: int) -> list[int]:
    """First positions of windows that cover `begin` to `end` - 1: one about `middle`, or as many as meet there.

    So the first may lie partly before, and the last partly behind.
    """
    about = middle - window // 2
    if about <= begin and about + window >= end:
        return [about]
    overlap = window // OVERLAP
    step = window - overlap
    first = (middle - overlap // 2 - begin) % step + begin
    first -= step if first > begin else 0
    found = [first]
    while found[-1] + window < end:
        found.append(found[-1] + step)
    return found


def ramps(count: int, window: int) -> torch.Tensor:
    """(count, window) weights of windows in a row that sum to one at each position: linear from window to window."""
    overlap = window // OVERLAP
    rising = (torch.arange(overlap) + 0.5) / overlap
    weights = torch.ones(count, window)
    weights[1:, :overlap] = rising  # the ends of a row need none: nothing lies beyond
    weights[:-1, window - overlap :] = rising.flip(0)
    return weights


@functools.lru_cache(maxsize=16)
def fades(rows: int, columns: int, window: int, kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """(windows, 1, w, w) weights of windows in so many rows and columns; kept for the next slice."""
    with torch.inference_mode(False):  # what is kept may serve training, too
        down, across = ramps(rows, window), ramps(columns, window)
        return (down[:, None, :, None] * across[None, :, None, :]).flatten(0, 1)[:, None].to(device, kind)


class Windows:
    """Cuts the features of both sources, (2 N, C, H, W), into a batch of windows; blends what is made of a pair."""

    def __init__(self, both: torch.Tensor, window: int, shown: list[Spans], black: torch.Tensor, ends: int) -> None:
        """`shown`: by each pair (`frame.Frame`), in pixels of these features; nothing is looked at far beyond it.

        `black`: features (1, C, 1, 1) of nothing, which stand beyond the slice. So many values at the `ends` are left
        out, too: there it is the convolutions' zeros that show.
        """
        self.window, self.black, self.ends = window, black, ends
        self.height, self.width = both.shape[-2:]
        self.rows = [self._starts(rows, self.height) for rows, _ in shown]
        self.columns = [self._starts(columns, self.width) for _, columns in shown]
        self.corners = [
            (n, row, column)
            for n, (rows, columns) in enumerate(zip(self.rows, self.columns, strict=True))
            for row in rows
            for column in columns
        ]

    def _starts(self, shown: Span, length: int) -> list[int]:
        begin, end = max(self.ends, shown.first - BEYOND), min(length - self.ends, shown.end + BEYOND)
        return starts(begin, end, self.window, shown.middle)

    def split(self, both: torch.Tensor) -> torch.Tensor:
        """(2 N, C, H, W) -> (2 * windows, C, w, w), the first source's windows first."""
        w, e = self.window, self.ends
        top, left = (max(0, -min(places[0] for places in lines)) for lines in (self.rows, self.columns))
        bottom, right = (max(places[-1] for places in lines) + w for lines in (self.rows, self.columns))
        count, channels = both.shape[:2]
        size = top + max(bottom, self.height), left + max(right, self.width)
        canvas = both.new_empty(count, *size, channels).permute(0, 3, 1, 2).copy_(self.black)
        inside = slice(e, self.height - e), slice(e, self.width - e)
        canvas[:, :, top:, left:][..., inside[0], inside[1]] = both[..., inside[0], inside[1]]
        places = [(n, top + r, left + c) for n, r, c in self.corners]
        return torch.cat([x[n : n + 1, :, r : r + w, c : c + w] for x in canvas.chunk(2) for n, r, c in places])

    def merge(self, parts: torch.Tensor) -> torch.Tensor:
        """(windows, C', w, w) -> (N, C', H, W): overlaps cross-fade, and beyond the windows the last values go on."""
        w, e = self.window, self.ends
        counts = [(len(rows), len(columns)) for rows, columns in zip(self.rows, self.columns, strict=True)]
        parts = parts * torch.cat([fades(*count, w, parts.dtype, parts.device) for count in counts])
        merged = parts.new_zeros(len(counts), self.height, self.width, parts.shape[1]).permute(0, 3, 1, 2)
        for part, (n, r, c) in zip(parts, self.corners, strict=True):
            # Python would count negative positions from the end.
            inside = part[:, max(0, -r) : self.height - r, max(0, -c) : self.width - c]
            merged[n, :, max(0, r) : r + w, max(0, c) : c + w] += inside
        for n, (rows, columns) in enumerate(zip(self.rows, self.columns, strict=True)):
            one = merged[n]
            top, left = max(e, rows[0]), max(e, columns[0])
            bottom, right = min(self.height - e, rows[-1] + w), min(self.width - e, columns[-1] + w)
            one[:, :top], one[:, bottom:] = one[:, top : top + 1], one[:, bottom - 1 : bottom]
            one[..., :left], one[..., right:] = one[..., left : left + 1], one[..., right - 1 : right]
        return merged
