"""What a frame changes, as figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ASFEFusionLib.research import framing
from ASFEFusionLib.research.baselines import maximum
from ASFEFusionLib.research.data import Pairs


def by_row(a, b):
    """A fusion that hangs on where the slice begins: a grey level more in each tenth row from the first."""
    f = torch.maximum(a, b).clone()
    f[..., ::10, :] += 1 / 255
    return f


def by_size(a, b):
    """One that hangs on the slice's size: 20 levels more at one pixel of a small one."""
    f = torch.maximum(a, b).clone()
    if a.shape[2] < 60:
        f[..., 5, 7] += 20 / 255
    return f


@pytest.fixture
def slices():
    a, b = torch.zeros(2, 1, 1, 64, 80)
    a[..., 11:51, 13:60] = 0.5
    b[..., 20:40, 30:70] = 0.25
    a[..., 60, 3] = 0.02  # less than a body has
    return a, b


def test_what_hangs_on_nothing_around_it_changes_nowhere(slices):
    for frame in framing.FRAMES.values():
        assert framing.framed(maximum, *slices, frame).max() == 0
    change = framing.cropped(maximum, *slices)
    assert change.shape == (1, 1, 40, 57)
    assert change.max() == 0


def test_changes_are_seen(slices):
    moved = framing.framed(by_row, *slices, (0, 0, 1, 0))
    assert moved.shape == slices[0].shape
    assert moved.max().item() == pytest.approx(1, abs=1e-3)
    assert (moved > 0.5).sum() == 13 * 80  # rows 0, 10 to 60, and 9, 19 to 59
    cut = framing.cropped(by_size, *slices)
    assert cut[0, 0, 5, 7].item() == pytest.approx(20, abs=1e-3)
    assert (cut > 0.5).sum() == 1


def test_nothing_to_crop_to():
    black = torch.zeros(1, 1, 20, 20)
    assert framing.cropped(maximum, black, black).numel() == 0


def test_figures_and_table():
    changes = torch.zeros(1000)
    changes[:5], changes[5:20] = 20, 3
    found = framing.figures(changes)
    assert found == (20, 3, pytest.approx(99.5), 5)
    assert "| CT | pad | 20.0 | 3.00 | 99.500 | 5 |" in framing.table({"CT": {"pad": found}})


def test_of_pairs():
    images = np.zeros((2, 48, 40), np.uint8)
    images[:, 10:30, 10:30] = 200
    pairs = Pairs("CT-MRI", ["one", "two"], images, images, images[..., None])
    found = framing.judge(by_size, pairs)
    assert {name: row[3] for name, row in found.items()} == {
        "black, 256 to 512": 2,  # a large slice has none
        "black, a pixel": 4,  # at another place
        framing.CROPPED: 2,
    }
    assert found[framing.CROPPED][0] == pytest.approx(20, abs=1e-3)
