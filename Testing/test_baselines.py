"""The classical fusions: what each must do, and the figures that others' code gave where the data are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ASFEFusionLib.research import metrics
from ASFEFusionLib.research.baselines import BASELINES
from ASFEFusionLib.research.data import read_pairs

SHARED = Path(__file__).resolve().parents[2] / "shared"
MULTISCALE = ("LP", "DWT", "SWT", "GFF")


def texture(seed, height=64, width=64):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 64
    waves = np.sin(rng.uniform(20, 40) * x + rng.uniform(0, 9)) * np.sin(rng.uniform(20, 40) * y + rng.uniform(0, 9))
    return torch.tensor(0.5 + 0.3 * waves, dtype=torch.float32)[None, None]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("size", [(64, 64), (45, 70), (51, 41)])
def test_of_two_equal_images_it_is_the_image(name, size):
    a = torch.cat([texture(n, *size) for n in range(3)])
    fused = BASELINES[name](a, a.clone())
    assert fused.shape == a.shape
    assert fused.dtype == torch.float32
    assert (fused - a).abs().max() < 1e-5


@pytest.mark.parametrize("name", BASELINES)
def test_of_two_flat_images_it_is_the_mean_or_the_brighter(name):
    a, b = torch.full((1, 1, 64, 64), 0.2), torch.full((1, 1, 64, 64), 0.6)
    wanted = {"MAX": 0.6, "GFF": 0.2}.get(name, 0.4)  # GFF: of two equally salient ones its first, as published
    assert (BASELINES[name](a, b) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", MULTISCALE)
def test_detail_is_taken_from_where_it_is(name):
    """The left half has texture in a alone, the right half in b alone; the mean of both halves is one grey."""
    a, b = texture(1), texture(2)
    a[..., 32:], b[..., :32] = 0.5, 0.5
    whole = torch.maximum((a - 0.5).abs(), (b - 0.5).abs())
    wanted = torch.where((a - 0.5).abs() == whole, a, b)
    error = {n: float((BASELINES[n](a, b) - wanted)[..., 8:-8, 8:-8].square().mean().sqrt()) for n in (name, "AVG")}
    assert error[name] < 0.4 * error["AVG"]


@pytest.mark.parametrize("name", MULTISCALE)
def test_what_leaves_the_range_is_clipped(name):
    a = (texture(3) > 0.5).float()
    b = (texture(4) > 0.5).float()
    fused = BASELINES[name](a, b)
    assert fused.min() >= 0
    assert fused.max() <= 1


def test_the_stationary_wavelets_move_with_the_image():
    a, b = texture(5, 64, 160), (texture(6, 64, 160) > 0.6).float()
    shifted = {name: BASELINES[name](a[..., 1:], b[..., 1:]) for name in ("SWT", "DWT")}
    whole = {name: BASELINES[name](a, b)[..., 1:] for name in shifted}
    change = {name: float((shifted[name] - whole[name])[..., 50:-50].abs().max()) for name in shifted}
    assert change["SWT"] < 1e-5
    assert change["DWT"] > 0.02


def test_figures_of_other_implementations(real_pairs):
    """SWT and GFF on the left-out CT-MRI pairs, against the figures in shared/ that other code gave."""
    if real_pairs is None or not (SHARED / "peers_left_out.json").exists():
        return
    published = json.loads((SHARED / "peers_left_out.json").read_text(encoding="utf-8"))["scores"]
    (pairs,) = [task for task in read_pairs(real_pairs, left_out=True) if task.task == "CT-MRI"]
    names = ("SD", "SF", "AG", "MI", "CC", "SCD", "Qabf")
    for method in ("SWT", "GFF"):
        found = []
        for start in range(0, len(pairs.names), 3):
            a, b = pairs.tensors(slice(start, start + 3))
            f = BASELINES[method](a, b).mul(255).round().div(255)
            found.append(torch.stack(list(metrics.score(a, b, f, names).values())))
        means = torch.cat(found, 1).mean(1).tolist()
        for name, value in zip(names, means, strict=True):
            assert value == pytest.approx(published[method]["CT-MRI"][name], rel=2e-3), (method, name)
