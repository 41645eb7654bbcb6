"""Metrics of medical image fusion, batched, in torch: the same functions train the network and judge it.

That is why they are written here and not taken from a library, which could train nothing; the tests hold them against
libraries (SSIM and VIF of sewar, scipy's entropy, numpy's correlation) and against values worked by hand.

Every function takes float tensors (N, 1, H, W) in [0, 1] (sources a and b, fused f) and returns a tensor (N,). All but
the histogram metrics (EN, MI) carry gradients, finite also on the black background that fills half of a medical slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

PEAK = 255.0
LEVELS = 256
# Variance floor for images in [0, 1], far below one grey level squared: keeps quotients finite on constant images.
FLAT = 1e-8
GAUSSIAN = (11, 1.5)
UNIFORM = (11, math.inf)
# Longer blocks of a filtered line waste multiplications by zero, shorter ones calls (timed on a CPU at 128 and 256).
BLOCK = 64


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # else a band first made while judging could not serve a loss later
def _band(count: int, window: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filter for `count` neighbouring outputs, as a banded matrix (count + window - 1, count)."""
    offset = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    band = torch.zeros(count + window - 1, count, dtype=torch.float64)
    for column in range(count):
        band[column : column + window, column] = kernel / kernel.sum()
    return band.to(device, dtype)


def _blur(x: Tensor, window: int, sigma: float) -> Tensor:
    """Separable filter, valid region. Banded matrix products: faster on a CPU than depthwise convolutions."""

    def blocks(length: int) -> list[tuple[slice, Tensor]]:
        outputs = length - window + 1
        counts = [(start, min(BLOCK, outputs - start)) for start in range(0, outputs, BLOCK)]
        return [
            (slice(start, start + count + window - 1), _band(count, window, sigma, x.dtype, x.device))
            for start, count in counts
        ]

    x = torch.cat([x[..., part] @ band for part, band in blocks(x.shape[-1])], dim=-1)
    return torch.cat([band.T @ x[..., part, :] for part, band in blocks(x.shape[-2])], dim=-2)


