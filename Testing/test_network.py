"""The network: sizes, symmetry, faithfulness, steadiness; the published shape; loading of weights."""

import hashlib
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from ASFEFusionLib import phantom
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.network import COMPACT, PAPER, ASFEFusion, NetworkConfig, load
from ASFEFusionLib.network.aff import AFF
from ASFEFusionLib.network.casf import CASF
from ASFEFusionLib.network.decoder import ALLOWANCE
from ASFEFusionLib.network.frame import Span
from ASFEFusionLib.network.sfef import SFEF
from ASFEFusionLib.network.weights import find, save
from ASFEFusionLib.network.windows import Windows, ramps, starts
from ASFEFusionLib.research.ablate import leave_out


@pytest.fixture(scope="module")
def net():
    return load()


@pytest.fixture(scope="module")
def slices():
    """One CT and one MR like slice of the phantom's grid, (1, 1, 256, 256) in [0, 1]."""
    ct = phantom.head("CT", spacing=(0.9, 0.9, 20.0)).voxels[4].astype(np.float32)
    other = phantom.head("CT", seed=3, spacing=(0.9, 0.9, 20.0)).voxels[4].astype(np.float32)
    a = np.clip((ct + 160) / 400, 0, 1)
    b = np.clip(1 - np.abs(other - 30) / 60, 0, 1)  # soft tissue bright, bone and air black
    return tuple(torch.from_numpy(x)[None, None] for x in (a, b))


def blending():
    """The shipped network as far as its blend."""
    net = load()
    leave_out(net, ("refinement",))
    return net


def random_pair(height, width, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(2, 1, 1, height, width, generator=rng)


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (17, 33), (130, 37), (300, 129)])
def test_any_size(net, size):
    a, b = random_pair(*size)
    f = net(a, b)
    assert f.shape == a.shape
    assert torch.isfinite(f).all()


def test_symmetric(net, slices):
    a, b = slices
    # The refinement's ratios of weak edges show rounding, a thousandth at single pixels.
    assert torch.allclose(net(a, b), net(b, a), atol=1e-3)
    assert (net(a, b) - net(b, a)).abs().mean() < 1e-5


def test_shows_nothing_that_neither_source_has(net):
    a, b = random_pair(96, 96)
    f = net(a, b)
    assert (f <= torch.maximum(a, b) + ALLOWANCE + 1e-6).all()
    assert (f >= torch.minimum(a, b) - ALLOWANCE - 1e-6).all()


def test_black_stays_black(net, slices):
    a, b = (x.clone() for x in slices)
    nothing = (a == 0) & (b == 0)
    assert nothing.float().mean() > 0.2
    assert net(a, b)[nothing].abs().max() == 0


def test_batch_is_its_slices(net):
    a, b = torch.rand(2, 3, 1, 64, 80, generator=torch.Generator().manual_seed(2))
    together = net(a, b)
    for n in range(3):
        assert torch.allclose(together[n : n + 1], net(a[n : n + 1], b[n : n + 1]), atol=1e-5)


@pytest.mark.parametrize("black", [(128, 128, 128, 128), (0, 5, 3, 0), (61, 2, 0, 41)])
def test_framing_hardly_matters(net, slices, black):
    """Padded with black, from 256 to 512 and by odd numbers: the same picture inside."""
    a, b = slices
    left, _, top, _ = black
    padded = net(*(torch.nn.functional.pad(x, black) for x in slices))[..., top : top + 256, left : left + 256]
    levels = (padded - net(a, b)).abs() * 255
    assert levels.quantile(0.99) <= 0.5
    assert levels.max() <= 4


def test_cut_to_the_body_it_looks_the_same(net, slices):
    """But for the ends: there the phantom's noisy skin goes on where it was black before."""
    a, b = slices
    body = (torch.maximum(a, b) > 10 / 255)[0, 0]
    rows, columns = (body.any(along).nonzero() for along in (1, 0))
    inside = ..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert a[inside].numel() < 0.8 * a.numel()
    levels = (net(a[inside], b[inside]) - net(a, b)[inside]).abs() * 255
    assert levels.quantile(0.99) <= 4
    assert levels[..., 8:-8, 8:-8].max() <= 8


