"""The refinement: pulls that raise what they are named after, and steps that keep to the blend's limits."""

import numpy as np
import pytest
import torch

from ASFEFusionLib import phantom
from ASFEFusionLib.network import ASFEFusion, load
from ASFEFusionLib.network.configs import COMPACT
from ASFEFusionLib.network.decoder import limits
from ASFEFusionLib.network.fast_refinement import REACH, FastDetails, FastEdges, FastRefinement, phases, shown, whole
from ASFEFusionLib.network.pulls import (
    C1,
    C2,
    NOISE,
    NOTHING,
    STRENGTH,
    WINDOW,
    blurred,
    detail_pulls,
    details,
    edge_pulls,
    edges,
    gathered,
    gradient,
    halved,
    slope_pull,
    steepest,
    stronger_edges,
)
from ASFEFusionLib.network.refinement import Refinement
from ASFEFusionLib.research import losses, metrics
from ASFEFusionLib.research.ablate import leave_out


@pytest.fixture(scope="module")
def slices():
    """CT- and MR-like slices of heads, and a blend of them, (2, 1, 128, 128) in [0, 1]."""
    ct = phantom.head("CT", spacing=(1.8, 1.8, 20.0)).voxels[3:5].astype(np.float32)
    other = phantom.head("CT", seed=3, spacing=(1.8, 1.8, 20.0)).voxels[3:5].astype(np.float32)
    a = torch.from_numpy(np.clip((ct + 160) / 400, 0, 1))[:, None]
    b = torch.from_numpy(np.clip(1 - np.abs(other - 30) / 60, 0, 1))[:, None]
    rng = torch.Generator().manual_seed(0)
    a, b = ((0.9 * x + 0.03 * torch.rand(x.shape, generator=rng)).contiguous() for x in (a, b))
    return a, b, 0.6 * torch.maximum(a, b) + 0.2 * (a + b)


def pulls(a, b, f):
    sources = torch.cat([a, b], 1)
    of_edges = edge_pulls(*stronger_edges(sources), f)
    return *of_edges, slope_pull(steepest(sources), f), *detail_pulls(details(sources), f)


def alike(x, y):
    """Correlation of two fields."""
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


