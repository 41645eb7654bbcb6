"""The whole network: encoder, fusion at each size, decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configs import NetworkConfig
from .decoder import BlendHead, DirectHead, UpPath, blend, limits
from .encoder import Encoder
from .fusion_level import ExpertFusion, PlainMerge
from .refinement import Refinement


class ASFEFusion(nn.Module):
    """Two registered slices a, b (N, 1, H, W) in [0, 1] -> one fused slice of the same shape.

    Any H and W: slices are padded inside by their edge values and the result is cropped back. `compact` is symmetric,
    net(a, b) = net(b, a), by construction (shared weights, a head that scores both sources alike), and gives [0, 1];
    `paper` is not symmetric, and unbounded, as published.

    Source: Gu et al. 2024, doi 10.1016/j.bspc.2024.106478; what is ours is named in `configs.COMPACT`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        # A blending head looks at the full-size features of each source itself: nothing to merge there.
        self.first_level = 1 if config.head == "blend" else 0
        self.fusion = nn.ModuleList()
        widths = []
        for level in range(self.first_level, len(config.channels)):
            experts = config.patches[level] > 0
            self.fusion.append(ExpertFusion(config, level) if experts else PlainMerge(config, level))
            widths.append(config.channels[level] * (2 if experts else 1))
        blocks = list(config.decoder[self.first_level :])
        self.decoder = UpPath(config, widths, blocks, last_up=self.first_level == 1)
        self.head = BlendHead(config, blocks[0][1]) if config.head == "blend" else DirectHead(blocks[0][1])
        self.refinement = Refinement(config.refinements)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 1:
            raise ValueError(f"two slices of one shape (N, 1, H, W) are needed, not {tuple(a.shape)}, {tuple(b.shape)}")
        height, width = a.shape[2:]
        m, multiple = self.config.margin, self.config.multiple
        pad = (m, m + (-width - 2 * m) % multiple, m, m + (-height - 2 * m) % multiple)
        inside = slice(m, m + height), slice(m, m + width)
        both = torch.cat([a, b])
        features = self.encoder(F.pad(both, pad, mode="replicate") if any(pad) else both)
        direct = self.config.head == "direct"
        fused = []
        for level, fusion in enumerate(self.fusion, self.first_level):
            both = features[level]
            if direct:
                features[level] = None  # the largest first: nothing else looks at it
            fused.append(fusion(both))
        x = self.decoder(fused)
        if direct:
            return self.head(x)[..., inside[0], inside[1]]
        w, residual = self.head(x, features, inside)
        within = limits(a, b)
        fused = blend(a, b, w, residual, within)
        if not self.config.refinements:
            return fused
        with torch.autocast(a.device.type, enabled=False):  # ratios of weak edges need all digits
            return self.refinement(a, b, fused, within)
