"""Classical fusions to compare with. Each takes slices a, b (N, 1, H, W) in [0, 1], and gives the fused in [0, 1].

`BASELINES` has them by the short names of the literature. Wavelets need PyWavelets and the guided filter scipy (the
`evaluate` extra); both run on the CPU, one slice at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ROW = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
# Of both wavelet fusions: short, so that edges ring little; the detail of the third level is some 8 pixels wide.
WAVELET, LEVELS = "db2", 3


def average(a: Tensor, b: Tensor) -> Tensor:
    """(a + b) / 2."""
    return (a + b) / 2


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """The brighter of the two at each pixel."""
    return torch.maximum(a, b)


def _blur(x: Tensor) -> Tensor:
    row = _ROW.to(x)
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="replicate"), row.view(1, 1, 1, 5))
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="replicate"), row.view(1, 1, 5, 1))


def _expand(x: Tensor, like: Tensor) -> Tensor:
    return _blur(F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False))


def laplacian_pyramid(a: Tensor, b: Tensor, levels: int = 4) -> Tensor:
    """Detail of greater magnitude at each level, mean of the coarsest (Burt and Adelson 1983; Burt 1984)."""
    details = []
    for _ in range(levels):
        small_a, small_b = _blur(a)[..., ::2, ::2], _blur(b)[..., ::2, ::2]
        detail_a, detail_b = a - _expand(small_a, a), b - _expand(small_b, b)
        details.append(torch.where(detail_a.abs() >= detail_b.abs(), detail_a, detail_b))
        a, b = small_a, small_b
    fused = (a + b) / 2
    for detail in reversed(details):
        fused = detail + _expand(fused, detail)
    return fused.clamp(0, 1)


def _slice_by_slice(fuse: Callable[[np.ndarray, np.ndarray], np.ndarray], a: Tensor, b: Tensor) -> Tensor:
    """A fusion of float64 arrays (H, W) as one of tensors, clipped to [0, 1]."""
    pairs = zip(a[:, 0].double().cpu().numpy(), b[:, 0].double().cpu().numpy(), strict=True)
    fused = np.stack([fuse(*pair) for pair in pairs])
    return torch.from_numpy(fused).to(a)[:, None].clamp(0, 1)


def _greater(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) >= np.abs(y), x, y)


def wavelet(a: Tensor, b: Tensor, levels: int = LEVELS) -> Tensor:
    """DWT: wavelet coefficients of greater magnitude, mean of the coarsest (Li, Manjunath and Mitra 1995)."""
    import pywt

    def fuse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        depth = min(levels, pywt.dwtn_max_level(x.shape, WAVELET))
        (mean_x, *details_x), (mean_y, *details_y) = (pywt.wavedec2(v, WAVELET, "symmetric", depth) for v in (x, y))
        details = [tuple(map(_greater, dx, dy)) for dx, dy in zip(details_x, details_y, strict=True)]
        # The transform of an odd side gives one line more.
        return pywt.waverec2([(mean_x + mean_y) / 2, *details], WAVELET, "symmetric")[: x.shape[0], : x.shape[1]]

    return _slice_by_slice(fuse, a, b)


def stationary_wavelet(a: Tensor, b: Tensor, levels: int = LEVELS) -> Tensor:
    """SWT: as `wavelet`, with the transform that is not decimated (Rockinger 1997), so that it moves with the image."""
    import pywt

    def fuse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Sides must divide by 2 ** levels, and the transform wraps round: the slice is continued by its mirror image.
        margins = [(2**levels, 2**levels + -n % 2**levels) for n in x.shape]
        (mean_x, *details_x), (mean_y, *details_y) = (
            pywt.swt2(np.pad(v, margins, "symmetric"), WAVELET, levels, trim_approx=True) for v in (x, y)
        )
        details = [tuple(map(_greater, dx, dy)) for dx, dy in zip(details_x, details_y, strict=True)]
        fused = pywt.iswt2([(mean_x + mean_y) / 2, *details], WAVELET)
        return fused[tuple(slice(before, before + n) for (before, _), n in zip(margins, x.shape, strict=True))]

    return _slice_by_slice(fuse, a, b)


def _guided(guide: np.ndarray, x: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """The guided filter (He, Sun and Tang 2013): x smoothed, but for the edges of the guide."""
    from scipy.ndimage import uniform_filter

    def box(v: np.ndarray) -> np.ndarray:
        return uniform_filter(v, 2 * radius + 1, mode="reflect")

    mean_guide, mean_x = box(guide), box(x)
    slope = (box(guide * x) - mean_guide * mean_x) / (box(guide * guide) - mean_guide**2 + eps)
    return box(slope) * guide + box(mean_x - slope * mean_guide)


def guided_filter(a: Tensor, b: Tensor) -> Tensor:
    """GFF (Li, Kang and Hu 2013): base and detail, each blended by a saliency map that the guided filter has smoothed.

    All numbers are the paper's: a base of 31 x 31 means; saliency by a Gaussian (radius 5, sigma 5) of the Laplacian's
    magnitude; radius 45 and eps 0.3 for the base's weights, radius 7 and eps 1e-6 for the detail's.
    """
    from scipy.ndimage import gaussian_filter, laplace, uniform_filter

    def fuse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        salient_x, salient_y = (gaussian_filter(np.abs(laplace(v)), 5, radius=5) for v in (x, y))
        chosen = (salient_x >= salient_y).astype(float)
        result = np.zeros_like(x)
        base = [uniform_filter(v, 31) for v in (x, y)]
        for part, radius, eps in ((base, 45, 0.3), ([x - base[0], y - base[1]], 7, 1e-6)):
            weight_x = np.clip(_guided(x, chosen, radius, eps), 0, 1)
            weight_y = np.clip(_guided(y, 1 - chosen, radius, eps), 0, 1)
            total = weight_x + weight_y
            # Two weights of zero: neither is salient here, and the mean is taken.
            share = np.where(total > 0, weight_x / np.where(total > 0, total, 1), 0.5)
            result += share * part[0] + (1 - share) * part[1]
        return result

    return _slice_by_slice(fuse, a, b)


BASELINES = {
    "AVG": average,
    "MAX": maximum,
    "LP": laplacian_pyramid,
    "DWT": wavelet,
    "SWT": stationary_wavelet,
    "GFF": guided_filter,
}
