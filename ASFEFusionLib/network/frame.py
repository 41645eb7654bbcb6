"""Frame: where a slice lies on the network's grids. It follows what the slice shows, not where the slice ends."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# Of slices in [0, 1]: what is darker has no say in where the middle of the shown is.
FAINT = 0.1
# What is symmetric has its middle at a whole or half pixel: rounding must not decide there.
DOWN = 0.3

Place = tuple[int, int]


def middles(a: torch.Tensor, b: torch.Tensor) -> list[Place]:
    """Row and column (pixels) of the centre of mass of what slices a, b (N, 1, H, W) in [0, 1] show, for each pair.

    Black around a slice moves it as it moves the slice. Where nothing is shown: the first pixel.
    """
    shown = (torch.maximum(a, b)[:, 0] - FAINT).clamp_(min=0)
    masses = shown.sum(2), shown.sum(1)
    sums = torch.stack([torch.stack([(x * torch.arange(x.shape[1]).to(x)).sum(1), x.sum(1)]) for x in masses])
    rows, columns = (  # one copy from the device for all
        [math.floor(moment / mass + DOWN) if mass > 0 else 0 for moment, mass in zip(*pair, strict=True)]
        for pair in sums.tolist()
    )
    return list(zip(rows, columns, strict=True))


def put(x: torch.Tensor, places: list[Place], size: Place) -> torch.Tensor:
    """Each of (N, C, H, W) with its first pixel at its place in (N, C, *size), continued by its end values."""
    if set(places) == {(0, 0)} and x.shape[2:] == size:
        return x
    height, width = x.shape[2:]
    pads = [(left, size[1] - width - left, top, size[0] - height - top) for top, left in places]
    if len(set(pads)) == 1:
        return F.pad(x, pads[0], mode="replicate")
    return torch.cat([F.pad(one, pad, mode="replicate") for one, pad in zip(x.split(1), pads, strict=True)])


def cut(x: torch.Tensor, places: list[Place], size: Place) -> torch.Tensor:
    """The inverse of `put`: `size` pixels from its place on of each of (N, C, H, W)."""
    height, width = size
    if len(set(places)) == 1:
        top, left = places[0]
        return x[..., top : top + height, left : left + width]
    parts = [one[..., t : t + height, left : left + width] for one, (t, left) in zip(x.split(1), places, strict=True)]
    return torch.cat(parts)


def up_to(length: int, multiple: int) -> int:
    """The least multiple that is not less than `length`."""
    return -(-length // multiple) * multiple


class Frame:
    """Slices (N, 1, H, W) on a canvas on which their middles lie on the first pixels of the grid's cells.

    So black around a slice, or its absence, does not change how pooling, windows and halves fall on the picture, and
    hardly the picture. `middles`: None for a canvas that begins at the slices' ends, as the published network's.
    """

    def __init__(self, shape: torch.Size, middles: list[Place] | None, margin: int, multiple: int) -> None:
        """`margin`: pixels of the canvas beyond the slices' ends, at least; `multiple`: of its size, and the cells'."""
        count, _, *size = shape
        self.slice: Place = tuple(size)
        spare = 0 if middles is None else multiple - 1
        self.size: Place = tuple(up_to(length + 2 * margin + spare, multiple) for length in size)
        if middles is None:
            self.places = [(margin, margin)] * count
            self.middles = [(0, 0)] * count
        else:
            self.places = [tuple(margin + (-margin - x) % multiple for x in middle) for middle in middles]
            self.middles = [
                tuple(x + first for x, first in zip(middle, place, strict=True))
                for middle, place in zip(middles, self.places, strict=True)
            ]

    def put(self, both: torch.Tensor) -> torch.Tensor:
        """Slices of both sources (2 N, 1, H, W), or of one, continued by their end values to the canvas."""
        return put(both, self.places * (len(both) // len(self.places)), self.size)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """The slices (N, C, H, W) on a canvas (N, C, *size)."""
        return cut(x, self.places, self.slice)


class Evened:
    """Slices so continued that what takes means of 2 x 2 of them does it as on the frame's canvas."""

    def __init__(self, frame: Frame) -> None:
        self.slice = frame.slice
        self.places = [(top % 2, left % 2) for top, left in frame.places]
        # One size for all, so that a slice's picture does not hang on those beside it.
        self.size: Place = tuple(up_to(length + 1, 2) for length in frame.slice)

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, H, W), continued by its end values."""
        return put(x, self.places, self.size)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """The slices (N, 1, H, W) of what `put` has made."""
        return cut(x, self.places, self.slice)
