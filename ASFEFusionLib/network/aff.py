"""AFF, adaptive fusion in the frequency domain: each source's spectrum is recoloured, masked, and added."""

from __future__ import annotations

import torch
from torch import nn

from .configs import NetworkConfig


def published_spectrum(parts: torch.Tensor) -> torch.Tensor:
    """What the published code hands to its inverse transform: (N, C, h, w, 2) -> complex (N, C, w, 2).

    It takes the first two rows for real and imaginary part, where the last axis was meant, so that its frequency
    branch keeps two rows of the spectrum and nothing else. Found from `reference_forward.npz`, which only this fits.
    """
    return torch.complex(parts[:, :, 0], parts[:, :, 1])


class SpectrumMask(nn.Module):
    """Spectrum of (N, C, H, W) features -> the same, its channels mixed and its frequencies weighted.

    Real and imaginary parts interleave as 2 C channels (c0 real, c0 imaginary, c1 real, ...).
    """

    def __init__(self, channels: int, published_inverse: bool) -> None:
        super().__init__()
        self.complex = published_spectrum if published_inverse else torch.view_as_complex
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.mask = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        n, c, h, w = spectrum.shape
        parts = torch.view_as_real(spectrum).permute(0, 1, 4, 2, 3).reshape(n, 2 * c, h, w)
        z = torch.relu(self.bn(self.mix(parts)))
        mask = torch.sigmoid(self.mask(torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], 1)))
        z = (z * mask).float().view(n, c, 2, h, w).permute(0, 1, 3, 4, 2)
        return self.complex(z.contiguous())


class AFF(nn.Module):
    """AFF(x, y) = inverse transform of (mask_x of x's spectrum + mask_y of y's); x, y: (N, C, H, W).

    The transform is linear, so the two spectra are added before the one inverse. It stays in float32: reduced types
    have no complex numbers. With `shared` weights AFF(x, y) = AFF(y, x).
    """

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.shared = config.shared
        self.norm = "ortho" if config.normalised_spectrum else "backward"
        self.masks = nn.ModuleList(
            SpectrumMask(channels, config.published_inverse) for _ in range(1 if self.shared else 2)
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        n, size = x.shape[0], x.shape[-2:]
        spectra = torch.fft.rfft2(torch.cat([x, y]).float(), norm=self.norm)
        if self.shared:
            spectra = self.masks[0](spectra)
            total = spectra[:n] + spectra[n:]
        else:
            total = self.masks[0](spectra[:n]) + self.masks[1](spectra[n:])
        return torch.fft.irfft2(total, s=size, norm=self.norm).to(x.dtype)