def test_no_seam_from_padding_or_windows(net):
    """Smooth slices that need padding and several windows: no row or column stands out by its steps."""
    height, width = 250, 330
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    a = (0.5 + 0.3 * torch.sin(x) * torch.cos(y))[None, None]
    b = (0.5 + 0.3 * torch.cos(1.3 * x + y))[None, None]
    f = net(a, b)[0, 0]
    for fused, refined in ((blending()(a, b)[0, 0], False), (f, True)):
        for picture in (fused, fused.T):
            lines = picture.diff(dim=-1).abs().mean(0)  # mean step across each line
            around = torch.stack([lines.roll(shift) for shift in (-4, -3, -2, 2, 3, 4)]).mean(0)
            # The refinement follows contours, which in slices this smooth lie along a line here and there.
            allowed = 0.25 / 255 if refined else 0.2 * around[10:-10]
            assert ((lines - around)[10:-10] < allowed).all()
    # At the slice's own ends: as if the picture went on.
    on = net(*(torch.nn.functional.pad(x, (32, 32, 32, 32), mode="replicate") for x in (a, b)))[0, 0, 32:-32, 32:-32]
    assert (f - on).abs().max() * 255 < 12
    assert (f - on).abs()[:, :4].mean() * 255 < 2.5


def test_windows_cover_all_and_blend_to_one():
    for begin, end, middle in itertools.product((0, 2), (5, 32, 33, 64, 69, 133), (0, 3, 34, 68, 130)):
        firsts = starts(begin, end, 32, middle)
        assert firsts[0] <= begin < firsts[0] + 32
        assert firsts[-1] + 32 >= end
        assert all(first + 32 < end for first in firsts[:-1])
        assert all(b - a == 28 for a, b in itertools.pairwise(firsts))
        if middle - 16 <= begin and middle + 16 >= end:
            assert firsts == [middle - 16]  # one about the middle
        else:  # where two overlap there is the middle
            assert (middle - 2 - firsts[0]) % 28 == 0
        total = torch.zeros(firsts[-1] - firsts[0] + 32)
        for first, weight in zip(firsts, ramps(len(firsts), 32), strict=True):
            total[first - firsts[0] :][:32] += weight
        assert torch.allclose(total, torch.ones(len(total)), atol=1e-6)
    x = torch.rand(4, 3, 50, 64)
    shown = [(Span(25, 0, 50), Span(30, 3, 61)), (Span(10, 0, 50), Span(49, 0, 64))]
    windows = Windows(x, 32, shown, torch.full((1, 3, 1, 1), 7.0), 0)
    assert len(windows.corners) == 2 * 3 + 3 * 3
    parts = windows.split(x)
    assert parts.shape == (2 * len(windows.corners), 3, 32, 32)
    assert {float(parts.max()), float(parts[0, 0, 0, 0])} == {7.0}  # beyond the features lies black
    first, second = parts.chunk(2)
    assert torch.allclose(windows.merge(first), x[:2], atol=1e-6)
    assert torch.allclose(windows.merge(second), x[2:], atol=1e-6)


def test_what_the_convolutions_zeros_spoil_no_window_sees():
    x = torch.rand(2, 3, 50, 64)
    spoiled = x.clone()
    inside = torch.zeros(50, 64, dtype=torch.bool)
    inside[2:-2, 2:-2] = True
    spoiled[..., ~inside] = 100
    windows = Windows(x, 32, [(Span(25, 0, 50), Span(30, 0, 64))], torch.zeros(1, 3, 1, 1), 2)
    assert torch.equal(windows.split(x), windows.split(spoiled))


