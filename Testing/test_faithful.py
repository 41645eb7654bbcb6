"""Figures that tell what neither source has."""

import numpy as np
import pytest
import torch

from ASFEFusionLib.research import faithful
from ASFEFusionLib.research.baselines import average, maximum
from ASFEFusionLib.research.cases import Case
from ASFEFusionLib.research.data import Pairs


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 256, (2, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8) for _ in range(2))
    return Pairs("CT-MRI", ["1", "2"], a, b, np.repeat(a[..., None], 3, -1))


def test_a_blend_has_no_extremes_outside(pairs):
    a, b = pairs.tensors()
    for f in (average(a, b), maximum(a, b), a + 0.02):
        assert faithful.extremes_outside(a, b, f).max() == 0


@pytest.mark.parametrize("by", (0.1, -0.1))
def test_a_spot_outside_the_range_is_an_extreme(pairs, by):
    a, b = (x * 0.5 + 0.25 for x in pairs.tensors())
    f = maximum(a, b) if by > 0 else torch.minimum(a, b)
    f[1, 0, 20, 30] += by
    assert faithful.extremes_outside(a, b, f).tolist() == pytest.approx([0, 1 / 64**2])
    # Two alike side by side are none: no pixel stands out.
    f[1, 0, 20, 31] = f[1, 0, 20, 30]
    assert faithful.extremes_outside(a, b, f).max() == 0


def test_edges_of_a_source_are_in_one_and_a_new_one_is_in_neither():
    a, b = torch.zeros(1, 1, 32, 32), torch.full((1, 1, 32, 32), 0.5)
    a[..., 16:] = 0.5
    assert faithful.edges_in_neither(a, b, a) == 0
    assert faithful.edges_in_neither(a, b, (a + b) / 2) == 0
    # A choice that changes in the middle of flat regions draws a border of its own.
    f = torch.where(torch.arange(32)[:, None] < 16, a, b)
    assert 0.3 < float(faithful.edges_in_neither(a, b, f)) < 0.7
    assert faithful.edges(torch.zeros_like(a)).sum() == 0
    step = torch.zeros(1, 1, 32, 32)
    step[..., 16:] = 19 / 255
    assert not faithful.edges(step).any()
    step[..., 16:] = 21 / 255
    assert faithful.edges(step)[..., 15:17].all()


def test_a_lattice_in_a_part_of_a_slice():
    a, b = torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.3)
    f = a.clone()
    f[..., :32] += 1.5 / 255 * (-1.0) ** torch.arange(32)
    assert 0.4 < float(faithful.in_lattice(a, b, f)) < 0.6
    assert faithful.in_lattice(a, f, f) == 0  # a source has it
    f = a + (f - a) / 2
    assert faithful.in_lattice(a, b, f) == 0  # below a grey level


def test_shifts():
    b = torch.arange(12.0).view(1, 1, 3, 4)
    across, down = faithful.shifted(b, 1)
    assert torch.equal(across[..., 1:], b[..., :-1])
    assert torch.equal(across[..., 0], b[..., 0])
    assert torch.equal(down[..., 1:, :], b[..., :-1, :])
    assert torch.equal(down[..., 0, :], b[..., 0, :])


def test_what_a_shift_adds_is_seen(pairs):
    """Alike sources: as they lie the mean has their edges; shifted, of each edge two of half the height, or three."""
    alike = Pairs("CT-MRI", pairs.names, pairs.a, pairs.a, pairs.rgb)
    found = faithful.judge(maximum, alike)
    assert list(found) == [0, 1, 2]
    assert found[0] == {"extremes outside (%)": 0, "edges in neither (%)": 0, "lattice (%)": 0, "Nabf": 0, "edges": 1}
    assert found[2]["edges"] > found[1]["edges"] > 1
    assert found[2]["extremes outside (%)"] == found[2]["edges in neither (%)"] == 0
    text = faithful.table({"CT-MRI": {"MAX": found}})
    assert "| CT-MRI | MAX | 0 | 0.000 | 0.000 | 0.000 | 0.000 | 1.000 |" in text


def test_flicker_over_the_sources():
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 200, (2, 6, 16, 16)).astype(np.uint8)
    case = Case("x", a, b, both=[0, 1, 2, 4, 5])
    for fuse in (average, maximum):
        whole, beyond = faithful.flicker(fuse, case)
        assert 0.3 < whole < 1
        assert beyond < 1e-6
    assert faithful.flicker(lambda a, b: a, Case("x", a, a, case.both)) == pytest.approx((1, 0))
    # The steps from 2 to 4 are none: a change between them counts nothing.
    turned = iter(range(99))
    light = Case("x", np.full_like(a, 50), np.full_like(a, 50), case.both)
    assert faithful.flicker(lambda a, b: a + 0.1 * (next(turned) > 2), light) == (0, 0)
    # Slices that are brighter by turns change by more than their sources do.
    turned = iter(range(99))
    whole, beyond = faithful.flicker(
        lambda a, b: a / 2 + 0.5 * (next(turned) % 2), Case("x", a // 9, a // 9, case.both)
    )
    assert whole > 2
    assert beyond > 1
    assert "| x | ours | 1.500 | 0.250 |" in faithful.flicker_table({"x": {"ours": (1.5, 0.25)}})
