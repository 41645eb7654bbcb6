"""What a blend can reach under a loss, and where it stands among others."""

import numpy as np
import pytest
import torch

from ASFEFusionLib.network.decoder import ALLOWANCE
from ASFEFusionLib.research import metrics
from ASFEFusionLib.research.baselines import BASELINES
from ASFEFusionLib.research.data import Pairs
from ASFEFusionLib.research.frontier import (
    BRIGHT,
    LATTICE,
    SHORT,
    SMALL,
    SmoothRanks,
    best_blend,
    frontier,
    of_loss,
    some,
)
from ASFEFusionLib.research.losses import LOSSES, WEIGHTS, fusion_losses, total
from ASFEFusionLib.research.validate import RANKED, ranks_among, ranks_text


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 256, (2, 12, 12)).repeat(5, 1).repeat(5, 2).astype(np.uint8) for _ in range(2))
    return Pairs("CT-MRI", ["1", "2"], a, b, np.repeat(a[..., None], 3, -1))


def test_the_best_blend_under_a_loss_that_is_known(pairs):
    """L1 to the maximum alone is least in the maximum itself."""
    a, b = pairs.tensors()
    best = best_blend(a, b, (a + b) / 2, lambda f, step: (f - torch.maximum(a, b)).abs().mean(), 80)
    assert (best - torch.maximum(a, b)).abs().mean() < 0.02
    assert (best <= torch.maximum(a, b) + ALLOWANCE + 1e-6).all()


def test_the_start_is_kept_where_nothing_is_won(pairs):
    a, b = pairs.tensors()
    start = 0.3 * a + 0.7 * b
    best = best_blend(a, b, start, lambda f, step: 0 * f.mean(), 1)
    assert (best - start).abs().max() < 0.05


def test_no_steps_are_the_start_itself(pairs):
    a, b = pairs.tensors()
    start = (a + b) / 2 + 0.05 * a  # no blend: its like would be another
    assert torch.equal(best_blend(a, b, start, lambda f, step: f.mean(), 0), start)


def test_it_is_better_than_where_it_began(pairs):
    a, b = pairs.tensors()
    start = BASELINES["AVG"](a, b)
    ours = of_loss(LOSSES["ours"], "SPECT-MRI")
    value = ours(a, b, start)
    best = best_blend(a, b, start, value, 30)
    spect = torch.tensor([2, 2])
    assert value(best, 0) == total(fusion_losses(a, b, best, 0), WEIGHTS, spect) < value(start, 0) - 1
    first, last, again = frontier(BASELINES["AVG"], pairs, ours, 30)
    assert torch.equal(again, best)
    assert first["Qabf"] == pytest.approx(float(metrics.qabf(a, b, (start * 255).round() / 255).mean()), abs=1e-6)
    assert last["SD"] > first["SD"]


def test_smooth_ranks(pairs):
    """Close to a step, they are the ranks; a shift of the start's means shifts what is compared."""
    a, b = pairs.tensors()
    start = BASELINES["AVG"](a, b)
    found = {name: float(values.mean()) for name, values in metrics.score(a, b, start, SMALL).items()}
    # Well apart, for the better.
    step = {name: 3 * SMALL[name] * (-1 if name in metrics.LOWER else 1) for name in SMALL}
    peers = [{name: found[name] + n * step[name] for name in SMALL} for n in (-2, -1, 1)]
    ranks = SmoothRanks(a, b, start, found, peers, 2)
    brighter = torch.maximum(a, b)
    held = BRIGHT * (brighter**4 * torch.relu(brighter - start)).mean()
    held += LATTICE * metrics.lattice(a, b, start).mean()
    assert float(ranks(start, 1) - held) == pytest.approx(len(SMALL), abs=0.3)  # one is better in each
    better = {name: found[name] + 2 * step[name] for name in SMALL}
    assert float(SmoothRanks(a, b, start, better, peers, 2)(start, 1) - held) == pytest.approx(0, abs=0.3)
    # Early steps look further: the ranks are less sharp.
    assert float(ranks(start, 0) - held) > len(SMALL) + 0.5


def test_ranks_do_not_pay_for_a_lattice():
    across = torch.linspace(0.3, 0.7, 60).expand(1, 1, 60, 60)
    a, b = across, across.mT
    start = BASELINES["AVG"](a, b)
    found = {name: float(values.mean()) for name, values in metrics.score(a, b, start, SMALL).items()}
    ranks = SmoothRanks(a, b, start, found, [found], 2)
    lattice = 0.02 * (1 - 2 * (torch.arange(60) % 2))
    # A third of its three directions, by its amplitude; ranks of one peer in nine metrics change by nine at most.
    assert ranks(start + lattice, 1) - ranks(start, 1) == pytest.approx(LATTICE * 0.02 / 3, abs=10)


def test_the_slopes_are_those_of_the_ranks(pairs):
    a, b = pairs.tensors()
    start = BASELINES["AVG"](a, b)
    found = {name: float(values.mean()) for name, values in metrics.score(a, b, start, SMALL).items()}
    # One peer as good: the slope of the sigmoid is 1/4 of its width there. Of a peer far off nothing is to be won.
    near = found | {"CC": found["CC"] + 1}
    slopes = SmoothRanks(a, b, start, found, [near], 2).slopes(start, 2.0)
    assert slopes["VIF"] == pytest.approx(1 / (8 * SMALL["VIF"]), rel=1e-3)
    assert slopes["CC"] < 1e-6
    brightest = 255 * torch.maximum(a, b).flatten(1).std(1, unbiased=False).mean()
    assert slopes["SD"] == pytest.approx(float(brightest) / (8 * SMALL["SD"]), rel=1e-3)


def test_what_a_peer_has_at_least(pairs):
    """Nothing for what is well above it; below it, so much for each small difference, also in the slopes."""
    a, b = pairs.tensors()
    start = BASELINES["AVG"](a, b)
    found = {name: float(values.mean()) for name, values in metrics.score(a, b, start, SMALL).items()}
    free = SmoothRanks(a, b, start, found, [found], 2)

    def cost(**least):
        return float(SmoothRanks(a, b, start, found, [found], 2, least)(start, 1) - free(start, 1))

    assert cost(VIF=found["VIF"] - 4 * SMALL["VIF"]) == pytest.approx(0, abs=1e-3)
    assert cost(VIF=found["VIF"] + 4 * SMALL["VIF"]) == pytest.approx(4 * SHORT, abs=1e-3)
    assert cost(Nabf=found["Nabf"] - 4 * SMALL["Nabf"]) == pytest.approx(4 * SHORT, abs=1e-3)
    short = SmoothRanks(a, b, start, found, [found], 2, {"Qabf": found["Qabf"] + 1})
    slopes, more = free.slopes(start), short.slopes(start)
    assert more["Qabf"] - slopes["Qabf"] == pytest.approx(SHORT / SMALL["Qabf"], rel=1e-3)
    assert more["VIF"] == slopes["VIF"]


def test_fewer_pairs_evenly(pairs):
    many = Pairs("CT-MRI", list("abcdef"), *(np.arange(6)[:, None, None] for _ in range(3)))
    assert some(many, 3).names == ["b", "d", "f"]
    assert some(many, 3).rgb[:, 0, 0].tolist() == [1, 3, 5]
    assert some(pairs, 9).names == pairs.names


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
