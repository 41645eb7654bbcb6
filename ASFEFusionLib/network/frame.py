"""Frame: where a slice lies on the network's grids. It follows what the slice shows, not where the slice ends."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Of slices in [0, 1]: what is darker has no say in where the shown is.
FAINT = 0.1
# What is symmetric has its middle at a whole or half pixel: rounding must not decide there.
DOWN = 0.3

Place = tuple[int, int]


class Span(NamedTuple):
    """What a slice shows along one of its sides: the pixel of its middle, its first pixel, and the first behind it."""

    middle: int
    first: int
    end: int

    def moved(self, by: int) -> Span:
        return Span(*(x + by for x in self))

    def coarser(self, level: int) -> Span:
        """In pixels that are as large as 2^level by 2^level."""
        return Span(self.middle >> level, self.first >> level, -(-self.end >> level))


Spans = tuple[Span, Span]


def spans(a: torch.Tensor, b: torch.Tensor) -> list[Spans]:
    """Where slices a, b (N, 1, H, W) in [0, 1] show something: along rows and along columns, for each pair.

    The middle is that of mass. Black around a slice moves all as it moves the slice. Where nothing is shown: no pixel.
    """
    shown = (torch.maximum(a, b)[:, 0] - FAINT).clamp_(min=0)
    sides = []
    for masses in (shown.sum(2), shown.sum(1)):
        lit = (masses > 0).to(masses)
        moments = masses @ torch.arange(masses.shape[1]).to(masses)
        ends = lit.argmax(1), masses.shape[1] - lit.flip(1).argmax(1)
        sides.append(torch.stack([moments, masses.sum(1), *ends], 1))
    return [  # one copy from the device for all
        tuple(
            Span(math.floor(moment / mass + DOWN), int(first), int(end)) if mass > 0 else Span(0, 0, 0)
            for moment, mass, first, end in pair
        )
        for pair in torch.stack(sides, 1).tolist()
    ]


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
    hardly the picture. `shown`: None for a canvas that begins at the slices' ends, as the published network's.
    """

    def __init__(self, shape: torch.Size, shown: list[Spans] | None, margin: int, multiple: int) -> None:
        """`margin`: pixels of the canvas beyond the slices' ends, at least; `multiple`: of its size, and the cells'."""
        count, _, *size = shape
        self.slice: Place = tuple(size)
        spare = 0 if shown is None else multiple - 1
        self.size: Place = tuple(up_to(length + 2 * margin + spare, multiple) for length in size)
        self.shown: list[Spans] = []
        if shown is None:
            self.places = [(margin, margin)] * count
        else:
            self.places = [tuple(margin + (-margin - side.middle) % multiple for side in sides) for sides in shown]
            self.shown = [
                tuple(side.moved(by) for side, by in zip(sides, place, strict=True))
                for sides, place in zip(shown, self.places, strict=True)
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
