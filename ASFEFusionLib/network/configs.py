"""The sizes of the network: one dataclass, one instance for each network that we know. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes the shape of an ASFE-Fusion network.

    Levels are numbered from 1 (full size) on, each half the size of the one before; a tuple holds one entry a level.
    """

    name: str
    channels: tuple[int, ...]  # of the encoder's features
    hidden: tuple[int, ...]  # between the two convolutions of an encoder block
    stem: int  # channels of a 1 x 1 convolution before level 1; 0: none
    patches: tuple[int, ...]  # side of CASF's patches; 0: no CASF, AFF and SFEF at this level, a 1 x 1 merge
    token_width: int
    heads: int
    experts: int
    slots: int  # of each expert
    expansion: int  # hidden width of an expert, in multiples of its input's
    decoder: tuple[tuple[int, int], ...]  # (hidden, out) of the decoder's blocks, from level 1 on
    window: int  # side (slice pixels) of the windows in which the fusion looks at a slice; 0: the whole slice
    multiple: int  # slices are padded to a multiple of this where the fusion looks at them whole (else see `frame`)
    head: str  # "blend": weights of the two sources and a small residual; "direct": the decoder's value itself
    shared: bool  # both sources go through the same weights, so that their order does not matter
    activation: str  # "relu" or "gelu"
    activate_each: bool  # after every convolution; the published network: once a block, after its resampling
    blur_pool: bool  # maximum, then 4 x 4 binomial filter; else the mean of 2 x 2
    smooth_patches: bool  # CASF's tokens come up by bilinear interpolation, not by a linear layer for whole patches
    expert_residual: bool  # SFEF adds to its input
    normalised_spectrum: bool  # AFF's transform is orthonormal, so that its values do not grow with the window
    align_corners: bool  # of the decoder's bilinear upsampling
    margin: int  # slices are continued by so many of their end values all round: the convolutions' zeros stay outside
    published_inverse: bool  # AFF's inverse transform as the published code has it, see `aff.published_spectrum`
    # Each expert has tensors of its own, as in the authors' checkpoint, which then needs no copy; else they are stacked
    # and computed at once, which is faster where they are small. (Weights of ours do not name this field.)
    experts_apart: bool = False
    refinements: int = 0  # steps in which the blended slice is brought nearer to its sources' edges and detail

    def to_dict(self) -> dict:
        """Plain values, as they are stored beside the weights."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> NetworkConfig:
        """Inverse of `to_dict`. Raises TypeError if a field is missing or unknown."""
        values = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
        if "decoder" in values:
            values["decoder"] = tuple(tuple(pair) for pair in values["decoder"])
        return cls(**values)


# Ours: small, symmetric, and steady under framing because its global parts look through windows of fixed size, laid by
# what the slice shows. A processor computes channels in blocks of 8 or 16: 20 would cost what 32 do. Few at full size,
# where most of the time goes: the last steps look at the slices themselves.
COMPACT = NetworkConfig(
    name="compact",
    channels=(8, 16, 32),
    hidden=(8, 16, 32),
    stem=0,
    patches=(0, 0, 4),
    token_width=64,
    heads=4,
    experts=4,
    slots=8,
    expansion=2,
    decoder=((8, 2), (16, 8), (24, 24)),
    window=144,
    multiple=16,
    head="blend",
    shared=True,
    activation="relu",
    activate_each=True,
    blur_pool=False,
    smooth_patches=True,
    expert_residual=True,
    normalised_spectrum=True,
    align_corners=False,
    margin=8,
    published_inverse=False,
    refinements=2,
)

# As published by Gu et al. 2024 (doi 10.1016/j.bspc.2024.106478).
PAPER = NetworkConfig(
    name="paper",
    channels=(112, 160, 208, 256),
    hidden=(32, 56, 80, 104),
    stem=64,
    patches=(16, 16, 16, 16),
    token_width=256,
    heads=8,
    experts=4,
    slots=256,
    expansion=4,
    decoder=((8, 16), (56, 112), (80, 160), (104, 208)),
    window=0,
    multiple=128,
    head="direct",
    shared=False,
    activation="gelu",
    activate_each=False,
    blur_pool=True,
    smooth_patches=False,
    expert_residual=False,
    normalised_spectrum=False,
    align_corners=True,
    margin=0,
    published_inverse=True,
    experts_apart=True,
)

# Ours as it is first trained; `research.narrow` then takes out what its first two levels can do without.
WIDE = replace(
    COMPACT,
    name="wide",
    channels=(12, 20, 32),
    hidden=(12, 20, 32),
    decoder=((12, 2), (20, 12), (24, 24)),
    refinements=0,
)

CONFIGS = {config.name: config for config in (COMPACT, PAPER, WIDE)}
