"""AFF as it runs on a processor: the same sums as `aff` makes, its transforms as products of matrices.

A window is 36 values to a side: a product of matrices makes its transform in half the time, and takes and leaves its
values in the order in which they lie. Nothing here is trained.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .aff import AFF


def _kept(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.float().contiguous(), requires_grad=False)


def waves(frequencies: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (frequencies, side) of the orthonormal transform, in double precision."""
    # Whole turns are taken off before they are rounded.
    steps = torch.outer(torch.arange(frequencies), torch.arange(side)) % side
    angles = 2 * math.pi / side * steps.double()
    return angles.cos() / math.sqrt(side), angles.sin() / math.sqrt(side)


def matrices(side: int) -> tuple[torch.Tensor, ...]:
    """Of a transform of side x side real values and of its inverse, the four matrices; k: side / 2 + 1 frequencies.

    In this order: from the values of a row to (part, frequency across), (2 k, side); from (row, part) to (part,
    frequency down), (2 side, 2 side); from (frequency across, part) to (turned, column), (2 side, 2 k); and from
    (frequency down, turned) to rows, (side, 2 side). A part is real or imaginary; what is turned by a quarter is what
    the last sum takes with its sines. Source: torch.fft.rfft2 and irfft2, norm "ortho".
    """
    if side % 2:
        raise ValueError(f"windows of an even side are needed, not {side}")
    c, s = waves(side // 2 + 1, side)
    across = torch.cat([c, -s])
    # The negative frequencies that a real transform leaves out come back in the inverse.
    twice = torch.full((len(c), 1), 2.0, dtype=torch.double)
    twice[0] = twice[-1] = 1
    back = torch.stack([torch.stack([c, -s]), torch.stack([s, c])]) * twice  # (turned, part, frequency, column)
    back = back.permute(0, 3, 2, 1).reshape(2 * side, -1)
    c, s = waves(side, side)
    down = torch.stack([torch.stack([c, s]), torch.stack([-s, c])])  # (part after, part before, frequency, row)
    down = down.permute(0, 2, 3, 1).reshape(2 * side, 2 * side)
    up = torch.stack([c, -s]).permute(2, 1, 0).reshape(side, 2 * side)
    return across, down, back, up


class FastAFF(nn.Module):
    """`AFF` with its values, for windows of one even side; shared weights, an orthonormal transform."""

    @staticmethod
    def stands_for(aff: AFF, side: int) -> bool:
        """Of windows of this side; 0 is no window."""
        return side > 0 and side % 2 == 0 and aff.shared and aff.norm == "ortho" and not aff.published

    def __init__(self, aff: AFF, side: int) -> None:
        super().__init__()
        self.across, self.down, self.back, self.up = map(_kept, matrices(side))
        mask = aff.masks[0]
        # Parts by channel, real before imaginary -> all real ones, all imaginary ones.
        weight = mask.mix.weight.flatten(1).unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        self.of_real, self.of_imaginary = (_kept(weight[:, part::2].T[None]) for part in (0, 1))
        self.bias = _kept(mask.mix.bias.flatten().unflatten(0, (-1, 2)).T.reshape(1, 1, -1))
        self.mask = mask.mask

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        """(2 N, C, side, side) -> (N, C, side, side), channels last in memory."""
        count, channels, side, _ = both.shape
        frequencies = side // 2 + 1
        x = both.permute(0, 2, 3, 1).flatten(0, 1)
        x = torch.bmm(self.across.expand(count * side, -1, -1), x)
        x = torch.bmm(self.down.expand(count, -1, -1), x.view(count, 2 * side, frequencies * channels))
        real, imaginary = x.view(count, 2, side * frequencies, channels).unbind(1)
        x = torch.baddbmm(self.bias, real, self.of_real.expand(count, -1, -1))
        x = x.baddbmm_(imaginary, self.of_imaginary.expand(count, -1, -1)).relu_()
        seen = torch.stack([x.mean(2), x.amax(2)], 1).view(count, 2, side, frequencies)
        first, second = x.mul_(torch.sigmoid(self.mask(seen)).view(count, -1, 1)).chunk(2)
        x = first.add_(second)
        count //= 2
        x = x.view(count * side, 2 * frequencies, channels)
        x = torch.bmm(self.back.expand(count * side, -1, -1), x)
        x = torch.bmm(self.up.expand(count, -1, -1), x.view(count, 2 * side, side * channels))
        return x.view(count, side, side, channels).permute(0, 3, 1, 2)