def test_edges_are_those_of_the_metric(slices):
    f = slices[2]
    for found, expected in zip(gradient(f), metrics.sobel(f)[:2], strict=True):
        assert torch.allclose(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_gathered_is_the_transpose(size):
    x = torch.rand(1, 1, *size, requires_grad=True)
    fields = torch.rand(2, 1, 1, *size)
    # Away from the ends: what stands near them is seen from beyond them too.
    fields[..., :2, :] = fields[..., -2:, :] = fields[..., :2] = fields[..., -2:] = 0
    sum((g * v).sum() for g, v in zip(gradient(x), fields, strict=True)).backward()
    assert torch.allclose(gathered(*fields), x.grad, atol=1e-6)


def test_the_pull_of_edges_is_the_gradient_of_what_is_kept(slices):
    """Of the sum of Xydeas and Petrovic, of the stronger edges and with sines, by autograd from its plain form."""
    a, b, f = (x.double() for x in slices)
    f = f.requires_grad_()
    fx, fy = gradient(f)
    own, kept, strengths = (fx**2 + fy**2 + 1e-6).sqrt(), 0, edges(torch.cat([a, b], 1)).strength
    for place, source in enumerate((a, b)):
        sx, sy = gradient(source)
        strength = (sx**2 + sy**2 + 1e-6).sqrt()
        ratio = torch.where(own < strength, own / strength, strength / own)
        sine = (sx * fy - sy * fx) / (own * strength)
        grown = 1 / (1 + torch.exp(-STRENGTH[0] * (ratio - STRENGTH[1])))
        turned = 1 / (1 + torch.exp(-22 * (0.2 - 2 / np.pi * torch.asin(sine.abs().clamp(max=1 - 1e-9)))))
        of_two = strengths[:, place : place + 1] > strengths[:, 1 - place : 2 - place]
        kept = kept + (strength * grown * turned * of_two).sum()
    kept.backward()
    found, _ = edge_pulls(*stronger_edges(torch.cat([a, b], 1)), f.detach())
    # A sine for an angle: equal where the edges nearly agree, and there it counts.
    assert alike(found[..., 3:-3, 3:-3], f.grad[..., 3:-3, 3:-3]) > 0.98
    assert 0.8 < float(found.std() / f.grad.std()) < 1.25


def test_the_pull_of_slopes_is_that_of_least_squares(slices):
    """Towards the steeper of the sources' differences, at the ends of the slice too."""
    a, b, f = (x.double() for x in slices)
    f = f.requires_grad_()
    misses = ((f.diff(dim=d) - losses.stronger(a.diff(dim=d), b.diff(dim=d))).square().sum() / 2 for d in (-1, -2))
    (expected,) = torch.autograd.grad(-sum(misses), f)
    assert torch.allclose(slope_pull(steepest(torch.cat([a, b], 1)), f.detach()), expected, atol=1e-12)


def test_of_two_slopes_as_steep_neither_rules():
    up, down = torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.tensor([[[[1.0, 0.5, 0.0]]]])
    for sources in ((up, down), (down, up)):
        assert (steepest(torch.cat(sources, 1)) == 0).all()


def test_of_two_edges_as_strong_the_same_one_rules_whichever_is_first():
    """Pictures have whole grey levels: 1 in 60 pixels of such noise is one."""
    a, b, f = torch.randint(0, 9, (3, 1, 1, 60, 60), generator=torch.Generator().manual_seed(0)) / 8
    strength = edges(torch.cat([a, b], 1)).strength
    assert (strength[:, 0] == strength[:, 1]).sum() > 40
    one, other = (edge_pulls(*stronger_edges(torch.cat(pair, 1)), f) for pair in ((a, b), (b, a)))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_the_stronger_edge_and_the_other_ones_strength(slices):
    a, b, _ = slices
    of_a, of_b = edges(a), edges(b)
    of_both, weakest = stronger_edges(torch.cat([a, b], 1))
    for one, other in ((of_a, of_b), (of_b, of_a)):
        rules = one.strength > 1.01 * other.strength  # others are nearly as strong
        assert 0.1 < rules.float().mean() < 0.9
        assert torch.equal(weakest[rules], other.strength[rules])
        assert all(torch.allclose(found[rules], x[rules]) for found, x in zip(of_both, one, strict=True))


def test_an_edge_stronger_than_its_sources_is_made_weaker_and_no_other():
    a, b = torch.zeros(2, 1, 1, 12, 16)
    a[..., 8:], b[..., 8:] = 0.5, 0.3
    sources = stronger_edges(torch.cat([a, b], 1))
    pull = edge_pulls(*sources, 1.4 * a)[1]
    assert (pull[..., 2:-2, 7] > 0).all()  # the dark side is raised, the bright one lowered
    assert (pull[..., 2:-2, 8] < 0).all()
    assert edge_pulls(*sources, 0.9 * a)[1].abs().max() < 1e-3 * pull.abs().max()


def test_the_pulls_of_details_are_the_metrics_gradients(slices):
    a, b, f = slices
    f = f.clone().requires_grad_()
    least = {metrics.vif_pair: 0.6, metrics.ssim_pair: 0.7, metrics.mef_ssim: 0.5}  # their windows are others
    for metric, found in zip(least, pulls(a, b, f.detach())[3:], strict=True):
        (expected,) = torch.autograd.grad(metric(a, b, f).sum(), f)
        assert alike(found, expected) > least[metric], metric.__name__


def test_the_pulls_of_details_are_exact_gradients_in_windows(slices):
    """But at the ends: of information, structure and best patches in windows at half the side, by autograd."""
    a, b, f = (x.double() for x in slices)
    f = f.requires_grad_()
    x = torch.cat([a, b], 1)
    of = details(x)
    mean, square, product = blurred(halved(torch.cat([f, f.square(), f * x], 1))).split([1, 1, 2], 1)
    variance, shared = square - mean.square(), product - mean * of.mean
    kept = (shared.clamp(min=0) ** 2 / (of.variance + NOTHING)).minimum(variance)
    light = (2 * mean * of.mean + C1) / (mean.square() + of.mean.square() + C1)
    structure = light * (2 * shared + C2) / (variance + of.variance + C2)
    best = (of.share * shared).sum(1, keepdim=True)
    values = (
        (variance + NOISE).log() - (variance - kept + NOISE).log(),
        structure,
        (2 * best + C2) / (variance + of.variance.amax(1, keepdim=True) + C2),
    )
    for value, pull in zip(values, detail_pulls(of, f.detach()), strict=True):
        (expected,) = torch.autograd.grad(value.sum(), f, retain_graph=True)
        inside = (..., slice(12, -12), slice(12, -12))
        assert torch.allclose(pull[inside] / 4, expected[inside], rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


def none_invented(a, b, f):
    return -metrics.nabf(a, b, f)


def as_steep(a, b, f):
    da, db, df = (losses.differences(x) for x in (a, b, f))
    return -(df - losses.stronger(da, db)).square().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("place", "metric"),
    list(enumerate([metrics.qabf, none_invented, as_steep, metrics.vif_pair, metrics.ssim_pair, metrics.mef_ssim])),
)
def test_a_little_along_a_pull_is_better_and_against_it_worse(slices, place, metric):
    a, b, f = slices
    along = pulls(a, b, f)[place]
    along = 0.002 * along / along.std()
    assert (metric(a, b, f - along) < metric(a, b, f)).all()
    assert (metric(a, b, f) < metric(a, b, f + along)).all()


def test_a_pull_does_not_know_which_source_is_first(slices):
    a, b, f = slices
    for one, other in zip(pulls(a, b, f), pulls(b, a, f), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.std()))


