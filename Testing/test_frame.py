"""Where slices lie on the network's grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ASFEFusionLib.network import fusion_level, load
from ASFEFusionLib.network.frame import Evened, Frame, middles
from ASFEFusionLib.network.inference import prepared


def blobs(height=60, width=70, count=3, seed=5):
    """Bright parts in black: (count, 1, height, width)."""
    x = torch.zeros(count, 1, height, width)
    rng = torch.Generator().manual_seed(seed)
    for one in x:
        top, left = (int(torch.randint(5, 20, (), generator=rng)) for _ in range(2))
        one[0, top : top + 23, left : left + 31] = torch.rand(23, 31, generator=rng)
    return x


def test_the_middle_is_the_centre_of_mass():
    a, b = torch.zeros(2, 2, 1, 40, 50)
    a[0, 0, 10:15, 20:23] = 0.8
    b[1, 0, 30, 7] = 1.0
    assert middles(a, b) == [(12, 21), (30, 7)]
    assert middles(b, a) == middles(a, b)


def test_black_and_what_is_faint_move_no_middle():
    a, b = blobs(), blobs(seed=6)
    there = middles(a, b)
    assert len(set(there)) == 3
    on = middles(*(F.pad(x, (3, 40, 17, 0)) for x in (a, b)))
    assert on == [(row + 17, column + 3) for row, column in there]
    faint = 0.09 * torch.rand(a.shape, generator=torch.Generator().manual_seed(1))
    assert middles(torch.maximum(a, faint), b) == there


@pytest.mark.parametrize("size", [(64, 64), (63, 64), (1, 1), (2, 5)])
def test_symmetric_slices_have_one_middle_however_they_are_summed(size):
    """At a half rounding would decide."""
    ones = torch.ones(1, 1, *size)
    there = middles(ones, ones)
    assert there == [tuple((length - 1) // 2 for length in size)]
    for scale in (0.11, 0.3, 0.7):
        assert middles(scale * ones, 0 * ones) == there


def test_nothing_has_a_middle_too():
    nothing = torch.zeros(2, 1, 8, 9)
    assert middles(nothing, nothing) == [(0, 0), (0, 0)]


@pytest.mark.parametrize("middle", [(0, 0), (17, 30), (59, 69)])
def test_middles_lie_on_the_first_pixels_of_cells(middle):
    x = torch.rand(2, 1, 60, 70)
    frame = Frame(x[:1].shape, [middle], 8, 4)
    on = frame.put(x)
    assert on.shape == (2, 1, *frame.size)
    assert all(length % 4 == 0 for length in frame.size)
    row, column = frame.middles[0]
    assert row % 4 == column % 4 == 0
    assert torch.equal(on[:, 0, row, column], x[:, 0, middle[0], middle[1]])
    assert torch.equal(frame.cut(on[:1]), x[:1])
    top, left = frame.places[0]
    assert min(top, left, frame.size[0] - top - 60, frame.size[1] - left - 70) >= 8
    assert torch.equal(on[:, :, 0, left : left + 70], x[:, :, 0])  # continued by the ends


def test_slices_of_a_batch_each_have_their_place():
    a, b = blobs(), blobs(seed=6)
    frame = Frame(a.shape, middles(a, b), 8, 4)
    assert len(set(frame.places)) > 1
    on = frame.put(torch.cat([a, b]))
    assert torch.equal(frame.cut(on[:3]), a)
    assert torch.equal(frame.cut(on[3:]), b)


def test_halves_fall_as_on_the_canvas():
    x = torch.rand(3, 1, 61, 70)
    frame = Frame(x.shape, [(9, 4), (10, 5), (11, 7)], 8, 4)
    evened = Evened(frame)
    on = evened.put(x)
    assert on.shape[2] % 2 == on.shape[3] % 2 == 0
    assert torch.equal(evened.cut(on), x)
    for (top, left), (down, right) in zip(frame.places, evened.places, strict=True):
        assert (top - down) % 2 == (left - right) % 2 == 0


@pytest.mark.parametrize("ready", [False, True])
def test_given_middles_are_those_that_are_used(ready):
    net = prepared(load()) if ready else load()
    a, b = blobs(48, 52), blobs(48, 52, seed=6)
    f = net(a, b)
    assert torch.equal(net(a, b, middles(a, b)), f)
    moved = [(row + 1, column) for row, column in middles(a, b)]
    assert not torch.equal(net(a, b, moved), f)


def test_black_features_do_not_change_a_network_that_is_trained():
    net = load().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    black = net.encoder.black()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.encoder.modules())
    net.eval()
    large = net.encoder(torch.zeros(1, 1, 128, 128))
    for one, features in zip(black, large, strict=True):
        middle = features.shape[2] // 2
        assert torch.allclose(one[0, :, 0, 0], features[0, :, middle, middle], atol=1e-6)
    assert set(prepared(net).state_dict()) - set(before)  # kept from then on
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(net.encoder.black(), black, strict=True))


def test_windows_leave_out_what_the_convolutions_zeros_spoil(monkeypatch):
    """8 pixels of the frame, at a quarter of the side; and they are laid about the middle there."""
    net, given = load(), []
    real = fusion_level.Windows

    def windows(both, window, middles, black, ends):
        given.append((window, middles, ends))
        return real(both, window, middles, black, ends)

    monkeypatch.setattr(fusion_level, "Windows", windows)
    a, b = blobs(count=1), blobs(count=1, seed=6)
    net(a, b)
    frame = Frame(a.shape, middles(a, b), 8, 4)
    assert given == [(32, [tuple(x // 4 for x in frame.middles[0])], 2)]