def test_windows_end_where_nothing_is_shown():
    """Not at once: the decoder brings what lies next to it in. Beyond them their last values go on."""
    x = torch.rand(2, 3, 80, 90)
    windows = Windows(x, 32, [(Span(40, 30, 48), Span(50, 25, 76))], torch.zeros(1, 3, 1, 1), 2)
    assert windows.rows == [[24]]  # enough for 30 - 4 to 48 + 4
    assert windows.columns == [[20, 48]]  # for 25 - 4 to 76 + 4
    wider = Windows(x, 32, [(Span(40, 30, 48), Span(50, 20, 80))], torch.zeros(1, 3, 1, 1), 2)
    assert wider.columns == [[-8, 20, 48, 76]]
    merged = windows.merge(windows.split(x).chunk(2)[0])
    top, bottom, left, right = 24, 56, 20, 80
    inside = x[:1, :, top:bottom, left:right]
    assert torch.allclose(merged[:, :, top:bottom, left:right], inside, atol=1e-6)
    assert (merged[:, :, :top, left:right] - inside[:, :, :1]).abs().max() < 1e-6
    assert (merged[:, :, bottom:, left:right] - inside[:, :, -1:]).abs().max() < 1e-6
    assert (merged[:, :, top:bottom, :left] - inside[..., :1]).abs().max() < 1e-6
    assert (merged[:, :, top:bottom, right:] - inside[..., -1:]).abs().max() < 1e-6


def test_shapes_that_do_not_fit_are_refused(net):
    with pytest.raises(ValueError, match="one shape"):
        net(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 18))


def test_paper_config_fits_the_same_modules():
    """Every parameter of the published network that it uses; what its blocks hold and never use is 592 k a source."""
    with torch.device("meta"):
        net = ASFEFusion(PAPER)
    unused = 8 * (256 * 256 + 256 + 2 * 256 + 256 * 1024 + 1024 + 1024 * 256 + 256)
    assert sum(p.numel() for p in net.parameters()) + unused == 175_717_545


@pytest.fixture
def features():
    return torch.randn(2, 2, 32, 16, 16, generator=torch.Generator().manual_seed(4))


