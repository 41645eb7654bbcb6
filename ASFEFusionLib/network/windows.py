"""Overlapping windows of fixed size: what a pixel becomes does not depend on how far the slice goes on elsewhere."""

from __future__ import annotations

import functools

import torch

# Neighbours overlap by this part of a window.
OVERLAP = 8


def starts(begin: int, end: int, window: int, middle: int) -> list[int]:
    """First positions of windows that cover `begin` to `end` - 1, one of them laid about `middle`, the others by that.

    So the first may lie partly before, and the last partly behind.
    """
    step = window - window // OVERLAP
    first = (middle - window // 2 - begin) % step + begin
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

    def __init__(
        self, both: torch.Tensor, window: int, middles: list[tuple[int, int]], black: torch.Tensor, ends: int
    ) -> None:
        """`middles`: for each pair, of what it shows (`frame.Frame`), in pixels of these features.

        `black`: features (1, C, 1, 1) of nothing, which stand beyond the slice. So many values at the `ends` are left
        out, too: there it is the convolutions' zeros that show.
        """
        self.window, self.black, self.ends = window, black, ends
        self.height, self.width = both.shape[-2:]
        self.rows = [starts(ends, self.height - ends, window, row) for row, _ in middles]
        self.columns = [starts(ends, self.width - ends, window, column) for _, column in middles]
        self.corners = [
            (n, row, column)
            for n, (rows, columns) in enumerate(zip(self.rows, self.columns, strict=True))
            for row in rows
            for column in columns
        ]

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
        """(windows, C', w, w) -> (N, C', H, W): overlaps cross-fade, and the ends go on with the last values."""
        w, e = self.window, self.ends
        counts = [(len(rows), len(columns)) for rows, columns in zip(self.rows, self.columns, strict=True)]
        parts = parts * torch.cat([fades(*count, w, parts.dtype, parts.device) for count in counts])
        merged = parts.new_zeros(len(counts), self.height, self.width, parts.shape[1]).permute(0, 3, 1, 2)
        for part, (n, r, c) in zip(parts, self.corners, strict=True):
            # Python would count negative positions from the end.
            inside = part[:, max(0, -r) : self.height - r, max(0, -c) : self.width - c]
            merged[n, :, max(0, r) : r + w, max(0, c) : c + w] += inside
        if e:
            merged[:, :, :e], merged[:, :, -e:] = merged[:, :, e : e + 1], merged[:, :, -e - 1 : -e]
            merged[..., :e], merged[..., -e:] = merged[..., e : e + 1], merged[..., -e - 1 : -e]
        return merged
