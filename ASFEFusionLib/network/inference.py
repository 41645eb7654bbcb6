"""The network as it runs: the pictures of `ASFEFusion`, by cheaper ways. Nothing here is trained or saved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .aff import SpectrumMask
from .asfe import ASFEFusion
from .decoder import RESIDUAL, BlendHead, UpPath
from .encoder import ConvBlock, MeanPool
from .fast_aff import FastAFF
from .fast_refinement import FastRefinement
from .frame import Frame
from .fusion_level import ExpertFusion
from .sfef import SFEF

# How the 3 taps of a kernel's row on an upsampled picture fall on 3 neighbours in the picture before: (phase,
# neighbour, tap), for the even and for the odd pixels.
TAPS = [
    [[0.75, 0.25, 0.0], [0.25, 0.75, 0.75], [0.0, 0.0, 0.25]],
    [[0.25, 0.0, 0.0], [0.75, 0.75, 0.25], [0.0, 0.25, 0.75]],
]
# Pixels at a slice's ends, full size, that come out otherwise where `Grown` stands for a convolution.
REACH = 8


def prepared(net: ASFEFusion, device: str = "cpu") -> ASFEFusion:
    """The network in eval mode made ready to run, in place; pictures stay the same to rounding.

    Batch norm and the quarter of a mean go into the convolutions, and upsampling, under a blending head, behind or into
    them. All in float32: of what bfloat16 rounds the refinement makes up to 3 of 255 levels. For the `device` "mps", on
    which the rest is not tried, no more than batch norm and quarters.
    """
    for module in list(net.modules()):
        if isinstance(module, ConvBlock):
            _fold(module, "conv1", "bn1")
            _fold(module, "conv2", "bn2")
        elif isinstance(module, SpectrumMask):
            _fold(module, "mix", "bn")
            module.mix = Mix(module.mix)
        elif isinstance(module, SFEF):
            module.whole = net.config.window > 0
    for place, (pool, block) in enumerate(zip(net.encoder.pools, net.encoder.blocks[1:], strict=True)):
        if isinstance(pool, MeanPool):
            net.encoder.pools[place] = SumPool()
            block.conv1.weight = _kept(block.conv1.weight * 0.25)  # a power of two: without rounding
    if net.config.window:
        net.encoder.keep_black()
    fits = isinstance(net.head, BlendHead) and net.config.margin >= REACH and not net.config.align_corners
    if fits and device != "mps":
        net.head = FastHead(net.decoder.blocks[0], net.head)
        net.decoder = FastUpPath(net.decoder)
        if net.config.refinements:
            net.refinement = FastRefinement(net.refinement)
        if device == "cpu":
            for fusion in net.fusion:
                if isinstance(fusion, ExpertFusion) and FastAFF.stands_for(fusion.aff, fusion.window):
                    fusion.aff = FastAFF(fusion.aff, fusion.window)
            _replace_convolutions(net, lanes())
    return net


def lanes() -> int:
    """Channels that this processor computes in one go."""
    return 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8


def _replace_convolutions(net: nn.Module, lanes: int) -> None:
    for module in list(net.modules()):
        for name, conv in list(module.named_children()):
            if not isinstance(conv, nn.Conv2d):
                continue
            if conv.kernel_size == (1, 1):
                setattr(module, name, Pixelwise(conv))
            elif conv.kernel_size == (3, 3) and 2 * conv.out_channels <= lanes:
                setattr(module, name, Pairs(conv))


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    c, bn = getattr(module, conv), getattr(module, norm)
    c.weight, c.bias = fuse_conv_bn_weights(
        c.weight, c.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    setattr(module, norm, nn.Identity())
    module.requires_grad_(False)


def _kept(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class Mix(nn.Module):
    """A 1 x 1 convolution as a product of matrices: faster in the layout that a Fourier transform leaves."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = _kept(conv.weight.flatten(1)), _kept(conv.bias[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.expand(len(x), -1, -1)
        return torch.baddbmm(self.bias, weight, x.flatten(2)).view_as(x)


class Pixelwise(nn.Module):
    """A 1 x 1 convolution as a product of matrices: of so few channels some are made in a slower way."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = _kept(conv.weight.flatten(1)), conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class SumPool(nn.Module):
    """`MeanPool`, four times as large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, ::2] + x[:, :, 1::2]
        return x[..., ::2] + x[..., 1::2]


class Pairs(nn.Module):
    """A 3 x 3 convolution to few channels that makes those of two neighbours in a row at once.

    For a processor that computes twice as many channels in one go. What comes out lies in memory as if each pixel had
    come alone. Slices of an even width, as the network's canvas is at the two sizes of so few channels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = torch.cat([F.pad(conv.weight, (0, 1)), F.pad(conv.weight, (1, 0))])
        self.weight = _kept(weight.contiguous(memory_format=torch.channels_last))
        self.bias = conv.bias if conv.bias is None else _kept(conv.bias.repeat(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), W even -> (N, C', H, W)."""
        pairs = F.conv2d(x, self.weight, self.bias, stride=(1, 2), padding=1).permute(0, 2, 3, 1)
        return pairs.unflatten(-1, (2, -1)).flatten(2, 3).permute(0, 3, 1, 2)