def _moments(sources: Tensor, window: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Windowed mean and variance of every channel."""
    mean, square = _blur(torch.cat([sources, sources * sources], dim=1), window, sigma).chunk(2, dim=1)
    return mean, (square - mean * mean).clamp(min=0)


def _fused_moments(f: Tensor, sources: Tensor, means: Tensor, window: int, sigma: float) -> tuple[Tensor, ...]:
    """Windowed mean and variance of f and its covariance with every source; apart from `_moments`, so that a loss
    sends no gradient through the statistics of the sources alone."""
    planes = _blur(torch.cat([f, f * f, f * sources], dim=1), window, sigma)
    mean, square, product = planes.split([1, 1, sources.shape[1]], dim=1)
    return mean, (square - mean * mean).clamp(min=0), product - mean * means


def _root(x: Tensor, floor: float) -> Tensor:
    """Square root; below the floor zero without gradient, where the slope of the root would explode."""
    flat = x < floor
    return torch.where(flat, 0.0, torch.where(flat, 1.0, x).sqrt())


def _per_image(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def ssim(x: Tensor, f: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian 11 x 11, sigma 1.5, K 0.01 and 0.03, valid region; the mean
    over the channels of x."""
    c1, c2 = 0.01**2, 0.03**2
    mean, variance = _moments(x, *GAUSSIAN)
    mean_f, variance_f, covariance = _fused_moments(f, x, mean, *GAUSSIAN)
    luminance = (2 * mean * mean_f + c1) / (mean * mean + mean_f * mean_f + c1)
    return _per_image(luminance * (2 * covariance + c2) / (variance + variance_f + c2))


def ssim_pair(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """Mean of SSIM(a, f) and SSIM(b, f)."""
    return ssim(torch.cat([a, b], dim=1), f)


def vif(x: Tensor, f: Tensor) -> Tensor:
    """Visual information fidelity, pixel domain (Sheikh and Bovik 2006), four scales; the sum over the channels of x.
    A side needs 41 pixels. A source without any detail counts as fully kept."""
    noise, tiny = 2.0, 1e-10
    x, f = x * PEAK, f * PEAK
    gained, held = torch.zeros_like(x[:, :, 0, 0]), torch.zeros_like(x[:, :, 0, 0])
    for scale in range(4):
        window = 2 ** (4 - scale) + 1
        sigma = window / 5
        if scale:
            x, f = (_blur(image, window, sigma)[..., ::2, ::2] for image in (x, f))
        mean, variance = _moments(x, window, sigma)
        _, variance_f, covariance = _fused_moments(f, x, mean, window, sigma)
        # What f keeps of x, gain^2 times variance; never more than f holds, as rounding could feign where x is flat.
        kept = torch.minimum(covariance.clamp(min=0) ** 2 / (variance + 1e-6), variance_f)
        gained = gained + torch.log1p(kept / (variance_f - kept + noise)).sum((2, 3))
        held = held + torch.log1p(variance / noise).sum((2, 3))
    return ((gained + tiny) / (held + tiny)).sum(1)


def vif_pair(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """VIF(a, f) + VIF(b, f)."""
    return vif(torch.cat([a, b], dim=1), f)


def mef_ssim(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """MEF-SSIM (Ma, Zeng and Wang 2015), one scale: f against the best blend of the two source patches, which is built
    with a uniform 11 x 11 window and compared with the Gaussian one of SSIM."""
    c2, tiny = 0.03**2, 1e-3 / (PEAK * UNIFORM[0])
    sources = torch.cat([a, b, a + b], dim=1)
    _, variance = _moments(sources, *UNIFORM)
    var_a, var_b, var_sum = variance.split(1, dim=1)
    std_a, std_b, std_sum = (_root(v, 1e-14) for v in (var_a, var_b, var_sum))
    # Sources that agree in structure (consistency near 1) let the stronger one rule.
    consistency = (std_sum + 1e-12) / (std_a + std_b + 1e-12)
    power = torch.tan(math.pi / 2 * consistency.clamp(max=0.99)).clamp(max=10)
    std_a, std_b = std_a + tiny, std_b + tiny
    share = torch.sigmoid(power * (std_a / std_b).log())
    blend_a, blend_b = share / std_a, (1 - share) / std_b

    def blend_variance(va: Tensor, vb: Tensor, vsum: Tensor) -> Tensor:
        return (blend_a**2 * va + blend_b**2 * vb + blend_a * blend_b * (vsum - va - vb)).clamp(min=0)

    blended = _root(blend_variance(var_a, var_b, var_sum), 1e-14)
    gain = torch.where(blended > 0, torch.maximum(std_a, std_b) / blended.clamp(min=1e-7), 0.0)
    blend_a, blend_b = gain * blend_a, gain * blend_b
    mean, variance = _moments(sources, *GAUSSIAN)
    wanted = blend_variance(*variance.split(1, dim=1))
    _, variance_f, covariance = _fused_moments(f, sources[:, :2], mean[:, :2], *GAUSSIAN)
    shared = blend_a * covariance[:, :1] + blend_b * covariance[:, 1:]
    return _per_image((2 * shared + c2) / (wanted + variance_f + c2))


def sobel(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Horizontal and vertical Sobel responses and their strength. Slices: a convolution's backward is slow on a CPU."""
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    gx, gy = rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]
    return gx, gy, _root(gx * gx + gy * gy, 1e-10)


def _orientation(gx: Tensor, gy: Tensor, strength: Tensor) -> Tensor:
    """atan(gy / gx) in [-pi/2, pi/2], as published: no wrap-around. A flat spot has pi/2 and no gradient."""
    flat = strength == 0
    # A vanishing gx counts as +0, whatever sign rounding gave it.
    across = torch.where(flat, 0.0, gx.abs())
    return torch.atan2(torch.where(flat, 1.0, torch.where(gx < -1e-5, -gy, gy)), across)


def _strength_ratio(x: Tensor, f: Tensor) -> Tensor:
    """Weaker over stronger gradient; 1 where they are equal, zero included."""
    strong = torch.maximum(x, f)
    flat = strong == 0
    return torch.where(flat, 1.0, torch.minimum(x, f) / torch.where(flat, 1.0, strong))


def qabf(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """Edge transfer Qabf (Xydeas and Petrovic 2000), L = 1, Sobel on [0, 1]. A pair without any edge has 0."""
    sources = torch.cat([a, b], dim=1)
    gx, gy, strength = sobel(sources)
    fx, fy, strength_f = sobel(f)
    turn = (_orientation(gx, gy, strength) - _orientation(fx, fy, strength_f)).abs()
    ratio = _strength_ratio(strength, strength_f)
    quality = torch.sigmoid(15 * (ratio - 0.5)) * torch.sigmoid(22 * (0.2 - turn / (math.pi / 2)))
    weight = strength / (strength.sum((1, 2, 3), keepdim=True) + 1e-10)
    return 0.9994 * 0.9879 * (quality * weight).sum((1, 2, 3))


def nabf(a: Tensor, b: Tensor, f: Tensor, soft: float = 0.0) -> Tensor:
    """Fusion artefacts Nabf (Shreyamsha Kumar 2013), Sobel / 8 in 0..255 units: the edges of f that are stronger than
    both sources', weighed by how little they resemble them. Low is good.

    An edge is stronger or it is not, by however little, so that no gradient says that it should be weaker. For
    training, `soft` (in those units) makes that step a sigmoid of this width.
    """
    gx, gy, strength = sobel(torch.cat([a, b], dim=1) * (PEAK / 8))
    fx, fy, strength_f = sobel(f * (PEAK / 8))
    turn = (_orientation(gx, gy, strength) - _orientation(fx, fy, strength_f)).abs()
    alignment = (turn - math.pi / 2).abs() / (math.pi / 2)
    ratio = _strength_ratio(strength, strength_f)
    quality = (torch.sigmoid(19 * (ratio - 0.5)) * torch.sigmoid(22 * (alignment - 0.5))).sqrt()
    beyond = strength_f - strength.amax(1, keepdim=True)
    invented = torch.sigmoid(beyond / soft) if soft else beyond > 0
    weight = torch.where(strength >= 2, strength * strength.clamp(min=1).sqrt(), 0.001)
    weight = weight / weight.sum((1, 2, 3), keepdim=True)
    return (invented * (1 - math.sqrt(0.9999 * 0.9995) * quality) * weight).sum((1, 2, 3))


def lattice(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """Where f alternates from pixel to pixel as neither source does: (N, 3, H - 6, W - 6), across, down and diagonally.

    The amplitude of the alternation, in the slices' units, above the greater of the sources' there; 0 where it is less.
    Ours: Sobel filters, and all metrics made of them, are blind to it, and spatial frequency rewards it. A slice times
    (-1)^x has there as its mean what alternates in the slice; the binomial filter of 7 pixels keeps no more than that.
    """
    x = torch.cat([a, b, f], 1)
    rows, columns = (1 - 2 * (torch.arange(n, device=x.device) % 2).to(x) for n in x.shape[-2:])
    x = torch.stack([x * columns, x * rows[:, None], x * columns * rows[:, None]], 2)
    for _ in range(6):
        x = (x[..., 1:] + x[..., :-1]) / 2
        x = (x[..., 1:, :] + x[..., :-1, :]) / 2
    of_a, of_b, of_f = x.abs().unbind(1)
    return torch.relu(of_f - torch.maximum(of_a, of_b))


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.flatten(1), y.flatten(1)
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).mean(1) / ((x.square().mean(1) + FLAT) * (y.square().mean(1) + FLAT)).sqrt()


def scd(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """Sum of the correlations of differences (Aslantas and Bendes 2015)."""
    return _correlation(f - b, a) + _correlation(f - a, b)


def cc(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """CC (Deshmukh and Bhosale 2010): mean Pearson correlation of f with the two sources."""
    return (_correlation(a, f) + _correlation(b, f)) / 2


def _levels(x: Tensor) -> Tensor:
    return (x * PEAK).round().clamp(0, LEVELS - 1).long().flatten(1)


def _bits(codes: Tensor, bins: int) -> Tensor:
    """Shannon entropy in bits of each row of codes 0..bins-1."""
    rows = len(codes)
    shifted = codes + bins * torch.arange(rows, device=codes.device)[:, None]
    share = torch.bincount(shifted.flatten(), minlength=rows * bins).view(rows, bins).double() / codes.shape[1]
    return -torch.special.xlogy(share, share).sum(1) / math.log(2)


def entropy(f: Tensor) -> Tensor:
    """EN (Roberts, van Aardt and Ahmed 2008): Shannon entropy of the 256-bin histogram, bits. Carries no gradient."""
    return _bits(_levels(f), LEVELS)


def mutual_information(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """MI(a; f) + MI(b; f) of 256-bin histograms, bits (Qu, Zhang and Yan 2002). Carries no gradient."""
    levels_f = _levels(f)
    total = 2 * _bits(levels_f, LEVELS)
    for x in (a, b):
        levels = _levels(x)
        total = total + _bits(levels, LEVELS) - _bits(levels * LEVELS + levels_f, LEVELS**2)
    return total


def standard_deviation(f: Tensor) -> Tensor:
    """SD (Rao 1997): standard deviation of the grey values, of all pixels (no n - 1), 0..255 units."""
    return PEAK * _root(f.flatten(1).var(1, correction=0), FLAT)


def spatial_frequency(f: Tensor) -> Tensor:
    """SF (Eskicioglu and Fisher 1995): root of the mean squared row and column differences, 0..255 units."""
    return PEAK * _root(_per_image(f.diff(dim=-1).square()) + _per_image(f.diff(dim=-2).square()), FLAT)


def average_gradient(f: Tensor) -> Tensor:
    """AG (Cui et al. 2015): summed sqrt((gx^2 + gy^2) / 2) of central differences over (H - 1)(W - 1), 0..255 units."""
    gy, gx = torch.gradient(f, dim=(-2, -1))
    height, width = f.shape[-2:]
    return PEAK * _root((gx * gx + gy * gy) / 2, 1e-12).sum((1, 2, 3)) / ((height - 1) * (width - 1))


def psnr(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """PSNR (Jagalingam and Hegde 2015): peak signal to noise ratio, dB, of the mean of the two squared errors."""
    error = (_per_image((a - f).square()) + _per_image((b - f).square())) / 2
    return -10 * torch.log10(error + 1e-12)


def flicker(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """How much more a fused volume changes from slice to slice than its sources do, 0..255 units; ours. Low is good.

    (N, 1, H, W) are N slices in a row of one volume; the result (N - 1,) is that of each step to the next slice. At
    each voxel what f changes beyond the greater of the changes of a and b, |df| - max(|da|, |db|) where that is above
    0; summed, over the number of voxels at which a source shows something (is above 0 on either side of the step).

    So it is 0 for a copy of a source, for their mean, maximum and minimum, and for any rule that looks at one voxel of
    each alone and is nowhere steeper than they are. It is d for a fused volume that gets brighter by d between slices
    that are alike. A detail that the sources have in one slice only may come and go with them; a choice between a and b
    that falls otherwise in the next slice counts by what they differ, and so does contrast beyond that of the sources.
    Light in what is black in both sources counts too, but makes no voxels to divide by. Rounding to 8 bits may leave
    some hundredths.
    """
    change_a, change_b, change = (x.diff(dim=0).abs() for x in (a, b, f))
    excess = (change - torch.maximum(change_a, change_b)).clamp(min=0)
    shown = (a > 0) | (b > 0)
    count = (shown[1:] | shown[:-1]).flatten(1).sum(1)
    return PEAK * excess.flatten(1).sum(1) / count.clamp(min=1)


METRICS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "EN": lambda a, b, f: entropy(f),
    "SD": lambda a, b, f: standard_deviation(f),
    "SF": lambda a, b, f: spatial_frequency(f),
    "AG": lambda a, b, f: average_gradient(f),
    "MI": mutual_information,
    "VIF": vif_pair,
    "CC": cc,
    "SCD": scd,
    "PSNR": psnr,
    "Qabf": qabf,
    "Nabf": nabf,
    "SSIM": ssim_pair,
    "MEFSSIM": mef_ssim,
}


# Of these the lower value is the better one.
LOWER = ("Nabf", "Flicker")
# Shown, and no merit: noise and a haze over the background raise it more than any detail does.
UNRANKED = ("EN",)
# Least side of a slice, pixels: what the filters reach.
LEAST_SIDE = {"VIF": 41, "SSIM": 11, "MEFSSIM": 11}


@torch.no_grad()
def score(a: Tensor, b: Tensor, f: Tensor, names: Iterable[str] = tuple(METRICS)) -> dict[str, Tensor]:
    """The named metrics of a batch, name -> (N,). In float64: in float32 VIF of saturated areas is off by 1e-3."""
    a, b, f = a.double(), b.double(), f.double()
    return {name: METRICS[name](a, b, f) for name in names}
