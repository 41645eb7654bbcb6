"""What a blend can reach under a loss, and where it stands among others."""

import numpy as np
import pytest
import torch

from ASFEFusionLib.network.decoder import ALLOWANCE
from ASFEFusionLib.research import metrics
from ASFEFusionLib.research.baselines import BASELINES
from ASFEFusionLib.research.data import Pairs
from ASFEFusionLib.research.frontier import best_blend, frontier
from ASFEFusionLib.research.losses import LOSSES, Loss, fusion_losses, total
from ASFEFusionLib.research.validate import RANKED, ranks_among, ranks_text


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 256, (2, 12, 12)).repeat(5, 1).repeat(5, 2).astype(np.uint8) for _ in range(2))
    return Pairs("CT-MRI", ["1", "2"], a, b, np.repeat(a[..., None], 3, -1))


def test_the_best_blend_under_a_loss_that_is_known(pairs):
    """L1 to the maximum alone is least in the maximum itself."""
    a, b = pairs.tensors()
    best = best_blend(a, b, (a + b) / 2, Loss(fusion_losses, {"max": 1.0}), 80)
    assert (best - torch.maximum(a, b)).abs().mean() < 0.02
    assert (best <= torch.maximum(a, b) + ALLOWANCE + 1e-6).all()


def test_the_start_is_kept_where_nothing_is_won(pairs):
    a, b = pairs.tensors()
    start = 0.3 * a + 0.7 * b
    best = best_blend(a, b, start, Loss(lambda a, b, f, step: {"none": 0 * f.mean()}, {"none": 1.0}), 1)
    assert (best - start).abs().max() < 0.05


def test_it_is_better_than_where_it_began(pairs):
    a, b = pairs.tensors()
    loss = LOSSES["ours"]
    start = BASELINES["AVG"](a, b)
    before, after = (
        float(total(loss.terms(a, b, f, 0), loss.weights)) for f in (start, best_blend(a, b, start, loss, 30))
    )
    assert after < before - 1
    first, best = frontier(BASELINES["AVG"], pairs, loss, 30)
    assert first["Qabf"] == pytest.approx(float(metrics.qabf(a, b, (start * 255).round() / 255).mean()), abs=1e-6)
    assert best["SD"] > first["SD"]


def test_ranks_among_peers():
    peers = {"good": {"T": dict.fromkeys(RANKED, 2.0)}, "bad": {"T": dict.fromkeys(RANKED, 0.5)}, "other": {"U": {}}}
    places = ranks_among({"T": dict.fromkeys(RANKED, 1.0)}, peers)
    assert places["T"] == dict.fromkeys(RANKED, 2)
    places = ranks_among({"T": dict.fromkeys(RANKED, 3.0)}, peers)
    # More of all is better but for the artefacts.
    assert places["T"] == dict.fromkeys(RANKED, 1) | {"Nabf": 3}
    text = ranks_text(places)
    assert "| T | 1.2 | 1 |" in text
    assert text.endswith("Mean rank 1.20")
