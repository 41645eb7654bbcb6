"""Where slices lie on the network's grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ASFEFusionLib.network import fusion_level, load
from ASFEFusionLib.network.frame import Evened, Frame, Span, spans
from ASFEFusionLib.network.inference import prepared


def blobs(height=60, width=70, count=3, seed=5):
    """Bright parts in black: (count, 1, height, width)."""
    x = torch.zeros(count, 1, height, width)
    rng = torch.Generator().manual_seed(seed)
    for one in x:
        top, left = (int(torch.randint(5, 20, (), generator=rng)) for _ in range(2))
        one[0, top : top + 23, left : left + 31] = torch.rand(23, 31, generator=rng)
    return x


def middles(a, b):
    return [(rows.middle, columns.middle) for rows, columns in spans(a, b)]


def test_what_slices_show_and_the_centre_of_its_mass():
    a, b = torch.zeros(2, 2, 1, 40, 50)
    a[0, 0, 10:15, 20:23] = 0.8
    b[0, 0, 39, 22] = 0.15  # hardly any mass
    b[1, 0, 30, 7] = 1.0
    assert spans(a, b) == [(Span(12, 10, 40), Span(21, 20, 23)), (Span(30, 30, 31), Span(7, 7, 8))]
    assert spans(b, a) == spans(a, b)


def test_a_span_in_larger_pixels_holds_all_of_it():
    assert Span(21, 19, 24).moved(3) == Span(24, 22, 27)
    assert Span(21, 19, 24).coarser(2) == Span(5, 4, 6)
    assert Span(21, 19, 25).coarser(2) == Span(5, 4, 7)


def test_black_and_what_is_faint_move_nothing():
    a, b = blobs(), blobs(seed=6)
    there = spans(a, b)
    assert len(set(there)) == 3
    on = spans(*(F.pad(x, (3, 40, 17, 0)) for x in (a, b)))
    assert on == [(rows.moved(17), columns.moved(3)) for rows, columns in there]
    faint = 0.09 * torch.rand(a.shape, generator=torch.Generator().manual_seed(1))
    assert spans(torch.maximum(a, faint), b) == there


@pytest.mark.parametrize("size", [(64, 64), (63, 64), (1, 1), (2, 5)])
def test_symmetric_slices_have_one_middle_however_they_are_summed(size):
    """At a half rounding would decide."""
    ones = torch.ones(1, 1, *size)
    there = middles(ones, ones)
    assert there == [tuple((length - 1) // 2 for length in size)]
    for scale in (0.11, 0.3, 0.7):
        assert middles(scale * ones, 0 * ones) == there


def test_nothing_spans_nothing():
    nothing = torch.zeros(2, 1, 8, 9)
    assert spans(nothing, nothing) == [(Span(0, 0, 0), Span(0, 0, 0))] * 2
    assert (load()(nothing, nothing) == 0).all()


@pytest.mark.parametrize("middle", [(0, 0), (17, 30), (59, 69)])
def test_middles_lie_on_the_first_pixels_of_cells(middle):
    x = torch.rand(2, 1, 60, 70)
    frame = Frame(x[:1].shape, [tuple(Span(m, m - 3, m + 2) for m in middle)], 8, 4)
    on = frame.put(x)
    assert on.shape == (2, 1, *frame.size)
    assert all(length % 4 == 0 for length in frame.size)
    rows, columns = frame.shown[0]
    assert rows.middle % 4 == columns.middle % 4 == 0
    assert torch.equal(on[:, 0, rows.middle, columns.middle], x[:, 0, middle[0], middle[1]])
    assert {(m - first, end - m) for m, first, end in frame.shown[0]} == {(3, 2)}
    assert torch.equal(frame.cut(on[:1]), x[:1])
    top, left = frame.places[0]
    assert min(top, left, frame.size[0] - top - 60, frame.size[1] - left - 70) >= 8
    assert torch.equal(on[:, :, 0, left : left + 70], x[:, :, 0])  # continued by the ends


def test_slices_of_a_batch_each_have_their_place():
    a, b = blobs(), blobs(seed=6)
    frame = Frame(a.shape, spans(a, b), 8, 4)
    assert len(set(frame.places)) > 1
    on = frame.put(torch.cat([a, b]))
    assert torch.equal(frame.cut(on[:3]), a)
    assert torch.equal(frame.cut(on[3:]), b)


def test_halves_fall_as_on_the_canvas():
    x = torch.rand(3, 1, 61, 70)
    frame = Frame(x.shape, [(Span(m, 0, 61), Span(n, 0, 70)) for m, n in ((9, 4), (10, 5), (11, 7))], 8, 4)
    evened = Evened(frame)
    on = evened.put(x)
    assert on.shape[2] % 2 == on.shape[3] % 2 == 0
    assert torch.equal(evened.cut(on), x)
    for (top, left), (down, right) in zip(frame.places, evened.places, strict=True):
        assert (top - down) % 2 == (left - right) % 2 == 0


@pytest.mark.parametrize("ready", [False, True])
def test_given_spans_are_those_that_are_used(ready):
    net = prepared(load()) if ready else load()
    a, b = blobs(48, 52), blobs(48, 52, seed=6)
    f = net(a, b)
    there = spans(a, b)
    assert torch.equal(net(a, b, there), f)
    assert not torch.equal(net(a, b, [(rows.moved(1), columns) for rows, columns in there]), f)


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
    """8 pixels of the frame, at a quarter of the side; and they are laid by what is shown there."""
    net, given = load(), []
    real = fusion_level.Windows

    def windows(both, window, shown, black, ends):
        given.append((window, shown, ends))
        return real(both, window, shown, black, ends)

    monkeypatch.setattr(fusion_level, "Windows", windows)
    a, b = blobs(count=1), blobs(count=1, seed=6)
    net(a, b)
    frame = Frame(a.shape, spans(a, b), 8, 4)
    assert given == [(36, [tuple(side.coarser(2) for side in frame.shown[0])], 2)]
