"""The training's losses: values worked by hand, gradients, and what each of them rewards."""

import math

import pytest
import torch

from ASFEFusionLib.research import metrics
from ASFEFusionLib.research.data import TASKS
from ASFEFusionLib.research.losses import (
    FREQUENCY,
    LOSSES,
    PAPER_WEIGHTS,
    WEIGHTS,
    padded_ssim,
    paper_losses,
    structure_tensor,
    total,
)


def image(rows):
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def pair(side=48, count=2):
    """Textured slices a, b, f on black, (count, 1, side, side)."""
    rng = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side, dtype=torch.float64)] * 2, indexing="ij")
    inside = (x * x + y * y < 0.6).double()
    return [inside * (0.2 + 0.6 * torch.rand(count, 1, side, side, generator=rng, dtype=torch.float64)) for _ in "abf"]


def test_structure_tensor_of_four_pixels():
    expected = [[[1, 0], [4, 0]], [[2, 0], [0, 0]], [[2, 0], [0, 0]], [[4, 9], [0, 0]]]
    assert structure_tensor(image([[0, 1], [2, 4]])).tolist() == [expected]


def test_published_content():
    a, b, f = (torch.full((2, 1, 3, 4), value, dtype=torch.float64) for value in (0.2, 0.4, 0.5))
    assert paper_losses(a, b, f)["content"].item() == pytest.approx(0.2 * math.sqrt(24))  # of the batch, no mean


def test_published_structure():
    x = image([[0, 1], [2, 4]])
    norm = math.sqrt(1 + 16 + 2 * 4 + 16 + 81)
    assert paper_losses(0 * x, 0 * x, x)["structure"].item() == pytest.approx(math.log(1 + norm))
    # Two sources with the structure of f have twice as much of it together.
    assert paper_losses(x, x, x)["structure"].item() == pytest.approx(math.log(1 + norm))
    assert paper_losses(x, 0 * x, x)["structure"].item() == 0
    batch = torch.cat([x, x])
    assert paper_losses(0 * batch, 0 * batch, batch)["structure"].item() == pytest.approx(
        math.log(1 + math.sqrt(2) * norm)
    )


def test_published_ssim():
    x, y, f = pair()
    assert padded_ssim(x, x).item() == pytest.approx(1)
    # One pixel among padding: each window holds the one weight of its middle.
    weight = 1 / sum(math.exp(-(n**2) / 4.5) for n in range(-5, 6)) ** 2
    p, q = 0.9, 0.4
    variance, covariance = weight * (p * p + q * q) - weight**2 * (p * p + q * q), (weight - weight**2) * p * q
    luminance = (2 * weight**2 * p * q + 1e-4) / (weight**2 * (p * p + q * q) + 1e-4)
    expected = luminance * (2 * covariance + 9e-4) / (variance + 9e-4)
    assert padded_ssim(image([[p]]), image([[q]])).item() == pytest.approx(expected)
    # Black windows are alike, so a wide black border changes the mean only.
    wide = [torch.nn.functional.pad(z, (10,) * 4) for z in (x, f)]
    pixels, whole = wide[0].shape[-1] ** 2, (wide[0].shape[-1] - 10) ** 2
    mean = (metrics.ssim(*wide).mean().item() * whole + pixels - whole) / pixels
    assert padded_ssim(*wide).item() == pytest.approx(mean, abs=1e-9)
    terms = paper_losses(x, y, f)
    assert terms["ssim"].item() == pytest.approx(2 - padded_ssim(x, f).item() - padded_ssim(y, f).item())


def test_published_sum():
    a, b, f = pair()
    terms = paper_losses(a, b, f)
    expected = 0.5 * terms["content"] + 0.5 * terms["structure"] + terms["ssim"]
    assert total(terms, PAPER_WEIGHTS).item() == pytest.approx(expected.item())