def test_nothing_pulls_where_all_is_flat_or_black():
    for grey in (0.0, 0.4):
        x = torch.full((1, 1, 12, 16), grey)
        assert all(pull.abs().max() < 1e-3 for pull in pulls(x, x, x))


def moving(steps=2, far=1.0):
    """A refinement that goes far, and not the same way everywhere."""
    torch.manual_seed(4)
    refinement = Refinement(steps)
    for step in refinement.steps:
        torch.nn.init.normal_(step.out.weight, std=far)
    return refinement


def test_untrained_it_changes_nothing(slices):
    a, b, f = slices
    assert torch.equal(Refinement(3)(a, b, f, limits(a, b)), f)


def test_it_keeps_to_the_limits_and_to_the_order_of_nothing(slices):
    a, b, f = slices
    low, high = limits(a, b)
    with torch.inference_mode():
        refined = moving()(a, b, f, (low, high))
        assert (refined - f).abs().mean() > 0.01
        assert (refined >= low).all()
        assert (refined <= high).all()
        assert torch.allclose(refined, moving()(b, a, f, (low, high)), atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 14), (14, 9)])
def test_any_size(size):
    a, b = torch.rand(2, 3, 1, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        refined = moving()(a, b, (a + b) / 2, limits(a, b))
    assert refined.shape == a.shape
    assert torch.isfinite(refined).all()


def test_an_odd_slice_is_one_that_goes_on(slices):
    a, b, f = (x[..., :63, :65] for x in slices)
    on = [torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate") for x in (a, b, f)]
    with torch.inference_mode():
        refined, expected = moving()(a, b, f, limits(a, b)), moving()(*on, limits(*on[:2]))
    assert torch.equal(refined, expected[..., :63, :65])


def test_gradients_reach_every_value(slices):
    a, b, f = slices
    refinement = moving()
    refinement(a, b, f, limits(a, b)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in refinement.parameters())


def test_autocast_does_not_reach_it(slices):
    """Ratios of weak edges need all their digits, whatever the network trains in."""
    a, b, _ = slices
    net = ASFEFusion(COMPACT).eval()
    net.refinement = moving(3, far=0.02)
    seen = []
    net.refinement.register_forward_hook(lambda module, given, found: seen.append((given, found)))
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            net(a, b)
        given, found = seen[0]
        assert (found - given[2]).abs().max() > 1e-3
        assert torch.equal(net.refinement(*given), found)


def both(refinement, a, b, f):
    """What the form for training gives, and the one that runs."""
    with torch.inference_mode():
        return refinement(a, b, f, limits(a, b)), FastRefinement(refinement)(a, b, f.clone(), limits(a, b))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (64, 64), (33, 50)])