class Grown(nn.Module):
    """A 3 x 3 convolution of a picture that is upsampled first, done before it grows: one kernel for each phase.

    The same sums but at the ends, where upsampling continues the picture and a convolution does not.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        taps = torch.tensor(TAPS).to(weight)
        kernels = torch.einsum("oifg,ykf,xlg->yxoikl", weight, taps, taps).flatten(0, 2)
        self.weight = _kept(kernels.contiguous(memory_format=torch.channels_last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, 4 C', h, w), the four phases apart: for `spread`."""
        return F.conv2d(x, self.weight, padding=1)


def spread(apart: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Adds what `Grown` has made to `into` (N, C', 2 h, 2 w); quickest with channels last in memory.

    Axes are split and never joined: without oneDNN or cuDNN some convolutions give another layout.
    """
    h, w = apart.shape[2:]
    # (N, row, column, phase of row, phase of column, channel) -> as it lies in `into`
    apart = apart.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1)).transpose(2, 3)
    into.movedim(-3, -1).unflatten(-2, (w, 2)).unflatten(-4, (h, 2)).add_(apart)
    return into


def doubled(x: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) -> (N, C, 2 h, 2 w), interpolated as torch's own "bilinear" does, in half the time."""
    n, c, h, w = x.shape
    wide = x.new_empty(n, h, 2 * w, c).permute(0, 3, 1, 2)
    torch.lerp(x[..., 1:], x[..., :-1], 0.25, out=wide[..., 2::2])
    torch.lerp(x[..., :-1], x[..., 1:], 0.25, out=wide[..., 1:-1:2])
    wide[..., 0], wide[..., -1] = x[..., 0], x[..., -1]
    large = x.new_empty(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
    torch.lerp(wide[:, :, 1:], wide[:, :, :-1], 0.25, out=large[:, :, 2::2])
    torch.lerp(wide[:, :, :-1], wide[:, :, 1:], 0.25, out=large[:, :, 1:-1:2])
    large[:, :, 0], large[:, :, -1] = wide[:, :, 0], wide[:, :, -1]
    return large


class FastUpPath(nn.Module):
    """The coarser blocks of `UpPath`; the last block belongs to `FastHead`."""

    def __init__(self, path: UpPath) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(path.blocks[:0:-1])  # coarsest first

    def forward(self, fused: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `UpPath` -> what came up, a quarter of the slice's side, and the fused features of half its side."""
        x = self.blocks[0](fused.pop())
        for block in self.blocks[1:]:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = block(torch.cat([x, fused.pop()], 1))
        return x, fused.pop()


class FastHead(nn.Module):
    """The last block of `UpPath` and `BlendHead`; convolutions of what is upsampled come before that."""

    def __init__(self, last: ConvBlock, head: BlendHead) -> None:
        super().__init__()
        below = last.conv1.in_channels - head.coarser[1].out_channels
        self.grown = Grown(last.conv1.weight[:, :below])
        last.conv1.weight = _kept(last.conv1.weight[:, below:].contiguous(memory_format=torch.channels_last))
        self.conv1, self.conv2, self.act = last.conv1, last.conv2, last.each
        self.coarser, self.from_own = head.coarser, head.from_own
        self.from_own.bias = head.from_fused.bias
        self.from_coarser, self.from_fused = Grown(head.from_own.weight), Grown(head.from_fused.weight)
        self.weight, self.bias = _kept(head.out.weight.flatten(1)), 2 * float(head.out.bias[1])

    def forward(
        self, fused: tuple[torch.Tensor, torch.Tensor], own: list[torch.Tensor], frame: Frame
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, skip = fused
        x = self.act(spread(self.grown(x), self.conv1(skip)))
        x = self.act(self.conv2(x))
        n, _, h, w = x.shape
        y = self.from_coarser(self.coarser[0](doubled(self.coarser[1](own[2])).add_(own[1])))
        y.unflatten(0, (2, n)).add_(self.from_fused(x))
        y = spread(y, self.from_own(own[0]))
        # A product of matrices is three times as fast as a 1 x 1 convolution with so few outputs.
        y = self.act(y).transpose(0, 1).flatten(1)
        (score, other), residual = torch.matmul(self.weight, y).view(2, 2, n, 1, 2 * h, 2 * w)
        score, residual = frame.cut(score - other), frame.cut(residual.sum(0))
        return torch.sigmoid(score), RESIDUAL * torch.tanh(residual + self.bias)
