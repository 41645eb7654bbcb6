"""Colour maps, luminance and chroma."""

import numpy as np
import pytest

from ASFEFusionLib import colour
from ASFEFusionLib.errors import FusionError


def test_luminance_and_chroma_give_the_colour_back():
    rgb = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    assert np.allclose(colour.put_back(colour.luminance(rgb), colour.chroma(rgb)), rgb, atol=1e-5)


def test_known_values_of_bt_601():
    red = np.array([1.0, 0.0, 0.0])
    assert colour.luminance(red) == pytest.approx(0.299)
    assert colour.chroma(red) == pytest.approx([-0.168736, 0.5], abs=1e-5)


@pytest.mark.parametrize("name", colour.MAPS)
def test_colourised_keeps_the_fused_luminance(name):
    """Whatever the uptake: the structure that the luminance shows is that of the fusion."""
    y, uptake = np.meshgrid(np.linspace(0, 1, 41, dtype=np.float32), np.linspace(0, 1, 41, dtype=np.float32))
    rgb = colour.colourise(y, uptake, colour.map_table(name))
    assert rgb.dtype == np.uint8
    assert np.abs(colour.luminance(rgb / 255) - y).max() < 0.75 / 255
    assert np.abs(rgb[0].astype(int) - rgb[0].mean(-1, keepdims=True)).max() < 1  # no uptake: grey
    assert np.ptp(rgb[20, 20].astype(int)) > 40  # uptake in mid grey: colour


@pytest.mark.parametrize("name", colour.MAPS)
def test_the_maps_own_luminance_gives_its_own_colours(name):
    values = np.linspace(0, 1, 101, dtype=np.float32)
    table = colour.map_table(name)
    rgb = colour.colourise(colour.map_luminance(values, table), values, table)
    points = np.array(colour.MAPS[name])
    expected = np.stack([np.interp(values, np.linspace(0, 1, len(points)), points[:, c]) for c in range(3)], -1)
    assert np.abs(rgb - 255 * expected).max() < 1.5


def test_a_table_of_the_users_own():
    table = np.array([[0, 0, 0], [0, 1, 0]])
    colour.check_colour(table)
    rgb = colour.colourise(np.float32([0.4]), np.float32([1.0]), colour.map_table(table))
    assert rgb[0, 1] > rgb[0, 0] + 30


@pytest.mark.parametrize("bad", ["nonsense", [[0, 0, 0]], [[0, 0, 0], [0, 2, 0]], [1, 2, 3], "x"])
def test_unknown_maps(bad):
    with pytest.raises(FusionError) as caught:
        colour.check_colour(bad)
    assert caught.value.code == "colour_unknown"


@pytest.mark.parametrize("name", [*colour.MAPS, "own"])
def test_colourised_is_the_plain_formula(name):
    """Channel by channel, with all that it divides by held for each voxel: the same bytes."""
    rng = np.random.default_rng(0)
    table = colour.map_table(rng.uniform(0, 1, (7, 3)) if name == "own" else name)
    y, uptake = rng.uniform(0, 1, (2, 60, 50)).astype(np.float32)
    y[:3], y[3:6], y[6:9], uptake[2:5], uptake[5:8] = 0, 1, 1e-8, 0, 1
    cb, cr = table[np.rint(uptake * (len(table) - 1)).astype(int), 1:].transpose(2, 0, 1)
    red, blue = 1.402 * cr, 1.772 * cb
    offsets = np.stack([red, -(0.299 * red + 0.114 * blue) / 0.587, blue], -1)
    room = np.where(offsets > 0, 1 - y[..., None], y[..., None])
    part = (room / np.maximum(np.abs(offsets), 1e-6)).min(-1, keepdims=True)
    plain = np.rint(255 * (y[..., None] + np.minimum(part, 1) * offsets)).clip(0, 255)
    found = colour.colourise(y, uptake, table)
    assert np.abs(found - plain).max() <= 1  # where a rounding decides
    assert (found != plain).mean() < 0.002
