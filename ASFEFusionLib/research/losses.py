"""What the training rewards: bright structures, edges, and the metrics of the field themselves."""

from __future__ import annotations

import torch

from . import metrics

# Found by small trials: the L1 to the maximum holds contrast and white bone against the metric losses.
WEIGHTS = {"max": 10.0, "gradient": 12.0, "ssim": 1.0, "qabf": 2.0, "mef": 1.5, "scd": 0.4, "vif": 0.4, "nabf": 3.0}
# Fusion artefacts below this cost nothing.
NABF_FREE = 0.008


def _differences(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) -> (N, 2, H - 1, W - 1) forward differences down and across."""
    return torch.cat([x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]], 1)


def fusion_losses(a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    """Loss terms, unweighted, each a scalar that falls as the picture f of a and b gets better.

    VIF, the dearest, comes every second step with double weight.
    """
    da, db, df = _differences(a), _differences(b), _differences(f)
    strongest = torch.where(da.abs() >= db.abs(), da, db)
    terms = {
        "max": (f - torch.maximum(a, b)).abs().mean(),
        "gradient": (df - strongest).abs().mean(),
        "ssim": 1 - metrics.ssim_pair(a, b, f).mean(),
        "qabf": 1 - metrics.qabf(a, b, f).mean(),
        "mef": 1 - metrics.mef_ssim(a, b, f).mean(),
        "scd": -metrics.scd(a, b, f).mean(),
        "nabf": torch.relu(metrics.nabf(a, b, f) - NABF_FREE).mean(),
    }
    if step % 2 == 0:
        # Black crops have no visual information to keep, and their ratio no bound.
        terms["vif"] = -2 * metrics.vif_pair(a, b, f).clamp(max=2).mean()
    return terms


def total(terms: dict[str, torch.Tensor], weights: dict[str, float] | None = None) -> torch.Tensor:
    """Weighted sum of `fusion_losses`."""
    weights = WEIGHTS if weights is None else weights
    return sum(weights[name] * value for name, value in terms.items())