def test_our_own_simple_terms():
    a, b = image([[0.1, 0.5], [0.3, 0.3]] * 24).repeat(1, 1, 1, 24), torch.full((1, 1, 48, 48), 0.4).double()
    terms = LOSSES["ours"].terms(a, b, a, 0)
    # Below the maximum by 0.3, 0 in even rows, 0.1, 0.1 in odd ones.
    assert terms["max"].item() == pytest.approx((0.3 + 0 + 0.1 + 0.1) / 4)
    assert terms["gradient"].item() == pytest.approx(0, abs=1e-12)  # b is flat: the stronger differences are those of a
    assert LOSSES["ours"].terms(a, b, b, 0)["gradient"].item() > 0.05
    assert "vif" not in LOSSES["ours"].terms(a, b, a, 1)
    # Even rows: 0.4 and 0.5, of which f = a has 0.1 and 0.5; odd rows: 0.4 twice, of which it has 0.3.
    assert terms["bright"].item() == pytest.approx((0.4**4 * 0.3 + 0 + 2 * 0.4**4 * 0.1) / 4)
    assert LOSSES["ours"].terms(a, b, torch.maximum(a, b) + 0.1, 0)["bright"].item() == 0  # too bright is no loss here
    assert terms["sd"].item() == pytest.approx(-1.1)  # a spreads by more than 1.1 times the maximum: no more is won
    flat = LOSSES["ours"].terms(a, b, b, 0)
    assert flat["sd"].item() == pytest.approx(0, abs=1e-2)
    assert flat["sf"].item() == pytest.approx(FREQUENCY, abs=1e-2)
    assert terms["sf"].item() == pytest.approx(FREQUENCY - 1)
    assert LOSSES["ours"].terms(a, b, 1.1 * a, 0)["sf"].item() == 0  # sharper than that: no more is won
    assert terms["cc"].item() == pytest.approx(-metrics.cc(a, b, a).item())


def test_what_has_no_weight_counts_nothing():
    terms = {"max": torch.tensor(2.0), "cc": torch.tensor(5.0)}
    assert total(terms, {"max": 3.0}).item() == 6


def test_weights_by_task():
    terms = {"max": torch.tensor([1.0, 10.0, 100.0]), "cc": torch.tensor([2.0, 2.0, 5.0]), "content": torch.tensor(7.0)}
    weights = {"max": (2.0, 3.0, 5.0), "cc": 10.0, "content": 1.0}
    tasks = torch.tensor([2, 0, 1])
    assert total(terms, weights, tasks).item() == pytest.approx((5 + 20 + 300) / 3 + 30 + 7)
    assert total(terms, weights).item() == pytest.approx(2 * 37 + 30 + 7)  # without tasks: the first of them
    assert all(len(weight) == len(TASKS) for weight in WEIGHTS.values() if isinstance(weight, tuple))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    """Each term's gradient against the change along a random way; SSIM's above all, which the authors' code lacks."""
    a, b, f = pair()
    f.requires_grad_(True)
    way = torch.randn(f.shape, generator=torch.Generator().manual_seed(8), dtype=f.dtype) * (a > 0)
    step = 1e-6
    there, back = (LOSSES[name].terms(a, b, (f + sign * step * way).detach(), 0) for sign in (1, -1))
    for term, value in LOSSES[name].terms(a, b, f, 0).items():
        slope = (torch.autograd.grad(value.sum(), f)[0] * way).sum().item()
        assert slope == pytest.approx((there[term] - back[term]).sum().item() / (2 * step), rel=1e-3, abs=1e-6), term
        assert term == "nabf" or abs(slope) > 1e-4, term


@pytest.mark.parametrize("name", LOSSES)
def test_finite_on_black_and_on_equal_slices(name):
    for a, b in (pair()[:2], [torch.zeros(1, 1, 48, 48)] * 2):
        f = a.clone().requires_grad_(True)
        loss = total(LOSSES[name].terms(a, b, f, 0), LOSSES[name].weights)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(f.grad).all()


@pytest.mark.parametrize(("name", "steps", "rate"), [("first", 6, 0.06), ("ours", 6, 0.06), ("paper", 25, 0.02)])
def test_a_few_steps_down_each_loss(name, steps, rate):
    """Following the gradient lowers the loss by a good part; for the published one SSIM's part falls too."""
    a, b, f = pair(count=1)
    f = f.requires_grad_(True)
    optimiser = torch.optim.Adam([f], rate)
    losses, ssims = [], []
    for _ in range(steps):
        terms = LOSSES[name].terms(a, b, f, 0)
        loss = total(terms, LOSSES[name].weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        ssims.append(terms["ssim"].mean().item())
    assert losses[-1] < losses[0] - 0.2 * abs(losses[0])
    assert name != "paper" or ssims[-1] < 0.8 * ssims[0]