def test_as_it_runs_it_is_the_same(size):
    a, b = torch.rand(2, 2, 1, *size, generator=torch.Generator().manual_seed(1))
    plain, fast = both(moving(far=0.02), a, b, (a + b) / 2)  # not so far that all ends at the limits
    # A slice of one window is flat: there rounding is all that pulls.
    assert (plain - fast).abs().max() < (1e-5 if min(size) > 8 else 1e-3)
    assert (plain - (a + b) / 2).abs().max() > 1e-3


@pytest.mark.parametrize("place", [(30, 60, 41, 77), (0, 25, 60, 96), (50, 51, 30, 31), (0, 101, 0, 96)])
def test_black_around_is_left_out_and_changes_nothing(place):
    """Wherever what is not black lies; in one slice of two elsewhere."""
    top, bottom, left, right = place
    a, b = torch.rand(2, 2, 1, 101, 96, generator=torch.Generator().manual_seed(2))
    seen = torch.zeros(2, 1, 101, 96)
    seen[0, :, top:bottom, left:right] = 1
    seen[1, :, bottom - 1 : bottom, left:right] = 1
    a, b = a * seen, b * seen
    plain, fast = both(moving(far=0.02), a, b, (a + b) / 2)
    assert (plain - fast).abs().max() < 1e-5
    assert (fast[seen == 0] == 0).all()
    rows, columns = shown(seen)
    assert rows.start % 2 == columns.start % 2 == 0
    assert rows.start <= max(0, top - REACH)
    assert rows.stop >= min(101, bottom + REACH)


def test_all_black():
    black = torch.zeros(1, 1, 20, 18)
    assert torch.equal(both(moving(), black, black, black)[1], black)


def test_phases_and_back():
    x = torch.rand(2, 3, 10, 14)
    assert torch.equal(whole(phases(x)), x)
    assert torch.equal(phases(x)[:, :, 2], x[..., 1::2, ::2])


def test_fast_edges(slices):
    a, b, f = slices
    sources = torch.cat([a, b], 1)
    apart = torch.full((2, 3, 4, 64, 64), torch.nan)
    FastEdges(sources).pull(f, apart)
    expected = *edge_pulls(*stronger_edges(sources), f), slope_pull(steepest(sources), f)
    for one, other in zip(whole(apart).split(1, 1), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-3 * float(other.abs().max()))


def test_fast_details(slices):
    a, b, f = slices
    sources = torch.cat([a, b], 1)
    apart = torch.full((2, 3, 4, 64, 64), torch.nan)
    FastDetails(sources, phases(sources)).pull(phases(f), apart)
    for one, other in zip(whole(apart).split(1, 1), detail_pulls(details(sources), f), strict=True):
        assert torch.allclose(one / WINDOW, other, atol=1e-4 * float(other.abs().max()))


def test_the_stronger_edge_comes_without_rounding(slices):
    """And of two sources that show the same, either."""
    a, b, _ = slices
    strong, weakest = stronger_edges(torch.cat([a, b], 1))
    found = torch.stack([strong.strength, weakest])
    own = torch.stack([edges(x).strength for x in (a, b)])
    # By the key, not by the strength itself: of edges that are nearly as strong either may be the one.
    assert torch.equal(found.amin(0), own.amin(0))
    assert torch.equal(found.amax(0), own.amax(0))
    same, other = stronger_edges(torch.cat([a, a], 1))
    assert torch.equal(same.strength, other)
    assert torch.equal(same.across, edges(a).across)


def test_the_shipped_one_earns_its_place(slices):
    """Of edges and of information it keeps more than the blend that it starts from."""
    a, b, _ = slices
    net, blending = load(), load()
    assert len(net.refinement.steps) == net.config.refinements > 0
    leave_out(blending, ("refinement",))
    with torch.inference_mode():
        f, blend = net(a, b), blending(a, b)
    for metric in (metrics.qabf, metrics.vif_pair):
        assert (metric(a, b, f) > metric(a, b, blend)).all()
