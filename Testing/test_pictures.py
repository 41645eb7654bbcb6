"""fuse() on 2-D pictures: grey, coloured, of 8 and 16 bits; and what is foreseen of a result."""

from dataclasses import replace

import numpy as np
import pytest

from ASFEFusionLib import colour, engine
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.fusion import fuse, result_like
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume


def codes(report):
    return [warning.code for warning in report.warnings]


def pictures():
    """A coloured and a grey picture of one size, of the phantom."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:61, :75]
    rgb = np.stack([120 + 80 * np.sin(x / 9), 90 + 60 * np.cos(y / 7), 100 + 20 * np.sin((x + y) / 5)], -1)
    rgb = np.rint(rgb).astype(np.uint8)
    grey = rng.integers(0, 256, (61, 75)).astype(np.uint8)
    return (Volume(v[None], np.eye(4), name=n, two_d=True) for v, n in ((rgb, "rgb"), (grey, "grey")))


def test_two_grey_pictures_give_one_of_8_bits():
    _, grey = pictures()
    other = replace(grey, voxels=255 - grey.voxels)
    fused, report = fuse(grey, other)
    assert fused.voxels.shape == grey.voxels.shape
    assert fused.voxels.dtype == np.uint8
    assert fused.two_d
    assert report.windows["first"] == {"low": 0, "high": 255, "source": "8-bit picture: as it is", "units": None}
    assert codes(report) == []
    # No stretch: a pair of one and the same picture comes back.
    same, _ = fuse(grey, replace(grey, name="copy"))
    assert np.abs(same.voxels.astype(int) - grey.voxels).max() <= 6


def test_a_fused_value_of_1_is_255_and_1000(heads, monkeypatch):
    monkeypatch.setattr(engine.Engine, "fuse", lambda self, a, b, tick: a)
    _, grey = pictures()
    assert np.array_equal(fuse(grey, replace(grey, name="copy"))[0].voxels, grey.voxels)
    assert fuse(heads["CT"], heads["CT"])[0].voxels.max() == 1000


def test_a_coloured_picture_keeps_its_chroma():
    rgb, _ = pictures()
    own = replace(rgb, voxels=np.rint(colour.luminance(rgb.voxels)).astype(np.uint8), name="own luminance")
    fused, _ = fuse(rgb, own)
    assert fused.voxels.shape == rgb.voxels.shape
    # With its own luminance as partner the picture comes back, all channels moved alike if at all.
    change = fused.voxels.astype(int) - rgb.voxels
    assert np.abs(change).max() <= 6
    assert np.ptp(change, axis=-1).max() <= 1


def test_pictures_with_and_without_a_place():
    rgb, grey = pictures()
    placed = replace(grey, ijk_to_physical=np.diag([0.5, 0.5, 1.0, 1.0]))
    placed.ijk_to_physical[:2, 3] = 1000
    fused, report = fuse(grey, replace(placed, name="placed"))
    assert report.overlap == pytest.approx(1)
    assert fused.size_ijk == grey.size_ijk
    with pytest.raises(FusionError) as caught:
        fuse(rgb, grey, FusionSettings(grid="second"))
    assert caught.value.code == "picture_grid"
    with pytest.raises(FusionError) as caught:
        fuse(rgb, grey, FusionSettings(colour="hot"))
    assert caught.value.code == "picture_colour"


def test_16_bit_pictures_give_8_bits():
    _, grey = pictures()
    deep = replace(grey, voxels=grey.voxels.astype(np.uint16) * 200, name="deep")
    fused, _ = fuse(deep, grey)
    assert fused.voxels.dtype == np.uint8
    assert fused.voxels.max() > 240


def test_blank_pictures():
    _, grey = pictures()
    blank = replace(grey, voxels=np.zeros_like(grey.voxels), name="blank")
    with pytest.raises(FusionError) as caught:
        fuse(grey, blank)
    assert caught.value.code == "volume_constant"
    fused, _ = fuse(grey, blank, FusionSettings(allow_blank=True))
    assert fused.voxels.std() > 20


def test_what_is_foreseen_is_what_comes(heads):
    rgb, grey = pictures()
    for first, second, settings in (
        (heads["CT"], heads["MR"], FusionSettings(grid="finest")),
        (heads["CT"], heads["PET"], FusionSettings(colour="hot", grid="second")),
        (rgb, grey, FusionSettings()),
        (grey, replace(grey, name="copy"), FusionSettings()),
    ):
        foreseen, (fused, _) = result_like(first, second, settings), fuse(first, second, settings)
        assert foreseen.voxels.shape == fused.voxels.shape
        assert foreseen.voxels.dtype == fused.voxels.dtype
        assert np.array_equal(foreseen.ijk_to_physical, fused.ijk_to_physical)
