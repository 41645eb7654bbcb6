"""The whole network: encoder, fusion at each size, decoder."""

from __future__ import annotations

import torch
from torch import nn

from .configs import NetworkConfig
from .decoder import BlendHead, DirectHead, UpPath, blend, limits
from .encoder import Encoder
from .frame import Evened, Frame, Spans, spans
from .fusion_level import ExpertFusion, PlainMerge
from .refinement import Refinement


class ASFEFusion(nn.Module):
    """Two registered slices a, b (N, 1, H, W) in [0, 1] -> one fused slice of the same shape.

    Any H and W: slices are continued inside by their end values and the result is cropped back. `compact` is symmetric,
    net(a, b) = net(b, a), by construction (shared weights, a head that scores both sources alike), gives [0, 1], and
    lays its grids by what the slices show (`frame`); `paper` is not symmetric, and unbounded, as published.

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

    def forward(self, a: torch.Tensor, b: torch.Tensor, where: list[Spans] | None = None) -> torch.Tensor:
        """`where`: the slices' `frame.spans`; to find them here means to wait for a card."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 1:
            raise ValueError(f"two slices of one shape (N, 1, H, W) are needed, not {tuple(a.shape)}, {tuple(b.shape)}")
        config = self.config
        if config.window:
            frame = Frame(a.shape, where or spans(a, b), config.margin, 1 << len(config.channels) - 1)
            black = self.encoder.black()
        else:
            frame, black = Frame(a.shape, None, config.margin, config.multiple), None
        features = self.encoder(frame.put(torch.cat([a, b])))
        direct = config.head == "direct"
        fused = []
        for level, fusion in enumerate(self.fusion, self.first_level):
            both = features[level]
            if direct:
                features[level] = None  # the largest first: nothing else looks at it
            if isinstance(fusion, ExpertFusion):
                fused.append(fusion(both, frame, black[level] if black else None))
            else:
                fused.append(fusion(both))
        x = self.decoder(fused)
        if direct:
            return frame.cut(self.head(x))
        w, residual = self.head(x, features, frame)
        within = limits(a, b)
        fused = blend(a, b, w, residual, within)
        if not config.refinements:
            return fused
        evened = Evened(frame)
        a, b, fused, *within = map(evened.put, (a, b, fused, *within))
        with torch.autocast(a.device.type, enabled=False):  # ratios of weak edges need all digits
            return evened.cut(self.refinement(a, b, fused, within))