def test_casf_applies_each_map_to_the_others_values(features):
    """Against the formulas of the paper, written out."""
    x, y = features
    casf = CASF(COMPACT, 32, 4).eval()
    with torch.no_grad():
        width = COMPACT.token_width
        tokens = casf.tokens[0].norm(casf.tokens[0].embed(torch.cat([x, y])).flatten(2).transpose(1, 2))
        q, k, v = casf.tokens[0].qkv(tokens).split(width, -1)
        heads = [t.unflatten(-1, (COMPACT.heads, -1)).transpose(1, 2) for t in (q, k, v)]
        maps = (heads[0] @ heads[1].transpose(-1, -2) / (width // COMPACT.heads) ** 0.5).softmax(-1)
        crossed = [maps[:2] @ heads[2][2:], maps[2:] @ heads[2][:2]]
        o = casf.to_pixels(casf.proj[0](sum(c.transpose(1, 2).flatten(2) for c in crossed) / 2))
        o = o.transpose(1, 2).reshape(2, 32, 4, 4)
        expected = x + y + torch.nn.functional.interpolate(o, size=(16, 16), mode="bilinear")
        assert torch.allclose(casf(torch.cat([x, y])), expected, atol=1e-4)
        assert torch.allclose(casf(torch.cat([y, x])), expected, atol=1e-4)


def test_aff_is_the_sum_of_the_two_masked_spectra(features):
    x, y = features
    aff = AFF(COMPACT, 32).eval()
    with torch.no_grad():
        alone = []
        for z in (x, y):
            parts = torch.view_as_real(torch.fft.rfft2(z, norm="ortho")).permute(0, 1, 4, 2, 3).reshape(2, 64, 16, 9)
            masked = aff.masks[0](parts).view(2, 32, 2, 16, 9)
            alone.append(torch.fft.irfft2(torch.complex(masked[:, :, 0], masked[:, :, 1]), s=(16, 16), norm="ortho"))
        fused = aff(torch.cat([x, y]))
        assert torch.allclose(fused, alone[0] + alone[1], atol=1e-4)
        assert (fused - x - y).abs().max() > 0.1


def test_sfef_is_a_soft_mixture_of_its_experts(features):
    """Against the formulas of the paper, with all logits written out."""
    x, y = features
    sfef = SFEF(COMPACT, 32).eval()
    with torch.no_grad():
        t = torch.cat([x, y], 1).flatten(2).transpose(1, 2)
        tokens = t / t.norm(dim=-1, keepdim=True) * 64**0.5 * sfef.norm.gamma
        slots = sfef.slots / sfef.slots.norm(dim=-1, keepdim=True) * 64**0.5 * sfef.slot_norm.gamma
        logits = tokens @ slots.flatten(0, 1).T
        inputs = logits.softmax(1).transpose(1, 2) @ tokens
        answers = []
        for e, part in enumerate(inputs.unflatten(1, (COMPACT.experts, -1)).unbind(1)):
            hidden = torch.nn.functional.gelu(part @ sfef.weight1[e] + sfef.bias1[e])
            answers.append(hidden @ sfef.weight2[e] + sfef.bias2[e])
        expected = t + logits.softmax(2) @ torch.cat(answers, 1)
        assert torch.allclose(sfef(torch.cat([x, y], 1)), expected.transpose(1, 2).reshape(2, 64, 16, 16), atol=1e-3)


def test_config_round_trip():
    assert NetworkConfig.from_dict(COMPACT.to_dict()) == COMPACT


def test_load_says_what_it_loaded(net):
    assert not net.training
    assert net.weights_name == "compact"
    assert net.weights_hash == hashlib.sha256(find().read_bytes()).hexdigest()
    assert "training" in net.about


def test_saved_and_loaded_again_is_the_same(net, tmp_path):
    save(tmp_path / "w.pt", net, {"training": "none"})
    a, b = random_pair(32, 32)
    assert torch.equal(load(tmp_path / "w.pt")(a, b), load(str(tmp_path / "w.pt"))(a, b))
    assert torch.allclose(load(tmp_path / "w.pt")(a, b), net(a, b))


def refused(path):
    with pytest.raises(FusionError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return caught.value.code


def test_bad_weights_files(net, tmp_path):
    assert refused(tmp_path / "none.pt") == "weights_missing"
    (tmp_path / "text.pt").write_text("not weights")
    assert refused(tmp_path / "text.pt") == "weights_damaged"
    whole = find().read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path / "cut.pt") == "weights_damaged"
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    assert refused(tmp_path / "other.pt") == "weights_other"
    content = torch.load(find(), weights_only=True)
    content["state"]["decoder.blocks.0.conv1.weight"][0, 0, 0, 0] += 1
    torch.save(content, tmp_path / "changed.pt")
    assert refused(tmp_path / "changed.pt") == "weights_damaged"
    content["state"]["decoder.blocks.0.conv1.weight"][0, 0, 0, 0] -= 1
    content["config"]["normalised_spectrum"] = False
    torch.save(content, tmp_path / "config.pt")
    assert refused(tmp_path / "config.pt") == "weights_damaged"
    content["config"]["patches"] = (4,)
    torch.save(content, tmp_path / "short.pt")
    assert refused(tmp_path / "short.pt") == "weights_other"
    content["state"].pop("decoder.blocks.0.conv1.weight")
    torch.save(content, tmp_path / "part.pt")
    assert refused(tmp_path / "part.pt") == "weights_other"


class Harm:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_loading_runs_no_code(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "harm.pt").write_bytes(pickle.dumps(Harm(mark)))
    assert refused(tmp_path / "harm.pt") == "weights_damaged"
    torch.save({"format": Harm(mark)}, tmp_path / "harm2.pt")
    assert refused(tmp_path / "harm2.pt") == "weights_damaged"
    assert not mark.exists()


def test_the_package_comes_without_torch():
    code = (
        "import sys, ASFEFusionLib.fusion, ASFEFusionLib.settings, ASFEFusionLib.files, ASFEFusionLib.preview;"
        "sys.exit('torch' in sys.modules or 'SimpleITK' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
