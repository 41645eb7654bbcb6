"""AFF, adaptive fusion in the frequency domain: each source's spectrum is recoloured, masked, and added."""

from __future__ import annotations

import torch
from torch import nn

from .configs import NetworkConfig

# Kinds of devices whose torch lacks complex numbers, or parts of them: transforms are made on the CPU.
NOT_COMPLEX = {"mps"}


def spectrum(x: torch.Tensor, norm: str) -> torch.Tensor:
    """(N, C, H, W) -> the Fourier transform's parts (N, 2 C, H, W // 2 + 1), float32, where x is.

    Real and imaginary parts interleave (c0 real, c0 imaginary, c1 real, ...). In float32 whatever x is: reduced types
    have no complex numbers.
    """
    there = x.device
    x = x.cpu() if there.type in NOT_COMPLEX else x
    parts = torch.view_as_real(torch.fft.rfft2(x.float(), norm=norm))
    return parts.permute(0, 1, 4, 2, 3).flatten(1, 2).to(there)


def picture(parts: torch.Tensor, size: tuple[int, int], norm: str, published: bool) -> torch.Tensor:
    """Inverse of `spectrum`: (N, 2 C, h, w) -> (N, C, *size), float32; `published`: see `published_spectrum`."""
    there = parts.device
    parts = (parts.cpu() if there.type in NOT_COMPLEX else parts).float().unflatten(1, (-1, 2))
    if published:
        numbers = published_spectrum(parts.permute(0, 1, 3, 4, 2))
    else:
        numbers = torch.complex(parts[:, :, 0], parts[:, :, 1])
    return torch.fft.irfft2(numbers, s=size, norm=norm).to(there)


def published_spectrum(parts: torch.Tensor) -> torch.Tensor:
    """What the published code hands to its inverse transform: (N, C, h, w, 2) -> complex (N, C, w, 2).

    It takes the first two rows for real and imaginary part, where the last axis was meant, so that its frequency
    branch keeps two rows of the spectrum and nothing else. Found from `reference_forward.npz`, which only this fits.
    """
    return torch.complex(parts[:, :, 0], parts[:, :, 1])


class SpectrumMask(nn.Module):
    """Parts of a spectrum, (N, 2 C, h, w) -> the same, their channels mixed and their frequencies weighted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.mask = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        z = self.bn(self.mix(parts)).relu_()
        return z * torch.sigmoid(self.mask(torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], 1)))


class AFF(nn.Module):
    """AFF(x, y) = inverse transform of (mask_x of x's spectrum + mask_y of y's).

    (2 N, C, H, W), x then y -> (N, C, H, W).

    The transform is linear, so the two spectra are added before the one inverse. With `shared` weights
    AFF(x, y) = AFF(y, x).
    """

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.shared, self.published = config.shared, config.published_inverse
        self.norm = "ortho" if config.normalised_spectrum else "backward"
        self.masks = nn.ModuleList(SpectrumMask(channels) for _ in range(1 if self.shared else 2))

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        parts = spectrum(both, self.norm)
        if self.shared:
            x, y = self.masks[0](parts).float().chunk(2)
        else:
            x, y = (mask(half).float() for mask, half in zip(self.masks, parts.chunk(2), strict=True))
        return picture(x + y, both.shape[-2:], self.norm, self.published).to(both.dtype)
